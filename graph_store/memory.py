"""Arrays that grow where they are."""

from __future__ import annotations

from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T", bound=np.generic)

LARGE: Final = 1 << 26
"""Bytes from which an array has pages of its own (malloc never serves 32 MiB from its heap)."""


def grown(array: NDArray[T], size: int) -> NDArray[T]:
    """Return ``array`` with ``size`` rows, the new ones zero; the old array must not be used again.

    A large array keeps its memory: the kernel moves pages, not bytes, so growing costs what is
    new, and old and new never exist side by side. A small one is copied to memory from
    ``np.empty``, which asks for huge pages; the array keeps those when it grows large. For
    random reads of gigabytes that is a factor of two.

    Examples
    --------
    >>> grown(np.array([1, 2]), 4).tolist()
    [1, 2, 0, 0]

    """
    if array.nbytes >= LARGE and array.flags.owndata:
        array.resize(size, refcheck=False)
        return array
    bigger = np.empty(size, array.dtype)
    kept = min(size, array.size)
    bigger[:kept] = array[:kept]
    bigger[kept:] = np.zeros((), array.dtype)
    return bigger


def with_room(array: NDArray[T], size: int, fill: float = 0) -> NDArray[T]:
    """Return ``array`` with at least ``size`` rows, the new ones holding ``fill``.

    One that has to grow gets half as many again, so that a growing array is copied seldom.

    Examples
    --------
    >>> with_room(np.array([1, 2]), 3, fill=-1).tolist()[:3]
    [1, 2, -1]

    """
    if size <= array.shape[0]:
        return array
    rows = max(size, array.shape[0] + array.shape[0] // 2, 64)
    bigger = np.full((rows, *array.shape[1:]), fill, dtype=array.dtype)
    bigger[: array.shape[0]] = array
    return bigger
