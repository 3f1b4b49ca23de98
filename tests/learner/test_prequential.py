"""Some events are ranked before they are learned from; means fade, and drift is seen."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph_store.graph import GraphConfig, TemporalGraph
from learner.checks import checkerboard, feedback
from learner.models.sta_hawkes import STAHawkes, STAHawkesConfig
from learner.online import OnlineLearner
from learner.prequential import FREEZE_MS, FadingMean, Prequential
from learner.ranking import rank_targets, rows_of
from stream.events import FeedbackBatch, Kind


def model(graph: GraphConfig) -> STAHawkes:
    return STAHawkes(STAHawkesConfig(dim=8), k=graph.k_user, n_half_lives=len(graph.half_lives_ms))


class Ranked:
    """A learner that is tested as it goes."""

    def __init__(self, share: float, seed: int = 0, freeze_ms: int = FREEZE_MS) -> None:
        graph = GraphConfig()
        self.model = model(graph)
        self.learner = OnlineLearner(TemporalGraph(graph), self.model)
        self.prequential = Prequential(
            self.model, share=share, seed=seed, twin=lambda: model(graph), freeze_ms=freeze_ms
        )

    def follow(self, batches: list[FeedbackBatch]) -> Ranked:
        for batch in batches:
            step = self.learner.step(batch, rank=self.prequential.rank)
            self.prequential.learned(step.loss)
        return self


@given(values=st.lists(st.floats(-1e6, 1e6), min_size=1), horizon=st.integers(1, 20))
def test_a_mean_fades_as_the_formula_says(values: list[float], horizon: int) -> None:
    mean, plain = FadingMean(horizon), 0.0
    for n, value in enumerate(values, 1):
        mean.add(value)
        plain += max(1 / n, 1 / horizon) * (value - plain)
    assert mean.value == pytest.approx(plain)
    if len(values) <= horizon:
        assert mean.value == pytest.approx(np.mean(values), abs=1e-6)


def test_all_positives_are_ranked_as_by_hand() -> None:
    batches = checkerboard(320)
    ranked, hits, gains = Ranked(1.0), 0.0, 0.0
    for batch in batches:
        view = ranked.learner.graph.view(batch)
        some = np.flatnonzero(view.positive)
        scores = ranked.model.score(view, some)
        ranks = rank_targets(scores, view.items[some], *rows_of(*view.seen(), some))
        hits += (ranks <= 10).sum()
        gains += (1 / np.log2(1 + ranks[ranks <= 10])).sum()
        ranked.follow([batch])
    n = ranked.prequential.hit_ratio.n
    assert n == sum(int((batch.kind <= Kind.IMPLICIT_POSITIVE).sum()) for batch in batches)
    assert 0 < hits < n
    assert ranked.prequential.hit_ratio.value == pytest.approx(hits / n)
    assert ranked.prequential.ndcg.value == pytest.approx(gains / n)


def test_ranking_changes_nothing_that_is_learned() -> None:
    batches = checkerboard(320)
    one, other = Ranked(0.0).follow(batches), Ranked(1.0).follow(batches)
    np.testing.assert_array_equal(
        one.model.state()["items"]["weight"], other.model.state()["items"]["weight"]
    )
    assert one.prequential.loss.value == other.prequential.loss.value
    assert math.isnan(one.prequential.hit_ratio.value)


def test_a_share_is_ranked_and_the_seed_says_which() -> None:
    batches = checkerboard(16 * 100)
    one, same, other = (Ranked(0.25, seed).follow(batches).prequential for seed in (1, 1, 2))
    positives = sum(int((batch.kind <= Kind.IMPLICIT_POSITIVE).sum()) for batch in batches)
    assert 0.1 < one.hit_ratio.n / positives < 0.4
    assert one.state() == same.state()
    assert one.hit_ratio.n != other.hit_ratio.n


def test_a_restart_goes_on_from_the_state() -> None:
    batches = checkerboard(320)
    whole = Ranked(0.5).follow(batches)
    first = Ranked(0.5).follow(batches[:10])
    state = first.prequential.state()
    first.prequential = Prequential(first.model, share=0.5, seed=0)
    first.prequential.restore(state)
    assert first.follow(batches[10:]).prequential.state() == whole.prequential.state()
    empty = Prequential(first.model, share=0.5, seed=0)
    empty.restore(Prequential(first.model, share=0.5, seed=0).state())
    assert math.isnan(empty.loss.value)


def test_a_loss_that_changes_is_seen_as_drift() -> None:
    rng = np.random.default_rng(0)
    prequential = Ranked(0.0).prequential
    for _ in range(1_000):
        prequential.learned(float(rng.normal(1.0, 0.1)))
    assert prequential.drifts == {"loss": 0, "hit_ratio_at_10": 0}
    for _ in range(1_000):
        prequential.learned(float(rng.normal(3.0, 0.1)))
    assert prequential.drifts["loss"] > 0


def test_an_alarm_says_when_it_was_and_after_how_many_events() -> None:
    ranked = Ranked(1.0).follow(checkerboard(160))
    prequential, newest_ms = ranked.prequential, ranked.learner.graph.newest_ms
    for at in range(2_000):
        prequential.learned(1.0 if at < 1_000 else 3.0)
    assert prequential.alarms
    assert prequential.alarms[-1] == ("loss", newest_ms, 160)
    again = Ranked(1.0).prequential
    again.restore(prequential.state())
    assert again.alarms == prequential.alarms


def test_quality_is_kept_by_hour_of_the_stream_for_two_days() -> None:
    hour = 3_600
    batches = [
        feedback([(0, at % 7, at * hour, Kind.IMPLICIT_POSITIVE), (1, 8, at * hour, Kind.NONE)])
        for at in [*range(60), 30]
    ]
    ranked = Ranked(1.0).follow(batches[:40])
    hours = ranked.prequential.hours
    assert [each.ranked for each in hours] == [1] * 40
    assert sum(each.hits for each in hours) == pytest.approx(
        40 * ranked.prequential.hit_ratio.value
    )
    assert sum(each.gain for each in hours) == pytest.approx(40 * ranked.prequential.ndcg.value)
    ranked.follow(batches[40:])
    hours = ranked.prequential.hours
    assert [each.hour_ms for each in hours] == sorted(each.hour_ms for each in hours)
    assert [each.ranked for each in hours] == [1] * 18 + [2] + [1] * 29  # the late one too
    assert hours[-1].hour_ms - hours[0].hour_ms == 47 * 3_600_000
    assert hours[0].hour_ms % 3_600_000 == 0


def test_a_model_frozen_when_the_period_began_ranks_the_same_events() -> None:
    batches = checkerboard(640)
    first_ms, last_ms = int(batches[0].ts_ms[0]), int(batches[-1].ts_ms[-1])
    freeze_ms = (last_ms - first_ms) // 3
    ranked, twin = Ranked(1.0, freeze_ms=freeze_ms), model(GraphConfig())
    period, froze, n, gains = first_ms // freeze_ms, 0, 0, 0.0
    for number, batch in enumerate(batches):
        if (now := int(batch.ts_ms.max()) // freeze_ms) > period:
            period, froze = now, froze + 1
            twin.restore(ranked.model.state())
        if number == len(batches) - 5:  # erased since
            twin.forget(1)
            ranked.prequential.forget(1)
        view = ranked.learner.graph.view(batch)
        some = np.flatnonzero(view.positive)
        if froze:
            ranks = rank_targets(
                twin.score(view, some), view.items[some], *rows_of(*view.seen(), some)
            )
            n += some.size
            gains += (1 / np.log2(1 + ranks[ranks <= 10])).sum()
        ranked.follow([batch])
    hours = ranked.prequential.hours
    assert froze >= 2
    assert sum(each.frozen_ranked for each in hours) == n < sum(each.ranked for each in hours)
    assert sum(each.frozen_gain for each in hours) == pytest.approx(gains)
    assert gains > 0


def test_after_a_restart_the_model_is_frozen_as_it_came_back() -> None:
    batches = checkerboard(320)
    before = Ranked(1.0).follow(batches[:10])
    after = Ranked(1.0)
    after.learner, after.model = before.learner, before.model
    after.prequential = Prequential(
        before.model, share=1.0, seed=0, twin=lambda: model(GraphConfig())
    )
    after.prequential.restore(before.prequential.state())
    assert sum(each.frozen_ranked for each in after.prequential.hours) == 0
    first = after.follow(batches[10:11]).prequential.hours
    newer = sum(each.ranked for each in first) - before.prequential.hit_ratio.n
    assert sum(each.frozen_ranked for each in first) == newer > 0
    gained = sum(each.gain for each in first) - sum(each.gain for each in before.prequential.hours)
    assert sum(each.frozen_gain for each in first) == pytest.approx(gained)  # nothing was learned


def test_a_step_without_positives_says_nothing() -> None:
    ranked = Ranked(1.0).follow([feedback([(0, 0, 0, Kind.NONE)])])
    assert ranked.prequential.hit_ratio.n == ranked.prequential.loss.n == 0
