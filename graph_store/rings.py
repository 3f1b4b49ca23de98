"""One direction of the graph: each row's newest edges, in blocks of one pool.

A row's edges stand in a block of their own, oldest first by ``(ts_ms, key)``. A block that is
full moves to a larger one: one that another row left behind, or a new one at the pool's end.
When the pool is full and more than a ninth of it is left behind, or edges may have become too
old to be seen, the blocks are moved together; then it grows by a quarter. So the slack is
bounded whatever the degrees are, and a move is paid for by the appends since the one before.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from graph_store import kernels
from graph_store.kernels import (
    EDGE,
    LEFT,
    LONG_AGO,
    NODE,
    RESERVED,
    STORED,
    USED,
    block_size,
)
from graph_store.memory import grown
from stream.errors import BadSnapshot


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
        kernels.compact(self.nodes, self.pool, self.count, oldest_ms, self.k, order)

    def shrink(self, oldest_ms: int) -> None:
        """Compact, and give back the memory that the edges no longer need."""
        self.compact(oldest_ms)
        self.pool = grown(self.pool, pool_size(int(self.count[USED]), self.k))

    def last_active(self) -> NDArray[np.int64]:
        """Return the time of each row's newest edge, ``LONG_AGO`` where it has none."""
        return np.asarray(kernels.last_active(self.nodes, self.pool))

    def remove(self, gone: NDArray[np.bool_], gone_others: NDArray[np.bool_]) -> None:
        """Empty the rows marked in ``gone``, and drop edges to rows marked in ``gone_others``."""
        kernels.remove(self.nodes, self.pool, self.count, gone, gone_others)

    def empty(self, row: int) -> NDArray[np.void]:
        """Empty a row, and return the edges it had, oldest first."""
        if row >= self.nodes.size:
            return np.empty(0, EDGE)
        node = self.nodes[row]
        edges = self.pool[node["start"] : node["start"] + node["size"]].copy()
        self.count[STORED] -= edges.size
        self.count[RESERVED] -= node["capacity"]
        node["size"] = node["capacity"] = 0
        return edges

    def take_out(self, rows: NDArray[np.int64], other: int) -> NDArray[np.void]:
        """Take the edges of ``rows`` to ``other`` out; return them, with the row as ``other``."""
        taken = kernels.take_out(self.nodes, self.pool, self.count, rows, other)
        return np.asarray(taken)

    def state(self, oldest_ms: int) -> dict[str, Any]:
        """Return a copy of the edges, row by row and without slack."""
        packed = np.empty(int(self.count[STORED]), EDGE)
        sizes = kernels.pack(self.nodes, self.pool, oldest_ms, packed)
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
        kernels.unpack(self.nodes, self.pool, self.count, self.k, sizes, edges)


def pool_size(reserved: int, k: int) -> int:
    """Return the slots of a new pool for blocks that take ``reserved``.

    Examples
    --------
    >>> pool_size(1_000_000, k=20)
    1251044

    """
    return reserved + reserved // 4 + k + 1024
