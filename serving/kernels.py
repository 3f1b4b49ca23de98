"""Compiled loops of retrieval: sums over pairs, and the best of many scores.

They are compiled when this module is first imported, so that no request waits for it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray


@njit(
    "int64(int32[::1], float32[::1], int64[::1], float32[::1], int64[::1], float32[::1],"
    " float32[::1], int64[::1])",
    cache=True,
)
def sum_cosines(
    rows: NDArray[np.int32],
    weights: NDArray[np.float32],
    sizes: NDArray[np.int64],
    shares: NDArray[np.float32],
    firsts: NDArray[np.int64],
    roots: NDArray[np.float32],
    cosines: NDArray[np.float32],
    at: NDArray[np.int64],
) -> int:
    """Add up how well items go with what was met: ``share * weight * root`` over all pairs.

    Parameters
    ----------
    rows, weights
        The pairs of all lists, one list after the other; each pair takes two places, of which
        ``rows`` has its number in the first and ``weights`` in the second.
    sizes, shares, firsts
        Of each list: its pairs, what all of them are multiplied by, and where in ``cosines`` the
        scores of its query begin; shape (L,).
    roots
        Of the items, shape (N,).
    cosines
        Sums, zero before, shape (B * N,).
    at
        Filled with the places that are not zero any more; room for all pairs.

    Returns
    -------
    How many places were filled. One whose first addend was zero may stand there twice.

    """
    n = 0
    pair = 0
    for number in range(sizes.shape[0]):
        share = shares[number]
        first = firsts[number]
        for _ in range(sizes[number]):
            row = rows[2 * pair]
            place = first + row
            if cosines[place] == 0:
                at[n] = place
                n += 1
            cosines[place] += share * weights[2 * pair + 1] * roots[row]
            pair += 1
    return n


@njit("int64(float32[::1], int64[::1], float32[::1])", cache=True)
def take_best(
    scores: NDArray[np.float32], places: NDArray[np.int64], best: NDArray[np.float32]
) -> Any:
    """Find the greatest scores that are not minus infinity, best first; of level ones the first.

    Parameters
    ----------
    scores
        Shape (N,).
    places, best
        Filled with where they stand and what they are; as many as are wanted.

    Returns
    -------
    How many were found.

    """
    n = 0
    least = np.float32(-np.inf)
    for place in range(scores.shape[0]):
        score = scores[place]
        if not score > least:
            continue
        at = min(n, best.shape[0] - 1)
        while at > 0 and best[at - 1] < score:
            best[at] = best[at - 1]
            places[at] = places[at - 1]
            at -= 1
        best[at] = score
        places[at] = place
        n = min(n + 1, best.shape[0])
        if n == best.shape[0]:
            least = best[n - 1]
    return n
