"""Shows what a rule set makes of a log, why, and where two sets differ."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass, field
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
from replay.options import log_options, open_log, reading
from stream.events import Kind
from stream.typing_rules import RuleSet, Typed, load_rules

EXAMPLES = 3
"""Events shown for each rule, and for each way in which two sets differ: the first in time."""

NO_RULE = "(no rule)"


class Example(msgspec.Struct, frozen=True):
    """One event of the log: what it carried."""

    user_id: str
    item_id: str
    ts_ms: int
    signals: dict[str, float]


@dataclass
class RuleCount:
    """How often one rule typed an event, with the first of them."""

    rule: str
    when: str
    kind: str
    weight: float
    count: int = 0
    examples: list[Example] = field(default_factory=list)


@dataclass
class Difference:
    """Events to which one rule of A and one of B give different classes, with the first of them."""

    rule: str
    kind: str
    other_rule: str
    other_kind: str
    count: int = 0
    examples: list[Example] = field(default_factory=list)


@dataclass
class Classification:
    """What a rule set makes of a log.

    Attributes
    ----------
    rules_version, other_version
        The sets; the second is None where there is only one.
    events
        Events that were typed.
    dead, retractions
        Lines that were not: they are no events, or say something else than what a user did.
    rules
        In the order of the set; last the events that no rule takes.
    confusion
        Events by class under A, then by class under B.
    differences
        Most frequent first.

    """

    rules_version: str
    other_version: str | None = None
    events: int = 0
    dead: int = 0
    retractions: int = 0
    rules: list[RuleCount] = field(default_factory=list)
    confusion: dict[str, dict[str, int]] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)


def classified(
    dataset: Dataset,
    rules: RuleSet,
    against: RuleSet | None = None,
    *,
    on_read: OnRead | None = None,
) -> Classification:
    """Type every event of a log by one rule set, or by two.

    Parameters
    ----------
    dataset
        The log.
    rules, against
        The sets A and B.
    on_read
        Told how many bytes of how many are read.

    Raises
    ------
    BadData
        If the log cannot be read.

    Examples
    --------
    >>> from replay.datasets import open_dataset
    >>> found = classified(open_dataset("kuairand-pure", limit=1_000), load_rules("kuairand"))
    >>> {rule.rule: rule.count for rule in found.rules}
    {'hate': 0, 'endorsed': 15, 'watched': 393, 'skipped': 592, '(no rule)': 0}

    """
    result = Classification(rules.version, against.version if against else None)
    counts = [RuleCount(rule.name, rule.when, rule.kind, rule.weight) for rule in rules.rules]
    counts.append(RuleCount(NO_RULE, "", Kind.NONE.label, 0.0))
    confusion = np.zeros((len(Kind), len(Kind)), np.int64)
    differences: dict[tuple[int, int], Difference] = {}
    for frame, dead in dataset.chunks(on_read=on_read):
        result.dead += len(dead)
        if "retracts" in frame.columns:
            result.retractions += frame["retracts"].count()
            frame = frame.filter(pl.col("retracts").is_null())
        result.events += frame.height
        typed = rules.classify(signals_of(frame))
        for place, count in enumerate(counts):
            rows = np.flatnonzero(typed.rule == (place if place < len(rules.rules) else -1))
            count.count += rows.size
            count.examples += _examples(frame, rows[: EXAMPLES - len(count.examples)])
        if against:
            other = against.classify(signals_of(frame))
            np.add.at(confusion, (typed.kind, other.kind), 1)
            _compare(frame, typed, other, (rules, against), differences)
    result.rules = counts
    if against:
        result.confusion = _nested(confusion)
        result.differences = sorted(differences.values(), key=lambda found: -found.count)
    return result


def _compare(
    frame: pl.DataFrame,
    typed: Typed,
    other: Typed,
    sets: tuple[RuleSet, RuleSet],
    differences: dict[tuple[int, int], Difference],
) -> None:
    """Add the events that two sets put into different classes, by the rules that did so."""
    rows = np.flatnonzero(typed.kind != other.kind)
    pairs = np.stack([typed.rule[rows], other.rule[rows]], axis=1)
    for pair, place in zip(*np.unique(pairs, axis=0, return_index=True), strict=True):
        key = (int(pair[0]), int(pair[1]))
        first = rows[place]
        found = differences.setdefault(
            key,
            Difference(
                _name(sets[0], key[0]),
                Kind(typed.kind[first]).label,
                _name(sets[1], key[1]),
                Kind(other.kind[first]).label,
            ),
        )
        same = rows[(pairs == pair).all(axis=1)]
        found.count += same.size
        found.examples += _examples(frame, same[: EXAMPLES - len(found.examples)])


def _name(rules: RuleSet, place: int) -> str:
    return rules.rules[place].name if place >= 0 else NO_RULE


def _examples(frame: pl.DataFrame, rows: NDArray[np.int64]) -> list[Example]:
    if not rows.size:
        return []
    taken = frame[rows.tolist()]
    signals = signals_of(taken).iter_rows(named=True)
    events = taken.select("user_id", "item_id", "ts_ms").iter_rows()
    return [
        Example(user_id, item_id, ts_ms, {name: value for name, value in carried.items() if value})
        for (user_id, item_id, ts_ms), carried in zip(events, signals, strict=True)
    ]


def _nested(confusion: NDArray[np.int64]) -> dict[str, dict[str, int]]:
    nested: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for kind, other in np.argwhere(confusion).tolist():
        nested[Kind(kind).label][Kind(other).label] = int(confusion[kind, other])
    return dict(nested)


def render(found: Classification, *, explain: bool = False) -> RenderableType:
    """Show a classification on a terminal; ``explain`` adds conditions and example events."""
    counts = Table(
        "rule", "class", "weight", "events", "share", title=f"rules {found.rules_version}"
    )
    for rule in found.rules:
        share = f"{rule.count / max(found.events, 1):.2%}"
        counts.add_row(rule.rule, rule.kind, f"{rule.weight:g}", f"{rule.count:,}", share)
    parts: list[RenderableType] = [counts]
    if explain:
        for rule in found.rules:
            if rule.count:
                why = f"because {rule.when}" if rule.when else "as no condition holds"
                parts.append(Text(f"{rule.rule}: {rule.kind}, {why}", style="bold"))
                parts += map(_told, rule.examples)
    if found.other_version is not None:
        parts += _rendered_comparison(found)
    if found.dead or found.retractions:
        left_out = f"{found.dead:,} dead lines and {found.retractions:,} retractions"
        parts.append(Text(f"not typed: {left_out}"))
    return Group(*parts)


def _rendered_comparison(found: Classification) -> list[RenderableType]:
    n_different = sum(difference.count for difference in found.differences)
    share = f"{n_different / max(found.events, 1):.2%}"
    kinds = sorted({kind for row in found.confusion.values() for kind in row}, key=_order)
    title = f"rows {found.rules_version}, columns {found.other_version}"
    confusion = Table("class", title=title)
    for kind in kinds:
        confusion.add_column(kind, overflow="fold")
    for kind in sorted(found.confusion, key=_order):
        row = found.confusion[kind]
        confusion.add_row(kind, *(f"{row.get(other, 0):,}" for other in kinds))
    verdict = Text(f"the two sets differ on {n_different:,} of {found.events:,} events ({share})")
    parts: list[RenderableType] = [confusion, verdict]
    for difference in found.differences:
        ours = f"{difference.kind} ({difference.rule})"
        theirs = f"{difference.other_kind} ({difference.other_rule})"
        parts.append(Text(f"{difference.count:,}: {ours}, but {theirs}", style="bold"))
        parts += map(_told, difference.examples)
    return parts


def _order(label: str) -> int:
    return Kind.of(label)


def _told(example: Example) -> Text:
    signals = ", ".join(f"{name} {value:g}" for name, value in example.signals.items()) or "nothing"
    return Text(
        f"    user {example.user_id}, item {example.item_id}, {example.ts_ms} ms: {signals}"
    )


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@log_options
@click.option("--rules", metavar="NAME|FILE", help="Rule set A. Default: that of the layout.")
@click.option("--against", metavar="NAME|FILE", help="Rule set B, to compare with.")
@click.option("--explain", is_flag=True, help="Show conditions and example events of each rule.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for scripts.")
def classify(
    path: Path,
    dataset: str | None,
    columns: str | None,
    scale: float | None,
    limit: int | None,
    rules: str | None,
    against: str | None,
    explain: bool,  # noqa: FBT001 - click passes flags by name
    as_json: bool,  # noqa: FBT001 - the same
) -> None:
    """Show what a rule set makes of the log at PATH, and why.

    \b
    Example:
        tidegraph classify data/KuaiRand-Pure --explain
        tidegraph classify data/KuaiRand-Pure --rules kuairand --against mine.toml
    """
    log = open_log(path, dataset=dataset, columns=columns, scale=scale, limit=limit)
    mine = load_rules(rules or log.rules)
    other = load_rules(against) if against else None
    with reading(f"reading {path.name}") as on_read:
        found = classified(log, mine, other, on_read=on_read)
    if as_json:
        click.echo(msgspec.json.encode(asdict(found)).decode())
    else:
        Console().print(render(found, explain=explain))
