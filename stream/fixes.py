"""What to change in dead letters before they are sent again: a TOML file of small corrections."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from stream.errors import BadEvent, BadRules

_WHOLE: Final = {"ts_ms", "target_ts_ms"}
"""Fields that are whole numbers on the wire: a product is rounded."""

_Path = tuple[str, ...]


class Fix(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One correction; what it says is done in the order of the parameters.

    A field is named as in ``ts_ms`` or ``signals.play_ms``; ``signals.*`` are all entries.

    Parameters
    ----------
    name
        Unique in the file; messages and counts use it.
    when
        To which letters it is applied: an expression as of ``--where``.
    rename
        Old name and new name. Nothing happens where there is no such field.
    scale
        Field and factor: ``ts_ms = 1000`` makes milliseconds of seconds. Takes numbers, and texts
        of numbers; times are rounded to whole milliseconds.
    cast
        Field and ``text`` or ``number``.
    set
        Field and its new value, a number, a text, true or false; made where there is none.

    """

    name: str
    when: str = "TRUE"
    rename: dict[str, str] = {}
    scale: dict[str, float] = {}
    cast: dict[str, Literal["text", "number"]] = {}
    set: dict[str, str | bool | int | float] = {}

    def apply(self, event: dict[str, Any]) -> None:
        """Change an event in place.

        Raises
        ------
        BadEvent
            If the event holds something there that cannot be changed so.

        Examples
        --------
        >>> event = {"uid": 712, "ts_ms": 1650812741, "signals": {"click": "1"}}
        >>> Fix(
        ...     "old client",
        ...     rename={"uid": "user_id"},
        ...     scale={"ts_ms": 1000},
        ...     cast={"signals.*": "number"},
        ...     set={"v": 1},
        ... ).apply(event)
        >>> event
        {'ts_ms': 1650812741000, 'signals': {'click': 1}, 'user_id': 712, 'v': 1}

        """
        for old, new in self.rename.items():
            for owner, key in _found(event, old):
                value = owner.pop(key)
                _put(event, new, value)
        for field, factor in self.scale.items():
            for owner, key in _found(event, field):
                owner[key] = _product(_number(owner[key], field), factor, field)
        for field, kind in self.cast.items():
            for owner, key in _found(event, field):
                value = owner[key]
                owner[key] = _number(value, field) if kind == "number" else _text(value, field)
        for field, value in self.set.items():
            _put(event, field, value)


class _File(msgspec.Struct, forbid_unknown_fields=True):
    fix: list[Fix]


@dataclass(frozen=True)
class Fixes:
    """The corrections of a file, in order; every one that applies to a letter is made."""

    fixes: tuple[Fix, ...] = ()

    def apply(self, original: bytes, applies: tuple[bool, ...]) -> bytes:
        """Return the record with those corrections made that apply.

        Raises
        ------
        BadEvent
            If the record is not a JSON object, or cannot be changed so. A record to which nothing
            applies is returned as it is, whatever it holds.

        """
        if not any(applies):
            return original
        try:
            event = json.loads(original)  # also reads NaN, which is often what is to be mended
        except (ValueError, RecursionError) as error:
            raise BadEvent(f"undecodable: only JSON can be corrected: {error}") from error
        if not isinstance(event, dict):
            raise BadEvent("invalid: only a JSON object can be corrected")
        for fix, does in zip(self.fixes, applies, strict=True):
            if does:
                fix.apply(event)
        try:
            return msgspec.json.encode(event)
        except (ValueError, OverflowError, msgspec.EncodeError) as error:
            raise BadEvent(f"invalid: cannot be written as JSON: {error}") from error


def load_fixes(path: Path, check_when: Callable[[str], None]) -> Fixes:
    """Read a file of corrections and check it.

    Parameters
    ----------
    path
        TOML, as ``docs/dead-letters.md`` tells.
    check_when
        Raises ``ValueError`` with a reason when it is given a condition that cannot be used.

    Raises
    ------
    BadRules
        If a correction must not be used; the message names it.

    """
    try:
        file = msgspec.toml.decode(path.read_text(encoding="utf-8-sig"), type=_File)
    except OSError as error:
        raise BadRules(f"cannot read the fixes {path}: {error.strerror}") from error
    except (msgspec.DecodeError, ValueError) as error:
        raise BadRules(f"{path}: {error}; see docs/dead-letters.md for what it may hold") from error
    names: set[str] = set()
    for number, fix in enumerate(file.fix, start=1):
        place = f"{path}: fix {number} ({fix.name})"
        if fix.name in names:
            raise BadRules(f"{place}: there is an earlier fix of this name, rename one")
        names.add(fix.name)
        try:
            check_when(fix.when)
        except ValueError as error:
            raise BadRules(f"{place}: when = {fix.when!r}: {error}") from error
        check_fix(fix, place)
    if not file.fix:
        raise BadRules(f"{path}: want at least one [[fix]], got none")
    return Fixes(tuple(file.fix))


def check_fix(fix: Fix, place: str) -> None:
    """Raise :class:`BadRules` if a correction must not be used, whatever its condition."""
    if not (fix.rename or fix.scale or fix.cast or fix.set):
        raise BadRules(f"{place}: changes nothing; want rename, scale, cast or set")
    for field in (*fix.rename, *fix.scale, *fix.cast):
        _check_field(field, place, star=field not in fix.rename)
    for field in (*fix.rename.values(), *fix.set):
        _check_field(field, place, star=False)
    for field, factor in fix.scale.items():
        if not math.isfinite(factor) or factor == 0:
            raise BadRules(f"{place}: want a factor for {field} that is not 0, got {factor}")
    for field, value in fix.set.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise BadRules(f"{place}: want a finite number for {field}, got {value}")


def _check_field(field: str, place: str, *, star: bool) -> None:
    path = _path(field)
    if not all(path) or len(path) > 2 or field.startswith("$"):
        raise BadRules(f"{place}: want a field as in ts_ms or signals.click, got {field!r}")
    if "*" in path[:1] or ("*" in path and not star):
        raise BadRules(f"{place}: only scale and cast take all entries (signals.*), got {field!r}")


def _path(field: str) -> _Path:
    """Take a name apart: at its first dot, as names of signals may hold more of them."""
    owner, dot, key = field.partition(".")
    return (owner, key) if dot else (owner,)


def _found(event: dict[str, Any], field: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the dict and the key of each entry that a name means, if it is there."""
    *owner, key = _path(field)
    inner = event.get(owner[0]) if owner else event
    if not isinstance(inner, dict):
        return
    if key == "*":
        yield from [(inner, one) for one in inner]
    elif key in inner:
        yield inner, key


def _put(event: dict[str, Any], field: str, value: object) -> None:
    *owner, key = _path(field)
    inner = event.setdefault(owner[0], {}) if owner else event
    if not isinstance(inner, dict):
        raise BadEvent(f"invalid: cannot set {field}: not an object", f"$.{owner[0]}")
    inner[key] = value


def _product(number: float, factor: float, field: str) -> float:
    try:
        product = number * factor
        return round(product) if field in _WHOLE else product
    except (ValueError, OverflowError) as error:  # no number, or one too great to be any time
        raise BadEvent(f"invalid: cannot scale {number}: {error}", f"$.{field}") from error


def _number(value: object, field: str) -> float:
    """Return a number as it is, or what a text or a truth value says as a number."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int | float):
        return value
    if isinstance(value, str):
        for kind in (int, float):
            try:
                return kind(value)
            except ValueError:
                pass
    shown = json.dumps(value)[:40]
    raise BadEvent(f"invalid: want a number or the text of one, got {shown}", f"$.{field}")


def _text(value: object, field: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() else repr(value)
    shown = json.dumps(value)[:40]
    raise BadEvent(f"invalid: cannot make a text of {shown}", f"$.{field}")
