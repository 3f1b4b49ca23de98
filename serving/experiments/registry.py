"""Which experiments there are: started, stopped, and never begun again under the same name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec

from serving.experiments.assignment import Arm, Experiment
from serving.experiments.store import Store
from serving.table import Table
from stream.errors import TableError, UserError

MAX_RUNNING: Final = 16
"""Experiments at once: each costs every request some microseconds."""

_SCHEMA: Final = 1
_TRIES: Final = 10


class UnknownExperiment(UserError):  # noqa: N818 - as the house's errors
    """There is no experiment of that name."""


class ExperimentRefused(UserError):  # noqa: N818 - as the house's errors
    """An experiment cannot be started or stopped as things are."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """An experiment and what became of it.

    Parameters
    ----------
    experiment
        As it was started.
    started_ms, stopped_ms
        Milliseconds since 1970; an experiment that runs has no end.
    started_by, stopped_by
        Who did it.

    """

    experiment: Experiment
    started_ms: int
    started_by: str = ""
    stopped_ms: int | None = None
    stopped_by: str = ""

    @property
    def running(self) -> bool:
        """Whether it goes on."""
        return self.stopped_ms is None


class Entries(NamedTuple):
    """All experiments, oldest first, and the version of the list: it grows with every change."""

    version: int
    entries: list[Entry]

    def running(self) -> list[Entry]:
        """Return those that go on."""
        return [entry for entry in self.entries if entry.running]

    def models(self) -> set[int]:
        """Return the epochs that arms of those that go on are answered from."""
        return {arm.model for arm in self._arms() if arm.model is not None}

    def learners(self) -> set[str]:
        """Return the learners that arms of those that go on are answered from."""
        return {arm.learner for arm in self._arms() if arm.learner is not None}

    def _arms(self) -> list[Arm]:
        return [arm for entry in self.running() for arm in entry.experiment.arms]


class _Document(msgspec.Struct, frozen=True):
    v: int
    version: int
    entries: list[Entry]


class Registry:
    """The experiments of a store.

    Examples
    --------
    >>> from serving.experiments.assignment import Arm
    >>> from serving.experiments.assignment import ListSettings
    >>> from serving.experiments.store import MemoryStore
    >>> from serving.table import MemoryTable
    >>> registry, table = Registry(MemoryStore()), MemoryTable()
    >>> arms = (Arm(name="today"), Arm(name="new", settings=ListSettings(diversity=0.3)))
    >>> asked = Experiment(name="newer", arms=arms)
    >>> registry.start(asked, table, at_ms=1_650_812_741_436, by="op").running
    True
    >>> registry.stop("newer", table, at_ms=1_650_812_749_000, by="op").running
    False
    >>> registry.start(asked, table, at_ms=1_650_812_750_000, by="op")
    Traceback (most recent call last):
        ...
    serving.experiments.registry.ExperimentRefused: there was an experiment 'newer' ... new name

    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def read(self) -> Entries:
        """Return all experiments."""
        return self._read()[1]

    def get(self, name: str) -> Entry:
        """Return one experiment.

        Raises
        ------
        UnknownExperiment
            If there is none of that name.

        """
        return _found(self.read().entries, name)

    def start(self, experiment: Experiment, table: Table, *, at_ms: int, by: str) -> Entry:
        """Start an experiment; ``table`` keeps its models as long as it runs.

        Raises
        ------
        ExperimentRefused
            If the name was used before, another experiment that runs differs in the same, too
            many run, or the table does not have a model of an arm, or nobody publishes what its
            learner should.

        """
        _check_models(experiment, table)

        def started(entries: list[Entry]) -> tuple[list[Entry], Entry]:
            _check(experiment, entries)
            entry = Entry(experiment=experiment, started_ms=at_ms, started_by=by)
            return [*entries, entry], entry

        return self._change(started, table)

    def stop(self, name: str, table: Table, *, at_ms: int, by: str) -> Entry:
        """Stop an experiment for good; to stop it again changes nothing.

        Raises
        ------
        UnknownExperiment
            If there is none of that name.

        """

        def stopped(entries: list[Entry]) -> tuple[list[Entry], Entry]:
            entry = _found(entries, name)
            if entry.running:
                entry = msgspec.structs.replace(
                    entry, stopped_ms=max(at_ms, entry.started_ms), stopped_by=by
                )
            return [entry if each.experiment.name == name else each for each in entries], entry

        return self._change(stopped, table)

    def _change(
        self, change: Callable[[list[Entry]], tuple[list[Entry], Entry]], table: Table
    ) -> Entry:
        for _ in range(_TRIES):
            old, known = self._read()
            entries, changed = change(known.entries)
            new = msgspec.json.encode(_Document(_SCHEMA, known.version + 1, entries))
            if entries == known.entries or self._store.replace(old, new):
                self._keep_models(table)
                return changed
        raise TableError("others change the experiments all the time; try again")

    def _keep_models(self, table: Table) -> None:
        """Have the table keep what runs; again if somebody else changed that meanwhile."""
        known = self.read()
        while True:
            table.keep(known.models())
            before, known = known, self.read()
            if known.version == before.version:
                return

    def _read(self) -> tuple[bytes | None, Entries]:
        raw = self._store.definitions()
        if raw is None:
            return None, Entries(0, [])
        try:
            document = msgspec.json.decode(raw, type=_Document)
        except msgspec.DecodeError as error:
            raise TableError(f"the stored experiments cannot be read: {error}") from error
        if document.v != _SCHEMA:
            raise TableError(f"want experiments of schema {_SCHEMA}, got {document.v}")
        return raw, Entries(document.version, document.entries)


def _found(entries: list[Entry], name: str) -> Entry:
    for entry in entries:
        if entry.experiment.name == name:
            return entry
    known = ", ".join(entry.experiment.name for entry in entries[-5:]) or "none"
    raise UnknownExperiment(f"no experiment {name!r:.80}; known are {known}")


def _check_models(experiment: Experiment, table: Table) -> None:
    """Refuse an experiment of which the table does not have a model."""
    wanted = {arm.model for arm in experiment.arms if arm.model is not None}
    there = [each.epoch for each in table.epochs()] if wanted else []
    if missing := wanted.difference(there):
        raise ExperimentRefused(
            f"the table has no model of epoch {', '.join(map(str, sorted(missing)))}; "
            f"it has {', '.join(map(str, there)) or 'none'}"
        )
    for arm in experiment.arms:
        if arm.learner is not None and not table.beside(arm.learner).epochs():
            raise ExperimentRefused(
                f"no learner publishes under the namespace {arm.learner!r}; start one with "
                f"TIDEGRAPH_REDIS_NAMESPACE={arm.learner} and a folder of snapshots of its own"
            )


def _check(experiment: Experiment, entries: list[Entry]) -> None:
    """Refuse an experiment that does not go with those there are."""
    if any(entry.experiment.name == experiment.name for entry in entries):
        raise ExperimentRefused(
            f"there was an experiment {experiment.name!r} already, and units are assigned by the "
            "name: who met that one would not come to this one fresh; choose a new name"
        )
    running = [entry.experiment for entry in entries if entry.running]
    if len(running) >= MAX_RUNNING:
        raise ExperimentRefused(f"{MAX_RUNNING} experiments run at once at most; stop one first")
    for other in running:
        if common := _touched(experiment) & _touched(other):
            raise ExperimentRefused(
                f"experiment {other.name!r} runs and differs in {', '.join(sorted(common))} too, "
                "so a unit could not be in both; stop that one first"
            )


def _touched(experiment: Experiment) -> set[str]:
    """Return what an experiment decides about answers; shadows decide nothing."""
    decided = set().union(*(arm.changes() for arm in experiment.shown))
    return decided | ({"the mixing of lists"} if experiment.design == "interleave" else set())
