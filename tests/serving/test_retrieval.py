"""Lists from published numbers are the learner's, whatever is asked to be left out."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from serving.catalogue import Catalogue, Mirror
from serving.retrieval import History, Query, Ranked, best_of_each, explain, recommend, score
from serving.rows import Barrier, Count, Covisited, ItemRows, Layout
from serving.table import MemoryTable, Update
from stream.events import Kind
from tests.serving.published import STILL, Live, events

LIKED = int(Kind.IMPLICIT_POSITIVE)
N_ITEMS = 12
ROUNDING = 1e-5
"""Scores this close are level: the learner and serving sum in another order, in fp32."""


def catalogue(*, level: bool = False) -> Catalogue:
    """Return items i0 to i11 of which the vectors are random, or all the same."""
    rng = np.random.default_rng(4)
    ids = [f"i{n}" for n in range(N_ITEMS)]
    vectors = np.zeros((N_ITEMS, 4)) if level else rng.standard_normal((N_ITEMS, 4))
    biases = np.zeros(N_ITEMS) if level else rng.standard_normal(N_ITEMS)
    rows = ItemRows(
        sorted(ids),
        vectors.astype(np.float32),
        biases.astype(np.float32),
        np.full((N_ITEMS, 1), 2.0),
        np.zeros(N_ITEMS, np.int64),
    )
    table = MemoryTable()
    table.begin(Layout(dim=4, counts=(Count("pairs", 1_000),)))
    lists = {"i1": Covisited(["i2", "i3"], np.array([1.0, 0.5], np.float32), 0)}
    weights = {"covisitation": np.linspace(1, 2, 6, dtype=np.float32)}
    table.publish(Update(barrier=Barrier(1, 0, 0), items=rows, covisited=lists, weights=weights))
    table.flip()
    return Mirror(table.reader()).catalogue


def ids(items: Catalogue, found: Ranked) -> list[str]:
    return items.ids(found.rows)


def assert_lists_agree(got: list[str], scores: dict[str, float], barred: Collection[str]) -> None:
    """Compare a list with the best of the learner's scores; level items may change places."""
    allowed = {item_id: value for item_id, value in scores.items() if item_id not in barred}
    want = sorted(allowed, key=lambda item_id: -allowed[item_id])[: len(got)]
    for mine, theirs in zip(got, want, strict=True):
        assert mine == theirs or abs(allowed[mine] - allowed[theirs]) < ROUNDING
    assert len(set(got)) == len(got)


def ask(live: Live, items: Catalogue, user_ids: list[str]) -> list[Ranked]:
    reader = live.table.reader()
    users = reader.users(user_ids)
    queries = [
        Query(
            vector=vector,
            history=History.of(items, recent),
            barred=items.rows(reader.seen([user_id])[user_id]),
        )
        for user_id, vector, recent in zip(users.ids, users.vectors, users.recent, strict=True)
    ]
    return recommend(items, queries, at_ms=items.barrier.at_ms + 1)


def test_at_every_barrier_the_lists_of_its_users_are_the_learners() -> None:
    live, batches = Live(STILL), events(480)
    live.follow(batches[:6])
    live.table.take()
    mirror = Mirror(live.table.reader())
    for first in range(6, len(batches), 3):
        live.follow(batches[first : first + 3])
        changed, users = live.table.take()
        items = mirror.refresh(changed)
        asked = sorted(users)
        for user_id, found in zip(asked, ask(live, items, asked), strict=True):
            want = live.scores(user_id)
            seen = live.table.reader().seen([user_id])[user_id]
            assert_lists_agree(ids(items, found), want, seen)
            got = [want[one] for one in ids(items, found)]
            np.testing.assert_allclose(found.scores, got, atol=ROUNDING)
            assert len(found.rows) == 10


def test_after_all_was_published_every_users_list_is_the_learners() -> None:
    live = Live().follow(events(480))
    live.publisher.touched_all()
    live.publisher.publish()
    items = Mirror(live.table.reader()).catalogue
    asked = live.graph.users.ids_of(np.arange(live.graph.n_users))
    for user_id, found in zip(asked, ask(live, items, asked), strict=True):
        seen = live.table.reader().seen([user_id])[user_id]
        assert_lists_agree(ids(items, found), live.scores(user_id), seen)


def test_the_comparison_sees_every_part_of_the_score() -> None:
    live = Live(STILL).follow(events(480))
    assert live.model.published_weights().keys() == {"popularity", "click_rate", "covisitation"}
    items = Mirror(live.table.reader()).catalogue
    user = live.table.reader().users(["u3"])
    everything = np.arange(len(items))
    query = Query(vector=user.vectors[0], history=History.of(items, user.recent[0]))
    parts = explain(items, query, everything) | items.count_features(items.barrier.at_ms)
    for name in ("vector", "popularity", "click_rate", "covisitation"):
        assert np.ptp(parts[name]) > 100 * ROUNDING, name


def test_rows_in_fp16_give_nearly_the_same_lists() -> None:
    live = Live(STILL, precision="fp16").follow(events(480))
    items = Mirror(live.table.reader()).catalogue
    asked = sorted(live.table.reader().users([f"u{n}" for n in range(40)]).ids)
    shared = []
    for user_id, found in zip(asked, ask(live, items, asked), strict=True):
        want, seen = live.scores(user_id), live.table.reader().seen([user_id])[user_id]
        got = [want[one] for one in ids(items, found)]
        np.testing.assert_allclose(found.scores, got, atol=0.01)
        best = sorted(want.keys() - seen, key=lambda one: -want[one])[:10]
        shared.append(len({*best, *ids(items, found)}))
    assert np.mean(shared) <= 10.5  # of 10: half an item is not in both


barred = st.lists(st.integers(-1, N_ITEMS - 1))
only = st.none() | st.lists(st.integers(-1, N_ITEMS - 1))
allowed = st.none() | st.lists(st.booleans(), min_size=N_ITEMS, max_size=N_ITEMS)


@given(
    asked=st.lists(st.tuples(barred, only, allowed, st.integers(1, 2 * N_ITEMS)), max_size=4),
    level=st.booleans(),
)
def test_lists_are_those_of_a_plain_sort(
    *, asked: list[tuple[list[int], list[int] | None, list[bool] | None, int]], level: bool
) -> None:
    items = catalogue(level=level)
    recent = [("i1", LIKED, 0), ("nobody", LIKED, 0)]
    queries = [
        Query(
            vector=np.arange(4, dtype=np.float32),
            history=History.of(items, recent[: number % 3]),
            barred=np.array(no, np.int64),
            only=None if some is None else np.array(some, np.int64),
            allowed=None if mask is None else np.array(mask),
            n=n,
        )
        for number, (no, some, mask, n) in enumerate(asked)
    ]
    for query, found in zip(queries, recommend(items, queries), strict=True):
        scores = score(items, query, np.arange(N_ITEMS))
        want = [
            row
            for row in sorted(range(N_ITEMS), key=lambda row: (-scores[row], row))
            if row not in query.barred
            and (query.only is None or row in query.only)
            and (query.allowed is None or query.allowed[row])
        ]
        if level and query.history.length == 0:
            assert found.rows.tolist() == want[: query.n]
        np.testing.assert_allclose(found.scores, scores[want[: query.n]], atol=1e-6)
        assert set(found.rows.tolist()) <= set(want)


@given(
    n_items=st.integers(0, 1_000),
    wanted=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    n_levels=st.integers(1, 500),
    barred=st.sampled_from([0.0, 0.3, 0.99]),
    seed=st.integers(0, 99),
)
def test_the_best_of_many_are_those_of_a_plain_sort(
    *, n_items: int, wanted: list[int], n_levels: int, barred: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, n_levels, (len(wanted), n_items)).astype(np.float32)
    scores[rng.random(scores.shape) < barred] = -np.inf
    sizes, places, best = best_of_each(scores, wanted)
    ends = np.cumsum(sizes)
    assert ends[-1] == places.size
    for row, n, size, end in zip(scores, wanted, sizes, ends, strict=True):
        want = [at for at in np.argsort(-row, kind="stable") if row[at] > -np.inf][:n]
        assert places[end - size : end].tolist() == want
        assert best[end - size : end].tolist() == row[want].tolist()


def test_the_score_is_that_of_the_formula() -> None:
    items = catalogue()
    vector = np.array([1, 0, -1, 2], np.float32)
    recent = [("i9", int(Kind.EXPLICIT_NEGATIVE), 3), ("i1", LIKED, 2)]
    found = score(
        items,
        Query(vector=vector, history=History.of(items, recent)),
        items.rows(["i2", "i0", "i3"]),
    )
    near = np.array([1.0, 0.0, 0.5]) / 2.0  # over the roots of both masses
    want = (
        items.vectors[items.rows(["i2", "i0", "i3"])] @ vector
        + items.biases[items.rows(["i2", "i0", "i3"])]
        + 1.2 * np.log1p(50 * 0.8 * near)  # of a history of two, one step back
    )
    np.testing.assert_allclose(found, want, rtol=1e-5)


def test_an_item_that_went_is_in_no_list() -> None:
    table = MemoryTable()
    table.begin(Layout(dim=1))
    rows = ItemRows(["a", "b"], np.ones((2, 1), np.float32), *counts(2))
    table.publish(Update(barrier=Barrier(1, 0, 0), items=rows))
    table.flip()
    mirror = Mirror(table.reader())
    table.publish(Update(barrier=Barrier(2, 0, 0), gone_items=["a"]))
    items = mirror.refresh((), gone=["a"])
    query = Query(vector=np.ones(1, np.float32))
    assert ids(items, recommend(items, [query])[0]) == ["b"]
    assert score(items, query, items.rows(["a", "b"])).tolist() == [-np.inf, 1.0]


@pytest.mark.parametrize("n", [1, 5])
def test_an_empty_catalogue_gives_empty_lists(n: int) -> None:
    table = MemoryTable()
    table.begin(Layout(dim=1))
    table.publish(Update(barrier=Barrier(1, 0, 0)))
    table.flip()
    items = Mirror(table.reader()).catalogue
    found = recommend(items, [Query(vector=np.ones(1, np.float32), n=n)])
    assert found[0].rows.tolist() == []


def counts(n: int) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.int64]]:
    return np.zeros(n, np.float32), np.zeros((n, 0)), np.zeros(n, np.int64)
