"""Units of time: which one a log uses, and a clear word where it is not the layout's.

A moment between 1980 and 2100 has another number of digits in seconds, milliseconds, microseconds
and nanoseconds, so a look at the numbers decides.
"""

from __future__ import annotations

import enum

import polars as pl

from replay.datasets.rows import Check, text
from stream.errors import BadData

_FROM_S = 315_532_800  # 1980-01-01
_TO_S = 4_102_444_800  # 2100-01-01


class Unit(enum.Enum):
    """Unit of a time column: its name and how many of it make a second."""

    SECONDS = ("seconds", 1)
    MILLISECONDS = ("milliseconds", 1_000)
    MICROSECONDS = ("microseconds", 1_000_000)
    NANOSECONDS = ("nanoseconds", 1_000_000_000)

    @property
    def label(self) -> str:
        """The name of the unit."""
        return self.value[0]

    @property
    def per_second(self) -> int:
        """How many of it make a second."""
        return self.value[1]

    def covers(self, value: pl.Series) -> pl.Series:
        """Tell for each number whether it is a moment of 1980 to 2100 in this unit."""
        low, high = _FROM_S * self.per_second, _TO_S * self.per_second
        return value.is_between(low, high, closed="left")


def time_value(frame: pl.DataFrame, column: str) -> pl.Series:
    """Return a time column as whole numbers, null where it holds none.

    Dates, of Parquet files or in ISO 8601 text, become milliseconds; a date without a zone is UTC.
    """
    raw = frame[column]
    if raw.dtype.is_temporal():
        return raw.cast(pl.Datetime("ms")).cast(pl.Int64)
    if raw.dtype != pl.String:
        return raw.cast(pl.Float64).round().cast(pl.Int64, strict=False)
    numbers = raw.cast(pl.Int64, strict=False)
    if not numbers.null_count():
        return numbers
    words = text(frame, column)
    inexact = words.cast(pl.Float64, strict=False).round().cast(pl.Int64, strict=False)
    if inexact.len() - inexact.null_count() >= (words.len() - words.null_count()) / 2:
        return numbers.zip_with(numbers.is_not_null(), inexact)
    dates = words.str.to_datetime(time_unit="ms", time_zone="UTC", strict=False)
    return dates.dt.timestamp("ms")


def unit_of(frame: pl.DataFrame, column: str, *, place: str) -> Unit:
    """Return the unit that most values of a time column are in.

    Raises
    ------
    BadData
        If not a single value is a time.

    Examples
    --------
    >>> unit_of(pl.DataFrame({"time_ms": ["1650812741", "1650812934", "x"]}), "time_ms", place="a")
    <Unit.SECONDS: ('seconds', 1)>

    """
    value = time_value(frame, column)
    counts = [unit.covers(value).sum() for unit in Unit]
    if not max(counts):
        raise BadData(
            f"{place}: wanted a time between 1980 and 2100, got {example_of(frame, column)} and "
            "the like; is it another column, or a counter?"
        )
    return list(Unit)[counts.index(max(counts))]


def example_of(frame: pl.DataFrame, column: str) -> str:
    """Return the first value of a column, for a message."""
    given = frame[column].drop_nulls()
    return str(given[0]) if given.len() else "nothing"


def must_be_ms(unit: Unit, *, place: str, example: str) -> None:
    """Refuse a time column that is not in milliseconds.

    Raises
    ------
    BadData
        If the column is in another unit.

    """
    if unit is Unit.MILLISECONDS:
        return
    per_ms = unit.per_second // 1_000
    cure = f"divide by {per_ms}" if per_ms else "multiply by 1000"
    raise BadData(
        f"{place}: wanted milliseconds since 1970 (UTC), got {unit.label}, as in {example}; {cure}"
    )


def to_ms(frame: pl.DataFrame, column: str, unit: Unit) -> tuple[pl.Series, Check]:
    """Return a time column in milliseconds, and the check that finds what is not in ``unit``."""
    value = time_value(frame, column)
    good = unit.covers(value).fill_null(value=False)
    ms = value * max(1_000 // unit.per_second, 1) // max(unit.per_second // 1_000, 1)
    wanted = f"a time between 1980 and 2100 in {unit.label}"
    return ms.set(~good, None), Check(column, ~good, wanted)
