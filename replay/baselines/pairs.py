"""Weighted pairs of items that the same users meet: the memory of the neighbourhood baselines."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from graph_store.blocks import SMALLEST, give_block, grown, new_free_lists, take_block

PAIRS_KEPT: Final = 256
"""Partners kept per item; on validation 64, 128, 256, 512 gave HR@10 .0675, .0733, .0751, .0758."""

_MAX_EXPONENT: Final = 48.0
"""Half-lives that the clock may run ahead before weights, 32-bit floats, are rescaled."""


@njit(cache=True)
def _add(source, other, weight, m, others, weights, lists, starts, sizes, classes):  # type: ignore[no-untyped-def]
    """Add to one directed pair; the pool has room for one more block."""
    start, size = starts[source], sizes[source]
    least = start
    for slot in range(start, start + size):
        if others[slot] == other:
            weights[slot] += weight
            return
        if weights[slot] < weights[least]:
            least = slot
    if size >= m:
        others[least] = other
        weights[least] = weight
        return
    if size == 0 or size == SMALLEST << classes[source]:
        bigger = classes[source] + 1 if size else 0
        block = take_block(bigger, lists, others)
        others[block : block + size] = others[start : start + size]
        weights[block : block + size] = weights[start : start + size]
        if size:
            give_block(start, classes[source], lists, others)
        starts[source], classes[source] = block, bigger
        start = block
    others[start + size] = other
    weights[start + size] = weight
    sizes[source] = size + 1


@njit(cache=True)
def _pair_up(  # type: ignore[no-untyped-def]
    items, ts_ms, before, before_ms, m, half_life_ms, gap_ms, reference_ms,
    others, weights, lists, starts, sizes, classes,
):  # fmt: skip
    for event in range(items.shape[0]):
        now = 2.0 ** ((ts_ms[event] - reference_ms) / half_life_ms)
        for k in range(before.shape[1]):
            item, partner = items[event], before[event, k]
            if partner < 0 or partner == item:
                continue
            near = 1.0 / (1.0 + (ts_ms[event] - before_ms[event, k]) / gap_ms)
            weight = np.float32(now * near)
            _add(partner, item, weight, m, others, weights, lists, starts, sizes, classes)
            _add(item, partner, weight, m, others, weights, lists, starts, sizes, classes)


@njit(cache=True)
def _score(history, events, shrink, scale, others, weights, starts, sizes, out):  # type: ignore[no-untyped-def]
    for row in range(history.shape[0]):
        for k in range(history.shape[1]):
            item = history[row, k]
            if item < 0 or item >= sizes.shape[0]:
                continue
            for slot in range(starts[item], starts[item] + sizes[item]):
                other = others[slot]
                if other < out.shape[1]:
                    norm = np.sqrt(events[item] * events[other]) + shrink
                    out[row, other] += scale * weights[slot] / norm


class PairCounts:
    r"""Symmetric weights :math:`C_{ij}` of items met by the same users, the heaviest of each item.

    An event of item :math:`i` at :math:`t` adds for each earlier event :math:`(j, t_j)` of its
    user

    .. math:: C_{ij} \mathrel{+}= \frac{1}{1 + (t - t_j) / g}, \qquad C_{ij}(t + h) = C_{ij}(t) / 2

    (a power of the gap, not an exponential, so that on a sparse log, where weeks lie between the
    events of a user, pairs still count).

    Where an item's list is full the lightest pair gives way to the newcomer.

    Parameters
    ----------
    half_life_ms
        :math:`h`: how long a pair is remembered.
    gap_ms
        :math:`g`: two events this far apart count for half.
    m
        Partners kept per item.

    Notes
    -----
    An event costs O(K m), a score O(K m) and one row of zeros. A pair takes 8 bytes in lists that
    double from 4 slots up.

    Examples
    --------
    >>> pairs = PairCounts(half_life_ms=1_000, gap_ms=1_000)
    >>> pairs.add(np.array([1]), np.array([1_000]), np.array([[0]]), np.array([[0]]))
    >>> pairs.scores(np.array([[0]]), 2, at_ms=2_000).tolist()
    [[0.0, 0.25]]

    """

    def __init__(self, *, half_life_ms: int, gap_ms: int, m: int = PAIRS_KEPT) -> None:
        self._settings = (m, half_life_ms, gap_ms)
        self._reference_ms: int | None = None
        self._others = np.zeros(1024, np.int32)
        self._weights = np.zeros(1024, np.float32)
        self._lists = new_free_lists()
        self._starts = np.zeros(64, np.int64)
        self._sizes = np.zeros(64, np.int64)
        self._classes = np.zeros(64, np.int8)

    def add(
        self,
        items: NDArray[np.int64],
        ts_ms: NDArray[np.int64],
        before: NDArray[np.int64],
        before_ms: NDArray[np.int64],
    ) -> None:
        """Pair each event (E,) with those of its user before it (E, K), padded with -1."""
        if items.size == 0:
            return
        m, half_life_ms, _ = self._settings
        n_items = int(max(items.max(), before.max(initial=-1))) + 1
        self._starts = grown(self._starts, n_items)
        self._sizes = grown(self._sizes, n_items)
        self._classes = grown(self._classes, n_items)
        newest = int(ts_ms.max())
        if self._reference_ms is None:
            self._reference_ms = newest
        ahead = (newest - self._reference_ms) / half_life_ms
        if ahead > _MAX_EXPONENT:
            self._weights *= np.float32(2.0**-ahead)
            self._reference_ms = newest
        # An event moves at most one list per pair and side; each may take a block of 2 m slots.
        chunk = max(1, (1 << 20) // (4 * m * max(before.shape[1], 1)))
        for first in range(0, items.shape[0], chunk):
            part = slice(first, first + chunk)
            room = int(self._lists[-1]) + 4 * m * before[part].size
            self._others = grown(self._others, room)
            self._weights = grown(self._weights, self._others.shape[0])
            _pair_up(
                items[part], ts_ms[part], before[part], before_ms[part], *self._settings,
                self._reference_ms, self._others, self._weights, self._lists,
                self._starts, self._sizes, self._classes,
            )  # fmt: skip

    def scores(
        self,
        history: NDArray[np.int64],
        n_items: int,
        *,
        at_ms: int,
        events: NDArray[np.float32] | None = None,
        shrink: float = 1.0,
    ) -> NDArray[np.float32]:
        r"""Add up what is paired with each history.

        .. math:: s_i = \sum_{j \in \text{history}} \frac{C_{ij}}{\sqrt{n_i n_j} + \lambda}

        Parameters
        ----------
        history
            Item rows (b, K), padded with -1.
        n_items
            Candidates are the rows below.
        at_ms
            As of when weights are read.
        events
            :math:`n`, by item row, for the shrunk cosine; without, the raw weights are added.
        shrink
            :math:`\lambda`.

        Returns
        -------
        Shape (b, n_items).

        """
        out = np.zeros((history.shape[0], n_items), np.float32)
        if self._reference_ms is not None:
            scale = 2.0 ** ((self._reference_ms - at_ms) / self._settings[1])
            known = max(n_items, self._sizes.shape[0])
            norms = np.zeros(known, np.float32) if events is None else grown(events, known)
            _score(
                history, norms, shrink, scale, self._others, self._weights,
                self._starts, self._sizes, out,
            )  # fmt: skip
        return out

    def state(self) -> dict[str, Any]:
        """Return all that a restart needs."""
        used = int(self._lists[-1])
        return {
            "reference_ms": self._reference_ms,
            "others": self._others[:used].copy(),
            "weights": self._weights[:used].copy(),
            "lists": self._lists.copy(),
            "starts": self._starts.copy(),
            "sizes": self._sizes.copy(),
            "classes": self._classes.copy(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Become what :meth:`state` described."""
        self._reference_ms = state["reference_ms"]
        self._others = np.array(state["others"])
        self._weights = np.array(state["weights"])
        self._lists = np.array(state["lists"])
        self._starts = np.array(state["starts"])
        self._sizes = np.array(state["sizes"])
        self._classes = np.array(state["classes"])
