"""All published items of one epoch in memory, as of one moment, and what keeps them up to date."""

from __future__ import annotations

import weakref
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from serving import fusion
from serving.rows import Barrier, Covisited, ItemRows, Layout
from serving.table import Reader
from stream.errors import TableError

UNKNOWN: Final = -1
"""The row of an id that is not in the catalogue."""

PAIRS: Final = "pairs"
"""The count of an item that is its mass in co-visitation: the sum of all of its pairs."""

PAIR: Final = np.dtype([("row", np.int32), ("weight", np.float32)])
"""The other item of a pair and the pair's weight; kept as int64, which is much faster to join."""

_NO_PAIRS: Final = np.empty(0, np.int64)
_MAX_EXPONENT: Final = 48.0
"""Half-lives that the stream may run ahead of the reference time before all is rescaled."""

_TINY: Final = 1e-30
"""Keeps an item whose every pair has decayed to nothing from dividing nothing by nothing."""


class Catalogue:
    r"""Every item of one epoch as of one moment. It never changes; any number of threads read it.

    An item keeps its row for as long as a :class:`Mirror` follows its epoch, so rows that were
    looked up in one catalogue hold in all later ones.

    Attributes
    ----------
    epoch, layout, barrier, weights
        As they were published.
    known
        Which rows are items that may be shown, shape (N,): an item may be gone, or have been
        named by another item's list only.
    vectors
        Shape (N, D), fp32.
    biases
        Shape (N,).

    Notes
    -----
    Counts and pairs are kept as of one reference time, so that carrying them to another takes one
    factor per half-life. Hold on to the catalogue for as long as you read its arrays: once the
    last reference to it is gone, the memory is written again.

    """

    def __init__(
        self,
        reader: Reader,
        items: _Items,
        names: _Names,
        barrier: Barrier,
        weights: Mapping[str, NDArray[Any]],
    ) -> None:
        self.epoch = reader.epoch
        self.layout = reader.layout
        self.barrier = barrier
        self.weights = weights
        n = len(names.ids)
        self.known = items.known[:n]
        self.vectors = items.vectors[:n]
        self.biases = items.biases[:n]
        self._items = items
        self._names = names
        self._reference_ms = items.reference_ms
        self._n = n
        self._base: tuple[int, NDArray[np.float32]] | None = None

    def __len__(self) -> int:
        """Count the rows, those of unknown and gone items included."""
        return self._n

    def rows(self, item_ids: Collection[str]) -> NDArray[np.int64]:
        """Return the row of each id, :data:`UNKNOWN` where there is none."""
        get, n = self._names.rows.get, self._n
        found = np.fromiter((get(one, UNKNOWN) for one in item_ids), np.int64, len(item_ids))
        found[found >= n] = UNKNOWN  # named after this moment
        return found

    def ids(self, rows: NDArray[np.int64]) -> list[str]:
        """Return the ids of rows."""
        ids = self._names.ids
        return [ids[row] for row in rows.tolist()]

    def base(self, at_ms: int) -> NDArray[np.float32]:
        """Return the part of the score that is the same for every user, (N,): bias and counts.

        It is minus infinity for items that are not :attr:`known`. The last time asked for is kept.
        """
        kept = self._base
        if kept is None or kept[0] != at_ms:
            base = self.biases.copy()
            for feature in self.count_features(at_ms).values():
                base += feature
            base[~self.known] = -np.inf
            self._base = kept = at_ms, base
        return kept[1]

    def count_features(self, at_ms: int) -> dict[str, NDArray[np.float32]]:
        """Return what popularity and click rate add to each item's score, (N,) each."""
        weights = {name: self.weights.get(name) for name in ("popularity", "click_rate")}
        sums = {what: self._counts(what, at_ms) for what in ("positives", "shown")}
        positives, shown = sums["positives"], sums["shown"]
        found = {}
        if (weight := weights["popularity"]) is not None:
            found["popularity"] = fusion.popularity(positives) @ weight
        if (weight := weights["click_rate"]) is not None:
            # Summed as float64: a total over a million items has more digits than a float32.
            average = fusion.average_rate(positives.sum(0, np.float64), shown.sum(0, np.float64))
            rate = fusion.click_rate(positives, shown, average.astype(np.float32))
            found["click_rate"] = rate @ weight
        return found

    def pairs(self, row: int) -> NDArray[np.int64]:
        """Return what is visited with one item, each pair as eight bytes: see :data:`PAIR`.

        A pair's cosine is its weight times the :attr:`roots` of both items.
        """
        return self._items.pairs[row]

    @property
    def roots(self) -> NDArray[np.float32]:
        """One over the root of each item's mass in co-visitation, (N,)."""
        return self._items.roots[: self._n]

    def covisited(self, row: int, n: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the ``n`` known items that go best with one item, and their cosines."""
        pairs, roots = self.pairs(row).view(PAIR), self.roots
        others = pairs["row"].astype(np.int64)
        cosines = np.where(self.known[others], pairs["weight"] * roots[row] * roots[others], 0)
        best = np.argsort(-cosines, kind="stable")[:n]
        best = best[cosines[best] > 0]
        return others[best], cosines[best]

    def _counts(self, what: str, at_ms: int) -> NDArray[np.float32]:
        """Return the counts ``positives`` or ``shown`` of all items, (N, H), as of a time."""
        names = [count.name for count in self.layout.counts]
        columns = [at for at, name in enumerate(names) if name.startswith(f"{what}_")]
        half_lives_ms = np.array([self.layout.counts[at].half_life_ms for at in columns], np.int64)
        factors = 2.0 ** ((self._reference_ms - np.int64(at_ms)) / half_lives_ms)
        return (self._items.counts[: self._n, columns] * factors).astype(np.float32)


class Mirror:
    """Keeps the newest catalogue of one epoch in memory, without ever making a reader wait.

    Readers take :attr:`catalogue`, whatever is going on; one thread calls :meth:`refresh`, which
    patches the rows that changed into a second copy and swaps the two.

    Parameters
    ----------
    reader
        The epoch to follow; for a newer epoch make a new mirror.

    Raises
    ------
    TableError
        If the table cannot answer, or publishes a weight without what it weighs.

    Notes
    -----
    Two copies of all rows are held, but only one of the lists of pairs, the largest part. What
    changed is patched, at O(changed rows), unless an older catalogue than the current one is still
    being read: then everything is copied once. Biases and counts are summed over all rows anew.

    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._names = _Names()
        self._spare: tuple[_Items, NDArray[np.int64], weakref.ref[Catalogue]] | None = None
        # Read first: what is found afterwards is at least as new.
        barrier = reader.barrier()
        self._items = _Items(reader.layout, barrier.at_ms)
        self._catalogue = Catalogue(reader, self._items, self._names, barrier, {})
        self.refresh(reader.item_ids())

    @property
    def catalogue(self) -> Catalogue:
        """The items as of the last refresh."""
        return self._catalogue

    def refresh(self, changed: Collection[str], gone: Iterable[str] = ()) -> Catalogue:
        """Read what changed and return the catalogue that shows it.

        Parameters
        ----------
        changed
            Items of which the row or the list was written since the last call. Naming others, or
            the same again, does no harm.
        gone
            Items that were forgotten.

        Raises
        ------
        TableError
            If the table cannot answer; the catalogue stays as it was.

        """
        asked = sorted(changed)
        barrier, weights = self._reader.barrier(), self._reader.weights()
        rows, lists = self._reader.items(asked), self._reader.covisited(asked)
        self._check(weights)
        stopped = self._names.add(gone)
        written = self._names.add(rows.ids)
        listed = self._names.add(lists)
        others = self._names.add(chain.from_iterable(each.item_ids for each in lists.values()))
        items = self._writable(barrier.at_ms)
        items.forget(stopped)
        items.put(written, rows)
        items.put_pairs(listed, others, list(lists.values()))
        old, before = self._catalogue, self._items
        new = Catalogue(self._reader, items, self._names, barrier, weights)
        new.base(barrier.at_ms)  # now rather than in the first request
        self._catalogue, self._items = new, items
        touched = np.unique(np.concatenate([stopped, written, listed]))
        self._spare = before, touched, weakref.ref(old)
        return self._catalogue

    def _check(self, weights: Mapping[str, NDArray[Any]]) -> None:
        names = [count.name for count in self._reader.layout.counts]
        if "covisitation" in weights and PAIRS not in names:
            raise TableError(
                f"epoch {self._reader.epoch} weighs co-visitation, but its items carry no count "
                f"{PAIRS!r}, only {names}: publish it anew with this version of tidegraph"
            )

    def _writable(self, newest_ms: int) -> _Items:
        """Return a copy of the current items that nobody reads, with room for every name."""
        current, n = self._items, len(self._names.ids)
        spare, self._spare = self._spare, None
        if spare is not None and current.serves(n, newest_ms):
            items, stale, shown = spare
            if shown() is None and items.reference_ms == current.reference_ms and items.fits(n):
                items.copy_rows(current, stale)
                return items
        return current.copy(n, newest_ms)


class _Names:
    """Ids and their rows. Only ever added to, so every catalogue of an epoch shares them."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.rows: dict[str, int] = {}

    def add(self, item_ids: Iterable[str]) -> NDArray[np.int64]:
        """Return the rows of ids, new ones for new ids."""
        asked, get = list(item_ids), self.rows.get
        found = [get(item_id) for item_id in asked]
        if None in found:
            for item_id in asked:
                if item_id not in self.rows:
                    self.ids.append(item_id)
                    self.rows[item_id] = len(self.ids) - 1  # last: whoever finds the row finds it
            found = [self.rows[item_id] for item_id in asked]
        return np.array(found, np.int64)


class _Items:
    """One copy of what is published of the items, with room for more."""

    def __init__(self, layout: Layout, reference_ms: int, room: int = 0) -> None:
        self.layout = layout
        self.reference_ms = reference_ms
        names = [count.name for count in layout.counts]
        self._mass = names.index(PAIRS) if PAIRS in names else None
        self._half_lives_ms = np.array([count.half_life_ms for count in layout.counts], np.int64)
        self.known = np.zeros(room, np.bool_)
        self.vectors = np.zeros((room, layout.dim), np.float32)
        self.biases = np.zeros(room, np.float32)
        self.counts = np.zeros((room, len(layout.counts)), np.float64)  # as of reference_ms
        self.roots = np.zeros(room, np.float32)  # 1 / sqrt(mass); 0 until the item is known
        self.pairs: list[NDArray[np.int64]] = [_NO_PAIRS] * room  # as of reference_ms

    def fits(self, n: int) -> bool:
        """Tell whether there is room for ``n`` rows."""
        return n <= self.known.shape[0]

    def serves(self, n: int, newest_ms: int) -> bool:
        """Tell whether rows as of ``newest_ms`` can be written here, ``n`` in all."""
        ahead_ms = newest_ms - self.reference_ms
        near = ahead_ms <= _MAX_EXPONENT * self._half_lives_ms.min(initial=1 << 62)
        return self.fits(n) and bool(near)

    def copy(self, n: int, newest_ms: int) -> _Items:
        """Return a copy, with more room and a newer reference time where that is needed."""
        room = self.known.shape[0] if self.fits(n) else max(64, n + n // 2)
        reference_ms = self.reference_ms if self.serves(0, newest_ms) else newest_ms
        new = _Items(self.layout, reference_ms, room)
        rows = slice(self.known.shape[0])
        factors = self._decay(np.array([self.reference_ms]), reference_ms)
        new.known[rows] = self.known
        new.vectors[rows] = self.vectors
        new.biases[rows] = self.biases
        np.multiply(self.counts, factors, out=new.counts[rows])
        new.pairs[rows] = self.pairs
        if self._mass is None or reference_ms == self.reference_ms:
            new.roots[rows] = self.roots
            return new
        factor = factors[0, self._mass]
        new.roots[rows] = _roots(new.counts[rows, self._mass]) * new.known[rows]
        for row, pairs in enumerate(self.pairs):
            if pairs.size:
                new.pairs[row] = pairs.copy()
                new.pairs[row].view(PAIR)["weight"] *= np.float32(factor)
        return new

    def copy_rows(self, other: _Items, rows: NDArray[np.int64]) -> None:
        """Take some rows over from a newer copy."""
        for name in ("known", "vectors", "biases", "counts", "roots"):
            getattr(self, name)[rows] = getattr(other, name)[rows]
        for row in rows.tolist():
            self.pairs[row] = other.pairs[row]

    def put(self, at: NDArray[np.int64], rows: ItemRows) -> None:
        """Write items."""
        self.known[at] = True
        self.vectors[at] = rows.vectors
        self.biases[at] = rows.biases
        self.counts[at] = rows.counts * self._decay(rows.ts_ms, self.reference_ms)
        if self._mass is not None:
            self.roots[at] = _roots(self.counts[at, self._mass])

    def put_pairs(
        self, rows: NDArray[np.int64], others: NDArray[np.int64], lists: Sequence[Covisited]
    ) -> None:
        """Write the lists of some items; ``others`` are the rows of what stands in all of them."""
        if self._mass is None or not lists:
            return
        ends = np.cumsum([len(each.item_ids) for each in lists]).tolist()
        ts_ms = np.array([each.ts_ms for each in lists], np.int64)
        factors = self._decay(ts_ms, self.reference_ms)[:, self._mass].astype(np.float32)
        new = np.empty(others.shape[0], PAIR)
        new["row"] = others
        new["weight"] = np.concatenate([each.weights for each in lists])
        new["weight"] *= np.repeat(factors, np.diff(ends, prepend=0))
        pairs = new.view(np.int64)
        for row, first, end in zip(rows.tolist(), [0, *ends], ends, strict=False):
            self.pairs[row] = pairs[first:end].copy()  # else each would hold on to all of them

    def forget(self, rows: NDArray[np.int64]) -> None:
        """Show items no more."""
        self.known[rows] = False
        self.counts[rows] = 0  # else they would go on entering the average click rate
        self.roots[rows] = 0
        for row in rows.tolist():
            self.pairs[row] = _NO_PAIRS

    def _decay(self, from_ms: NDArray[np.int64], to_ms: int) -> NDArray[np.float64]:
        """Return the factors (n, C) that carry counts from their times to another."""
        ages = (from_ms[:, None] - np.int64(to_ms)) / self._half_lives_ms
        factors: NDArray[np.float64] = 2.0**ages
        return factors


def _roots(masses: NDArray[np.float64]) -> NDArray[np.float32]:
    roots: NDArray[np.float32] = (1 / np.sqrt(masses + _TINY)).astype(np.float32)
    return roots
