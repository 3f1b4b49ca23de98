"""What only Redis can get wrong: other writers, other versions, keys, expiry, loss, no answer."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import redis
from redis.crc import key_slot

from deploy.service import wait_until
from serving.redis_nodes import CHUNK, RedisNodes
from serving.redis_table import RedisTable, open_table
from serving.rows import Barrier, Covisited, ItemRows, Layout, UserRows
from serving.table import Update
from stream.errors import BadSettings, TableError, TableLost, TableTaken
from stream.settings import RedisSettings
from tests.redis_server import Servers, redis_cluster

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
    item_attributes={"5239": {"author": "a"}},
    user_attributes={"712": {"age": 30}},
)


@pytest.fixture
def client(redis_url: str) -> redis.Redis:
    return redis.Redis.from_url(redis_url)


def flipped(table: RedisTable) -> RedisTable:
    table.begin(LAYOUT)
    table.publish(FULL)
    table.flip()
    return table


def emptied(settings: RedisSettings) -> None:
    """Lose every key under the namespace, as a Redis does that starts anew."""
    nodes = RedisNodes(settings.url, password=settings.password, ca_file=settings.ca_file)
    for node in nodes.all():
        for key in node.scan_iter(f"{settings.namespace}:*"):
            node.unlink(key)


def at_step(step: int) -> Update:
    """Return the full update with a barrier of its own."""
    return replace(FULL, barrier=Barrier(step=step, at_ms=60, published_ms=1_000))


def test_another_process_reads_what_was_published(redis_table: Connect) -> None:
    flipped(redis_table())
    assert redis_table().reader().users(["712"]).ts_ms.tolist() == [60]


def test_a_learner_that_was_replaced_is_refused(redis_settings: RedisSettings) -> None:
    old, new = open_table(redis_settings), open_table(redis_settings)
    flipped(old)
    flipped(new)
    with pytest.raises(TableTaken, match=r"epoch \d+ was replaced by epoch \d+"):
        old.publish(FULL)
    with pytest.raises(TableTaken, match="another learner has taken over"):
        old.flip()
    new.publish(FULL)


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
    client.set(f"{namespace}:head", b'{"row_layout":1,"epoch":9,"shape":"unheard of"}')
    refusal = "holds row layout 1 .* reads and writes 2: use the matching version"
    with pytest.raises(TableError, match=refusal):
        redis_table().reader()
    with pytest.raises(TableError, match=refusal):
        redis_table().begin(LAYOUT)


def test_what_belongs_to_one_id_lies_in_one_slot_of_a_cluster(
    redis_table: Connect, client: redis.Redis, namespace: str
) -> None:
    epoch = flipped(redis_table()).reader().epoch
    keys = [key.removeprefix(namespace.encode()) for key in client.scan_iter(f"{namespace}:*")]
    of_id = [b"{i:5239}", b"{i:5239}:covisited", b"{u:712}", b"{u:712}:seen"]
    of_epoch = [b"barrier", b"layout", b"changes", b"items", b"users", b"weights", *of_id]
    of_all = [b":epochs", b":flipped", b":head", b":items", b":users"]
    of_all += [b":{i:5239}:attributes", b":{u:712}:attributes"]
    assert sorted(keys) == sorted([*of_all, *(b":e%d:%b" % (epoch, key) for key in of_epoch)])
    slots = [key_slot(b":e%d:%b" % (epoch, key)) for key in of_id]
    assert slots[0] == slots[1] == key_slot(b":{i:5239}:attributes")
    assert slots[2] == slots[3] == key_slot(b":{u:712}:attributes")


def test_the_epoch_before_stays_and_rows_of_an_older_one_run_out_after_its_barrier(
    redis_settings: RedisSettings,
) -> None:
    old = flipped(open_table(redis_settings)).reader().epoch
    before = flipped(open_table(redis_settings)).reader().epoch
    new = flipped(open_table(redis_settings)).reader().epoch
    prefix = redis_settings.namespace
    nodes = RedisNodes(
        redis_settings.url, password=redis_settings.password, ca_file=redis_settings.ca_file
    )
    names = ["barrier", "{u:712}", "{u:712}:seen", "{i:5239}", "{i:5239}:covisited", "weights"]
    barrier_s, *rows_s = nodes.run([("TTL", f"{prefix}:e{old}:{name}") for name in names])
    assert 0 < barrier_s < min(rows_s)
    kept = [("TTL", f"{prefix}:e{epoch}:{name}") for epoch in (before, new) for name in names]
    kept += [("TTL", f"{prefix}:{name}") for name in ("epochs", "{i:5239}:attributes")]
    assert nodes.run(kept) == [-1] * len(kept)


def test_what_one_process_pins_another_is_given_until_it_is_gone(
    redis_settings: RedisSettings,
) -> None:
    first = flipped(open_table(redis_settings)).reader().epoch
    learner = flipped(open_table(redis_settings))
    newest = learner.reader().epoch
    open_table(redis_settings).pin(first)
    assert open_table(redis_settings).reader().epoch == learner.reader().epoch == first
    learner.publish(at_step(2))  # it is not taken over
    nodes = RedisNodes(
        redis_settings.url, password=redis_settings.password, ca_file=redis_settings.ca_file
    )
    nodes.run([("UNLINK", f"{redis_settings.namespace}:e{first}:barrier")])
    assert learner.reader().epoch == newest
    assert [(each.epoch, each.in_view) for each in learner.epochs()] == [(newest, True)]


def test_an_epoch_that_is_named_outlives_whoever_named_it(redis_settings: RedisSettings) -> None:
    first = flipped(open_table(redis_settings)).reader().epoch
    operator = open_table(redis_settings)
    operator.keep([first])
    operator.close()
    for _ in range(3):
        flipped(open_table(redis_settings))  # a learner that begins anew each time
    nodes = RedisNodes(
        redis_settings.url, password=redis_settings.password, ca_file=redis_settings.ca_file
    )
    names = ["barrier", "layout", "{u:712}", "{u:712}:seen", "{i:5239}", "weights"]
    keys = [f"{redis_settings.namespace}:e{first}:{name}" for name in names]
    assert nodes.run([("TTL", key) for key in keys]) == [-1] * len(keys)
    reader = open_table(redis_settings).reader(first)
    assert (reader.epoch, reader.users(["712"]).ids) == (first, ["712"])


def test_a_flip_that_failed_half_way_names_no_epoch_that_never_came_into_view(
    redis_table: Connect, client: redis.Redis, namespace: str
) -> None:
    table = flipped(redis_table())
    later = table.begin(LAYOUT)
    table.publish(FULL)
    client.sadd(f"{namespace}:flipped", later)
    assert [each.epoch for each in table.epochs()] == [later - 1]
    with pytest.raises(TableError, match=f"epoch {later} is not kept"):
        table.pin(later)


def test_a_follower_of_a_redis_that_went_back_to_an_older_state_is_told_to_read_everything(
    redis_table: Connect, client: redis.Redis, namespace: str
) -> None:
    table = flipped(redis_table())
    reader = table.reader()
    key = f"{namespace}:e{reader.epoch}:changes"
    kept = client.dump(key)
    assert kept is not None
    table.publish(at_step(2))
    cursor = reader.cursor()
    client.restore(key, 0, kept, replace=True)
    changes = reader.changes(cursor)
    assert changes.whole
    assert changes.cursor == reader.cursor()


def test_an_update_out_of_view_leaves_nothing_in_the_feed(
    redis_table: Connect, client: redis.Redis, namespace: str
) -> None:
    table = redis_table()
    epoch = table.begin(LAYOUT)
    table.publish(FULL)
    assert client.xlen(f"{namespace}:e{epoch}:changes") == 1  # of the begin


def test_a_reader_that_outlives_its_epoch_is_told_and_finds_nobody_unknown(
    redis_table: Connect, client: redis.Redis, namespace: str
) -> None:
    reader = flipped(redis_table()).reader()
    client.delete(f"{namespace}:e{reader.epoch}:barrier")
    with pytest.raises(TableError, match="was replaced more than 60 s ago: take a new"):
        reader.users(["712"])


def test_a_row_of_another_size_than_announced_is_an_error(
    redis_table: Connect, client: redis.Redis, namespace: str
) -> None:
    reader = flipped(redis_table()).reader()
    row = f"{namespace}:e{reader.epoch}:{{i:5239}}"
    client.set(row, b"short")
    with pytest.raises(TableError, match="the row of '5239' .* want 27 bytes, got 5"):
        reader.items(["5239"])
    client.set(row, b"\x01" + bytes(26))
    with pytest.raises(TableError, match="the row of '5239' .* got 1 and 0"):
        reader.items(["5239"])


def test_an_update_is_refused_whole_when_another_learner_flips_in_between(
    redis_table: Connect, client: redis.Redis, namespace: str
) -> None:
    table, other = flipped(redis_table()), redis_table()
    other.begin(LAYOUT)
    other.publish(FULL)

    def write_while_the_other_flips() -> None:
        with table._fenced("ignored") as (pipe, _):
            pipe.set(f"{namespace}:stray", b"")
            other.flip()

    with pytest.raises(TableTaken, match="another learner has taken over"):
        write_while_the_other_flips()
    assert not client.exists(f"{namespace}:stray")


def test_a_redis_that_was_emptied_is_noticed_and_takes_a_new_epoch(
    redis_settings: RedisSettings,
) -> None:
    table = flipped(open_table(redis_settings))
    reader = table.reader()
    emptied(redis_settings)
    with pytest.raises(TableLost, match="begin a new epoch and publish every row"):
        table.publish(FULL)
    with pytest.raises(TableLost, match="no longer holds all of epoch"):
        table.flip()
    with pytest.raises(TableError, match="nothing is published"):
        table.reader()
    assert flipped(table).reader().users(["712"]).ids == ["712"]
    assert table.reader().epoch > reader.epoch
    with pytest.raises(TableError, match="take a new reader"):
        reader.users(["712"])


def test_an_epoch_that_is_lost_before_it_comes_into_view_is_noticed(
    redis_settings: RedisSettings,
) -> None:
    table = open_table(redis_settings)
    table.begin(LAYOUT)
    emptied(redis_settings)
    with pytest.raises(TableLost):
        table.publish(FULL)


def test_a_redis_emptied_while_an_update_is_written_is_noticed(
    redis_settings: RedisSettings,
) -> None:
    table = flipped(open_table(redis_settings))
    barrier = f"{redis_settings.namespace}:e{table.reader().epoch}:barrier"

    def write_while_it_is_emptied() -> None:
        with table._fenced(barrier) as (pipe, _):
            pipe.set(barrier, b"")
            emptied(redis_settings)

    with pytest.raises(TableLost):
        write_while_it_is_emptied()


def test_a_redis_that_went_back_to_an_older_state_is_noticed(
    redis_table: Connect, client: redis.Redis, namespace: str
) -> None:
    table = flipped(redis_table())
    kept = {key: client.dump(key) for key in client.scan_iter(f"{namespace}:*:*")}
    table.publish(at_step(2))
    for key, value in kept.items():
        assert value is not None
        client.restore(key, 0, value, replace=True)
    with pytest.raises(TableLost, match="went back to an older state"):
        table.publish(at_step(3))


def test_an_older_learner_does_not_take_the_place_of_one_that_began_in_an_emptied_redis(
    redis_settings: RedisSettings,
) -> None:
    old = flipped(open_table(redis_settings))
    flipped(old)
    emptied(redis_settings)
    flipped(open_table(redis_settings))
    with pytest.raises(TableTaken):
        old.publish(FULL)


def test_more_rows_than_go_in_one_command_are_all_found(redis_settings: RedisSettings) -> None:
    n_users = 2 * CHUNK + 1
    ids = [str(user) for user in range(n_users)]
    rows = UserRows(ids, np.arange(n_users, dtype=np.float32)[:, None], np.arange(n_users))
    table = open_table(redis_settings)
    table.begin(LAYOUT)
    for update in (Update(barrier=BARRIER, users=rows), Update(barrier=BARRIER, seen={"1": ids})):
        table.publish(update)
    table.flip()
    table.publish(Update(barrier=BARRIER, users=rows))
    found = table.reader().users(ids)
    assert found.ids == ids
    assert found.vectors[:, 0].tolist() == list(range(n_users))
    assert table.reader().seen(["1"])["1"] == set(ids)


def test_an_operator_sees_how_much_is_published_and_how_old_it_is(
    redis_settings: RedisSettings,
) -> None:
    table = open_table(redis_settings)
    with pytest.raises(TableError, match="nothing is published"):
        table.info()
    flipped(table)
    now_ms = time.time_ns() // 1_000_000
    barrier = Barrier(step=7, at_ms=60, published_ms=now_ms)
    table.publish(Update(barrier=barrier, users=FULL.users, gone_items=["5239"]))
    info = table.info()
    assert (info.barrier, info.users, info.items, info.row_layout) == (barrier, 1, 0, 2)
    assert info.epoch == table.reader().epoch
    assert 0 <= info.age_ms < 60_000
    assert info.memory_bytes > 100_000
    assert redis_settings.password not in info.where or not redis_settings.password


class CutAfter:
    """Stands between a client and Redis, and cuts the connection instead of giving an answer."""

    def __init__(self, port: int) -> None:
        self._redis_port = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self.cut_at = b""
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listening.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._redis_port)) as server:
            while True:
                for ready in select.select([client, server], [], [])[0]:
                    data = ready.recv(1 << 20)
                    if not data:
                        return
                    if ready is client:
                        server.sendall(data)
                        if self.cut_at and self.cut_at in data:
                            self.cut_at = b""
                            server.recv(1)  # it was done
                            return
                    else:
                        client.sendall(data)


def test_an_update_that_was_written_but_not_answered_can_be_published_again(
    redis_url: str, namespace: str
) -> None:
    proxy = CutAfter(int(redis_url.rpartition(":")[2].partition("/")[0]))
    try:
        table = flipped(RedisTable(f"redis://127.0.0.1:{proxy.port}/0", namespace=namespace))
        table.publish(at_step(2))
        proxy.cut_at = b"EXEC"
        with pytest.raises(TableError, match="publish again") as caught:
            table.publish(at_step(3))
        assert type(caught.value) is TableError
        assert table.reader().barrier().step == 3
        table.publish(at_step(4))
        assert table.reader().barrier().step == 4
    finally:
        proxy.close()


@pytest.mark.slow
def test_a_redis_that_hangs_is_given_up_in_seconds() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        table = RedisTable(f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
        began = time.monotonic()
        with pytest.raises(TableError, match="does not answer as wanted"):
            table.reader()
        assert time.monotonic() - began < 8


@pytest.mark.slow
def test_publishing_goes_on_at_the_master_that_a_sentinel_chose(
    redis_sentinel: Servers, namespace: str
) -> None:
    settings = msgspec.structs.replace(redis_sentinel.settings, namespace=namespace)
    table = flipped(open_table(settings))
    (node,) = RedisNodes(settings.url).all()
    assert node.wait(1, 5_000) == 1  # the replica has it
    redis_sentinel.services[0].kill()
    with pytest.raises(TableError):
        table.publish(at_step(2))

    def published() -> bool:
        try:
            table.publish(at_step(3))
        except TableError:
            return False
        return True

    wait_until(published, 30, "the new master to take an update")
    assert open_table(settings).reader().barrier().step == 3


@pytest.mark.slow
def test_a_cluster_whose_node_was_away_and_came_back_empty_is_published_anew(
    tmp_path: Path, namespace: str
) -> None:
    with redis_cluster(tmp_path) as servers:
        settings = msgspec.structs.replace(servers.settings, namespace=namespace)
        table = flipped(open_table(settings))
        barrier = f"{namespace}:e{table.reader().epoch}:barrier"
        port = RedisNodes(settings.url).of(barrier).connection_pool.connection_kwargs["port"]
        (home,) = [each for each in servers.services if each.folder.name == str(port)]
        home.kill()
        with pytest.raises(TableError, match="does not answer"):
            table.publish(at_step(2))
        home.start()

        def lost() -> bool:
            try:
                table.publish(at_step(3))
            except TableLost:
                return True
            except TableError:
                return False
            raise AssertionError("the loss was not noticed")

        wait_until(lost, 30, "the cluster to answer again")
        assert flipped(table).reader().users(["712"]).ids == ["712"]


def test_a_wrong_password_is_the_users_mistake_and_is_not_shown(
    redis_with_password: RedisSettings,
) -> None:
    bare = redis_with_password.url
    for url, password in (
        (bare, ""),
        (bare, "wr0ng"),
        (bare.replace("//", "//:wr0ng@"), ""),
        (bare.replace("redis://", "redis+cluster://").rpartition("/")[0], "wr0ng"),
    ):
        with pytest.raises(BadSettings, match="does not take the user and password") as caught:
            RedisTable(url, password=password).reader()
        assert "wr0ng" not in str(caught.value)
    inside = bare.replace("//", f"//default:{redis_with_password.password}@")
    with pytest.raises(TableError, match="nothing is published"):
        RedisTable(inside, namespace="nobody", password="wr0ng").reader()


def test_a_server_that_no_known_authority_vouches_for_is_refused(redis_tls: RedisSettings) -> None:
    with pytest.raises(TableError, match="certificate verify failed"):
        RedisTable(redis_tls.url).reader()


def test_a_redis_that_does_not_answer_is_named_without_its_password() -> None:
    table = RedisTable("redis://:secret@127.0.0.1:1/0")
    with pytest.raises(TableError, match=r"redis://127\.0\.0\.1:1/0 does not answer") as caught:
        table.reader()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://x",
        "redis://",
        "redis://:secret@a,b",
        "redis://:secret@a:0",
        "redis://:secret@a:70000",
        "redis://:secret@a/one",
        "redis://:secret@a:b:c",
        "redis+sentinel://:secret@a",
        "redis+sentinel://:secret@a/service/one",
        "redis+cluster://:secret@a/1",
        "redis+other://:secret@a",
    ],
)
def test_an_address_that_cannot_be_used_is_the_users_mistake(url: str) -> None:
    with pytest.raises(BadSettings, match="not the address of a Redis: want redis://") as caught:
        RedisTable(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://h", "redis://h"),
        ("rediss://user:p%40ss/@w@h:1/2", "rediss://h:1/2"),
        ("redis://:p@[::1]:1/2", "redis://[::1]:1/2"),
        ("redis+sentinel://h,i:2/service", "redis+sentinel://h,i:2/service"),
        ("rediss+cluster://h:1,i:2/0", "rediss+cluster://h:1,i:2/0"),
    ],
)
def test_an_address_is_shown_without_its_password(url: str, shown: str) -> None:
    assert RedisTable(url).where == shown


def test_a_namespace_or_certificate_that_cannot_be_used_is_the_users_mistake(
    tmp_path: Path,
) -> None:
    with pytest.raises(BadSettings, match="a namespace is letters"):
        RedisTable("redis://localhost", namespace="a b")
    missing = str(tmp_path / "ca.pem")
    with pytest.raises(BadSettings, match="want the PEM file"):
        RedisTable("rediss://localhost", ca_file=missing)
    with pytest.raises(BadSettings, match="want an address that begins with rediss"):
        RedisTable("redis://localhost", ca_file=missing)


def test_a_closed_table_has_no_connections_and_makes_new_ones_when_asked(
    redis_settings: RedisSettings,
) -> None:
    table = flipped(open_table(redis_settings))
    pools = [node.connection_pool for node in table._nodes.all()]
    table.close()
    assert not [held for pool in pools for held in pool._available_connections if held.is_connected]
    assert table.reader().users(["712"]).ids == ["712"]
