"""The log over a broker: how every process connects, what goes wrong, and reading and appending."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from confluent_kafka import (
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import (  # type: ignore[attr-defined] # it does export OffsetSpec
    AdminClient,
    OffsetSpec,
)

from stream.errors import BadPosition, BadSettings, LogError, TidegraphError
from stream.log import Positions, Record
from stream.settings import KafkaSettings

_T = TypeVar("_T")

WAIT_S = 10.0
"""How long an answer of the broker is waited for."""

APPENDED_MS, TYPED_MS = "appended_ms", "typed_ms"
"""Headers of feedback: when its record was appended, and when it was typed."""

_LOGIN = {
    KafkaError._AUTHENTICATION,
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError.UNSUPPORTED_SASL_MECHANISM,
    KafkaError.ILLEGAL_SASL_STATE,
}
_FORBIDDEN = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
}
_NO_TOPIC = {
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._UNKNOWN_PARTITION,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
}
_ASK_AGAIN_S = 0.05
_ON_ITS_WAY = {
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.UNKNOWN_LEADER_EPOCH,
}
_SILENT = {
    KafkaError._TRANSPORT,
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._TIMED_OUT,
    KafkaError._MSG_TIMED_OUT,
    KafkaError._RESOLVE,
}


def librdkafka(kafka: KafkaSettings) -> dict[str, Any]:
    """Return how a client of confluent-kafka connects.

    Examples
    --------
    >>> librdkafka(KafkaSettings())["bootstrap.servers"]
    '127.0.0.1:9092'

    """
    config: dict[str, Any] = {
        "bootstrap.servers": ",".join(kafka.servers),
        "security.protocol": kafka.security,
        "reconnect.backoff.max.ms": 1_000,  # a broker that is back is found within a second
        # A broker that went away is waited for at its address. To begin with the bootstrap servers
        # anew, as is the default, makes librdkafka 2.16 forget a transaction that is being written,
        # and the worker wait for it without end.
        "metadata.recovery.strategy": "none",
        "log_level": 0,  # what matters comes as errors
    }
    if kafka.security.startswith("SASL"):
        config |= {
            "sasl.mechanism": kafka.mechanism,
            "sasl.username": kafka.user,
            "sasl.password": kafka.password,
        }
    if kafka.security.endswith("SSL"):
        files = {
            "ssl.ca.location": kafka.ca_file,
            "ssl.certificate.location": kafka.cert_file,
            "ssl.key.location": kafka.key_file,
        }
        config |= {name: file for name, file in files.items() if file}
    return config


def kafka_python(kafka: KafkaSettings) -> dict[str, Any]:
    """Return how a client of kafka-python connects.

    Examples
    --------
    >>> kafka_python(KafkaSettings())["bootstrap_servers"]
    ['127.0.0.1:9092']

    """
    config = _login(kafka) | {"bootstrap_timeout_ms": int(WAIT_S * 1_000)}
    if kafka.security.endswith("SSL"):
        config |= {
            "ssl_cafile": kafka.ca_file or None,
            "ssl_certfile": kafka.cert_file or None,
            "ssl_keyfile": kafka.key_file or None,
        }
    return config


def aiokafka(kafka: KafkaSettings) -> dict[str, Any]:
    """Return how a client of aiokafka connects.

    Raises
    ------
    BadSettings
        If the files for TLS cannot be used.

    Examples
    --------
    >>> aiokafka(KafkaSettings())["bootstrap_servers"]
    ['127.0.0.1:9092']

    """
    return _login(kafka) | {"ssl_context": tls_context(kafka)}


def _login(kafka: KafkaSettings) -> dict[str, Any]:
    """Return where and as whom to connect, in the words that kafka-python and aiokafka share."""
    config: dict[str, Any] = {
        "bootstrap_servers": list(kafka.servers),
        "security_protocol": kafka.security,
    }
    if kafka.security.startswith("SASL"):
        config |= {
            "sasl_mechanism": kafka.mechanism,
            "sasl_plain_username": kafka.user,
            "sasl_plain_password": kafka.password,
        }
    return config


def tls_context(kafka: KafkaSettings) -> ssl.SSLContext | None:
    """Return what Python's own TLS connects with; ``None`` where there is no TLS.

    Raises
    ------
    BadSettings
        If the files for it cannot be used.

    """
    if not kafka.security.endswith("SSL"):
        return None
    try:
        context = ssl.create_default_context(cafile=kafka.ca_file or None)
        if kafka.cert_file:
            context.load_cert_chain(kafka.cert_file, kafka.key_file or None)
    except OSError as error:  # ssl.SSLError is one
        raise BadSettings(
            f"settings: the files for TLS cannot be used ({error}); check kafka.ca_file, "
            "kafka.cert_file and kafka.key_file"
        ) from error
    return context


class Faults:
    """What goes wrong between us and the broker, in our words.

    Parameters
    ----------
    kafka
        Named in the messages.

    Notes
    -----
    librdkafka tells a refused login only to its ``error_cb``, and whoever waits for an answer sees
    a time-out; so one of these is the ``error_cb`` of a client and remembers.
    """

    def __init__(self, kafka: KafkaSettings) -> None:
        self._kafka = kafka
        self._login: KafkaError | None = None
        self._last: KafkaError | None = None

    def __call__(self, error: KafkaError) -> None:
        """Remember what librdkafka tells."""
        self._last = error
        if error.code() in _LOGIN or error.code() == KafkaError._SSL:
            self._login = error

    def check(self) -> None:
        """Make sure that the broker did not refuse us.

        Raises
        ------
        BadSettings
            If it did.

        """
        if self._login is not None:
            raise self.of(self._login)

    def of(self, error: KafkaError, doing: str = "") -> TidegraphError:
        """Return the error of ours that says it."""
        if error.code() in _SILENT and self._login is not None:
            error = self._login
        code, servers = error.code(), ", ".join(self._kafka.servers)
        told = f"kafka: {doing}: " if doing else "kafka: "
        if code in _LOGIN:
            return BadSettings(
                f"{told}{servers} refuses the login of {self._kafka.user or 'nobody'} "
                f"({error.str()}); check kafka.user, kafka.password and kafka.mechanism"
            )
        if code == KafkaError._SSL:
            return BadSettings(
                f"{told}no TLS connection with {servers} ({error.str()}); "
                "check kafka.security and kafka.ca_file"
            )
        if code in _FORBIDDEN:
            user = self._kafka.user or "nobody"
            return BadSettings(f"{told}{servers} does not allow this to {user}: {error.str()}")
        if code in _NO_TOPIC:
            return BadSettings(
                f"{told}no such topic on {servers} ({error.str()}); "
                "make the topics with `tidegraph topics create`"
            )
        if code == KafkaError.MSG_SIZE_TOO_LARGE:
            limit = self._kafka.max_record_bytes
            return BadSettings(
                f"{told}a record is too large; want at most {limit} bytes (kafka.max_record_bytes)"
            )
        if code in {KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE}:
            return BadPosition(f"{told}the log has nothing there: {error.str()}")
        if code in _SILENT:
            why = error if self._last is None else self._last
            return LogError(f"{told}no broker answers at {servers} ({why.str()}); is it running?")
        return LogError(f"{told}{error.str()} ({error.name()})")

    @contextmanager
    def told(
        self, doing: str, client: AdminClient | Consumer | Producer | None = None
    ) -> Iterator[None]:
        """Turn what confluent-kafka raises into ours; ``client`` may still know the cause.

        Raises
        ------
        BadSettings
            If the settings are not those of this broker, or a topic is missing.
        LogError
            If the broker does not answer as wanted.

        """
        try:
            yield
        except KafkaException as error:
            if client is not None:
                client.poll(0)  # a refused login is told to error_cb alone
            raise self.of(error.args[0], doing) from error


@contextmanager
def kafka_python_told(kafka: KafkaSettings, doing: str) -> Iterator[None]:
    """Turn what kafka-python raises into ours; as :meth:`Faults.told`."""
    import kafka.errors as theirs

    servers = ", ".join(kafka.servers)
    try:
        yield
    except theirs.KafkaError as error:
        told = f"kafka: {doing}: {servers}"
        if isinstance(
            error, theirs.SaslAuthenticationFailedError | theirs.UnsupportedSaslMechanismError
        ):
            raise BadSettings(
                f"{told} refuses the login of {kafka.user or 'nobody'}; "
                "check kafka.user, kafka.password and kafka.mechanism"
            ) from error
        if isinstance(error, theirs.AuthorizationError):
            raise BadSettings(f"{told} does not allow this to {kafka.user}: {error}") from error
        if isinstance(error, theirs.KafkaTimeoutError | theirs.KafkaConnectionError):
            ask(kafka, doing)  # kafka-python waits until time is up also where it is refused
            raise LogError(f"{told} does not answer; is it running?") from error
        raise LogError(f"{told}: {error}") from error


def ask(
    kafka: KafkaSettings, doing: str, topic: str | None = None, *, within_s: float = WAIT_S
) -> None:
    """Make sure that the broker answers and lets us in, and has a topic if one is named.

    Raises
    ------
    BadSettings
        If it refuses us, or the topic is missing.
    LogError
        If it does not answer.

    """
    faults = Faults(kafka)
    with faults.told(doing):
        admin = AdminClient(librdkafka(kafka) | {"error_cb": faults})
    with faults.told(doing, admin):
        found = admin.list_topics(topic, timeout=within_s)
    if topic is not None and (missing := found.topics[topic].error) is not None:
        raise faults.of(missing, doing)


class KafkaLog:
    """A :class:`stream.log.Log` over a broker.

    Parameters
    ----------
    kafka
        Where the broker is; its prefix is put before the name of each topic.
    wait_s
        How long :meth:`read` waits for the first record.

    Notes
    -----
    Readers see committed records only. Offsets have holes where transactions ended, so the
    position behind the last record may be less than :meth:`end`: :meth:`lag` knows the difference.
    A broker that goes away makes :meth:`read` return nothing until it is back; everything else
    raises. Clients are made when they are first needed. For one thread.

    """

    def __init__(self, kafka: KafkaSettings, *, wait_s: float = 0.1) -> None:
        self._kafka = kafka
        self._wait_s = wait_s
        self._faults = Faults(kafka)
        self._producer: Producer | None = None
        self._admin: AdminClient | None = None
        self._readers: dict[str, _Reader] = {}
        self._n_partitions: dict[str, int] = {}

    def append(
        self,
        topic: str,
        entries: Sequence[tuple[bytes | None, bytes]],
        *,
        timestamp_ms: int,
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> None:
        """Add ``(key, value)`` entries at the end; all of them are stored when this returns.

        Raises
        ------
        BadSettings
            If there is no such topic, or an entry is too large for it.
        LogError
            If the broker does not acknowledge them; some may be stored nevertheless.

        """
        if self._producer is None:
            self._producer = Producer(self._producing())
        name, doing = self._kafka.topic(topic), f"appending to {topic}"
        lost: list[KafkaError] = []

        def delivered(error: KafkaError | None, _: Message) -> None:
            if error is not None:
                lost.append(error)

        marked: list[tuple[str, str | bytes | None]] = list(headers)
        produce, poll = self._producer.produce, self._producer.poll
        with self._faults.told(doing, self._producer):
            self.partitions(topic)  # else a missing topic is known only when the entries time out
            for key, value in entries:
                while True:
                    try:
                        produce(
                            name,
                            value,
                            key,
                            on_delivery=delivered,
                            timestamp=timestamp_ms,
                            headers=marked,
                        )
                        break
                    except BufferError:  # the broker is slower than we are
                        poll(0.1)
            self._producer.flush()  # bounded: an entry is given up after message.timeout.ms
        if lost:
            raise self._faults.of(lost[0], f"{doing}: {len(lost)} entries")

    def read(
        self, topic: str, positions: Mapping[int, int], *, limit: int, wait: bool = True
    ) -> list[Record]:
        """Return up to ``limit`` records; may wait for the first, but not longer than ``wait_s``.

        Reading on where the last read of a topic ended is cheap; going elsewhere is not.

        Raises
        ------
        BadPosition
            If the log no longer has, or never had, what lies there.
        BadSettings
            If there is no such topic, or the broker refuses us.

        """
        reader = self._readers.get(topic)
        if reader is None:
            self.partitions(topic)  # raises where there is none; the reader would wait for it
            reader = self._readers[topic] = _Reader(self._kafka, topic, self._faults)
        return reader.read(positions, limit, self._wait_s if wait else 0.0)

    def start(self, topic: str) -> Positions:
        """Return the position of the first record that every partition still has."""
        return self._offsets(topic, OffsetSpec.earliest())  # type: ignore[no-untyped-call]

    def end(self, topic: str) -> Positions:
        """Return the position behind the last committed record of every partition, or after it."""
        return self._offsets(topic, OffsetSpec.latest())  # type: ignore[no-untyped-call]

    def at(self, topic: str, ts_ms: int) -> Positions:
        """Return the position of the first record that was appended at ``ts_ms`` or later."""
        found = self._offsets(topic, OffsetSpec.for_timestamp(ts_ms))
        end = self.end(topic)
        return {number: end[number] if at < 0 else at for number, at in found.items()}

    def lag(self, topic: str, positions: Mapping[int, int]) -> int:
        """Return how many records lie behind ``positions``.

        An upper bound, as the ends of transactions count too; exactly 0 when a :meth:`read` of
        this log from ``positions`` found no more.
        """
        reader = self._readers.get(topic)
        ends = self.end(topic)
        lag = 0
        for number, position in positions.items():
            ended = None if reader is None else reader.ended.get(number)
            if ended is not None and ended[0] == position and ended[1] >= ends[number]:
                continue
            lag += max(0, ends[number] - position)
        return lag

    def partitions(self, topic: str) -> int:
        """Return how many partitions a topic has.

        Raises
        ------
        BadSettings
            If there is no such topic.
        LogError
            If no broker answers.

        """
        if topic not in self._n_partitions:
            name = self._kafka.topic(topic)
            admin = self._admin_client()
            with self._faults.told(f"looking for {name}", admin):
                # All topics: to ask for one by its name would make it on some brokers.
                known = admin.list_topics(timeout=WAIT_S).topics
            if name not in known:
                servers = ", ".join(self._kafka.servers)
                remedy = "make the topics with `tidegraph topics create`"
                raise BadSettings(f"kafka: no topic {name} on {servers}; {remedy}")
            self._n_partitions[topic] = len(known[name].partitions)
        return self._n_partitions[topic]

    def close(self) -> None:
        """Let go of the broker."""
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()
        self._producer = self._admin = None

    def _admin_client(self) -> AdminClient:
        if self._admin is None:
            config = librdkafka(self._kafka)
            self._admin = AdminClient(config | {"error_cb": self._faults})
        self._admin.poll(0)  # lets error_cb be called
        return self._admin

    def _offsets(self, topic: str, spec: OffsetSpec) -> Positions:
        name = self._kafka.topic(topic)
        asked = {TopicPartition(name, number): spec for number in range(self.partitions(topic))}

        def ask() -> Positions:
            answers = self._admin_client().list_offsets(
                asked,
                isolation_level=IsolationLevel.READ_COMMITTED,
                request_timeout=WAIT_S,
            )
            try:
                return {each.partition: told.result().offset for each, told in answers.items()}
            except KafkaException as error:
                if error.args[0].code() in _ON_ITS_WAY:
                    self._admin = None  # it may remember a leader of before
                raise

        with self._faults.told(f"asking where {name} ends"):
            return _once_there(ask)

    def _producing(self) -> dict[str, Any]:
        return {
            **librdkafka(self._kafka),
            "error_cb": self._faults,
            "enable.idempotence": True,  # with acks=all
            "partitioner": "murmur2_random",  # as stream.log.partition_of
            "compression.type": self._kafka.compression,
            "message.max.bytes": self._kafka.max_record_bytes,
            "message.timeout.ms": int(3 * WAIT_S * 1_000),
            "linger.ms": 5,
        }


class _Reader:
    """Reads one topic, of those partitions and from there on where it is asked to."""

    def __init__(self, kafka: KafkaSettings, topic: str, faults: Faults) -> None:
        self._topic, self._name = topic, kafka.topic(topic)
        self._faults = faults
        self._at: Positions = {}  # what the consumer gives next
        self.ended: dict[int, tuple[int, int]] = {}  # partition -> position, end of the log there
        config: dict[str, Any] = librdkafka(kafka)
        self._consumer = Consumer(
            config
            | {
                "error_cb": faults,
                "group.id": kafka.topic("readers"),  # asked for by the library, of no effect
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "auto.offset.reset": "error",
                "enable.partition.eof": True,
                "fetch.queue.backoff.ms": 5,  # a full queue is looked at again at once
                "fetch.error.backoff.ms": 100,
                "fetch.message.max.bytes": max(1 << 20, kafka.max_record_bytes),
            }
        )

    def read(self, positions: Mapping[int, int], limit: int, wait_s: float) -> list[Record]:
        self._faults.check()
        doing = f"reading {self._name}"
        with self._faults.told(doing):
            self._go(positions)
            messages = self._consumer.consume(limit, 0)
            if not any(message.error() is None for message in messages):
                # One at a time, for consume() would wait for all of them.
                message = self._consumer.poll(wait_s)
                if message is not None:
                    messages.append(message)
                    if message.error() is None:
                        messages += self._consumer.consume(limit - 1, 0) if limit > 1 else []
        records: list[Record] = []
        for message in messages:
            number, offset, error = message.partition(), message.offset(), message.error()
            assert number is not None
            assert offset is not None
            if error is None:
                records.append(record_of(message, self._topic))
                self._at[number] = offset + 1
            elif error.code() == KafkaError._PARTITION_EOF:
                self.ended[number] = self._at[number], offset
            else:
                self._consumer.unassign()
                self._at.clear()
                raise self._faults.of(error, f"{doing}, partition {number}")
        return records

    def close(self) -> None:
        self._consumer.close()

    def _go(self, positions: Mapping[int, int]) -> None:
        moved = {number: at for number, at in positions.items() if self._at.get(number, at) != at}
        gone = [number for number in self._at if number not in positions or number in moved]
        come = [number for number in positions if number not in self._at or number in moved]
        if gone:
            self._consumer.incremental_unassign(
                [TopicPartition(self._name, number) for number in gone]
            )
        if come:
            self._consumer.incremental_assign(
                [TopicPartition(self._name, number, positions[number]) for number in come]
            )
            for number in come:
                self.ended.pop(number, None)
        if gone or come:
            self._at = dict(positions)


def ends(consumer: Consumer, partition: TopicPartition) -> tuple[int, int]:
    """Return where a partition begins, and behind its last committed record.

    Raises
    ------
    KafkaException
        If the broker does not tell within :data:`WAIT_S`.

    """
    begin, end = _once_there(lambda: consumer.get_watermark_offsets(partition, WAIT_S))
    return begin, end


def _once_there(ask: Callable[[], _T]) -> _T:
    """Ask again while a topic that was just made, or a broker that came back, is on its way."""
    until_s = time.monotonic() + WAIT_S
    while True:
        try:
            return ask()
        except KafkaException as error:
            if error.args[0].code() not in _ON_ITS_WAY or time.monotonic() > until_s:
                raise
            time.sleep(_ASK_AGAIN_S)


def record_of(message: Message, topic: str) -> Record:
    """Return a message as a record of the log ``topic``.

    Made as the tuple that it is: a third of the time that it takes to go by the fields' names.
    """
    return tuple.__new__(
        Record,
        (
            topic,
            message.partition(),
            message.offset(),
            message.key(),
            message.value() or b"",
            message.timestamp()[1],
            tuple(message.headers() or ()),
        ),
    )
