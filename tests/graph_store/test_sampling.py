"""Samples never come from the future, are as likely as they say, and depend on the seed alone."""

from __future__ import annotations

from collections import Counter, deque
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import chisquare

from graph_store.sampling import (
    How,
    RecentRing,
    log_q,
    sample_negatives,
    sample_neighbourhood,
    sample_neighbours,
)
from graph_store.store import PADDING, Edges, EdgeStore
from stream.errors import BadSettings, TidegraphError
from tests.graph_store.plain_store import PlainStore

ALWAYS = 10**9


def log_of(n_events: int, seed: int = 0) -> Edges:
    draw = np.random.default_rng(seed)
    return Edges(
        draw.integers(0, 6, n_events),
        draw.integers(0, 6, n_events),
        draw.integers(0, 50, n_events),
        draw.integers(0, 4, n_events).astype(np.int8),
        draw.integers(0, 2**62, n_events).astype(np.uint64),
    )


def one_user(n_edges: int) -> EdgeStore:
    """User 0 met item n at time n."""
    store, n = EdgeStore(k_user=n_edges), np.arange(n_edges)
    store.append(Edges(0 * n, n, n, np.zeros(n_edges, np.int8), n.astype(np.uint64)))
    return store


@given(
    n_events=st.integers(0, 80),
    before_ms=st.integers(0, 55),
    window_ms=st.none() | st.integers(0, 30),
    how=st.sampled_from(("recent", "uniform")),
    k=st.integers(0, 6),
    seed=st.integers(0, 3),
)
def test_neighbours_are_a_right_sized_part_of_what_the_plain_store_shows(
    n_events: int, before_ms: int, window_ms: int | None, how: How, k: int, seed: int
) -> None:
    store, plain = EdgeStore(k_user=5, k_item=4), PlainStore(k_user=5, k_item=4)
    log = log_of(n_events)
    for one in (store, plain):
        one.append(log)
        one.retract(log.user[::5], log.item[::5], log.ts_ms[::5], log.key[::5])
    rows = np.arange(-1, 7)
    found = sample_neighbours(
        store,
        "user",
        rows,
        k=k,
        before_ms=before_ms,
        how=how,
        window_ms=window_ms,
        seed=seed,
    )
    since_ms = before_ms - (window_ms if window_ms is not None else 10**6)
    for n, row in enumerate(rows.tolist()):
        visible = [
            (event.item, event.ts_ms, event.kind)
            for event in plain.shown("user", row)
            if since_ms <= event.ts_ms < before_ms
        ]
        columns = (found.nodes[n], found.ts_ms[n], found.kind[n])
        drawn = list(zip(*(column.tolist() for column in columns), strict=True))
        size = min(k, len(visible))
        assert drawn[size:] == [(PADDING, 0, PADDING)] * (k - size)
        if how == "recent":
            assert drawn[:size] == visible[:size]
        else:
            left = iter(visible)  # a subsequence: each at most once, newest first
            assert all(one in left for one in drawn[:size])


def test_a_window_does_not_reach_behind_the_age_limit() -> None:
    store, n = EdgeStore(max_age_ms=3), np.arange(10)
    store.append(Edges(0 * n, n, n, np.zeros(10, np.int8), n.astype(np.uint64)))
    found = sample_neighbours(store, "user", np.array([0]), k=9, before_ms=9, window_ms=100)
    assert found.nodes[0, :4].tolist() == [8, 7, 6, PADDING]
    least = int(np.iinfo(np.int64).min)
    found = sample_neighbours(store, "user", np.array([0]), k=2, before_ms=least, window_ms=100)
    assert found.nodes.tolist() == [[PADDING, PADDING]]


def test_every_subset_is_equally_likely() -> None:
    store = one_user(6)
    draws = 30_000
    found = sample_neighbours(
        store, "user", np.zeros(draws, np.int64), k=3, before_ms=ALWAYS, how="uniform", seed=1
    )
    counted = Counter(frozenset(row) for row in found.nodes.tolist())
    subsets = [counted[frozenset(subset)] for subset in combinations(range(6), 3)]
    assert sum(subsets) == draws
    assert chisquare(subsets).pvalue > 0.001


def test_uniform_draws_of_two_steps_are_independent() -> None:
    store, rows = one_user(4), np.zeros(20_000, np.int64)
    one, other = (
        sample_neighbours(store, "user", rows, k=1, before_ms=ALWAYS, how="uniform", step=step)
        for step in (0, 1)
    )
    pairs = Counter(zip(one.nodes[:, 0].tolist(), other.nodes[:, 0].tolist(), strict=True))
    assert chisquare([pairs[a, b] for a in range(4) for b in range(4)]).pvalue > 0.001


def test_what_is_drawn_is_a_function_of_seed_and_step() -> None:
    store, rows = one_user(20), np.zeros(50, np.int64)

    def draw(seed: int, step: int) -> list[list[int]]:
        found = sample_neighbours(
            store, "user", rows, k=5, before_ms=ALWAYS, how="uniform", seed=seed, step=step
        )
        return list(found.nodes.tolist())

    assert draw(1, 2) == draw(1, 2)
    assert draw(1, 2) != draw(2, 1) != draw(1, 3)


@given(
    how=st.sampled_from(("recent", "uniform")),
    before=st.lists(st.integers(0, 55), min_size=1, max_size=5),
)
def test_no_hop_of_a_tree_comes_from_the_future_of_its_root(how: How, before: list[int]) -> None:
    store = EdgeStore()
    store.append(log_of(200))
    roots = np.arange(len(before))
    hops = sample_neighbourhood(
        store, "item", roots, fanouts=[4, 3, 2], before_ms=np.array(before), how=how
    )
    limit = np.array(before)
    for hop, width in zip(hops, (4, 3, 2), strict=True):
        assert hop.nodes.shape == (limit.size, width)
        real = hop.nodes != PADDING
        assert (hop.ts_ms < limit[:, None])[real].all()
        limit = np.repeat(limit, width)


def test_hops_alternate_between_users_and_items() -> None:
    """User 0 met item 1; item 1 also met user 2; user 2 also met item 3."""
    store = EdgeStore()
    user, item, ts_ms = np.array([0, 2, 2]), np.array([1, 1, 3]), np.array([10, 20, 30])
    store.append(Edges(user, item, ts_ms, np.zeros(3, np.int8), ts_ms.astype(np.uint64)))
    hops = sample_neighbourhood(store, "user", np.array([0]), fanouts=[1, 2, 2], before_ms=31)
    assert hops[0].nodes.tolist() == [[1]]
    assert hops[1].nodes.tolist() == [[2, 0]]
    assert hops[2].nodes.tolist() == [[3, 1], [1, PADDING]]
    early = sample_neighbourhood(store, "user", np.array([0]), fanouts=[1, 2, 2], before_ms=20)
    assert early[1].nodes.tolist() == [[0, PADDING]]
    assert early[2].nodes.tolist() == [[1, PADDING], [PADDING, PADDING]]


@given(
    size=st.integers(1, 5),
    pushes=st.lists(st.lists(st.integers(0, 9), max_size=8), max_size=6),
    restart_at=st.integers(0, 6),
)
def test_the_recent_ring_agrees_with_a_deque(
    size: int, pushes: list[list[int]], restart_at: int
) -> None:
    ring, plain = RecentRing(size), deque[int](maxlen=size)
    for n, items in enumerate(pushes):
        if n == restart_at:
            state, ring = ring.state(), RecentRing(size)
            ring.restore(state)
        ring.push(np.array(items, np.int64))
        plain.extend(items)
        assert sorted(ring.items.tolist()) == sorted(plain)
        every = np.arange(12)
        assert ring.count_of(every).tolist() == [plain.count(item) for item in every.tolist()]


def frequencies(items: NDArray[np.int64], n_items: int) -> NDArray[np.int64]:
    return np.bincount(items, minlength=n_items)


@pytest.mark.parametrize("share_recent", [0.0, 0.5, 1.0])
def test_items_are_drawn_as_often_as_log_q_says(share_recent: float) -> None:
    ring = RecentRing(4)
    ring.push(np.array([9, 2, 2, 2, 5]))  # the 9 is pushed out
    n_items, draws = 8, 40_000
    items = sample_negatives(
        draws, n_items=n_items, ring=ring, share_recent=share_recent, seed=3, step=4
    )
    q = np.exp(log_q(np.arange(n_items), n_items=n_items, ring=ring, share_recent=share_recent))
    by_hand = [
        (1 - share_recent) / 8 + share_recent * {2: 0.75, 5: 0.25}.get(i, 0) for i in range(8)
    ]
    np.testing.assert_allclose(q, by_hand)
    counted, possible = frequencies(items, n_items), q > 0
    assert counted[~possible].sum() == 0
    assert chisquare(counted[possible], draws * q[possible]).pvalue > 0.001


def test_while_the_ring_is_empty_all_items_are_equally_likely() -> None:
    ring = RecentRing()
    items = sample_negatives(20_000, n_items=5, ring=ring, share_recent=0.9, seed=0, step=0)
    assert chisquare(frequencies(items, 5)).pvalue > 0.001
    q = log_q(np.arange(5), n_items=5, ring=ring, share_recent=0.9)
    np.testing.assert_allclose(np.exp(q), 0.2)


def test_a_target_met_for_the_first_time_has_a_finite_correction() -> None:
    ring = RecentRing()
    ring.push(np.array([0]))
    q = log_q(np.array([7]), n_items=4, ring=ring, share_recent=0.5)
    np.testing.assert_allclose(np.exp(q), 0.125)


def test_negatives_of_two_steps_differ_and_of_one_step_are_the_same() -> None:
    def draw(step: int) -> list[int]:
        drawn = sample_negatives(
            20, n_items=1_000, ring=RecentRing(), share_recent=0.5, seed=0, step=step
        )
        return list(drawn.tolist())

    assert draw(0) == draw(0) != draw(1)


def test_draws_from_nothing_are_refused() -> None:
    with pytest.raises(TidegraphError, match="at least 1 item"):
        sample_negatives(3, n_items=0, ring=RecentRing(), share_recent=0.5, seed=0, step=0)
    with pytest.raises(TidegraphError, match=r"between 0 and 1, got 4 and 1\.5"):
        log_q(np.zeros(1, np.int64), n_items=4, ring=RecentRing(), share_recent=1.5)
    with pytest.raises(BadSettings, match="room"):
        RecentRing(0)
    with pytest.raises(TidegraphError, match="negative"):
        RecentRing().push(np.array([-1]))
