"""PyG models and loaders run on the store, see no future, and give what a plain edge list gives."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch_geometric.loader import LinkLoader, NodeLoader
from torch_geometric.nn import HeteroConv, SAGEConv
from torch_geometric.sampler import NegativeSampling

from graph_store.pyg import (
    EDGE_TYPES,
    EdgeStoreGraph,
    EdgeType,
    RowFeatures,
    TemporalSampler,
    edges_of,
    hetero_data,
)
from graph_store.store import Edges, EdgeStore
from stream.errors import TidegraphError
from stream.events import Kind
from tests.graph_store.plain_store import Event, PlainStore

N_USERS, N_ITEMS, DIM = 6, 8, 4
LIKED: EdgeType = ("user", "explicit_positive", "item")


def log_of(n_events: int) -> Edges:
    draw = np.random.default_rng(n_events)
    return Edges(
        draw.integers(0, N_USERS, n_events),
        draw.integers(0, N_ITEMS, n_events),
        draw.integers(0, 50, n_events),
        draw.integers(0, 4, n_events).astype(np.int8),
        np.arange(n_events, dtype=np.uint64),
    )


def stores(n_events: int = 80) -> tuple[EdgeStore, PlainStore]:
    ours, plain = EdgeStore(k_user=5, k_item=4), PlainStore(k_user=5, k_item=4)
    ours.append(log_of(n_events))
    plain.append(log_of(n_events))
    return ours, plain


def features() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {"user": torch.randn(N_USERS, DIM), "item": torch.randn(N_ITEMS, DIM)}


def feature_store() -> RowFeatures:
    kept = RowFeatures()
    for name, x in features().items():
        kept.put_tensor(x, group_name=name, attr_name="x", index=None)
    return kept


def into(node: str, event: Event) -> EdgeType:
    label = Kind(event.kind).label
    return ("user", label, "item") if node == "item" else ("item", f"rev_{label}", "user")


def plain_edges(plain: PlainStore, before_ms: int) -> dict[EdgeType, set[tuple[int, int, int]]]:
    """List (source, target, time) by edge type."""
    edges: dict[EdgeType, set[tuple[int, int, int]]] = {name: set() for name in EDGE_TYPES}
    for node, n_rows in (("user", N_USERS), ("item", N_ITEMS)):
        for row in range(n_rows):
            for event in plain.shown(node, row):
                if event.ts_ms < before_ms:
                    other = event.user if node == "item" else event.item
                    edges[into(node, event)].add((other, row, event.ts_ms))
    return edges


@given(n_events=st.integers(0, 80), before_ms=st.integers(0, 55))
def test_hetero_data_has_the_edges_of_the_plain_store(n_events: int, before_ms: int) -> None:
    ours, plain = stores(n_events)
    data = hetero_data(ours, n_users=N_USERS, n_items=N_ITEMS, before_ms=before_ms)
    for edge_type, want in plain_edges(plain, before_ms).items():
        source, target = data[edge_type].edge_index.tolist()
        found = list(zip(source, target, data[edge_type].edge_time.tolist(), strict=True))
        assert set(found) == want
    assert (data["user"].num_nodes, data["item"].num_nodes) == (N_USERS, N_ITEMS)


def test_the_graph_store_gives_every_layout() -> None:
    ours, plain = stores()
    graph = EdgeStoreGraph(ours, n_users=N_USERS, n_items=N_ITEMS)
    want = sorted((source, target) for source, target, _ in plain_edges(plain, 99)[LIKED])
    source, target = graph.get_edge_index(LIKED, "coo")
    assert sorted(zip(source.tolist(), target.tolist(), strict=True)) == want
    row, col_pointers, _ = graph.csc()
    starts = col_pointers[LIKED].tolist()
    found = [
        (one, item)
        for item in range(N_ITEMS)
        for one in row[LIKED][starts[item] : starts[item + 1]].tolist()
    ]
    assert sorted(found) == want


def test_the_graph_store_is_read_only() -> None:
    graph = EdgeStoreGraph(EdgeStore(), n_users=1, n_items=1)
    empty = torch.zeros(2, 0, dtype=torch.long)
    with pytest.raises(TidegraphError, match="EdgeStore.append"):
        graph.put_edge_index(empty, LIKED, "coo")
    with pytest.raises(TidegraphError, match="EdgeStore.retract"):
        graph.remove_edge_index(LIKED, "coo")
    with pytest.raises(TidegraphError, match="want one of the edge types"):
        edges_of(EdgeStore(), ("user", "buys", "item"))


def test_features_can_be_put_changed_and_removed() -> None:
    kept = feature_store()
    key: dict[str, Any] = {"group_name": "user", "attr_name": "x"}
    assert kept.get_tensor_size(**key) == (N_USERS, DIM)
    kept.put_tensor(torch.zeros(1, DIM), **key, index=torch.tensor([2]))
    assert kept.get_tensor(**key, index=torch.tensor([2, 99])).tolist() == [[0.0] * DIM] * 2
    assert kept.get_tensor(**key, index=None)[3].tolist() == features()["user"][3].tolist()
    assert kept.remove_tensor(**key, index=None)
    assert [attr.group_name for attr in kept.get_all_tensor_attrs()] == ["item"]


def model() -> Any:
    torch.manual_seed(1)
    return HeteroConv(
        {name: SAGEConv((DIM, DIM), DIM, aggr="mean") for name in EDGE_TYPES}, aggr="sum"
    )


def by_hand(conv: Any, plain: PlainStore, node: str, row: int, before_ms: int, hops: int) -> Tensor:
    """Return a node after ``hops`` layers of the model, computed from lists of edges."""
    if hops == 0:
        return features()[node][row]
    own = by_hand(conv, plain, node, row, before_ms, hops - 1)
    total = torch.zeros(DIM)
    for edge_type in EDGE_TYPES:
        if edge_type[2] != node:
            continue
        sage = conv.convs[edge_type]
        others = [
            by_hand(
                conv,
                plain,
                edge_type[0],
                event.item if node == "user" else event.user,
                before_ms,
                hops - 1,
            )
            for event in plain.shown(node, row)
            if event.ts_ms < before_ms and into(node, event) == edge_type
        ]
        mean = torch.stack(others).mean(0) if others else torch.zeros(DIM)
        total = total + sage.lin_l(mean) + sage.lin_r(own)
    return total


@pytest.mark.parametrize("how", ["recent", "uniform"])
def test_graphsage_on_a_node_loader_equals_the_plain_edge_list(how: Any) -> None:
    """Two layers, two hops, fan-outs as wide as the rings; each user at a time of its own."""
    ours, plain = stores()
    conv = model()
    seeds, times = torch.arange(N_USERS), torch.tensor([0, 11, 22, 33, 44, 55])
    loader = NodeLoader(
        (feature_store(), EdgeStoreGraph(ours, n_users=N_USERS, n_items=N_ITEMS)),
        TemporalSampler(ours, fanouts=[5, 4], how=how),
        input_nodes=("user", seeds),
        input_time=times,
        batch_size=4,
    )
    found = []
    for batch in loader:
        x = dict(batch.x_dict)
        for _ in range(2):
            x = x | conv(x, batch.edge_index_dict)
        found.append(x["user"][: batch["user"].batch_size])
    for row, before_ms in zip(seeds.tolist(), times.tolist(), strict=True):
        want = by_hand(conv, plain, "user", row, before_ms, hops=2)
        torch.testing.assert_close(torch.cat(found)[row], want)


def test_no_edge_of_a_batch_comes_from_the_future_of_its_seed() -> None:
    ours, _ = stores()
    times = torch.tensor([5, 25, 45])
    loader = NodeLoader(
        (feature_store(), EdgeStoreGraph(ours, n_users=N_USERS, n_items=N_ITEMS)),
        TemporalSampler(ours, fanouts=[3, 3, 2]),
        input_nodes=("item", torch.tensor([1, 1, 1])),
        input_time=times,
        batch_size=3,
    )
    (batch,) = loader
    n_edges = 0
    for edge_type in batch.edge_types:
        source, target = batch[edge_type].edge_index
        tree = batch[edge_type[0]].batch[source]
        assert torch.equal(tree, batch[edge_type[2]].batch[target])
        assert (batch[edge_type].e_id < times[tree]).all()
        n_edges += source.numel()
    assert n_edges > 20
    assert batch["item"].seed_time.tolist() == times.tolist()


LINKS = torch.tensor([[0, 1, 2], [3, 4, 5]])


def links(neg_sampling: Any) -> Any:
    ours, _ = stores()
    loader = LinkLoader(
        (feature_store(), EdgeStoreGraph(ours, n_users=N_USERS, n_items=N_ITEMS)),
        TemporalSampler(ours, fanouts=[2], n_items=N_ITEMS),
        edge_label_index=(LIKED, LINKS),
        edge_label_time=torch.tensor([20, 30, 40]),
        neg_sampling=neg_sampling,
        batch_size=3,
    )
    (batch,) = loader
    return batch


def test_a_link_loader_gives_the_links_asked_for() -> None:
    batch = links(None)
    user, item = batch[LIKED].edge_label_index
    assert batch["user"].n_id[user].tolist() == LINKS[0].tolist()
    assert batch["item"].n_id[item].tolist() == LINKS[1].tolist()
    times = torch.tensor([20, 30, 40])
    for edge_type in EDGE_TYPES:
        target = batch[edge_type].edge_index[1]
        assert (batch[edge_type].e_id < times[batch[edge_type[2]].batch[target]]).all()


def test_binary_negatives_have_the_users_and_times_of_links() -> None:
    batch = links(NegativeSampling("binary", amount=2))
    user, item = batch[LIKED].edge_label_index
    assert batch["user"].n_id[user].tolist() == LINKS[0].tolist() * 3
    assert batch["item"].n_id[item].tolist()[:3] == LINKS[1].tolist()
    assert batch["item"].n_id[item].max() < N_ITEMS
    assert batch[LIKED].edge_label.tolist() == [1] * 3 + [0] * 6
    assert batch[LIKED].edge_label_time.tolist() == [20, 30, 40] * 3
    assert batch["item"].batch[item].tolist() == user.tolist()


def test_triplet_negatives_stand_beside_their_link() -> None:
    batch = links(NegativeSampling("triplet", amount=2))
    assert batch["user"].n_id[batch["user"].src_index].tolist() == LINKS[0].tolist()
    assert batch["item"].n_id[batch["item"].dst_pos_index].tolist() == LINKS[1].tolist()
    negative = batch["item"].dst_neg_index
    assert negative.shape == (3, 2)
    assert batch["item"].batch[negative].tolist() == [[0, 0], [1, 1], [2, 2]]


def test_links_of_another_kind_are_refused() -> None:
    ours, _ = stores()
    loader: Callable[[list[int]], Any] = LinkLoader(
        (feature_store(), EdgeStoreGraph(ours, n_users=N_USERS, n_items=N_ITEMS)),
        TemporalSampler(ours, fanouts=[2]),
        edge_label_index=(("item", "rev_explicit_positive", "user"), LINKS),
    )
    with pytest.raises(TidegraphError, match="link sampling"):
        loader([0])


def test_nothing_here_needs_compiled_extensions() -> None:
    assert "pyg_lib" not in sys.modules
    assert "torch_sparse" not in sys.modules
