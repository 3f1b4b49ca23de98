"""A separated text or Parquet file opened as a table: its columns, a first look, its blocks."""

from __future__ import annotations

import csv
import difflib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from replay.datasets.sources import (
    Block,
    first_lines,
    is_parquet,
    parquet_blocks,
    parquet_columns,
    parquet_height,
    split_blocks,
)
from stream.errors import BadData

SEPARATORS = ("::", "\t", ",", ";", "|")
"""What may part two fields, in the order in which it is looked for in the first line."""


@dataclass(frozen=True)
class Table:
    """A log file with named columns.

    Parameters
    ----------
    path
        Plain, gzip or zstd text, or Parquet.
    columns
        Names in the order of the file.
    separator
        Text between two fields; empty for Parquet.
    skip
        Lines before the first row: 1 where there is a header.

    """

    path: Path
    columns: tuple[str, ...]
    separator: str
    skip: int

    def blocks(self, wanted: Sequence[str]) -> Iterator[Block]:
        """Yield the rows; a Parquet file gives the wanted columns only."""
        if is_parquet(self.path):
            return parquet_blocks(self.path, columns=[*wanted])
        columns = [*self.columns]
        return split_blocks(self.path, separator=self.separator, columns=columns, skip=self.skip)

    def first_look(self, wanted: Sequence[str]) -> tuple[pl.DataFrame, int]:
        """Return the good rows of the first block, and how many rows the file has, estimated.

        Raises
        ------
        BadData
            If there is no row.

        """
        block = next(self.blocks(wanted), None)
        if block is None or not block.frame.height:
            raise BadData(f"{self.path}: wanted a log, got a header and no line below it")
        whole = parquet_height(self.path) if is_parquet(self.path) else 0
        size = self.path.stat().st_size
        n_rows = whole or block.frame.height * size // block.read_bytes
        return block.frame.filter(pl.col(".broken").is_null()), n_rows

    def require(self, wanted: Sequence[str]) -> None:
        """Refuse a table that lacks one of the wanted columns.

        Raises
        ------
        BadData
            Naming what is wanted, what is missing and its nearest name, and what there is.

        """
        if not set(wanted) <= set(self.columns):
            raise BadData(missing_columns(wanted, self.columns, place=str(self.path)))


def open_table(path: Path, *, names: Sequence[str] | None = None) -> Table:
    """Open a file, finding the separator in its first line.

    Parameters
    ----------
    path
        Text or Parquet.
    names
        Names of the columns of a text file that has no header; None reads the header.

    Raises
    ------
    BadData
        If the file is empty, torn or not what its name says.

    """
    if is_parquet(path):
        return Table(path, tuple(parquet_columns(path)), "", 0)
    line = first_lines(path, 1)[0]
    separator = find_separator(line)
    if names is not None:
        return Table(path, tuple(names), separator, 0)
    return Table(path, tuple(split_line(line, separator)), separator, 1)


def find_separator(line: str) -> str:
    r"""Return what parts the fields of a line.

    Examples
    --------
    >>> find_separator("1::1193::5::978300760"), find_separator("user,item")
    ('::', ',')

    """
    return next((mark for mark in SEPARATORS if mark in line), ",")


def split_line(line: str, separator: str) -> list[str]:
    """Return the trimmed fields of one line."""
    if len(separator) > 1:
        return [field.strip() for field in line.split(separator)]
    return [field.strip() for field in next(csv.reader([line], delimiter=separator))]


def missing_columns(wanted: Sequence[str], found: Collection[str], *, place: str) -> str:
    """Say which of the wanted columns are missing, which come nearest, and what there is.

    Examples
    --------
    >>> print(missing_columns(["user", "time"], ["user", "times"], place="log.csv"))
    log.csv: wanted the columns user, time; time is missing (is it "times"?); found user, times

    """
    told = []
    for name in wanted:
        if name not in found:
            near = difflib.get_close_matches(name, [*found], n=1, cutoff=0.5)
            told.append(f"{name} is missing" + (f' (is it "{near[0]}"?)' if near else ""))
    there = ", ".join(found)
    return f"{place}: wanted the columns {', '.join(wanted)}; {', '.join(told)}; found {there}"
