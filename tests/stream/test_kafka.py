"""The log over a real broker: what is appended is read, from wherever it is asked for."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator

import msgspec
import pytest
from confluent_kafka import KafkaError, Producer

from stream import topics
from stream.errors import BadPosition, BadSettings, LogError
from stream.kafka import Faults, KafkaLog, kafka_python, kafka_python_told, librdkafka
from stream.log import Positions, Record, advance, partition_of
from stream.settings import KafkaSettings

T0 = 1_650_812_741_436


@pytest.fixture
def made(kafka: KafkaSettings) -> KafkaSettings:
    topics.create(kafka)
    return kafka


@pytest.fixture
def log(made: KafkaSettings) -> Iterator[KafkaLog]:
    log = KafkaLog(made)
    yield log
    log.close()


def read_on(
    log: KafkaLog, positions: Positions, *, topic: str = "feedback", limit: int = 100
) -> tuple[list[Record], Positions]:
    """Read until there is nothing more."""
    records: list[Record] = []
    until_s = time.monotonic() + 20
    while log.lag(topic, positions) or not records:
        assert time.monotonic() < until_s, f"still {log.lag(topic, positions)} to read"
        got = log.read(topic, positions, limit=limit)
        assert len(got) <= limit
        positions = advance(positions, got)
        records += got
        if not got and not log.lag(topic, positions):
            break
    return records, positions


def raised(action: Callable[[], object]) -> Exception:
    """Return what an action raises at last; reading is told of a fault when the broker answers."""
    until_s = time.monotonic() + 20
    while time.monotonic() < until_s:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - it is looked at by the test
            return error
    raise AssertionError("nothing was raised")


def test_what_is_appended_is_read_in_the_order_of_each_key(log: KafkaLog) -> None:
    entries: list[tuple[bytes | None, bytes]] = [
        (b"u%d" % (n % 7), b"%d" % n) for n in range(1_000)
    ]
    before_ms = time.time_ns() // 1_000_000
    log.append("feedback", entries[:500], timestamp_ms=T0, headers=[("a", b"1"), ("b", b"")])
    log.append("feedback", entries[500:], timestamp_ms=T0)
    records, positions = read_on(log, log.start("feedback"))
    assert sorted((one.key, one.value) for one in records) == sorted(entries)
    for key in {one.key for one in records}:
        mine = [one for one in records if one.key == key]
        assert [int(one.value) for one in mine] == sorted(int(one.value) for one in mine)
        assert {one.partition for one in mine} == {partition_of(key or b"", 2)}
    assert {one.topic for one in records} == {"feedback"}
    assert {one.headers for one in records} == {(("a", b"1"), ("b", b"")), ()}
    # The broker stamps, so that retention and the bound on the future do not trust producers.
    assert all(before_ms - 5_000 < one.timestamp_ms < before_ms + 60_000 for one in records)
    assert positions == log.end("feedback")
    assert log.lag("feedback", positions) == 0


def test_entries_without_a_key_go_somewhere(log: KafkaLog) -> None:
    log.append("feedback", [(None, b"a")], timestamp_ms=T0)
    ((record,), _) = read_on(log, log.start("feedback"))
    assert (record.key, record.value) == (None, b"a")


def test_reading_goes_where_it_is_asked_to(log: KafkaLog) -> None:
    log.append("feedback", [(b"u%d" % n, b"%d" % n) for n in range(200)], timestamp_ms=T0)
    records, end = read_on(log, log.start("feedback"))
    by = {
        number: [one for one in records if one.partition == number]
        for number in log.end("feedback")
    }
    again, _ = read_on(log, {0: by[0][5].offset, 1: by[1][3].offset})
    assert sorted(again) == sorted(by[0][5:] + by[1][3:])
    assert read_on(log, {1: 0}) == (by[1], {1: end[1]})
    assert read_on(log, {0: 7, 1: end[1]})[0] == by[0][7:]


def test_a_position_by_time(log: KafkaLog) -> None:
    log.append("feedback", [(b"712", b"a")], timestamp_ms=T0)
    ((first,), positions) = read_on(log, log.start("feedback"))
    assert log.at("feedback", first.timestamp_ms) == log.start("feedback")
    assert log.at("feedback", first.timestamp_ms + 1) == positions


def test_what_was_not_committed_is_not_read_and_its_end_is_reached(
    made: KafkaSettings, log: KafkaLog
) -> None:
    config = librdkafka(made) | {"transactional.id": made.prefix + "t"}
    producer = Producer(config)
    producer.init_transactions(10)
    for value, commit in ((b"a", True), (b"b", False), (b"c", True)):
        producer.begin_transaction()
        producer.produce(made.topic("feedback"), value, b"712", 0)
        if commit:
            producer.commit_transaction(10)
        else:
            producer.flush(10)
            producer.abort_transaction(10)
    records, positions = read_on(log, {0: 0}, limit=1)
    assert [one.value for one in records] == [b"a", b"c"]
    # A marker lies behind the last record, so its offset is not the end; yet nothing waits.
    assert positions[0] < log.end("feedback")[0]
    assert log.lag("feedback", positions) == 0
    producer.begin_transaction()
    producer.produce(made.topic("feedback"), b"d", b"712", 0)
    producer.flush(10)
    assert log.lag("feedback", positions) == 0  # still open
    producer.commit_transaction(10)
    assert [one.value for one in read_on(log, positions)[0]] == [b"d"]


def test_a_position_that_the_log_does_not_have(log: KafkaLog) -> None:
    log.append("feedback", [(b"712", b"a")], timestamp_ms=T0)
    error = raised(lambda: log.read("feedback", {0: 1_000}, limit=1))
    assert isinstance(error, BadPosition), error
    assert "reading" in str(error)
    assert read_on(log, log.start("feedback"))[0]  # and reading elsewhere goes on


def test_a_missing_topic_is_named_with_what_to_do(kafka: KafkaSettings) -> None:
    log = KafkaLog(kafka)
    for action in (
        lambda: log.partitions("feedback"),
        lambda: log.end("feedback"),
        lambda: log.read("feedback", {0: 0}, limit=1),
        lambda: log.append("feedback", [(b"712", b"a")], timestamp_ms=T0),
    ):
        with pytest.raises(BadSettings, match=f"no topic {kafka.prefix}feedback .*topics create"):
            action()
    log.close()


def test_a_record_over_the_limit_is_refused(made: KafkaSettings) -> None:
    log = KafkaLog(msgspec.structs.replace(made, max_record_bytes=10_000))
    with pytest.raises(BadSettings, match=r"too large; want at most 10000 bytes"):
        log.append("feedback", [(b"712", b"a" * 10_001)], timestamp_ms=T0)
    log.close()


def test_a_topic_with_a_lower_limit_refuses_too(made: KafkaSettings) -> None:
    log = KafkaLog(msgspec.structs.replace(made, max_record_bytes=8 << 20))
    with pytest.raises(BadSettings, match=r"1 entries: a record is too large"):
        log.append("interactions", [(b"712", random.randbytes(2 << 20))], timestamp_ms=T0)
    log.close()


def test_no_broker_is_told_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream.kafka.WAIT_S", 0.5)
    nobody = KafkaSettings(servers=("127.0.0.1:1",))
    log = KafkaLog(nobody)
    for action in (
        lambda: log.end("feedback"),
        lambda: log.read("feedback", {0: 0}, limit=1),
        lambda: log.append("feedback", [(b"712", b"a")], timestamp_ms=T0),
        lambda: topics.check(nobody),
    ):
        with pytest.raises(LogError, match=r"127\.0\.0\.1:1.*is it running\?"):
            action()
    log.close()


@pytest.mark.slow
def test_the_same_over_tls_with_a_password(secure_kafka: KafkaSettings) -> None:
    topics.create(secure_kafka)
    log = KafkaLog(secure_kafka)
    log.append("feedback", [(b"712", b"a")], timestamp_ms=T0)
    assert [one.value for one in read_on(log, log.start("feedback"))[0]] == [b"a"]
    log.close()


@pytest.mark.slow
def test_a_wrong_password_is_told(
    secure_kafka: KafkaSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stream.kafka.WAIT_S", 3.0)
    wrong = msgspec.structs.replace(secure_kafka, password="wrong")
    told = f"refuses the login of {wrong.user}.*check kafka.user, kafka.password"
    with pytest.raises(BadSettings, match=told):
        KafkaLog(wrong).end("feedback")
    with pytest.raises(BadSettings, match=told):
        topics.check(wrong)


@pytest.mark.slow
def test_an_authority_that_is_not_trusted_is_told(
    secure_kafka: KafkaSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stream.kafka.WAIT_S", 3.0)
    wrong = msgspec.structs.replace(secure_kafka, ca_file="")
    with pytest.raises(
        BadSettings, match=r"no TLS connection.*check kafka.security and kafka.ca_f"
    ):
        KafkaLog(wrong).end("feedback")


@pytest.mark.parametrize(
    ("code", "ours"),
    [
        (KafkaError.SASL_AUTHENTICATION_FAILED, BadSettings),
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, BadSettings),
        (KafkaError.UNKNOWN_TOPIC_OR_PART, BadSettings),
        (KafkaError._SSL, BadSettings),
        (KafkaError.OFFSET_OUT_OF_RANGE, BadPosition),
        (KafkaError._TIMED_OUT, LogError),
        (KafkaError._FENCED, LogError),
    ],
)
def test_each_fault_is_one_of_ours(code: int, ours: type[Exception]) -> None:
    fault = Faults(KafkaSettings()).of(KafkaError(code), "trying")
    assert type(fault) is ours
    assert str(fault).startswith("kafka: trying: ")


def test_a_refused_login_explains_the_time_outs_after_it() -> None:
    faults = Faults(KafkaSettings(user="ann"))
    faults(KafkaError(KafkaError._AUTHENTICATION))
    faults(KafkaError(KafkaError._ALL_BROKERS_DOWN))
    assert "refuses the login of ann" in str(faults.of(KafkaError(KafkaError._TIMED_OUT)))
    with pytest.raises(BadSettings):
        faults.check()


def test_faults_of_kafka_python_are_ours_too() -> None:
    import kafka.errors as theirs

    settings = KafkaSettings(user="ann")
    for error, ours in (
        (theirs.SaslAuthenticationFailedError(), BadSettings),
        (theirs.TopicAuthorizationFailedError(), BadSettings),
        (theirs.KafkaTimeoutError(), LogError),
        (theirs.CorruptRecordError(), LogError),
    ):
        with pytest.raises(ours, match="kafka: trying: "), kafka_python_told(settings, "trying"):
            raise error


def test_both_clients_connect_alike() -> None:
    kafka = KafkaSettings(
        servers=("a:1", "b:2"), security="SASL_SSL", user="ann", password="p", ca_file="ca.pem"
    )
    ours, theirs = librdkafka(kafka), kafka_python(kafka)
    assert ours["bootstrap.servers"] == "a:1,b:2"
    assert theirs["bootstrap_servers"] == ["a:1", "b:2"]
    assert (ours["sasl.username"], ours["ssl.ca.location"]) == ("ann", "ca.pem")
    assert (theirs["sasl_plain_username"], theirs["ssl_cafile"]) == ("ann", "ca.pem")
    assert "ssl.certificate.location" not in ours
    assert "sasl.password" not in librdkafka(KafkaSettings(password="p"))
