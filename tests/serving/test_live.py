"""What is followed is answered from, also while the table is away."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from deploy.service import free_port, wait_until
from serving.changes import Changes
from serving.live import SILENT_MS, Copy
from serving.redis_table import RedisTable
from serving.rows import Layout
from serving.table import MemoryTable
from stream.errors import TableError
from tests import redis_server
from tests.serving.world import (
    ask,
    following,
    has_step,
    ids,
    items,
    publish,
    published,
    until,
    update,
    user,
)

LIST = "/v1/recommendations/{user}"


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@pytest.mark.slow
def test_redis_goes_and_comes_back(tmp_path: Path) -> None:
    port = free_port()
    table = RedisTable(f"redis://127.0.0.1:{port}/0")
    learner = RedisTable(f"redis://127.0.0.1:{port}/0")
    with redis_server.process(tmp_path, port) as server:
        mine = update(2, users=user("u", [1, 0]), seen={"u": ["i7"]}, published_ms=now_ms())
        publish(learner, mine)
        with following(table, stale_s=600) as live:
            before = ask(live, LIST, user="u")
            assert (before.answered_by, before.stale) == ("vector", False)
            server.kill()
            until(live, lambda live: live.away, "the loss to be noticed")
            during, stranger = ask(live, LIST, user="u"), ask(live, LIST, user="stranger")
            assert during.stale
            assert stranger.stale
            assert during.items == before.items
            assert during.answered_by == "vector"
            assert stranger.answered_by == "popularity"
            server.start()  # empty: the learner publishes all anew
            mine = update(9, users=user("u", [1, 0]), seen={"u": ["i6"]}, published_ms=now_ms())
            publish(learner, mine)
            back = time.monotonic()
            until(live, has_step(9), "the new model")
            until(live, lambda live: not live.stale, "fresh answers")
            took_s = time.monotonic() - back
            after = ask(live, LIST, user="u")
    assert not after.stale
    assert after.model > before.model
    assert "i6" not in ids(after)
    assert "i7" in ids(after)
    assert took_s < 60


def test_what_was_published_long_ago_is_stale() -> None:
    table = published(update(users=user("u", [1, 0]), published_ms=now_ms()))
    with following(table, stale_s=3_600) as live:
        assert not ask(live, LIST, user="u").stale
    with following(table, stale_s=1e-3) as live:
        assert ask(live, LIST, user="u").stale


class Halting(MemoryTable):
    """A table whose readers wait, when they are told to, in a look at attributes or at changes."""

    def __init__(self) -> None:
        super().__init__()
        self.halts_in = ""
        self.reached = threading.Event()
        self.goes_on = threading.Event()

    def reader(self, epoch: int | None = None) -> Any:
        return _HaltingReader(self, super().reader(epoch))


class _HaltingReader:
    def __init__(self, table: Halting, reader: Any) -> None:
        self._table = table
        self._reader = reader

    def __getattr__(self, name: str) -> Any:
        if name == self._table.halts_in:
            self._table.reached.set()
            assert self._table.goes_on.wait(60)
        return getattr(self._reader, name)


@pytest.mark.parametrize(("halts_in", "away"), [("changes", True), ("item_attributes", False)])
def test_a_table_is_away_when_it_is_silent_not_while_changes_are_taken(
    halts_in: str, *, away: bool
) -> None:
    table, clock = Halting(), [1_000_000]
    publish(table, update(users=user("u", [1, 0])))
    with following(table, now_ms=lambda: clock[0]) as live:
        assert not live.away
        table.halts_in = halts_in
        table.publish(update(2, items=items(["new"])))
        assert table.reached.wait(60)
        clock[0] += SILENT_MS + 1
        assert live.away is away
        table.halts_in = ""
        table.goes_on.set()
        until(live, has_step(2), "the change")
        until(live, lambda live: not live.away, "an answer")


class Failing:
    """A reader whose next looks at users fail."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader
        self.fails = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)

    def seen(self, user_ids: Sequence[str]) -> dict[str, frozenset[str]]:
        if self.fails:
            raise TableError("away")
        found: dict[str, frozenset[str]] = self._reader.seen(user_ids)
        return found


def test_a_user_who_cannot_be_read_anew_stays_as_an_old_one() -> None:
    table = published(update(users=user("u", [1, 0])))
    reader = Failing(table.reader())
    copy = Copy(reader)
    copy.read({"u"})
    copy.take(Changes("1", users=frozenset("u")))
    assert copy.user("u") is None
    reader.fails = True
    with pytest.raises(TableError):
        copy.read({"u", "v"})
    old = copy.user("u", old=True)
    assert old is not None
    assert copy.is_old("u")
    assert copy.user("v", old=True) is None
    reader.fails = False
    copy.read({"u"})
    assert copy.user("u") is not None


def test_a_user_who_changes_while_being_read_is_read_again() -> None:
    table = published(update(users=user("u", [1, 0])))
    reader: Any = Failing(table.reader())
    copy = Copy(reader)
    read = reader.seen

    def seen(user_ids: Sequence[str]) -> dict[str, frozenset[str]]:
        found: dict[str, frozenset[str]] = read(user_ids)
        copy.take(Changes("1", users=frozenset("u")))
        return found

    reader.seen = seen
    copy.read({"u"})
    assert copy.user("u") is None
    assert copy.user("u", old=True) is not None
    reader.seen = read
    copy.read({"u"})
    assert copy.user("u") is not None


def test_a_user_who_is_erased_while_being_read_is_not_kept() -> None:
    table = published(update(users=user("u", [1, 0])))
    reader: Any = Failing(table.reader())
    copy = Copy(reader)
    read = reader.seen

    def seen(user_ids: Sequence[str]) -> dict[str, frozenset[str]]:
        found: dict[str, frozenset[str]] = read(user_ids)
        copy.take(Changes("1", gone_users=frozenset("u")))
        return found

    reader.seen = seen
    copy.read({"u"})
    assert copy.user("u", old=True) is None


def test_only_so_many_users_are_kept() -> None:
    table = published(*(update(users=user(name, [1, 0])) for name in "abc"))
    copy = Copy(table.reader(), users_kept=2)
    for name in "aba":
        copy.read({name})
    copy.user("a")
    copy.read({"c"})
    assert copy.newest(9) == ["c", "a"]


def test_when_changes_are_no_longer_known_all_is_read() -> None:
    table = published(update(users=user("u", [1, 0]), item_attributes={"i1": {"tag": "sea"}}))
    copy = Copy(table.reader())
    copy.read({"u"})
    table.publish(
        update(
            2,
            items=items(["new"]),
            gone_items=["i0"],
            users=user("u", [0, 1]),
            item_attributes={"i2": {"tag": "sea"}},
        )
    )
    copy.take(Changes("7", whole=True))
    known = copy.catalogue.ids(copy.catalogue.known.nonzero()[0])
    assert "new" in known
    assert "i0" not in known
    assert copy.user("u") is None
    assert copy.attributes.items({"tag": ["sea"]}) == {"i1", "i2"}
    assert copy.cursor == "7"


def test_attributes_follow() -> None:
    table = published(update(item_attributes={"i1": {"tag": "sea"}, "i2": {"tag": "sea"}}))
    with following(table) as live:
        table.publish(update(2, item_attributes={"i1": {}, "i3": {"tag": "sea"}}))
        until(live, has_step(2), "the attributes")
        assert sorted(ids(ask(live, "/v1/popular", filter=["tag:sea"]))) == ["i2", "i3"]


def test_attributes_follow_into_a_model_that_is_pinned() -> None:
    said = {"i1": {"tag": "sea"}, "i2": {"tag": "sea"}}
    table = published(update(item_attributes=said, users=user("u", [1, 0])))
    table.pin(table.reader().epoch)
    publish(table, update(2))
    with following(table) as live:
        pinned = live.copy
        assert pinned is not None
        assert ask(live, "/v1/features/{user}", user="u").attributes == {}
        more = {"i1": {}, "i3": {"tag": "sea"}, "only said": {"tag": "sea", "created_ms": 5}}
        gone, born = ["i2"], {"u": {"city": "Rome"}}
        table.publish(update(3, item_attributes=more, user_attributes=born, gone_items=gone))
        until(live, lambda _: pinned.attributes.of("i3"), "the attributes")
        assert pinned.attributes.items({"tag": ["sea"]}) == {"i3", "only said"}
        assert ids(ask(live, "/v1/popular", filter=["tag:sea"])) == ["i3"]
        assert ids(ask(live, "/v1/latest")) == ["only said"]
        assert "i2" in ids(ask(live, "/v1/popular"))  # the model that is pinned still has it
        until(live, lambda _: pinned.user("u") is None, "the user to be marked")
        assert ask(live, "/v1/features/{user}", user="u").attributes == {"city": "Rome"}
        assert live.copy is pinned


def test_a_pinned_model_answers() -> None:
    table = published(update(5))
    with following(table) as live:
        first = live.state().epoch
        publish(table, update(6))
        until(live, has_step(6), "the second model")
        table.pin(first)
        until(live, has_step(5), "the first model")
        table.pin(None)
        until(live, has_step(6), "the second model again")


def test_models_that_are_named_are_followed_besides() -> None:
    table = published(update(5, users=user("u", [1, 0])))
    with following(table) as live:
        first = live.copy
        assert first is not None
        live.also([first.epoch])
        assert not live.others  # it is the one in view
        publish(table, update(6))
        until(live, has_step(6), "the second model")
        assert live.copy_of(first.epoch) is first  # it is not read again
        first.read(["u"])
        table.publish(update(7, gone_users=["u"]))
        until(live, lambda _: first.user("u") is None, "the user to be forgotten")
        table.pin(first.epoch)
        until(live, has_step(5), "the first model again")
        assert live.copy is first
        live.also([first.epoch + 1, 99])
        assert live.copy_of(99) is None
        other = live.copy_of(first.epoch + 1)
        assert other is not None
        assert other.catalogue.barrier.step == 7
        live.also([])
        assert live.copy_of(first.epoch + 1) is None


def test_what_other_learners_publish_is_followed_beside(caplog: pytest.LogCaptureFixture) -> None:
    table = published(update(5, users=user("u", [1, 0])))
    other = table.beside("strict")
    with following(table) as live:
        live.also([], ["strict"])
        assert live.copy_of("strict") is None
        assert "what strict publishes is not there" in caplog.text
        publish(other, update(9, users=user("u", [0, 1])))
        wait_until(lambda: live.copy_of("strict") is not None, 30.0, "what strict publishes")
        theirs, own = live.copy_of("strict"), live.copy
        assert theirs is not None
        assert own is not None
        assert live.others
        theirs.read(["u"])
        assert theirs.user("u") is not None
        assert (theirs.catalogue.barrier.step, own.catalogue.barrier.step) == (9, 5)
        assert live.stale_in(own) == live.stale
        live.also([])
        assert live.copy_of("strict") is None
        assert not live.others


def test_a_model_that_runs_out_is_let_go_and_the_one_in_view_goes_on(
    redis_table: Callable[[], RedisTable], caplog: pytest.LogCaptureFixture
) -> None:
    table = redis_table()
    first = publish(table).reader().epoch
    second = publish(table).reader().epoch
    with following(redis_table()) as live:
        live.also([first])
        assert live.copy_of(first) is not None
        (nodes, prefix) = table._nodes, table._namespace
        nodes.run([("UNLINK", f"{prefix}:e{first}:barrier")])
        until(live, lambda live: not live.others, "the first model to be let go")
        assert live.copy_of(first) is None
        assert (live.state().epoch, live.away) == (second, False)
    assert f"the model of epoch {first} is gone" in caplog.text


def test_a_layout_may_change_with_the_model() -> None:
    table = published(update(users=user("u", [1, 0])))
    with following(table) as live:
        ask(live, LIST, user="u")
        table.begin(Layout(dim=2))
        table.publish(update(4, items=items(["x"])._replace(counts=items(["x"]).counts[:, :0])))
        table.flip()
        until(live, has_step(4), "the other layout")
        assert ids(ask(live, LIST, user="u")) == ["x"]
