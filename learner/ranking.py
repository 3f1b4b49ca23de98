"""Where each event's item stands in a system's ranking, and what the ranking starts with."""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

TOP_K: Final = 20
"""Items kept of each ranking: the longest cut-off that is reported."""

PADDING: Final = -1
"""Fills a list of recommendations that is shorter than asked for."""


@njit(cache=True)
def _ranks(scores, targets, seen_ptr, seen_idx, ranks):  # type: ignore[no-untyped-def]
    n_items = scores.shape[1]
    for event in range(scores.shape[0]):
        target = targets[event]
        row = scores[event]
        if target < 0 or target >= n_items or not row[target] > -np.inf:
            ranks[event] = np.inf
            continue
        own = row[target]
        above, level = 0, 0
        for item in range(n_items):
            above += row[item] > own
            level += row[item] == own
        level -= 1  # the target itself
        for slot in range(seen_ptr[event], seen_ptr[event + 1]):
            item = seen_idx[slot]
            if 0 <= item < n_items and item != target:
                above -= row[item] > own
                level -= row[item] == own
        ranks[event] = 1.0 + above + 0.5 * level


@njit(cache=True)
def _top(scores, seen_ptr, seen_idx, seen, best, found):  # type: ignore[no-untyped-def]
    """Keep the ``k`` best of each row in ``found``, sorted, by insertion at the end of the list."""
    n_items, k = scores.shape[1], found.shape[1]
    for event in range(scores.shape[0]):
        for slot in range(seen_ptr[event], seen_ptr[event + 1]):
            if 0 <= seen_idx[slot] < n_items:
                seen[seen_idx[slot]] = event
        best[:] = -np.inf
        row = scores[event]
        for item in range(n_items):
            score = row[item]
            # Most items fail the first test, so the look at `seen` is rare.
            if not score > best[k - 1] or seen[item] == event:
                continue
            place = k - 1
            while place > 0 and score > best[place - 1]:
                best[place] = best[place - 1]
                found[event, place] = found[event, place - 1]
                place -= 1
            best[place] = score
            found[event, place] = item


def rank_targets(
    scores: NDArray[np.float32],
    targets: NDArray[np.int64],
    seen_ptr: NDArray[np.int64],
    seen_idx: NDArray[np.int64],
) -> NDArray[np.float64]:
    r"""Rank each event's item among all items the user has not met.

    .. math:: r = 1 + |\{j : s_j > s_t\}| + \tfrac12 |\{j \ne t : s_j = s_t\}|

    with :math:`j` over the known items that the user has not met: items level with the target
    share their places, so that a system gains nothing by scoring everything alike. The target
    is ranked even when the user has met it before.

    Parameters
    ----------
    scores
        Shape (B, N), higher is better, of the ``N`` items known at that moment.
    targets
        Item row of each event, shape (B,). A row outside ``0 .. N - 1`` is not known yet.
    seen_ptr, seen_idx
        What the user of each event has met: event ``b`` owns
        ``seen_idx[seen_ptr[b]:seen_ptr[b + 1]]``. An item is listed at most once; rows outside
        ``0 .. N - 1`` are passed over.

    Returns
    -------
    Mean ranks, shape (B,), 1 is the top; infinite where the item is not known, or where the system
    cannot score it (a score of minus infinity or NaN): a miss, whatever the cut-off.

    Notes
    -----
    Costs O(N) per event, in one pass that allocates nothing.

    Examples
    --------
    Item 2 has the third-best score, but the user has met one of the two above it.

    >>> scores = np.array([[0.9, 0.8, 0.5, 0.1]], np.float32)
    >>> seen_ptr, seen_idx = np.array([0, 1]), np.array([0])
    >>> rank_targets(scores, np.array([2]), seen_ptr, seen_idx).tolist()
    [2.0]

    """
    ranks = np.empty(scores.shape[0], np.float64)
    _ranks(np.ascontiguousarray(scores, np.float32), targets, seen_ptr, seen_idx, ranks)
    return ranks


def top_k(
    scores: NDArray[np.float32],
    seen_ptr: NDArray[np.int64],
    seen_idx: NDArray[np.int64],
    k: int = TOP_K,
) -> NDArray[np.int64]:
    """Return the list that each user would have been shown: the ``k`` best items not met before.

    Parameters
    ----------
    scores
        Shape (B, N), higher is better. Minus infinity and NaN are never listed.
    seen_ptr, seen_idx
        What the user of each event has met, as in :func:`rank_targets`.
    k
        Length of the lists.

    Returns
    -------
    Item rows, shape (B, k), best first, filled up with :data:`PADDING`. Of level items the
    lower row comes first.

    Notes
    -----
    One pass over each row with an insertion into the ``k`` best so far: O(N + c k), where ``c``
    items entered the list, about ``k log(N / k)`` for scores in random order.

    Examples
    --------
    >>> scores = np.array([[0.9, 0.8, 0.5, 0.8]], np.float32)
    >>> top_k(scores, np.array([0, 1]), np.array([0]), k=4).tolist()
    [[1, 3, 2, -1]]

    """
    found = np.full((scores.shape[0], k), PADDING, np.int64)
    seen = np.full(scores.shape[1], -1, np.int64)  # the last event that masked each item
    best = np.empty(k, np.float32)
    _top(np.ascontiguousarray(scores, np.float32), seen_ptr, seen_idx, seen, best, found)
    return found


def rows_of(
    pointers: NDArray[np.int64], values: NDArray[np.int64], rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return some rows of a CSR matrix, such as what the users of some events have met.

    Examples
    --------
    >>> pointers, values = rows_of(np.array([0, 1, 3]), np.array([7, 8, 9]), np.array([1]))
    >>> pointers.tolist(), values.tolist()
    ([0, 2], [8, 9])

    """
    lengths = pointers[rows + 1] - pointers[rows]
    parts = [values[pointers[row] : pointers[row + 1]] for row in rows.tolist()]
    return np.concatenate([[0], np.cumsum(lengths)]), np.concatenate([values[:0], *parts])
