"""Maps external ids (any text) to dense rows, growing as ids appear and reusing expired rows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from graph_store.memory import grown, with_room
from stream.errors import BadSnapshot, TidegraphError

Counters = NDArray[np.int64]

N_ROWS, N_LIVE, N_FREE, N_BYTES, LIVE_BYTES = range(5)
"""Places in the counters: rows ever given out, ids now known, rows waiting for reuse, bytes
written to the text pool, and how many of those belong to a known id."""

FREE: Final = -1
"""The length of a row without an id."""

SPAN: Final = np.dtype([("start", "<i8"), ("length", "<i4")])
"""Where a row's id lies in the text pool."""

_FNV_OFFSET: Final = np.uint64(0xCBF29CE484222325)
_FNV_PRIME: Final = np.uint64(0x100000001B3)
_LOW: Final = np.uint64(0xFFFFFFFF)
_HALF: Final = np.uint64(32)
_NOTHING: Final = np.uint64(0)


@njit(cache=True)
def mix(value: np.uint64) -> np.uint64:
    """Spread the bits of a 64-bit number evenly (the finaliser of SplitMix64)."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@njit(cache=True)
def _hash(text: NDArray[np.uint8], start: int, end: int) -> np.uint64:
    """FNV-1a over the bytes, then mixed: the same in every process."""
    value = _FNV_OFFSET
    for at in range(start, end):
        value = (value ^ np.uint64(text[at])) * _FNV_PRIME
    return mix(value)


@njit(cache=True)
def _same(
    text: NDArray[np.uint8], start: int, end: int, pool: NDArray[np.uint8], at: int, length: int
) -> bool:
    """Tell whether a query's bytes are those of a pooled id."""
    if end - start != length:
        return False
    n = 0
    while n < length and text[start + n] == pool[at + n]:
        n += 1
    return n == length


@njit(cache=True)
def _slot_of(
    text: NDArray[np.uint8],
    start: int,
    end: int,
    table: NDArray[np.uint64],
    spans: NDArray[np.void],
    pool: NDArray[np.uint8],
) -> tuple[int, np.uint64]:
    """Return the slot that holds an id, or the empty one where it belongs, and its 32-bit tag."""
    tag = _hash(text, start, end) >> _HALF
    mask = table.shape[0] - 1
    slot = np.int64(tag) & mask
    while table[slot] != _NOTHING:
        if table[slot] >> _HALF == tag:
            span = spans[np.int64(table[slot] & _LOW) - 1]
            if _same(text, start, end, pool, span.start, span.length):
                break
        slot = (slot + 1) & mask
    return slot, tag


@njit(cache=True)
def _find(
    text: NDArray[np.uint8],
    ends: NDArray[np.int64],
    table: NDArray[np.uint64],
    spans: NDArray[np.void],
    pool: NDArray[np.uint8],
    rows: NDArray[np.int64],
) -> None:
    """Fill ``rows`` with the row of each id, -1 where it is unknown."""
    start = 0
    for n in range(ends.shape[0]):
        slot, _ = _slot_of(text, start, ends[n], table, spans, pool)
        rows[n] = np.int64(table[slot] & _LOW) - 1
        start = ends[n]


@njit(cache=True)
def _allocate(
    first: int,
    text: NDArray[np.uint8],
    ends: NDArray[np.int64],
    table: NDArray[np.uint64],
    spans: NDArray[np.void],
    pool: NDArray[np.uint8],
    free: NDArray[np.int64],
    count: Counters,
    rows: NDArray[np.int64],
) -> int:
    """Fill ``rows`` from index ``first`` on; return the index where room ran out, or the end."""
    start = ends[first - 1] if first else 0
    for n in range(first, ends.shape[0]):
        end = ends[n]
        slot, tag = _slot_of(text, start, end, table, spans, pool)
        if table[slot] == _NOTHING:
            length = end - start
            if (
                count[N_BYTES] + length > pool.shape[0]
                or (count[N_FREE] == 0 and count[N_ROWS] == spans.shape[0])
                or 4 * (count[N_LIVE] + 1) > 3 * table.shape[0]
            ):
                return n
            if count[N_FREE]:
                count[N_FREE] -= 1
                row = free[count[N_FREE]]
            else:
                row = count[N_ROWS]
                count[N_ROWS] += 1
            spans[row].start = count[N_BYTES]
            spans[row].length = length
            for at in range(length):
                pool[count[N_BYTES] + at] = text[start + at]
            count[N_BYTES] += length
            count[LIVE_BYTES] += length
            count[N_LIVE] += 1
            table[slot] = (tag << _HALF) | np.uint64(row + 1)
        rows[n] = np.int64(table[slot] & _LOW) - 1
        start = end
    return len(ends)


@njit(cache=True)
def _expire(
    rows: NDArray[np.int64],
    table: NDArray[np.uint64],
    spans: NDArray[np.void],
    pool: NDArray[np.uint8],
    count: Counters,
    nameless: NDArray[np.int64],
) -> int:
    """Forget the ids of ``rows``; fill in and count those that had one, and have none now."""
    mask = table.shape[0] - 1
    n_nameless = 0
    for row in rows:
        if row < 0 or row >= count[N_ROWS] or spans[row].length == FREE:
            continue
        start, length = spans[row].start, np.int64(spans[row].length)
        hole, _ = _slot_of(pool, start, start + length, table, spans, pool)
        # Linear probing without tombstones: whatever could have stood in the hole moves into it.
        slot = hole
        while True:
            slot = (slot + 1) & mask
            if table[slot] == _NOTHING:
                break
            home = np.int64(table[slot] >> _HALF) & mask
            if (slot - home) & mask >= (slot - hole) & mask:
                table[hole] = table[slot]
                hole = slot
        table[hole] = _NOTHING
        spans[row].length = FREE
        pool[start : start + length] = 0
        nameless[n_nameless] = row
        n_nameless += 1
        count[N_LIVE] -= 1
        count[LIVE_BYTES] -= length
    return n_nameless


@njit(cache=True)
def _rehash(table: NDArray[np.uint64], bigger: NDArray[np.uint64]) -> None:
    """Move every entry to a bigger table; the tag in each entry says where it belongs."""
    mask = bigger.shape[0] - 1
    for entry in table:
        if entry != _NOTHING:
            slot = np.int64(entry >> _HALF) & mask
            while bigger[slot] != _NOTHING:
                slot = (slot + 1) & mask
            bigger[slot] = entry


@njit(cache=True)
def _fill_table(
    table: NDArray[np.uint64], spans: NDArray[np.void], pool: NDArray[np.uint8]
) -> None:
    """Enter every row that has an id."""
    mask = table.shape[0] - 1
    for row in range(spans.shape[0]):
        length = np.int64(spans[row].length)
        if length == FREE:
            continue
        tag = _hash(pool, spans[row].start, spans[row].start + length) >> _HALF
        slot = np.int64(tag) & mask
        while table[slot] != _NOTHING:
            slot = (slot + 1) & mask
        table[slot] = (tag << _HALF) | np.uint64(row + 1)


@njit(cache=True)
def _gather(
    spans: NDArray[np.void], pool: NDArray[np.uint8], packed: NDArray[np.uint8]
) -> NDArray[np.void]:
    """Copy the ids to ``packed`` one after the other; return where each row's lies there."""
    moved = spans.copy()
    at = 0
    for row in range(spans.shape[0]):
        if spans[row].length == FREE:
            continue
        start = spans[row].start
        moved[row].start = at
        for n in range(spans[row].length):
            packed[at] = pool[start + n]
            at += 1
    return moved


@njit(cache=True)
def _digests(spans: NDArray[np.void], pool: NDArray[np.uint8], digests: NDArray[np.uint64]) -> None:
    for row in range(digests.shape[0]):
        if spans[row].length != FREE:
            start = spans[row].start
            digests[row] = _hash(pool, start, start + spans[row].length)


def _pack(ids: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the ids as one run of UTF-8 bytes, and where each ends."""
    joined = "".join(ids)
    # Lone surrogates can stand in text that came from JSON; they must survive the way back.
    data = joined.encode("utf-8", "surrogatepass")
    parts: Sequence[str] | list[bytes] = ids
    if len(data) != len(joined):
        parts = [part.encode("utf-8", "surrogatepass") for part in ids]
    ends = np.fromiter(accumulate(map(len, parts)), np.int64, len(ids))
    return np.frombuffer(data, np.uint8), ends


class Ids:
    """External ids and their rows: one hash table over one pool of text.

    A row is given at first sight, in order, and stays until it expires; an expired row is
    given to the next new id, the latest expired first; an erased one to nobody. Which row an id
    gets is therefore a function of the calls alone.

    Notes
    -----
    Everything lies in flat arrays: about 30 bytes a row, and the bytes of the id with at most
    a quarter of slack. Looking up costs O(length of the id). One writer; any number of readers
    between two writes.

    Examples
    --------
    >>> ids = Ids()
    >>> ids.rows(["u7", "u3", "u7"]).tolist()
    [0, 1, 0]
    >>> ids.find(["u3", "u9"]).tolist()
    [1, -1]
    >>> ids.id_of(0)
    'u7'
    >>> ids.expire(np.array([0]))
    >>> ids.rows(["u9"]).tolist(), len(ids)
    ([0], 2)

    """

    def __init__(self) -> None:
        self._table = np.zeros(256, np.uint64)
        self._spans = np.zeros(128, SPAN)
        self._pool = np.zeros(2048, np.uint8)
        self._free = np.zeros(0, np.int64)
        self._count = np.zeros(5, np.int64)

    def __len__(self) -> int:
        """Return how many rows were ever given out: every row is below this number."""
        return int(self._count[N_ROWS])

    @property
    def n_live(self) -> int:
        """Ids that are known now."""
        return int(self._count[N_LIVE])

    @property
    def n_bytes(self) -> int:
        """Memory of the mapping, slack included."""
        arrays = (self._table, self._spans, self._pool, self._free, self._count)
        return sum(array.nbytes for array in arrays)

    def rows(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Return the row of each id, giving a new one to an id seen for the first time."""
        text, ends = _pack(ids)
        rows = np.empty(len(ids), np.int64)
        done = 0
        while True:
            done = _allocate(
                done,
                text,
                ends,
                self._table,
                self._spans,
                self._pool,
                self._free,
                self._count,
                rows,
            )
            if done == len(ids):
                return rows
            start = int(ends[done - 1]) if done else 0
            self._make_room(int(ends[done]) - start)

    def find(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Return the row of each id, -1 where it is unknown; nothing is changed."""
        text, ends = _pack(ids)
        rows = np.empty(len(ids), np.int64)
        _find(text, ends, self._table, self._spans, self._pool, rows)
        return rows

    def id_of(self, row: int) -> str:
        """Return the id of one row.

        Raises
        ------
        TidegraphError
            If the row has no id: it was never given out, or it has expired.

        """
        return self.ids_of(np.array([row]))[0]

    def ids_of(self, rows: NDArray[np.int64]) -> list[str]:
        """Return the id of each row.

        Raises
        ------
        TidegraphError
            If a row has no id: it was never given out, or it has expired.

        """
        rows = np.asarray(rows, np.int64)
        absent = (rows < 0) | (rows >= len(self))
        if not absent.any():
            absent = self._spans["length"][rows] == FREE
        if absent.any():
            raise TidegraphError(
                f"row {rows[absent][0]} has no id: rows 0 to {len(self) - 1} were given out,"
                " and expired ones forgotten; ask only for rows that rows() or find() returned"
            )
        spans = self._spans[rows]
        text = self._pool.data
        return [
            str(text[start : start + length], "utf-8", "surrogatepass")
            for start, length in zip(spans["start"].tolist(), spans["length"].tolist(), strict=True)
        ]

    def expire(self, rows: NDArray[np.int64]) -> None:
        """Forget the ids of ``rows``, which are then given to new ids.

        Rows without an id are passed over. Whoever holds something under these rows (edges,
        parameters, counts) must drop it before the next :meth:`rows`.
        """
        expired = self._take_names(rows)
        n_free = int(self._count[N_FREE])
        self._free = with_room(self._free, n_free + expired.size)
        self._free[n_free : n_free + expired.size] = expired
        self._count[N_FREE] += expired.size

    def erase(self, rows: NDArray[np.int64]) -> None:
        """Forget the ids of ``rows``, and never give these rows out again.

        So whoever still holds something under them holds it of nobody. Rows without an id are
        passed over.

        Examples
        --------
        >>> ids = Ids()
        >>> ids.erase(ids.rows(["u7"]))
        >>> ids.rows(["u7"]).tolist(), ids.named().tolist()
        ([1], [1])

        """
        self._take_names(rows)

    def named(self) -> NDArray[np.int64]:
        """Return the rows that have an id, ascending."""
        return np.flatnonzero(self._spans["length"][: len(self)] != FREE)

    def digests(self) -> NDArray[np.uint64]:
        """Return a 64-bit digest of each row's id, the same in every process; 0 without an id.

        Row numbers depend on the order of arrival; these do not.
        """
        digests = np.zeros(len(self), np.uint64)
        _digests(self._spans, self._pool, digests)
        return digests

    def state(self) -> dict[str, Any]:
        """Return a copy of everything the mapping knows."""
        packed = np.empty(int(self._count[LIVE_BYTES]), np.uint8)
        spans = _gather(self._spans[: len(self)], self._pool, packed)
        free = self._free[: self._count[N_FREE]].copy()
        return {"lengths": spans["length"].copy(), "text": packed, "free": free}

    def restore(self, state: dict[str, Any]) -> None:
        """Become the mapping that ``state`` was taken from.

        Raises
        ------
        BadSnapshot
            If the parts of the state do not fit each other.

        """
        lengths, text, free = state["lengths"], state["text"], state["free"]
        used = np.maximum(lengths, 0).astype(np.int64)
        nameless = np.flatnonzero(lengths == FREE)
        n_live = lengths.size - nameless.size
        distinct = np.unique(free)
        if (
            int(used.sum()) != text.size
            or distinct.size != free.size
            or not np.isin(distinct, nameless).all()
        ):
            raise BadSnapshot(
                f"ids: want {int(used.sum())} bytes of text and up to {nameless.size} free rows for"
                f" {lengths.size} rows, got {text.size} and {free.size}; use an older snapshot"
            )
        spans = np.zeros(max(lengths.size, 128), SPAN)
        spans["length"][: lengths.size] = lengths
        spans["start"][: lengths.size] = np.cumsum(used) - used
        self._spans = spans
        self._pool = np.array(text, np.uint8)
        self._free = np.array(free, np.int64)
        self._count[:] = lengths.size, n_live, free.size, text.size, text.size
        self._table = grown(np.zeros(0, np.uint64), _table_size(n_live))
        _fill_table(self._table, spans[: lengths.size], self._pool)

    def _take_names(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Forget the ids of ``rows``, and return those that had one."""
        rows = np.ascontiguousarray(rows, np.int64)
        nameless = np.empty_like(rows)
        n = _expire(rows, self._table, self._spans, self._pool, self._count, nameless)
        return nameless[:n]

    def _make_room(self, length: int) -> None:
        """Grow whatever is full, so that one more id of ``length`` bytes fits."""
        count = self._count
        if 4 * (count[N_LIVE] + 1) > 3 * self._table.size:
            table = grown(np.zeros(0, np.uint64), _table_size(int(count[N_LIVE]) + 1))
            _rehash(self._table, table)
            self._table = table
        if count[N_ROWS] == self._spans.size:
            self._spans = grown(self._spans, self._spans.size + self._spans.size // 4)
        if count[N_BYTES] + length > self._pool.size:
            live = int(count[LIVE_BYTES])
            if 4 * live < 3 * count[N_BYTES]:
                packed = np.empty(live, np.uint8)
                self._spans[: len(self)] = _gather(self._spans[: len(self)], self._pool, packed)
                self._pool = packed
                count[N_BYTES] = live
            used = int(count[N_BYTES])
            self._pool = grown(self._pool, used + used // 4 + length + 2048)


def _table_size(n_ids: int) -> int:
    """Return the power of two that ``n_ids`` fill to between three and six eighths."""
    size = 256
    while 3 * size < 4 * (n_ids + 1):
        size *= 2
    return size
