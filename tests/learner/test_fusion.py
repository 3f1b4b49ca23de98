"""What counting adds to the score follows the formulas, item by item."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph_store.counts import Covisitation, DecayedCounts
from graph_store.store import Neighbours
from learner.fusion import (
    N_LENGTHS,
    count_features,
    covisitation_features,
    length_class,
    trust,
)
from stream.events import Kind

HALF_LIVES_MS = (10, 40)
N_ITEMS = 5

shown_item = st.tuples(st.integers(0, N_ITEMS - 1), st.integers(0, 50), st.booleans())


def history(*kinds: list[int]) -> Neighbours:
    """Return histories of items 0, 1, ... with given kinds; -1 pads."""
    kind = np.array(kinds, np.int8)
    nodes = np.where(kind >= 0, np.arange(kind.shape[1]), -1).astype(np.int64)
    return Neighbours(nodes, np.zeros(kind.shape, np.int64), kind)


@given(st.lists(shown_item, max_size=20), st.lists(st.integers(0, N_ITEMS - 1), max_size=4))
def test_popularity_and_click_rate_are_those_of_the_formula(
    events: list[tuple[int, int, bool]], asked: list[int]
) -> None:
    positives, shown = DecayedCounts(HALF_LIVES_MS), DecayedCounts(HALF_LIVES_MS)
    likes, shows = np.zeros((N_ITEMS, 2)), np.zeros((N_ITEMS, 2))
    for item, ts_ms, liked in events:
        row, at, one = np.array([item]), np.array([ts_ms]), np.ones(1)
        shown.add(row, at, one)
        shows[item] += [2.0 ** ((ts_ms - 60) / half_life) for half_life in HALF_LIVES_MS]
        if liked:
            positives.add(row, at, one)
            likes[item] += [2.0 ** ((ts_ms - 60) / half_life) for half_life in HALF_LIVES_MS]
    rows = np.array(asked, np.int64)
    popularity, click_rate = count_features(positives, shown, rows, n_items=N_ITEMS, at_ms=60)
    average = (likes.sum(0) + 1) / (shows.sum(0) + 2)
    rate = (likes[rows] + 5 * average) / (shows[rows] + 5)
    np.testing.assert_allclose(popularity, np.log1p(likes[rows]), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(click_rate, np.log(rate / average), rtol=1e-4, atol=1e-6)


def test_an_item_that_nobody_was_shown_has_neither() -> None:
    positives, shown = DecayedCounts(HALF_LIVES_MS), DecayedCounts(HALF_LIVES_MS)
    shown.add(np.zeros(3, np.int64), np.zeros(3, np.int64), np.ones(3))
    unknown = np.array([700])  # a row beyond all that was counted
    features = count_features(positives, shown, unknown, n_items=1, at_ms=5)
    for feature in features:
        np.testing.assert_allclose(feature, np.zeros((1, 2)), atol=1e-7)


def test_only_positives_are_trusted_and_the_older_the_less() -> None:
    found = trust(
        history(
            [Kind.IMPLICIT_POSITIVE, Kind.EXPLICIT_NEGATIVE, Kind.EXPLICIT_POSITIVE, -1],
            [Kind.IMPLICIT_NEGATIVE, Kind.IMPLICIT_POSITIVE, -1, -1],
        )
    )
    np.testing.assert_allclose(found, [[1, 0, 0.64, 0], [0, 0.8, 0, 0]], rtol=1e-6)


@pytest.mark.parametrize(
    ("length", "want"),
    [(0, 0), (1, 1), (2, 1), (3, 2), (5, 2), (6, 3), (10, 3), (11, 4), (19, 4), (20, 5)],
)
def test_a_history_falls_in_the_class_of_its_length(length: int, want: int) -> None:
    kinds = [int(Kind.IMPLICIT_NEGATIVE)] * length + [-1] * (20 - length)
    assert length_class(history(kinds)).tolist() == [want]
    assert want < N_LENGTHS


def test_covisitation_counts_through_trusted_items_only() -> None:
    pairs = Covisitation(half_life_ms=100, gap_ms=100)
    for other in (1, 2):
        pairs.add(np.array([3]), np.array([0]), np.array([[other]]), np.array([[0]]))
    past = history(  # of item 0, which has no partner, item 1, and item 2
        [Kind.IMPLICIT_POSITIVE, Kind.IMPLICIT_POSITIVE, Kind.EXPLICIT_NEGATIVE]
    )
    found = covisitation_features(pairs, past, np.array([0, 3]))
    cosine = 1 / math.sqrt(1 * 2)
    np.testing.assert_allclose(found, [[0, math.log1p(50 * 0.8 * cosine)]], rtol=1e-5)
