"""Several systems on one clock: the same events, candidates and seen-filter for all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from graph_store.graph import GraphConfig, TemporalGraph, View
from graph_store.memory import with_room
from learner.base import Learned, Model
from learner.offline import Journal, train
from learner.ranking import TOP_K, rank_targets, rows_of, top_k
from replay.baselines import BASELINES
from replay.metrics import Catalogue, Outcomes, TestEvents, gain
from replay.systems import (
    MODEL_SYSTEMS,
    Delayed,
    Frozen,
    FrozenCounts,
    Retrain,
    State,
    Static,
    System,
    Warm,
)
from stream.events import FeedbackBatch

SYSTEMS: Final = (*MODEL_SYSTEMS, *BASELINES)
"""Names of all systems, in the order of the report."""

OFFLINE: Final = frozenset({"frozen", "frozen_counts", "retrain", "static"})
"""Systems whose parameters are trained offline, with a number of epochs chosen on validation."""

_SCORES: Final = 1 << 24
"""Scores held at a time: a large catalogue is ranked a few events at a time."""

_MIX: Final = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, kw_only=True)
class Split:
    """Where the log parts: settings are chosen on (T1, T2], (T2, end] is for the report."""

    t1_ms: int
    t2_ms: int
    end_ms: int
    ranked_share: float = 1.0  # of the test events that are ranked, drawn by event


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """What is compared, and how."""

    systems: tuple[str, ...]
    split: Split
    seed: int = 0
    delay_ms: int = 3_600_000
    retrains: int = 4  # inside the test, at even distances
    max_epochs: int = 2  # that validation may choose from for what is trained offline
    graph: GraphConfig = field(default_factory=GraphConfig)


@dataclass(kw_only=True)
class Clocked:
    """A system, what it has cost, and what it made of the test events."""

    system: System
    learn_s: float = 0.0
    rank_s: float = 0.0
    cpu_s: float = 0.0
    learned_events: int = 0
    ranked_events: int = 0
    retrain_s: list[float] = field(default_factory=list)
    rank: list[NDArray[np.float64]] = field(default_factory=list)
    top: list[NDArray[np.int32]] = field(default_factory=list)
    own_score: list[NDArray[np.float32]] = field(default_factory=list)

    @contextmanager
    def timed(self, what: Literal["learn_s", "rank_s"]) -> Iterator[None]:
        """Add the seconds of a block to one of the costs, and its CPU seconds."""
        started, cpu = time.perf_counter(), time.process_time()
        yield
        setattr(self, what, getattr(self, what) + time.perf_counter() - started)
        self.cpu_s += time.process_time() - cpu

    def outcomes(self) -> Outcomes:
        """Return what it made of the test events."""
        return Outcomes(
            rank=_joined(self.rank, np.empty(0, np.float64)),
            top=_joined(self.top, np.empty((0, TOP_K), np.int32)),
            own_score=_joined(self.own_score, np.empty(0, np.float32)),
        )

    def hr(self, k: int) -> float:
        """Return the running HR@k."""
        self.rank = [_joined(self.rank, np.empty(0, np.float64))]  # joined once, not at every call
        return float((self.rank[0] <= k).mean()) if self.rank[0].size else float("nan")

    def state(self) -> State:
        """Return all that a restart needs."""
        outcomes = self.outcomes()
        costs = ("learn_s", "rank_s", "cpu_s", "learned_events", "ranked_events", "retrain_s")
        return {
            "system": self.system.state(),
            "rank": outcomes.rank,
            "top": outcomes.top,
            "own_score": outcomes.own_score,
            **{name: getattr(self, name) for name in costs},
        }

    def restore(self, state: State) -> None:
        """Become what :meth:`state` described."""
        self.system.restore(state["system"])
        self.rank, self.top = [np.array(state["rank"])], [np.array(state["top"])]
        self.own_score = [np.array(state["own_score"])]
        for name in ("learn_s", "rank_s", "cpu_s", "learned_events", "ranked_events"):
            setattr(self, name, state[name])
        self.retrain_s = list(state["retrain_s"])


class Experiment:
    """Feeds micro-batches to every system and ranks the test events with each.

    Before T1 the online model and the baselines learn. On (T1, T2] offline training with one and
    with more epochs is compared; at T2 the offline systems are made. After T2 every typed event
    is scored by each system before any of them learns from it.

    Parameters
    ----------
    config
        What is compared.
    new_model
        Makes an untrained model.

    """

    def __init__(self, config: ExperimentConfig, new_model: Callable[[], Model]) -> None:
        self.config = config
        self._new_model = new_model
        self.graph = TemporalGraph(config.graph)
        self.journal = Journal()
        self.clocked: dict[str, Clocked] = {}
        self._candidates: dict[str, Clocked] = {}
        self.epochs = 1
        self._phase = 0
        self.graph_s = 0.0
        self.on_learned: Callable[[View, Learned], None] = lambda view, learned: None
        self.on_offline: Callable[[str, int], None] = lambda what, n_events: None
        self._events_of_user = np.zeros(64, np.int64)
        self._columns: dict[str, list[NDArray[Any]]] = {name: [] for name in _EVENT_COLUMNS}
        self._items_at_t2 = self._users_at_t2 = 0
        self._item_events = np.zeros(64, np.int64)
        self._item_first_ms = np.zeros(64, np.int64)
        self._warm = Clocked(system=Warm(new_model(), self.journal))
        for name in config.systems:
            if name in BASELINES:
                self.clocked[name] = Clocked(system=BASELINES[name](config.seed))

    @property
    def model(self) -> Model:
        """The model that learns online."""
        system = self._warm.system
        assert isinstance(system, Warm)
        return system.model

    def step(self, batch: FeedbackBatch) -> None:
        """Take one micro-batch of accepted events, in event order; it lies in one phase."""
        started = time.perf_counter()
        view = self.graph.view(batch)
        self.graph_s += time.perf_counter() - started
        if len(view):
            self._enter(view)
            self._rank(view)
            self._learn(view)
        self.graph.retract(batch)

    def phase_of(self, ts_ms: int) -> int:
        """Return 0 up to T1, 1 up to T2, 2 after it."""
        split = self.config.split
        return int(ts_ms > split.t1_ms) + int(ts_ms > split.t2_ms)

    def _enter(self, view: View) -> None:
        """Make what a new phase needs."""
        config, phase = self.config, self.phase_of(view.at_ms)
        heard_later = int(view.ts_ms[-1]) > config.split.t2_ms - config.delay_ms
        if heard_later and "delayed" in config.systems and "delayed" not in self.clocked:
            delayed = Delayed(self._copy(self.model), self.graph.fork(), delay_ms=config.delay_ms)
            self.clocked["delayed"] = Clocked(system=delayed)
        if self._phase < 1 <= phase:
            if OFFLINE & set(config.systems):
                self._candidates = {"1": Clocked(system=Frozen(self._copy(self.model)))}
                for epochs in range(2, config.max_epochs + 1):
                    before = self._candidates[str(epochs - 1)].system
                    assert isinstance(before, Frozen)
                    more = self._epoch(self._copy(before.model), "validation")
                    self._candidates[str(epochs)] = Clocked(system=Frozen(more))
            self._phase = 1
        if "delayed" in self.clocked:
            clocked = self.clocked["delayed"]
            assert isinstance(clocked.system, Delayed)
            with clocked.timed("learn_s"):
                clocked.system.hear(view.at_ms)
        if self._phase < 2 <= phase:
            self._items_at_t2, self._users_at_t2 = view.n_items, view.n_users
            self._split()
            self._phase = 2

    def _split(self) -> None:
        """Make the systems that stand still from T2 on."""
        config = self.config
        wanted = set(config.systems)
        if "online" in wanted:
            self.clocked["online"] = self._warm
        if not OFFLINE & wanted:
            return
        scores = {
            name: float(gain(ranks, "ndcg@10").mean())
            for name, candidate in self._candidates.items()
            if (ranks := candidate.outcomes().rank).size
        }
        # Of equals the fewer epochs: a frozen system is not owed idle training.
        self.epochs = int(max(scores, key=lambda name: (scores[name], -int(name)), default="1"))
        self._candidates = {}
        started, cpu = time.perf_counter(), time.process_time()
        fitted = self._copy(self.model)
        for _ in range(1, self.epochs):
            fitted = self._epoch(fitted, "offline")
        learn_s = self._warm.learn_s + time.perf_counter() - started
        cpu_s = self._warm.cpu_s + time.process_time() - cpu
        makers: dict[str, Callable[[], System]] = {
            "frozen": lambda: Frozen(fitted),
            "frozen_counts": lambda: FrozenCounts(fitted, self.graph.fork()),
            "static": lambda: Static(fitted, self.graph.fork()),
            "retrain": lambda: self._retrain(fitted),
        }
        for name, make in makers.items():
            if name in wanted:
                self.clocked[name] = Clocked(
                    system=make(),
                    learn_s=learn_s,
                    cpu_s=cpu_s,
                    learned_events=len(self.journal) * self.epochs,
                )

    def _retrain(self, model: Model) -> Retrain:
        """Return the system that trains anew at even distances inside the test."""
        split = self.config.split
        every_ms = max((split.end_ms - split.t2_ms) // (self.config.retrains + 1), 1)
        return Retrain(
            model,
            retrained=self._from_scratch,
            every_ms=every_ms,
            next_ms=split.t2_ms + every_ms,
        )

    def _from_scratch(self) -> Model:
        started = time.perf_counter()
        model = self._new_model()
        for _ in range(self.epochs):
            model = self._epoch(model, "retrain")
        self.clocked["retrain"].retrain_s.append(time.perf_counter() - started)
        return model

    def _epoch(self, model: Model, what: str) -> Model:
        train(
            model,
            self.journal,
            lambda: TemporalGraph(
                self.config.graph, users=self.graph.users, items=self.graph.items
            ),
            on_batch=lambda n_events: self.on_offline(what, n_events),
        )
        return model

    def _copy(self, model: Model) -> Model:
        copy = self._new_model()
        copy.restore(model.state())
        return copy

    def _rank(self, view: View) -> None:
        """Let every system score the view's typed events, where the phase asks for it."""
        if self._phase == 0 or self.phase_of(view.at_ms) < self._phase:
            return  # before the validation, or from before the phase at hand and late
        ranked = self._candidates if self._phase == 1 else self._in_order()
        if not ranked or view.n_items == 0:
            return
        if self._phase == 1:
            events = np.flatnonzero(view.positive)
        else:
            drawn = (view.key * _MIX).astype(np.float64) / 2.0**64 < self.config.split.ranked_share
            events = np.flatnonzero(view.typed & drawn)
            self._describe(view, events)
        if events.size == 0:
            return
        pointers, seen = view.seen()
        at_once = max(1, _SCORES // view.n_items)
        for first in range(0, events.shape[0], at_once):
            some = events[first : first + at_once]
            positive = np.flatnonzero(view.positive[some])
            filters = rows_of(pointers, seen, some[positive])
            for clocked in ranked.values():
                targets = view.items[some]
                with clocked.timed("rank_s"):
                    scores = clocked.system.score(view, some)
                    clocked.rank.append(rank_targets(scores[positive], targets[positive], *filters))
                clocked.ranked_events += positive.shape[0]
                if self._phase == 2:
                    listed = top_k(scores[positive], *filters)
                    clocked.top.append(listed.astype(np.int32))
                    known = targets < view.n_items
                    own = np.full(some.shape[0], np.nan, np.float32)
                    own[known] = scores[known, targets[known]]
                    clocked.own_score.append(own)

    def _learn(self, view: View) -> None:
        """Let every system take the view in, then the graph."""
        learners = {"online": self._warm, **self.clocked}
        for name, clocked in learners.items():
            with clocked.timed("learn_s"):
                learned = clocked.system.learn(view)
            if clocked is self._warm or name in BASELINES or name == "delayed":
                clocked.learned_events += len(view)
            if isinstance(learned, Learned):
                self.on_learned(view, learned)
        started = time.perf_counter()
        self.graph.append(view)
        self.graph_s += time.perf_counter() - started
        self._count(view)

    def _describe(self, view: View, events: NDArray[np.int64]) -> None:
        """Keep what the metrics need to know of the test events."""
        depth = np.zeros(len(view), np.int64)
        for n, before in enumerate(view.previous.tolist()):
            if before >= 0:
                depth[n] = depth[before] + 1
        users = view.users
        counts = np.where(
            users < self._events_of_user.shape[0],
            self._events_of_user[np.minimum(users, self._events_of_user.shape[0] - 1)],
            0,
        )
        columns: dict[str, NDArray[Any]] = {
            "user": users,
            "item": view.items,
            "ts_ms": view.ts_ms,
            "kind": view.kind,
            "history_length": counts + depth,
            "item_known": view.items < view.n_items,
            "item_known_before_t2": view.items < self._items_at_t2,
            "user_known_before_t2": users < self._users_at_t2,
            "ranked": view.positive,
        }
        for name, column in columns.items():
            self._columns[name].append(column[events])

    def _count(self, view: View) -> None:
        self._events_of_user = _counted(self._events_of_user, view.users)
        if self._phase < 2:
            self._item_events = _counted(self._item_events, view.items)
        self._item_first_ms = with_room(self._item_first_ms, int(view.items.max()) + 1)
        fresh, first = np.unique(view.items, return_index=True)
        new = fresh >= view.n_items
        self._item_first_ms[fresh[new]] = view.ts_ms[first[new]]

    def _in_order(self) -> dict[str, Clocked]:
        return {name: self.clocked[name] for name in SYSTEMS if name in self.clocked}

    def test_events(self) -> TestEvents:
        """Return the events that were scored."""
        kinds = {"kind": np.int8, **dict.fromkeys(_FLAGS, np.bool_)}
        return TestEvents(
            **{
                name: _joined(parts, np.empty(0, kinds.get(name, np.int64)))
                for name, parts in self._columns.items()
            }
        )

    def catalogue(self) -> Catalogue:
        """Return what is known of the items."""
        n_items = self.graph.n_items
        events = np.zeros(n_items, np.int64)
        held = min(n_items, self._item_events.shape[0])
        events[:held] = self._item_events[:held]
        return Catalogue(events_before_t2=events, first_ms=self._item_first_ms[:n_items].copy())

    def results(self) -> dict[str, Clocked]:
        """Return every system in the order of the report."""
        return self._in_order()

    def state(self) -> State:
        """Return all that a restart needs, the metrics so far included."""
        events = self.test_events()
        return {
            "graph": self.graph.state(),
            "warm": self._warm.state(),
            "systems": {
                name: clocked.state()
                for name, clocked in self.clocked.items()
                if clocked is not self._warm
            },
            "candidates": {name: each.state() for name, each in self._candidates.items()},
            "events": {name: getattr(events, name) for name in _EVENT_COLUMNS},
            "phase": self._phase,
            "epochs": self.epochs,
            "graph_s": self.graph_s,
            "items_at_t2": self._items_at_t2,
            "users_at_t2": self._users_at_t2,
            "events_of_user": self._events_of_user,
            "item_events": self._item_events,
            "item_first_ms": self._item_first_ms,
        }

    def restore(self, state: State) -> None:
        """Become what :meth:`state` described."""
        self.graph.restore(state["graph"])
        self._warm.restore(state["warm"])
        self._phase, self.epochs = state["phase"], state["epochs"]
        self.graph_s = state["graph_s"]
        self._items_at_t2, self._users_at_t2 = state["items_at_t2"], state["users_at_t2"]
        self._events_of_user = np.array(state["events_of_user"])
        self._item_events = np.array(state["item_events"])
        self._item_first_ms = np.array(state["item_first_ms"])
        self._columns = {name: [np.array(column)] for name, column in state["events"].items()}
        for name, kept in state["candidates"].items():
            self._candidates[name] = Clocked(system=Frozen(self._new_model()))
            self._candidates[name].restore(kept)
        for name, kept in state["systems"].items():
            if name not in self.clocked:
                self.clocked[name] = Clocked(system=self._empty(name))
            self.clocked[name].restore(kept)
        if self._phase == 2 and "online" in self.config.systems:
            self.clocked["online"] = self._warm

    def _empty(self, name: str) -> System:
        """Return a system as it is before :meth:`restore` fills it."""
        config, model = self.config, self._new_model()
        if name == "frozen":
            return Frozen(model)
        if name == "retrain":
            return self._retrain(model)
        graph = TemporalGraph(config.graph, users=self.graph.users, items=self.graph.items)
        if name == "delayed":
            return Delayed(model, graph, delay_ms=config.delay_ms)
        return (Static if name == "static" else FrozenCounts)(model, graph)


_FLAGS: Final = ("item_known", "item_known_before_t2", "user_known_before_t2", "ranked")
_EVENT_COLUMNS: Final = ("user", "item", "ts_ms", "kind", "history_length", *_FLAGS)


def _joined(parts: Sequence[NDArray[Any]], empty: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate(parts) if parts else empty


def _counted(counts: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return ``counts`` with one more for each of ``rows``."""
    counts = with_room(counts, int(rows.max()) + 1)
    np.add.at(counts, rows, 1)
    return counts
