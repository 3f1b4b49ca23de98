"""Workers over a real broker decide as the embedded intake does, once, whatever happens to them."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from stream import topics
from stream.commits import Commit, read_commits
from stream.errors import BadPosition, BadSettings, LogError
from stream.events import DeadLetter, Erasure, Interaction, encode
from stream.intake import Accounting, Intake
from stream.kafka import KafkaLog, kafka_python, librdkafka
from stream.log import Positions, Record, advance, partition_of
from stream.settings import KafkaSettings, Settings, StreamSettings
from stream.typing_rules import load_rules
from stream.worker import BatchDone, StreamWorker

LATENESS_S = 10.0
DEADLINE_S = 60.0


def until(condition: Callable[[], bool], what: str) -> None:
    """Ask again and again; the broker's answer takes the time between."""
    until_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < until_s, f"waited {DEADLINE_S} s for {what}"


class Running:
    """A worker in a thread."""

    def __init__(self, settings: Settings) -> None:
        self.done: list[BatchDone] = []
        self.error: Exception | None = None
        self.worker = StreamWorker(settings, on_batch=self.done.append)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.worker.run()
        except Exception as error:  # noqa: BLE001 - it is looked at by the test
            self.error = error

    def ended(self) -> bool:
        self._thread.join(0.1)
        return not self._thread.is_alive()

    def end(self) -> None:
        self.worker.stop()
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()


@contextmanager
def running(settings: Settings) -> Iterator[Running]:
    run = Running(settings)
    try:
        yield run
    finally:
        run.end()
    if run.error is not None:
        raise run.error


class System:
    """A broker with topics, and what goes through them."""

    def __init__(self, kafka: KafkaSettings) -> None:
        topics.create(kafka)
        self.kafka = kafka
        self.settings = Settings(
            kafka=kafka, stream=StreamSettings(lateness_s=LATENESS_S, batch=64, max_future_s=60)
        )
        self.log = KafkaLog(kafka)

    def send(self, entries: list[tuple[bytes | None, bytes]]) -> None:
        self.log.append("interactions", entries, timestamp_ms=0)

    def commits(self) -> dict[int, tuple[int, Commit]]:
        return read_commits(self.kafka, self.settings.stream.group)

    def accounting(self) -> Accounting:
        return sum((commit.accounting for _, commit in self.commits().values()), Accounting())

    def wait(self, n: int) -> None:
        """Wait until ``n`` records are decided about."""
        until(lambda: self.accounting().in_ >= n, f"{n} records, came {self.accounting()}")

    def all_of(self, topic: str) -> dict[int, list[Record]]:
        """Read a topic to its end, by partition."""
        positions: Positions = self.log.start(topic)
        by: dict[int, list[Record]] = {number: [] for number in positions}
        until_s = time.monotonic() + DEADLINE_S
        while self.log.lag(topic, positions):
            assert time.monotonic() < until_s
            records = self.log.read(topic, positions, limit=1_000)
            positions = advance(positions, records)
            for record in records:
                by[record.partition].append(record)
        return by


@pytest.fixture
def system(kafka: KafkaSettings) -> Iterator[System]:
    system = System(kafka)
    yield system
    system.log.close()


def traffic(n: int, seed: int = 0, *, start_ms: int | None = None) -> list[tuple[bytes, bytes]]:
    """Make records of several users with repeats, conflicts, late ones and garbage among them."""
    start_ms = int(time.time() * 1_000) - 1_000_000 if start_ms is None else start_ms
    entries: list[tuple[bytes, bytes]] = []
    for number in range(seed * n, seed * n + n):
        user = f"u{number * 7 % 23}"
        event_id, ts_ms = f"e{number}", start_ms + 40 * number - number * 31 % 4_000
        match number % 20:
            case 3:
                event_id = f"e{number - 23 * 3}"  # that of an earlier event of this user
            case 5:
                ts_ms -= 60_000  # late
            case 7:
                entries.append((user.encode(), b'{"v":1'))
                continue
            case 11:
                entries.append((b"somebody", click(event_id, user, ts_ms)))
                continue
            case 13:
                entries.append((user.encode(), json.dumps({"v": 1, "erase_user": user}).encode()))
                continue
            case 17 if len(entries) > 40:
                entries.append(entries[-40])
                continue
        entries.append((user.encode(), click(event_id, user, ts_ms)))
    return entries


def click(event_id: str, user: str, ts_ms: int) -> bytes:
    return encode(Interaction(1, event_id, user, "5239", ts_ms, {"click": 1}))


def check(system: System) -> None:
    """Compare what lies in the topics with what the embedded intake makes of the same input."""
    inputs = system.all_of("interactions")
    commits = system.commits()
    feedback = system.all_of("feedback")
    dead, late = system.all_of("interactions.dead"), system.all_of("interactions.late")
    for number, records in inputs.items():
        intake = Intake(
            load_rules("kuairand"), lateness_ms=int(LATENESS_S * 1_000), max_future_ms=60_000
        )
        result = intake.take(records)
        assert [(one.key, one.value) for one in feedback[number]] == result.entries()
        for one, origin in zip(feedback[number], result.origins, strict=True):
            headers = dict(one.headers)
            assert list(headers) == ["appended_ms", "typed_ms"]
            assert int(headers["appended_ms"]) == origin.timestamp_ms
            assert abs(int(headers["typed_ms"]) - one.timestamp_ms) < 20_000
        letters = [msgspec.json.decode(one.value, type=DeadLetter) for one in dead[number]]
        assert letters == result.dead
        by_offset = {one.offset: one for one in records}
        assert [one.key for one in dead[number]] == [by_offset[each.offset].key for each in letters]
        assert [(one.key, one.value, one.headers) for one in late[number]] == [
            (
                one.key,
                one.value,
                (("reason", b"late"), ("origin", b"interactions/%d/%d" % (number, one.offset))),
            )
            for one in result.late
        ]
        if records:
            offset, commit = commits[number]
            assert offset == records[-1].offset + 1
            assert commit.accounting == result.accounting
            assert commit.watermark_ms == (intake.watermark_ms(number) or 0)


def test_a_worker_decides_as_the_embedded_intake(system: System) -> None:
    entries = traffic(600)
    system.send([*entries])
    with running(system.settings) as run:
        system.wait(len(entries))
    check(system)
    accounting = system.accounting()
    assert min(accounting.duplicate, accounting.conflict, accounting.late, accounting.dead) > 5
    assert sum((done.accounting for done in run.done), Accounting()) == accounting
    classes: Counter[str] = sum((Counter(done.classes) for done in run.done), Counter())
    assert classes == Counter(implicit_positive=accounting.feedback - accounting.erasure)
    assert run.done[-1].partitions == (0, 1)
    assert run.done[-1].watermark_ms == max(
        commit.watermark_ms for _, commit in system.commits().values()
    )
    assert max(done.accounting.in_ for done in run.done) <= 64


def test_another_worker_goes_on_as_if_nothing_had_happened(system: System) -> None:
    start_ms = int(time.time() * 1_000) - 1_000_000
    n = 0
    for seed in range(4):
        entries = traffic(150, seed, start_ms=start_ms)
        system.send([*entries])
        n += len(entries)
        with running(system.settings):
            system.wait(n)
        # Everything once more, within the lateness: only duplicates, whoever saw them first.
    again = [entry for entry in traffic(30, 19, start_ms=start_ms) if b"e57" in entry[1]]
    system.send([*again, *again])
    with running(system.settings):
        system.wait(n + 2 * len(again))
    check(system)


def test_a_window_is_read_again_although_nothing_new_comes(system: System) -> None:
    now_ms = int(time.time() * 1_000)
    system.send([(b"712", click("e1", "712", now_ms))])
    with running(system.settings):
        system.wait(1)
    with running(system.settings) as run:
        until(lambda: run.worker.progress.lag == 0 and bool(run.worker._held), "the partitions")
    system.send([(b"712", click("e1", "712", now_ms))])
    with running(system.settings):
        system.wait(2)
    assert system.accounting() == Accounting(in_=2, feedback=1, duplicate=1)


def test_two_workers_share_the_partitions_and_one_takes_over(system: System) -> None:
    start_ms = int(time.time() * 1_000) - 1_000_000
    with running(system.settings) as first:
        until(lambda: set(first.worker._held) == {0, 1}, "the first worker")
        system.send([*traffic(200, 0, start_ms=start_ms)])
        system.wait(200)
        with running(system.settings) as second:
            until(lambda: len(second.worker._held) == len(first.worker._held) == 1, "a share each")
            assert set(first.worker._held) | set(second.worker._held) == {0, 1}
            system.send([*traffic(200, 1, start_ms=start_ms)])
            system.wait(400)
            assert second.done
            assert sum(done.accounting.in_ for done in first.done + second.done) == 400
        system.send([*traffic(200, 2, start_ms=start_ms)])
        system.wait(600)
    check(system)


def test_a_transaction_that_a_dead_worker_left_open_is_waited_for(system: System) -> None:
    system.send([(b"712", click("e1", "712", int(time.time() * 1_000)))])
    (number,) = (n for n, records in system.all_of("interactions").items() if records)
    group = system.kafka.topic(system.settings.stream.group)
    consumer = Consumer(librdkafka(system.kafka) | {"group.id": group})
    producer = Producer(
        librdkafka(system.kafka)
        | {"transactional.id": group + ".dead", "transaction.timeout.ms": 600_000}
    )
    producer.init_transactions(10)
    producer.begin_transaction()
    name = system.kafka.topic("interactions")
    commit = Commit(0, 0, Accounting(in_=1, dead=1))
    producer.send_offsets_to_transaction(
        [TopicPartition(name, number, 1, commit.metadata())], consumer.consumer_group_metadata(), 10
    )
    with running(system.settings) as run:
        # The other partition is free, but the worker has to know both before it begins.
        assert not run.ended()
        assert run.done == []
        producer.commit_transaction(10)
        system.wait(1)
        until(lambda: len(run.worker._held) == 2, "the partitions")
        system.send([(b"712", click("e2", "712", int(time.time() * 1_000)))])
        system.wait(2)
    consumer.close()
    assert system.accounting() == Accounting(in_=2, feedback=1, dead=1)


@pytest.mark.slow
@pytest.mark.parametrize("others", ["still there", "gone again"])
def test_a_worker_that_lost_its_partitions_cannot_write_and_joins_again(
    system: System, others: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Not even to a group without members, whose offsets the broker takes from anybody."""
    system.send([*traffic(50)])
    stale = StreamWorker(system.settings)
    held = threading.Event()
    go_on = threading.Event()
    whole = stale._commit

    def late(*arguments: Any) -> None:
        held.set()
        assert go_on.wait(DEADLINE_S)
        whole(*arguments)

    stale._commit = late  # type: ignore[method-assign,assignment]
    config = stale._consuming
    stale._consuming = lambda: (  # type: ignore[method-assign]
        config() | {"max.poll.interval.ms": 6_000, "session.timeout.ms": 6_000}
    )
    thread = threading.Thread(target=stale.run)
    thread.start()
    assert held.wait(DEADLINE_S)

    def has_joined_again() -> bool:
        return "joining the group again" in caplog.text

    with running(system.settings):
        system.wait(50)
        if others == "still there":
            go_on.set()
            until(has_joined_again, "the stale worker to be refused")
    go_on.set()
    until(has_joined_again, "the stale worker to be refused")
    system.send([*traffic(10, seed=1)])
    system.wait(60)
    stale.stop()
    thread.join(DEADLINE_S)
    check(system)


def test_events_from_the_future_are_dead_letters(system: System) -> None:
    ahead_ms = int(time.time() * 1_000) + 3_600_000
    system.send([(b"712", click("e1", "712", ahead_ms))])
    with running(system.settings):
        system.wait(1)
    ((record,),) = (records for records in system.all_of("interactions.dead").values() if records)
    letter = msgspec.json.decode(record.value, type=DeadLetter)
    assert letter.reason.startswith("invalid: want at most 60000 ms ahead of the record, got ")


def test_the_largest_record_passes_whatever_becomes_of_it(kafka: KafkaSettings) -> None:
    system = System(msgspec.structs.replace(kafka, max_record_bytes=100_000))
    now_ms = int(time.time() * 1_000)
    blank = click("e1", "712", now_ms)
    many = blank.replace(
        b'{"click":1}', b"{%s}" % b",".join(b'"%04x":1e15' % n for n in range(7_900))
    )
    garbage = bytes(range(256)) * 386
    late = click("e2", "712", now_ms - 100_000).replace(b"5239", b"5" * 98_000)
    name = blank.replace(b'{"click":1}', b'{"%s":true}' % (b"\\u0001" * 16_000))
    entries: list[tuple[bytes | None, bytes]] = [(b"712", many), (b"712", garbage)]
    entries += [(b"712", late), (b"712", name)]
    assert all(90_000 < len(value) < 99_000 for _, value in entries), [len(v) for _, v in entries]
    system.send(entries)
    with running(system.settings):
        system.wait(4)
    assert system.accounting() == Accounting(in_=4, feedback=1, dead=2, late=1)
    check(system)
    system.log.close()


def test_missing_topics_are_named(kafka: KafkaSettings) -> None:
    with pytest.raises(BadSettings, match=r"no topic .*interactions .*tidegraph topics create"):
        StreamWorker(Settings(kafka=kafka)).run()


def test_topics_that_do_not_fit_each_other_are_told(kafka: KafkaSettings) -> None:
    from kafka import KafkaAdminClient

    admin = KafkaAdminClient(**kafka_python(kafka))
    admin.create_topics({kafka.topic("feedback"): {"num_partitions": 5}})
    admin.close()
    topics.create(kafka)
    told = r"same number of partitions.*interactions 2, .*feedback 5.*tidegraph topics create"
    with pytest.raises(BadSettings, match=told):
        StreamWorker(Settings(kafka=kafka)).run()


def test_offsets_by_somebody_else_are_not_gone_on_from(system: System) -> None:
    group = system.kafka.topic(system.settings.stream.group)
    consumer = Consumer(librdkafka(system.kafka) | {"group.id": group})
    name = system.kafka.topic("interactions")
    consumer.commit(offsets=[TopicPartition(name, 0, 0)], asynchronous=False)
    with pytest.raises(BadPosition, match=r"not by a stream worker.*choose another stream.group"):
        StreamWorker(system.settings).run()
    commit = Commit(0, 0, Accounting()).metadata()
    consumer.commit(offsets=[TopicPartition(name, 0, 99, commit)], asynchronous=False)
    with pytest.raises(BadPosition, match=r"99 is committed, the topic ends at 0"):
        StreamWorker(system.settings).run()
    consumer.close()


def test_a_failure_while_writing_ends_the_worker_and_leaves_nothing(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    system.send([*traffic(50)])

    def fail(*_: object) -> None:
        raise KafkaException(KafkaError(KafkaError._FENCED))

    with monkeypatch.context() as patch:
        patch.setattr("stream.worker._Held.commit", fail)
        with pytest.raises(LogError, match="writing a batch"):
            StreamWorker(system.settings).run()
    assert system.commits() == {}
    assert not any(system.all_of("feedback").values())
    with running(system.settings):
        system.wait(50)
    check(system)


def test_an_erasure_takes_back_what_was_said_of_the_user(system: System) -> None:
    users = [f"u{n}".encode() for n in range(6)]
    with running(system.settings):
        system.send([(user, encode(Erasure(1, user.decode()))) for user in users])
        system.wait(len(users))
    for number, records in system.all_of("users").items():
        mine = [user for user in users if partition_of(user, system.kafka.partitions) == number]
        assert sorted((record.key, record.value) for record in records) == [
            (user, b"") for user in mine
        ]
