"""Wire schema of everything that travels in the log, and accepted events as columns.

A new field needs a default and goes last; a field never changes its type or its meaning; a reader
ignores fields that it does not know. So an old reader and a new writer, or the reverse, understand
each other. What must break these rules gets a new ``v``.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args

import msgspec
import numpy as np
from msgspec.structs import force_setattr
from numpy.typing import NDArray

from stream.decoding import decode
from stream.errors import BadEvent
from stream.identity import digest_id, digest_ids, event_key, event_keys

__all__ = [
    "MAX_TS_MS",
    "MIN_TS_MS",
    "N_CLASSES",
    "SCHEMA_VERSION",
    "DeadLetter",
    "Described",
    "Erasure",
    "Feedback",
    "FeedbackBatch",
    "Interaction",
    "Kind",
    "Label",
    "Retraction",
    "decode_described",
    "decode_feedback",
    "decode_interaction",
    "digest_id",
    "digest_ids",
    "encode",
    "event_key",
    "event_keys",
    "read_feedback",
]

SCHEMA_VERSION = 1
"""The ``v`` that this reader understands."""

MIN_TS_MS, MAX_TS_MS = 315_532_800_000, 4_102_444_800_000
"""1980-01-01 and 2100-01-01: what lies outside was not counted in milliseconds."""

N_CLASSES = 4
"""The first four kinds are feedback classes and become edges of the graph."""

Label = Literal[
    "explicit_positive",
    "implicit_positive",
    "implicit_negative",
    "explicit_negative",
    "none",
    "retraction",
]

if TYPE_CHECKING:
    Id = str
else:
    Id = str | int  # accepted on the wire, and a string as soon as the event exists


class Kind(enum.IntEnum):
    """What an event says about the user's taste; positive are 0 and 1.

    Examples
    --------
    >>> Kind.of("implicit_negative")
    <Kind.IMPLICIT_NEGATIVE: 2>
    >>> Kind.EXPLICIT_POSITIVE.label
    'explicit_positive'

    """

    EXPLICIT_POSITIVE = 0
    IMPLICIT_POSITIVE = 1
    IMPLICIT_NEGATIVE = 2
    EXPLICIT_NEGATIVE = 3
    NONE = 4
    RETRACTION = 5

    @property
    def label(self) -> Label:
        """The name on the wire and in rules."""
        return _LABELS[self]

    @classmethod
    def of(cls, label: str) -> Kind:
        """Return the kind of that name.

        Raises
        ------
        KeyError
            If there is none.

        """
        return _KINDS[label]


_LABELS: tuple[Label, ...] = get_args(Label)
_KINDS: dict[str, Kind] = dict(zip(_LABELS, Kind, strict=True))


class Interaction(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """Something a user was shown or did, as the client reports it.

    Parameters
    ----------
    v
        Version of the schema.
    event_id
        Unique per event; a retry of the same event repeats it.
    user_id, item_id
        External ids. Integers are accepted and become strings.
    ts_ms
        When it happened, milliseconds since the epoch, UTC.
    signals
        What was shown and what the user did, as finite numbers by name.
    context
        Where it happened, for reports; nothing is learned from it yet.
    request_id
        The recommendation that led to it.

    Raises
    ------
    BadEvent
        If a value could not be right: see ``docs/events.md``.

    Examples
    --------
    >>> Interaction(1, "e1", "712", "5239", 1650812741, {"click": 1})
    Traceback (most recent call last):
        ...
    stream.errors.BadEvent: $.ts_ms: invalid: want milliseconds ... like seconds, multiply by 1000

    """

    v: int
    event_id: Id
    user_id: Id
    item_id: Id
    ts_ms: int
    signals: dict[str, float]
    context: dict[str, str] = {}
    request_id: Id | None = None

    def __post_init__(self) -> None:
        """Refuse what could not be right."""
        ordinary = (
            self.v == SCHEMA_VERSION
            and self.event_id.__class__ is self.user_id.__class__ is self.item_id.__class__ is str
            and self.event_id != ""
            and self.user_id != ""
            and self.item_id != ""
            and MIN_TS_MS <= self.ts_ms < MAX_TS_MS
        )
        if not ordinary:  # the same again, in words; twenty times slower
            _check(self, ("event_id", "user_id", "item_id"), ("ts_ms",))
        if self.request_id is not None:
            force_setattr(self, "request_id", str(self.request_id))


class Retraction(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A later decision of the user: that earlier event no longer counts.

    Parameters
    ----------
    v, event_id, user_id, ts_ms
        As in :class:`Interaction`, of the retraction itself.
    retracts
        ``event_id`` of the event that no longer counts.
    item_id, target_ts_ms
        Item and time of that event.

    """

    v: int
    event_id: Id
    user_id: Id
    ts_ms: int
    retracts: Id
    item_id: Id
    target_ts_ms: int

    def __post_init__(self) -> None:
        """Refuse what could not be right."""
        _check(self, ("event_id", "user_id", "retracts", "item_id"), ("ts_ms", "target_ts_ms"))


class Erasure(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A user wants to be forgotten: everything before this record, in the order of the log.

    Parameters
    ----------
    v
        Version of the schema.
    erase_user
        External id.

    """

    v: int
    erase_user: Id

    def __post_init__(self) -> None:
        """Refuse what could not be right."""
        _check(self, ("erase_user",), ())


class Feedback(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """An accepted event and what it was taken to mean.

    Parameters
    ----------
    v, event_id, user_id, item_id, ts_ms, signals, context, request_id
        As in :class:`Interaction`.
    kind
        A feedback class; ``none``, which says nothing; or ``retraction``.
    weight
        How much it counts, > 0 for a feedback class, 0 otherwise.
    rule, rules_version
        The rule that fired and the set it is from; empty where none did.
    retracts, target_ts_ms
        As in :class:`Retraction`.

    """

    v: int
    event_id: str
    user_id: str
    item_id: str
    ts_ms: int
    kind: Label
    weight: float
    rule: str = ""
    rules_version: str = ""
    signals: dict[str, float] = {}
    context: dict[str, str] = {}
    request_id: str | None = None
    retracts: str | None = None
    target_ts_ms: int | None = None


AttributeName = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
AttributeValue = str | int | float | bool | None | list[str | int | float | bool]


class Described(msgspec.Struct, frozen=True):
    """What a client says about an item or a user, in the topic ``items`` or ``users``.

    The key of the record is the id; a record without a value takes back all that was said.

    Parameters
    ----------
    v
        Version of the schema.
    attributes
        By name; they replace those that were said before, all of them.

    """

    v: int
    attributes: dict[AttributeName, AttributeValue]

    def __post_init__(self) -> None:
        """Refuse another version."""
        _check(self, (), ())


class DeadLetter(msgspec.Struct, frozen=True, gc=False):
    """A record that can never be processed, whole, with the reason.

    Parameters
    ----------
    original
        The bytes that came, base64 in JSON.
    reason, where
        As in :class:`stream.errors.BadEvent`.
    topic, partition, offset
        Where it came from.

    """

    original: bytes
    reason: str
    where: str
    topic: str
    partition: int
    offset: int


def _check(event: Any, ids: tuple[str, ...], times: tuple[str, ...]) -> None:
    if event.v != SCHEMA_VERSION:
        reason = f"version: this reader understands {SCHEMA_VERSION}, got {event.v}"
        raise BadEvent(reason, "$.v")
    for name in ids:
        value = getattr(event, name)
        if value.__class__ is int:
            force_setattr(event, name, str(value))
        elif not value:
            raise BadEvent("invalid: want an id, got an empty string", f"$.{name}")
    for name in times:
        ts_ms = getattr(event, name)
        if not MIN_TS_MS <= ts_ms < MAX_TS_MS:
            raise BadEvent(_wrong_time(ts_ms), f"$.{name}")


def _wrong_time(ts_ms: int) -> str:
    came = str(ts_ms) if abs(ts_ms) < 10**20 else "a number of more than 20 digits"
    reason = f"invalid: want milliseconds since 1970 from the years 1980 to 2099, got {came}"
    for unit, in_ms, remedy in (
        ("seconds", ts_ms * 1_000, "multiply by 1000"),
        ("microseconds", ts_ms // 1_000, "divide by 1000"),
        ("nanoseconds", ts_ms // 1_000_000, "divide by 1000000"),
    ):
        if MIN_TS_MS <= in_ms < MAX_TS_MS:
            return f"{reason}: these look like {unit}, {remedy}"
    return reason


@dataclass(frozen=True, slots=True, eq=False)
class FeedbackBatch:
    """Accepted events as columns, ``n`` of them.

    Parameters
    ----------
    event_id, user_id, item_id
        External ids.
    key
        :func:`event_key` of each event, ``(n,)``.
    ts_ms
        When each happened, ``(n,)``.
    kind
        :class:`Kind` of each, ``(n,)``.
    weight
        How much each counts, ``(n,)``.
    retracts
        Key of the event that a retraction takes back, 0 where there is none, ``(n,)``.
    target_ts_ms
        Time of that event, 0 where there is none, ``(n,)``.

    Examples
    --------
    >>> late = Feedback(1, "e2", "712", "5239", 1650812741437, "explicit_negative", 1.0)
    >>> early = Feedback(1, "e1", "712", "5239", 1650812741436, "explicit_positive", 1.0)
    >>> batch = FeedbackBatch.from_feedback([late, early]).in_order()
    >>> batch.event_id, batch.kind.tolist()
    (['e1', 'e2'], [0, 3])

    """

    event_id: list[str]
    key: NDArray[np.uint64]
    user_id: list[str]
    item_id: list[str]
    ts_ms: NDArray[np.int64]
    kind: NDArray[np.int8]
    weight: NDArray[np.float32]
    retracts: NDArray[np.uint64]
    target_ts_ms: NDArray[np.int64]

    def __len__(self) -> int:
        """Count the events."""
        return len(self.event_id)

    def take(self, indices: NDArray[np.int64]) -> FeedbackBatch:
        """Return the events at ``indices``, in that order."""
        rows = indices.tolist()
        return FeedbackBatch(
            [self.event_id[row] for row in rows],
            self.key[indices],
            [self.user_id[row] for row in rows],
            [self.item_id[row] for row in rows],
            self.ts_ms[indices],
            self.kind[indices],
            self.weight[indices],
            self.retracts[indices],
            self.target_ts_ms[indices],
        )

    def in_order(self) -> FeedbackBatch:
        """Return the events in the order of events everywhere: by ``(ts_ms, key)``."""
        return self.take(np.lexsort((self.key, self.ts_ms)).astype(np.int64))

    @classmethod
    def concat(cls, batches: Sequence[FeedbackBatch]) -> Self:
        """Return the events of all batches, one batch after the other."""
        if not batches:
            return cls.from_feedback([])
        return cls(
            list(chain.from_iterable(batch.event_id for batch in batches)),
            np.concatenate([batch.key for batch in batches]),
            list(chain.from_iterable(batch.user_id for batch in batches)),
            list(chain.from_iterable(batch.item_id for batch in batches)),
            np.concatenate([batch.ts_ms for batch in batches]),
            np.concatenate([batch.kind for batch in batches]),
            np.concatenate([batch.weight for batch in batches]),
            np.concatenate([batch.retracts for batch in batches]),
            np.concatenate([batch.target_ts_ms for batch in batches]),
        )

    @classmethod
    def from_feedback(cls, events: Sequence[Feedback | _Columns]) -> Self:
        """Return the columns of ``events``, in their order."""
        n = len(events)
        event_id = [event.event_id for event in events]
        retracts, target_ts_ms = np.zeros(n, np.uint64), np.zeros(n, np.int64)
        for row, event in enumerate(events):
            if event.retracts is not None:
                retracts[row] = event_key(event.retracts)
                target_ts_ms[row] = event.target_ts_ms or 0
        return cls(
            event_id,
            event_keys(event_id),
            [event.user_id for event in events],
            [event.item_id for event in events],
            np.fromiter([event.ts_ms for event in events], np.int64, n),
            np.fromiter([_KINDS[event.kind] for event in events], np.int8, n),
            np.fromiter([event.weight for event in events], np.float32, n),
            retracts,
            target_ts_ms,
        )

    @classmethod
    def from_records(cls, values: Sequence[bytes]) -> Self:
        """Return the columns of records of the topic ``feedback``.

        Raises
        ------
        BadEvent
            If a record is something else, an :class:`Erasure` too: where these may come, use
            :func:`read_feedback`.

        """
        return cls.from_feedback([decode(_columns, value) for value in values])

    def to_records(self) -> list[bytes]:
        """Return a record of the topic ``feedback`` for each event.

        Signals, context and the rule are not among the columns, hence not in the records. A
        retracted event is named by its key, written as an id of 32 digits that has this very key.
        """
        rows = zip(
            self.event_id,
            self.user_id,
            self.item_id,
            self.ts_ms.tolist(),
            self.kind.tolist(),
            self.weight.tolist(),
            self.retracts.tolist(),
            self.target_ts_ms.tolist(),
            strict=True,
        )
        return [
            encode(
                Feedback(
                    SCHEMA_VERSION,
                    event_id,
                    user_id,
                    item_id,
                    ts_ms,
                    _LABELS[kind],
                    weight,
                    retracts=f"{retracts:016x}{0:016x}" if kind == Kind.RETRACTION else None,
                    target_ts_ms=target_ts_ms if kind == Kind.RETRACTION else None,
                )
            )
            for event_id, user_id, item_id, ts_ms, kind, weight, retracts, target_ts_ms in rows
        ]


def decode_interaction(value: bytes) -> Interaction | Retraction | Erasure:
    """Read a record of the topic ``interactions``.

    Raises
    ------
    BadEvent
        If it can never be processed; with the reason and the place in the event.

    Examples
    --------
    >>> decode_interaction(b'{"v":1,"erase_user":712}')
    Erasure(v=1, erase_user='712')
    >>> decode_interaction(b'{"v":1,"erase_user":true}')
    Traceback (most recent call last):
        ...
    stream.errors.BadEvent: $.erase_user: invalid: expected `int | str`, got `bool`

    """
    # A name may be spelled with escapes, so a backslash (92) is reason enough to look closer. To
    # `find` bytes takes half as long as to ask whether they are `in`.
    if value.find(b"retracts") < 0 and value.find(b"erase_user") < 0 and 92 not in value:
        return decode(_interaction, value)
    shape = decode(_shape, value)
    said = [name for name in _SHAPES if getattr(shape, name) is not msgspec.UNSET]
    if len(said) > 1:
        raise BadEvent(f"invalid: a record says one thing, got {' and '.join(said)}")
    event: Interaction | Retraction | Erasure
    event = decode(_SHAPES[said[0] if said else "signals"], value)
    return event


def decode_feedback(value: bytes) -> Feedback | Erasure:
    """Read a record of the topic ``feedback``.

    Raises
    ------
    BadEvent
        If it is something else.

    """
    try:
        return decode(_feedback, value)
    except BadEvent:
        try:
            return decode(_erasure, value)
        except BadEvent:
            pass
        raise


def decode_described(value: bytes) -> Described | None:
    """Read a record of the topic ``items`` or ``users``; ``None`` is a tombstone.

    Raises
    ------
    BadEvent
        If it is something else.

    Examples
    --------
    >>> decode_described(b'{"v":1,"attributes":{"tag":["sea","art"]}}')
    Described(v=1, attributes={'tag': ['sea', 'art']})
    >>> decode_described(b"") is None
    True

    """
    return decode(_described, value) if value else None


def read_feedback(values: Sequence[bytes]) -> tuple[FeedbackBatch, list[Erasure]]:
    """Read records of the topic ``feedback``: the events as columns, and who wants to be forgotten.

    Raises
    ------
    BadEvent
        If a record is something else.

    """
    events = [decode_feedback(value) for value in values]
    feedback = [event for event in events if isinstance(event, Feedback)]
    erasures = [event for event in events if isinstance(event, Erasure)]
    return FeedbackBatch.from_feedback(feedback), erasures


class _Columns(msgspec.Struct, gc=False):
    """The fields of a :class:`Feedback` that are columns: to skip the rest saves two thirds."""

    v: int
    event_id: str
    user_id: str
    item_id: str
    ts_ms: int
    kind: Label
    weight: float
    retracts: str | None = None
    target_ts_ms: int | None = None


class _Shape(msgspec.Struct):
    signals: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    retracts: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    erase_user: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


encode = msgspec.json.Encoder().encode
"""Write any record of this module, compact JSON in UTF-8."""

_interaction = msgspec.json.Decoder(Interaction)
_retraction = msgspec.json.Decoder(Retraction)
_erasure = msgspec.json.Decoder(Erasure)
_feedback = msgspec.json.Decoder(Feedback)
_columns = msgspec.json.Decoder(_Columns)
_described = msgspec.json.Decoder(Described)
_shape = msgspec.json.Decoder(_Shape)
_SHAPES: dict[str, msgspec.json.Decoder[Any]] = {
    "signals": _interaction,
    "retracts": _retraction,
    "erase_user": _erasure,
}
