"""The stream worker: records in, typed feedback out, each batch in one transaction."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from operator import attrgetter
from typing import Any, Final, NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from stream.commits import Commit, committed_offsets
from stream.errors import BadPosition, BadSettings, LogError
from stream.events import Erasure, Feedback, encode
from stream.intake import Accounting, Intake, IntakeResult
from stream.kafka import (
    APPENDED_MS,
    TYPED_MS,
    WAIT_S,
    Faults,
    KafkaLog,
    ends,
    librdkafka,
    record_of,
)
from stream.log import Record
from stream.settings import Settings
from stream.topics import DEAD, FEEDBACK, INTERACTIONS, LATE, TYPED, USERS
from stream.typing_rules import load_rules

REASON, ORIGIN = "reason", "origin"
"""Headers of late records."""

TRANSACTION_S: Final = 10.0
"""A transaction that takes longer is aborted, also by the broker, when its worker is gone."""

SESSION_S: Final = 6.0
"""A worker that is silent for so long loses its partitions to the others."""

_BY_KEY: Final = -1
"""The partition that follows from a record's key."""

_IDLE_S: Final = 0.1  # how soon a call to stop is heard
_GATHER_S: Final = 0.05  # how long a transaction waits for more records than the first


_log = logging.getLogger("tidegraph.stream")


class BatchDone(NamedTuple):
    """One committed transaction."""

    accounting: Accounting
    """Of this batch."""
    classes: dict[str, int]
    """Accepted events of each kind."""
    watermark_ms: int
    """Time of the newest event accepted in the partitions in hand, 0 before the first."""
    lag: int
    """Records that are waiting, in the partitions in hand."""
    partitions: tuple[int, ...]
    """Those in hand."""
    seconds: float
    """From the first record to the commit."""


class Progress(NamedTuple):
    """How a worker is getting on."""

    idle_s: float
    """Since the last commit, or since it was last seen that nothing is waiting."""
    lag: int
    """Records that are waiting or in hand."""


class _Held:
    """A partition in hand."""

    def __init__(self, intake: Intake, position: int, watermark_ms: int = 0) -> None:
        self.intake = intake
        self.position = position  # of the next record to decide about
        self.read_to = position  # of the next record that comes
        self._remember_to = position  # the records before were decided about by an earlier owner
        self._watermark_ms = watermark_ms  # behind these

    def new(self, records: list[Record]) -> list[Record]:
        """Return the records to decide about; those before them are remembered."""
        self.read_to = max(self.read_to, records[-1].offset + 1)
        n_known = bisect_left(records, self.position, key=attrgetter("offset"))
        if n_known and self.position == self._remember_to:
            self.intake.remember(records[0].partition, self._watermark_ms, records[:n_known])
        return records[n_known:]

    def commit(self, number: int) -> Commit:
        """Return what goes with the offset ``position``."""
        first = self.intake.first_offset(number)
        return Commit(
            self.intake.watermark_ms(number) or 0,
            self.position if first is None else first,
            self.intake.accounting,
        )


class _Superseded(LogError):  # noqa: N818 - as in the errors' tree
    """The group has given our partitions out anew, so that nothing of the batch was written."""

    def __init__(self, why: str) -> None:
        super().__init__(f"kafka: the group has given our partitions out anew: {why}")


_SUPERSEDED: Final = {
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.REBALANCE_IN_PROGRESS,
    KafkaError.UNKNOWN_MEMBER_ID,
}
"""What the broker says to a member of an older generation of the group."""


@contextmanager
def _superseding() -> Iterator[None]:
    try:
        yield
    except KafkaException as error:
        if error.args[0].code() in _SUPERSEDED:
            raise _Superseded(error.args[0].str()) from error
        raise


class StreamWorker:
    """Decides about the records of the partitions that its consumer group gives it.

    Parameters
    ----------
    settings
        Of the broker and the stream.
    on_batch
        Called after each commit, in the thread of :meth:`run`.

    Raises
    ------
    BadRules
        If the rules must not be used.

    Notes
    -----
    One transaction holds the feedback of a batch, its dead letters, late events, the tombstones in
    ``users`` of who is to be forgotten, the offsets behind it and, as their metadata, what the next
    owner needs to go on (:class:`stream.commits.Commit`). A worker that lost its partitions cannot
    commit: the broker refuses the generation of the group that it names (see :meth:`_group`). So
    what was read twice is never written twice.
    It then joins the group anew, and begins at what is committed. Whatever else fails, :meth:`run`
    raises: the process ends, and the next one begins there.

    When a partition comes: read its commit (waiting for a transaction that is still open), read the
    input again from ``first_offset`` to have the window of duplicates back, then go on.
    """

    def __init__(
        self, settings: Settings, *, on_batch: Callable[[BatchDone], None] = lambda done: None
    ) -> None:
        self._settings = settings
        self._kafka = settings.kafka
        self._on_batch = on_batch
        self._faults = Faults(settings.kafka)
        self._rules = load_rules(settings.stream.rules)
        self._stop = threading.Event()
        self._held: dict[int, _Held] = {}
        self._member: str | None = None  # who the partitions in hand were given to
        self._moved_s = time.monotonic()
        self._lag = 0

    @property
    def progress(self) -> Progress:
        """Tell how long ago something was done, and what is waiting; from any thread."""
        return Progress(time.monotonic() - self._moved_s, self._lag)

    def stop(self) -> None:
        """Let :meth:`run` end after the transaction in hand; from any thread."""
        self._stop.set()

    def run(self) -> None:
        """Work until :meth:`stop`.

        Raises
        ------
        BadSettings
            If the topics are missing or do not fit, or the broker refuses us.
        BadPosition
            If what is committed cannot be gone on from.
        LogError
            If the broker does not answer as wanted.

        """
        self._check_topics()
        while not self._stop.is_set():
            try:
                self._follow()
            except _Superseded as error:
                _log.warning("%s; joining the group again", error)

    def _follow(self) -> None:
        """Work as one member of the group, until :meth:`stop`."""
        self._held.clear()
        consumer = Consumer(self._consuming())
        try:
            producer = Producer(self._producing())
            with self._faults.told("beginning transactions", producer):
                producer.init_transactions(WAIT_S)
                consumer.subscribe(
                    [self._kafka.topic(INTERACTIONS)],
                    on_assign=self._assigned,
                    on_revoke=self._revoked,
                    on_lost=self._revoked,
                )
            while not self._stop.is_set():
                self._step(consumer, producer)
        finally:
            with suppress(KafkaException):  # the group does without us, told or not
                consumer.close()

    def _check_topics(self) -> None:
        log = KafkaLog(self._kafka)
        try:
            counts = {self._kafka.topic(topic): log.partitions(topic) for topic in TYPED}
        finally:
            log.close()
        if len(set(counts.values())) > 1:
            told = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise BadSettings(
                f"kafka: want the same number of partitions everywhere, got {told}; delete those "
                "that are wrong and make them anew with `tidegraph topics create`"
            )

    def _step(self, consumer: Consumer, producer: Producer) -> None:
        """Take what is there through one transaction."""
        self._faults.check()
        with self._faults.told("reading interactions"):
            first = consumer.poll(_IDLE_S)
            started_s = time.monotonic()
            # One alone first, for consume() waits for as many as it is asked for.
            more = self._settings.stream.batch - 1
            messages = [] if first is None else [first, *consumer.consume(more, _GATHER_S)]
        batches: dict[int, list[Record]] = {}
        for message in messages:
            if (error := message.error()) is not None:
                if error.code() != KafkaError._PARTITION_EOF:
                    raise self._faults.of(error, "reading interactions")
                # A transaction's end takes an offset too, and is no record that waits.
                if (at_end := self._held.get(message.partition() or 0)) is not None:
                    at_end.read_to = max(at_end.read_to, message.offset() or 0)
                continue
            record = record_of(message, INTERACTIONS)
            batches.setdefault(record.partition, []).append(record)
        fresh = {}
        for number, records in batches.items():
            held = self._held.get(number)
            if held is not None and (new := held.new(records)):
                fresh[number] = new
        self._lag = sum(map(len, fresh.values())) + self._waiting(consumer)
        if fresh:
            self._commit(consumer, producer, fresh, started_s)
        if messages or self._lag == 0:
            self._moved_s = time.monotonic()

    def _commit(
        self,
        consumer: Consumer,
        producer: Producer,
        batches: dict[int, list[Record]],
        started_s: float,
    ) -> None:
        """Decide about the records, and write down all that follows in one transaction."""
        results = {
            number: self._held[number].intake.take(records) for number, records in batches.items()
        }
        with self._faults.told("writing a batch", producer), _superseding():
            producer.begin_transaction()
            try:
                typed_ms = str(time.time_ns() // 1_000_000).encode()
                offsets = []
                for number, result in results.items():
                    self._write(producer, batches[number], result, typed_ms)
                    held = self._held[number]
                    held.position = batches[number][-1].offset + 1
                    offsets.append(
                        TopicPartition(
                            self._kafka.topic(INTERACTIONS),
                            number,
                            held.position,
                            held.commit(number).metadata(),
                        )
                    )
                producer.send_offsets_to_transaction(offsets, self._group(consumer), TRANSACTION_S)
                producer.commit_transaction(TRANSACTION_S)
            except BaseException:
                # So that the next owner need not wait; where this fails too, the broker does it.
                with suppress(KafkaException):
                    producer.abort_transaction(TRANSACTION_S / 2)
                raise
        accounting = sum((result.accounting for result in results.values()), Accounting())
        self._lag -= accounting.in_
        kinds: Counter[str] = Counter(
            event.kind
            for result in results.values()
            for event in result.feedback
            if isinstance(event, Feedback)
        )
        watermarks = (held.intake.watermark_ms(number) for number, held in self._held.items())
        self._on_batch(
            BatchDone(
                accounting,
                dict(kinds),
                max(watermark_ms or 0 for watermark_ms in watermarks),
                self._lag,
                tuple(sorted(self._held)),
                time.monotonic() - started_s,
            )
        )

    def _group(self, consumer: Consumer) -> Any:
        """Return what tells the broker that the partitions in hand are ours.

        Whoever is no member of the group has an empty id, and the broker takes offsets from that
        without a question, as from a producer without a group. So make sure that we still are the
        member that the partitions were given to; then the broker can refuse an older generation.
        """
        member = consumer.memberid()
        group = consumer.consumer_group_metadata()
        if not member or not self._member == member == consumer.memberid():
            raise _Superseded("we were silent for too long")
        return group

    def _write(
        self, producer: Producer, records: Sequence[Record], result: IntakeResult, typed_ms: bytes
    ) -> None:
        feedback, dead, late, users = map(self._kafka.topic, (FEEDBACK, DEAD, LATE, USERS))
        headers: list[tuple[str, str | bytes | None]] = []
        typed, appended_ms = (TYPED_MS, typed_ms), -1
        for origin, event in zip(result.origins, result.feedback, strict=True):
            if origin.timestamp_ms != appended_ms:  # else the same headers as before
                appended_ms = origin.timestamp_ms
                headers = [(APPENDED_MS, b"%d" % appended_ms), typed]
            _produce(producer, feedback, encode(event), origin.key, origin.partition, headers)
            if isinstance(event, Erasure):  # what was said of the user goes too
                _produce(producer, users, None, origin.key, _BY_KEY, [])
        keys = {record.offset: record.key for record in records} if result.dead else {}
        for letter in result.dead:
            key = keys[letter.offset]
            _produce(producer, dead, encode(letter), key, letter.partition, [])
        for record in result.late:
            where = f"{record.topic}/{record.partition}/{record.offset}".encode()
            headers = [*record.headers, (REASON, b"late"), (ORIGIN, where)]
            _produce(producer, late, record.value, record.key, record.partition, headers)

    def _waiting(self, consumer: Consumer) -> int:
        """Count the records of our partitions that are not decided about, as far as is known."""
        waiting = 0
        for number, held in self._held.items():
            partition = TopicPartition(self._kafka.topic(INTERACTIONS), number)
            known = consumer.get_watermark_offsets(partition, cached=True)
            waiting += max(0, known[1] - held.read_to)
        return waiting

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Go on where the last owner of each partition stopped, knowing what it knew."""
        starts = []
        for committed in committed_offsets(consumer, partitions):
            number = committed.partition
            first, end = ends(consumer, committed)
            where = f"{committed.topic}, partition {number}"
            intake = Intake(
                self._rules,
                lateness_ms=int(self._settings.stream.lateness_s * 1_000),
                max_future_ms=int(self._settings.stream.max_future_s * 1_000),
            )
            if committed.offset < 0:  # nobody was here before
                self._held[number] = _Held(intake, first)
                starts.append(TopicPartition(committed.topic, number, first))
                continue
            if committed.offset > end:
                raise BadPosition(
                    f"{where}: {committed.offset} is committed, the topic ends at {end}: it was "
                    "made anew; choose another stream.group, or delete the offsets of this one"
                )
            if committed.offset < first:
                lost = first - committed.offset
                _log.error("%s: retention removed %d records that nobody had read", where, lost)
            commit = Commit.read(committed.metadata, where)
            intake.accounting = commit.accounting
            intake.remember(number, commit.watermark_ms, [])
            self._held[number] = _Held(intake, committed.offset, commit.watermark_ms)
            start = max(first, min(commit.first_offset, committed.offset))
            starts.append(TopicPartition(committed.topic, number, start))
        consumer.incremental_assign(starts)
        self._member = consumer.memberid()

    def _revoked(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        for each in partitions:
            self._held.pop(each.partition, None)
        consumer.incremental_unassign(partitions)

    def _consuming(self) -> dict[str, object]:
        return librdkafka(self._kafka) | {
            "error_cb": self._faults,
            "group.id": self._kafka.topic(self._settings.stream.group),
            "enable.auto.commit": False,
            "isolation.level": "read_committed",  # of offsets too
            "auto.offset.reset": "error",  # we say ourselves where to begin
            "enable.partition.eof": True,
            # Whoever keeps a partition keeps its window of duplicates.
            "partition.assignment.strategy": "cooperative-sticky",
            "session.timeout.ms": int(SESSION_S * 1_000),
            "heartbeat.interval.ms": int(SESSION_S * 1_000 / 4),
            # Whatever comes is gathered before it is written: so the broker need not tell of each.
            "fetch.min.bytes": 16_384,
            "fetch.wait.max.ms": 20,
            "fetch.queue.backoff.ms": 5,  # a full queue is looked at again at once
            "fetch.error.backoff.ms": 100,
            "queued.min.messages": 10 * self._settings.stream.batch,
        }

    def _producing(self) -> dict[str, object]:
        return librdkafka(self._kafka) | {
            "error_cb": self._faults,
            # Of this process alone: what keeps a worker that is taken for dead from writing is the
            # generation of the group.
            "transactional.id": f"{self._kafka.topic(self._settings.stream.group)}.{uuid.uuid4()}",
            "transaction.timeout.ms": int(TRANSACTION_S * 1_000),
            "compression.type": self._kafka.compression,
            # The topics say what is too large: see stream.topics.config.
            "message.max.bytes": min(1_000_000_000, 4 * self._kafka.max_record_bytes + 65_536),
            "partitioner": "murmur2_random",  # as stream.log.partition_of, where none is named
            "delivery.report.only.error": True,  # a commit tells of them all
            "linger.ms": 5,
        }


def _produce(
    producer: Producer,
    topic: str,
    value: bytes | None,
    key: bytes | None,
    partition: int,
    headers: list[tuple[str, str | bytes | None]],
) -> None:
    while True:
        try:
            producer.produce(topic, value, key, partition, headers=headers)
        except BufferError:  # the broker is slower than we are
            producer.poll(0.1)
        else:
            return
