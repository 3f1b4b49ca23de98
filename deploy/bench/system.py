"""The real processes that benches measure: borrowed or started, watched and ended."""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit
from urllib.request import urlopen

import msgspec
import psutil
from confluent_kafka.admin import AdminClient
from prometheus_client.parser import text_string_to_metric_families

from deploy.local import broker, redis_server
from deploy.service import Service, free_port
from replay.player import Entry
from stream import topics
from stream.errors import ServiceFailed
from stream.kafka import KafkaLog, librdkafka
from stream.settings import KafkaSettings, RedisSettings, Settings, as_environment, load_settings
from stream.topics import INTERACTIONS

BATCH: Final = 8_192
"""Records of one append when nothing is waited for."""


@contextmanager
def borrowed(config: Path | None, folder: Path) -> Iterator[Settings]:
    """Give settings of a broker and a Redis that answer.

    Parameters
    ----------
    config
        Names the servers; without it they are started for as long, on free ports.
    folder
        Of what is started.

    """
    if config is not None:
        yield load_settings(config)
        return
    with (
        broker(KafkaSettings(servers=("127.0.0.1:0",)), folder / "kafka") as kafka,
        redis_server(RedisSettings(url="redis://127.0.0.1:0/0"), folder / "redis") as redis,
    ):
        yield Settings(kafka=kafka, redis=redis)


@contextmanager
def own(settings: Settings, folder: Path) -> Iterator[Settings]:
    """Give settings with topics, a namespace, ports and a folder that nobody else uses.

    The topics are deleted afterwards.
    """
    name = f"bench-{uuid.uuid4().hex[:8]}"
    settings = msgspec.structs.replace(
        settings,
        kafka=msgspec.structs.replace(settings.kafka, prefix=f"{name}."),
        redis=msgspec.structs.replace(settings.redis, namespace=name),
        stream=msgspec.structs.replace(settings.stream, rules="kuairand", port=free_port()),
        learner=msgspec.structs.replace(
            settings.learner, snapshots=str(folder / f"snapshots-{name}"), port=free_port()
        ),
        serving=msgspec.structs.replace(settings.serving, port=free_port()),
    )
    topics.create(settings.kafka)
    try:
        yield settings
    finally:
        admin = AdminClient(librdkafka(settings.kafka))
        for answer in admin.delete_topics(
            [settings.kafka.topic(topic) for topic in topics.TOPICS]
        ).values():
            with suppress(Exception):
                answer.result()


def append(log: KafkaLog, entries: Sequence[Entry]) -> None:
    """Append records to ``interactions``, as fast as the broker takes them."""
    for first in range(0, len(entries), BATCH):
        log.append(INTERACTIONS, entries[first : first + BATCH], timestamp_ms=0)


def worker(
    command: str, settings: Settings, folder: Path, *, port: int, page: str, says: str
) -> Service:
    """Return a command of tidegraph as a program: it is ready when a page of it says something.

    Parameters
    ----------
    command
        The command's name.
    settings
        What it gets to know, by its environment.
    folder
        Of its log; its working directory.
    port, page, says
        Where it answers, and what.

    """
    return Service(
        command,
        [sys.executable, "-m", "tidegraph", command],
        folder,
        answers=lambda: _says(port, page, says),
        environment=as_environment(settings),
    )


@contextmanager
def served(settings: Settings, folder: Path) -> Iterator[tuple[Service, float]]:
    """Run the API; give it, and how many seconds it took until it was ready."""
    port = settings.serving.port
    service = worker("serve", settings, folder, port=port, page="/readyz", says="ready")
    began_s = time.perf_counter()
    with service:
        yield service, time.perf_counter() - began_s


@contextmanager
def workers(settings: Settings, folder: Path) -> Iterator[dict[str, psutil.Process]]:
    """Run a stream worker and a learner; give all four processes, or those that are of here."""
    stream = worker(
        "stream",
        settings,
        folder,
        port=settings.stream.port,
        page="/metrics",
        says="tidegraph_stream",
    )
    learner = worker(
        "learn", settings, folder, port=settings.learner.port, page="/healthz", says="ready"
    )
    with stream, learner:
        assert stream.process is not None
        assert learner.process is not None
        yield servers(settings) | {
            "stream": psutil.Process(stream.process.pid),
            "learner": psutil.Process(learner.process.pid),
        }
        for service in (stream, learner):
            if not service.is_running():
                raise ServiceFailed(f"tidegraph {service.name} ended; {service.last_words()}")


def servers(settings: Settings) -> dict[str, psutil.Process]:
    """Return the broker and the Redis of the settings, where they are processes of this machine."""
    address = settings.kafka.servers[0]
    ports = {
        "broker": int(address.rpartition(":")[2]),
        "redis": urlsplit(settings.redis.url).port or 6379,
    }
    found = {}
    with suppress(psutil.AccessDenied):
        for connection in psutil.net_connections("tcp"):
            if connection.status != psutil.CONN_LISTEN or connection.pid is None:
                continue
            for name, port in ports.items():
                if connection.laddr and connection.laddr.port == port:
                    found[name] = psutil.Process(connection.pid)
    return found


def cpu_s(processes: Mapping[str, psutil.Process]) -> dict[str, float]:
    """Return the CPU seconds that each process has used, its ended children included."""
    used = {}
    for name, each in processes.items():
        times = each.cpu_times()
        used[name] = times.user + times.system + times.children_user + times.children_system
    return used


def scrape(port: int) -> dict[str, float]:
    """Return what a worker tells Prometheus: by name, and by name and label values."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    return {
        ".".join(
            [sample.name, *(value for _, value in sorted(sample.labels.items()))]
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def _says(port: int, page: str, wanted: str) -> bool:
    try:
        with urlopen(f"http://127.0.0.1:{port}{page}", timeout=2) as answer:
            return wanted in answer.read().decode()
    except OSError:
        return False
