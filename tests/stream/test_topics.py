"""Topics are made as the settings say, and what does not fit is told in words."""

from __future__ import annotations

import msgspec
import pytest
from click.testing import CliRunner

from stream import topics
from stream.errors import BadSettings
from stream.kafka import KafkaLog, kafka_python
from stream.settings import KafkaSettings
from tidegraph import main


def environment(kafka: KafkaSettings) -> dict[str, str]:
    return {
        "TIDEGRAPH_KAFKA_SERVERS": ",".join(kafka.servers),
        "TIDEGRAPH_KAFKA_PREFIX": kafka.prefix,
        "TIDEGRAPH_KAFKA_PARTITIONS": str(kafka.partitions),
    }


def test_topics_are_made_once_and_then_fit(kafka: KafkaSettings) -> None:
    missing = topics.check(kafka)
    assert len(missing) == len(topics.TOPICS)
    assert "interactions is missing; make it with `tidegraph topics create`" in missing[0]
    assert topics.create(kafka) == [kafka.topic(topic) for topic in topics.TOPICS]
    assert topics.check(kafka) == []
    assert topics.create(kafka) == []
    log = KafkaLog(kafka)
    assert {log.partitions(topic) for topic in topics.TOPICS} == {kafka.partitions}
    log.close()


def test_another_number_of_partitions_or_another_limit_is_told(kafka: KafkaSettings) -> None:
    topics.create(kafka)
    wanted = msgspec.structs.replace(kafka, partitions=5, max_record_bytes=2 << 20)
    problems = topics.check(wanted)
    assert f"{kafka.prefix}feedback has {kafka.partitions} partitions, want 5; " in problems[2]
    assert any("interactions.dead has max.message.bytes" in problem for problem in problems)


def test_how_long_records_are_kept_is_left_to_the_operator(kafka: KafkaSettings) -> None:
    topics.create(kafka)
    assert topics.check(msgspec.structs.replace(kafka, retention_h=1.0)) == []


def test_topics_of_another_cleanup_policy_are_told(kafka: KafkaSettings) -> None:
    from kafka import KafkaAdminClient

    admin = KafkaAdminClient(**kafka_python(kafka))
    admin.create_topics({kafka.topic("items"): {"num_partitions": kafka.partitions}})
    admin.close()
    topics.create(kafka)
    told = [problem.partition("items ")[2] for problem in topics.check(kafka)]
    assert "has cleanup.policy delete, want compact; alter the topic" in told
    assert "has message.timestamp.type CreateTime, want LogAppendTime; alter the topic" in told


def test_more_copies_than_brokers_cannot_be_made(kafka: KafkaSettings) -> None:
    with pytest.raises(BadSettings, match=r"cannot make .*interactions: .*replicat"):
        topics.create(msgspec.structs.replace(kafka, replication=3))


def test_the_command_makes_and_checks(kafka: KafkaSettings) -> None:
    run = CliRunner().invoke
    checked = run(main, ["topics", "check"], env=environment(kafka))
    assert checked.exit_code == 1
    assert f"{kafka.prefix}interactions is missing" in checked.output
    made = run(main, ["topics", "create"], env=environment(kafka))
    assert made.exit_code == 0, made.output
    assert f"made {kafka.prefix}interactions.dead" in made.output
    again = run(main, ["topics", "create"], env=environment(kafka))
    assert "nothing to make" in again.output
    checked = run(main, ["topics", "check"], env=environment(kafka))
    assert (checked.exit_code, checked.output) == (0, "all topics are there and fit\n")
