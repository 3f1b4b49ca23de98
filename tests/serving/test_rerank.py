"""A reordered list follows the definition, step by step, and keeps to its limits."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.rerank import NO_GROUP, Limit, rerank

candidate = st.tuples(
    st.integers(-8, 8),  # score, in eighths
    st.sampled_from([(0, 0), (1, 0), (0, 1), (1, 1), (-1, 0), (2, -1)]),
    st.integers(NO_GROUP, 2),
    st.integers(NO_GROUP, 3),
)
candidates = st.lists(candidate, max_size=9)


def cosine(a: tuple[int, int], b: tuple[int, int]) -> float:
    lengths = float(np.hypot(*a) * np.hypot(*b))
    return (a[0] * b[0] + a[1] * b[1]) / lengths if lengths else 0.0


@given(
    given=candidates,
    n=st.integers(0, 10),
    diversity=st.sampled_from([0.0, 0.3, 0.7, 1.0]),
    most=st.tuples(st.integers(0, 3), st.integers(0, 3)),
)
def test_each_item_is_the_best_of_those_left(
    given: list[tuple[int, tuple[int, int], int, int]],
    n: int,
    diversity: float,
    most: tuple[int, int],
) -> None:
    scores = [score / 8 for score, *_ in given]
    groups = [[one[2 + which] for one in given] for which in (0, 1)]
    got = rerank(
        np.array(scores, np.float32),
        np.array([vector for _, vector, *_ in given], np.float32).reshape(len(given), 2),
        n,
        diversity=diversity,
        limits=[Limit(np.array(groups[which], np.int64), most[which]) for which in (0, 1)],
    ).tolist()
    chosen: list[int] = []
    for found in [*got, None]:
        left = [
            at
            for at in range(len(given))
            if at not in chosen
            and all(
                groups[which][at] == NO_GROUP
                or Counter(groups[which][each] for each in chosen)[groups[which][at]] < most[which]
                for which in (0, 1)
            )
        ]
        if found is None:
            assert len(chosen) == n or not left
            break
        low, high = min(scores), max(scores)
        worth = {
            at: (1 - diversity) * ((scores[at] - low) / (high - low) if high > low else 0)
            - diversity * max((cosine(given[at][1], given[j][1]) for j in chosen), default=0)
            for at in left
        }
        assert found in left
        assert worth[found] == pytest.approx(max(worth.values()), abs=1e-6)
        chosen.append(found)


def test_without_diversity_the_order_of_the_scores_stays() -> None:
    scores = np.array([0.5, 2.0, 0.5, 1.0], np.float32)
    assert rerank(scores, np.ones((4, 2), np.float32), 4).tolist() == [1, 3, 0, 2]


def test_an_item_without_the_attribute_is_never_held_back() -> None:
    limit = Limit(np.array([NO_GROUP, NO_GROUP, 0, 0]), most=1)
    scores = np.array([4, 3, 2, 1], np.float32)
    assert rerank(scores, np.ones((4, 2), np.float32), 4, limits=[limit]).tolist() == [0, 1, 2]


def test_opposite_items_are_more_different_than_unrelated_ones() -> None:
    vectors = np.array([[1, 0], [0, 1], [-1, 0]], np.float32)
    scores = np.array([1.0, 0.5, 0.5], np.float32)
    assert rerank(scores, vectors, 3, diversity=0.5).tolist() == [0, 2, 1]
