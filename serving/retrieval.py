"""The best items for a user: the learner's score, evaluated exactly on what was published.

.. math::
    s_{u,i}(t) = h_u \\cdot z_i + b_i + w_p \\cdot p_i(t) + w_q \\cdot q_i(t)
                 + w_{c,|H_u|} \\log(1 + 50 \\, c_{u,i})

with the published vectors, bias and weights, and the features of :mod:`serving.fusion`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from serving import fusion
from serving.catalogue import PAIR, Catalogue
from serving.rows import Recent

_BLOCK: Final = 1 << 21
"""Scores computed at once: 8 MB, which stay in the processor's cache."""

_PARTS: Final = 8
"""Parts for each item wanted, of whose greatest scores one bounds what can be in the list."""


def _nothing() -> NDArray[np.int64]:
    return np.empty(0, np.int64)


class History(NamedTuple):
    """A user's latest events, as far as co-visitation asks for them."""

    rows: NDArray[np.int64]  # of the catalogue, of those trusted
    trust: NDArray[np.float32]
    length: int  # of all events
    unplaced: bool  # whether a trusted one was not in the catalogue

    @classmethod
    def of(cls, catalogue: Catalogue, recent: Sequence[Recent]) -> History:
        """Return what there is to know of events, newest first as published."""
        trust = fusion.trust(np.array([kind for _, kind, _ in recent], np.int8))
        (trusted,) = np.nonzero(trust)
        rows = catalogue.rows([recent[at][0] for at in trusted.tolist()])
        there = rows >= 0
        return cls(rows[there], trust[trusted[there]], len(recent), not there.all())


NO_HISTORY: Final = History(np.empty(0, np.int64), np.empty(0, np.float32), 0, unplaced=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """Whom to find items for, and among which.

    Parameters
    ----------
    vector
        Of the user, shape (D,).
    history
        The user's latest events.
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
    history: History = NO_HISTORY
    barred: NDArray[np.int64] = field(default_factory=_nothing)
    only: NDArray[np.int64] | None = None
    allowed: NDArray[np.bool_] | None = None
    n: int = 10


class Ranked(NamedTuple):
    """Items, best first."""

    rows: NDArray[np.int64]  # of the catalogue
    scores: NDArray[np.float32]
    covisited: NDArray[np.float32]  # what co-visitation adds to each score


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
        parts = explain(catalogue, query, rows, at_ms=at_ms)
        _, best, scores = best_of_each(_total(catalogue, rows, parts)[None], [query.n])
        covisited = parts.get("covisitation")
        found[at] = Ranked(rows[best], scores, scores * 0 if covisited is None else covisited[best])
    size = max(1, _BLOCK // max(1, len(catalogue)))
    for first in range(0, len(everywhere), size):
        block = everywhere[first : first + size]
        asked = [queries[at] for at in block]
        near = _Near(catalogue, asked)
        scores_of = _score_all(catalogue, asked, near, at_ms)
        for row, query in zip(scores_of, asked, strict=True):
            row[query.barred[query.barred >= 0]] = -np.inf
            if query.allowed is not None:
                row[~query.allowed] = -np.inf
        sizes, best, scores = best_of_each(scores_of, [query.n for query in asked])
        covisited = near.part(np.repeat(np.arange(len(asked)), sizes), best)
        ends = np.cumsum(sizes).tolist()
        for at, first, end in zip(block, [0, *ends], ends, strict=False):
            found[at] = Ranked(best[first:end], scores[first:end], covisited[first:end])
    return [found[at] for at in range(len(queries))]


def score(
    catalogue: Catalogue, query: Query, rows: NDArray[np.int64], *, at_ms: int | None = None
) -> NDArray[np.float32]:
    """Return the scores of given rows for one query, minus infinity for items not known.

    What the query bars or allows does not matter here.
    """
    return _total(catalogue, rows, explain(catalogue, query, rows, at_ms=at_ms))


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
        parts["covisitation"] = near.part(np.zeros(rows.shape, np.int64), rows)
    return parts


class _Near:
    """The items that go with the histories of queries, and how well.

    Attributes
    ----------
    at
        Where in (B, N) laid flat they stand, many more than once.
    cosines
        Trusted sums of cosines, (B * N,); empty if none of the queries has a history.
    factors
        The weight of co-visitation for each query, (B,).

    """

    def __init__(self, catalogue: Catalogue, queries: Sequence[Query]) -> None:
        self.at, self.cosines = np.empty(0, np.int64), np.empty(0, np.float32)
        self._n_items = len(catalogue)
        self.factors = np.zeros(len(queries), np.float32)
        if (weight := catalogue.weights.get("covisitation")) is None:
            return
        lengths = np.array([query.history.length for query in queries], np.int64)
        self.factors = weight[fusion.length_class(lengths)]
        past = np.concatenate([query.history.rows for query in queries])
        if not past.size:
            return
        lists = [catalogue.pairs(row) for row in past.tolist()]
        sizes = [each.shape[0] for each in lists]
        pairs, roots = np.concatenate(lists).view(PAIR), catalogue.roots
        trust = np.concatenate([query.history.trust for query in queries])
        firsts = np.repeat(
            np.arange(len(queries)) * len(catalogue),
            [query.history.rows.size for query in queries],
        )
        others = pairs["row"]
        self.at = others + np.repeat(firsts, sizes)
        shares = np.repeat(trust * roots[past], sizes)
        self.cosines = np.zeros(len(queries) * len(catalogue), np.float32)
        np.add.at(self.cosines, self.at, shares * pairs["weight"] * roots[others])

    def part(self, of: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return what co-visitation adds to the scores of rows, each for the query ``of`` it."""
        if not self.cosines.size:
            return np.zeros(rows.shape, np.float32)
        cosines = self.cosines[of * self._n_items + rows]
        part: NDArray[np.float32] = self.factors[of] * fusion.covisitation(cosines)
        return part


def _score_all(
    catalogue: Catalogue, queries: Sequence[Query], near: _Near, at_ms: int
) -> NDArray[np.float32]:
    """Return the scores of all items, (B, N)."""
    scores = np.stack([query.vector for query in queries]) @ catalogue.vectors.T
    scores += catalogue.base(at_ms)
    if near.at.size:
        flat = scores.ravel()  # a view
        factors = near.factors[near.at // len(catalogue)]
        # An item that stands there twice is read twice, then written twice with the same number.
        flat[near.at] += factors * fusion.covisitation(near.cosines[near.at])
    return scores


def _total(
    catalogue: Catalogue, rows: NDArray[np.int64], parts: Mapping[str, NDArray[np.float32]]
) -> NDArray[np.float32]:
    """Return scores from their parts, minus infinity for items not known."""
    scores: NDArray[np.float32] = np.sum(list(parts.values()), 0)
    scores[~catalogue.known[rows]] = -np.inf
    return scores


def _choice(query: Query) -> NDArray[np.int64]:
    """Return the rows that a query chooses from, each once."""
    assert query.only is not None
    rows = np.unique(query.only[query.only >= 0])
    if query.allowed is not None:
        rows = rows[query.allowed[rows]]
    return rows[~np.isin(rows, query.barred)]


def best_of_each(
    scores: NDArray[np.float32], wanted: Sequence[int]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Return the best of the finite scores of each row, best first; of level ones the first.

    Most of many are looked at once: of the greatest scores of ``m`` parts of a row, the ``n``-th
    greatest is one that at least ``n`` items reach, so none below it can be in the list.

    Parameters
    ----------
    scores
        Shape (B, N).
    wanted
        How many of each row, B.

    Returns
    -------
    How many there are of each row, where in it they stand, and what they are: row after row.

    """
    n_rows, n_items = scores.shape
    n = min(max(wanted), n_items)
    bounds = np.full(n_rows, np.finfo(np.float32).min)
    if (width := n_items // max(1, _PARTS * n)) > 1:
        # A part is every so many-th item: rows of parts are compared much faster than each alone.
        parts = scores[:, : _PARTS * n * width].reshape(n_rows, width, _PARTS * n)
        reached = np.partition(parts.max(1), (_PARTS - 1) * n, axis=1)[:, (_PARTS - 1) * n]
        bounds = np.maximum(bounds, reached)
    flat = np.flatnonzero(scores >= bounds[:, None])
    rows, places = np.divmod(flat, n_items)
    found = scores.ravel()[flat]
    order = np.lexsort((-found, rows))  # stable
    ranks = np.arange(rows.size) - np.searchsorted(rows, rows)  # rows stay where they are
    kept = order[ranks < np.asarray(wanted)[rows]]
    return np.bincount(rows[kept], minlength=n_rows), places[kept], found[kept]
