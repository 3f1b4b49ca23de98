"""Ids agree with a dict and a list, and survive expiry, growth and a restart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph_store.ids import Ids
from stream.errors import BadSnapshot, TidegraphError

ID = st.one_of(
    st.sampled_from(["", "a", "b", "ab", "é", "日本", "\ud800", "u1", "u2", "u3"]),
    st.text(max_size=3),
)
STEP = st.one_of(
    st.lists(ID, max_size=20),  # rows() of these
    st.sets(st.integers(0, 30), max_size=5),  # expire() these
)


class PlainIds:
    """A dict, a list, and a stack of free rows."""

    def __init__(self) -> None:
        self.row: dict[str, int] = {}
        self.id: list[str | None] = []
        self.free: list[int] = []

    def rows(self, ids: list[str]) -> list[int]:
        for name in ids:
            if name not in self.row:
                if self.free:
                    self.row[name] = self.free.pop()
                    self.id[self.row[name]] = name
                else:
                    self.row[name] = len(self.id)
                    self.id.append(name)
        return [self.row[name] for name in ids]

    def expire(self, rows: list[int]) -> None:
        for row in rows:
            if row < len(self.id) and self.id[row] is not None:
                del self.row[str(self.id[row])]
                self.id[row] = None
                self.free.append(row)


@given(steps=st.lists(STEP, max_size=12), restart_at=st.integers(0, 12))
def test_ids_agree_with_a_dict_and_a_list(
    steps: list[list[str] | set[int]], restart_at: int
) -> None:
    ids, plain = Ids(), PlainIds()
    for n, step in enumerate(steps):
        if n == restart_at:
            state, ids = ids.state(), Ids()
            ids.restore(state)
        if isinstance(step, set):
            rows = sorted(step)
            ids.expire(np.array(rows, np.int64))
            plain.expire(rows)
        else:
            assert ids.rows(step).tolist() == plain.rows(step)
        assert len(ids) == len(plain.id)
        assert ids.n_live == len(plain.row)
        known = [row for row, name in enumerate(plain.id) if name is not None]
        assert ids.ids_of(np.array(known, np.int64)) == [plain.id[row] for row in known]
        asked = [*plain.row, "never seen"]
        assert ids.find(asked).tolist() == [*plain.row.values(), -1]


def test_ids_of_a_large_table_keep_their_rows_while_it_grows_and_expires() -> None:
    ids = Ids()
    names = [f"user-{n}" for n in range(50_000)]
    assert ids.rows(names).tolist() == list(range(50_000))
    ids.expire(np.arange(0, 50_000, 2))
    assert ids.find(names[1::2]).tolist() == list(range(1, 50_000, 2))
    assert set(ids.find(names[::2]).tolist()) == {-1}
    newcomers = [f"new-{n}" for n in range(25_000)]
    assert sorted(ids.rows(newcomers).tolist()) == list(range(0, 50_000, 2))
    assert ids.ids_of(ids.find(newcomers)) == newcomers
    assert len(ids) == 50_000


def test_ids_whose_hashes_meet_in_the_table_stay_apart() -> None:
    ids = Ids()
    names = [str(n) for n in range(300_000)]
    assert ids.rows(names).tolist() == list(range(300_000))
    tags = ids.digests() >> np.uint64(32)  # what the table compares before it looks at the text
    assert np.unique(tags).size < 300_000
    assert ids.find(names).tolist() == list(range(300_000))


def test_text_of_expired_ids_does_not_pile_up() -> None:
    ids = Ids()
    for batch in range(200):
        rows = ids.rows([f"{batch}-{n:-<40}" for n in range(100)])
        ids.expire(rows)
    assert len(ids) == 100
    assert ids.n_bytes < 50_000


def test_a_million_ids_take_less_than_sixty_bytes_each_beside_their_text() -> None:
    ids = Ids()
    for first in range(0, 1_000_000, 50_000):
        ids.rows([str(n) for n in range(10**7 + first, 10**7 + first + 50_000)])
    assert ids.n_bytes / 1_000_000 < 8 + 60


def test_rows_without_an_id_are_named() -> None:
    ids = Ids()
    ids.rows(["a", "b"])
    ids.expire(np.array([0]))
    for row in (0, 2, -1):
        with pytest.raises(TidegraphError, match=f"row {row} has no id"):
            ids.id_of(row)


def test_digests_belong_to_the_id_and_not_to_its_row() -> None:
    one, other = Ids(), Ids()
    one.rows(["a", "b", "c"])
    other.rows(["c", "a"])
    assert one.digests()[[0, 2]].tolist() == other.digests()[[1, 0]].tolist()
    assert len(set(one.digests().tolist())) == 3


def test_a_state_that_does_not_add_up_is_refused() -> None:
    ids = Ids()
    ids.rows(["a", "bc"])
    state = ids.state()
    with pytest.raises(BadSnapshot, match="want 3 bytes of text"):
        Ids().restore(state | {"text": state["text"][:2]})
    with pytest.raises(BadSnapshot, match="0 free rows"):
        Ids().restore(state | {"free": np.array([1])})
