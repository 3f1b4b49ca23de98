"""Tables to test: one in memory, one in a real Redis under a namespace of its own."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator

import pytest
import redis

from serving.redis_table import RedisTable
from serving.table import MemoryTable, Table


@pytest.fixture
def namespace(redis_url: str) -> Iterator[str]:
    """Give a namespace nobody else uses, and remove what was written under it."""
    name = f"test-{uuid.uuid4().hex}"
    yield name
    with redis.Redis.from_url(redis_url) as client:
        if keys := list(client.scan_iter(f"{name}:*")):
            client.unlink(*keys)


@pytest.fixture(params=["memory", "redis"])
def table(request: pytest.FixtureRequest) -> Table:
    """Give an empty table of each kind."""
    if request.param == "memory":
        return MemoryTable()
    build: Callable[[], RedisTable] = request.getfixturevalue("redis_table")
    return build()


@pytest.fixture
def redis_table(redis_url: str, namespace: str) -> Callable[[], RedisTable]:
    """Give a way to connect to the same table in Redis as often as a test wants."""
    return lambda: RedisTable(redis_url, namespace=namespace)
