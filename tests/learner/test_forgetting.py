"""A learner forgets a user wherever it has learned of them, and passes on what is said of ids."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graph_store.graph import GraphConfig, TemporalGraph
from graph_store.snapshot import list_snapshots, read_snapshot
from learner.worker import TOPIC, LearnerWorker
from serving.redis_table import RedisTable
from serving.rows import Barrier, Layout, UserRows
from serving.table import MemoryTable, Table, Update
from stream.errors import TableError
from stream.events import (
    Described,
    Erasure,
    Feedback,
    FeedbackBatch,
    decode_feedback,
    encode,
)
from stream.log import MemoryLog
from stream.topics import ITEMS, USERS
from tests.learner.test_worker import Driver, Entries, Fickle, caught_up, entries, filled, learned

GRAPH = GraphConfig(k_user=64, k_item=64, pairs_per_item=64)
"""Nobody's edges push out anybody's."""

GONE = "u1"
ERASURE: Entries = [(GONE.encode(), encode(Erasure(1, GONE)))]


def without(these: Entries, user_id: str = GONE) -> Entries:
    return [entry for entry in these if entry[0] != user_id.encode()]


def never_saw(*parts: Entries) -> str:
    """Return the hash of a graph that took these events in, in one go."""
    graph = TemporalGraph(GRAPH)
    batch = FeedbackBatch.from_records([value for part in parts for _, value in part])
    graph.append(graph.view(batch.in_order()))
    return graph.state_hash()


def items_of(these: Entries, user_id: str = GONE) -> set[str]:
    events = [decode_feedback(value) for key, value in these if key == user_id.encode()]
    return {event.item_id for event in events if isinstance(event, Feedback)}


def in_view(worker: LearnerWorker) -> bool:
    return caught_up(worker) and worker._publisher.waiting == 0


def everything(folder: Path) -> bytes:
    """Return every byte of every file under a folder."""
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("stops", [[], [64], [130, 500]])
def test_who_is_erased_was_never_there_and_who_comes_back_is_new(
    tmp_path: Path, stops: list[int]
) -> None:
    before, after = entries(400), entries(300, first=400)
    log = filled(before, ERASURE, after)
    for stop in stops:
        Driver(tmp_path, log, graph=GRAPH, max_micro_batch=64).until(partial(learned, stop))
    driver = Driver(tmp_path, log, graph=GRAPH).until(caught_up)
    worker, reader = driver.worker, driver.table.reader()
    assert worker.graph.state_hash() == never_saw(without(before), after)
    assert worker.metrics.values["erasures"] == 1
    assert reader.seen([GONE])[GONE] == items_of(after)
    (recent,) = reader.users([GONE]).recent
    assert {item_id for item_id, _, _ in recent} <= items_of(after)


def test_an_erasure_between_the_events_of_one_micro_batch(tmp_path: Path) -> None:
    """Events after it may be older than those before it, and stay."""
    late, early = entries(20, first=100), entries(20)
    log = filled(late, ERASURE, ERASURE, early, n_partitions=1)
    worker = Driver(tmp_path, log, graph=GRAPH).until(caught_up).worker
    assert worker.graph.state_hash() == never_saw(without(late), early)
    assert worker.metrics.values["events"] == 40


def test_a_published_user_goes_with_all_that_counted_them(tmp_path: Path) -> None:
    these = entries(200)
    log, never = filled(these), filled(without(these))
    driver = Driver(tmp_path / "a", log, graph=GRAPH)
    pinned: list[int] = []

    def look(worker: LearnerWorker) -> bool:
        if not in_view(worker):
            return False
        if not pinned and worker.metrics.values["events"] == 200:
            assert driver.table.reader().users([GONE]).ids == [GONE]
            pinned.append(driver.table.reader().epoch)
            log.append(TOPIC, ERASURE, timestamp_ms=0)
        return worker.metrics.values["erasures"] == 1

    reader = driver.until(look).table.reader()
    assert reader.epoch == pinned[0]
    assert list(reader.users([GONE]).ids) == []
    assert reader.seen([GONE])[GONE] == frozenset()
    other = Driver(tmp_path / "b", never, graph=GRAPH).until(caught_up).table.reader()
    ids = other.item_ids()
    at_ms = other.barrier().at_ms
    np.testing.assert_allclose(
        reader.items(ids).counts_at(at_ms, reader.layout),
        other.items(ids).counts_at(at_ms, other.layout),
        rtol=1e-3,
        atol=1e-6,
    )
    got, want = reader.covisited(ids), other.covisited(ids)
    for item_id in ids:
        partners = set(got[item_id].item_ids) if item_id in got else set()
        assert partners == (set(want[item_id].item_ids) if item_id in want else set())


def test_an_item_whose_every_pair_is_forgotten_has_an_empty_list(tmp_path: Path) -> None:
    likes = [
        Feedback(1, f"e{n}", "u1", f"i{n}", 1_650_812_741_000 + n, "explicit_positive", 1.0)
        for n in range(2)
    ]
    log = filled([(b"u1", encode(like)) for like in likes])
    driver = Driver(tmp_path, log)

    def look(worker: LearnerWorker) -> bool:
        if in_view(worker) and worker.metrics.values["events"] == 2 and not erased:
            assert driver.table.reader().covisited(["i0"])["i0"].item_ids == ["i1"]
            erased.append(True)
            log.append(TOPIC, ERASURE, timestamp_ms=0)
        return caught_up(worker) and worker.metrics.values["erasures"] == 1

    erased: list[bool] = []
    reader = driver.until(look).table.reader()
    assert reader.covisited(["i0"])["i0"].item_ids == []


def test_the_model_takes_who_comes_back_for_a_stranger(tmp_path: Path) -> None:
    worker = Driver(tmp_path, filled(entries(300), ERASURE)).until(caught_up).worker
    graph, model = worker.graph, worker.model
    weights = model.state()["users"]
    nameless = np.setdiff1d(np.arange(graph.n_users), graph.users.named())
    assert nameless.size == 1
    assert not weights["weight"][nameless].any()
    assert weights["sums"][nameless] == np.float32(model.config.accumulator)
    assert weights["weight"][graph.users.named()].any()


def test_no_snapshot_is_left_that_knows_who_was_erased(tmp_path: Path) -> None:
    name = "anna-who-leaves"
    like = Feedback(1, "e-anna", name, "i1", 1_650_812_741_000, "explicit_positive", 1.0)
    log = filled(entries(100), [(name.encode(), encode(like))])
    for _ in range(3):
        Driver(tmp_path, log).until(caught_up)
    assert len(list_snapshots(tmp_path)) == 3
    assert name.encode() in everything(tmp_path)
    log.append(TOPIC, [(name.encode(), encode(Erasure(1, name)))], timestamp_ms=0)
    Driver(tmp_path, log).until(caught_up)
    assert len(list_snapshots(tmp_path)) == 1
    assert name.encode() not in everything(tmp_path)


def test_a_snapshot_in_the_background_removes_those_that_know_more(tmp_path: Path) -> None:
    log = filled(entries(100))
    for _ in range(2):
        Driver(tmp_path, log).until(caught_up)
    log.append(TOPIC, ERASURE, timestamp_ms=0)
    learned_at: list[float] = []
    known: list[int] = []

    def look(worker: LearnerWorker) -> bool:
        values = worker.metrics.values
        if values["erasures"] and not learned_at:
            learned_at.append(values["snapshots"])
        if learned_at and values["snapshots"] >= learned_at[0] + 2:  # one was under way, perhaps
            known.extend(
                read_snapshot(folder, fingerprint=None)["counts"]["erasures"]
                for folder in list_snapshots(tmp_path)
            )
            return len(list_snapshots(tmp_path)) == 3  # as many as ever, after a while
        return False

    Driver(tmp_path, log, snapshot_s=0.001).until(look)
    assert set(known) == {1}


def test_a_table_that_is_away_is_told_later_who_is_gone(tmp_path: Path) -> None:
    table, log = Fickle(), filled(entries(200))
    driver = Driver(tmp_path, log, table=table)
    asked: list[bool] = []

    def look(worker: LearnerWorker) -> bool:
        values = worker.metrics.values
        if not asked and in_view(worker) and worker.metrics.values["events"] == 200:
            asked.append(True)
            table.failure = TableError
            log.append(TOPIC, [*ERASURE, *entries(20, first=200)], timestamp_ms=0)
        if table.failure and values["erasures"] == 1 and values["table_errors"] >= 2:
            assert list(table.reader().users([GONE]).ids) == [GONE]
            table.failure = None
        return bool(asked) and table.failure is None and values["table_up"] == 1

    driver.until(look)
    more = items_of(entries(20, first=200))
    assert table.reader().seen([GONE])[GONE] == more


@pytest.mark.parametrize("kind", ["memory", "redis"])
def test_a_user_who_is_gone_is_gone_from_every_epoch_that_is_kept(
    kind: str, redis_url: str, tmp_path: Path
) -> None:
    table: Table
    table = MemoryTable() if kind == "memory" else RedisTable(redis_url, namespace=tmp_path.name)
    barrier = Barrier(step=1, at_ms=60, published_ms=99)
    rows = UserRows(["anna", "otto"], np.ones((2, 2), np.float32), np.array([60, 60]))
    for _ in range(2):
        epoch = table.begin(Layout(dim=2))
        table.publish(Update(barrier=barrier, users=rows, seen={"anna": ["i1"], "otto": ["i1"]}))
        table.flip()
    table.pin(table.epochs()[1].epoch)
    old = table.reader()
    assert old.epoch != epoch
    cursor = old.cursor()
    table.publish(Update(barrier=barrier, gone_users=["anna"]))
    for reader in (old, table.reader()):
        assert list(reader.users(["anna", "otto"]).ids) == ["otto"]
        assert reader.seen(["anna"])["anna"] == frozenset()
        assert reader.seen(["otto"])["otto"] == {"i1"}
    assert old.changes(cursor).gone_users == {"anna"}


def said(topic: str, log: MemoryLog, **of: dict[str, Any] | None) -> None:
    """Append what is said of ids; nothing is a tombstone."""
    described = [
        (name.encode(), b"" if each is None else encode(Described(1, each)))
        for name, each in of.items()
    ]
    log.append(topic, described, timestamp_ms=0)


def published(log: MemoryLog) -> Any:
    """Return a wish: all that was said is in the table."""
    return lambda worker: (
        caught_up(worker)
        and worker._attributes.state() == {t: sorted(log.end(t).items()) for t in (ITEMS, USERS)}
    )


def test_what_is_said_of_items_and_users_is_published(tmp_path: Path) -> None:
    log = filled(entries(100))
    said(ITEMS, log, i1={"tag": "sea"}, i2={"tag": "art", "year": 1999}, nobody={"tag": "sea"})
    said(USERS, log, u1={"town": "Aa"}, u2={"town": "Bo"})
    said(ITEMS, log, i1={"tag": ["sea", "sun"]}, nobody=None)
    driver = Driver(tmp_path, log)
    reader = driver.until(published(log)).table.reader()
    assert reader.all_item_attributes() == {
        "i1": {"tag": ["sea", "sun"]},
        "i2": {"tag": "art", "year": 1999},
    }
    assert reader.user_attributes(["u1", "u2"]) == {"u1": {"town": "Aa"}, "u2": {"town": "Bo"}}

    said(ITEMS, log, i2=None)
    log.append(TOPIC, ERASURE, timestamp_ms=0)
    driver = Driver(tmp_path, log, table=driver.table)
    reader = driver.until(published(log)).table.reader()
    assert set(reader.all_item_attributes()) == {"i1"}
    assert reader.all_user_attributes() == {"u2": {"town": "Bo"}}


def test_reading_goes_on_where_the_snapshot_says_while_the_table_is_there(tmp_path: Path) -> None:
    log = filled(entries(100))
    said(ITEMS, log, i1={"tag": "sea"})
    said(USERS, log, u1={"town": "Aa"})
    driver = Driver(tmp_path, log)
    table = driver.until(published(log)).table
    mark = {"i1": {"tag": "not said by anybody"}}
    table.publish(Update(barrier=table.reader().barrier(), item_attributes=mark))
    said(ITEMS, log, i2={"tag": "art"})
    driver = Driver(tmp_path, log, table=table)
    reader = driver.until(published(log)).table.reader()
    assert reader.all_item_attributes() == mark | {"i2": {"tag": "art"}}


def test_an_empty_table_is_told_everything_again(tmp_path: Path) -> None:
    log = filled(entries(100))
    said(ITEMS, log, i1={"tag": "sea"})
    driver = Driver(tmp_path, log)
    driver.until(published(log))
    driver = Driver(tmp_path, log)  # another table
    reader = driver.until(published(log)).table.reader()
    assert reader.all_item_attributes() == {"i1": {"tag": "sea"}}


def test_what_cannot_be_read_of_attributes_is_logged_with_its_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = filled(entries(10), n_partitions=1)
    log.append(ITEMS, [(b"i1", b"{"), (b"\xff", b""), (None, b"")], timestamp_ms=0)
    said(ITEMS, log, i2={"tag": "art"})
    driver = Driver(tmp_path, log)
    reader = driver.until(published(log)).table.reader()
    assert set(reader.all_item_attributes()) == {"i2"}
    assert "items, partition 0, offset 0: $: undecodable" in caplog.text
    assert "items, partition 0, offset 1: key: key: want an id in UTF-8" in caplog.text
    assert "items, partition 0, offset 2: key: key: want an id, got none" in caplog.text
