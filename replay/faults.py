"""What goes wrong with streams, on purpose and by seed: the same faults every time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import polars as pl
from numpy.typing import NDArray

from replay.datasets.base import Chunk
from replay.player import Damage, Entry
from stream.errors import BadSettings

_ARRIVAL = ".arrival_ms"


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What goes wrong between an event and its arrival.

    Parameters
    ----------
    duplicates
        Share of the events that arrive a second time, less than ``within_ms`` after they happened.
    within_ms
        Every event arrives with a delay of its own, less than this; 0 keeps the order. An
        intake that allows this lateness accepts all of them.
    bursts
        Share of all spans of ``span_ms`` that are held back: their events arrive at once, at the
        end.
    gaps
        Share of all spans of ``span_ms`` that are lost, as if nobody had listened.
    span_ms
        Length of a burst or gap.
    seed
        Decides which.

    Raises
    ------
    BadSettings
        If a share is not between 0 and 1, or a time is negative.

    """

    duplicates: float = 0.0
    within_ms: int = 0
    bursts: float = 0.0
    gaps: float = 0.0
    span_ms: int = 60_000
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse nonsense."""
        for name in ("duplicates", "bursts", "gaps"):
            _check_share(name, getattr(self, name))
        if self.within_ms < 0 or self.span_ms < 1:
            told = ", ".join(f"{field.name}={getattr(self, field.name)}" for field in fields(self))
            raise BadSettings(f"faults: wanted times of at least 0 and a span above 0, got {told}")


def with_faults(chunks: Iterable[Chunk], faults: Faults) -> Iterator[Chunk]:
    """Yield events in the order in which they arrive, faults included.

    Parameters
    ----------
    chunks
        In time order.
    faults
        What goes wrong.

    Notes
    -----
    Held in memory are one chunk and the events of the delay before it. How the log was cut
    into chunks decides which random number an event gets, so keep that the same too.

    Examples
    --------
    >>> frame = pl.DataFrame({"event_id": ["a", "b", "c"], "ts_ms": [1, 2, 3]})
    >>> faults = Faults(duplicates=0.5, within_ms=100, seed=4)
    >>> [chunk.frame["event_id"].to_list() for chunk in with_faults([Chunk(frame, [])], faults)]
    [[], ['c', 'b', 'a', 'a', 'b']]

    """
    rng = np.random.default_rng([faults.seed, 1])
    held: pl.DataFrame | None = None
    for chunk in chunks:
        if not chunk.frame.height:
            yield chunk
            continue
        coming = _arrivals(chunk.frame, faults, rng)
        if held is None:
            held = coming.clear()
        start_ms = int(chunk.frame["ts_ms"][0])  # nothing that is still to come arrives before
        yield Chunk(_sent(held.filter(pl.col(_ARRIVAL) < start_ms)), chunk.dead)
        held = pl.concat([held.filter(pl.col(_ARRIVAL) >= start_ms), coming], how="diagonal")
    if held is not None:
        yield Chunk(_sent(held), [])


def corrupted(*, share: float, seed: int) -> Damage:
    r"""Return a fault for :func:`replay.player.play`: damaged copies of a share of the records.

    The good record goes through too, so what is accepted stays the same and each damaged copy is
    one more dead letter. A copy is cut short, starts with a byte that is no text, or is empty.

    Raises
    ------
    BadSettings
        If the share is not between 0 and 1.

    Examples
    --------
    >>> corrupted(share=1.0, seed=0)([(b"7", b'{"v":1}')])
    [(b'7', b'{"v":1}'), (b'7', b'\xff{"v":1}')]

    """
    _check_share("corrupted", share)
    rng = np.random.default_rng([seed, 2])

    def damage(entries: Sequence[Entry]) -> list[Entry]:
        sent: list[Entry] = []
        for (key, value), hit in zip(entries, rng.random(len(entries)) < share, strict=True):
            sent.append((key, value))
            if hit:
                cut = value[: int(rng.integers(1, len(value)))]
                sent.append((key, (cut, b"\xff" + value, b"")[int(rng.integers(3))]))
        return sent

    return damage


def _check_share(name: str, share: float) -> None:
    if not 0.0 <= share <= 1.0:
        raise BadSettings(f"faults: wanted {name} to be a share from 0 to 1, got {share}")


def _arrivals(frame: pl.DataFrame, faults: Faults, rng: np.random.Generator) -> pl.DataFrame:
    """Return what arrives of a chunk, copies included, with the time of arrival."""
    ts_ms = frame["ts_ms"].to_numpy()
    span = ts_ms // faults.span_ms
    delay_ms = _delays(rng, frame.height, faults.within_ms)
    end_ms = (span + 1) * faults.span_ms - 1
    arrival_ms = np.where(_chosen(span, faults.bursts, faults.seed, 3), end_ms, ts_ms + delay_ms)
    copied = rng.random(frame.height) < faults.duplicates
    copy_ms = ts_ms[copied] + _delays(rng, int(copied.sum()), faults.within_ms)
    kept = ~_chosen(span, faults.gaps, faults.seed, 4)
    return pl.concat(
        [
            frame.with_columns(pl.Series(_ARRIVAL, arrival_ms)).filter(pl.Series(kept)),
            frame.filter(pl.Series(copied))
            .with_columns(pl.Series(_ARRIVAL, copy_ms))
            .filter(pl.Series(kept[copied])),
        ]
    )


def _delays(rng: np.random.Generator, n: int, within_ms: int) -> NDArray[np.int64]:
    return rng.integers(0, max(within_ms, 1), n)


def _chosen(spans: NDArray[np.int64], share: float, seed: int, fault: int) -> NDArray[np.bool_]:
    """Draw once per span, in whichever chunks it lies."""
    numbers, place = np.unique(spans, return_inverse=True)
    draws = [np.random.default_rng([seed, fault, int(number)]).random() for number in numbers]
    return (np.array(draws) < share)[place] if share else np.zeros(spans.shape, np.bool_)


def _sent(arrived: pl.DataFrame) -> pl.DataFrame:
    return arrived.sort(_ARRIVAL, maintain_order=True).drop(_ARRIVAL)
