"""Writing to the log from the API: entries go in together, and each is told what became of it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Final, Protocol

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, KafkaTimeoutError, MessageSizeTooLargeError

from stream.errors import TidegraphError
from stream.kafka import aiokafka, ask
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
_GATHER_S: Final = 0.001  # how long others are waited for who are likely to come
_USUAL_S: Final = 0.2  # in which a broker answers; then the next request need not wait for it
_ASK_S: Final = 1.0  # for which the broker is asked what is wrong
_RETRY_S: Final = 0.1  # between two attempts to reach a broker that is not there yet

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
    What waits goes to the broker together, a request after the other: a request costs the broker
    and this process much more than an entry in it. Clients who have their answer are likely to send
    again at once. So after each request as many appends are waited for as it has ended, a
    millisecond at most. To each partition goes one request at a time, which keeps the entries of a
    key in their order also where some are sent again.

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
        self._held: tuple[int, int] = 0, 0  # entries and bytes that are not told of yet
        self._waiting: list[_Append] = []
        self._expected = 1  # appends to wait for before they are sent
        self._timer: asyncio.TimerHandle | None = None  # after which no more are waited for
        self._sending: asyncio.Task[None] | None = None
        self._producer: AIOKafkaProducer | None = None
        self._asking: asyncio.Future[None] | None = None

    async def append(self, topic: str, entries: Sequence[Entry]) -> list[str]:
        """Append, and return when the broker has each entry or will not get it."""
        if not entries:
            return []
        size = len(entries), sum(len(key or b"") + len(value or b"") for key, value in entries)
        n, n_bytes = self._held
        if n and (n + size[0] > self._limits[0] or n_bytes + size[1] > self._limits[1]):
            busy = f"busy: {n:,} entries wait for the log already; send this again later"
            return [busy] * size[0]
        self._held = n + size[0], n_bytes + size[1]
        append = _Append(topic, entries)
        late = append.done.get_loop().call_later(self._delivery_s, append.give_up)
        self._waiting.append(append)
        self._send_soon()
        try:
            await append.done
        finally:
            late.cancel()
            n, n_bytes = self._held
            self._held = n - size[0], n_bytes - size[1]
        return self._told(append) if append.errors else [""] * size[0]

    async def close(self) -> None:
        """Let go of the broker, when what waits is stored or given up."""
        while self._waiting or self._sending is not None:
            self._send_now()
            if self._sending is not None:
                await self._sending
        if self._producer is not None:
            producer, self._producer = self._producer, None
            await producer.stop()
        if self._asking is not None:
            await self._asking

    def _send_soon(self) -> None:
        """Send what waits once all are there who are expected, unless a request is under way."""
        if len(self._waiting) >= self._expected:
            self._send_now()
        elif self._timer is None and self._sending is None:
            self._timer = asyncio.get_running_loop().call_later(_GATHER_S, self._send_now)

    def _send_now(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting and self._sending is None:
            self._sending = asyncio.get_running_loop().create_task(self._send())

    async def _send(self) -> None:
        """Send what waits; return when it is answered, or takes longer than usual."""
        sent, self._waiting = self._waiting, []
        sent = [append for append in sent if not append.done.done()]  # the others were given up
        try:
            send = (self._producer or await self._connect()).send
            given = 0
            for append in sent:
                name = self._kafka.topic(append.topic)
                for place, (key, value) in enumerate(append.entries):
                    try:
                        stored = await send(name, value, key)
                    except MessageSizeTooLargeError as error:
                        append.told(place, error)
                    else:
                        stored.add_done_callback(partial(append.answered, place))
                    given += 1
                    if given % _AT_ONCE == 0:
                        await asyncio.sleep(0)
            if sent:
                await asyncio.wait([append.done for append in sent], timeout=_USUAL_S)
        except (KafkaError, TidegraphError) as error:
            for append in sent:
                append.lose(error)
        finally:
            self._sending = None
            self._expected = len(sent) + len(self._waiting)
            if self._waiting:
                self._send_soon()

    async def _connect(self) -> AIOKafkaProducer:
        """Connect; a broker that is not there yet is tried for a while.

        Raises
        ------
        KafkaError
            If it is not there by then.
        BadSettings
            If the files for TLS cannot be used.

        """
        until_s = time.monotonic() + self._delivery_s
        while True:
            producer = AIOKafkaProducer(**self._producing())
            try:
                await producer.start()
            except KafkaError:
                await producer.stop()
                if time.monotonic() + _RETRY_S >= until_s:
                    raise
                await asyncio.sleep(_RETRY_S)
            else:
                self._producer = producer
                return producer

    def _told(self, append: _Append) -> list[str]:
        """Return what became of each entry; the broker's own words are for our log alone."""
        texts = [""] * len(append.entries)
        lost = None
        for place, error in append.errors.items():
            if isinstance(error, MessageSizeTooLargeError):
                texts[place] = _too_large(self._kafka.max_record_bytes, *append.entries[place])
            else:
                texts[place] = f"unavailable: the log did not take it within {self._delivery_s:g} s"
                lost = error
        if lost is not None and (self._asking is None or self._asking.done()):
            asking = partial(_tell_why, self._kafka, append.topic, lost)
            self._asking = asyncio.get_running_loop().run_in_executor(None, asking)
        return texts

    def _producing(self) -> dict[str, Any]:
        kafka = self._kafka
        return {
            **aiokafka(kafka),
            "acks": "all",
            "compression_type": None if kafka.compression == "none" else kafka.compression,
            "max_request_size": kafka.max_record_bytes,
            "max_batch_size": kafka.max_record_bytes,
            "request_timeout_ms": round(self._delivery_s * 1_000),  # a batch is tried for as long
            "retry_backoff_ms": 50,
        }


def _tell_why(kafka: KafkaSettings, topic: str, lost: BaseException) -> None:
    """Write down for the operator why entries were not stored; asks the broker, so in a thread."""
    doing = f"appending to {topic}"
    try:
        ask(kafka, doing, kafka.topic(topic), within_s=_ASK_S)
    except TidegraphError as error:
        _log.warning("%s", error)
    else:
        _log.warning("kafka: %s: %r; the broker answers now", doing, lost)


class _Append:
    """Entries that are appended together, and what is known of them."""

    def __init__(self, topic: str, entries: Sequence[Entry]) -> None:
        self.topic = topic
        self.entries = entries
        self.errors: dict[int, BaseException] = {}
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._left = set(range(len(entries)))

    def answered(self, place: int, stored: asyncio.Future[Any]) -> None:
        """Note what the client says of one entry."""
        self.told(place, KafkaTimeoutError() if stored.cancelled() else stored.exception())

    def told(self, place: int, error: BaseException | None) -> None:
        """Note what became of one entry."""
        if error is not None and not self.done.done():
            self.errors.setdefault(place, error)
        self._left.discard(place)
        if not self._left and not self.done.done():  # else whoever waited has left
            self.done.set_result(None)

    def lose(self, error: BaseException) -> None:
        """Note why nothing more will be known of the entries that nothing is known of."""
        for place in tuple(self._left):
            self.told(place, error)

    def give_up(self) -> None:
        """Wait no longer: what the broker has not acknowledged by now counts as lost."""
        self.lose(KafkaTimeoutError())


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


def _too_large(limit: int, key: bytes | None, value: bytes | None) -> str:
    came = len(key or b"") + len(value or b"")
    return f"{TOO_LARGE}: want a record of at most {limit} bytes with its key, got {came}"
