"""A catalogue shows one moment for ever; its mirror shows what is published."""

from __future__ import annotations

import gc
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from serving.catalogue import UNKNOWN, Catalogue, Mirror
from serving.retrieval import Query, recommend
from serving.rows import Barrier, Count, Covisited, ItemRows, Layout
from serving.table import MemoryTable, Update
from stream.errors import TableError

HALF_LIFE_MS = 1_000
LAYOUT = Layout(
    dim=2,
    counts=(
        Count("positives_1000", HALF_LIFE_MS),
        Count("shown_1000", HALF_LIFE_MS),
        Count("pairs", 4 * HALF_LIFE_MS),
    ),
)
WEIGHTS = {
    "popularity": np.array([0.5], np.float32),
    "click_rate": np.array([2.0], np.float32),
    "covisitation": np.ones(6, np.float32),
}
some_ids = st.lists(st.integers(0, 99).map(str), max_size=8, unique=True)


def item_rows(item_ids: list[str], value: float, ts_ms: int) -> ItemRows:
    n = len(item_ids)
    return ItemRows(
        item_ids,
        np.full((n, 2), value, np.float32),
        np.full(n, value, np.float32),
        np.tile([1 + value, 3 + value, 4 + value], (n, 1)),
        np.full(n, ts_ms, np.int64),
    )


def opened(update: Update, layout: Layout = LAYOUT) -> MemoryTable:
    table = MemoryTable()
    table.begin(layout)
    table.publish(update)
    table.flip()
    return table


def shown(items: Catalogue, at_ms: int) -> dict[str, Any]:
    """Return all that a catalogue says of its items, by id."""
    rows = np.flatnonzero(items.known)
    base = items.base(at_ms)
    return {
        item_id: (
            items.vectors[row].tolist(),
            float(items.biases[row]),
            float(base[row]),
            dict(zip(*_pairs(items, row), strict=True)),
        )
        for item_id, row in zip(items.ids(rows), rows.tolist(), strict=True)
    }


def _pairs(items: Catalogue, row: int) -> tuple[list[str], list[float]]:
    others, cosines = items.covisited(row, 100)
    return items.ids(others), cosines.tolist()


def assert_same(got: dict[str, Any], want: dict[str, Any]) -> None:
    assert got.keys() == want.keys()
    for item_id, (vector, bias, base, pairs) in want.items():
        assert got[item_id][0] == vector
        assert got[item_id][1] == bias
        assert got[item_id][2] == pytest.approx(base, rel=1e-5, abs=1e-5)
        assert got[item_id][3] == pytest.approx(pairs, rel=1e-5)


class Following(RuleBasedStateMachine):
    """A mirror that follows change by change shows what one that reads everything anew shows."""

    def __init__(self) -> None:
        super().__init__()
        self.now_ms = 10_000
        self.table = opened(Update(barrier=Barrier(0, self.now_ms, 0), weights=WEIGHTS))
        self.mirror = Mirror(self.table.reader())
        self.held: list[tuple[Catalogue, int, dict[str, Any]]] = []

    @rule(
        item_ids=some_ids, lists=some_ids, value=st.integers(0, 9), later_ms=st.integers(0, 9_000)
    )
    def write(self, item_ids: list[str], lists: list[str], value: int, later_ms: int) -> None:
        self.now_ms += later_ms
        covisited = {
            one: Covisited(item_ids, np.arange(len(item_ids), dtype=np.float32), self.now_ms)
            for one in lists
        }
        self.table.publish(
            Update(
                barrier=Barrier(1, self.now_ms, 0),
                items=item_rows(item_ids, value, self.now_ms),
                covisited=covisited,
                weights=WEIGHTS,
            )
        )
        self.mirror.refresh({*item_ids, *lists})

    @rule(item_ids=some_ids)
    def forget(self, item_ids: list[str]) -> None:
        self.table.publish(Update(barrier=Barrier(1, self.now_ms, 0), gone_items=item_ids))
        self.mirror.refresh((), gone=item_ids)

    @rule(item_ids=some_ids)
    def nothing_new(self, item_ids: list[str]) -> None:
        self.mirror.refresh(item_ids)

    @rule()
    def hold(self) -> None:
        items = self.mirror.catalogue
        self.held.append((items, self.now_ms, shown(items, self.now_ms)))

    @rule()
    def let_go(self) -> None:
        self.held.clear()
        gc.collect()

    @rule()
    def long_silence(self) -> None:
        self.now_ms += 60 * HALF_LIFE_MS

    @invariant()
    def shows_what_is_published(self) -> None:
        whole = Mirror(self.table.reader()).catalogue
        got = shown(self.mirror.catalogue, self.now_ms)
        assert_same(got, shown(whole, self.now_ms))

    @invariant()
    def what_is_held_does_not_change(self) -> None:
        for items, at_ms, before in self.held:
            items._base = None  # computed anew, from what lies there now
            assert shown(items, at_ms) == before


TestFollowing = Following.TestCase
TestFollowing.settings = settings(
    max_examples=15, stateful_step_count=10, suppress_health_check=list(HealthCheck), deadline=None
)


def test_a_row_keeps_its_item() -> None:
    table = opened(Update(barrier=Barrier(1, 0, 0), items=item_rows(["b", "c"], 1, 0)))
    mirror = Mirror(table.reader())
    before = mirror.catalogue
    table.publish(Update(barrier=Barrier(1, 0, 0), items=item_rows(["a"], 1, 0)))
    after = mirror.refresh(["a"])
    assert before.rows(["b", "c", "a"]).tolist() == [0, 1, UNKNOWN]
    assert after.rows(["b", "c", "a"]).tolist() == [0, 1, 2]


def test_what_is_no_longer_read_is_written_again() -> None:
    table = opened(Update(barrier=Barrier(1, 0, 0), items=item_rows(["a"], 1, 0)))
    mirror = Mirror(table.reader())
    mirror.refresh(["a"])
    places = {mirror.refresh(["a"]).vectors.ctypes.data for _ in range(6)}
    assert len(places) == 2


def test_what_is_read_is_not_written() -> None:
    table = opened(Update(barrier=Barrier(1, 0, 0), items=item_rows(["a"], 1, 0)))
    mirror = Mirror(table.reader())
    held = mirror.refresh(["a"])
    table.publish(Update(barrier=Barrier(1, 0, 0), items=item_rows(["a"], 2, 0)))
    for _ in range(3):
        mirror.refresh(["a"])
    assert held.vectors.tolist() == [[1, 1]]
    assert mirror.catalogue.vectors.tolist() == [[2, 2]]


def test_both_copies_take_every_change() -> None:
    table = opened(Update(barrier=Barrier(1, 0, 0), items=item_rows(["a", "b"], 1, 0)))
    mirror = Mirror(table.reader())
    for value, item_id in enumerate("abab", start=2):
        rows = item_rows([item_id], value, 0)
        table.publish(Update(barrier=Barrier(1, 0, 0), items=rows))
        mirror.refresh([item_id])
    mirror.refresh(())
    assert mirror.catalogue.biases.tolist() == [4, 5]


def test_a_cosine_outlives_a_silence_of_many_half_lives() -> None:
    table = opened(
        Update(
            barrier=Barrier(1, 0, 0),
            items=item_rows(["a", "b"], 0, 0),
            covisited={"a": Covisited(["b"], np.array([3.0], np.float32), 0)},
        )
    )
    mirror = Mirror(table.reader())
    later_ms = 60 * HALF_LIFE_MS
    table.publish(Update(barrier=Barrier(2, later_ms, 0), items=item_rows(["c"], 0, later_ms)))
    _, cosines = mirror.refresh(["c"]).covisited(0, 1)
    np.testing.assert_allclose(cosines, [3 / 4], rtol=1e-5)


def test_a_weight_without_its_count_is_refused() -> None:
    layout = Layout(dim=2, counts=LAYOUT.counts[:2])
    table = opened(Update(barrier=Barrier(1, 0, 0), weights=WEIGHTS), layout)
    with pytest.raises(TableError, match="carry no count 'pairs'"):
        Mirror(table.reader())


def test_no_reader_sees_half_a_refresh() -> None:
    item_ids = [str(n) for n in range(64)]
    rows = item_rows(item_ids, 0, 0)._replace(counts=np.zeros((64, 0)))
    table = opened(Update(barrier=Barrier(1, 0, 0), items=rows), Layout(dim=2))
    mirror = Mirror(table.reader())
    halves: list[Any] = []
    done = threading.Event()

    def read() -> None:
        query = Query(vector=np.ones(2, np.float32), n=64)
        while not done.is_set():
            found = recommend(mirror.catalogue, [query])[0]
            if np.ptp(found.scores) or len(found.rows) != 64:
                halves.append(found)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for value in range(300):
        new = rows._replace(
            vectors=np.full((64, 2), value, np.float32), biases=np.full(64, value, np.float32)
        )
        table.publish(Update(barrier=Barrier(1, 0, 0), items=new))
        mirror.refresh(item_ids)
    done.set()
    for reader in readers:
        reader.join()
    assert not halves
