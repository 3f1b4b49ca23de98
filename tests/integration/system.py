"""The whole system as processes of a test's own, which may be killed, and what it must come to."""

from __future__ import annotations

import random
import sys
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from deploy.local import prepare_broker, prepare_redis
from deploy.service import Service, free_port, stop_all, wait_until
from graph_store.graph import GraphConfig, TemporalGraph
from graph_store.snapshot import list_snapshots, read_snapshot
from replay.datasets import open_dataset
from replay.player import play
from serving.redis_table import open_table
from serving.table import Reader
from stream import topics
from stream.commits import read_commits
from stream.events import read_feedback
from stream.intake import Accounting, Intake
from stream.kafka import KafkaLog
from stream.log import MemoryLog, Record, advance
from stream.settings import (
    KafkaSettings,
    LearnerSettings,
    RedisSettings,
    Settings,
    StreamSettings,
    as_environment,
)
from stream.typing_rules import load_rules

PATIENCE_S = 120.0
"""How long a state of the system is waited for: far longer than it takes on a busy machine."""

Entry = tuple[bytes | None, bytes]


class Outcome(NamedTuple):
    """What a log of interactions must come to, however it was processed."""

    accounting: Accounting
    feedback: dict[int, list[bytes]]
    """Values by partition, in order."""
    graph: TemporalGraph


def kuairand(n_events: int) -> list[Entry]:
    """Return the first events of the shipped sample, keyed by user."""
    log, positions, entries = MemoryLog(), {0: 0}, []
    for _ in play(open_dataset("kuairand-pure").chunks(), log):
        records = log.read("interactions", positions, limit=1 << 30)
        positions = advance(positions, records)
        entries += [(record.key, record.value) for record in records]
        if len(entries) >= n_events:
            break
    return entries[:n_events]


class Worker(Service):
    """A worker and where its metrics are."""

    url = ""


class System:
    """Broker, Redis and workers, each a process.

    Parameters
    ----------
    settings
        With the addresses filled in.
    broker, redis
        The services behind them.
    folder
        Of snapshots and logs.

    """

    def __init__(self, settings: Settings, broker: Service, redis: Service, folder: Path) -> None:
        self.settings = settings
        self.broker = broker
        self.redis = redis
        self.folder = folder
        self.log = KafkaLog(settings.kafka, wait_s=1.0)
        self._workers: list[Worker] = []

    def worker(self, command: str) -> Worker:
        """Return a worker that is not started yet."""
        port = free_port()
        settings = msgspec.structs.replace(
            self.settings,
            stream=msgspec.structs.replace(self.settings.stream, port=port),
            learner=msgspec.structs.replace(self.settings.learner, port=port),
        )
        url = f"http://127.0.0.1:{port}/metrics"
        service = Worker(
            f"{command}-{len(self._workers)}",
            [sys.executable, "-m", "tidegraph", command],
            Path.cwd(),
            answers=lambda: metrics(url) is not None,
            log=self.folder / f"{command}-{len(self._workers)}.log",
            environment=as_environment(settings),
        )
        service.url = url
        self._workers.append(service)
        return service

    def send(self, entries: Sequence[Entry], *, timestamp_ms: int = 1_700_000_000_000) -> None:
        """Append interactions."""
        self.log.append(topics.INTERACTIONS, entries, timestamp_ms=timestamp_ms)

    def interactions(self) -> list[Record]:
        """Return everything that was sent, by partition and in order."""
        return self._everything(topics.INTERACTIONS)

    def feedback(self) -> dict[int, list[bytes]]:
        """Return what a read-committed reader finds in ``feedback``."""
        found: dict[int, list[bytes]] = defaultdict(list)
        for record in self._everything(topics.FEEDBACK):
            found[record.partition].append(record.value)
        return dict(found)

    def committed(self) -> int:
        """Return how many interactions are decided about."""
        commits = read_commits(self.settings.kafka, self.settings.stream.group)
        return sum(offset for offset, _ in commits.values())

    def accounting(self) -> Accounting:
        """Return the accounting that the commits carry."""
        commits = read_commits(self.settings.kafka, self.settings.stream.group)
        return sum((commit.accounting for _, commit in commits.values()), Accounting())

    def reader(self) -> Reader:
        """Return a reader of what is published."""
        return open_table(self.settings.redis).reader()

    def stop_learner(self, learner: Service) -> TemporalGraph:
        """Let a learner end, and return the graph of its last snapshot."""
        learner.stop(PATIENCE_S)
        assert learner.process is not None
        assert learner.process.returncode == 0, learner.last_words()
        graph = TemporalGraph(GraphConfig())
        newest = list_snapshots(Path(self.settings.learner.snapshots))[0]
        graph.restore(read_snapshot(newest, fingerprint=None)["graph"])
        return graph

    def close(self) -> None:
        """End every worker that is still there."""
        stop_all(self._workers)
        self.log.close()

    def _everything(self, topic: str) -> list[Record]:
        positions, records = self.log.start(topic), []
        while self.log.lag(topic, positions):
            some = self.log.read(topic, positions, limit=10_000)
            positions = advance(positions, some)
            records += some
        return sorted(records, key=lambda record: (record.partition, record.offset))


def undisturbed(records: Sequence[Record], settings: Settings) -> Outcome:
    """Decide about the same records in one process, a partition at a time."""
    accounting, feedback = Accounting(), {}
    graph = TemporalGraph(GraphConfig())
    for number in sorted({record.partition for record in records}):
        intake = Intake(
            load_rules(settings.stream.rules),
            lateness_ms=int(settings.stream.lateness_s * 1_000),
            max_future_ms=int(settings.stream.max_future_s * 1_000),
        )
        result = intake.take([record for record in records if record.partition == number])
        accounting += result.accounting
        feedback[number] = [value for _, value in result.entries()]
        batch = read_feedback(feedback[number])[0].in_order()
        graph.append(graph.view(batch))
        graph.retract(batch)
    return Outcome(accounting, feedback, graph)


def metrics(url: str) -> dict[str, float] | None:
    """Return the samples of a worker by name and labels, or ``None`` if it does not answer."""
    try:
        with urllib.request.urlopen(url, timeout=5.0) as answer:
            text = answer.read().decode()
    except OSError:
        return None
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def value_of(worker: Worker, name: str) -> float:
    """Return a metric of a worker, 0 if it does not answer."""
    found = metrics(worker.url)
    return 0.0 if found is None else found.get(name, 0.0)


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a state of the system."""
    wait_until(condition, PATIENCE_S, what)


def random_points(seed: int, n: int, below: int) -> list[int]:
    """Draw distinct points of a log, in order."""
    return sorted(random.Random(seed).sample(range(1, below), n))


@contextmanager
def system(folder: Path, *, batch: int = 4_096, snapshot_s: float = 1.0) -> Iterator[System]:
    """Run a broker and a Redis with no workers yet."""
    kafka, broker = prepare_broker(
        KafkaSettings(servers=("127.0.0.1:0",), partitions=2), folder / "kafka"
    )
    redis, server = prepare_redis(RedisSettings(url="redis://127.0.0.1:0/0"), folder / "redis")
    assert broker is not None
    assert server is not None
    settings = Settings(
        kafka=kafka,
        redis=redis,
        # The log is of 2022 and its records are appended now: what lies in the future is tested
        # with the worker.
        stream=StreamSettings(batch=batch),
        learner=LearnerSettings(snapshots=str(folder / "snapshots"), snapshot_s=snapshot_s),
    )
    with broker, server:
        topics.create(kafka)
        running = System(settings, broker, server, folder)
        try:
            yield running
        finally:
            running.close()
