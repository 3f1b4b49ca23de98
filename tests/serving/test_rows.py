"""The bytes of a row are those that docs/table.md promises to other readers."""

from __future__ import annotations

import struct
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from serving.rows import (
    Count,
    Covisited,
    ItemRows,
    Layout,
    UserRows,
    decode_weights,
    encode_covisited,
    encode_items,
    encode_users,
    encode_weights,
)


@pytest.mark.parametrize(
    ("layout", "vector"), [(Layout(dim=2), "2f"), (Layout(dim=2, precision="fp16"), "2e")]
)
def test_a_user_row_is_laid_out_as_documented(layout: Layout, vector: str) -> None:
    rows = UserRows(["712"], np.array([[0.5, -2]], np.float32), np.array([60]), [[("5239", 1, 60)]])
    head = struct.pack("<BHqq" + vector, 2, 2, 60, 99, 0.5, -2)
    assert encode_users(layout, rows, 99) == [head + msgspec.msgpack.encode([["5239", 1, 60]])]


@pytest.mark.parametrize(("precision", "vector"), [("fp32", "2f"), ("fp16", "2e")])
def test_an_item_row_is_laid_out_as_documented(precision: Any, vector: str) -> None:
    layout = Layout(dim=2, precision=precision, counts=(Count("clicks", 9), Count("shown", 9)))
    rows = ItemRows(
        ["5239"],
        np.array([[0.5, -2]], np.float32),
        np.array([0.25], np.float32),
        np.array([[0.1, 3]]),
        np.array([60]),
    )
    expected = struct.pack("<BHqqf2d" + vector, 2, 2, 60, 99, 0.25, 0.1, 3, 0.5, -2)
    assert encode_items(layout, rows, 99) == [expected]


def test_a_covisitation_list_is_laid_out_as_documented() -> None:
    row = Covisited(["17", "4"], np.array([0.5, 0.25], np.float32), 60)
    expected = [2, 60, ["17", "4"], struct.pack("<2f", 0.5, 0.25)]
    assert msgspec.msgpack.decode(encode_covisited(row)) == expected


def test_weights_keep_their_kind_of_number_and_their_shape() -> None:
    weights: dict[str, NDArray[Any]] = {
        "half_lives_ms": np.array([[1_209_600_000]], np.int64),
        "gate": np.array(0.1, np.float32),
        "big_endian": np.array([1.5], ">f8"),
        "slice": np.arange(6, dtype=np.float32)[::2],
    }
    found = decode_weights(encode_weights(weights))
    for name, array in weights.items():
        assert found[name].dtype == array.dtype.newbyteorder("=")
        np.testing.assert_array_equal(found[name], array)
