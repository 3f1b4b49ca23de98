"""What every model offers: score before learning, learn, show its vectors, keep its state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from graph_store.graph import View


class Learned(NamedTuple):
    """What one step did."""

    loss: float  # mean over the positives learned from, NaN where there were none
    users: NDArray[np.int64]  # rows whose published vector may have changed, not distinct
    items: NDArray[np.int64]


class Part(NamedTuple):
    """One component of a model: how loud it is, and what it was found to be worth."""

    name: str
    gate: float  # learned factor of the component's share of the score
    gain_nats: float  # loss per positive that its absence would have added; NaN: not measured yet
    open: bool  # False: closed, costs nothing


class Vectors(NamedTuple):
    """Rows as a reader gets them: ``score = users @ items.T + bias`` plus the fused counts."""

    rows: NDArray[np.int64]  # (R,)
    vectors: NDArray[np.float32]  # (R, D)
    bias: NDArray[np.float32]  # (R,), zero for users


class Model(Protocol):
    """A recommender that learns from one micro-batch after another.

    A step is ``score``, then ``learn``, then the graph's ``append``: nothing is learned from an
    event before the prediction that it tests, and both see items as of the batch's start.
    """

    def score(self, view: View, events: NDArray[np.int64]) -> NDArray[np.float32]:
        """Score every candidate for some events of a view, and change nothing.

        Parameters
        ----------
        view
            A micro-batch.
        events
            Indices into it, shape (b,).

        Returns
        -------
        Scores (b, n_items), higher is better.

        """
        ...

    def learn(self, view: View) -> Learned:
        """Learn from a view whose events are not in the graph yet."""
        ...

    def forget(self, user: int) -> None:
        """Make a user's own parameters those of a user who has done nothing yet.

        What items and shared parameters have learned from the user stays: it is a sum over all
        users that nobody can be told from.
        """
        ...

    def item_vectors(self, view: View, items: NDArray[np.int64]) -> Vectors:
        """Return the vectors of ``items`` as of the view's start."""
        ...

    def user_vectors(self, view: View, events: NDArray[np.int64]) -> Vectors:
        """Return the vectors of the users of some events, as of just before those events."""
        ...

    def parts(self) -> Sequence[Part]:
        """Return the components, with their gates."""
        ...

    def published_weights(self) -> dict[str, NDArray[np.float32]]:
        """Return the weights of the fused counts, as they go to the published table."""
        ...

    @property
    def n_bytes(self) -> int:
        """Bytes held by what is learned."""
        ...

    def state(self) -> dict[str, Any]:
        """Return all that a restart needs."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Become what :meth:`state` described, in a model built alike."""
        ...
