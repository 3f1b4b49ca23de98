"""Draws temporal neighbourhoods and negatives for whole batches, from counters instead of state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

import numpy as np
from numba import njit
from numpy.typing import NDArray

from graph_store.ids import mix
from graph_store.kernels import LONG_AGO, N_KINDS, PADDING, Records
from graph_store.memory import grown
from graph_store.store import EdgeStore, Neighbours
from stream.errors import BadSettings, TidegraphError

Node = Literal["user", "item"]
How = Literal["recent", "uniform"]

_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_UNIT: Final = 2.0**-53


@njit(cache=True)
def _unit(stream: np.uint64, draw: int) -> float:
    """Return the ``draw``-th number of a stream, uniform in [0, 1): SplitMix64."""
    return float(mix(stream + np.uint64(draw + 1) * _GOLDEN) >> np.uint64(11)) * _UNIT


@njit(cache=True)
def _stream(seed: int, step: int, lane: int) -> np.uint64:
    """Return the stream of one lane of one step."""
    return mix(mix(mix(np.uint64(seed)) + np.uint64(step)) + np.uint64(lane))


@njit(cache=True)
def _sample(
    nodes: Records,
    pool: Records,
    rows: NDArray[np.int64],
    before_ms: NDArray[np.int64],
    since_ms: NDArray[np.int64],
    uniform: bool,  # noqa: FBT001 - a kernel takes no keywords
    seed: int,
    step: int,
    first_lane: int,
    others: NDArray[np.int64],
    ts_ms: NDArray[np.int64],
    kind: NDArray[np.int8],
) -> None:
    """Fill ``(B, k)`` outputs with edges in ``[since, before)``, newest first.

    Uniform sampling passes over the edges once and takes each with probability wanted / left
    (Knuth's algorithm S), so that every subset is equally likely and the order is kept.
    """
    k = others.shape[1]
    for n in range(rows.shape[0]):
        found, row = 0, rows[n]
        if 0 <= row < nodes.shape[0]:
            start, size = nodes[row].start, int(nodes[row].size)
            left = size
            if uniform:
                left = 0
                for at in range(start, start + size):
                    edge = pool[at]
                    left += edge.kind < N_KINDS and since_ms[n] <= edge.ts_ms < before_ms[n]
            stream = _stream(seed, step, first_lane + n)
            for at in range(start + size - 1, start - 1, -1):
                edge = pool[at]
                if found == k or edge.ts_ms < since_ms[n]:
                    break
                if edge.ts_ms >= before_ms[n] or edge.kind >= N_KINDS:
                    continue
                take = not uniform or _unit(stream, left) * left < k - found
                left -= 1
                if take:
                    others[n, found] = edge.other
                    ts_ms[n, found] = edge.ts_ms
                    kind[n, found] = edge.kind
                    found += 1
        for pad in range(found, k):
            others[n, pad] = PADDING
            ts_ms[n, pad] = 0
            kind[n, pad] = PADDING


@njit(cache=True)
def _draw(
    n_items: int,
    ring: NDArray[np.int64],
    share_recent: float,
    seed: int,
    step: int,
    items: NDArray[np.int64],
) -> None:
    """Draw each item from the ring with probability ``share_recent``, else from all."""
    stream = _stream(seed, step, 0)
    for n in range(items.shape[0]):
        place = _unit(stream, 2 * n)
        if _unit(stream, 2 * n + 1) < share_recent:
            items[n] = ring[int(place * ring.shape[0])]
        else:
            items[n] = int(place * n_items)


@njit(cache=True)
def _push(
    items: NDArray[np.int64], ring: NDArray[np.int64], at: int, count: NDArray[np.int32]
) -> None:
    """Write items over the oldest ones from place ``at`` on, and keep the counts."""
    for item in items:
        if ring[at] != PADDING:
            count[ring[at]] -= 1
        ring[at] = item
        count[item] += 1
        at = (at + 1) % ring.shape[0]


def sample_neighbours(
    store: EdgeStore,
    node: Node,
    rows: NDArray[np.int64],
    *,
    k: int,
    before_ms: int | NDArray[np.int64],
    how: How = "recent",
    window_ms: int | None = None,
    seed: int = 0,
    step: int = 0,
    lane: int = 0,
) -> Neighbours:
    """Return up to ``k`` neighbours of each row strictly before its time, newest first.

    Parameters
    ----------
    store
        The graph.
    node
        What ``rows`` are; the neighbours are of the other kind.
    rows
        (B,); -1 has no neighbours.
    k
        Neighbours per row.
    before_ms
        One time, or one for each row.
    how
        The most recent ones, or a uniform sample without replacement.
    window_ms
        Only edges at most this much older than ``before_ms``; None for all.
    seed, step, lane
        What is drawn is a function of these and of the place in ``rows``: the run, the batch,
        and the first place's number.

    Examples
    --------
    >>> store = EdgeStore()
    >>> sample_neighbours(store, "user", np.array([0]), k=2, before_ms=9).nodes.tolist()
    [[-1, -1]]

    """
    rings = store.users if node == "user" else store.items
    rows = np.ascontiguousarray(rows, np.int64)
    before = np.empty(rows.shape, np.int64)
    before[...] = before_ms
    since = np.full(rows.shape, store.oldest_ms, np.int64)
    if window_ms is not None:
        # A time near the beginning of the number range stands for "always": it must not wrap.
        np.maximum(since, np.maximum(before, LONG_AGO + window_ms) - window_ms, out=since)
    found = Neighbours(
        np.empty((rows.size, k), np.int64),
        np.empty((rows.size, k), np.int64),
        np.empty((rows.size, k), np.int8),
    )
    uniform = how == "uniform"
    _sample(rings.nodes, rings.pool, rows, before, since, uniform, seed, step, lane, *found)
    return found


def sample_neighbourhood(
    store: EdgeStore,
    node: Node,
    rows: NDArray[np.int64],
    *,
    fanouts: Sequence[int],
    before_ms: int | NDArray[np.int64],
    how: How = "recent",
    window_ms: int | None = None,
    seed: int = 0,
    step: int = 0,
) -> list[Neighbours]:
    """Return the neighbours of each row, their neighbours, and so on: one tree per row.

    Every hop of a tree is read strictly before the time of its root. Users and items alternate.

    Parameters
    ----------
    fanouts
        Neighbours per node, hop by hop.
    store, node, rows, before_ms, how, window_ms, seed, step
        As in :func:`sample_neighbours`.

    Returns
    -------
    list of Neighbours
        Hop ``h`` has shape (B * fanouts[0] * ... * fanouts[h - 1], fanouts[h]): one row for
        each entry of the hop before, in its order, padding included.

    Examples
    --------
    >>> hops = sample_neighbourhood(
    ...     EdgeStore(), "user", np.array([0, 1]), fanouts=[3, 2], before_ms=9
    ... )
    >>> [hop.nodes.shape for hop in hops]
    [(2, 3), (6, 2)]

    """
    hops: list[Neighbours] = []
    rows = np.asarray(rows, np.int64)
    before = np.broadcast_to(np.asarray(before_ms, np.int64), rows.shape)
    lane = 0
    for k in fanouts:
        hop = sample_neighbours(
            store,
            node,
            rows,
            k=k,
            before_ms=before,
            how=how,
            window_ms=window_ms,
            seed=seed,
            step=step,
            lane=lane,
        )
        hops.append(hop)
        lane += rows.size
        rows, before = hop.nodes.ravel(), np.repeat(before, k)
        node = "item" if node == "user" else "user"
    return hops


class RecentRing:
    """The items of the last positives: what is being met now, hence a hard negative.

    Parameters
    ----------
    size
        Positives remembered.

    Raises
    ------
    BadSettings
        If there is not room for one.

    Examples
    --------
    >>> ring = RecentRing(size=2)
    >>> ring.push(np.array([7, 8, 9]))
    >>> sorted(ring.items.tolist()), ring.count_of(np.array([7, 9])).tolist()
    ([8, 9], [0, 1])

    """

    def __init__(self, size: int = 4096) -> None:
        if size < 1:
            raise BadSettings(f"recent ring: want room for at least 1 item, got {size}")
        self._ring = np.full(size, PADDING, np.int64)
        self._count = np.zeros(1, np.int32)
        self._pushed = 0

    @property
    def items(self) -> NDArray[np.int64]:
        """The items in the ring, repeated ones as often as they came; (at most size,)."""
        return self._ring[: min(self._pushed, self._ring.size)]

    def count_of(self, items: NDArray[np.int64]) -> NDArray[np.int32]:
        """Return how often each of ``items`` is in the ring."""
        known = items < self._count.size
        return np.where(known, self._count[np.where(known, items, 0)], 0)

    def push(self, items: NDArray[np.int64]) -> None:
        """Remember items, in the order they came."""
        items = np.ascontiguousarray(items, np.int64)
        if items.size == 0:
            return
        if items.min() < 0:
            raise TidegraphError("recent ring: want item rows from 0 on, got a negative one")
        top = int(items.max())
        if top >= self._count.size:
            self._count = grown(self._count, top + 1 + top // 2)
        _push(items, self._ring, self._pushed % self._ring.size, self._count)
        self._pushed += items.size

    def state(self) -> dict[str, Any]:
        """Return a copy of everything the ring knows."""
        return {"ring": self._ring.copy(), "pushed": self._pushed}

    def restore(self, state: dict[str, Any]) -> None:
        """Become the ring that ``state`` was taken from."""
        self._ring = np.array(state["ring"], np.int64)
        self._pushed = state["pushed"]
        self._count = np.bincount(self.items, minlength=1).astype(np.int32)


def sample_negatives(
    n: int, *, n_items: int, ring: RecentRing, share_recent: float, seed: int, step: int
) -> NDArray[np.int64]:
    """Draw ``n`` items that stand against a positive; :func:`log_q` says how likely each was.

    Parameters
    ----------
    n
        Draws, independent of each other.
    n_items
        Items known: rows 0 to ``n_items - 1``.
    ring
        Recent positives.
    share_recent
        Probability that a draw comes from the ring; while that is empty, none does.
    seed, step
        What is drawn is a function of these: the run and the batch.

    Raises
    ------
    TidegraphError
        If there is nothing to draw from, or the share is not between 0 and 1.

    Examples
    --------
    >>> ring = RecentRing()
    >>> ring.push(np.array([5, 5]))
    >>> sample_negatives(4, n_items=9, ring=ring, share_recent=1.0, seed=0, step=0).tolist()
    [5, 5, 5, 5]

    """
    _check_draw(n_items, share_recent)
    items = np.empty(n, np.int64)
    recent = ring.items
    _draw(n_items, recent, share_recent if recent.size else 0.0, seed, step, items)
    return items


def log_q(
    items: NDArray[np.int64], *, n_items: int, ring: RecentRing, share_recent: float
) -> NDArray[np.float64]:
    r"""Return the log of the probability that one draw gives each item.

    An item that is :math:`c_i` times among the :math:`R` of the ring has

    .. math:: q_i = s \frac{c_i}{R} + (1 - s) \frac{1}{N}.

    An item beyond the N known ones is taken for one of them, so that the correction of a target
    that is met for the first time is finite (with s = 1 it is not, unless the ring has it).

    Parameters
    ----------
    items
        (B,).
    n_items
        N: items known.
    ring
        Recent positives; while it is empty, s is 0.
    share_recent
        s, the probability that a draw comes from the ring.

    Raises
    ------
    TidegraphError
        If there is nothing to draw from, or the share is not between 0 and 1.

    Examples
    --------
    >>> ring = RecentRing()
    >>> ring.push(np.array([3]))
    >>> np.exp(log_q(np.array([0, 3]), n_items=4, ring=ring, share_recent=0.5)).tolist()
    [0.125, 0.625]

    """
    _check_draw(n_items, share_recent)
    recent = ring.items.size
    if recent == 0:
        return np.full(items.shape, -np.log(n_items))
    share = share_recent * ring.count_of(items) / recent + (1 - share_recent) / n_items
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(share), np.float64)


def _check_draw(n_items: int, share_recent: float) -> None:
    if n_items < 1 or not 0 <= share_recent <= 1:
        raise TidegraphError(
            "negatives: want at least 1 item and a share of recent ones between 0 and 1,"
            f" got {n_items} and {share_recent}"
        )
