"""A real Redis for the tests, from wherever this machine can give one."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import redis
from redis.backoff import ConstantBackoff
from redis.exceptions import ConnectionError as NoConnection
from redis.retry import Retry

ADDRESS = "TIDEGRAPH_TEST_REDIS"
"""Environment variable with the address of a Redis that the tests may write to."""

HELP = (
    "the tests need a Redis and this machine gives none: set "
    f"{ADDRESS}=redis://host:port/db, start Docker, or install redis-server"
)


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """Give the address of a Redis that answers: named, in a container, or started in ``folder``.

    Raises
    ------
    RuntimeError
        If there is none and none can be installed. Tests must then fail, not be skipped.

    """
    with ExitStack() as stack:
        if named := os.environ.get(ADDRESS):
            url = named
        elif docker_answers():
            url = stack.enter_context(container())
        else:
            program = shutil.which("redis-server") or install()
            url = stack.enter_context(process(program, folder))
        wait_for(url)
        yield url


def docker_answers() -> bool:
    """Tell whether a Docker engine is there to run containers."""
    if shutil.which("docker") is None:
        return False
    asked = subprocess.run(["docker", "info"], capture_output=True, check=False, timeout=60)
    return asked.returncode == 0


@contextmanager
def container() -> Iterator[str]:
    """Run Redis in a container."""
    from testcontainers.community.redis import RedisContainer

    with RedisContainer("redis:7-alpine") as running:
        host, port = running.get_container_host_ip(), running.get_exposed_port(6379)
        yield f"redis://{host}:{port}/0"


@contextmanager
def process(program: str, folder: Path) -> Iterator[str]:
    """Run a redis-server of this machine, without files."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", "."]
    with (folder / "redis.log").open("wb") as log:
        server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    try:
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        server.terminate()
        server.wait(timeout=30)


def install() -> str:
    """Install the distribution's redis-server and return its path."""
    as_root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    package = ["install", "-y", "--no-install-recommends", "redis-server"]
    for arguments in (["update"], package):
        command = [*as_root, "apt-get", *arguments]
        try:
            subprocess.run(command, env=environment, check=True, timeout=600)
        except (OSError, subprocess.SubprocessError) as error:
            raise RuntimeError(f"{HELP} ({error})") from error
    program = shutil.which("redis-server")
    if program is None:
        raise RuntimeError(HELP)
    return program


def wait_for(url: str) -> None:
    """Return when the server answers."""
    retry = Retry(ConstantBackoff(0.1), retries=300, supported_errors=(NoConnection,))
    with redis.Redis.from_url(url, retry=retry) as client:
        client.ping()
