"""An experiment gives every system the same questions, and finds what a plain loop finds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import replay.experiment
from graph_store.graph import TemporalGraph, View
from graph_store.snapshot import newest_whole, write_snapshot
from learner.online import OnlineLearner
from replay.experiment import Clocked, Experiment
from replay.metrics import Outcomes, summarise
from stream.events import FeedbackBatch
from tests.replay.small_logs import (
    GRAPH,
    MINUTE_MS,
    batches_of,
    events_of,
    experiment_of,
    new_model,
    split_of,
)

EVENTS = events_of(480)
SPLIT = split_of(EVENTS)
BATCHES = batches_of(EVENTS, SPLIT)
SYSTEMS = ("online", "frozen", "frozen_counts", "retrain", "static", "delayed", "popularity",
           "item_knn", "counting")  # fmt: skip
DELAY_MS = 30 * MINUTE_MS


class Indifferent:
    """Scores everything alike, so that its ranks tell how many candidates there were."""

    def score(self, view: View, events: NDArray[np.int64]) -> NDArray[np.float32]:
        return np.zeros((events.shape[0], view.n_items), np.float32)

    def learn(self, view: View) -> None:
        pass

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        pass


def ran(experiment: Experiment, batches: list[FeedbackBatch] = BATCHES) -> Experiment:
    """Feed an experiment to the end."""
    for batch in batches:
        experiment.step(batch)
    return experiment


@pytest.fixture(scope="module")
def everything() -> Experiment:
    """Run all systems over the log."""
    return ran(experiment_of(SYSTEMS, SPLIT, delay_ms=DELAY_MS))


def plain_rank(scores: list[float], target: int, met: set[int]) -> float:
    """Rank by the definition: one more than those above, plus half of those level."""
    if target >= len(scores):
        return math.inf
    others = [j for j in range(len(scores)) if j != target and j not in met]
    above = sum(scores[j] > scores[target] for j in others)
    return 1 + above + sum(scores[j] == scores[target] for j in others) / 2


def plain_loop() -> dict[str, list[Any]]:
    """Follow the log with the online learner, one event at a time, dicts and sets beside it."""
    learner = OnlineLearner(TemporalGraph(GRAPH), new_model())
    found: dict[str, list[Any]] = {name: [] for name in ("rank", "item", "n_met")}
    met: dict[str, set[int]] = {}
    accepted: dict[str, int] = {}
    first_ms: dict[int, int] = {}
    before_t2: dict[int, int] = {}

    def rank(view: View) -> None:
        for n, user in enumerate(batch.user_id):
            item, ts_ms = int(view.items[n]), int(view.ts_ms[n])
            if ts_ms > SPLIT.t2_ms and view.kind[n] <= 1:
                scores = learner.model.score(view, np.array([n]))[0].tolist()
                found["rank"].append(plain_rank(scores, item, met.get(user, set())))
                found["item"].append(item)
                found["n_met"].append(accepted.get(user, 0))
            met.setdefault(user, set()).add(item)
            accepted[user] = accepted.get(user, 0) + 1
            first_ms.setdefault(item, ts_ms)
            before_t2[item] = before_t2.get(item, 0) + (ts_ms <= SPLIT.t2_ms)

    for batch in BATCHES:
        learner.step(batch, rank=rank)
    found["first_ms"] = [first_ms[item] for item in sorted(first_ms)]
    found["before_t2"] = [before_t2[item] for item in sorted(before_t2)]
    return found


def test_online_is_ranked_before_it_learns_as_a_plain_loop_does(everything: Experiment) -> None:
    plain = plain_loop()
    outcomes = everything.results()["online"].outcomes()
    assert outcomes.rank.tolist() == plain["rank"]
    assert math.inf in plain["rank"]
    events, catalogue = everything.test_events(), everything.catalogue()
    assert events.item[events.ranked].tolist() == plain["item"]
    assert events.history_length[events.ranked].tolist() == plain["n_met"]
    assert catalogue.first_ms.tolist() == plain["first_ms"]
    assert catalogue.events_before_t2.tolist() == plain["before_t2"]

    figures = summarise(events, outcomes, catalogue)
    ranks = plain["rank"]
    assert figures["hr@10"] == pytest.approx(sum(r <= 10 for r in ranks) / len(ranks))
    gains = [1 / math.log2(1 + r) if r <= 10 else 0.0 for r in ranks]
    assert figures["ndcg@10"] == pytest.approx(sum(gains) / len(ranks))
    assert figures["mrr@20"] == pytest.approx(
        sum(1 / r if r <= 20 else 0.0 for r in ranks) / len(ranks)
    )
    assert figures["slices"]["history_0"]["n"] == plain["n_met"].count(0)
    known = [plain["before_t2"][item] > 0 for item in plain["item"]]
    assert figures["slices"]["known_items"]["n"] == sum(known)
    assert events.ceiling == sum(math.isfinite(r) for r in ranks) / len(ranks)


def test_every_system_is_asked_the_same_events_and_misses_what_nobody_can_know(
    everything: Experiment,
) -> None:
    events = everything.test_events()
    unknown = ~events.item_known[events.ranked]
    assert 0 < unknown.sum() < unknown.shape[0]
    assert tuple(everything.results()) == SYSTEMS
    for clocked in everything.results().values():
        outcomes = clocked.outcomes()
        assert outcomes.rank.shape == (events.ranked.sum(),)
        assert outcomes.own_score.shape == (len(events),)
        assert np.isinf(outcomes.rank[unknown]).all()
        assert np.array_equal(np.isnan(outcomes.own_score), ~events.item_known)


def test_candidates_are_the_known_items_that_the_user_has_not_met() -> None:
    experiment = experiment_of(("popularity",), SPLIT)
    indifferent = experiment.clocked["popularity"] = Clocked(system=Indifferent())
    ran(experiment)
    expected, lists = [], []
    met: dict[str, set[str]] = {}
    known: set[str] = set()
    for batch in BATCHES:
        for n, (user, item) in enumerate(zip(batch.user_id, batch.item_id, strict=True)):
            mine = met.setdefault(user, set())
            if batch.ts_ms[n] > SPLIT.t2_ms and batch.kind[n] <= 1:
                level = len(known - mine - {item})
                expected.append(1 + level / 2 if item in known else math.inf)
                lists.append(known - mine)
            mine.add(item)
        known |= set(batch.item_id)
    outcomes = indifferent.outcomes()
    assert outcomes.rank.tolist() == expected
    for row, allowed in zip(outcomes.top.tolist(), lists, strict=True):
        shown = [experiment.graph.items.id_of(item) for item in row if item >= 0]
        assert set(shown) <= allowed
        assert len(shown) == min(20, len(allowed))


def test_ranking_a_few_events_at_a_time_changes_nothing(
    everything: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay.experiment, "_SCORES", 70)  # two or three events of 25 to 34 items
    chunked = ran(experiment_of(SYSTEMS, SPLIT, delay_ms=DELAY_MS)).results()
    for name, clocked in everything.results().items():
        whole, parts = clocked.outcomes(), chunked[name].outcomes()
        np.testing.assert_array_equal(whole.rank, parts.rank)
        np.testing.assert_array_equal(whole.top, parts.top)
        np.testing.assert_allclose(whole.own_score, parts.own_score, rtol=1e-5, atol=1e-6)


def assert_same(some: Outcomes, other: Outcomes) -> None:
    """Compare outcomes bit by bit."""
    np.testing.assert_array_equal(some.rank, other.rank)
    np.testing.assert_array_equal(some.top, other.top)
    np.testing.assert_array_equal(some.own_score, other.own_score)


_T1 = next(n for n, batch in enumerate(BATCHES) if batch.ts_ms[0] > SPLIT.t1_ms)
_T2 = next(n for n, batch in enumerate(BATCHES) if batch.ts_ms[0] > SPLIT.t2_ms)


@pytest.mark.parametrize("after", [5, _T1, _T1 + 1, _T2, _T2 + 1, len(BATCHES) - 2])
def test_an_experiment_that_was_stopped_after_any_batch_goes_on_to_the_same_end(
    everything: Experiment, tmp_path: Path, after: int
) -> None:
    first = ran(experiment_of(SYSTEMS, SPLIT, delay_ms=DELAY_MS), BATCHES[:after])
    write_snapshot(tmp_path, first.state(), fingerprint="test")
    state = newest_whole(tmp_path, fingerprint="test")
    assert state is not None
    second = experiment_of(SYSTEMS, SPLIT, delay_ms=DELAY_MS)
    second.restore(state)
    ran(second, BATCHES[after:])
    assert second.graph.state_hash() == everything.graph.state_hash()
    assert second.epochs == everything.epochs
    assert list(second.results()) == list(everything.results())
    for name, clocked in everything.results().items():
        assert_same(clocked.outcomes(), second.results()[name].outcomes())
    events, same = everything.test_events(), second.test_events()
    for name in ("user", "item", "ts_ms", "kind", "history_length", "item_known", "ranked"):
        np.testing.assert_array_equal(getattr(events, name), getattr(same, name))
    np.testing.assert_array_equal(
        everything.catalogue().events_before_t2, second.catalogue().events_before_t2
    )


def test_an_event_of_before_the_split_that_comes_late_is_learned_but_not_tested() -> None:
    held_back = BATCHES[_T2 - 1]
    late = [*BATCHES[: _T2 - 1], *BATCHES[_T2 : _T2 + 2], held_back, *BATCHES[_T2 + 2 :]]
    experiment = ran(experiment_of(("popularity",), SPLIT), late)
    events = experiment.test_events()
    assert (events.ts_ms > SPLIT.t2_ms).all()
    in_order = ran(experiment_of(("popularity",), SPLIT))
    assert len(events) == len(in_order.test_events())
    assert experiment.graph.state_hash() == in_order.graph.state_hash()


def test_the_number_of_epochs_is_the_one_that_did_better_on_validation() -> None:
    experiment = experiment_of(("frozen",), SPLIT)
    for batch in BATCHES[:_T2]:
        experiment.step(batch)
    gains = {
        int(name): float(np.where(ranks <= 10, 1 / np.log2(1 + ranks), 0.0).mean())
        for name, ranks in (
            (name, clocked.outcomes().rank) for name, clocked in experiment._candidates.items()
        )
    }
    assert set(gains) == {1, 2}
    experiment.step(BATCHES[_T2])
    assert experiment.epochs == max(gains, key=lambda epochs: (gains[epochs], -epochs))
    assert experiment._candidates == {}
