"""Ratings: MovieLens, Amazon, and any table of user, item, rating and time.

Known by shape: MovieLens ``u.data`` (tabs, no header), ``ratings.dat`` (``::``, no header) and
``ratings.csv``; Amazon's rating files with and without a header. Any other names are mapped by
``--columns``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import polars as pl

from replay.datasets.base import Dataset
from replay.datasets.folders import listing, must_exist, unpacked_first
from replay.datasets.rows import Check, build_rows, number, number_checks
from replay.datasets.sources import Block, first_lines, is_parquet
from replay.datasets.tables import Table, find_separator, missing_columns, open_table, split_line
from replay.datasets.times import Unit, example_of, to_ms, unit_of
from stream.errors import BadData, BadSettings

ROLES = ("user", "item", "rating", "time")
"""What a rating consists of, and the order of the fields where a file has no header."""

NAMES = {
    "user": ("user", "user_id", "userid", "reviewerid"),
    "item": ("item", "item_id", "itemid", "movieid", "movie_id", "parent_asin", "asin"),
    "rating": ("rating", "overall", "stars", "score"),
    "time": ("timestamp", "time", "ts", "ts_ms", "time_ms", "unixreviewtime", "datetime", "date"),
}
"""Column names that need no mapping; case does not matter."""

TOP = 5.0
"""The scale of the rules: 1 to 5."""

_DAY_MS = 86_400_000
_KNOWN_FILE = re.compile(r"u\.data|ratings.*\.(?:dat|csv|tsv|txt|parquet)(?:\.gz|\.zst)?")
_ANY_FILE = re.compile(r".*\.(?:csv|tsv|parquet)(?:\.gz|\.zst)?")


class Ratings(Dataset):
    """A log of ratings in one file.

    A scale that goes beyond 5 is mapped to 1 to 5 by ``ceil(5 r / top)``, where ``top`` is the
    greatest rating of the log unless it is given.

    Parameters
    ----------
    path
        The file, or a folder in which exactly one looks like ratings.
    columns
        Names of the columns by role (or their numbers from 1, where there is no header).
    scale
        Greatest rating of the scale; None finds it.
    limit
        Keep the first events in time order only.
    spill
        Folder for what does not fit into memory.

    Raises
    ------
    BadData
        If there is no such file, or it lacks a column.

    """

    name = "ratings"
    rules = "ratings"
    signals = ("rating",)

    def __init__(
        self,
        path: Path,
        *,
        columns: Mapping[str, str] | None = None,
        scale: float | None = None,
        limit: int | None = None,
        spill: Path | None = None,
    ) -> None:
        file = _find_file(must_exist(path))
        super().__init__([file], limit=limit, spill=spill)
        self.table = _open(file, columns or {})
        self.columns = _roles(self.table, columns or {})
        self._scale = scale
        self._top = 0.0
        self._whole_days = True
        wanted = [*self.columns.values()]
        frame, n_rows = self.table.first_look(wanted)
        self.n_rows = min(n_rows, limit or n_rows)
        time = self.columns["time"]
        self._unit = unit_of(frame, time, place=f"{file}, column {time}")
        if self._unit is not Unit.SECONDS and example_of(frame, time).isdecimal():
            self.note(f"column {time} is in {self._unit.label}, not in seconds: taken as such")

    def blocks(self) -> Iterator[Block]:
        """Yield the raw blocks of the file."""
        self._top, self._whole_days = 0.0, True
        return self.table.blocks([*self.columns.values()])

    def rows(self, block: Block) -> pl.DataFrame:
        """Turn a block into rows; ratings are still on the scale of the file."""
        frame, rating = block.frame, self.columns["rating"]
        ts_ms, in_unit = to_ms(frame, self.columns["time"], self._unit)
        checks = [in_unit, *number_checks(frame, rating, optional=False)]
        value = number(frame, rating)
        if self._scale is not None:
            wanted = f"a rating of at most {self._scale:g}, the scale that was given"
            checks.append(Check(rating, value > self._scale, wanted))
        rows = build_rows(
            block,
            user=self.columns["user"],
            item=self.columns["item"],
            ts_ms=ts_ms,
            signals={"rating": value},
            context={},
            checks=checks,
        )
        good = rows.filter(pl.col(".reason").is_null())
        top, whole_days = good.select(
            pl.col("signals.rating").max(), whole=(pl.col("ts_ms") % _DAY_MS == 0).all()
        ).row(0)
        self._top = max(self._top, top or 0.0)
        self._whole_days &= whole_days
        return rows

    def finish(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Bring ratings to the scale of 1 to 5, now that the greatest is known."""
        top = self._scale or self._top
        if self._whole_days:
            self.note("all times are whole days: events of one day have no order among themselves")
        if top == TOP or (top < TOP and self._scale is None):
            return frame
        self.note(f"ratings go up to {top:g}: mapped to 1..5 by ceil(5 r / {top:g})")
        return frame.with_columns((pl.col("signals.rating") * TOP / top).ceil())

    def settings(self) -> str:
        """Return what decides the events beside the file."""
        return f"{self.name}|{sorted(self.columns.items())}|{self._scale}|{self._unit.label}"


def parse_columns(text: str) -> dict[str, str]:
    """Read a column mapping from the command line.

    Raises
    ------
    BadSettings
        If it is not ``role=column,...`` with the four roles.

    Examples
    --------
    >>> parse_columns("user=uid,item=movie,rating=stars,time=when")
    {'user': 'uid', 'item': 'movie', 'rating': 'stars', 'time': 'when'}

    """
    pairs = [pair.partition("=") for pair in text.split(",")]
    columns = {role.strip(): column.strip() for role, _, column in pairs}
    if set(columns) - set(ROLES) or not all(columns.values()) or len(columns) != len(pairs):
        raise BadSettings(
            f'columns: wanted user=COLUMN,item=COLUMN,rating=COLUMN,time=COLUMN, got "{text}"'
        )
    return columns


def _find_file(path: Path) -> Path:
    if path.is_file():
        return path
    names = [entry for entry in path.iterdir() if entry.is_file()]
    for pattern in (_KNOWN_FILE, _ANY_FILE):
        found = unpacked_first([file for file in names if pattern.fullmatch(file.name)])
        if len(found) == 1:
            return found[0]
        if found:
            told = ", ".join(file.name for file in found)
            raise BadData(f"{path}: wanted one file of ratings, got {told}; name the file itself")
    raise BadData(
        f"{path}: wanted u.data, ratings.dat, ratings.csv or another CSV, TSV or Parquet file, got "
        f"{listing(path)}"
    )


def _open(file: Path, columns: Mapping[str, str]) -> Table:
    """Open the file; one without a header gets the numbers of its columns as names."""
    if is_parquet(file):
        return open_table(file)
    fields = split_line(first := first_lines(file, 1)[0], find_separator(first))
    by_number = bool(columns) and all(name.isdecimal() for name in columns.values())
    headless = by_number or _is_rating(fields)
    return open_table(file, names=[str(i + 1) for i in range(len(fields))] if headless else None)


def _is_rating(fields: list[str]) -> bool:
    """Tell whether the fields of a first line are values: third and fourth are numbers."""
    try:
        return len(fields) >= len(ROLES) and float(fields[2]) >= 0 and float(fields[3]) >= 0
    except ValueError:
        return False


def _roles(table: Table, columns: Mapping[str, str]) -> dict[str, str]:
    """Return the column of each role: as mapped, by a known name, or by place."""
    by_name = {name.lower(): name for name in table.columns}
    found = dict(columns)
    for place, role in enumerate(ROLES):
        if role in found:
            continue
        if table.skip == 0 and table.separator:
            found[role] = str(place + 1)
            continue
        known = [by_name[name] for name in NAMES[role] if name in by_name]
        if not known:
            wanted = [found.get(name, NAMES[name][0]) for name in ROLES]
            told = missing_columns(wanted, table.columns, place=str(table.path))
            raise BadData(f"{told}; or map them: --columns user=..,item=..,rating=..,time=..")
        found[role] = known[0]
    table.require([found[role] for role in ROLES])
    return {role: found[role] for role in ROLES}
