"""The servers that the tests start are what they say."""

from __future__ import annotations

import pytest
import redis

from deploy.service import wait_until
from stream.settings import RedisSettings
from tests.redis_server import Servers


def test_a_redis_with_a_password_turns_others_away(redis_with_password: RedisSettings) -> None:
    url = redis_with_password.url
    with redis.Redis.from_url(url) as client, pytest.raises(redis.AuthenticationError):
        client.ping()
    login = redis_with_password.password
    with redis.Redis.from_url(url, password=login) as client:
        assert client.ping()


def test_a_redis_with_tls_is_trusted_through_its_authority_only(redis_tls: RedisSettings) -> None:
    with redis.Redis.from_url(redis_tls.url, ssl_ca_certs=redis_tls.ca_file) as client:
        assert client.ping()
    with redis.Redis.from_url(redis_tls.url) as client, pytest.raises(redis.ConnectionError):
        client.ping()


def test_a_cluster_spreads_keys_over_three_nodes(redis_cluster: RedisSettings) -> None:
    first = redis_cluster.url.removeprefix("redis+cluster://").split(",")[0]
    with redis.RedisCluster.from_url(f"redis://{first}") as client:
        for number in range(100):
            client.set(f"spread:{number}", number)
        nodes = client.get_primaries()
        assert len(nodes) == 3
        assert all(client.dbsize(target_nodes=node) for node in nodes)


@pytest.mark.slow
def test_a_sentinel_makes_the_replica_master(redis_sentinel: Servers) -> None:
    port = int(redis_sentinel.settings.url.split(":")[2].split("/")[0])
    with redis.Redis(port=port) as watcher:
        before = watcher.sentinel_get_master_addr_by_name("tide")
        redis_sentinel.services[0].kill()
        wait_until(
            lambda: watcher.sentinel_get_master_addr_by_name("tide") != before,
            30.0,
            "the sentinel to choose another master",
        )
