"""One direction of the graph: each row's newest edges, in blocks of one pool.

A row's edges stand in a block of their own, oldest first by ``(ts_ms, key)``. A block that is
full moves to a larger one: one that another row left behind, or a new one at the pool's end.
When the pool is full and more than a ninth of it is left behind, or edges may have become too
old to be seen, the blocks are moved together; then it grows by a quarter. So the slack is
bounded whatever the degrees are, and a move is paid for by the appends since the one before.

The kernels never allocate. They stop where room runs out, and the caller grows and goes on.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from graph_store.ids import mix
from graph_store.memory import grown
from stream.errors import BadSnapshot

Records = NDArray[np.void]
Counters = NDArray[np.int64]

PADDING: Final = -1
"""Stands where there is no neighbour."""

N_KINDS: Final = 4
"""Kinds below this number are feedback and become edges; see ``stream.events.Kind``."""

AHEAD: Final = 32
"""Rows touched before they are worked on; see :func:`touch`."""

RETRACTED: Final = 8
"""The bit of an edge's kind that says it was taken back: it keeps its slot and is never shown."""

LONG_AGO: Final = np.iinfo(np.int64).min
"""Before every edge."""

NODE: Final = np.dtype([("start", "<i8"), ("size", "<i2"), ("capacity", "<i2")])
"""A row's block in the pool: 12 bytes."""

EDGE: Final = np.dtype([("ts_ms", "<i8"), ("key", "<u8"), ("other", "<i4"), ("kind", "i1")])
"""A half-edge: 21 bytes, packed, because memory is what limits the size of the graph."""

USED, RESERVED, STORED, LEFT = range(4)
"""Places in the counters: slots behind which the pool is empty, slots that belong to a block,
slots that hold an edge; and from ``LEFT`` on, by capacity, the block left behind last, plus
one. Its first slot's time says which was left before it."""


@njit(cache=True)
def block_size(size: int, k: int) -> int:
    """Return how many slots a block for ``size`` edges gets, at most ``k``."""
    capacity = 1
    while capacity < size:
        capacity += max(1, capacity // 4)
    return min(capacity, k)


@njit(cache=True)
def precedes(ts_ms: int, key: np.uint64, other_ts_ms: int, other_key: np.uint64) -> bool:
    """Tell whether an event comes strictly before another in the order of events."""
    return bool(ts_ms < other_ts_ms or (ts_ms == other_ts_ms and key < other_key))


@njit(cache=True)
def insert(
    nodes: Records,
    pool: Records,
    count: Counters,
    k: int,
    row: int,
    other: int,
    ts_ms: int,
    key: np.uint64,
    kind: int,
) -> bool:
    """Put an edge in its place; False if it is there already or older than the ``k`` kept.

    There must be room for ``k`` more slots at the pool's end.
    """
    node = nodes[row]
    start, size = node.start, int(node.size)
    place = size
    while place > 0:
        edge = pool[start + place - 1]
        if precedes(edge.ts_ms, edge.key, ts_ms, key):
            break
        if edge.ts_ms == ts_ms and edge.key == key:
            return False
        place -= 1
    if size == k:
        if place == 0:
            return False
        place -= 1
        for at in range(start, start + place):
            pool[at] = pool[at + 1]
    else:
        if size == node.capacity:
            capacity = block_size(size + 1, k)
            bigger = count[LEFT + capacity] - 1
            if bigger >= 0:
                count[LEFT + capacity] = pool[bigger].ts_ms
            else:
                bigger = count[USED]
                count[USED] += capacity
            for at in range(size):
                pool[bigger + at] = pool[start + at]
            if size:
                pool[start].ts_ms = count[LEFT + size]
                count[LEFT + size] = start + 1
            count[RESERVED] += capacity - size
            nodes[row].start = bigger
            nodes[row].capacity = capacity
            start = bigger
        for at in range(start + size, start + place, -1):
            pool[at] = pool[at - 1]
        nodes[row].size = size + 1
        count[STORED] += 1
    edge = pool[start + place]
    edge.ts_ms = ts_ms
    edge.key = key
    edge.other = other
    edge.kind = kind
    return True


@njit(cache=True)
def touch(nodes: Records, pool: Records, row: int) -> np.uint64:
    """Read what :func:`insert` or :func:`latest` will read first, and return anything of it.

    In a graph of gigabytes each row is a cache miss or two. Touching a few dozen rows before
    they are worked on lets the processor wait for all of them at once.
    """
    if 0 <= row < nodes.shape[0] and nodes[row].size:
        return np.uint64(pool[nodes[row].start + nodes[row].size - 1].key)
    return np.uint64(0)


@njit(cache=True)
def retract(
    nodes: Records, pool: Records, k: int, row: int, other: int, ts_ms: int, key: np.uint64
) -> bool:
    """Mark an edge as taken back; False if it is not there yet but could still come in."""
    if row >= nodes.shape[0]:
        return False
    start, size = nodes[row].start, int(nodes[row].size)
    for at in range(start, start + size):
        if pool[at].ts_ms == ts_ms and pool[at].key == key:
            if pool[at].other == other:
                pool[at].kind |= RETRACTED
            return True
    return size == k and precedes(ts_ms, key, pool[start].ts_ms, pool[start].key)


@njit(cache=True)
def latest(
    nodes: Records,
    pool: Records,
    rows: NDArray[np.int64],
    before_ms: NDArray[np.int64],
    oldest_ms: int,
    others: NDArray[np.int64],
    ts_ms: NDArray[np.int64],
    kind: NDArray[np.int8],
) -> np.uint64:
    """Fill ``(B, k)`` outputs with each row's visible edges before its time, newest first."""
    k = others.shape[1]
    touched = np.uint64(0)
    for n in range(rows.shape[0]):
        if n % AHEAD == 0:
            for ahead in range(n, min(n + AHEAD, rows.shape[0])):
                touched ^= touch(nodes, pool, rows[ahead])
        found = 0
        row = rows[n]
        if 0 <= row < nodes.shape[0]:
            start, before = nodes[row].start, before_ms[n]
            at = start + nodes[row].size - 1
            while at >= start and found < k:
                edge = pool[at]
                if edge.ts_ms < oldest_ms:
                    break
                if edge.ts_ms < before and edge.kind < N_KINDS:
                    others[n, found] = edge.other
                    ts_ms[n, found] = edge.ts_ms
                    kind[n, found] = edge.kind
                    found += 1
                at -= 1
        for pad in range(found, k):
            others[n, pad] = PADDING
            ts_ms[n, pad] = 0
            kind[n, pad] = PADDING
    return touched


@njit(cache=True)
def _compact(
    nodes: Records,
    pool: Records,
    count: Counters,
    oldest_ms: int,
    k: int,
    order: NDArray[np.int64],
) -> None:
    """Move every block down to the one before it, without edges that are too old to be seen.

    ``order`` are the rows by where their block lies, so that nothing is overwritten.
    """
    used, stored = 0, 0
    for row in order:
        start, size = nodes[row].start, int(nodes[row].size)
        if size == 0:
            continue
        old = 0
        while old < size and pool[start + old].ts_ms < oldest_ms:
            old += 1
        if old:
            size -= old
            nodes[row].size = size
            nodes[row].capacity = block_size(size, k) if size else 0
        if used != start + old:
            for at in range(size):
                pool[used + at] = pool[start + old + at]
        nodes[row].start = used
        used += nodes[row].capacity
        stored += size
    count[USED], count[RESERVED], count[STORED] = used, used, stored
    count[LEFT:] = 0


@njit(cache=True)
def _pack(nodes: Records, pool: Records, oldest_ms: int, packed: Records) -> NDArray[np.int16]:
    """Copy every visible-by-age edge to ``packed`` without slack; return each row's number."""
    sizes = np.zeros(nodes.shape[0], np.int16)
    used = 0
    for row in range(nodes.shape[0]):
        start = nodes[row].start
        for at in range(start, start + nodes[row].size):
            if pool[at].ts_ms >= oldest_ms:
                packed[used] = pool[at]
                used += 1
                sizes[row] += 1
    return sizes


@njit(cache=True)
def _unpack(
    nodes: Records,
    pool: Records,
    count: Counters,
    k: int,
    sizes: NDArray[np.int16],
    packed: Records,
) -> None:
    """Give every row a block with its usual slack, and fill it: the way back of ``_pack``."""
    used, taken = 0, 0
    for row in range(sizes.shape[0]):
        size = int(sizes[row])
        if size:
            nodes[row].start = used
            nodes[row].size = size
            nodes[row].capacity = block_size(size, k)
            for at in range(size):
                pool[used + at] = packed[taken + at]
            used += nodes[row].capacity
            taken += size
    count[USED], count[RESERVED], count[STORED] = used, used, taken
    count[LEFT:] = 0


@njit(cache=True)
def _remove(
    nodes: Records,
    pool: Records,
    count: Counters,
    gone: NDArray[np.bool_],
    gone_others: NDArray[np.bool_],
) -> None:
    """Empty the rows in ``gone``, and take every edge to one of ``gone_others`` out."""
    for row in range(nodes.shape[0]):
        start, size = nodes[row].start, int(nodes[row].size)
        if row < gone.shape[0] and gone[row]:
            kept = 0
            count[RESERVED] -= nodes[row].capacity
            nodes[row].capacity = 0
        else:
            kept = 0
            for at in range(start, start + size):
                other = pool[at].other
                if not (other < gone_others.shape[0] and gone_others[other]):
                    pool[start + kept] = pool[at]
                    kept += 1
        nodes[row].size = kept
        count[STORED] -= size - kept


@njit(cache=True)
def _last_active(nodes: Records, pool: Records) -> NDArray[np.int64]:
    """Return the time of each row's newest edge, ``LONG_AGO`` where it has none."""
    last = np.full(nodes.shape[0], LONG_AGO, np.int64)
    for row in range(nodes.shape[0]):
        if nodes[row].size:
            last[row] = pool[nodes[row].start + nodes[row].size - 1].ts_ms
    return last


@njit(cache=True)
def digest(
    nodes: Records,
    pool: Records,
    oldest_ms: int,
    own: NDArray[np.uint64],
    others: NDArray[np.uint64],
    salt: np.uint64,
) -> tuple[np.uint64, np.uint64]:
    """Return two sums over all edges of a hash of each: no order of rows or edges shows."""
    low, high = np.uint64(0), np.uint64(0)
    for row in range(nodes.shape[0]):
        start = nodes[row].start
        for at in range(start, start + nodes[row].size):
            edge = pool[at]
            if edge.ts_ms < oldest_ms or row >= len(own) or edge.other >= len(others):
                continue
            value = mix(salt + own[row])
            value = mix(value + others[edge.other])
            value = mix(value + np.uint64(edge.ts_ms))
            value = mix(value + np.uint64(edge.kind))
            value = mix(value + edge.key)
            low += value
            high += mix(value + np.uint64(1))
    return low, high


class Rings:
    """Each row's ``k`` newest edges.

    Parameters
    ----------
    k
        Edges kept per row.

    Attributes
    ----------
    nodes
        Where each row's block lies, as ``NODE`` records; rows beyond the last one have no edges.
    pool
        The blocks, as ``EDGE`` records.
    count
        See ``USED``, ``RESERVED``, ``STORED``, ``LEFT``.

    """

    def __init__(self, k: int) -> None:
        self.k = k
        self.nodes = np.zeros(0, NODE)
        self.pool = np.zeros(0, EDGE)
        self.count = np.zeros(LEFT + k + 1, np.int64)

    @property
    def n_bytes(self) -> int:
        """Memory of nodes and edges, slack included."""
        return self.nodes.nbytes + self.pool.nbytes + self.count.nbytes

    def make_room(self, row: int, oldest_ms: int) -> None:
        """Grow so that ``row`` exists and at least ``k`` slots are empty."""
        if row >= self.nodes.size:
            rows = max(row + 1, self.nodes.size + self.nodes.size // 4, 256)
            self.nodes = grown(self.nodes, rows)
        if self.count[USED] + self.k > self.pool.size:
            if 9 * self.count[RESERVED] < 8 * self.count[USED] or oldest_ms != LONG_AGO:
                self.compact(oldest_ms)
            size = pool_size(int(self.count[USED]), self.k)
            if size > self.pool.size:
                self.pool = grown(self.pool, size)

    def compact(self, oldest_ms: int) -> None:
        """Close the gaps between blocks, and drop the edges that are too old to be seen."""
        order = np.argsort(self.nodes["start"], kind="stable")
        _compact(self.nodes, self.pool, self.count, oldest_ms, self.k, order)

    def shrink(self, oldest_ms: int) -> None:
        """Compact, and give back the memory that the edges no longer need."""
        self.compact(oldest_ms)
        self.pool = grown(self.pool, pool_size(int(self.count[USED]), self.k))

    def last_active(self) -> NDArray[np.int64]:
        """Return the time of each row's newest edge, ``LONG_AGO`` where it has none."""
        return np.asarray(_last_active(self.nodes, self.pool))

    def remove(self, gone: NDArray[np.bool_], gone_others: NDArray[np.bool_]) -> None:
        """Empty the rows marked in ``gone``, and drop edges to rows marked in ``gone_others``."""
        _remove(self.nodes, self.pool, self.count, gone, gone_others)

    def state(self, oldest_ms: int) -> dict[str, Any]:
        """Return a copy of the edges, row by row and without slack."""
        packed = np.empty(int(self.count[STORED]), EDGE)
        sizes = _pack(self.nodes, self.pool, oldest_ms, packed)
        used = int(sizes.sum(dtype=np.int64))
        return {"sizes": sizes, "edges": packed[:used].copy() if used < packed.size else packed}

    def restore(self, state: dict[str, Any]) -> None:
        """Become the rings that ``state`` was taken from.

        Raises
        ------
        BadSnapshot
            If the sizes do not add up to the edges.

        """
        sizes, edges = state["sizes"], state["edges"]
        stored = int(sizes.sum(dtype=np.int64))
        if stored != edges.size or (sizes.size and not 0 <= sizes.min() <= sizes.max() <= self.k):
            raise BadSnapshot(
                f"edges: want {stored} of them in rows of at most {self.k}, got {edges.size} in"
                f" rows of up to {sizes.max(initial=0)}; use an older snapshot"
            )
        distinct, rows = np.unique(sizes, return_counts=True)
        blocks = [block_size(int(size), self.k) if size else 0 for size in distinct]
        reserved = sum(int(n) * block for n, block in zip(rows, blocks, strict=True))
        self.nodes = grown(np.zeros(0, NODE), sizes.size)
        self.pool = np.empty(pool_size(reserved, self.k), EDGE)
        _unpack(self.nodes, self.pool, self.count, self.k, sizes, edges)


def pool_size(reserved: int, k: int) -> int:
    """Return the slots of a new pool for blocks that take ``reserved``.

    Examples
    --------
    >>> pool_size(1_000_000, k=20)
    1251044

    """
    return reserved + reserved // 4 + k + 1024
