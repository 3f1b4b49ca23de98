"""The log keeps order within a partition, and says so when it cannot give what is asked for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.errors import BadPosition, BadSettings
from stream.log import Log, MemoryLog, Record, advance, partition_of

keys = st.sampled_from([b"712", b"713", b"714", b"715", None])


@given(
    st.lists(st.lists(keys, max_size=5), max_size=6),
    st.integers(1, 3),
    st.integers(1, 4),
)
def test_reading_on_and_on_gives_every_entry_once_and_each_key_in_order(
    appends: list[list[bytes | None]], n_partitions: int, limit: int
) -> None:
    log: Log = MemoryLog(n_partitions)
    sent: list[tuple[bytes | None, bytes]] = []
    for moment, batch in enumerate(appends):
        entries = [(key, f"{moment} {place}".encode()) for place, key in enumerate(batch)]
        log.append("interactions", entries, timestamp_ms=moment)
        sent += entries

    positions = dict.fromkeys(range(n_partitions), 0)
    got: list[Record] = []
    while records := log.read("interactions", positions, limit=limit):
        assert len(records) <= limit
        got += records
        positions = advance(positions, records)

    assert positions == log.end("interactions")
    assert sorted(record.value for record in got) == sorted(value for _, value in sent)
    for key in {key for key, _ in sent if key is not None}:
        mine = [record for record in got if record.key == key]
        assert [record.value for record in mine] == [value for k, value in sent if k == key]
        assert len({record.partition for record in mine}) == 1
    for number in range(n_partitions):
        offsets = [record.offset for record in got if record.partition == number]
        assert offsets == list(range(len(offsets)))


def test_keys_go_where_kafka_clients_send_them() -> None:
    """Hashes as Kafka's own tests fix them, made partitions as its clients make them."""
    hashes = {
        b"21": -973932308,
        b"abc": 479470107,
        b"foobar": -790332482,
        b"a-little-bit-long-string": -985981536,
        b"a-little-bit-longer-string": -1486304829,
    }
    for key, hashed in hashes.items():
        assert partition_of(key, 50) == (hashed & 0x7FFFFFFF) % 50


def test_entries_without_a_key_are_spread() -> None:
    log = MemoryLog(n_partitions=3)
    log.append("interactions", [(None, b"")] * 6, timestamp_ms=0)
    assert log.end("interactions") == {0: 2, 1: 2, 2: 2}


def test_a_record_knows_where_it_is_and_when_it_came() -> None:
    log = MemoryLog()
    log.append("feedback", [(b"712", b"a")], timestamp_ms=5)
    log.append("feedback", [(b"712", b"b")], timestamp_ms=6)
    assert log.read("feedback", {0: 1}, limit=9) == [Record("feedback", 0, 1, b"712", b"b", 6)]
    assert log.partitions("feedback") == 1


def test_topics_do_not_mix() -> None:
    log = MemoryLog()
    log.append("feedback", [(b"712", b"a")], timestamp_ms=0)
    assert log.read("interactions", {0: 0}, limit=9) == []


def test_partitions_that_are_not_asked_for_are_not_read() -> None:
    log = MemoryLog(n_partitions=2)
    log.append("interactions", [(None, b"a"), (None, b"b")], timestamp_ms=0)
    assert [record.value for record in log.read("interactions", {1: 0}, limit=9)] == [b"b"]
    assert log.read("interactions", {}, limit=9) == []


def test_a_busy_partition_does_not_starve_the_others() -> None:
    log = MemoryLog(n_partitions=2)
    log.append("interactions", [(None, b"")] * 20, timestamp_ms=0)
    read = log.read("interactions", {0: 0, 1: 0}, limit=6)
    assert [record.partition for record in read] == [0, 0, 0, 1, 1, 1]


def test_what_was_trimmed_is_gone_and_offsets_stay() -> None:
    log = MemoryLog()
    log.append("feedback", [(b"712", value) for value in (b"a", b"b", b"c")], timestamp_ms=0)
    log.trim("feedback", {0: 2})
    assert [record.offset for record in log.read("feedback", {0: 2}, limit=9)] == [2]
    with pytest.raises(BadPosition, match="partition 0: positions are 2 to 3, got 1"):
        log.read("feedback", {0: 1}, limit=9)
    log.trim("feedback", {0: 1})
    log.trim("feedback", {0: 99})
    assert log.end("feedback") == {0: 3}
    log.append("feedback", [(b"712", b"d")], timestamp_ms=0)
    assert [record.value for record in log.read("feedback", {0: 3}, limit=9)] == [b"d"]


def test_positions_that_never_were_are_refused() -> None:
    log = MemoryLog()
    with pytest.raises(BadPosition, match="positions are 0 to 0, got 1"):
        log.read("feedback", {0: 1}, limit=9)
    with pytest.raises(BadPosition, match="has partitions 0 to 0, got 1"):
        log.read("feedback", {1: 0}, limit=9)


def test_a_log_needs_a_partition() -> None:
    with pytest.raises(BadSettings, match="at least 1 partition, got 0"):
        MemoryLog(n_partitions=0)


def test_headers_stay_with_their_entries() -> None:
    log = MemoryLog()
    log.append("feedback", [(b"712", b"a")], timestamp_ms=1, headers=[("a", b"1")])
    log.append("feedback", [(b"712", b"b")], timestamp_ms=2)
    records = log.read("feedback", {0: 0}, limit=10)
    assert [record.headers for record in records] == [(("a", b"1"),), ()]


def test_a_log_knows_its_ends_and_what_lies_between() -> None:
    log = MemoryLog()
    log.append("feedback", [(b"712", b"a")], timestamp_ms=1)
    log.append("feedback", [(b"712", b"b"), (b"712", b"c")], timestamp_ms=3)
    log.trim("feedback", {0: 1})
    assert (log.start("feedback"), log.end("feedback")) == ({0: 1}, {0: 3})
    assert [log.at("feedback", ts_ms) for ts_ms in (0, 3, 4)] == [{0: 1}, {0: 1}, {0: 3}]
    assert [log.lag("feedback", {0: position}) for position in (1, 3)] == [2, 0]
