"""Small random logs, cut into micro-batches as a replay cuts them, for what is tested on them."""

from __future__ import annotations

import numpy as np
import torch

from graph_store.graph import GraphConfig
from learner.checks import feedback
from learner.models.sta_hawkes import STAHawkes, STAHawkesConfig
from replay.experiment import Experiment, ExperimentConfig, Split
from stream.events import FeedbackBatch, Kind

GRAPH = GraphConfig()
MINUTE_MS = 60_000

torch.set_num_threads(1)  # as the command does: steps are small, and sums add in one order


def new_model() -> STAHawkes:
    """Return an untrained small model."""
    config = STAHawkesConfig(dim=8, n_negatives=16)
    return STAHawkes(config, k=GRAPH.k_user, n_half_lives=len(GRAPH.half_lives_ms))


def events_of(n_events: int, *, seed: int = 0) -> FeedbackBatch:
    """Return events of all kinds, one a minute; users and items keep coming."""
    rng = np.random.default_rng(seed)
    kinds = list(Kind)[:5]
    chosen = rng.choice(5, n_events, p=[0.2, 0.35, 0.25, 0.1, 0.1])
    return feedback(
        [
            (
                int(rng.integers(0, 6 + n // 10)),
                int(rng.integers(0, 10 + n // 20)),
                60 * n,
                kinds[chosen[n]],
            )
            for n in range(n_events)
        ]
    )


def split_of(events: FeedbackBatch) -> Split:
    """Return the split at 70 % and 85 %."""
    t1, t2 = (int(events.ts_ms[int(share * len(events))]) for share in (0.7, 0.85))
    return Split(t1_ms=t1, t2_ms=t2, end_ms=int(events.ts_ms[-1]))


def batches_of(events: FeedbackBatch, split: Split, *, size: int = 8) -> list[FeedbackBatch]:
    """Cut events into micro-batches that do not reach over T1 or T2."""
    batches = []
    for first in range(0, len(events), size):
        some = events.take(np.arange(first, min(first + size, len(events))))
        phase = (some.ts_ms > split.t1_ms).astype(int) + (some.ts_ms > split.t2_ms)
        batches += [some.take(np.flatnonzero(phase == which)) for which in np.unique(phase)]
    return batches


def experiment_of(systems: tuple[str, ...], split: Split, *, delay_ms: int = 0) -> Experiment:
    """Return an experiment with small models."""
    config = ExperimentConfig(systems=systems, split=split, delay_ms=delay_ms, graph=GRAPH)
    return Experiment(config, new_model)
