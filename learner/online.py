"""One step of the online learner: rank, learn, append, list the touched rows; or forget a user."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from graph_store.erasure import Forgotten, forget
from graph_store.graph import TemporalGraph, View
from learner.base import Model
from stream.events import FeedbackBatch, Kind

MICRO_BATCH = 64
"""Events of a step: larger ones are faster and staler."""


class Step(NamedTuple):
    """What one micro-batch did."""

    view: View
    loss: float  # NaN where there was nothing to learn from
    users: NDArray[np.int64]  # rows touched, each once
    items: NDArray[np.int64]


class OnlineLearner:
    """A graph and a model that follow the stream together.

    The model learns before the graph takes the batch in: targets and negatives both see counts
    and neighbours as of the batch's start, and each event's history is exact all the same.

    Parameters
    ----------
    graph, model
        Changed in place.

    """

    def __init__(self, graph: TemporalGraph, model: Model) -> None:
        self.graph = graph
        self.model = model

    def step(
        self, batch: FeedbackBatch, *, rank: Callable[[View], None] = lambda view: None
    ) -> Step:
        """Take one micro-batch, in event order.

        Parameters
        ----------
        batch
            Accepted events; retractions hide the edges that they name.
        rank
            Called with the view before anything is learned from it.

        """
        view = self.graph.view(batch.in_order())
        rank(view)
        learned = self.model.learn(view)
        self.graph.append(view)
        self.graph.retract(batch)
        taken_back = batch.take(np.flatnonzero(batch.kind == Kind.RETRACTION))
        return Step(
            view,
            learned.loss,
            np.union1d(learned.users, self.graph.users.find(taken_back.user_id)),
            np.union1d(learned.items, self.graph.items.find(taken_back.item_id)),
        )

    def forget(self, user_id: str) -> Forgotten | None:
        """Take a user out of graph and model; ``None`` if there is no such user.

        See :func:`graph_store.erasure.forget` and :meth:`learner.base.Model.forget` for what stays.
        """
        forgotten = forget(self.graph, user_id)
        if forgotten is not None:
            self.model.forget(forgotten.user)
        return forgotten
