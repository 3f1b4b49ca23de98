"""The source of a replay that goes over a broker, with stream workers of their own behind it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import fields
from threading import Condition, Event, Thread
from typing import Any, Final

import msgspec
import numpy as np

from learner.merge import EVENT, Merge, Rows, read_rows
from replay.config import ReplayConfig
from replay.player import play
from replay.source import Arrived, told
from stream.commits import Commit, read_commits
from stream.errors import BadEvent, BadSettings, LogError
from stream.events import DeadLetter, Feedback, decode_feedback
from stream.intake import Accounting
from stream.kafka import KafkaLog
from stream.log import Positions, Record, advance
from stream.settings import Settings
from stream.topics import DEAD, FEEDBACK, INTERACTIONS, LATE, TYPED
from stream.typing_rules import load_rules

IN_FLIGHT: Final = 8_192
"""Records that the player may be ahead of what has come back; one append may go beyond it."""

PATIENCE_S: Final = 30.0
"""How long the workers may go without a commit while records wait for them."""

_ASK_S: Final = 0.2
"""Between two looks at what the workers have committed."""

_IDLE_S: Final = 0.05
"""How soon a partition without feedback is asked about, while the others wait for it."""

_READ: Final = 8_192
"""Records of one read."""


def check(config: ReplayConfig, settings: Settings) -> None:
    """Make sure, before anything is read, that a replay over this broker can begin.

    Raises
    ------
    BadSettings
        If topics are missing, or the workers' settings have other rules.
    LogError
        If no broker answers.

    """
    rules = load_rules(settings.stream.rules)
    if (rules.version, rules.rules) != (config.rules.version, config.rules.rules):
        raise BadSettings(
            f"--log kafka: this replay wants the rules {config.rules.version}, the stream workers "
            f"have {rules.version} (stream.rules); give both the same"
        )
    log = KafkaLog(settings.kafka)
    try:
        for topic in TYPED:
            log.partitions(topic)
    finally:
        log.close()


class KafkaSource:
    """Plays the log into ``interactions`` and reads back what stream workers make of it.

    The accounting is the workers' own: what their commits have counted since the replay began.
    Partitions are merged by event time, so that the experiment sees the order of the log.

    Parameters
    ----------
    config
        What is replayed; rules and lateness must be those of the workers.
    settings
        Where the broker is, and the group of the workers.
    first_ms
        Time of the first event of the log.
    patience_s
        How long the workers may go without a commit while records wait for them.

    Notes
    -----
    Which events are late is decided in each partition alone. A log that is never out of order by
    more than the lateness has no late events, whatever the number of partitions.

    It cannot be resumed: what a killed replay had sent would come once more, and be a duplicate.
    """

    resumable = False

    def __init__(
        self,
        config: ReplayConfig,
        settings: Settings,
        *,
        first_ms: int,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._config = config
        self._settings = settings
        self._first_ms = first_ms
        self._patience_s = patience_s
        self._waited_since_s = 0.0
        self._before: Mapping[int, tuple[int, Commit]] = {}
        self._commits: Mapping[int, tuple[int, Commit]] = {}
        self._accounting = Accounting()
        self._unreadable = 0  # lines of the data set that could not become events
        self._rules_seen = False
        self.sent = 0
        self.notes: list[str] = []

    def batches(self) -> Iterator[Arrived]:
        """Play to the end, giving what the workers have committed as it comes back.

        Raises
        ------
        BadSettings
            If topics are missing, or hold what would make the events of the log late.
        LogError
            If the broker does not answer, or the workers make no progress.

        """
        log = KafkaLog(self._settings.kafka, wait_s=_IDLE_S)
        player = _Player(self._config, self._settings)
        try:
            first = self._begin(log)
            outputs = _Outputs(log)
            player.start()
            yield from self._arriving(log, player, first, outputs)
        finally:
            player.stop()
            log.close()

    def accounting(self) -> dict[str, int]:
        """Return what became of every line, by the names of the report."""
        return told(self._accounting, self._unreadable)

    def state(self) -> dict[str, Any]:
        """Refuse: it cannot be resumed."""
        raise NotImplementedError

    def restore(self, state: Mapping[str, Any]) -> None:
        """Refuse: it cannot be resumed."""
        raise NotImplementedError

    def _begin(self, log: KafkaLog) -> Positions:
        """Wait until the workers have done what was there before; return where we begin."""
        first, end = log.start(INTERACTIONS), log.end(INTERACTIONS)
        self._waited_since_s = time.monotonic()
        self._ask()
        while behind := sum(
            max(0, at - max(first[number], self._committed(number))) for number, at in end.items()
        ):
            self._be_patient(behind)
            time.sleep(_ASK_S)
            self._ask()
        self._before = self._commits
        newest_ms = max((commit.watermark_ms for _, commit in self._before.values()), default=0)
        if newest_ms - self._config.lateness_ms > self._first_ms:
            topic = self._settings.kafka.topic(INTERACTIONS)
            raise BadSettings(
                f"--log kafka: {topic} has had events up to {newest_ms} ms, and this log begins at "
                f"{self._first_ms} ms: the workers would take its events for late or repeated; "
                "use topics of its own, by another kafka.prefix for workers and replay alike"
            )
        return end

    def _arriving(
        self, log: KafkaLog, player: _Player, first: Positions, outputs: _Outputs
    ) -> Iterator[Arrived]:
        merge = Merge(range(log.partitions(FEEDBACK)), idle_s=_IDLE_S, now_s=time.monotonic())
        last: Positions | None = None  # of interactions, once everything was sent
        asked_s, ended = 0.0, False

        def has_more(number: int) -> bool:
            if ended:
                return False
            if self._committed(number) < log.end(INTERACTIONS)[number]:
                return True
            return outputs.lag(number) > 0

        while not ended:
            if last is None and player.finished:
                last = log.end(INTERACTIONS)
            feedback = outputs.read(FEEDBACK)
            self._check_rules(feedback)
            if not feedback or time.monotonic() - asked_s > _ASK_S:
                self._ask()
                asked_s = time.monotonic()
            account = self._accounting
            letters = outputs.read(DEAD, up_to=account.dead)
            late = outputs.read(LATE, up_to=account.late)
            back = outputs.complete(account)
            self.sent, dead = player.progress(came_back=account.in_ if back else None)
            self._unreadable += len(dead)
            if back and last is not None:
                ended = all(self._committed(number) >= at for number, at in last.items())
            idle = back and self.sent <= account.in_ and last is None
            if ended or idle or feedback or letters or late:
                self._waited_since_s = time.monotonic()
            else:
                self._be_patient(self.sent - account.in_)
            rows, unreadable = read_rows(feedback, read_ms=0)
            self.notes += unreadable
            merge.push(rows, time.monotonic())
            merged = merge.take(time.monotonic(), has_more=has_more)
            while ended and len(merge):
                merged = Rows.concat([merged, merge.take(float("inf"), has_more=has_more)])
            dead += [msgspec.json.decode(record.value, type=DeadLetter) for record in letters]
            paused_s = time.monotonic()
            yield Arrived(merged.events(), dead, late, _appended(merged))
            self._waited_since_s += time.monotonic() - paused_s  # nobody looked meanwhile
        assert last is not None
        foreign = sum(last.values()) - sum(first.values()) - self.sent
        if foreign:
            self.notes.append(
                f"{foreign} records came to {self._settings.kafka.topic(INTERACTIONS)} from others "
                "while this log was played; they are in all figures"
            )

    def _ask(self) -> None:
        """Look at what the workers have committed."""
        commits = read_commits(self._settings.kafka, self._settings.stream.group)
        if commits != self._commits:
            self._waited_since_s = time.monotonic()
        self._commits = commits
        self._accounting = _since(self._before, commits)

    def _committed(self, number: int) -> int:
        return self._commits[number][0] if number in self._commits else 0

    def _be_patient(self, waiting: int) -> None:
        """Give up when the workers have done nothing for too long."""
        waited_s = time.monotonic() - self._waited_since_s
        if waited_s > self._patience_s:
            kafka, group = self._settings.kafka, self._settings.stream.group
            if waiting <= 0:
                raise LogError(
                    f"--log kafka: not all that {kafka.topic(group)} has committed comes back from "
                    f"{kafka.topic(FEEDBACK)}; was the topic cut meanwhile?"
                )
            raise LogError(
                f"--log kafka: {waiting} records wait in {kafka.topic(INTERACTIONS)} and no stream "
                f"worker of the group {kafka.topic(group)} has committed anything for "
                f"{waited_s:.0f} s; start one with `tidegraph stream` and the same settings"
            )

    def _check_rules(self, feedback: list[Record]) -> None:
        """Make sure that the workers type as we were asked to, by the first event of a rule."""
        for record in [] if self._rules_seen else feedback:
            try:
                event = decode_feedback(record.value)
            except BadEvent:
                continue
            if isinstance(event, Feedback) and event.rules_version:
                if event.rules_version != self._config.rules.version:
                    raise BadSettings(
                        f"--log kafka: the stream worker types by {event.rules_version}, this "
                        f"replay was asked for {self._config.rules.version}; give both the same "
                        "rules (stream.rules)"
                    )
                self._rules_seen = True
                return


class _Outputs:
    """What the workers write, from now on, and how much of it was read."""

    def __init__(self, log: KafkaLog) -> None:
        self._log = log
        self._at = {topic: log.end(topic) for topic in (FEEDBACK, DEAD, LATE)}
        self._came: Counter[str] = Counter()

    def read(self, topic: str, *, up_to: int | None = None) -> list[Record]:
        """Return records that have come; none where ``up_to`` were read already."""
        if up_to is not None and self._came[topic] >= up_to:
            return []
        records = self._log.read(topic, self._at[topic], limit=_READ)
        self._at[topic] = advance(self._at[topic], records)
        self._came[topic] += len(records)
        return records

    def complete(self, account: Accounting) -> bool:
        """Tell whether all that was counted was read."""
        return (
            self._came[FEEDBACK] >= account.feedback + account.no_signal
            and self._came[DEAD] >= account.dead
            and self._came[LATE] >= account.late
        )

    def lag(self, number: int) -> int:
        """Return how much feedback of a partition is still to be read."""
        return self._log.lag(FEEDBACK, {number: self._at[FEEDBACK][number]})


class _Player(Thread):
    """Plays the log into the broker, but never far ahead of what has come back."""

    def __init__(self, config: ReplayConfig, settings: Settings) -> None:
        super().__init__(name="player", daemon=True)
        self._config = config
        self._log = KafkaLog(settings.kafka)
        self._changed = Condition()
        self._stopped = Event()
        self._sent = self._back = 0
        self._dead: list[DeadLetter] = []
        self._failure: BaseException | None = None
        self._finished = False

    @property
    def finished(self) -> bool:
        """Whether everything was sent."""
        return self._finished

    def run(self) -> None:
        """Play."""
        try:
            chunks, speed = self._config.chunks(), self._config.speed
            for progress in play(chunks, self._log, speed=speed, clock=_Clock(self._stopped)):
                with self._changed:
                    self._sent = progress.sent
                    self._dead += progress.dead
                    self._changed.wait_for(
                        lambda: self._stopped.is_set() or self._sent - self._back < IN_FLIGHT
                    )
                if self._stopped.is_set():
                    return
            self._finished = True
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that reads
            self._failure = error
        finally:
            self._log.close()

    def progress(self, *, came_back: int | None) -> tuple[int, list[DeadLetter]]:
        """Return how many records were sent, and the lines that could not be, since the last call.

        Raises whatever has ended the play. ``came_back`` is how many of the records need no more
        room, where that is known.
        """
        with self._changed:
            if came_back is not None:
                self._back = came_back
                self._changed.notify()
            if self._failure is not None:
                raise self._failure
            dead, self._dead = self._dead, []
            return self._sent, dead

    def stop(self) -> None:
        """End the play, wherever it is."""
        self._stopped.set()
        with self._changed:
            self._changed.notify()
        if self.ident is not None:
            self.join()


class _Clock:
    """The clock of the machine, until somebody is told to stop."""

    def __init__(self, stopped: Event) -> None:
        self._stopped = stopped

    def now_s(self) -> float:
        """Return seconds of the monotonic clock."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait that long, or until the stop."""
        self._stopped.wait(seconds)


def _since(
    before: Mapping[int, tuple[int, Commit]], now: Mapping[int, tuple[int, Commit]]
) -> Accounting:
    """Return what was counted between two looks at the commits.

    Examples
    --------
    >>> def at(n):
    ...     return {0: (n, Commit(0, 0, Accounting(in_=n, feedback=n)))}
    >>> _since(at(2), at(5)).in_, _since({}, at(5)).feedback
    (3, 5)

    """
    counted = sum((commit.accounting for _, commit in now.values()), Accounting())
    known = sum((commit.accounting for _, commit in before.values()), Accounting())
    return Accounting(
        **{
            each.name: getattr(counted, each.name) - getattr(known, each.name)
            for each in fields(Accounting)
        }
    )


def _appended(rows: Rows) -> list[tuple[float, int]]:
    """Return when events were appended, in seconds, and how many each time."""
    stamps_ms, counts = np.unique(rows.stamps_ms[rows.what == EVENT, 0], return_counts=True)
    return list(zip((stamps_ms / 1_000).tolist(), counts.tolist(), strict=True))
