"""What the graph counts: decayed sums per item at several half-lives, and co-visitation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from graph_store.blocks import SMALLEST, give_block, new_free_lists, take_block
from graph_store.memory import with_room

_MAX_EXPONENT: Final = 256.0
"""Half-lives that the clock may run ahead of the reference time before sums are rescaled."""

_MAX_PAIR_EXPONENT: Final = 48.0
"""The same for pairs, whose weights are 32-bit floats."""

_ROUNDING: Final = np.float32(1e-5)
"""What is left of a pair below this share of what was taken from it is rounding."""

_TINY: Final = np.float32(1e-30)
"""Keeps a list whose every pair has decayed to nothing from dividing nothing by nothing."""


@njit(cache=True)
def _add_decayed(
    rows: NDArray[np.int64],
    ts_ms: NDArray[np.int64],
    amounts: NDArray[np.float64],
    sums: NDArray[np.float64],
    half_lives_ms: NDArray[np.int64],
    reference_ms: NDArray[np.int64],
) -> None:
    for n in range(rows.shape[0]):
        for h in range(half_lives_ms.shape[0]):
            age = (ts_ms[n] - reference_ms[h]) / half_lives_ms[h]
            sums[rows[n], h] += amounts[n] * 2.0**age


class DecayedCounts:
    r"""Exponentially decayed sums per row, at several half-lives at once.

    .. math:: c_{r,h}(t) = \sum_{n : r_n = r} a_n \, 2^{-(t - t_n) / h}

    Sums are kept as of a reference time, so that adding costs O(H) and reading is one product;
    the reference moves when the exponent grows large. The order of adding does not matter
    but for rounding.

    Parameters
    ----------
    half_lives_ms
        The ``H`` half-lives.

    Examples
    --------
    >>> counts = DecayedCounts([1_000])
    >>> counts.add(np.array([0]), np.array([0]), np.array([1.0]))
    >>> counts.at(2_000, 1).tolist()
    [[0.25]]

    """

    def __init__(self, half_lives_ms: Sequence[int]) -> None:
        self.half_lives_ms = np.asarray(half_lives_ms, np.int64)
        self._sums = np.zeros((64, len(half_lives_ms)), np.float64)
        self._reference_ms: NDArray[np.int64] | None = None

    def add(
        self, rows: NDArray[np.int64], ts_ms: NDArray[np.int64], amounts: NDArray[np.float64]
    ) -> None:
        """Add ``amounts`` that happened at ``ts_ms`` to ``rows``; all three of shape (E,)."""
        if rows.size == 0:
            return
        self._sums = with_room(self._sums, int(rows.max()) + 1)
        newest = int(ts_ms.max())
        if self._reference_ms is None:
            self._reference_ms = np.full(self.half_lives_ms.shape, newest, np.int64)
        ahead = (newest - self._reference_ms) / self.half_lives_ms
        for h in np.flatnonzero(ahead > _MAX_EXPONENT):
            self._sums[:, h] *= 2.0 ** -ahead[h]
            self._reference_ms[h] = newest
        _add_decayed(rows, ts_ms, amounts, self._sums, self.half_lives_ms, self._reference_ms)

    def take_back(
        self, rows: NDArray[np.int64], ts_ms: NDArray[np.int64], amounts: NDArray[np.float64]
    ) -> None:
        """Undo :meth:`add`, but for rounding, which never leaves less than nothing."""
        self.add(rows, ts_ms, -amounts)
        self._sums[rows] = np.maximum(self._sums[rows], 0.0)

    def decay_to(self, at_ms: int) -> NDArray[np.float64]:
        """Return the factors (H,) that carry the stored sums to ``at_ms``."""
        if self._reference_ms is None:
            return np.ones(self.half_lives_ms.shape)
        factors: NDArray[np.float64] = 2.0 ** (
            (self._reference_ms - np.int64(at_ms)) / self.half_lives_ms
        )
        return factors

    def stored(self, n_rows: int) -> NDArray[np.float64]:
        """Return the sums (n_rows, H) as of the reference time: a view, the reader scales it."""
        self._sums = with_room(self._sums, n_rows)
        return self._sums[:n_rows]

    def at(self, at_ms: int, n_rows: int) -> NDArray[np.float64]:
        """Return the sums (n_rows, H) of the first ``n_rows`` rows as of ``at_ms``."""
        scaled: NDArray[np.float64] = self.stored(n_rows) * self.decay_to(at_ms)
        return scaled

    @property
    def n_bytes(self) -> int:
        """Bytes held."""
        return self._sums.nbytes

    def state(self) -> dict[str, Any]:
        """Return all that a restart needs."""
        reference = self._reference_ms
        return {
            "sums": self._sums.copy(),
            "reference_ms": None if reference is None else reference.copy(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Become what :meth:`state` described."""
        self._sums = np.array(state["sums"])
        reference = state["reference_ms"]
        self._reference_ms = None if reference is None else np.array(reference)


@njit(cache=True)
def _add_pair(
    source: int,
    other: int,
    weight: np.float32,
    m: int,
    others: NDArray[np.int32],
    weights: NDArray[np.float32],
    lists: NDArray[np.int64],
    starts: NDArray[np.int64],
    sizes: NDArray[np.int32],
    classes: NDArray[np.int8],
) -> None:
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
        # Space-Saving: the newcomer inherits the least weight, so that no frequent pair is missed.
        others[least] = other
        weights[least] += weight
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
def _visit_weight(scale: float, after_ms: int, gap_ms: int) -> Any:
    """Return what a visit so long after another one adds to their pair; ``scale`` is its decay."""
    return np.float32(scale * (1.0 / (1.0 + after_ms / gap_ms)))


@njit(cache=True)
def _add_visits(
    items: NDArray[np.int64],
    ts_ms: NDArray[np.int64],
    history: NDArray[np.int64],
    history_ts_ms: NDArray[np.int64],
    m: int,
    half_life_ms: int,
    gap_ms: int,
    reference_ms: int,
    others: NDArray[np.int32],
    weights: NDArray[np.float32],
    lists: NDArray[np.int64],
    starts: NDArray[np.int64],
    sizes: NDArray[np.int32],
    classes: NDArray[np.int8],
    mass: NDArray[np.float32],
) -> None:
    """Pair each visit with those before it."""
    for n in range(items.shape[0]):
        item = items[n]
        scale = 2.0 ** ((ts_ms[n] - reference_ms) / half_life_ms)
        for k in range(history.shape[1]):
            before = history[n, k]
            if before < 0 or before == item:
                continue
            weight = _visit_weight(scale, ts_ms[n] - history_ts_ms[n, k], gap_ms)
            _add_pair(before, item, weight, m, others, weights, lists, starts, sizes, classes)
            _add_pair(item, before, weight, m, others, weights, lists, starts, sizes, classes)
            mass[before] += weight
            mass[item] += weight


@njit(cache=True)
def _take_pair(
    source: int,
    other: int,
    weight: np.float32,
    others: NDArray[np.int32],
    weights: NDArray[np.float32],
    lists: NDArray[np.int64],
    starts: NDArray[np.int64],
    sizes: NDArray[np.int32],
    classes: NDArray[np.int8],
    mass: NDArray[np.float32],
) -> None:
    """Take from one directed pair, and from its item's mass, what it still has of ``weight``."""
    start = starts[source]
    last = start + sizes[source] - 1
    for slot in range(start, last + 1):
        if others[slot] != other:
            continue
        left = weights[slot] - weight
        if left > _ROUNDING * weight:
            weights[slot] = left
            mass[source] = max(mass[source] - weight, left)
            return
        mass[source] = max(mass[source] - weights[slot], np.float32(0.0))
        others[slot], weights[slot] = others[last], weights[last]
        others[last], weights[last] = 0, 0.0
        sizes[source] -= 1
        if sizes[source] == 0:
            mass[source] = 0.0
            give_block(start, classes[source], lists, others)
            starts[source] = classes[source] = 0
        return


@njit(cache=True)
def _take_visits(
    items: NDArray[np.int64],
    ts_ms: NDArray[np.int64],
    history: NDArray[np.int64],
    history_ts_ms: NDArray[np.int64],
    half_life_ms: int,
    gap_ms: int,
    reference_ms: int,
    others: NDArray[np.int32],
    weights: NDArray[np.float32],
    lists: NDArray[np.int64],
    starts: NDArray[np.int64],
    sizes: NDArray[np.int32],
    classes: NDArray[np.int8],
    mass: NDArray[np.float32],
) -> None:
    """Undo :func:`_add_visits`."""
    for n in range(items.shape[0]):
        item = items[n]
        scale = 2.0 ** ((ts_ms[n] - reference_ms) / half_life_ms)
        for k in range(history.shape[1]):
            before = history[n, k]
            if before < 0 or before == item:
                continue
            weight = _visit_weight(scale, ts_ms[n] - history_ts_ms[n, k], gap_ms)
            _take_pair(before, item, weight, others, weights, lists, starts, sizes, classes, mass)
            _take_pair(item, before, weight, others, weights, lists, starts, sizes, classes, mass)


@njit(cache=True)
def _gather(
    history: NDArray[np.int64],
    trust: NDArray[np.float32],
    others: NDArray[np.int32],
    weights: NDArray[np.float32],
    starts: NDArray[np.int64],
    sizes: NDArray[np.int32],
    mass: NDArray[np.float32],
    cosines: NDArray[np.float32],
    touched: NDArray[np.int32],
) -> int:
    """Add one history's cosines to ``cosines`` (N,); list where, and return how many those are."""
    n_touched = 0
    for k in range(history.shape[0]):
        item = history[k]
        if item < 0 or item >= sizes.shape[0] or trust[k] == 0.0:
            continue
        share = trust[k] / np.sqrt(mass[item] + _TINY)
        for slot in range(starts[item], starts[item] + sizes[item]):
            other = others[slot]
            if cosines[other] == 0.0:
                touched[n_touched] = other
                n_touched += 1
            cosines[other] += share * weights[slot] / np.sqrt(mass[other] + _TINY)
    return n_touched


@njit(cache=True)
def _add_log(
    scores: NDArray[np.float32],
    factors: NDArray[np.float32],
    scale: float,
    history: NDArray[np.int64],
    trust: NDArray[np.float32],
    others: NDArray[np.int32],
    weights: NDArray[np.float32],
    starts: NDArray[np.int64],
    sizes: NDArray[np.int32],
    mass: NDArray[np.float32],
    cosines: NDArray[np.float32],
    m: int,
) -> None:
    touched = np.empty(history.shape[1] * m, np.int32)
    for n in range(history.shape[0]):
        n_touched = _gather(
            history[n], trust[n], others, weights, starts, sizes, mass, cosines, touched
        )
        for other in touched[:n_touched]:
            if other < scores.shape[1] and cosines[other] != 0.0:
                scores[n, other] += factors[n] * np.log1p(scale * cosines[other])
            cosines[other] = 0.0


@njit(cache=True)
def _look_up(
    history: NDArray[np.int64],
    trust: NDArray[np.float32],
    candidates: NDArray[np.int64],
    others: NDArray[np.int32],
    weights: NDArray[np.float32],
    starts: NDArray[np.int64],
    sizes: NDArray[np.int32],
    mass: NDArray[np.float32],
    cosines: NDArray[np.float32],
    found: NDArray[np.float32],
    m: int,
) -> None:
    touched = np.empty(history.shape[1] * m, np.int32)
    for n in range(history.shape[0]):
        n_touched = _gather(
            history[n], trust[n], others, weights, starts, sizes, mass, cosines, touched
        )
        for c in range(candidates.shape[0]):
            found[n, c] = cosines[candidates[c]]
        for other in touched[:n_touched]:
            cosines[other] = 0.0


@njit(cache=True)
def _sort_lists(
    items: NDArray[np.int64],
    pointers: NDArray[np.int64],
    others: NDArray[np.int32],
    weights: NDArray[np.float32],
    starts: NDArray[np.int64],
    partners: NDArray[np.int64],
    sorted_weights: NDArray[np.float32],
) -> None:
    """Fill in the partners of each item and the weights of the pairs, strongest first."""
    for n in range(items.shape[0]):
        first, size = pointers[n], pointers[n + 1] - pointers[n]
        if size == 0:
            continue
        start = starts[items[n]]
        order = np.argsort(-weights[start : start + size], kind="mergesort")  # stable
        for slot in range(size):
            partners[first + slot] = others[start + order[slot]]
            sorted_weights[first + slot] = weights[start + order[slot]]


class Covisitation:
    r"""For each item the ``m`` items most visited by the same users, decayed.

    A visit of item :math:`i` at :math:`t` adds, for each earlier visit :math:`(j, t_j)` of the
    user still in the history, :math:`1 / (1 + (t - t_j) / g)` to :math:`C_{ij}` and :math:`C_{ji}`;
    both halve every half-life. (A power of the gap, not an exponential: on a sparse log, where
    months lie between the events of a user, pairs still count.) The score of an item after a
    history is the cosine

    .. math:: s_i = \sum_k a_k \frac{C_{j_k i}}{\sqrt{m_{j_k} m_i}}, \qquad m_i = \sum_j C_{ij}

    with the caller's trust :math:`a_k` in each history item. A full list gives its least pair to
    the newcomer, which inherits its weight (Metwally et al., *Space-Saving*, ICDT 2005).

    Parameters
    ----------
    m
        Pairs kept per item.
    half_life_ms
        Of a pair's weight.
    gap_ms
        :math:`g`: two visits this far apart count for half.

    Notes
    -----
    A visit costs O(K m). A pair takes 8 bytes; lists double from 4 up to ``m`` slots.

    Examples
    --------
    >>> pairs = Covisitation(m=4, half_life_ms=1_000, gap_ms=1_000)
    >>> one = np.array([1]), np.array([0]), np.array([[0]]), np.array([[0]])
    >>> pairs.add(*one)
    >>> pairs.pairs(np.array([[0]]), np.ones((1, 1), np.float32), np.array([0, 1])).tolist()
    [[0.0, 1.0]]

    """

    def __init__(self, *, m: int = 64, half_life_ms: int, gap_ms: int) -> None:
        self.m = m
        self.half_life_ms = half_life_ms
        self.gap_ms = gap_ms
        self._reference_ms: int | None = None
        self._others = np.zeros(1024, np.int32)
        self._weights = np.zeros(1024, np.float32)
        self._lists = new_free_lists()
        self._starts = np.zeros(64, np.int64)
        self._sizes = np.zeros(64, np.int32)
        self._classes = np.zeros(64, np.int8)
        self._mass = np.zeros(64, np.float32)
        self._scratch = np.zeros(64, np.float32)

    def add(
        self,
        items: NDArray[np.int64],
        ts_ms: NDArray[np.int64],
        history: NDArray[np.int64],
        history_ts_ms: NDArray[np.int64],
    ) -> None:
        """Add visits (E,), each with the visits of its user before it (E, K), padded with -1."""
        if items.size == 0:
            return
        self._grow(int(max(items.max(), history.max(initial=-1))) + 1)
        newest = int(ts_ms.max())
        if self._reference_ms is None:
            self._reference_ms = newest
        ahead = (newest - self._reference_ms) / self.half_life_ms
        if ahead > _MAX_PAIR_EXPONENT:
            self._weights *= np.float32(2.0**-ahead)
            self._mass *= np.float32(2.0**-ahead)
            self._reference_ms = newest
        chunk = 256
        for first in range(0, items.shape[0], chunk):
            part = slice(first, first + chunk)
            room = 2 * history[part].size * (SMALLEST + 2 * self.m)
            used = int(self._lists[-1])
            self._others = with_room(self._others, used + room)
            self._weights = with_room(self._weights, self._others.shape[0])
            _add_visits(
                items[part], ts_ms[part], history[part], history_ts_ms[part], self.m,
                self.half_life_ms, self.gap_ms, self._reference_ms, *self._arrays(),
            )  # fmt: skip

    def take_back(
        self,
        items: NDArray[np.int64],
        ts_ms: NDArray[np.int64],
        history: NDArray[np.int64],
        history_ts_ms: NDArray[np.int64],
    ) -> None:
        """Undo :meth:`add`, as far as the pairs are still in their lists.

        A pair that gave its place to a newcomer left it its weight, which cannot be told from the
        newcomer's any more.
        """
        if items.size == 0 or self._reference_ms is None:
            return
        self._grow(int(max(items.max(), history.max(initial=-1))) + 1)
        _take_visits(
            items, ts_ms, history, history_ts_ms, self.half_life_ms, self.gap_ms,
            self._reference_ms, *self._arrays(),
        )  # fmt: skip

    def add_log(
        self,
        scores: NDArray[np.float32],
        history: NDArray[np.int64],
        trust: NDArray[np.float32],
        factors: NDArray[np.float32],
        scale: float,
    ) -> None:
        r"""Add :math:`f_b \log(1 + \mathrm{scale} \cdot s_i)` to a catalogue's scores, in place.

        Parameters
        ----------
        scores
            Shape (B, N); partners beyond column ``N - 1`` are passed over.
        history, trust
            The items that each row goes by (B, K), padded with -1, and how much.
        factors
            :math:`f`, shape (B,).
        scale
            What a cosine is multiplied by.

        Notes
        -----
        Costs O(B K m): items without a partner in the history are not touched.

        """
        _add_log(
            scores, factors, scale, history, trust, self._others, self._weights, self._starts,
            self._sizes, self._mass, self._scratch, self.m,
        )  # fmt: skip

    def pairs(
        self,
        history: NDArray[np.int64],
        trust: NDArray[np.float32],
        candidates: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        """Return the scores (B, C) of shared ``candidates`` (C,) after each history (B, K)."""
        self._grow(int(candidates.max(initial=-1)) + 1)
        found = np.empty((history.shape[0], candidates.shape[0]), np.float32)
        _look_up(
            history, trust, candidates, self._others, self._weights, self._starts, self._sizes,
            self._mass, self._scratch, found, self.m,
        )  # fmt: skip
        return found

    def neighbours(self, item: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return one item's partners and their cosines, strongest first."""
        _, others, weights = self.lists(np.array([item]))
        if others.size == 0:
            return others, weights
        # Root by root: the product of two masses may be more than a 32-bit float holds.
        cosines = weights / np.sqrt(self._mass[item] + _TINY) / np.sqrt(self._mass[others] + _TINY)
        order = np.argsort(-cosines, kind="stable")
        return others[order], cosines[order]

    def lists(
        self, items: NDArray[np.int64], *, at_ms: int | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """Return the partners of many items, strongest first, as CSR: pointers, items, weights.

        Weights are those of the pairs alone, as of ``at_ms``: a pair's cosine is its weight over
        the root of both :meth:`masses` at the same time. Without a time they are as they are
        stored, which is enough to compare them.
        """
        known = (items >= 0) & (items < self._sizes.shape[0])
        sizes = np.where(known, self._sizes[np.where(known, items, 0)], 0) if known.any() else 0
        pointers = np.zeros(items.shape[0] + 1, np.int64)
        np.cumsum(np.broadcast_to(sizes, items.shape), out=pointers[1:])
        others = np.empty(pointers[-1], np.int64)
        weights = np.empty(pointers[-1], np.float32)
        _sort_lists(items, pointers, self._others, self._weights, self._starts, others, weights)
        if at_ms is not None:
            weights = (weights * self._decay_to(at_ms)).astype(np.float32)
        return pointers, others, weights

    def masses(self, at_ms: int, n_items: int) -> NDArray[np.float64]:
        """Return the mass (n_items,) of the first items at a time: the sum of all of its pairs."""
        self._grow(n_items)
        masses: NDArray[np.float64] = self._mass[:n_items] * np.float64(self._decay_to(at_ms))
        return masses

    @property
    def n_bytes(self) -> int:
        """Bytes held."""
        return sum(array.nbytes for array in self._arrays()) + self._scratch.nbytes

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
            "mass": self._mass.copy(),
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
        self._mass = np.array(state["mass"])
        self._scratch = np.zeros(self._mass.shape, np.float32)

    def _decay_to(self, at_ms: int) -> float:
        """Return the factor that carries what is stored to a time."""
        if self._reference_ms is None:
            return 1.0
        return float(2.0 ** ((self._reference_ms - at_ms) / self.half_life_ms))

    def _grow(self, n_items: int) -> None:
        self._starts = with_room(self._starts, n_items)
        self._sizes = with_room(self._sizes, n_items)
        self._classes = with_room(self._classes, n_items)
        self._mass = with_room(self._mass, n_items)
        self._scratch = with_room(self._scratch, n_items)

    def _arrays(self) -> tuple[NDArray[Any], ...]:
        return (
            self._others, self._weights, self._lists, self._starts, self._sizes, self._classes,
            self._mass,
        )  # fmt: skip
