"""Tables to test: one in memory, and one in each kind of Redis under a namespace of its own."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator

import msgspec
import pytest
import redis

from serving.redis_table import RedisTable, open_table
from serving.table import MemoryTable, Table
from stream.settings import RedisSettings
from tests import redis_server

Connect = Callable[[], RedisTable]
KINDS = {
    "plain": "redis_url",
    "password": "redis_with_password",
    "tls": "redis_tls",
    "sentinel": "watched_redis",
    "cluster": "redis_cluster",
}
"""Each kind of Redis and the fixture that gives it."""


@pytest.fixture
def namespace(redis_url: str) -> Iterator[str]:
    """Give a namespace nobody else uses, and remove what was written under it."""
    name = f"test-{uuid.uuid4().hex}"
    yield name
    with redis.Redis.from_url(redis_url) as client:
        if keys := list(client.scan_iter(f"{name}:*")):
            client.unlink(*keys)


@pytest.fixture(scope="session")
def watched_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisSettings]:
    """Run a master, its replica and a sentinel, for tests that leave them running."""
    with redis_server.redis_sentinel(tmp_path_factory.mktemp("redis-sentinel")) as servers:
        yield servers.settings


@pytest.fixture(params=KINDS)
def redis_settings(request: pytest.FixtureRequest, namespace: str) -> RedisSettings:
    """Give the settings of each kind of Redis, under a namespace of its own."""
    return _settings(request, request.param, namespace)


@pytest.fixture(params=["memory", *KINDS])
def table(request: pytest.FixtureRequest, namespace: str) -> Table:
    """Give an empty table of each kind."""
    if request.param == "memory":
        return MemoryTable()
    return open_table(_settings(request, request.param, namespace))


def _settings(request: pytest.FixtureRequest, kind: str, namespace: str) -> RedisSettings:
    if kind == "plain":
        return RedisSettings(url=request.getfixturevalue("redis_url"), namespace=namespace)
    # Only the fixture that is asked for starts its servers.
    settings: RedisSettings = request.getfixturevalue(KINDS[kind])
    return msgspec.structs.replace(settings, namespace=namespace)


@pytest.fixture
def redis_table(redis_url: str, namespace: str) -> Connect:
    """Give a way to connect to the same table in Redis as often as a test wants."""
    return lambda: RedisTable(redis_url, namespace=namespace)
