"""From bytes to a struct, or to a fault with its reason and its place in the event."""

from __future__ import annotations

import json
import math
import re
from typing import TypeVar

import msgspec

from stream.errors import BadEvent

T = TypeVar("T")


class _Maps(msgspec.Struct):
    signals: dict[str, msgspec.Raw] = {}
    context: dict[str, msgspec.Raw] = {}


def decode(decoder: msgspec.json.Decoder[T], value: bytes) -> T:
    """Read one record.

    Raises
    ------
    BadEvent
        If ``value`` is not what ``decoder`` reads.

    Examples
    --------
    >>> decode(msgspec.json.Decoder(dict[str, int]), b'{"a":1,')
    Traceback (most recent call last):
        ...
    stream.errors.BadEvent: $: undecodable: input data was truncated

    """
    try:
        return decoder.decode(value)
    except msgspec.ValidationError as error:
        raise _invalid(value, str(error)) from error
    except RecursionError as error:
        reason = "undecodable: nested too deeply"
        raise BadEvent(reason) from error
    except ValueError as error:  # what msgspec raises, and Python for text that is not UTF-8
        raise _undecodable(value, str(error)) from error


def _invalid(value: bytes, message: str) -> BadEvent:
    if missing := re.fullmatch("Object missing required field `(.*)`", message):
        return BadEvent("invalid: this field is missing", f"$.{missing[1]}")
    problem, _, place = message.partition(" - at `")
    where = place.replace("`", "") or "$"  # a wrong name comes as key` in `$.attributes`
    if where.endswith("[...]"):
        where = _entry(value, where.removeprefix("$.").removesuffix("[...]"))
    return BadEvent(f"invalid: {_uncapitalised(problem)}", where)


def _entry(value: bytes, field: str) -> str:
    """Find the first entry of a map that is not of the map's type: msgspec does not name it."""
    wanted = {"signals": float, "context": str}.get(field)
    if wanted is None:  # a map of several types, told as a whole
        return f"$.{field}"
    for name, raw in getattr(msgspec.json.decode(value, type=_Maps), field).items():
        try:
            msgspec.json.decode(raw, type=wanted)
        except ValueError:
            return f"$.{field}.{name}"
    return f"$.{field}"


def _undecodable(value: bytes, message: str) -> BadEvent:
    """Say what is wrong with what is not JSON; NaN and infinities, often written, by name."""
    try:
        signals = json.loads(value)["signals"]
        name, number = next((k, v) for k, v in signals.items() if not math.isfinite(v))
    except Exception:  # noqa: BLE001 - garbage fails in any way it likes; the first message stands
        return BadEvent(f"undecodable: {_uncapitalised(message)}")
    return BadEvent(f"invalid: want a finite number, got {number}", f"$.signals.{name}")


def _uncapitalised(message: str) -> str:
    return message[:1].lower() + message[1:]
