"""Records of several partitions as rows, and those rows as one stream by event time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from stream.errors import BadEvent
from stream.events import Erasure, Feedback, FeedbackBatch, decode_feedback
from stream.log import Record
from stream.retyping import retyped
from stream.typing_rules import RuleSet

EVENT, ERASURE, UNREADABLE = range(3)
"""What a row is. The last two hold their place in the order; their columns say nothing."""

_FILLER: Final = Feedback(1, "", "", "", 0, "none", 0.0)


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Records of the topic ``feedback``, ``n`` of them: what they say, whence and when they came.

    Parameters
    ----------
    batch
        The events; a row that is none has the time 0, and an erasure its user.
    what
        :data:`EVENT`, :data:`ERASURE` or :data:`UNREADABLE`, ``(n,)``.
    partition, offset
        Where each record lies, ``(n,)``.
    stamps_ms
        When each was appended to the log, typed and read, ``(n, 3)``.

    """

    batch: FeedbackBatch
    what: NDArray[np.int8]
    partition: NDArray[np.int64]
    offset: NDArray[np.int64]
    stamps_ms: NDArray[np.int64]

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.offset)

    def take(self, indices: NDArray[np.int64]) -> Rows:
        """Return the rows at ``indices``, in that order."""
        return Rows(
            self.batch.take(indices),
            self.what[indices],
            self.partition[indices],
            self.offset[indices],
            self.stamps_ms[indices],
        )

    @classmethod
    def concat(cls, parts: Sequence[Rows]) -> Self:
        """Return the rows of all parts, one part after the other."""
        nothing = np.empty(0, np.int64)
        return cls(
            FeedbackBatch.concat([part.batch for part in parts]),
            np.concatenate([np.empty(0, np.int8), *(part.what for part in parts)]),
            np.concatenate([nothing, *(part.partition for part in parts)]),
            np.concatenate([nothing, *(part.offset for part in parts)]),
            np.concatenate([nothing.reshape(0, 3), *(part.stamps_ms for part in parts)]),
        )

    def events(self) -> FeedbackBatch:
        """Return the rows that are events."""
        are = self.what == EVENT
        return self.batch if are.all() else self.batch.take(np.flatnonzero(are))

    def turns(self) -> Iterator[tuple[FeedbackBatch, list[str]]]:
        """Yield the events, and who is to be forgotten after them, again and again, in order."""
        erasures = np.flatnonzero(self.what == ERASURE)
        first = 0
        for run in np.split(erasures, np.flatnonzero(np.diff(erasures) > 1) + 1):
            end = int(run[-1]) + 1 if run.size else len(self)
            before = self.take(np.arange(first, end)) if end - first < len(self) else self
            yield before.events(), [self.batch.user_id[row] for row in run.tolist()]
            first = end
        if erasures.size and first < len(self):
            yield self.take(np.arange(first, len(self))).events(), []


def read_rows(
    records: Sequence[Record], *, read_ms: int, rules: RuleSet | None = None
) -> tuple[Rows, list[str]]:
    """Return records as rows, and for each that cannot be read where it lies and why.

    Parameters
    ----------
    records
        Of the topic ``feedback``.
    read_ms
        When they were read, by the wall clock.
    rules
        By which events are typed anew; ``None`` leaves them as they were typed.

    """
    what = np.full(len(records), EVENT, np.int8)
    told: list[str] = []
    try:
        batch = FeedbackBatch.from_records([record.value for record in records])
    except BadEvent:  # rare, so only now is each looked at by itself
        events = []
        for row, record in enumerate(records):
            try:
                event = decode_feedback(record.value)
            except BadEvent as error:
                what[row], event = UNREADABLE, _FILLER
                told.append(
                    f"{record.topic}, partition {record.partition}, offset {record.offset}: {error}"
                )
            if isinstance(event, Erasure):
                what[row], event = ERASURE, Feedback(1, "", event.erase_user, "", 0, "none", 0.0)
            events.append(event)
        batch = FeedbackBatch.from_feedback(events)
    if rules is not None:
        values = [record.value for record in records]
        batch = retyped(batch, values, rules, rows=np.flatnonzero(what == EVENT))
    n = len(records)
    stamps_ms = np.empty((n, 3), np.int64)
    stamps_ms[:, :2] = np.array([_stamps(record) for record in records]).reshape(n, 2)
    stamps_ms[:, 2] = read_ms
    rows = Rows(
        batch,
        what,
        np.fromiter([record.partition for record in records], np.int64, n),
        np.fromiter([record.offset for record in records], np.int64, n),
        stamps_ms,
    )
    return rows, told


def _stamps(record: Record) -> tuple[int, int]:
    """Return when a record was appended and typed; without headers, when it came to its topic."""
    try:
        (appended, appended_ms), (typed, typed_ms) = record.headers
        if appended == "appended_ms" and typed == "typed_ms":
            return int(appended_ms), int(typed_ms)
    except ValueError:  # other headers, or no numbers
        pass
    return record.timestamp_ms, record.timestamp_ms


class _Part(NamedTuple):
    """Rows that were read together, and the time at which each has its turn.

    What stands behind a newer row of its partition has its turn directly after that one.
    """

    turn: NDArray[np.int64]
    rows: Rows


class Merge:
    """Brings the rows of several partitions into one order: always the oldest next one.

    Each partition keeps its own order. One without rows is waited for, so that catching up one
    partition after another does not scramble time: as long as the log has more of it, or else
    until ``idle_s`` have gone since something came from it.

    Parameters
    ----------
    partitions
        Their numbers.
    idle_s
        How long a partition at its end is waited for.
    now_s
        The time now, of any clock.

    """

    def __init__(self, partitions: Iterable[int], *, idle_s: float, now_s: float) -> None:
        self._idle_s = idle_s
        self._waiting: dict[int, deque[_Part]] = {number: deque() for number in sorted(partitions)}
        self._came_s = dict.fromkeys(self._waiting, now_s)
        self._ask_s = dict.fromkeys(self._waiting, now_s)  # when to ask for more again
        self._idle = dict.fromkeys(self._waiting, False)  # what the answer was

    def push(self, rows: Rows, now_s: float) -> None:
        """Add rows that were read, in the order of each partition."""
        for number in np.unique(rows.partition).tolist():
            own = rows.take(np.flatnonzero(rows.partition == number))
            turn = np.maximum.accumulate(own.batch.ts_ms)
            if self._waiting[number]:
                turn = np.maximum(turn, self._waiting[number][-1].turn[-1])
            self._waiting[number].append(_Part(turn, own))
            self._came_s[number] = self._ask_s[number] = now_s

    def held(self, partition: int) -> int:
        """Return how many rows of a partition are held back."""
        return sum(len(part.rows) for part in self._waiting[partition])

    def __len__(self) -> int:
        """Count the rows that are held back."""
        return sum(map(self.held, self._waiting))

    def take(self, now_s: float, *, has_more: Callable[[int], bool]) -> Rows:
        """Return the rows whose turn it is, in order.

        Parameters
        ----------
        now_s
            The time now.
        has_more
            Tells whether the log has more of a partition; asked for those that would be idle, and
            of each not more often than every ``idle_s``.

        """
        if not any(self._waiting.values()):
            return Rows.concat([])
        for number, parts in self._waiting.items():
            if parts:
                continue
            if now_s - self._came_s[number] < self._idle_s:
                return Rows.concat([])
            if now_s >= self._ask_s[number]:
                self._ask_s[number] = now_s + self._idle_s
                self._idle[number] = not has_more(number)
            if not self._idle[number]:
                return Rows.concat([])
        held = {number: parts for number, parts in self._waiting.items() if parts}
        # The first partition to run out of rows is waited for then.
        last, last_number = min((int(parts[-1].turn[-1]), number) for number, parts in held.items())
        taken: list[_Part] = []
        for number, parts in held.items():
            side: Literal["left", "right"] = "right" if number <= last_number else "left"
            while parts:
                turn, rows = parts[0]
                n = int(np.searchsorted(turn, last, side))
                if n < len(rows):
                    if n:
                        everything = np.arange(len(rows))
                        taken.append(_Part(turn[:n], rows.take(everything[:n])))
                        parts[0] = _Part(turn[n:], rows.take(everything[n:]))
                    break
                taken.append(parts.popleft())
        order = np.argsort(np.concatenate([turn for turn, _ in taken]), kind="stable")
        return Rows.concat([rows for _, rows in taken]).take(order)
