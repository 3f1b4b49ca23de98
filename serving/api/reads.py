"""What can be read: lists for users and sessions, neighbours, and what is published of an id."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Annotated, Any, Final

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from serving import fusion
from serving.api.problems import Problem
from serving.api.routes import Call, Route
from serving.experiments.enrolling import Enrolment
from serving.experiments.trials import Trials
from serving.live import Copy, Live, User, wall_ms
from serving.recommending import Ask, Origin, Recommendations, Recommender, Unready
from serving.rerank import Limit, rerank
from stream.events import Kind

MAX_ITEMS: Final = 1_000
"""Items of a list, in requests and answers."""

MAX_BATCH: Final = 1_000
"""Lists that one request may ask for."""

Id = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
Ids = Annotated[list[Id], msgspec.Meta(max_length=MAX_ITEMS)]
Session = Annotated[str, msgspec.Meta(max_length=512)]
N = Annotated[int, msgspec.Meta(ge=1, le=MAX_ITEMS)]
Filters = dict[Id, Annotated[list[str], msgspec.Meta(min_length=1, max_length=100)]]


class ListQuery(msgspec.Struct, kw_only=True, frozen=True):
    """What a list should be like.

    Parameters
    ----------
    n
        Items wanted.
    filter
        ``attribute:value``, as often as wanted: an item must have one of the values of each
        attribute named.

    """

    n: N = 10
    filter: Annotated[list[str], msgspec.Meta(max_length=100)] = []


class RecommendationQuery(ListQuery, kw_only=True, frozen=True):
    """What a user's list should be like.

    Parameters
    ----------
    exclude
        Items to leave out.
    include
        Items to choose from; all if there is none.
    context
        Items met just now, latest first, of which the log need not know yet: they count as liked.
    leave_out_seen
        Whether what the user has met is left out, and the context.
    session
        To which the request belongs, for experiments on sessions.
    preview
        Whether it is not the user who sees the list, but somebody who looks at what the user would
        get: experiments do not count it.

    """

    exclude: Ids = []
    include: Ids = []
    context: Ids = []
    leave_out_seen: bool = True
    session: Session = ""
    preview: bool = False


class NeighbourQuery(msgspec.Struct, kw_only=True, frozen=True):
    """How many neighbours are wanted, of each kind."""

    n: Annotated[int, msgspec.Meta(ge=1, le=100)] = 10


class _Wanted(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What a list should be like.

    Parameters
    ----------
    n, exclude, include, leave_out_seen
        As in ``GET /v1/recommendations/{user}``; ``include`` is ``null`` for all items.
    filters
        Attribute to values: an item must have one of the values of each attribute.
    session
        To which the request belongs, for experiments on sessions.

    """

    n: N = 10
    exclude: Ids = []
    include: Ids | None = None
    filters: Filters = {}
    leave_out_seen: bool = True
    session: Session = ""


class UserRequest(_Wanted, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """One list of a batch.

    Parameters
    ----------
    user
        For whom.
    context
        Items met just now, latest first.

    """

    user: Id
    context: Ids = []


class BatchRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Several lists at once."""

    requests: Annotated[list[UserRequest], msgspec.Meta(max_length=MAX_BATCH)]


class BatchAnswer(msgspec.Struct, frozen=True):
    """One list for each request, in their order."""

    answers: list[Recommendations]


class SessionRequest(_Wanted, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A list for somebody of whom nothing but a session is known.

    Parameters
    ----------
    items
        Met in the session, latest first.

    """

    items: Annotated[list[Id], msgspec.Meta(min_length=1, max_length=100)]


class RankRequest(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Candidates to be scored.

    Parameters
    ----------
    items
        Candidates.
    user
        For whom; ``null`` for anybody.
    context
        Items met just now, latest first.

    """

    items: Annotated[list[Id], msgspec.Meta(min_length=1, max_length=MAX_ITEMS)]
    user: Id | None = None
    context: Ids = []


class Ranking(msgspec.Struct, frozen=True):
    """Candidates in order, and those that are not published."""

    ranked: Recommendations
    unknown: list[str]


class Candidate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An item of a list that is to be reordered, with the score it was found by, if any."""

    item: Id
    score: Annotated[float, msgspec.Meta(ge=-1e30, le=1e30)] | None = None


class Exposure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How often one value of an attribute may be in a list, such as one author."""

    attribute: Id
    most: Annotated[int, msgspec.Meta(ge=0, le=MAX_ITEMS)]


class RerankRequest(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A list to be reordered.

    Parameters
    ----------
    items
        Best first. Scores must be given for all or for none: then they are the user's, or, without
        a user, the order given counts.
    user
        For whom.
    n
        Items wanted; ``null`` for as many as there are.
    diversity
        0 keeps the order of the scores, 1 looks only for items that differ from those before.
    limits
        Each holds for the whole list.

    """

    items: Annotated[list[Candidate], msgspec.Meta(min_length=1, max_length=MAX_ITEMS)]
    user: Id | None = None
    n: N | None = None
    diversity: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    limits: Annotated[list[Exposure], msgspec.Meta(max_length=10)] = []


class Placed(msgspec.Struct, frozen=True):
    """An item in its new place, its score, and its place before, from 0."""

    item: str
    score: float
    before: int


class Reranking(Origin, frozen=True, kw_only=True):
    """A reordered list, and the items that are not published: nothing says what they are like."""

    items: list[Placed]
    unknown: list[str]


class Similar(msgspec.Struct, frozen=True):
    """An item that goes with another one.

    Parameters
    ----------
    item
        Its id.
    score
        A cosine.
    by
        ``visits``: of how often both were liked together; ``vector``: of their vectors.

    """

    item: str
    score: float
    by: str


class SimilarItems(Origin, frozen=True, kw_only=True):
    """What goes with an item: first by visits, then by vectors."""

    item: str
    items: list[Similar]


class Neighbour(msgspec.Struct, frozen=True):
    """A user whose vector points nearly the same way, and the cosine."""

    user: str
    score: float


class Neighbours(Origin, frozen=True, kw_only=True):
    """Users most like one, among all that are published.

    Parameters
    ----------
    user
        Whose.
    users
        The most alike first, as the log knows them.
    among
        How many were compared: where more are published, 200,000 drawn at random.

    """

    user: str
    users: list[Neighbour]
    among: int


class Dated(msgspec.Struct, frozen=True):
    """An item and when it came into being."""

    item: str
    created_ms: int


class Latest(Origin, frozen=True, kw_only=True):
    """The newest items by their attribute ``created_ms``, the newest first."""

    items: list[Dated]


class Embedding(Origin, frozen=True, kw_only=True):
    """A published vector.

    Parameters
    ----------
    id
        Of the user or item.
    vector, bias
        The score of an item for a user begins as the product of their vectors, plus the bias.
    ts_ms
        Event time as of which it stands.
    age_ms
        Since it was published; ``null`` for items: they are as of ``at_ms``.

    """

    id: str
    vector: list[float]
    bias: float | None
    ts_ms: int
    age_ms: int | None


class Edge(msgspec.Struct, frozen=True):
    """One typed event of a user."""

    item: str
    kind: str
    ts_ms: int


class History(Origin, frozen=True, kw_only=True):
    """A user's latest events, newest first, as many as the learner publishes.

    Parameters
    ----------
    user
        Whose.
    events
        Each with its feedback class.
    n_seen
        Distinct items that the user has ever met.

    """

    user: str
    events: list[Edge]
    n_seen: int


class Graph(Origin, frozen=True, kw_only=True):
    """A user's place in the graph.

    Parameters
    ----------
    user
        Whose.
    edges
        The latest typed edges, newest first.
    items
        For each item liked lately, what is visited with it.
    users, among
        As in ``GET /v1/users/{user}/neighbours``.

    """

    user: str
    edges: list[Edge]
    items: dict[str, list[Similar]]
    users: list[Neighbour]
    among: int


class Features(Origin, frozen=True, kw_only=True):
    """What the model knows of a user.

    Parameters
    ----------
    user
        Whose.
    attributes
        As they were stored.
    events
        Latest events by feedback class.
    n_seen
        Distinct items that the user has ever met.
    last_event_ms
        Event time of the last one.
    vector_norm
        Length of the vector; ``null`` without one.
    vector_age_ms
        Since it was published.
    covisitation_weight
        What co-visitation counts for a history of this length; ``null`` if it is not published.

    """

    user: str
    attributes: dict[str, Any]
    events: dict[str, int]
    n_seen: int
    last_event_ms: int
    vector_norm: float | None
    vector_age_ms: int | None
    covisitation_weight: float | None


class _Reads:
    """The handlers."""

    def __init__(
        self, live: Live, enrolment: Enrolment, pseudonym: Callable[[str], str] | None
    ) -> None:
        self._live = live
        self._recommender = Recommender(live)
        self._trials = Trials(self._recommender, enrolment)
        self._pseudonym = pseudonym

    async def recommendations(self, call: Call) -> Recommendations:
        query, user = call.query, call.path["user"]
        ask = Ask(
            user_id=self._known_as(user),
            n=query.n,
            context=query.context,
            exclude=query.exclude,
            include=query.include or None,
            wanted=_wanted(query.filter) if query.filter else {},
            leave_out_seen=query.leave_out_seen,
        )
        answer = await self._trial(ask, query.session, preview=query.preview)
        return self._named(answer, user)

    async def batch(self, call: Call) -> BatchAnswer:
        asked: list[UserRequest] = call.body.requests
        asks = [_ask(one, self._known_as(one.user), one.context) for one in asked]
        try:
            answers = await self._trials.recommend_all(asks, [one.session for one in asked])
        except Unready:
            raise _unready() from None
        named = [self._named(each, one.user) for each, one in zip(answers, asked, strict=True)]
        return BatchAnswer(named)

    async def session(self, call: Call) -> Recommendations:
        return await self._trial(_ask(call.body, None, call.body.items), call.body.session)

    async def rank(self, call: Call) -> Ranking:
        body: RankRequest = call.body
        ranked = await self._rank(body.items, body.user, body.context)
        found = {one.item for one in ranked.items}
        return Ranking(ranked, [one for one in dict.fromkeys(body.items) if one not in found])

    async def rerank(self, call: Call) -> Reranking:
        body: RerankRequest = call.body
        given = {one.item: one.score for one in reversed(body.items)}
        ids = list(dict.fromkeys(one.item for one in body.items))
        scored = [item_id for item_id in ids if given[item_id] is not None]
        if scored and len(scored) < len(ids):
            raise Problem(
                400,
                "invalid-request",
                f"items: want a score for all or for none, got {len(scored)} for {len(ids)} items",
            )
        if scored:
            scores = {item_id: given[item_id] or 0.0 for item_id in ids}
        elif body.user is None:
            scores = {item_id: float(-place) for place, item_id in enumerate(ids)}
        else:
            ranked = await self._rank(ids, body.user, ())
            if ranked.model != self._copy().epoch:  # a model was flipped meanwhile
                ranked = await self._rank(ids, body.user, ())
            scores = {one.item: one.score for one in ranked.items}
        copy = self._copy()
        catalogue = copy.catalogue
        rows = catalogue.rows(ids)
        there = [
            (place, item_id, row)
            for place, (item_id, row) in enumerate(zip(ids, rows.tolist(), strict=True))
            if row >= 0 and catalogue.known[row] and item_id in scores
        ]
        known = [item_id for _, item_id, _ in there]
        limits = [
            Limit(copy.attributes.groups(known, one.attribute), one.most) for one in body.limits
        ]
        chosen = rerank(
            np.array([scores[item_id] for item_id in known], np.float32),
            catalogue.vectors[np.array([row for *_, row in there], np.int64)],
            len(known) if body.n is None else body.n,
            diversity=body.diversity,
            limits=limits,
        )
        placed = [
            Placed(item_id, scores[item_id], place)
            for place, item_id, _ in (there[at] for at in chosen.tolist())
        ]
        missing = set(ids).difference(known)
        unknown = [item_id for item_id in ids if item_id in missing]
        return Reranking(items=placed, unknown=unknown, **self._origin(copy))

    async def similar(self, call: Call) -> SimilarItems:
        copy, item = self._copy(), call.path["item"]
        found = _similar(copy, item, call.query)
        return SimilarItems(item=item, items=found, **self._origin(copy))

    async def neighbours(self, call: Call) -> Neighbours:
        copy, user = await self._user(call)
        near = await self._near(call, copy, user)
        return Neighbours(user=call.path["user"], **near, **self._origin(copy))

    async def popular(self, call: Call) -> Recommendations:
        return await self._list(Ask(n=call.query.n, wanted=_wanted(call.query.filter)))

    async def latest(self, call: Call) -> Latest:
        copy, wanted = self._copy(), _wanted(call.query.filter)
        catalogue = copy.catalogue
        allowed = copy.attributes.items(wanted) if wanted else None
        items: list[Dated] = []
        for item_id, created_ms in copy.attributes.latest():
            if len(items) == call.query.n:
                break
            (row,) = catalogue.rows([item_id]).tolist()
            gone = row >= 0 and not catalogue.known[row]
            if not gone and (allowed is None or item_id in allowed):
                items.append(Dated(item_id, created_ms))
        return Latest(items=items, **self._origin(copy))

    async def user_embedding(self, call: Call) -> Embedding:
        copy, user = await self._user(call)
        if user.vector is None:
            raise _unknown("user", call.path["user"])
        return Embedding(
            id=call.path["user"],
            vector=_floats(user.vector),
            bias=None,
            ts_ms=user.ts_ms,
            age_ms=max(0, wall_ms() - user.published_ms),
            **self._origin(copy),
        )

    async def item_embedding(self, call: Call) -> Embedding:
        copy, item = self._copy(), call.path["item"]
        row = _row(copy, item)
        catalogue = copy.catalogue
        return Embedding(
            id=item,
            vector=_floats(catalogue.vectors[row]),
            bias=float(catalogue.biases[row]),
            ts_ms=catalogue.barrier.at_ms,
            age_ms=None,
            **self._origin(copy),
        )

    async def history(self, call: Call) -> History:
        copy, user = await self._user(call)
        return History(
            user=call.path["user"], events=_edges(user), n_seen=_n_seen(user), **self._origin(copy)
        )

    async def graph(self, call: Call) -> Graph:
        copy, user = await self._user(call)
        near = await self._near(call, copy, user)
        n, ids = call.query.n, copy.catalogue.ids(user.history.rows)
        return Graph(
            user=call.path["user"],
            edges=_edges(user),
            items={item: _visited_with(copy, item, n) for item in ids},
            **near,
            **self._origin(copy),
        )

    async def features(self, call: Call) -> Features:
        copy, user = await self._user(call)
        weights = copy.catalogue.weights.get("covisitation")
        weight = None
        if weights is not None:
            weight = float(weights[fusion.length_class(np.array([user.history.length]))[0]])
        vector = user.vector
        return Features(
            user=call.path["user"],
            attributes=dict(user.attributes),
            events=dict(Counter(Kind(kind).label for _, kind, _ in user.recent)),
            n_seen=_n_seen(user),
            last_event_ms=user.ts_ms,
            vector_norm=None if vector is None else float(np.linalg.norm(vector)),
            vector_age_ms=None if vector is None else max(0, wall_ms() - user.published_ms),
            covisitation_weight=weight,
            **self._origin(copy),
        )

    def _known_as(self, user: str) -> str:
        return user if self._pseudonym is None else self._pseudonym(user)

    def _named(self, answer: Recommendations, user: str) -> Recommendations:
        return answer if self._pseudonym is None else replace(answer, user=user)

    async def _trial(self, ask: Ask, session: str, *, preview: bool = False) -> Recommendations:
        """Return a list that takes part in experiments."""
        try:
            return await self._trials.recommend(ask, session, preview=preview)
        except Unready:
            raise _unready() from None

    async def _list(self, ask: Ask) -> Recommendations:
        try:
            return await self._recommender.recommend(ask)
        except Unready:
            raise _unready() from None

    async def _rank(
        self, items: Sequence[str], user: str | None, context: Sequence[str]
    ) -> Recommendations:
        ask = Ask(
            user_id=None if user is None else self._known_as(user),
            n=len(items),
            context=context,
            include=items,
            leave_out_seen=False,
        )
        ranked = await self._list(ask)
        return ranked if user is None else self._named(ranked, user)

    async def _user(self, call: Call) -> tuple[Copy, User]:
        """Return the user of the path; a problem if nothing is published of them."""
        name = call.path["user"]
        try:
            copy, user = await self._recommender.user(self._known_as(name))
        except Unready:
            raise _unready() from None
        if user is None and self._live.away:
            raise _unavailable(f"the user {name!r} is not in memory")
        if user is None or (user.vector is None and not user.attributes and not user.recent):
            raise _unknown("user", name)
        return copy, user

    async def _near(self, call: Call, copy: Copy, user: User) -> dict[str, Any]:
        """Return who is most like a user, and among how many, as answers tell it."""
        nearest = await self._recommender.nearest(copy, user, call.query.n)
        if nearest is None:
            raise _unavailable("no users are in memory to be compared")
        users = [Neighbour(one, round(cosine, 4)) for one, cosine in nearest.users]
        return {"users": users, "among": nearest.among}

    def _copy(self) -> Copy:
        if (copy := self._live.copy) is None:
            raise _unready()
        return copy

    def _origin(self, copy: Copy) -> dict[str, Any]:
        barrier = copy.catalogue.barrier
        return {
            "model": copy.epoch,
            "step": barrier.step,
            "at_ms": barrier.at_ms,
            "stale": self._live.stale,
        }


def routes(
    live: Live, enrolment: Enrolment, *, pseudonym: Callable[[str], str] | None = None
) -> list[Route]:
    """Return what can be read.

    Parameters
    ----------
    live
        What is published; somebody else starts and ends it.
    enrolment
        Which arms of experiments requests get; somebody else starts and ends it.
    pseudonym
        Turns the user ids of requests into those of the log; ``None`` where they are the same.

    """
    reads = _Reads(live, enrolment, pseudonym)
    unready, unknown = HTTPStatus.SERVICE_UNAVAILABLE.value, HTTPStatus.NOT_FOUND.value
    lists: dict[str, Any] = {"problems": (unready,), "answer": Recommendations}
    both = (unknown, unready)
    published = "published"
    return [
        Route(
            method="GET",
            path="/v1/recommendations/{user}",
            handler=reads.recommendations,
            summary="Items for a user",
            query=RecommendationQuery,
            **lists,
        ),
        Route(
            method="POST",
            path="/v1/recommendations:batch",
            handler=reads.batch,
            summary="Items for several users",
            body=BatchRequest,
            counts=lambda body: max(1, len(body.requests)),
            answer=BatchAnswer,
            problems=(unready,),
        ),
        Route(
            method="POST",
            path="/v1/recommendations:session",
            handler=reads.session,
            summary="Items for a session of which no user is known",
            body=SessionRequest,
            **lists,
        ),
        Route(
            method="POST",
            path="/v1/rank",
            handler=reads.rank,
            summary="Scores of given items",
            body=RankRequest,
            answer=Ranking,
            problems=(unready,),
        ),
        Route(
            method="POST",
            path="/v1/rerank",
            handler=reads.rerank,
            summary="A list in an order that is more diverse, with limits on exposure",
            body=RerankRequest,
            answer=Reranking,
            problems=(unready,),
        ),
        Route(
            method="GET",
            path="/v1/popular",
            handler=reads.popular,
            summary="What suits anybody now",
            query=ListQuery,
            **lists,
        ),
        Route(
            method="GET",
            path="/v1/latest",
            handler=reads.latest,
            summary="The newest items",
            query=ListQuery,
            answer=Latest,
            problems=(unready,),
        ),
        Route(
            method="GET",
            path="/v1/items/{item}/similar",
            handler=reads.similar,
            summary="What goes with an item",
            query=ListQuery,
            answer=SimilarItems,
            problems=both,
        ),
        Route(
            method="GET",
            path="/v1/users/{user}/neighbours",
            handler=reads.neighbours,
            summary="Users like a user",
            query=NeighbourQuery,
            answer=Neighbours,
            problems=both,
        ),
        Route(
            method="GET",
            path="/v1/embeddings/users/{user}",
            handler=reads.user_embedding,
            summary="A user's vector",
            answer=Embedding,
            problems=both,
            tag=published,
        ),
        Route(
            method="GET",
            path="/v1/embeddings/items/{item}",
            handler=reads.item_embedding,
            summary="An item's vector",
            answer=Embedding,
            problems=both,
            tag=published,
        ),
        Route(
            method="GET",
            path="/v1/graph/users/{user}",
            handler=reads.graph,
            summary="A user's recent edges and neighbours",
            query=NeighbourQuery,
            answer=Graph,
            problems=both,
            tag=published,
        ),
        Route(
            method="GET",
            path="/v1/history/{user}",
            handler=reads.history,
            summary="A user's latest events with their classes",
            answer=History,
            problems=both,
            tag=published,
        ),
        Route(
            method="GET",
            path="/v1/features/{user}",
            handler=reads.features,
            summary="What the model knows of a user",
            answer=Features,
            problems=both,
            tag=published,
        ),
    ]


def _ask(body: _Wanted, user_id: str | None, context: Sequence[str]) -> Ask:
    return Ask(
        user_id=user_id,
        n=body.n,
        context=context,
        exclude=body.exclude,
        include=body.include,
        wanted=body.filters,
        leave_out_seen=body.leave_out_seen,
    )


def _wanted(filters: Sequence[str]) -> Mapping[str, list[str]]:
    """Return filters ``attribute:value`` by attribute."""
    wanted: dict[str, list[str]] = {}
    for each in filters:
        name, colon, value = each.partition(":")
        if not colon or not name:
            raise Problem(
                400,
                "invalid-request",
                f"query.filter: want attribute:value, such as category:music, got {each[:100]!r}",
                errors=[{"where": "query.filter"}],
            )
        wanted.setdefault(name, []).append(value)
    return wanted


def _row(copy: Copy, item: str) -> int:
    (row,) = copy.catalogue.rows([item]).tolist()
    if row < 0 or not copy.catalogue.known[row]:
        raise _unknown("item", item)
    return int(row)


def _similar(copy: Copy, item: str, query: ListQuery) -> list[Similar]:
    """Return what goes with an item by visits and, where that is not enough, by vectors."""
    row, catalogue = _row(copy, item), copy.catalogue
    allowed = copy.attributes.mask(catalogue, _wanted(query.filter))
    visited, visits = catalogue.covisited(row, len(catalogue))
    if allowed is not None:
        visits, visited = visits[allowed[visited]], visited[allowed[visited]]
    found = _told(catalogue.ids(visited[: query.n]), visits[: query.n], "visits")
    if len(found) < query.n:
        lengths = np.linalg.norm(catalogue.vectors, axis=1) + np.float32(1e-12)
        cosines = catalogue.vectors @ catalogue.vectors[row] / lengths / lengths[row]
        cosines[~catalogue.known] = -np.inf
        cosines[row], cosines[visited] = -np.inf, -np.inf
        if allowed is not None:
            cosines[~allowed] = -np.inf
        near = np.argsort(-cosines, kind="stable")[: query.n - len(found)]
        near = near[np.isfinite(cosines[near])]
        found += _told(catalogue.ids(near), cosines[near], "vector")
    return found


def _visited_with(copy: Copy, item: str, n: int) -> list[Similar]:
    (row,) = copy.catalogue.rows([item]).tolist()
    rows, cosines = copy.catalogue.covisited(row, n)
    return _told(copy.catalogue.ids(rows), cosines, "visits")


def _told(ids: Sequence[str], cosines: NDArray[np.float32], by: str) -> list[Similar]:
    scores = cosines.astype(np.float64).round(4).tolist()
    return [Similar(item_id, score, by) for item_id, score in zip(ids, scores, strict=True)]


def _edges(user: User) -> list[Edge]:
    return [Edge(item_id, Kind(kind).label, ts_ms) for item_id, kind, ts_ms in user.recent]


def _n_seen(user: User) -> int:
    return int(user.seen.shape[0]) + len(user.unplaced)


def _floats(vector: NDArray[np.float32]) -> list[float]:
    floats: list[float] = vector.tolist()
    return floats


def _unknown(what: str, name: str) -> Problem:
    return Problem(404, f"unknown-{what}", f"nothing is published of the {what} {name!r}")


def _unavailable(missing: str) -> Problem:
    return Problem(
        503,
        "unavailable",
        f"{missing}, and the table does not answer; ask again later",
        headers={"Retry-After": "1"},
    )


def _unready() -> Problem:
    return Problem(
        503,
        "not-ready",
        "nothing could be read from the published table yet; ask again later",
        headers={"Retry-After": "1"},
    )
