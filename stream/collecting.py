"""How often a process that handles many records looks for garbage in cycles."""

from __future__ import annotations

import gc
from typing import Final

_NEW_OBJECTS: Final = 100_000  # more than a transaction's records are made of


def collect_seldom() -> None:
    """Have this process look for garbage in cycles less often than after every 700 new objects.

    Records are no cycles. To look for some in each batch, and in all that is loaded, takes a fifth
    of a worker's time.
    """
    gc.freeze()
    gc.set_threshold(_NEW_OBJECTS)
