"""Which items each user has already met: the filter of every ranking, unbounded by K."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from graph_store.blocks import (
    NO_BLOCK,
    SMALLEST,
    give_block,
    new_free_lists,
    take_block,
)
from graph_store.memory import with_room


@njit(cache=True)
def _place(pool: NDArray[np.int32], start: int, size: int, item: int) -> int:
    """Return where ``item`` stands, or belongs, in a sorted block."""
    low, high = start, start + size
    while low < high:
        middle = (low + high) // 2
        if pool[middle] < item:
            low = middle + 1
        else:
            high = middle
    return low


@njit(cache=True)
def _add(
    users: NDArray[np.int64],
    items: NDArray[np.int64],
    first: int,
    pool: NDArray[np.int32],
    lists: NDArray[np.int64],
    starts: NDArray[np.int64],
    sizes: NDArray[np.int64],
    classes: NDArray[np.int8],
) -> int:
    """Add pairs from index ``first`` on; return the index where the pool ran out, or the end."""
    for n in range(first, users.shape[0]):
        user, item = users[n], int(items[n])
        size = sizes[user]
        place = _place(pool, starts[user], size, item)
        if size and place < starts[user] + size and pool[place] == item:
            continue
        if size == 0 or size == SMALLEST << classes[user]:
            bigger = classes[user] + 1 if size else 0
            block = take_block(bigger, lists, pool)
            if block == NO_BLOCK:
                return n
            old = starts[user]
            pool[block : block + size] = pool[old : old + size]
            place += block - old
            if size:
                give_block(old, classes[user], lists, pool)
            starts[user], classes[user] = block, bigger
        end = starts[user] + size
        for slot in range(end, place, -1):
            pool[slot] = pool[slot - 1]
        pool[place] = item
        sizes[user] = size + 1
    return len(users)


@njit(cache=True)
def _gather(
    users: NDArray[np.int64],
    items: NDArray[np.int64],
    previous: NDArray[np.int64],
    pool: NDArray[np.int32],
    starts: NDArray[np.int64],
    sizes: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return CSR pointers and items: each event's user's set, with the batch's earlier events."""
    n_events = users.shape[0]
    pointers = np.zeros(n_events + 1, np.int64)
    for n in range(n_events):
        user = users[n]
        size = sizes[user] if 0 <= user < sizes.shape[0] else 0
        before = previous[n]
        while before >= 0:
            size += 1
            before = previous[before]
        pointers[n + 1] = pointers[n] + size
    found = np.empty(pointers[n_events], np.int64)
    for n in range(n_events):
        user = users[n]
        size = sizes[user] if 0 <= user < sizes.shape[0] else 0
        at = pointers[n]
        for slot in range(size):
            found[at + slot] = pool[starts[user] + slot]
        end = at + size
        before = previous[n]
        while before >= 0:
            item = items[before]
            known = False
            for slot in range(at, end):
                if found[slot] == item:
                    known = True
                    break
            if not known:
                found[end] = item
                end += 1
            before = previous[before]
        for slot in range(end, pointers[n + 1]):
            found[slot] = -1
    return pointers, found


class SeenItems:
    """The set of items of each user, as sorted blocks of one pool.

    Notes
    -----
    ``add`` costs O(log n + n) of a small memory move for a user with ``n`` items; a pair takes
    4 to 8 bytes. One writer, any number of readers between two calls of it.

    Examples
    --------
    >>> seen = SeenItems()
    >>> seen.add(np.array([0, 0, 0]), np.array([7, 3, 7]))
    >>> seen.of(0).tolist()
    [3, 7]

    """

    def __init__(self) -> None:
        self._pool = np.zeros(1024, np.int32)
        self._lists = new_free_lists()
        self._starts = np.zeros(64, np.int64)
        self._sizes = np.zeros(64, np.int64)
        self._classes = np.zeros(64, np.int8)

    def add(self, users: NDArray[np.int64], items: NDArray[np.int64]) -> None:
        """Add (user, item) pairs; a pair already there changes nothing."""
        if users.size == 0:
            return
        n_rows = int(users.max()) + 1
        self._starts = with_room(self._starts, n_rows)
        self._sizes = with_room(self._sizes, n_rows)
        self._classes = with_room(self._classes, n_rows)
        done = 0
        while done < users.shape[0]:
            done = _add(
                users,
                items,
                done,
                self._pool,
                self._lists,
                self._starts,
                self._sizes,
                self._classes,
            )
            if done < users.shape[0]:
                needed = SMALLEST << (int(self._classes[users[done]]) + 1)
                self._pool = with_room(self._pool, self._pool.shape[0] + needed)

    def of(self, user: int) -> NDArray[np.int64]:
        """Return one user's items, ascending; none for a user without a row."""
        if not 0 <= user < self._sizes.shape[0]:
            return np.empty(0, np.int64)
        start = self._starts[user]
        return self._pool[start : start + self._sizes[user]].astype(np.int64)

    def forget(self, user: int) -> NDArray[np.int64]:
        """Empty one user's set, and return what was in it."""
        items = self.of(user)
        if items.size:
            start, size_class = int(self._starts[user]), int(self._classes[user])
            self._pool[start : start + items.size] = 0
            give_block(start, size_class, self._lists, self._pool)
            self._starts[user] = self._sizes[user] = self._classes[user] = 0
        return items

    def before_each(
        self,
        users: NDArray[np.int64],
        items: NDArray[np.int64],
        previous: NDArray[np.int64],
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return what the user of each event of a batch had met before it, as CSR.

        Parameters
        ----------
        users, items
            The batch's events, in order, shape (B,).
        previous
            For each event the index of the same user's event before it in the batch, or -1.

        Returns
        -------
        Pointers (B + 1,) and item rows; slots that a repeated item left over hold -1.

        """
        pointers, found = _gather(users, items, previous, self._pool, self._starts, self._sizes)
        return pointers, found

    @property
    def n_bytes(self) -> int:
        """Bytes held."""
        arrays = (self._pool, self._starts, self._sizes, self._classes)
        return sum(array.nbytes for array in arrays)

    def state(self) -> dict[str, Any]:
        """Return all that a restart needs."""
        return {
            "pool": self._pool[: self._lists[-1]].copy(),
            "lists": self._lists.copy(),
            "starts": self._starts.copy(),
            "sizes": self._sizes.copy(),
            "classes": self._classes.copy(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Become what :meth:`state` described."""
        self._pool = with_room(np.array(state["pool"]), 1024)
        self._lists = np.array(state["lists"])
        self._starts = np.array(state["starts"])
        self._sizes = np.array(state["sizes"])
        self._classes = np.array(state["classes"])
