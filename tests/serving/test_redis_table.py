"""What only Redis can get wrong: other writers, other versions, keys, expiry, no answer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import redis
from redis.crc import key_slot

from serving.redis_table import RedisTable
from serving.rows import Barrier, Covisited, ItemRows, Layout, UserRows
from serving.table import Update
from stream.errors import BadSettings, TableError

Connect = Callable[[], RedisTable]
LAYOUT = Layout(dim=1)
BARRIER = Barrier(step=1, at_ms=60, published_ms=1_000)
FULL = Update(
    barrier=BARRIER,
    users=UserRows(["712"], np.ones((1, 1), np.float32), np.array([60])),
    items=ItemRows(
        ["5239"],
        np.ones((1, 1), np.float32),
        np.ones(1, np.float32),
        np.ones((1, 0)),
        np.array([0]),
    ),
    covisited={"5239": Covisited(["17"], np.ones(1, np.float32), 0)},
    seen={"712": ["5239"]},
    weights={"gate": np.ones(1)},
)


@pytest.fixture
def client(redis_url: str) -> redis.Redis:
    return redis.Redis.from_url(redis_url)


def flipped(table: RedisTable) -> RedisTable:
    table.begin(LAYOUT)
    table.publish(FULL)
    table.flip()
    return table


def test_another_process_reads_what_was_published(redis_table: Connect) -> None:
    flipped(redis_table())
    assert redis_table().reader().users(["712"]).ts_ms.tolist() == [60]


def test_a_learner_that_was_replaced_is_refused(redis_table: Connect) -> None:
    old = flipped(redis_table())
    flipped(redis_table())
    with pytest.raises(TableError, match="epoch 1 was replaced by epoch 2"):
        old.publish(FULL)
    with pytest.raises(TableError, match="epoch 1 was replaced by epoch 2"):
        old.flip()


def test_a_learner_that_began_later_but_has_not_flipped_disturbs_nobody(
    redis_table: Connect,
) -> None:
    first, second = flipped(redis_table()), redis_table()
    second.begin(LAYOUT)
    second.publish(Update(barrier=BARRIER, gone_users=["712"]))
    first.publish(FULL)
    assert redis_table().reader().users(["712"]).ids == ["712"]


def test_another_row_layout_is_refused_by_readers_and_writers(
    redis_table: Connect, client: redis.Redis, namespace: str
) -> None:
    client.set(f"{namespace}:head", b'{"row_layout":2,"epoch":9,"shape":"unheard of"}')
    refusal = "holds row layout 2 .* reads and writes 1: use the matching version"
    with pytest.raises(TableError, match=refusal):
        redis_table().reader()
    with pytest.raises(TableError, match=refusal):
        redis_table().begin(LAYOUT)


def test_what_belongs_to_one_id_lies_in_one_slot_of_a_cluster(
    redis_table: Connect, client: redis.Redis, namespace: str
) -> None:
    flipped(redis_table())
    keys = [key.removeprefix(namespace.encode()) for key in client.scan_iter(f"{namespace}:*")]
    assert sorted(keys) == [
        b":e1:barrier",
        b":e1:items",
        b":e1:weights",
        b":e1:{i:5239}",
        b":e1:{i:5239}:covisited",
        b":e1:{u:712}",
        b":e1:{u:712}:seen",
        b":epochs",
        b":head",
    ]
    slots = {key: key_slot(key) for key in keys}
    assert slots[b":e1:{u:712}"] == slots[b":e1:{u:712}:seen"]
    assert slots[b":e1:{i:5239}"] == slots[b":e1:{i:5239}:covisited"]


def test_after_a_flip_the_rows_of_the_epoch_before_run_out_after_its_barrier(
    redis_table: Connect, client: redis.Redis, namespace: str
) -> None:
    flipped(redis_table())
    flipped(redis_table())
    barrier_s = client.ttl(f"{namespace}:e1:barrier")
    row_s = client.ttl(f"{namespace}:e1:{{u:712}}")
    assert isinstance(barrier_s, int)
    assert isinstance(row_s, int)
    assert 0 < barrier_s < row_s
    assert client.ttl(f"{namespace}:e2:{{u:712}}") == -1
    assert client.ttl(f"{namespace}:epochs") == -1


def test_a_reader_that_outlives_its_epoch_is_told_and_finds_nobody_unknown(
    redis_table: Connect, client: redis.Redis, namespace: str
) -> None:
    reader = flipped(redis_table()).reader()
    client.delete(f"{namespace}:e1:barrier")
    with pytest.raises(TableError, match="epoch 1 was replaced more than 60 s ago: take a new"):
        reader.users(["712"])


def test_a_row_of_another_size_than_announced_is_an_error(
    redis_table: Connect, client: redis.Redis, namespace: str
) -> None:
    reader = flipped(redis_table()).reader()
    client.set(f"{namespace}:e1:{{i:5239}}", b"short")
    with pytest.raises(TableError, match="the row of '5239' .* want 27 bytes, got 5"):
        reader.items(["5239"])
    client.set(f"{namespace}:e1:{{i:5239}}", b"\x02" + bytes(26))
    with pytest.raises(TableError, match="the row of '5239' .* got 2 and 0"):
        reader.items(["5239"])


def test_an_update_is_refused_whole_when_another_learner_flips_in_between(
    redis_table: Connect, client: redis.Redis, namespace: str
) -> None:
    table, other = flipped(redis_table()), redis_table()
    other.begin(LAYOUT)
    other.publish(FULL)

    def write_while_the_other_flips() -> None:
        with table._transaction() as pipe:
            pipe.set(f"{namespace}:e1:stray", b"")
            other.flip()

    with pytest.raises(TableError, match="just now"):
        write_while_the_other_flips()
    assert not client.exists(f"{namespace}:e1:stray")


def test_a_redis_that_does_not_answer_is_named_without_its_password() -> None:
    table = RedisTable("redis://:secret@127.0.0.1:1/0")
    with pytest.raises(TableError, match=r"redis://127\.0\.0\.1:1/0 does not answer") as caught:
        table.reader()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(("url", "name"), [("http://x", "a"), ("redis://localhost", "a b")])
def test_an_address_or_namespace_that_cannot_be_used_is_the_users_mistake(
    url: str, name: str
) -> None:
    with pytest.raises(BadSettings):
        RedisTable(url, namespace=name)
