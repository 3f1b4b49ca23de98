"""Metrics, by hand on a log of seven events and against naive loops on random ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from replay.metrics import (
    DAY_MS,
    HOUR_MS,
    Catalogue,
    Outcomes,
    TestEvents,
    buckets,
    gain,
    gini,
    slices,
    summarise,
)


def make_events(rows: list[tuple[int, int, int, int]], **columns: Any) -> TestEvents:
    """Make test events from (user, item, ts_ms, kind), in order of time."""
    user, item, ts_ms, kind = (np.array(column, np.int64) for column in zip(*rows, strict=True))
    n = len(rows)
    defaults: dict[str, Any] = {
        "history_length": np.zeros(n, np.int64),
        "item_known": np.ones(n, bool),
        "item_known_before_t2": np.ones(n, bool),
        "user_known_before_t2": np.ones(n, bool),
        "ranked": kind <= 1,
    }
    return TestEvents(
        user=user, item=item, ts_ms=ts_ms, kind=kind.astype(np.int8), **(defaults | columns)
    )


def make_outcomes(
    events: TestEvents, ranks: list[float], top: list[list[int]], own: list[float] | None = None
) -> Outcomes:
    lists = np.full((len(ranks), 20), -1, np.int32)
    for row, items in enumerate(top):
        lists[row, : len(items)] = items
    score = np.zeros(len(events)) if own is None else np.array(own)
    return Outcomes(rank=np.array(ranks), top=lists, own_score=score.astype(np.float32))


def make_catalogue(n_items: int) -> Catalogue:
    return Catalogue(events_before_t2=np.arange(n_items), first_ms=np.zeros(n_items, np.int64))


def test_gains_at_the_edge_of_the_list() -> None:
    rank = np.array([1.0, 10.0, 10.5, np.inf])
    assert gain(rank, "hr@10").tolist() == [1, 1, 0, 0]
    assert gain(rank, "mrr@10").tolist() == [1, 0.1, 0, 0]
    assert gain(rank, "ndcg@10") == pytest.approx([1, 1 / np.log2(11), 0, 0])


@pytest.mark.parametrize("name", ["recall@10", "hr", "hr@", "ndcg@ten"])
def test_a_metric_nobody_knows_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=f"got '{name}'"):
        gain(np.array([1.0]), name)


def test_a_hand_made_log_gives_the_figures_worked_out_by_hand() -> None:
    """Two users, a day and a half; user 0 likes 1, 2 and turns 3 down, user 1 dislikes 4."""
    events = make_events(
        [
            (0, 1, 0, 1),  # ranked 0: list holds 1, 2, 3
            (1, 5, 1_000, 0),  # ranked 1: list holds 4, 1
            (0, 3, HOUR_MS, 2),
            (0, 2, 2 * HOUR_MS, 1),  # ranked 2: list holds 3
            (1, 4, 5 * HOUR_MS, 3),
            (1, 1, DAY_MS + 1_000, 1),  # ranked 3: empty list
        ]
    )
    outcomes = make_outcomes(
        events,
        ranks=[1.0, np.inf, 2.0, 4.0],
        top=[[1, 2, 3], [4, 1], [3], []],
        own=[0.9, 0.5, 0.4, 0.4, 0.7, 0.6],
    )
    found = summarise(events, outcomes, make_catalogue(6))
    assert found["hr@5"] == 0.75
    assert found["mrr@5"] == pytest.approx((1 + 0 + 1 / 2 + 1 / 4) / 4)
    # Of the next day: user 0 likes {1, 2}, then {2}; user 1 likes {5} (item 1 comes a day
    # later, which is too late), then {1}.
    assert found["window_recall@5"] == pytest.approx((2 / 2 + 0 / 1 + 0 / 1 + 0 / 1) / 4)
    # Later turned down: 3 in the list of ranked 0, not of ranked 2, which comes after it; and 4.
    assert found["neg@5"] == pytest.approx(2 / 6)
    assert found["dislike@5"] == pytest.approx(1 / 6)
    # User 0: .9 and .4 against .4: one win, one tie. User 1: .5 and .6 against .7: none.
    assert found["auc_pos_neg"] == pytest.approx((1.5 / 2 + 0 / 2) / 2)
    assert found["auc_users"] == 2
    # At most an hour apart: (0 h, 1 h) won, (2 h, 1 h) tied.
    assert (found["pairwise_accuracy"], found["pairs"]) == (0.75, 2)
    assert found["coverage@10"] == pytest.approx(4 / 6)
    assert found["slices"]["known_items"] == {
        "n": 4,
        "hr@10": 0.75,
        "ndcg@10": pytest.approx((1 + 0 + 1 / np.log2(3) + 1 / np.log2(5)) / 4),
    }


def test_an_event_whose_item_was_not_known_takes_no_part_in_the_auc() -> None:
    events = make_events([(0, 1, 0, 1), (0, 2, 1, 2), (0, 3, 2, 2)])
    outcomes = make_outcomes(events, [1.0], [[1]], own=[0.5, np.nan, 0.4])
    assert summarise(events, outcomes, make_catalogue(4))["auc_pos_neg"] == 1.0


def test_what_the_data_cannot_tell_is_none_not_nan() -> None:
    events = make_events([(0, 1, 0, 1)])
    found = summarise(events, make_outcomes(events, [np.inf], [[]]), make_catalogue(2))
    assert found["auc_pos_neg"] is None
    assert found["pairwise_accuracy"] is None
    assert found["novelty@10"] is None
    assert found["slices"]["new_items"] == {"n": 0, "hr@10": None, "ndcg@10": None}


def test_the_ceiling_is_the_share_of_ranked_events_with_a_known_item() -> None:
    events = make_events(
        [(0, 1, 0, 1), (0, 2, 1, 1), (0, 3, 2, 2)], item_known=np.array([True, False, False])
    )
    assert events.ceiling == 0.5


def test_every_ranked_event_is_in_one_slice_of_each_kind() -> None:
    rows = [(n % 3, n, n, 1) for n in range(60)]
    length = np.arange(60)
    known = np.arange(60) % 2 == 0
    events = make_events(
        rows, history_length=length, item_known_before_t2=known, user_known_before_t2=known
    )
    cut = slices(events, make_catalogue(60))
    n = {name: int(where.sum()) for name, where in cut.items()}
    assert n["known_items"] + n["new_items"] == 60
    assert n["known_users"] + n["new_users"] == 60
    assert [n[f"history_{name}"] for name in ("0", "1_10", "11_50", "over_50")] == [1, 10, 40, 9]
    # Item 0 had no event before T2 and belongs to no tenth.
    assert sum(n[f"popularity_decile_{tenth}"] for tenth in range(1, 11)) == 59


@given(counts=st.lists(st.integers(0, 5), min_size=1, max_size=40))
def test_tenths_of_popularity_keep_order_and_treat_equals_alike(counts: list[int]) -> None:
    decile = Catalogue(
        events_before_t2=np.array(counts), first_ms=np.zeros(len(counts), np.int64)
    ).decile.tolist()
    by_count = dict(zip(counts, decile, strict=True))
    assert [by_count[count] for count in counts] == decile
    tenths = [by_count[count] for count in sorted(by_count)]
    assert tenths == sorted(tenths)
    assert all((count == 0) == (tenth == 0) for count, tenth in by_count.items())


def test_buckets_are_as_fine_as_the_number_of_events_allows() -> None:
    hourly, _ = buckets(np.repeat(np.arange(10) * HOUR_MS, 200))
    daily, start_ms = buckets(np.repeat(np.arange(48) * HOUR_MS, 10))
    assert hourly == HOUR_MS
    assert daily == DAY_MS
    assert np.unique(start_ms).tolist() == [0, DAY_MS]


def test_gini_is_that_of_the_mean_difference() -> None:
    exposure = np.array([1, 4, 0, 7, 7])
    difference = np.abs(exposure[:, None] - exposure[None]).mean()
    assert gini(exposure) == pytest.approx(difference / (2 * exposure.mean()))


event = st.tuples(st.integers(0, 2), st.integers(0, 4), st.integers(0, 60), st.integers(0, 3))


@settings(deadline=None)
@given(
    rows=st.lists(event, min_size=1, max_size=25).map(
        lambda rows: sorted(rows, key=lambda r: r[2])
    ),
    seed=st.integers(0, 99),
)
def test_figures_over_users_agree_with_naive_loops(
    rows: list[tuple[int, int, int, int]], seed: int
) -> None:
    rows = [(user, item, hour * HOUR_MS, kind) for user, item, hour, kind in rows]
    events = make_events(rows)
    random = np.random.default_rng(seed)
    n_ranked = int(events.ranked.sum())
    lists = [random.permutation(5)[: random.integers(0, 6)].tolist() for _ in range(n_ranked)]
    own = random.integers(0, 3, len(rows)).astype(float)
    outcomes = make_outcomes(events, [1.0] * n_ranked, lists, own.tolist())
    found = summarise(events, outcomes, make_catalogue(5))
    assert found["window_recall@5"] == plain_window_recall(rows, lists)
    assert found["neg@5"] == plain_neg(rows, lists)
    assert found["auc_pos_neg"] == plain_auc(rows, own)


def plain_window_recall(rows: list[tuple[int, int, int, int]], lists: list[list[int]]) -> Any:
    shares = []
    ranked = [row for row in enumerate(rows) if row[1][3] <= 1]
    for (n, (user, _, ts_ms, _)), listed in zip(ranked, lists, strict=True):
        targets = {
            i for u, i, t, kind in rows[n:] if u == user and kind <= 1 and t - ts_ms < DAY_MS
        }
        shares.append(len(targets & set(listed)) / len(targets))
    return pytest.approx(np.mean(shares)) if shares else None


def plain_neg(rows: list[tuple[int, int, int, int]], lists: list[list[int]]) -> Any:
    ranked = [row for row in rows if row[3] <= 1]
    turned_down = sum(
        any(u == user and i == item and kind > 1 and t > ts_ms for u, i, t, kind in rows)
        for (user, _, ts_ms, _), listed in zip(ranked, lists, strict=True)
        for item in listed
    )
    return pytest.approx(turned_down / max(sum(map(len, lists)), 1))


def plain_auc(rows: list[tuple[int, int, int, int]], own: NDArray[np.float64]) -> Any:
    per_user = []
    for user in range(3):
        liked = [s for row, s in zip(rows, own, strict=True) if row[0] == user and row[3] <= 1]
        other = [s for row, s in zip(rows, own, strict=True) if row[0] == user and row[3] > 1]
        if liked and other:
            per_user.append(np.mean([(a > b) + 0.5 * (a == b) for a in liked for b in other]))
    return pytest.approx(np.mean(per_user)) if per_user else None
