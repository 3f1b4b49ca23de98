"""Reorders a list so that its items differ from each other and nobody's items crowd it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

NO_GROUP = -1
"""The group of an item that a limit does not concern."""


class Limit(NamedTuple):
    """How often one value of an attribute, such as an author, may be shown in a list."""

    groups: NDArray[np.int64]  # (C,), the value of each candidate as a number, or NO_GROUP
    most: int


def rerank(
    scores: NDArray[np.float32],
    vectors: NDArray[np.float32],
    n: int,
    *,
    diversity: float = 0.0,
    limits: Sequence[Limit] = (),
) -> NDArray[np.int64]:
    r"""Choose items one by one: the best that is not too much like those before it.

    .. math:: \arg\max_i \; (1 - \lambda) \, r_i - \lambda \max_{j \in S} \cos(z_i, z_j)

    over the candidates that no limit forbids, with :math:`S` what was chosen so far and
    :math:`r` the scores brought to 0 .. 1 (Carbonell and Goldstein, *maximal marginal relevance*,
    SIGIR 1998). The first item is the best one allowed.

    Parameters
    ----------
    scores
        Of the candidates, shape (C,), finite.
    vectors
        Of the candidates, shape (C, D); one of length zero is like no other.
    n
        Items wanted.
    diversity
        :math:`\lambda`, 0 to 1: 0 keeps the order of the scores.
    limits
        Each holds for the whole list.

    Returns
    -------
    Positions among the candidates in their new order; fewer than ``n`` where limits or candidates
    run out. Of level candidates the one that came first stays first.

    Notes
    -----
    Costs O(n C D).

    Examples
    --------
    Items 0 and 1 are alike, and so are their authors.

    >>> scores = np.array([0.9, 0.8, 0.1], np.float32)
    >>> vectors = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    >>> rerank(scores, vectors, 3, diversity=0.7).tolist()
    [0, 2, 1]
    >>> rerank(scores, vectors, 3, limits=[Limit(np.array([7, 7, 8]), most=1)]).tolist()
    [0, 2]

    """
    if scores.size == 0:
        return np.empty(0, np.int64)
    spread = float(np.ptp(scores))
    worth = (1 - diversity) * ((scores - scores.min()) / spread if spread else scores * 0)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    directions = vectors / np.where(lengths > 0, lengths, 1)
    nearest = np.zeros(scores.shape)  # the greatest cosine with what was chosen
    free = np.ones(scores.shape, np.bool_)
    for limit in limits:
        free &= (limit.groups == NO_GROUP) | (limit.most > 0)
    shown = [np.zeros(int(limit.groups.max(initial=0)) + 1, np.int64) for limit in limits]
    chosen: list[int] = []
    while len(chosen) < n and free.any():
        best = int(np.argmax(np.where(free, worth - diversity * nearest, -np.inf)))
        cosines = directions @ directions[best]
        nearest = np.maximum(nearest, cosines) if chosen else cosines
        chosen.append(best)
        free[best] = False
        for limit, counts in zip(limits, shown, strict=True):
            group = limit.groups[best]
            if group != NO_GROUP:
                counts[group] += 1
                if counts[group] >= limit.most:
                    free &= limit.groups != group
    return np.array(chosen, np.int64)
