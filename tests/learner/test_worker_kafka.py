"""A learner as a process, over a real broker and a real Redis, killed at any point."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import pytest

import tidegraph
from deploy.service import free_port
from graph_store import snapshot
from graph_store.graph import GraphConfig, TemporalGraph
from graph_store.snapshot import list_snapshots, read_snapshot
from learner.worker import TOPIC
from serving.redis_table import RedisTable
from stream import topics
from stream.events import Feedback, FeedbackBatch, Kind, encode
from stream.kafka import KafkaLog
from stream.settings import KafkaSettings

pytestmark = pytest.mark.slow

N_EVENTS = 6_000
START_MS = 1_650_812_741_000
DEADLINE_S = 300.0


def entries() -> list[tuple[bytes | None, bytes]]:
    """Return events a second apart."""
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, 500, N_EVENTS), rng.integers(0, 300, N_EVENTS)
    kinds = rng.integers(0, 4, N_EVENTS)
    return [
        (
            f"u{user}".encode(),
            encode(
                Feedback(
                    1, f"e{n}", f"u{user}", f"i{item}", START_MS + 1_000 * n, Kind(kind).label, 1.0
                )
            ),
        )
        for n, (user, item, kind) in enumerate(
            zip(users.tolist(), items.tolist(), kinds.tolist(), strict=True)
        )
    ]


def until(wish: Callable[[], bool], what: str) -> None:
    """Poll until a wish has come true."""
    end = time.monotonic() + DEADLINE_S
    while not wish():
        assert time.monotonic() < end, what
        time.sleep(0.05)


class System:
    """A topic of feedback, and learners that follow it."""

    def __init__(self, folder: Path, kafka: KafkaSettings, redis_url: str) -> None:
        self.snapshots = folder / "snapshots"
        self.namespace = kafka.prefix.rstrip(".")
        self.port = free_port()
        self.table = RedisTable(redis_url, namespace=self.namespace)
        self.config = folder / "tidegraph.toml"
        servers = ", ".join(f'"{server}"' for server in kafka.servers)
        self.config.write_text(
            f'[kafka]\nservers = [{servers}]\nprefix = "{kafka.prefix}"\n'
            f'[redis]\nurl = "{redis_url}"\nnamespace = "{self.namespace}"\n'
            f'[learner]\nsnapshots = "{self.snapshots}"\nsnapshot_s = 0.1\nport = {self.port}\n'
            'micro_batch = 16\nmax_micro_batch = 16\nready_lag = 1\ndevice = "cpu"\n'
        )
        topics.create(kafka)
        self.log = KafkaLog(kafka)

    @contextmanager
    def learner(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """Run a learner; it is killed at the end if it has not ended."""
        process = subprocess.Popen(
            [sys.executable, "-m", "tidegraph", "learn", "--config", str(self.config), *arguments],
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(tidegraph.__file__).parent,
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    def metric(self, name: str) -> float:
        """Ask the learner for a number; -1 while nobody answers."""
        try:
            with urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10) as answer:
                for line in answer.read().decode().splitlines():
                    if line.startswith(f"tidegraph_learner_{name} "):
                        return float(line.split()[1])
        except (URLError, ConnectionError):
            pass
        return -1.0

    def learned(self, n: float) -> None:
        until(lambda: self.metric("events_total") >= n, f"{n} events learned")

    def end(self, process: subprocess.Popen[str]) -> None:
        """Ask a learner to end, and see that it does."""
        asked = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 0, told
        assert time.monotonic() - asked < 10.0

    def state_hash(self) -> str:
        """Return the hash of the graph in the newest snapshot."""
        state = read_snapshot(list_snapshots(self.snapshots)[0], fingerprint=None)
        assert state["counts"]["events"] == N_EVENTS
        graph = TemporalGraph(GraphConfig())
        graph.restore(state["graph"])
        return graph.state_hash()


@pytest.fixture
def system(tmp_path: Path, kafka: KafkaSettings, redis_url: str) -> Iterator[System]:
    made = System(tmp_path, kafka, redis_url)
    yield made
    made.log.close()


def undisturbed() -> str:
    graph = TemporalGraph(GraphConfig())
    batch = FeedbackBatch.from_records([value for _, value in entries()])
    graph.append(graph.view(batch.in_order()))
    return graph.state_hash()


def test_a_learner_killed_anywhere_ends_with_the_graph_of_an_undisturbed_run(
    system: System,
) -> None:
    system.log.append(TOPIC, entries()[: N_EVENTS // 2], timestamp_ms=1)
    rng, learned = random.Random(0), 0.0
    for _ in range(2):
        with system.learner() as process:
            learned += rng.randint(100, N_EVENTS // 8)
            system.learned(learned)
            process.send_signal(signal.SIGKILL)
            process.wait()
    system.log.append(TOPIC, entries()[N_EVENTS // 2 :], timestamp_ms=1)
    with system.learner() as process:
        system.learned(N_EVENTS)
        until(lambda: system.metric("ready") == 1, "ready")
        barrier = system.table.reader().barrier
        newest_ms = START_MS + 1_000 * (N_EVENTS - 1)
        until(lambda: barrier().at_ms == newest_ms, "the newest event is in view")
        system.end(process)
    assert system.state_hash() == undisturbed()


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_torn_snapshots_are_passed_over_for_the_one_before(system: System) -> None:
    system.log.append(TOPIC, entries(), timestamp_ms=1)
    with system.learner():
        until(lambda: system.metric("snapshots_total") >= 3, "three snapshots")
    newest, middle, _ = list_snapshots(system.snapshots)
    truncate(newest / snapshot.ARRAYS)
    flip_a_bit(middle / snapshot.ARRAYS)
    with system.learner() as process:
        system.learned(N_EVENTS)
        system.end(process)
    assert system.state_hash() == undisturbed()


def test_two_learners_on_one_folder(system: System) -> None:
    with system.learner() as first:
        until(lambda: system.metric("ready") == 1, "ready")
        system.config.write_text(
            system.config.read_text().replace(f"port = {system.port}", "port = 0")
        )
        with system.learner() as second:
            _, told = second.communicate(timeout=DEADLINE_S)
        assert second.returncode == 2
        assert f"belongs to another learner, process {first.pid};" in told
        assert "Traceback" not in told
        system.end(first)
