"""Writing to the log from the API: entries go in together, and each is told what became of it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, Protocol

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from stream.kafka import Faults, librdkafka
from stream.log import MemoryLog
from stream.settings import KafkaSettings

Entry = tuple[bytes | None, bytes | None]
"""Key and value; no value is a tombstone: it deletes its key from a compacted topic."""

TOO_LARGE: Final = "too large"
"""How the text about an entry begins that the log will never take; any other may be sent again."""

DELIVERY_S: Final = 5.0
"""How long an entry is tried; a broker that restarts faster is not noticed."""

MAX_WAITING: Final = 100_000
MAX_WAITING_BYTES: Final = 64 * 1_048_576
"""What may wait for the broker; an append that goes beyond is refused as a whole."""

_AT_ONCE: Final = 500  # entries given to the client before other requests have their turn
_POLL_S: Final = 0.001  # between two looks at what was acknowledged, while something waits

_log = logging.getLogger("tidegraph.serving")


class Sink(Protocol):
    """Where the API writes."""

    async def append(self, topic: str, entries: Sequence[Entry]) -> list[str]:
        """Append, and return when the log has each entry or will not get it.

        One text per entry: empty where it is stored; else why it is not. Entries of one key are
        stored in their order.
        """
        ...

    async def close(self) -> None:
        """Let go of the log, when what waits is stored or given up."""
        ...


class KafkaSink:
    """A :class:`Sink` over a broker, for one event loop.

    Parameters
    ----------
    kafka
        Where the broker is; its prefix is put before the name of each topic.
    delivery_s
        How long an entry is tried before it counts as not stored. The log may have it nevertheless,
        if only the broker's word was lost: to send an event again under its id does no harm.
    max_waiting, max_waiting_bytes
        What may wait for the broker.

    Notes
    -----
    The client sends from threads of its own. What was acknowledged is asked for by a timer of the
    loop, only while something waits: a thread that waits for it would make the loop wait for the
    interpreter instead.

    """

    def __init__(
        self,
        kafka: KafkaSettings,
        *,
        delivery_s: float = DELIVERY_S,
        max_waiting: int = MAX_WAITING,
        max_waiting_bytes: int = MAX_WAITING_BYTES,
    ) -> None:
        self._kafka = kafka
        self._delivery_s = delivery_s
        self._limits = max_waiting, max_waiting_bytes
        self._faults = Faults(kafka)
        self._producer: Producer | None = None  # begun when it is needed: a fork would lose it
        self._waiting: tuple[int, int] = 0, 0  # entries, bytes
        self._polling = False

    async def append(self, topic: str, entries: Sequence[Entry]) -> list[str]:
        """Append, and return when the broker has each entry or will not get it."""
        size = len(entries), sum(len(key or b"") + len(value or b"") for key, value in entries)
        n, n_bytes = self._waiting
        if n and (n + size[0] > self._limits[0] or n_bytes + size[1] > self._limits[1]):
            return [f"busy: {n:,} entries wait for the log already; send this again later"] * size[
                0
            ]
        self._waiting = n + size[0], n_bytes + size[1]
        append = _Append(size[0], partial(self._release, size))
        await self._produce(self._kafka.topic(topic), entries, append)
        if not self._polling:
            self._polling = True
            self._poll(asyncio.get_running_loop())
        if append.left:
            await append.done
        return self._told(append, topic, entries)

    async def close(self) -> None:
        """Let go of the broker, when what waits is stored or given up."""
        while self._waiting[0]:  # noqa: ASYNC110 - the loop looks every millisecond anyway
            await asyncio.sleep(_POLL_S)
        self._producer = None

    async def _produce(self, name: str, entries: Sequence[Entry], append: _Append) -> None:
        if self._producer is None:
            self._producer = Producer(self._producing())
        produce = self._producer.produce
        for place, (key, value) in enumerate(entries):
            try:
                produce(name, value, key, on_delivery=partial(append.told, place))
            except KafkaException as error:
                append.told(place, error.args[0])
            except BufferError:  # the client's own limit of bytes, far beyond ours
                append.told(place, KafkaError(KafkaError._QUEUE_FULL))
            if place % _AT_ONCE == _AT_ONCE - 1:
                await asyncio.sleep(0)

    def _poll(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take what was acknowledged, and look again as long as something waits."""
        assert self._producer is not None  # something waits
        self._producer.poll(0)
        self._polling = self._waiting[0] > 0
        if self._polling:
            loop.call_later(_POLL_S, self._poll, loop)

    def _release(self, size: tuple[int, int]) -> None:
        n, n_bytes = self._waiting
        self._waiting = n - size[0], n_bytes - size[1]

    def _told(self, append: _Append, topic: str, entries: Sequence[Entry]) -> list[str]:
        """Return what became of each entry; the broker's own words are for our log alone."""
        texts = [""] * len(entries)
        for place, error in append.errors.items():
            if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
                key, value = entries[place]
                texts[place] = _too_large(self._kafka.max_record_bytes, key, value)
            else:
                texts[place] = f"unavailable: the log did not take it within {self._delivery_s:g} s"
        lost = [error for error in append.errors.values() if not _is_size(error)]
        if lost:
            _log.warning("%s", self._faults.of(lost[0], f"appending {len(lost)} to {topic}"))
        return texts

    def _producing(self) -> dict[str, Any]:
        delivery_ms = int(self._delivery_s * 1_000)
        return {
            **librdkafka(self._kafka),
            "error_cb": self._faults,
            "enable.idempotence": True,  # with acks=all
            "partitioner": "murmur2_random",  # as stream.log.partition_of
            "compression.type": self._kafka.compression,
            "message.max.bytes": self._kafka.max_record_bytes,
            "message.timeout.ms": delivery_ms,
            "topic.metadata.propagation.max.ms": delivery_ms // 3,  # then a missing one is told
            "linger.ms": 0.5,
        }


class _Append:
    """Entries that were appended together, and what is known of them."""

    def __init__(self, n: int, release: Callable[[], None]) -> None:
        self.left = n
        self.errors: dict[int, KafkaError] = {}
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._release = release
        if not n:
            release()

    def told(self, place: int, error: KafkaError | None, _: Message | None = None) -> None:
        """Note what became of one entry."""
        if error is not None:
            self.errors[place] = error
        self.left -= 1
        if not self.left:
            self._release()
            if not self.done.done():  # else whoever waited has left
                self.done.set_result(None)


class LogSink:
    """A :class:`Sink` in this process.

    Parameters
    ----------
    log
        Takes an empty value for a tombstone, as a reader of the broker sees it.
    max_record_bytes
        Greatest record.

    Examples
    --------
    >>> log = MemoryLog()
    >>> asyncio.run(LogSink(log).append("interactions", [(b"712", b"{}")]))
    ['']
    >>> log.end("interactions")
    {0: 1}

    """

    def __init__(
        self, log: MemoryLog, *, max_record_bytes: int = KafkaSettings().max_record_bytes
    ) -> None:
        self._log = log
        self._max_record_bytes = max_record_bytes

    async def append(self, topic: str, entries: Sequence[Entry]) -> list[str]:
        """Append at once."""
        texts = [
            ""
            if len(key or b"") + len(value or b"") <= self._max_record_bytes
            else _too_large(self._max_record_bytes, key, value)
            for key, value in entries
        ]
        stored = [
            (key, value or b"")
            for (key, value), text in zip(entries, texts, strict=True)
            if not text
        ]
        self._log.append(topic, stored, timestamp_ms=time.time_ns() // 1_000_000)
        return texts

    async def close(self) -> None:
        """Do nothing: there is nothing to let go of."""


def _is_size(error: KafkaError) -> bool:
    return error.code() == KafkaError.MSG_SIZE_TOO_LARGE


def _too_large(limit: int, key: bytes | None, value: bytes | None) -> str:
    came = len(key or b"") + len(value or b"")
    return f"{TOO_LARGE}: want a record of at most {limit} bytes with its key, got {came}"
