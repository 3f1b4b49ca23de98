"""A plain faust agent that does what the stream worker does, as a program: the bench's peer.

It decodes, refuses late and repeated events, types and sends, event by event; without transactions,
so that a crash may lose or repeat some. Prints one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import suppress
from typing import Any

import faust

from replay.bench.measure import peak_rss_mb
from stream.errors import BadEvent
from stream.events import SCHEMA_VERSION, Feedback, Interaction, Label, decode_interaction, encode
from stream.settings import Settings, load_settings

_ENDORSED = ("like", "follow", "forward", "comment")


def classify(signals: dict[str, float]) -> tuple[Label, float, str]:
    """Return what KuaiRand's rules say, written out as one would by hand for single events.

    Examples
    --------
    >>> classify({"click": 1.0})
    ('implicit_positive', 0.5, 'watched')

    """
    if signals.get("hate", 0.0) > 0:
        return "explicit_negative", 1.0, "hate"
    if any(signals.get(name, 0.0) > 0 for name in _ENDORSED):
        return "explicit_positive", 1.0, "endorsed"
    if signals.get("click", 0.0) > 0 or signals.get("long_view", 0.0) > 0:
        return "implicit_positive", 0.5, "watched"
    return "implicit_negative", 0.1, "skipped"


class Typing:
    """What becomes of one event after the other."""

    def __init__(self, lateness_ms: int) -> None:
        self._lateness_ms = lateness_ms
        self._watermark_ms: dict[int, int] = {}
        self._accepted: set[str] = set()  # never forgets: that is the cheapest
        self.counts = dict.fromkeys(("in", "feedback", "duplicate", "late", "dead"), 0)

    def take(self, partition: int, value: bytes) -> bytes | None:
        """Return the record of feedback, if there is one."""
        self.counts["in"] += 1
        try:
            event = decode_interaction(value)
        except BadEvent:
            self.counts["dead"] += 1
            return None
        assert isinstance(event, Interaction)
        watermark_ms = self._watermark_ms.get(partition, 0)
        if event.ts_ms < watermark_ms - self._lateness_ms:
            self.counts["late"] += 1
            return None
        if event.event_id in self._accepted:
            self.counts["duplicate"] += 1
            return None
        self._accepted.add(event.event_id)
        self._watermark_ms[partition] = max(watermark_ms, event.ts_ms)
        self.counts["feedback"] += 1
        return encode(
            Feedback(
                SCHEMA_VERSION,
                event.event_id,
                event.user_id,
                event.item_id,
                event.ts_ms,
                *classify(event.signals),
                "kuairand-1",
                event.signals,
                event.context,
                event.request_id,
            )
        )


async def run(settings: Settings, *, n_events: int, limit_s: float) -> dict[str, Any]:
    """Process so many events, or as many as the time allows; the clock starts at the first."""
    kafka = settings.kafka
    app = faust.App(
        kafka.topic(f"faust-{time.time_ns()}"),
        broker=[f"kafka://{server}" for server in kafka.servers],
        store="memory://",
        web_enabled=False,
        topic_disable_leader=True,
        producer_linger=0.005,  # as ours
        producer_compression_type=None if kafka.compression == "none" else kafka.compression,
    )
    interactions, feedback = (
        app.topic(kafka.topic(name), key_serializer="raw", value_serializer="raw")
        for name in ("interactions", "feedback")
    )
    typing = Typing(int(settings.stream.lateness_s * 1_000))
    done = asyncio.Event()
    began: list[float] = []

    async def typed(stream: Any) -> None:
        async for event in stream.events():
            if not began:
                began.extend((time.perf_counter(), time.process_time()))
            if typing.counts["in"] >= n_events:
                continue
            value = typing.take(event.message.partition, event.value)
            if value is not None:
                await feedback.send(key=event.key, value=value)
            if typing.counts["in"] >= n_events:
                done.set()

    app.agent(interactions)(typed)
    await app.start()
    with suppress(TimeoutError):  # what was done until then is measured
        await asyncio.wait_for(done.wait(), limit_s)
    await app.producer.flush()
    wall_s, cpu_s = time.perf_counter() - began[0], time.process_time() - began[1]
    n = typing.counts["in"]
    await app.stop()
    return {
        "events_per_s": round(n / wall_s),
        "cpu_us_per_event": round(cpu_s / n * 1e6, 3),
        "peak_rss_mb": peak_rss_mb(),
        "accounting": typing.counts,
    }


if __name__ == "__main__":
    told = asyncio.run(run(load_settings(), n_events=int(sys.argv[1]), limit_s=float(sys.argv[2])))
    sys.stdout.write(json.dumps(told) + "\n")
