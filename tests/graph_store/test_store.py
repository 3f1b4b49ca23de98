"""The edge store agrees with a plain list of events, and stays within its memory."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph_store.checks import take
from graph_store.ids import Ids
from graph_store.store import PADDING, Edges, EdgeStore, Neighbours
from stream.errors import BadSettings, BadSnapshot, TidegraphError
from tests.graph_store.plain_store import Event, PlainStore, edges_of

N_USERS, N_ITEMS = 3, 4
K_USER, K_ITEM = 3, 2

# One event per key, as upstream guarantees: user, item and kind follow from it.
EVENTS = [
    Event(ts_ms=drawn[0], key=key, user=drawn[1], item=drawn[2], kind=drawn[3])
    for key, drawn in enumerate(
        np.random.default_rng(5).integers(0, [15, N_USERS, N_ITEMS, 5], (40, 4)).tolist()
    )
]
event = st.sampled_from(EVENTS)
batch = st.lists(event, max_size=25)
Step = tuple[str, list[Event]]
append: st.SearchStrategy[Step] = batch.map(lambda events: ("append", events))
retract: st.SearchStrategy[Step] = st.lists(event, min_size=1, max_size=4).map(
    lambda events: ("retract", events)
)
restart: st.SearchStrategy[Step] = st.just(("restart", []))
steps = st.lists(st.one_of(append, retract, restart), max_size=8)


def both(steps: list[Step], max_age_ms: int | None = None) -> tuple[EdgeStore, PlainStore]:
    """Take ours and the plain store through the same steps."""
    ours = EdgeStore(k_user=K_USER, k_item=K_ITEM, max_age_ms=max_age_ms)
    plain = PlainStore(k_user=K_USER, k_item=K_ITEM, max_age_ms=max_age_ms)
    for what, events in steps:
        edges = edges_of(events)
        if what == "append":
            ours.append(edges)
            plain.append(edges)
        elif what == "retract":
            ours.retract(edges.user, edges.item, edges.ts_ms, edges.key)
            plain.retract(edges.user, edges.item, edges.ts_ms, edges.key)
        else:
            state = ours.state()
            ours = EdgeStore(k_user=K_USER, k_item=K_ITEM, max_age_ms=max_age_ms)
            ours.restore(state)
    return ours, plain


def same(found: Neighbours, want: Neighbours) -> bool:
    """Compare all three columns."""
    return [column.tolist() for column in found] == [column.tolist() for column in want]


@given(
    steps=steps,
    before_ms=st.integers(0, 16),
    k=st.integers(0, K_USER + 1),
    max_age_ms=st.none() | st.integers(0, 15),
)
def test_latest_agrees_with_a_plain_list(
    steps: list[Step], before_ms: int, k: int, max_age_ms: int | None
) -> None:
    ours, plain = both(steps, max_age_ms)
    users, items = np.arange(-1, N_USERS + 1), np.arange(-1, N_ITEMS + 1)
    assert same(
        ours.users_latest(users, k=k, before_ms=before_ms),
        plain.users_latest(users, k=k, before_ms=before_ms),
    )
    times = np.arange(items.size) + before_ms - 3
    assert same(
        ours.items_latest(items, k=k, before_ms=times),
        plain.items_latest(items, k=k, before_ms=times),
    )


@given(
    steps=steps,
    events=batch,
    k=st.integers(1, K_USER + 1),
    max_age_ms=st.none() | st.integers(0, 15),
)
def test_histories_agree_with_reading_and_appending_one_by_one(
    steps: list[Step],
    events: list[Event],
    k: int,
    max_age_ms: int | None,
) -> None:
    ours, plain = both(steps, max_age_ms)
    edges = edges_of(sorted(events))
    if events:
        assert same(ours.histories(edges, k=k), plain.histories(edges, k=k))
    else:
        assert ours.histories(edges, k=k).nodes.shape == (0, k)


@pytest.mark.parametrize("seed", range(40))
def test_histories_of_long_batches_agree_too(seed: int) -> None:
    """More events of a user in one batch than it keeps, some taken back, some delivered again."""
    draw = random.Random(seed)
    before, taken_back, within = (draw.choices(EVENTS, k=size) for size in (20, 5, 30))
    ours, plain = both([("append", before), ("retract", taken_back)])
    edges = edges_of(sorted(within))
    for k in range(1, K_USER + 2):
        assert same(ours.histories(edges, k=k), plain.histories(edges, k=k))


@given(steps=steps, order=st.randoms(use_true_random=False))
def test_any_order_and_repetition_gives_the_same_hash(
    steps: list[Step], order: random.Random
) -> None:
    flat = [(what, one) for what, events in steps for one in events]
    again = [*flat, *flat[::3]]
    order.shuffle(again)
    users, items = Ids(), Ids()
    users.rows([f"u{n}" for n in range(N_USERS)])
    items.rows([f"i{n}" for n in range(N_ITEMS)])
    straight, _ = both([(what, [one]) for what, one in flat])
    shuffled, _ = both([(what, [one]) for what, one in again])
    assert shuffled.state_hash(users, items) == straight.state_hash(users, items)


def test_the_hash_does_not_depend_on_rows() -> None:
    hashes = []
    for names in (["ann", "bob"], ["bob", "ann"]):
        users, items = Ids(), Ids()
        users.rows(names)
        item = items.rows(["x", "y"] if names[0] == "ann" else ["y", "x"])
        store = EdgeStore()
        for name, what, ts_ms in (("ann", 0, 10), ("bob", 1, 20)):
            row = int(item[what]) if names[0] == "ann" else int(item[1 - what])
            store.append(edges_of([Event(ts_ms, 7, int(users.find([name])[0]), row, 1)]))
        hashes.append(store.state_hash(users, items))
    assert hashes[0] == hashes[1]


def test_ten_events_by_hand() -> None:
    """User 0 meets items 1, 2, 1; user 1 meets item 1; the third edge of user 0 came late."""
    store = EdgeStore(k_user=2, k_item=5)
    events = [Event(10, 1, 0, 1, 0), Event(30, 3, 0, 1, 3), Event(30, 4, 1, 1, 1)]
    assert store.append(edges_of(events)) == 3
    assert store.append(edges_of([Event(20, 2, 0, 2, 2)])) == 1
    found = store.users_latest(np.array([0]), k=2, before_ms=31)
    assert found.nodes.tolist() == [[1, 2]]
    assert found.ts_ms.tolist() == [[30, 20]]
    assert found.kind.tolist() == [[3, 2]]
    found = store.items_latest(np.array([1]), k=4, before_ms=30)
    assert found.nodes.tolist() == [[0, PADDING, PADDING, PADDING]]
    assert store.n_half_edges == 7  # user 0 gave up its edge of time 10, item 1 keeps it


def test_a_waiting_retraction_gives_up_when_its_event_can_no_longer_come() -> None:
    store = EdgeStore(retraction_wait_ms=100)
    gone = edges_of([Event(1_000, 1, 0, 0, 0)])
    store.retract(gone.user, gone.item, gone.ts_ms, gone.key)
    assert store.n_waiting == 1
    store.append(edges_of([Event(1_100, 2, 1, 1, 0)]))
    none = edges_of([])
    store.retract(none.user, none.item, none.ts_ms, none.key)
    assert store.n_waiting == 1
    store.append(edges_of([Event(1_101, 3, 1, 1, 0)]))
    store.retract(none.user, none.item, none.ts_ms, none.key)
    assert store.n_waiting == 0


def test_a_retraction_of_an_edge_older_than_all_kept_does_not_wait() -> None:
    store = EdgeStore(k_user=1, k_item=1)
    old = edges_of([Event(5, 1, 0, 0, 0)])
    store.append(edges_of([Event(10, 2, 0, 0, 0)]))
    store.retract(old.user, old.item, old.ts_ms, old.key)
    assert store.n_waiting == 0
    store.append(old)
    assert store.users_latest(np.array([0]), k=1, before_ms=99).ts_ms.tolist() == [[10]]


@pytest.mark.parametrize("first", ["event", "retraction"])
@pytest.mark.parametrize("wrong", ["user", "item", "ts_ms"])
def test_a_retraction_that_names_another_event_takes_nothing_back(first: str, wrong: str) -> None:
    store, event = EdgeStore(), Event(ts_ms=5, key=1, user=0, item=0, kind=0)
    gone = edges_of([event._replace(**{wrong: getattr(event, wrong) + 1})])
    if first == "event":
        store.append(edges_of([event]))
    store.retract(gone.user, gone.item, gone.ts_ms, gone.key)
    if first == "retraction":
        store.append(edges_of([event]))
    assert store.users_latest(np.array([0]), k=1, before_ms=9).nodes.tolist() == [[0]]
    assert store.items_latest(np.array([0]), k=1, before_ms=9).nodes.tolist() == [[0]]


def test_edges_beyond_the_age_limit_give_their_memory_back() -> None:
    store = EdgeStore(k_user=4, k_item=4, max_age_ms=1_000)
    draw = np.random.default_rng(0)
    for hour in range(60):
        n = 2_000
        store.append(
            Edges(
                hour * n + np.arange(n),
                draw.integers(0, 50, n),
                np.full(n, hour * 1_000),
                np.zeros(n, np.int8),
                draw.integers(0, 2**63, n).astype(np.uint64),
            )
        )
    assert store.n_half_edges < 60 * 2_000 / 2
    assert store.users.pool.size < 60 * 2_000 / 2


def grown_store(n_users: int, degree: int, *, k_user: int = 20) -> EdgeStore:
    """Return a store in which all users grow in step, the worst case for moved blocks."""
    store = EdgeStore(k_user=k_user, k_item=10)
    users = np.arange(n_users)
    for n in range(degree):
        store.append(
            Edges(
                users,
                (users * 7 + n) % n_users,
                np.full(n_users, n),
                np.zeros(n_users, np.int8),
                (users + n * n_users).astype(np.uint64),
            )
        )
    return store


@pytest.mark.parametrize("degree", range(1, 25, 2))
def test_a_half_edge_takes_at_most_32_bytes_whatever_the_degree(degree: int) -> None:
    store = grown_store(20_000, degree)
    edges = store.users.pool.nbytes + store.items.pool.nbytes
    assert edges / store.n_half_edges <= 32
    assert (store.n_bytes - edges) / 40_000 <= 20


def newest(edges: list[Edges], n_users: int, k: int) -> list[list[tuple[int, int]]]:
    """List each user's newest edges as (time, item), by sorting everything there is."""
    mine: list[list[tuple[int, int, int]]] = [[] for _ in range(n_users)]
    for batch in edges:
        columns = (batch.user, batch.ts_ms, batch.key, batch.item)
        for user, ts_ms, key, item in zip(*(column.tolist() for column in columns), strict=True):
            mine[user].append((ts_ms, key, item))
    return [[(one[0], one[2]) for one in sorted(row, reverse=True)[:k]] for row in mine]


@pytest.mark.parametrize("max_age_ms", [None, 30_000])
def test_rows_keep_their_edges_however_often_blocks_are_moved(max_age_ms: int | None) -> None:
    """Rows grow at different times, shrink by age and by eviction, and grow again."""
    store, draw = EdgeStore(k_user=12, k_item=3, max_age_ms=max_age_ms), np.random.default_rng(7)
    n_users, batches = 4_000, []
    for n in range(40):
        # Activity wanders over the users, so that blocks of all sizes are left and reused.
        user = (100 * n + draw.geometric(0.002, 2_000)) % n_users
        batch = Edges(
            user,
            draw.integers(0, 500, 2_000),
            draw.integers(1_000 * n, 1_000 * n + 3_000, 2_000),
            np.zeros(2_000, np.int8),
            draw.integers(0, 2**62, 2_000).astype(np.uint64),
        )
        batches.append(batch)
        store.append(batch)
        if n == 20:
            store.users.shrink(store.oldest_ms)
        if n % 10 == 9:
            found = store.users_latest(np.arange(n_users), k=12, before_ms=10**9)
            for row, want in enumerate(newest(batches, n_users, 12)):
                shown = [one for one in want if one[0] >= store.oldest_ms]
                got = list(zip(found.ts_ms[row].tolist(), found.nodes[row].tolist(), strict=True))
                assert got == shown + [(0, PADDING)] * (12 - len(shown))
    blocks = store.users.nodes[store.users.nodes["capacity"] > 0]
    blocks = blocks[np.argsort(blocks["start"])]
    assert (blocks["start"][:-1] + blocks["capacity"][:-1] <= blocks["start"][1:]).all()


def test_eviction_drops_the_least_recently_active_and_every_edge_to_them() -> None:
    store = EdgeStore(k_user=8, k_item=8)
    n = 100
    store.append(
        Edges(
            np.arange(n),  # user n was active at time n only
            np.arange(n) % 5,
            np.arange(n),
            np.zeros(n, np.int8),
            np.arange(n, dtype=np.uint64),
        )
    )
    assert store.evict(max_nodes=105).users.size == 0
    evicted = store.evict(max_nodes=100)
    assert evicted.users.tolist() == list(range(15))  # 105 nodes go down to 90
    assert evicted.items.tolist() == []
    assert store.n_evicted_nodes == 15
    left = store.users_latest(np.arange(n), k=1, before_ms=n).nodes[:, 0]
    assert (left[:15] == PADDING).all()
    assert left[15:].tolist() == (np.arange(15, n) % 5).tolist()
    met = store.items_latest(np.arange(5), k=8, before_ms=n).nodes
    assert met.min() >= 60  # the items keep eight users each, all of them recent


def test_nodes_that_lost_all_their_edges_grow_again_like_new_ones() -> None:
    store, draw = EdgeStore(k_user=40, k_item=40), np.random.default_rng(3)

    def batch(first_ms: int, size: int) -> Edges:
        return Edges(
            draw.integers(0, 300, size),
            draw.integers(0, 300, size),
            first_ms + np.arange(size),
            np.zeros(size, np.int8),
            draw.integers(0, 2**62, size).astype(np.uint64),
        )

    old = batch(0, 600)
    store.append(old)
    store.drop(users=np.arange(50), items=np.arange(250))
    store.users.shrink(store.oldest_ms)
    left = np.flatnonzero((old.user >= 50) & (old.item >= 250))
    new = batch(1_000, 1_500)
    store.append(new)
    found = store.users_latest(np.arange(300), k=40, before_ms=10**9)
    for row, want in enumerate(newest([take(old, left), new], 300, 40)):
        got = list(zip(found.ts_ms[row].tolist(), found.nodes[row].tolist(), strict=True))
        assert got == want + [(0, PADDING)] * (40 - len(want))


def test_rows_of_dropped_nodes_can_be_given_to_others() -> None:
    store = EdgeStore()
    kept, gone = Event(2, 2, 1, 0, 0), Event(1, 1, 0, 0, 0)
    store.append(edges_of([kept, gone]))
    waiting = edges_of([Event(3, 3, 0, 0, 0)])
    store.retract(waiting.user, waiting.item, waiting.ts_ms, waiting.key)
    store.drop(users=np.array([0]))
    assert store.n_waiting == 0
    assert store.n_half_edges == 2
    assert store.items_latest(np.array([0]), k=2, before_ms=9).nodes.tolist() == [[1, PADDING]]
    store.append(edges_of([Event(3, 3, 0, 5, 1)]))
    assert store.users_latest(np.array([0]), k=2, before_ms=9).nodes.tolist() == [[5, PADDING]]


def test_eviction_keeps_to_a_byte_budget() -> None:
    store = grown_store(30_000, 8)
    limit = store.n_bytes // 2
    evicted = store.evict(max_bytes=limit)
    assert store.n_bytes <= limit
    assert evicted.users.size + evicted.items.size == store.n_evicted_nodes > 0
    assert store.n_half_edges > 0
    assert store.n_evicted_half_edges + store.n_half_edges == 2 * 30_000 * 8
    again = store.evict(max_bytes=limit)
    assert again.users.size + again.items.size == 0


def test_a_store_within_its_budget_is_left_alone() -> None:
    store = grown_store(100, 3)
    half_edges = store.n_half_edges
    store.evict(max_bytes=10**9, max_nodes=200)
    assert (store.n_half_edges, store.n_evicted_nodes) == (half_edges, 0)


def test_a_negative_row_is_refused_and_changes_nothing() -> None:
    store = EdgeStore()
    bad = edges_of([Event(1, 1, 0, 0, 0), Event(2, 2, -1, 0, 0)])
    with pytest.raises(TidegraphError, match="negative"):
        store.append(bad)
    with pytest.raises(TidegraphError, match="negative"):
        store.retract(bad.user, bad.item, bad.ts_ms, bad.key)
    assert (store.n_half_edges, store.n_waiting, store.newest_ms) == (0, 0, None)


def test_columns_of_different_lengths_are_refused() -> None:
    good = edges_of([Event(1, 1, 0, 0, 0), Event(2, 2, 0, 0, 0)])
    with pytest.raises(TidegraphError, match="one length"):
        EdgeStore().append(good._replace(item=good.item[:1]))


def test_histories_of_an_unsorted_batch_are_refused() -> None:
    events = [Event(1, 2, 0, 0, 0), Event(1, 1, 0, 0, 0)]
    with pytest.raises(TidegraphError, match="event 1 comes before"):
        EdgeStore().histories(edges_of(events), k=2)


def test_a_state_of_another_width_is_refused() -> None:
    state = grown_store(10, 2, k_user=4).state()
    with pytest.raises(BadSnapshot, match=r"want \(20, 10\) as set, the snapshot has \(4, 10\)"):
        EdgeStore().restore(state)


def test_a_state_that_does_not_add_up_is_refused() -> None:
    state = grown_store(10, 2).state()
    state["users"]["edges"] = state["users"]["edges"][1:]
    with pytest.raises(BadSnapshot, match="want 20 of them"):
        EdgeStore().restore(state)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("k_user", 0), ("k_item", 40_000), ("max_age_ms", -1), ("retraction_wait_ms", -1)],
)
def test_settings_without_sense_are_refused(setting: str, value: int) -> None:
    with pytest.raises(BadSettings, match=setting):
        EdgeStore(**{setting: value})
