"""A user is compared with all who are published, as they are now, and never with who is erased."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.api.problems import Problem
from serving.changes import Changes
from serving.live import Copy
from serving.neighbours import PART, Everybody, Nearest
from serving.recommending import READ_S
from serving.rows import Barrier, Layout, UserRows
from serving.table import MemoryTable, Update
from stream.errors import TableError
from tests.serving.world import (
    Asking,
    ask,
    following,
    has_step,
    once,
    publish,
    published,
    until,
    update,
    user,
)

NEIGHBOURS = "/v1/users/{user}/neighbours"
ALONG = np.array([1, 0], np.float32)
ROUNDED = 2**-11 + 1e-5
"""By how much a cosine may be off: the vectors are rounded to fp16."""


def users(vectors: Mapping[str, Sequence[float]]) -> UserRows:
    rows = np.array(list(vectors.values()), np.float32)
    return UserRows(list(vectors), rows, np.full(len(vectors), 7))


def of(vectors: Mapping[str, Sequence[float]]) -> MemoryTable:
    """Return a table of users."""
    table = MemoryTable()
    table.begin(Layout(dim=len(next(iter(vectors.values())))))
    table.publish(Update(barrier=Barrier(1, 1, 1), users=users(vectors)))
    table.flip()
    return table


def read(everybody: Everybody) -> Everybody:
    """Read whoever is to be read."""
    more = everybody.begin()
    while more:
        more = everybody.go_on()
    return everybody


def names(nearest: Nearest | None) -> list[str]:
    assert nearest is not None
    return [name for name, _ in nearest.users]


number = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)


@given(
    st.lists(st.lists(number, min_size=3, max_size=3), min_size=1, max_size=8),
    st.sets(st.integers(1, 7)),
    st.integers(1, 9),
)
def test_who_is_nearest_of_those_who_are_left_has_the_greatest_cosine(
    vectors: list[list[float]], gone: set[int], n: int
) -> None:
    everybody = read(Everybody(of({f"u{at}": one for at, one in enumerate(vectors)}).reader()))
    everybody.let_go([f"u{at}" for at in gone])
    found = everybody.nearest("u0", np.array(vectors[0], np.float32), n)
    wide = np.array(vectors)
    lengths = np.linalg.norm(wide, axis=1)
    units = wide / np.where(lengths > 0, lengths, 1)[:, None]
    want = {f"u{at}": units[at] @ units[0] for at in {*range(1, len(vectors))} - gone}
    assert found is not None
    assert found.among == len(want)
    assert len(found.users) == min(n, len(want))
    for name, cosine in found.users:
        assert cosine == pytest.approx(want[name], abs=ROUNDED)
    got = [cosine for _, cosine in found.users]
    assert got == sorted(got, reverse=True)
    assert all(-1 <= cosine <= 1 for cosine in got)
    np.testing.assert_allclose(got, sorted(want.values(), reverse=True)[:n], atol=ROUNDED)


def test_all_who_are_published_are_compared_and_told_as_the_log_knows_them() -> None:
    near = {"p-ann": [1, 0], "p-bo": [3, 4], "p-cy": [0, 1], "p-di": [-2, 0]}
    with following(published(update(users=users(near)))) as live:
        asking = Asking(live, pseudonym=lambda name: f"p-{name}")
        found = once(asking, lambda asking: asking(NEIGHBOURS, user="ann", n=2))
        assert found.user == "ann"
        assert [one.user for one in found.users] == ["p-bo", "p-cy"]
        assert [one.score for one in found.users] == pytest.approx([0.6, 0], abs=ROUNDED)
        assert found.among == 3
        place = once(asking, lambda asking: asking("/v1/graph/users/{user}", user="ann", n=2))
        assert (place.users, place.among) == (found.users, 3)
        assert live.copy is not None
        assert live.copy.newest(9) == ["p-ann"]  # the others are compared, not kept


def test_who_points_nowhere_is_like_nobody() -> None:
    near = {"still": [0, 0], "ann": [1, 0]}
    said = {"told of": {"city": "Rome"}}
    with following(published(update(users=users(near), user_attributes=said))) as live:
        for name in ("still", "told of"):
            found = ask(live, NEIGHBOURS, user=name)
            assert (found.users, found.among) == ([], 0)


def test_who_comes_moves_or_is_erased_is_known_at_the_next_request() -> None:
    table = published(update(users=users({"u": [1, 0], "a": [4, 3], "b": [3, 4]})))

    def then(step: int, **others: Any) -> tuple[list[str], int]:
        table.publish(update(step, **others))
        until(live, has_step(step), "the change")
        found = ask(live, NEIGHBOURS, user="u")
        return [one.user for one in found.users], found.among

    with following(table) as live:
        assert then(2) == (["a", "b"], 2)
        assert then(3, users=user("new", [9, 1])) == (["new", "a", "b"], 3)
        assert then(4, users=user("b", [5, 0])) == (["b", "new", "a"], 3)
        assert then(5, gone_users=["new", "nobody"]) == (["b", "a"], 2)
        assert then(6, users=user("new", [0, 1])) == (["b", "a", "new"], 3)
        assert then(7, seen={"a": ["i1"], "only seen": ["i2"]}) == (["b", "a", "new"], 3)
        publish(table, update(8, users=users({"u": [1, 0], "z": [1, 1]})))
        until(live, has_step(8), "the next model")
        assert then(9) == (["z"], 1)


class Telling:
    """A reader that remembers what it was asked of users, and does something before or after."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader
        self.listed = 0
        self.asked: list[list[str]] = []
        self.before: Callable[[], object] = lambda: None
        self.after: Callable[[], object] = lambda: None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)

    def user_ids(self, most: int) -> list[str]:
        self.listed += 1
        found: list[str] = self._reader.user_ids(most)
        self.after()
        return found

    def users(self, user_ids: Sequence[str]) -> UserRows:
        self.asked.append(list(user_ids))
        self.before()
        found: UserRows = self._reader.users(user_ids)
        self.after()
        return found


class Told(MemoryTable):
    """A table whose readers remember what they were asked of users."""

    def reader(self, epoch: int | None = None) -> Any:
        return Telling(super().reader(epoch))


THREE = {"u": [1, 0], "a": [4, 3], "b": [3, 4]}


def three() -> tuple[MemoryTable, Telling, Copy]:
    table = published(update(users=users(THREE)))
    reader: Any = Telling(table.reader())
    return table, reader, Copy(reader)


def test_nobody_is_read_for_those_who_do_not_ask_and_then_only_who_changed() -> None:
    table, reader, copy = three()
    for change in (Changes("1", users=frozenset("ab")), Changes("2", gone_users=frozenset("x"))):
        copy.take(change)
    assert (reader.listed, reader.asked) == (0, [])
    read(copy.everybody)
    assert (reader.listed, reader.asked) == (1, [["a", "b", "u"]])
    read(copy.everybody)
    table.publish(update(2, users=user("b", [5, 0])))
    copy.take(Changes("3", users=frozenset("b"), gone_users=frozenset("b")))
    read(copy.everybody)
    assert (reader.listed, reader.asked[1:]) == (1, [["b"]])
    assert names(copy.everybody.nearest("u", ALONG, 9)) == ["b", "a"]


def test_who_is_erased_while_being_read_is_not_kept() -> None:
    table, reader, copy = three()

    def erase() -> None:
        if reader.asked:  # the rows have been read, and are not in memory yet
            table.publish(update(2, gone_users=["b"]))
            copy.take(Changes("1", gone_users=frozenset("b")))

    reader.after = erase
    read(copy.everybody)
    assert names(copy.everybody.nearest("u", ALONG, 9)) == ["a"]


def test_who_changes_while_being_read_is_read_again() -> None:
    table, reader, copy = three()

    def turn() -> None:
        if len(reader.asked) == 1:
            table.publish(update(2, users=user("b", [5, 0])))
            copy.take(Changes("1", users=frozenset("b")))

    reader.after = turn
    read(copy.everybody)
    assert names(copy.everybody.nearest("u", ALONG, 9)) == ["a", "b"]
    read(copy.everybody)
    assert names(copy.everybody.nearest("u", ALONG, 9)) == ["b", "a"]


def test_who_is_no_longer_published_when_read_again_goes_before_the_feed_says_so() -> None:
    table, _, copy = three()
    read(copy.everybody)
    copy.everybody.mark(["a"])
    table.publish(update(2, gone_users=["a"]))
    read(copy.everybody)
    assert names(copy.everybody.nearest("u", ALONG, 9)) == ["b"]


def test_who_is_erased_goes_at_once_whether_the_table_answers_or_not() -> None:
    _, reader, copy = three()
    read(copy.everybody)

    def away(_: Any) -> Any:
        raise TableError("away")

    reader.__dict__["items"] = away
    with pytest.raises(TableError):
        copy.take(Changes("1", items=frozenset("i"), gone_users=frozenset("a")))
    assert names(copy.everybody.nearest("u", ALONG, 9)) == ["b"]


def test_when_changes_are_no_longer_known_all_are_let_go_and_read_again() -> None:
    table, reader, copy = three()
    read(copy.everybody)
    table.publish(update(2, gone_users=["a"], users=user("new", [1, 0])))
    copy.take(Changes("7", whole=True))
    assert copy.everybody.nearest("u", ALONG, 9) is None
    read(copy.everybody)
    assert names(copy.everybody.nearest("u", ALONG, 9)) == ["new", "b"]
    reader.after = lambda: copy.take(Changes("8", whole=True))
    copy.everybody.mark(["b"])
    read(copy.everybody)  # while it is read nobody knows who was erased
    assert copy.everybody.nearest("u", ALONG, 9) is None


def test_of_more_users_than_are_compared_only_those_drawn_are_kept_up_to_date() -> None:
    vectors = {f"u{n}": [n, 1] for n in range(9)}
    table = of(vectors)
    reader: Any = Telling(table.reader())
    everybody = read(Everybody(reader, most=4))
    (drawn,) = reader.asked
    assert len(drawn) == 4
    found = everybody.nearest("stranger", ALONG, 9)
    assert found is not None
    assert (sorted(names(found)), found.among) == (drawn, 4)
    table.publish(Update(barrier=Barrier(2, 2, 2), users=users({"new": [1, 0]})))
    everybody.mark([*vectors, "new"])
    read(everybody)
    assert reader.asked[1:] == [drawn]
    everybody.let_go(drawn[:1])  # which makes room
    everybody.mark(["new"])
    read(everybody)
    assert names(everybody.nearest("stranger", ALONG, 9))[0] == "new"


def test_no_more_are_kept_than_are_compared_however_many_come() -> None:
    vectors = {f"u{n}": [n, 1] for n in range(7)}
    table = of({name: vectors[name] for name in ("u0", "u1", "u2")})
    everybody = read(Everybody(table.reader(), most=4))
    table.publish(Update(barrier=Barrier(2, 2, 2), users=users(vectors)))
    everybody.mark(list(vectors))
    found = read(everybody).nearest("stranger", ALONG, 9)
    assert found is not None
    assert found.among == len(found.users) == 4
    assert {"u0", "u1", "u2"} < {*names(found)}


def test_changes_that_nobody_asks_about_do_not_pile_up() -> None:
    reader: Any = Telling(of({"u": [1, 0]}).reader())
    everybody = read(Everybody(reader, most=4))
    everybody.mark([f"u{n}" for n in range(8)])
    assert everybody.nearest("u", ALONG, 1) == Nearest([], 0)
    everybody.mark(["one more"])
    assert everybody.nearest("u", ALONG, 1) is None
    read(everybody)
    assert (reader.listed, reader.asked) == (2, [["u"], ["u"]])


def test_who_could_not_be_read_is_read_later() -> None:
    _, reader, copy = three()

    def away() -> None:
        raise TableError("away")

    reader.after = away
    with pytest.raises(TableError):
        copy.everybody.begin()
    reader.after, reader.before = lambda: None, away
    assert copy.everybody.begin()
    with pytest.raises(TableError):
        copy.everybody.go_on()
    assert copy.everybody.nearest("u", ALONG, 9) is None
    reader.before = lambda: None
    read(copy.everybody)
    assert names(copy.everybody.nearest("u", ALONG, 9)) == ["a", "b"]


def many(n: int) -> Told:
    """Return a table of ``n`` users and one besides."""
    table = Told()
    vectors = np.stack([np.arange(n), np.ones(n)], 1).astype(np.float32)
    rows = UserRows([f"{at:05d}" for at in range(n)], vectors, np.full(n, 7))
    publish(table, update(users=rows), update(users=user("u", [1, 0])))
    return table


def test_requests_that_come_together_wait_for_one_look_at_everybody() -> None:
    with following(many(3)) as live:

        async def both(asking: Asking) -> list[Any]:
            return await asyncio.gather(*(asking(NEIGHBOURS, user="u") for _ in range(2)))

        found = once(Asking(live), both)
        reader: Any = live.copy and live.copy.reader
    assert [one.among for one in found] == [3, 3]
    assert reader.listed == 1
    assert [asked for asked in reader.asked if len(asked) > 1] == [["00000", "00001", "00002", "u"]]


def test_lists_are_answered_while_everybody_is_read() -> None:
    reached, goes_on = threading.Event(), threading.Event()
    with following(many(PART + 1)) as live:
        reader: Any = live.copy and live.copy.reader

        def halt() -> None:
            if len(reader.asked[-1]) > 1:
                reached.set()
                assert goes_on.wait(60)

        reader.before = halt

        async def others_in_between(asking: Asking) -> Any:
            near = asyncio.ensure_future(asking(NEIGHBOURS, user="u"))
            await asyncio.to_thread(reached.wait, 60)
            listed = asyncio.ensure_future(asking("/v1/recommendations/{user}", user="00007"))
            for _ in range(9):  # until its user is waited for
                await asyncio.sleep(0)
            goes_on.set()
            assert (await listed).answered_by == "vector"
            return await near

        assert once(Asking(live), others_in_between).among == PART + 1
    first, *parts = reader.asked
    assert first == ["u"]
    assert parts.pop(1) == ["00007"]
    assert sorted(len(part) for part in parts) == [2, PART]


def test_while_the_table_is_away_those_in_memory_are_compared() -> None:
    table = many(3)
    with following(table) as live:
        live.__exit__()  # this test alone says whether the table is away
        ask(live, "/v1/recommendations/{user}", user="u")  # who is in memory then
        live._error = "away"
        for path in (NEIGHBOURS, "/v1/graph/users/{user}"):
            with pytest.raises(Problem, match="no users are in memory to be compared") as raised:
                ask(live, path, user="u")
            assert (raised.value.status, raised.value.kind) == (503, "unavailable")
        live._error = ""
        before = ask(live, NEIGHBOURS, user="u")
        live._error = "away"
        assert live.copy is not None
        live.copy.take(Changes("1", users=frozenset(["00002"]), gone_users=frozenset(["00001"])))
        during = ask(live, NEIGHBOURS, user="u")
    assert [one.user for one in before.users] == ["00002", "00001", "00000"]
    assert ([one.user for one in during.users], during.stale) == (["00002", "00000"], True)


def test_a_table_that_is_silent_is_not_waited_for() -> None:
    silent = threading.Event()
    with following(many(3)) as live:
        reader: Any = live.copy and live.copy.reader
        assert ask(live, NEIGHBOURS, user="u").among == 3
        reader.before = lambda: silent.wait(60)
        assert live.copy is not None
        live.copy.everybody.mark(["00001"])

        async def timed(asking: Asking) -> float:
            loop = asyncio.get_running_loop()
            began = loop.time()
            assert (await asking(NEIGHBOURS, user="u")).among == 3  # as they were
            return loop.time() - began

        try:
            assert once(Asking(live), timed) < 10 * READ_S
        finally:
            silent.set()
