"""Where the accepted events of a replay come from; here, from a log in the same process."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any, NamedTuple, Protocol

from replay.config import ReplayConfig
from replay.datasets import Chunk
from replay.player import play
from stream.events import DeadLetter, FeedbackBatch, read_feedback
from stream.intake import Accounting, Intake
from stream.log import MemoryLog, Record, advance


class Arrived(NamedTuple):
    """What came of the log since the last time; any part of it may be empty."""

    batch: FeedbackBatch
    """Accepted events."""
    dead: list[DeadLetter]
    """What can never be processed, lines that could not become events included."""
    late: list[Record]
    """What came too late, as it came."""
    appended: list[tuple[float, int]]
    """When the events were appended, seconds of the wall clock, and how many each time."""


class Source(Protocol):
    """Plays the log of a replay and gives what was accepted of it, with account of every line.

    The two differ in the log that lies between: one in memory with an intake beside it, or a broker
    with stream workers behind it.
    """

    resumable: bool
    """Whether :meth:`state` is all that a restart needs."""
    sent: int
    """Events of the data set played so far."""
    notes: list[str]
    """What a reader of the report has to know."""

    def batches(self) -> Iterator[Arrived]:
        """Play to the end, giving what arrives as it arrives."""
        ...

    def accounting(self) -> dict[str, int]:
        """Return what became of every line, by the names of the report."""
        ...

    def state(self) -> dict[str, Any]:
        """Return all that a restart needs."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Become what :meth:`state` described; :meth:`batches` goes on from there."""
        ...


class MemorySource:
    """The stream side in this process: a log in memory, and an intake that reads it.

    Parameters
    ----------
    config
        What is replayed.

    """

    resumable = True

    def __init__(self, config: ReplayConfig) -> None:
        self._config = config
        self.intake = Intake(config.rules, lateness_ms=config.lateness_ms)
        self.sent = 0
        self.notes: list[str] = []
        self._unreadable = 0  # lines of the data set that could not become events

    def batches(self) -> Iterator[Arrived]:
        """Play to the end, each batch of records at once followed by what was accepted of it."""
        log = MemoryLog()
        positions = {"interactions": {0: 0}, "feedback": {0: 0}}
        chunks = _skipped(self._config.chunks(), self.sent, self._unreadable)
        before = self.sent
        for progress in play(chunks, log, speed=self._config.speed):
            records = log.read("interactions", positions["interactions"], limit=1 << 30)
            positions["interactions"] = advance(positions["interactions"], records)
            if before:  # resumed: a dead letter names its offset in the whole log
                records = [record._replace(offset=before + record.offset) for record in records]
            result = self.intake.take(records)
            log.append("feedback", result.entries(), timestamp_ms=progress.ts_ms)
            accepted = log.read("feedback", positions["feedback"], limit=1 << 30)
            positions["feedback"] = advance(positions["feedback"], accepted)
            for topic, position in positions.items():
                log.trim(topic, position)
            batch, _ = read_feedback([record.value for record in accepted])
            self.sent = before + progress.sent
            self._unreadable += len(progress.dead)
            dead = [*progress.dead, *result.dead]
            yield Arrived(batch, dead, result.late, [(time.time(), len(batch))])

    def accounting(self) -> dict[str, int]:
        """Return what became of every line, by the names of the report."""
        return told(self.intake.accounting, self._unreadable)

    def state(self) -> dict[str, Any]:
        """Return all that a restart needs."""
        return {
            "intake": self.intake.state(),
            "sent": self.sent,
            "unreadable": self._unreadable,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Become what :meth:`state` described; :meth:`batches` goes on from there."""
        self.intake.restore(state["intake"])
        self.sent, self._unreadable = state["sent"], state["unreadable"]


def told(accounting: Accounting, unreadable: int) -> dict[str, int]:
    """Return an accounting by the names of the report, with lines that never became events.

    Examples
    --------
    >>> counts = told(Accounting(in_=2, feedback=2), 1)
    >>> counts["in"], counts["feedback"], counts["dead"]
    (3, 2, 1)

    """
    counts = asdict(accounting)
    counts["in"] = counts.pop("in_") + unreadable
    counts["dead"] += unreadable
    return counts


def _skipped(chunks: Iterator[Chunk], events: int, dead: int) -> Iterator[Chunk]:
    """Leave out the events and the dead lines that were dealt with before."""
    for chunk in chunks:
        known, buried = min(events, chunk.frame.height), min(dead, len(chunk.dead))
        events, dead = events - known, dead - buried
        rest = Chunk(chunk.frame[known:], chunk.dead[buried:])
        if rest.frame.height or rest.dead:
            yield rest
