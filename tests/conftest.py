"""What all tests share: how hypothesis looks for examples, a real Kafka and a real Redis."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from stream.settings import KafkaSettings, RedisSettings
from tests import redis_server
from tests.kafka_broker import fresh_prefix, kafka_broker, secure_broker

# One thread, as every process of ours has: threads that wait for each other make a busy machine
# crawl. Set before torch is imported, and for the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A slow machine is not a defect, and on CI a failure must come again.
hypothesis.settings.register_profile(
    "tidegraph", deadline=None, derandomize="CI" in os.environ, print_blob=True
)
hypothesis.settings.load_profile("tidegraph")


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Give the address of a Redis that answers; without one the tests that need it fail."""
    with redis_server.redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture(scope="session")
def redis_with_password(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisSettings]:
    """Run a Redis that asks for a password."""
    with redis_server.redis_with_password(tmp_path_factory.mktemp("redis-password")) as settings:
        yield settings


@pytest.fixture(scope="session")
def redis_tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisSettings]:
    """Run a Redis that speaks TLS only."""
    with redis_server.redis_tls(tmp_path_factory.mktemp("redis-tls")) as settings:
        yield settings


@pytest.fixture(scope="session")
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisSettings]:
    """Run a cluster of three nodes."""
    with redis_server.redis_cluster(tmp_path_factory.mktemp("redis-cluster")) as servers:
        yield servers.settings


@pytest.fixture
def redis_sentinel(tmp_path: Path) -> Iterator[redis_server.Servers]:
    """Run a master, its replica and a sentinel, for a test that may stop the master."""
    with redis_server.redis_sentinel(tmp_path / "redis-sentinel") as servers:
        yield servers


@pytest.fixture(scope="session")
def kafka_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaSettings]:
    """Run the broker of all tests; without one the tests that need it fail."""
    with kafka_broker(tmp_path_factory.mktemp("kafka")) as kafka:
        yield kafka


@pytest.fixture(scope="session")
def secure_kafka_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaSettings]:
    """Run the broker with TLS and passwords of all tests."""
    with secure_broker(tmp_path_factory.mktemp("secure-kafka")) as kafka:
        yield kafka


@pytest.fixture
def kafka(kafka_session: KafkaSettings) -> KafkaSettings:
    """Give settings with a prefix of their own, two partitions and no topics yet."""
    return fresh_prefix(kafka_session)


@pytest.fixture
def secure_kafka(secure_kafka_session: KafkaSettings) -> KafkaSettings:
    """Give the same for a broker that speaks TLS and asks for a password."""
    return fresh_prefix(secure_kafka_session)
