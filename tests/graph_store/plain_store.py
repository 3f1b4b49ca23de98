"""The dullest store that could work: keeps every event, sorts them anew for each question."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from graph_store.ids import Ids
from graph_store.store import PADDING, Edges, Neighbours


class Event(NamedTuple):
    """One edge; sorts in the order of events."""

    ts_ms: int
    key: int
    user: int
    item: int
    kind: int


class PlainStore:
    """Set of events, set of retracted ones; no limit on how long a retraction waits."""

    def __init__(
        self, *, k_user: int = 20, k_item: int = 10, max_age_ms: int | None = None
    ) -> None:
        self.k = {"user": k_user, "item": k_item}
        self.max_age_ms = max_age_ms
        self.events: set[Event] = set()
        self.retracted: set[tuple[int, int, int, int]] = set()
        self.newest_ms: int | None = None

    def append(self, edges: Edges) -> int:
        kept = self._kept()
        for event in events_of(edges):
            self._see(event)
        return len(self._kept() - kept)

    def _see(self, event: Event) -> None:
        if event.kind < 4:
            self.events.add(event)
        self.newest_ms = event.ts_ms if self.newest_ms is None else max(self.newest_ms, event.ts_ms)

    def retract(
        self,
        user: NDArray[np.int64],
        item: NDArray[np.int64],
        ts_ms: NDArray[np.int64],
        key: NDArray[np.uint64],
    ) -> None:
        columns = (user.tolist(), item.tolist(), ts_ms.tolist(), key.tolist())
        self.retracted |= set(zip(*columns, strict=True))

    def users_latest(
        self, users: NDArray[np.int64], *, k: int, before_ms: int | NDArray[np.int64]
    ) -> Neighbours:
        return self._latest("user", users, k, before_ms)

    def items_latest(
        self, items: NDArray[np.int64], *, k: int, before_ms: int | NDArray[np.int64]
    ) -> Neighbours:
        return self._latest("item", items, k, before_ms)

    def histories(self, edges: Edges, *, k: int) -> Neighbours:
        loop = PlainStore(k_user=self.k["user"], k_item=self.k["item"], max_age_ms=self.max_age_ms)
        loop.events, loop.retracted = set(self.events), self.retracted
        loop.newest_ms = self.newest_ms
        rows = []
        for event in events_of(edges):
            shown = loop.shown("user", event.user)
            earlier = [one for one in shown if one[:2] < event[:2]]
            rows.append(earlier[:k])
            loop._see(event)
        return _padded("user", rows, k)

    def ring(self, node: str, row: int) -> list[Event]:
        """Return the edges that a node keeps, newest first."""
        mine = [event for event in self.events if getattr(event, node) == row]
        return sorted(mine, reverse=True)[: self.k[node]]

    def shown(self, node: str, row: int) -> list[Event]:
        """Return the edges of a node that are neither retracted nor too old, newest first."""
        oldest = -(10**18)
        if self.max_age_ms is not None and self.newest_ms is not None:
            oldest = self.newest_ms - self.max_age_ms
        return [
            event
            for event in self.ring(node, row)
            if (event.user, event.item, event.ts_ms, event.key) not in self.retracted
            and event.ts_ms >= oldest
        ]

    def _latest(
        self, node: str, rows: NDArray[np.int64], k: int, before_ms: int | NDArray[np.int64]
    ) -> Neighbours:
        before = np.broadcast_to(before_ms, rows.shape).tolist()
        found = [
            [event for event in self.shown(node, row) if event.ts_ms < limit][:k]
            for row, limit in zip(rows.tolist(), before, strict=True)
        ]
        return _padded(node, found, k)

    def _kept(self) -> set[Event]:
        nodes = {("user", event.user) for event in self.events}
        nodes |= {("item", event.item) for event in self.events}
        return {event for node, row in nodes for event in self.ring(node, row)}

    def state_hash(self, users: Ids, items: Ids) -> str:
        lines = []
        for node in ("user", "item"):
            for row in {getattr(event, node) for event in self.events}:
                for event in self.ring(node, row):
                    gone = (event.user, event.item, event.ts_ms, event.key) in self.retracted
                    names = users.id_of(event.user), items.id_of(event.item)
                    lines.append(f"{node} {names} {event.ts_ms} {event.kind} {event.key} {gone}")
        return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()

    def state(self) -> dict[str, Any]:
        return {
            "events": set(self.events),
            "retracted": set(self.retracted),
            "newest_ms": self.newest_ms,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.events = set(state["events"])
        self.retracted = set(state["retracted"])
        self.newest_ms = state["newest_ms"]


def events_of(edges: Edges) -> list[Event]:
    """Return the events of a batch, in its order."""
    user, item, ts_ms, kind, key = (column.tolist() for column in edges)
    return [Event(*row) for row in zip(ts_ms, key, user, item, kind, strict=True)]


def edges_of(events: Sequence[Event]) -> Edges:
    """Return events as a batch."""
    ts_ms, key, user, item, kind = zip(*events, strict=True) if events else ((),) * 5
    return Edges(
        np.array(user, np.int64),
        np.array(item, np.int64),
        np.array(ts_ms, np.int64),
        np.array(kind, np.int8),
        np.array(key, np.uint64),
    )


def _padded(node: str, rows: list[list[Event]], k: int) -> Neighbours:
    other = "item" if node == "user" else "user"
    pad = [PADDING] * k
    return Neighbours(
        np.array([([getattr(e, other) for e in row] + pad)[:k] for row in rows], np.int64),
        np.array([([e.ts_ms for e in row] + [0] * k)[:k] for row in rows], np.int64),
        np.array([([e.kind for e in row] + pad)[:k] for row in rows], np.int8),
    )
