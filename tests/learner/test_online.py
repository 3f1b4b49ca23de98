"""One step ranks, learns and appends, in that order, and lists every row that it touched."""

from __future__ import annotations

import numpy as np

from graph_store.graph import GraphConfig, TemporalGraph, View
from learner.base import Learned
from learner.checks import checkerboard, feedback, follow
from learner.models.sta_hawkes import STAHawkes, STAHawkesConfig
from learner.online import OnlineLearner
from stream.events import Feedback, FeedbackBatch, Kind

GRAPH = GraphConfig()


class Diary(STAHawkes):
    """Writes down how much of the stream the graph has when the model learns."""

    diary: list[tuple[str, int]]

    def learn(self, view: View) -> Learned:
        self.diary.append(("learn", view.graph.steps))
        return super().learn(view)


def build(kind: type[STAHawkes] = STAHawkes) -> STAHawkes:
    """Return a small model."""
    return kind(STAHawkesConfig(dim=8), k=GRAPH.k_user, n_half_lives=len(GRAPH.half_lives_ms))


def retraction(user: int, item: int, ts_ms: int, event_id: str) -> Feedback:
    """Return what takes an event back, a second later."""
    return Feedback(
        1, f"r-{event_id}", f"u{user}", f"i{item}", ts_ms + 1_000, "retraction", 0.0,
        retracts=event_id, target_ts_ms=ts_ms,
    )  # fmt: skip


def test_each_batch_is_ranked_then_learned_from_then_appended() -> None:
    model = build(Diary)
    assert isinstance(model, Diary)
    model.diary = []
    learner = OnlineLearner(TemporalGraph(GRAPH), model)
    for batch in checkerboard(48):
        learner.step(batch, rank=lambda view: model.diary.append(("rank", view.graph.steps)))
    assert model.diary == [(what, step) for step in range(3) for what in ("rank", "learn")]
    assert learner.graph.steps == 3


def test_who_ranks_sees_the_parameters_of_the_batch_before() -> None:
    *before, last = checkerboard(160)
    learner, ranked = follow(build(), before), []
    want = learner.model.score(learner.graph.view(last), np.arange(16))
    learner.step(
        last, rank=lambda view: ranked.append(learner.model.score(view, np.arange(len(view))))
    )
    np.testing.assert_array_equal(ranked[0], want)
    after = learner.model.score(learner.graph.view(last), np.arange(16))
    assert not np.array_equal(after, want)


def test_a_batch_is_taken_in_event_order_however_it_comes() -> None:
    batches = checkerboard(64)
    in_order, shuffled = (OnlineLearner(TemporalGraph(GRAPH), build()) for _ in range(2))
    rng = np.random.default_rng(0)
    for batch in batches:
        step = in_order.step(batch)
        other = shuffled.step(batch.take(rng.permutation(len(batch))))
        np.testing.assert_array_equal(step.view.key, other.view.key)
        np.testing.assert_array_equal(step.loss, other.loss)
    assert in_order.graph.state_hash() == shuffled.graph.state_hash()


def test_every_row_whose_parameters_moved_is_listed_once() -> None:
    *before, last = checkerboard(320)
    learner = follow(build(), before)
    start = learner.model.state()
    step = learner.step(last)
    end = learner.model.state()
    for table, touched in (("users", step.users), ("items", step.items), ("bias", step.items)):
        n = start[table]["n_rows"]
        moved = (end[table]["weight"][:n] != start[table]["weight"][:n]).any(1)
        assert moved.any(), table
        assert set(np.flatnonzero(moved)) <= set(touched.tolist()), table
        assert np.unique(touched).size == touched.size, table


def test_the_users_and_items_of_the_batch_are_always_listed() -> None:
    learner = follow(build(), checkerboard(160))
    step = learner.step(feedback([(0, 1, 900, Kind.NONE), (40, 50, 901, Kind.NONE)]))
    assert set(step.view.users.tolist()) <= set(step.users.tolist())
    assert set(step.view.items.tolist()) <= set(step.items.tolist())
    assert np.isnan(step.loss)


def test_a_retraction_hides_an_event_of_its_own_batch_and_of_one_before() -> None:
    like = Kind.EXPLICIT_POSITIVE
    learner = OnlineLearner(TemporalGraph(GRAPH), build())
    learner.step(feedback([(0, 0, 0, like), (0, 1, 1, like)]))
    batch = feedback([(0, 2, 10, like)])
    ts_ms = int(batch.ts_ms[0])
    learner.step(
        FeedbackBatch.concat(
            [
                batch,
                FeedbackBatch.from_feedback(
                    [
                        retraction(0, 2, ts_ms, "000010-0-2"),
                        retraction(0, 0, ts_ms - 10_000, "000000-0-0"),
                    ]
                ),
            ]
        )
    )
    now = learner.graph.reading(np.array([0]), np.array([ts_ms + 99_000]))
    assert now.history.nodes[0, :2].tolist() == [1, -1]


def test_a_batch_of_retractions_alone_is_a_step_that_teaches_nothing() -> None:
    first = feedback([(0, 0, 0, Kind.EXPLICIT_POSITIVE)])
    learner = follow(build(), [first])
    ts_ms = int(first.ts_ms[0])
    step = learner.step(FeedbackBatch.from_feedback([retraction(0, 0, ts_ms, "000000-0-0")]))
    assert np.isnan(step.loss)
    assert step.users.tolist() == step.items.tolist() == [0]  # what is published of them changed
    now = learner.graph.reading(np.array([0]), np.array([ts_ms + 99_000]))
    assert now.history.nodes[0, 0] == -1
