"""The graph shows each batch what was there before it, and the order of arrival leaves no trace."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graph_store.graph import GraphConfig, TemporalGraph, View
from stream.events import Feedback, FeedbackBatch, Kind

START_MS = 1_650_812_741_000
CONFIG = GraphConfig(k_user=4, k_item=3, half_lives_ms=(5_000, 60_000))

Event = tuple[int, int, int, Kind]  # user, item, second, kind


def feedback(events: list[Event]) -> FeedbackBatch:
    """Return events as accepted feedback, in their order; the id says what happened."""
    return FeedbackBatch.from_feedback(
        [
            Feedback(
                1,
                f"{second}-{user}-{item}",
                f"u{user}",
                f"i{item}",
                START_MS + 1_000 * second,
                kind.label,
                0.5,
            )
            for user, item, second, kind in events
        ]
    )


def retraction(event: Event) -> Feedback:
    """Return what takes an event back."""
    user, item, second, _ = event
    at_ms = START_MS + 1_000 * second
    return Feedback(
        1, f"r-{second}-{user}-{item}", f"u{user}", f"i{item}", at_ms + 1, "retraction", 0.0,
        retracts=f"{second}-{user}-{item}", target_ts_ms=at_ms,
    )  # fmt: skip


def taken_in(graph: TemporalGraph, *batches: list[Event]) -> TemporalGraph:
    """View and append batches, each in event order."""
    for events in batches:
        graph.append(graph.view(feedback(events).in_order()))
    return graph


def random_events(n: int, seed: int = 0) -> list[Event]:
    """Return events of few users and items, one a second, of every kind."""
    rng = np.random.default_rng(seed)
    kinds = [kind for kind in Kind if kind != Kind.RETRACTION]
    return [
        (int(user), int(item), second, kinds[kind])
        for second, (user, item, kind) in enumerate(rng.integers(0, [5, 9, 5], (n, 3)))
    ]


def in_tens(events: list[Event]) -> list[list[Event]]:
    """Cut events into batches."""
    return [events[first : first + 10] for first in range(0, len(events), 10)]


def readings(view: View) -> dict[str, list[object]]:
    """Return everything that a view says, external ids in place of rows."""
    graph = view.graph
    pointers, items = view.seen()
    seen = [
        sorted(graph.items.ids_of(met[met >= 0]))
        for met in (items[pointers[n] : pointers[n + 1]] for n in range(len(view)))
    ]
    everything = np.arange(view.n_items)
    near = graph.edges.items_latest(everything, k=3, before_ms=view.at_ms)
    return {
        "users": list(graph.users.ids_of(view.users)),
        "items": list(graph.items.ids_of(view.items)),
        "kind": view.kind.tolist(),
        "history": [
            [graph.items.id_of(row) if row >= 0 else "" for row in rows]
            for rows in view.history.nodes.tolist()
        ],
        "history_ts_ms": view.history.ts_ms.tolist(),
        "history_kind": view.history.kind.tolist(),
        "previous": view.previous.tolist(),
        "known": [view.n_users, view.n_items, view.at_ms, view.step],
        "seen": list(seen),
        "near": near.nodes.tolist(),
        "positives": graph.positives.at(view.at_ms, view.n_items).tolist(),
        "shown": graph.shown.at(view.at_ms, view.n_items).tolist(),
        "pairs": [
            [column.tolist() for column in graph.covisitation.neighbours(item)]
            for item in range(view.n_items)
        ],
        "recent": graph.recent.items.tolist(),
    }


def test_a_view_says_what_was_there_and_appending_brings_it_in() -> None:
    """By hand."""
    like, skip, nothing = Kind.EXPLICIT_POSITIVE, Kind.IMPLICIT_NEGATIVE, Kind.NONE
    graph = taken_in(TemporalGraph(CONFIG), [(0, 0, 0, like), (0, 1, 10, skip), (1, 0, 20, like)])
    view = graph.view(feedback([(0, 2, 30, like), (1, 1, 31, nothing), (0, 3, 32, skip)]))

    assert graph.items.ids_of(view.items) == ["i2", "i1", "i3"]
    assert view.kind.tolist() == [0, 4, 2]
    assert view.positive.tolist() == [True, False, False]
    assert view.typed.tolist() == [True, False, True]
    assert (view.n_users, view.n_items, view.step) == (2, 2, 1)
    assert view.at_ms == START_MS + 30_000
    assert view.previous.tolist() == [-1, -1, 0]
    assert view.history.nodes.tolist() == [[1, 0, -1, -1], [0, -1, -1, -1], [2, 1, 0, -1]]
    assert view.history.kind[2].tolist() == [like, skip, like, -1]

    graph.append(view)
    assert (graph.n_users, graph.n_items, graph.steps) == (2, 4, 2)
    assert graph.newest_ms == START_MS + 32_000
    seconds_ago = np.array([[32.0], [22.0], [2.0], [0.0]])
    fall = 2.0 ** (-seconds_ago * 1_000 / np.array(CONFIG.half_lives_ms))
    shown = graph.shown.at(graph.newest_ms, 4)
    np.testing.assert_allclose(shown[1:], fall[1:], rtol=1e-9)  # one each: that of kind none not
    np.testing.assert_allclose(shown[0], fall[0] + 2.0 ** (-12_000 / np.array([5_000, 60_000])))
    positives = graph.positives.at(graph.newest_ms, 4)
    np.testing.assert_allclose(positives[[0, 2]], shown[[0, 2]], rtol=1e-9)
    assert not positives[[1, 3]].any()
    assert graph.covisitation.neighbours(2)[0].tolist() == [0]  # not 1, which was skipped
    assert graph.recent.items.tolist() == [0, 0, 2]
    assert graph.seen.of(1).tolist() == [0, 1]  # shown, though it said nothing


def test_what_says_nothing_is_seen_but_makes_no_edge() -> None:
    graph = taken_in(TemporalGraph(CONFIG), [(0, 0, 0, Kind.NONE)])
    now = graph.reading(np.array([0]), np.array([START_MS + 99_000]))
    assert (now.history.nodes == -1).all()
    assert graph.seen.of(0).tolist() == [0]
    assert graph.shown.at(graph.newest_ms, 1).sum() == 0
    assert graph.n_items == 1


def test_a_view_stays_as_it_is_until_its_batch_is_appended() -> None:
    first, second, *_ = in_tens(random_events(30))
    graph = taken_in(TemporalGraph(CONFIG), first)
    view = graph.view(feedback(second))
    before = readings(view)
    taken_in(graph.fork(), second, second)
    graph.view(feedback([(70, 70, 900, Kind.EXPLICIT_POSITIVE)]))  # looked at, not taken in
    assert readings(view) == before


def test_items_are_as_of_the_batchs_start_for_each_event_of_it() -> None:
    """Appending the batch's events one by one changes counts; the view does not show it."""
    like = Kind.EXPLICIT_POSITIVE
    graph = taken_in(TemporalGraph(CONFIG), [(0, 0, 0, like)])
    view = graph.view(feedback([(1, 0, 10, like), (2, 0, 11, like), (3, 0, 12, like)]))
    np.testing.assert_allclose(graph.positives.at(view.at_ms, 1)[0, 0], 0.25)  # two half-lives
    near = graph.edges.items_latest(np.array([0]), k=3, before_ms=view.at_ms)
    assert near.nodes.tolist() == [[0, -1, -1]]


@settings(max_examples=25)
@given(st.permutations(random_events(24)), st.lists(st.integers(0, 23), max_size=6))
def test_neither_shuffling_nor_repeating_changes_the_hash(
    shuffled: list[Event], again: list[int]
) -> None:
    want = taken_in(TemporalGraph(CONFIG), *in_tens(random_events(24))).state_hash()
    repeated = shuffled + [shuffled[n] for n in again]
    assert taken_in(TemporalGraph(CONFIG), *in_tens(repeated)).state_hash() == want


def test_another_event_does_change_the_hash() -> None:
    events = random_events(24)
    whole = taken_in(TemporalGraph(CONFIG), events).state_hash()
    user, item, second, _ = events[-1]
    events[-1] = (user, item + 1, second, Kind.EXPLICIT_POSITIVE)
    assert taken_in(TemporalGraph(CONFIG), events).state_hash() != whole


def test_histories_do_not_depend_on_how_the_stream_was_cut() -> None:
    events = random_events(60)
    found: dict[int, list[object]] = defaultdict(list)
    for size in (1, 7, 60):
        graph = TemporalGraph(CONFIG)
        for first in range(0, 60, size):
            view = graph.view(feedback(events[first : first + size]))
            said = readings(view)
            for name in ("history", "history_ts_ms", "history_kind", "seen"):
                found[size].append((name, first))
            found[-size].extend(zip(*(said[n] for n in ("history", "seen")), strict=True))
            graph.append(view)
    assert found[-1] == found[-7] == found[-60]


def test_a_retracted_event_is_in_no_history_but_stays_seen() -> None:
    like = Kind.EXPLICIT_POSITIVE
    events: list[Event] = [(0, 0, 0, like), (0, 1, 10, like)]
    graph = taken_in(TemporalGraph(CONFIG), events)
    graph.retract(FeedbackBatch.from_feedback([retraction(events[1])]))
    now = graph.reading(np.array([0]), np.array([START_MS + 99_000]))
    assert now.history.nodes[0].tolist() == [0, -1, -1, -1]
    assert graph.seen.of(0).tolist() == [0, 1]


def test_a_retraction_that_came_first_waits_for_its_event() -> None:
    events: list[Event] = [(0, 0, 0, Kind.EXPLICIT_POSITIVE)]
    early, late = TemporalGraph(CONFIG), taken_in(TemporalGraph(CONFIG), events)
    back = FeedbackBatch.from_feedback([retraction(events[0])])
    early.retract(back)
    taken_in(early, events)
    late.retract(back)
    assert early.state_hash() == late.state_hash()
    now = early.reading(np.array([0]), np.array([START_MS + 99_000]))
    assert (now.history.nodes == -1).all()


def test_retractions_are_left_out_of_the_view() -> None:
    event: Event = (0, 0, 0, Kind.EXPLICIT_POSITIVE)
    both = FeedbackBatch.concat(
        [feedback([event]), FeedbackBatch.from_feedback([retraction(event)])]
    )
    assert len(TemporalGraph(CONFIG).view(both)) == 1


def test_a_batch_without_events_changes_nothing() -> None:
    graph = taken_in(TemporalGraph(CONFIG), random_events(10))
    before, steps = graph.state_hash(), graph.steps
    view = graph.view(feedback([]))
    assert len(view) == 0
    assert view.at_ms == graph.newest_ms
    graph.append(view)
    assert (graph.state_hash(), graph.steps) == (before, steps)


def test_a_reading_shows_strictly_what_came_before_each_time() -> None:
    like = Kind.EXPLICIT_POSITIVE
    graph = taken_in(TemporalGraph(CONFIG), [(0, 0, 0, like), (0, 1, 10, like), (1, 2, 20, like)])
    ten = START_MS + 10_000
    now = graph.reading(np.array([0, 0, 1]), np.array([ten, ten + 1, ten]))
    assert now.history.nodes[:, :2].tolist() == [[0, -1], [1, 0], [-1, -1]]
    assert not now.typed.any()
    assert (now.at_ms, now.n_items) == (START_MS + 20_000, 3)
    then = graph.reading(np.array([0]), np.array([ten]), at_ms=ten, n_items=2)
    assert (then.at_ms, then.n_items) == (ten, 2)


def test_a_fork_goes_on_by_itself_with_the_same_rows() -> None:
    first, second, third = in_tens(random_events(30))
    graph = taken_in(TemporalGraph(CONFIG), first)
    fork = graph.fork()
    before = graph.state_hash()
    assert fork.state_hash() == before
    view = fork.view(feedback([(0, 77, 500, Kind.EXPLICIT_POSITIVE)]))
    fork.append(view)
    assert graph.state_hash() == before
    assert graph.items.find(["i77"]).tolist() == view.items.tolist()  # shared ids
    taken_in(graph, second, third)
    other = taken_in(TemporalGraph(CONFIG), first, second, third)
    assert graph.state_hash() == other.state_hash()


def test_a_restored_graph_gives_the_same_next_view() -> None:
    *before, last = in_tens(random_events(80))
    graph, restored = taken_in(TemporalGraph(CONFIG), *before[:4]), TemporalGraph(CONFIG)
    graph.retract(FeedbackBatch.from_feedback([retraction(before[0][3])]))
    restored.restore(graph.state())
    for each in (graph, restored):
        taken_in(each, *before[4:])
    views = [each.view(feedback(last)) for each in (graph, restored)]
    assert readings(views[0]) == readings(views[1])
    assert graph.state_hash() == restored.state_hash()


def test_every_part_counts_its_bytes() -> None:
    small, large = TemporalGraph(CONFIG), TemporalGraph(CONFIG)
    taken_in(large, [(n, n, n, Kind.EXPLICIT_POSITIVE) for n in range(3_000)])
    taken_in(large, [(n, n + 1, 5_000 + n, Kind.EXPLICIT_POSITIVE) for n in range(2_000)])
    for name, n_bytes in small.n_bytes().items():
        assert n_bytes < large.n_bytes()[name], name


@pytest.mark.parametrize("kind", [Kind.EXPLICIT_NEGATIVE, Kind.IMPLICIT_NEGATIVE])
def test_what_was_rejected_is_shown_but_not_liked(kind: Kind) -> None:
    graph = taken_in(TemporalGraph(CONFIG), [(0, 0, 0, kind)])
    assert graph.shown.at(graph.newest_ms, 1).tolist() == [[1.0, 1.0]]
    assert graph.positives.at(graph.newest_ms, 1).tolist() == [[0.0, 0.0]]
    assert graph.recent.items.size == 0
