"""Dead letters: read, chosen by an expression, corrected, and sent once more, exactly once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, Self

import msgspec
import polars as pl

from stream.errors import BadData, BadEvent, BadRules, BadSettings, LogError
from stream.events import DeadLetter, Erasure, decode_interaction, encode
from stream.fixes import Fixes
from stream.intake import Intake
from stream.kafka import KafkaLog, kafka_python, kafka_python_told
from stream.log import Positions, Record, advance, partition_of
from stream.settings import KafkaSettings
from stream.topics import DEAD, INTERACTIONS
from stream.typing_rules import RuleSet

SETTLE_S: Final = 90.0
"""How long open transactions are waited for: somewhat longer than the broker lets one be open."""

_BATCH: Final = 1_000
"""Letters of one transaction."""

_OVERHEAD: Final = 1_024
"""More than a key, headers and the frame of a record need."""

_CHUNK: Final = 10_000
_NO_RULES: Final = RuleSet("", (), ())

COLUMNS: Final[dict[str, pl.DataType | type[pl.DataType]]] = {
    "time": pl.Datetime("ms"),
    "reason": pl.String,
    "message": pl.String,
    "place": pl.String,
    "user_id": pl.String,
    "topic": pl.String,
    "partition": pl.Int64,
    "position": pl.Int64,
    "origin_partition": pl.Int64,
    "origin_position": pl.Int64,
    "redriven": pl.Boolean,
}
"""What an expression can ask of a letter; ``docs/dead-letters.md`` says what each is."""

Progress = Callable[[int, int], None]
"""Is told how much is done, and of how much."""


class Redriven(msgspec.Struct, frozen=True):
    """A mark that a dead letter was sent again; it follows the letter in its own partition.

    There it outlives the letter: a partition is deleted from its beginning.

    Parameters
    ----------
    redriven
        Offset of the letter.

    """

    redriven: int


class Letter(NamedTuple):
    """A dead letter, and what is known of it."""

    partition: int
    """Of ``interactions.dead``."""
    position: int
    """Its offset there."""
    time_ms: int
    """When it was put there."""
    dead: DeadLetter
    redriven: bool
    """Whether it was sent again."""
    key: bytes | None = None
    headers: tuple[tuple[str, bytes], ...] = ()

    @property
    def reason(self) -> str:
        """The class of the fault: the word before the first colon."""
        return self.dead.reason.partition(":")[0]

    @property
    def user_id(self) -> str | None:
        """Whose event it was meant to be, where this can be read."""
        try:
            named = _named(self.dead.original)
        except (msgspec.DecodeError, ValueError, RecursionError):
            return None
        user = named.user_id if named.user_id is not None else named.erase_user
        return str(user) if isinstance(user, str | int) and not isinstance(user, bool) else None


class _Named(msgspec.Struct):
    user_id: Any = None
    erase_user: Any = None


_named = msgspec.json.Decoder(_Named).decode
_letter = msgspec.json.Decoder(DeadLetter).decode
_mark = msgspec.json.Decoder(Redriven).decode


class Gathered:
    """Letters and marks as they are read, in the order of the log.

    Attributes
    ----------
    n_foreign
        Records that are neither: somebody else writes to the topic.

    """

    def __init__(self) -> None:
        self.n_foreign = 0
        self._letters: list[tuple[Record, DeadLetter]] = []
        self._marked: set[tuple[int, int]] = set()

    def take(self, records: Sequence[Record]) -> None:
        """Take records of ``interactions.dead``."""
        for record in records:
            try:
                self._letters.append((record, _letter(record.value)))
            except msgspec.DecodeError:
                try:
                    self._marked.add((record.partition, _mark(record.value).redriven))
                except msgspec.DecodeError:
                    self.n_foreign += 1

    def letters(self) -> list[Letter]:
        """Return the letters, oldest first."""
        return [
            Letter(
                record.partition,
                record.offset,
                record.timestamp_ms,
                dead,
                (record.partition, record.offset) in self._marked,
                record.key,
                record.headers,
            )
            for record, dead in sorted(self._letters, key=lambda each: each[0].timestamp_ms)
        ]


def table(letters: Sequence[Letter]) -> pl.DataFrame:
    """Return the letters as a table with :data:`COLUMNS`, in their order."""
    rows = [
        (
            datetime.fromtimestamp(each.time_ms / 1_000, UTC).replace(tzinfo=None),
            each.reason,
            each.dead.reason,
            each.dead.where,
            each.user_id,
            each.dead.topic,
            each.partition,
            each.position,
            each.dead.partition,
            each.dead.offset,
            each.redriven,
        )
        for each in letters
    ]
    return pl.DataFrame(rows, schema=COLUMNS, orient="row")


def matches(letters: pl.DataFrame, where: str) -> pl.Series:
    """Tell of each letter whether an expression is true; an answer of null is a no.

    Raises
    ------
    ValueError
        If the expression cannot be used; with the reason.

    Examples
    --------
    >>> matches(table([]), "reason = 'key' AND time > DATE '2026-11-01'").len()
    0
    >>> matches(table([]), "place")
    Traceback (most recent call last):
        ...
    ValueError: want true or false for each letter, got String; compare it, as in `place = ...`

    """
    try:
        answer = letters.select(pl.sql_expr(where).alias("chosen")).to_series()
    except pl.exceptions.PolarsError as error:
        fields = ", ".join(COLUMNS)
        told = str(error).partition("\n")[0]
        raise ValueError(
            f"not an expression over the fields of a letter: {told}; the fields are {fields}"
        ) from error
    if answer.dtype != pl.Boolean:
        told = f"got {answer.dtype}; compare it, as in `{where} = ...`"
        raise ValueError(f"want true or false for each letter, {told}")
    if answer.len() != letters.height:  # a constant
        answer = pl.Series([answer.item()] * letters.height, dtype=pl.Boolean)
    return answer.fill_null(value=False)


def check_where(where: str) -> None:
    """Raise ``ValueError`` with the reason if an expression cannot be used."""
    matches(table([]).clear(1), where)  # one row, of nulls


def chosen(letters: Sequence[Letter], where: str) -> list[Letter]:
    """Return the letters of which an expression is true.

    Raises
    ------
    BadSettings
        If the expression cannot be used.

    """
    try:
        answer = matches(table(letters), where)
    except ValueError as error:
        raise BadSettings(f"--where {where!r}: {error}") from error
    return [letter for letter, yes in zip(letters, answer, strict=True) if yes]


class Ready(NamedTuple):
    """A letter that can be sent again."""

    letter: Letter
    key: bytes
    value: bytes
    ts_ms: int
    """Time of the event; 0 for an erasure, which has none."""


class Hopeless(NamedTuple):
    """A letter that would die again, and of what."""

    letter: Letter
    reason: str
    where: str


class Plan(NamedTuple):
    """What a redrive would do."""

    ready: list[Ready]
    """In the order of event time: so the fewest are late."""
    hopeless: list[Hopeless]
    n_redriven: int
    """Letters that were sent before, and are not sent again."""
    n_late: int
    """Of those that are ready: how many lie so far back that they would go to the late events."""
    n_fixed: dict[str, int]
    """By the name of a fix: to how many letters it was applied."""


def plan(
    letters: Sequence[Letter],
    fixes: Fixes,
    *,
    now_ms: int,
    horizons_ms: Sequence[int] = (0,),
    max_future_ms: int | None = None,
    max_record_bytes: int = 1 << 20,
) -> Plan:
    """Correct letters and find out which of them would now be accepted.

    Parameters
    ----------
    letters
        Those that were chosen.
    fixes
        Applied to every letter that their condition is true of.
    now_ms
        Time stamp that the records would get.
    horizons_ms
        Of each partition of ``interactions`` the event time before which an event is late.
    max_future_ms
        As in :class:`stream.intake.Intake`.
    max_record_bytes
        Greatest record that the topic takes.

    """
    fresh = [letter for letter in letters if not letter.redriven]
    rows = table(fresh)
    applies = []
    for fix in fixes.fixes:
        try:
            applies.append(matches(rows, fix.when).to_list())
        except ValueError as error:  # known only with these letters, as a cast that fails
            raise BadRules(f"fix {fix.name}: when = {fix.when!r}: {error}") from error
    n_fixed = {fix.name: sum(column) for fix, column in zip(fixes.fixes, applies, strict=True)}
    able: list[Ready] = []
    hopeless: list[Hopeless] = []
    for row, letter in enumerate(fresh):
        try:
            value = fixes.apply(letter.dead.original, tuple(column[row] for column in applies))
            able.append(_resent(letter, value, max_record_bytes - _OVERHEAD))
        except BadEvent as fault:
            hopeless.append(Hopeless(letter, fault.reason, fault.where))
    # The stream worker's own decision, on what would come to it.
    records = [
        Record(INTERACTIONS, 0, row, each.key, each.value, now_ms) for row, each in enumerate(able)
    ]
    dead = Intake(_NO_RULES, max_future_ms=max_future_ms).take(records).dead
    hopeless += [Hopeless(able[each.offset].letter, each.reason, each.where) for each in dead]
    rows_again = {each.offset for each in dead}
    ready = [each for row, each in enumerate(able) if row not in rows_again]
    ready.sort(key=lambda each: each.ts_ms)
    n_late = sum(
        0 < each.ts_ms < horizons_ms[partition_of(each.key, len(horizons_ms))] for each in ready
    )
    return Plan(ready, hopeless, len(letters) - len(fresh), n_late, n_fixed)


def _resent(letter: Letter, value: bytes, most_bytes: int) -> Ready:
    """Return what to send for a letter; raises :class:`BadEvent` if that is nothing to send."""
    event = decode_interaction(value)
    if len(value) > most_bytes:
        raise BadEvent(f"invalid: want at most {most_bytes} bytes to send, got {len(value)}")
    if isinstance(event, Erasure):
        return Ready(letter, event.erase_user.encode(), value, 0)
    return Ready(letter, event.user_id.encode(), value, event.ts_ms)


def read_letters(
    log: KafkaLog, progress: Progress, *, start: Mapping[int, int] | None = None
) -> Gathered:
    """Read what is committed in ``interactions.dead`` now, all of it or from positions on.

    Raises
    ------
    BadSettings
        If there is no such topic, or the broker refuses us.
    LogError
        If it does not answer.

    """
    positions: Positions = dict(log.start(DEAD) if start is None else start)
    end = log.end(DEAD)
    first = sum(positions.values())
    total = sum(end[number] for number in positions) - first
    gathered = Gathered()
    progress(0, total)
    while any(at < end[number] for number, at in positions.items()):
        records = log.read(DEAD, positions, limit=_CHUNK)
        positions = advance(positions, records)
        gathered.take(records)
        progress(sum(positions.values()) - first, total)
        # Behind the last record there may be the end of a transaction: an offset and no record.
        if not records and log.lag(DEAD, positions) == 0:
            break
    return gathered


def find(log: KafkaLog, place: str, progress: Progress) -> Letter:
    """Return the letter at ``PARTITION:OFFSET``, or that came from ``TOPIC:PARTITION:OFFSET``.

    Raises
    ------
    BadData
        If there is none.
    BadSettings
        If ``place`` is no place.

    """
    *topic, partition, offset = place.rsplit(":", 2) if place.count(":") else ("", "", "")
    if not (partition.isdecimal() and offset.isdecimal()):
        wanted = "PARTITION:OFFSET of a dead letter or TOPIC:PARTITION:OFFSET of its origin"
        raise BadSettings(f"want {wanted}, as `tidegraph dead-letters list` shows, got {place!r}")
    at = int(partition), int(offset)
    if topic:
        for letter in read_letters(log, progress).letters():
            if (letter.dead.topic, letter.dead.partition, letter.dead.offset) == (topic[0], *at):
                return letter
    elif log.start(DEAD).get(at[0], at[1] + 1) <= at[1] < log.end(DEAD).get(at[0], 0):
        for letter in read_letters(log, progress, start={at[0]: at[1]}).letters():
            if letter.position == at[1]:
                return letter
    raise BadData(f"no dead letter at {place}; `tidegraph dead-letters list` shows what there is")


class Redriver:
    """Sends letters again, each of them once, however often and by however many it is asked.

    A batch of records and the marks of their letters are one transaction. All who redrive use one
    transactional id, so that whoever begins later shuts out whoever began before; and the marks
    are read after that, so that none can be missing.

    Raises
    ------
    BadSettings
        If a topic is missing, or the broker refuses us.
    LogError
        If the broker does not answer.

    """

    def __init__(self, kafka: KafkaSettings, log: KafkaLog) -> None:
        from kafka import KafkaProducer

        self._kafka, self._log = kafka, log
        for topic in (INTERACTIONS, DEAD):
            log.partitions(topic)  # raises where there is none; a producer would wait for it
        with kafka_python_told(kafka, "beginning to redrive"):
            self._producer = KafkaProducer(
                **kafka_python(kafka),
                transactional_id=kafka.topic("dead-letters"),
                max_request_size=kafka.max_record_bytes + _OVERHEAD,
            )
            try:
                self._producer.init_transactions()
            except BaseException:
                self._producer.close(timeout=0)
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._producer.close()

    def letters(self, progress: Progress) -> Gathered:
        """Return all letters with all marks that anybody has set.

        Raises
        ------
        LogError
            If a transaction that began before is still open after :data:`SETTLE_S`.

        """
        from kafka import KafkaConsumer, TopicPartition

        with kafka_python_told(self._kafka, f"asking where {DEAD} ends"):
            consumer = KafkaConsumer(
                **kafka_python(self._kafka), group_id=None, enable_auto_commit=False
            )
            try:  # it counts what is not committed, too
                name = self._kafka.topic(DEAD)
                parts = [TopicPartition(name, n) for n in range(self._log.partitions(DEAD))]
                written = {each.partition: end for each, end in consumer.end_offsets(parts).items()}
            finally:
                consumer.close()
        deadline = time.monotonic() + SETTLE_S
        while any(end < written[number] for number, end in self._log.end(DEAD).items()):
            if time.monotonic() > deadline:
                raise LogError(
                    f"kafka: a transaction on {DEAD} has been open for {SETTLE_S:.0f} s, so it "
                    "cannot be told what was redriven; is a stream worker stuck?"
                )
            time.sleep(0.1)
        return read_letters(self._log, progress)

    def send(self, ready: Sequence[Ready], progress: Progress) -> None:
        """Send letters and mark them.

        Raises
        ------
        LogError
            If somebody else began to redrive, or the broker does not take them. What was sent so
            far is marked; the rest is neither sent nor marked.

        """
        progress(0, len(ready))
        for first in range(0, len(ready), _BATCH):
            batch = ready[first : first + _BATCH]
            with self._transaction(first):
                for each in batch:
                    letter = each.letter
                    origin = f"{DEAD}:{letter.partition}:{letter.position}"
                    self._producer.send(
                        self._kafka.topic(INTERACTIONS),
                        key=each.key,
                        value=each.value,
                        headers=[("redriven_from", origin.encode())],
                    )
                    self._producer.send(
                        self._kafka.topic(DEAD),
                        value=encode(Redriven(letter.position)),
                        partition=letter.partition,
                    )
            progress(first + len(batch), len(ready))

    @contextmanager
    def _transaction(self, n_sent: int) -> Iterator[None]:
        import kafka.errors as theirs

        with kafka_python_told(self._kafka, f"redriving, after {n_sent} letters"):
            try:
                self._producer.begin_transaction()
                yield
                self._producer.commit_transaction()
            except BaseException as error:
                with suppress(theirs.KafkaError):  # else the broker does it, after a minute
                    self._producer.abort_transaction()
                shut_out = theirs.ProducerFencedError, theirs.InvalidProducerEpochError
                if any(isinstance(cause, shut_out) for cause in (error, *error.args)):
                    raise LogError(
                        f"another redrive began after this one, which ends: {n_sent} letters were "
                        "sent; when the other is done, run this again for what it has left"
                    ) from error
                raise
