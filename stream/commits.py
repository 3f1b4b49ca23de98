"""What a commit of offsets carries besides: the state of a partition, and its accounting."""

from __future__ import annotations

import time
from typing import Final

import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from stream.errors import BadPosition
from stream.intake import Accounting
from stream.kafka import WAIT_S, Faults, librdkafka
from stream.settings import KafkaSettings
from stream.topics import INTERACTIONS

STABLE_S: Final = 30.0
"""How long an open transaction is waited for: longer than one can stay open."""

_NOT_YET: Final = {
    KafkaError.UNSTABLE_OFFSET_COMMIT,  # a killed worker's transaction, until the broker ends it
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,  # the broker has just started
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.NOT_COORDINATOR,
    KafkaError._TIMED_OUT,  # any of these, where it lasts
}
_ASK_AGAIN_S: Final = 0.05


class Commit(msgspec.Struct, frozen=True):
    """The state of one partition of ``interactions`` at a committed offset.

    Parameters
    ----------
    watermark_ms
        Time of the newest event accepted so far, 0 before the first.
    first_offset
        What was read from here up to the committed offset makes the window of duplicates.
    accounting
        Of everything before the committed offset.

    Examples
    --------
    >>> commit = Commit(1650812741436, 17, Accounting(in_=3, feedback=2, dead=1))
    >>> Commit.read(commit.metadata(), "interactions, partition 0") == commit
    True

    """

    watermark_ms: int
    first_offset: int
    accounting: Accounting

    def metadata(self) -> str:
        """Return it as the text of an offset commit, a few hundred bytes."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def read(cls, metadata: str | None, where: str) -> Commit:
        """Return what :meth:`metadata` wrote.

        Raises
        ------
        BadPosition
            If the text is something else: the offset was committed by somebody else.

        """
        try:
            return msgspec.json.decode(metadata or "", type=cls)
        except msgspec.DecodeError as error:
            raise BadPosition(
                f"{where}: the committed offset is not by a stream worker ({error}); choose "
                "another stream.group, or delete the offsets of this one"
            ) from error


def read_commits(kafka: KafkaSettings, group: str) -> dict[int, tuple[int, Commit]]:
    """Return the committed offset of each partition of ``interactions``, and what it carries.

    Partitions without a commit are left out. Offsets of a transaction that is still open are
    waited for.

    Parameters
    ----------
    kafka
        Where the broker is.
    group
        ``stream.group`` of the settings.

    Raises
    ------
    BadPosition
        If an offset was committed by something else than a stream worker.
    BadSettings, LogError
        If the broker refuses us, or does not answer.

    """
    faults = Faults(kafka)
    name, topic = kafka.topic(group), kafka.topic(INTERACTIONS)
    consumer = Consumer(
        librdkafka(kafka)
        | {"error_cb": faults, "group.id": name, "isolation.level": "read_committed"}
    )
    try:
        with faults.told(f"reading the offsets of {name}", consumer):
            known = consumer.list_topics(timeout=WAIT_S).topics.get(topic)
            numbers = [] if known is None else sorted(known.partitions)
            answers = committed_offsets(consumer, [TopicPartition(topic, n) for n in numbers])
    finally:
        consumer.close()
    return {
        each.partition: (
            each.offset,
            Commit.read(each.metadata, f"{topic}, partition {each.partition}"),
        )
        for each in answers
        if each.offset >= 0
    }


def committed_offsets(consumer: Consumer, partitions: list[TopicPartition]) -> list[TopicPartition]:
    """Return the committed offsets of a group, behind any transaction that is still open.

    Parameters
    ----------
    consumer
        Of the group, with ``isolation.level`` read_committed.
    partitions
        Of which topics and partitions; where nothing is committed, the offset is below 0.

    Raises
    ------
    KafkaException
        If the broker does not tell, or a transaction stays open.

    """
    until_s = time.monotonic() + STABLE_S
    while partitions:
        try:
            answers = consumer.committed(partitions, WAIT_S)
            errors = [each.error for each in answers if each.error is not None]
        except KafkaException as failure:
            answers, errors = [], [failure.args[0]]
        if not errors:
            return answers
        if errors[0].code() not in _NOT_YET or time.monotonic() > until_s:
            raise KafkaException(errors[0])
        time.sleep(_ASK_AGAIN_S)
    return []
