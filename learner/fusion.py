"""What counting adds to a model's score, read from the graph: popularity, co-visitation.

The formulas are those of :mod:`serving.fusion`, compiled here; the model learns the weights with
the rest, and whoever has the published counts and weights gets the same numbers.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from graph_store.counts import Covisitation, DecayedCounts
from graph_store.store import Neighbours
from serving import fusion
from serving.fusion import COVISITATION_SCALE, N_LENGTHS

__all__ = [
    "COVISITATION_SCALE",
    "N_LENGTHS",
    "count_features",
    "covisitation_features",
    "length_class",
    "trust",
]

# Numba's cache does not notice when these change: delete __pycache__ after an edit over there.
_average_rate = njit(fusion.average_rate)
_popularity = njit(fusion.popularity)
_click_rate = njit(fusion.click_rate)


@njit(cache=True)
def _features(
    positives: NDArray[np.float64],
    shown: NDArray[np.float64],
    fall: NDArray[np.float64],
    shown_fall: NDArray[np.float64],
    rows: NDArray[np.int64],
    popularity: NDArray[np.float32],
    click_rate: NDArray[np.float32],
) -> None:
    n_half_lives = positives.shape[1]
    for h in range(n_half_lives):
        total, shows = 0.0, 0.0
        for row in range(positives.shape[0]):
            total += positives[row, h]
            shows += shown[row, h]
        average = _average_rate(total * fall[h], shows * shown_fall[h])
        for n in range(rows.shape[0]):
            likes = positives[rows[n], h] * fall[h]
            views = shown[rows[n], h] * shown_fall[h]
            popularity[n, h] = _popularity(likes)
            click_rate[n, h] = _click_rate(likes, views, average)


def count_features(
    positives: DecayedCounts,
    shown: DecayedCounts,
    rows: NDArray[np.int64],
    *,
    n_items: int,
    at_ms: int,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    r"""Return popularity and click rate of items at each half-life, as of a time.

    .. math:: p_{i,h} = \log(1 + c_{i,h}), \qquad
              q_{i,h} = \log \frac{(c_{i,h} + m \bar q_h) / (n_{i,h} + m)}{\bar q_h}

    with decayed positives :math:`c`, shows :math:`n`, their ratio over all items
    :math:`\bar q_h`, and :math:`m` prior shows: an item that nobody was shown has the average
    rate, and the feature 0.

    Parameters
    ----------
    positives, shown
        Decayed counts.
    rows
        Items asked for, shape (C,).
    n_items
        Items known, over which the average goes.
    at_ms
        When.

    Returns
    -------
    Two arrays (C, H).

    """
    popularity = np.empty((rows.shape[0], positives.half_lives_ms.shape[0]), np.float32)
    click_rate = np.empty_like(popularity)
    size = max(n_items, int(rows.max(initial=-1)) + 1)
    _features(
        positives.stored(size),
        shown.stored(size),
        positives.decay_to(at_ms),
        shown.decay_to(at_ms),
        rows,
        popularity,
        click_rate,
    )
    return popularity, click_rate


def trust(history: Neighbours) -> NDArray[np.float32]:
    """Return how far each history item (B, K) is trusted: positives only, the latest most."""
    return fusion.trust(history.kind)


def length_class(history: Neighbours) -> NDArray[np.int64]:
    """Return which history-length class each event falls in, (B,)."""
    return fusion.length_class((history.nodes >= 0).sum(1))


def covisitation_features(
    pairs: Covisitation, history: Neighbours, candidates: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return ``log(1 + 50 c)`` of shared candidates after each history, (B, C)."""
    scores = pairs.pairs(history.nodes, trust(history), candidates)
    features: NDArray[np.float32] = np.log1p(COVISITATION_SCALE * scores)
    return features
