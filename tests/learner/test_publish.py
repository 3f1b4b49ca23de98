"""The published table holds what the graph and the model say, of the rows that were touched."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from graph_store.graph import GraphConfig, TemporalGraph
from learner.checks import checkerboard, feedback
from learner.models.sta_hawkes import STAHawkes, STAHawkesConfig
from learner.online import OnlineLearner
from learner.publish import Publisher
from serving.table import MemoryTable, Reader, Update
from stream.errors import TableError, TableLost
from stream.events import Feedback, FeedbackBatch, Kind

GRAPH = GraphConfig()
DIM = 8


class Fickle(MemoryTable):
    """A table that fails as told, and remembers how large updates were."""

    def __init__(self) -> None:
        super().__init__()
        self.failure: type[TableError] | None = None
        self.sizes: list[int] = []

    def publish(self, update: Update) -> None:
        if self.failure is not None:
            raise self.failure("as told")
        assert update.users is not None
        assert update.items is not None
        self.sizes.append(max(len(update.users.ids), len(update.items.ids)))
        super().publish(update)


class Live:
    """A learner whose steps are published, with a clock that is moved by hand."""

    def __init__(self, **limits: int) -> None:
        self.now_ms = 1_000
        self.table = Fickle()
        self.graph = TemporalGraph(GRAPH)
        self.model = STAHawkes(
            STAHawkesConfig(dim=DIM), k=GRAPH.k_user, n_half_lives=len(GRAPH.half_lives_ms)
        )
        self.publisher = Publisher(
            self.table, self.graph, self.model, now_ms=lambda: self.now_ms, dim=DIM, **limits
        )
        self._learner = OnlineLearner(self.graph, self.model)

    def follow(self, batches: Sequence[FeedbackBatch]) -> Live:
        """Take batches in, without publishing."""
        for batch in batches:
            step = self._learner.step(batch)
            self.publisher.touched(step.view, step.users, step.items)
        return self

    def published(self) -> Reader:
        """Publish, and return what a client reads."""
        self.publisher.publish()
        return self.table.reader()

    @property
    def user_ids(self) -> list[str]:
        """All users with events."""
        return self.graph.users.ids_of(np.arange(self.graph.n_users))

    @property
    def item_ids(self) -> list[str]:
        """All items with events."""
        return self.graph.items.ids_of(np.arange(self.graph.n_items))


@pytest.fixture
def live() -> Live:
    return Live().follow(checkerboard(160))


def test_nothing_is_in_view_before_the_first_publish(live: Live) -> None:
    with pytest.raises(TableError, match="nothing is published yet"):
        live.table.reader()


def test_user_vectors_are_the_models_just_after_their_last_event(live: Live) -> None:
    rows = live.published().users(live.user_ids)
    assert list(rows.ids) == live.user_ids
    graph, users = live.graph, np.arange(live.graph.n_users)
    last_ms = graph.edges.users_latest(users, k=1, before_ms=graph.newest_ms + 1).ts_ms[:, 0]
    np.testing.assert_array_equal(rows.ts_ms, last_ms)
    want = live.model.user_vectors(graph.reading(users, last_ms + 1), users).vectors
    np.testing.assert_allclose(rows.vectors, want, rtol=1e-5, atol=1e-7)


def test_item_vectors_and_biases_are_the_models_just_after_the_last_event(live: Live) -> None:
    rows = live.published().items(live.item_ids)
    assert list(rows.ids) == live.item_ids
    graph, items = live.graph, np.arange(live.graph.n_items)
    now = graph.reading(items[:0], items[:0], at_ms=graph.newest_ms + 1)
    want = live.model.item_vectors(now, items)
    np.testing.assert_allclose(rows.vectors, want.vectors, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(rows.biases, want.bias, rtol=1e-6)


def test_an_items_latest_liker_is_in_its_published_vector() -> None:
    live = Live().follow(checkerboard(160))
    live.published()
    last = feedback([(0, 2, 900, Kind.IMPLICIT_POSITIVE)])
    reader = live.follow([last]).published()
    later = live.graph.reading(
        np.empty(0, np.int64), np.empty(0, np.int64), at_ms=live.graph.newest_ms + 1_000
    )
    row = live.graph.items.find(["i2"])
    want = live.model.item_vectors(later, row).vectors
    np.testing.assert_allclose(reader.items(["i2"]).vectors, want, rtol=1e-5, atol=1e-7)


def test_counts_can_be_carried_to_any_later_time(live: Live) -> None:
    reader, graph = live.published(), live.graph
    later_ms = graph.newest_ms + 5 * 3_600_000
    counts = reader.items(live.item_ids).counts_at(later_ms, reader.layout)
    sums = [sums.at(later_ms, graph.n_items) for sums in (graph.positives, graph.shown)]
    masses = graph.covisitation.masses(later_ms, graph.n_items)
    np.testing.assert_allclose(counts, np.column_stack([*sums, masses]), rtol=1e-9)
    names = [count.name for count in reader.layout.counts]
    half_lives = GRAPH.half_lives_ms
    want = [f"{what}_{ms}" for what in ("positives", "shown") for ms in half_lives]
    assert names == [*want, "pairs"]


def test_covisited_lists_and_masses_give_the_graphs_cosines(live: Live) -> None:
    reader = live.published()
    lists, items = reader.covisited(live.item_ids), reader.items(live.item_ids)
    assert lists
    masses = dict(zip(items.ids, items.counts[:, -1], strict=True))
    for row, item_id in enumerate(live.item_ids):
        others, cosines = live.graph.covisitation.neighbours(row)
        if others.size == 0:
            assert item_id not in lists
            continue
        found = lists[item_id]
        assert (np.diff(found.weights) <= 0).all()  # strongest first
        assert found.ts_ms == live.graph.newest_ms
        roots = np.sqrt([masses[item_id] * masses[other] for other in found.item_ids])
        want = dict(zip(live.graph.items.ids_of(others), cosines.tolist(), strict=True))
        got = dict(zip(found.item_ids, (found.weights / roots).tolist(), strict=True))
        assert got == pytest.approx(want, rel=1e-5)


def test_a_users_latest_events_of_all_kinds_are_published_newest_first() -> None:
    kinds = list(Kind)[:4]
    events = [(0, at % 5, at, kinds[at % 4]) for at in range(GRAPH.k_user + 3)]
    live = Live().follow([feedback(events), feedback([(1, 0, 900, Kind.NONE)])])
    recent = live.published().users(["u0", "u1"]).recent
    newest_first = sorted(events, key=lambda event: -event[2])[: GRAPH.k_user]
    first_ms = live.graph.newest_ms - 900_000
    assert list(recent[0]) == [
        (f"i{item}", int(kind), first_ms + 1_000 * at) for _, item, at, kind in newest_first
    ]
    assert list(recent[1]) == []


def test_a_history_no_longer_holds_what_was_retracted() -> None:
    live = Live().follow([feedback([(0, 1, 5, Kind.IMPLICIT_POSITIVE), (0, 2, 6, Kind.NONE)])])
    (event,) = live.published().users(["u0"]).recent[0]
    taken_back = Feedback(
        1, "r", "u0", "i1", event[2] + 10_000, "retraction", 1.0,
        target_ts_ms=event[2], retracts="000005-0-1",
    )  # fmt: skip
    live.follow([FeedbackBatch.from_feedback([taken_back])])
    assert list(live.published().users(["u0"]).recent[0]) == []


def test_an_items_row_is_written_again_when_its_mass_changes(live: Live) -> None:
    live.published()
    live.now_ms = 2_000
    step = live._learner.step(feedback([(0, 2, 900, Kind.IMPLICIT_POSITIVE)]))
    live.publisher.touched(step.view, step.users, step.items[:0])  # whatever the model touched
    reader = live.published()
    rows = reader.items(live.item_ids)
    masses = live.graph.covisitation.masses(live.graph.newest_ms, live.graph.n_items)
    counts = rows.counts_at(live.graph.newest_ms, reader.layout)
    np.testing.assert_allclose(counts[:, -1], masses, rtol=1e-6)


def test_seen_sets_grow_with_every_publish(live: Live) -> None:
    live.published()
    live.follow([feedback([(0, 1, 900, Kind.NONE), (30, 40, 901, Kind.IMPLICIT_POSITIVE)])])
    reader = live.published()
    for row, user_id in enumerate(live.user_ids):
        want = set(live.graph.items.ids_of(live.graph.seen.of(row)))
        assert reader.seen([user_id])[user_id] == want
    assert "i1" in reader.seen(["u0"])["u0"]


def test_the_weights_of_the_counts_are_the_models(live: Live) -> None:
    weights, want = live.published().weights(), live.model.published_weights()
    assert weights.keys() == want.keys()
    assert want
    for name, weight in want.items():
        np.testing.assert_array_equal(weights[name], weight)


def test_the_barrier_says_up_to_where(live: Live) -> None:
    live.now_ms = 7_777
    barrier = live.published().barrier()
    assert (barrier.step, barrier.at_ms) == (live.graph.steps, live.graph.newest_ms)
    assert barrier.published_ms == 7_777


def test_only_touched_rows_are_written_again(live: Live) -> None:
    live.published()
    live.now_ms = 2_000
    live.follow([feedback([(0, 2, 900, Kind.NONE)])])
    reader = live.published()
    rows, items = reader.users(live.user_ids), reader.items(live.item_ids)
    fresh = {id_ for id_, at in zip(rows.ids, rows.published_ms, strict=True) if at == 2_000}
    assert fresh == {"u0"}
    fresh = {id_ for id_, at in zip(items.ids, items.published_ms, strict=True) if at == 2_000}
    assert fresh == {"i2"}


def test_publishing_again_without_a_step_writes_no_row(live: Live) -> None:
    live.published()
    live.now_ms = 3_000
    reader = live.published()
    assert (reader.users(live.user_ids).published_ms == 1_000).all()
    assert (reader.items(live.item_ids).published_ms == 1_000).all()
    assert reader.barrier().published_ms == 3_000


def test_publishing_changes_neither_graph_nor_model(live: Live) -> None:
    other = Live().follow(checkerboard(160))
    live.published()
    batch = checkerboard(16, seed=3)
    for each in (live, other):
        each.follow(batch)
    assert live.graph.state_hash() == other.graph.state_hash()
    np.testing.assert_array_equal(
        live.model.state()["items"]["weight"], other.model.state()["items"]["weight"]
    )


def test_a_user_of_events_that_say_nothing_is_published_all_the_same() -> None:
    live = Live().follow([feedback([(0, 0, 1, Kind.IMPLICIT_POSITIVE), (1, 0, 2, Kind.NONE)])])
    rows = live.published().users(["u1"])
    assert list(rows.ids) == ["u1"]
    assert rows.ts_ms.tolist() == [live.graph.newest_ms]


def everything(reader: Reader, live: Live) -> list[object]:
    """Return all that a client can read, but for when it was written."""
    users, items = reader.users(live.user_ids), reader.items(live.item_ids)
    return [
        users.ids, users.vectors.tolist(), users.ts_ms.tolist(),
        items.ids, items.vectors.tolist(), items.biases.tolist(), items.counts.tolist(),
        {
            item_id: (listed.item_ids, listed.weights.tolist())
            for item_id, listed in reader.covisited(live.item_ids).items()
        },
        reader.seen(live.user_ids),
    ]  # fmt: skip


def test_what_a_table_did_not_take_waits() -> None:
    live = Live().follow(checkerboard(160))
    live.table.failure = TableError
    with pytest.raises(TableError, match="as told"):
        live.publisher.publish()
    live.follow(checkerboard(160, seed=1))
    with pytest.raises(TableError, match="as told"):
        live.publisher.publish()
    assert live.publisher.waiting == len(live.user_ids) + len(live.item_ids)
    live.table.failure = None
    calm = Live().follow([*checkerboard(160), *checkerboard(160, seed=1)])
    assert everything(live.published(), live) == everything(calm.published(), calm)
    assert live.publisher.waiting == 0


def test_what_the_epoch_in_view_did_not_take_waits_too() -> None:
    live = Live().follow(checkerboard(160))
    live.published()
    live.table.failure = TableError
    live.follow([feedback([(30, 40, 900, Kind.NONE)])])
    with pytest.raises(TableError, match="as told"):
        live.publisher.publish()
    live.table.failure = None
    reader = live.published()
    assert reader.epoch == 1
    assert list(reader.users(["u30"]).ids) == ["u30"]
    assert list(reader.items(["i40"]).ids) == ["i40"]
    assert reader.seen(["u30"])["u30"] == {"i40"}


def test_a_table_that_lost_its_rows_gets_all_of_them_again() -> None:
    live = Live().follow(checkerboard(160))
    first = live.published()
    live.table.failure = TableLost
    live.follow([feedback([(0, 1, 900, Kind.NONE)])])
    assert not live.publisher.publish_part()
    assert not live.publisher.in_view
    live.table.failure = None
    reader = live.published()
    assert reader.epoch == first.epoch + 1
    assert list(reader.users(live.user_ids).ids) == live.user_ids
    assert len(reader.covisited(live.item_ids)) == len(first.covisited(live.item_ids))
    for row, user_id in enumerate(live.user_ids):
        assert reader.seen([user_id])[user_id] == set(
            live.graph.items.ids_of(live.graph.seen.of(row))
        )


def test_out_of_view_rows_go_out_in_parts_and_learning_goes_on_in_between() -> None:
    live = Live(max_rows=20).follow(checkerboard(160))
    more = checkerboard(48, seed=1)
    parts = 0
    while not live.publisher.publish_part():
        parts += 1
        if more:
            live.follow([more.pop(0)])
        with pytest.raises(TableError, match="nothing is published"):
            live.table.reader()
    assert parts >= 3
    assert max(live.table.sizes) == 4  # a fifth
    reader = live.table.reader()
    assert list(reader.users(live.user_ids).ids) == live.user_ids
    assert list(reader.items(live.item_ids).ids) == live.item_ids
    for row, user_id in enumerate(live.user_ids):
        assert reader.seen([user_id])[user_id] == set(
            live.graph.items.ids_of(live.graph.seen.of(row))
        )


def test_what_does_not_fit_in_one_update_comes_into_view_as_a_new_epoch() -> None:
    live = Live(max_rows=10).follow([feedback([(0, 0, 1, Kind.IMPLICIT_POSITIVE)])])
    first = live.published()
    live.follow(checkerboard(160))
    assert not live.publisher.publish_part()
    assert live.table.reader().epoch == first.epoch
    assert len(live.table.reader().users(live.user_ids).ids) == 1  # nothing half
    reader = live.published()
    assert reader.epoch == first.epoch + 1
    assert list(reader.users(live.user_ids).ids) == live.user_ids


def test_pairs_that_wait_are_bounded_and_none_is_lost() -> None:
    live = Live(max_pairs=40)
    live.published()
    for batch in checkerboard(640):
        live.follow([batch])
        assert live.publisher._met._length <= 40
    reader = live.published()
    for row, user_id in enumerate(live.user_ids):
        assert reader.seen([user_id])[user_id] == set(
            live.graph.items.ids_of(live.graph.seen.of(row))
        )


def test_a_table_is_not_asked_for_anything_before_the_first_write() -> None:
    live = Live()
    assert live.table._written is None
    live.published()
    assert live.table._written is not None
