"""The users most like one, among all that are published in one epoch."""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from serving.retrieval import best_of_each
from serving.table import Reader
from stream.errors import TableError

MOST_USERS: Final = 200_000
"""Users who are compared; where more are published, so many drawn at random."""

PART: Final = 2_000
"""Users read in one go: some ten milliseconds, so that other reads come in between."""

_BLOCK: Final = 4_096
"""Vectors widened at once: a megabyte at 64 dimensions, which stays near the processor."""


class Nearest(NamedTuple):
    """The users most like one, best first, with cosines; and how many were compared."""

    users: list[tuple[str, float]]
    among: int


class Everybody:
    """Which way the vectors of all published users point; read once somebody asks, then kept.

    One thread reads, one tells what changed, and any number ask.

    Parameters
    ----------
    reader
        The epoch.
    most
        As :data:`MOST_USERS`.

    Notes
    -----
    Vectors are held at length one in fp16, 25 MB for 200,000 of 64 dimensions, and widened to fp32
    to be compared: a cosine is off by less than 0.0005.

    Examples
    --------
    >>> from serving.rows import Barrier, Layout, UserRows
    >>> from serving.table import MemoryTable, Update
    >>> table, vectors = MemoryTable(), np.array([[3, 4], [0, 1], [-1, 0]], np.float32)
    >>> rows = UserRows(["712", "8", "9"], vectors, np.array([60, 60, 60]))
    >>> _ = table.begin(Layout(dim=2))
    >>> table.publish(Update(barrier=Barrier(step=1, at_ms=60, published_ms=99), users=rows))
    >>> table.flip()
    >>> everybody = Everybody(table.reader())
    >>> everybody.begin(), everybody.go_on()
    (True, False)
    >>> everybody.nearest("712", vectors[0], 2)
    Nearest(users=[('8', 0.8), ('9', -0.6)], among=2)

    """

    def __init__(self, reader: Reader, *, most: int = MOST_USERS) -> None:
        self._reader = reader
        self._most = most
        self._ids: list[str] = []
        self._rows: dict[str, int] = {}
        self._vectors = np.empty((0, reader.layout.dim), np.float16)  # with room for more
        self._lock = threading.Lock()
        self._listed = False
        """Whether it was ever asked who there is: from then on it counts who changes."""
        self._unread: set[str] = set()
        self._due: list[list[str]] = []
        """Those of them who were there when reading began, in parts."""
        self._reading: set[str] = set()
        self._gone: set[str] = set()
        """Users who were erased while they are being read."""

    def begin(self) -> bool:
        """See who is to be read: at first everybody, then who has changed; say if anybody is.

        Raises
        ------
        TableError
            If the table does not answer.

        """
        with self._lock:
            listed, self._listed = self._listed, True  # first: who comes from now on is marked
        if not listed:
            try:
                everybody = self._reader.user_ids(self._most)
            except TableError:
                self._listed = False
                raise
            with self._lock:
                self._unread.update(everybody)
        with self._lock:
            unread = list(self._unread)
            self._due = [unread[first : first + PART] for first in range(0, len(unread), PART)]
            return bool(self._due)

    def go_on(self) -> bool:
        """Read some of those who were to be read when it began; say if there are more.

        Raises
        ------
        TableError
            If the table does not answer; what was there stays.

        """
        with self._lock:
            part = self._due.pop() if self._due else []
            self._reading, self._gone = set(part), set()
            self._unread -= self._reading
        try:
            rows = self._reader.users(sorted(part))
        except TableError:
            with self._lock:
                self._unread |= self._reading - self._gone
                self._reading = set()
            raise
        directions = _directions(rows.vectors).astype(np.float16)
        with self._lock:
            self._drop(self._reading.difference(rows.ids))
            kept = [at for at, user_id in enumerate(rows.ids) if user_id not in self._gone]
            self._put([rows.ids[at] for at in kept], directions[kept])
            self._reading = set()
            return bool(self._due)

    def mark(self, user_ids: Collection[str]) -> None:
        """Have users read again, or for the first time, before somebody is answered next."""
        with self._lock:
            if not self._listed:
                return
            if len(self._rows) < self._most:
                self._unread.update(user_ids)
            else:
                self._unread.update(u for u in user_ids if u in self._rows or u in self._reading)
            if len(self._unread) > 2 * self._most:  # nobody has asked for long
                self._let_all_go()

    def let_go(self, user_ids: Collection[str]) -> None:
        """Forget users at once, also those who are being read."""
        with self._lock:
            self._drop(user_ids)
            self._gone.update(self._reading.intersection(user_ids))

    def let_all_go(self) -> None:
        """Forget everybody, as before anybody asked."""
        with self._lock:
            self._let_all_go()

    def nearest(self, user_id: str, vector: NDArray[np.float32], n: int) -> Nearest | None:
        """Return the users whose vectors point most nearly the same way as a user's.

        Returns
        -------
        Nearest
            ``None`` if nobody was read yet.

        """
        wanted = _directions(vector[None])[0]
        with self._lock:
            if not self._ids:
                return None
            cosines = np.empty(len(self._ids), np.float32)
            for first in range(0, len(self._ids), _BLOCK):
                block = slice(first, min(first + _BLOCK, len(self._ids)))
                cosines[block] = self._vectors[block].astype(np.float32) @ wanted
            own = self._rows.get(user_id)
            if own is not None:
                cosines[own] = -np.inf
            _, rows, best = best_of_each(cosines[None], [n])
            ids = [self._ids[row] for row in rows.tolist()]
        told = np.clip(best, -1, 1).tolist()  # rounded to fp16, some are a little longer
        return Nearest(list(zip(ids, told, strict=True)), len(cosines) - (own is not None))

    def _put(self, user_ids: Sequence[str], directions: NDArray[np.float16]) -> None:
        self._make_room(min(self._most, len(self._ids) + len(user_ids)))
        for user_id, direction in zip(user_ids, directions, strict=True):
            row = self._rows.get(user_id, len(self._ids))
            if row == self._most:
                continue
            if row == len(self._ids):
                self._ids.append(user_id)
                self._rows[user_id] = row
            self._vectors[row] = direction

    def _make_room(self, n: int) -> None:
        if n > len(self._vectors):
            room = min(self._most, max(n, 2 * len(self._vectors)))
            vectors = np.empty((room, self._vectors.shape[1]), np.float16)
            vectors[: len(self._ids)] = self._vectors[: len(self._ids)]
            self._vectors = vectors

    def _drop(self, user_ids: Collection[str]) -> None:
        for user_id in user_ids:
            row = self._rows.pop(user_id, None)
            if row is None:
                continue
            last = self._ids.pop()  # takes the place
            if last != user_id:
                self._ids[row], self._rows[last] = last, row
                self._vectors[row] = self._vectors[len(self._ids)]

    def _let_all_go(self) -> None:
        self._listed = False
        self._ids, self._rows, self._vectors = [], {}, self._vectors[:0].copy()
        self._unread, self._due = set(), []
        self._gone |= self._reading


def _directions(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return vectors at length one; those of no length stay as they are."""
    wide = vectors.astype(np.float64)  # in which no square overflows
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    directions: NDArray[np.float32] = (wide / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return directions
