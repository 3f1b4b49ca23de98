"""Keys keep the order of ids, and an id made from a row is that row's alone."""

from __future__ import annotations

import polars as pl
from hypothesis import example, given
from hypothesis import strategies as st

from stream.identity import digest_id, digest_ids, event_key, event_keys

digests = st.text("0123456789abcdef", min_size=32, max_size=32)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
numbers = st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(digests))
def test_keys_of_digests_are_in_the_order_of_the_ids(ids: list[str]) -> None:
    keys = event_keys(sorted(ids)).tolist()
    assert keys == sorted(keys)


@given(st.lists(st.one_of(texts, digests)))
@example(["9F2C41D7A0B36E58C4D1F07A92BE6D13", "9f2c41d7a0b36e58c4d1f07a92be6d13"])
@example(["0x" + "0" * 30, " " * 32, "1_" * 16])
@example(["é" * 32])
@example([])
def test_many_keys_are_the_keys_of_each(ids: list[str]) -> None:
    assert event_keys(ids).tolist() == [event_key(event_id) for event_id in ids]


def test_only_lower_case_digests_are_read_as_numbers() -> None:
    assert event_key("00000000000000ffaaaaaaaaaaaaaaaa") == 0xFF
    assert event_key("00000000000000FFAAAAAAAAAAAAAAAA") != 0xFF
    assert event_key("0x000000000000ffaaaaaaaaaaaaaaaa") != 0xFF


rows = st.lists(st.tuples(texts, texts, st.integers(-(2**40), 2**42), numbers, numbers), max_size=8)


@given(rows)
def test_ids_made_by_columns_are_the_ids_made_row_by_row(
    log: list[tuple[str, str, int, float, float]],
) -> None:
    signals = pl.DataFrame(
        {"click": [row[3] for row in log], "a": [row[4] for row in log]},
        schema={"click": pl.Float64, "a": pl.Float64},
    )
    found = digest_ids(
        pl.Series([row[0] for row in log], dtype=pl.String),
        pl.Series([row[1] for row in log], dtype=pl.String),
        pl.Series([row[2] for row in log], dtype=pl.Int64),
        signals,
    )
    assert found == [digest_id(*row[:3], {"a": row[4], "click": row[3]}) for row in log]


def test_an_absent_signal_a_null_and_a_zero_make_the_same_id() -> None:
    without = digest_id("712", "5239", 1, {})
    assert without == digest_id("712", "5239", 1, {"click": 0, "hate": -0.0})
    ids = pl.Series(["712"]), pl.Series(["5239"]), pl.Series([1])
    nothing = pl.DataFrame({"click": [None]}, schema={"click": pl.Float64})
    assert [without] == digest_ids(*ids, nothing)


def test_rows_that_differ_in_anything_have_different_ids() -> None:
    rows: list[tuple[str, str, int, dict[str, float]]] = [
        ("712", "5239", 1, {"click": 1}),
        ("7125", "239", 1, {"click": 1}),
        ("712", "5239", 11, {"click": 1}),
        ("712", "52391", 1, {"click": 1}),
        ("712", "5239", 1, {"click": 2}),
        ("712", "5239", 1, {"like": 1}),
        ("712", "5239", 1, {"click": 1, "like": 1}),
        ("712", "5239,5:click", 1, {}),
        ("712", "", 5239, {"click": 1}),
    ]
    assert len({digest_id(*row) for row in rows}) == len(rows)
