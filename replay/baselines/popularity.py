"""Popularity: what most users have liked since the beginning of the log."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from graph_store.memory import with_room
from replay.baselines.base import Batch


class Popularity:
    """The number of positive events of each item, the same ranking for everybody.

    Examples
    --------
    >>> Popularity().name
    'popularity'

    """

    name = "popularity"

    def __init__(self) -> None:
        self._counts = np.zeros(64, np.float32)

    def score(self, batch: Batch, events: NDArray[np.int64]) -> NDArray[np.float32]:
        """Score by count."""
        self._counts = with_room(self._counts, batch.n_items)
        return np.tile(self._counts[: batch.n_items], (events.shape[0], 1))

    def learn(self, batch: Batch) -> None:
        """Count the positive events."""
        items = batch.items[batch.positive]
        if items.size:
            self._counts = with_room(self._counts, int(items.max()) + 1)
            np.add.at(self._counts, items, np.float32(1.0))

    def state(self) -> dict[str, Any]:
        """Return all that a restart needs."""
        return {"counts": self._counts.copy()}

    def restore(self, state: dict[str, Any]) -> None:
        """Become what :meth:`state` described."""
        self._counts = np.array(state["counts"])
