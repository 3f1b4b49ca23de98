"""The learner follows a log, survives whatever its table and its log do, and resumes exactly."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from graph_store.graph import GraphConfig, TemporalGraph
from graph_store.snapshot import list_snapshots
from learner.models.sta_hawkes import STAHawkesConfig
from learner.saving import LOCK
from learner.worker import TOPIC, LearnerWorker, Start
from serving.rows import Layout
from serving.table import MemoryTable, Table, Update
from stream.errors import (
    BadPosition,
    BadSnapshot,
    LogError,
    TableError,
    TableLost,
    TableTaken,
)
from stream.events import Erasure, Feedback, FeedbackBatch, Kind, encode
from stream.log import MemoryLog
from stream.settings import KafkaSettings, LearnerSettings, Settings

START_MS = 1_650_812_741_000
MODEL = STAHawkesConfig(dim=8)
Entries = list[tuple[bytes | None, bytes]]


def entries(n: int, *, first: int = 0, seed: int = 0) -> Entries:
    """Return events a second apart as records of ``feedback``."""
    rng = np.random.default_rng((seed, first))
    events = []
    for second in range(first, first + n):
        user, item = (int(row) for row in rng.integers(0, 30, 2))
        kind = Kind(int(rng.integers(0, 5)))
        weight = float(kind < Kind.NONE)
        events.append(
            Feedback(
                1,
                f"e{second}",
                f"u{user}",
                f"i{item}",
                START_MS + 1_000 * second,
                kind.label,
                weight,
            )
        )
    return [(event.user_id.encode(), encode(event)) for event in events]


def undisturbed(these: Entries) -> str:
    """Return the hash of a graph that has taken all events in, in one go."""
    graph = TemporalGraph(GraphConfig())
    batch = FeedbackBatch.from_records([value for _, value in these])
    graph.append(graph.view(batch.in_order()))
    return graph.state_hash()


def told(folder: Path, **changes: object) -> Settings:
    """Return settings for a learner that waits for nothing."""
    learner = LearnerSettings(
        snapshots=str(folder), snapshot_s=3_600, publish_s=0.001, idle_s=0.001, device="cpu"
    )
    return Settings(learner=msgspec.structs.replace(learner, **changes))


class Driver:
    """A learner and what it reads and writes; it is stopped when a wish has come true."""

    def __init__(
        self,
        folder: Path,
        log: MemoryLog,
        *,
        table: Table | None = None,
        start: Start = "snapshot",
        graph: GraphConfig | None = None,
        **changes: object,
    ) -> None:
        self.table = MemoryTable() if table is None else table
        self.worker = LearnerWorker(
            told(folder, **changes), log, self.table, start=start, model=MODEL, graph=graph
        )

    def until(self, wish: Callable[[LearnerWorker], bool], *, deadline_s: float = 300.0) -> Driver:
        """Run until the wish has come true."""
        end = time.monotonic() + deadline_s

        def look(worker: LearnerWorker) -> None:
            assert time.monotonic() < end, worker.metrics.values
            if wish(worker):
                worker.stop()

        self.worker.run(look)
        return self


def caught_up(worker: LearnerWorker) -> bool:
    return worker.metrics.values["ready"] == 1 and worker.lag() == 0


def learned(n: int, worker: LearnerWorker) -> bool:
    return worker.metrics.values["events"] >= n


def filled(*parts: Entries, n_partitions: int = 3) -> MemoryLog:
    log = MemoryLog(n_partitions)
    for part in parts:
        log.append(TOPIC, part, timestamp_ms=0)
    return log


def test_a_log_is_learned_published_and_saved(tmp_path: Path) -> None:
    these = entries(700)
    driver = Driver(tmp_path, filled(these)).until(caught_up)
    worker, values = driver.worker, driver.worker.metrics.values
    assert worker.graph.state_hash() == undisturbed(these)
    assert values["events"] == 700
    assert values["lag_records"] <= worker.settings.ready_lag
    assert values["watermark_seconds"] == START_MS / 1_000 + 699
    reader = driver.table.reader()
    assert reader.barrier().at_ms == worker.graph.newest_ms
    assert len(reader.item_ids()) == worker.graph.n_items
    everybody = worker.graph.users.ids_of(np.arange(worker.graph.n_users))
    assert list(reader.users(everybody).ids) == everybody
    assert len(list_snapshots(tmp_path)) == 1


def test_nothing_is_published_while_loading(tmp_path: Path) -> None:
    driver = Driver(tmp_path, filled(entries(1_500)), ready_lag=1)
    seen = []

    def look(worker: LearnerWorker) -> bool:
        if not worker.following:
            seen.append(worker.metrics.values["publishes"])
            with pytest.raises(TableError, match="nothing is published"):
                driver.table.reader()
        return caught_up(worker)

    driver.until(look)
    assert len(seen) > 3
    assert set(seen) == {0}


def test_partitions_are_learned_in_the_order_of_time(tmp_path: Path) -> None:
    these = entries(600)
    times: list[int] = []
    driver = Driver(tmp_path, filled(these), idle_s=0.05)

    def look(worker: LearnerWorker) -> bool:
        times.append(worker.graph.newest_ms)
        return caught_up(worker)

    driver.until(look)
    learner = driver.worker
    assert times == sorted(times)
    assert learner.graph.newest_ms == START_MS + 599_000
    assert learner.graph.state_hash() == undisturbed(these)


@pytest.mark.parametrize("stops", [[130], [64, 65, 400], [600]])
def test_stopping_and_resuming_changes_nothing(tmp_path: Path, stops: list[int]) -> None:
    these = entries(600)
    log = filled(these)
    for stop in stops:
        Driver(tmp_path, log, max_micro_batch=64).until(partial(learned, stop))
    driver = Driver(tmp_path, log).until(caught_up)
    assert driver.worker.metrics.values["events"] == 600
    assert driver.worker.graph.state_hash() == undisturbed(these)


def test_positions_count_what_is_in_the_graph_and_no_more(tmp_path: Path) -> None:
    log = filled(entries(600))
    driver = Driver(tmp_path, log, max_micro_batch=64)
    driver.until(partial(learned, 64))
    events = driver.worker.metrics.values["events"]
    assert events < 600
    assert sum(driver.worker.positions.values()) == events


def test_a_partition_that_is_behind_is_waited_for(tmp_path: Path) -> None:
    class Uneven(MemoryLog):
        """Gives what partition 0 has only after a while."""

        asked = 0

        def read(self, topic, positions, *, limit, wait=True):  # type: ignore[no-untyped-def]
            if topic != TOPIC:
                return []
            self.asked += 1
            held = {0} if self.asked < 20 else set()
            return super().read(
                topic, {n: at for n, at in positions.items() if n not in held}, limit=limit
            )

    log = Uneven(2)
    log.append(TOPIC, entries(300), timestamp_ms=0)
    assert all(log.end(TOPIC).values())
    seen = []

    def look(worker: LearnerWorker) -> bool:
        seen.append((log.asked, worker.metrics.values["events"]))
        return caught_up(worker)

    driver = Driver(tmp_path, log).until(look)
    assert {events for asked, events in seen if asked < 20} == {0}
    assert driver.worker.metrics.values["events"] == 300


def test_what_is_no_event_is_counted_and_left_out(tmp_path: Path) -> None:
    these = entries(100)
    strange: Entries = [(b"u1", b"{"), (b"u2", encode(Erasure(1, "u2"))), (b"u3", b"\xff")]
    log = filled(these[:50], strange, these[50:])
    driver = Driver(tmp_path, log).until(caught_up)
    values = driver.worker.metrics.values
    assert (values["events"], values["unreadable"], values["erasures"]) == (100, 2, 1)
    assert driver.worker.positions == log.end(TOPIC)
    again = Driver(tmp_path, log).until(caught_up).worker.metrics.values
    assert (again["events"], again["unreadable"], again["erasures"]) == (100, 2, 1)


def test_an_unreadable_record_is_logged_with_its_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Driver(tmp_path, filled([(b"u1", b"{")], n_partitions=1)).until(caught_up)
    assert "feedback, partition 0, offset 0: $: undecodable" in caplog.text


@pytest.mark.parametrize(
    ("start", "events"), [("earliest", 300), ("latest", 0), (500, 100), (0, 300), (9_999, 0)]
)
def test_where_a_learner_begins(tmp_path: Path, start: Start, events: int) -> None:
    log = MemoryLog(2)
    log.append(TOPIC, entries(200), timestamp_ms=100)
    log.append(TOPIC, entries(100, first=200), timestamp_ms=600)
    Driver(tmp_path, log).until(caught_up)  # a snapshot that is passed over
    driver = Driver(tmp_path, log, start=start).until(caught_up)
    assert driver.worker.metrics.values["events"] == events
    resumed = Driver(tmp_path, log).until(caught_up)
    assert resumed.worker.metrics.values["events"] == events


def test_micro_batches_grow_with_lag_and_fall_back(tmp_path: Path) -> None:
    log = filled(entries(100))
    sizes: list[float] = []
    more = [entries(40, first=1_300 + 40 * n) for n in range(6)]

    def look(worker: LearnerWorker) -> bool:
        if not caught_up(worker):
            sizes.append(worker.metrics.values["micro_batch"])
            return False
        if log.end(TOPIC) and sum(log.end(TOPIC).values()) == 100:
            sizes.clear()
            log.append(TOPIC, entries(1_200, first=100), timestamp_ms=0)
        elif more:
            log.append(TOPIC, more.pop(), timestamp_ms=0)
        else:
            return True
        return False

    Driver(tmp_path, log).until(look)
    assert max(sizes) == 256
    assert sizes[-1] == 64


class Fickle(MemoryTable):
    """A table that fails as told."""

    failure: type[TableError] | None = None
    tries = 0

    def publish(self, update: Update) -> None:
        self.tries += 1
        if self.failure is not None:
            raise self.failure("as told")
        super().publish(update)

    def begin(self, layout: Layout) -> int:
        if self.failure is TableError:
            raise self.failure("as told")
        return super().begin(layout)


def test_without_a_table_learning_goes_on_and_what_waits_is_published_later(
    tmp_path: Path,
) -> None:
    table, log = Fickle(), filled(entries(200))
    table.failure = TableError
    driver = Driver(tmp_path, log, table=table)

    more = [entries(200, first=200)]

    def look(worker: LearnerWorker) -> bool:
        values = worker.metrics.values
        if table.failure is not None:
            assert not values["ready"]
            if values["events"] == 200 and values["table_errors"] == 2 and more:
                log.append(TOPIC, more.pop(), timestamp_ms=0)
            if values["events"] == 400 and values["table_errors"] >= 3:
                assert values["table_up"] == 0
                assert values["waiting_rows"] > 0
                table.failure = None
        return caught_up(worker)

    driver.until(look)
    assert driver.worker.metrics.values["table_up"] == 1
    assert table.reader().barrier().at_ms == driver.worker.graph.newest_ms


def test_a_table_that_was_emptied_gets_everything_in_a_new_epoch(tmp_path: Path) -> None:
    table, log = Fickle(), filled(entries(200))
    driver = Driver(tmp_path, log, table=table)
    epochs: list[int] = []

    def look(worker: LearnerWorker) -> bool:
        if not caught_up(worker):
            return False
        epochs.append(table.reader().epoch)
        if len(epochs) == 1:
            table._flipped.clear()
            table.failure = TableLost
            log.append(TOPIC, entries(1, first=200), timestamp_ms=0)
            worker.metrics.values["ready"] = 0
            return False
        return True

    def heal(worker: LearnerWorker) -> bool:
        if table.failure is TableLost and not worker._publisher.in_view:
            table.failure = None
        return look(worker)

    driver.until(heal)
    assert epochs == [1, 2]
    assert len(table.reader().item_ids()) == driver.worker.graph.n_items


def test_a_learner_that_was_replaced_ends_with_a_snapshot(tmp_path: Path) -> None:
    table = Fickle()
    table.failure = TableTaken
    with pytest.raises(TableTaken, match="as told"):
        Driver(tmp_path, filled(entries(100)), table=table).until(caught_up)
    assert len(list_snapshots(tmp_path)) == 1


def test_a_broker_that_does_not_tell_its_end_for_a_while_is_waited_for(tmp_path: Path) -> None:
    class Away(MemoryLog):
        left = 3

        def lag(self, topic, positions):  # type: ignore[no-untyped-def]
            if self.left:
                self.left -= 1
                raise LogError("no broker answers")
            return super().lag(topic, positions)

    log = Away(2)
    log.append(TOPIC, entries(100), timestamp_ms=0)
    driver = Driver(tmp_path, log).until(lambda worker: not log.left and caught_up(worker))
    assert driver.worker.metrics.values["events"] == 100


def test_snapshots_are_written_in_the_background_and_three_are_kept(tmp_path: Path) -> None:
    log = filled(entries(500))
    driver = Driver(tmp_path, log, snapshot_s=0.001)
    driver.until(lambda worker: worker.metrics.values["snapshots"] >= 5 and caught_up(worker))
    values = driver.worker.metrics.values
    assert values["snapshot_errors"] == 0
    assert values["snapshot_pause_seconds"] > 0
    assert len(list_snapshots(tmp_path)) == 3
    again = Driver(tmp_path, log).until(caught_up)
    assert again.worker.graph.state_hash() == driver.worker.graph.state_hash()


def test_a_resumed_model_is_the_one_that_stopped(tmp_path: Path) -> None:
    log = filled(entries(300))
    driver = Driver(tmp_path, log, ranked_share=1.0).until(caught_up)
    again = Driver(tmp_path, log, start="snapshot").until(caught_up)
    before, after = driver.worker.model.state(), again.worker.model.state()
    np.testing.assert_array_equal(before["items"]["weight"], after["items"]["weight"])
    np.testing.assert_array_equal(before["adam"]["mean"], after["adam"]["mean"])
    assert again.worker.prequential.state() == driver.worker.prequential.state()
    assert again.worker.prequential.hit_ratio.n > 0


def test_a_second_learner_on_one_folder_is_refused_and_told_who_owns_it(tmp_path: Path) -> None:
    with (tmp_path / LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write("1\n")
        file.flush()
        with pytest.raises(BadSnapshot, match=r"belongs to another learner, process 1;"):
            Driver(tmp_path, MemoryLog()).until(caught_up)


@pytest.mark.parametrize(
    "change",
    [
        lambda folder, log: LearnerWorker(
            told(folder), log, MemoryTable(), model=STAHawkesConfig(dim=16)
        ),
        lambda folder, log: LearnerWorker(
            told(folder), log, MemoryTable(), model=MODEL, graph=GraphConfig(k_user=7)
        ),
        lambda folder, log: LearnerWorker(
            told(folder, rules="ratings"), log, MemoryTable(), model=MODEL
        ),
        lambda folder, log: LearnerWorker(
            msgspec.structs.replace(told(folder), kafka=KafkaSettings(prefix="b.")),
            log,
            MemoryTable(),
            model=MODEL,
        ),
    ],
)
def test_a_snapshot_of_another_model_graph_or_topic_is_refused(
    tmp_path: Path, change: Callable[[Path, MemoryLog], LearnerWorker]
) -> None:
    log = filled(entries(50))
    Driver(tmp_path, log).until(caught_up)
    with pytest.raises(BadSnapshot, match="other settings"):
        change(tmp_path, log).run()


def test_a_learner_may_type_events_by_other_rules(tmp_path: Path) -> None:
    rated = [
        Feedback(
            1, f"e{n}", "u", f"i{n}", START_MS + n, "implicit_negative", 0.1, "skipped",
            "kuairand-1", {"rating": float(n)},
        )
        for n in range(1, 6)
    ]  # fmt: skip
    garbage, erasure = (b"u", b"{}"), (b"v", encode(Erasure(1, "v")))
    log = filled([*((b"u", encode(event)) for event in rated), garbage, erasure], n_partitions=1)
    driver = Driver(tmp_path, log, rules="ratings").until(caught_up)
    (row,) = driver.table.reader().users(["u"]).recent
    kinds = {item_id: Kind(kind).label for item_id, kind, _ in row}
    assert kinds == {
        "i5": "explicit_positive",
        "i4": "implicit_positive",
        "i3": "implicit_negative",
        "i2": "explicit_negative",
        "i1": "explicit_negative",
    }
    assert driver.worker.metrics.values["unreadable"] == 1


def test_a_log_that_was_made_anew_is_told_from_the_one_that_was_left(tmp_path: Path) -> None:
    Driver(tmp_path, filled(entries(100))).until(caught_up)
    with pytest.raises(BadPosition, match="rebuild with --from earliest"):
        Driver(tmp_path, filled(entries(3))).until(caught_up)
    with pytest.raises(BadSnapshot, match="made with 3 partitions .* has 2"):
        Driver(tmp_path, filled(entries(100), n_partitions=2)).until(caught_up)


def stamped(log: MemoryLog, these: Sequence[tuple[bytes | None, bytes]], ago_ms: int) -> None:
    """Append events that were appended to ``interactions`` a while ago."""
    now_ms = time.time_ns() // 1_000_000
    headers = [
        ("appended_ms", str(now_ms - ago_ms).encode()),
        ("typed_ms", str(now_ms - ago_ms // 2).encode()),
    ]
    log.append(TOPIC, these, timestamp_ms=now_ms, headers=headers)


def test_how_fresh_rows_are_is_measured_by_stage(tmp_path: Path) -> None:
    log = filled(entries(50))
    driver = Driver(tmp_path, log)
    late = [entries(64, first=50)]
    before: dict[str, dict[str, float]] = {}

    def counted() -> dict[str, dict[str, float]]:
        histograms = driver.worker.metrics.freshness_s
        return {stage: dict(histogram.buckets()) for stage, histogram in histograms.items()}

    def look(worker: LearnerWorker) -> bool:
        if caught_up(worker) and not worker._samples and late:
            before.update(counted())
            stamped(log, late.pop(), ago_ms=100_000)
        return bool(before) and counted()["total"]["+Inf"] - before["total"]["+Inf"] == 64

    driver.until(look)
    after = counted()

    def up_to(stage: str, bound: str) -> float:
        return after[stage][bound] - before[stage][bound]

    assert (up_to("total", "60.0"), up_to("total", "300.0")) == (0, 64)
    assert (up_to("typed", "30.0"), up_to("typed", "60.0")) == (0, 64)
    assert (up_to("read", "30.0"), up_to("read", "60.0")) == (0, 64)
    assert up_to("learned", "30.0") == 64
    assert up_to("published", "30.0") == 64


def test_what_the_learner_tells_about_itself_is_read_beside_its_rows(tmp_path: Path) -> None:
    driver = Driver(tmp_path, filled(entries(300)), ranked_share=1.0)
    reports: list[dict[str, Any]] = []

    def look(worker: LearnerWorker) -> bool:
        worker._report_at_s = 0.0  # told each turn
        if not caught_up(worker):
            return False
        reports.append(driver.table.reader().report() or {})
        return bool(reports[-1]["ready"]) and reports[-1]["lag_records"] == 0

    driver.until(look)
    told, worker = reports[-1], driver.worker
    assert (told["phase"], told["events"], told["model"]) == ("following", 300, worker._fingerprint)
    assert told["watermark_ms"] == worker.graph.newest_ms
    assert sum(told["classes"].values()) == 300
    assert told["hit_ratio_at_10"] == pytest.approx(worker.prequential.hit_ratio.value)
    assert sum(hour["ranked"] for hour in told["hours"]) == worker.prequential.hit_ratio.n > 0
    counted = worker.metrics.freshness_s["total"].counts.tolist()
    assert told["freshness"]["total"]["counts"] == counted
    again = Driver(tmp_path, MemoryLog(3)).worker
    again._restore(worker._state())
    assert again._classes.tolist() == worker._classes.tolist()


class Deaf(MemoryTable):
    """A table that takes rows, but not what the learner tells about itself."""

    told = 0

    def tell(self, report: Mapping[str, Any]) -> None:
        self.told += 1
        raise TableError("as told")


def test_a_table_that_cannot_be_told_anything_does_not_stop_the_learner(tmp_path: Path) -> None:
    table = Deaf()
    Driver(tmp_path, filled(entries(300)), table=table).until(caught_up)
    assert table.told >= 1
    assert table.reader().report() is None
