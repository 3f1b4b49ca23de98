"""The ways to run one model over a stream: online, frozen, retrained, delayed, standing still."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from graph_store.graph import TemporalGraph, View
from graph_store.store import Edges
from learner.base import Model
from learner.offline import Journal

State = dict[str, Any]

MODEL_SYSTEMS: Final = ("online", "frozen", "frozen_counts", "retrain", "static", "delayed")
"""Names of the systems that run the model, in the order of the report."""


class System(Protocol):
    """Something that recommends while the stream goes by."""

    def score(self, view: View, events: NDArray[np.int64]) -> NDArray[np.float32]:
        """Score every candidate for some events of a view, (b, n_items); -inf: unknown to it."""
        ...

    def learn(self, view: View) -> object:
        """Take a view into account, after it was ranked and before the graph has it."""
        ...

    def state(self) -> State:
        """Return all that a restart needs."""
        ...

    def restore(self, state: State) -> None:
        """Become what :meth:`state` described."""
        ...


class Frozen:
    """Parameters stand still; the graph, histories and decayed counts go on."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def score(self, view: View, events: NDArray[np.int64]) -> NDArray[np.float32]:
        """Score with the parameters of the split."""
        return self.model.score(view, events)

    def learn(self, view: View) -> None:
        """Learn nothing."""

    def state(self) -> State:
        """Return the model's state."""
        return {"model": self.model.state()}

    def restore(self, state: State) -> None:
        """Become what :meth:`state` described."""
        self.model.restore(state["model"])


class FrozenCounts(Frozen):
    """Parameters and everything counted about items stand still; user histories go on."""

    def __init__(self, model: Model, graph: TemporalGraph) -> None:
        super().__init__(model)
        self.graph = graph

    def score(self, view: View, events: NDArray[np.int64]) -> NDArray[np.float32]:
        """Score with the item side of the split."""
        stale = replace(view, graph=self.graph, at_ms=self.graph.newest_ms)
        return _hide_unknown(self.model.score(stale, events), self.graph.n_items)

    def state(self) -> State:
        """Return the states of the model and of the graph at the split."""
        return super().state() | {"graph": self.graph.content()}

    def restore(self, state: State) -> None:
        """Become what :meth:`state` described."""
        super().restore(state)
        self.graph.restore_content(state["graph"])


class Static(FrozenCounts):
    """Everything stands still: parameters, counts and histories."""

    def score(self, view: View, events: NDArray[np.int64]) -> NDArray[np.float32]:
        """Score as a system would that has not heard of anything since the split."""
        stale = _as_known_to(self.graph, view, self.graph.newest_ms)
        return _hide_unknown(self.model.score(stale, events), self.graph.n_items)


class Retrain(Frozen):
    """Parameters stand still between full retrains on everything so far, every ``every_ms``."""

    def __init__(
        self,
        model: Model,
        *,
        retrained: Callable[[], Model],
        every_ms: int,
        next_ms: int,
    ) -> None:
        super().__init__(model)
        self._retrained = retrained
        self._every_ms = every_ms
        self._next_ms = next_ms

    def learn(self, view: View) -> None:
        """Retrain when the view's first event has passed the hour for it."""
        if view.at_ms < self._next_ms:
            return
        while self._next_ms <= view.at_ms:
            self._next_ms += self._every_ms
        self.model = self._retrained()

    def state(self) -> State:
        """Return the model's state and when the next retrain is due."""
        return super().state() | {"next_ms": self._next_ms}

    def restore(self, state: State) -> None:
        """Become what :meth:`state` described."""
        super().restore(state)
        self._next_ms = state["next_ms"]


class Delayed:
    """Learns online, but hears of each micro-batch only ``delay_ms`` after its last event.

    Its graph and its histories are as delayed as its parameters.
    """

    def __init__(self, model: Model, graph: TemporalGraph, *, delay_ms: int) -> None:
        self.model = model
        self.graph = graph
        self._delay_ms = delay_ms
        self._waiting: deque[tuple[Edges, NDArray[np.float32]]] = deque()

    def score(self, view: View, events: NDArray[np.int64]) -> NDArray[np.float32]:
        """Score from what it has heard of."""
        self.hear(view.at_ms)
        stale = _as_known_to(self.graph, view, view.at_ms)
        return _hide_unknown(self.model.score(stale, events), self.graph.n_items)

    def hear(self, now_ms: int) -> None:
        """Learn from the micro-batches whose time has come by ``now_ms``."""
        while self._waiting and int(self._waiting[0][0].ts_ms[-1]) + self._delay_ms <= now_ms:
            events, weight = self._waiting.popleft()
            view = self.graph.look(events, weight)
            self.model.learn(view)
            self.graph.append(view)

    def learn(self, view: View) -> None:
        """Keep the view until its time, and learn from those whose time has come."""
        self.hear(view.at_ms)
        events = Edges(view.users, view.items, view.ts_ms, view.kind, view.key)
        self._waiting.append((events, view.weight))

    def state(self) -> State:
        """Return the states of model and graph, and what waits."""
        waiting = [{**events._asdict(), "weight": weight} for events, weight in self._waiting]
        return {
            "model": self.model.state(),
            "graph": self.graph.content(),
            "waiting": {str(n): columns for n, columns in enumerate(waiting)},
        }

    def restore(self, state: State) -> None:
        """Become what :meth:`state` described."""
        self.model.restore(state["model"])
        self.graph.restore_content(state["graph"])
        columns = [state["waiting"][str(n)] for n in range(len(state["waiting"]))]
        self._waiting = deque(
            (Edges(*(np.array(entry[name]) for name in Edges._fields)), np.array(entry["weight"]))
            for entry in columns
        )


class Warm:
    """The online learner, and the journal of what it has learned from."""

    def __init__(self, model: Model, journal: Journal) -> None:
        self.model = model
        self.journal = journal

    def score(self, view: View, events: NDArray[np.int64]) -> NDArray[np.float32]:
        """Score with the parameters as of the batch before."""
        return self.model.score(view, events)

    def learn(self, view: View) -> object:
        """Learn from the view and remember it."""
        self.journal.append(view)
        return self.model.learn(view)

    def state(self) -> State:
        """Return the states of model and journal."""
        return {"model": self.model.state(), "journal": self.journal.state()}

    def restore(self, state: State) -> None:
        """Become what :meth:`state` described."""
        self.model.restore(state["model"])
        self.journal.restore(state["journal"])


def _as_known_to(graph: TemporalGraph, view: View, at_ms: int) -> View:
    """Return the view as a graph sees it that does not have the batch, nor perhaps much else."""
    return graph.reading(view.users, view.ts_ms, at_ms=at_ms, n_items=view.n_items)


def _hide_unknown(scores: NDArray[np.float32], n_known: int) -> NDArray[np.float32]:
    scores[:, n_known:] = -np.inf
    return scores
