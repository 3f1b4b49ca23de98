"""Asks each part of a running system how it is; what does not answer is down, the rest goes on."""

from __future__ import annotations

import json
import math
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from deploy.service import listens
from graph_store.snapshot import Described, describe, list_snapshots
from learner.saving import snapshot_key
from serving.redis_table import TableInfo, open_table
from stream.commits import Commit, read_commits
from stream.errors import BadSnapshot, LogError, TidegraphError
from stream.kafka import KafkaLog, kafka_python, kafka_python_told
from stream.log import Positions
from stream.settings import KafkaSettings, LearnerSettings, ServingSettings, Settings
from stream.topics import TOPICS

_ANSWER_S: Final = 3.0
"""How long a part may take to answer before it counts as down."""

_T = TypeVar("_T")
_A = TypeVar("_A")


class Down(NamedTuple):
    """A part that does not answer, or is not there."""

    problem: str
    remedy: str


class Broker(NamedTuple):
    """The Kafka that answered."""

    servers: str
    version: str
    nodes: int


class Topic(NamedTuple):
    """One topic, where it begins and ends in each partition; without partitions it is missing."""

    name: str
    start: Positions
    end: Positions
    retention_ms: int | None
    """How long records are kept; ``None`` if the newest of each key is kept for good."""


class Metrics:
    """What a worker tells Prometheus.

    Parameters
    ----------
    text
        In Prometheus' text format.

    Examples
    --------
    >>> metrics = Metrics('a_total{kind="x"} 3\\na_total{kind="y"} 4\\n')
    >>> metrics.value("a_total", kind="y"), metrics.value("b")
    (4.0, None)
    >>> metrics.by("a_total", "kind")
    {'x': 3.0, 'y': 4.0}
    >>> Metrics('b{kind="x",of="1"} 3\\nb{kind="x",of="2"} 4\\n').by("b", "kind")
    {'x': 7.0}

    """

    def __init__(self, text: str) -> None:
        self._samples: dict[tuple[str, frozenset[tuple[str, str]]], float] = {
            (sample.name, frozenset(sample.labels.items())): float(sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float | None:
        """Return a number, or ``None`` where there is none."""
        found = self._samples.get((name, frozenset(labels.items())))
        return None if found is None or math.isnan(found) else found

    def by(self, name: str, label: str) -> dict[str, float]:
        """Return the numbers of a name by the value of a label, summed over the others."""
        found: dict[str, float] = {}
        for (one, labels), value in self._samples.items():
            if one == name and (named := dict(labels).get(label)) is not None:
                found[named] = found.get(named, 0.0) + value
        return found

    def quantile(self, name: str, q: float, **labels: str) -> float | None:
        """Return a quantile of all that has these labels since its start; see :func:`quantile`."""
        wanted = labels.items()
        buckets: dict[float, float] = {}
        for (one, have), count in self._samples.items():
            if one == name + "_bucket" and wanted <= set(have):
                bound = float(dict(have)["le"])
                buckets[bound] = buckets.get(bound, 0.0) + count
        return quantile(buckets, q)


def quantile(buckets: Mapping[float, float], q: float) -> float | None:
    """Return a quantile of cumulative buckets, straight between their bounds as Prometheus does.

    Parameters
    ----------
    buckets
        Upper bound and how many observations are not above it; one bound is infinite.
    q
        From 0 to 1.

    Returns
    -------
    The greatest finite bound where the quantile lies above it; ``None`` without observations.

    Examples
    --------
    >>> quantile({1.0: 2, 2.0: 4, float("inf"): 4}, 0.75)
    1.5

    """
    total = buckets.get(math.inf, 0.0)
    if total == 0:
        return None
    below, start = 0.0, 0.0
    for bound, count in sorted(buckets.items()):
        if count >= q * total and count > below:
            if math.isinf(bound):
                return start
            return start + (bound - start) * max(0.0, q * total - below) / (count - below)
        below, start = count, bound
    return start


class Api(NamedTuple):
    """The API that answered."""

    where: str
    unready: str
    """Why it is not ready; empty if it is."""
    metrics: Metrics | Down


@dataclass(frozen=True, kw_only=True)
class Readings:
    """Everything that was read at one time.

    Parameters
    ----------
    at_s
        When, in seconds since the epoch.
    commits
        Of the stream workers: offset and what it carries, by partition.
    snapshot
        The newest.

    """

    at_s: float
    broker: Broker | Down
    topics: list[Topic] | Down
    commits: dict[int, tuple[int, Commit]] | Down
    stream: Metrics | Down
    learner: Metrics | Down
    api: Api | Down
    table: TableInfo | Down
    snapshot: Described | Down


def read(settings: Settings, api_key: str = "") -> Readings:
    """Ask every part at the same time; takes as long as the slowest, ten seconds at most.

    Parameters
    ----------
    settings
        Where the parts are.
    api_key
        A reader's, without which the API tells no more than whether it is ready, if it has keys.

    """
    with ThreadPoolExecutor(max_workers=6) as pool:
        kafka = pool.submit(_kafka, settings)
        stream = pool.submit(_metrics, settings.stream.port, "stream")
        learner = pool.submit(_metrics, settings.learner.port, "learn")
        api = pool.submit(ask_api, settings.serving, api_key)
        table = pool.submit(_table, settings)
        snapshot = pool.submit(_snapshot, settings.learner)
        broker, topics, commits = kafka.result()
        return Readings(
            at_s=time.time(),
            broker=broker,
            topics=topics,
            commits=commits,
            stream=stream.result(),
            learner=learner.result(),
            api=api.result(),
            table=table.result(),
            snapshot=snapshot.result(),
        )


def _asked(ask: Callable[[_A], _T], argument: _A, remedy: str) -> _T | Down:
    try:
        return ask(argument)
    except TidegraphError as error:
        return Down(str(error), remedy)


def _kafka(
    settings: Settings,
) -> tuple[Broker | Down, list[Topic] | Down, dict[int, tuple[int, Commit]] | Down]:
    remedy = "start it with `tidegraph up`, or set kafka.servers to one that runs"
    found = _asked(_broker, settings.kafka, remedy)
    if isinstance(found, Down):
        waits = Down("unknown, as the broker does not answer", "")
        return found, waits, waits
    broker, configs = found
    # Before the ends of the topics: so what is committed does not lie behind them.
    commits = _asked(lambda group: read_commits(settings.kafka, group), settings.stream.group, "")
    topics = _asked(lambda configs: _topics(settings.kafka, configs), configs, "")
    return broker, topics, commits


def _broker(kafka: KafkaSettings) -> tuple[Broker, dict[str, Any]]:
    """Return the broker, and how those of our topics are set up that are there."""
    from kafka import KafkaAdminClient
    from kafka.admin import ConfigResource

    # kafka-python tries for a long time, and leaves a socket open at each try.
    addresses = [server.rpartition(":") for server in kafka.servers]
    if not any(listens(host, int(port)) for host, _, port in addresses if port.isdigit()):
        raise LogError(f"no broker listens at {', '.join(kafka.servers)}")
    with kafka_python_told(kafka, "asking how it is"):
        admin = KafkaAdminClient(
            **kafka_python(kafka) | {"bootstrap_timeout_ms": int(_ANSWER_S * 1_000)}
        )
        try:
            nodes = admin.describe_cluster()["brokers"]
            version = admin.get_broker_version_data(nodes[0]["broker_id"]).broker_version
            there = {told["name"] for told in admin.describe_topics()}
            resources = [
                ConfigResource("TOPIC", name) for name in map(kafka.topic, TOPICS) if name in there
            ]
            configs: dict[str, Any] = {}
            if resources:
                configs = admin.describe_configs(resources, config_filter="all")["topic"]
        finally:
            admin.close()
    numbers = ".".join(map(str, version))
    return Broker(", ".join(kafka.servers), numbers, len(nodes)), configs


def _topics(kafka: KafkaSettings, configs: Mapping[str, Any]) -> list[Topic]:
    log, topics = KafkaLog(kafka), []
    try:
        for topic in TOPICS:
            config = configs.get(kafka.topic(topic))
            if config is None:
                topics.append(Topic(topic, {}, {}, None))
                continue
            compacted = config["cleanup.policy"]["value"] == "compact"
            kept_ms = int(config["retention.ms"]["value"])
            for_good = compacted or kept_ms < 0
            topics.append(
                Topic(topic, log.start(topic), log.end(topic), None if for_good else kept_ms)
            )
    finally:
        log.close()
    return topics


def _metrics(port: int, command: str) -> Metrics | Down:
    url = f"http://127.0.0.1:{port}/metrics"
    remedy = f"start it with `tidegraph {command}`, or name the port it serves in the settings"
    if port == 0:
        return Down("its port is 0, which is any free one, so it cannot be asked", remedy)
    try:
        with urllib.request.urlopen(url, timeout=_ANSWER_S) as answer:
            return Metrics(answer.read().decode())
    except (OSError, urllib.error.URLError) as error:
        reason = getattr(error, "reason", error)
        return Down(f"no worker answers at {url} ({reason})", remedy)
    except ValueError as error:
        return Down(f"what answers at {url} is no worker of ours: {error}", remedy)


def ask_api(settings: ServingSettings, key: str = "") -> Api | Down:
    """Ask the API of this machine whether it is ready, and for its figures."""
    from serving.server import address  # only here: it brings the server along

    remedy = "start it with `tidegraph serve`, or name the port it serves in the settings"
    if settings.port == 0:
        return Down("its port is 0, which is any free one, so it cannot be asked", remedy)
    anywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - not listened on here
    here = msgspec.structs.replace(settings, host=anywhere.get(settings.host, settings.host))
    where = address(here)
    try:
        trusted = _its_own(settings.cert_file) if settings.cert_file else None
        status, said = _asked_api(f"{where}/readyz", "", trusted)
        unready = "" if status == HTTPStatus.OK else str(json.loads(said)["detail"])
        status, said = _asked_api(f"{where}/metrics", key, trusted)
        if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            why = "the key is not a reader's" if key else "figures want a reader's key"
            return Api(where, unready, Down(why, "put one into TIDEGRAPH_API_KEY"))
        return Api(where, unready, Metrics(said.decode()))
    except OSError as error:
        return Down(f"no API answers at {where} ({getattr(error, 'reason', error)})", remedy)
    except (ValueError, KeyError, TypeError) as error:
        return Down(f"what answers at {where} is no API of ours: {error}", remedy)


def _asked_api(url: str, key: str, trusted: ssl.SSLContext | None) -> tuple[int, bytes]:
    """Return the status and the body of an answer."""
    headers = {"X-API-Key": key} if key else {}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - an address of ours
    try:
        with urllib.request.urlopen(  # noqa: S310 - the same
            request, timeout=_ANSWER_S, context=trusted
        ) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def _its_own(cert_file: str) -> ssl.SSLContext:
    """Return what trusts the API's own certificate and no other: a key goes to nobody else."""
    context = ssl.create_default_context(cafile=cert_file)
    context.check_hostname = False  # it is asked by address
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def _table(settings: Settings) -> TableInfo | Down:
    def ask(settings: Settings) -> TableInfo:
        return open_table(settings.redis).info()

    return _asked(
        ask, settings, "Redis and a learner that publishes are needed; `tidegraph up` starts both"
    )


def _snapshot(settings: LearnerSettings) -> Described | Down:
    remedy = "a learner writes the first one after learner.snapshot_s; is it running, and here?"

    def newest(folder: Path) -> Described:
        there = list_snapshots(folder)
        if not there:
            raise BadSnapshot(f"no snapshot in {folder}")
        return describe(there[0], key=snapshot_key(settings))

    return _asked(newest, Path(settings.snapshots), remedy)
