"""What the retrained baselines share: the log they learn from, and when a new model is due."""

from __future__ import annotations

import time
from typing import Any, Final

import numpy as np
from scipy import sparse

from graph_store.memory import with_room
from replay.baselines.base import Batch

EVERY_MS: Final = 4 * 3_600_000
"""Time between two retrains."""

KEPT: Final = 5_000_000
"""Events learned from: the newest of a longer log."""


class Interactions:
    """The newest signed events, as the matrix of users and items that a retrain asks for.

    Parameters
    ----------
    negative
        What a negative event counts for in the matrix; with 0 it is left out.

    """

    def __init__(self, *, negative: float = 0.0) -> None:
        self._values = np.array([1.0, 1.0, negative, negative, 0.0], np.float32)  # by kind
        self._users = np.zeros(1024, np.int32)
        self._items = np.zeros(1024, np.int32)
        self._signs = np.zeros(1024, np.float32)
        self._n = 0

    def append(self, batch: Batch) -> None:
        """Take the events of a batch that count for something."""
        value = self._values[batch.kind]
        says = value != 0
        end = self._n + int(says.sum())
        if end > 2 * KEPT:
            self._drop(end - self._n)
            end = self._n + int(says.sum())
        place = slice(self._n, end)
        self._users, self._items = with_room(self._users, end), with_room(self._items, end)
        self._signs = with_room(self._signs, end)
        self._users[place] = batch.users[says]
        self._items[place] = batch.items[says]
        self._signs[place] = value[says]
        self._n = end

    def matrix(self, n_items: int) -> sparse.csr_array[np.float32, tuple[int, int]]:
        """Return users by items; where a user met an item more than once the newest sign stands."""
        newest = slice(max(self._n - KEPT, 0), self._n)
        users, items, signs = self._users[newest], self._items[newest], self._signs[newest]
        # `unique` keeps the first of equals, so the newest have to come first.
        pair = users[::-1].astype(np.int64) * n_items + items[::-1]
        _, first = np.unique(pair, return_index=True)
        users, items, signs = users[::-1][first], items[::-1][first], signs[::-1][first]
        shape = (int(users.max(initial=-1)) + 1, n_items)
        return sparse.csr_array((signs, (users, items)), shape=shape)

    def state(self) -> dict[str, Any]:
        """Return all that a restart needs."""
        held = slice(0, self._n)
        return {
            "users": self._users[held].copy(),
            "items": self._items[held].copy(),
            "signs": self._signs[held].copy(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Become what :meth:`state` described."""
        self._users = np.array(state["users"])
        self._items = np.array(state["items"])
        self._signs = np.array(state["signs"])
        self._n = self._users.shape[0]

    def _drop(self, room: int) -> None:
        keep = slice(self._n - KEPT + room, self._n)
        self._users, self._items = self._users[keep].copy(), self._items[keep].copy()
        self._signs = self._signs[keep].copy()
        self._n = self._users.shape[0]


class Schedule:
    """Tells when a retrain is due, and keeps how long each took.

    A retrain is due at the first ranking of each window of ``every_ms``, so that none is made
    while nobody asks; windows lie on a fixed grid, so that a restart does not move them.

    Examples
    --------
    >>> schedule = Schedule(1_000)
    >>> schedule.due(500), schedule.due(900), schedule.due(1_100)
    (True, False, True)

    """

    def __init__(self, every_ms: int = EVERY_MS) -> None:
        self._every_ms = every_ms
        self._window = -1
        self.seconds: list[float] = []
        self._started = 0.0

    def due(self, at_ms: int) -> bool:
        """Return whether the last retrain was made in an earlier window than ``at_ms``."""
        window = at_ms // self._every_ms
        due = window > self._window
        self._window = max(window, self._window)
        return due

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds.append(time.perf_counter() - self._started)

    def state(self) -> dict[str, Any]:
        """Return all that a restart needs."""
        return {"window": self._window, "seconds": list(self.seconds)}

    def restore(self, state: dict[str, Any]) -> None:
        """Become what :meth:`state` described."""
        self._window, self.seconds = state["window"], list(state["seconds"])
