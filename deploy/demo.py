"""``tidegraph serve --demo``: the sample log, the learner and the API in one process."""

from __future__ import annotations

import gc
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Final

import click
import msgspec
import polars as pl
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from learner.worker import LearnerWorker
from replay.datasets import open_dataset
from replay.player import Entry, encode
from serving.assembly import build
from serving.producing import LogSink
from serving.server import address, checked, run, serve_here
from serving.table import MemoryTable
from stream.events import encode as encode_letter
from stream.intake import Intake
from stream.log import MemoryLog, Record, advance
from stream.settings import LearnerSettings, Settings
from stream.typing_rules import load_rules

SAMPLE: Final = "kuairand-pure"

_WAIT_S: Final = 0.02
"""How long a reader waits for records, and so how long the end of the demo may take to be seen."""

_AT_ONCE: Final = 4_096
_NEVER_S: Final = 1e9


def demonstrate(settings: Settings) -> None:
    """Learn from the sample log, serve what was learned, and go on with the feedback that comes.

    Nothing is kept: it begins anew each time. The events of the sample are moved in time, so that
    the newest one has just happened.

    Parameters
    ----------
    settings
        Those of the API and the rules; nothing else is needed.

    Raises
    ------
    BadSettings
        If the API cannot be served as the settings say.

    """
    with tempfile.TemporaryDirectory(prefix="tidegraph-demo-") as folder:
        learner = LearnerSettings(snapshots=folder, snapshot_s=_NEVER_S, device="cpu")
        settings = checked(msgspec.structs.replace(settings, learner=learner))
        log, table = SharedLog(), MemoryTable()
        api = build(settings, table, LogSink(log), open_log=lambda: nullcontext(log))
        entries = sample(time.time_ns() // 1_000_000)
        log.append("interactions", entries, timestamp_ms=time.time_ns() // 1_000_000)
        click.echo(f"the API is at {address(settings.serving)}, the console too", err=True)
        user = (entries[-1][0] or b"").decode()  # who did something just now
        example = f"{address(settings.serving)}/v1/recommendations/{user}"
        with typing_and_learning(settings, log, table, len(entries), f"; try {example}"):
            run(serve_here(api, settings.serving))
    # Else the interpreter looks through all of this for cycles, for seconds, before it ends.
    gc.freeze()


def sample(end_ms: int) -> list[Entry]:
    """Return the sample as records of interactions, the newest of which happened at ``end_ms``."""
    frames = [chunk.frame for chunk in open_dataset(SAMPLE).chunks()]
    newest = max(int(frame["ts_ms"].max() or 0) for frame in frames)  # type: ignore[arg-type]
    later = (pl.col("ts_ms") + (end_ms - newest)).alias("ts_ms")
    return [entry for frame in frames for entry in encode(frame.with_columns(later))]


class SharedLog(MemoryLog):
    """A log in memory for several threads, whose readers wait a moment where nothing has come."""

    def __init__(self) -> None:
        super().__init__()
        self._changed = threading.Condition(threading.RLock())

    def append(
        self,
        topic: str,
        entries: Sequence[tuple[bytes | None, bytes]],
        *,
        timestamp_ms: int,
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> None:
        """Add entries at the end, and wake who waits."""
        with self._changed:
            super().append(topic, entries, timestamp_ms=timestamp_ms, headers=headers)
            self._changed.notify_all()

    def read(
        self, topic: str, positions: Mapping[int, int], *, limit: int, wait: bool = True
    ) -> list[Record]:
        """Return records, or none after a moment without any."""
        with self._changed:
            records = super().read(topic, positions, limit=limit)
            if not records and wait and self._changed.wait(_WAIT_S):
                records = super().read(topic, positions, limit=limit)
            return records


@contextmanager
def typing_and_learning(
    settings: Settings, log: SharedLog, table: MemoryTable, n_events: int, then: str = ""
) -> Iterator[None]:
    """Type and learn in threads as long as the block runs; tell how far it has come, and then more.

    Raises
    ------
    Exception
        What one of the threads ended with, which also ends the block.

    """
    torch.set_num_threads(1)
    worker = LearnerWorker(settings, log, table, start="earliest")
    typed, over = threading.Event(), threading.Event()
    failures: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> Callable[[], None]:
        def run_it() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - told where the thread is joined
                failures.append(error)
                os.kill(os.getpid(), signal.SIGTERM)

        return run_it

    def learn() -> None:
        typed.wait()  # a learner that finds nothing takes itself to be ready
        if not over.is_set():
            worker.run()

    works = (
        lambda: _type(settings, log, typed, over),
        learn,
        lambda: _show(worker, n_events, over, then),
    )
    threads = [threading.Thread(target=guarded(work), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        typed.set()
        worker.stop()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]


def _type(
    settings: Settings, log: SharedLog, typed: threading.Event, over: threading.Event
) -> None:
    """Do what a stream worker does; tell when all that was there is typed."""
    stream = settings.stream
    intake = Intake(
        load_rules(stream.rules),
        lateness_ms=round(stream.lateness_s * 1_000),
        max_future_ms=round(stream.max_future_s * 1_000),
    )
    positions = {0: 0}
    while not over.is_set():
        records = log.read("interactions", positions, limit=_AT_ONCE)
        if not records:
            typed.set()
            continue
        positions = advance(positions, records)
        result = intake.take(records)
        now_ms = time.time_ns() // 1_000_000
        log.append("feedback", result.entries(), timestamp_ms=now_ms)
        dead: list[Entry] = [(None, encode_letter(letter)) for letter in result.dead]
        log.append("interactions.dead", dead, timestamp_ms=now_ms)
        log.trim("interactions", positions)


def _show(worker: LearnerWorker, n_events: int, over: threading.Event, then: str) -> None:
    """Show how much of the sample is learned, until all of it can be asked for."""
    columns = (TextColumn("learning from the sample"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task("", total=n_events)
        values = worker.metrics.values
        while not values["ready"] and not over.wait(0.2):
            progress.update(task, completed=min(values["events"], n_events))
    if values["ready"]:
        click.echo(f"ready: learned from {values['events']:,.0f} events{then}", err=True)
