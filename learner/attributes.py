"""Follows the topics ``items`` and ``users``: what is said of an item or a user, by id."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from stream.errors import BadEvent
from stream.events import decode_described
from stream.log import Log, Positions, Record, advance
from stream.topics import ITEMS, USERS

_READ: Final = 4_096
"""Records of a topic asked for at a time."""

_log = logging.getLogger(__name__)


class Said(NamedTuple):
    """The last word on some items and users, by id; nothing takes back what was said before."""

    items: dict[str, dict[str, Any]]
    users: dict[str, dict[str, Any]]


class Attributes:
    """Reads what is said, and remembers up to where it has been published.

    Nothing is kept here: both topics are compacted, so that a reader who begins anew finds the
    last word on every id.

    Parameters
    ----------
    log
        With the two topics.

    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._published: dict[str, Positions] = {}
        self._read_to: dict[str, Positions] = {}

    def read(self) -> Said:
        """Return what comes next, without waiting for it; nothing where there is no more.

        Raises
        ------
        LogError
            If the broker does not answer as wanted.

        """
        said = Said({}, {})
        for topic, of_topic in zip((ITEMS, USERS), said, strict=True):
            if topic not in self._read_to:
                self._read_to[topic] = self._start(topic)
            records = self._log.read(topic, self._read_to[topic], limit=_READ, wait=False)
            self._read_to[topic] = advance(self._read_to[topic], records)
            for record in records:
                try:
                    of_topic |= _entry(record)
                except BadEvent as error:
                    where = f"{topic}, partition {record.partition}, offset {record.offset}"
                    _log.error("left out a record that cannot be read: %s: %s", where, error)
        return said

    def published(self) -> None:
        """Remember that all that was read is published."""
        self._published = dict(self._read_to)

    def read_again(self) -> None:
        """Begin anew: whatever was published is lost."""
        self._published, self._read_to = {}, {}

    def state(self) -> dict[str, Any]:
        """Return up to where all is published."""
        return {topic: sorted(positions.items()) for topic, positions in self._published.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` returned."""
        self._published = {topic: dict(positions) for topic, positions in state.items()}
        self._read_to = {}

    def _start(self, topic: str) -> Positions:
        """Return where to go on; the start, where the log is not the one that was left."""
        first, end = self._log.start(topic), self._log.end(topic)
        known = self._published.get(topic, {})
        if known.keys() == first.keys() and all(
            first[number] <= at <= end[number] for number, at in known.items()
        ):
            return dict(known)
        return first


def _entry(record: Record) -> dict[str, dict[str, Any]]:
    """Return what a record says, by the id that is its key."""
    try:
        name = (record.key or b"").decode()
    except UnicodeDecodeError as error:
        raise BadEvent("key: want an id in UTF-8", "key") from error
    if not name:
        raise BadEvent("key: want an id, got none", "key")
    described = decode_described(record.value)
    return {name: {} if described is None else described.attributes}
