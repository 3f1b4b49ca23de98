"""What a filter lets through is what a look at every item finds."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from serving.catalogue import Mirror
from serving.filtering import CREATED, Attributes, values_of
from serving.rerank import NO_GROUP
from tests.serving.world import N_ITEMS, published

IDS = [f"i{n}" for n in range(N_ITEMS)]
values = st.none() | st.booleans() | st.sampled_from(["a", "b"]) | st.integers(0, 2)
said = st.dictionaries(
    st.sampled_from(["x", "y"]), values | st.lists(values, max_size=3), max_size=2
)
changes = st.tuples(
    st.dictionaries(st.sampled_from(IDS), said, max_size=4), st.sets(st.sampled_from(IDS))
)
filters = st.dictionaries(
    st.sampled_from(["x", "y", "z"]),
    st.lists(st.sampled_from(["a", "b", "0", "1", "true", "null"]), min_size=1, max_size=2),
    min_size=1,
)


@given(history=st.lists(changes, max_size=4), wanted=filters)
def test_a_filter_allows_what_a_look_at_every_item_finds(
    history: list[tuple[dict[str, Any], set[str]]], wanted: dict[str, list[str]]
) -> None:
    attributes, plain = Attributes({}), dict[str, Any]()
    catalogue = Mirror(published().reader()).catalogue
    for put, gone in history:
        attributes.put(put, gone=gone - put.keys())
        plain = {one: has for one, has in plain.items() if one not in gone} | put
        attributes.mask(catalogue, wanted)  # kept, and out of date after the next change
    want = {
        item_id
        for item_id, has in plain.items()
        if all(
            name in has and set(values_of(has[name])) & set(texts) for name, texts in wanted.items()
        )
    }
    assert attributes.items(wanted) == want
    mask = attributes.mask(catalogue, wanted)
    assert mask is not None
    assert {one for one, allowed in zip(IDS, mask, strict=True) if allowed} == want


def test_what_is_said_again_costs_no_new_look() -> None:
    attributes = Attributes({"i1": {"x": "a"}, "i2": {"x": 1}})
    catalogue = Mirror(published().reader()).catalogue
    mask = attributes.mask(catalogue, {"x": ["a"]})
    attributes.put({"i1": {"x": "a"}}, gone={"i7"})
    assert attributes.mask(catalogue, {"x": ["a"]}) is mask
    attributes.put({"i2": {"x": True}})
    assert attributes.items({"x": ["true"]}) == {"i2"}


def test_an_item_has_the_group_of_its_first_value() -> None:
    attributes = Attributes({"a": {"by": ["Ann", "Bo"]}, "b": {"by": "Bo"}, "c": {"by": "Ann"}})
    assert attributes.groups(["a", "b", "c", "d"], "by").tolist() == [0, 1, 0, NO_GROUP]


def test_the_latest_items_are_those_made_last() -> None:
    attributes = Attributes({"a": {CREATED: 5}, "b": {CREATED: 9}, "c": {}, "d": {CREATED: "?"}})
    assert attributes.latest() == [("b", 9), ("a", 5)]
    attributes.put({"c": {CREATED: 7}}, gone={"b"})
    assert attributes.latest() == [("c", 7), ("a", 5)]
