"""What every table must do, in memory and over a real Redis."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.changes import CHANGES_KEPT
from serving.rows import Barrier, Count, Covisited, ItemRows, Layout, UserRows
from serving.table import Reader, Table, Update
from stream.errors import TableError

LAYOUT = Layout(dim=2, counts=(Count("clicks", 1_000), Count("shown", 4_000)))
BARRIER = Barrier(step=1, at_ms=60, published_ms=1_000)


def users(*rows: tuple[str, float, int]) -> UserRows:
    return UserRows(
        [name for name, _, _ in rows],
        np.array([[value, -value] for _, value, _ in rows], np.float32).reshape(-1, 2),
        np.array([ts_ms for _, _, ts_ms in rows], np.int64),
    )


def items(*rows: tuple[str, float, int]) -> ItemRows:
    values = np.array([value for _, value, _ in rows])
    return ItemRows(
        [name for name, _, _ in rows],
        np.stack([values, values + 1], axis=1).astype(np.float32),
        (values / 2).astype(np.float32),
        np.stack([values, values * 10], axis=1),
        np.array([ts_ms for _, _, ts_ms in rows], np.int64),
    )


def published(table: Table, update: Update, layout: Layout = LAYOUT) -> Reader:
    table.begin(layout)
    table.publish(update)
    table.flip()
    return table.reader()


def content(reader: Reader, user_ids: list[str]) -> dict[str, Any]:
    """Return everything that a reader can see, as plain values."""
    found, block = reader.users(user_ids), reader.items(reader.item_ids())
    return {
        "users": {
            name: (vector.tolist(), int(ts_ms), list(recent))
            for name, vector, ts_ms, recent in zip(
                found.ids, found.vectors, found.ts_ms, found.recent, strict=True
            )
        },
        "items": {
            name: (vector.tolist(), float(bias), counts.tolist(), int(ts_ms))
            for name, vector, bias, counts, ts_ms in zip(
                block.ids, block.vectors, block.biases, block.counts, block.ts_ms, strict=True
            )
        },
        "covisited": {
            name: (list(row.item_ids), row.weights.tolist(), row.ts_ms)
            for name, row in reader.covisited(reader.item_ids()).items()
        },
        "seen": reader.seen(user_ids),
        "weights": {name: array.tolist() for name, array in reader.weights().items()},
        "barrier": reader.barrier(),
    }


def test_a_reader_finds_what_was_published(table: Table) -> None:
    user = users(("712", 1.5, 60))._replace(recent=[[("5239", 1, 60), ("17", 3, 20)]])
    update = Update(
        barrier=BARRIER,
        users=user,
        items=items(("5239", 2.0, 40)),
        covisited={"5239": Covisited(["17", "4"], np.array([0.5, 0.25], np.float32), 40)},
        seen={"712": ["5239", "17"]},
        weights={"half_lives_ms": np.array([[3_600_000, 1_209_600_000]]), "gate": np.array(0.1)},
    )
    assert content(published(table, update), ["712", "nobody"]) == {
        "users": {"712": ([1.5, -1.5], 60, [("5239", 1, 60), ("17", 3, 20)])},
        "items": {"5239": ([2.0, 3.0], 1.0, [2.0, 20.0], 40)},
        "covisited": {"5239": (["17", "4"], [0.5, 0.25], 40)},
        "seen": {"712": {"5239", "17"}, "nobody": set()},
        "weights": {"half_lives_ms": [[3_600_000, 1_209_600_000]], "gate": 0.1},
        "barrier": BARRIER,
    }


def test_unknown_ids_are_left_out_and_order_is_kept(table: Table) -> None:
    reader = published(table, Update(barrier=BARRIER, users=users(("a", 1, 1), ("b", 2, 2))))
    assert list(reader.users(["b", "nobody", "a", "b"]).ids) == ["b", "a", "b"]
    assert reader.users([]).vectors.shape == (0, 2)
    assert reader.items(["5239"]).counts.shape == (0, 2)
    assert reader.item_ids() == []
    assert reader.covisited(["5239"]) == {}
    assert reader.weights() == {}


def test_a_row_tells_when_it_was_published(table: Table) -> None:
    reader = published(
        table,
        Update(barrier=BARRIER, users=users(("a", 1, 1), ("b", 2, 2)), items=items(("i", 0, 0))),
    )
    later = Barrier(step=2, at_ms=70, published_ms=1_250)
    table.publish(Update(barrier=later, users=users(("b", 3, 65))))
    assert reader.users(["a", "b"]).published_ms.tolist() == [1_000, 1_250]
    assert reader.items(["i"]).published_ms.tolist() == [1_000]
    assert reader.barrier() == later


def test_nothing_is_in_view_before_the_first_flip(table: Table) -> None:
    table.begin(LAYOUT)
    table.publish(Update(barrier=BARRIER, users=users(("712", 1.0, 60))))
    with pytest.raises(TableError, match="nothing is published"):
        table.reader()


def test_a_reader_stays_with_its_model_while_the_next_one_comes_into_view(table: Table) -> None:
    old = published(table, Update(barrier=BARRIER, users=users(("712", 1.0, 60))))
    wider = Layout(dim=3, precision="fp16")
    assert table.begin(wider) == old.epoch + 1
    row = UserRows(["712"], np.array([[7, 8, 9]], np.float32), np.array([80]))
    table.publish(Update(barrier=BARRIER, users=row))
    assert table.reader().epoch == old.epoch
    table.flip()
    assert table.reader().users(["712"]).vectors.tolist() == [[7, 8, 9]]
    assert table.reader().layout == wider
    assert old.users(["712"]).vectors.tolist() == [[1, -1]]


def test_a_new_epoch_starts_empty(table: Table) -> None:
    first = Update(barrier=BARRIER, users=users(("712", 1.0, 60)), seen={"712": ["5239"]})
    published(table, first)
    reader = published(table, Update(barrier=BARRIER, items=items(("17", 1.0, 1))))
    assert reader.seen(["712"])["712"] == frozenset()
    assert reader.users(["712"]).ids == []


def test_an_empty_epoch_cannot_be_flipped_into_view(table: Table) -> None:
    with pytest.raises(TableError, match="no epoch was begun"):
        table.flip()
    table.begin(LAYOUT)
    with pytest.raises(TableError, match="publish into it before"):
        table.flip()


def test_publishing_without_an_epoch_is_refused(table: Table) -> None:
    with pytest.raises(TableError, match="no epoch was begun"):
        table.publish(Update(barrier=BARRIER))


def test_what_is_gone_leaves_nothing_behind(table: Table) -> None:
    update = Update(
        barrier=BARRIER,
        users=users(("712", 1.0, 60), ("8", 2.0, 60)),
        items=items(("5239", 1.0, 1), ("17", 1.0, 1)),
        covisited={"5239": Covisited(["17"], np.ones(1, np.float32), 0)},
        seen={"712": ["5239"], "8": ["17"]},
    )
    reader = published(table, update)
    table.publish(Update(barrier=BARRIER, gone_users=["712"], gone_items=["5239", "unknown"]))
    left = content(reader, ["712", "8"])
    assert list(left["users"]) == ["8"]
    assert list(left["items"]) == ["17"]
    assert reader.covisited(["5239"]) == {}
    assert left["seen"] == {"712": set(), "8": {"17"}}


def test_weights_stay_until_they_are_published_anew(table: Table) -> None:
    reader = published(table, Update(barrier=BARRIER, weights={"a": np.ones(1)}))
    table.publish(Update(barrier=BARRIER))
    assert list(reader.weights()) == ["a"]
    table.publish(Update(barrier=BARRIER, weights={"b": np.ones(1)}))
    assert list(reader.weights()) == ["b"]


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        (Layout(dim=2, precision="fp32"), np.float32(1 / 3)),
        (Layout(dim=2, precision="fp16"), np.float32(np.float16(1 / 3))),
    ],
)
def test_half_precision_rounds_and_single_precision_does_not(
    table: Table, layout: Layout, expected: np.float32
) -> None:
    row = UserRows(["712"], np.array([[1 / 3, 0]], np.float32), np.array([0]))
    found = published(table, Update(barrier=BARRIER, users=row), layout).users(["712"])
    assert found.vectors[0, 0] == expected


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        ([1.0, np.nan], "'712' cannot be published as fp16: it holds nan"),
        ([70_000.0, 1.0], "'712' cannot be published as fp16: it holds 70000.0"),
        ([1.0, 1.0, 1.0], r"want 1 vectors of the published dimension 2, got .* \(1, 3\)"),
    ],
)
def test_a_vector_that_cannot_be_stored_is_refused_and_changes_nothing(
    table: Table, vector: list[float], message: str
) -> None:
    reader = published(
        table,
        Update(barrier=BARRIER, users=users(("712", 1.0, 60))),
        Layout(dim=2, precision="fp16"),
    )
    bad = UserRows(["712"], np.array([vector], np.float32), np.array([61]))
    with pytest.raises(TableError, match=message):
        table.publish(Update(barrier=BARRIER, users=bad, seen={"712": ["5239"]}))
    assert reader.users(["712"]).ts_ms.tolist() == [60]
    assert reader.seen(["712"])["712"] == frozenset()


def test_attributes_are_read_as_they_were_written_whatever_the_epoch(table: Table) -> None:
    said = {"author": "a", "tags": ["x", "y"], "length_s": 7.5, "live": None}
    old = published(
        table,
        Update(
            barrier=BARRIER,
            item_attributes={"5239": said, "17": {"author": "b"}},
            user_attributes={"712": {"age": 30}, "8": {"age": 40}},
        ),
    )
    assert old.item_attributes(["17", "nobody", "5239"]) == {"17": {"author": "b"}, "5239": said}
    assert old.user_attributes(["712"]) == {"712": {"age": 30}}
    table.begin(LAYOUT)
    table.publish(
        Update(
            barrier=BARRIER,
            item_attributes={"5239": {"author": "c"}, "17": {}},
            gone_users=["712"],
        )
    )
    assert old.all_item_attributes() == {"5239": {"author": "c"}}
    assert old.item_attributes(["17", "5239"]) == {"5239": {"author": "c"}}
    assert old.all_user_attributes() == {"8": {"age": 40}}
    table.publish(Update(barrier=BARRIER, gone_items=["5239"]))
    assert old.all_item_attributes() == old.item_attributes(["5239"]) == {}


def test_what_the_learner_tells_last_is_what_is_read(table: Table) -> None:
    reader = published(table, Update(barrier=BARRIER))
    assert reader.report() is None
    table.tell({"events": 7})
    table.tell({"events": 8, "hours": [{"hour_ms": 0, "ranked": 2}]})
    assert reader.report() == {"events": 8, "hours": [{"hour_ms": 0, "ranked": 2}]}


def test_the_feed_names_what_each_publish_touched(table: Table) -> None:
    reader = published(table, Update(barrier=BARRIER, users=users(("712", 1.0, 60))))
    start = reader.cursor()
    nothing = reader.changes(start)
    assert (nothing.cursor, nothing.items, nothing.whole) == (start, frozenset(), False)
    table.publish(
        Update(
            barrier=BARRIER,
            users=users(("8", 1.0, 60)),
            items=items(("5239", 1.0, 1)),
            covisited={"17": Covisited(["5239"], np.ones(1, np.float32), 0)},
            seen={"9": ["5239"]},
            item_attributes={"4": {"author": "a"}},
            user_attributes={"10": {}},
            gone_users=["712"],
        )
    )
    first = reader.changes(start)
    assert first.items == {"5239", "17", "4"}
    assert first.users == {"8", "9", "10"}
    assert not first.gone_items
    assert first.gone_users == {"712"}
    table.publish(Update(barrier=BARRIER, users=users(("712", 1.0, 60)), gone_items=["5239"]))
    both, second = reader.changes(start), reader.changes(first.cursor)
    assert both.items == {"17", "4"}
    assert both.users == {"8", "9", "10", "712"}
    assert both.gone_users == {"712"}
    assert not second.items
    assert second.users == {"712"}
    assert second.gone_items == both.gone_items == {"5239"}
    assert second.cursor == both.cursor == reader.cursor()


def test_a_cursor_that_is_not_known_means_that_everything_may_have_changed(table: Table) -> None:
    reader = published(table, Update(barrier=BARRIER))
    start = reader.cursor()
    for _ in range(CHANGES_KEPT - 1):
        table.publish(Update(barrier=BARRIER))
    assert not reader.changes(start).whole
    for _ in range(2):
        table.publish(Update(barrier=BARRIER))
    lost = reader.changes(start)
    assert lost.whole
    assert not reader.changes(lost.cursor).whole
    for unheard_of in ("", "9999999999999-0", "9999", "x", "$"):
        found = reader.changes(unheard_of)
        assert found.whole
        assert found.cursor == reader.cursor()


def test_users_are_named_once_each_and_of_too_many_some_are_drawn_at_random(table: Table) -> None:
    assert published(table, Update(barrier=BARRIER)).user_ids(9) == []
    everybody = {f"ü{n}" for n in range(5)}
    rows = users(*((name, 1.0, 60) for name in ["gone", *everybody]))
    reader = published(table, Update(barrier=BARRIER, users=rows, seen={"only seen": ["5239"]}))
    table.publish(Update(barrier=BARRIER, gone_users=["gone"]))
    for most in (5, 6):
        assert sorted(reader.user_ids(most)) == sorted(everybody)
    draws = [reader.user_ids(2) for _ in range(99)]
    assert all(len(set(drawn)) == len(drawn) == 2 for drawn in draws)
    assert {name for drawn in draws for name in drawn} == everybody


def test_who_waits_for_changes_gets_them_when_they_come(table: Table) -> None:
    reader = published(table, Update(barrier=BARRIER))
    start = reader.cursor()
    assert reader.changes(start, wait_ms=1).cursor == start
    timer = threading.Timer(
        0.05, table.publish, [Update(barrier=BARRIER, users=users(("712", 1.0, 60)))]
    )
    timer.start()
    changes = reader.changes(start)
    while changes.cursor == start:
        changes = reader.changes(start, wait_ms=10_000)
    assert changes.users == {"712"}
    timer.join()
    assert reader.changes(start, wait_ms=10_000) == changes  # at once


def at_step(step: int) -> Update:
    """Return an update that shows which epoch it belongs to."""
    return Update(
        barrier=Barrier(step=step, at_ms=60, published_ms=1_000),
        users=users(("712", step, 60)),
    )


def test_attributes_and_erasures_are_told_to_every_epoch_that_is_kept(table: Table) -> None:
    first = published(table, Update(barrier=BARRIER, items=items(("5239", 1.0, 1))))
    second = published(table, at_step(2))
    start, own = first.cursor(), second.cursor()
    table.publish(at_step(3))
    assert first.cursor() == start  # rows are the newest epoch's alone
    table.publish(
        Update(
            barrier=BARRIER,
            items=items(("4", 1.0, 1)),
            seen={"10": ["4"]},
            item_attributes={"17": {"author": "a"}, "8": {}},
            user_attributes={"712": {"age": 30}},
            gone_items=["5239"],
            gone_users=["9"],
        )
    )
    told = first.changes(start)
    assert told.items == {"17", "8", "5239"}
    assert not told.gone_items
    assert told.users == {"712"}
    assert told.gone_users == {"9"}
    assert first.item_attributes(["17"]) == {"17": {"author": "a"}}
    assert list(first.items(["5239"]).ids) == ["5239"]
    assert second.changes(own).gone_items == {"5239"}
    own = second.cursor()
    table.begin(LAYOUT)
    table.publish(Update(barrier=BARRIER, item_attributes={"5": {"author": "a"}}))
    for reader, cursor in ((first, told.cursor), (second, own)):
        assert reader.changes(cursor).items == {"5"}  # of an epoch that is not in view yet


def test_what_is_told_to_other_epochs_is_remembered_as_long_as_their_own(table: Table) -> None:
    first = published(table, at_step(1))
    published(table, at_step(2))
    start = first.cursor()
    said = Update(barrier=BARRIER, user_attributes={"712": {"age": 30}})
    for _ in range(CHANGES_KEPT - 1):
        table.publish(said)
    assert first.changes(start).users == {"712"}
    table.publish(said)
    table.publish(said)
    assert first.changes(start).whole


def test_what_another_learner_publishes_lies_beside(table: Table) -> None:
    published(table, Update(barrier=Barrier(step=1, at_ms=10, published_ms=5)))
    other = table.beside("strict")
    assert other.epochs() == []
    published(other, Update(barrier=Barrier(step=7, at_ms=70, published_ms=5)))
    assert table.reader().barrier().step == 1
    assert table.beside("strict").reader().barrier().step == 7
    published(table, Update(barrier=Barrier(step=2, at_ms=20, published_ms=6)))
    assert [each.step for each in table.epochs()] == [2, 1]
    assert [each.step for each in other.epochs()] == [7]


def test_readers_are_given_the_pinned_epoch_until_it_is_let_go(table: Table) -> None:
    assert table.epochs() == []
    first = published(table, at_step(1)).epoch
    second = published(table, at_step(2)).epoch
    listed = [(e.epoch, e.step, e.in_view, e.pinned) for e in table.epochs()]
    assert listed == [(second, 2, True, False), (first, 1, False, False)]
    table.pin(first)
    back = table.reader()
    assert (back.epoch, back.users(["712"]).vectors[0, 0]) == (first, 1)
    table.publish(at_step(3))  # the learner goes on
    assert table.reader().barrier().step == 1
    listed = [(e.epoch, e.step, e.in_view, e.pinned) for e in table.epochs()]
    assert listed == [(second, 3, False, False), (first, 1, True, True)]
    table.pin(None)
    assert table.reader().barrier().step == 3


def test_the_newest_two_epochs_and_the_pinned_one_are_kept(table: Table) -> None:
    epochs = [published(table, at_step(1)).epoch]
    table.pin(epochs[0])
    for step in (2, 3, 4):
        table.begin(LAYOUT)
        table.publish(at_step(step))
        table.flip()
    kept = [each.epoch for each in table.epochs()]
    assert kept == [epochs[0] + 3, epochs[0] + 2, epochs[0]]
    assert table.reader().epoch == epochs[0]
    with pytest.raises(TableError, match=f"epoch {epochs[0] + 1} is not kept: .* there are"):
        table.pin(epochs[0] + 1)
    assert table.reader().epoch == epochs[0]
    table.pin(kept[1])
    published(table, at_step(5))
    assert [each.epoch for each in table.epochs()] == [epochs[0] + 4, epochs[0] + 3, kept[1]]


def test_epochs_that_are_named_are_kept_and_read_until_they_are_not(table: Table) -> None:
    first = published(table, at_step(1)).epoch
    table.keep([first])
    for step in (2, 3, 4):
        newest = published(table, at_step(step)).epoch
    assert [each.epoch for each in table.epochs()] == [newest, newest - 1, first]
    named = table.reader(first)
    assert (named.epoch, named.users(["712"]).vectors[0, 0]) == (first, 1)
    assert table.reader().epoch == newest
    table.keep([])
    published(table, at_step(5))
    assert [each.epoch for each in table.epochs()] == [newest + 1, newest]
    with pytest.raises(TableError, match=f"epoch {first} is not kept: .* there are"):
        table.reader(first)


ids = st.sampled_from(["1", "2", "ü{}:seen", "1}:seen"])
updates = st.lists(
    st.builds(
        lambda who, value, seen, gone: Update(
            barrier=BARRIER,
            users=users(*((one, value, int(value)) for one in who)),
            items=items(*((one, value, int(value)) for one in who)),
            seen=seen,
            gone_users=gone,
            gone_items=gone,
        ),
        st.lists(ids, unique=True),
        st.integers(0, 9),
        st.dictionaries(ids, st.sets(ids)),
        st.sets(ids),
    ),
    min_size=1,
    max_size=6,
)


@given(log=updates, repeats=st.lists(st.booleans(), min_size=6, max_size=6))
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_updates_leave_what_plain_dicts_would_hold_and_a_repeat_changes_nothing(
    table: Table, log: list[Update], repeats: list[bool]
) -> None:
    known: dict[str, float] = {}
    seen: dict[str, set[str]] = {}
    table.begin(LAYOUT)
    for update, twice in zip(log, repeats, strict=False):
        for _ in range(1 + twice):
            table.publish(update)
        for one in update.gone_users:
            known.pop(one, None)
            seen.pop(one, None)
        assert update.users is not None
        known.update(zip(update.users.ids, update.users.vectors[:, 0].tolist(), strict=True))
        for one, item_ids in update.seen.items():
            seen.setdefault(one, set()).update(item_ids)
    table.flip()
    reader = table.reader()
    everybody = ["1", "2", "ü{}:seen", "1}:seen"]
    rows = reader.users(everybody)
    assert dict(zip(rows.ids, rows.vectors[:, 0].tolist(), strict=True)) == known
    assert reader.item_ids() == sorted(known)
    assert {one: set(met) for one, met in reader.seen(everybody).items() if met} == {
        one: met for one, met in seen.items() if met
    }
