"""The best items for a user: the learner's score, evaluated exactly on what was published.

.. math::
    s_{u,i}(t) = h_u \\cdot z_i + b_i + w_p \\cdot p_i(t) + w_q \\cdot q_i(t)
                 + w_{c,|H_u|} \\log(1 + 50 \\, c_{u,i})

with the published vectors, bias and weights, and the features of :mod:`serving.fusion`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from serving import fusion
from serving.catalogue import PAIR, UNKNOWN, Catalogue
from serving.rows import Recent

_BLOCK: Final = 1 << 21
"""Scores computed at once: 8 MB, which stay in the processor's cache."""


def _nothing() -> NDArray[np.int64]:
    return np.empty(0, np.int64)


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """Whom to find items for, and among which.

    Parameters
    ----------
    vector
        Of the user, shape (D,).
    recent
        The user's latest events, newest first, as published.
    barred
        Rows that must not be in the list: what was seen, what is excluded. Unknown ones (-1) may
        be among them.
    only
        The rows to choose from; ``None`` is all of them.
    allowed
        Which rows may be in the list, shape (N,); ``None`` is all of them.
    n
        Items wanted, at least 1.

    """

    vector: NDArray[np.float32]
    recent: Sequence[Recent] = ()
    barred: NDArray[np.int64] = field(default_factory=_nothing)
    only: NDArray[np.int64] | None = None
    allowed: NDArray[np.bool_] | None = None
    n: int = 10


class Ranked(NamedTuple):
    """Items, best first."""

    rows: NDArray[np.int64]  # of the catalogue
    scores: NDArray[np.float32]


def recommend(
    catalogue: Catalogue, queries: Sequence[Query], *, at_ms: int | None = None
) -> list[Ranked]:
    """Return the best items of each query, exactly.

    Parameters
    ----------
    catalogue
        What was published.
    queries
        Answered together: the vectors' part is one matrix product.
    at_ms
        The moment of the stream that counts are decayed to; default the catalogue's barrier.

    Returns
    -------
    One list per query, shorter than asked for where fewer items may be in it. Of level items the
    lower row comes first.

    """
    at_ms = catalogue.barrier.at_ms if at_ms is None else at_ms
    found: dict[int, Ranked] = {}
    everywhere = []
    for at, query in enumerate(queries):
        if query.only is None:
            everywhere.append(at)
            continue
        rows = _choice(query)
        found[at] = _best(score(catalogue, query, rows, at_ms=at_ms), query.n, rows)
    size = max(1, _BLOCK // max(1, len(catalogue)))
    for first in range(0, len(everywhere), size):
        block = everywhere[first : first + size]
        asked = [queries[at] for at in block]
        scores = _score_all(catalogue, asked, at_ms)
        for at, query, row in zip(block, asked, scores, strict=True):
            row[query.barred[query.barred >= 0]] = -np.inf
            if query.allowed is not None:
                row[~query.allowed] = -np.inf
            found[at] = _best(row, query.n)
    return [found[at] for at in range(len(queries))]


def score(
    catalogue: Catalogue, query: Query, rows: NDArray[np.int64], *, at_ms: int | None = None
) -> NDArray[np.float32]:
    """Return the scores of given rows for one query, minus infinity for items not known.

    What the query bars or allows does not matter here.
    """
    parts = explain(catalogue, query, rows, at_ms=at_ms)
    scores: NDArray[np.float32] = np.sum(list(parts.values()), 0)
    scores[~catalogue.known[rows]] = -np.inf
    return scores


def explain(
    catalogue: Catalogue, query: Query, rows: NDArray[np.int64], *, at_ms: int | None = None
) -> dict[str, NDArray[np.float32]]:
    """Return what each part of the score adds for given rows; the score is their sum.

    The parts are ``vector``, ``base`` (bias and counts) and, where the user has a history and the
    part is published, ``covisitation``; :meth:`Catalogue.count_features` takes ``base`` apart.
    """
    at_ms = catalogue.barrier.at_ms if at_ms is None else at_ms
    base = catalogue.base(at_ms)[rows]
    parts = {
        "vector": catalogue.vectors[rows] @ query.vector,
        "base": np.where(np.isfinite(base), base, 0),
    }
    near = _Near(catalogue, [query])
    if near.at.size:
        parts["covisitation"] = near.factors[0] * fusion.covisitation(near.cosines[rows])
    return parts


class _Near:
    """The items that go with the histories of queries, and how well.

    Attributes
    ----------
    at
        Where in (B, N) laid flat they stand, some more than once.
    cosines
        Trusted sums of cosines, (B * N,).
    factors
        The weight of co-visitation for each query, (B,).

    """

    def __init__(self, catalogue: Catalogue, queries: Sequence[Query]) -> None:
        self.at, self.cosines = np.empty(0, np.int64), np.empty(0, np.float32)
        self.factors = np.zeros(len(queries), np.float32)
        if (weight := catalogue.weights.get("covisitation")) is None:
            return
        lengths = np.array([len(query.recent) for query in queries])
        self.factors = weight[fusion.length_class(lengths)]
        present = np.arange(lengths.max(initial=0)) < lengths[:, None]  # (B, K)
        kind = np.full(present.shape, -1, np.int8)
        kind[present] = [kind for query in queries for _, kind, _ in query.recent]
        past = np.full(present.shape, UNKNOWN, np.int64)
        past[present] = catalogue.rows([one for query in queries for one, _, _ in query.recent])
        trust = np.where(past >= 0, fusion.trust(kind), 0)
        of, k = np.nonzero(trust)
        lists = [catalogue.pairs(row) for row in past[of, k].tolist()]
        if not lists:
            return
        pairs, sizes = np.concatenate(lists).view(PAIR), [len(each) for each in lists]
        self.at = pairs["row"] + np.repeat(of * len(catalogue), sizes)
        share = np.repeat(trust[of, k] * catalogue.roots[past[of, k]], sizes)
        self.cosines = np.zeros(len(queries) * len(catalogue), np.float32)
        np.add.at(self.cosines, self.at, share * pairs["weight"] * catalogue.roots[pairs["row"]])


def _score_all(catalogue: Catalogue, queries: Sequence[Query], at_ms: int) -> NDArray[np.float32]:
    """Return the scores of all items, (B, N)."""
    scores = np.stack([query.vector for query in queries]) @ catalogue.vectors.T
    scores += catalogue.base(at_ms)
    near = _Near(catalogue, queries)
    if near.at.size:
        flat = scores.ravel()  # a view
        factors = near.factors[near.at // len(catalogue)]
        # An item that stands there twice is read twice, then written twice with the same number.
        flat[near.at] += factors * fusion.covisitation(near.cosines[near.at])
    return scores


def _choice(query: Query) -> NDArray[np.int64]:
    """Return the rows that a query chooses from, each once."""
    assert query.only is not None
    rows = np.unique(query.only[query.only >= 0])
    if query.allowed is not None:
        rows = rows[query.allowed[rows]]
    return rows[~np.isin(rows, query.barred)]


def _best(scores: NDArray[np.float32], n: int, rows: NDArray[np.int64] | None = None) -> Ranked:
    """Return the ``n`` best of the finite scores; ``rows`` says whose they are."""
    if n < scores.shape[0]:
        least = np.partition(scores, scores.shape[0] - n)[scores.shape[0] - n]
        # A first cut by values alone costs a third of argpartition, and keeps level items together.
        found = np.flatnonzero(scores >= least)
    else:
        found = np.arange(scores.shape[0])
    found = found[scores[found] > -np.inf]
    found = found[np.argsort(-scores[found], kind="stable")][:n]
    return Ranked(found if rows is None else rows[found], scores[found])
