"""The real processes that benches measure: borrowed, started, watched and ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit
from urllib.request import urlopen

import msgspec
import psutil
from confluent_kafka.admin import AdminClient
from prometheus_client.parser import text_string_to_metric_families

from replay.player import Entry
from stream import topics
from stream.errors import LogError
from stream.kafka import KafkaLog, librdkafka
from stream.settings import (
    KafkaSettings,
    RedisSettings,
    Settings,
    as_environment,
    load_settings,
)
from stream.topics import INTERACTIONS

BATCH: Final = 8_192
"""Records of one append when nothing is waited for."""

START_S: Final = 240.0
"""How long a process may take until it is ready."""

STOP_S: Final = 30.0
"""How long it may take to end; then it is killed."""


@contextmanager
def borrowed(config: Path | None, folder: Path) -> Iterator[Settings]:
    """Give settings of a broker and a Redis that answer.

    Parameters
    ----------
    config
        Names the servers; without it they are started for as long.
    folder
        Of what is started.

    """
    with _started(folder) if config is None else nullcontext(load_settings(config)) as settings:
        yield settings


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


@contextmanager
def process(
    arguments: Sequence[str], settings: Settings, folder: Path, *, ready: Callable[[str], bool]
) -> Iterator[psutil.Process]:
    """Run a command of tidegraph as a process: ready when this begins, ended when it ends.

    Parameters
    ----------
    arguments
        The command's name and what follows.
    settings
        What it gets to know, by its environment.
    folder
        Of its log.
    ready
        Tells from its output so far whether it is ready.

    Raises
    ------
    LogError
        If it does not become ready, or ends by itself.

    """
    name, told = arguments[0], folder / f"{arguments[0]}.log"
    with told.open("wb") as output:
        started = subprocess.Popen(
            [sys.executable, "-m", "tidegraph", *arguments],
            env=os.environ | as_environment(settings),
            stdout=output,
            stderr=output,
        )

    def ended() -> bool:
        return started.poll() is not None

    def said() -> str:
        return told.read_text(errors="replace")

    try:
        wait_for(lambda: ended() or ready(said()), START_S, f"tidegraph {name} to start")
        if not ended():
            yield psutil.Process(started.pid)
        if ended():
            raise LogError(f"tidegraph {name} ended: {' '.join(said().splitlines()[-3:])}")
    finally:
        started.send_signal(signal.SIGTERM)
        try:
            started.wait(STOP_S)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()


def wait_for(condition: Callable[[], bool], limit_s: float, what: str) -> None:
    """Return when the condition holds.

    Raises
    ------
    LogError
        If it does not within ``limit_s``.

    """
    until_s = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > until_s:
            raise LogError(f"waited {limit_s:.0f} s for {what}, in vain")
        time.sleep(0.02)


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


def answers(port: int, path: str, wanted: str) -> bool:
    """Tell whether a page of a worker says something."""
    try:
        with urlopen(f"http://127.0.0.1:{port}{path}", timeout=2) as answer:
            return wanted in answer.read().decode()
    except OSError:
        return False


@contextmanager
def workers(settings: Settings, folder: Path) -> Iterator[dict[str, psutil.Process]]:
    """Run a stream worker and a learner; give all four processes, or those that are of here."""
    stream_port, learner_port = settings.stream.port, settings.learner.port

    def streams(_: str) -> bool:
        return answers(stream_port, "/metrics", "tidegraph_stream")

    def learns(_: str) -> bool:
        return answers(learner_port, "/healthz", "ready")

    with (
        process(["stream"], settings, folder, ready=streams) as stream,
        process(["learn"], settings, folder, ready=learns) as learner,
    ):
        yield servers(settings) | {"stream": stream, "learner": learner}


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def _started(folder: Path) -> Iterator[Settings]:
    """Run a broker and a Redis on free ports; the command knows how, and lies above this room."""
    settings = msgspec.structs.replace(
        Settings(),
        kafka=KafkaSettings(servers=(f"127.0.0.1:{free_port()}",)),
        redis=RedisSettings(url=f"redis://127.0.0.1:{free_port()}/0"),
    )
    arguments = ["up", "--services", "--data", str(folder / "services")]
    with process(arguments, settings, folder, ready=lambda output: "ready" in output.split()):
        yield settings
