"""Measures the stream worker over a broker, beside a plain faust agent on the same records."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any, Final, Self

import click
import msgspec
import numpy as np

from deploy.bench.system import append, borrowed, own
from deploy.bench.traffic import Traffic
from replay.bench.measure import machine, medians, peak_rss_mb, show
from stream.collecting import collect_seldom
from stream.errors import BadSettings, LogError
from stream.intake import Accounting
from stream.kafka import KafkaLog
from stream.options import config_option
from stream.settings import Settings, as_environment
from stream.worker import BatchDone, StreamWorker

PEER: Final = "faust_agent"

PARTS: Final = {"take": "intake", "_write": "produce", "_commit": "commit", "_step": "consume"}
"""Functions of the worker, innermost first, and what their time goes to."""


class Round:
    """One pass of a worker of its own group over everything in ``interactions``.

    The first batch starts the clocks and is not counted: before it there is the joining of the
    group.
    """

    def __init__(self, settings: Settings, name: str, *, n_events: int, limit_s: float) -> None:
        stream = msgspec.structs.replace(settings.stream, group=name)
        self._worker = StreamWorker(
            msgspec.structs.replace(settings, stream=stream), on_batch=self._count
        )
        self._n_events, self._limit_s = n_events, limit_s
        self._batch_s: list[float] = []
        self._began: tuple[float, float, int] | None = None
        self._ended = (0.0, 0.0)
        self.accounting = Accounting()

    def run(self) -> dict[str, float]:
        """Work until nothing is left and return the figures.

        Raises
        ------
        LogError
            If that takes longer than the limit.

        """
        collect_seldom()  # as the process of the worker does
        timer = threading.Timer(self._limit_s, self._worker.stop)
        timer.start()
        try:
            self._worker.run()
        finally:
            timer.cancel()
        if self._began is None or self.accounting.in_ < self._n_events:
            raise LogError(
                f"the stream worker processed {self.accounting.in_:,} of {self._n_events:,} "
                f"records in {self._limit_s:.0f} s"
            )
        wall_s, cpu_s = (end - begin for end, begin in zip(self._ended, self._began, strict=False))
        n = self.accounting.in_ - self._began[2]
        p50, p99 = np.percentile(self._batch_s, [50, 99]) * 1_000
        return {
            "events_per_s": round(n / wall_s),
            "cpu_us_per_event": round(cpu_s / n * 1e6, 3),
            "p50_ms": round(float(p50), 3),
            "p99_ms": round(float(p99), 3),
        }

    def _count(self, done: BatchDone) -> None:
        self.accounting += done.accounting
        self._ended = time.perf_counter(), time.process_time()
        if self._began is None:
            self._began = (*self._ended, done.accounting.in_)
        else:
            self._batch_s.append(done.seconds)
        if self.accounting.in_ >= self._n_events:
            self._worker.stop()


class Sampler:
    """Looks every few milliseconds at what a thread is doing.

    Parameters
    ----------
    thread
        Which.
    parts
        Names of functions and what their time goes to; the innermost that is running counts.

    """

    def __init__(self, thread: threading.Thread, parts: dict[str, str]) -> None:
        self._thread, self._parts = thread, parts
        self._seen: Counter[str] = Counter()
        self._stopped = threading.Event()
        self._sampling = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        # The thread that is looked at must let go of the interpreter soon, or it would be seen
        # where it waits rather than where it works.
        self._switch_s = sys.getswitchinterval()
        sys.setswitchinterval(0.000_2)
        self._sampling.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._sampling.join()
        sys.setswitchinterval(self._switch_s)

    def shares(self) -> dict[str, float]:
        """Return the share of the time that went to each part."""
        total = max(1, self._seen.total())
        return {part: round(self._seen[part] / total, 3) for part in self._parts.values()}

    def _sample(self) -> None:
        while not self._stopped.wait(0.003):
            part = self._part_of(sys._current_frames().get(self._thread.ident or 0))
            if part is not None:
                self._seen[part] += 1

    def _part_of(self, frame: FrameType | None) -> str | None:
        while frame is not None:
            if (part := self._parts.get(frame.f_code.co_name)) is not None:
                return part
            frame = frame.f_back
        return None


def run_peer(settings: Settings, *, n_events: int, limit_s: float) -> dict[str, Any]:
    """Run the faust agent as a process of its own.

    Raises
    ------
    LogError
        If it fails.

    """
    command = [sys.executable, "-m", "deploy.bench.faust_agent", str(n_events), str(limit_s)]
    try:
        ran = subprocess.run(
            command,
            env=os.environ | as_environment(settings),
            capture_output=True,
            text=True,
            check=False,
            timeout=limit_s + 60,
        )
    except subprocess.TimeoutExpired as error:
        raise LogError(f"the faust agent did not end within {limit_s + 60:.0f} s") from error
    if ran.returncode:
        raise LogError(f"the faust agent failed: {ran.stderr.strip().splitlines()[-1:]}")
    told: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return told


def plain(settings: Settings) -> Settings:
    """Return settings without compression, for which the peer lacks a library.

    Raises
    ------
    BadSettings
        If the peer could not connect.

    """
    if settings.kafka.security != "PLAINTEXT":
        raise BadSettings(
            "bench stream: want a broker with kafka.security PLAINTEXT, which is what the peer "
            f"speaks, got {settings.kafka.security}"
        )
    kafka = msgspec.structs.replace(settings.kafka, compression="none")
    return msgspec.structs.replace(settings, kafka=kafka)


@click.command()
@click.option(
    "--events",
    default=200_000,
    show_default=True,
    type=click.IntRange(min=10_000),
    help="Records of each round of ours.",
)
@click.option(
    "--peer-events",
    default=40_000,
    show_default=True,
    type=click.IntRange(min=100),
    help="Of them, for each round of the faust agent.",
)
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(min=1), help="Of both.")
@click.option(
    "--limit",
    default=60.0,
    show_default=True,
    type=click.FloatRange(min=1),
    help="Seconds of one round.",
)
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for scripts.")
def stream(
    events: int,
    peer_events: int,
    rounds: int,
    limit: float,
    config: Path | None,
    as_json: bool,  # noqa: FBT001 - click passes it by name
) -> None:
    """Measure the stream worker on records that wait in `interactions`.

    Without --config a broker is started for as long; with it, topics of their own are made on the
    broker that the settings name, and deleted at the end.

    \b
    Example:
        tidegraph bench stream --rounds 3 --json
        tidegraph bench stream --config tidegraph.toml --json
    """
    with (
        tempfile.TemporaryDirectory() as scratch,
        borrowed(config, Path(scratch)) as base,
        own(plain(base), Path(scratch)) as settings,
    ):
        log = KafkaLog(settings.kafka)
        append(log, Traffic().past(events))
        log.close()
        ours: list[dict[str, float]] = []
        theirs: list[dict[str, Any]] = []
        for n in range(rounds):
            ours.append(Round(settings, f"round-{n}", n_events=events, limit_s=limit).run())
            theirs.append(run_peer(settings, n_events=min(peer_events, events), limit_s=limit))
        with Sampler(threading.main_thread(), PARTS) as sampler:
            looked_at = Round(settings, "sampled", n_events=events, limit_s=limit)
            looked_at.run()
    accounting = asdict(looked_at.accounting)
    peer_figures = [{k: v for k, v in each.items() if k != "accounting"} for each in theirs]
    found, peer = medians(ours), medians(peer_figures)
    show(
        {
            "bench": "stream",
            "machine": machine("confluent-kafka", "faust-streaming", "polars"),
            "settings": {
                "data": "the shipped sample of KuaiRand-Pure, again with its times moved on",
                "partitions": settings.kafka.partitions,
                "compression": settings.kafka.compression,
                "batch": settings.stream.batch,
                "p50_ms, p99_ms": "of one transaction, from its first record to its commit",
                "peak_rss_mb": "of the whole process",
                "share_of_time": "of one more round, looked at every 3 ms",
            },
            "results": {
                "transaction": {
                    **found,
                    "peak_rss_mb": peak_rss_mb(),
                    "events": events,
                    "rounds": rounds,
                    "accounting": accounting,
                    "share_of_time": sampler.shares(),
                }
            },
            "peers": {
                PEER: {
                    **peer,
                    "events": theirs[-1]["accounting"]["in"],
                    "rounds": rounds,
                    "accounting": theirs[-1]["accounting"],
                    "work": "decode, late, duplicate, classify in Python, send; no transactions",
                }
            },
            "ratios": {
                f"transaction/{PEER}": round(found["events_per_s"] / peer["events_per_s"], 2)
            },
        },
        as_json=as_json,
    )
