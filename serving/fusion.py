"""What counting adds to a model's score, as formulas over plain numbers and arrays.

The learner learns the weights of these features from its graph, and serving applies them to what
was published: both evaluate the functions below, so their lists agree.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from stream.events import Kind

PRIOR_SHOWS: Final = 5.0
"""Shows at the average click rate that every item starts with."""

COVISITATION_SCALE: Final = 50.0
"""Cosines are small: the feature is ``log(1 + 50 c)``."""

TRUST_DECAY: Final = 0.8
"""Trust in each history item, per step back."""

LENGTH_EDGES: Final = (1, 3, 6, 11, 20)
"""Where the history lengths part that weigh co-visitation differently."""

N_LENGTHS: Final = len(LENGTH_EDGES) + 1

# The first three take numbers as well as arrays: the learner compiles them with Numba.


def average_rate(positives: Any, shown: Any) -> Any:
    """Return the click rate over all items, from the sums of their decayed counts."""
    return (positives + 1.0) / (shown + 2.0)


def popularity(positives: Any) -> Any:
    r"""Return :math:`\log(1 + c)` of decayed positives."""
    return np.log1p(positives)


def click_rate(positives: Any, shown: Any, average: Any) -> Any:
    r"""Return the smoothed click rate of items over the average one, as a logarithm.

    .. math:: q = \log \frac{(c + m \bar q) / (n + m)}{\bar q}

    with decayed positives :math:`c`, shows :math:`n`, the average :math:`\bar q` and :math:`m`
    prior shows: an item that nobody was shown has the average rate, and the feature 0.
    """
    return np.log((positives + PRIOR_SHOWS * average) / (shown + PRIOR_SHOWS) / average)


def covisitation(cosines: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the feature ``log(1 + 50 c)`` of trusted sums of cosines."""
    # Not log1p, which takes ten times as long; they differ by rounding, 1e-7.
    feature: NDArray[np.float32] = np.log(1 + np.float32(COVISITATION_SCALE) * cosines)
    return feature


def trust(kind: NDArray[np.int8]) -> NDArray[np.float32]:
    """Return how far each past event (..., K), newest first, is trusted: only if positive.

    Padding is of kind -1.
    """
    liked = (kind >= 0) & (kind <= int(Kind.IMPLICIT_POSITIVE))
    decay = TRUST_DECAY ** np.arange(kind.shape[-1], dtype=np.float32)
    return np.where(liked, decay, 0).astype(np.float32)


def length_class(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return which length class histories of so many events, of any kind, fall in."""
    return np.digitize(lengths, LENGTH_EDGES)
