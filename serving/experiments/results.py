"""What came of an experiment: outcomes of its units, folded from the stream of typed feedback.

A unit has met an experiment when the API first answered it (:mod:`serving.experiments.enrolling`).
From then on its feedback is added up for the length of the experiment's window; when that is over
the unit is closed: its outcome goes into count, means and sums of its arm, and the unit itself is
forgotten. So outcomes never change after they are counted, units come one after the other as the
always-valid intervals want them, and memory is for the units whose window is open.
"""

from __future__ import annotations

import logging
import math
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from threading import Event
from typing import Any, Final, Literal

import msgspec

from serving.experiments.assignment import Assigner, shares
from serving.experiments.interleaving import Team, preference
from serving.experiments.registry import Entry, Registry
from serving.experiments.statistics import (
    Estimate,
    Interval,
    Moments,
    always_valid_p,
    confidence_sequence,
    difference,
    mean,
    sample_ratio_p,
    slope,
)
from serving.experiments.store import MAX_UNITS, Store
from stream.errors import BadEvent, BadPosition, LogError, TableError, UserError
from stream.events import Erasure, Feedback, decode_feedback
from stream.log import Log, Positions, advance
from stream.topics import FEEDBACK

GRACE_MS: Final = 60_000
"""How long after the end of a unit's window its feedback may still be on its way."""

BROKEN: Final = 0.001
"""Below this a sample ratio says that something is wrong with who is counted."""

_OVERLAP_MS: Final = 60_000  # exposures may be written so long after they happened
_FIRST_STEP_MS: Final = 60_000
_MAX_POINTS: Final = 128
_MAX_STRATA: Final = 100
_RECORDS: Final = 10_000
_LEASE_S: Final = 30.0
_SAVE_S: Final = 5.0
_STEP_S: Final = 1.0

_log = logging.getLogger("tidegraph.serving")

Attributes = Callable[[Sequence[str]], Mapping[str, Mapping[str, Any]]]
"""Gives the attributes of users."""


class _Unit(msgspec.Struct, array_like=True, gc=False):
    arm: int
    at_ms: int
    stratum: str
    y: float = 0.0


class Bounds(msgspec.Struct, frozen=True):
    """A figure with its always-valid interval; no ends as long as nothing can be said."""

    value: float | None = None
    low: float | None = None
    high: float | None = None


class Point(msgspec.Struct, frozen=True):
    """The effects as they stood at one time.

    Parameters
    ----------
    at_ms
        Milliseconds since 1970.
    units
        Whose window was over by then.
    effects
        Of each treated arm.

    """

    at_ms: int
    units: int
    effects: list[Bounds]


class State(msgspec.Struct, kw_only=True):
    """How far the fold of one experiment is; all that a restart needs."""

    v: int = 1
    positions: Positions | None = None
    read_to_ms: int = 0
    closed_to_ms: int = 0
    clock_ms: int = 0
    step_ms: int = _FIRST_STEP_MS
    before: dict[str, float] = {}
    open: dict[str, _Unit] = {}
    exposed: list[int] = []
    cells: dict[str, list[Moments]] = {}
    curve: list[Point] = []
    gaps: int = 0
    finished: bool = False


class ArmResult(msgspec.Struct, frozen=True):
    """What the units of an arm did.

    Parameters
    ----------
    arm
        Its name; of an interleaved experiment the treated one, whose preference over the control
        is the mean.
    share
        Of the units that it should get.
    exposed
        Units that met the experiment.
    units
        Those whose window is over.
    mean
        Of their outcomes, moved to what all arms did before (CUPED).

    """

    arm: str
    share: float
    exposed: int
    units: int
    mean: Bounds


class Effect(msgspec.Struct, frozen=True):
    """What a treated arm makes of the control's outcome.

    Parameters
    ----------
    arm
        Its name.
    difference
        In the mean outcome of a unit, with its always-valid interval.
    relative
        The difference as a share of the control's mean.
    p
        The least level at which the interval would leave out 0.
    variance_saved
        Share of the variance that CUPED and strata take away.
    verdict
        ``open`` until the interval leaves out 0.

    """

    arm: str
    difference: Bounds
    relative: float | None
    p: float
    variance_saved: float
    verdict: Literal["open", "better", "worse"]


class Shadow(msgspec.Struct, frozen=True):
    """How a shadow arm's lists compare with those shown.

    Parameters
    ----------
    arm
        Its name.
    requests
        For which it answered too.
    common
        Share of the shown items that it would have shown as well, in the mean.

    """

    arm: str
    requests: int
    common: float | None


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of an experiment.

    Parameters
    ----------
    entry
        The experiment, when it was started and stopped.
    as_of_ms
        Feedback until then is in; milliseconds since 1970.
    open_units
        Whose window is not over.
    sample_ratio_p
        Whether the arms have the units that they should; below 0.001 trust nothing else here.
    arms, effects, shadows
        See there.
    curve
        The effects over time.
    gaps
        How often feedback was gone from the log before it was read.

    """

    entry: Entry
    as_of_ms: int
    open_units: int
    sample_ratio_p: float
    arms: list[ArmResult]
    effects: list[Effect]
    shadows: list[Shadow]
    curve: list[Point]
    gaps: int


class Fold:
    """The results of one experiment, unit by unit.

    Parameters
    ----------
    entry
        The experiment.
    state
        Where to go on; anew without one.

    Notes
    -----
    The outcome is the same however the stream is cut into batches and wherever the fold was
    stopped and resumed, as long as a unit is exposed before its feedback is taken.

    """

    def __init__(self, entry: Entry, state: State | None = None) -> None:
        self.entry = entry
        self.state = state or State()
        self._experiment = experiment = entry.experiment
        self._assign = Assigner(experiment)
        self._metric = {str(kind): value for kind, value in experiment.metric.items()}
        self._mixed = experiment.design == "interleave"
        n_arms = 1 if self._mixed else len(experiment.shown)
        if not self.state.exposed:
            self.state.exposed = [0] * n_arms
        self._window_ms = round(experiment.window_s * 1_000)
        self._from_ms = entry.started_ms - round(experiment.before_s * 1_000)

    @property
    def from_ms(self) -> int:
        """When the first feedback that counts may have happened."""
        return self._from_ms

    def expose(self, unit: str, at_ms: int, stratum: str = "") -> None:
        """Take in that a unit met the experiment; again, and for one that is closed, is nothing."""
        state = self.state
        stopped_ms = self.entry.stopped_ms
        place = self._assign(unit)
        if (
            unit in state.open
            or at_ms < max(state.closed_to_ms, self.entry.started_ms)
            or (stopped_ms is not None and at_ms >= stopped_ms)
            or place is None
        ):
            return
        arm = 0 if self._mixed else place
        if stratum not in state.cells and len(state.cells) >= _MAX_STRATA:
            stratum = ""
        state.cells.setdefault(stratum, [Moments() for _ in state.exposed])
        state.open[unit] = _Unit(arm, at_ms, stratum)
        state.exposed[arm] += 1

    def take(self, event: Feedback, teams: Mapping[str, Mapping[str, Team]]) -> None:
        """Add an event to the outcome of its unit, if it counts.

        Parameters
        ----------
        event
            Of the topic ``feedback``.
        teams
            Whose each item was, by request; for experiments that mix lists.

        """
        value = self._metric.get(event.kind, 0.0)
        unit = self._unit(event)
        if not value or not unit:
            return
        if event.ts_ms < self.entry.started_ms:
            before = self.state.before
            if (
                event.ts_ms >= self._from_ms
                and not self._mixed
                and (unit in before or len(before) < MAX_UNITS)
                and self._assign(unit) is not None
            ):
                before[unit] = before.get(unit, 0.0) + value
            return
        found = self.state.open.get(unit)
        if found is None or not found.at_ms <= event.ts_ms < found.at_ms + self._window_ms:
            return
        if self._mixed:
            team = teams.get(event.request_id or "", {}).get(event.item_id)
            if team is None:
                return
            value *= 2 * team - 1
        found.y += value

    def close(self, clock_ms: int) -> None:
        """Count the units whose window is over; all feedback until ``clock_ms`` was taken."""
        state = self.state
        state.clock_ms = max(state.clock_ms, clock_ms)
        last_ms = state.clock_ms - self._window_ms - GRACE_MS
        whole_ms = last_ms
        if self.entry.stopped_ms is not None:
            whole_ms = min(last_ms, self.entry.stopped_ms - self._window_ms)
        due = sorted(
            (unit.at_ms, name) for name, unit in state.open.items() if unit.at_ms <= whole_ms
        )
        for at_ms, name in due:
            unit = state.open.pop(name)
            y = preference(unit.y) if self._mixed else unit.y
            state.cells[unit.stratum][unit.arm].add(state.before.pop(name, 0.0), y)
            self._draw(at_ms + self._window_ms + GRACE_MS)
        state.closed_to_ms = max(state.closed_to_ms, last_ms + 1)
        stopped_ms = self.entry.stopped_ms
        if stopped_ms is not None and state.clock_ms >= stopped_ms + GRACE_MS:
            state.open, state.before, state.finished = {}, {}, True

    def forget(self, unit: str) -> None:
        """Forget a unit whose window is open; sums of closed ones name nobody."""
        self.state.before.pop(unit, None)
        found = self.state.open.pop(unit, None)
        if found is not None:
            self.state.exposed[found.arm] -= 1

    def results(self, counts: Mapping[str, float] | None = None) -> Results:
        """Return what is known, ``counts`` being those of the shadows."""
        state, experiment = self.state, self._experiment
        sums = self._by_arm()
        theta = slope([cell for cells in state.cells.values() for cell in cells])
        centre = sum(sums, Moments()).x
        means = [mean(cell, theta=theta, centre=centre) for cell in sums]
        names = [arm.name for arm in experiment.shown]
        due = [1.0] if self._mixed else shares(experiment)
        arms = [
            ArmResult(name, share, exposed, cell.n, self._bounds(estimate, experiment.alpha))
            for name, share, exposed, cell, estimate in zip(
                names[1:] if self._mixed else names, due, state.exposed, sums, means, strict=True
            )
        ]
        found = counts or {}
        shadows = [
            Shadow(
                arm.name,
                n := round(found.get(f"{arm.name}/requests", 0.0)),
                found.get(f"{arm.name}/common", 0.0) / n if n else None,
            )
            for arm in experiment.shadows
        ]
        return Results(
            entry=self.entry,
            as_of_ms=state.clock_ms,
            open_units=len(state.open),
            sample_ratio_p=sample_ratio_p(state.exposed, due),
            arms=arms,
            effects=[
                self._effect(name, estimate, plain, means[0].value)
                for name, estimate, plain in zip(
                    names[1:], self._effects(), self._effects(plain=True), strict=True
                )
            ],
            shadows=shadows,
            curve=state.curve,
            gaps=state.gaps,
        )

    def _unit(self, event: Feedback) -> str:
        if self._experiment.unit == "user":
            return event.user_id
        return event.context.get("session", "")

    def _by_arm(self) -> list[Moments]:
        cells = self.state.cells.values()
        return [sum((of[arm] for of in cells), Moments()) for arm in range(len(self.state.exposed))]

    def _effects(self, *, plain: bool = False) -> list[Estimate]:
        """Return the effect of each treated arm."""
        if self._mixed:
            return [mean(self._by_arm()[0])]
        strata = [self._by_arm()] if plain else list(self.state.cells.values())
        return [
            difference([(cells[0], cells[arm]) for cells in strata], cuped=not plain)
            for arm in range(1, len(self.state.exposed))
        ]

    def _level(self) -> float:
        """Return the level of each effect: several share what one would have (Bonferroni)."""
        return self._experiment.alpha / (len(self._experiment.shown) - 1)

    def _bounds(self, estimate: Estimate, level: float) -> Bounds:
        tuned_for = self._experiment.expected_units
        return _bounds(confidence_sequence(estimate, level, tuned_for=tuned_for))

    def _effect(self, name: str, estimate: Estimate, plain: Estimate, control: float) -> Effect:
        bounds = self._bounds(estimate, self._level())
        better = bounds.low is not None and bounds.low > 0
        worse = bounds.high is not None and bounds.high < 0
        known = 0 < plain.variance < math.inf
        relative = None
        if not self._mixed and bounds.value is not None and control > 0:
            relative = bounds.value / control
        return Effect(
            name,
            bounds,
            relative,
            always_valid_p(estimate, self._level(), tuned_for=self._experiment.expected_units),
            1 - estimate.variance / plain.variance if known else 0.0,
            "better" if better else "worse" if worse else "open",
        )

    def _draw(self, at_ms: int) -> None:
        """Add a point to the curve if it is time; twice as seldom whenever there are too many."""
        state = self.state
        if state.curve and at_ms < state.curve[-1].at_ms + state.step_ms:
            return
        effects = [self._bounds(estimate, self._level()) for estimate in self._effects()]
        if all(each.low is None for each in effects):
            return
        units = sum(cell.n for cell in self._by_arm())
        state.curve.append(Point(at_ms, units, effects))
        if len(state.curve) >= _MAX_POINTS:
            state.curve = state.curve[::2]
            state.step_ms *= 2


class Collector:
    """Folds the feedback of every experiment that is not finished.

    Parameters
    ----------
    store
        Where experiments are kept. One collector works at a time; others wait.
    log
        Its topic ``feedback`` is read.
    attributes
        Of users, for strata.

    """

    def __init__(self, store: Store, log: Log, attributes: Attributes | None = None) -> None:
        self._store = store
        self._log = log
        self._attributes = attributes
        self._registry = Registry(store)
        self._folds: dict[str, Fold] = {}
        self._holder = uuid.uuid4().hex
        self._saved_s = 0.0

    def step(self, now_ms: int) -> int:
        """Fold what is there, up to some thousand records of each experiment; return how many.

        Parameters
        ----------
        now_ms
            By the clock of the API; 0 records say that everything until then is in.

        """
        entries = self._registry.read().entries
        if not entries:
            return 0
        if not self._store.lease(self._holder, _LEASE_S):
            self._folds.clear()  # who holds it goes on from what was saved
            return 0
        n_records = 0
        for entry in entries:
            fold = self._fold(entry)
            if not fold.state.finished:
                n_records += self._advance(fold, now_ms)
        if time.monotonic() >= self._saved_s + _SAVE_S:
            self.save()
        return n_records

    def save(self) -> None:
        """Keep how far each fold is; forget the units of those that are finished."""
        for name, fold in list(self._folds.items()):
            self._store.save(name, msgspec.msgpack.encode(fold.state))
            if fold.state.finished:
                self._store.finish(name)
        self._saved_s = time.monotonic()

    def catch_up(self, now_ms: int) -> None:
        """Fold until everything until now is in, unless somebody else does so all the time."""
        while self.step(now_ms):
            pass
        self.close()

    def close(self) -> None:
        """Keep how far each fold is, and let somebody else go on."""
        if self._store.lease(self._holder, _LEASE_S):
            self.save()
            self._store.release(self._holder)
        self._folds.clear()

    def run(self, ended: Event) -> None:
        """Fold until ``ended`` is set; a store or a log that is away is waited for."""
        while not ended.is_set():
            try:
                n_records = self.step(time.time_ns() // 1_000_000)
            except (TableError, LogError, UserError) as error:
                _log.debug("results cannot be collected: %s", error)
                n_records = 0
                self._folds.clear()
            if n_records == 0:
                ended.wait(_STEP_S)
        with suppress(TableError, UserError):
            self.close()

    def _fold(self, entry: Entry) -> Fold:
        name = entry.experiment.name
        known = self._folds.get(name)
        if known is None:
            known = Fold(entry, _state(self._store.saved(name)))
        elif known.entry != entry:  # stopped since
            known = Fold(entry, known.state)
        self._folds[name] = known
        return known

    def _advance(self, fold: Fold, now_ms: int) -> int:
        state = fold.state
        name = fold.entry.experiment.name
        if state.positions is None:
            state.positions = self._log.at(FEEDBACK, fold.from_ms)
        # Feedback first: whoever gave it has met the experiment by then.
        try:
            records = self._log.read(FEEDBACK, state.positions, limit=_RECORDS)
            behind = not records and self._log.lag(FEEDBACK, state.positions) > 0
        except BadPosition:
            first = self._log.start(FEEDBACK)
            state.positions = {
                number: max(position, first.get(number, position))
                for number, position in state.positions.items()
            }
            state.gaps += 1
            return 1
        self._expose(fold)
        events: list[Feedback] = []
        for record in records:
            try:
                event = decode_feedback(record.value)
            except BadEvent:
                continue  # no feedback: the learner says so
            if isinstance(event, Erasure):
                self._take(fold, events)
                events = []
                fold.forget(event.erase_user)
                self._store.forget(name, [event.erase_user])
            else:
                events.append(event)
        self._take(fold, events)
        state.positions = advance(state.positions, records)
        if not records and not behind:
            fold.close(now_ms)
        return len(records) + behind

    def _expose(self, fold: Fold) -> None:
        state, experiment = fold.state, fold.entry.experiment
        from_ms = max(state.closed_to_ms, state.read_to_ms - _OVERLAP_MS)
        fresh = [
            each
            for each in self._store.exposed(experiment.name, from_ms)
            if each[0] not in state.open
        ]
        of: Mapping[str, Mapping[str, Any]] = {}
        if experiment.strata and self._attributes is not None and fresh:
            of = self._attributes([unit for unit, _ in fresh])
        for unit, at_ms in fresh:
            fold.expose(unit, at_ms, str(of.get(unit, {}).get(experiment.strata, "")))
            state.read_to_ms = max(state.read_to_ms, at_ms)

    def _take(self, fold: Fold, events: Iterable[Feedback]) -> None:
        teams: dict[str, dict[str, Team]] = {}
        experiment = fold.entry.experiment
        if experiment.design == "interleave":
            asked = {event.request_id for event in events if event.request_id}
            teams = self._store.shown(experiment.name, asked)
        for event in events:
            fold.take(event, teams)


def results_of(store: Store, name: str) -> Results:
    """Return what a collector found out so far.

    Raises
    ------
    UnknownExperiment
        If there is no such experiment.

    """
    entry = Registry(store).get(name)
    return Fold(entry, _state(store.saved(name))).results(store.counts(name))


def _state(raw: bytes | None) -> State | None:
    if raw is None:
        return None
    try:
        return msgspec.msgpack.decode(raw, type=State)
    except msgspec.DecodeError as error:
        raise TableError(f"the stored results cannot be read: {error}") from error


def _bounds(interval: Interval) -> Bounds:
    return Bounds(*(each if math.isfinite(each) else None for each in interval))
