"""A log too big for memory is sorted on disk, and nobody can tell."""

from __future__ import annotations

import itertools
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.datasets import open_dataset, order
from replay.datasets.order import in_time_order
from stream.errors import BadData

frames = st.lists(st.lists(st.integers(0, 30), max_size=30), max_size=12)


def as_frames(times: list[list[int]]) -> list[pl.DataFrame]:
    """Number the rows, so that a lost or doubled one shows."""
    table, n = [], 0
    for part in times:
        ids = range(n, n + len(part))
        n += len(part)
        table.append(
            pl.DataFrame({"ts_ms": part, "n": ids}, schema={"ts_ms": pl.Int64, "n": pl.Int64})
        )
    return table


@given(times=frames, budget_bytes=st.sampled_from([0, 100, 1 << 20]), group=st.integers(1, 7))
def test_any_budget_yields_every_row_once_in_order_and_no_millisecond_twice(
    times: list[list[int]], budget_bytes: int, group: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "GROUP_ROWS", group)
        pieces = list(in_time_order(iter(as_frames(times)), budget_bytes=budget_bytes))
    rows = [row for piece in pieces for row in piece.rows()]
    flat = [(ts_ms, n) for frame in as_frames(times) for ts_ms, n in frame.rows()]
    assert sorted(rows) == sorted(flat)
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)
    spans = [(piece["ts_ms"][0], piece["ts_ms"][-1]) for piece in pieces if piece.height]
    assert all(one[1] < other[0] for one, other in itertools.pairwise(spans))


def test_the_sample_read_through_the_disk_is_the_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = open_dataset("kuairand-pure", spill=tmp_path, limit=40_000)
    whole = pl.concat([chunk.frame for chunk in dataset.chunks()])
    monkeypatch.setattr(order, "GROUP_ROWS", 1_000)
    monkeypatch.setattr(in_time_order, "__kwdefaults__", {"spill": None, "budget_bytes": 1 << 20})
    chunks = list(dataset.chunks())
    assert pl.concat([chunk.frame for chunk in chunks]).equals(whole)
    assert not list(tmp_path.iterdir())


def test_the_folder_is_removed_when_the_reader_stops_early(tmp_path: Path) -> None:
    pieces = in_time_order(iter(as_frames([[3, 1], [2]])), spill=tmp_path, budget_bytes=0)
    next(pieces)
    assert list(tmp_path.iterdir())
    pieces.close()  # type: ignore[attr-defined]
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_take_the_pieces_is_the_users_to_change(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="name a folder with space in TMPDIR"):
        list(in_time_order(iter(as_frames([[1]])), spill=tmp_path / "no", budget_bytes=0))
