"""Typing rules: from signals to a feedback class, a weight and the rule that said so."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from stream.errors import BadRules
from stream.events import N_CLASSES, Kind, Label
from stream.reachability import trial_rows

_TRIED = 100  # rows that are enough to tell an aggregate from a question to each event

SHIPPED = Path(__file__).with_name("rules")
"""The folder of the rule sets that come with the project."""


class Typed(NamedTuple):
    """What a rule set makes of ``n`` events."""

    kind: NDArray[np.int8]  # (n,), Kind
    weight: NDArray[np.float32]  # (n,), 0 where no rule fired
    rule: NDArray[np.int16]  # (n,), place in RuleSet.rules, -1 where no rule fired


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of a rule set.

    Parameters
    ----------
    name
        Unique in the set; each event carries the name of the rule that typed it.
    when
        When the rule fires: a polars SQL expression over signals, true or false for each event.
    kind
        The feedback class.
    weight
        How much such an event counts, > 0.

    """

    name: str
    when: str
    kind: Label
    weight: float


class _File(msgspec.Struct, forbid_unknown_fields=True):
    version: str
    rule: list[Rule]
    signals: list[str] | None = None


@dataclass(frozen=True)
class RuleSet:
    """An ordered list of rules, of which the first that fires types an event.

    Parameters
    ----------
    version
        Names the set in every event that it typed; changes whenever a rule does.
    rules
        In order.
    signals
        What an event may carry, as far as the set is concerned.

    Examples
    --------
    >>> rules = load_rules("kuairand")
    >>> typed = rules.classify(pl.DataFrame({"click": [1.0, 1.0, 0.0], "hate": [0.0, 1.0, 0.0]}))
    >>> [Kind(kind).label for kind in typed.kind]
    ['implicit_positive', 'explicit_negative', 'implicit_negative']
    >>> [rules.rules[rule].name for rule in typed.rule]
    ['watched', 'hate', 'skipped']

    """

    version: str
    rules: tuple[Rule, ...]
    signals: tuple[str, ...]
    _used: tuple[str, ...] = field(init=False, repr=False, compare=False)
    _fired: pl.Expr = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Make one expression of all rules: the place of the first that fires, or -1."""
        conditions = [pl.sql_expr(rule.when) for rule in self.rules]
        used = {name for when in conditions for name in when.meta.root_names()}
        fired = pl.lit(-1, dtype=pl.Int16)
        for place, when in reversed(list(enumerate(conditions))):
            fired = pl.when(when).then(pl.lit(place, dtype=pl.Int16)).otherwise(fired)
        object.__setattr__(self, "_used", tuple(sorted(used)))
        object.__setattr__(self, "_fired", fired.alias("rule"))

    def classify(self, signals: pl.DataFrame) -> Typed:
        """Type ``n`` events.

        Parameters
        ----------
        signals
            One numeric column per signal, ``n`` rows. A column that is missing, and a null, count
            as 0; columns that no rule asks for are ignored.

        Notes
        -----
        About 0.5 ms a call and little more an event, so give it whole batches.

        """
        have = [pl.col(name).cast(pl.Float64) for name in self._used if name in signals.columns]
        lack = [pl.lit(0.0).alias(name) for name in self._used if name not in signals.columns]
        return self._classify(signals.with_columns(*have, *lack).select(self._used), signals.height)

    def classify_mappings(self, signals: Sequence[Mapping[str, float]]) -> Typed:
        """Type ``n`` events that came one by one.

        Examples
        --------
        >>> load_rules("ratings").classify_mappings([{"rating": 4.0}, {}]).kind.tolist()
        [1, 4]

        """
        table = pl.DataFrame(signals, schema=dict.fromkeys(self._used, pl.Float64))
        return self._classify(table, len(signals))

    def _classify(self, table: pl.DataFrame, n: int) -> Typed:
        rule = table.fill_null(0.0).select(self._fired).to_series().to_numpy()
        if not self._used:  # then the answer is one and the same, and polars gives it once
            rule = np.resize(rule, n)
        kind = np.array([*(Kind.of(rule.kind) for rule in self.rules), Kind.NONE], np.int8)
        weight = np.array([*(rule.weight for rule in self.rules), 0.0], np.float32)
        return Typed(kind[rule], weight[rule], rule)  # -1 takes the last


def load_rules(path_or_name: str | Path, *, signals: Collection[str] | None = None) -> RuleSet:
    """Read a rule set and check it.

    Parameters
    ----------
    path_or_name
        A file, or the name of a set that comes with the project: ``kuairand``, ``ratings``,
        ``music`` or ``default``.
    signals
        What the log at hand carries, for a set that does not list its signals. One that does may
        name signals that this log never has; they are 0.

    Raises
    ------
    BadRules
        If there is no such file, or a rule must not be used.

    Examples
    --------
    >>> load_rules("kuairamd")
    Traceback (most recent call last):
        ...
    stream.errors.BadRules: no rule set kuairamd: want a file, or one of default, kuairand, ...

    """
    path = Path(path_or_name)
    shipped = {file.stem: file for file in sorted(SHIPPED.glob("*.toml"))}
    if isinstance(path_or_name, str) and path_or_name in shipped:
        path = shipped[path_or_name]
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        names = ", ".join(shipped)
        raise BadRules(f"no rule set {path_or_name}: want a file, or one of {names}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise BadRules(f"cannot read the rule set {path_or_name}: {error}") from error
    return parse_rules(text, source=str(path_or_name), signals=signals)


def parse_rules(text: str, *, source: str, signals: Collection[str] | None = None) -> RuleSet:
    """Make a rule set of its TOML text and check it; see :func:`load_rules`.

    Parameters
    ----------
    text
        As ``docs/rules.md`` tells.
    source
        Where the text is from, for messages.
    signals
        As in :func:`load_rules`.

    Raises
    ------
    BadRules
        If a rule must not be used.

    """
    try:
        file = msgspec.toml.decode(text, type=_File)
    except (msgspec.DecodeError, ValueError) as error:
        raise BadRules(f"{source}: {error}") from error
    if not file.rule:
        raise BadRules(f"{source}: want at least one [[rule]], got none")
    known = signals if file.signals is None else file.signals
    if known is None:
        wanted = "a list of the signals that rules may use, as in signals = [...]"
        raise BadRules(f"{source}: want {wanted}")
    names: set[str] = set()
    for number, rule in enumerate(file.rule, start=1):
        place = f"{source}: rule {number} ({rule.name})"
        if rule.name in names:
            raise BadRules(f"{place}: there is an earlier rule of this name, rename one")
        names.add(rule.name)
        _check_result(rule, place)
        _check_condition(rule.when, known, place)
    rules = RuleSet(file.version, tuple(file.rule), tuple(known))
    _check_reachable(rules, source)
    return rules


def _check_result(rule: Rule, place: str) -> None:
    if Kind.of(rule.kind) >= N_CLASSES:
        classes = ", ".join(Kind(kind).label for kind in range(N_CLASSES))
        raise BadRules(f"{place}: want kind to be one of {classes}, got {rule.kind}")
    if not (math.isfinite(rule.weight) and rule.weight > 0):
        raise BadRules(f"{place}: want a finite weight above 0, got {rule.weight}")


def _check_condition(when: str, known: Collection[str], place: str) -> None:
    """Refuse what is not a question that each event answers by itself with yes or no."""
    try:
        condition = pl.sql_expr(when)
        used = sorted(set(condition.meta.root_names()))
    except pl.exceptions.PolarsError as error:
        raise BadRules(f"{place}: `{when}` is not a polars SQL expression: {error}") from error
    for name in used:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            instead = f"did you mean {close[0]}?" if close else f"known are {_listed(known)}"
            raise BadRules(f"{place}: unknown signal {name} in `{when}`; {instead}")
    if not used and not condition.meta.is_literal():
        raise BadRules(
            f"{place}: `{when}` looks at no signal; write TRUE for a rule without a condition"
        )
    table = trial_rows(when, used or ["none"], n_rows=1_000)
    trial = table.sample(_TRIED, with_replacement=True, seed=0)
    try:
        whole = trial.with_columns(fires=condition)
        alone = pl.concat([row.with_columns(fires=condition) for row in trial.iter_slices(1)])
    except pl.exceptions.PolarsError as error:
        raise BadRules(f"{place}: `{when}` cannot be evaluated: {_first_line(error)}") from error
    if (dtype := whole.schema["fires"]) != pl.Boolean:
        told = f"got {dtype}; compare it, as in `{when} > 0`"
        raise BadRules(f"{place}: want `{when}` to be true or false, {told}")
    aggregates = '{"Agg":' in condition.meta.serialize(format="json")
    if aggregates or not whole.equals(alone):
        told = "at one event at a time, without aggregates or windows"
        raise BadRules(f"{place}: want `{when}` to look {told}")


def _check_reachable(rules: RuleSet, source: str) -> None:
    """Refuse a rule that no made-up event makes fire first."""
    for place, rule in enumerate(rules.rules):
        used = sorted(set(pl.sql_expr(rule.when).meta.root_names()))
        beside = " ".join(other.when for other in rules.rules)
        for n_rows in (4_096, 262_144):  # most rules fire at once; look long before refusing one
            rows = trial_rows(rule.when, used, n_rows=n_rows, signals=rules._used, beside=beside)
            first = rules.classify(rows).rule
            if (first == place).any():
                break
        else:
            told = f"{source}: rule {place + 1} ({rule.name}) can never fire"
            fires = rows.with_columns(fires=pl.sql_expr(rule.when).fill_null(value=False))["fires"]
            if not fires.any():
                raise BadRules(f"{told}: `{rule.when}` is true of no event")
            earlier = [rules.rules[other].name for other in np.unique(first[fires.to_numpy()])]
            remedy = "remove it, or move it up"
            names = ", ".join(earlier)
            raise BadRules(f"{told}: whatever it matches, earlier rules take ({names}); {remedy}")


def _listed(names: Collection[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
