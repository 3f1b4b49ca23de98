"""SberZvuk: plays of music tracks, ``zvuk-interactions.parquet``.

One row is one play: ``user_id``, ``session_id``, ``datetime``, ``track_id`` and ``play_duration``
in seconds. There are no lengths of tracks and no explicit signals.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from replay.datasets.base import Dataset
from replay.datasets.folders import listing, must_exist, unpacked_first
from replay.datasets.rows import build_rows, number, number_checks, text
from replay.datasets.sources import Block
from replay.datasets.tables import open_table
from replay.datasets.times import to_ms, unit_of
from stream.errors import BadData

_COLUMNS = ("user_id", "track_id", "datetime", "play_duration")
_SESSION = "session_id"
_FILE = re.compile(r".*interactions.*\.(?:parquet|csv|csv\.gz|csv\.zst)")


class Zvuk(Dataset):
    """The plays of SberZvuk.

    Parameters
    ----------
    path
        The folder of the interactions, in one file or several, or one file of any name.
    limit
        Keep the first events in time order only.
    spill
        Folder for what does not fit into memory.

    Raises
    ------
    BadData
        If there is no such file, or it lacks a column.

    """

    name = "zvuk"
    rules = "music"
    signals = ("play_ms",)

    def __init__(self, path: Path, *, limit: int | None = None, spill: Path | None = None) -> None:
        super().__init__(_find_files(must_exist(path)), limit=limit, spill=spill)
        self.tables = [open_table(file) for file in self.files]
        self._units = {}
        for table in self.tables:
            table.require(_COLUMNS)
            frame, n_rows = table.first_look(_COLUMNS)
            self.n_rows += n_rows
            place = f"{table.path}, column datetime"
            self._units[table.path] = unit_of(frame, "datetime", place=place)
        self.n_rows = min(self.n_rows, limit or self.n_rows)

    def blocks(self) -> Iterator[Block]:
        """Yield the raw blocks of all files."""
        for table in self.tables:
            sessions = (_SESSION,) if _SESSION in table.columns else ()
            yield from table.blocks((*_COLUMNS, *sessions))

    def rows(self, block: Block) -> pl.DataFrame:
        """Turn a block into rows."""
        frame = block.frame
        ts_ms, in_unit = to_ms(frame, "datetime", self._units[block.file])
        return build_rows(
            block,
            user="user_id",
            item="track_id",
            ts_ms=ts_ms,
            signals={"play_ms": number(frame, "play_duration") * 1_000},
            context={"session": text(frame, _SESSION)} if _SESSION in frame.columns else {},
            checks=[in_unit, *number_checks(frame, "play_duration", optional=False)],
        )


def _find_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    found = unpacked_first([file for file in path.iterdir() if _FILE.fullmatch(file.name)])
    if not found:
        raise BadData(f"{path}: wanted zvuk-interactions.parquet, got {listing(path)}")
    return found
