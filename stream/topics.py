"""The topics on the broker: which there are, how they are made, and whether they fit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from stream.errors import BadSettings
from stream.kafka import WAIT_S, ask, kafka_python, kafka_python_told
from stream.settings import KafkaSettings

INTERACTIONS: Final = "interactions"
FEEDBACK: Final = "feedback"
DEAD: Final = "interactions.dead"
LATE: Final = "interactions.late"

TYPED: Final = (INTERACTIONS, FEEDBACK, DEAD, LATE)
"""Topics that must have the same number of partitions: a record stays in its own."""

ITEMS: Final = "items"
USERS: Final = "users"

COMPACTED: Final = (ITEMS, USERS)
"""Topics of which only the newest record of each key counts."""

TOPICS: Final = (*TYPED, *COMPACTED, "class-counts")
"""All topics, without the prefix."""


def config(kafka: KafkaSettings, topic: str) -> dict[str, str]:
    """Return what a topic differs in from the broker's defaults.

    Notes
    -----
    The broker stamps the records: a producer's clock must neither decide what is in the future,
    nor, by records of a log from years ago, what retention removes.

    What follows from a record may be larger than it is: base64 needs 4/3, a number may be written
    longer (``1e15``), and what a rule or a fault adds comes on top.
    """
    limit = kafka.max_record_bytes + 1_024  # the batch around a record counts
    if topic in {FEEDBACK, DEAD, LATE}:
        limit = 3 * kafka.max_record_bytes + 16_384
    told = {"message.timestamp.type": "LogAppendTime", "max.message.bytes": str(limit)}
    if topic in COMPACTED:
        return {**told, "cleanup.policy": "compact"}
    return {**told, "retention.ms": str(int(kafka.retention_h * 3_600_000))}


def create(kafka: KafkaSettings) -> list[str]:
    """Make the topics that are missing, and return their names.

    Raises
    ------
    BadSettings
        If the broker refuses us, or cannot make them as the settings say.
    LogError
        If no broker answers.

    """
    with _admin(kafka, "making the topics") as admin:
        there = {told["name"] for told in admin.describe_topics()}
        missing = [topic for topic in TOPICS if kafka.topic(topic) not in there]
        if not missing:
            return []
        answer = admin.create_topics(
            {
                kafka.topic(topic): {
                    "num_partitions": kafka.partitions,
                    "replication_factor": kafka.replication,
                    "configs": config(kafka, topic),
                }
                for topic in missing
            },
            raise_errors=False,
        )
        made = []
        for told in answer["topics"]:
            if told["error_code"] == 0:
                made.append(told["name"])
            elif told["error_code"] != _EXISTS:  # another process may have been faster
                raise BadSettings(f"kafka: cannot make {told['name']}: {told['error_message']}")
        admin.wait_for_topics([kafka.topic(topic) for topic in missing], int(WAIT_S * 1_000))
    return made


def check(kafka: KafkaSettings) -> list[str]:
    """Return what is wrong with the topics, in words; an empty list says that all is well.

    Raises
    ------
    BadSettings
        If the broker refuses us.
    LogError
        If no broker answers.

    """
    with _admin(kafka, "looking at the topics") as admin:
        there = {told["name"]: told for told in admin.describe_topics()}
        present = [topic for topic in TOPICS if kafka.topic(topic) in there]
        configs = _configs(admin, [kafka.topic(topic) for topic in present])
    problems = [
        f"{kafka.topic(topic)} is missing; make it with `tidegraph topics create`"
        for topic in TOPICS
        if topic not in present
    ]
    for topic in present:
        name = kafka.topic(topic)
        if (came := len(there[name]["partitions"])) != kafka.partitions:
            problems.append(
                f"{name} has {came} partitions, want {kafka.partitions}; set kafka.partitions, or "
                "delete the topic and make it anew with `tidegraph topics create`"
            )
        if name not in configs:
            continue
        for key, wanted in config(kafka, topic).items():
            got = configs[name][key]
            wrong = int(got) < int(wanted) if key == "max.message.bytes" else got != wanted
            if wrong and key != "retention.ms":  # how long records are kept is the operator's
                problems.append(f"{name} has {key} {got}, want {wanted}; alter the topic")
    return problems


_EXISTS = 36


@contextmanager
def _admin(kafka: KafkaSettings, doing: str) -> Iterator[Any]:
    from kafka import KafkaAdminClient  # half a second, for those who need it

    ask(kafka, doing)  # tells sooner and better what is wrong
    with kafka_python_told(kafka, doing):
        admin = KafkaAdminClient(**kafka_python(kafka))
        try:
            yield admin
        finally:
            admin.close()


def _configs(admin: Any, names: list[str]) -> dict[str, dict[str, str]]:
    """Return how topics are set up, as far as we may know it."""
    from kafka.admin import ConfigResource
    from kafka.errors import AuthorizationError

    if not names:
        return {}
    try:
        told = admin.describe_configs(
            [ConfigResource("TOPIC", name) for name in names], config_filter="all"
        )
    except AuthorizationError:  # then the worker finds out when it matters
        return {}
    return {
        name: {key: str(entry["value"]) for key, entry in entries.items()}
        for name, entries in told["topic"].items()
    }
