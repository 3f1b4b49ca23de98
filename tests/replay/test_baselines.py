"""Baselines: one contract for all of them, and for each its formula worked out the dull way."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from replay.baselines import BASELINES, Baseline, ease
from replay.baselines.covisitation import GAP_MS, HALF_LIFE_MS, Covisitation
from replay.baselines.ease import Ease
from replay.baselines.item_knn import SHRINK, ItemKnn
from replay.baselines.pairs import PairCounts
from replay.baselines.popularity import Popularity
from replay.baselines.recent_popularity import RecentPopularity
from replay.baselines.retraining import Interactions, Schedule
from replay.baselines.signed_ease import SignedEase
from replay.baselines.vsknn import Vsknn

HOUR_MS = 3_600_000
K = 4
PERSONAL = [name for name in BASELINES if "popularity" not in name]


@dataclass(frozen=True)
class Past:
    nodes: NDArray[np.int64]
    ts_ms: NDArray[np.int64]
    kind: NDArray[np.int8]


@dataclass(frozen=True)
class Events:
    """A micro-batch: what baselines read, and nothing that could answer for the graph."""

    users: NDArray[np.int64]
    items: NDArray[np.int64]
    ts_ms: NDArray[np.int64]
    kind: NDArray[np.int8]
    history: Past
    n_items: int

    @property
    def positive(self) -> NDArray[np.bool_]:
        return self.kind <= 1

    @property
    def at_ms(self) -> int:
        return int(self.ts_ms[0])


Log = list[tuple[int, int, int, int]]  # user, item, ts_ms, kind; in order


def batches(log: Log, size: int = 3) -> Iterator[Events]:
    """Cut a log into micro-batches, each event with the K newest of its user before it."""
    pasts: dict[int, Log] = defaultdict(list)
    n_items = 0
    for first in range(0, len(log), size):
        part = log[first : first + size]
        columns = np.zeros((3, len(part), K), np.int64)
        columns[0], columns[2] = -1, -1
        for n, event in enumerate(part):
            for k, (_, item, ts_ms, kind) in enumerate(reversed(pasts[event[0]][-K:])):
                columns[:, n, k] = item, ts_ms, kind
            pasts[event[0]].append(event)
        users, items, ts_ms_, kinds = (np.array(c, np.int64) for c in zip(*part, strict=True))
        history = Past(columns[0], columns[1], columns[2].astype(np.int8))
        yield Events(users, items, ts_ms_, kinds.astype(np.int8), history, n_items)
        n_items = max(n_items, int(items.max()) + 1)


def taught(baseline: Baseline, log: Log) -> Baseline:
    for batch in batches(log):
        baseline.learn(batch)
    return baseline


def asked(baseline: Baseline, log: Log, user: int, at_ms: int, n_items: int) -> NDArray[np.float32]:
    """Score all items for a user after a log, once the baseline has learned it."""
    (*_, batch) = batches([*log, (user, 0, at_ms, 1)], size=1)
    last = Events(batch.users, batch.items, batch.ts_ms, batch.kind, batch.history, n_items)
    scores: NDArray[np.float32] = baseline.score(last, np.array([0]))[0]
    return scores


def random_log(n: int = 150, seed: int = 0) -> Log:
    random = np.random.default_rng(seed)
    ts_ms = np.sort(random.integers(0, 50 * HOUR_MS, n))
    columns = random.integers(0, 12, n), random.integers(0, 20, n), ts_ms, random.integers(0, 4, n)
    return [(int(u), int(i), int(t), int(k)) for u, i, t, k in zip(*columns, strict=True)]


@pytest.fixture(params=BASELINES)
def build(request: pytest.FixtureRequest) -> Callable[[], Baseline]:
    """Any of the baselines: a factory, so that a restart can be a new object."""
    return lambda: BASELINES[request.param](7)


def test_every_known_item_gets_a_score_that_can_be_ranked(build: Callable[[], Baseline]) -> None:
    baseline = build()
    for batch in batches(random_log()):
        events = np.flatnonzero(batch.positive)
        scores = baseline.score(batch, events)
        assert scores.shape == (events.shape[0], batch.n_items)
        assert scores.dtype == np.float32
        assert not np.isnan(scores).any()
        baseline.learn(batch)


def test_a_new_object_restored_in_mid_stream_goes_on_as_the_old_one(
    build: Callable[[], Baseline],
) -> None:
    stream = list(batches(random_log()))
    old = build()
    for batch in stream[:25]:
        old.score(batch, np.arange(batch.users.shape[0]))
        old.learn(batch)
    state = copy.deepcopy(old.state())
    new = build()
    new.restore(state)
    for batch in stream[25:]:
        events = np.arange(batch.users.shape[0])
        np.testing.assert_array_equal(new.score(batch, events), old.score(batch, events))
        new.learn(batch)
        old.learn(batch)


def test_a_state_is_a_copy_that_neither_its_giver_nor_its_taker_changes(
    build: Callable[[], Baseline],
) -> None:
    stream = list(batches(random_log()))
    giver, taker = build(), build()
    for batch in stream[:20]:
        giver.learn(batch)
    state = giver.state()
    kept = copy.deepcopy(state)
    for batch in stream[20:]:
        giver.learn(batch)
    np.testing.assert_equal(state, kept)
    taker.restore(state)
    for batch in stream[20:]:
        taker.learn(batch)
    np.testing.assert_equal(state, kept)


def test_scoring_teaches_nothing(build: Callable[[], Baseline]) -> None:
    stream = list(batches(random_log()))
    quiet, asked_often = build(), build()
    for batch in stream[:-1]:
        events = np.arange(batch.users.shape[0])
        asked_often.score(batch, events)
        asked_often.score(batch, events)
        quiet.score(batch, events[:1])
        quiet.learn(batch)
        asked_often.learn(batch)
    last = np.array([0])
    np.testing.assert_array_equal(
        asked_often.score(stream[-1], last), quiet.score(stream[-1], last)
    )


def test_a_batch_of_questions_is_answered_as_one_by_one(build: Callable[[], Baseline]) -> None:
    *past, batch = batches(random_log(153))
    baseline = build()
    for earlier in past:
        baseline.learn(earlier)
    together = baseline.score(batch, np.array([0, 1, 2]))
    alone = np.concatenate([baseline.score(batch, np.array([n])) for n in range(3)])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", PERSONAL)
def test_on_a_checkerboard_of_likes_the_withheld_item_comes_before_those_of_the_other_colour(
    name: str,
) -> None:
    """Even users like even items, odd users odd ones; user 0 has not met item 6 yet."""
    log: Log = []
    for lap in range(12):
        for user in range(10):
            item = (2 * lap + 4 * user + user % 2) % 8
            if (user, item) != (0, 6):
                log.append((user, item, len(log) * 1_000, 1))
    baseline = taught(BASELINES[name](0), log)
    scores = asked(baseline, log, 0, len(log) * 1_000, 8)
    assert scores[6] > scores[1::2].max()


def test_popularity_counts_likes_and_nothing_else() -> None:
    log: Log = [(0, 1, 0, 1), (1, 1, 1, 0), (2, 0, 2, 2), (3, 0, 3, 3), (4, 2, 4, 1)]
    assert asked(taught(Popularity(), log), log, 9, 5, 4).tolist() == [0.0, 2.0, 1.0, 0.0]


def test_recent_popularity_halves_every_half_life() -> None:
    log: Log = [(0, 0, 0, 1), (0, 1, 2 * HOUR_MS, 1)]
    baseline = taught(RecentPopularity(half_life_ms=HOUR_MS), log)
    assert asked(baseline, log, 9, 3 * HOUR_MS, 2).tolist() == [0.125, 0.5]


event = st.tuples(st.integers(0, 3), st.integers(0, 6), st.integers(0, 300), st.integers(0, 4))
logs = st.lists(event, min_size=1, max_size=40).map(
    lambda rows: [(u, i, t * HOUR_MS, k) for u, i, t, k in sorted(rows, key=lambda row: row[2])]
)


def plain_pairs(log: Log, half_life_ms: float, gap_ms: float, at_ms: int) -> NDArray[np.float64]:
    """Return the matrix of pairs, from every event and the K before it of its user."""
    pairs = np.zeros((7, 7))
    pasts: dict[int, Log] = defaultdict(list)
    for user, item, ts_ms, kind in log:
        for _, other, then_ms, _ in pasts[user][-K:]:
            if other != item:
                weight = 2.0 ** ((ts_ms - at_ms) / half_life_ms) / (1 + (ts_ms - then_ms) / gap_ms)
                pairs[item, other] += weight
                pairs[other, item] += weight
        pasts[user].append((user, item, ts_ms, kind))
    return pairs


@settings(deadline=None)
@given(log=logs, user=st.integers(0, 4))
def test_covisitation_agrees_with_a_dense_matrix(log: Log, user: int) -> None:
    log = [row for row in log if row[3] < 4]  # events that say nothing are in no history
    baseline = taught(Covisitation(), log)
    at_ms = 301 * HOUR_MS
    pairs = plain_pairs(log, HALF_LIFE_MS, GAP_MS, at_ms)
    history = [item for u, item, _, _ in log if u == user][-K:]
    expected = pairs[history].sum(axis=0) if history else np.zeros(7)
    np.testing.assert_allclose(asked(baseline, log, user, at_ms, 7), expected, rtol=1e-4, atol=1e-6)


@settings(deadline=None)
@given(log=logs, user=st.integers(0, 4))
def test_item_knn_agrees_with_the_shrunk_cosine(log: Log, user: int) -> None:
    log = [(u, i, t, k % 2) for u, i, t, k in log]  # all liked: the history is the likes
    baseline = taught(ItemKnn(), log)
    pairs = plain_pairs(log, np.inf, np.inf, 0)
    likes = np.bincount([row[1] for row in log], minlength=7)
    cosine = pairs / (np.sqrt(np.outer(likes, likes)) + SHRINK)
    history = [item for u, item, _, _ in log if u == user][-K:]
    expected = cosine[history].sum(axis=0) if history else np.zeros(7)
    found = asked(baseline, log, user, 301 * HOUR_MS, 7)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_in_a_full_list_the_newcomer_takes_the_place_and_the_weight_of_the_lightest() -> None:
    pairs = PairCounts(half_life_ms=HOUR_MS, gap_ms=HOUR_MS, m=2)
    for item in (1, 1, 2, 3):
        pairs.add(np.array([item]), np.array([0]), np.array([[0]]), np.array([[0]]))
    assert pairs.scores(np.array([[0]]), 4, at_ms=0).tolist() == [[0.0, 2.0, 0.0, 2.0]]


def test_pairs_outlive_many_half_lives_without_overflow() -> None:
    pairs = PairCounts(half_life_ms=1, gap_ms=HOUR_MS)
    for ts_ms in (0, 1_000, 1_000_000):
        pairs.add(np.array([1]), np.array([ts_ms]), np.array([[0]]), np.array([[ts_ms]]))
    assert pairs.scores(np.array([[0]]), 2, at_ms=1_000_001).tolist() == [[0.0, 0.5]]


@pytest.mark.parametrize(("build_ease", "negative"), [(Ease, 0.0), (SignedEase, 0.5)])
def test_ease_agrees_with_leaving_each_item_out_of_its_own_regression(
    build_ease: Callable[[], Ease], negative: float
) -> None:
    """Each column of B is the ridge regression of one item on all the others."""
    log = [(u, i % 6, t, k) for u, i, t, k in random_log()]
    baseline = taught(build_ease(), log)
    at_ms = 51 * HOUR_MS
    sign = {0: 1.0, 1: 1.0, 2: negative, 3: negative}
    matrix = np.zeros((12, 6))
    for user, item, _, kind in log:
        if sign[kind]:
            matrix[user, item] = sign[kind]
    weights = np.zeros((6, 6))
    for item in range(6):
        rest = np.delete(np.arange(6), item)
        gram = matrix[:, rest].T @ matrix[:, rest] + Ease.regularisation * np.eye(5)
        weights[rest, item] = np.linalg.solve(gram, matrix[:, rest].T @ matrix[:, item])
    profile = np.zeros(6)
    for _, item, _, kind in [row for row in log if row[0] == 3][-K:]:
        if sign[kind]:
            profile[item] = sign[kind]
    found = asked(baseline, log, 3, at_ms, 6)
    np.testing.assert_allclose(found, profile @ weights, rtol=1e-3, atol=1e-6)


def test_ease_says_nothing_of_items_that_are_not_among_the_most_frequent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ease, "LARGEST", 2)
    log: Log = [(user, item, 0, 1) for user in range(4) for item in (0, 3)] + [(0, 1, 1, 1)]
    scores = asked(taught(Ease(), log), [(9, 0, 2, 1)], 9, 3, 5)
    assert np.flatnonzero(scores).tolist() == [3]


def test_vsknn_lets_the_sessions_that_share_most_vote() -> None:
    """User 0 liked 0, then 1: the newest counts 1, the one before it a half."""
    day_ms = 24 * HOUR_MS
    log: Log = [
        (1, 0, 0, 1),
        (1, 2, 1, 1),  # shares item 0
        (2, 1, 2, 1),
        (2, 0, 3, 1),
        (2, 3, 4, 1),  # shares both
        (3, 1, 5, 1),
        (3, 4, 5 + 31 * day_ms, 1),  # too long a pause: another session
        (0, 0, 6 + 31 * day_ms, 1),
        (0, 1, 7 + 31 * day_ms, 1),
    ]
    scores = asked(taught(Vsknn(), log[:-2]), log, 0, 8 + 31 * day_ms, 5)
    assert scores.tolist() == [0.5 + 1.5, 1.5 + 1.0, 0.5, 1.5, 0.0]


def test_where_a_user_met_an_item_twice_the_newest_sign_stands() -> None:
    held = Interactions(negative=-1.0)
    for batch in batches([(0, 1, 0, 1), (1, 1, 1, 2), (0, 1, 2, 3), (1, 0, 3, 0), (0, 0, 4, 4)]):
        held.append(batch)
    assert held.matrix(3).toarray().tolist() == [[0.0, -1.0, 0.0], [1.0, -1.0, 0.0]]


def test_a_retrain_is_due_once_in_each_window_and_survives_a_restart() -> None:
    schedule = Schedule(1_000)
    assert [schedule.due(at_ms) for at_ms in (100, 900, 1_000, 1_999, 5_500)] == [
        True,
        False,
        True,
        False,
        True,
    ]
    again = Schedule(1_000)
    again.restore(schedule.state())
    assert [again.due(at_ms) for at_ms in (5_600, 6_000)] == [False, True]
