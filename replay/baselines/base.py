"""What a baseline reads of a micro-batch, and what the replay asks of a baseline."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class History(Protocol):
    """The earlier events of each user, newest first, padded with -1; arrays (B, K)."""

    @property
    def nodes(self) -> NDArray[np.int64]:
        """Item rows."""
        ...

    @property
    def ts_ms(self) -> NDArray[np.int64]:
        """Times, 0 where padded."""
        ...

    @property
    def kind(self) -> NDArray[np.int8]:
        """Feedback classes, -1 where padded."""
        ...


class Batch(Protocol):
    """One micro-batch as the graph stood at its start: the part of a view that baselines read.

    Arrays have one entry per event, shape (B,).
    """

    @property
    def users(self) -> NDArray[np.int64]:
        """User rows."""
        ...

    @property
    def items(self) -> NDArray[np.int64]:
        """Item rows; one of ``n_items`` or more is named here for the first time."""
        ...

    @property
    def ts_ms(self) -> NDArray[np.int64]:
        """Event times, ascending."""
        ...

    @property
    def kind(self) -> NDArray[np.int8]:
        """Feedback classes; 4 says nothing and is in no history."""
        ...

    @property
    def positive(self) -> NDArray[np.bool_]:
        """Which events are positive, explicit or implicit."""
        ...

    @property
    def history(self) -> History:
        """What each event's user had done before it, the same batch included."""
        ...

    @property
    def n_items(self) -> int:
        """Items known at the start of the batch: the candidates."""
        ...

    @property
    def at_ms(self) -> int:
        """Time of the first event: counts are read as of here."""
        ...


class Baseline(Protocol):
    """A system without the project's model: scores, then learns, one micro-batch after another."""

    name: str

    def score(self, batch: Batch, events: NDArray[np.int64]) -> NDArray[np.float32]:
        """Score every candidate for some events of a batch.

        Parameters
        ----------
        batch
            Nothing of it has been learned yet.
        events
            Indices into the batch, shape (b,).

        Returns
        -------
        Scores (b, n_items), higher is better; minus infinity where it cannot tell.

        """
        ...

    def learn(self, batch: Batch) -> None:
        """Take a whole batch into account."""
        ...

    def state(self) -> dict[str, Any]:
        """Return all that a restart needs: arrays and JSON values, nested."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Become what :meth:`state` described."""
        ...


def liked(history: History, events: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the items of the positive events in some histories, shape (b, K), -1 elsewhere."""
    kind = history.kind[events]
    return np.where((kind >= 0) & (kind <= 1), history.nodes[events], -1)
