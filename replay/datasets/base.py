"""A log opened: events in time order, in chunks, and what was wrong with it."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from replay.datasets.order import in_time_order
from replay.datasets.rows import DEAD, NO_TIME
from replay.datasets.sources import Block
from stream.errors import BadData
from stream.events import DeadLetter, digest_ids, event_keys

OnRead = Callable[[int, int], None]
"""Told how many bytes of how many have been read while a log is being put in order."""

_SIGNALS = "signals."
_HASHED_BYTES = 1 << 20
_HASHED_PLACES = 64


class Chunk(NamedTuple):
    """Some events in time order, and the dead letters of the same span.

    ``frame`` has the columns ``event_id``, ``user_id``, ``item_id`` (strings), ``ts_ms`` (int64),
    one Float64 column ``signals.NAME`` per signal (0 where it is absent) and one string column
    ``context.NAME`` per context value; for logs in our own format also ``record``, the bytes of the
    line, and ``retracts``. It is sorted by ``(ts_ms, event_key(event_id))``, across chunks too.
    """

    frame: pl.DataFrame
    dead: list[DeadLetter]


class Dataset(ABC):
    """A log on disk that can be read as events in time order.

    Opening one looks at names, columns and units of time only; reading happens in
    :meth:`chunks`, lazily and in bounded memory, as often as it is called.

    Attributes
    ----------
    name
        Name of the layout, as in ``--dataset``.
    rules
        The shipped rule set that fits it.
    signals
        Wire names of the signals it has.
    files
        What is read, in order.
    notes
        What the user should know about the log; complete once the first chunk is out.
    n_rows
        Lines in the log: exact for Parquet, estimated from the size for text. At most ``limit``.

    """

    name: str
    rules: str
    signals: tuple[str, ...]
    files: list[Path]
    notes: list[str]
    n_rows: int
    features: Path | None = None
    """File of the items' features, where the layout has one."""
    item_column: str = ""
    """Its column of item ids."""

    def __init__(self, files: list[Path], *, limit: int | None, spill: Path | None) -> None:
        self.files = files
        self.notes = []
        self.n_rows = 0
        self._limit = limit
        self._spill = spill
        self._n_bytes = sum(path.stat().st_size for path in files)

    @abstractmethod
    def blocks(self) -> Iterator[Block]:
        """Yield the raw blocks of all files, in the order of the files."""

    @abstractmethod
    def rows(self, block: Block) -> pl.DataFrame:
        """Turn a block into rows (see :mod:`replay.datasets.rows`)."""

    def finish(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Complete rows once the whole log has been read; they are sorted by time by then."""
        return frame

    def settings(self) -> str:
        """Return what decides the events beside the files, for the fingerprint."""
        return self.name

    def chunks(self, *, rows: int = 65_536, on_read: OnRead | None = None) -> Iterator[Chunk]:
        """Yield the events in time order.

        Parameters
        ----------
        rows
            Lines in a chunk, dead ones included.
        on_read
            Called while the log is read and sorted, before the first chunk and on.

        Raises
        ------
        BadData
            If the log turns out to be empty, torn, or too big for the spill folder.

        """
        left = self._limit
        ordered = in_time_order(self._frames(on_read), spill=self._spill)
        whole = (_with_ids(self.finish(frame)) for frame in ordered)
        try:
            for frame in _pieces(whole, rows):
                chunk = split_dead(frame)
                if left is not None and chunk.frame.height >= left:
                    yield _first(frame, left)
                    return
                left = None if left is None else left - chunk.frame.height
                yield chunk
        finally:
            ordered.close()  # type: ignore[attr-defined]

    def fingerprint(self) -> str:
        """Return 32 hex digits that tell this input from any other.

        Names and sizes of the files and a mebibyte at 64 places of each (all of a file up to 64
        MiB), the layout, its settings and the limit.
        """
        digest = blake2b(f"{self.settings()}|{self._limit}".encode(), digest_size=16)
        for path in self.files:
            size = path.stat().st_size
            digest.update(f"|{path.name}|{size}|".encode())
            last = max(size - _HASHED_BYTES, 0)
            places = np.linspace(0, last, _HASHED_PLACES).astype(np.int64)
            if size <= _HASHED_PLACES * _HASHED_BYTES:
                places = np.arange(0, max(size, 1), _HASHED_BYTES)
            with path.open("rb") as file:
                for place in places.tolist():
                    file.seek(place)
                    digest.update(file.read(_HASHED_BYTES))
        return digest.hexdigest()

    def note(self, text: str) -> None:
        """Keep a remark for the user, once."""
        if text not in self.notes:
            self.notes.append(text)

    def _frames(self, on_read: OnRead | None) -> Iterator[pl.DataFrame]:
        done, last_ms, n_rows = 0, NO_TIME, 0
        for path, blocks in itertools.groupby(self.blocks(), key=lambda block: block.file):
            for block in blocks:
                frame = self.rows(block)
                n_rows += frame.height
                times = frame["ts_ms"].filter(frame[".reason"].is_null())
                if times.len():
                    if not times.is_sorted() or int(times[0]) < last_ms:
                        self.note("the log was not in time order: sorted")
                    last_ms = max(last_ms, int(times[-1]))
                if on_read:
                    on_read(min(done + block.read_bytes, self._n_bytes), self._n_bytes)
                yield frame
            done += path.stat().st_size
        if not n_rows:
            names = ", ".join(path.name for path in self.files)
            raise BadData(f"{self.files[0].parent}: wanted events, but no line follows in {names}")


def split_dead(frame: pl.DataFrame) -> Chunk:
    """Part rows with ids into events and dead letters."""
    good = frame.filter(pl.col(".reason").is_null()).drop(*DEAD)
    dead = frame.filter(pl.col(".reason").is_not_null()).select(*DEAD)
    letters = [
        DeadLetter(bytes(raw), reason, where, topic="", partition=-1, offset=-1)
        for where, reason, raw in dead.iter_rows()
    ]
    return Chunk(good, letters)


def signals_of(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the signals of a chunk's frame by their wire names, one Float64 column each.

    Examples
    --------
    >>> signals_of(pl.DataFrame({"user_id": ["7"], "signals.click": [1.0]})).columns
    ['click']

    """
    names = [name for name in frame.columns if name.startswith(_SIGNALS)]
    return frame.select(pl.col(name).alias(name.removeprefix(_SIGNALS)) for name in names)


def _with_ids(frame: pl.DataFrame) -> pl.DataFrame:
    """Give rows that have none their ids, and put rows of one millisecond in their order."""
    if "event_id" not in frame.columns:
        ids = digest_ids(frame["user_id"], frame["item_id"], frame["ts_ms"], signals_of(frame))
        frame = frame.insert_column(0, pl.Series("event_id", ids, dtype=pl.String))
    keys = pl.Series(".key", event_keys(frame["event_id"].to_list()), dtype=pl.UInt64)
    return frame.with_columns(keys).sort("ts_ms", ".key", "event_id").drop(".key")


def _pieces(frames: Iterator[pl.DataFrame], rows: int) -> Iterator[pl.DataFrame]:
    """Cut and join frames into pieces of ``rows`` rows; the last may be shorter."""
    held: list[pl.DataFrame] = []
    n_held = 0
    for frame in frames:
        held.append(frame)
        n_held += frame.height
        while n_held >= rows:
            whole = pl.concat(held, how="diagonal") if len(held) > 1 else held[0]
            yield whole[:rows]
            held, n_held = [whole[rows:]], n_held - rows
    if n_held:
        yield pl.concat(held, how="diagonal")


def _first(frame: pl.DataFrame, n: int) -> Chunk:
    """Return the first ``n`` events of a piece and the dead letters before the next one."""
    good = pl.col(".reason").is_null()
    return split_dead(frame.filter(good.cum_sum() <= n))
