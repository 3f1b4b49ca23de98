"""What the API appends: one contract over the log in memory and over a real broker."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from deploy.service import free_port
from serving.producing import KafkaSink, LogSink, Sink
from stream import topics
from stream.kafka import KafkaLog
from stream.log import Log, MemoryLog, Record, advance, partition_of
from stream.settings import KafkaSettings

SMALL = 2_000
"""Greatest record here, in bytes."""


@dataclass
class Place:
    """A log, and what makes a sink that writes to it."""

    log: Log
    sink: Callable[[], Sink]

    def run(self, *steps: Callable[[Sink], Awaitable[Any]]) -> list[Any]:
        """Do all steps at the same time, over one sink."""

        async def all_of_them() -> list[Any]:
            sink = self.sink()
            try:
                return list(await asyncio.gather(*(step(sink) for step in steps)))
            finally:
                await sink.close()

        return asyncio.run(all_of_them())

    def records(self, topic: str, n: int) -> list[Record]:
        """Read the first ``n`` records of a topic, and make sure that there are no more."""
        positions = self.log.start(topic)
        records: list[Record] = []
        until_s = time.monotonic() + 30
        while len(records) < n or self.log.lag(topic, positions):
            assert time.monotonic() < until_s, f"{len(records)} of {n} came"
            got = self.log.read(topic, positions, limit=1_000)
            positions = advance(positions, got)
            records += got
        assert len(records) == n
        return records


@pytest.fixture(params=["memory", "kafka"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    if request.param == "memory":
        memory = MemoryLog(2)
        yield Place(memory, lambda: LogSink(memory, max_record_bytes=SMALL))
        return
    kafka: KafkaSettings = request.getfixturevalue("kafka")
    kafka = msgspec.structs.replace(kafka, max_record_bytes=SMALL)
    topics.create(kafka)
    log = KafkaLog(kafka)
    yield Place(log, lambda: KafkaSink(kafka, delivery_s=30))
    log.close()


def appending(*entries: tuple[bytes | None, bytes | None], topic: str = "interactions") -> Any:
    return lambda sink: sink.append(topic, entries)


def test_what_is_told_as_stored_is_in_the_log_in_the_order_of_each_key(place: Place) -> None:
    entries = [(b"u%d" % (n % 5), b"%d" % n) for n in range(1_000)]
    told = place.run(appending(*entries))
    assert told == [[""] * 1_000]
    records = place.records("interactions", 1_000)
    assert sorted((one.key, one.value) for one in records) == sorted(entries)
    for key in {key for key, _ in entries}:
        mine = [one for one in records if one.key == key]
        assert [one.value for one in mine] == [value for other, value in entries if other == key]
        assert {one.partition for one in mine} == {partition_of(key, 2)}


def test_many_at_once_are_each_told_their_own(place: Place) -> None:
    large = b"x" * 3 * SMALL
    steps = [appending((b"u", b"%d" % n), (b"u", large if n % 3 == 0 else b"")) for n in range(60)]
    told = place.run(*steps)
    assert all(first == "" for first, _ in told)
    assert [second.partition(":")[0] for _, second in told] == ["too large", "", ""] * 20
    assert len(place.records("interactions", 60 + 40)) == 100


def test_an_entry_that_is_too_large_does_not_keep_the_others_back(place: Place) -> None:
    (told,) = place.run(appending((b"u", b"a"), (b"u", b"x" * 3 * SMALL), (b"u", b"b")))
    assert told == [
        "",
        f"too large: want a record of at most {SMALL} bytes with its key, got 6001",
        "",
    ]
    assert [one.value for one in place.records("interactions", 2)] == [b"a", b"b"]


def test_a_tombstone_is_a_record_without_a_value(place: Place) -> None:
    assert place.run(appending((b"i", b"{}"), (b"i", None), topic="items")) == [["", ""]]
    assert [(one.key, one.value) for one in place.records("items", 2)] == [
        (b"i", b"{}"),
        (b"i", b""),
    ]


def test_nothing_is_a_batch_too(place: Place) -> None:
    assert place.run(appending()) == [[]]
    place.records("interactions", 0)


def test_a_broker_that_is_away_is_told_within_the_time(caplog: pytest.LogCaptureFixture) -> None:
    nowhere = KafkaSettings(servers=(f"127.0.0.1:{free_port()}",))
    away = Place(MemoryLog(), lambda: KafkaSink(nowhere, delivery_s=0.3))
    with caplog.at_level(logging.WARNING, "tidegraph.serving"):
        told = away.run(appending((b"u", b"a"), (b"u", b"b")), appending((b"v", b"c")))
    unavailable = "unavailable: the log did not take it within 0.3 s"
    assert told == [[unavailable] * 2, [unavailable]]
    assert nowhere.servers[0] not in unavailable  # where the broker is concerns the operator alone
    assert f"no broker answers at {nowhere.servers[0]}" in caplog.text


def test_a_missing_topic_is_told_to_the_operator(
    kafka: KafkaSettings, caplog: pytest.LogCaptureFixture
) -> None:
    missing = Place(MemoryLog(), lambda: KafkaSink(kafka, delivery_s=1))
    with caplog.at_level(logging.WARNING, "tidegraph.serving"):
        ((told,),) = missing.run(appending((b"u", b"a")))
    assert told == "unavailable: the log did not take it within 1 s"
    assert "tidegraph topics create" in caplog.text


def test_it_logs_in_over_tls(secure_kafka: KafkaSettings, caplog: pytest.LogCaptureFixture) -> None:
    topics.create(secure_kafka)
    log = KafkaLog(secure_kafka)
    place = Place(log, lambda: KafkaSink(secure_kafka, delivery_s=30))
    assert place.run(appending((b"u", b"a"))) == [[""]]
    place.records("interactions", 1)
    log.close()
    wrong = msgspec.structs.replace(secure_kafka, password="opensesame")
    with caplog.at_level(logging.WARNING, "tidegraph.serving"):
        refused = Place(MemoryLog(), lambda: KafkaSink(wrong, delivery_s=0.5))
        assert refused.run(appending((b"u", b"a")))[0][0].startswith("unavailable")
    assert "refuses the login" in caplog.text
    assert "opensesame" not in caplog.text


def test_files_for_tls_that_cannot_be_used_are_told_to_the_operator(
    caplog: pytest.LogCaptureFixture,
) -> None:
    wrong = KafkaSettings(servers=(f"127.0.0.1:{free_port()}",), security="SSL", ca_file="/no.pem")
    place = Place(MemoryLog(), lambda: KafkaSink(wrong, delivery_s=30))
    with caplog.at_level(logging.WARNING, "tidegraph.serving"):
        ((told,),) = place.run(appending((b"u", b"a")))
    assert told.startswith("unavailable")
    assert "ssl.ca.location" in caplog.text


def test_one_that_waits_alone_does_not_wait_for_others(place: Place) -> None:
    async def one_by_one(sink: Sink) -> list[list[str]]:
        return [await sink.append("interactions", [(b"u", b"%d" % n)]) for n in range(50)]

    crowd = [appending((b"v%d" % n, b"x")) for n in range(20)]
    told = place.run(one_by_one, *crowd)
    assert told == [[[""]] * 50, *[[""]] * 20]
    mine = [one.value for one in place.records("interactions", 70) if one.key == b"u"]
    assert mine == [b"%d" % n for n in range(50)]


def test_what_waits_for_the_broker_is_bounded() -> None:
    nowhere = KafkaSettings(servers=(f"127.0.0.1:{free_port()}",))
    entries = [(b"u", b"x" * 10)] * 3

    def waits(n_entries: int, n_bytes: int) -> list[str]:
        sink = KafkaSink(nowhere, delivery_s=0.2, max_waiting=n_entries, max_waiting_bytes=n_bytes)
        place = Place(MemoryLog(), lambda: sink)
        told = place.run(*[appending(*entries)] * 4)
        assert place.run(appending(*entries))[0][0].startswith("unavailable")  # all was let go of
        return [texts[0].partition(":")[0] for texts in told]

    assert waits(6, 1_000) == ["unavailable", "unavailable", "busy", "busy"]
    assert waits(1_000, 100) == ["unavailable", "unavailable", "unavailable", "busy"]
    assert waits(2, 1_000) == ["unavailable", "busy", "busy", "busy"]  # alone, it may be larger


def test_whoever_waits_may_leave(kafka: KafkaSettings) -> None:
    topics.create(kafka)
    log = KafkaLog(kafka)

    async def leave() -> list[str]:
        sink = KafkaSink(kafka)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(sink.append("interactions", [(b"u", b"a")]), 0)
        told = await sink.append("interactions", [(b"u", b"b")])
        await sink.close()
        return told

    coroutine: Coroutine[Any, Any, list[str]] = leave()
    assert asyncio.run(coroutine) == [""]
    values = [one.value for one in Place(log, lambda: KafkaSink(kafka)).records("interactions", 1)]
    log.close()
    assert values in ([b"b"], [b"a", b"b"])
