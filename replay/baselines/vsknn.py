"""V-SKNN: what was liked in the sessions most like the user's own."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from graph_store.memory import with_room
from replay.baselines.base import Batch, liked

LENGTH: Final = 20
"""Items kept of a session, the newest."""

RECENT: Final = 200
"""Newest sessions that are looked through for each item of the history."""

NEAREST: Final = 500
"""Sessions that vote."""

GAP_MS: Final = 30 * 24 * 3_600_000
"""A longer pause of a user starts a new session."""

CAPACITY: Final = 1 << 18
"""Sessions kept, the newest: a power of two."""


@njit(cache=True)
def _learn(  # type: ignore[no-untyped-def]
    users,
    items,
    ts_ms,
    gap_ms,
    count,
    capacity,
    session_of,
    last_ms,
    contents,
    sizes,
    sessions,
    met,
):
    """Append likes to the sessions of their users; return the number of sessions ever begun."""
    length = contents.shape[1]
    recent = sessions.shape[1]
    for event in range(users.shape[0]):
        user, item = users[event], items[event]
        session = session_of[user]
        if session < 0 or ts_ms[event] - last_ms[user] > gap_ms or session <= count - capacity:
            session = count
            count += 1
            session_of[user] = session
            sizes[session % capacity] = 0
        last_ms[user] = ts_ms[event]
        place = session % capacity
        known = False
        for slot in range(min(sizes[place], length)):
            known |= contents[place, slot] == item
        if known:
            continue
        contents[place, sizes[place] % length] = item
        sizes[place] += 1
        sessions[item, met[item] % recent] = session
        met[item] += 1
    return count


@njit(cache=True)
def _score(history, count, capacity, nearest, contents, sizes, sessions, met, stamp, weight, out):  # type: ignore[no-untyped-def]
    length = contents.shape[1]
    recent = sessions.shape[1]
    candidates = np.empty(history.shape[1] * recent, np.int64)
    for row in range(history.shape[0]):
        n_candidates = 0
        n_liked = 0
        for k in range(history.shape[1]):
            n_liked += history[row, k] >= 0
        position = 0
        for k in range(history.shape[1]):
            item = history[row, k]
            if item < 0:
                continue
            share = np.float32(n_liked - position) / n_liked  # newest first
            position += 1
            if item >= met.shape[0]:
                continue
            for slot in range(min(met[item], recent)):
                session = sessions[item, slot]
                if session <= count - capacity:
                    continue
                place = session % capacity
                if stamp[place] != row:
                    stamp[place] = row
                    weight[place] = np.float32(0.0)
                    candidates[n_candidates] = place
                    n_candidates += 1
                weight[place] += share
        found = candidates[:n_candidates]
        least = np.float32(0.0)
        if n_candidates > nearest:
            least = np.sort(weight[found])[n_candidates - nearest]
        for place in found:
            if weight[place] < least:
                continue
            size = min(sizes[place], length)
            for slot in range(size):
                item = contents[place, slot]
                if item < out.shape[1]:
                    out[row, item] += weight[place]


class Vsknn:
    r"""Votes of the sessions that share most with the user's recent likes.

    .. math:: s_{ui} = \sum_{S \in N(u)} w_S\, [i \in S], \qquad
        w_S = \sum_{k} \frac{n - k}{n} [j_k \in S]

    with :math:`j_0` the newest of the :math:`n` likes in the history and :math:`N` the sessions
    of the greatest :math:`w`. A session is a user's likes without a pause longer than 30 days.

    Notes
    -----
    Chosen on the validation slice of the sample: a pause of 1 h, 12 h, 3 d, 30 d ends a session at
    HR@10/NDCG@10 .0327/.0181, .0452/.0239, .0537/.0287, .0556/.0296 (100 instead of 500 voters:
    .0254/.0150, .0399/.0209, .0518/.0272, .0518/.0275). Most visits of this log are
    too short to recognise a user by.

    References
    ----------
    Ludewig and Jannach, *Evaluation of session-based recommendation algorithms*, UMUAI 2018.

    Examples
    --------
    >>> Vsknn().name
    'vsknn'

    """

    name = "vsknn"

    def __init__(self) -> None:
        self._count = 0
        self._session_of = np.full(64, -1, np.int64)  # by user
        self._last_ms = np.zeros(64, np.int64)
        self._contents = np.full((64, LENGTH), -1, np.int32)  # by session, modulo CAPACITY
        self._sizes = np.zeros(64, np.int32)
        self._sessions = np.zeros((64, RECENT), np.int64)  # by item
        self._met = np.zeros(64, np.int64)

    def score(self, batch: Batch, events: NDArray[np.int64]) -> NDArray[np.float32]:
        """Score by the votes of the nearest sessions."""
        out = np.zeros((events.shape[0], batch.n_items), np.float32)
        held = self._sizes.shape[0]
        _score(
            liked(batch.history, events), self._count, CAPACITY, NEAREST, self._contents,
            self._sizes, self._sessions, self._met, np.full(held, -1, np.int64),
            np.zeros(held, np.float32), out,
        )  # fmt: skip
        return out

    def learn(self, batch: Batch) -> None:
        """Append the positive events to the sessions of their users."""
        users, items = batch.users[batch.positive], batch.items[batch.positive]
        if not users.size:
            return
        n_users, n_items = int(users.max()) + 1, int(items.max()) + 1
        self._session_of = with_room(self._session_of, n_users, fill=-1)
        self._last_ms = with_room(self._last_ms, n_users)
        self._sessions = with_room(self._sessions, n_items)
        self._met = with_room(self._met, n_items)
        n_sessions = min(self._count + users.shape[0], CAPACITY)
        self._contents = with_room(self._contents, n_sessions, fill=-1)
        self._sizes = with_room(self._sizes, n_sessions)
        self._count = _learn(
            users, items, batch.ts_ms[batch.positive], GAP_MS, self._count, CAPACITY,
            self._session_of, self._last_ms, self._contents, self._sizes, self._sessions,
            self._met,
        )  # fmt: skip

    def state(self) -> dict[str, Any]:
        """Return all that a restart needs."""
        return {
            "count": int(self._count),
            "session_of": self._session_of.copy(),
            "last_ms": self._last_ms.copy(),
            "contents": self._contents.copy(),
            "sizes": self._sizes.copy(),
            "sessions": self._sessions.copy(),
            "met": self._met.copy(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Become what :meth:`state` described."""
        self._count = state["count"]
        self._session_of = np.array(state["session_of"])
        self._last_ms = np.array(state["last_ms"])
        self._contents = np.array(state["contents"])
        self._sizes = np.array(state["sizes"])
        self._sessions = np.array(state["sessions"])
        self._met = np.array(state["met"])
