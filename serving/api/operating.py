"""What an operator asks: is it well, how good is it, and which model is given."""

from __future__ import annotations

import asyncio
import os
import time
from importlib.metadata import version
from typing import Any, Final, NamedTuple

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST

from serving.api.metrics import Metrics
from serving.api.problems import Problem
from serving.api.routes import Answer, Call, Role, Route
from serving.live import Live
from serving.table import EpochInfo, Table
from stream.errors import TableError

_REPORT_S: Final = 1.0
"""For how long what the learner told is not asked for again."""

_TAG: Final = "operating"
_AWAY: Final = "the published table does not answer"


class Hour(msgspec.Struct):
    """How well the lists were that the learner made before it learned, in one hour of events.

    Parameters
    ----------
    hour_ms
        When the hour began, in event time.
    ranked
        Positive events that were ranked.
    hit_ratio_at_10, ndcg_at_10
        Their means.
    frozen_ndcg_at_10
        The same of the parameters as they were when the day or the learner began; ``null`` where
        there were none.

    """

    hour_ms: int
    ranked: float
    hit_ratio_at_10: float
    ndcg_at_10: float
    frozen_ndcg_at_10: float | None = None


class Drift(msgspec.Struct):
    """A change that a detector saw.

    Parameters
    ----------
    signal
        Of which figure.
    at_ms
        In event time.
    event
        How many events had been learned.

    """

    signal: str
    at_ms: int
    event: int


class Stage(msgspec.Struct):
    """How long a stage took: counts of events up to each bound (seconds), and beyond the last."""

    bounds_s: list[float]
    counts: list[float]
    sum_s: float = 0.0


class Report(msgspec.Struct):
    """What the learner tells about itself, as docs/table.md says.

    Parameters
    ----------
    told_ms
        When it told this.
    phase
        ``loading`` until it has caught up with the log, then ``following``.
    model
        What its model is made of.
    events, events_per_s, classes
        Learned.
    lag_records, waiting_rows
        Events that wait to be learned, and rows that wait to be published.
    watermark_ms
        Time of the newest event learned.
    loss, hit_ratio_at_10, ndcg_at_10
        Fading means; none before there was anything to measure.
    hours, drifts, freshness
        Left out of ``/v1/status``: they have paths of their own.

    """

    told_ms: int = 0
    phase: str = ""
    model: str = ""
    events: int = 0
    events_per_s: float = 0.0
    classes: dict[str, int] = {}
    lag_records: int = 0
    waiting_rows: int = 0
    watermark_ms: int = 0
    snapshot_age_s: float = 0.0
    loss: float | None = None
    hit_ratio_at_10: float | None = None
    ndcg_at_10: float | None = None
    hours: list[Hour] = []
    drifts: list[Drift] = []
    freshness: dict[str, Stage] = {}


class TableState(msgspec.Struct):
    """How the process that answers stands with the published table.

    Parameters
    ----------
    epoch
        The model in memory; none if nothing was read yet.
    step, at_ms, published_ms
        How far it has learned, in events and in event time, and when that was written.
    items, users_kept
        In memory.
    heard_ms
        When the table last answered.
    error
        Why it does not answer now; operators are told more.
    stale
        Whether what is in memory may be behind what was learned.

    """

    epoch: int | None
    step: int
    at_ms: int
    published_ms: int
    items: int
    users_kept: int
    heard_ms: int
    error: str
    stale: bool


class Status(msgspec.Struct):
    """How everything is.

    Parameters
    ----------
    version
        Of the program.
    process, up_s
        The one that answers, and since when.
    ready
        As ``/readyz`` tells.
    table
        What is served.
    learner
        What it told last, without its curves; none if it has told nothing.

    """

    version: str
    process: int
    up_s: float
    now_ms: int
    ready: bool
    table: TableState
    learner: Report | None


class Performance(msgspec.Struct):
    """How good the lists are, ranked before each event was learned."""

    hit_ratio_at_10: float | None
    ndcg_at_10: float | None
    loss: float | None
    hours: list[Hour]
    freshness: dict[str, Stage]


class Drifts(msgspec.Struct):
    """Changes that detectors saw, the newest last."""

    drifts: list[Drift]


class Models(msgspec.Struct):
    """The models that can be given.

    Parameters
    ----------
    given
        The one that answers are made of.
    follows
        Whether answers follow the learner; else a model is pinned.
    models
        All of them, the newest first.
    fingerprint
        What the learner's model is made of.

    """

    given: int | None
    follows: bool
    models: list[EpochInfo]
    fingerprint: str


class Wanted(msgspec.Struct, forbid_unknown_fields=True):
    """Which model to give; none is the one before (rollback), or the learner's (promote)."""

    epoch: int | None = None


class _Told(NamedTuple):
    """What the learner told, and when it was asked for."""

    report: Report | None = None
    asked_s: float = 0.0


class _Learner:
    """What the learner tells about itself; while the table is away, what it told last."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._told = _Told()

    async def told(self) -> _Told:
        """Return what it told."""
        if self._told.report is None or time.monotonic() - self._told.asked_s > _REPORT_S:
            try:
                said = await asyncio.to_thread(lambda: self._table.reader().report())
            except TableError:
                return self._told
            report = None if said is None else _report(said)
            self._told = _Told(report, time.monotonic())
        return self._told

    async def report(self) -> Report:
        """Return what it told.

        Raises
        ------
        Problem
            503 if it has told nothing yet.

        """
        report = (await self.told()).report
        if report is None:
            raise Problem(
                503,
                "no-report",
                "the learner has told nothing yet; is it running?",
                headers={"Retry-After": "5"},
            )
        return report


def routes(live: Live, table: Table, metrics: Metrics) -> list[Route]:
    """Return what an operator can ask.

    Parameters
    ----------
    live
        What is served.
    table
        Where it comes from.
    metrics
        Of this process.

    """
    learner = _Learner(table)
    started_s = time.monotonic()
    here = version("tidegraph")

    async def status(call: Call) -> Status:
        state, told = live.state(), await learner.told()
        if state.error and call.principal.role < Role.OPERATOR:
            state = state._replace(error=_AWAY)
        short = told.report
        if short is not None:
            short = msgspec.structs.replace(short, hours=[], drifts=[], freshness={})
        return Status(
            version=here,
            process=os.getpid(),
            up_s=round(time.monotonic() - started_s, 3),
            now_ms=time.time_ns() // 1_000_000,
            ready=state.ready,
            table=TableState(**state._asdict()),
            learner=short,
        )

    async def performance(_: Call) -> Performance:
        report = await learner.report()
        return Performance(
            report.hit_ratio_at_10, report.ndcg_at_10, report.loss, report.hours, report.freshness
        )

    async def drift(_: Call) -> Drifts:
        return Drifts((await learner.report()).drifts)

    async def model(_: Call) -> Models:
        return await _models(table, (await learner.told()).report)

    async def promote(call: Call) -> Models:
        await asyncio.to_thread(_pin, table, call.body.epoch)
        return await model(call)

    async def rollback(call: Call) -> Models:
        wanted = call.body.epoch
        if wanted is None:
            wanted = await asyncio.to_thread(_before, table)
        await asyncio.to_thread(_pin, table, wanted)
        return await model(call)

    async def prometheus(_: Call) -> Answer:
        metrics.tell()  # what this process counted since it told last
        page = await asyncio.to_thread(metrics.page)
        return Answer(body=page, media_type=CONTENT_TYPE_LATEST)

    async def healthz(_: Call) -> Answer:
        return Answer(body=b"up\n", media_type="text/plain")

    async def readyz(_: Call) -> Answer:
        state = live.state()
        if state.ready:
            return Answer(body=b"ready\n", media_type="text/plain")
        if state.error:
            why = _AWAY
        elif state.epoch is None:
            why = "nothing was read yet"
        else:
            why = "nothing was published for too long"
        raise Problem(503, "not-ready", why, headers={"Retry-After": "1"})

    def get(path: str, handler: Any, answer: Any, summary: str, **others: Any) -> Route:
        return Route(
            method="GET",
            path=path,
            handler=handler,
            answer=answer,
            summary=summary,
            tag=_TAG,
            **others,
        )

    def post(path: str, handler: Any, summary: str) -> Route:
        return Route(
            method="POST",
            path=path,
            handler=handler,
            summary=summary,
            role=Role.OPERATOR,
            body=Wanted,
            answer=Models,
            problems=(409,),
            tag=_TAG,
        )

    return [
        get("/v1/status", status, Status, "How everything is."),
        get("/v1/performance", performance, Performance, "How good the lists are, hour by hour."),
        get("/v1/drift", drift, Drifts, "Changes of level that detectors saw."),
        get("/v1/model", model, Models, "The models that can be given, and which one is."),
        post("/v1/model/promote", promote, "Follow the learner again, or give a newer model."),
        post("/v1/model/rollback", rollback, "Give the model before, or any earlier one."),
        get("/metrics", prometheus, None, "Figures for Prometheus."),
        get("/healthz", healthz, None, "Whether the process is up.", role=None),
        get("/readyz", readyz, None, "Whether rows are loaded and fresh.", role=None),
    ]


def _report(said: dict[str, Any]) -> Report:
    """Return what the learner told, of which a newer one may tell more."""
    return msgspec.convert(said, Report, strict=False)


async def _models(table: Table, report: Report | None) -> Models:
    there = await asyncio.to_thread(table.epochs)
    given = next((one for one in there if one.in_view), None)
    return Models(
        given=None if given is None else given.epoch,
        follows=given is None or not given.pinned,
        models=there,
        fingerprint="" if report is None else report.model,
    )


def _pin(table: Table, epoch: int | None) -> None:
    """Give a model.

    Raises
    ------
    Problem
        409 if it is not there.

    """
    there = [one.epoch for one in table.epochs()]
    if epoch is not None and epoch not in there:
        raise Problem(
            409, "no-such-model", f"want a model that is there, got {epoch}; there are {there}"
        )
    table.pin(epoch)


def _before(table: Table) -> int:
    """Return the model before the one that is given.

    Raises
    ------
    Problem
        409 if there is none.

    """
    there = table.epochs()
    given = next((one.epoch for one in there if one.in_view), 0)
    older = [one.epoch for one in there if one.epoch < given]
    if not older:
        raise Problem(
            409, "no-such-model", f"there is no model before {given}; one is kept after a flip"
        )
    return max(older)
