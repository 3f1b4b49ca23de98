"""Each way to run a model stands still, or follows the stream, exactly as far as its name says."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from graph_store.graph import TemporalGraph, View
from learner.offline import train
from learner.online import OnlineLearner
from replay.experiment import Experiment
from replay.systems import Delayed, Frozen, FrozenCounts, Retrain, Static
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
AFTER_T2 = next(n for n, batch in enumerate(BATCHES) if batch.ts_ms[0] > SPLIT.t2_ms)
STANDING = ("frozen", "frozen_counts", "static")


def numbers(state: dict[str, Any], n_items: int, n_users: int) -> dict[str, NDArray[Any]]:
    """Return a model's parameters, as far as rows that are known."""
    return {
        "items": np.array(state["items"]["weight"][:n_items]),
        "bias": np.array(state["bias"]["weight"][:n_items]),
        "users": np.array(state["users"]["weight"][:n_users]),
        "dense": np.array(state["dense"]),
    }


def all_equal(some: dict[str, NDArray[Any]], other: dict[str, NDArray[Any]]) -> bool:
    """Compare bit by bit."""
    return all(np.array_equal(some[name], other[name]) for name in some)


def asked(experiment: Experiment, users: list[int], n_items: int) -> View:
    """Ask, an hour after the log's end, what users would be shown; the same each time."""
    ts_ms = np.full(len(users), SPLIT.end_ms + 60 * MINUTE_MS)
    return experiment.graph.reading(np.array(users), ts_ms, n_items=n_items)


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    """Score the same questions just after T2 and at the end, and keep the parameters of both."""
    experiment = experiment_of(STANDING, SPLIT)
    for batch in BATCHES[: AFTER_T2 + 1]:
        experiment.step(batch)
    n_items, n_users = experiment.graph.n_items, experiment.graph.n_users
    later = {user for batch in BATCHES[AFTER_T2 + 1 :] for user in batch.user_id}
    users = {
        "went_on": int(experiment.graph.users.find(sorted(later))[0]),
        "left": next(
            row for row in range(n_users) if experiment.graph.users.id_of(row) not in later
        ),
    }
    found: dict[str, Any] = {"before": {}, "after": {}, "parameters": {}}
    for moment in ("before", "after"):
        view = asked(experiment, list(users.values()), n_items)
        for name in STANDING:
            system = experiment.clocked[name].system
            assert isinstance(system, Frozen)
            scores = system.score(view, np.arange(2))
            found[moment][name] = dict(zip(users, scores, strict=True))
            found["parameters"][moment, name] = numbers(system.model.state(), n_items, n_users)
        if moment == "before":
            for batch in BATCHES[AFTER_T2 + 1 :]:
                experiment.step(batch)
    found["learned"] = numbers(experiment.model.state(), n_items, n_users)
    return found


@pytest.mark.parametrize("name", STANDING)
def test_parameters_stand_still_after_the_split(told: dict[str, Any], name: str) -> None:
    before, after = (told["parameters"][moment, name] for moment in ("before", "after"))
    assert all_equal(before, after)
    assert not all_equal(before, told["learned"])  # while the model beside it went on learning


@pytest.mark.parametrize(
    ("name", "user", "reacts"),
    [
        ("frozen", "went_on", True),
        ("frozen", "left", True),  # popularity and pairs went on
        ("frozen_counts", "went_on", True),  # their own history did
        ("frozen_counts", "left", False),
        ("static", "went_on", False),
        ("static", "left", False),
    ],
)
def test_scores_react_to_what_is_live_and_to_nothing_else(
    told: dict[str, Any], name: str, user: str, *, reacts: bool
) -> None:
    before, after = (told[moment][name][user] for moment in ("before", "after"))
    assert np.array_equal(before, after) is not reacts


@pytest.mark.parametrize("name", ["frozen_counts", "static"])
def test_an_item_that_came_after_the_split_cannot_be_scored_by_who_has_not_heard(name: str) -> None:
    experiment = experiment_of((name,), SPLIT)
    for batch in BATCHES[:-1]:
        experiment.step(batch)
    system = experiment.clocked[name].system
    assert isinstance(system, FrozenCounts | Static)
    known = system.graph.n_items
    assert known < experiment.graph.n_items
    scores = system.score(experiment.graph.view(BATCHES[-1]), np.array([0]))
    assert np.isfinite(scores[0, :known]).all()
    assert (scores[0, known:] == -np.inf).all()


@pytest.mark.parametrize("delay_ms", [0, 17 * MINUTE_MS, 45 * MINUTE_MS])
def test_delayed_is_the_online_learner_that_hears_of_each_batch_so_much_later(
    delay_ms: int,
) -> None:
    experiment = experiment_of(("delayed",), SPLIT, delay_ms=delay_ms)
    twin = OnlineLearner(TemporalGraph(GRAPH), new_model())
    heard = 0
    for n, batch in enumerate(BATCHES):
        experiment.step(batch)
        if n < AFTER_T2:
            continue
        now_ms = int(batch.ts_ms[0])
        while BATCHES[heard].ts_ms[-1] + delay_ms <= now_ms:
            twin.step(BATCHES[heard])
            heard += 1
        delayed = experiment.clocked["delayed"].system
        assert isinstance(delayed, Delayed)
        n_items, n_users = twin.graph.n_items, twin.graph.n_users
        assert delayed.graph.n_items == n_items
        assert delayed.graph.state_hash() == twin.graph.state_hash()
        assert all_equal(
            numbers(delayed.model.state(), n_items, n_users),
            numbers(twin.model.state(), n_items, n_users),
        )
        users, ts_ms = np.arange(n_users), np.full(n_users, now_ms)
        scores = delayed.score(experiment.graph.reading(users, ts_ms, at_ms=now_ms), users)
        own = twin.model.score(twin.graph.reading(users, ts_ms, at_ms=now_ms), users)
        # A wider product adds in another order: one bit, where parameters are the same to the last.
        np.testing.assert_allclose(scores[:, :n_items], own, rtol=1e-5, atol=1e-6)
        assert (scores[:, n_items:] == -np.inf).all()


def test_a_retrain_is_a_new_model_trained_on_all_there_was() -> None:
    experiment = experiment_of(("retrain",), SPLIT)
    times: list[int] = []
    for n, batch in enumerate(BATCHES):
        before = experiment.clocked["retrain"].system if n > AFTER_T2 else None
        model = before.model if isinstance(before, Retrain) else None
        experiment.step(batch)
        after = experiment.clocked["retrain"].system if n > AFTER_T2 else None
        if not isinstance(after, Retrain) or after.model is model:
            continue
        times.append(int(batch.ts_ms[0]))
        fresh, live = new_model(), experiment.graph
        for _ in range(experiment.epochs):
            train(
                fresh,
                experiment.journal,
                partial(TemporalGraph, GRAPH, users=live.users, items=live.items),
            )
        sizes = (live.n_items, live.n_users)
        assert all_equal(numbers(after.model.state(), *sizes), numbers(fresh.state(), *sizes))
    assert len(times) == experiment.config.retrains
    assert len(experiment.clocked["retrain"].retrain_s) == experiment.config.retrains
    every_ms = (SPLIT.end_ms - SPLIT.t2_ms) / (experiment.config.retrains + 1)
    due = SPLIT.t2_ms + every_ms * np.arange(1, experiment.config.retrains + 1)
    assert (np.abs(np.array(times) - due) <= 8 * MINUTE_MS).all()  # the batch that passes the hour


def test_what_was_learned_online_is_what_the_journal_holds() -> None:
    experiment = experiment_of(("online",), SPLIT)
    for batch in BATCHES:
        experiment.step(batch)
    kept = [FeedbackBatch.concat(BATCHES).ts_ms, FeedbackBatch.concat(BATCHES).kind]
    edges = [edges for edges, _ in experiment.journal.batches()]
    np.testing.assert_array_equal(np.concatenate([each.ts_ms for each in edges]), kept[0])
    np.testing.assert_array_equal(np.concatenate([each.kind for each in edges]), kept[1])
