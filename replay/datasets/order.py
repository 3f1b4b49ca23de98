"""Time order for a log of any size: small ones in memory, big ones as sorted runs that are merged.

Rows are collected up to a budget; a log that fits is sorted there and then. One that does not is
written to a folder as sorted runs (Parquet), which are merged by time while they are read, a row
group of each at a time. The folder is removed when the iteration ends, however it ends.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from stream.errors import BadData

BUDGET_BYTES = 256 << 20
"""Rows held in memory before a run is written; the process needs about four times as much."""

GROUP_ROWS = 16_384
"""Rows of each run that the merge holds in memory."""


def in_time_order(
    frames: Iterator[pl.DataFrame], *, spill: Path | None = None, budget_bytes: int = BUDGET_BYTES
) -> Iterator[pl.DataFrame]:
    """Yield the rows of all frames sorted by ``ts_ms``, in pieces that never split a millisecond.

    Parameters
    ----------
    frames
        Frames of one schema with an int64 column ``ts_ms``, in any order.
    spill
        Folder for runs, in a new folder inside it; default the system's temporary folder.
    budget_bytes
        Size of the rows that are held before they are written out.

    Raises
    ------
    BadData
        If the log does not fit into memory and the folder cannot take it.

    Notes
    -----
    The order among rows of one millisecond is that of arrival in memory and unspecified in a merge:
    the caller sorts it out, which is why a millisecond is never split.

    Examples
    --------
    >>> frames = [pl.DataFrame({"ts_ms": [3, 1]}), pl.DataFrame({"ts_ms": [2, 3]})]
    >>> [frame["ts_ms"].to_list() for frame in in_time_order(iter(frames))]
    [[1, 2, 3, 3]]

    """
    held: list[pl.DataFrame] = []
    size = 0
    folder: Path | None = None
    runs: list[Path] = []
    try:
        for frame in frames:
            held.append(frame)
            size += int(frame.estimated_size())
            if size > budget_bytes:
                folder = folder or _new_folder(spill)
                runs.append(_write_run(held, folder / f"{len(runs)}.parquet"))
                held, size = [], 0
        if not runs:
            if held:
                whole = pl.concat(held, how="diagonal")
                held.clear()
                yield whole.sort("ts_ms", maintain_order=True)
            return
        if held and folder:
            runs.append(_write_run(held, folder / f"{len(runs)}.parquet"))
            held = []
        yield from _merge(runs)
    finally:
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def _new_folder(spill: Path | None) -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix="tidegraph-sort-", dir=spill))
    except OSError as error:
        place = spill or tempfile.gettempdir()
        raise BadData(
            f"the log does not fit into memory and {place} cannot take its sorted pieces "
            f"({error.strerror}); name a folder with space in TMPDIR"
        ) from error


def _write_run(held: list[pl.DataFrame], path: Path) -> Path:
    try:
        pl.concat(held, how="diagonal").sort("ts_ms").write_parquet(
            path, compression="zstd", compression_level=1, row_group_size=GROUP_ROWS
        )
    except (OSError, pl.exceptions.PolarsError) as error:
        raise BadData(
            f"{path.parent}: cannot write the sorted pieces of a log that does not fit into memory "
            f"({error}); name a folder with space in TMPDIR"
        ) from error
    return path


@dataclass
class _Cursor:
    """One run, read forward: ``head`` is what is held of it, ``left`` the rows not yet read."""

    path: Path
    left: int
    read: int
    head: pl.DataFrame

    @classmethod
    def of(cls, path: Path) -> _Cursor:
        left = int(pl.scan_parquet(path).select(pl.len()).collect().item())
        cursor = cls(path, left, 0, pl.DataFrame())
        cursor.more()
        return cursor

    def more(self) -> None:
        """Read the next row group behind what is held."""
        n = min(GROUP_ROWS, self.left)
        group = pl.scan_parquet(self.path).slice(self.read, n).collect()
        self.head = pl.concat([self.head, group]) if self.head.height else group
        self.read += n
        self.left -= n

    def take_before(self, ts_ms: int | None) -> pl.DataFrame:
        """Take what is held of the rows before ``ts_ms``, or all of it."""
        n = self.head.height if ts_ms is None else int(self.head["ts_ms"].search_sorted(ts_ms))
        taken, self.head = self.head[:n], self.head[n:]
        return taken


def _merge(runs: list[Path]) -> Iterator[pl.DataFrame]:
    cursors = [_Cursor.of(path) for path in runs]
    while cursors:
        # Every row before the least of the last rows held is held: nothing unread can precede it.
        lasts = [int(c.head["ts_ms"][-1]) for c in cursors if c.left]
        before_ms = min(lasts, default=None)
        taken = [part for c in cursors if (part := c.take_before(before_ms)).height]
        if taken:
            yield pl.concat(taken, how="diagonal").sort("ts_ms")
        for cursor in cursors:
            if cursor.left and (not cursor.head.height or cursor.head["ts_ms"][-1] == before_ms):
                cursor.more()
        cursors = [c for c in cursors if c.left or c.head.height]
