"""A learner that publishes what serving needs, for tests of lists against the learner's own."""

from __future__ import annotations

from typing import Literal

import msgspec
import numpy as np

from graph_store.graph import DAY_MS, GraphConfig, TemporalGraph
from learner.models.sta_hawkes import PARTS, STAHawkes, STAHawkesConfig
from learner.online import OnlineLearner
from learner.publish import Publisher
from serving.table import MemoryTable, Update
from stream.events import Feedback, FeedbackBatch, Kind

GRAPH = GraphConfig(k_user=8)
START_MS = 1_650_812_741_000
STILL = tuple(part for part in PARTS if part != "neighbours")
"""The parts of which a published item row changes only when it is touched."""


def events(n: int, *, n_users: int = 40, n_items: int = 90, seed: int = 0) -> list[FeedbackBatch]:
    """Return batches of 16 random events of all kinds over ten days, in order."""
    rng = np.random.default_rng(seed)
    ts_ms = START_MS + np.sort(rng.integers(0, 10 * DAY_MS, n))
    kinds = [Kind(kind) for kind in rng.choice(5, n, p=[0.1, 0.45, 0.3, 0.05, 0.1])]
    items = (n_items * rng.random(n) ** 2).astype(int)  # some items are met far more often
    log = [
        Feedback(1, f"{at:06d}", f"u{user}", f"i{item}", int(ms), kind.label, 1.0)
        for at, (user, item, ms, kind) in enumerate(
            zip(rng.integers(0, n_users, n), items, ts_ms, kinds, strict=True)
        )
    ]
    return [
        FeedbackBatch.from_feedback(log[first : first + 16]).in_order() for first in range(0, n, 16)
    ]


class Table(MemoryTable):
    """A table that remembers which items changed."""

    def __init__(self) -> None:
        super().__init__()
        self.changed: set[str] = set()
        self.users: set[str] = set()

    def publish(self, update: Update) -> None:
        super().publish(update)
        assert update.items is not None
        assert update.users is not None
        self.changed |= {*update.items.ids, *update.covisited}
        self.users |= set(update.users.ids)

    def take(self) -> tuple[set[str], set[str]]:
        """Return the items and users that changed since the last call."""
        changed, users = self.changed, self.users
        self.changed, self.users = set(), set()
        return changed, users


class Live:
    """A learner whose steps are published."""

    def __init__(
        self, parts: tuple[str, ...] = PARTS, precision: Literal["fp16", "fp32"] = "fp32"
    ) -> None:
        self.table = Table()
        self.graph = TemporalGraph(GRAPH)
        config = STAHawkesConfig(dim=8, parts=parts, row_lr=0.2)
        self.model = STAHawkes(config, k=GRAPH.k_user, n_half_lives=len(GRAPH.half_lives_ms))
        self.publisher = Publisher(
            self.table, self.graph, self.model, now_ms=lambda: 1_000, dim=config.dim
        )
        self.publisher._layout = msgspec.structs.replace(
            self.publisher._layout, precision=precision
        )
        self._learner = OnlineLearner(self.graph, self.model)

    def follow(self, batches: list[FeedbackBatch]) -> Live:
        """Take batches in and publish."""
        for batch in batches:
            step = self._learner.step(batch)
            self.publisher.touched(step.view, step.users, step.items)
        self.publisher.publish()
        return self

    def scores(self, user_id: str) -> dict[str, float]:
        """Return the learner's score of every item just after the newest event.

        The user's vector is as of just after their own last event, as it is published.
        """
        graph, row = self.graph, self.graph.users.find([user_id])
        last = graph.edges.users_latest(row, k=1, before_ms=graph.newest_ms + 1)
        ts_ms = np.where(last.nodes[:, 0] >= 0, last.ts_ms[:, 0], graph.newest_ms)
        view = graph.reading(row, ts_ms + 1, at_ms=graph.newest_ms + 1)
        scores = self.model.score(view, np.array([0]))[0]
        return dict(zip(graph.items.ids_of(np.arange(view.n_items)), scores.tolist(), strict=True))
