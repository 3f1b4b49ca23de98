"""A real Redis for the tests, from wherever this machine can give one; also in its harder forms."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import redis

from deploy import local
from deploy.service import Service, docker_answers, free_port, wait_until
from stream.settings import RedisSettings
from tests.certificates import certificates
from tests.programs import program

ADDRESS: Final = "TIDEGRAPH_TEST_REDIS"
"""Environment variable with the address of a Redis that the tests may write to."""

SLOTS: Final = 16_384
"""Of a cluster: each key falls into one of them."""


class Servers(NamedTuple):
    """Several servers that act as one, and how to reach them."""

    settings: RedisSettings
    services: list[Service]


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """Give the address of a Redis that answers: named, in a container, or started in ``folder``.

    Raises
    ------
    RuntimeError
        If there is none and none can be installed. Tests must then fail, not be skipped.

    """
    if ADDRESS not in os.environ and docker_answers():
        with container() as url:
            yield url
        return
    url = os.environ.get(ADDRESS, "redis://127.0.0.1:0/0")
    if ADDRESS not in os.environ:
        redis_program()
    with local.redis_server(RedisSettings(url=url), folder) as settings:
        yield settings.url


@contextmanager
def container() -> Iterator[str]:
    """Run Redis in a container."""
    from testcontainers.community.redis import RedisContainer

    with RedisContainer(local.REDIS_IMAGE) as running:
        host, port = running.get_container_host_ip(), running.get_exposed_port(6379)
        yield f"redis://{host}:{port}/0"


@contextmanager
def redis_with_password(folder: Path) -> Iterator[RedisSettings]:
    """Run a Redis that asks for a password."""
    redis_program()
    asked = RedisSettings(url="redis://127.0.0.1:0/0", password=secrets.token_hex(8))
    with local.redis_server(asked, folder) as settings:
        yield settings


@contextmanager
def redis_tls(folder: Path) -> Iterator[RedisSettings]:
    """Run a Redis that speaks TLS only, with a certificate of an authority of its own."""
    made = certificates(folder)
    port = free_port()
    lines = [f"tls-port {port}", "tls-auth-clients no", f"tls-ca-cert-file {made.authority}"]
    lines += [f"tls-cert-file {made.certificate}", f"tls-key-file {made.key}"]
    settings = RedisSettings(url=f"rediss://127.0.0.1:{port}/0", ca_file=str(made.authority))
    with process(folder, 0, *lines, ssl_port=port, ssl_ca_certs=str(made.authority)):
        yield settings


@contextmanager
def redis_cluster(folder: Path) -> Iterator[Servers]:
    """Run a cluster of three nodes, each with a third of the slots."""
    ports = [free_port() for _ in range(3)]
    buses = [free_port() for _ in ports]
    with ExitStack() as stack:
        services = []
        for port, bus in zip(ports, buses, strict=True):
            lines = ["cluster-enabled yes", f"cluster-port {bus}", "cluster-node-timeout 2000"]
            services.append(stack.enter_context(process(folder / str(port), port, *lines)))
        clients = [stack.enter_context(redis.Redis(port=port)) for port in ports]
        bounds = [SLOTS * number // len(ports) for number in range(len(ports) + 1)]
        for number, client in enumerate(clients):
            first, last = bounds[number], bounds[number + 1] - 1
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
            client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for port, bus in zip(ports[1:], buses[1:], strict=True):
            clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", port, bus)
        wait_until(
            lambda: (
                all(client.cluster("INFO")["cluster_state"] == "ok" for client in clients)
                and all(len(client.cluster("NODES")) == len(ports) for client in clients)
            ),
            30.0,
            "the cluster to form",
        )
        servers = ",".join(f"127.0.0.1:{port}" for port in ports)
        yield Servers(RedisSettings(url=f"redis+cluster://{servers}"), services)


@contextmanager
def redis_sentinel(folder: Path) -> Iterator[Servers]:
    """Run a master (the first service), its replica and a sentinel, which alone decides."""
    master, replica, sentinel = (free_port() for _ in range(3))
    with ExitStack() as stack:
        services = [
            stack.enter_context(process(folder / "master", master)),
            stack.enter_context(
                process(folder / "replica", replica, f"replicaof 127.0.0.1 {master}")
            ),
        ]
        lines = [f"sentinel monitor tide 127.0.0.1 {master} 1"]
        lines += [
            "sentinel down-after-milliseconds tide 1000",
            "sentinel failover-timeout tide 3000",
        ]
        services.append(
            stack.enter_context(process(folder / "sentinel", sentinel, *lines, sentinel=True))
        )
        watcher = stack.enter_context(redis.Redis(port=sentinel))
        wait_until(
            lambda: (
                len(watcher.sentinel_slaves("tide")) == 1
                and not watcher.sentinel_slaves("tide")[0]["is_sdown"]
            ),
            120.0,
            "the sentinel to know master and replica",
        )
        url = f"redis+sentinel://127.0.0.1:{sentinel}/tide/0"
        yield Servers(RedisSettings(url=url), services)


@contextmanager
def process(
    folder: Path, port: int, *lines: str, sentinel: bool = False, **connection: Any
) -> Iterator[Service]:
    """Run a redis-server of this machine with these lines in its configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    configuration = folder / "redis.conf"
    base = [f"port {port}", "bind 127.0.0.1", f"dir {folder}"]
    if not sentinel:
        base += ['save ""', "repl-diskless-sync-delay 0"]
    configuration.write_text("\n".join([*base, *lines, ""]))
    tls_port = connection.pop("ssl_port", 0)
    if tls_port:
        connection["ssl"] = True

    def answers() -> bool:
        try:
            with redis.Redis(port=tls_port or port, socket_timeout=2.0, **connection) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    command = [redis_program(), str(configuration), *(["--sentinel"] if sentinel else [])]
    with Service("redis", command, folder, answers=answers) as service:
        yield service


def redis_program() -> str:
    """Return the path of redis-server, installed where it is missing."""
    other = f"set {ADDRESS}=redis://host:port/db, start Docker, or "
    return program("redis-server", otherwise=other)
