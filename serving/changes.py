"""What a publish touched, by id, so that whoever keeps rows in memory reads only those again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

import msgspec

CHANGES_KEPT: Final = 256
"""Publishes that a table remembers: two minutes of a busy learner."""

_NOBODY: Final[frozenset[str]] = frozenset()


class Changes(NamedTuple):
    """What changed after a cursor, up to another.

    An id that was forgotten and written again stands in both sets: let go of it, then read it.

    Attributes
    ----------
    cursor
        Where these changes end: what to ask after next.
    items, users
        Ids of which a row, a list, a seen set or attributes were written.
    gone_items, gone_users
        Ids that were forgotten.
    whole
        The table no longer knows all that lies after the cursor that was asked after: take
        everything for changed. The sets are empty then.

    """

    cursor: str
    items: frozenset[str] = _NOBODY
    gone_items: frozenset[str] = _NOBODY
    users: frozenset[str] = _NOBODY
    gone_users: frozenset[str] = _NOBODY
    whole: bool = False


def joined(cursor: str, parts: Iterable[Changes]) -> Changes:
    """Return the changes of consecutive parts as those of one, that ends at ``cursor``.

    Examples
    --------
    >>> written, gone = Changes("1", items=frozenset("ab")), Changes("2", gone_items=frozenset("a"))
    >>> joined("2", [written, gone])[1:3] == (frozenset("b"), frozenset("a"))
    True

    """
    items, gone_items, users, gone_users = _NOBODY, _NOBODY, _NOBODY, _NOBODY
    for part in parts:
        items = items - part.gone_items | part.items
        users = users - part.gone_users | part.users
        gone_items |= part.gone_items
        gone_users |= part.gone_users
    return Changes(cursor, items, gone_items, users, gone_users)


def encode_changes(changes: Changes) -> bytes:
    """Return what was touched as one value; its cursor is not part of it."""
    sets = changes.items, changes.gone_items, changes.users, changes.gone_users
    return msgspec.msgpack.encode([sorted(each) for each in sets])


def decode_changes(cursor: str, value: bytes) -> Changes:
    """Return the changes of :func:`encode_changes`, that end at ``cursor``."""
    return Changes(cursor, *msgspec.msgpack.decode(value, type=_SETS))


_SETS: Final = tuple[frozenset[str], frozenset[str], frozenset[str], frozenset[str]]
