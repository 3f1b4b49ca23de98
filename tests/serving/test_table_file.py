"""A table in memory outlives its process in one file."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from serving.rows import Barrier, Layout, UserRows
from serving.table import MemoryTable, Update
from stream.errors import BadData, BadOutput, TableError


@pytest.fixture
def table() -> MemoryTable:
    table = MemoryTable()
    table.begin(Layout(dim=1))
    rows = UserRows(["712"], np.ones((1, 1), np.float32), np.array([60]))
    barrier = Barrier(step=1, at_ms=60, published_ms=1_000)
    table.publish(Update(barrier=barrier, users=rows, seen={"712": ["1", "2"]}))
    table.flip()
    return table


@pytest.mark.parametrize("name", ["", "table"])
def test_a_saved_table_is_read_back_from_the_file_or_its_folder(
    table: MemoryTable, tmp_path: Path, name: str
) -> None:
    table.save(tmp_path / "table")
    reader = MemoryTable.load(tmp_path / name).reader()
    assert reader.users(["712"]).vectors.tolist() == [[1.0]]
    assert reader.seen(["712"])["712"] == {"1", "2"}
    assert [path.name for path in tmp_path.iterdir()] == ["table"]


def test_a_table_read_back_goes_on_with_the_next_epoch(table: MemoryTable, tmp_path: Path) -> None:
    table.save(tmp_path / "table")
    assert MemoryTable.load(tmp_path).begin(Layout(dim=1)) == 2


def test_the_same_rows_are_the_same_file_in_whatever_order_they_came(tmp_path: Path) -> None:
    barrier = Barrier(step=1, at_ms=60, published_ms=1_000)
    met = [str(item) for item in range(50)]
    for name, order in (("forth", met), ("back", met[::-1])):
        table = MemoryTable()
        table.begin(Layout(dim=1))
        for item_id in order:
            seen = {"712": [item_id], item_id: [item_id]}
            table.publish(Update(barrier=barrier, seen=seen))
        table.flip()
        table.save(tmp_path / name)
    assert (tmp_path / "forth").read_bytes() == (tmp_path / "back").read_bytes()


def test_a_torn_file_is_refused(table: MemoryTable, tmp_path: Path) -> None:
    table.save(tmp_path / "table")
    whole = (tmp_path / "table").read_bytes()
    (tmp_path / "table").write_bytes(whole[:-3])
    with pytest.raises(BadData, match="not a whole table"):
        MemoryTable.load(tmp_path)


def test_a_file_of_another_row_layout_is_refused(table: MemoryTable, tmp_path: Path) -> None:
    table.save(tmp_path / "table")
    (tmp_path / "table").write_bytes(msgspec.msgpack.encode({"row_layout": 1, "epoch": 7}))
    with pytest.raises(BadData, match="holds row layout 1, this program reads 2"):
        MemoryTable.load(tmp_path)


def test_a_missing_file_and_an_unwritable_place_say_so(table: MemoryTable, tmp_path: Path) -> None:
    with pytest.raises(BadData, match="No such file"):
        MemoryTable.load(tmp_path)
    with pytest.raises(BadOutput, match="cannot be written"):
        table.save(tmp_path / "nowhere" / "table")
    with pytest.raises(TableError, match="no table to save"):
        MemoryTable().save(tmp_path / "table")
