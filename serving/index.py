"""Candidates from a large catalogue, without a look at every item: an inverted file of faiss."""

from __future__ import annotations

import math
import threading
from typing import Any, Final

import faiss
import numpy as np
from numpy.typing import NDArray

from serving.catalogue import Catalogue

RECALL: Final = 0.96
"""Share of the best 100 that searches must find on average, as sure as what is measured when the
index is built less twice its standard error; a hundredth may be lost while rows move."""

_MEASURED: Final = 100
_ASKED: Final = 128  # queries that recall is measured with
_SAMPLE: Final = 40  # rows for each cell that the cells are found from
_ROUNDS: Final = 6  # of the search for cells; more hardly help
_ROOM: Final = 1.5  # how much the greatest length may grow, squared
_UPDATED: Final = 512  # rows written while searches wait: about a millisecond
_AT_ONCE: Final = 1 << 16

_library: Any = faiss  # whose types leave out what it takes by name


class Index:
    """The rows of a catalogue in cells of like vectors; a search looks into the nearest cells.

    What is searched for is the product of vectors plus the base of each item, as of when its row
    was written last: a base moves little from one minute to the next. The candidates are to be
    scored exactly. A coordinate more gives all points the same length, so that the nearest ones
    are those of the greatest product (Bachrach and others, *Speeding up the Xbox recommender
    system*, RecSys 2014): cells of points around a mean are even, cells of directions are not.

    Parameters
    ----------
    catalogue
        What to find items of.
    asked
        Vectors of users, shape (Q, D), with which it is measured how many cells must be looked
        into; without any, vectors of items stand for them.

    Attributes
    ----------
    cells, looked_into
        Cells in all, and those that a search looks into.
    recall
        Share of the best 100 that was found with so many.

    Notes
    -----
    Any number of threads search and one writes: written rows go in a few at a time, while searches
    wait.

    """

    def __init__(self, catalogue: Catalogue, asked: NDArray[np.float32] | None = None) -> None:
        rng = np.random.default_rng(0)
        n, dim = catalogue.vectors.shape
        self._lock = threading.Lock()
        self.cells = 2 ** round(math.log2(max(1.0, 2 * math.sqrt(n))))
        self._faiss: Any = _library.IndexIVFFlat(
            _library.IndexFlatL2(dim + 2), dim + 2, self.cells, _library.METRIC_L2
        )
        made = self._faiss.cp
        made.seed, made.niter, made.min_points_per_centroid = 1, _ROUNDS, 1
        made.max_points_per_centroid = _SAMPLE
        sample = np.sort(rng.choice(n, min(n, _SAMPLE * self.cells), replace=False))
        base = catalogue.base(catalogue.barrier.at_ms)
        base = np.where(catalogue.known, base, 0)
        lengths = np.einsum("nd,nd->n", catalogue.vectors, catalogue.vectors) + base * base
        self._length = np.float32(_ROOM * lengths.max(initial=0))
        self._faiss.train(self._points(catalogue, sample))
        self._faiss.make_direct_map()
        self._n = 0
        self.refresh(catalogue, np.empty(0, np.int64))
        if asked is None or not asked.size:
            known = np.flatnonzero(catalogue.known)
            asked = catalogue.vectors[rng.choice(known, min(_ASKED, known.size), replace=False)]
        self.looked_into, self.recall = self._choose(catalogue, asked[:_ASKED])

    def __len__(self) -> int:
        """Count the rows."""
        return self._n

    def refresh(self, catalogue: Catalogue, rows: NDArray[np.int64]) -> None:
        """Write rows that changed, and those that are new at the end of the catalogue."""
        changed = np.unique(rows[(rows >= 0) & (rows < self._n)])
        for first in range(0, changed.shape[0], _UPDATED):
            some = changed[first : first + _UPDATED]
            points = self._points(catalogue, some)
            with self._lock:
                self._faiss.update_vectors(some, points)
        for first in range(self._n, len(catalogue), _AT_ONCE):
            new = np.arange(first, min(first + _AT_ONCE, len(catalogue)))
            points = self._points(catalogue, new)
            with self._lock:
                self._faiss.add(points)
                self._n = len(new) + first

    def candidates(
        self,
        vector: NDArray[np.float32],
        n: int,
        *,
        barred: NDArray[np.int64] | None = None,
        allowed: NDArray[np.bool_] | None = None,
    ) -> NDArray[np.int64]:
        """Return rows among which the ``n`` best are, most likely.

        Parameters
        ----------
        vector
            Of the user, shape (D,).
        n
            Rows wanted.
        barred
            Rows that are not wanted.
        allowed
            Which rows may be returned, shape (N,); ``None`` is all.

        """
        selector: Any = None
        kept: Any  # the selector does not hold on to it
        if allowed is not None:
            may = allowed.copy()
            if barred is not None:
                may[barred[barred >= 0]] = False
            kept = np.packbits(may, bitorder="little")
            selector = _library.IDSelectorBitmap(kept)
        elif barred is not None and barred.size:
            kept = _library.IDSelectorBatch(barred.astype(np.int64))
            selector = _library.IDSelectorNot(kept)
        return self._search(vector[None], n, self.looked_into, selector)[0]

    def _search(
        self, vectors: NDArray[np.float32], n: int, cells: int, selector: Any = None
    ) -> list[NDArray[np.int64]]:
        asked = np.hstack([vectors, np.tile(np.array([1, 0], np.float32), (len(vectors), 1))])
        how = _library.SearchParametersIVF(nprobe=cells)
        if selector is not None:
            how.sel = selector
        with self._lock:
            _, rows = self._faiss.search(asked, n, params=how)
        return [each[each >= 0] for each in rows]

    def _choose(self, catalogue: Catalogue, asked: NDArray[np.float32]) -> tuple[int, float]:
        """Return about the fewest cells that give the recall wanted, and the recall measured."""
        base = catalogue.base(catalogue.barrier.at_ms)
        n = min(_MEASURED, int(np.count_nonzero(catalogue.known)))
        if not n or not asked.size:
            return self.cells, 1.0
        best = [
            set(np.argpartition(-(catalogue.vectors @ one + base), n - 1)[:n].tolist())
            for one in asked
        ]
        cells = 1
        while True:
            found = self._search(asked, n, cells)
            hits = [len(want & set(got.tolist())) for want, got in zip(best, found, strict=True)]
            recall = float(np.mean(hits)) / n
            # Where items lie in clumps a search finds all or little, and few searches say little.
            error = float(np.std(hits)) / n / math.sqrt(len(hits))
            if recall - 2 * error >= RECALL or cells >= self.cells:
                return cells, recall
            cells = min(self.cells, 1 + cells * 5 // 4)

    def _points(self, catalogue: Catalogue, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return vectors, base, and what brings all to one length, (R, D + 2)."""
        known = catalogue.known[rows]
        points = np.zeros((rows.shape[0], catalogue.vectors.shape[1] + 2), np.float32)
        points[:, :-2] = np.where(known[:, None], catalogue.vectors[rows], 0)
        points[:, -2] = np.where(known, catalogue.base(catalogue.barrier.at_ms)[rows], 0)
        missing = self._length - np.einsum("nd,nd->n", points, points)
        points[:, -1] = np.sqrt(np.maximum(missing, 0))
        return points
