"""Follows the published table: what requests are answered from, in the memory of this process."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from serving.catalogue import Catalogue, Mirror
from serving.changes import Changes
from serving.filtering import Attributes, values_of
from serving.neighbours import Everybody
from serving.retrieval import History
from serving.rows import Recent
from serving.table import Reader, Table
from stream.errors import TableError

if TYPE_CHECKING:
    from serving.index import Index

USERS_KEPT: Final = 20_000
"""Users whose rows are kept in memory: some kilobytes each."""

WARM_USERS: Final = 2_000
"""Users who are read anew before a new epoch takes the place of the old one."""

EXACT_UP_TO: Final = 200_000
"""Rows up to which every list is exact; beyond, candidates come from an index."""

POPULAR_KEPT: Final = 1_000
"""Length of the list that is kept for when nothing else can be said."""

WAIT_MS: Final = 250
"""Between two looks at which epoch is in view; changes within an epoch are told at once."""

RETRY_S: Final = 0.25
"""Between two attempts to reach a table that is away."""

SILENT_MS: Final = 3_000
"""A table that has been asked and has not answered for so long is taken to be away."""

T = TypeVar("T")

_NO_ROWS: Final = np.empty(0, np.int64)

_log = logging.getLogger("tidegraph.serving")


def wall_ms() -> int:
    """Return the wall clock."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class User:
    """What is published of one user.

    Attributes
    ----------
    vector
        ``None`` if no row is published.
    recent, history
        Latest events, newest first: as published, and as rows of the catalogue.
    seen
        Rows of the catalogue that the user has met.
    unplaced
        Ids that the user has met and the catalogue did not have, of ``n_items`` rows then.
    ts_ms, published_ms
        As in the user's row; 0 without one.
    attributes
        What was said of the user.

    """

    user_id: str
    vector: NDArray[np.float32] | None
    recent: Sequence[Recent]
    history: History
    seen: NDArray[np.int64]
    unplaced: tuple[str, ...]
    n_items: int
    ts_ms: int
    published_ms: int
    attributes: Mapping[str, Any]

    def placed(self, catalogue: Catalogue) -> User:
        """Return the user with the rows of a later catalogue."""
        met = catalogue.rows(self.unplaced)
        return replace(
            self,
            history=History.of(catalogue, self.recent),
            seen=np.concatenate([self.seen, met[met >= 0]]),
            unplaced=tuple(
                one for one, row in zip(self.unplaced, met.tolist(), strict=True) if row < 0
            ),
            n_items=len(catalogue),
        )


class Popular(NamedTuple):
    """The items that suit anybody best, as of the last time that there were any."""

    item_ids: list[str]
    scores: list[float]


class State(NamedTuple):
    """How this process stands with the table."""

    epoch: int | None  # None: nothing was read yet
    step: int
    at_ms: int
    published_ms: int
    items: int
    users_kept: int
    heard_ms: int  # when the table last answered, by the wall clock; 0 if never
    error: str  # why it does not answer now; empty if it does
    stale: bool

    @property
    def ready(self) -> bool:
        """Whether rows are in memory and fresh."""
        return self.epoch is not None and not self.stale


class Copy:
    """One epoch in memory. One thread takes changes in and any number ask.

    Users are read when they are asked for and kept, the least recently asked for least long.

    Attributes
    ----------
    everybody
        The vectors of all users, to be compared.

    """

    def __init__(
        self, reader: Reader, *, users_kept: int = USERS_KEPT, exact_up_to: int = EXACT_UP_TO
    ) -> None:
        self.reader = reader
        self.cursor = reader.cursor()  # first: what is read afterwards is at least as new
        self._mirror = Mirror(reader)
        self.attributes = Attributes(reader.all_item_attributes())
        self._users_kept = users_kept
        self._users: OrderedDict[str, User] = OrderedDict()
        self._reading: defaultdict[str, int] = defaultdict(int)
        self._old: set[str] = set()
        """Users who have changed since they were read, or while they are being read."""
        self._gone: set[str] = set()
        """Users who were erased while they are being read."""
        self._lock = threading.Lock()
        self._tastes = _Tastes()
        self.everybody = Everybody(reader)
        self.averages = _averages(self.catalogue)
        self._exact_up_to = exact_up_to
        self._index: Index | None = None
        self._indexed = 0  # rows when the index was built
        self._refresh_index(())

    @property
    def epoch(self) -> int:
        """The epoch's number."""
        return self.reader.epoch

    @property
    def catalogue(self) -> Catalogue:
        """The items as of the last changes."""
        return self._mirror.catalogue

    @property
    def index(self) -> Index | None:
        """Where candidates come from; ``None`` if all items are looked at."""
        return self._index

    @property
    def n_users(self) -> int:
        """Users in memory."""
        return len(self._users)

    def user(self, user_id: str, *, old: bool = False) -> User | None:
        """Return a user as published, or ``None`` if it takes a look at the table.

        Parameters
        ----------
        old
            Whether a user will do who has changed since.

        """
        with self._lock:
            user = self._users.get(user_id)
            if user is None or (not old and user_id in self._old):
                return None
            self._users.move_to_end(user_id)
        catalogue = self.catalogue
        if user.n_items < len(catalogue) and (user.unplaced or user.history.unplaced):
            user = user.placed(catalogue)
            with self._lock:
                if user_id in self._users and user_id not in self._old:
                    self._users[user_id] = user
        return user

    def is_old(self, user_id: str) -> bool:
        """Tell whether a user has changed since they were read."""
        return user_id in self._old

    def newest(self, n: int) -> list[str]:
        """Return the users who were asked for last, the latest first."""
        with self._lock:
            return [user_id for user_id, _ in zip(reversed(self._users), range(n), strict=False)]

    def taste_of(self, attributes: Mapping[str, Any]) -> NDArray[np.float32] | None:
        """Return the average vector of users who share attributes; ``None`` if nobody does."""
        return self._tastes.of(attributes)

    def read(self, user_ids: Collection[str]) -> None:
        """Read users into memory; those of whom nothing is published are kept as that.

        Raises
        ------
        TableError
            If the table does not answer; what was there stays, marked as old.

        """
        with self._lock:
            for user_id in user_ids:
                self._reading[user_id] += 1
                self._old.discard(user_id)
        try:
            users = self._read(sorted(user_ids))
        except TableError:
            with self._lock:
                self._old.update(one for one in user_ids if one in self._users)
            raise
        else:
            with self._lock:
                for user in users:
                    if user.user_id not in self._gone:
                        self._tastes.put(user)
                        self._users[user.user_id] = user
                        self._users.move_to_end(user.user_id)
                while len(self._users) > self._users_kept:
                    gone, _ = self._users.popitem(last=False)
                    self._old.discard(gone)
        finally:
            with self._lock:
                for user_id in user_ids:
                    self._reading[user_id] -= 1
                    if not self._reading[user_id]:
                        del self._reading[user_id]
                        self._gone.discard(user_id)
                        if user_id not in self._users:
                            self._old.discard(user_id)

    def take(self, changes: Changes) -> None:
        """Bring what changed into memory; users when they are asked for next.

        Raises
        ------
        TableError
            If the table does not answer; the same changes may then be taken again.

        """
        if changes.whole:
            return self._take_whole(changes.cursor)
        self._let_go(changes.gone_users)  # first: it needs no answer
        if changes.items or changes.gone_items:
            self._mirror.refresh(changes.items, changes.gone_items)
            said = self.reader.item_attributes(sorted(changes.items))
            self.attributes.put(said, gone=changes.gone_items | changes.items - said.keys())
            self._refresh_index(changes.items | changes.gone_items)
        else:
            self._mirror.refresh(())
        self._mark(changes.users)
        self.averages = _averages(self.catalogue)
        self.cursor = changes.cursor
        return None

    def _take_whole(self, cursor: str) -> None:
        self.everybody.let_all_go()  # nobody knows who was erased
        there = set(self.reader.item_ids())
        known = self.catalogue
        held = set(known.ids(np.flatnonzero(known.known)))
        self._mirror.refresh(there, held - there)
        self._refresh_index(there | held)
        self.attributes = Attributes(self.reader.all_item_attributes())
        with self._lock:
            self._old.update(self._users, self._reading)
        self.averages = _averages(self.catalogue)
        self.cursor = cursor

    def _refresh_index(self, changed: Collection[str]) -> None:
        catalogue = self.catalogue
        if len(catalogue) <= self._exact_up_to:
            return
        if self._index is None or len(catalogue) > 2 * self._indexed:
            from serving.index import Index  # takes a while, and few need it

            with self._lock:
                vectors = [one.vector for one in self._users.values() if one.vector is not None]
            self._index = Index(catalogue, np.stack(vectors) if vectors else None)
            self._indexed = len(catalogue)
        else:
            self._index.refresh(catalogue, catalogue.rows(changed))

    def _let_go(self, user_ids: Collection[str]) -> None:
        self.everybody.let_go(user_ids)
        with self._lock:
            for user_id in user_ids:
                if self._users.pop(user_id, None) is not None:
                    self._old.discard(user_id)
                if user_id in self._reading:
                    self._gone.add(user_id)
                self._tastes.forget(user_id)

    def _mark(self, user_ids: Collection[str]) -> None:
        self.everybody.mark(user_ids)
        with self._lock:
            self._old.update(u for u in user_ids if u in self._users or u in self._reading)

    def _read(self, user_ids: list[str]) -> list[User]:
        catalogue, reader = self.catalogue, self.reader
        rows = reader.users(user_ids)
        said = reader.user_attributes(user_ids)
        met = reader.seen(user_ids)
        at = {user_id: place for place, user_id in enumerate(rows.ids)}
        users = []
        for user_id in user_ids:
            place = at.get(user_id)
            item_ids = list(met[user_id])
            seen = catalogue.rows(item_ids)
            recent = rows.recent[place] if place is not None and rows.recent else ()
            user = User(
                user_id,
                None if place is None else rows.vectors[place],
                recent,
                History.of(catalogue, recent),
                seen[seen >= 0],
                tuple(one for one, row in zip(item_ids, seen.tolist(), strict=True) if row < 0),
                len(catalogue),
                0 if place is None else int(rows.ts_ms[place]),
                0 if place is None else int(rows.published_ms[place]),
                said.get(user_id, {}),
            )
            users.append(user)
        return users


class Live:
    """The last good copy of a table, kept up to date by a thread of its own.

    Parameters
    ----------
    table
        What to follow.
    stale_s
        When nothing was published for so long, what is in memory counts as stale.
    users_kept
        As :data:`USERS_KEPT`.
    exact_up_to
        As :data:`EXACT_UP_TO`.
    now_ms
        The wall clock.

    Notes
    -----
    A request takes one copy and is answered from it alone, so it never mixes two epochs. A new
    epoch is read whole beside the old one, which goes on answering.

    """

    def __init__(
        self,
        table: Table,
        *,
        stale_s: float = 60.0,
        users_kept: int = USERS_KEPT,
        exact_up_to: int = EXACT_UP_TO,
        now_ms: Callable[[], int] = wall_ms,
    ) -> None:
        self._table = table
        self._stale_ms = round(stale_s * 1_000)
        self._users_kept = users_kept
        self._exact_up_to = exact_up_to
        self._now_ms = now_ms
        self._copy: Copy | None = None
        self._wanted: frozenset[int] = frozenset()  # besides the one in view
        self._others: dict[int, Copy] = {}  # those of them that are there; replaced as a whole
        self._learners: dict[str, Live] = {}  # what others publish beside; replaced as a whole
        self._choosing = threading.Lock()  # which copies there are
        self._popular = Popular([], [])
        self.users_read = 0  # since the start, as requests asked for them
        self._error = "nothing was read yet"
        self._heard_ms = 0
        self._asked_ms = 0  # since when an answer is waited for; 0: none is
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Read what is published, if it is there, and start to follow."""
        self._attempt(wait_ms=0)
        self._thread = threading.Thread(target=self._follow, name="table", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Follow no longer."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()
        for live in self._learners.values():
            live.__exit__()

    @property
    def copy(self) -> Copy | None:
        """The epoch in view, in memory; ``None`` until one could be read."""
        return self._copy

    @property
    def others(self) -> bool:
        """Whether epochs besides the one in view are in memory, or other learners' models."""
        return bool(self._others or self._learners)

    def copy_of(self, model: int | str) -> Copy | None:
        """Return an epoch in memory, or what another learner has in view there.

        ``None`` if it is not followed, or gone.
        """
        if isinstance(model, str):
            learner = self._learners.get(model)
            return None if learner is None else learner.copy
        copy = self._copy
        if copy is not None and copy.epoch == model:
            return copy
        return self._others.get(model)

    def also(self, epochs: Collection[int], learners: Collection[str] = ()) -> None:
        """Follow these epochs besides the one in view, and no others; read those that are there.

        So with what other learners publish beside this one's table.

        Raises
        ------
        TableError
            If the table does not answer.

        """
        with self._choosing:
            self._wanted = frozenset(epochs)
            self._others = {one: copy for one, copy in self._others.items() if one in epochs}
        new = [epoch for epoch in sorted(epochs) if self.copy_of(epoch) is None]
        there = {each.epoch for each in self._table.epochs()} if new else set()
        for epoch in new:
            if epoch in there:
                copy = self._read(self._table.reader(epoch))
                with self._choosing:
                    self._others = {**self._others, epoch: copy}
            else:
                _log.warning("the model of epoch %d is gone: the one in view answers for it", epoch)
        self._follow_learners(learners)

    def _follow_learners(self, learners: Collection[str]) -> None:
        followed = {name: live for name, live in self._learners.items() if name in learners}
        for name in sorted(set(learners) - set(followed)):
            live = Live(
                self._table.beside(name),
                stale_s=self._stale_ms / 1_000,
                users_kept=self._users_kept,
                exact_up_to=self._exact_up_to,
                now_ms=self._now_ms,
            )
            followed[name] = live.__enter__()
            if live.copy is None:
                _log.warning("what %s publishes is not there: the usual model answers for it", name)
        ended = [live for name, live in self._learners.items() if name not in followed]
        self._learners = followed
        for live in ended:
            live.__exit__()

    @property
    def popular(self) -> Popular:
        """What to list when nothing else can be said."""
        return self._popular

    @property
    def away(self) -> bool:
        """Whether the table does not answer now."""
        asked_ms = self._asked_ms
        return bool(self._error) or 0 < asked_ms < self._now_ms() - SILENT_MS

    @property
    def stale(self) -> bool:
        """Whether what is in memory may be behind what was learned."""
        copy = self._copy
        if copy is None or self.away:
            return True
        return self._now_ms() - copy.catalogue.barrier.published_ms > self._stale_ms

    def stale_in(self, copy: Copy) -> bool:
        """Whether what is in memory of a copy's learner may be behind what that has learned."""
        of = (live for live in self._learners.values() if live.copy is copy)
        return next(of, self).stale

    def state(self) -> State:
        """Return how this process stands with the table."""
        copy, stale = self._copy, self.stale
        if copy is None:
            return State(None, 0, 0, 0, 0, 0, self._heard_ms, self._error, stale)
        items = copy.catalogue
        known = int(np.count_nonzero(items.known))
        return State(
            copy.epoch,
            items.barrier.step,
            items.barrier.at_ms,
            items.barrier.published_ms,
            known,
            copy.n_users,
            self._heard_ms,
            self._error,
            stale,
        )

    def _follow(self) -> None:
        while not self._closed.is_set():
            if not self._attempt(wait_ms=WAIT_MS):
                self._closed.wait(RETRY_S)

    def _attempt(self, *, wait_ms: int) -> bool:
        """Catch up with the table; return whether it answered."""
        followed = self._copy is not None
        try:
            self._catch_up(wait_ms)
        except TableError as error:
            if not self._error and followed:
                _log.warning("answers come from the last good copy: %s", error)
            self._error = str(error)
            return False
        except Exception:  # noqa: BLE001
            # Answers go on, marked stale: a process that dies here would help nobody.
            _log.exception("what is published cannot be followed")
            self._error = "what is published cannot be followed; the log of the server says why"
            return False
        if self._error and followed:
            _log.info("the table answers again")
        self._error = ""
        return True

    def _answer(self, question: Callable[[], T]) -> T:
        """Ask the table; what is done with the answer may then take its time."""
        self._asked_ms = self._now_ms()
        try:
            answer = question()
        finally:
            self._asked_ms = 0
        self._heard_ms = self._now_ms()
        return answer

    def _catch_up(self, wait_ms: int) -> None:
        reader, copy = self._answer(self._table.reader), self._copy
        if copy is None or copy.epoch != reader.epoch:
            new = self._others.get(reader.epoch) or self._read(reader)
            if copy is not None and (warm := copy.newest(WARM_USERS)):
                new.read(warm)
            self._remember(new.catalogue)
            with self._choosing:
                others = {one: other for one, other in self._others.items() if one != new.epoch}
                if copy is not None and copy.epoch in self._wanted:
                    others[copy.epoch] = copy
                self._copy, self._others = new, others
            return
        if self._take(copy, wait_ms):
            self._remember(copy.catalogue)
        for other in self._others.values():
            self._follow_other(other)

    def _read(self, reader: Reader) -> Copy:
        return Copy(reader, users_kept=self._users_kept, exact_up_to=self._exact_up_to)

    def _take(self, copy: Copy, wait_ms: int) -> bool:
        """Take in what was published into a copy's epoch; say whether there was something."""
        # A copy is told of changes by its own reader, so what it reads is of its own epoch.
        changes = self._answer(lambda: copy.reader.changes(copy.cursor, wait_ms=wait_ms))
        if changes.cursor == copy.cursor and not changes.whole:
            return False
        started = time.monotonic()
        copy.take(changes)
        # A large catalogue takes long to refresh: leave at least as much time to requests.
        self._closed.wait(min(time.monotonic() - started, 5.0))
        return True

    def _follow_other(self, copy: Copy) -> None:
        try:
            self._take(copy, 0)
        except TableError:
            if copy.epoch in {each.epoch for each in self._table.epochs()}:
                raise
            _log.warning("the model of epoch %d is gone: the one in view answers", copy.epoch)
            with self._choosing:
                self._others = {e: o for e, o in self._others.items() if e != copy.epoch}

    def _remember(self, catalogue: Catalogue) -> None:
        base = catalogue.base(catalogue.barrier.at_ms)
        n = min(POPULAR_KEPT, base.shape[0])
        best = np.argpartition(-base, n - 1)[:n] if n else _NO_ROWS
        best = best[np.isfinite(base[best])]
        best = best[np.argsort(-base[best], kind="stable")]
        if best.size:
            self._popular = Popular(catalogue.ids(best), base[best].tolist())


class Averages(NamedTuple):
    """What an average item has, against which the reasons of a list are told."""

    vector: NDArray[np.float32]
    base: float


def _averages(catalogue: Catalogue) -> Averages:
    known = catalogue.known
    if not known.any():
        return Averages(np.zeros(catalogue.layout.dim, np.float32), 0.0)
    base = catalogue.base(catalogue.barrier.at_ms)
    share = known.astype(np.float32) / np.float32(np.count_nonzero(known))
    vector = (share @ catalogue.vectors).astype(np.float32, copy=False)
    return Averages(vector, float(np.mean(base[known], dtype=np.float64)))


class _Tastes:
    """Average vectors of the users who share an attribute's value, those lately read."""

    def __init__(self, kept: int = USERS_KEPT) -> None:
        self._kept = kept
        self._of: OrderedDict[str, tuple[NDArray[np.float32], list[tuple[str, str]]]] = (
            OrderedDict()
        )
        self._sums: dict[tuple[str, str], tuple[NDArray[np.float64], int]] = {}
        self._lock = threading.Lock()

    def put(self, user: User) -> None:
        pairs = [(name, text) for name, one in user.attributes.items() for text in values_of(one)]
        with self._lock:
            self._drop(user.user_id)
            if user.vector is None or not pairs:
                return
            self._of[user.user_id] = user.vector, pairs
            for pair in pairs:
                total, n = self._sums.get(pair, (np.zeros(user.vector.shape), 0))
                self._sums[pair] = total + user.vector, n + 1
            if len(self._of) > self._kept:
                self._drop(next(iter(self._of)))

    def forget(self, user_id: str) -> None:
        with self._lock:
            self._drop(user_id)

    def of(self, attributes: Mapping[str, Any]) -> NDArray[np.float32] | None:
        with self._lock:
            found = [
                self._sums[name, text]
                for name, one in attributes.items()
                for text in values_of(one)
                if (name, text) in self._sums
            ]
        if not found:
            return None
        # A value that few share says more than one that everybody has: each counts the same.
        taste: NDArray[np.float64] = np.mean([total / n for total, n in found], 0)
        return taste.astype(np.float32)

    def _drop(self, user_id: str) -> None:
        if (kept := self._of.pop(user_id, None)) is None:
            return
        vector, pairs = kept
        for pair in pairs:
            total, n = self._sums[pair]
            if n == 1:
                del self._sums[pair]
            else:
                self._sums[pair] = total - vector, n - 1
