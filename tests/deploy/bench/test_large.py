"""The generated catalogue of the bench is in view whole, and an index finds its best items."""

from __future__ import annotations

import numpy as np

from deploy.bench.large import DIM, RECALL_AT, USERS, Catalogue
from serving.catalogue import Mirror
from serving.index import RECALL, Index
from serving.table import MemoryTable

N_ITEMS = 24_000  # more than one update


def test_a_catalogue_is_published_whole_and_an_index_finds_its_best() -> None:
    made, table = Catalogue(N_ITEMS), MemoryTable()
    made.publish(table)
    reader = table.reader()
    assert len(reader.item_ids()) == N_ITEMS
    assert len(reader.users(made.user_ids)) > 0
    catalogue = Mirror(reader).catalogue
    assert catalogue.vectors.shape == (N_ITEMS, DIM)
    assert np.allclose(np.linalg.norm(catalogue.vectors, axis=1), 1, atol=1e-3)
    index, hits = Index(catalogue), []
    for user in range(USERS):
        best = made.best(user, RECALL_AT)
        assert len(best) == RECALL_AT
        found = index.candidates(made.users[user], 2 * RECALL_AT)
        hits.append(len(best & set(catalogue.ids(found))))
    assert np.mean(hits) / RECALL_AT >= RECALL
    assert index.looked_into < index.cells
