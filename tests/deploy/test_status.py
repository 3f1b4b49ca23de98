"""The status tells what is up, what is down and what to do, and its numbers are right."""

from __future__ import annotations

import io
import json
import math
import threading
import time
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, start_http_server
from rich.console import Console

from deploy.readings import Broker, Down, Metrics, Readings, Topic, quantile
from deploy.status import judge, screen
from graph_store.snapshot import write_snapshot
from learner.metrics import LearnerMetrics, serving
from serving.redis_table import open_table
from serving.rows import Barrier, ItemRows, Layout
from serving.table import Update
from stream.commits import Commit, read_commits
from stream.events import Interaction, encode
from stream.intake import Accounting
from stream.kafka import KafkaLog
from stream.metrics import StreamMetrics
from stream.settings import KafkaSettings, LearnerSettings, RedisSettings, Settings, StreamSettings
from stream.topics import INTERACTIONS, create
from stream.worker import StreamWorker
from tidegraph import main

START_MS = 1_650_812_741_000
NOTHING = Down("it is not there", "start it")
BOUNDS = (0.1, 0.5, 1.0, math.inf)


def readings(**known: Any) -> Readings:
    """Return what was read; everything that is not named is down."""
    parts = ("broker", "topics", "commits", "stream", "learner", "table", "snapshot")
    return Readings(**{"at_s": 1_000.0, **dict.fromkeys(parts, NOTHING), **known})


def commit(**counts: int) -> Commit:
    return Commit(900_000, 0, Accounting(**counts))


def test_what_is_down_is_named_with_what_to_do_and_the_rest_is_shown() -> None:
    status = judge(readings(broker=Broker("host:9092", "4.3", 3)))
    assert not status.well
    assert status.broker.problem == ""
    for part in (status.topics, status.stream, status.learner, status.table, status.snapshot):
        assert (part.problem, part.remedy) == NOTHING
    text = shown(status)
    assert "something is down" in text
    assert text.count("-> start it") == 5
    assert "Kafka 4.3 at host:9092, 3 nodes" in text


def shown(status: Any) -> str:
    console = Console(width=120, file=io.StringIO())
    with console.capture() as capture:
        console.print(screen(status))
    return capture.get()


def test_lag_rate_and_watermark_follow_from_two_looks_at_the_commits() -> None:
    topic = Topic(INTERACTIONS, {0: 10, 1: 0}, {0: 100, 1: 7}, 3_600_000)
    before = readings(commits={0: (40, commit(in_=30, feedback=30))}, topics=[topic], at_s=998.0)
    now = readings(commits={0: (90, commit(in_=80, feedback=79, dead=1))}, topics=[topic])
    stream = judge(now, before).stream
    assert [each.lag for each in stream.partitions] == [10, 7]
    assert (stream.lag, stream.records_per_s, stream.accounted) == (17, 25.0, True)
    assert (stream.watermark_ms, stream.behind_s) == (900_000, 100.0)
    anew = readings(commits={0: (9, commit(in_=9, feedback=9))}, topics=[topic], at_s=1_002.0)
    assert judge(anew, now).stream.records_per_s is None
    assert judge(now).stream.records_per_s is None


def test_records_that_are_not_accounted_for_are_a_problem() -> None:
    topic = Topic(INTERACTIONS, {0: 0}, {0: 80}, None)
    up = readings(
        commits={0: (80, commit(in_=80, feedback=79))}, topics=[topic], stream=Metrics("")
    )
    stream = judge(up).stream
    assert stream.accounted is False
    assert "80 records came in, 79 are accounted for" in stream.problem
    assert "is not feedback 79" in shown(judge(up))


def test_a_missing_topic_is_a_problem() -> None:
    topics = [Topic(INTERACTIONS, {0: 0}, {0: 0}, None), Topic("feedback", {}, {}, None)]
    found = judge(readings(topics=topics, commits={})).topics
    assert found.problem == "missing: feedback"
    assert "topics create" in found.remedy


@given(
    st.lists(st.floats(0, 2), min_size=1, max_size=50),
    st.floats(0.01, 1),
)
def test_a_quantile_lies_in_the_bucket_of_the_true_one(values: list[float], q: float) -> None:
    buckets = {bound: float(sum(value <= bound for value in values)) for bound in BOUNDS}
    found = quantile(buckets, q)
    true = sorted(values)[max(0, math.ceil(q * len(values) - 1e-9) - 1)]
    place = bisect_left(BOUNDS, true)
    low = BOUNDS[place - 1] if place else 0.0
    high = BOUNDS[min(place, len(BOUNDS) - 2)]
    assert found is not None
    assert low - 1e-9 <= found <= high + 1e-9


def test_a_histogram_without_observations_has_no_quantile() -> None:
    assert quantile({}, 0.5) is None
    assert quantile({1.0: 0, math.inf: 0}, 0.5) is None
    assert Metrics("a NaN\n").value("a") is None


@contextmanager
def served(registry: CollectorRegistry) -> Iterator[int]:
    """Serve metrics as a worker does, and give the port."""
    server, thread = start_http_server(0, addr="127.0.0.1", registry=registry)
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def working(settings: Settings, metrics: StreamMetrics) -> Iterator[None]:
    worker = StreamWorker(settings, on_batch=metrics.batch)
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        yield
    finally:
        worker.stop()
        thread.join(timeout=30)


def learner_metrics() -> LearnerMetrics:
    """Return what a learner tells after a hundred events."""
    metrics = LearnerMetrics()
    metrics.values |= {"events": 123.0, "ready": 1.0, "lag_records": 4.0, "table_up": 1.0}
    stamps_ms = np.array([[0, 10, 20, 100, 300]])
    metrics.fresh(stamps_ms, np.array([100.0]))
    return metrics


@pytest.fixture
def settings(kafka: KafkaSettings, redis_url: str, tmp_path: Path) -> Settings:
    return Settings(
        kafka=kafka,
        redis=RedisSettings(url=redis_url, namespace=kafka.prefix.rstrip(".")),
        learner=LearnerSettings(snapshots=str(tmp_path / "snapshots")),
    )


def asked(settings: Settings, *words: str) -> tuple[int, str]:
    """Run `tidegraph status` with settings in its environment."""
    environ = {}
    for section, values in msgspec.to_builtins(settings).items():
        for name, value in values.items():
            text = ",".join(value) if isinstance(value, list | tuple) else str(value)
            environ[f"TIDEGRAPH_{section}_{name}".upper()] = text
    result = CliRunner(env=environ).invoke(main, ["status", *words], catch_exceptions=False)
    return result.exit_code, result.stdout


@pytest.mark.slow
def test_a_system_that_runs_is_well_and_one_that_lost_a_part_is_not(settings: Settings) -> None:
    create(settings.kafka)
    table = open_table(settings.redis)
    table.begin(Layout(dim=2))
    zeros = np.zeros((1, 2), np.float32)
    items = ItemRows(["i1"], zeros, zeros[0, :1], np.zeros((1, 0)), np.array([START_MS]))
    barrier = Barrier(7, START_MS, time.time_ns() // 1_000_000)
    table.publish(Update(barrier=barrier, items=items))
    table.flip()
    write_snapshot(Path(settings.learner.snapshots), {"a": np.zeros(100)}, fingerprint="f")
    events = [
        encode(Interaction(1, f"e{n}", "u1", "i1", START_MS + n, {"click": 1})) for n in range(50)
    ]
    metrics = StreamMetrics()
    with ExitStack() as stack:
        learner = stack.enter_context(ExitStack())
        settings = msgspec.structs.replace(
            settings,
            stream=StreamSettings(port=stack.enter_context(served(metrics.registry))),
            learner=msgspec.structs.replace(
                settings.learner, port=learner.enter_context(serving(learner_metrics(), 0))
            ),
        )
        stack.enter_context(working(settings, metrics))
        log = stack.enter_context(closing(KafkaLog(settings.kafka)))
        entries: list[tuple[bytes | None, bytes]] = [(b"u1", event) for event in events]
        log.append(INTERACTIONS, [*entries, (b"u1", b"{")], timestamp_ms=0)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            commits = read_commits(settings.kafka, "stream").values()
            if sum(each.accounting.in_ for _, each in commits) == 51:
                break
        exit_code, output = asked(settings, "--json")
        status = json.loads(output)
        assert exit_code == 0, output
        assert status["well"]
        assert status["broker"]["version"].count(".")
        assert [topic["name"] for topic in status["topics"]["topics"]][:2] == [
            "interactions",
            "feedback",
        ]
        stream = status["stream"]
        assert (stream["lag"], stream["accounted"]) == (0, True)
        assert (stream["accounting"]["in_"], stream["accounting"]["dead"]) == (51, 1)
        assert stream["classes"] == {"implicit_positive": 50}
        assert stream["watermark_ms"] == START_MS + 49
        assert status["learner"]["ready"] is True
        assert status["learner"]["events"] == 123
        assert 0.1 < status["learner"]["freshness"]["total"]["p99_s"] <= 0.5
        assert (status["table"]["items"], status["table"]["step"]) == (1, 7)
        assert status["table"]["memory_bytes"] > 0
        assert status["snapshot"]["number"] == 1
        assert "all is well" in asked(settings)[1]

        learner.close()
        exit_code, output = asked(settings, "--json")
        status = json.loads(output)
        assert exit_code == 1
        assert "no worker answers" in status["learner"]["problem"]
        assert "tidegraph learn" in status["learner"]["remedy"]
        assert status["stream"]["problem"] == ""


@pytest.mark.slow
def test_without_a_broker_the_rest_is_shown_and_the_status_is_1(settings: Settings) -> None:
    gone = msgspec.structs.replace(
        settings, kafka=msgspec.structs.replace(settings.kafka, servers=("127.0.0.1:1",))
    )
    exit_code, output = asked(gone)
    assert exit_code == 1
    words = " ".join(output.split())
    assert "no broker listens at 127.0.0.1:1" in words
    assert "nothing is published" in words
    assert "no snapshot in" in words


def test_a_screen_to_watch_is_no_json() -> None:
    exit_code, _ = asked(Settings(), "--watch", "--json")
    assert exit_code == 2
