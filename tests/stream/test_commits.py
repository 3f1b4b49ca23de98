"""What goes with a commit comes back whole, and fits."""

from __future__ import annotations

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from hypothesis import given
from hypothesis import strategies as st

from stream import topics
from stream.commits import Commit, read_commits
from stream.errors import BadPosition
from stream.intake import Accounting
from stream.kafka import librdkafka
from stream.settings import KafkaSettings

counts = st.integers(0, 10**15)
accountings = st.builds(
    Accounting,
    in_=counts,
    feedback=counts,
    no_signal=counts,
    duplicate=counts,
    late=counts,
    dead=counts,
    conflict=counts,
    retraction=counts,
    erasure=counts,
)


@given(st.builds(Commit, counts, counts, accountings))
def test_a_commit_comes_back_and_is_short(commit: Commit) -> None:
    told = commit.metadata()
    assert Commit.read(told, "here") == commit
    assert len(told) < 1_024  # brokers take 4,096


@pytest.mark.parametrize("metadata", [None, "", "{", "{}", '{"watermark_ms":"a"}', "offset 3"])
def test_a_commit_by_somebody_else_is_refused(metadata: str | None) -> None:
    with pytest.raises(BadPosition, match=r"^here: .*not by a stream worker.*stream\.group"):
        Commit.read(metadata, "here")


def test_commits_are_read_per_partition_and_group(kafka: KafkaSettings) -> None:
    topics.create(kafka)
    assert read_commits(kafka, "stream") == {}
    commit = Commit(17, 3, Accounting(in_=5, feedback=4, dead=1))
    name = kafka.topic("interactions")
    consumer = Consumer(librdkafka(kafka) | {"group.id": kafka.topic("stream")})
    producer = Producer(librdkafka(kafka) | {"transactional.id": kafka.prefix + "t"})
    producer.init_transactions(10)
    producer.begin_transaction()
    producer.send_offsets_to_transaction(
        [TopicPartition(name, 1, 5, commit.metadata())], consumer.consumer_group_metadata(), 10
    )
    producer.commit_transaction(10)
    assert read_commits(kafka, "stream") == {1: (5, commit)}
    assert read_commits(kafka, "another") == {}
    consumer.close()
