"""What can be written: feedback, events, edges, attributes and erasures, all into the log."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final

import msgspec

from serving.accepting import (
    MAX_ENTRIES,
    Attributes,
    Checked,
    Edge,
    Outcome,
    Pseudonym,
    Read,
    Reading,
    Row,
    UserFeedback,
    describe,
    invalid,
    item_row,
    read_event,
    split,
)
from serving.api.app import NDJSON
from serving.api.problems import Problem
from serving.api.routes import Answer, Call, Role, Route
from serving.producing import TOO_LARGE, Sink
from serving.table import Table
from stream.errors import BadEvent
from stream.events import SCHEMA_VERSION, Erasure, Interaction, Retraction, encode
from stream.topics import FEEDBACK, INTERACTIONS, ITEMS, USERS
from stream.typing_rules import RuleSet

_AT_ONCE: Final = 500  # entries read before other requests have their turn
_TAG: Final = "writing"

_json = msgspec.json.Encoder()


class Outcomes(msgspec.Struct):
    """What became of the entries of a request.

    Parameters
    ----------
    stored
        How many the log has.
    entries
        One outcome each, in the order of the request.

    """

    stored: int
    entries: list[Outcome]


class Description(msgspec.Struct, forbid_unknown_fields=True):
    """What is said about an item or a user; it replaces all that was said before."""

    attributes: Attributes


class Page(msgspec.Struct, forbid_unknown_fields=True):
    """Which part of a list is wanted: ``limit`` rows, of the ids after ``after``."""

    after: Annotated[str, msgspec.Meta(max_length=512)] = ""
    limit: Annotated[int, msgspec.Meta(ge=1, le=MAX_ENTRIES)] = 1_000


class Rows(msgspec.Struct, omit_defaults=True):
    """Some rows in the order of their ids; ``after`` asks for the next ones, if there are any."""

    rows: list[Row]
    after: str = ""


class TypedEvent(msgspec.Struct, omit_defaults=True):
    """What the rules make of an event, or what is wrong with it.

    Parameters
    ----------
    kind
        A feedback class, ``none``, ``retraction`` or ``erasure``; empty where something is wrong.
    weight, rule
        How much it counts, and the rule that said so; left out where none did.
    where, reason
        As in :class:`serving.accepting.Outcome`.

    """

    kind: str
    weight: float = 0.0
    rule: str = ""
    where: str = ""
    reason: str = ""


class TypedEvents(msgspec.Struct):
    """What the rules of that version make of events, in the order of the request."""

    rules_version: str
    events: list[TypedEvent]


def routes(
    sink: Sink,
    rules: RuleSet,
    table: Table,
    *,
    max_future_ms: int,
    pseudonym: Pseudonym = str,
    now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
) -> list[Route]:
    """Return what can be written, and the attributes as the learner has them.

    Parameters
    ----------
    sink
        Where it is written.
    rules, max_future_ms
        Of the stream worker.
    table
        Where attributes are read.
    pseudonym
        Put in place of each user id before it is written.
    now_ms
        The wall clock.

    """
    reading = Reading(rules, max_future_ms=max_future_ms, pseudonym=pseudonym)

    def appending(path: str, topic: str, read: Read, entry: Any, summary: str) -> Route:
        async def append(call: Call) -> Outcomes:
            entries, single = await _split(call)
            checked = await _check(entries, read, now_ms())
            return await _append(sink, topic, checked, single=single)

        return Route(
            method="POST",
            path=path,
            handler=append,
            summary=summary,
            role=Role.WRITER,
            body=entry | list[entry],
            answer=Outcomes,
            raw=True,
            status=202,
            problems=(413, 503),
            tag=_TAG,
        )

    return [
        appending(
            "/v1/feedback",
            INTERACTIONS,
            reading.feedback,
            UserFeedback,
            "Tell what users did, in words of the product",
        ),
        appending(
            "/v1/log/interactions",
            INTERACTIONS,
            reading.interaction,
            Interaction,
            "Append raw events, interactions or retractions, as the log has them",
        ),
        appending(
            "/v1/graph/edges", FEEDBACK, reading.edge, Edge, "Append typed edges, past the rules"
        ),
        appending(f"/v1/{ITEMS}:bulk", ITEMS, item_row, Row, "Say something about many items"),
        appending(
            f"/v1/{USERS}:bulk",
            USERS,
            reading.user_row,
            Row,
            "Say something about many users",
        ),
        Route(
            method="POST",
            path="/v1/process",
            handler=_Typing(rules).answer,
            summary="Tell what the rules make of raw events, storing nothing",
            body=Interaction | list[Interaction],
            answer=TypedEvents,
            raw=True,
            problems=(413,),
            tag=_TAG,
        ),
        *_about(sink, ITEMS, "item", str, table),
        *_about(sink, USERS, "user", reading.user, table),
    ]


def _about(
    sink: Sink, topic: str, one: str, known_as: Callable[[str], str], table: Table
) -> list[Route]:
    """Return what concerns one item or user, and the list of all of them.

    Parameters
    ----------
    topic
        ``items`` or ``users``.
    one
        The part of the path that is the id.
    known_as
        From that part to the id that the log knows.

    """
    of_users = topic == USERS

    def key_of(call: Call) -> bytes:
        return known_as(call.path[one]).encode()

    async def put(call: Call) -> Outcomes:
        value = describe(call.body.attributes)
        return await _append(sink, topic, _one(call.path[one], key_of(call), value))

    async def delete(call: Call) -> Outcomes:
        key = key_of(call)
        if of_users:  # first what was learned of the user, in the order of the log
            erasure = encode(Erasure(SCHEMA_VERSION, key.decode()))
            await _append(sink, INTERACTIONS, _one(call.path[one], key, erasure))
        return await _append(sink, topic, _one(call.path[one], key, None))

    async def get(call: Call) -> Row:
        asked = call.path[one]
        named = known_as(asked)

        def attributes() -> Mapping[str, Any]:
            reader = table.reader()
            return (reader.user_attributes if of_users else reader.item_attributes)([named])

        said = await asyncio.to_thread(attributes)
        if named not in said:
            raise Problem(404, f"unknown-{one}", f"nothing is known about the {one} {asked!r}")
        return Row(asked, said[named])

    async def page(call: Call) -> Any:
        rows = await asyncio.to_thread(_page, table, call.query, of_users=of_users)
        if NDJSON in call.headers.get("accept", ""):
            return Answer(body=_json.encode_lines(rows.rows), media_type=NDJSON)
        return rows

    path = f"/v1/{topic}/{{{one}}}"
    forget = (
        "Forget a user: all that was said, done and learned"
        if of_users
        else ("Take back what was said about an item")
    )
    return [
        Route(
            method="GET",
            path=f"/v1/{topic}",
            handler=page,
            summary=f"What is known about {topic}, in the order of their ids",
            query=Page,
            answer=Rows,
            problems=(503,),
            tag=_TAG,
        ),
        Route(
            method="GET",
            path=path,
            handler=get,
            summary=f"What was said about one {one}",
            answer=Row,
            problems=(404, 503),
            tag=_TAG,
        ),
        Route(
            method="PUT",
            path=path,
            handler=put,
            summary=f"Say what there is to know about one {one}",
            role=Role.WRITER,
            body=Description,
            answer=Outcomes,
            status=202,
            problems=(413, 503),
            tag=_TAG,
        ),
        Route(
            method="DELETE",
            path=path,
            handler=delete,
            summary=forget,
            role=Role.WRITER,
            answer=Outcomes,
            status=202,
            problems=(503,),
            tag=_TAG,
        ),
    ]


def _page(table: Table, wanted: Page, *, of_users: bool) -> Rows:
    reader = table.reader()
    said = reader.all_user_attributes() if of_users else reader.all_item_attributes()
    ids = sorted(said)
    first = bisect_right(ids, wanted.after)
    shown = ids[first : first + wanted.limit]
    more = first + len(shown) < len(ids)
    return Rows([Row(each, said[each]) for each in shown], shown[-1] if more else "")


class _Typing:
    """Types raw events as the stream worker would, storing nothing."""

    def __init__(self, rules: RuleSet) -> None:
        self._rules = rules

    async def answer(self, call: Call) -> TypedEvents:
        entries, _ = await _split(call)
        return await asyncio.to_thread(self._typed, entries)

    def _typed(self, entries: list[bytes]) -> TypedEvents:
        typed: list[TypedEvent] = []
        places: list[int] = []
        signals: list[Mapping[str, float]] = []
        for place, raw in enumerate(entries):
            try:
                event, _ = read_event(raw)
            except BadEvent as fault:
                wrong = invalid(fault)
                typed.append(TypedEvent("", where=wrong.where, reason=wrong.reason))
                continue
            if isinstance(event, Interaction):
                places.append(place)
                signals.append(event.signals)
                typed.append(TypedEvent("none"))
            else:
                typed.append(
                    TypedEvent("retraction" if isinstance(event, Retraction) else "erasure")
                )
        fired = self._rules.classify_mappings(signals).rule.tolist() if signals else []
        for place, number in zip(places, fired, strict=True):
            if number >= 0:
                rule = self._rules.rules[number]
                typed[place] = TypedEvent(rule.kind, rule.weight, rule.name)
        return TypedEvents(self._rules.version, typed)


async def _split(call: Call) -> tuple[list[bytes], bool]:
    """Return the entries of a body, and whether it is one and no list."""
    media_type = call.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        entries, single = split(call.body, lines=media_type == NDJSON)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Problem(400, "unreadable-body", f"want JSON, one object or a list: {error}") from None
    except RecursionError:
        raise Problem(400, "unreadable-body", "the body is nested too deep") from None
    if len(entries) > MAX_ENTRIES:
        detail = f"want at most {MAX_ENTRIES} entries, got {len(entries)}; send them in parts"
        raise Problem(413, "too-many-entries", detail)
    return entries, single


async def _check(entries: list[bytes], read: Read, now_ms: int) -> Checked:
    """Check entries, some at once, so that nobody else waits for long."""
    checked = Checked()
    for first in range(0, len(entries), _AT_ONCE):
        if first:
            await asyncio.sleep(0)
        checked.add(entries[first : first + _AT_ONCE], read, now_ms)
    return checked


def _one(named: str, key: bytes, value: bytes | None) -> Checked:
    return Checked([Outcome("stored", named)], [0], [(key, value)])


async def _append(sink: Sink, topic: str, checked: Checked, *, single: bool = True) -> Outcomes:
    """Append what is valid, and tell what became of each entry.

    Raises
    ------
    Problem
        503 if some could be stored later; it tells which. 400 if it is a single one and invalid.

    """
    outcomes, again = checked.outcomes, ""
    texts = await sink.append(topic, checked.entries) if checked.entries else []
    for place, text in zip(checked.places, texts, strict=True):
        if text.startswith(TOO_LARGE):
            outcomes[place] = Outcome("invalid", outcomes[place].id, "$", text)
        elif text:
            outcomes[place] = Outcome("not_stored", outcomes[place].id, "$", text)
            again = text
    stored = sum(each.outcome == "stored" for each in outcomes)
    if again:
        raise _not_stored(outcomes, stored, again)
    if single and not stored:
        raise _wrong(outcomes[0])
    return Outcomes(stored, outcomes)


def _not_stored(outcomes: list[Outcome], stored: int, why: str) -> Problem:
    errors = [
        {"where": f"body[{place}]", "outcome": each.outcome, "id": each.id, "what": each.reason}
        for place, each in enumerate(outcomes)
        if each.outcome != "stored"
    ]
    return Problem(
        503,
        "not-stored",
        f"{stored} of {len(outcomes)} entries are stored, {len(errors)} not ({why}); send these "
        "again under the ids that errors tells: an event that is in the log twice counts once",
        errors=errors,
        headers={"Retry-After": "1"},
    )


def _wrong(outcome: Outcome) -> Problem:
    where = "body" + outcome.where.removeprefix("$")
    error = {"where": where, "what": outcome.reason}
    return Problem(400, "invalid-entry", f"{where}: {outcome.reason}", errors=[error])
