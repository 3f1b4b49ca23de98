"""``tidegraph stream`` as a process: what it shows, how it ends, what it says when it cannot."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError

import msgspec
import pytest
from confluent_kafka import Consumer, KafkaException, TopicPartition
from prometheus_client.parser import text_string_to_metric_families

from deploy.local import prepare_broker
from deploy.service import Service, free_port, wait_until
from stream.commits import read_commits
from stream.intake import Accounting
from stream.kafka import KafkaLog, librdkafka
from stream.settings import KafkaSettings
from stream.topics import FEEDBACK, INTERACTIONS, create
from tests.house import ROOT

WITHIN_S = 120.0
"""Most that is waited for anything; on a quiet machine it takes a few seconds."""

STOP_S = 10.0
"""A process that is told to stop must be gone within this."""

TIDEGRAPH = [sys.executable, str(ROOT / "tidegraph.py")]


class Worker:
    """A stream worker in a process of its own."""

    def __init__(
        self,
        kafka: KafkaSettings,
        folder: Path,
        *,
        name: str = "stream",
        watchdog_s: float = 60.0,
        batch: int = 512,
        command: Sequence[str] = (),
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.config = folder / f"{name}.toml"
        told = msgspec.structs.asdict(kafka)
        lines = ["[kafka]", *(f"{key} = {json.dumps(value)}" for key, value in told.items())]
        lines += ["[stream]", f"port = {self.port}", f"watchdog_s = {watchdog_s}"]
        lines.append(f"batch = {batch}")
        self.config.write_text("\n".join([*lines, ""]), encoding="utf-8")
        self.service = Service(
            name,
            command or [*TIDEGRAPH, "stream", "--config", str(self.config)],
            folder,
            answers=lambda: self.get("/healthz") is not None,
            environment={"TIDEGRAPH_CONFIG": str(self.config), "PYTHONPATH": str(ROOT)},
        )

    def get(self, path: str) -> str | None:
        """Return a page, or nothing where there is none yet."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5.0) as page:
                return str(page.read().decode())
        except HTTPError as answer:
            with answer:
                return answer.read().decode()
        except (URLError, OSError):
            return None

    def json(self, path: str) -> dict[str, Any]:
        """Return a page of JSON, or nothing where there is none yet."""
        told: dict[str, Any] = json.loads(self.get(path) or "{}")
        return told

    def totals(self) -> dict[str, int]:
        """Return what Prometheus reads of the records, by outcome."""
        return {
            sample.labels["outcome"]: int(sample.value)
            for family in text_string_to_metric_families(self.get("/metrics") or "")
            for sample in family.samples
            if sample.name == "tidegraph_stream_records_total"
        }

    def counted(self, windows: str) -> Counter[str]:
        """Return the counts of all windows, by class."""
        counts: Counter[str] = Counter()
        for window in self.json("/classes/").get(windows, []):
            counts.update(window["classes"])
        return counts

    def wait_for(self, windows: str, events: int) -> Counter[str]:
        """Wait until so many events are counted in all windows, and return them by class."""
        name = self.service.name
        wait_until(
            lambda: self.counted(windows).total() >= events, WITHIN_S, f"the counts of {name}"
        )
        return self.counted(windows)

    def ended(self) -> int:
        """Wait for the end and return the exit status."""
        assert self.service.process is not None
        try:
            return self.service.process.wait(WITHIN_S)
        finally:
            self.service.kill()

    def stopped(self) -> int:
        """Tell it to stop; it must have ended in time. Return the exit status."""
        self.service.ask_to_end()
        assert self.service.process is not None
        try:
            return self.service.process.wait(STOP_S)
        finally:
            self.service.kill()

    def log(self) -> str:
        return self.service.log.read_text("utf-8")


@contextmanager
def running(worker: Worker) -> Iterator[Worker]:
    with worker.service:
        yield worker


@pytest.fixture
def topics(kafka: KafkaSettings) -> KafkaSettings:
    """Give a broker with our topics on it."""
    create(kafka)
    return kafka


def interactions(n: int, *, first: int = 0) -> list[tuple[bytes, bytes]]:
    """Return records; of ten, one is a dislike, one repeats the one before, one is no JSON."""
    now_ms = time.time_ns() // 1_000_000
    entries = []
    for number in range(first, first + n):
        same = number - 1 if number % 10 == 7 else number
        user = f"u{same % 13}"
        event = {
            "v": 1,
            "event_id": f"e{same}",
            "user_id": user,
            "item_id": f"i{same % 5}",
            "ts_ms": now_ms + same,
            "signals": {"click": 1, "hate": int(number % 10 == 5)},
        }
        value = b"?" if number % 10 == 9 else json.dumps(event).encode()
        entries.append((user.encode(), value))
    return entries


def send(kafka: KafkaSettings, entries: Sequence[tuple[bytes, bytes]]) -> None:
    with closing(KafkaLog(kafka)) as log:
        log.append(INTERACTIONS, entries, timestamp_ms=time.time_ns() // 1_000_000)


def committed(kafka: KafkaSettings) -> Accounting:
    commits = read_commits(kafka, "stream").values()
    return sum((commit.accounting for _, commit in commits), Accounting())


def n_feedback(kafka: KafkaSettings, expected: int) -> int:
    """Read the feedback to its end."""
    with closing(KafkaLog(kafka)) as log:
        positions, n = log.start(FEEDBACK), 0

        def all_read() -> bool:
            nonlocal n
            for record in log.read(FEEDBACK, positions, limit=10_000):
                positions[record.partition] = record.offset + 1
                n += 1
            return n >= expected and log.lag(FEEDBACK, positions) == 0

        wait_until(all_read, WITHIN_S, f"{expected} feedback records, got {n}")
        return n


@pytest.mark.slow
def test_what_comes_is_typed_counted_and_shown(topics: KafkaSettings, tmp_path: Path) -> None:
    n = 2_000
    with running(Worker(topics, tmp_path)) as worker:
        send(topics, interactions(n))
        wait_until(lambda: sum(worker.totals().values()) == n, WITHIN_S, "the records")
        totals = worker.totals()
        exact = committed(topics)
        assert totals == {name: getattr(exact, name) for name in totals}
        assert totals == {
            "feedback": 1_600,
            "no_signal": 0,
            "duplicate": 200,
            "late": 0,
            "dead": 200,
        }
        assert n_feedback(topics, 1_600) == 1_600

        classes = Counter(explicit_negative=200, implicit_positive=1_400)
        assert worker.wait_for("minutes", 1_600) == classes
        assert worker.wait_for("hours", 1_600) == classes
        state = worker.json("/state/")
        assert Counter(state["classes"]) == classes
        assert state["lag"] == 0
        assert json.loads(worker.get("/healthz") or "") == {"health": "ok"}
        assert f"{topics.prefix}stream" in (worker.get("/") or "")
        assert worker.stopped() == 0
    assert "web view at http://127.0.0.1" in worker.log()
    assert "Traceback" not in worker.log()


@pytest.mark.slow
def test_every_worker_shows_the_counts_of_all_and_those_from_before(
    topics: KafkaSettings, tmp_path: Path
) -> None:
    with running(Worker(topics, tmp_path, name="before")) as before:
        send(topics, interactions(1_000))
        before.wait_for("hours", 800)
        assert before.stopped() == 0
    by_faust = [sys.executable, "-m", "faust", "-A", "stream.app", "worker"]
    with (
        running(Worker(topics, tmp_path, name="one")) as one,
        running(Worker(topics, tmp_path, name="other", command=by_faust)) as other,
    ):
        send(topics, interactions(1_000, first=1_000))
        for worker in (one, other):
            worker.wait_for("minutes", 1_600)
        # Counts of before may reach one sooner than the other while partitions move.
        wait_until(lambda: one.counted("hours") == other.counted("hours"), WITHIN_S, "the same")
        one.service.kill()
        send(topics, interactions(1_000, first=2_000))
        wait_until(lambda: committed(topics).in_ == 3_000, WITHIN_S, "the one that is left")
        # At least: faust's tables may count again what a killed worker had not marked as counted.
        other.wait_for("minutes", 2_400)
        assert other.stopped() == 0


@pytest.mark.slow
def test_a_stop_while_it_starts_is_a_stop(topics: KafkaSettings, tmp_path: Path) -> None:
    worker = Worker(topics, tmp_path)
    worker.service.launch()
    wait_until(
        lambda: worker.service.log.exists() and "web view" in worker.log(), WITHIN_S, "the start"
    )
    assert worker.stopped() == 0


@contextmanager
def frozen(broker: Service) -> Iterator[None]:
    """Let the broker stand still: connections stay, and nothing is answered."""
    assert broker.process is not None
    if broker.container:
        subprocess.run(["docker", "pause", broker.container], check=True, capture_output=True)
    else:
        broker.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        if broker.container:
            subprocess.run(["docker", "unpause", broker.container], check=True, capture_output=True)
        else:
            broker.process.send_signal(signal.SIGCONT)


@pytest.mark.slow
def test_the_watchdog_ends_a_process_that_does_not_get_on(tmp_path: Path) -> None:
    kafka, broker = prepare_broker(
        KafkaSettings(servers=("127.0.0.1:0",), partitions=2), tmp_path / "kafka"
    )
    assert broker is not None
    with broker:
        create(kafka)
        with running(Worker(kafka, tmp_path, watchdog_s=5.0, batch=16)) as worker:
            wait_until(lambda: bool(worker.json("/state/").get("tables_ready")), WITHIN_S, "tables")
            send(kafka, interactions(20_000))  # a thousand transactions: most are still to come
            wait_until(lambda: worker.json("/state/").get("lag", 0) > 0, WITHIN_S, "a batch")
            with frozen(broker):
                assert worker.ended() == 1
    assert "Error: watchdog: " in worker.log()
    assert "stream.watchdog_s is 5" in worker.log()


@pytest.mark.slow
def test_it_works_over_tls_with_a_password(secure_kafka: KafkaSettings, tmp_path: Path) -> None:
    create(secure_kafka)
    with running(Worker(secure_kafka, tmp_path)) as worker:
        send(secure_kafka, interactions(100))
        assert worker.wait_for("minutes", 80).total() == 80
        assert worker.stopped() == 0
    wrong = msgspec.structs.replace(secure_kafka, password="wrong")
    refused = Worker(wrong, tmp_path, name="refused")
    refused.service.launch()
    assert refused.ended() == 2
    assert "refuses the login of tide" in refused.log()
    assert "Traceback" not in refused.log()


def test_without_a_broker_it_says_so_and_ends(tmp_path: Path) -> None:
    worker = Worker(KafkaSettings(servers=(f"127.0.0.1:{free_port()}",)), tmp_path)
    worker.service.launch()
    assert worker.ended() == 1
    assert "no broker answers at 127.0.0.1" in worker.log()
    assert "Traceback" not in worker.log()


def test_without_its_topics_it_says_how_they_are_made(kafka: KafkaSettings, tmp_path: Path) -> None:
    worker = Worker(kafka, tmp_path)
    worker.service.launch()
    assert worker.ended() == 2
    assert "`tidegraph topics create`" in worker.log()
    assert "Traceback" not in worker.log()


def test_a_worker_that_fails_ends_the_process_with_its_message(
    topics: KafkaSettings, tmp_path: Path
) -> None:
    name = topics.topic(INTERACTIONS)
    send(topics, interactions(100))
    somebody = Consumer(librdkafka(topics) | {"group.id": topics.topic("stream")})
    offsets = [TopicPartition(name, number, 1) for number in (0, 1)]

    def commits() -> bool:
        try:
            somebody.commit(offsets=offsets, asynchronous=False)
        except KafkaException:  # the coordinator of a new group may take a moment
            return False
        return True

    try:
        wait_until(commits, WITHIN_S, "the commit of somebody else")
    finally:
        somebody.close()
    worker = Worker(topics, tmp_path)
    worker.service.launch()
    assert worker.ended() == 1
    assert "Error: " in worker.log()
    assert "the committed offset is not by a stream worker" in worker.log()
    assert "Traceback" not in worker.log()


def test_a_port_in_use_is_the_users_mistake(topics: KafkaSettings, tmp_path: Path) -> None:
    worker = Worker(topics, tmp_path)
    with socket.create_server(("", worker.port)):
        worker.service.launch()
        assert worker.ended() == 2
    assert f"cannot listen on port {worker.port}" in worker.log()


def test_fausts_command_line_knows_the_app(tmp_path: Path) -> None:
    worker = Worker(KafkaSettings(), tmp_path)  # nothing connects to it
    for command, told in (("tables", "classes-by-minute"), ("agents", "count-classes")):
        answer = subprocess.run(
            [sys.executable, "-m", "faust", "-A", "stream.app", command],
            cwd=ROOT,
            env=worker.service.environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=WITHIN_S,
        )
        assert told in answer.stdout


def test_the_command_does_not_import_faust_before_it_runs() -> None:
    code = "import sys, stream.app_command; sys.exit('faust' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=WITHIN_S)
