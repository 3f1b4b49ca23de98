"""The journal gives back what happened, batch by batch; training is the online step, repeated."""

from __future__ import annotations

import numpy as np

from graph_store.graph import GraphConfig, TemporalGraph
from learner.checks import checkerboard
from learner.models.sta_hawkes import STAHawkes, STAHawkesConfig
from learner.offline import Journal, train
from learner.online import OnlineLearner

GRAPH = GraphConfig()


def build() -> STAHawkes:
    """Return a small model."""
    return STAHawkes(STAHawkesConfig(dim=8), k=GRAPH.k_user, n_half_lives=5)


def recorded(journal: Journal, n_events: int = 320) -> OnlineLearner:
    """Follow a stream online and keep a journal of it."""
    learner = OnlineLearner(TemporalGraph(GRAPH), build())
    for batch in checkerboard(n_events):
        learner.step(batch, rank=journal.append)
    return learner


def test_one_epoch_offline_is_one_pass_online_to_the_last_bit() -> None:
    journal, offline = Journal(), build()
    online = recorded(journal)
    graph = online.graph
    train(offline, journal, lambda: TemporalGraph(GRAPH, users=graph.users, items=graph.items))
    np.testing.assert_array_equal(
        offline.state()["items"]["weight"], online.model.state()["items"]["weight"]
    )


def test_a_second_epoch_draws_other_negatives() -> None:
    journal, twice = Journal(), build()
    graph = recorded(journal).graph
    steps: list[int] = []
    train(
        twice,
        journal,
        lambda: TemporalGraph(GRAPH, users=graph.users, items=graph.items),
        epochs=2,
        on_batch=steps.append,
    )
    assert sum(steps) == 2 * 320


def test_a_full_journal_forgets_its_oldest_batches() -> None:
    journal = Journal(limit=100)
    recorded(journal)
    assert 100 <= len(journal) < 116
    newest = list(journal.batches())[-1][0]
    assert newest.ts_ms[-1] == max(int(edges.ts_ms[-1]) for edges, _ in journal.batches())


def test_a_restored_journal_yields_the_same_batches() -> None:
    journal, other = Journal(limit=200), Journal(limit=200)
    recorded(journal)
    other.restore(journal.state())
    assert len(other) == len(journal)
    for (edges, weight), (same, same_weight) in zip(
        journal.batches(), other.batches(), strict=True
    ):
        np.testing.assert_array_equal(weight, same_weight)
        for column, same_column in zip(edges, same, strict=True):
            np.testing.assert_array_equal(column, same_column)
