"""Experiments over HTTP: which there are, start one, stop one, and what came of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from serving.api.problems import Problem
from serving.api.routes import Call, Role, Route
from serving.experiments.assignment import Experiment
from serving.experiments.registry import Entry, ExperimentRefused, Registry, UnknownExperiment
from serving.experiments.results import Results, results_of
from serving.experiments.store import Store
from serving.table import Table

_TAG = "experiments"


class Experiments(msgspec.Struct):
    """All experiments, oldest first.

    Parameters
    ----------
    version
        Grows with every start and stop.
    experiments
        Those that run and those that were stopped.

    """

    version: int
    experiments: list[Entry]


def routes(store: Store, table: Table) -> list[Route]:
    """Return what can be asked about experiments.

    Parameters
    ----------
    store
        Where they are kept; asked in a thread, as it may be away.
    table
        Has the models of their arms, and keeps them.

    """
    registry = Registry(store)

    async def listed(_: Call) -> Experiments:
        return Experiments(*await asyncio.to_thread(registry.read))

    async def start(call: Call) -> Entry:
        with _problems():
            return await asyncio.to_thread(
                registry.start, call.body, table, at_ms=_now_ms(), by=call.principal.name
            )

    async def stop(call: Call) -> Entry:
        with _problems():
            return await asyncio.to_thread(
                registry.stop,
                call.path["experiment"],
                table,
                at_ms=_now_ms(),
                by=call.principal.name,
            )

    async def results(call: Call) -> Results:
        with _problems():
            return await asyncio.to_thread(results_of, store, call.path["experiment"])

    one = "/v1/experiments/{experiment}"
    return [
        Route(
            method="GET", path="/v1/experiments", handler=listed, answer=Experiments, tag=_TAG,
            summary="Which experiments run, and which ran.", problems=(503,),
        ),
        Route(
            method="POST", path="/v1/experiments", handler=start, role=Role.OPERATOR, tag=_TAG,
            body=Experiment, answer=Entry, status=201, problems=(409, 503),
            summary="Start an experiment; every server follows within a second.",
        ),
        Route(
            method="POST", path=f"{one}/stop", handler=stop, role=Role.OPERATOR, tag=_TAG,
            answer=Entry, problems=(404, 503),
            summary="Stop an experiment for good; its name is not used again.",
        ),
        Route(
            method="GET", path=f"{one}/results", handler=results, answer=Results, tag=_TAG,
            problems=(404, 503),
            summary="What came of an experiment so far, with always-valid intervals.",
        ),
    ]  # fmt: skip


@contextmanager
def _problems() -> Iterator[None]:
    try:
        yield
    except UnknownExperiment as error:
        raise Problem(404, "unknown-experiment", str(error)) from error
    except ExperimentRefused as error:
        raise Problem(409, "experiment-refused", str(error)) from error


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
