"""Keeps the last K signed edges of each user and item, and answers as of any moment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from graph_store import kernels
from graph_store.ids import Ids
from graph_store.kernels import EDGE, LONG_AGO, PADDING, STORED, WAITING, digest
from graph_store.rings import Rings, pool_size
from stream.errors import BadSettings, BadSnapshot, TidegraphError

__all__ = ["PADDING", "EdgeStore", "Edges", "Evicted", "Neighbours"]

EVICTED_TO: Final = 0.9
"""Eviction goes down to this share of a limit, so that the sweep it costs is rare."""


class Edges(NamedTuple):
    """``E`` events between users and items, by row."""

    user: NDArray[np.int64]  # (E,)
    item: NDArray[np.int64]  # (E,)
    ts_ms: NDArray[np.int64]  # (E,)
    kind: NDArray[np.int8]  # (E,), 0..3; what lies outside makes no edge
    key: NDArray[np.uint64]  # (E,), orders events of the same time


class Neighbours(NamedTuple):
    """The ``k`` latest neighbours of ``B`` nodes, newest first, padded with ``PADDING``."""

    nodes: NDArray[np.int64]  # (B, k)
    ts_ms: NDArray[np.int64]  # (B, k), 0 where padded
    kind: NDArray[np.int8]  # (B, k), -1 where padded


class Evicted(NamedTuple):
    """Rows that lost all their edges to a budget; they may be given to other ids."""

    users: NDArray[np.int64]
    items: NDArray[np.int64]


class EdgeStore:
    """The last signed edges of every user and item: a function of the set of events.

    A node keeps its ``K`` newest edges by ``(ts_ms, key)``, each inserted in its place: any
    order of arrival and any repetition of the same events give the same graph. A retracted edge
    keeps its slot, marked, and is never shown; a retraction whose event has not come yet waits
    for it. Edges older than ``max_age_ms`` before the greatest event time are hidden, and
    dropped when blocks are next moved. Only :meth:`evict` and :meth:`drop` let the order
    of arrival show.

    Parameters
    ----------
    k_user, k_item
        Edges kept per user and per item.
    max_age_ms
        Edges older than this, measured from the greatest event time, are not shown; None for
        no limit.
    retraction_wait_ms
        How far the greatest event time may pass a retracted event's time before the
        retraction stops waiting for it: the allowed lateness, or more.

    Raises
    ------
    BadSettings
        If a number of edges is not between 1 and 32,767, or a duration is negative.

    Notes
    -----
    ``append`` costs O(1) for an edge newer than what its nodes have, else O(K) at most;
    reads cost O(K) per row. A half-edge takes 21 bytes, with slack at most 32 on average; a node
    12, with slack 15. One writer; any number of readers between two writes.

    Examples
    --------
    >>> store = EdgeStore(k_user=2)
    >>> one = np.ones(1, np.int64)
    >>> for item, ts_ms in ((5, 30), (6, 10), (7, 20)):
    ...     edge = Edges(0 * one, item * one, ts_ms * one, one.astype(np.int8), one.view("u8"))
    ...     _ = store.append(edge)
    >>> store.users_latest(np.array([0]), k=3, before_ms=30).nodes.tolist()
    [[7, -1, -1]]

    """

    def __init__(
        self,
        *,
        k_user: int = 20,
        k_item: int = 10,
        max_age_ms: int | None = None,
        retraction_wait_ms: int = 86_400_000,
    ) -> None:
        for name, k in (("k_user", k_user), ("k_item", k_item)):
            if not 1 <= k <= np.iinfo(np.int16).max:
                raise BadSettings(f"{name}: want 1 to 32767 edges per node, got {k}")
        for name, duration in (
            ("max_age_ms", max_age_ms),
            ("retraction_wait_ms", retraction_wait_ms),
        ):
            if duration is not None and duration < 0:
                raise BadSettings(f"{name}: want 0 ms or more, got {duration}")
        self.max_age_ms = max_age_ms
        self.retraction_wait_ms = retraction_wait_ms
        self.users = Rings(k_user)
        self.items = Rings(k_item)
        self.n_evicted_nodes = 0
        self.n_evicted_half_edges = 0
        self._waiting = np.zeros(0, WAITING)
        self._clock = np.array([LONG_AGO, 0, 0], np.int64)

    @property
    def newest_ms(self) -> int | None:
        """The greatest event time so far; None before the first event."""
        newest = int(self._clock[0])
        return None if newest == LONG_AGO else newest

    @property
    def oldest_ms(self) -> int:
        """Edges before this time are hidden by the age limit."""
        newest = int(self._clock[0])
        if self.max_age_ms is None or newest == LONG_AGO:
            return LONG_AGO
        return newest - self.max_age_ms

    @property
    def n_half_edges(self) -> int:
        """Half-edges stored: an edge that both of its nodes keep counts twice."""
        return int(self.users.count[STORED] + self.items.count[STORED])

    @property
    def n_waiting(self) -> int:
        """Retractions that wait for their event."""
        return self._waiting.size

    @property
    def n_bytes(self) -> int:
        """Memory of the store, slack included."""
        return self.users.n_bytes + self.items.n_bytes + self._waiting.nbytes

    def append(self, edges: Edges) -> int:
        """Add edges, in any order; return how many of them are kept and were not here yet.

        Raises
        ------
        TidegraphError
            If columns differ in length or a row is negative; nothing is changed then.

        """
        columns = _columns(edges)
        user, item = columns[:2]
        if user.size and (user.min() < 0 or item.min() < 0):
            raise TidegraphError("append: want rows from 0 on, got a negative one")
        self._clock[1] = 0
        users, items, done = self.users, self.items, 0
        while True:
            done = kernels.append(
                done,
                users.nodes,
                users.pool,
                users.count,
                users.k,
                items.nodes,
                items.pool,
                items.count,
                items.k,
                *columns,
                self._waiting,
                self._clock,
            )
            if done == user.size:
                return int(self._clock[1])
            users.make_room(int(user[done]), self.oldest_ms)
            items.make_room(int(item[done]), self.oldest_ms)

    def retract(
        self,
        user: NDArray[np.int64],
        item: NDArray[np.int64],
        ts_ms: NDArray[np.int64],
        key: NDArray[np.uint64],
    ) -> None:
        """Take events back: hide their edges for good, or wait for those that have not come.

        Parameters
        ----------
        user, item, ts_ms, key
            Of the retracted events, (R,).

        Raises
        ------
        TidegraphError
            If columns differ in length or a row is negative; nothing is changed then.

        """
        edges = Edges(user, item, ts_ms, np.zeros(len(user), np.int8), key)
        user, item, ts_ms, _, key = _columns(edges)
        if user.size and (user.min() < 0 or item.min() < 0):
            raise TidegraphError("retract: want rows from 0 on, got a negative one")
        waits = kernels.retract_all(
            self.users.nodes,
            self.users.pool,
            self.users.k,
            self.items.nodes,
            self.items.pool,
            self.items.k,
            user,
            item,
            ts_ms,
            key,
        )
        new = np.zeros(int(waits.sum()), WAITING)
        for name, column in (("key", key), ("ts_ms", ts_ms), ("user", user), ("item", item)):
            new[name] = column[waits]
        waiting = np.unique(np.concatenate([self._waiting, new]))
        newest = self.newest_ms
        if newest is not None:
            waiting = waiting[waiting["ts_ms"] >= newest - self.retraction_wait_ms]
        self._waiting = waiting

    def users_latest(
        self, users: NDArray[np.int64], *, k: int, before_ms: int | NDArray[np.int64]
    ) -> Neighbours:
        """Return the items that users met strictly before a time, newest first.

        Parameters
        ----------
        users
            Rows, (B,); one that has no edges, -1 included, has no neighbours.
        k
            Neighbours per row.
        before_ms
            One time, or one for each row.

        """
        return self._latest(self.users, users, k, before_ms)

    def items_latest(
        self, items: NDArray[np.int64], *, k: int, before_ms: int | NDArray[np.int64]
    ) -> Neighbours:
        """Return the users that items met strictly before a time; as :meth:`users_latest`."""
        return self._latest(self.items, items, k, before_ms)

    def histories(self, edges: Edges, *, k: int) -> Neighbours:
        """Return what each event's user had strictly before it, earlier events of the batch too.

        The same as appending the events one by one and reading each user just before its
        event, but nothing is appended. Events whose kind makes no edge get a history and are
        in nobody's.

        Parameters
        ----------
        edges
            One batch, sorted by ``(ts_ms, key)``.
        k
            Neighbours per event.

        Raises
        ------
        TidegraphError
            If the batch is not sorted, or columns differ in length.

        """
        columns = _columns(edges)
        n_events = columns[0].size
        found = _empty(n_events, k)
        sorted_to = kernels.histories(
            self.users.nodes,
            self.users.pool,
            self.users.k,
            *columns,
            self._waiting,
            int(self._clock[0]),
            -1 if self.max_age_ms is None else self.max_age_ms,
            *found,
        )
        if sorted_to != n_events:
            raise TidegraphError(
                f"histories: want events sorted by (ts_ms, key), but event {sorted_to} comes"
                " before the one it follows; sort the batch first"
            )
        return found

    def drop(
        self,
        *,
        users: NDArray[np.int64] | Sequence[int] = (),
        items: NDArray[np.int64] | Sequence[int] = (),
    ) -> None:
        """Remove nodes with every edge from and to them, so that their rows can be reused.

        Looks at every edge of the store once.
        """
        gone_users = _mask(np.asarray(users, np.int64), self.users.nodes.size)
        gone_items = _mask(np.asarray(items, np.int64), self.items.nodes.size)
        self.users.remove(gone_users, gone_items)
        self.items.remove(gone_items, gone_users)
        stale = np.isin(self._waiting["user"], users) | np.isin(self._waiting["item"], items)
        self._waiting = self._waiting[~stale]

    def forget(
        self, user: int, items: NDArray[np.int64]
    ) -> tuple[NDArray[np.void], NDArray[np.void]]:
        """Remove a user with every edge from and to them, and what waits to retract one.

        Looks at the edges of ``items`` only, where :meth:`drop` looks at all of them.

        Parameters
        ----------
        user
            A row.
        items
            Rows of every item that the user may have an edge with.

        Returns
        -------
        What the user kept, and what the items kept of the user, as ``EDGE`` records whose
        ``other`` is the item; each in no more than one place per side, many in both.

        """
        own, theirs = self.users.empty(user), self.items.take_out(items, user)
        self._waiting = self._waiting[self._waiting["user"] != user]
        return own, theirs

    def evict(self, *, max_nodes: int | None = None, max_bytes: int | None = None) -> Evicted:
        """Drop the least recently active nodes if the store is over a limit.

        Goes down to nine tenths of the limit. What goes is counted in ``n_evicted_nodes`` and
        ``n_evicted_half_edges``, and from then on the graph may depend on the order of arrival.

        Parameters
        ----------
        max_nodes
            Users and items that have edges.
        max_bytes
            Limit of :attr:`n_bytes`. The table of rows (12 bytes each) cannot be given back, so
            a limit below that leaves no edges at all.

        Returns
        -------
        Evicted
            The rows dropped; their ids may expire.

        """
        last = np.concatenate([self.users.last_active(), self.items.last_active()])
        live = np.flatnonzero(last != LONG_AGO)
        keep = live.size
        if max_nodes is not None and live.size > max_nodes:
            keep = int(EVICTED_TO * max_nodes)
        # Where times are coarse, many nodes are as recent: row by row, of both sides alike.
        row = np.concatenate([np.arange(self.users.nodes.size), np.arange(self.items.nodes.size)])
        order = live[np.lexsort((row[live], -last[live]))]
        if max_bytes is not None and self.n_bytes > max_bytes:
            capacity = np.concatenate([self.users.nodes["capacity"], self.items.nodes["capacity"]])
            slots = np.cumsum(capacity[order], dtype=np.int64)
            fixed = self.n_bytes - self.users.pool.nbytes - self.items.pool.nbytes
            least = pool_size(0, self.users.k) + pool_size(0, self.items.k)
            room = EVICTED_TO * max_bytes - fixed - EDGE.itemsize * least
            keep = min(keep, int(np.searchsorted(slots * 1.25 * EDGE.itemsize, room, "right")))
        gone = order[keep:]
        n_users = self.users.nodes.size
        evicted = Evicted(np.sort(gone[gone < n_users]), np.sort(gone[gone >= n_users]) - n_users)
        if gone.size:
            before = self.n_half_edges
            self.drop(users=evicted.users, items=evicted.items)
            self.n_evicted_nodes += gone.size
            self.n_evicted_half_edges += before - self.n_half_edges
        if gone.size or (max_bytes is not None and self.n_bytes > max_bytes):
            self.users.shrink(self.oldest_ms)
            self.items.shrink(self.oldest_ms)
        return evicted

    def state_hash(self, users: Ids, items: Ids) -> str:
        """Return 32 hex digits over the edges kept, by external id: no order of arrival shows.

        Covers user, item, time, kind, key and whether it was retracted, of each half-edge that
        the age limit leaves. Rows do not enter, nor do retractions that still wait.
        """
        by_user, by_item = users.digests(), items.digests()
        oldest = self.oldest_ms
        user_rings, item_rings = self.users, self.items
        at_users = digest(user_rings.nodes, user_rings.pool, oldest, by_user, by_item, np.uint64(1))
        at_items = digest(item_rings.nodes, item_rings.pool, oldest, by_item, by_user, np.uint64(2))
        low, high = (
            (int(one) + int(other)) % 2**64 for one, other in zip(at_users, at_items, strict=True)
        )
        return f"{high:016x}{low:016x}"

    def state(self) -> dict[str, Any]:
        """Return a copy of everything the store knows."""
        return {
            "k_user": self.users.k,
            "k_item": self.items.k,
            "newest_ms": self.newest_ms,
            "n_evicted_nodes": self.n_evicted_nodes,
            "n_evicted_half_edges": self.n_evicted_half_edges,
            "users": self.users.state(self.oldest_ms),
            "items": self.items.state(self.oldest_ms),
            "waiting": self._waiting.copy(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Become the store that ``state`` was taken from.

        Raises
        ------
        BadSnapshot
            If the state is of a store with other numbers of edges per node, or does not add up.

        """
        want, got = (self.users.k, self.items.k), (state["k_user"], state["k_item"])
        if want != got:
            raise BadSnapshot(
                f"edges per user and item: want {want} as set, the snapshot has {got};"
                " resume with the settings it was made with"
            )
        self.users.restore(state["users"])
        self.items.restore(state["items"])
        self.n_evicted_nodes = state["n_evicted_nodes"]
        self.n_evicted_half_edges = state["n_evicted_half_edges"]
        self._waiting = state["waiting"].astype(WAITING)
        self._clock[0] = LONG_AGO if state["newest_ms"] is None else state["newest_ms"]

    def _latest(
        self, rings: Rings, rows: NDArray[np.int64], k: int, before_ms: int | NDArray[np.int64]
    ) -> Neighbours:
        rows = np.ascontiguousarray(rows, np.int64)
        before = np.empty(rows.shape, np.int64)
        before[...] = before_ms
        found = _empty(rows.size, k)
        kernels.latest(rings.nodes, rings.pool, rows, before, self.oldest_ms, *found)
        return found


def _columns(
    edges: Edges,
) -> tuple[
    NDArray[np.int64],
    NDArray[np.int64],
    NDArray[np.int64],
    NDArray[np.int8],
    NDArray[np.uint64],
]:
    """Return the columns as the kernels want them, which do not look at lengths or types."""
    user, item, ts_ms, kind, key = edges
    columns = (
        np.ascontiguousarray(user, np.int64),
        np.ascontiguousarray(item, np.int64),
        np.ascontiguousarray(ts_ms, np.int64),
        np.ascontiguousarray(kind, np.int8),
        np.ascontiguousarray(key, np.uint64),
    )
    shapes = {column.shape for column in columns}
    if len(shapes) != 1 or columns[0].ndim != 1:
        raise TidegraphError(
            "edges: want five columns of one length,"
            f" got {', '.join(str(column.shape) for column in columns)}"
        )
    return columns


def _empty(n_rows: int, k: int) -> Neighbours:
    return Neighbours(
        np.empty((n_rows, k), np.int64),
        np.empty((n_rows, k), np.int64),
        np.empty((n_rows, k), np.int8),
    )


def _mask(rows: NDArray[np.int64], size: int) -> NDArray[np.bool_]:
    """Return a mask over ``size`` rows or more, True at ``rows``."""
    mask = np.zeros(max(size, int(rows.max(initial=-1)) + 1), np.bool_)
    mask[rows[rows >= 0]] = True
    return mask
