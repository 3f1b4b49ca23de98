"""The log that everything travels on: topics, partitions and positions; here, in memory."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol

from stream.errors import BadPosition, BadSettings

Positions = dict[int, int]
"""Per partition the offset of the next record to read."""


class Record(NamedTuple):
    """One entry of a log, and where it is."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes
    timestamp_ms: int  # when it was appended, as whoever appended it says
    headers: tuple[tuple[str, bytes], ...] = ()


class Log(Protocol):
    """What the rooms need of a log, whether it is in memory or a broker.

    Entries with the same key lie in one partition, in the order in which they were appended;
    offsets of a partition only grow. Entries without a key are spread over the partitions.
    """

    def append(
        self,
        topic: str,
        entries: Sequence[tuple[bytes | None, bytes]],
        *,
        timestamp_ms: int,
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> None:
        """Add ``(key, value)`` entries at the end, with the same headers on each."""
        ...

    def read(
        self, topic: str, positions: Mapping[int, int], *, limit: int, wait: bool = True
    ) -> list[Record]:
        """Return up to ``limit`` records from ``positions`` on, of these partitions alone.

        Records of one partition are in order and without a gap; an empty list says that there is
        nothing more yet, for which a broker is given a moment if ``wait``. Positions are the
        caller's: see :func:`advance`.

        Raises
        ------
        BadPosition
            If the log no longer has, or never had, what lies there.

        """
        ...

    def start(self, topic: str) -> Positions:
        """Return the position of the first record that every partition still has."""
        ...

    def end(self, topic: str) -> Positions:
        """Return the position behind the last record of every partition."""
        ...

    def at(self, topic: str, ts_ms: int) -> Positions:
        """Return the position of the first record that was appended at ``ts_ms`` or later."""
        ...

    def lag(self, topic: str, positions: Mapping[int, int]) -> int:
        """Return how many records lie behind ``positions``, of these partitions alone."""
        ...

    def partitions(self, topic: str) -> int:
        """Return how many partitions a topic has."""
        ...


def advance(positions: Mapping[int, int], records: Sequence[Record]) -> Positions:
    """Return the positions behind ``records``, which were read from ``positions``.

    Examples
    --------
    >>> log = MemoryLog()
    >>> log.append("feedback", [(b"712", b"a"), (b"712", b"b")], timestamp_ms=0)
    >>> advance({0: 0}, log.read("feedback", {0: 0}, limit=1))
    {0: 1}

    """
    return {**positions, **{record.partition: record.offset + 1 for record in records}}


@lru_cache(maxsize=1 << 16)
def partition_of(key: bytes, n_partitions: int) -> int:
    """Return the partition of a key, the same that Kafka's own clients choose.

    Notes
    -----
    Murmur2 as Kafka seeds it. kafka-python has it too, behind an import of half a second.

    Examples
    --------
    >>> [partition_of(user, 4) for user in (b"712", b"713", b"714")]
    [3, 0, 2]

    """
    if n_partitions == 1:
        return 0
    mask, factor = 0xFFFFFFFF, 0x5BD1E995
    whole = len(key) // 4 * 4
    hashed = 0x9747B28C ^ len(key)
    for (word,) in struct.iter_unpack("<I", key[:whole]):
        mixed = word * factor & mask
        hashed = hashed * factor & mask ^ (mixed ^ mixed >> 24) * factor & mask
    if rest := key[whole:]:
        hashed = (hashed ^ int.from_bytes(rest, "little")) * factor & mask
    hashed = (hashed ^ hashed >> 13) * factor & mask
    return ((hashed ^ hashed >> 15) & 0x7FFFFFFF) % n_partitions


class _Partition:
    def __init__(self) -> None:
        self.first = 0  # offset of the first record that is kept
        self.records: list[Record] = []

    @property
    def end(self) -> int:
        return self.first + len(self.records)


class MemoryLog:
    """A :class:`Log` of one process.

    Parameters
    ----------
    n_partitions
        Of every topic.

    Raises
    ------
    BadSettings
        If there would be no partition.

    Notes
    -----
    Topics come into being when they are first named. Records stay until :meth:`trim`, so whoever
    has read them says so, or the memory grows with the log. For one thread.

    Examples
    --------
    >>> log = MemoryLog()
    >>> log.append("interactions", [(b"712", b"{}"), (b"713", b"{}")], timestamp_ms=1650812741436)
    >>> log.end("interactions")
    {0: 2}
    >>> [record.key for record in log.read("interactions", {0: 1}, limit=10)]
    [b'713']

    """

    def __init__(self, n_partitions: int = 1) -> None:
        if n_partitions < 1:
            raise BadSettings(f"want at least 1 partition, got {n_partitions}")
        self._n_partitions = n_partitions
        self._topics: dict[str, list[_Partition]] = {}
        self._keyless = 0

    def append(
        self,
        topic: str,
        entries: Sequence[tuple[bytes | None, bytes]],
        *,
        timestamp_ms: int,
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> None:
        """Add ``(key, value)`` entries at the end, with the same headers on each."""
        marked = tuple(headers)
        partitions = self._partitions(topic)
        for key, value in entries:
            if key is None:
                number = self._keyless % self._n_partitions
                self._keyless += 1
            else:
                number = partition_of(key, self._n_partitions)
            partition = partitions[number]
            record = Record(topic, number, partition.end, key, value, timestamp_ms, marked)
            partition.records.append(record)

    def read(
        self, topic: str, positions: Mapping[int, int], *, limit: int, wait: bool = True
    ) -> list[Record]:
        """Return up to ``limit`` records, of each partition a share; there is no wait.

        Raises
        ------
        BadPosition
            If a position lies before the first record that is kept, or behind the end.

        """
        partitions = self._partitions(topic)
        records: list[Record] = []
        for left, (number, position) in zip(
            range(len(positions), 0, -1), sorted(positions.items()), strict=True
        ):
            if not 0 <= number < self._n_partitions:
                known = f"0 to {self._n_partitions - 1}"
                raise BadPosition(f"{topic} has partitions {known}, got {number}")
            partition = partitions[number]
            if not partition.first <= position <= partition.end:
                kept = f"{partition.first} to {partition.end}"
                raise BadPosition(
                    f"{topic}, partition {number}: positions are {kept}, got {position}"
                )
            share = -((len(records) - limit) // left)  # rounded up
            start = position - partition.first
            records += partition.records[start : start + share]
        return records

    def start(self, topic: str) -> Positions:
        """Return the position of the first record that every partition still has."""
        return {number: partition.first for number, partition in enumerate(self._partitions(topic))}

    def end(self, topic: str) -> Positions:
        """Return the position behind the last record of every partition."""
        return {number: partition.end for number, partition in enumerate(self._partitions(topic))}

    def at(self, topic: str, ts_ms: int) -> Positions:
        """Return the position of the first record that was appended at ``ts_ms`` or later."""
        return {
            number: next(
                (each.offset for each in partition.records if each.timestamp_ms >= ts_ms),
                partition.end,
            )
            for number, partition in enumerate(self._partitions(topic))
        }

    def lag(self, topic: str, positions: Mapping[int, int]) -> int:
        """Return how many records lie behind ``positions``, of these partitions alone."""
        end = self.end(topic)
        return sum(end[number] - position for number, position in positions.items())

    def partitions(self, topic: str) -> int:
        """Return how many partitions a topic has."""
        return self._n_partitions

    def trim(self, topic: str, positions: Mapping[int, int]) -> None:
        """Forget the records before ``positions``: they are not asked for any more.

        Examples
        --------
        >>> log = MemoryLog()
        >>> log.append("feedback", [(b"712", b"a"), (b"712", b"b")], timestamp_ms=0)
        >>> log.trim("feedback", {0: 1})
        >>> [record.offset for record in log.read("feedback", {0: 1}, limit=10)]
        [1]

        """
        partitions = self._partitions(topic)
        for number, position in positions.items():
            partition = partitions[number]
            n_gone = min(max(0, position - partition.first), len(partition.records))
            del partition.records[:n_gone]
            partition.first += n_gone

    def _partitions(self, topic: str) -> list[_Partition]:
        return self._topics.setdefault(topic, [_Partition() for _ in range(self._n_partitions)])
