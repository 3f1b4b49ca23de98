"""What the benches of the pipeline send: the shipped log as it is, or as if it happened now."""

from __future__ import annotations

from collections.abc import Callable

import polars as pl

from replay.clock import Clock, SystemClock
from replay.datasets import open_dataset
from replay.player import Entry, encode


class Traffic:
    """Records of the log that ships with the project, again from the start when it ends.

    Examples
    --------
    >>> traffic = Traffic()
    >>> [value.count(b'-1","user_id"') for _, value in traffic.past(len(traffic) + 1)[-2:]]
    [0, 1]
    >>> key, value = traffic.live(0, 1, start_ms=1_650_812_741_436, rate=1_000)[0]
    >>> print(value.decode()[:58])
    {"v":1,"event_id":"1650812741436-0","use...

    """

    def __init__(self) -> None:
        chunks = open_dataset("kuairand-pure").chunks()
        self._frame = pl.concat([chunk.frame for chunk in chunks], how="diagonal")

    def __len__(self) -> int:
        """Count the events of the log."""
        return self._frame.height

    def past(self, n: int) -> list[Entry]:
        """Return ``n`` events of the log; those after its end are its own, moved on in time."""
        number = pl.int_range(n, eager=True, dtype=pl.Int64)
        again, rows = number // len(self), self._frame[(number % len(self)).to_list()]
        span_ms = int(self._frame["ts_ms"][-1]) - int(self._frame["ts_ms"][0]) + 1
        renamed = rows["event_id"] + "-" + again.cast(pl.String)
        return encode(
            rows.with_columns(
                event_id=pl.select(
                    pl.when(again > 0).then(renamed).otherwise(rows["event_id"])
                ).to_series(),
                ts_ms=rows["ts_ms"] + again * span_ms,
            )
        )

    def live(self, first: int, n: int, *, start_ms: int, rate: float) -> list[Entry]:
        """Return ``n`` events from the ``first`` on, one every ``1 / rate`` seconds.

        Parameters
        ----------
        first
            Number of the first one since the start.
        n
            How many.
        start_ms
            Time of event 0, and part of the ids.
        rate
            Events per second.

        """
        number = pl.int_range(first, first + n, eager=True, dtype=pl.Int64)
        rows = self._frame[(number % len(self)).to_list()]
        return encode(
            rows.with_columns(
                event_id=f"{start_ms}-" + number.cast(pl.String),
                ts_ms=start_ms + (number * 1_000 / rate).cast(pl.Int64),
            )
        )


def paced(
    traffic: Traffic,
    send: Callable[[list[Entry]], None],
    *,
    rate: float,
    seconds: float,
    start_ms: int,
    clock: Clock | None = None,
    tick_s: float = 0.01,
) -> int:
    """Send live traffic at an even rate and return how many events that was.

    Each event is sent at its time or up to ``tick_s`` later; a send that takes longer is caught up
    with.

    Examples
    --------
    >>> from replay.clock import ManualClock
    >>> sizes = []
    >>> n = paced(
    ...     Traffic(),
    ...     lambda entries: sizes.append(len(entries)),
    ...     rate=1_000,
    ...     seconds=0.05,
    ...     start_ms=1_650_812_741_436,
    ...     clock=ManualClock(),
    ... )
    >>> n, sum(sizes), len(sizes)
    (50, 50, 5)

    """
    clock = clock or SystemClock()
    begun, total, sent = clock.now_s(), round(rate * seconds), 0
    ahead: list[Entry] = []  # encoded a second at a time, as a frame has a price of its own
    while sent < total:
        clock.sleep(max(0.0, begun + sent / rate + tick_s - clock.now_s()))
        due = min(total, int((clock.now_s() - begun) * rate + 1e-6))
        while len(ahead) < due - sent:
            n = max(1, min(round(rate), total - sent - len(ahead)))
            ahead += traffic.live(sent + len(ahead), n, start_ms=start_ms, rate=rate)
        if due > sent:
            send(ahead[: due - sent])
            del ahead[: due - sent]
            sent = due
    return sent
