"""Answers requests for lists: those that wait are scored together, and everybody gets a list."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from serving.catalogue import PAIR, Catalogue
from serving.filtering import Wanted
from serving.live import Averages, Copy, Live, User, wall_ms
from serving.neighbours import Nearest
from serving.rerank import rerank
from serving.retrieval import NO_HISTORY, History, Query, Ranked, recommend
from stream.errors import TableError
from stream.events import Kind

if TYPE_CHECKING:
    from serving.index import Index

Step = Literal["vector", "events", "attributes", "popularity", "precomputed"]
"""What a list was made from: the first of these that there is."""

AT_ONCE: Final = 64
"""Requests that are scored together."""

GATHER_S: Final = 0.001
"""How long others are waited for where several came at once before: one more costs little then."""

READ_S: Final = 1.0
"""How long a request waits for the table to tell of its user; then what is in memory must do."""

_WIDER: Final = 5  # times the items wanted is what a diverse list is chosen from
_WIDEST: Final = 1_000
_FEW: Final = 20_000  # items that are all looked at where a filter allows no more
_MORE: Final = 100  # candidates besides the items wanted, whose base may have grown since

_TASTE: Final[dict[Step, str]] = {
    "vector": "suits the user's taste",
    "events": "is like the items met lately",
    "attributes": "suits users with the same attributes",
    "popularity": "is popular now",
    "precomputed": "was popular",
}
_POPULAR: Final = "is popular now"
_COVISITED: Final = "goes with items met lately"

T = TypeVar("T")

_log = logging.getLogger("tidegraph.serving")


class Unready(Exception):  # noqa: N818 - it is not the request that is wrong
    """Nothing was ever read from the table: there is no list for anybody."""


class Parts(msgspec.Struct, frozen=True, gc=False):
    """What a score is the sum of.

    Parameters
    ----------
    taste
        Product of the user's vector and the item's.
    popularity
        The same for every user: bias, decayed positives, click rate.
    covisitation
        Of the item with the user's latest positive events.

    """

    taste: float
    popularity: float
    covisitation: float


class Item(msgspec.Struct, frozen=True, gc=False):
    """One item of a list.

    Parameters
    ----------
    item
        Its id.
    score
        What the list is sorted by.
    reason
        The part that sets the item apart from an average one the most, in words.
    parts
        Of the score; left out where the list was not made just now.

    """

    item: str
    score: float
    reason: str
    parts: Parts | None = None


class Origin(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What an answer was made from.

    Parameters
    ----------
    model
        Epoch of the table, one per model. Everything in one answer is from this one.
    step, at_ms
        Micro-batch and event time up to which the items have learned.
    stale
        Whether more may have been learned than this answer knows.

    """

    model: int
    step: int
    at_ms: int
    stale: bool


class TakesPart(msgspec.Struct, frozen=True, gc=False):
    """An experiment that a request took part in.

    Parameters
    ----------
    experiment
        Its name.
    arm
        That decided the list; ``null`` where the lists of both arms were mixed.

    """

    experiment: str
    arm: str | None


class Recommendations(Origin, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """A list and what it was made from. Of a mixed list all but the items is the control's.

    Parameters
    ----------
    user
        For whom; ``null`` for a session.
    items
        Best first; fewer than asked for where no more may be in the list.
    answered_by
        ``vector``: the published vector of the user; ``events``: the vectors of the latest events,
        because there is none of the user; ``attributes``: the average of users who share
        attributes; ``popularity``: what suits anybody; ``precomputed``: the last list of that kind.
    fallback
        Whether that is anything but the vector.
    vector_age_ms
        Since the user's vector was published; ``null`` without one.
    request_id
        To be sent with the feedback on this list. Left out, as ``experiments`` is, where the list
        took part in no experiment.
    experiments
        Those that it took part in.

    """

    user: str | None
    items: list[Item]
    answered_by: Step
    fallback: bool
    vector_age_ms: int | None
    request_id: str = ""
    experiments: list[TakesPart] = []


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """A list that is asked for.

    Parameters
    ----------
    user_id
        ``None``: of nobody known, as for a session.
    n
        Items wanted.
    context
        Items met just now, latest first: they count as liked, and are left out.
    exclude
        Items to leave out.
    include
        Items to choose from; ``None`` is all.
    wanted
        Attributes that the items must have.
    leave_out_seen
        Whether what the user has met is left out, and the context.
    model
        Epoch to answer from, or the learner, where it is in memory; ``None`` is the one in view.
    diversity
        As in :func:`serving.rerank.rerank`; 0 keeps the order of the scores.

    """

    user_id: str | None = None
    n: int = 10
    context: Sequence[str] = ()
    exclude: Collection[str] = ()
    include: Collection[str] | None = None
    wanted: Wanted = field(default_factory=dict)
    leave_out_seen: bool = True
    model: int | str | None = None
    diversity: float = 0.0

    @property
    def n_found(self) -> int:
        """How many of the best are looked for."""
        return max(self.n, min(self.n * _WIDER, _WIDEST)) if self.diversity else self.n


class Start(NamedTuple):
    """What a list for somebody is made from."""

    step: Step
    vector: NDArray[np.float32]
    history: History


class _Waiting:
    """A request, who answers it, and the copy in which its user was looked for."""

    __slots__ = ("answer", "ask", "looked_in")

    def __init__(self, ask: Ask, answer: asyncio.Future[Recommendations]) -> None:
        self.ask = ask
        self.answer = answer
        self.looked_in: Copy | None = None


class Recommender:
    """Answers requests from the last good copy, for one event loop.

    Requests that arrive while others are being answered wait, and are scored together, in one
    product of matrices. Where several came together before, the first waits a millisecond for
    others. Users who are not in memory are read by a thread, also together.

    Parameters
    ----------
    live
        What is published.

    """

    def __init__(self, live: Live) -> None:
        self._live = live
        self._waiting: list[_Waiting] = []
        self._together = 0  # requests that were answered at once, the last time
        self._to_read: list[_Waiting] = []
        self._task: asyncio.Task[None] | None = None
        self._hung = False
        self._reader = ThreadPoolExecutor(1, "users")
        self._comparer = ThreadPoolExecutor(1, "neighbours")  # the reader may hang
        self._gathering: dict[Copy, asyncio.Task[None]] = {}

    def close(self) -> None:
        """Let go of the threads."""
        for threads in (self._reader, self._comparer):
            threads.shutdown(wait=False, cancel_futures=True)

    async def recommend(self, ask: Ask) -> Recommendations:
        """Return a list.

        Raises
        ------
        Unready
            If nothing was ever read from the table.

        """
        waiting = _Waiting(ask, asyncio.get_running_loop().create_future())
        self._enqueue([waiting])
        return await waiting.answer

    async def recommend_all(self, asks: Sequence[Ask]) -> list[Recommendations]:
        """Return one list for each; those that name no model are all of the same.

        Raises
        ------
        Unready
            If nothing was ever read from the table.

        """
        loop = asyncio.get_running_loop()
        while True:
            waiting = [_Waiting(ask, loop.create_future()) for ask in asks]
            self._enqueue(waiting)
            answers = await asyncio.gather(*(one.answer for one in waiting))
            pairs = zip(asks, answers, strict=True)
            if len({answer.model for ask, answer in pairs if ask.model is None}) <= 1:
                return answers
            # A model was flipped meanwhile, which is seldom.

    async def user(self, user_id: str) -> tuple[Copy, User | None]:
        """Return a user as in memory or, if not there, as published, and in which copy.

        Raises
        ------
        Unready
            If nothing was ever read from the table.

        """
        copy = await self.with_users([user_id])
        return copy, copy.user(user_id, old=True)

    async def with_users(self, user_ids: Collection[str]) -> Copy:
        """Return the epoch in view with users in memory, as far as the table tells of them.

        Raises
        ------
        Unready
            If nothing was ever read from the table.

        """
        for _ in range(2):  # again if a model was flipped meanwhile
            copy = self.in_view()
            missing = {user_id for user_id in user_ids if copy.user(user_id) is None}
            if not missing:
                break
            if not self._live.away and not self._hung:
                await self._read(copy, missing)
            if copy is self._live.copy:
                break
        return copy

    async def nearest(self, copy: Copy, user: User, n: int) -> Nearest | None:
        """Return the published users most like one; those who have changed are read before.

        Returns
        -------
        Nearest
            Of those who are in memory if the table does not answer; ``None`` if nobody is.

        """
        if user.vector is None or not user.vector.any():  # which points nowhere
            return Nearest([], 0)
        if not self._live.away and not self._hung:
            gathering = self._gathering.get(copy)
            if gathering is None:
                gathering = asyncio.get_running_loop().create_task(self._gather(copy))
                self._gathering[copy] = gathering
            await asyncio.shield(gathering)  # others wait for it too
        loop, compare = asyncio.get_running_loop(), copy.everybody.nearest
        return await loop.run_in_executor(self._comparer, compare, user.user_id, user.vector, n)

    def answered_from(self, model: int | str | None, answer: Recommendations) -> bool:
        """Tell whether an answer is of the model that was asked for."""
        copy = None if model is None else self._live.copy_of(model)
        return model is None or (copy is not None and copy.epoch == answer.model)

    def in_view(self) -> Copy:
        """Return the epoch in view.

        Raises
        ------
        Unready
            If nothing was ever read from the table.

        """
        if (copy := self._live.copy) is None:
            raise Unready
        return copy

    def _enqueue(self, waiting: Sequence[_Waiting]) -> None:
        if not self._waiting and waiting:
            loop = waiting[0].answer.get_loop()
            if self._together > 1:
                loop.call_later(GATHER_S, self._answer)
            else:
                loop.call_soon(self._answer)
        self._waiting += waiting

    def _answer(self) -> None:
        """Answer those that wait, as far as their users are in memory."""
        some, self._waiting = self._waiting[:AT_ONCE], self._waiting[AT_ONCE:]
        self._together = len(some)
        if self._waiting:
            self._waiting[0].answer.get_loop().call_soon(self._answer)
        some = [one for one in some if not one.answer.done()]  # the others were given up
        try:
            for copy, those in self._by_copy(some):
                now, users = self._in_memory(copy, those)
                answers = self._lists(copy, [one.ask for one in now], users)
                for one, answer in zip(now, answers, strict=True):
                    one.answer.set_result(answer)
        except Exception as error:  # noqa: BLE001 - each request raises it where it waits
            for one in some:
                if not one.answer.done():
                    one.answer.set_exception(error)

    def _by_copy(self, some: list[_Waiting]) -> list[tuple[Copy, list[_Waiting]]]:
        """Return from which copy each is answered: the one in view where there is no other."""
        copy = self.in_view()
        if not self._live.others:
            return [(copy, some)]
        of: dict[Copy, list[_Waiting]] = {}
        for one in some:
            wanted = one.ask.model
            named = None if wanted is None else self._live.copy_of(wanted)
            of.setdefault(named or copy, []).append(one)
        return list(of.items())

    def _in_memory(
        self, copy: Copy, some: Sequence[_Waiting]
    ) -> tuple[list[_Waiting], list[User | None]]:
        """Return what can be answered now, and for whom; have the users of others read."""
        now: list[_Waiting] = []
        users: list[User | None] = []
        blind = self._hung or self._live.away
        for one in some:
            user_id = one.ask.user_id
            user = None
            if user_id is not None and (user := copy.user(user_id)) is None:
                if not blind and one.looked_in is not copy:
                    one.looked_in = copy
                    self._to_read.append(one)
                    continue
                user = copy.user(user_id, old=True)
            now.append(one)
            users.append(user)
        if self._to_read and self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._read_users())
        return now, users

    async def _read_users(self) -> None:
        try:
            while self._to_read:
                some, self._to_read = self._to_read, []
                user_ids: dict[Copy, set[str]] = {}
                for one in some:
                    if one.looked_in is not None and one.ask.user_id is not None:
                        user_ids.setdefault(one.looked_in, set()).add(one.ask.user_id)
                for copy, those in user_ids.items():
                    await self._read(copy, those)
                self._enqueue(some)
        finally:
            self._task = None

    async def _read(self, copy: Copy, user_ids: Collection[str]) -> None:
        """Read users; return after a while in any case."""
        self._live.users_read += len(user_ids)
        await self._by_reader(copy.read, user_ids)

    async def _gather(self, copy: Copy) -> None:
        """Read who is to be compared, part by part, so that other reads come in between."""
        try:
            more = await self._by_reader(copy.everybody.begin)
            while more:
                more = await self._by_reader(copy.everybody.go_on)
        finally:
            del self._gathering[copy]

    async def _by_reader(self, job: Callable[..., T], *about: Any) -> T | None:
        """Have the thread ask the table; return ``None`` if there is no answer for a while."""
        reading = asyncio.get_running_loop().run_in_executor(self._reader, _try, job, about)
        _, late = await asyncio.wait({reading}, timeout=READ_S)
        if late:
            self._hung = True
            reading.add_done_callback(self._answers_again)
            return None
        return reading.result()

    def _answers_again(self, _: asyncio.Future[Any]) -> None:
        self._hung = False

    def _lists(
        self, copy: Copy, asks: Sequence[Ask], users: Sequence[User | None]
    ) -> list[Recommendations]:
        if not asks:
            return []
        catalogue = copy.catalogue  # taken after the users, so that it has the rows they name
        if not catalogue.known.any():
            return [self._precomputed(copy, *each) for each in zip(asks, users, strict=True)]
        starts = [start(copy, catalogue, ask, user) for ask, user in zip(asks, users, strict=True)]
        queries = [query(copy, catalogue, *each) for each in zip(asks, users, starts, strict=True)]
        found = [
            _diverse(catalogue, ask, each) if ask.diversity else each
            for ask, each in zip(asks, recommend(catalogue, queries), strict=True)
        ]
        items = listed(catalogue, copy.averages, starts, found)
        stale, now_ms = self._live.stale_in(copy), wall_ms()
        barrier = catalogue.barrier
        return [
            Recommendations(
                user=ask.user_id,
                items=each,
                answered_by=begun.step,
                fallback=begun.step != "vector",
                model=copy.epoch,
                step=barrier.step,
                at_ms=barrier.at_ms,
                vector_age_ms=_age_ms(user, now_ms),
                stale=stale or (user is not None and copy.is_old(user.user_id)),
            )
            for ask, user, begun, each in zip(asks, users, starts, items, strict=True)
        ]

    def _precomputed(self, copy: Copy, ask: Ask, user: User | None) -> Recommendations:
        barred = {*ask.exclude, *(ask.context if ask.leave_out_seen else ())}
        if user is not None and ask.leave_out_seen:
            barred |= {*user.unplaced, *copy.catalogue.ids(user.seen)}
        allowed = copy.attributes.items(ask.wanted) if ask.wanted else None
        items = [
            Item(item_id, round(score, 4), _TASTE["precomputed"])
            for item_id, score in zip(*self._live.popular, strict=True)
            if item_id not in barred
            and (allowed is None or item_id in allowed)
            and (ask.include is None or item_id in ask.include)
        ]
        barrier = copy.catalogue.barrier
        return Recommendations(
            user=ask.user_id,
            items=items[: ask.n],
            answered_by="precomputed",
            fallback=True,
            model=copy.epoch,
            step=barrier.step,
            at_ms=barrier.at_ms,
            vector_age_ms=_age_ms(user, wall_ms()),
            stale=True,
        )


def start(copy: Copy, catalogue: Catalogue, ask: Ask, user: User | None) -> Start:
    """Return what a list is made from: the first step of the chain for which there is anything."""
    history = NO_HISTORY if user is None else user.history
    if ask.context:
        liked = [(item_id, int(Kind.IMPLICIT_POSITIVE), 0) for item_id in ask.context]
        history = History.of(catalogue, [*liked, *(() if user is None else user.recent)])
    if user is not None and user.vector is not None and user.vector.any():
        return Start("vector", user.vector, history)
    if history.rows.size:
        weights = history.trust / history.trust.sum()
        return Start("events", weights @ catalogue.vectors[history.rows], history)
    taste = None if user is None else copy.taste_of(user.attributes)
    if taste is not None:
        return Start("attributes", taste, history)
    return Start("popularity", np.zeros(catalogue.layout.dim, np.float32), history)


def query(copy: Copy, catalogue: Catalogue, ask: Ask, user: User | None, begun: Start) -> Query:
    """Return what is looked for in the catalogue."""
    barred = [catalogue.rows(ask.exclude)] if ask.exclude else []
    if ask.leave_out_seen:
        if ask.context:
            barred.append(catalogue.rows(ask.context))
        if user is not None:
            barred.append(user.seen)
    rows = None if ask.include is None else catalogue.rows(ask.include)
    allowed = copy.attributes.mask(catalogue, ask.wanted)
    out = _joined(barred)
    if rows is None and copy.index is not None:
        rows = _candidates(copy.index, catalogue, begun, ask.n_found, out, allowed)
    return Query(
        vector=begun.vector,
        history=begun.history,
        barred=out,
        only=rows,
        allowed=allowed,
        n=ask.n_found,
    )


def _diverse(catalogue: Catalogue, ask: Ask, found: Ranked) -> Ranked:
    chosen = rerank(found.scores, catalogue.vectors[found.rows], ask.n, diversity=ask.diversity)
    return Ranked(found.rows[chosen], found.scores[chosen], found.covisited[chosen])


def _candidates(
    index: Index,
    catalogue: Catalogue,
    begun: Start,
    n: int,
    barred: NDArray[np.int64],
    allowed: NDArray[np.bool_] | None,
) -> NDArray[np.int64]:
    """Return the rows to score: those an index finds, and those that go with the history."""
    if allowed is not None and (few := np.flatnonzero(allowed)).shape[0] <= _FEW:
        return few
    found = index.candidates(begun.vector, n + _MORE, barred=barred, allowed=allowed)
    near = [catalogue.pairs(row).view(PAIR)["row"] for row in begun.history.rows.tolist()]
    rows = np.concatenate([found, *near]).astype(np.int64)
    return rows[rows < len(catalogue)]


def listed(
    catalogue: Catalogue, average: Averages, starts: Sequence[Start], found: Sequence[Ranked]
) -> list[list[Item]]:
    """Return what is found with its reasons; all lists together, which costs least."""
    rows = np.concatenate([each.rows for each in found])
    sizes = [each.rows.shape[0] for each in found]
    scores = np.concatenate([each.scores for each in found])
    covisited = np.concatenate([each.covisited for each in found])
    base = catalogue.base(catalogue.barrier.at_ms)[rows]
    taste = scores - base - covisited
    usual = np.stack([begun.vector for begun in starts]) @ average.vector
    speaks = np.stack([taste - np.repeat(usual, sizes), base - average.base, covisited])
    reasons = np.argmax(speaks, 0).tolist()
    told = np.stack([scores, taste, base, covisited]).astype(np.float64).round(4)
    told += 0.0  # of what is minus zero
    whole = zip(catalogue.ids(rows), reasons, *told.tolist(), strict=True)
    lists = []
    for begun, size in zip(starts, sizes, strict=True):
        words = (_TASTE[begun.step], _POPULAR, _COVISITED)
        lists.append(
            [
                Item(item_id, score, words[reason], Parts(*parts))
                for _, (item_id, reason, score, *parts) in zip(range(size), whole, strict=False)
            ]
        )
    return lists


def _try(job: Callable[..., T], about: Sequence[Any]) -> T | None:
    try:
        return job(*about)
    except TableError as error:
        _log.debug("users cannot be read: %s", error)  # Live tells of it, once
    except Exception:  # noqa: BLE001 - what is in memory must do
        _log.exception("users cannot be read")
    return None


def _age_ms(user: User | None, now_ms: int) -> int | None:
    if user is None or user.vector is None:
        return None
    return max(0, now_ms - user.published_ms)


def _joined(rows: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    if len(rows) == 1:
        return rows[0]
    return np.concatenate(rows) if rows else NO_HISTORY.rows
