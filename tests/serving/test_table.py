"""What every table must do, in memory and over a real Redis."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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
        "seen": {user_id: reader.seen(user_id) for user_id in user_ids},
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
    assert reader.seen("712") == frozenset()
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
    assert reader.seen("712") == frozenset()


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
    assert {one: set(reader.seen(one)) for one in everybody if reader.seen(one)} == {
        one: met for one, met in seen.items() if met
    }
