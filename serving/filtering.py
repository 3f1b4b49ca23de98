"""Which items a request allows, by the attributes that were stored for them."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from serving.catalogue import Catalogue
from serving.rerank import NO_GROUP

Wanted = Mapping[str, Collection[str]]
"""Attribute → values: an item is allowed that has one of the values of each attribute."""

CREATED: Final = "created_ms"
"""The attribute that says when an item came into being, as Unix time in milliseconds."""

_MASKS: Final = 32
"""Filters whose answer is kept, N bytes each."""


def values_of(value: Any) -> list[str]:
    """Return the values that an attribute gives an item, as text.

    A list gives it each of its entries; numbers, booleans and null read as in JSON, and so does an
    object as a whole.

    Examples
    --------
    >>> values_of("music"), values_of(["music", 7, True]), values_of({"b": 1})
    (['music'], ['music', '7', 'true'], ['{"b":1}'])

    """
    if isinstance(value, list):
        return [each for one in value for each in values_of(one)]
    return [value if isinstance(value, str) else msgspec.json.encode(value).decode()]


class Attributes:
    """The attributes of all items, and the rows that a filter lets through.

    One thread writes; any number of threads ask.

    Examples
    --------
    >>> attributes = Attributes({"5239": {"tag": ["sea", "art"]}, "8": {"tag": "sea"}})
    >>> sorted(attributes.items({"tag": ["sea"]}))
    ['5239', '8']
    >>> sorted(attributes.items({"tag": ["art", "rock"]}))
    ['5239']

    """

    def __init__(self, of_items: Mapping[str, Mapping[str, Any]]) -> None:
        self._of: dict[str, Mapping[str, Any]] = {}
        self._holders: dict[tuple[str, str], frozenset[str]] = {}
        self._version = 0
        self._latest: tuple[int, list[tuple[str, int]]] = -1, []
        self._masks: OrderedDict[Any, NDArray[np.bool_]] = OrderedDict()
        self.put(of_items)

    def __len__(self) -> int:
        """Count the items that have attributes."""
        return len(self._of)

    def of(self, item_id: str) -> Mapping[str, Any]:
        """Return the attributes of one item, none if there are none."""
        return self._of.get(item_id, {})

    def put(self, of_items: Mapping[str, Mapping[str, Any]], gone: Collection[str] = ()) -> None:
        """Replace the attributes of some items; forget those of others."""
        of_items = {one: said for one, said in of_items.items() if not self._says(one, said)}
        gone = [one for one in gone if one in self._of]
        if not of_items and not gone:
            return
        removed: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
        added: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
        for item_id in (*of_items, *gone):
            for pair in _pairs(self._of.pop(item_id, {})):
                removed[pair].add(item_id)
        for item_id, attributes in of_items.items():
            self._of[item_id] = attributes
            for pair in _pairs(attributes):
                added[pair].add(item_id)
        for pair in removed.keys() | added.keys():
            # Replaced whole, so that whoever reads the set goes on with the old one.
            holders = self._holders.get(pair, frozenset()) - removed[pair] | added[pair]
            if holders:
                self._holders[pair] = holders
            else:
                self._holders.pop(pair, None)
        self._version += 1

    def _says(self, item_id: str, said: Mapping[str, Any]) -> bool:
        """Tell whether that is known already; as JSON, as true is equal to 1 here and not there."""
        known = self._of.get(item_id)
        return known is not None and msgspec.json.encode(known) == msgspec.json.encode(said)

    def items(self, wanted: Wanted) -> frozenset[str]:
        """Return the items that a filter allows; it must name an attribute."""
        allowed = [
            frozenset[str]().union(*(self._holders.get((name, value), ()) for value in values))
            for name, values in wanted.items()
        ]
        return frozenset.intersection(*allowed)

    def latest(self) -> list[tuple[str, int]]:
        """Return the items of which :data:`CREATED` is known, with it, the newest first."""
        version, found = self._latest
        if version != self._version:
            version = self._version
            dated = ((item_id, said.get(CREATED)) for item_id, said in tuple(self._of.items()))
            found = [(item_id, ms) for item_id, ms in dated if isinstance(ms, int)]
            found.sort(key=lambda one: (-one[1], one[0]))
            self._latest = version, found
        return found

    def mask(self, catalogue: Catalogue, wanted: Wanted) -> NDArray[np.bool_] | None:
        """Return which rows a filter allows, shape (N,); ``None`` is all of them."""
        if not wanted:
            return None
        filtered = tuple(sorted((name, tuple(sorted(values))) for name, values in wanted.items()))
        key = catalogue.epoch, len(catalogue), self._version, filtered
        mask = self._masks.get(key)
        if mask is None:
            mask = np.zeros(len(catalogue), np.bool_)
            rows = catalogue.rows(self.items(wanted))
            mask[rows[rows >= 0]] = True
            self._masks[key] = mask
            while len(self._masks) > _MASKS:
                self._masks.popitem(last=False)
        return mask

    def groups(self, item_ids: Sequence[str], name: str) -> NDArray[np.int64]:
        """Return the first value of one attribute for each item, as a number of its own."""
        numbers: dict[str, int] = {}
        groups = np.full(len(item_ids), NO_GROUP, np.int64)
        for at, item_id in enumerate(item_ids):
            if (value := self.of(item_id).get(name)) is not None and (texts := values_of(value)):
                groups[at] = numbers.setdefault(texts[0], len(numbers))
        return groups


def _pairs(attributes: Mapping[str, Any]) -> set[tuple[str, str]]:
    return {(name, text) for name, value in attributes.items() for text in values_of(value)}
