"""Each name has one bucket in Redis for all processes, and one in each where Redis is away."""

from __future__ import annotations

import asyncio
import time
import uuid
from pathlib import Path

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from deploy.local import redis_server
from serving.api import limits as limits_module
from serving.api.limits import SHARE_S, Bucket, Limits, capacity
from stream.settings import RedisSettings


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for Redis as long as a slow machine needs."""
    monkeypatch.setattr(limits_module, "_WITHIN_S", 30.0)


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


def settings(url: str) -> RedisSettings:
    return RedisSettings(url=url, namespace=f"limits-{uuid.uuid4().hex}")


async def let_in(limits: Limits, name: str, rate_per_s: float, n: int) -> int:
    return [await limits.take(name, rate_per_s) for _ in range(n)].count(0.0)


@given(
    rate_per_s=st.sampled_from([0.5, 1.0, 3.0, 40.0]),
    gaps_s=st.lists(st.floats(0, 3), min_size=1, max_size=60),
)
def test_no_span_of_time_sees_more_than_the_bucket_and_what_came_in(
    rate_per_s: float, gaps_s: list[float]
) -> None:
    bucket = Bucket(rate_per_s, 0.0)
    now_s = 0.0
    let: list[float] = []
    for gap_s in gaps_s:
        now_s += gap_s
        wait_s = bucket.take(now_s)
        if wait_s == 0:
            let.append(now_s)
        else:
            assert 0 < wait_s <= 1 / rate_per_s
    for first in range(len(let)):
        for last in range(first, len(let)):
            allowed = capacity(rate_per_s) + rate_per_s * (let[last] - let[first])
            assert last - first + 1 <= allowed + 1e-6


@given(
    rate_per_s=st.sampled_from([0.5, 1.0, 3.0, 40.0]),
    asked=st.lists(st.tuples(st.floats(0, 3), st.integers(1, 200)), min_size=1, max_size=60),
)
def test_much_at_once_gets_no_more_than_one_by_one_but_for_the_last(
    rate_per_s: float, asked: list[tuple[float, int]]
) -> None:
    bucket = Bucket(rate_per_s, 0.0)
    now_s = 0.0
    let: list[tuple[float, int]] = []
    for gap_s, n in asked:
        now_s += gap_s
        if bucket.take(now_s) == 0:
            bucket.charge(n - 1)
            let.append((now_s, n))
    for first in range(len(let)):
        for last in range(first, len(let)):
            allowed = capacity(rate_per_s) + rate_per_s * (let[last][0] - let[first][0])
            assert sum(n for _, n in let[first:last]) + 1 <= allowed + 1e-6


def test_what_is_owed_is_paid_to_redis_before_any_process_goes_on(redis_url: str) -> None:
    table, clock = settings(redis_url), Clock()

    async def run() -> None:
        one, other = Limits(table, clock=clock), Limits(table, clock=clock)
        assert await one.take("a", 1) == 0.0
        one.charge("a", 1, 3_000)
        wait_s = await one.take("a", 1)
        assert 2_900 < wait_s <= 3_001
        assert 2_900 < await other.take("a", 1) <= 3_001
        assert await other.take("b", 1) == 0.0
        clock.now_s += wait_s  # Redis's clock did not go on, so it says the same
        assert 2_900 < await one.take("a", 1) <= 3_001
        for each in (one, other):
            each.close()

    asyncio.run(run())
    with redis.Redis.from_url(redis_url) as client:
        left_ms = [client.pttl(key) for key in client.scan_iter(f"{table.namespace}:limit:*")]
        assert max(left_ms) > 2_900_000  # a key that ends is a debt forgiven


def test_what_is_charged_is_taken_from_the_share_first(redis_url: str) -> None:
    async def run() -> None:
        limits = Limits(settings(redis_url), clock=Clock())
        assert await limits.take("a", 100) == 0.0  # of a share of ten
        limits.charge("a", 100, 9)
        assert limits._shares["a", 100].left == 0
        assert limits._shares["a", 100].owed == 0
        limits.close()

    asyncio.run(run())


def test_in_memory_names_are_counted_apart_and_wait_as_told() -> None:
    clock = Clock()

    async def run() -> None:
        limits = Limits(clock=clock)
        assert await let_in(limits, "a", 10, 15) == 10
        assert await let_in(limits, "b", 10, 5) == 5
        wait_s = await limits.take("a", 10)
        assert wait_s == pytest.approx(0.1)
        clock.now_s += wait_s + 1e-9
        assert await let_in(limits, "a", 10, 5) == 1

    asyncio.run(run())


def test_processes_share_one_bucket_in_redis(redis_url: str) -> None:
    table = settings(redis_url)

    async def run() -> list[int]:
        several = [Limits(table) for _ in range(3)]
        started = time.monotonic()
        let = [await let_in(each, "a", 200, 150) for each in several]
        spent_s = time.monotonic() - started
        assert sum(let) <= 200 * (1 + spent_s) + 1
        for each in several:
            each.close()
        return let

    let = asyncio.run(run())
    assert sum(let) >= 200 - 2 * 200 * SHARE_S  # but for the shares that two of them still hold
    assert let[0] == 150


def test_many_that_come_at_once_ask_redis_once_for_each_share(redis_url: str) -> None:
    table = settings(redis_url)

    async def run() -> list[float]:
        limits = Limits(table)
        waits = await asyncio.gather(*(limits.take("a", 50) for _ in range(80)))
        limits.close()
        return waits

    waits = asyncio.run(run())
    assert 50 <= waits.count(0.0) < 80
    assert all(0 <= wait_s <= 1 / 50 + 0.001 for wait_s in waits)


def test_a_name_is_no_part_of_a_redis_key_and_keys_end(redis_url: str) -> None:
    table = settings(redis_url)
    names = ["*", "a b", "}:head{", "\r\nFLUSHALL\r\n", "", "é" * 1_000]

    async def run() -> None:
        limits = Limits(table)
        for name in names:
            assert await limits.take(name, 5) == 0.0
        limits.close()

    asyncio.run(run())
    with redis.Redis.from_url(redis_url) as client:
        keys = sorted(client.scan_iter(f"{table.namespace}:*"))
        assert len(keys) == len(names)
        for key in keys:
            assert len(key.decode()) == len(f"{table.namespace}:limit:") + 32
            assert 0 < client.pttl(key) <= 2_000


def test_where_redis_goes_away_each_process_counts_alone(tmp_path: Path) -> None:
    clock = Clock()

    async def run(url: str) -> tuple[Limits, int]:
        limits = Limits(RedisSettings(url=url), clock=clock)
        return limits, await let_in(limits, "a", 20, 30)

    with redis_server(RedisSettings(url="redis://127.0.0.1:0/0"), tmp_path) as running:
        limits, let = asyncio.run(run(running.url))
    assert let >= 20
    clock.now_s += 60
    assert asyncio.run(let_in(limits, "a", 20, 30)) == 20
    limits.close()


def test_a_redis_that_comes_back_counts_again(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    table = settings(redis_url)

    async def run() -> None:
        limits = Limits(RedisSettings(url="redis://127.0.0.1:1/0"), clock=clock)
        there = Limits(table, clock=clock)
        assert await let_in(limits, "a", 4, 9) == 4
        assert "counting in this process" in caplog.text
        limits._nodes, limits._namespace = there._nodes, table.namespace  # it is there again
        clock.now_s += 60
        assert await let_in(limits, "a", 4, 9) >= 4
        there.close()
        limits.close()

    asyncio.run(run())
    with redis.Redis.from_url(redis_url) as client:
        assert len(list(client.scan_iter(f"{table.namespace}:limit:*"))) == 1
