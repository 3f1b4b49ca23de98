"""Puts the API together: the routes of every topic, the guard, the pages, and what runs behind."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Final

from serving.api import experimenting, letters, operating, pages, reads, writes
from serving.api.app import Api, create_app
from serving.api.audit import Audit, audited
from serving.api.limits import Limits
from serving.api.security import Guard
from serving.experiments.redis_store import RedisStore
from serving.experiments.store import MemoryStore, Store
from serving.live import Live
from serving.producing import KafkaSink, Sink
from serving.pseudonyms import pseudonym_of
from serving.redis_table import open_table
from serving.table import Table
from stream.collecting import collect_seldom
from stream.settings import Settings
from stream.typing_rules import load_rules

_PARENT_S: Final = 1.0
"""Between two looks at whether the process that started this one is still there."""


def load_app(settings: Settings, parent: int) -> Api:
    """Return the app of one process, over Redis and Kafka.

    Parameters
    ----------
    settings
        Of all processes.
    parent
        Process that started this one: without it, this one ends.

    """
    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO, stream=sys.stderr
    )
    api = build(
        settings,
        open_table(settings.redis),
        KafkaSink(settings.kafka),
        Limits(settings.redis),
        letterbox=letters.KafkaLetterbox(settings),
        experiments=RedisStore(settings.redis),
        parent=parent,
    )
    collect_seldom()
    return api


def build(
    settings: Settings,
    table: Table,
    sink: Sink,
    limits: Limits | None = None,
    *,
    letterbox: letters.Letterbox | None = None,
    experiments: Store | None = None,
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
    parent
        As in :func:`load_app`.

    """
    serving = settings.serving
    live = Live(table, stale_s=serving.stale_s, exact_up_to=serving.exact_up_to)
    metrics = operating.Metrics(live)
    audit = Audit(Path(serving.audit_file))
    pseudonym = pseudonym_of(serving)
    routes = [
        *reads.routes(live, pseudonym=pseudonym),
        *writes.routes(
            sink,
            load_rules(settings.stream.rules),
            table,
            max_future_ms=round(settings.stream.max_future_s * 1_000),
            pseudonym=pseudonym,
        ),
        *operating.routes(live, table, metrics),
        *letters.routes(letterbox),
        *experimenting.routes(experiments or MemoryStore()),
    ]
    return create_app(
        [
            *(audited(route, audit) for route in routes),
            *pages.routes(routes, version=version("tidegraph")),
        ],
        Guard(serving, limits),
        serving,
        observe=metrics.observe,
        running=lambda: _running(live, sink, parent),
    )


@asynccontextmanager
async def _running(live: Live, sink: Sink, parent: int | None) -> AsyncIterator[None]:
    """Follow the table as long as the app runs."""
    await asyncio.to_thread(live.__enter__)
    watch = None if parent is None else asyncio.create_task(_end_with(parent))
    try:
        yield
    finally:
        if watch is not None:
            watch.cancel()
            with suppress(asyncio.CancelledError):
                await watch
        await sink.close()
        await asyncio.to_thread(live.__exit__)


async def _end_with(parent: int) -> None:
    """End this process when its parent is no longer there: it would hold the port for ever."""
    while os.getppid() == parent:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(_PARENT_S)
    os.kill(os.getpid(), signal.SIGTERM)
