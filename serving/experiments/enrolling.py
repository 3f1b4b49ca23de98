"""The API's side: which arms a request gets, and that somebody has met an experiment."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import Final, NamedTuple, Self

from serving.experiments.assignment import Arm, Assigner, Experiment
from serving.experiments.interleaving import Draft, team_draft
from serving.experiments.registry import Registry
from serving.experiments.store import Store
from stream.errors import TableError, UserError

_MANY: Final = 200_000
"""Exposures that are remembered as noted, and that wait when the store is away."""

_KEEP_S: Final = 86_400.0
"""How long a collector may be behind and still know whose items were shown."""

_log = logging.getLogger("tidegraph.serving")

_FLUSH_S: Final = 0.1
_REFRESH_S: Final = 1.0


class Enrolled(NamedTuple):
    """An experiment that a request takes part in.

    Parameters
    ----------
    experiment
        As it was started. Where its design is ``interleave``, both arms are to answer, and
        :meth:`Enrolment.mix` makes one list of them.
    arm
        What the unit gets; where lists are mixed, the control.

    """

    experiment: Experiment
    arm: Arm


class Enrolment:
    """Assigns the units of requests, and notes who meets an experiment for the first time.

    Definitions are read again every second and exposures are written every tenth of one, by a
    thread between :meth:`start` and :meth:`close`; without a store that answers the experiments
    known last go on, and exposures wait.

    Parameters
    ----------
    store
        Where experiments are kept.
    follow
        Is told the models and the learners of the experiments that run, before anybody is given
        them.

    Examples
    --------
    >>> from serving.experiments.assignment import ListSettings
    >>> from serving.experiments.store import MemoryStore
    >>> from serving.table import MemoryTable
    >>> store = MemoryStore()
    >>> arms = (Arm(name="today"), Arm(name="new", settings=ListSettings(diversity=0.3)))
    >>> asked = Experiment(name="newer", arms=arms)
    >>> _ = Registry(store).start(asked, MemoryTable(), at_ms=1, by="op")
    >>> enrolment = Enrolment(store)
    >>> enrolment.refresh()
    >>> [enrolled.arm.name for enrolled in enrolment.meet("712", at_ms=5)]
    ['new']
    >>> enrolment.flush()
    >>> store.exposed("newer", 0)
    [('712', 5)]

    """

    def __init__(
        self,
        store: Store,
        follow: Callable[[Collection[int], Collection[str]], None] = lambda models, learners: None,
    ) -> None:
        self._store = store
        self._follow = follow
        self._registry = Registry(store)
        self._version = -1
        self._running: tuple[tuple[Experiment, Assigner, list[Enrolled]], ...] = ()
        self._lock = threading.Lock()
        self._noted: set[tuple[str, str]] = set()
        self._waiting: dict[tuple[str, str], int] = {}
        self._shown: list[tuple[str, str, Draft, float]] = []
        self._counts: dict[str, dict[str, float]] = {}
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Begin to follow the store."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Write what waits, and end."""
        self.close()

    def start(self) -> None:
        """Read which experiments run, if the store answers, and begin to follow it."""
        with suppress(TableError, UserError):
            self.refresh()
        self._ended.clear()
        self._thread = threading.Thread(target=self._run, name="experiments", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write what waits, and end."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    @property
    def idle(self) -> bool:
        """Whether no experiment runs."""
        return not self._running

    @property
    def n_running(self) -> int:
        """How many experiments run."""
        return len(self._running)

    def meet(self, user: str, session: str = "", *, at_ms: int | None) -> list[Enrolled]:
        """Return what a request takes part in; its units count as exposed from ``at_ms`` on.

        Parameters
        ----------
        user, session
            As they are in the log (a pseudonym where there are such); empty where there is none.
        at_ms
            Milliseconds since 1970; ``None``: only somebody else has a look, which is no exposure.

        """
        found = []
        for experiment, assign, answers in self._running:
            unit = user if experiment.unit == "user" else session
            place = assign(unit) if unit else None
            if place is None:
                continue
            key = (experiment.name, unit)
            if at_ms is not None and key not in self._noted:
                self._note(key, at_ms)
            found.append(answers[place])
        return found

    def mix(
        self,
        experiment: Experiment,
        control: Sequence[str],
        treated: Sequence[str],
        n: int,
        *,
        request_id: str,
    ) -> list[str]:
        """Mix the lists of both arms into one of ``n``, and note whose items are in it.

        Feedback that carries ``request_id`` is credited to the arm of its item. Without one nothing
        is noted.
        """
        draft = team_draft(control, treated, n, seed=request_id)
        with self._lock:
            if request_id and len(self._shown) < _MANY:
                keep_s = experiment.window_s + _KEEP_S
                self._shown.append((experiment.name, request_id, draft, keep_s))
        return draft.items

    def compare(
        self, experiment: Experiment, arm: Arm, shown: Sequence[str], shadow: Sequence[str]
    ) -> None:
        """Note how much of a list a shadow arm would have shown as well."""
        with self._lock:
            counts = self._counts.setdefault(experiment.name, {})
            common = len(set(shown) & set(shadow)) / max(len(shown), 1)
            for field, amount in ((f"{arm.name}/requests", 1.0), (f"{arm.name}/common", common)):
                counts[field] = counts.get(field, 0.0) + amount

    def refresh(self) -> None:
        """Read which experiments run."""
        version, _ = known = self._registry.read()
        if version != self._version:
            self._follow(known.models(), known.learners())
            self._running = tuple(
                (each, Assigner(each), _answers(each))
                for each in (entry.experiment for entry in known.running())
            )
            self._version = version

    def flush(self) -> None:
        """Write the exposures and lists that wait; what cannot be written waits on."""
        with self._lock:
            waiting, self._waiting = self._waiting, {}
            shown, self._shown = self._shown, []
            counts, self._counts = self._counts, {}
        units: dict[str, dict[str, int]] = {}
        for (name, unit), at_ms in waiting.items():
            units.setdefault(name, {})[unit] = at_ms
        try:
            for name, those in units.items():
                self._store.expose(name, those)
            waiting = {}
            while shown:
                name, request_id, (items, teams), keep_s = shown[-1]
                whose = dict(zip(items, teams, strict=True))
                self._store.show(name, request_id, whose, keep_s=keep_s)
                shown.pop()
            while counts:
                name = next(iter(counts))
                self._store.count(name, counts[name])
                del counts[name]
        finally:
            with self._lock:
                self._waiting = waiting | self._waiting
                self._shown += shown
                for name, those_counts in counts.items():
                    newer = self._counts.setdefault(name, {})
                    for field, amount in those_counts.items():
                        newer[field] = newer.get(field, 0.0) + amount

    def _note(self, key: tuple[str, str], at_ms: int) -> None:
        with self._lock:
            if len(self._noted) >= _MANY:
                self._noted.clear()  # the store knows who was first
            if len(self._waiting) < _MANY:
                self._waiting.setdefault(key, at_ms)
                self._noted.add(key)

    def _run(self) -> None:
        refresh_s = 0.0
        while not self._ended.wait(_FLUSH_S):
            try:
                if time.monotonic() >= refresh_s:
                    refresh_s = time.monotonic() + _REFRESH_S
                    self.refresh()
                self.flush()
            except (TableError, UserError):
                continue  # the store is away: what is known last goes on
            except Exception:  # noqa: BLE001 - answers go on without what could not be read
                _log.exception("experiments cannot be followed")
        try:
            self.flush()
        except (TableError, UserError):
            return


def _answers(experiment: Experiment) -> list[Enrolled]:
    """Return what a unit of each arm is told; where lists are mixed, the same."""
    arms = experiment.shown
    if experiment.design == "interleave":
        arms = (arms[0],) * len(arms)
    return [Enrolled(experiment, arm) for arm in arms]
