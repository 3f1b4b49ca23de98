"""Ranks and lists, against the dullest way to make them."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from learner.ranking import PADDING, rank_targets, top_k

N_ITEMS = 6
# Few distinct scores, so that ties are the rule; and what a system may answer when it cannot tell.
score = st.sampled_from([0.0, 0.25, 0.5, 1.0, -math.inf, math.nan])
rows = st.lists(
    st.tuples(
        st.lists(score, min_size=N_ITEMS, max_size=N_ITEMS),
        st.integers(0, N_ITEMS + 1),
        st.sets(st.integers(-1, N_ITEMS + 1)),
    ),
    min_size=1,
    max_size=4,
)
Row = tuple[list[float], int, set[int]]


def arrays(
    rows: list[Row],
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    scores = np.array([row[0] for row in rows], np.float32)
    targets = np.array([row[1] for row in rows])
    seen_ptr = np.cumsum([0, *(len(row[2]) for row in rows)])
    seen_idx = np.array([item for row in rows for item in row[2]], np.int64)
    return scores, targets, seen_ptr, seen_idx


def plain_rank(scores: list[float], target: int, seen: set[int]) -> float:
    if target >= N_ITEMS or math.isnan(scores[target]) or scores[target] == -math.inf:
        return math.inf
    rivals = [s for j, s in enumerate(scores) if j != target and j not in seen]
    above = sum(s > scores[target] for s in rivals)
    level = sum(s == scores[target] for s in rivals)
    places = range(1 + above, 1 + above + level + 1)  # those that the level items share
    return sum(places) / len(places)


def plain_top(scores: list[float], seen: set[int], k: int) -> list[int]:
    can = [j for j, s in enumerate(scores) if j not in seen and s > -math.inf]
    best = sorted(can, key=lambda j: (-scores[j], j))[:k]
    return best + [PADDING] * (k - len(best))


@settings(deadline=None)  # the first example waits for the compiler
@given(rows=rows)
def test_ranks_agree_with_counting_places_by_hand(rows: list[Row]) -> None:
    found = rank_targets(*arrays(rows))
    assert found.tolist() == [plain_rank(*row) for row in rows]


@settings(deadline=None)
@given(rows=rows, k=st.integers(1, N_ITEMS + 2))
def test_lists_agree_with_sorting_everything(rows: list[Row], k: int) -> None:
    scores, _, seen_ptr, seen_idx = arrays(rows)
    found = top_k(scores, seen_ptr, seen_idx, k)
    assert found.tolist() == [plain_top(row[0], row[2], k) for row in rows]


def test_an_item_met_before_is_ranked_when_it_is_the_target() -> None:
    scores = np.array([[0.1, 0.9, 0.5]], np.float32)
    seen_ptr, seen_idx = np.array([0, 2]), np.array([1, 2])
    assert rank_targets(scores, np.array([2]), seen_ptr, seen_idx).tolist() == [1.0]


def test_an_item_not_yet_known_is_a_miss_not_a_crash() -> None:
    scores = np.zeros((1, 3), np.float32)
    nothing = np.array([0, 0]), np.array([], np.int64)
    assert rank_targets(scores, np.array([3]), *nothing).tolist() == [math.inf]


def test_scoring_all_items_alike_ranks_in_the_middle() -> None:
    scores = np.zeros((1, 101), np.float32)
    nothing = np.array([0, 0]), np.array([], np.int64)
    assert rank_targets(scores, np.array([7]), *nothing).tolist() == [51.0]


def test_a_catalogue_without_items_leaves_an_empty_list() -> None:
    nothing = np.array([0, 0]), np.array([], np.int64)
    assert top_k(np.zeros((1, 0), np.float32), *nothing, k=2).tolist() == [[PADDING, PADDING]]
