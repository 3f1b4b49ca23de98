"""Dead letters over HTTP: what died of what, and how it is sent once more."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Annotated, Any, Final, Literal, Protocol, TypeVar

import msgspec

from serving.api.problems import Problem
from serving.api.routes import Call, Role, Route
from stream.commits import read_commits
from stream.dead_letters import Letter, Plan, Redriver, plan, read_letters
from stream.errors import BadRules, BadSettings
from stream.fixes import Fix, Fixes, check_fix
from stream.kafka import KafkaLog
from stream.settings import Settings
from stream.topics import DEAD, INTERACTIONS

MAX_READ: Final = 100_000
"""Letters that are looked at to answer a question: the newest."""

SHOWN_CHARACTERS: Final = 4_000
"""Of one record."""

SHOWN_HOPELESS: Final = 100
"""Letters that would die again, by name."""

_MAX_NAMED: Final = 1_000

_Name = Annotated[str, msgspec.Meta(max_length=512)]
_Answer = TypeVar("_Answer")


class LettersQuery(msgspec.Struct, kw_only=True, frozen=True):
    """Which letters are wanted; what is left out asks nothing.

    Parameters
    ----------
    reason
        Class of the fault: ``undecodable``, ``invalid``, ``version`` or ``key``.
    place
        Where in the event, as in ``$.ts_ms``.
    redriven
        Whether they were sent again.
    limit
        Letters in the answer, the newest.

    """

    reason: _Name = ""
    place: _Name = ""
    redriven: bool | None = None
    limit: Annotated[int, msgspec.Meta(ge=0, le=1_000)] = 100


class Group(msgspec.Struct, frozen=True):
    """The letters of one fault.

    Parameters
    ----------
    reason, place
        As in :class:`LettersQuery`.
    letters, redriven
        How many there are, and how many of these were sent again.
    newest_ms
        When the last one died.

    """

    reason: str
    place: str
    letters: int
    redriven: int
    newest_ms: int


class DeadLetter(msgspec.Struct, frozen=True):
    """One letter.

    Parameters
    ----------
    letter
        ``PARTITION:OFFSET`` in ``interactions.dead``.
    time_ms
        When it died.
    reason, place
        As in :class:`LettersQuery`.
    message
        The whole reason.
    origin
        ``TOPIC:PARTITION:OFFSET`` of the record.
    user_id
        Whose event it was meant to be, where this can be read.
    redriven
        Whether it was sent again.
    original
        The record as text; what is no text is written as escapes.
    cut
        Whether ``original`` is only the beginning.

    """

    letter: str
    time_ms: int
    reason: str
    place: str
    message: str
    origin: str
    user_id: str | None
    redriven: bool
    original: str
    cut: bool


class DeadLetters(msgspec.Struct, frozen=True):
    """What died of what.

    Parameters
    ----------
    total
        Letters of which the question is true.
    groups
        All that were looked at by fault, whatever was asked; the most frequent first.
    letters
        The newest first.
    looked_at
        Letters that were read: the newest, as far as there are more.

    """

    total: int
    groups: list[Group]
    letters: list[DeadLetter]
    looked_at: int


class Correction(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to change in each record before it is sent; see :class:`stream.fixes.Fix`."""

    rename: dict[str, str] = {}
    scale: dict[str, float] = {}
    cast: dict[str, Literal["text", "number"]] = {}
    set: dict[str, str | bool | int | float] = {}


class RedriveRequest(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Which letters to send once more.

    Parameters
    ----------
    reason, place
        As in :class:`LettersQuery`.
    letters
        These alone, by ``PARTITION:OFFSET``; empty: all of which the rest is true.
    fix
        A correction of each.
    dry_run
        Only say what would be done.

    """

    reason: _Name = ""
    place: _Name = ""
    letters: Annotated[list[_Name], msgspec.Meta(max_length=_MAX_NAMED)] = []
    fix: Correction | None = None
    dry_run: bool = True


class Hopeless(msgspec.Struct, frozen=True):
    """A letter that would die again, and of what."""

    letter: str
    place: str
    message: str


class Redrive(msgspec.Struct, frozen=True):
    """What a redrive did, or would do.

    Parameters
    ----------
    dry_run
        Nothing was sent.
    sent, ready
        Letters that were sent, and that could be.
    late
        Of those that could be: how many lie so far back that they go to the late events.
    redriven_before
        Letters that were sent by somebody before, and are not sent again.
    would_die_again
        How many are not sent because they would be dead letters again.
    hopeless
        The first of these.

    """

    dry_run: bool
    sent: int
    ready: int
    late: int
    redriven_before: int
    would_die_again: int
    hopeless: list[Hopeless]


Choose = Callable[[Sequence[Letter]], list[Letter]]


class Letterbox(Protocol):
    """Where dead letters lie."""

    def letters(self) -> list[Letter]:
        """Return the newest letters, oldest first."""
        ...

    def redrive(self, choose: Choose, fixes: Fixes, *, dry_run: bool) -> tuple[Plan, int]:
        """Send those that are chosen; return what was planned and how many were sent."""
        ...


class KafkaLetterbox:
    """The dead letters of a broker.

    Parameters
    ----------
    settings
        Of the broker and the stream worker, which alone decides what is late or too far ahead.

    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def letters(self) -> list[Letter]:
        """Return the newest letters, oldest first."""
        with closing(KafkaLog(self._settings.kafka)) as log:
            start, end = log.start(DEAD), log.end(DEAD)
            share = MAX_READ // len(start)
            newest = {number: max(at, end[number] - share) for number, at in start.items()}
            return read_letters(log, _unseen, start=newest).letters()

    def redrive(self, choose: Choose, fixes: Fixes, *, dry_run: bool) -> tuple[Plan, int]:
        """Send those that are chosen, each once, whoever else sends them too."""
        kafka = self._settings.kafka
        with closing(KafkaLog(kafka)) as log:
            if dry_run:
                found = choose(read_letters(log, _unseen).letters())
                return self._plan(log, found, fixes), 0
            with Redriver(kafka, log) as redriver:
                found = choose(redriver.letters(_unseen).letters())
                planned = self._plan(log, found, fixes)
                redriver.send(planned.ready, _unseen)
                return planned, len(planned.ready)

    def _plan(self, log: KafkaLog, letters: Sequence[Letter], fixes: Fixes) -> Plan:
        kafka, stream = self._settings.kafka, self._settings.stream
        commits = read_commits(kafka, stream.group)
        watermarks_ms = {number: commit.watermark_ms for number, (_, commit) in commits.items()}
        return plan(
            letters,
            fixes,
            now_ms=time.time_ns() // 1_000_000,
            horizons_ms=[
                watermarks_ms.get(number, 0) - round(stream.lateness_s * 1_000)
                for number in range(log.partitions(INTERACTIONS))
            ],
            max_future_ms=round(stream.max_future_s * 1_000),
            max_record_bytes=kafka.max_record_bytes,
        )


def routes(letterbox: Letterbox | None) -> list[Route]:
    """Return what operators can do with dead letters.

    Parameters
    ----------
    letterbox
        Where they lie; ``None`` where there is no broker, which each answer then says.

    """
    desk = _Desk(letterbox)
    told: dict[str, Any] = {"role": Role.OPERATOR, "problems": (404, 422, 503), "tag": "operating"}
    return [
        Route(
            method="GET",
            path="/v1/dead-letters",
            handler=desk.list,
            summary="Records that could not be processed, and why",
            query=LettersQuery,
            answer=DeadLetters,
            **told,
        ),
        Route(
            method="POST",
            path="/v1/dead-letters:redrive",
            handler=desk.redrive,
            summary="Send dead letters once more, or say what that would do",
            body=RedriveRequest,
            answer=Redrive,
            **told,
        ),
    ]


class _Desk:
    def __init__(self, letterbox: Letterbox | None) -> None:
        self._letterbox = letterbox
        # One at a time: a reader of all letters is not light, and a redrive shuts out another.
        self._clerk = ThreadPoolExecutor(1, "dead-letters")

    async def list(self, call: Call) -> DeadLetters:
        query: LettersQuery = call.query
        found = await self._work(lambda letterbox: letterbox.letters())
        chosen = [
            each
            for each in _about(found, query.reason, query.place)
            if query.redriven is None or each.redriven == query.redriven
        ]
        newest = chosen[::-1][: query.limit]
        return DeadLetters(len(chosen), _groups(found), [_shown(one) for one in newest], len(found))

    async def redrive(self, call: Call) -> Redrive:
        asked: RedriveRequest = call.body
        fixes = _fixes(asked.fix)
        named = frozenset(asked.letters)

        def choose(letters: Sequence[Letter]) -> list[Letter]:
            found = _about(letters, asked.reason, asked.place)
            return [each for each in found if not named or _name(each) in named]

        planned, sent = await self._work(
            lambda letterbox: letterbox.redrive(choose, fixes, dry_run=asked.dry_run)
        )
        return Redrive(
            asked.dry_run,
            sent,
            len(planned.ready),
            planned.n_late,
            planned.n_redriven,
            len(planned.hopeless),
            [
                Hopeless(_name(each.letter), each.where, each.reason)
                for each in planned.hopeless[:SHOWN_HOPELESS]
            ],
        )

    async def _work(self, work: Callable[[Letterbox], _Answer]) -> _Answer:
        letterbox = self._letterbox
        if letterbox is None:
            raise Problem(
                404, "no-broker", "this server runs without a broker: no record can die here"
            )
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._clerk, work, letterbox)
        except BadSettings as error:  # of the operator of the broker, not of whoever asks
            raise Problem(503, "unavailable", str(error)) from None


def _about(letters: Sequence[Letter], reason: str, place: str) -> list[Letter]:
    return [
        each
        for each in letters
        if (not reason or each.reason == reason) and (not place or each.dead.where == place)
    ]


def _groups(letters: Sequence[Letter]) -> list[Group]:
    groups: defaultdict[tuple[str, str], list[Letter]] = defaultdict(list)
    for each in letters:
        groups[each.reason, each.dead.where].append(each)
    told = [
        Group(
            reason,
            place,
            len(those),
            sum(each.redriven for each in those),
            max(each.time_ms for each in those),
        )
        for (reason, place), those in groups.items()
    ]
    return sorted(told, key=lambda group: (-group.letters, group.reason, group.place))


def _shown(letter: Letter) -> DeadLetter:
    dead = letter.dead
    text = dead.original.decode(errors="backslashreplace")
    return DeadLetter(
        _name(letter),
        letter.time_ms,
        letter.reason,
        dead.where,
        dead.reason[:SHOWN_CHARACTERS],
        f"{dead.topic}:{dead.partition}:{dead.offset}",
        letter.user_id,
        letter.redriven,
        text[:SHOWN_CHARACTERS],
        len(text) > SHOWN_CHARACTERS,
    )


def _fixes(correction: Correction | None) -> Fixes:
    """Return a correction as fixes; its condition is not the client's, who could read files by it.

    An expression of polars SQL may name ``read_csv``.
    """
    if correction is None:
        return Fixes()
    fix = Fix("fix", **msgspec.structs.asdict(correction))
    try:
        check_fix(fix, "fix")
    except BadRules as error:
        raise Problem(422, "bad-fix", str(error)) from None
    return Fixes((fix,))


def _name(letter: Letter) -> str:
    return f"{letter.partition}:{letter.position}"


def _unseen(done: int, total: int) -> None:
    """Show no progress."""
