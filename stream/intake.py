"""One batch of records in; feedback, dead letters, late events, duplicates out; nothing lost."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple
from zlib import crc32

import msgspec
import numpy as np

from stream.errors import BadAccounting, BadEvent, BadSettings
from stream.events import (
    SCHEMA_VERSION,
    DeadLetter,
    Erasure,
    Feedback,
    FeedbackBatch,
    Interaction,
    Retraction,
    decode_interaction,
    encode,
)
from stream.log import Record
from stream.typing_rules import Rule, RuleSet

HOUR_MS = 3_600_000

_canonical = msgspec.msgpack.Encoder(order="deterministic").encode
_NO_RULE = Rule("", "", "none", 0.0)


@dataclass(frozen=True, kw_only=True)
class Accounting:
    """What became of the records that came in.

    Parameters
    ----------
    in_
        Records that came.
    feedback
        Accepted, and one of the four feedback classes, a retraction or an erasure.
    no_signal
        Accepted, and says nothing: kind ``none``.
    duplicate
        Repeats the id of an event that was accepted before.
    late
        Older than the allowed lateness.
    dead
        Can never be processed.
    conflict
        Of the duplicates, those with another content than the newest event of their id.
    retraction, erasure
        Of the feedback, those.

    Examples
    --------
    >>> one = Accounting(in_=3, feedback=2, duplicate=1)
    >>> one.check()
    >>> (one + one).in_
    6
    >>> Accounting(in_=3, feedback=2).check()
    Traceback (most recent call last):
        ...
    stream.errors.BadAccounting: 3 records came in, 2 are accounted for: feedback 2, no_signal 0, \
duplicate 0, late 0, dead 0

    """

    in_: int = 0
    feedback: int = 0
    no_signal: int = 0
    duplicate: int = 0
    late: int = 0
    dead: int = 0
    conflict: int = 0
    retraction: int = 0
    erasure: int = 0

    def __add__(self, other: Accounting) -> Accounting:
        """Return the counts of both."""
        return Accounting(
            **{
                each.name: getattr(self, each.name) + getattr(other, each.name)
                for each in fields(self)
            }
        )

    def check(self) -> None:
        """Make sure that every record is accounted for, once.

        Raises
        ------
        BadAccounting
            If not.

        """
        names = ("feedback", "no_signal", "duplicate", "late", "dead")
        if (told := sum(getattr(self, name) for name in names)) != self.in_:
            counts = ", ".join(f"{name} {getattr(self, name)}" for name in names)
            raise BadAccounting(f"{self.in_} records came in, {told} are accounted for: {counts}")


class IntakeResult(NamedTuple):
    """What became of one batch of records."""

    feedback: list[Feedback | Erasure]
    """What goes to the topic ``feedback``, in order of arrival."""
    origins: list[Record]
    """What each of it came from."""
    dead: list[DeadLetter]
    """What goes to ``interactions.dead``."""
    late: list[Record]
    """What goes to ``interactions.late``, as it came."""
    accounting: Accounting
    """Of this batch."""

    def batch(self) -> FeedbackBatch:
        """Return the accepted events as columns, in order of arrival; erasures are none."""
        return FeedbackBatch.from_feedback(
            [event for event in self.feedback if isinstance(event, Feedback)]
        )

    def entries(self) -> list[tuple[bytes | None, bytes]]:
        """Return what to append to the topic ``feedback``: key (the user) and value."""
        return [
            (origin.key, encode(event))
            for origin, event in zip(self.origins, self.feedback, strict=True)
        ]


_CHUNK = 4_096  # offsets
_QUOTED = 500  # characters of what a dead letter says about its record


class _Window:
    """What one partition remembers: how far time has come, and which events it has seen."""

    def __init__(self) -> None:
        self.watermark_ms = 0
        self.swept_ms = 0
        # id -> time and digest of the content, of the newest event of that id
        self.seen: dict[str, tuple[int, int]] = {}
        # Where each few thousand of the seen records begin, and the newest time among them.
        self.chunks: deque[list[int]] = deque()

    def since(self, horizon_ms: int) -> dict[str, tuple[int, int]]:
        return {name: seen for name, seen in self.seen.items() if seen[0] >= horizon_ms}

    def begin(self, offset: int) -> None:
        """Note that a batch begins at ``offset``."""
        if not self.chunks or offset - self.chunks[-1][0] >= _CHUNK:
            self.chunks.append([offset, 0])

    def see(self, event: Interaction | Retraction, digest: int) -> None:
        """Remember an event that is not late, accepted or not."""
        event_id, ts_ms = event.event_id, event.ts_ms
        known = self.seen.get(event_id)
        if known is None or ts_ms > known[0]:
            self.seen[event_id] = ts_ms, digest
        newest = self.chunks[-1]
        if ts_ms > newest[1]:  # noqa: PLR1730 - max() takes five times as long
            newest[1] = ts_ms


class Intake:
    """Decides what becomes of every record: decode, validate, late, duplicate, type.

    Parameters
    ----------
    rules
        What types the events.
    lateness_ms
        How far an event may lie behind the newest one accepted from its partition (the watermark).
        An event id is remembered for the same span of event time, counted from the newest time
        that it came with.
    max_future_ms
        How far an event may lie ahead of its record's time stamp; without it, a single event from a
        clock that runs ahead makes everything after it late.

    Raises
    ------
    BadSettings
        If a span is negative.

    Notes
    -----
    No clock and no I/O: the same records in the same order give the same decisions, in whatever
    batches they come, and also after :meth:`restore` of an earlier :meth:`state`. What is
    remembered follows from the watermark and the records not older than the lateness, whatever came
    before them; so it can be had again by reading these records: see :meth:`remember`. Memory is
    that of the ids seen within five quarters of the lateness, about 250 bytes each.

    Examples
    --------
    >>> from stream.typing_rules import load_rules
    >>> intake = Intake(load_rules("kuairand"))
    >>> value = b'''{"v":1,"event_id":"e1","user_id":712,"item_id":5239,"ts_ms":1650812741436,
    ...              "signals":{"click":1}}'''
    >>> record = Record("interactions", 0, 0, b"712", value, 1650812741500)
    >>> result = intake.take([record, record])
    >>> [(event.user_id, event.kind, event.rule) for event in result.feedback]
    [('712', 'implicit_positive', 'watched')]
    >>> intake.accounting.in_, intake.accounting.duplicate
    (2, 1)

    """

    def __init__(
        self, rules: RuleSet, *, lateness_ms: int = HOUR_MS, max_future_ms: int | None = None
    ) -> None:
        for name, span in (("lateness_ms", lateness_ms), ("max_future_ms", max_future_ms or 0)):
            if span < 0:
                raise BadSettings(f"want {name} to be 0 or more, got {span}")
        self.rules = rules
        self.lateness_ms = lateness_ms
        self.max_future_ms = max_future_ms
        self.accounting = Accounting()
        self._windows: dict[int, _Window] = {}

    def watermark_ms(self, partition: int) -> int | None:
        """Return the time of the newest event accepted from a partition."""
        window = self._windows.get(partition)
        return None if window is None else window.watermark_ms

    def take(self, records: Sequence[Record]) -> IntakeResult:
        """Decide about a batch of records, in their order.

        Raises
        ------
        BadAccounting
            If not every record is accounted for, which would be a defect of ours.

        """
        accepted: list[Interaction | Retraction | Erasure] = []
        origins: list[Record] = []
        dead: list[DeadLetter] = []
        late: list[Record] = []
        duplicate = conflict = retraction = erasure = 0
        window, partition = _Window(), -1
        for record in records:
            try:
                event = self._read(record)
            except BadEvent as fault:
                dead.append(_dead_letter(record, fault))
                continue
            if isinstance(event, Erasure):
                erasure += 1
                accepted.append(event)
                origins.append(record)
                continue
            if record.partition != partition:
                window, partition = self._window(record.partition), record.partition
                window.begin(record.offset)
            ts_ms = event.ts_ms
            horizon_ms = window.watermark_ms - self.lateness_ms
            if ts_ms < horizon_ms:
                late.append(record)
                continue
            digest = _digest(event)
            known = window.seen.get(event.event_id)
            if known is not None and known[0] >= horizon_ms:
                duplicate += 1
                conflict += known[1] != digest
            else:
                retraction += isinstance(event, Retraction)
                accepted.append(event)
                origins.append(record)
                if ts_ms > window.watermark_ms:  # noqa: PLR1730 - the same
                    window.watermark_ms = ts_ms
            window.see(event, digest)
        self._forget()
        feedback, no_signal = self._type(accepted)
        accounting = Accounting(
            in_=len(records),
            feedback=len(feedback) - no_signal,
            no_signal=no_signal,
            duplicate=duplicate,
            late=len(late),
            dead=len(dead),
            conflict=conflict,
            retraction=retraction,
            erasure=erasure,
        )
        accounting.check()
        self.accounting += accounting
        return IntakeResult(feedback, origins, dead, late, accounting)

    def remember(self, partition: int, watermark_ms: int, records: Sequence[Record]) -> None:
        """Have a partition's window again: the watermark, and what was seen up to it.

        Afterwards the partition is decided about as by whoever read it until then; the accounting
        stays as it is.

        Parameters
        ----------
        partition
            Of which nothing was taken yet.
        watermark_ms
            As it was behind the last of all ``records``.
        records
            From :meth:`first_offset`, as it was then, on; in as many calls as wanted.

        """
        window = self._window(partition)
        window.watermark_ms = window.swept_ms = watermark_ms
        for record in records:
            try:
                event = self._read(record)
            except BadEvent:
                continue
            if not isinstance(event, Erasure) and event.ts_ms >= watermark_ms - self.lateness_ms:
                window.begin(record.offset)
                window.see(event, _digest(event))

    def first_offset(self, partition: int) -> int | None:
        """Return where to read from to :meth:`remember` a partition.

        ``None`` if there is nothing to remember. Some thousand records too many may be among what
        is read from there, and none too few.
        """
        window = self._window(partition)
        horizon_ms = window.watermark_ms - self.lateness_ms
        while window.chunks and window.chunks[0][1] < horizon_ms:
            window.chunks.popleft()
        return window.chunks[0][0] if window.chunks else None

    def state(self) -> dict[str, Any]:
        """Return all that later decisions depend on, and the accounting, in a fixed order."""
        partitions = {}
        for partition, window in self._windows.items():
            live = dict(sorted(window.since(window.watermark_ms - self.lateness_ms).items()))
            partitions[str(partition)] = {
                "watermark_ms": window.watermark_ms,
                "event_id": list(live),
                "ts_ms": np.array([ts_ms for ts_ms, _ in live.values()], np.int64),
                "digest": np.array([digest for _, digest in live.values()], np.uint32),
            }
        return {"partitions": partitions, "accounting": asdict(self.accounting)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state` returned: decide as the undisturbed run would."""
        self.accounting = Accounting(**state["accounting"])
        self._windows = {}
        for partition, kept in state["partitions"].items():
            window = self._windows[int(partition)] = _Window()
            window.watermark_ms = window.swept_ms = kept["watermark_ms"]
            seen = zip(kept["ts_ms"].tolist(), kept["digest"].tolist(), strict=True)
            window.seen = dict(zip(kept["event_id"], seen, strict=True))
            window.chunks.append([0, max(kept["ts_ms"].tolist(), default=0)])  # somewhere before

    def _window(self, partition: int) -> _Window:
        window = self._windows.get(partition)
        if window is None:
            window = self._windows[partition] = _Window()
        return window

    def _read(self, record: Record) -> Interaction | Retraction | Erasure:
        event = decode_interaction(record.value)
        if isinstance(event, Erasure):
            if record.key != event.erase_user.encode():
                raise _wrong_key(record, event.erase_user, "$.erase_user")
            return event
        if record.key != event.user_id.encode():
            raise _wrong_key(record, event.user_id, "$.user_id")
        if self.max_future_ms is not None:
            ahead_ms = event.ts_ms - record.timestamp_ms
            if ahead_ms > self.max_future_ms:
                reason = f"invalid: want at most {self.max_future_ms} ms ahead of the record"
                raise BadEvent(f"{reason}, got {ahead_ms} ms", "$.ts_ms")
        return event

    def _type(
        self, events: Sequence[Interaction | Retraction | Erasure]
    ) -> tuple[list[Feedback | Erasure], int]:
        """Return what each event means, and how many mean nothing."""
        signals = [event.signals for event in events if isinstance(event, Interaction)]
        fired = self.rules.classify_mappings(signals).rule.tolist()
        places = iter(fired)
        rules = (*self.rules.rules, _NO_RULE)  # -1 takes the last
        version = self.rules.version
        feedback: list[Feedback | Erasure] = []
        for event in events:
            if isinstance(event, Interaction):
                rule = rules[next(places)]
                feedback.append(
                    Feedback(
                        SCHEMA_VERSION,
                        event.event_id,
                        event.user_id,
                        event.item_id,
                        event.ts_ms,
                        rule.kind,
                        rule.weight,
                        rule.name,
                        version if rule.name else "",
                        event.signals,
                        event.context,
                        event.request_id,
                    )
                )
            elif isinstance(event, Retraction):
                feedback.append(
                    Feedback(
                        SCHEMA_VERSION,
                        event.event_id,
                        event.user_id,
                        event.item_id,
                        event.ts_ms,
                        "retraction",
                        0.0,
                        retracts=event.retracts,
                        target_ts_ms=event.target_ts_ms,
                    )
                )
            else:
                feedback.append(event)
        return feedback, fired.count(-1)

    def _forget(self) -> None:
        """Drop ids older than the lateness; now and then, as each time every id is looked at."""
        for window in self._windows.values():
            if window.watermark_ms - window.swept_ms > self.lateness_ms // 4:
                window.seen = window.since(window.watermark_ms - self.lateness_ms)
                window.swept_ms = window.watermark_ms


def _wrong_key(record: Record, user_id: str, where: str) -> BadEvent:
    came = "none" if record.key is None else record.key.decode(errors="backslashreplace")
    reason = f"key: want the record's key to be the user, {user_id}, got {came}"
    return BadEvent(reason, where)


def _dead_letter(record: Record, fault: BadEvent) -> DeadLetter:
    """Return a record with its fault, whose words may quote it at any length."""
    said = fault.reason[:_QUOTED], fault.where[:_QUOTED]
    return DeadLetter(record.value, *said, record.topic, record.partition, record.offset)


def _digest(event: Interaction | Retraction) -> int:
    """Return 32 bits of the content, the same however the JSON was written; for counting only.

    MessagePack, because it copies numbers where JSON has to write out their digits.
    """
    return crc32(_canonical(event))
