"""Columns of a log become events: values are checked, what fails is kept as a dead letter.

Every layout ends in one shape of frame, called *rows* here: ``user_id``, ``item_id`` (strings),
``ts_ms``, one Float64 column ``signals.NAME`` per signal (0 where absent), one string column
``context.NAME`` per context value, and ``.where``, ``.reason``, ``.raw``, which are null but
for a line that cannot be an event. Dead lines travel with the events, so that they are sorted,
counted and bounded in memory by the same code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import polars as pl

from replay.datasets.sources import Block

NO_TIME = -(2**63)
"""``ts_ms`` of a dead line whose time cannot be read: it sorts before every event."""

DEAD = {".where": pl.String, ".reason": pl.String, ".raw": pl.Binary}


class Check(NamedTuple):
    """One thing that every line must satisfy.

    Parameters
    ----------
    column
        The column of the file that is looked at, for the message.
    fails
        True where a line is bad, a boolean per row.
    wanted
        What should have been there.

    """

    column: str
    fails: pl.Series
    wanted: str


def text(frame: pl.DataFrame, column: str) -> pl.Series:
    """Return a column as trimmed text, null where it is empty."""
    raw = frame[column]
    if raw.dtype != pl.String:
        return raw.cast(pl.String)
    return frame.select(
        pl.col(column).str.strip_chars().replace({"": None}).alias(column)
    ).to_series()


def number(frame: pl.DataFrame, column: str) -> pl.Series:
    """Return a column as Float64, null where it is empty or no number."""
    raw = frame[column]
    value = raw.cast(pl.Float64, strict=False)
    if raw.dtype == pl.String and value.null_count():
        return raw.str.strip_chars().cast(pl.Float64, strict=False)
    return value


def number_checks(
    frame: pl.DataFrame, column: str, *, optional: bool, least: float = 0.0
) -> list[Check]:
    """Check that a column holds finite numbers of at least ``least``; ``optional`` allows none.

    A column without a fault, which is nearly every one, costs no check.
    """
    value = number(frame, column)
    checks = []
    if value.null_count():
        no_number = value.is_null()
        if optional:
            no_number &= text(frame, column).is_not_null()
        checks.append(Check(column, no_number, "a number"))
    checks.append(Check(column, ~value.is_finite(), "a finite number"))
    checks.append(Check(column, value < least, f"a number of at least {least:g}"))
    return [check for check in checks if check.fails.any()]


def build_rows(
    block: Block,
    *,
    user: str,
    item: str,
    ts_ms: pl.Series,
    signals: Mapping[str, pl.Series],
    context: Mapping[str, pl.Series],
    checks: Sequence[Check],
) -> pl.DataFrame:
    """Turn one block into rows.

    Parameters
    ----------
    block
        As read.
    user, item
        Columns of the external ids.
    ts_ms
        Event time in ms, null where it cannot be read.
    signals, context
        Values by wire name.
    checks
        In the order in which they are to be reported: the first that fails names the reason.

    """
    users, items = text(block.frame, user), text(block.frame, item)
    checks = [
        Check(user, users.is_null(), "an id"),
        Check(item, items.is_null(), "an id"),
        *checks,
    ]
    rows = pl.DataFrame(
        [
            users.fill_null("").alias("user_id"),
            items.fill_null("").alias("item_id"),
            ts_ms.fill_null(NO_TIME).alias("ts_ms"),
            *(value.fill_null(0.0).alias(f"signals.{name}") for name, value in signals.items()),
            *(value.alias(f"context.{name}") for name, value in context.items()),
        ]
    )
    broken = block.frame[".broken"].is_not_null()
    failing = [
        check._replace(fails=check.fails.fill_null(value=False) & ~broken)
        for check in checks
        if check.fails.any()
    ]
    if not failing and not broken.any():
        nothing = [pl.lit(None, dtype=dtype).alias(name) for name, dtype in DEAD.items()]
        return rows.with_columns(nothing)
    place = pl.format(f"{block.file.name} line {{}}", ".line")
    marked = block.frame.with_columns(
        check.fails.alias(f".fails{n}") for n, check in enumerate(failing)
    )
    whys = [pl.format("invalid: {}", ".broken")]
    wheres = [pl.when(pl.col(".broken").is_not_null()).then(place)]
    for n, check in enumerate(failing):
        got = pl.col(check.column).cast(pl.String).fill_null("").str.head(80)
        told = pl.format(f'invalid: wanted {check.wanted}, got "{{}}"', got)
        whys.append(pl.when(f".fails{n}").then(told))
        wheres.append(pl.when(f".fails{n}").then(pl.format(f"{{}}, column {check.column}", place)))
    columns = [name for name in block.frame.columns if not name.startswith(".")]
    as_json = pl.struct(columns).struct.json_encode().cast(pl.Binary)
    dead = marked.filter(pl.any_horizontal(pl.col("^\\.fails.*$"), pl.col(".broken").is_not_null()))
    letters = dead.select(
        ".line",
        pl.coalesce(wheres).alias(".where"),
        pl.coalesce(whys).alias(".reason"),
        pl.coalesce(".raw", as_json).alias(".raw"),
    )
    lines = rows.with_columns(block.frame[".line"])
    return lines.join(letters, on=".line", how="left", maintain_order="left").drop(".line")
