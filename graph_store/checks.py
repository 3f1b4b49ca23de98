"""What every edge store must satisfy, one clause at a time, so that a failure names the clause."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from graph_store.ids import Ids
from graph_store.store import PADDING, Edges, Neighbours

N_USERS: Final = 5
N_ITEMS: Final = 7
N_EVENTS: Final = 120
ALWAYS: Final = 10**9
"""A time after every event of the checks."""


class Store(Protocol):
    """All that the checks need to know of a store; see :class:`graph_store.store.EdgeStore`."""

    def append(self, edges: Edges) -> int:
        """Add edges; return how many are kept and were not here yet."""
        ...

    def retract(
        self,
        user: NDArray[np.int64],
        item: NDArray[np.int64],
        ts_ms: NDArray[np.int64],
        key: NDArray[np.uint64],
    ) -> None:
        """Take events back."""
        ...

    def users_latest(
        self, users: NDArray[np.int64], *, k: int, before_ms: int | NDArray[np.int64]
    ) -> Neighbours:
        """Return what users met strictly before a time."""
        ...

    def items_latest(
        self, items: NDArray[np.int64], *, k: int, before_ms: int | NDArray[np.int64]
    ) -> Neighbours:
        """Return who met items strictly before a time."""
        ...

    def histories(self, edges: Edges, *, k: int) -> Neighbours:
        """Return what each event's user had strictly before it."""
        ...

    def state_hash(self, users: Ids, items: Ids) -> str:
        """Return a digest of the edges kept."""
        ...

    def state(self) -> dict[str, Any]:
        """Return everything the store knows."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Become the store that the state was taken from."""
        ...


class Build(Protocol):
    """Makes an empty store."""

    def __call__(self, *, k_user: int, k_item: int) -> Store:
        """Return a store that keeps that many edges per user and per item."""
        ...


Check = Callable[[Build], None]


def sample_log(seed: int = 0) -> Edges:
    """Return a log in order with ties in time, all four kinds, and repeated pairs."""
    random = np.random.default_rng(seed)
    return Edges(
        random.integers(0, N_USERS, N_EVENTS),
        random.integers(0, N_ITEMS, N_EVENTS),
        np.sort(random.integers(0, N_EVENTS // 2, N_EVENTS)),
        random.integers(0, 4, N_EVENTS).astype(np.int8),
        np.sort(random.choice(10**6, N_EVENTS, replace=False)).astype(np.uint64),
    )


def take(edges: Edges, index: NDArray[np.int64]) -> Edges:
    """Return the events at ``index``."""
    user, item, ts_ms, kind, key = edges
    return Edges(user[index], item[index], ts_ms[index], kind[index], key[index])


def named() -> tuple[Ids, Ids]:
    """Return ids for the rows of :func:`sample_log`."""
    users, items = Ids(), Ids()
    users.rows([f"u{row}" for row in range(N_USERS)])
    items.rows([f"i{row}" for row in range(N_ITEMS)])
    return users, items


def everything(store: Store, *, before_ms: int = ALWAYS) -> list[list[Any]]:
    """Return all that can be read as of a time."""
    users = store.users_latest(np.arange(N_USERS), k=8, before_ms=before_ms)
    items = store.items_latest(np.arange(N_ITEMS), k=8, before_ms=before_ms)
    return [column.tolist() for column in (*users, *items)]


def _retract(store: Store, edges: Edges) -> None:
    store.retract(edges.user, edges.item, edges.ts_ms, edges.key)


def check_keeps_the_newest(build: Build) -> None:
    """A node keeps its K newest edges by time and key, and shows them newest first."""
    store, log = build(k_user=3, k_item=2), sample_log()
    store.append(log)
    for user in range(N_USERS):
        mine = np.flatnonzero(log.user == user)[::-1][:3]
        found = store.users_latest(np.array([user]), k=3, before_ms=ALWAYS)
        assert found.nodes[0].tolist() == log.item[mine].tolist()
        assert found.ts_ms[0].tolist() == log.ts_ms[mine].tolist()
        assert found.kind[0].tolist() == log.kind[mine].tolist()


def check_keeps_both_directions(build: Build) -> None:
    """An edge is found from its user and from its item."""
    store, log = build(k_user=3, k_item=2), sample_log()
    store.append(log)
    for item in range(N_ITEMS):
        mine = np.flatnonzero(log.item == item)[::-1][:2]
        found = store.items_latest(np.array([item]), k=2, before_ms=ALWAYS)
        assert found.nodes[0].tolist() == log.user[mine].tolist()
        assert found.ts_ms[0].tolist() == log.ts_ms[mine].tolist()


def check_order_does_not_show(build: Build) -> None:
    """Any order of arrival, in batches of any size, gives the same graph."""
    log = sample_log()
    straight, shuffled = build(k_user=3, k_item=2), build(k_user=3, k_item=2)
    straight.append(log)
    for part in np.array_split(np.random.default_rng(1).permutation(N_EVENTS), 7):
        shuffled.append(take(log, part))
    assert everything(shuffled) == everything(straight)
    assert shuffled.state_hash(*named()) == straight.state_hash(*named())


def check_repeats_do_not_show(build: Build) -> None:
    """An event that comes again changes nothing and is not counted as new."""
    store, log = build(k_user=3, k_item=2), sample_log()
    store.append(log)
    before = everything(store), store.state_hash(*named())
    assert store.append(log) == 0
    assert (everything(store), store.state_hash(*named())) == before


def check_hash_sees_every_part(build: Build) -> None:
    """The digest differs when any part of one event does, or when one is taken back."""
    log = sample_log()

    def digest(edges: Edges, *, retracted: bool = False) -> str:
        store = build(k_user=3, k_item=2)
        store.append(edges)
        if retracted:
            _retract(store, take(edges, np.array([N_EVENTS - 1])))
        return store.state_hash(*named())

    digests = {digest(log), digest(log, retracted=True)}
    for name in Edges._fields:
        column = getattr(log, name).copy()
        column[-1] = column[-1] - 1 if column[-1] else 1
        digests.add(digest(log._replace(**{name: column})))
    assert len(digests) == 2 + len(Edges._fields)


def check_reads_are_strictly_before(build: Build) -> None:
    """What is read as of a time is unmoved by anything that happens then or later."""
    log = sample_log()
    for before_ms in (0, 1, 20, int(log.ts_ms[-1]), int(log.ts_ms[-1]) + 1):
        # Rings with room for all: what is read is then the same with and without the future.
        whole, past = (build(k_user=N_EVENTS, k_item=N_EVENTS) for _ in range(2))
        whole.append(log)
        past.append(take(log, np.flatnonzero(log.ts_ms < before_ms)))
        assert everything(whole, before_ms=before_ms) == everything(past)


def check_histories_are_exact_inside_a_batch(build: Build) -> None:
    """Histories of a batch are those of a loop that reads each user, then appends its event."""
    log = sample_log()
    # Distinct times, so that a loop over ``users_latest`` knows all of the order.
    log = log._replace(ts_ms=np.arange(N_EVENTS))
    store, loop = build(k_user=4, k_item=2), build(k_user=4, k_item=2)
    for first in range(0, N_EVENTS, 40):
        batch = take(log, np.arange(first, first + 40))
        found = store.histories(batch, k=4)
        for n in range(40):
            event = take(batch, np.array([n]))
            want = loop.users_latest(event.user, k=4, before_ms=int(event.ts_ms[0]))
            assert found.nodes[n].tolist() == want.nodes[0].tolist()
            assert found.ts_ms[n].tolist() == want.ts_ms[0].tolist()
            assert found.kind[n].tolist() == want.kind[0].tolist()
            loop.append(event)
        store.append(batch)


def check_histories_change_nothing(build: Build) -> None:
    """Asking for histories appends nothing, and an event is not in its own."""
    store, log = build(k_user=3, k_item=2), sample_log()
    first = store.histories(take(log, np.array([0])), k=3)
    assert first.nodes.tolist() == [[PADDING] * 3]
    empty = everything(store)
    store.histories(log, k=3)
    assert everything(store) == empty


def check_retracted_edges_keep_their_slot(build: Build) -> None:
    """A retracted edge is never shown, and nothing older takes its place."""
    store, log = build(k_user=3, k_item=2), sample_log()
    store.append(log)
    mine = np.flatnonzero(log.user == 0)[::-1][:3]
    _retract(store, take(log, mine[1:2]))
    found = store.users_latest(np.array([0]), k=3, before_ms=ALWAYS)
    assert found.nodes[0].tolist() == [*log.item[mine[[0, 2]]].tolist(), PADDING]
    store.append(log)
    again = store.users_latest(np.array([0]), k=3, before_ms=ALWAYS)
    assert again.nodes.tolist() == found.nodes.tolist()


def check_retractions_wait_for_their_event(build: Build) -> None:
    """A retraction may come first: the graph is the same."""
    log = sample_log()
    gone = take(log, np.arange(0, N_EVENTS, 3))
    after, before = build(k_user=3, k_item=2), build(k_user=3, k_item=2)
    after.append(log)
    _retract(after, gone)
    _retract(before, gone)
    before.append(log)
    assert everything(before) == everything(after)
    assert before.state_hash(*named()) == after.state_hash(*named())


def check_survives_a_restart(build: Build) -> None:
    """A new store goes on from the state as the old one would, waiting retractions included."""
    log = sample_log()
    first, second = take(log, np.arange(60)), take(log, np.arange(60, N_EVENTS))
    store = build(k_user=3, k_item=2)
    store.append(first)
    _retract(store, take(log, np.arange(40, N_EVENTS, 7)))
    state, then = store.state(), everything(store)
    store.append(second)  # a state is a copy: what the store does now must not enter it
    restored = build(k_user=3, k_item=2)
    restored.restore(state)
    assert everything(restored) == then
    restored.append(second)
    assert everything(restored) == everything(store)
    assert restored.state_hash(*named()) == store.state_hash(*named())


def check_unknown_rows_have_no_neighbours(build: Build) -> None:
    """A row that no edge has named, -1 included, and an empty store give padding."""
    store = build(k_user=3, k_item=2)
    for _ in range(2):
        for read in (store.users_latest, store.items_latest):
            found = read(np.array([-1, 10**6]), k=2, before_ms=ALWAYS)
            assert found.nodes.tolist() == [[PADDING] * 2] * 2
            assert found.ts_ms.tolist() == [[0] * 2] * 2
            assert found.kind.tolist() == [[PADDING] * 2] * 2
        store.append(sample_log())


def check_kinds_without_meaning_make_no_edge(build: Build) -> None:
    """An event of kind ``none`` has a history and is in nobody's."""
    log = sample_log()
    log.kind[::2] = 4
    store, plain = build(k_user=3, k_item=2), build(k_user=3, k_item=2)
    found = store.histories(log, k=3)
    kept = np.flatnonzero(log.kind != 4)
    want = plain.histories(take(log, kept), k=3)
    assert found.nodes[kept].tolist() == want.nodes.tolist()
    store.append(log)
    plain.append(take(log, kept))
    assert everything(store) == everything(plain)


def yield_checks() -> Iterator[Check]:
    """Yield the contract."""
    yield check_keeps_the_newest
    yield check_keeps_both_directions
    yield check_order_does_not_show
    yield check_repeats_do_not_show
    yield check_hash_sees_every_part
    yield check_reads_are_strictly_before
    yield check_histories_are_exact_inside_a_batch
    yield check_histories_change_nothing
    yield check_retracted_edges_keep_their_slot
    yield check_retractions_wait_for_their_event
    yield check_survives_a_restart
    yield check_unknown_rows_have_no_neighbours
    yield check_kinds_without_meaning_make_no_edge
