"""Measures the API over a generated catalogue, too large for a look at every item."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from deploy.bench.load import closed_load, open_load
from deploy.bench.rates import listed, lists_of, measured, memory
from deploy.bench.system import served
from serving.redis_table import open_table
from serving.rows import Barrier, ItemRows, Layout, UserRows
from serving.table import Table, Update
from stream.settings import Settings

DIM: Final = 64

CENTRES: Final = 1_000
"""Around which vectors lie."""

SPREAD: Final = 0.75
"""Of the vectors around a centre, where that of centres is 1: two items of a centre have a cosine
of 0.64, on average."""

BIASES: Final = 0.05
"""Spread of the items' biases; vectors are of length one."""

USERS: Final = 500

RATE: Final = 300.0
"""Requests per second."""

RECALL_AT: Final = 100

RECALL_OF: Final = 100
"""Users whose lists are compared with a look at every item."""

_AT_ONCE: Final = 20_000  # items of an update
_WARM_UP_S: Final = 2.0


class Catalogue:
    """Vectors of length one around centres drawn at random, and biases.

    Parameters
    ----------
    items
        How many.

    """

    def __init__(self, items: int) -> None:
        self._draw = np.random.default_rng(0)
        self._centres = self._draw.standard_normal((CENTRES, DIM), np.float32)
        self.vectors = self._around(items)
        self.users = self._around(USERS)
        self.user_ids = [f"u{row}" for row in range(USERS)]
        self.biases = np.float32(BIASES) * self._draw.standard_normal(items, np.float32)

    def publish(self, table: Table) -> None:
        """Bring all of it into view."""
        table.begin(Layout(dim=DIM))
        at_ms = time.time_ns() // 1_000_000
        barrier = Barrier(step=1, at_ms=at_ms, published_ms=at_ms)
        times = np.full(USERS, at_ms)
        table.publish(Update(barrier=barrier, users=UserRows(self.user_ids, self.users, times)))
        for first in range(0, len(self.biases), _AT_ONCE):
            rows = np.arange(first, min(first + _AT_ONCE, len(self.biases)))
            items = ItemRows(
                [f"i{row}" for row in rows.tolist()],
                self.vectors[rows],
                self.biases[rows],
                np.zeros((rows.size, 0)),
                np.full(rows.size, at_ms),
            )
            table.publish(Update(barrier=barrier, items=items))
        table.flip()

    def best(self, user: int, n: int) -> set[str]:
        """Return the items of the greatest scores, from a look at every one."""
        scores = self.vectors @ self.users[user] + self.biases
        return {f"i{row}" for row in np.argpartition(-scores, n - 1)[:n].tolist()}

    def _around(self, n: int) -> NDArray[np.float32]:
        rows = np.float32(SPREAD) * self._draw.standard_normal((n, DIM), np.float32)
        rows += self._centres[self._draw.integers(0, CENTRES, n)]
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return rows


def large(settings: Settings, folder: Path, *, items: int, seconds: float) -> dict[str, Any]:
    """Publish a catalogue without a learner, serve it, and measure lists at a steady rate.

    Returns
    -------
    Figures of the load; ``publish_s``; ``ready_s``, from the start of the API until its index is
    built; ``recall_at_100`` of the lists that it gives; its memory in MB.

    """
    catalogue = Catalogue(items)
    began_s = time.perf_counter()
    catalogue.publish(open_table(settings.redis))
    publish_s = time.perf_counter() - began_s
    # Nobody goes on publishing.
    serving = msgspec.structs.replace(settings.serving, stale_s=86_400.0)
    settings = msgspec.structs.replace(settings, serving=serving)
    port = serving.port
    with served(settings, folder) as (service, ready_s):
        lists = lists_of(catalogue.user_ids)
        closed_load(port, lists, connections=4, seconds=_WARM_UP_S)
        found = measured(
            service, settings, lambda: open_load(port, lists, rate=RATE, seconds=seconds)
        )
        recalls = []
        for row, user in enumerate(catalogue.user_ids[:RECALL_OF]):
            url = f"http://127.0.0.1:{port}/v1/recommendations/{user}?n={RECALL_AT}"
            told = set(listed(url))
            recalls.append(len(told & catalogue.best(row, RECALL_AT)) / RECALL_AT)
        return found | {
            "items": items,
            "indexed": items > serving.exact_up_to,
            "publish_s": round(publish_s, 1),
            "ready_s": round(ready_s, 1),
            "recall_at_100": round(float(np.mean(recalls)), 4),
            "memory": memory(service),
        }
