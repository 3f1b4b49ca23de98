"""One pool of slots, handed out in blocks that double: how per-node lists grow without waste.

A block of class ``c`` has ``SMALLEST << c`` slots. A list that outgrows its block moves to one
of the next class and leaves the old block on that class's free list, so that other lists reuse
it. The kernels here never allocate: the caller grows the pool when they ask for it.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

SMALLEST: Final = 4
"""Slots of a block of class 0."""

N_CLASSES: Final = 40
"""More classes than memory can fill."""

NO_BLOCK: Final = -1
"""The end of a free list, and the answer of :func:`take_block` when the pool is full."""


def new_free_lists() -> NDArray[np.int64]:
    """Return the empty free lists of a pool: a head for each class, then the pool's used length."""
    lists = np.full(N_CLASSES + 1, NO_BLOCK, dtype=np.int64)
    lists[N_CLASSES] = 0
    return lists


@njit(cache=True)
def take_block(size_class: int, lists: NDArray[np.int64], links: NDArray[np.int32]) -> int:
    """Take a block off its free list or off the pool's end; ``NO_BLOCK`` when the pool is full.

    ``links`` is any int32 array of the pool: a free block keeps the next one's place in its
    first slot, counted in smallest blocks so that it fits.
    """
    head = int(lists[size_class])
    if head != NO_BLOCK:
        link = int(links[head])
        lists[size_class] = link * SMALLEST if link >= 0 else NO_BLOCK
        return head
    used = int(lists[N_CLASSES])
    size = SMALLEST << size_class
    if used + size > links.shape[0]:
        return NO_BLOCK
    lists[N_CLASSES] = used + size
    return used


@njit(cache=True)
def give_block(
    block: int, size_class: int, lists: NDArray[np.int64], links: NDArray[np.int32]
) -> None:
    """Put a block back on its class's free list."""
    head = lists[size_class]
    links[block] = np.int32(head // SMALLEST) if head != NO_BLOCK else np.int32(NO_BLOCK)
    lists[size_class] = block
