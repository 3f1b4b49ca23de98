"""Decayed counts and co-visitation agree with sums over the plain list of what happened."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from graph_store.counts import Covisitation, DecayedCounts

HALF_LIVES_MS = (7, 100)
N_ROWS = 5

Counted = tuple[int, int, float]  # row, time, amount
counted = st.tuples(
    st.integers(0, N_ROWS - 1), st.integers(0, 30), st.sampled_from([0.25, 1.0, 3.0])
)


def add(counts: DecayedCounts, events: list[Counted]) -> None:
    """Add events in one call."""
    rows, ts_ms, amounts = zip(*events, strict=True) if events else ((), (), ())
    counts.add(np.array(rows, np.int64), np.array(ts_ms, np.int64), np.array(amounts, np.float64))


def plain_sums(events: list[Counted], at_ms: int) -> NDArray[np.float64]:
    """Sum the formula of the docstring, event by event."""
    sums = np.zeros((N_ROWS, len(HALF_LIVES_MS)))
    for row, ts_ms, amount in events:
        for h, half_life_ms in enumerate(HALF_LIVES_MS):
            sums[row, h] += amount * 2.0 ** (-(at_ms - ts_ms) / half_life_ms)
    return sums


@given(st.lists(st.lists(counted, max_size=8), max_size=5), st.integers(0, 60))
def test_counts_are_the_decayed_sum_of_the_events(batches: list[list[Counted]], at_ms: int) -> None:
    counts = DecayedCounts(HALF_LIVES_MS)
    for batch in batches:
        add(counts, batch)
    want = plain_sums([event for batch in batches for event in batch], at_ms)
    np.testing.assert_allclose(counts.at(at_ms, N_ROWS), want, rtol=1e-9)


@given(st.lists(counted, min_size=1, max_size=12).flatmap(st.permutations))
def test_the_order_of_adding_does_not_show(events: list[Counted]) -> None:
    shuffled, in_order = DecayedCounts(HALF_LIVES_MS), DecayedCounts(HALF_LIVES_MS)
    for event in events:
        add(shuffled, [event])
    add(in_order, sorted(events, key=lambda event: event[1]))
    np.testing.assert_allclose(shuffled.at(40, N_ROWS), in_order.at(40, N_ROWS), rtol=1e-9)


def test_counts_stay_exact_over_thousands_of_half_lives() -> None:
    counts = DecayedCounts(HALF_LIVES_MS)
    events = [(n % N_ROWS, 50 * n, 1.0) for n in range(2_000)]  # 14,000 half-lives of the shorter
    for event in events:
        add(counts, [event])
    newest = events[-1][1]
    np.testing.assert_allclose(counts.at(newest, N_ROWS), plain_sums(events, newest), rtol=1e-9)
    assert counts.at(newest, N_ROWS)[4, 0] == pytest.approx(1.0)  # the last one, and no other


def test_after_a_long_silence_only_what_is_new_counts() -> None:
    counts = DecayedCounts(HALF_LIVES_MS)
    add(counts, [(0, 0, 3.0)])
    add(counts, [(1, 10**12, 1.0)])
    assert counts.at(10**12, 2).tolist() == [[0.0, 0.0], [1.0, 1.0]]


def test_rows_that_nobody_counted_are_zero() -> None:
    assert DecayedCounts(HALF_LIVES_MS).at(5, 200).sum() == 0


def test_restored_counts_go_on_like_those_that_were_stopped() -> None:
    first, second = DecayedCounts(HALF_LIVES_MS), DecayedCounts(HALF_LIVES_MS)
    add(first, [(0, 3, 1.0), (4, 5, 2.0)])
    state = first.state()
    add(first, [(1, 9, 1.0)])
    second.restore(state)  # a copy: what came later is not in it
    add(second, [(1, 9, 1.0)])
    np.testing.assert_array_equal(first.at(20, N_ROWS), second.at(20, N_ROWS))


# Pairs.

HALF_LIFE_MS, GAP_MS = 50, 20
N_ITEMS, K = 6, 3

Visit = tuple[int, int, list[tuple[int, int]]]  # item, time, (item, time) of those before it
earlier = st.lists(st.tuples(st.integers(-1, N_ITEMS - 1), st.integers(0, 30)), max_size=K)
visit = st.tuples(st.integers(0, N_ITEMS - 1), st.integers(31, 90), earlier)
visits = st.lists(visit, max_size=12)


def covisitation(m: int = 16) -> Covisitation:
    """Return an empty store of pairs."""
    return Covisitation(m=m, half_life_ms=HALF_LIFE_MS, gap_ms=GAP_MS)


def visited(pairs: Covisitation, events: list[Visit]) -> Covisitation:
    """Add visits in one call."""
    history = np.full((len(events), K), -1, np.int64)
    history_ts_ms = np.zeros((len(events), K), np.int64)
    for n, (_, _, before) in enumerate(events):
        for k, (other, other_ts_ms) in enumerate(before):
            history[n, k], history_ts_ms[n, k] = other, other_ts_ms
    items = np.array([item for item, _, _ in events], np.int64)
    ts_ms = np.array([ts_ms for _, ts_ms, _ in events], np.int64)
    pairs.add(items, ts_ms, history, history_ts_ms)
    return pairs


def plain_cosines(events: list[Visit]) -> NDArray[np.float64]:
    """Return the cosine of each two items, from sums over all pairs of visits."""
    newest = max((ts_ms for _, ts_ms, _ in events), default=0)
    weight: dict[tuple[int, int], float] = defaultdict(float)
    for item, ts_ms, before in events:
        for other, other_ts_ms in before:
            if other >= 0 and other != item:
                both = 2.0 ** (-(newest - ts_ms) / HALF_LIFE_MS)
                both /= 1 + (ts_ms - other_ts_ms) / GAP_MS
                weight[item, other] += both
                weight[other, item] += both
    mass = [sum(weight[i, j] for j in range(N_ITEMS)) for i in range(N_ITEMS)]
    return np.array(
        [
            [
                weight[i, j] / math.sqrt(mass[i] * mass[j]) if weight[i, j] else 0.0
                for j in range(N_ITEMS)
            ]
            for i in range(N_ITEMS)
        ]
    )


def all_cosines(pairs: Covisitation) -> NDArray[np.float64]:
    """Return what :meth:`Covisitation.neighbours` says of each two items."""
    cosines = np.zeros((N_ITEMS, N_ITEMS))
    for item in range(N_ITEMS):
        others, values = pairs.neighbours(item)
        cosines[item, others] = values
    return cosines


@given(st.lists(visits, max_size=4))
def test_cosines_are_those_of_the_plain_sums(batches: list[list[Visit]]) -> None:
    pairs = covisitation()
    for batch in batches:
        visited(pairs, batch)
    want = plain_cosines([event for batch in batches for event in batch])
    np.testing.assert_allclose(all_cosines(pairs), want, rtol=1e-4, atol=1e-6)


@given(visits.flatmap(st.permutations))
def test_no_order_of_visits_shows_while_the_lists_have_room(events: list[Visit]) -> None:
    one_by_one = covisitation()
    for event in events:
        visited(one_by_one, [event])
    together = visited(covisitation(), sorted(events))
    np.testing.assert_allclose(all_cosines(one_by_one), all_cosines(together), rtol=1e-4, atol=1e-6)


@given(
    visits,
    st.lists(st.integers(-1, N_ITEMS + 80), min_size=K, max_size=K),
    st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=K, max_size=K),
)
def test_scores_after_a_history_are_the_trusted_sum_of_neighbours(
    events: list[Visit], after: list[int], trusted: list[float]
) -> None:
    pairs = visited(covisitation(), events)
    history, trust = np.array([after, [-1] * K]), np.array([trusted] * 2, np.float32)
    want = np.zeros(N_ITEMS)
    for item, share in zip(after, trusted, strict=True):
        others, values = pairs.neighbours(item)
        want[others] += share * values
    found = pairs.pairs(history, trust, np.arange(N_ITEMS))
    np.testing.assert_allclose(found[0], want, rtol=1e-5, atol=1e-7)
    assert not found[1].any()  # whoever did nothing yet is told nothing

    n_known = N_ITEMS - 2  # partners beyond the columns are passed over
    scores = np.ones((2, n_known), np.float32)
    pairs.add_log(scores, history, trust, np.array([2.0, 3.0], np.float32), 50.0)
    np.testing.assert_allclose(scores[0], 1 + 2 * np.log1p(50 * want[:n_known]), rtol=1e-5)
    assert (scores[1] == 1).all()


def test_asking_twice_gives_the_same_answer_twice() -> None:
    pairs = visited(covisitation(), [(0, 40, [(1, 20), (2, 10)]), (3, 50, [(1, 20)])])
    history, trust = np.array([[1, 0, 3]]), np.ones((1, K), np.float32)
    first = pairs.pairs(history, trust, np.arange(N_ITEMS))
    scores = np.zeros((1, N_ITEMS), np.float32)
    pairs.add_log(scores, history, trust, np.ones(1, np.float32), 1.0)
    np.testing.assert_array_equal(first, pairs.pairs(history, trust, np.arange(N_ITEMS)))


def test_neighbours_come_strongest_first() -> None:
    pairs = visited(covisitation(), [(0, 40, [(1, 0), (2, 30), (3, 20)])])
    others, _ = pairs.neighbours(0)
    assert others.tolist() == [2, 3, 1]


def test_nobody_goes_with_an_item_that_was_never_visited() -> None:
    pairs = visited(covisitation(), [(0, 40, [(1, 0)])])
    for item in (-1, 5, 10_000):
        assert pairs.neighbours(item)[0].size == 0


def test_a_visit_of_the_same_item_again_is_no_pair() -> None:
    pairs = visited(covisitation(), [(2, 40, [(2, 0)])])
    assert pairs.neighbours(2)[0].size == 0


def test_a_newcomer_takes_the_least_pair_of_a_full_list_and_its_weight() -> None:
    """By hand: all at one time, so that a pair's weight is how often it was visited."""
    pairs = covisitation(m=2)
    now = [(0, 40)] * 1
    for item, times in ((1, 5), (2, 2), (3, 1)):
        for _ in range(times):
            visited(pairs, [(item, 40, now)])
    others, cosines = pairs.neighbours(0)
    # The list of 0 held {1: 5, 2: 2}; 3 took the place of 2 and has 2 + 1 of 8 visits in all.
    assert others.tolist() == [3, 1]
    np.testing.assert_allclose(cosines, [3 / math.sqrt(8 * 1), 5 / math.sqrt(8 * 5)], rtol=1e-6)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=120))
def test_a_full_list_never_misses_a_pair_with_more_than_its_share(partners: list[int]) -> None:
    """Space-Saving's promise: whatever has more than 1/m of all visits is in the list."""
    m = 4
    pairs = covisitation(m=m)
    for partner in partners:
        visited(pairs, [(partner, 40, [(0, 40)])])
    others, _ = pairs.neighbours(0)
    assert others.size <= m
    frequent = {partner for partner in partners if partners.count(partner) > len(partners) / m}
    assert frequent <= set(others.tolist())


def test_pairs_stay_exact_over_hundreds_of_half_lives() -> None:
    events: list[Visit] = [
        (n % 3, 40 * n, [((n + 1 + n % 2) % 3, 40 * n - 10)]) for n in range(1_000)
    ]
    pairs = covisitation()
    for event in events:
        visited(pairs, [event])
    np.testing.assert_allclose(all_cosines(pairs), plain_cosines(events), rtol=1e-3, atol=1e-6)


def test_pairs_that_decayed_to_nothing_are_numbers_still() -> None:
    pairs = visited(covisitation(), [(0, 40, [(1, 30)])])
    visited(pairs, [(2, 10**12, [(3, 10**12 - 5)])])
    assert all_cosines(pairs)[0].tolist() == [0.0] * N_ITEMS
    assert all_cosines(pairs)[2, 3] == pytest.approx(1.0)
    scores = pairs.pairs(np.array([[0, 1, 2]]), np.ones((1, K), np.float32), np.arange(N_ITEMS))
    assert scores[0].tolist() == pytest.approx([0.0, 0.0, 0.0, 1.0, 0.0, 0.0])


def test_a_much_visited_pair_far_from_the_reference_time_has_a_cosine() -> None:
    """Weights run up to 2^48 of one visit before they are rescaled; their products leave fp32."""
    pairs = visited(covisitation(), [(0, 40, [(1, 40)])])
    late = 40 + 47 * HALF_LIFE_MS
    visited(pairs, [(0, late, [(1, late)])] * 1_000_000)
    assert all_cosines(pairs)[0, 1] == pytest.approx(1.0, rel=1e-3)


def test_ten_thousand_items_fit() -> None:
    pairs = covisitation(m=8)
    rng = np.random.default_rng(0)
    events: list[Visit] = [
        (int(item), 40, [(int(other), 40)]) for item, other in rng.integers(0, 10_000, (5_000, 2))
    ]
    visited(pairs, events)
    for item, _, before in events[-200:]:
        if before[0][0] != item:
            assert item in pairs.neighbours(before[0][0])[0]


def test_restored_pairs_go_on_like_those_that_were_stopped() -> None:
    rng = np.random.default_rng(1)
    first, second = covisitation(m=5), covisitation(m=5)
    events: list[Visit] = [
        (int(a), 40, [(int(b), 30), (int(c), 20)]) for a, b, c in rng.integers(0, N_ITEMS, (40, 3))
    ]
    visited(first, events[:20])
    state: dict[str, Any] = first.state()
    visited(first, events[20:])
    second.restore(state)
    visited(second, events[20:])
    for item in range(N_ITEMS):
        for one, other in zip(first.neighbours(item), second.neighbours(item), strict=True):
            np.testing.assert_array_equal(one, other)
