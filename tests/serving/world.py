"""A small published table, and a way to ask what can be read of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from deploy.service import wait_until
from serving.api.reads import routes
from serving.api.routes import Call
from serving.experiments.enrolling import Enrolment
from serving.experiments.store import MemoryStore, Store
from serving.live import Live
from serving.rows import Barrier, Count, Covisited, ItemRows, Layout, UserRows
from serving.table import MemoryTable, Table, Update
from stream.events import Kind

N_ITEMS = 8
LAYOUT = Layout(dim=2, counts=(Count("positives_1000", 1_000), Count("pairs", 1_000)))
WEIGHTS = {
    "popularity": np.array([1.0], np.float32),
    "covisitation": np.ones(6, np.float32),
}
LIKED = int(Kind.EXPLICIT_POSITIVE)


def items(ids: Sequence[str], *, size: float = 1.0) -> ItemRows:
    """Return items that lie on a quarter of a circle, the first along the first axis."""
    angles = np.linspace(0, np.pi / 2, len(ids))
    vectors = size * np.stack([np.cos(angles), np.sin(angles)], 1)
    counts = np.stack(
        [np.arange(len(ids), dtype=np.float64), np.ones(len(ids))], 1
    )  # the last is most popular
    zeros = np.zeros(len(ids), np.int64)
    return ItemRows(ids, vectors.astype(np.float32), zeros.astype(np.float32), counts, zeros)


def user(user_id: str, vector: Sequence[float], liked: Sequence[str] = ()) -> UserRows:
    """Return one user who liked items, the latest first."""
    recent = [(item_id, LIKED, 7) for item_id in liked]
    return UserRows([user_id], np.array([vector], np.float32), np.array([7]), [recent])


def update(step: int = 1, *, published_ms: int = 1, **others: Any) -> Update:
    """Return an update with a barrier."""
    return Update(barrier=Barrier(step, step * 10, published_ms), **others)


def publish(table: Table, *updates: Update, layout: Layout = LAYOUT) -> Table:
    """Publish a new epoch: eight items, what goes with ``i0``, and more."""
    table.begin(layout)
    pairs = {"i0": Covisited(["i3", "i4"], np.array([1.0, 0.5], np.float32), 0)}
    ids = [f"i{n}" for n in range(N_ITEMS)]
    table.publish(update(items=items(ids), covisited=pairs, weights=WEIGHTS))
    for each in updates:
        table.publish(each)
    table.flip()
    return table


def published(*updates: Update) -> MemoryTable:
    """Return a table in memory with :func:`publish`."""
    table = MemoryTable()
    publish(table, *updates)
    return table


def following(table: Table, *, stale_s: float = 1e10, **options: Any) -> Live:
    """Return what follows a table; nothing that was published counts as stale."""
    return Live(table, stale_s=stale_s, **options)


class Asking:
    """Asks the handlers of one process, as the app does."""

    def __init__(self, live: Live, store: Store | None = None, **options: Any) -> None:
        self.enrolment = Enrolment(store or MemoryStore(), live.also)
        made = routes(live, self.enrolment, **options)
        self._routes = {(each.method, each.path): each for each in made}

    def __call__(self, path: str, *, body: Any = None, **query: Any) -> Awaitable[Any]:
        """Ask for a path, such as ``/v1/recommendations/{user}`` with ``user`` in the query."""
        route = self._routes["GET" if body is None else "POST", path]
        named = {name: query.pop(name) for name in list(query) if f"{{{name}}}" in path}
        asked = None if route.query is None else msgspec.convert(query, route.query)
        read = None if route.body is None else msgspec.convert(body, route.body)
        return route.handler(Call(path=named, query=asked, body=read))


def ask(live: Live, path: str, *, body: Any = None, **query: Any) -> Any:
    """Ask once."""
    return once(Asking(live), lambda asking: asking(path, body=body, **query))


def once(asking: Asking, wanted: Callable[[Asking], Awaitable[Any]]) -> Any:
    """Return what comes of a request, in a loop of its own."""

    async def run() -> Any:
        return await wanted(asking)

    return asyncio.run(run())


def ids(answer: Any) -> list[str]:
    """Return the items of a list."""
    return [one.item for one in answer.items]


def until(live: Live, condition: Callable[[Live], Any], what: str) -> None:
    """Wait for a process to have followed."""
    wait_until(lambda: bool(condition(live)), 60.0, what)


def has_step(step: int) -> Callable[[Live], bool]:
    """Return whether a step was followed."""
    return lambda live: live.state().step == step


def reads(found: Mapping[str, Any] | Any) -> Any:
    """Return an answer as a client reads it."""
    return msgspec.json.decode(msgspec.json.encode(found))
