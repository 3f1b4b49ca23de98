"""An index finds nearly what a look at every item finds, also after items have changed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from serving.catalogue import Catalogue, Mirror
from serving.index import RECALL, Index
from serving.rows import Barrier, ItemRows, Layout
from serving.table import MemoryTable, Update
from tests.serving.world import ask, following, has_step, ids, until, update, user

N_ITEMS, DIM = 6_000, 8


def rows(names: list[str], seed: int, size: float = 1.0) -> ItemRows:
    rng = np.random.default_rng(seed)
    n = len(names)
    return ItemRows(
        names,
        (size * rng.standard_normal((n, DIM))).astype(np.float32),
        rng.standard_normal(n).astype(np.float32),
        np.zeros((n, 0)),
        np.zeros(n, np.int64),
    )


def published() -> MemoryTable:
    table = MemoryTable()
    table.begin(Layout(dim=DIM))
    names = [f"{n:05d}" for n in range(N_ITEMS)]
    table.publish(Update(barrier=Barrier(1, 0, 0), items=rows(names, 1)))
    table.flip()
    return table


def best(catalogue: Catalogue, vector: NDArray[np.float32], n: int) -> list[int]:
    scores = catalogue.vectors @ vector + catalogue.base(0)
    found: list[int] = np.argsort(-scores, kind="stable")[:n].tolist()
    return found


def recall(index: Index, catalogue: Catalogue, n: int = 100) -> float:
    asked = np.random.default_rng(9).standard_normal((50, DIM)).astype(np.float32)
    hits = [len({*best(catalogue, one, n)} & {*index.candidates(one, n).tolist()}) for one in asked]
    return sum(hits) / (n * len(asked))


def test_a_search_finds_most_of_the_best_hundred() -> None:
    catalogue = Mirror(published().reader()).catalogue
    index = Index(catalogue)
    assert index.looked_into < index.cells
    assert recall(index, catalogue) >= 0.95


def test_in_clumps_too_most_are_found_on_average() -> None:
    # A search finds all of a clump or little of it, so what some searches find says little of all.
    rng, n, clumps = np.random.default_rng(4), 20_000, 250
    centres = rng.standard_normal((clumps, 32)).astype(np.float32)

    def around(n: int) -> NDArray[np.float32]:
        at = centres[rng.integers(0, clumps, n)]
        return at + np.float32(0.3) * rng.standard_normal((n, 32)).astype(np.float32)

    table, zeros = MemoryTable(), np.zeros(n, np.int64)
    table.begin(Layout(dim=32))
    names = [f"{row:05d}" for row in range(n)]
    items = ItemRows(names, around(n), zeros.astype(np.float32), np.zeros((n, 0)), zeros)
    table.publish(Update(barrier=Barrier(1, 0, 0), items=items))
    table.flip()
    catalogue = Mirror(table.reader()).catalogue
    index = Index(catalogue)
    hits = [
        len({*best(catalogue, one, 100)} & {*index.candidates(one, 100).tolist()})
        for one in around(300)
    ]
    assert sum(hits) / 30_000 >= RECALL


def test_items_change_come_and_go_in_place() -> None:
    table = published()
    mirror = Mirror(table.reader())
    index = Index(mirror.catalogue)
    changed, new = [f"{n:05d}" for n in range(0, N_ITEMS, 3)], [f"new{n}" for n in range(900)]
    gone = [f"{n:05d}" for n in range(1, N_ITEMS, 3)]
    written = rows([*changed, *new], 2, size=1.1)
    table.publish(Update(barrier=Barrier(2, 0, 0), items=written, gone_items=gone))
    catalogue = mirror.refresh({*changed, *new}, gone)
    index.refresh(catalogue, catalogue.rows([*changed, *gone]))
    assert len(index) == len(catalogue) == N_ITEMS + 900
    assert recall(index, catalogue) >= 0.93


def test_what_is_barred_or_not_allowed_is_not_found() -> None:
    catalogue = Mirror(published().reader()).catalogue
    index, vector = Index(catalogue), np.ones(DIM, np.float32)
    wanted = np.array(best(catalogue, vector, 20))
    assert len({*wanted.tolist()} & {*index.candidates(vector, 20).tolist()}) >= 15
    for allowed in (None, np.arange(N_ITEMS) % 2 == 0):
        found = index.candidates(vector, 200, barred=wanted, allowed=allowed)
        assert found.size > 100
        assert not np.isin(found, wanted).any()
        assert allowed is None or allowed[found].all()


def test_lists_of_a_large_catalogue_come_from_the_index() -> None:
    table = published()
    table.publish(update(2, users=user("u", np.ones(DIM).tolist()), seen={"u": ["00007"]}))
    with following(table) as exact, following(table, exact_up_to=1_000) as live:
        assert exact.copy is not None
        assert exact.copy.index is None
        path = "/v1/recommendations/{user}"
        want, got = (ask(one, path, user="u", n=50) for one in (exact, live))
        assert len({*ids(want)} & {*ids(got)}) >= 45
        far = rows(["far"], 3)._replace(vectors=np.full((1, DIM), 3.0, np.float32))
        table.publish(update(3, items=far, item_attributes={"far": {"tag": "sea"}}))
        until(live, has_step(3), "the new item")
        until(live, lambda live: ids(ask(live, path, user="u"))[0] == "far", "the new item's place")
        assert ids(ask(live, path, user="u", filter=["tag:sea"])) == ["far"]
