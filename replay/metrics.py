"""What the outcomes of a replay amount to: every figure as a pure function of arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

CUTOFFS: Final = (5, 10, 20)
"""Lengths of ranking at which metrics are taken."""

RANK_METRICS: Final = tuple(f"{name}@{k}" for k in CUTOFFS for name in ("hr", "ndcg", "mrr"))
"""Every metric that is a function of one event's rank."""

HOUR_MS: Final = 3_600_000
DAY_MS: Final = 24 * HOUR_MS

EXPLICIT_NEGATIVE: Final = 3
"""The kind of a dislike, as :class:`stream.events.Kind` numbers it."""

BUCKETS_MS: Final = (HOUR_MS, 3 * HOUR_MS, 6 * HOUR_MS, DAY_MS, 7 * DAY_MS, 28 * DAY_MS)
"""Widths from which the curve over time takes the finest that is not mostly noise."""


@dataclass(frozen=True, kw_only=True)
class TestEvents:
    """The typed events after T2, in the order of the log, the same for every system.

    Shape
    -----
    ``E`` typed test events, all arrays (E,); ``M`` of them are ``ranked``.

    Parameters
    ----------
    user, item
        Dense rows.
    ts_ms
        Event times.
    kind
        Feedback class, 0 to 3; 0 and 1 are positive.
    history_length
        Accepted events that the user had before this one, not bounded by what the graph keeps.
    item_known
        Whether the item was a candidate when the event was ranked.
    item_known_before_t2, user_known_before_t2
        Whether any accepted event before T2 named the item, the user.
    ranked
        Whether the event's item was ranked: a positive (all of them, or a sampled share).

    """

    __test__ = False  # the name is what it holds, not a test case

    user: NDArray[np.int64]
    item: NDArray[np.int64]
    ts_ms: NDArray[np.int64]
    kind: NDArray[np.int8]
    history_length: NDArray[np.int64]
    item_known: NDArray[np.bool_]
    item_known_before_t2: NDArray[np.bool_]
    user_known_before_t2: NDArray[np.bool_]
    ranked: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.user)

    @property
    def positive(self) -> NDArray[np.bool_]:
        """Which events are positive, explicit or implicit."""
        return self.kind <= 1

    @property
    def ceiling(self) -> float:
        """Share of ranked events whose item could be recommended at all."""
        return _mean(self.item_known[self.ranked])


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """What one system made of the test events.

    Parameters
    ----------
    rank
        Mean rank of each ranked event's item, shape (M,), infinite for a miss.
    top
        The best items not met before, shape (M, 20), any integer type, padded with -1.
    own_score
        Score that each typed test event's item had just before the event, shape (E,); NaN where the
        item was not known.

    """

    rank: NDArray[np.float64]
    top: NDArray[np.integer[Any]]
    own_score: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """What is known of the items at the end of the replay, arrays of shape (N,) by row.

    Parameters
    ----------
    events_before_t2
        Accepted events of each item before T2, of any class.
    first_ms
        Time of each item's first accepted event.

    """

    events_before_t2: NDArray[np.int64]
    first_ms: NDArray[np.int64]

    @property
    def decile(self) -> NDArray[np.int8]:
        """Tenth by number of events before T2: 10 most popular, 0 for an item unseen before T2.

        Items with as many events share a tenth.

        Examples
        --------
        >>> counts = np.array([5, 0, 1, 9])
        >>> Catalogue(events_before_t2=counts, first_ms=np.zeros(4, np.int64)).decile.tolist()
        [6, 0, 2, 9]

        """
        counts = self.events_before_t2
        known = np.sort(counts[counts > 0])
        below = np.searchsorted(known, counts, side="left")
        up_to = np.searchsorted(known, counts, side="right")
        middle = (below + up_to) / 2.0 / max(known.shape[0], 1)
        tenth = np.minimum(np.floor(middle * 10.0) + 1.0, 10.0)
        return np.where(counts > 0, tenth, 0).astype(np.int8)


def gain(rank: NDArray[np.float64], metric: str) -> NDArray[np.float64]:
    r"""Return what each event adds to a metric, given the rank of its one relevant item.

    .. math::
        \text{HR} = [r \le k], \qquad \text{NDCG} = \frac{[r \le k]}{\log_2(1 + r)}, \qquad
        \text{MRR} = \frac{[r \le k]}{r}

    The metric is the mean over events. With one relevant item Recall is HR.

    Parameters
    ----------
    rank
        Shape (M,), 1 is the top, infinite for a miss.
    metric
        ``hr@k``, ``ndcg@k`` or ``mrr@k``.

    Raises
    ------
    ValueError
        If the metric has another name.

    Examples
    --------
    >>> gain(np.array([1.0, 3.0, 11.0, np.inf]), "ndcg@10").tolist()
    [1.0, 0.5, 0.0, 0.0]

    """
    name, _, cutoff = metric.partition("@")
    if name not in {"hr", "ndcg", "mrr"} or not cutoff.isdigit():
        raise ValueError(f"wanted hr@k, ndcg@k or mrr@k, got {metric!r}")
    within = rank <= int(cutoff)
    if name == "hr":
        return within.astype(np.float64)
    with np.errstate(divide="ignore"):
        worth = 1.0 / np.log2(1.0 + rank) if name == "ndcg" else 1.0 / rank
    return np.where(within, worth, 0.0)


def summarise(events: TestEvents, outcomes: Outcomes, catalogue: Catalogue) -> dict[str, Any]:
    """Return every figure of one system, by the names that the report uses.

    A figure that the data cannot give (no negative events, no user with both) is ``None``.
    """
    ranked = events.ranked
    shown = outcomes.top[:, :10]
    ages_ms = _ages_ms(shown, events.ts_ms[ranked], catalogue)
    separation = _separation(events, outcomes.own_score)
    summary = {metric: _mean(gain(outcomes.rank, metric)) for metric in RANK_METRICS}
    for k, share in zip(CUTOFFS, _window_recall(events, outcomes.top).T, strict=True):
        summary[f"window_recall@{k}"] = _mean(share)
    for k in CUTOFFS:
        listed = max(int((outcomes.top[:, :k] >= 0).sum()), 1)
        turned_down, disliked = _later_negatives(events, outcomes.top[:, :k])
        summary[f"neg@{k}"] = turned_down / listed
        summary[f"dislike@{k}"] = disliked / listed
    exposure = np.bincount(shown[shown >= 0], minlength=catalogue.first_ms.shape[0])
    summary |= {
        "coverage@10": _mean(exposure > 0),
        "gini@10": gini(exposure),
        "novelty@10": _mean(_surprise(shown, catalogue)),
        "age_hours@10": _median(ages_ms / HOUR_MS),
    }
    nested: dict[str, Any] = {name: _defined(value) for name, value in summary.items()}
    nested |= separation
    nested["slices"] = {
        name: {
            "n": int(where.sum()),
            **{m: _defined(_mean(gain(outcomes.rank[where], m))) for m in ("hr@10", "ndcg@10")},
        }
        for name, where in slices(events, catalogue).items()
    }
    return nested


def slices(events: TestEvents, catalogue: Catalogue) -> dict[str, NDArray[np.bool_]]:
    """Return which ranked events belong to each slice, masks of shape (M,)."""
    ranked = events.ranked
    item_known = events.item_known_before_t2[ranked]
    user_known = events.user_known_before_t2[ranked]
    length = events.history_length[ranked]
    decile = catalogue.decile[events.item[ranked]]
    return {
        "known_items": item_known,
        "new_items": ~item_known,
        "known_users": user_known,
        "new_users": ~user_known,
        "history_0": length == 0,
        "history_1_10": (length >= 1) & (length <= 10),
        "history_11_50": (length >= 11) & (length <= 50),
        "history_over_50": length > 50,
        **{f"popularity_decile_{tenth}": decile == tenth for tenth in range(1, 11)},
    }


def buckets(ts_ms: NDArray[np.int64]) -> tuple[int, NDArray[np.int64]]:
    """Cut time into the finest even buckets that hold 200 events each on average.

    Returns
    -------
    Width in ms, and the start of the bucket that each event falls into, shape (M,).

    Examples
    --------
    >>> width_ms, start_ms = buckets(np.repeat([0, 5_000_000], 400))
    >>> width_ms, np.unique(start_ms).tolist()
    (3600000, [0, 3600000])

    """
    width_ms = BUCKETS_MS[-1]
    for width_ms in BUCKETS_MS:
        if ts_ms.shape[0] >= 200 * np.unique(ts_ms // width_ms).shape[0]:
            break
    return width_ms, ts_ms // width_ms * width_ms


def gini(exposure: NDArray[np.integer[Any]]) -> float:
    r"""Return how unevenly recommendations fall on items: 0 all alike, near 1 all on one.

    .. math:: G = \frac{2 \sum_i i\, x_{(i)}}{n \sum_i x_i} - \frac{n + 1}{n}

    Examples
    --------
    >>> gini(np.array([3, 3, 3])), gini(np.array([0, 0, 0, 8]))
    (0.0, 0.75)

    """
    n, total = exposure.shape[0], float(exposure.sum())
    if not total:
        return float("nan")
    order = np.arange(1, n + 1)
    return float(2.0 * (order * np.sort(exposure)).sum() / (n * total) - (n + 1) / n)


def _ages_ms(
    shown: NDArray[np.integer[Any]], ts_ms: NDArray[np.int64], catalogue: Catalogue
) -> NDArray[np.int64]:
    """Return how long before the recommendation each recommended item had first been seen."""
    event, slot = np.nonzero(shown >= 0)
    ages_ms: NDArray[np.int64] = ts_ms[event] - catalogue.first_ms[shown[event, slot]]
    return ages_ms


def _surprise(shown: NDArray[np.integer[Any]], catalogue: Catalogue) -> NDArray[np.float64]:
    """Return the bits of each recommended item: minus log2 of its share of events before T2."""
    counts = catalogue.events_before_t2 + 1.0  # an item of no events is rare, not impossible
    bits = -np.log2(counts / counts.sum())
    found: NDArray[np.float64] = bits[shown[shown >= 0]]
    return found


@njit(cache=True)
def _pairs_won(user, ts_ms, positive, score, within_ms):  # type: ignore[no-untyped-def]
    """Compare each user's positive events with its negative ones; events come sorted by user.

    Returns, per user in order of appearance: comparisons won (ties are half a win) and made, of
    all pairs and of the pairs no further apart in time than ``within_ms``.
    """
    table = np.zeros((user.shape[0], 4))
    n_users, first = 0, 0
    while first < user.shape[0]:
        last = first
        while last < user.shape[0] and user[last] == user[first]:
            last += 1
        for liked in range(first, last):
            if not positive[liked]:
                continue
            for other in range(first, last):
                if positive[other]:
                    continue
                won = 0.0
                if score[liked] > score[other]:
                    won = 1.0
                elif score[liked] == score[other]:
                    won = 0.5
                table[n_users, 0] += won
                table[n_users, 1] += 1.0
                if abs(ts_ms[liked] - ts_ms[other]) <= within_ms:
                    table[n_users, 2] += won
                    table[n_users, 3] += 1.0
        n_users += 1
        first = last
    return table[:n_users]


def _separation(events: TestEvents, own_score: NDArray[np.float32]) -> dict[str, Any]:
    """Tell how well scores part the positive from the negative events of one user.

    The AUC is taken per user and averaged over users who have both; the accuracy counts pairs at
    most an hour apart, so that a drift of all scores with time neither helps nor harms.
    """
    scored = ~np.isnan(own_score)
    order = np.flatnonzero(scored)[np.argsort(events.user[scored], kind="stable")]
    table = _pairs_won(
        events.user[order], events.ts_ms[order], events.positive[order], own_score[order], HOUR_MS
    )
    both = table[:, 1] > 0
    close, pairs = table[:, 2].sum(), table[:, 3].sum()
    return {
        "auc_pos_neg": _defined(_mean(table[both, 0] / table[both, 1])),
        "auc_users": int(both.sum()),
        "pairwise_accuracy": float(close / pairs) if pairs else None,
        "pairs": int(pairs),
    }


@njit(cache=True)
def _window_hits(user, item, ts_ms, positive, ranked_index, top, window_ms, cutoffs, latest):  # type: ignore[no-untyped-def]
    """Return the share of each event's targets in its list; events come sorted by (user, time).

    ``ranked_index`` is each event's row of ``top`` or -1; ``latest`` is one slot per item.
    """
    share = np.zeros((top.shape[0], cutoffs.shape[0]))
    for event in range(user.shape[0]):
        row = ranked_index[event]
        if row < 0:
            continue
        n_targets = 0
        other = event
        while (
            other < user.shape[0]
            and user[other] == user[event]
            and ts_ms[other] - ts_ms[event] < window_ms
        ):
            if positive[other] and latest[item[other]] != event:
                latest[item[other]] = event
                n_targets += 1
                for place in range(top.shape[1]):
                    if top[row, place] == item[other]:
                        for c in range(cutoffs.shape[0]):
                            share[row, c] += place < cutoffs[c]
            other += 1
        share[row] /= max(n_targets, 1)
    return share


def _window_recall(events: TestEvents, top: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """Return the share of the user's distinct positives of the next day that each list holds."""
    ranked_index = np.full(len(events), -1, np.int64)
    ranked_index[events.ranked] = np.arange(top.shape[0])
    order = np.argsort(events.user, kind="stable")
    latest = np.full(int(events.item.max(initial=-1)) + 1, -1, np.int64)
    cutoffs = np.array(CUTOFFS)
    share: NDArray[np.float64] = _window_hits(
        events.user[order], events.item[order], events.ts_ms[order], events.positive[order],
        ranked_index[order], top, DAY_MS, cutoffs, latest,
    )  # fmt: skip
    return share


@njit(cache=True)
def _count_later(user, item, ts_ms, negative, ranked_index, top, owner, last_ms):  # type: ignore[no-untyped-def]
    """Count listed items that the same user meets later with a negative; sorted by (user, time)."""
    found = 0
    first = 0
    while first < user.shape[0]:
        last = first
        while last < user.shape[0] and user[last] == user[first]:
            if negative[last]:
                owner[item[last]] = user[last]
                last_ms[item[last]] = ts_ms[last]
            last += 1
        for event in range(first, last):
            row = ranked_index[event]
            if row < 0:
                continue
            for place in range(top.shape[1]):
                shown = top[row, place]
                if (
                    0 <= shown < owner.shape[0]
                    and owner[shown] == user[event]
                    and last_ms[shown] > ts_ms[event]
                ):
                    found += 1
        first = last
    return found


def _later_negatives(events: TestEvents, top: NDArray[np.integer[Any]]) -> tuple[int, int]:
    """Count the listed items that the user later turns down, and those that it dislikes."""
    ranked_index = np.full(len(events), -1, np.int64)
    ranked_index[events.ranked] = np.arange(top.shape[0])
    order = np.argsort(events.user, kind="stable")
    n_items = int(events.item.max(initial=-1)) + 1
    counts = [
        _count_later(
            events.user[order], events.item[order], events.ts_ms[order], negative[order],
            ranked_index[order], np.ascontiguousarray(top), np.full(n_items, -1, np.int64),
            np.zeros(n_items, np.int64),
        )
        for negative in (~events.positive, events.kind == EXPLICIT_NEGATIVE)
    ]  # fmt: skip
    return int(counts[0]), int(counts[1])


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean()) if values.size else float("nan")


def _median(values: NDArray[Any]) -> float:
    return float(np.median(values)) if values.size else float("nan")


def _defined(value: float) -> float | None:
    return value if np.isfinite(value) else None
