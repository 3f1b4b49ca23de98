"""A broker and a Redis on this machine: one that answers, in a container, or a local program."""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

import msgspec
import redis as redis_py
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from deploy.service import Service, docker_answers, free_port, listens
from stream.errors import BadSettings
from stream.kafka import librdkafka
from stream.settings import KafkaSettings, RedisSettings

KAFKA_VERSION: Final = "4.3.0"
REDIS_IMAGE: Final = "redis:7-alpine"
OLDEST_REDIS: Final = 7
OLDEST_JAVA: Final = 17

_HERE: Final = {"127.0.0.1", "localhost"}
_POM: Final = Path(__file__).parent / "kafka" / "pom.xml"
_PULL_S: Final = 600
"""Time for what comes from the network: an image, or the broker's libraries (54 MB)."""

# The second compiler would take a core for itself for minutes, on a machine that has few.
_JVM: Final = (
    "-Xms128m",
    "-Xmx512m",
    "-XX:TieredStopAtLevel=1",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
)

# A broker on its own, on a small machine. Topics are made on purpose only: a misspelt name must
# not become a topic.
_PROPERTIES: Final = {
    "process.roles": "broker,controller",
    "node.id": "1",
    # After a crash the broker is let in again when its former session has run out.
    "broker.heartbeat.interval.ms": "1000",
    "broker.session.timeout.ms": "4000",
    "controller.listener.names": "CONTROLLER",
    "auto.create.topics.enable": "false",
    "group.initial.rebalance.delay.ms": "0",
    "log.cleaner.dedupe.buffer.size": str(16 << 20),
    "num.io.threads": "2",
    "num.network.threads": "2",
    "offsets.topic.num.partitions": "4",
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    # Readers wait for a transaction whose writer was killed; look for such ones each second.
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
}


@contextmanager
def broker(kafka: KafkaSettings, folder: Path) -> Iterator[KafkaSettings]:
    """Give the settings of a broker that answers, started for as long where there is none.

    Parameters and errors are those of :func:`prepare_broker`.
    """
    kafka, service = prepare_broker(kafka, folder)
    if service is None:
        yield kafka
    else:
        with service:
            yield kafka


@contextmanager
def redis_server(redis: RedisSettings, folder: Path) -> Iterator[RedisSettings]:
    """Give the settings of a Redis that answers, started for as long where there is none.

    Parameters and errors are those of :func:`prepare_redis`.
    """
    redis, service = prepare_redis(redis, folder)
    if service is None:
        yield redis
    else:
        with service:
            yield redis


def prepare_broker(
    kafka: KafkaSettings,
    folder: Path,
    *,
    properties: Mapping[str, str] | None = None,
    format_arguments: Sequence[str] = (),
) -> tuple[KafkaSettings, Service | None]:
    """Return the settings of a broker, and the service to start where none answers there.

    The service is an Apache Kafka in KRaft mode, in a container or from its Maven artefacts. It can
    be stopped and started again: its data, in ``folder``, and its address stay.

    Parameters
    ----------
    kafka
        Where to look; port 0 is any free one.
    folder
        Of its data and log.
    properties
        Put over our ``server.properties``, as a listener with TLS needs them.
    format_arguments
        Of the tool that prepares the data folder, as for users that exist from the start.

    Raises
    ------
    BadSettings
        If nothing answers and no broker can be started here.

    """
    addresses = [_address(server) for server in kafka.servers]
    if broker_listens(kafka):
        return kafka, None
    host, port = addresses[0]
    if len(addresses) > 1 or host not in _HERE:
        raise BadSettings(
            f"no Kafka answers at {', '.join(kafka.servers)}, which is not an address where a "
            f"broker could be started from here; {_three_ways('kafka.servers')}"
        )
    if kafka.security != "PLAINTEXT" and properties is None:
        raise BadSettings(
            f"no Kafka answers at {host}:{port}, and one started here would not speak "
            f"kafka.security={kafka.security}; start yours, or take PLAINTEXT"
        )
    port = port or free_port()
    kafka = msgspec.structs.replace(kafka, servers=(f"{host}:{port}",))
    folder = folder.resolve()
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    container = f"tidegraph-kafka-{port}" if docker_answers() else ""
    if container:
        bind = "0.0.0.0"  # noqa: S104 - inside the container; outside it is 127.0.0.1
        java = _in_container(container, folder, port, "--entrypoint", "java")
        java += [f"apache/kafka:{KAFKA_VERSION}", "-cp", "/opt/kafka/libs/*"]
    else:
        bind = "127.0.0.1"
        java = [_java(), "-cp", f"{_libraries()}/*"]
    controller = f"127.0.0.1:{free_port()}"
    configuration = folder / "server.properties"
    lines = _PROPERTIES | {
        "controller.quorum.voters": f"1@{controller}",
        "listeners": f"{kafka.security}://{bind}:{port},CONTROLLER://{controller}",
        "advertised.listeners": f"{kafka.security}://{host}:{port}",
        "inter.broker.listener.name": kafka.security,
        "listener.security.protocol.map": f"CONTROLLER:PLAINTEXT,{kafka.security}:{kafka.security}",
        "log.dirs": str(data),
    }
    lines |= properties or {}
    configuration.write_text("".join(f"{key}={value}\n" for key, value in lines.items()), "utf-8")
    configuration.chmod(0o600)
    if not (data / "meta.properties").exists():
        # A cluster's name is a UUID in base 64 and must not look like an option.
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().strip("=").replace("-", "a")
        arguments = ["format", "-t", cluster, "-c", str(configuration), *format_arguments]
        _run([*java, "kafka.tools.StorageTool", *arguments], "prepare the broker's data folder")
    command = [*java, *_JVM, "kafka.Kafka", str(configuration)]
    return kafka, Service(
        "kafka", command, folder, answers=lambda: kafka_answers(kafka), container=container
    )


def broker_listens(kafka: KafkaSettings) -> bool:
    """Tell whether something takes connections at one of the brokers' addresses."""
    addresses = [_address(server) for server in kafka.servers]
    return any(port and listens(host, port) for host, port in addresses)


def redis_listens(redis: RedisSettings) -> bool:
    """Tell whether something takes connections at one of the addresses of Redis."""
    return any(port and listens(host, port) for host, port in _redis_servers(redis))


def kafka_answers(kafka: KafkaSettings) -> bool:
    """Tell whether a broker lets us in and names its topics."""
    client = AdminClient(librdkafka(kafka))
    try:
        return bool(client.list_topics(timeout=2.0).brokers)
    except KafkaException:
        return False


def prepare_redis(redis: RedisSettings, folder: Path) -> tuple[RedisSettings, Service | None]:
    """Return the settings of a Redis, and the service to start where none answers there.

    What is published can be published again, so it writes no files but its log.

    Parameters
    ----------
    redis
        Where to look; port 0 is any free one.
    folder
        Of its configuration and log.

    Raises
    ------
    BadSettings
        If nothing answers and no Redis can be started here.

    """
    where = urlsplit(redis.url)
    servers = _redis_servers(redis)
    if redis_listens(redis):
        return redis, None
    host, port = servers[0]
    shown = ", ".join(f"{host}:{port}" for host, port in servers)
    if where.scheme != "redis" or host not in _HERE or where.username:
        raise BadSettings(
            f"no Redis answers at {shown} ({where.scheme}), which is not an address where one "
            f"could be started from here; {_three_ways('redis.url')}"
        )
    port = port or free_port()
    login, at, _ = where.netloc.rpartition("@")
    password = unquote(where.password or "") or redis.password
    url = where._replace(netloc=f"{login}{at}{host}:{port}").geturl()
    redis = msgspec.structs.replace(redis, url=url)
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    container = f"tidegraph-redis-{port}" if docker_answers() else ""
    if container:
        bind = "0.0.0.0"  # noqa: S104 - as above
        program = [*_in_container(container, folder, port), REDIS_IMAGE, "redis-server"]
    else:
        bind = "127.0.0.1"
        program = [_redis_program()]
    lines = [f"port {port}", f"bind {bind}", 'save ""']
    if password:
        escaped = re.sub(r'(["\\\\])', r"\\\1", password)
        lines.append(f'requirepass "{escaped}"')
    elif container:
        lines.append("protected-mode no")
    configuration = folder / "redis.conf"
    configuration.write_text("\n".join([*lines, ""]), "utf-8")
    configuration.chmod(0o600)
    return redis, Service(
        "redis",
        [*program, str(configuration)],
        folder,
        answers=lambda: _redis_answers(redis),
        container=container,
    )


def _redis_servers(redis: RedisSettings) -> list[tuple[str, int]]:
    # Those of a Sentinel or a Cluster are separated by commas.
    servers = urlsplit(redis.url).netloc.rpartition("@")[2].split(",")
    return [_address(server, 6379) for server in servers]


def _redis_answers(redis: RedisSettings) -> bool:
    login = {"password": redis.password} if redis.password else {}
    try:
        with redis_py.Redis.from_url(redis.url, socket_timeout=2.0, **login) as client:
            return bool(client.ping())
    except redis_py.RedisError:
        return False


def _redis_program() -> str:
    program = shutil.which("redis-server")
    if program is None:
        raise BadSettings(f"no Redis: {_three_ways('redis.url')}")
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    version = re.search(r"v=(\d+)", said.stdout)
    if version is None or int(version[1]) < OLDEST_REDIS:
        raise BadSettings(
            f"no Redis: {program} must be of version {OLDEST_REDIS} or newer, and says "
            f"{said.stdout.strip()!r}; {_three_ways('redis.url')}"
        )
    return program


def _java() -> str:
    program = shutil.which("java")
    if program is None:
        raise BadSettings(f"no Kafka: {_three_ways('kafka.servers')}")
    said = subprocess.run([program, "-version"], capture_output=True, text=True, check=False)
    version = re.search(r'version "(\d+)', said.stderr)
    if version is None or int(version[1]) < OLDEST_JAVA:
        raise BadSettings(
            f"no Kafka: {program} must be of version {OLDEST_JAVA} or newer, and says "
            f"{said.stderr.strip()!r}; {_three_ways('kafka.servers')}"
        )
    return program


def _libraries() -> Path:
    """Return the folder of the broker's libraries, fetched once for this user."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tidegraph"
    libraries = cache / f"kafka-{KAFKA_VERSION}"
    if libraries.exists():
        return libraries
    maven = shutil.which("mvn")
    if maven is None:
        raise BadSettings(f"no Kafka: {_three_ways('kafka.servers')}")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as fresh:
        jars = Path(fresh, "libs")
        fetch = [maven, "-q", "-B", "-f", str(_POM), f"-Dkafka.version={KAFKA_VERSION}"]
        fetch += ["dependency:copy-dependencies", f"-DoutputDirectory={jars}"]
        _run(fetch, "fetch the broker's libraries")
        try:
            jars.rename(libraries)
        except OSError:
            # Another process was faster; its copy is as good.
            if not libraries.exists():
                raise
    return libraries


def _run(command: list[str], what: str) -> None:
    try:
        ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_PULL_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BadSettings(f"cannot {what}: {error}; {_three_ways('kafka.servers')}") from error
    if ran.returncode:
        words = "\n  ".join((ran.stdout + ran.stderr).splitlines()[-10:])
        raise BadSettings(f"cannot {what}; {_three_ways('kafka.servers')}\n  {words}")


def _in_container(name: str, folder: Path, port: int, *options: str) -> list[str]:
    user = f"{os.getuid()}:{os.getgid()}"
    mounted = ["--volume", f"{folder}:{folder}", "--workdir", str(folder)]
    published = ["--publish", f"127.0.0.1:{port}:{port}"]
    return [
        *("docker", "run", "--rm", "--init", "--name", name, "--user", user),
        *(*mounted, *published, *options),
    ]


def _address(server: str, default_port: int = 9092) -> tuple[str, int]:
    """Split ``host:port``.

    Examples
    --------
    >>> _address("127.0.0.1:9093"), _address("kafka")
    (('127.0.0.1', 9093), ('kafka', 9092))

    """
    host, colon, port = server.rpartition(":")
    if not colon:
        return server, default_port
    if not port.isdigit():
        raise BadSettings(f"an address is host:port, got {server!r}")
    return host, int(port)


def _three_ways(setting: str) -> str:
    local = {
        "kafka.servers": f"install Java {OLDEST_JAVA} or newer and Maven, with access to Maven "
        "Central on first use",
        "redis.url": f"install redis-server {OLDEST_REDIS} or newer",
    }[setting]
    return f"set {setting} to the address of one that runs, start Docker, or {local}"
