"""The compiled loops over rings of edges: inserting, reading, merging, moving, hashing.

They stand in one file, with the constants they use, because Numba's cache is renewed when the
file of the function called from Python changes, but not when another one does.

None of them allocates what grows. They stop where room runs out, and the caller grows and goes on.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from graph_store.ids import mix

Records = NDArray[np.void]
Counters = NDArray[np.int64]

PADDING: Final = -1
"""Stands where there is no neighbour."""

N_KINDS: Final = 4
"""Kinds below this number are feedback and become edges; see ``stream.events.Kind``."""

AHEAD: Final = 32
"""Rows touched before they are worked on; see :func:`touch`."""

RETRACTED: Final = 8
"""The bit of an edge's kind that says it was taken back: it keeps its slot and is never shown."""

LONG_AGO: Final = np.iinfo(np.int64).min
"""Before every edge."""

NODE: Final = np.dtype([("start", "<i8"), ("size", "<i2"), ("capacity", "<i2")])
"""A row's block in the pool: 12 bytes."""

EDGE: Final = np.dtype([("ts_ms", "<i8"), ("key", "<u8"), ("other", "<i4"), ("kind", "i1")])
"""A half-edge: 21 bytes, packed, because memory is what limits the size of the graph."""

WAITING: Final = np.dtype([("key", "<u8"), ("ts_ms", "<i8"), ("user", "<i8"), ("item", "<i8")])
"""A retraction whose event has not come yet."""

USED, RESERVED, STORED, LEFT = range(4)
"""Places in the counters: slots behind which the pool is empty, slots that belong to a block,
slots that hold an edge; and from ``LEFT`` on, by capacity, the block left behind last, plus
one. Its first slot's time says which was left before it."""


@njit(cache=True)
def block_size(size: int, k: int) -> int:
    """Return how many slots a block for ``size`` edges gets, at most ``k``."""
    capacity = 1
    while capacity < size:
        capacity += max(1, capacity // 4)
    return min(capacity, k)


@njit(cache=True)
def precedes(ts_ms: int, key: np.uint64, other_ts_ms: int, other_key: np.uint64) -> bool:
    """Tell whether an event comes strictly before another in the order of events."""
    return bool(ts_ms < other_ts_ms or (ts_ms == other_ts_ms and key < other_key))


@njit(cache=True)
def insert(
    nodes: Records,
    pool: Records,
    count: Counters,
    k: int,
    row: int,
    other: int,
    ts_ms: int,
    key: np.uint64,
    kind: int,
) -> bool:
    """Put an edge in its place; False if it is there already or older than the ``k`` kept.

    There must be room for ``k`` more slots at the pool's end.
    """
    node = nodes[row]
    start, size = node.start, int(node.size)
    place = size
    while place > 0:
        edge = pool[start + place - 1]
        if precedes(edge.ts_ms, edge.key, ts_ms, key):
            break
        if edge.ts_ms == ts_ms and edge.key == key:
            return False
        place -= 1
    if size == k:
        if place == 0:
            return False
        place -= 1
        for at in range(start, start + place):
            pool[at] = pool[at + 1]
    else:
        if size == node.capacity:
            capacity = block_size(size + 1, k)
            bigger = count[LEFT + capacity] - 1
            if bigger >= 0:
                count[LEFT + capacity] = pool[bigger].ts_ms
            else:
                bigger = count[USED]
                count[USED] += capacity
            for at in range(size):
                pool[bigger + at] = pool[start + at]
            if size:
                pool[start].ts_ms = count[LEFT + size]
                count[LEFT + size] = start + 1
            count[RESERVED] += capacity - size
            nodes[row].start = bigger
            nodes[row].capacity = capacity
            start = bigger
        for at in range(start + size, start + place, -1):
            pool[at] = pool[at - 1]
        nodes[row].size = size + 1
        count[STORED] += 1
    edge = pool[start + place]
    edge.ts_ms = ts_ms
    edge.key = key
    edge.other = other
    edge.kind = kind
    return True


@njit(cache=True)
def touch(nodes: Records, pool: Records, row: int) -> np.uint64:
    """Read what :func:`insert` or :func:`latest` will read first, and return anything of it.

    In a graph of gigabytes each row is a cache miss or two. Touching a few dozen rows before
    they are worked on lets the processor wait for all of them at once.
    """
    if 0 <= row < nodes.shape[0] and nodes[row].size:
        return np.uint64(pool[nodes[row].start + nodes[row].size - 1].key)
    return np.uint64(0)


@njit(cache=True)
def retract(
    nodes: Records, pool: Records, k: int, row: int, other: int, ts_ms: int, key: np.uint64
) -> bool:
    """Mark an edge as taken back; False if it is not there yet but could still come in."""
    if row >= nodes.shape[0]:
        return False
    start, size = nodes[row].start, int(nodes[row].size)
    for at in range(start, start + size):
        if pool[at].ts_ms == ts_ms and pool[at].key == key:
            if pool[at].other == other:
                pool[at].kind |= RETRACTED
            return True
    return size == k and precedes(ts_ms, key, pool[start].ts_ms, pool[start].key)


@njit(cache=True)
def latest(
    nodes: Records,
    pool: Records,
    rows: NDArray[np.int64],
    before_ms: NDArray[np.int64],
    oldest_ms: int,
    others: NDArray[np.int64],
    ts_ms: NDArray[np.int64],
    kind: NDArray[np.int8],
) -> np.uint64:
    """Fill ``(B, k)`` outputs with each row's visible edges before its time, newest first."""
    k = others.shape[1]
    touched = np.uint64(0)
    for n in range(rows.shape[0]):
        if n % AHEAD == 0:
            for ahead in range(n, min(n + AHEAD, rows.shape[0])):
                touched ^= touch(nodes, pool, rows[ahead])
        found = 0
        row = rows[n]
        if 0 <= row < nodes.shape[0]:
            start, before = nodes[row].start, before_ms[n]
            at = start + nodes[row].size - 1
            while at >= start and found < k:
                edge = pool[at]
                if edge.ts_ms < oldest_ms:
                    break
                if edge.ts_ms < before and edge.kind < N_KINDS:
                    others[n, found] = edge.other
                    ts_ms[n, found] = edge.ts_ms
                    kind[n, found] = edge.kind
                    found += 1
                at -= 1
        for pad in range(found, k):
            others[n, pad] = PADDING
            ts_ms[n, pad] = 0
            kind[n, pad] = PADDING
    return touched


@njit(cache=True)
def compact(
    nodes: Records,
    pool: Records,
    count: Counters,
    oldest_ms: int,
    k: int,
    order: NDArray[np.int64],
) -> None:
    """Move every block down to the one before it, without edges that are too old to be seen.

    ``order`` are the rows by where their block lies, so that nothing is overwritten.
    """
    used, stored = 0, 0
    for row in order:
        start, size = nodes[row].start, int(nodes[row].size)
        if size == 0:
            nodes[row].capacity = 0
            continue
        old = 0
        while old < size and pool[start + old].ts_ms < oldest_ms:
            old += 1
        if old:
            size -= old
            nodes[row].size = size
            nodes[row].capacity = block_size(size, k) if size else 0
        if used != start + old:
            for at in range(size):
                pool[used + at] = pool[start + old + at]
        nodes[row].start = used
        used += nodes[row].capacity
        stored += size
    count[USED], count[RESERVED], count[STORED] = used, used, stored
    count[LEFT:] = 0


@njit(cache=True)
def pack(nodes: Records, pool: Records, oldest_ms: int, packed: Records) -> NDArray[np.int16]:
    """Copy every visible-by-age edge to ``packed`` without slack; return each row's number."""
    sizes = np.zeros(nodes.shape[0], np.int16)
    used = 0
    for row in range(nodes.shape[0]):
        start = nodes[row].start
        for at in range(start, start + nodes[row].size):
            if pool[at].ts_ms >= oldest_ms:
                packed[used] = pool[at]
                used += 1
                sizes[row] += 1
    return sizes


@njit(cache=True)
def unpack(
    nodes: Records,
    pool: Records,
    count: Counters,
    k: int,
    sizes: NDArray[np.int16],
    packed: Records,
) -> None:
    """Give every row a block with its usual slack, and fill it: the way back of ``pack``."""
    used, taken = 0, 0
    for row in range(sizes.shape[0]):
        size = int(sizes[row])
        if size:
            nodes[row].start = used
            nodes[row].size = size
            nodes[row].capacity = block_size(size, k)
            for at in range(size):
                pool[used + at] = packed[taken + at]
            used += nodes[row].capacity
            taken += size
    count[USED], count[RESERVED], count[STORED] = used, used, taken
    count[LEFT:] = 0


@njit(cache=True)
def remove(
    nodes: Records,
    pool: Records,
    count: Counters,
    gone: NDArray[np.bool_],
    gone_others: NDArray[np.bool_],
) -> None:
    """Empty the rows in ``gone``, and take every edge to one of ``gone_others`` out."""
    for row in range(nodes.shape[0]):
        start, size = nodes[row].start, int(nodes[row].size)
        if row < gone.shape[0] and gone[row]:
            kept = 0
            count[RESERVED] -= nodes[row].capacity
            nodes[row].capacity = 0
        else:
            kept = 0
            for at in range(start, start + size):
                other = pool[at].other
                if not (other < gone_others.shape[0] and gone_others[other]):
                    pool[start + kept] = pool[at]
                    kept += 1
        nodes[row].size = kept
        count[STORED] -= size - kept


@njit(cache=True)
def take_out(
    nodes: Records, pool: Records, count: Counters, rows: NDArray[np.int64], other: int
) -> Records:
    """Take every edge between ``rows`` and ``other`` out; return them, with their row as other."""
    taken = np.empty(0, pool.dtype)
    for filling in (False, True):  # counts them first
        n = 0
        for row in rows:
            if row < 0 or row >= nodes.shape[0]:
                continue
            start, kept = nodes[row].start, 0
            for at in range(start, start + nodes[row].size):
                if pool[at].other == other:
                    if filling:
                        taken[n] = pool[at]
                        taken[n].other = row
                    n += 1
                elif filling:
                    pool[start + kept] = pool[at]
                    kept += 1
            if filling:
                count[STORED] -= nodes[row].size - kept
                nodes[row].size = kept
        if not filling:
            taken = np.empty(n, pool.dtype)
    return taken


@njit(cache=True)
def last_active(nodes: Records, pool: Records) -> NDArray[np.int64]:
    """Return the time of each row's newest edge, ``LONG_AGO`` where it has none."""
    last = np.full(nodes.shape[0], LONG_AGO, np.int64)
    for row in range(nodes.shape[0]):
        if nodes[row].size:
            last[row] = pool[nodes[row].start + nodes[row].size - 1].ts_ms
    return last


@njit(cache=True)
def digest(
    nodes: Records,
    pool: Records,
    oldest_ms: int,
    own: NDArray[np.uint64],
    others: NDArray[np.uint64],
    salt: np.uint64,
) -> tuple[np.uint64, np.uint64]:
    """Return two sums over all edges of a hash of each: no order of rows or edges shows."""
    low, high = np.uint64(0), np.uint64(0)
    for row in range(nodes.shape[0]):
        start = nodes[row].start
        for at in range(start, start + nodes[row].size):
            edge = pool[at]
            if edge.ts_ms < oldest_ms or row >= len(own) or edge.other >= len(others):
                continue
            value = mix(salt + own[row])
            value = mix(value + others[edge.other])
            value = mix(value + np.uint64(edge.ts_ms))
            value = mix(value + np.uint64(edge.kind))
            value = mix(value + edge.key)
            low += value
            high += mix(value + np.uint64(1))
    return low, high


@njit(cache=True)
def _awaited(waiting: Records, user: int, item: int, ts_ms: int, key: np.uint64) -> bool:
    """Tell whether a retraction is already here; ``waiting`` is sorted by key."""
    low, high = 0, waiting.shape[0]
    while low < high:
        middle = (low + high) // 2
        if waiting[middle].key < key:
            low = middle + 1
        else:
            high = middle
    while low < waiting.shape[0] and waiting[low].key == key:
        entry = waiting[low]
        if entry.ts_ms == ts_ms and entry.user == user and entry.item == item:
            return True
        low += 1
    return False


@njit(cache=True)
def append(
    first: int,
    users: Records,
    user_pool: Records,
    user_count: Counters,
    k_user: int,
    items: Records,
    item_pool: Records,
    item_count: Counters,
    k_item: int,
    user: NDArray[np.int64],
    item: NDArray[np.int64],
    ts_ms: NDArray[np.int64],
    kind: NDArray[np.int8],
    key: NDArray[np.uint64],
    waiting: Records,
    clock: Counters,
) -> int:
    """Insert edges from index ``first`` on; return the index where room ran out, or the end.

    ``clock`` holds the greatest event time, the number of edges that were new, and scratch.
    """
    touched = np.uint64(0)
    for n in range(first, user.shape[0]):
        if (n - first) % AHEAD == 0:
            for ahead in range(n, min(n + AHEAD, user.shape[0])):
                touched ^= touch(users, user_pool, user[ahead])
                touched ^= touch(items, item_pool, item[ahead])
        if 0 <= kind[n] < N_KINDS:
            if (
                user[n] >= users.shape[0]
                or item[n] >= items.shape[0]
                or user_count[USED] + k_user > user_pool.shape[0]
                or item_count[USED] + k_item > item_pool.shape[0]
            ):
                return n
            sign = int(kind[n])
            if waiting.shape[0] and _awaited(waiting, user[n], item[n], ts_ms[n], key[n]):
                sign |= RETRACTED
            new = insert(
                users, user_pool, user_count, k_user, user[n], item[n], ts_ms[n], key[n], sign
            )
            new |= insert(
                items, item_pool, item_count, k_item, item[n], user[n], ts_ms[n], key[n], sign
            )
            clock[1] += new
        clock[0] = max(clock[0], ts_ms[n])
    clock[2] = np.int64(touched)  # or the compiler would leave the reads out
    return len(user)


@njit(cache=True)
def retract_all(
    users: Records,
    user_pool: Records,
    k_user: int,
    items: Records,
    item_pool: Records,
    k_item: int,
    user: NDArray[np.int64],
    item: NDArray[np.int64],
    ts_ms: NDArray[np.int64],
    key: NDArray[np.uint64],
) -> NDArray[np.bool_]:
    """Mark the edges on both sides; return which retractions may still meet their event."""
    waits = np.empty(user.shape[0], np.bool_)
    for n in range(user.shape[0]):
        at_user = retract(users, user_pool, k_user, user[n], item[n], ts_ms[n], key[n])
        at_item = retract(items, item_pool, k_item, item[n], user[n], ts_ms[n], key[n])
        waits[n] = not (at_user and at_item)
    return waits


@njit(cache=True)
def histories(
    nodes: Records,
    pool: Records,
    slots: int,
    user: NDArray[np.int64],
    item: NDArray[np.int64],
    ts_ms: NDArray[np.int64],
    kind: NDArray[np.int8],
    key: NDArray[np.uint64],
    waiting: Records,
    newest_ms: int,
    max_age_ms: int,
    others: NDArray[np.int64],
    other_ts_ms: NDArray[np.int64],
    other_kind: NDArray[np.int8],
) -> int:
    """Merge each user's ring with its chain of earlier events in the batch.

    Walks the newest ``slots`` of both together, as the ring would hold them after appending
    the batch up to that event. Returns the first index that is out of order, or the end.
    """
    n_events, k = others.shape
    mask = 1
    while mask < 2 * n_events:
        mask *= 2
    mask -= 1
    heads = np.full(mask + 1, -1, np.int64)  # by hash of the user: its latest event in the batch
    earlier = np.empty(n_events, np.int64)  # the user's event before this one
    for n in range(n_events):
        if n and precedes(ts_ms[n], key[n], ts_ms[n - 1], key[n - 1]):
            return n
        slot = np.int64(mix(np.uint64(user[n]))) & mask
        while heads[slot] >= 0 and user[heads[slot]] != user[n]:
            slot = (slot + 1) & mask
        link = heads[slot]
        start, at = np.int64(0), np.int64(-1)
        if 0 <= user[n] < nodes.shape[0]:
            start = nodes[user[n]].start
            at = start + nodes[user[n]].size - 1
        oldest_ms = LONG_AGO
        if max_age_ms >= 0 and newest_ms != LONG_AGO:
            oldest_ms = newest_ms - max_age_ms
        found, walked = 0, 0
        while walked < slots and found < k and (at >= start or link >= 0):
            from_ring = at >= start and (
                link < 0 or not precedes(pool[at].ts_ms, pool[at].key, ts_ms[link], key[link])
            )
            if from_ring:
                other = np.int64(pool[at].other)
                time, order, sign = pool[at].ts_ms, pool[at].key, np.int64(pool[at].kind)
                if link >= 0 and time == ts_ms[link] and order == key[link]:
                    link = earlier[link]  # the same event, delivered again
                at -= 1
            else:
                other = item[link]
                time, order, sign = ts_ms[link], key[link], np.int64(kind[link])
                if waiting.shape[0] and _awaited(waiting, user[n], other, time, order):
                    sign |= RETRACTED
                link = earlier[link]
            walked += 1
            if sign < N_KINDS and time >= oldest_ms and precedes(time, order, ts_ms[n], key[n]):
                others[n, found] = other
                other_ts_ms[n, found] = time
                other_kind[n, found] = sign
                found += 1
        for pad in range(found, k):
            others[n, pad] = PADDING
            other_ts_ms[n, pad] = 0
            other_kind[n, pad] = PADDING
        newest_ms = max(newest_ms, ts_ms[n])
        if 0 <= kind[n] < N_KINDS:
            head = heads[slot]
            if head < 0 or precedes(ts_ms[head], key[head], ts_ms[n], key[n]):
                earlier[n] = head
                heads[slot] = n
    return len(others)
