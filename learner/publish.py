"""Brings touched rows to the published table, coalesced, with the step that they stand for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from graph_store.erasure import Forgotten
from graph_store.graph import TemporalGraph, View
from graph_store.memory import with_room
from graph_store.store import Neighbours
from learner.attributes import Said
from learner.base import Model
from serving.catalogue import PAIRS
from serving.rows import Barrier, Count, Covisited, ItemRows, Layout, Recent, UserRows
from serving.table import Table, Update
from stream.errors import TableLost
from stream.events import Kind

Rows = NDArray[np.int64]

MAX_ROWS: Final = 50_000
"""Users, items and lists of one update in view, at most, each: some tens of megabytes."""

_PARTS: Final = 5
"""Out of view an update is this many times smaller, so that learning goes on in between."""

MAX_PAIRS: Final = 500_000
"""Pairs of user and item that wait one by one; beyond, whole users wait."""

_AT_ONCE: Final = 4_096
"""Users whose vectors are computed together."""


class Waiting(NamedTuple):
    """What one update takes of what waits."""

    users: Rows
    items: Rows
    paired: Rows  # items whose lists changed
    seen: Rows  # users whose whole seen set is wanted


class Publisher:
    """Collects the rows that steps touch and writes them, each once, when asked.

    What waits is a mark per row, so that it is bounded by the graph however long a table is away.
    In the epoch in view all that waits goes out in one update, or, where that would be too large,
    in a new epoch: a reader never sees half of it.

    Parameters
    ----------
    table
        Where to; not asked for anything before the first write.
    graph, model
        What is published: read, never changed.
    now_ms
        The wall clock.
    dim
        Of the vectors.
    max_rows
        As :data:`MAX_ROWS`.
    max_pairs
        As :data:`MAX_PAIRS`.

    """

    def __init__(
        self,
        table: Table,
        graph: TemporalGraph,
        model: Model,
        *,
        now_ms: Callable[[], int],
        dim: int,
        max_rows: int = MAX_ROWS,
        max_pairs: int = MAX_PAIRS,
    ) -> None:
        self._table = table
        self._graph = graph
        self._model = model
        self._now_ms = now_ms
        self._max_rows = max_rows
        self._users, self._items, self._paired, self._seen = (_Marks() for _ in range(4))
        self._emptied = _Marks()  # items that may have lost a whole list
        self._met = _Pairs(max_pairs)
        self._gone: set[str] = set()
        self._said = Said({}, {})
        counts = tuple(
            Count(f"{name}_{half_life_ms}", half_life_ms)
            for name in ("positives", "shown")
            for half_life_ms in graph.config.half_lives_ms
        )
        pairs = Count(PAIRS, graph.config.pair_half_life_ms)
        self._layout = Layout(dim=dim, counts=(*counts, pairs))
        self._begun = False
        self.in_view = False  # whether readers see the epoch that is written
        self.losses = 0  # how often the table was found empty

    def touched(self, view: View, users: Rows, items: Rows) -> None:
        """Remember rows that a step touched, and what its users met."""
        self._users.add(users)
        self._items.add(items)
        paired = _paired(view)
        self._items.add(paired)  # whose masses have changed
        self._paired.add(paired)
        if self._met.add(view.users, view.items):
            self._seen.add(self._met.distinct()[0])
            self._met.clear()

    def touched_all(self) -> None:
        """Remember every row: a new epoch begins empty, also where the graph is an old one."""
        named = self._graph.users.named()  # all but who was forgotten
        everybody, everything = named[named < self._graph.n_users], np.arange(self._graph.n_items)
        for marks, rows in (
            (self._users, everybody),
            (self._items, everything),
            (self._paired, everything),
            (self._seen, everybody),
        ):
            marks.add(rows)
        self._met.clear()

    def forget(self, user_id: str, forgotten: Forgotten | None) -> None:
        """Remember who is to be taken out of the table, and which items that has changed."""
        self._gone.add(user_id)
        self._said.users.pop(user_id, None)
        if forgotten is None:
            return
        row = np.array([forgotten.user])
        self._users.remove(row)
        self._seen.remove(row)
        self._met.forget(forgotten.user)
        for marks in (self._items, self._paired, self._emptied):
            marks.add(forgotten.items)

    def describe(self, said: Said) -> None:
        """Remember the last word on some items and users."""
        self._said.items.update(said.items)
        self._said.users.update(said.users)

    @property
    def describing(self) -> bool:
        """Whether something that was said waits to be written."""
        return any(self._said)

    @property
    def waiting(self) -> int:
        """Rows of users and items that wait to be written."""
        return len(self._users) + len(self._items)

    def publish(self) -> None:
        """Write all that waits; the first call brings the epoch into view."""
        while not self.publish_part():
            pass

    def publish_part(self) -> bool:
        """Write one update; return whether all that was touched is now in view.

        Raises
        ------
        TableError
            If the table cannot be written to; what waited still waits.

        """
        if self.in_view and max(map(len, self._marks)) > self._max_rows:
            self._begun = self.in_view = False
        if not self._begun:
            self._table.begin(self._layout)
            self._begun = True
            self.touched_all()
        limit = self._max_rows if self.in_view else -(-self._max_rows // _PARTS)
        part = Waiting(*(marks.first(limit) for marks in self._marks))
        pairs = self._met.distinct()
        try:
            self._table.publish(self._update(part, *pairs))
            for marks, rows in zip(self._marks, part, strict=True):
                marks.remove(rows)
            self._emptied.remove(part.paired)
            self._met.clear()
            self._gone, self._said = set(), Said({}, {})
            if any(map(len, self._marks)):
                return False
            if not self.in_view:
                self._table.flip()
                self.in_view = True
        except TableLost:
            self._begun = self.in_view = False
            self.losses += 1
            return False
        return True

    @property
    def _marks(self) -> tuple[_Marks, ...]:
        """What waits, in the order of :class:`Waiting`."""
        return self._users, self._items, self._paired, self._seen

    def _update(self, part: Waiting, users: Rows, items: Rows) -> Update:
        graph = self._graph
        return Update(
            barrier=Barrier(step=graph.steps, at_ms=graph.newest_ms, published_ms=self._now_ms()),
            users=self._user_rows(part.users),
            items=self._item_rows(part.items),
            covisited=self._covisited(part.paired),
            seen=self._seen_sets(part.seen, users, items),
            weights=self._model.published_weights(),
            item_attributes=self._said.items,
            user_attributes=self._said.users,
            gone_users=sorted(self._gone),
        )

    def _user_rows(self, users: Rows) -> UserRows:
        """Return each user's vector as of just after their last event, and their history."""
        graph = self._graph
        past = graph.edges.users_latest(users, k=graph.config.k_user, before_ms=graph.newest_ms + 1)
        ts_ms = np.where(past.nodes[:, 0] >= 0, past.ts_ms[:, 0], graph.newest_ms)
        vectors = np.empty((users.shape[0], self._layout.dim), np.float32)
        for first in range(0, users.shape[0], _AT_ONCE):
            some = slice(first, first + _AT_ONCE)
            view = graph.reading(users[some], ts_ms[some] + 1)
            vectors[some] = self._model.user_vectors(view, np.arange(len(view))).vectors
        return UserRows(graph.users.ids_of(users), vectors, ts_ms, self._recent(past))

    def _recent(self, past: Neighbours) -> list[list[Recent]]:
        """Return the latest events of each user, of all four kinds, newest first."""
        there = past.nodes >= 0
        item_ids = _ids(self._graph.items.ids_of, past.nodes[there])
        events = list(
            zip(item_ids, past.kind[there].tolist(), past.ts_ms[there].tolist(), strict=True)
        )
        ends = np.cumsum(there.sum(1)).tolist()
        return [events[first:end] for first, end in zip([0, *ends], ends, strict=False)]

    def _item_rows(self, items: Rows) -> ItemRows:
        """Return each item's vector and counts, the newest event included."""
        graph = self._graph
        now = graph.reading(items[:0], items[:0], at_ms=graph.newest_ms + 1)
        vectors = self._model.item_vectors(now, items)
        n_items = int(items.max(initial=-1)) + 1
        counts = [sums.at(graph.newest_ms, n_items) for sums in (graph.positives, graph.shown)]
        masses = graph.covisitation.masses(graph.newest_ms, n_items)
        return ItemRows(
            graph.items.ids_of(items),
            vectors.vectors,
            vectors.bias,
            np.column_stack([*counts, masses])[items],
            np.full(items.shape, graph.newest_ms, np.int64),
        )

    def _covisited(self, items: Rows) -> dict[str, Covisited]:
        graph = self._graph
        pointers, others, weights = graph.covisitation.lists(items, at_ms=graph.newest_ms)
        filled = np.flatnonzero((np.diff(pointers) > 0) | self._emptied.of(items))
        other_ids = _ids(graph.items.ids_of, others)
        return {
            item_id: Covisited(other_ids[first:end], weights[first:end], graph.newest_ms)
            for item_id, first, end in zip(
                graph.items.ids_of(items[filled]),
                pointers[filled].tolist(),
                pointers[filled + 1].tolist(),
                strict=True,
            )
        }

    def _seen_sets(self, whole: Rows, users: Rows, items: Rows) -> dict[str, list[str]]:
        """Return the whole sets of some users, and what others have newly met, sorted by user."""
        graph = self._graph
        nothing = np.full(whole.shape[0], -1, np.int64)
        ends, found = graph.seen.before_each(whole, nothing, nothing)
        item_ids = _ids(graph.items.ids_of, np.concatenate([found, items]))
        firsts = np.flatnonzero(np.diff(users, prepend=-1))
        starts = np.concatenate([ends[:-1], found.shape[0] + firsts])
        stops = np.append(starts, len(item_ids))[1:]
        sets: dict[str, list[str]] = {}
        for user_id, first, end in zip(
            graph.users.ids_of(np.concatenate([whole, users[firsts]])),
            starts.tolist(),
            stops.tolist(),
            strict=True,
        ):
            sets.setdefault(user_id, []).extend(item_ids[first:end])
        return sets


class _Marks:
    """A set of rows as one mark per row."""

    def __init__(self) -> None:
        self._marked = np.zeros(64, np.bool_)

    def __len__(self) -> int:
        return int(np.count_nonzero(self._marked))

    def add(self, rows: Rows) -> None:
        self._marked = with_room(self._marked, int(rows.max(initial=-1)) + 1)
        self._marked[rows] = True

    def remove(self, rows: Rows) -> None:
        self._marked[rows[rows < self._marked.shape[0]]] = False

    def of(self, rows: Rows) -> NDArray[np.bool_]:
        known = rows < self._marked.shape[0]
        return known & self._marked[np.where(known, rows, 0)]

    def first(self, limit: int) -> Rows:
        return np.flatnonzero(self._marked)[:limit]


class _Pairs:
    """Pairs of user and item, up to a limit."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._parts: list[tuple[Rows, Rows]] = []
        self._length = 0

    def add(self, users: Rows, items: Rows) -> bool:
        """Add pairs; return whether there are too many now, repeats left out."""
        self._parts.append((users, items))
        self._length += users.shape[0]
        if self._length <= self._limit:
            return False
        self._parts = [self.distinct()]
        self._length = self._parts[0][0].shape[0]
        return self._length > self._limit // 2  # else the next look would come too soon

    def distinct(self) -> tuple[Rows, Rows]:
        """Return each pair once, sorted by user."""
        nothing = np.empty(0, np.int64)
        users = np.concatenate([nothing, *(users for users, _ in self._parts)])
        items = np.concatenate([nothing, *(items for _, items in self._parts)])
        codes = np.unique(users << 32 | items)
        return codes >> 32, codes & 0xFFFFFFFF

    def forget(self, user: int) -> None:
        """Leave out the pairs of one user."""
        users, items = self.distinct()
        others = users != user
        self._parts = [(users[others], items[others])]
        self._length = int(np.count_nonzero(others))

    def clear(self) -> None:
        """Forget all of them."""
        self._parts, self._length = [], 0


def _paired(view: View) -> Rows:
    """Return the items that a view's positive events pair with each other."""
    history = view.history
    liked = view.positive[:, None] & (history.nodes >= 0) & (history.kind <= Kind.IMPLICIT_POSITIVE)
    return np.concatenate([view.items[view.positive], history.nodes[liked]])


def _ids(names: Callable[[Rows], list[str]], rows: Rows) -> list[str]:
    """Return the id of each row; a row that comes many times is looked up once."""
    distinct, places = np.unique(rows, return_inverse=True)
    ids: list[str] = np.array(names(distinct), object)[places].tolist()
    return ids
