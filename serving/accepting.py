"""What clients send, checked one by one: an entry of the log each, or what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import msgspec

from serving.producing import Entry
from stream.decoding import decode
from stream.errors import BadEvent
from stream.events import (
    SCHEMA_VERSION,
    AttributeName,
    AttributeValue,
    Described,
    Erasure,
    Feedback,
    Interaction,
    Kind,
    Retraction,
    decode_interaction,
    digest_id,
    encode,
)
from stream.typing_rules import RuleSet

if TYPE_CHECKING:
    Id = str
else:
    Id = str | int  # accepted, and a string as soon as the event exists

MAX_ENTRIES: Final = 10_000
"""Entries of one request, at most."""

Attributes = dict[AttributeName, AttributeValue]

_NAMELESS: Final = "not made yet"  # the id of an event while it has none

_Event = TypeVar("_Event", bound=Interaction | Retraction)


class UserFeedback(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """What a user did with an item, in one word of the product.

    Parameters
    ----------
    user_id, item_id
        External ids. Integers are accepted and become strings.
    type
        ``like``, ``dislike``, ``click``, ``skip`` or a signal that the typing rules know.
    value
        Above 0; for words that are amounts, such as ``rating`` or ``play_ms``.
    ts_ms
        When, milliseconds since the epoch, UTC; left out: now.
    event_id
        Unique per event; a retry repeats it. Left out: made from the other fields.
    context, request_id
        As in :class:`stream.events.Interaction`.

    """

    user_id: Id
    item_id: Id
    type: str
    value: float = 1.0
    ts_ms: int | None = None
    event_id: Id | None = None
    context: dict[str, str] = {}
    request_id: Id | None = None


class Edge(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """A typed edge of the graph, as it is to be; no rule looks at it.

    Parameters
    ----------
    user_id, item_id, ts_ms, event_id
        As in :class:`UserFeedback`.
    kind
        The feedback class.
    weight
        How much it counts, above 0.

    """

    user_id: Id
    item_id: Id
    kind: Literal[
        "explicit_positive", "implicit_positive", "implicit_negative", "explicit_negative"
    ]
    weight: float = 1.0
    ts_ms: int | None = None
    event_id: Id | None = None


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is said about one item or user.

    Parameters
    ----------
    id
        External id.
    attributes
        Replace all that were said before.
    delete
        Take back what was said; there are no attributes then.

    """

    id: Id
    attributes: Attributes = {}
    delete: bool = False


class Outcome(msgspec.Struct, omit_defaults=True):
    """What became of one entry of a request.

    Parameters
    ----------
    outcome
        ``stored``: the log has it. ``invalid``: it never will, as it is not what was wanted.
        ``not_stored``: it may be sent again.
    id
        ``event_id``, also where it was made here; of an item or user its id; empty where it could
        not be read.
    where
        The place in an invalid entry, as in ``$.ts_ms``.
    reason
        What was wanted and what came, or why it was not stored.

    """

    outcome: Literal["stored", "invalid", "not_stored"]
    id: str = ""
    where: str = ""
    reason: str = ""


Read = Callable[[bytes, int], tuple[str, Entry]]
"""From one entry of a request and the time now in ms to its id and an entry of the log.

Raises :class:`stream.errors.BadEvent`.
"""


@dataclass(slots=True)
class Checked:
    """The entries of one request, read one by one: a fault of one does not concern the others.

    Parameters
    ----------
    outcomes
        Of each entry; ``stored`` for the time being where it is valid.
    places
        Where in the request the valid ones are.
    entries
        What goes to the log for each valid one.

    """

    outcomes: list[Outcome] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)

    def add(self, raws: Iterable[bytes], read: Read, now_ms: int) -> None:
        """Read the next entries of the request."""
        for place, raw in enumerate(raws, start=len(self.outcomes)):
            try:
                named, entry = read(raw, now_ms)
            except BadEvent as fault:
                self.outcomes.append(invalid(fault))
                continue
            self.outcomes.append(Outcome("stored", named))
            self.places.append(place)
            self.entries.append(entry)


Pseudonym = Callable[[str], str]


def split(body: bytes, *, lines: bool) -> tuple[list[bytes], bool]:
    """Return the entries of a body, unread, and whether it is one object and no list or lines.

    Raises
    ------
    msgspec.DecodeError, UnicodeDecodeError, RecursionError
        If it looks like a list and is not JSON.

    Examples
    --------
    >>> split(b'[{"a":1}, {}]', lines=False), split(b' {"a":1}', lines=False)
    (([b'{"a":1}', b'{}'], False), ([b' {"a":1}'], True))
    >>> split(b'{"a":1}\\n\\n{}\\n', lines=True)
    ([b'{"a":1}', b'{}'], False)

    """
    if lines:
        return [line for line in body.splitlines() if line.strip()], False
    if body.lstrip()[:1] != b"[":
        return [body], True
    return [bytes(entry) for entry in _entries(body)], False


def invalid(fault: BadEvent) -> Outcome:
    """Return the outcome of an entry with a fault, whose words may quote it at any length."""
    return Outcome("invalid", "", fault.where[:_QUOTED], fault.reason[:_QUOTED])


class Reading:
    """Reads events as the stream worker will: what passes here is no dead letter there.

    Parameters
    ----------
    rules
        By which the stream worker types.
    max_future_ms
        How far an event may lie ahead of now.
    pseudonym
        Put in place of each user id; ``str`` leaves them.

    Examples
    --------
    >>> from stream.typing_rules import load_rules
    >>> reading = Reading(load_rules("kuairand"), max_future_ms=0)
    >>> said = b'{"user_id": 712, "item_id": 5239, "type": "dislike", "event_id": "e1"}'
    >>> reading.feedback(said, 1650812741436)[1][1]
    b'{"v":1,"event_id":"e1","user_id":"712","item_id":"5239","ts_ms":1650812741436,"signals":{"hate":1.0}}'

    """

    def __init__(self, rules: RuleSet, *, max_future_ms: int, pseudonym: Pseudonym = str) -> None:
        self._rules = rules
        self._max_future_ms = max_future_ms
        self._pseudonym = pseudonym
        self.words = words_of(rules)

    def interaction(self, raw: bytes, now_ms: int) -> tuple[str, Entry]:
        """Read an interaction or retraction as the log has it; its id may be missing."""
        event, nameless = read_event(raw)
        if isinstance(event, Erasure):
            reason = "invalid: to forget a user, ask for DELETE /v1/users/{user}"
            raise BadEvent(reason, "$.erase_user")
        self._check_future(event.ts_ms, now_ms)
        final = self._final(event, nameless=nameless)
        # As it came where nothing changed: to write it anew would take longer than all of this.
        return final.event_id, (final.user_id.encode(), raw if final is event else encode(final))

    def feedback(self, raw: bytes, now_ms: int) -> tuple[str, Entry]:
        """Read feedback in a word of the product."""
        said = decode(_feedback, raw)
        signal = self.words.get(said.type)
        if signal is None:
            raise BadEvent(
                f"invalid: the rules {self._rules.version} know no {said.type!r}, only "
                f"{', '.join(sorted(self.words))}",
                "$.type",
            )
        if not said.value > 0:
            raise BadEvent(f"invalid: want a value above 0, got {said.value}", "$.value")
        event = self._interaction(said, {signal: said.value}, now_ms)
        if said.context or said.request_id is not None:
            event = msgspec.structs.replace(event, context=said.context, request_id=said.request_id)
        return event.event_id, (event.user_id.encode(), encode(event))

    def edge(self, raw: bytes, now_ms: int) -> tuple[str, Entry]:
        """Read a typed edge, for the topic ``feedback``."""
        said = decode(_edge, raw)
        if not said.weight > 0:
            raise BadEvent(f"invalid: want a weight above 0, got {said.weight}", "$.weight")
        event = self._interaction(said, {said.kind: said.weight}, now_ms)
        typed = Feedback(
            SCHEMA_VERSION,
            event.event_id,
            event.user_id,
            event.item_id,
            event.ts_ms,
            said.kind,
            said.weight,
        )
        return event.event_id, (event.user_id.encode(), encode(typed))

    def user(self, user_id: str) -> str:
        """Return the user id that the log knows."""
        return self._pseudonym(user_id)

    def user_row(self, raw: bytes, now_ms: int) -> tuple[str, Entry]:
        """Read what is said about a user."""
        named, (_, value) = item_row(raw, now_ms)
        return named, (self.user(named).encode(), value)

    def _interaction(
        self, said: UserFeedback | Edge, signals: dict[str, float], now_ms: int
    ) -> Interaction:
        """Return feedback or an edge as an interaction, so that the same is checked in it."""
        nameless = said.event_id is None
        event = Interaction(
            SCHEMA_VERSION,
            _NAMELESS if said.event_id is None else said.event_id,
            said.user_id,
            said.item_id,
            now_ms if said.ts_ms is None else said.ts_ms,
            signals,
        )
        self._check_future(event.ts_ms, now_ms)
        return self._final(event, nameless=nameless)

    def _final(self, event: _Event, *, nameless: bool) -> _Event:
        """Return an event with the pseudonym of its user and, where it has none, with an id.

        The id is made of the pseudonym: a digest of ids that can be guessed gives them away.
        """
        if self._pseudonym is not str:
            event = msgspec.structs.replace(event, user_id=self._pseudonym(event.user_id))
        if not nameless:
            return event
        if isinstance(event, Interaction):
            made = digest_id(event.user_id, event.item_id, event.ts_ms, event.signals)
        else:
            made = digest_id(event.user_id, event.retracts, event.ts_ms, {})
        return msgspec.structs.replace(event, event_id=made)

    def _check_future(self, ts_ms: int, now_ms: int) -> None:
        if ts_ms - now_ms > self._max_future_ms:
            reason = f"invalid: want at most {self._max_future_ms} ms ahead of now"
            raise BadEvent(f"{reason}, got {ts_ms - now_ms} ms", "$.ts_ms")


def read_event(raw: bytes) -> tuple[Interaction | Retraction | Erasure, bool]:
    """Read what the log may have, and tell whether it came without an id.

    Raises
    ------
    BadEvent
        As :func:`stream.events.decode_interaction`.

    """
    try:
        return decode_interaction(raw), False
    except BadEvent as fault:
        if fault.where != "$.event_id" or "missing" not in fault.reason:
            raise
    named = b'{"event_id":"%s",' % _NAMELESS.encode() + raw.lstrip()[1:]
    return decode_interaction(named), True


def item_row(raw: bytes, _: int) -> tuple[str, Entry]:
    """Read what is said about an item; it does not matter when."""
    row = decode(_row, raw)
    row_id = str(row.id)
    if not row_id:
        raise BadEvent("invalid: want an id, got an empty string", "$.id")
    if row.delete and row.attributes:
        raise BadEvent("invalid: want no attributes where the row is deleted", "$.attributes")
    value = None if row.delete else describe(row.attributes)
    return row_id, (row_id.encode(), value)


def describe(attributes: Attributes) -> bytes:
    """Return what the topics ``items`` and ``users`` hold about an id."""
    return encode(Described(SCHEMA_VERSION, attributes))


def words_of(rules: RuleSet) -> dict[str, str]:
    """Return which signal says each word that clients may use.

    The signals of a rule set are words themselves. ``like``, ``dislike``, ``click`` and ``skip``
    are words besides, as far as the rules take a signal for what the word means.

    Examples
    --------
    >>> from stream.typing_rules import load_rules
    >>> words = words_of(load_rules("kuairand"))
    >>> words["dislike"], words["skip"], words["play_ms"], "purchase" in words
    ('hate', 'skip', 'play_ms', False)

    """
    words = {name: name for name in rules.signals}
    for word, (kind, signals) in _MEANT.items():
        if word not in words:
            typed = rules.classify_mappings([{signal: 1.0} for signal in signals]).kind.tolist()
            if kind in typed:
                words[word] = signals[typed.index(kind)]
    return words


_MEANT: Final[dict[str, tuple[Kind, Sequence[str]]]] = {
    "like": (Kind.EXPLICIT_POSITIVE, ("like",)),
    "dislike": (Kind.EXPLICIT_NEGATIVE, ("dislike", "hate", "hide")),
    "click": (Kind.IMPLICIT_POSITIVE, ("click", "view")),
    "skip": (Kind.IMPLICIT_NEGATIVE, ("skip",)),
}
_QUOTED: Final = 500  # characters of what an outcome says about its entry

_entries: Callable[[bytes], list[msgspec.Raw]] = msgspec.json.Decoder(list[msgspec.Raw]).decode
_feedback = msgspec.json.Decoder(UserFeedback)
_edge = msgspec.json.Decoder(Edge)
_row: msgspec.json.Decoder[Any] = msgspec.json.Decoder(Row)
