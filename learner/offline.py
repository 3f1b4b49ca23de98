"""Trains on a log of the past: epochs over a journal, and how many of them validation asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from graph_store.graph import TemporalGraph, View
from graph_store.store import Edges
from learner.base import Model

JOURNAL_EVENTS: Final = 20_000_000
"""Events that a journal keeps: beyond it the oldest go, and offline training sees a window."""

_COLUMNS: Final = ("users", "items", "ts_ms", "kind", "key", "weight")


class Journal:
    """Accepted events as columns, in order: 29 bytes an event, what offline training reads.

    Parameters
    ----------
    limit
        Events kept.

    """

    def __init__(self, limit: int = JOURNAL_EVENTS) -> None:
        self._limit = limit
        self._views: list[tuple[NDArray[Any], ...]] = []
        self._first = 0
        self._length = 0

    def append(self, view: View) -> None:
        """Add a view's events."""
        columns = tuple(getattr(view, name) for name in _COLUMNS)
        narrow = (columns[0].astype(np.int32), columns[1].astype(np.int32), *columns[2:])
        self._views.append(narrow)
        self._length += len(view)
        while self._length - self._views[self._first][0].shape[0] >= self._limit:
            self._length -= self._views[self._first][0].shape[0]
            self._views[self._first] = ()
            self._first += 1

    def __len__(self) -> int:
        """Count the events kept."""
        return self._length

    def batches(self) -> Iterator[tuple[Edges, NDArray[np.float32]]]:
        """Yield the micro-batches in the order and the sizes in which they came."""
        for users, items, ts_ms, kind, key, weight in self._views[self._first :]:
            yield (
                Edges(users.astype(np.int64), items.astype(np.int64), ts_ms, kind, key),
                weight,
            )

    def state(self) -> dict[str, Any]:
        """Return all that a restart needs."""
        kept = self._views[self._first :]
        columns = {
            name: np.concatenate([view[at] for view in kept]) if kept else np.empty(0)
            for at, name in enumerate(_COLUMNS)
        }
        return {**columns, "sizes": np.array([view[0].shape[0] for view in kept], np.int64)}

    def restore(self, state: dict[str, Any]) -> None:
        """Become what :meth:`state` described."""
        ends = np.cumsum(state["sizes"])
        self._first = 0
        self._length = int(ends[-1]) if ends.size else 0
        split = [np.split(np.array(state[name]), ends[:-1]) for name in _COLUMNS]
        self._views = list(zip(*split, strict=True)) if ends.size else []


def train(
    model: Model,
    journal: Journal,
    new_graph: Callable[[], TemporalGraph],
    *,
    epochs: int = 1,
    on_batch: Callable[[int], None] = lambda n_events: None,
) -> None:
    """Let a model learn a journal, in order, from an empty graph in each epoch.

    Parameters
    ----------
    model
        Changed in place.
    journal
        What happened.
    new_graph
        Makes an empty graph that shares the rows of the journal.
    epochs
        Times over.
    on_batch
        Told after each micro-batch how many events it had.

    """
    steps = 0
    for _ in range(epochs):
        graph = new_graph()
        graph.steps = steps  # negatives are drawn by step: not the same ones in every epoch
        for edges, weight in journal.batches():
            view = graph.look(edges, weight)
            model.learn(view)
            graph.append(view)
            on_batch(len(view))
        steps = graph.steps
