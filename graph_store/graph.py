"""The whole graph of one process: ids, edges, counts, what was seen; one view, one append."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from graph_store.counts import Covisitation, DecayedCounts
from graph_store.ids import Ids
from graph_store.sampling import RecentRing
from graph_store.seen import SeenItems
from graph_store.store import Edges, EdgeStore, Neighbours
from stream.events import N_CLASSES, FeedbackBatch, Kind

State = dict[str, Any]

HOUR_MS: Final = 3_600_000
DAY_MS: Final = 24 * HOUR_MS


@njit(cache=True)
def _previous_of_user(users: NDArray[np.int64], last: NDArray[np.int64]) -> NDArray[np.int64]:
    """Link each event to its user's event before it; ``last`` is all -1, and is again after."""
    previous = np.empty(users.shape[0], np.int64)
    for n in range(users.shape[0]):
        previous[n] = last[users[n]]
        last[users[n]] = n
    for n in range(users.shape[0]):
        last[users[n]] = -1
    return previous


@dataclass(frozen=True, kw_only=True)
class GraphConfig:
    """What the graph keeps; times in milliseconds."""

    k_user: int = 20  # edges kept per user
    k_item: int = 10  # edges kept per item
    max_age_ms: int | None = None  # older edges are hidden
    half_lives_ms: tuple[int, ...] = (HOUR_MS, 6 * HOUR_MS, DAY_MS, 3 * DAY_MS, 14 * DAY_MS)
    pairs_per_item: int = 64  # co-visitation lists
    pair_half_life_ms: int = 30 * DAY_MS
    pair_gap_ms: int = 3 * DAY_MS  # two visits this far apart count for half
    recent: int = 4_096  # positives that recent negatives are drawn from


@dataclass(frozen=True, kw_only=True)
class View:
    """One micro-batch of B events in order, and the graph as it stood when the batch began.

    ``history`` is exact inside the batch: an event sees every earlier event of its user, of this
    batch too. Everything about items (counts, neighbours, which are known) is as of ``at_ms``, for
    targets and negatives alike, until :meth:`TemporalGraph.append` is called.
    """

    users: NDArray[np.int64]  # (B,) rows, first-seen users included
    items: NDArray[np.int64]  # (B,) rows; a row >= n_items was not known yet
    ts_ms: NDArray[np.int64]  # (B,)
    kind: NDArray[np.int8]  # (B,) Kind, 0 to 4
    key: NDArray[np.uint64]  # (B,)
    weight: NDArray[np.float32]  # (B,)
    history: Neighbours  # (B, K)
    previous: NDArray[np.int64]  # (B,) index of the same user's event before, or -1
    n_users: int  # users known when the batch began
    n_items: int  # items known when the batch began: the candidates are rows 0 to n_items - 1
    at_ms: int  # when the batch begins
    step: int  # batches before this one
    graph: TemporalGraph = field(repr=False)

    @property
    def positive(self) -> NDArray[np.bool_]:
        """Which events are typed positive, (B,)."""
        return self.kind <= Kind.IMPLICIT_POSITIVE

    @property
    def typed(self) -> NDArray[np.bool_]:
        """Which events are edges: all but kind ``none``, (B,)."""
        return self.kind < N_CLASSES

    def __len__(self) -> int:
        """Count the events."""
        return len(self.users)

    def seen(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return what each event's user had met before it, as CSR: pointers (B + 1,), item rows."""
        return self.graph.seen.before_each(self.users, self.items, self.previous)


class TemporalGraph:
    """Everything that is remembered of the stream, as of any moment it still covers.

    Parameters
    ----------
    config
        What to keep.
    users, items
        Rows of external ids; graphs that lag behind or stand still share those of the live one,
        so that a row means the same in all of them.

    Notes
    -----
    A step is ``view``, any number of reads, ``append``. A view is valid until the append.
    """

    def __init__(
        self, config: GraphConfig, *, users: Ids | None = None, items: Ids | None = None
    ) -> None:
        self.config = config
        self.users = Ids() if users is None else users
        self.items = Ids() if items is None else items
        self.edges = EdgeStore(
            k_user=config.k_user, k_item=config.k_item, max_age_ms=config.max_age_ms
        )
        self.positives = DecayedCounts(config.half_lives_ms)
        self.shown = DecayedCounts(config.half_lives_ms)
        self.covisitation = Covisitation(
            m=config.pairs_per_item,
            half_life_ms=config.pair_half_life_ms,
            gap_ms=config.pair_gap_ms,
        )
        self.recent = RecentRing(config.recent)
        self.seen = SeenItems()
        self.n_users = 0
        self.n_items = 0
        self.steps = 0
        self.newest_ms = 0
        self._last = np.full(64, -1, np.int64)

    def view(self, batch: FeedbackBatch) -> View:
        """Look at a batch in order without taking it in; retractions are left out.

        Rows are given to ids seen for the first time; nothing else changes.
        """
        events = batch.take(np.flatnonzero(batch.kind != Kind.RETRACTION))
        return self.look(
            Edges(
                self.users.rows(events.user_id),
                self.items.rows(events.item_id),
                events.ts_ms,
                events.kind,
                events.key,
            ),
            events.weight,
        )

    def look(self, events: Edges, weight: NDArray[np.float32]) -> View:
        """Return the view of events whose rows are known already, in order."""
        n_rows = int(events.user.max(initial=-1)) + 1
        if n_rows > self._last.shape[0]:
            self._last = np.full(2 * n_rows, -1, np.int64)
        return View(
            users=events.user,
            items=events.item,
            ts_ms=events.ts_ms,
            kind=events.kind,
            key=events.key,
            weight=weight,
            history=self.edges.histories(events, k=self.config.k_user),
            previous=_previous_of_user(events.user, self._last),
            n_users=self.n_users,
            n_items=self.n_items,
            at_ms=int(events.ts_ms[0]) if events.ts_ms.size else self.newest_ms,
            step=self.steps,
            graph=self,
        )

    def reading(
        self,
        users: NDArray[np.int64],
        ts_ms: NDArray[np.int64],
        *,
        at_ms: int | None = None,
        n_items: int | None = None,
    ) -> View:
        """Return a view of no events: what users had before given times, for scores and vectors.

        Parameters
        ----------
        users, ts_ms
            Whose history, strictly before when, shape (B,).
        at_ms
            When item-side reads are as of; default the newest event.
        n_items
            How many items to score; default all that are known here.

        """
        n = users.shape[0]
        return View(
            users=users,
            items=np.full(n, -1, np.int64),
            ts_ms=ts_ms,
            kind=np.full(n, Kind.NONE, np.int8),
            key=np.zeros(n, np.uint64),
            weight=np.zeros(n, np.float32),
            history=self.edges.users_latest(users, k=self.config.k_user, before_ms=ts_ms),
            previous=np.full(n, -1, np.int64),
            n_users=self.n_users,
            n_items=self.n_items if n_items is None else n_items,
            at_ms=self.newest_ms if at_ms is None else at_ms,
            step=self.steps,
            graph=self,
        )

    def append(self, view: View) -> None:
        """Take a view's events in: edges, counts, pairs, what was seen, what is known."""
        if len(view) == 0:
            return
        typed = np.flatnonzero(view.typed)
        positive = np.flatnonzero(view.positive)
        self.edges.append(
            Edges(
                view.users[typed],
                view.items[typed],
                view.ts_ms[typed],
                view.kind[typed],
                view.key[typed],
            )
        )
        liked = view.history.kind[positive] <= Kind.IMPLICIT_POSITIVE
        visited = np.where(liked, view.history.nodes[positive], -1)
        self.covisitation.add(
            view.items[positive], view.ts_ms[positive], visited, view.history.ts_ms[positive]
        )
        ones = np.ones(typed.shape[0])
        self.shown.add(view.items[typed], view.ts_ms[typed], ones)
        self.positives.add(view.items[positive], view.ts_ms[positive], ones[: positive.shape[0]])
        self.recent.push(view.items[positive])
        self.seen.add(view.users, view.items)
        self.n_users = max(self.n_users, int(view.users.max()) + 1)
        self.n_items = max(self.n_items, int(view.items.max()) + 1)
        self.newest_ms = max(self.newest_ms, int(view.ts_ms.max()))
        self.steps += 1

    def retract(self, batch: FeedbackBatch) -> None:
        """Hide the edges that a batch's retractions name, also those that are yet to come."""
        rows = np.flatnonzero(batch.kind == Kind.RETRACTION)
        if rows.size == 0:
            return
        named = batch.take(rows)
        users, items = self.users.rows(named.user_id), self.items.rows(named.item_id)
        self.edges.retract(users, items, named.target_ts_ms, named.retracts)
        # An id that only a retraction has named so far has a row, so it is known from now on.
        self.n_users = max(self.n_users, int(users.max()) + 1)
        self.n_items = max(self.n_items, int(items.max()) + 1)

    def fork(self) -> TemporalGraph:
        """Return a graph that shares the ids and goes on from here on its own."""
        other = TemporalGraph(self.config, users=self.users, items=self.items)
        other.restore_content(self.content())
        return other

    def state_hash(self) -> str:
        """Return the digest of the kept edges, by external ids: no order of arrival shows."""
        return self.edges.state_hash(self.users, self.items)

    def content(self) -> State:
        """Return all but the ids."""
        return {
            "edges": self.edges.state(),
            "positives": self.positives.state(),
            "shown": self.shown.state(),
            "covisitation": self.covisitation.state(),
            "recent": self.recent.state(),
            "seen": self.seen.state(),
            "n_users": self.n_users,
            "n_items": self.n_items,
            "steps": self.steps,
            "newest_ms": self.newest_ms,
        }

    def restore_content(self, state: State) -> None:
        """Become what :meth:`content` described; the ids stay."""
        self.edges.restore(state["edges"])
        self.positives.restore(state["positives"])
        self.shown.restore(state["shown"])
        self.covisitation.restore(state["covisitation"])
        self.recent.restore(state["recent"])
        self.seen.restore(state["seen"])
        self.n_users = state["n_users"]
        self.n_items = state["n_items"]
        self.steps = state["steps"]
        self.newest_ms = state["newest_ms"]

    def state(self) -> State:
        """Return all that a restart needs."""
        return {
            "users": self.users.state(),
            "items": self.items.state(),
            "content": self.content(),
        }

    def restore(self, state: State) -> None:
        """Become what :meth:`state` described."""
        self.users.restore(state["users"])
        self.items.restore(state["items"])
        self.restore_content(state["content"])

    def n_bytes(self) -> dict[str, int]:
        """Return the bytes that each part holds."""
        parts: Sequence[tuple[str, Any]] = (
            ("edges", self.edges),
            ("positives", self.positives),
            ("shown", self.shown),
            ("covisitation", self.covisitation),
            ("seen", self.seen),
        )
        return {name: int(part.n_bytes) for name, part in parts}
