"""The graph as PyTorch Geometric wants it: graph store, feature store, sampler, ``HeteroData``.

An edge type is a class of feedback and a direction, ``("user", "explicit_positive", "item")`` or
``("item", "rev_explicit_positive", "user")``. Messages flow along it, so the edges into an item
are those that the item keeps, and the edges into a user those that the user keeps. Nothing here
needs pyg-lib or torch-sparse.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_geometric.data import FeatureStore, GraphStore, HeteroData
from torch_geometric.data.feature_store import TensorAttr
from torch_geometric.data.graph_store import EdgeAttr, EdgeLayout
from torch_geometric.sampler import (
    BaseSampler,
    HeteroSamplerOutput,
)

from graph_store.kernels import N_KINDS
from graph_store.sampling import How, Node, RecentRing, sample_negatives, sample_neighbourhood
from graph_store.store import EdgeStore, Neighbours
from stream.errors import TidegraphError
from stream.events import Kind

EdgeType = tuple[str, str, str]

ALWAYS: Final = np.iinfo(np.int64).max
"""A time after every edge."""

INTO_ITEMS: Final[tuple[EdgeType, ...]] = tuple(
    ("user", Kind(kind).label, "item") for kind in range(N_KINDS)
)
INTO_USERS: Final[tuple[EdgeType, ...]] = tuple(
    ("item", f"rev_{Kind(kind).label}", "user") for kind in range(N_KINDS)
)
EDGE_TYPES: Final = INTO_ITEMS + INTO_USERS
"""All edge types; the four into an item first, each four by kind."""


def edges_of(
    store: EdgeStore, edge_type: EdgeType, *, before_ms: int = ALWAYS
) -> tuple[Tensor, Tensor]:
    """Return the edges of one type before a time: (2, E) rows of source and target, (E,) times.

    Raises
    ------
    TidegraphError
        If there is no such edge type.

    """
    if edge_type not in EDGE_TYPES:
        raise TidegraphError(f"want one of the edge types {EDGE_TYPES}, got {edge_type}")
    kind = EDGE_TYPES.index(edge_type) % N_KINDS
    rings = store.items if edge_type in INTO_ITEMS else store.users
    live = np.flatnonzero(rings.nodes["size"])
    read = store.items_latest if edge_type in INTO_ITEMS else store.users_latest
    found = read(live, k=rings.k, before_ms=before_ms)
    at, slot = np.nonzero(found.kind == kind)
    index = np.stack([found.nodes[at, slot], live[at]])
    return torch.from_numpy(index), torch.from_numpy(found.ts_ms[at, slot])


def hetero_data(
    store: EdgeStore, *, n_users: int, n_items: int, before_ms: int = ALWAYS
) -> HeteroData:
    """Return the whole graph as it stood before a time, with ``edge_time`` in milliseconds.

    Examples
    --------
    >>> hetero_data(EdgeStore(), n_users=2, n_items=3)["item"].num_nodes
    3

    """
    data = HeteroData()
    data["user"].num_nodes, data["item"].num_nodes = n_users, n_items
    for edge_type in EDGE_TYPES:
        data[edge_type].edge_index, data[edge_type].edge_time = edges_of(
            store, edge_type, before_ms=before_ms
        )
    return data


class EdgeStoreGraph(GraphStore):  # type: ignore[misc]
    """The edges of an :class:`EdgeStore`, read-only, as PyG's graph store.

    Parameters
    ----------
    store
        Read anew at each call; edges come in through its ``append``.
    n_users, n_items
        Sizes of the two node types.

    Examples
    --------
    >>> graph = EdgeStoreGraph(EdgeStore(), n_users=2, n_items=3)
    >>> graph.get_edge_index(("user", "implicit_positive", "item"), "coo")[0].shape
    torch.Size([0])

    """

    def __init__(self, store: EdgeStore, *, n_users: int, n_items: int) -> None:
        super().__init__()
        self._edges = store
        self._sizes = {"user": n_users, "item": n_items}

    def get_all_edge_attrs(self) -> list[Any]:
        """Return the eight edge types, each as source and target rows."""
        return [
            EdgeAttr(
                edge_type,
                EdgeLayout.COO,
                size=(self._sizes[edge_type[0]], self._sizes[edge_type[2]]),
            )
            for edge_type in EDGE_TYPES
        ]

    def _get_edge_index(self, edge_attr: Any) -> tuple[Tensor, Tensor] | None:
        if edge_attr.layout != EdgeLayout.COO or edge_attr.edge_type not in EDGE_TYPES:
            return None
        source, target = edges_of(self._edges, edge_attr.edge_type)[0]
        return source, target

    def _put_edge_index(self, edge_index: tuple[Tensor, Tensor], edge_attr: Any) -> bool:
        raise TidegraphError("the graph is read-only here: add edges with EdgeStore.append")

    def _remove_edge_index(self, edge_attr: Any) -> bool:
        raise TidegraphError("the graph is read-only here: take edges back with EdgeStore.retract")


class RowFeatures(FeatureStore):  # type: ignore[misc]
    """Tensors with a line per row, as PyG's feature store; rows beyond the end are zero.

    So a node that came in after the features were put can be sampled all the same.

    Examples
    --------
    >>> features = RowFeatures()
    >>> _ = features.put_tensor(torch.ones(1, 2), group_name="user", attr_name="x", index=None)
    >>> features.get_tensor(group_name="user", attr_name="x", index=torch.tensor([0, 7])).tolist()
    [[1.0, 1.0], [0.0, 0.0]]

    """

    def __init__(self) -> None:
        super().__init__()
        self._tensors: dict[tuple[str, str], Tensor] = {}

    def _put_tensor(self, tensor: Tensor, attr: Any) -> bool:
        key = attr.group_name, attr.attr_name
        if attr.index is None:
            self._tensors[key] = tensor
            return True
        if key not in self._tensors:
            return False
        self._tensors[key][attr.index] = tensor
        return True

    def _get_tensor(self, attr: Any) -> Tensor | None:
        tensor = self._tensors.get((attr.group_name, attr.attr_name))
        if tensor is None or attr.index is None:
            return tensor
        index = torch.as_tensor(attr.index)
        known = index < tensor.shape[0]
        if bool(known.all()):
            return tensor[index]
        rows = tensor.new_zeros((index.shape[0], *tensor.shape[1:]))
        rows[known] = tensor[index[known]]
        return rows

    def _remove_tensor(self, attr: Any) -> bool:
        return self._tensors.pop((attr.group_name, attr.attr_name), None) is not None

    def _get_tensor_size(self, attr: Any) -> tuple[int, ...] | None:
        tensor = self._tensors.get((attr.group_name, attr.attr_name))
        return None if tensor is None else tuple(tensor.shape)

    def get_all_tensor_attrs(self) -> list[Any]:
        """Return what was put."""
        return [TensorAttr(group, name) for group, name in self._tensors]


class TemporalSampler(BaseSampler):  # type: ignore[misc]
    """Samples a tree of earlier edges around each seed, for PyG's node and link loaders.

    Each seed has a tree of its own (``batch`` tells which), read strictly before the seed's
    time, so seeds of different times never mix. Nodes of a type stand hop by hop, seeds first.
    The store has no number for an edge: ``e_id`` holds its time in milliseconds.

    Parameters
    ----------
    store
        Read when a batch is drawn.
    fanouts
        Neighbours per node, hop by hop.
    how, window_ms, seed
        As in :func:`graph_store.sampling.sample_neighbours`.
    n_items
        Items that negatives are drawn from; not needed without negative sampling.

    Notes
    -----
    The k-th batch drawn from a sampler is a function of ``seed`` and k. Workers of a data
    loader would each have their own copy: use ``num_workers=0``, the sampling is compiled.

    """

    def __init__(
        self,
        store: EdgeStore,
        *,
        fanouts: Sequence[int],
        how: How = "recent",
        window_ms: int | None = None,
        seed: int = 0,
        n_items: int = 0,
    ) -> None:
        super().__init__()
        self._edges = store
        self._fanouts = tuple(fanouts)
        self._how: How = how
        self._window_ms = window_ms
        self._seed = seed
        self._n_items = n_items
        self._step = 0

    def sample_from_nodes(self, index: Any, **_: Any) -> Any:
        """Sample around users or items; without ``input_time``, from all edges there are."""
        seeds = index.node.numpy()
        before = _times(index.time, seeds.size)
        trees = _Trees(index.input_type, seeds, np.arange(seeds.size))
        trees.grow(self._hops(index.input_type, seeds, before), index.input_type)
        self._step += 1
        return trees.output((index.input_id, index.time))

    def sample_from_edges(self, index: Any, neg_sampling: Any = None) -> Any:
        """Sample around both ends of user-item links, and of negative links if asked for.

        Negative items are drawn uniformly, at the time and for the user of a link: ``binary``
        labels links 1 and negatives 0, ``triplet`` gives ``amount`` negatives to each link.
        """
        users, items, labels = index.row.numpy(), index.col.numpy(), index.label
        if index.input_type not in INTO_ITEMS:
            raise TidegraphError(
                f"link sampling: want an edge type out of {INTO_ITEMS}, got {index.input_type}"
            )
        n_links = users.size
        before = _times(index.time, n_links)
        n_negatives = 0 if neg_sampling is None else int(np.ceil(n_links * neg_sampling.amount))
        link = np.arange(n_links + n_negatives) % n_links  # whose user and time an item belongs to
        if n_negatives:
            drawn = sample_negatives(
                n_negatives,
                n_items=self._n_items,
                ring=RecentRing(1),
                share_recent=0.0,
                seed=self._seed,
                step=self._step,
            )
            items = np.concatenate([items, drawn])
        trees = _Trees("user", users, np.arange(n_links))
        trees.add("item", items, link)
        trees.grow(self._hops("user", users, before), "user")
        trees.grow(self._hops("item", items, before[link]), "item", batch=link)
        self._step += 1
        pairs = torch.from_numpy(np.stack([link, np.arange(items.size)]))
        if neg_sampling is not None and neg_sampling.is_triplet():
            of_item = pairs[1]
            negative = of_item[n_links:].view(-1, n_links).t().squeeze(1)
            return trees.output(
                (index.input_id, pairs[0, :n_links], of_item[:n_links], negative, index.time)
            )
        if n_negatives:
            positive = torch.ones(n_links) if labels is None else labels
            labels = torch.cat([positive, positive.new_zeros(n_negatives)])
        time = None if index.time is None else index.time[torch.from_numpy(link)]
        return trees.output((index.input_id, pairs, labels, time))

    def _hops(
        self, node: Node, rows: NDArray[np.int64], before_ms: NDArray[np.int64]
    ) -> list[Neighbours]:
        return sample_neighbourhood(
            self._edges,
            node,
            rows,
            fanouts=self._fanouts,
            before_ms=before_ms,
            how=self._how,
            window_ms=self._window_ms,
            seed=self._seed,
            step=self._step,
        )


class _Trees:
    """Collects hops into PyG's lists of nodes and edges."""

    def __init__(self, node: Node, rows: NDArray[np.int64], batch: NDArray[np.int64]) -> None:
        self._nodes: dict[str, list[NDArray[np.int64]]] = {"user": [], "item": []}
        self._batch: dict[str, list[NDArray[np.int64]]] = {"user": [], "item": []}
        self._size = {"user": 0, "item": 0}
        self._edges: dict[EdgeType, list[NDArray[np.int64]]] = {name: [] for name in EDGE_TYPES}
        self.add(node, rows, batch)

    def add(
        self, node: str, rows: NDArray[np.int64], batch: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Append nodes and return their places among those of their type."""
        first = self._size[node]
        self._nodes[node].append(rows)
        self._batch[node].append(batch)
        self._size[node] += rows.size
        return np.arange(first, first + rows.size)

    def grow(
        self, hops: list[Neighbours], node: Node, *, batch: NDArray[np.int64] | None = None
    ) -> None:
        """Append the trees under seeds of one type, which are there already and come first."""
        batch = self._batch[node][0] if batch is None else batch
        places = np.arange(batch.size)
        for hop in hops:
            into = INTO_USERS if node == "user" else INTO_ITEMS
            node = "item" if node == "user" else "user"
            at, slot = np.nonzero(hop.kind >= 0)
            new = self.add(node, hop.nodes[at, slot], batch[at])
            kind = hop.kind[at, slot]
            for number, edge_type in enumerate(into):
                of_kind = kind == number
                edges = (new[of_kind], places[at[of_kind]], hop.ts_ms[at, slot][of_kind])
                self._edges[edge_type].append(np.stack(edges))
            # The next hop has a row for every entry of this one, padding included.
            places = np.full(hop.kind.size, -1)
            places[at * hop.kind.shape[1] + slot] = new
            batch = np.repeat(batch, hop.kind.shape[1])

    def output(self, metadata: tuple[Any, ...]) -> Any:
        """Return everything collected."""
        edges = {
            name: torch.from_numpy(np.concatenate(parts, axis=1))
            for name, parts in self._edges.items()
            if parts
        }
        return HeteroSamplerOutput(
            node={name: _joined(parts) for name, parts in self._nodes.items()},
            row={name: edge[0] for name, edge in edges.items()},
            col={name: edge[1] for name, edge in edges.items()},
            edge={name: edge[2] for name, edge in edges.items()},
            batch={name: _joined(parts) for name, parts in self._batch.items()},
            metadata=metadata,
        )


def _joined(parts: list[NDArray[np.int64]]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts) if parts else np.empty(0, np.int64))


def _times(time: Tensor | None, n_seeds: int) -> NDArray[np.int64]:
    """Return the time before which each seed is read."""
    if time is None:
        return np.full(n_seeds, ALWAYS)
    return time.numpy().astype(np.int64)
