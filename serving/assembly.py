"""Puts the API together: the routes of every topic, the guard, the pages, and what runs behind."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractContextManager,
    asynccontextmanager,
    closing,
    contextmanager,
    suppress,
)
from importlib.metadata import version
from pathlib import Path
from typing import Final

from threadpoolctl import threadpool_limits

from serving.api import experimenting, letters, operating, pages, reads, writes
from serving.api.app import Api, create_app
from serving.api.audit import Audit, audited
from serving.api.limits import Limits
from serving.api.metrics import Metrics
from serving.api.security import Guard
from serving.experiments.enrolling import Enrolment
from serving.experiments.redis_store import RedisStore
from serving.experiments.results import Collector
from serving.experiments.store import MemoryStore, Store
from serving.live import Live
from serving.producing import KafkaSink, Sink
from serving.pseudonyms import pseudonym_of
from serving.redis_table import open_table
from serving.table import Table
from stream.collecting import collect_seldom
from stream.kafka import KafkaLog
from stream.log import Log
from stream.settings import Settings
from stream.typing_rules import load_rules

OpenLog = Callable[[], AbstractContextManager[Log]]

_SWITCH_S: Final = 0.000_5
"""For how long the thread that follows the table may keep the interpreter from whoever answers."""

_END_S: Final = 2.0
"""For how long a thread is waited for that asks a log which may be away."""

_PARENT_S: Final = 1.0
"""Between two looks at whether the process that started this one is still there."""


def load_app(settings: Settings, parent: int | None = None) -> Api:
    """Return the app of one process, over Redis and Kafka.

    Parameters
    ----------
    settings
        Of all processes.
    parent
        Process that started this one: without it, this one ends. ``None``: nobody need be there.

    """
    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO, stream=sys.stderr
    )
    # It repeats itself while a broker is away; serving.producing tells of that, and why.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    # One product is too small to share: a second thread would only spin and wait.
    threadpool_limits(1, user_api="blas")
    api = build(
        settings,
        open_table(settings.redis),
        KafkaSink(settings.kafka),
        Limits(settings.redis),
        letterbox=letters.KafkaLetterbox(settings),
        experiments=RedisStore(settings.redis),
        open_log=lambda: closing(KafkaLog(settings.kafka)),
        parent=parent,
    )
    collect_seldom()
    sys.setswitchinterval(_SWITCH_S)
    return api


def build(
    settings: Settings,
    table: Table,
    sink: Sink,
    limits: Limits | None = None,
    *,
    letterbox: letters.Letterbox | None = None,
    experiments: Store | None = None,
    open_log: OpenLog | None = None,
    parent: int | None = None,
) -> Api:
    """Put the app together.

    Parameters
    ----------
    settings
        Of the process.
    table
        Where rows are published.
    sink
        Where feedback is written.
    limits
        Counts the requests of each key; left out, they are counted in this process.
    letterbox
        Where dead letters lie; left out, there is no broker.
    experiments
        Where experiments are kept; left out, in this process.
    open_log
        Gives the log that results of experiments are collected from, to one thread; left out,
        somebody else collects them.
    parent
        As in :func:`load_app`.

    """
    serving = settings.serving
    live = Live(table, stale_s=serving.stale_s, exact_up_to=serving.exact_up_to)
    store = experiments or MemoryStore()
    enrolment = Enrolment(store, live.also)
    metrics = Metrics(live, lambda: enrolment.n_running)
    audit, guard = Audit(Path(serving.audit_file)), Guard(serving, limits)
    pseudonym = pseudonym_of(serving)
    routes = [
        *reads.routes(live, enrolment, pseudonym=pseudonym),
        *writes.routes(
            metrics.sink(sink),
            load_rules(settings.stream.rules),
            table,
            max_future_ms=round(settings.stream.max_future_s * 1_000),
            pseudonym=pseudonym,
        ),
        *operating.routes(live, table, metrics),
        *letters.routes(letterbox),
        *experimenting.routes(store, table),
    ]

    @contextmanager
    def following() -> Iterator[None]:
        # Experiments first, so that the models of their arms are read before anybody asks.
        with closing(store), enrolment, live, _collecting(store, table, open_log):
            yield

    return create_app(
        [
            *(guard.charged(metrics.counted(audited(route, audit))) for route in routes),
            *pages.routes(routes, version=version("tidegraph")),
        ],
        guard,
        serving,
        observe=metrics.observe,
        running=lambda: _running(following(), sink, metrics, parent),
    )


@asynccontextmanager
async def _running(
    following: AbstractContextManager[None], sink: Sink, metrics: Metrics, parent: int | None
) -> AsyncIterator[None]:
    """Follow what is published, and tell what is counted, as long as the app runs."""
    await asyncio.to_thread(following.__enter__)
    tasks = [asyncio.create_task(metrics.keep_telling())]
    if parent is not None:
        tasks.append(asyncio.create_task(_end_with(parent)))
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        metrics.tell()
        await sink.close()
        await asyncio.to_thread(following.__exit__, None, None, None)


@contextmanager
def _collecting(store: Store, table: Table, open_log: OpenLog | None) -> Iterator[None]:
    """Collect results of experiments in a thread; of several processes one does, at a time."""
    if open_log is None:
        yield
        return
    ended = threading.Event()

    def collect() -> None:
        with open_log() as log:
            Collector(store, log, lambda ids: table.reader().user_attributes(ids)).run(ended)

    thread = threading.Thread(target=collect, name="results", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(_END_S)


async def _end_with(parent: int) -> None:
    """End this process when its parent is no longer there: it would hold the port for ever."""
    while os.getppid() == parent:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(_PARENT_S)
    os.kill(os.getpid(), signal.SIGTERM)
