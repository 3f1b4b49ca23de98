"""Other people's learners at their own settings, on the same events as ours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import TGNMemory, TransformerConv
from torch_geometric.nn.models.tgn import (
    IdentityMessage,
    LastAggregator,
    LastNeighborLoader,
)

from graph_store.store import Edges
from stream.events import N_CLASSES


class Peer(Protocol):
    """A learner as the bench drives it."""

    def fill(self, events: Edges) -> None:
        """Take in what happened before the clock starts, without training."""
        ...

    def steps(self, events: Edges) -> Iterator[int]:
        """Learn from events, yielding after each step how many it had."""
        ...


class PygTgn:
    """TGN as PyG's example puts it together: memory, neighbour lists, one attention layer.

    A two-layer predictor tells each event's item from one that was drawn; the memory takes the
    batch in after the loss. The message is the feedback class, one-hot.

    Parameters
    ----------
    events
        The whole log, so that edges can be named by their place in it.
    batch, dim
        Events of a step; width of memory, time encoding and embedding.
    device
        Where it runs.

    """

    NEIGHBOURS: Final = 10
    LEARNING_RATE: Final = 1e-4

    def __init__(self, events: Edges, *, batch: int, dim: int, device: str) -> None:
        self.batch = batch
        self._device = torch.device(device)
        self._n_users = int(events.user.max()) + 1
        self._n_items = int(events.item.max()) + 1
        n_nodes = self._n_users + self._n_items
        self._seconds = self._to(events.ts_ms // 1_000)
        kinds = torch.from_numpy(events.kind.astype(np.int64))
        self._messages = F.one_hot(kinds, N_CLASSES).float().to(self._device)
        self._memory = TGNMemory(
            n_nodes, N_CLASSES, dim, dim, IdentityMessage(N_CLASSES, dim, dim), LastAggregator()
        ).to(self._device)
        self._attention = TransformerConv(
            dim, dim // 2, heads=2, dropout=0.1, edge_dim=N_CLASSES + dim
        ).to(self._device)
        self._predictor = nn.Sequential(nn.Linear(2 * dim, dim), nn.ReLU(), nn.Linear(dim, 1))
        self._predictor.to(self._device)
        self._neighbours = LastNeighborLoader(n_nodes, size=self.NEIGHBOURS, device=self._device)
        self._place = torch.empty(n_nodes, dtype=torch.long, device=self._device)
        parts: tuple[Any, ...] = (self._memory, self._attention, self._predictor)
        parameters = [each for part in parts for each in part.parameters()]
        self._optimizer = torch.optim.Adam(parameters, lr=self.LEARNING_RATE)
        self._done = 0
        for part in parts:
            part.train()

    def fill(self, events: Edges) -> None:
        """Let the neighbour lists know of events, as they do after a step."""
        for first in range(0, events.user.shape[0], self.batch):
            some = slice(first, first + self.batch)
            self._neighbours.insert(
                self._to(events.user[some]), self._to(events.item[some]) + self._n_users
            )
        self._done += events.user.shape[0]

    def steps(self, events: Edges) -> Iterator[int]:
        """Learn batch by batch."""
        for first in range(0, events.user.shape[0], self.batch):
            some = slice(first, first + self.batch)
            users = self._to(events.user[some])
            items = self._to(events.item[some]) + self._n_users
            self._step(users, items)
            yield users.shape[0]

    def _step(self, users: Tensor, items: Tensor) -> None:
        n = users.shape[0]
        own = slice(self._done, self._done + n)
        drawn = torch.randint(self._n_items, (n,), device=self._device) + self._n_users
        self._optimizer.zero_grad()
        met = torch.unique(torch.cat([users, items, drawn]))
        nodes, edges, edge_ids = self._neighbours(met)
        self._place[nodes] = torch.arange(nodes.shape[0], device=self._device)
        memory, updated = self._memory(nodes)
        ages = (updated[edges[0]] - self._seconds[edge_ids]).to(memory.dtype).unsqueeze(1)
        told = torch.cat([self._memory.time_enc(ages), self._messages[edge_ids]], 1)
        z = self._attention(memory, edges, told)
        source, target, other = (z[self._place[each]] for each in (users, items, drawn))
        liked = self._predictor(torch.cat([source, target], 1))
        unlike = self._predictor(torch.cat([source, other], 1))
        loss = F.binary_cross_entropy_with_logits(liked, torch.ones_like(liked))
        loss = loss + F.binary_cross_entropy_with_logits(unlike, torch.zeros_like(unlike))
        self._memory.update_state(users, items, self._seconds[own], self._messages[own])
        self._neighbours.insert(users, items)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._memory.detach()
        self._done += n

    def _to(self, values: Any) -> Tensor:
        return torch.from_numpy(values).to(self._device)


class RiverMf:
    """River's biased matrix factorisation; it learns one event at a time, positive or not."""

    batch: Final = 64  # events between two looks at the clock; it learns from each alone

    def __init__(self) -> None:
        from river.reco import BiasedMF

        self._model = BiasedMF(seed=0)

    def fill(self, events: Edges) -> None:
        """Learn: it is fast enough."""
        for _ in self.steps(events):
            pass

    def steps(self, events: Edges) -> Iterator[int]:
        """Learn event by event."""
        users, items, kinds = (
            column.tolist() for column in (events.user, events.item, events.kind)
        )
        for first in range(0, len(users), self.batch):
            last = min(first + self.batch, len(users))
            for n in range(first, last):
                self._model.learn_one(user=users[n], item=items[n], y=float(kinds[n] <= 1))
            yield last - first
