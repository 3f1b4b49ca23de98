"""Tells what is wrong with a log before anyone waits for it."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from replay.datasets import Dataset
from replay.datasets.base import OnRead, signals_of
from replay.datasets.sources import is_parquet
from replay.options import log_options, open_log, reading
from stream.events import N_CLASSES, DeadLetter, Kind
from stream.typing_rules import RuleSet, load_rules

_DEAD_SHOWN = 5
_COMPACTED = 1_000_000


@dataclass
class Validation:
    """What a log turned out to be.

    Attributes
    ----------
    dataset, files
        What was read.
    events, dead
        Lines that are events, and lines that cannot be.
    duplicates
        Events that repeat an earlier one: same id, which for logs without ids is a digest of user,
        item, time and signals. Copies lie in one millisecond; where ids are the log's own, copies
        that are further apart than a chunk are not found.
    ties
        Events that share their millisecond with the one before.
    users, items
        Different ids.
    first_ms, last_ms
        Times of the first and the last event.
    unknown_items
        Items of the log that its item features lack; None where there are no features.
    constant
        Signals that have one value everywhere, with the value.
    missing
        Signals that the rules know and the log does not have.
    classes, rules_version
        Events by feedback class under the rules that were tried.
    reasons
        Dead lines by reason, without the values that came.
    examples
        The first dead lines: place, reason and the line itself.
    notes
        What the reader of the log had to say.

    """

    dataset: str
    files: list[str]
    rules_version: str
    events: int = 0
    dead: int = 0
    duplicates: int = 0
    ties: int = 0
    users: int = 0
    items: int = 0
    first_ms: int = 0
    last_ms: int = 0
    unknown_items: int | None = None
    constant: dict[str, float] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    classes: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    examples: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def fine(self) -> bool:
        """Whether there is nothing to look at."""
        remarks = (self.dead, self.duplicates, self.unknown_items, self.constant, self.notes)
        return not any(remarks)


class _Distinct:
    """Different strings of a column, at about the memory of the strings themselves."""

    def __init__(self) -> None:
        self._parts: list[pl.Series] = []
        self._held, self._bound = 0, _COMPACTED

    def add(self, values: pl.Series) -> None:
        """Take a chunk's values."""
        self._parts.append(values.unique())
        self._held += self._parts[-1].len()
        if self._held > self._bound:
            self._held = self.all().len()
            self._bound = 2 * self._held + _COMPACTED

    def all(self) -> pl.Series:
        """Return what there is, each once."""
        if self._parts:
            self._parts = [pl.concat(self._parts).unique()]
        return self._parts[0] if self._parts else pl.Series(dtype=pl.String)


def examine(dataset: Dataset, rules: RuleSet, *, on_read: OnRead | None = None) -> Validation:
    """Read a whole log and say what it is.

    Parameters
    ----------
    dataset
        The log.
    rules
        Types the events, to show the share of each class.
    on_read
        Told how many bytes of how many are read.

    Raises
    ------
    BadData
        If the log cannot be read at all.

    Notes
    -----
    Memory grows with the number of different users and items, not with the events.

    Examples
    --------
    >>> from replay.datasets import open_dataset
    >>> found = examine(open_dataset("kuairand-pure", limit=5_000), load_rules("kuairand"))
    >>> found.events, found.users, found.constant["is_rand"]
    (5000, 3536, 0.0)

    """
    result = Validation(dataset.name, [path.name for path in dataset.files], rules.version)
    users, items = _Distinct(), _Distinct()
    kinds = np.zeros(len(Kind), np.int64)
    lows: dict[str, float] = {}
    highs: dict[str, float] = {}
    reasons: Counter[str] = Counter()
    last_id, last_ms = "", -1
    for frame, dead in dataset.chunks(on_read=on_read):
        result.dead += len(dead)
        reasons.update(map(_reason, dead))
        for letter in dead[: _DEAD_SHOWN - len(result.examples)]:
            line = letter.original.decode("utf-8", "replace")
            result.examples.append({"where": letter.where, "reason": letter.reason, "line": line})
        if not frame.height:
            continue
        result.first_ms = result.first_ms or int(frame["ts_ms"][0])
        result.last_ms = int(frame["ts_ms"][-1])
        # Copies are neighbours in the order of events, and a chunk may end between two.
        first_id, first_ms = frame["event_id"][0], frame["ts_ms"][0]
        result.duplicates += frame.height - frame["event_id"].n_unique() + (first_id == last_id)
        result.ties += frame.height - frame["ts_ms"].n_unique() + (first_ms == last_ms)
        last_id, last_ms = frame["event_id"][-1], frame["ts_ms"][-1]
        result.events += frame.height
        users.add(frame["user_id"])
        items.add(frame["item_id"])
        signals = signals_of(frame)
        for name, low in signals.min().row(0, named=True).items():
            lows[name] = min(low, lows.get(name, low))
        for name, high in signals.max().row(0, named=True).items():
            highs[name] = max(high, highs.get(name, high))
        kinds += np.bincount(kinds_of(frame, rules), minlength=len(Kind))
    result.users, result.items = users.all().len(), items.all().len()
    result.constant = {name: low for name, low in lows.items() if low == highs[name]}
    result.missing = [name for name in rules.signals if name not in lows]
    result.classes = {
        kind.label: int(kinds[kind]) for kind in Kind if kinds[kind] or kind < N_CLASSES
    }
    result.reasons = dict(reasons.most_common())
    result.notes = list(dataset.notes)
    if dataset.features:
        result.unknown_items = _count_unknown(items.all(), dataset.features, dataset.item_column)
    return result


def kinds_of(frame: pl.DataFrame, rules: RuleSet) -> NDArray[np.int8]:
    """Return the :class:`Kind` of each event of a chunk; a retraction is one by itself."""
    kinds = rules.classify(signals_of(frame)).kind.copy()
    if "retracts" in frame.columns:
        kinds[frame["retracts"].is_not_null().to_numpy()] = Kind.RETRACTION
    return kinds


def _reason(letter: DeadLetter) -> str:
    """Return column and reason without what came, so that equal faults count as one."""
    _, _, column = letter.where.rpartition(", ")
    place = f"{column}: " if column.startswith(("column ", "$")) else ""
    return place + re.sub(r', got ".*"$', "", letter.reason, flags=re.DOTALL)


def _count_unknown(items: pl.Series, features: Path, column: str) -> int:
    known = (
        pl.scan_parquet(features)
        if is_parquet(features)
        else pl.scan_csv(features, infer_schema=False)
    )
    ids = known.select(pl.col(column).cast(pl.String))
    unknown = items.to_frame("id").lazy().join(ids, left_on="id", right_on=column, how="anti")
    return int(unknown.select(pl.len()).collect(engine="streaming").item())


def render(found: Validation) -> RenderableType:
    """Show a validation on a terminal."""
    facts = Table(show_header=False, box=None, pad_edge=False)
    facts.add_column(style="bold")
    facts.add_column()
    facts.add_row("log", f"{found.dataset}: {', '.join(found.files)}")
    facts.add_row("events", f"{found.events:,} of {found.users:,} users and {found.items:,} items")
    if found.events:
        facts.add_row("time", f"{_moment(found.first_ms)} to {_moment(found.last_ms)} (UTC)")
    facts.add_row("dead lines", f"{found.dead:,} of {found.events + found.dead:,}")
    facts.add_row("duplicates", _share(found.duplicates, found.events))
    facts.add_row("same millisecond", _share(found.ties, found.events))
    if found.unknown_items is not None:
        facts.add_row("items without features", _share(found.unknown_items, found.items))
    constant = ", ".join(f"{name} = {value:g}" for name, value in found.constant.items())
    facts.add_row("constant signals", constant or "none")
    facts.add_row("signals not in the log", ", ".join(found.missing) or "none")
    classes = Table("class", "events", "share", title=f"under the rules {found.rules_version}")
    for label, n in found.classes.items():
        classes.add_row(label, f"{n:,}", f"{n / max(found.events, 1):.1%}")
    parts: list[RenderableType] = [facts, classes]
    if found.reasons:
        dead = Table("dead lines", "count", title="why lines cannot be events")
        for reason, n in found.reasons.items():
            dead.add_row(Text(reason), f"{n:,}")
        parts.append(dead)
        parts += [
            Text(f"{example['where']}: {example['reason']}\n    {example['line'][:200]}")
            for example in found.examples
        ]
    parts += [Text(f"note: {note}") for note in found.notes]
    verdict = "nothing to remark" if found.fine else "can be replayed; look at the remarks above"
    parts.append(Text(verdict if found.events else "not one line is an event"))
    return Group(*parts)


def _share(n: int, of: int) -> str:
    return f"{n:,} ({n / max(of, 1):.2%})"


def _moment(ts_ms: int) -> str:
    return datetime.fromtimestamp(ts_ms / 1_000, UTC).strftime("%Y-%m-%d %H:%M:%S")


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@log_options
@click.option("--rules", metavar="NAME|FILE", help="Rule set to try. Default: that of the layout.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for scripts.")
def validate(
    path: Path,
    dataset: str | None,
    columns: str | None,
    scale: float | None,
    limit: int | None,
    rules: str | None,
    as_json: bool,  # noqa: FBT001 - click passes flags by name
) -> None:
    """Tell what is wrong with the log at PATH, a file or a folder.

    Looks at order, units of time, missing and constant columns, duplicates, unknown items, lines
    that cannot be events, and the share of each feedback class. Ends with 0 where the log can be
    replayed, with remarks or without, and with 2 where it cannot.

    \b
    Example:
        tidegraph validate data/KuaiRand-Pure
        tidegraph validate ratings.tsv --columns user=uid,item=movie,rating=stars,time=when
    """
    log = open_log(path, dataset=dataset, columns=columns, scale=scale, limit=limit)
    with reading(f"reading {path.name}") as on_read:
        found = examine(log, load_rules(rules or log.rules), on_read=on_read)
    if as_json:
        click.echo(msgspec.json.encode(asdict(found)).decode())
    else:
        Console().print(render(found))
    if not found.events:
        raise click.exceptions.Exit(2)
