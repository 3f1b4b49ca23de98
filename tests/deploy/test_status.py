"""The status tells what is up, what is down and what to do, and its numbers are right."""

from __future__ import annotations

import io
import json
import math
import ssl
import sys
import threading
import time
import urllib.request
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

from deploy.readings import Api, Broker, Down, Metrics, Readings, Topic, quantile
from deploy.service import Service, free_port
from deploy.status import judge, screen
from graph_store.snapshot import write_snapshot
from learner.metrics import LearnerMetrics, serving
from serving.keys import new_key
from serving.redis_table import open_table
from serving.rows import Barrier, ItemRows, Layout
from serving.table import Update
from stream.commits import Commit, read_commits
from stream.events import Interaction, encode
from stream.intake import Accounting
from stream.kafka import KafkaLog
from stream.metrics import StreamMetrics
from stream.settings import (
    KafkaSettings,
    LearnerSettings,
    RedisSettings,
    ServingSettings,
    Settings,
    StreamSettings,
    as_environment,
)
from stream.topics import INTERACTIONS, create
from stream.worker import StreamWorker
from tests.certificates import certificates
from tests.house import ROOT
from tidegraph import main

START_MS = 1_650_812_741_000
NOTHING = Down("it is not there", "start it")
BOUNDS = (0.1, 0.5, 1.0, math.inf)


def readings(**known: Any) -> Readings:
    """Return what was read; everything that is not named is down."""
    parts = ("broker", "topics", "commits", "stream", "learner", "api", "table", "snapshot")
    return Readings(**{"at_s": 1_000.0, **dict.fromkeys(parts, NOTHING), **known})


def commit(**counts: int) -> Commit:
    return Commit(900_000, 0, Accounting(**counts))


def test_what_is_down_is_named_with_what_to_do_and_the_rest_is_shown() -> None:
    status = judge(readings(broker=Broker("host:9092", "4.3", 3)))
    assert not status.well
    assert status.broker.problem == ""
    down = (status.topics, status.stream, status.learner, status.api, status.table, status.snapshot)
    for part in down:
        assert (part.problem, part.remedy) == NOTHING
    text = shown(status)
    assert "something is down" in text
    assert text.count("-> start it") == 6
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


API = """
tidegraph_api_epoch 3
tidegraph_api_step 40
tidegraph_api_published_age_seconds 2.5
tidegraph_api_table_up 0
tidegraph_api_lists_total{answered_by="vector",stale="no"} 6
tidegraph_api_lists_total{answered_by="vector",stale="yes"} 1
tidegraph_api_lists_total{answered_by="popularity",stale="no"} 1
tidegraph_api_seconds_count{route="/metrics",status="200"} 900
tidegraph_api_seconds_count{route="/v1/popular",status="200"} %d
tidegraph_api_seconds_count{route="/v1/popular",status="503"} 10
tidegraph_api_seconds_bucket{route="/v1/recommendations/{user}",status="200",le="1"} 4
tidegraph_api_seconds_bucket{route="/v1/recommendations/{user}",status="200",le="+Inf"} 4
tidegraph_api_seconds_bucket{route="/v1/recommendations/{user}",status="503",le="1"} 4
tidegraph_api_seconds_bucket{route="/v1/recommendations/{user}",status="503",le="+Inf"} 4
"""


def test_the_api_tells_what_it_serves_and_how_fast() -> None:
    before = readings(api=Api("http://h:1", "", Metrics(API % 20)), at_s=998.0)
    now = readings(api=Api("http://h:1", "", Metrics(API % 70)))
    api = judge(now, before).api
    assert (api.problem, api.ready, api.epoch, api.step, api.age_s) == ("", True, 3, 40, 2.5)
    assert (api.requests_per_s, api.table_up) == (25.0, False)
    assert (api.answered_by, api.stale_lists) == ({"vector": 7, "popularity": 1}, 1)
    assert api.lists is not None
    assert api.lists.p50_s == 0.5
    text = shown(judge(now, before))
    assert "http://h:1, ready, epoch 3, step 40, rows 2.5 s old, Redis does not answer it" in text
    assert "8, vector 87.5%, popularity 12.5%, 1 stale, p50 / p99 500 ms / 990 ms" in text


def test_an_api_that_is_not_ready_is_a_problem_and_one_that_keeps_its_figures_is_not() -> None:
    closed = Down("figures want a reader's key", "put one into TIDEGRAPH_API_KEY")
    api = judge(readings(api=Api("http://h:1", "", closed))).api
    assert (api.problem, api.ready, api.epoch) == ("", True, None)
    assert "ready, figures want a reader's key: put one" in shown(
        judge(readings(api=Api("http://h:1", "", closed)))
    )
    late = judge(readings(api=Api("http://h:1", "nothing was read yet", Metrics("")))).api
    assert (late.problem, late.ready) == ("not ready: nothing was read yet", False)
    assert "Redis" in late.remedy


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


@contextmanager
def answering(settings: Settings, log: Path) -> Iterator[Service]:
    """Run an API with TLS."""
    serving = settings.serving
    trusted = ssl.create_default_context(cafile=log.parent / "ca.pem")

    def answers() -> bool:
        try:
            urllib.request.urlopen(
                f"https://127.0.0.1:{serving.port}/readyz", context=trusted, timeout=10.0
            ).close()
        except OSError:
            return False
        return True

    command = [sys.executable, "-m", "tidegraph", "serve"]
    environment = as_environment(settings)
    service = Service("serve", command, ROOT, answers=answers, log=log, environment=environment)
    service.start(120.0)
    try:
        yield service
    finally:
        service.kill()


@pytest.fixture
def settings(kafka: KafkaSettings, redis_url: str, tmp_path: Path) -> Settings:
    made = certificates(tmp_path)
    return Settings(
        serving=ServingSettings(
            port=free_port(),
            stale_s=1e6,
            keys_file=str(tmp_path / "keys.json"),
            audit_file=str(tmp_path / "audit.jsonl"),
            cert_file=str(made.certificate),
            key_file=str(made.key),
        ),
        kafka=kafka,
        redis=RedisSettings(url=redis_url, namespace=kafka.prefix.rstrip(".")),
        learner=LearnerSettings(snapshots=str(tmp_path / "snapshots")),
    )


def asked(settings: Settings, *words: str, **environ: str) -> tuple[int, str]:
    """Run `tidegraph status` with settings in its environment."""
    runner = CliRunner(env=as_environment(settings) | environ)
    result = runner.invoke(main, ["status", *words], catch_exceptions=False)
    return result.exit_code, result.stdout


@pytest.mark.slow
def test_a_system_that_runs_is_well_and_one_that_lost_a_part_is_not(
    settings: Settings, tmp_path: Path
) -> None:
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
        key = new_key(Path(settings.serving.keys_file), "status", "reader")
        stack.enter_context(answering(settings, tmp_path / "serve.log"))
        exit_code, output = asked(settings, "--json", TIDEGRAPH_API_KEY=key)
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
        api = status["api"]
        assert (api["ready"], api["step"], api["items"]) == (True, 7, 1)
        assert api["epoch"] == status["table"]["epoch"]
        assert (api["figures"], api["table_up"], api["requests_per_s"]) == ("", True, 0.0)
        without_key = asked(settings)[1]
        assert "all is well" in without_key
        assert "ready, figures want a reader's key" in " ".join(without_key.split())
        assert "not a reader's" in asked(settings, TIDEGRAPH_API_KEY="tg_other")[1]
        other = msgspec.structs.replace(
            settings.serving, cert_file=str(certificates(tmp_path / "other").certificate)
        )
        exit_code, output = asked(msgspec.structs.replace(settings, serving=other), "--json")
        api = json.loads(output)["api"]
        assert exit_code == 1
        assert "certificate verify failed" in api["problem"]
        assert api["ready"] is None

        learner.close()
        exit_code, output = asked(settings, "--json")
        status = json.loads(output)
        assert exit_code == 1
        assert "no worker answers" in status["learner"]["problem"]
        assert "tidegraph learn" in status["learner"]["remedy"]
        assert status["api"]["ready"] is True
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
    assert f"no API answers at https://127.0.0.1:{settings.serving.port}" in words
    assert "start it with `tidegraph serve`" in words


def test_a_screen_to_watch_is_no_json() -> None:
    exit_code, _ = asked(Settings(), "--watch", "--json")
    assert exit_code == 2
