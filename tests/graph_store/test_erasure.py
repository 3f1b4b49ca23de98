"""A user that was forgotten was never there, as far as that is promised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graph_store.erasure import forget
from graph_store.graph import GraphConfig, TemporalGraph
from graph_store.snapshot import list_snapshots, read_snapshot, write_snapshot
from stream.errors import TidegraphError
from stream.events import Feedback, FeedbackBatch, Kind

START_MS = 1_650_812_741_000
ROOMY = GraphConfig(k_user=6, k_item=100, half_lives_ms=(5_000, 60_000), pairs_per_item=100)
"""Items lose no edge and no pair to another."""

SMALL = replace(ROOMY, k_item=3, pairs_per_item=4)

GONE = "u0"

Event = tuple[int, int, Kind]  # user, item, kind


def feedback(second: int, event: Event) -> Feedback:
    user, item, kind = event
    at_ms = START_MS + 1_000 * second
    return Feedback(1, f"e{second}", f"u{user}", f"i{item}", at_ms, kind.label, 1.0)


def retraction(second: int, event: Event) -> Feedback:
    """Return what takes an event back."""
    user, item, _ = event
    at_ms = START_MS + 1_000 * second
    return Feedback(
        1, f"r{second}", f"u{user}", f"i{item}", at_ms, "retraction", 0.0,
        retracts=f"e{second}", target_ts_ms=at_ms,
    )  # fmt: skip


def followed(graph: TemporalGraph, events: list[Feedback], *, at_once: int = 7) -> TemporalGraph:
    """Take events in, in batches."""
    for first in range(0, len(events), at_once):
        batch = FeedbackBatch.from_feedback(events[first : first + at_once])
        graph.append(graph.view(batch.in_order()))
        graph.retract(batch)
    return graph


def said(graph: TemporalGraph, at_ms: int) -> dict[str, Any]:
    """Return everything that a graph says of others than :data:`GONE`, by external id."""
    items = graph.items.named()
    item_ids = graph.items.ids_of(items)
    users = {
        user: row
        for row, user in zip(
            graph.users.named(), graph.users.ids_of(graph.users.named()), strict=True
        )
        if user != GONE
    }

    def names(rows: Any) -> list[str]:
        return graph.items.ids_of(rows[rows >= 0])

    pointers, others, weights = graph.covisitation.lists(items, at_ms=at_ms)
    masses = graph.covisitation.masses(at_ms, len(graph.items))
    counts = np.hstack(
        [sums.at(at_ms, len(graph.items)) for sums in (graph.positives, graph.shown)]
    )
    pairs = {
        item: dict(
            zip(
                names(others[pointers[n] : pointers[n + 1]]),
                weights[pointers[n] : pointers[n + 1]].tolist(),
                strict=True,
            )
        )
        for n, item in enumerate(item_ids)
        if pointers[n] < pointers[n + 1]
    }
    return {
        "edges": {
            user: names(graph.edges.users_latest(np.array([row]), k=100, before_ms=at_ms).nodes[0])
            for user, row in users.items()
        },
        "seen": {user: sorted(names(graph.seen.of(int(row)))) for user, row in users.items()},
        "counts": {
            item: counts[row].tolist()
            for item, row in zip(item_ids, items.tolist(), strict=True)
            if counts[row].max() > 1e-9
        },
        "pairs": pairs,
        "masses": {item: masses[graph.items.find([item])[0]] for item in pairs},
    }


def assert_near(got: Any, want: Any) -> None:
    """Compare, numbers but for rounding."""
    assert got.keys() == want.keys()
    for name, value in want.items():
        if isinstance(value, dict):
            assert_near(got[name], value)
        else:
            assert got[name] == (
                pytest.approx(value, rel=1e-3, abs=1e-6)
                if isinstance(value, float) or (value and isinstance(value[0], float))
                else value
            )


kinds = st.sampled_from([kind for kind in Kind if kind != Kind.RETRACTION])
logs = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6), kinds), max_size=60)


@given(log=logs, at_once=st.integers(1, 9))
@settings(max_examples=60)
def test_a_graph_that_forgets_a_user_is_one_that_never_saw_them(
    log: list[Event], at_once: int
) -> None:
    log = [*log, (1, 0, Kind.IMPLICIT_POSITIVE)]  # the clock does not go back
    events = [feedback(second, event) for second, event in enumerate(log)]
    graph = followed(TemporalGraph(ROOMY), events, at_once=at_once)
    own = sum(event.user_id == GONE for event in events)
    known = forget(graph, GONE) is not None
    assert known == (own > 0)
    never = followed(
        TemporalGraph(ROOMY), [event for event in events if event.user_id != GONE], at_once=at_once
    )
    assert graph.state_hash() == never.state_hash()
    assert graph.edges.n_half_edges == never.edges.n_half_edges
    at_ms = START_MS + 1_000 * len(log)
    if own <= ROOMY.k_user:  # all of the user's edges are in hand
        assert_near(said(graph, at_ms), said(never, at_ms))


@given(log=logs, retracted=st.sets(st.integers(0, 59)))
@settings(max_examples=60)
def test_what_small_rings_and_retractions_leave_is_less_and_never_of_the_user(
    log: list[Event], retracted: set[int]
) -> None:
    events = [feedback(second, event) for second, event in enumerate(log)]
    events += [retraction(second, log[second]) for second in sorted(retracted) if second < len(log)]
    graph = followed(TemporalGraph(SMALL), events)
    forget(graph, GONE)
    never = followed(TemporalGraph(SMALL), [each for each in events if each.user_id != GONE])
    at_ms = START_MS + 1_000 * (len(log) + 1)
    got, want = said(graph, at_ms), said(never, at_ms)
    assert got["edges"] == want["edges"]
    assert got["seen"] == want["seen"]
    everything = graph.items.named()
    near = graph.edges.items_latest(everything, k=SMALL.k_item, before_ms=at_ms).nodes
    assert set(graph.users.ids_of(near[near >= 0])) <= {"u1", "u2", "u3"}
    for sums in (graph.positives, graph.shown):
        assert (sums.at(at_ms, len(graph.items)) >= 0).all()
    _, _, weights = graph.covisitation.lists(everything, at_ms=at_ms)
    assert (weights > 0).all()


@given(log=logs, again=logs)
@settings(max_examples=30)
def test_a_user_that_comes_back_is_a_new_one(log: list[Event], again: list[Event]) -> None:
    events = [feedback(second, event) for second, event in enumerate(log)]
    back = [feedback(1_000 + second, event) for second, event in enumerate(again)]
    graph = followed(TemporalGraph(ROOMY), events)
    row = int(graph.users.find([GONE])[0])
    forget(graph, GONE)
    followed(graph, back)
    others = [event for event in events if event.user_id != GONE]
    assert graph.state_hash() == followed(TemporalGraph(ROOMY), [*others, *back]).state_hash()
    if (new := int(graph.users.find([GONE])[0])) >= 0:
        assert new != row or row < 0
        items = {f"i{item}" for user, item, _ in again if user == 0}
        assert set(graph.items.ids_of(graph.seen.of(new))) == items


def texts(value: object) -> bytes:
    """Return every byte that a state holds."""
    if isinstance(value, dict):
        return b"".join(texts(each) for each in (*value, *value.values()))
    if isinstance(value, list | tuple):
        return b"".join(map(texts, value))
    return value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode()


@pytest.mark.parametrize("read", [lambda graph: graph, lambda graph: graph.fork()])
def test_the_name_is_nowhere_any_more(
    read: Callable[[TemporalGraph], TemporalGraph], tmp_path: Any
) -> None:
    graph = followed(
        TemporalGraph(ROOMY),
        [
            Feedback(1, "e1", "anna-who-leaves", "i1", START_MS, "explicit_positive", 1.0),
            Feedback(1, "e2", "otto-who-stays", "i1", START_MS + 1, "explicit_positive", 1.0),
        ],
    )
    forget(graph, "anna-who-leaves")
    write_snapshot(tmp_path, read(graph).state(), fingerprint="f")
    state = read_snapshot(list_snapshots(tmp_path)[0], fingerprint="f")
    again = TemporalGraph(ROOMY)
    again.restore(state)
    for each in (graph.users._pool.tobytes(), again.users._pool.tobytes(), texts(state)):
        assert b"anna" not in each
        assert b"otto" in each
    assert again.users.named().tolist() == [1]
    assert again.users.rows(["zoe"]).tolist() == [2]  # nobody gets the row of who left
    with pytest.raises(TidegraphError, match="has no id"):
        again.users.id_of(0)


def test_a_retraction_that_waits_is_forgotten_too() -> None:
    like = (0, 1, Kind.EXPLICIT_POSITIVE)
    graph = followed(TemporalGraph(ROOMY), [retraction(5, like), feedback(1, (1, 1, like[2]))])
    assert graph.edges.n_waiting == 1
    forget(graph, GONE)
    assert graph.edges.n_waiting == 0
