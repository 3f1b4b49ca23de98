"""Brings touched rows to the published table, coalesced, with the step that they stand for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from graph_store.graph import TemporalGraph, View
from graph_store.store import PADDING
from learner.base import Model
from serving.rows import Barrier, Count, Covisited, ItemRows, Layout, UserRows
from serving.table import Table, Update


class Publisher:
    """Collects the rows that steps touch and writes them, each once, when asked.

    Parameters
    ----------
    table
        Where to.
    graph, model
        What is published: read, never changed.
    now_ms
        The wall clock.
    dim
        Of the vectors.

    """

    def __init__(
        self,
        table: Table,
        graph: TemporalGraph,
        model: Model,
        *,
        now_ms: Callable[[], int],
        dim: int,
    ) -> None:
        self._table = table
        self._graph = graph
        self._model = model
        self._now_ms = now_ms
        self._users: set[int] = set()
        self._items: set[int] = set()
        self._paired: set[int] = set()
        self._met: dict[int, set[int]] = {}
        half_lives = graph.config.half_lives_ms
        counts = tuple(
            Count(f"{name}_{half_life_ms}", half_life_ms)
            for name in ("positives", "shown")
            for half_life_ms in half_lives
        )
        self._flipped = False
        table.begin(Layout(dim=dim, counts=counts))

    def touched(self, view: View, users: NDArray[np.int64], items: NDArray[np.int64]) -> None:
        """Remember rows that a step touched, and what its users met."""
        self._users.update(users.tolist())
        self._items.update(items.tolist())
        self._paired.update(view.items[view.positive].tolist())
        self._paired.update(view.history.nodes[view.positive].ravel().tolist())
        for user, item in zip(view.users.tolist(), view.items.tolist(), strict=True):
            self._met.setdefault(user, set()).add(item)

    def touched_all(self) -> None:
        """Remember every row: a new epoch begins empty, also where the graph is an old one."""
        graph = self._graph
        self._users.update(range(graph.n_users))
        self._items.update(range(graph.n_items))
        self._paired.update(range(graph.n_items))
        for user in range(graph.n_users):
            self._met.setdefault(user, set()).update(graph.seen.of(user).tolist())

    def publish(self) -> None:
        """Write what was touched since the last call; the first call brings the epoch into view."""
        graph = self._graph
        users = np.array(sorted(self._users), np.int64)
        items = np.array(sorted(self._items), np.int64)
        paired = np.array(sorted(self._paired - {PADDING}), np.int64)
        barrier = Barrier(step=graph.steps, at_ms=graph.newest_ms, published_ms=self._now_ms())
        self._table.publish(
            Update(
                barrier=barrier,
                users=self._user_rows(users),
                items=self._item_rows(items),
                covisited=self._covisited(paired),
                seen={
                    graph.users.id_of(user): graph.items.ids_of(np.array(sorted(met), np.int64))
                    for user, met in self._met.items()
                },
                weights=self._model.published_weights(),
            )
        )
        if not self._flipped:
            self._table.flip()
            self._flipped = True
        self._users.clear()
        self._items.clear()
        self._paired.clear()
        self._met.clear()

    def _user_rows(self, users: NDArray[np.int64]) -> UserRows:
        """Return each user's vector as of just after their last event."""
        graph = self._graph
        latest = graph.edges.users_latest(users, k=1, before_ms=graph.newest_ms + 1)
        ts_ms = np.where(latest.nodes[:, 0] >= 0, latest.ts_ms[:, 0], graph.newest_ms)
        view = graph.reading(users, ts_ms + 1)
        vectors = self._model.user_vectors(view, np.arange(users.shape[0]))
        return UserRows(graph.users.ids_of(users), vectors.vectors, ts_ms)

    def _item_rows(self, items: NDArray[np.int64]) -> ItemRows:
        """Return each item's vector and counts, the newest event included."""
        graph = self._graph
        now = graph.reading(items[:0], items[:0], at_ms=graph.newest_ms + 1)
        vectors = self._model.item_vectors(now, items)
        n_items = int(items.max(initial=-1)) + 1
        counts = np.hstack(
            [sums.at(graph.newest_ms, n_items)[items] for sums in (graph.positives, graph.shown)]
        )
        return ItemRows(
            graph.items.ids_of(items),
            vectors.vectors,
            vectors.bias,
            counts,
            np.full(items.shape, graph.newest_ms, np.int64),
        )

    def _covisited(self, items: NDArray[np.int64]) -> dict[str, Covisited]:
        graph = self._graph
        lists = {}
        for item_id, item in zip(graph.items.ids_of(items), items.tolist(), strict=True):
            others, cosines = graph.covisitation.neighbours(item)
            if others.size:
                lists[item_id] = Covisited(graph.items.ids_of(others), cosines, graph.newest_ms)
        return lists
