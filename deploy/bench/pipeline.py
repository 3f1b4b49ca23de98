"""Measures the whole pipeline with real processes: its rate, its freshness, its memory."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import click
import msgspec
import numpy as np
import psutil

from deploy.bench.system import append, borrowed, cpu_s, own, scrape, workers
from deploy.bench.traffic import Traffic, paced
from deploy.service import wait_until
from graph_store.graph import GraphConfig, TemporalGraph
from graph_store.snapshot import list_snapshots, read_snapshot
from replay.bench.measure import machine, show
from replay.player import Entry
from serving.redis_table import open_table
from serving.table import Reader
from stream.commits import read_commits
from stream.events import Interaction, decode_interaction, encode, read_feedback
from stream.intake import Accounting, Intake
from stream.kafka import KafkaLog
from stream.log import MemoryLog, Record
from stream.options import config_option
from stream.settings import Settings
from stream.topics import INTERACTIONS
from stream.typing_rules import load_rules

WARM_UP: Final = 8_192
"""Events before the clocks start: programs compile and connect on the first ones."""

DRAIN_S: Final = 300.0
"""How long the last row is waited for."""

PROBE_S: Final = 0.05
"""Between two events of users of their own, whose rows are looked for."""

LOOK_S: Final = 0.005
"""Between two looks into the table."""

SOAK_LATENESS_S: Final = 60.0
"""In a soak, so that the window of duplicates is full, and no longer grows, after a minute."""


class Probes:
    """Events of users of their own, and how long it takes until their rows can be read."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._sent_s: dict[str, float] = {}  # those that are not in view yet
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self.count = 0
        self.seen_s: list[float] = []

    def make(self, entry: Entry) -> Entry:
        """Return an event like another one, of a new user; its clock starts now."""
        event = decode_interaction(entry[1])
        assert isinstance(event, Interaction)
        with self._lock:
            user = f"probe-{self.count}"
            self.count += 1
            self._sent_s[user] = time.perf_counter()
        probe = msgspec.structs.replace(event, user_id=user, event_id=user)
        return user.encode(), encode(probe)

    @property
    def waiting(self) -> int:
        """How many are not in view yet."""
        return len(self._sent_s)

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Look for rows while the body runs."""
        thread = threading.Thread(target=self._look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            thread.join()

    def _look(self) -> None:
        reader: Reader = open_table(self._settings.redis).reader()
        while not self._stopped.wait(LOOK_S):
            with self._lock:
                users = list(self._sent_s)
            found = reader.users(users).ids if users else []
            now = time.perf_counter()
            with self._lock:
                self.seen_s += [now - self._sent_s.pop(user) for user in found]


def at_once(
    settings: Settings, folder: Path, *, n_events: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Append events as fast as the broker takes them, until the rows of all can be read.

    Returns the figures, and how what was left compares with the same done in one process.
    """
    entries = Traffic().past(n_events + WARM_UP)
    probes = Probes(settings)
    last = probes.make(entries[-1])  # as new as the last event, and of another user
    log = KafkaLog(settings.kafka)
    with workers(settings, folder) as processes:
        append(log, entries[:WARM_UP])
        wait_until(lambda: learned_all(log, settings), DRAIN_S, "the first events to be learned")
        used = cpu_s(processes)
        began = time.perf_counter()
        append(log, entries[WARM_UP:])
        append(log, [last])
        appended_s = time.perf_counter() - began
        reader = open_table(settings.redis).reader()
        user = (last[0] or b"").decode()
        # With several partitions the newest event need not be the last one to be learned.
        while not (reader.users([user]).ids and learned_all(log, settings)):
            if time.perf_counter() - began > DRAIN_S:
                wait_until(lambda: False, 0.0, f"the row of the last of {n_events} events")
            time.sleep(0.02)
        wall_s = time.perf_counter() - began
        used = {name: each - used[name] for name, each in cpu_s(processes).items()}
        rss = _rss_mb(processes)
    log.close()
    n = n_events + 1
    figures = {
        "events_per_s": round(n / wall_s),
        "cpu_us_per_event": round(sum(used.values()) / n * 1e6, 1),
        "events": n,
        "seconds": round(wall_s, 2),
        "appended_s": round(appended_s, 2),
        "cpu_s": {name: round(each, 2) for name, each in used.items()},
        "rss_mb": rss,
    }
    return figures, compared(settings, [*entries, last])


def compared(settings: Settings, entries: Sequence[Entry]) -> dict[str, Any]:
    """Hold what the processes have left against the same records decided about in this one."""
    decided = MemoryLog(settings.kafka.partitions)
    decided.append(INTERACTIONS, entries, timestamp_ms=int(time.time() * 1_000))
    expected, values = Accounting(), []
    for number, end in decided.end(INTERACTIONS).items():
        lateness_ms = round(settings.stream.lateness_s * 1_000)
        intake = Intake(load_rules(settings.stream.rules), lateness_ms=lateness_ms)
        records: list[Record] = decided.read(INTERACTIONS, {number: 0}, limit=end)
        values += [value for _, value in intake.take(records).entries()]
        expected += intake.accounting
    graph = TemporalGraph(GraphConfig())
    batch = read_feedback(values)[0].in_order()
    for first in range(0, len(batch), 4_096):
        rows = np.arange(first, min(first + 4_096, len(batch)))
        graph.append(graph.view(batch.take(rows)))
    newest = list_snapshots(Path(settings.learner.snapshots))[0]
    learned = TemporalGraph(GraphConfig())
    learned.restore(read_snapshot(newest, fingerprint=None)["graph"])
    commits = read_commits(settings.kafka, settings.stream.group)
    counted = sum((commit.accounting for _, commit in commits.values()), Accounting())
    return {
        "state_hash_equal_to_embedded": learned.state_hash() == graph.state_hash(),
        "accounting_exact": counted == expected,
        "accounting": asdict(counted),
        "ranked_share": settings.learner.ranked_share,
    }


def steady(settings: Settings, folder: Path, *, rate: float, seconds: float) -> dict[str, Any]:
    """Send events as they happen, at an even rate, and look for the rows of some of them."""
    probes, warm = Probes(settings), min(10.0, seconds)
    log, traffic = KafkaLog(settings.kafka), Traffic()
    due_s = 0.0

    def plainly(entries: list[Entry]) -> None:
        log.append(INTERACTIONS, entries, timestamp_ms=0)

    def with_probes(entries: list[Entry]) -> None:
        nonlocal due_s
        if time.perf_counter() >= due_s:
            due_s = time.perf_counter() + PROBE_S
            entries = [*entries[:-1], probes.make(entries[-1])]
        plainly(entries)

    with workers(settings, folder) as processes:
        start_ms = int(time.time() * 1_000)
        paced(traffic, plainly, rate=rate, seconds=warm, start_ms=start_ms)
        wait_until(lambda: learned_all(log, settings), DRAIN_S, "the first events to be learned")
        before, used = scrape(settings.learner.port), cpu_s(processes)
        start_ms, began = int(time.time() * 1_000), time.perf_counter()
        with probes.looking():
            sent = paced(traffic, with_probes, rate=rate, seconds=seconds, start_ms=start_ms)
            wall_s = time.perf_counter() - began
            wait_until(lambda: not probes.waiting, 30.0, "the rows of the last events")
        after = scrape(settings.learner.port)
        used = {name: each - used[name] for name, each in cpu_s(processes).items()}
    log.close()
    p50, p99 = np.percentile(probes.seen_s, [50, 99]) * 1_000
    prefix = "tidegraph_learner_freshness_seconds"
    stages = {}
    for stage in ("typed", "read", "learned", "published", "total"):
        n = after[f"{prefix}_count.{stage}"] - before.get(f"{prefix}_count.{stage}", 0.0)
        total = after[f"{prefix}_sum.{stage}"] - before.get(f"{prefix}_sum.{stage}", 0.0)
        stages[stage] = round(total / max(n, 1) * 1_000, 1)
    return {
        "events_per_s": round(sent / wall_s),
        "p50_ms": round(float(p50), 1),
        "p99_ms": round(float(p99), 1),
        "max_ms": round(max(probes.seen_s) * 1_000, 1),
        "events": sent,
        "probes": probes.count,
        "mean_ms_by_stage": stages,
        "cpu_share": {name: round(each / wall_s, 3) for name, each in used.items()},
    }


def soaked(settings: Settings, folder: Path, *, rate: float, minutes: float) -> dict[str, Any]:
    """Send events as they happen for a long time, and watch memory and lag."""
    stream = msgspec.structs.replace(settings.stream, lateness_s=SOAK_LATENESS_S)
    settings = msgspec.structs.replace(settings, stream=stream)
    log, traffic = KafkaLog(settings.kafka), Traffic()
    watched: list[tuple[float, float, dict[str, float]]] = []  # seconds, lag, MB
    stopped = threading.Event()

    with workers(settings, folder) as processes:
        began = time.perf_counter()

        def watch() -> None:
            looking = KafkaLog(settings.kafka)
            while not stopped.wait(min(5.0, minutes * 3)):
                lag = (
                    _waiting(looking, settings)
                    + scrape(settings.learner.port)["tidegraph_learner_lag_records"]
                )
                watched.append((time.perf_counter() - began, lag, _rss_mb(processes)))
            looking.close()

        watching = threading.Thread(target=watch, daemon=True)
        watching.start()
        sent = paced(
            traffic,
            lambda entries: log.append(INTERACTIONS, entries, timestamp_ms=0),
            rate=rate,
            seconds=minutes * 60,
            start_ms=int(time.time() * 1_000),
        )
        wall_s = time.perf_counter() - began
        stopped.set()
        watching.join()
    log.close()
    kept = [each for each in watched if each[0] > wall_s / 3]  # until then caches fill
    hours = np.array([each[0] for each in kept]) / 3_600
    return {
        "events_per_s": round(sent / wall_s),
        "events": sent,
        "minutes": minutes,
        "rss_mb": kept[-1][2],
        "rss_slope_mb_per_h": {
            name: slope(hours, [each[2][name] for each in kept]) for name in kept[-1][2]
        },
        "lag_records": {
            "median": float(np.median([each[1] for each in kept])),
            "max": max(each[1] for each in kept),
            "slope_per_h": slope(hours, [each[1] for each in kept]),
        },
        "slopes_over": f"the last two thirds, {len(kept)} looks",
    }


def slope(x: Any, y: Sequence[float]) -> float:
    """Return the slope of the line of least squares.

    Examples
    --------
    >>> slope([0, 1, 2], [5.0, 7.0, 9.0])
    2.0

    """
    return round(float(np.polyfit(np.asarray(x, np.float64), np.asarray(y), 1)[0]), 3)


def _rss_mb(processes: dict[str, psutil.Process]) -> dict[str, float]:
    return {name: round(each.memory_info().rss / 1e6, 1) for name, each in processes.items()}


def _waiting(log: KafkaLog, settings: Settings) -> int:
    """Count the records that no stream worker has decided about."""
    commits = read_commits(settings.kafka, settings.stream.group)
    done = sum(offset for offset, _ in commits.values())
    return sum(log.end(INTERACTIONS).values()) - done


def learned_all(log: KafkaLog, settings: Settings) -> bool:
    """Tell whether every record was typed, learned, and published."""
    if _waiting(log, settings):
        return False
    commits = read_commits(settings.kafka, settings.stream.group)
    counted = sum((commit.accounting for _, commit in commits.values()), Accounting())
    values = scrape(settings.learner.port)
    return (
        values["tidegraph_learner_events_total"] >= counted.feedback + counted.no_signal
        and values["tidegraph_learner_waiting_rows"] == 0
    )


@click.command()
@click.option(
    "--events",
    default=180_000,
    show_default=True,
    type=click.IntRange(min=1_000),
    help="Appended at once, for the rate from end to end.",
)
@click.option(
    "--seconds",
    default=60.0,
    show_default=True,
    type=click.FloatRange(min=1),
    help="Of steady traffic, for the freshness.",
)
@click.option(
    "--rate",
    type=click.FloatRange(min=20),
    help="Events per second of steady traffic.  [default: 1000; in a soak 2000]",
)
@click.option(
    "--soak",
    "minutes",
    type=click.FloatRange(min=0.2),
    metavar="MINUTES",
    help="Watch memory and lag for so long, and nothing else.",
)
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for scripts.")
def pipeline(
    events: int,
    seconds: float,
    rate: float | None,
    minutes: float | None,
    config: Path | None,
    as_json: bool,  # noqa: FBT001 - click passes it by name
) -> None:
    """Measure a broker, a stream worker, a learner and Redis together, as processes.

    Without --config a broker and a Redis are started for as long; with it, topics and a namespace
    of their own are used on the servers that the settings name.

    \b
    Example:
        tidegraph bench pipeline --json
        tidegraph bench pipeline --soak 30 --rate 2000 --json
    """
    results: dict[str, Any] = {}
    checks: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch, borrowed(config, Path(scratch)) as base:
        folder = Path(scratch)
        if minutes is not None:
            with own(base, folder) as settings:
                results["soak"] = soaked(settings, folder, rate=rate or 2_000, minutes=minutes)
        else:
            with own(base, folder) as settings:
                results["end_to_end"], checks = at_once(settings, folder, n_events=events)
            with own(base, folder) as settings:
                results["freshness"] = steady(settings, folder, rate=rate or 1_000, seconds=seconds)
    show(
        {
            "bench": "pipeline",
            "machine": machine("confluent-kafka", "redis", "torch"),
            "settings": {
                "data": "the shipped sample of KuaiRand-Pure",
                "partitions": base.kafka.partitions,
                "compression": base.kafka.compression,
                "batch": base.stream.batch,
                "micro_batch": [base.learner.micro_batch, base.learner.max_micro_batch],
                "publish_s": base.learner.publish_s,
                "snapshot_s": base.learner.snapshot_s,
                "end_to_end": f"after {WARM_UP} events, from the first append until the row of the "
                "last event, and every other that waits, can be read from Redis",
                "freshness": f"p50_ms, p99_ms: of an event of a new user each {PROBE_S} s, from "
                f"before its append until its row is read from Redis, looked for every {LOOK_S} s",
                "soak": f"lateness_s {SOAK_LATENESS_S}, so that the window of duplicates is full",
            },
            "results": results,
            "peers": {},
            "ratios": {},
            "checks": checks,
        },
        as_json=as_json,
    )
