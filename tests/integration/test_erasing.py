"""A user who asks to be forgotten, over a real broker, a real Redis and a folder of snapshots."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis

from deploy.service import wait_until
from learner.worker import LearnerWorker, Start
from serving.redis_table import RedisTable
from stream import topics
from stream.errors import TableError
from stream.events import Described, Erasure, Interaction, encode
from stream.kafka import KafkaLog
from stream.settings import KafkaSettings, LearnerSettings, Settings, StreamSettings
from stream.topics import INTERACTIONS, USERS
from stream.worker import StreamWorker

pytestmark = pytest.mark.slow

START_MS = 1_650_812_741_000
DEADLINE_S = 300.0
ANNA, OTTO = "anna-who-leaves", "otto-who-stays"


class System:
    """Workers in threads, and where they write."""

    def __init__(self, kafka: KafkaSettings, redis_url: str, folder: Path) -> None:
        topics.create(kafka)
        self.kafka, self.folder, self.url = kafka, folder, redis_url
        self.namespace = kafka.prefix.rstrip(".")
        self.log = KafkaLog(kafka)
        self.sent = 0

    def settings(self, snapshots: Path) -> Settings:
        return Settings(
            kafka=self.kafka,
            stream=StreamSettings(max_future_s=60.0),
            learner=LearnerSettings(
                snapshots=str(snapshots), snapshot_s=3_600, idle_s=0.05, device="cpu"
            ),
        )

    def likes(self, user: str, *items: str) -> None:
        """Let a user click on items, one a second."""
        events = []
        for item in items:
            ts_ms = START_MS + 1_000 * self.sent
            self.sent += 1
            events.append(Interaction(1, f"e{self.sent}", user, item, ts_ms, {"click": 1.0}))
        self.append(INTERACTIONS, user, *map(encode, events))

    def append(self, topic: str, key: str, *values: bytes) -> None:
        self.log.append(topic, [(key.encode(), value) for value in values], timestamp_ms=0)

    @contextmanager
    def typing(self) -> Iterator[None]:
        """Run a stream worker."""
        worker = StreamWorker(self.settings(self.folder))
        with _running(worker.run, worker.stop):
            yield

    @contextmanager
    def learning(self, folder: Path, start: Start = "snapshot") -> Iterator[LearnerWorker]:
        """Run a learner; its last snapshot is written at the end."""
        log = KafkaLog(self.kafka)
        table = RedisTable(self.url, namespace=self.namespace)
        worker = LearnerWorker(self.settings(folder), log, table, start=start)
        try:
            with _running(worker.run, worker.stop):
                yield worker
        finally:
            log.close()

    def in_view(self, user: str) -> tuple[list[str], set[str], dict[str, Any]]:
        """Return what a client reads of a user: rows, what they have seen, attributes."""
        try:
            reader = RedisTable(self.url, namespace=self.namespace).reader()
            rows = list(reader.users([user]).ids)
            return rows, set(reader.seen([user])[user]), reader.user_attributes([user])
        except TableError:
            return [], set(), {}

    def stored(self) -> bytes:
        """Return every key of the table with its value, but for the feed of what changed."""
        client = redis.Redis.from_url(self.url)
        found = []
        for key in client.scan_iter(match=f"{self.namespace}:*", count=1_000):
            kind = client.type(key)
            found += [key]
            if kind == b"string":
                found += [client.get(key) or b""]
            elif kind == b"set":
                found += sorted(client.smembers(key))
        client.close()
        return b"\n".join(found)


@contextmanager
def _running(run: Callable[[], None], stop: Callable[[], None]) -> Iterator[None]:
    failed: list[BaseException] = []

    def work() -> None:
        try:
            run()
        except BaseException as error:  # noqa: BLE001 - it is raised below
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop()
        thread.join(DEADLINE_S)
    assert not thread.is_alive()
    if failed:
        raise failed[0]


def everything(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def system(kafka: KafkaSettings, redis_url: str, tmp_path: Path) -> Iterator[System]:
    made = System(kafka, redis_url, tmp_path)
    yield made
    made.log.close()


def test_who_is_erased_is_nowhere_and_who_comes_back_is_new(system: System, tmp_path: Path) -> None:
    def until(wish: Callable[[], bool], what: str) -> None:
        wait_until(wish, DEADLINE_S, what)

    live, rebuilt = tmp_path / "live", tmp_path / "rebuilt"
    with system.typing():
        with system.learning(live):
            system.likes(OTTO, "i1", "i2", "i3")
            system.likes(ANNA, "i2", "i3", "i4")
            for user in (ANNA, OTTO):
                system.append(USERS, user, encode(Described(1, {"name": user})))
            wanted = [ANNA], {"i2", "i3", "i4"}, {ANNA: {"name": ANNA}}
            until(lambda: system.in_view(ANNA) == wanted, "anna is in view")
        assert ANNA.encode() in everything(live)
        assert ANNA.encode() in system.stored()

        with system.learning(live) as learner:
            system.append(INTERACTIONS, ANNA, encode(Erasure(1, ANNA)))
            system.likes(OTTO, "i4")
            until(lambda: "i4" in system.in_view(OTTO)[1], "what came after is in view")
            until(lambda: system.in_view(ANNA) == ([], set(), {}), "anna is gone")
            until(lambda: ANNA.encode() not in system.stored(), "anna is gone from every key")
        assert learner.graph.users.find([ANNA, OTTO]).tolist() == [-1, 0]
        assert learner.metrics.values["erasures"] == 1
        assert system.in_view(OTTO) == ([OTTO], {f"i{n}" for n in (1, 2, 3, 4)}, _named(OTTO))
        assert ANNA.encode() not in everything(live)
        assert OTTO.encode() in everything(live)

        system.likes(ANNA, "i9")
        system.append(USERS, ANNA, encode(Described(1, {"name": ANNA})))
        back = [ANNA], {"i9"}, _named(ANNA)
        starts: tuple[tuple[Path, Start], ...] = ((live, "snapshot"), (rebuilt, "earliest"))
        for folder, start in starts:
            with system.learning(folder, start) as learner:
                until(partial(_is_ready, learner), "ready")
                until(lambda: system.in_view(ANNA) == back, "anna is back, a new user")
            assert learner.metrics.values["events"] == 8
            row = int(learner.graph.users.find([ANNA])[0])
            seen = learner.graph.seen.of(row)
            assert learner.graph.items.ids_of(seen) == ["i9"]


def _is_ready(learner: LearnerWorker) -> bool:
    return learner.metrics.values["ready"] == 1


def _named(user: str) -> dict[str, Any]:
    return {user: {"name": user}}
