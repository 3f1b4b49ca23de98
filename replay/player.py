"""Plays a log of the past into a :class:`stream.log.Log`, paced by the time of its events."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl

from replay.clock import Clock, Pace, SystemClock
from replay.datasets.base import Chunk
from stream.events import SCHEMA_VERSION, DeadLetter
from stream.log import Log

Entry = tuple[bytes | None, bytes]
"""Key (the user) and value (the JSON) of one record."""

Damage = Callable[[Sequence[Entry]], list[Entry]]
"""What a fault makes of the records of one batch."""


_ESCAPED = r'["\\\x00-\x1f]'
"""What JSON strings may not hold as it is."""


class Progress(NamedTuple):
    """How far a play has come."""

    sent: int
    """Records appended since the start."""
    ts_ms: int
    """Event time of the newest one."""
    dead: list[DeadLetter]
    """Lines of the log that could not become events, met since the last progress."""


def encode(frame: pl.DataFrame) -> list[Entry]:
    r"""Write the events of a chunk as ``interactions`` records, keyed by user.

    A signal that is 0 is left out, as readers take a missing one for 0. Lines that are in our own
    format already (a column ``record``) go through unchanged.

    Notes
    -----
    About 2 us an event on one core: the texts are put together column by column.

    Examples
    --------
    >>> frame = pl.DataFrame(
    ...     {
    ...         "event_id": ["e"],
    ...         "user_id": ['a"b'],
    ...         "item_id": ["2"],
    ...         "ts_ms": [3],
    ...         "signals.click": [1.0],
    ...         "signals.hate": [0.0],
    ...     }
    ... )
    >>> key, value = encode(frame)[0]
    >>> key.decode()
    'a"b'
    >>> print(value.decode())
    {"v":1,"event_id":"e","user_id":"a\"b","item_id":"2","ts_ms":3,"signals":{"click":1}}

    """
    keys = frame["user_id"].cast(pl.Binary).to_list()
    if "record" in frame.columns:
        return list(zip(keys, frame["record"].to_list(), strict=True))
    signals = [_signal(name) for name in frame.columns if name.startswith("signals.")]
    context = [_context(frame, name) for name in frame.columns if name.startswith("context.")]
    parts = [
        pl.lit(f'{{"v":{SCHEMA_VERSION},"event_id":'),
        _quoted(frame, "event_id"),
        pl.lit(',"user_id":'),
        _quoted(frame, "user_id"),
        pl.lit(',"item_id":'),
        _quoted(frame, "item_id"),
        pl.lit(',"ts_ms":'),
        pl.col("ts_ms").cast(pl.String),
        pl.lit(',"signals":{'),
        pl.concat_str(signals, separator=",", ignore_nulls=True) if signals else pl.lit(""),
        pl.lit("}"),
    ]
    if context:
        told = pl.concat_str(context, separator=",", ignore_nulls=True)
        parts += [pl.lit(',"context":{'), told, pl.lit("}")]
    record = pl.concat_str([*parts, pl.lit("}")]).cast(pl.Binary)
    return list(zip(keys, frame.select(record).to_series().to_list(), strict=True))


def _signal(name: str) -> pl.Expr:
    value = pl.col(name)
    whole = value.cast(pl.Int64, strict=False)
    told = pl.when(whole == value).then(whole.cast(pl.String)).otherwise(value.cast(pl.String))
    return pl.when(value != 0).then(pl.lit(f'"{name.removeprefix("signals.")}":') + told)


def _context(frame: pl.DataFrame, name: str) -> pl.Expr:
    return pl.lit(f'"{name.removeprefix("context.")}":') + _quoted(frame, name)


def _quoted(frame: pl.DataFrame, name: str) -> pl.Expr:
    """Return a text column as JSON strings."""
    text = pl.col(name)
    if not frame[name].str.contains(_ESCAPED).any():
        return pl.lit('"') + text + pl.lit('"')
    record = pl.struct(text.alias("x")).struct.json_encode()  # {"x":"..."}
    return pl.when(text.is_not_null()).then(record.str.slice(5).str.head(-1))


def play(
    chunks: Iterable[Chunk],
    log: Log,
    *,
    speed: float = math.inf,
    clock: Clock | None = None,
    topic: str = "interactions",
    batch: int = 2_048,
    damage: Damage | None = None,
) -> Iterator[Progress]:
    """Append the events of all chunks to a log, yielding after every append.

    Parameters
    ----------
    chunks
        In order of arrival (by time, unless a fault has mixed them).
    log
        Where the records go.
    speed
        Seconds of the log per second of the clock; infinite appends as fast as it is asked to.
    clock
        What paced replays wait on; default that of the machine.
    topic
        Where to in the log.
    batch
        Most records of one append.
    damage
        Makes faulty records of good ones (:func:`replay.faults.corrupted`).

    Notes
    -----
    The consumer sets the pace of an unpaced replay: nothing is read ahead but the current chunk.
    The time stamp of the records is the time of the newest event, so that a replay does not depend
    on when it runs.

    """
    pace = Pace(speed, clock or SystemClock())
    sent, newest_ms = 0, -(2**63)
    for chunk in chunks:
        dead = chunk.dead
        entries = encode(chunk.frame)
        # An event that arrives late is due when it arrives: with the newest one before it.
        due_ms = np.maximum.accumulate(chunk.frame["ts_ms"].to_numpy())
        start = 0
        while start < len(entries):
            pace.wait_for(int(due_ms[start]))
            until_ms = pace.due_ms(int(due_ms[start]))
            due = int(np.searchsorted(due_ms, until_ms, side="right"))
            end = min(start + batch, max(due, start + 1))
            newest_ms = max(newest_ms, int(due_ms[end - 1]))
            records = entries[start:end]
            log.append(topic, damage(records) if damage else records, timestamp_ms=newest_ms)
            sent += end - start
            start = end
            yield Progress(sent, newest_ms, dead)
            dead = []
        if dead:
            yield Progress(sent, newest_ms, dead)
