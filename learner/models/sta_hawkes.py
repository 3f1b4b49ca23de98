r"""STA-Hawkes: signed temporal attention and Hawkes kernels over the last K events, plus counts.

The score of item :math:`i` for user :math:`u` at :math:`t` is a sum of parts, each behind a gate
:math:`g` that is learned online:

.. math::
    s_{u,i}(t) &= h_u(t) \cdot z_i(t) + b_i + g_p \, w_p \cdot p_i(t) + g_q \, w_q \cdot q_i(t)
                  + g_c \, w_{c,|H_u|} \log(1 + 50 \, c_{u,i}(t)) \\
    h_u(t) &= \sum_k (g_m a_k + g_a \alpha_k + g_h \phi_{s_k}(t - t_k)) \, e_{i_k} + g_u e_u \\
    z_i(t) &= e_i + g_n \operatorname{mean}_{v \in N_i(t)} e_v

* pool: :math:`a = \operatorname{softmax}_k(r_k + o_{s_k})` times a free sign per feedback class;
* attention: :math:`\alpha = \operatorname{softmax}_k((q + e_u) \cdot e_{i_k} / \sqrt D + r_k +
  o_{s_k} - \lambda (t - t_k))`: the decay is added in log space, so that the old fades to nothing;
* hawkes: the multi-exponential kernel :math:`\phi_s` of the event's feedback class;
* user: the user's own row; neighbours: the rows of the item's latest positive users (one hop of
  the graph);
* popularity, click_rate, covisitation: counts at several half-lives (:mod:`learner.fusion`).

Trained by sampled softmax with log-Q correction over shared negatives, half of them recent
positives, and the batch's other positives; explicit negatives add a small weighted term of their
own.

Departures. From the Transformer Hawkes Process (Zuo et al., ICML 2020, arXiv:2002.09291): one
layer, no self-attention among past events, the kernel instead of a softplus intensity, no
likelihood term, and the kernel is cut off after K events. From TGN (Rossi et al.,
arXiv:2006.10637): no node memory; the ring of last edges and the rows are the state, and no
gradient flows into the rows of an item's neighbours: they learn from their own events.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, Final, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numba import njit
from numpy.typing import NDArray
from torch import Tensor, nn

from graph_store.graph import HOUR_MS, View
from graph_store.sampling import log_q, sample_negatives
from graph_store.store import Neighbours
from learner.base import Learned, Part, Vectors
from learner.fusion import (
    COVISITATION_SCALE,
    N_LENGTHS,
    count_features,
    covisitation_features,
    length_class,
    trust,
)
from learner.gates import Gates
from learner.hawkes import excitation
from learner.losses import dislike, sampled_softmax
from learner.optim import Adam, RowTable
from stream.events import N_CLASSES, Kind

EVENT_PARTS: Final = ("pool", "attention", "hawkes")
SLOW_PARTS: Final = ("attention", "neighbours")
"""Parts that make a step half as long again: they have to earn it."""

_MEASURE_EVERY: Final = 16
"""Steps between two measurements of what the parts are worth."""

PARTS: Final = (
    *EVENT_PARTS, "user", "neighbours", "popularity", "click_rate", "covisitation"
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class STAHawkesConfig:
    """Sizes and rates of a :class:`STAHawkes`; chosen on KuaiRand-Pure's validation slice."""

    dim: int = 64
    parts: tuple[str, ...] = PARTS  # components built at all
    n_negatives: int = 256  # shared by the batch
    share_recent: float = 0.5  # of the negatives from recent positives; the rest uniform
    row_lr: float = 0.05  # of user and item rows
    bias_lr: float = 0.2
    dense_lr: float = 5e-3  # Adam, of everything that is not a row
    accumulator: float = 1e-2  # of a new row's Adagrad
    item_std: float = 0.05  # of a new item's noise; new users start at zero
    explicit_negative: float = 0.02  # weight of the dislike term, of any sign
    max_grad_norm: float = 1.0  # per positive
    hawkes_half_lives_h: tuple[float, ...] = (1.0, 24.0, 720.0)  # where the rates start
    neighbours: int = 10  # latest users of an item
    price_nats: float = 0.02  # what a part that takes long must be worth to stay open
    tolerance_nats: float = 0.005  # what a cheap part may cost in quality before it is closed
    settle: int = 10_000  # positives before the first part may be closed
    device: str = "cpu"
    seed: int = 0


class _Dense(nn.Module):
    """Everything that is not a row, with its first values."""

    def __init__(self, config: STAHawkesConfig, *, k: int, n_half_lives: int) -> None:
        super().__init__()

        def start(*shape: int, at: float = 0.0) -> nn.Parameter:
            return nn.Parameter(torch.full(shape, at))

        rates = 0.6931 / torch.tensor(config.hawkes_half_lives_h)
        self.gate = nn.ParameterDict(
            {name: start(at=_FIRST_GATE.get(name, 1.0)) for name in config.parts}
        )
        self.pool_rank, self.pool_class, self.pool_sign = (
            start(k),
            start(N_CLASSES),
            start(N_CLASSES, at=1.0),
        )
        self.query = start(config.dim)
        self.attention_rank, self.attention_class = start(k), start(N_CLASSES)
        self.attention_decay = start(at=-2.0)  # softplus(-2) = 0.13 per day
        self.amplitude = start(N_CLASSES, len(config.hawkes_half_lives_h), at=0.1)
        self.log_rate = nn.Parameter(rates.log())
        self.popularity, self.click_rate = start(n_half_lives), start(n_half_lives)
        self.covisitation = start(N_LENGTHS, at=0.5)


def _laid_in_one(parameters: list[nn.Parameter]) -> tuple[Tensor, Tensor]:
    """Lay small parameters, and their gradients, side by side, so that one operation moves all."""
    flat = torch.cat([parameter.detach().ravel() for parameter in parameters])
    gradient = torch.zeros_like(flat)
    first = 0
    for parameter in parameters:
        part = slice(first, first + parameter.numel())
        parameter.data = flat[part].view(parameter.shape)
        parameter.grad = gradient[part].view(parameter.shape)
        first += parameter.numel()
    return flat, gradient


_CLASSES: Final = np.arange(N_CLASSES)

_FIRST_GATE: Final = {"attention": 0.3, "hawkes": 0.3, "neighbours": 0.3}
"""Parts that must show their worth start quietly."""


@njit(cache=True)
def _compact(rows, place):  # type: ignore[no-untyped-def]
    """Return the distinct rows in order of appearance, and where each input stands among them.

    ``place`` may hold anything: an entry counts only if it points at itself.
    """
    distinct = np.empty(rows.shape[0], np.int64)
    index = np.empty(rows.shape[0], np.int64)
    n_distinct = 0
    for n in range(rows.shape[0]):
        row = rows[n]
        at = place[row]
        if at >= n_distinct or distinct[at] != row:
            at = n_distinct
            distinct[at] = row
            place[row] = at
            n_distinct += 1
        index[n] = at
    return distinct[:n_distinct], index


@njit(cache=True)
def _clashes(candidates, targets):  # type: ignore[no-untyped-def]
    """Mark where a candidate is a row's own target in another column than its own."""
    clash = np.zeros((targets.shape[0], candidates.shape[0]), np.bool_)
    for p in range(targets.shape[0]):
        for c in range(candidates.shape[0]):
            clash[p, c] = candidates[c] == targets[p] and c != p
    return clash


class STAHawkes:
    """The shipped default: see the module for the equations.

    Shape
    -----
    ``B`` events of a view, ``P`` of them positive, ``C`` candidates, ``K`` history, ``D`` dim.

    Parameters
    ----------
    config
        Sizes and rates.
    k, n_half_lives
        History length and number of half-lives that the graph keeps.

    """

    def __init__(self, config: STAHawkesConfig, *, k: int, n_half_lives: int) -> None:
        self.config = config
        self._device = torch.device(config.device)
        rows = partial(
            RowTable,
            accumulator=config.accumulator,
            seed=config.seed,
            device=self._device,
        )
        self._items = rows(config.dim, lr=config.row_lr, std=config.item_std)
        self._users = rows(config.dim, lr=config.row_lr, std=0.0)
        self._bias = rows(1, lr=config.bias_lr, std=0.0)
        self.dense = _Dense(config, k=k, n_half_lives=n_half_lives).to(self._device)
        self._gate = dict(self.dense.gate.items())  # a plain dict: looked up several times a step
        self._flat, self._gradient = _laid_in_one(list(self.dense.parameters()))
        self._adam = Adam(self._flat, lr=config.dense_lr)
        prices = {
            name: config.price_nats if name in SLOW_PARTS else -config.tolerance_nats
            for name in config.parts
        }
        self._gates = Gates(prices, settle=config.settle)
        self._place = np.zeros(0, np.int64)
        self._known: tuple[View, Tensor, Tensor] | None = None  # the catalogue of the last view

    def score(self, view: View, events: NDArray[np.int64]) -> NDArray[np.float32]:
        """Score every item known at the view's start, (b, n_items)."""
        self._grow(view)
        history = _take(view.history, events)
        with torch.no_grad():
            keys = self._keys(history)
            own = self._users.weight.index_select(0, self._to(view.users[events]))
            h, _, _ = self._user(view.ts_ms[events], history, keys, own)
            z, base = self._catalogue(view)
            scores: NDArray[np.float32] = torch.addmm(base, h, z.T).cpu().numpy()
            if "covisitation" in self._gates.open:
                weight = self._covisitation_weight(history).cpu().numpy()
                view.graph.covisitation.add_log(
                    scores, history.nodes, trust(history), weight, COVISITATION_SCALE
                )
        return scores

    def learn(self, view: View) -> Learned:
        """Take one step on a view's positives and explicit negatives."""
        self._known = None
        self._grow(view)
        self._place_new_items(view)
        positives = np.flatnonzero(view.positive)
        if positives.size == 0 or view.n_items == 0:
            return Learned(math.nan, view.users, view.items)
        rejected = np.flatnonzero(view.kind == Kind.EXPLICIT_NEGATIVE)
        negatives, log_chances = self._sample(view, view.items[positives])
        events = np.concatenate([positives, rejected])
        candidates = np.concatenate([view.items[positives], negatives, view.items[rejected]])
        history = _take(view.history, events)

        z = self._items.leaf(self._to(candidates))  # (C, D)
        bias = self._bias.leaf(self._to(candidates))  # (C, 1)
        keys = self._keys(history).requires_grad_()  # (P + E, K, D)
        own = self._users.leaf(self._to(view.users[events]))  # (P + E, D)
        h, weights, own_share = self._user(view.ts_ms[events], history, keys, own)
        features, count_weights, counted = self._count_features(view, candidates)
        base = torch.addmv(bias.squeeze(1), features, count_weights)  # (C,)
        full = z
        if "neighbours" in self._gates.open:
            around = self._neighbour_share(view, candidates)
            full = z + around
        logits = torch.addmm(base, h, full.T)  # (P + E, C)
        if "covisitation" in self._gates.open:
            cosines = covisitation_features(view.graph.covisitation, history, candidates)
            pairs = self._to(cosines) * self._covisitation_weight(history).unsqueeze(1)
            logits = logits + pairs

        n_positives = positives.shape[0]
        in_sample = n_positives + negatives.shape[0]
        softmax = _Softmax(
            self._to(log_chances),
            self._to(_clashes(candidates[:in_sample], view.items[positives])),
            self._to(view.weight[positives]),
        )
        sampled = logits[:n_positives, :in_sample]
        loss = softmax.losses(sampled)
        if view.step % _MEASURE_EVERY == 0:
            with torch.no_grad():
                shares = {name: _pooled(each, keys) @ full.T for name, each in weights.items()}
                shares["user"] = own_share @ full.T
                n = max(len(counted), 1)
                parts = zip(counted, features.chunk(n, 1), count_weights.chunk(n), strict=False)
                shares |= {name: block @ part for name, block, part in parts}
                if "covisitation" in self._gates.open:
                    shares["covisitation"] = pairs
                if "neighbours" in self._gates.open:
                    shares["neighbours"] = h @ around.T
                self._measure(softmax, sampled, loss, shares)
        total = (loss * softmax.weight).sum()
        if rejected.size:
            disliked = logits[n_positives:, in_sample:].diagonal()
            total = total + self.config.explicit_negative * dislike(disliked).sum()
        torch.autograd.backward(total)
        past = np.maximum(history.nodes, 0).ravel()  # padding has no weight, hence no gradient
        self._descend(
            (
                (self._items, np.concatenate([candidates, past]), (z, keys)),
                (self._bias, candidates, (bias,)),
                (self._users, view.users[events], (own,)),
            ),
            n_positives,
        )
        return Learned(
            float(loss.detach().mean()),
            view.users,
            np.concatenate([candidates, past, view.items]),
        )

    def forget(self, user: int) -> None:
        """Make the user's row that of a user who has done nothing yet."""
        self._known = None
        if user < self._users.n_rows:
            self._users.reset(user)

    def item_vectors(self, view: View, items: NDArray[np.int64]) -> Vectors:
        """Return :math:`z_i` and :math:`b_i` as of the view's start."""
        self._grow(view)
        with torch.no_grad():
            z = self._items.weight[self._to(items)]
            if "neighbours" in self._gates.open:
                z = z + self._neighbour_share(view, items)
            return Vectors(
                items, z.cpu().numpy(), self._bias.weight[self._to(items), 0].cpu().numpy()
            )

    def user_vectors(self, view: View, events: NDArray[np.int64]) -> Vectors:
        """Return :math:`h_u` at the time of each event, from what came before it."""
        self._grow(view)
        history = _take(view.history, events)
        with torch.no_grad():
            own = self._users.weight.index_select(0, self._to(view.users[events]))
            h, _, _ = self._user(view.ts_ms[events], history, self._keys(history), own)
        return Vectors(view.users[events], h.cpu().numpy(), np.zeros(events.shape[0], np.float32))

    def parts(self) -> list[Part]:
        """Return the components in the order of the configuration."""
        return [
            Part(
                name,
                float(self._gate[name].detach()) if name in self._gates.open else 0.0,
                self._gates.gain_nats[name],
                name in self._gates.open,
            )
            for name in self.config.parts
        ]

    def published_weights(self) -> dict[str, NDArray[np.float32]]:
        """Return the weights of the open count parts, their gates multiplied in."""
        weights = {
            "popularity": self.dense.popularity,
            "click_rate": self.dense.click_rate,
            "covisitation": self.dense.covisitation,
        }
        return {
            name: (weight * self._gate[name]).detach().cpu().numpy()
            for name, weight in weights.items()
            if name in self._gates.open
        }

    @property
    def n_bytes(self) -> int:
        """Bytes held by rows and their accumulators."""
        return self._items.n_bytes + self._users.n_bytes + self._bias.n_bytes

    def state(self) -> dict[str, Any]:
        """Return all that a restart needs."""
        return {
            "items": self._items.state(),
            "users": self._users.state(),
            "bias": self._bias.state(),
            "dense": self._flat.cpu().numpy().copy(),
            "adam": self._adam.state(),
            "gates": self._gates.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Become what :meth:`state` described."""
        self._known = None
        self._items.restore(state["items"])
        self._users.restore(state["users"])
        self._bias.restore(state["bias"])
        self._flat.copy_(torch.from_numpy(np.array(state["dense"])))
        self._adam.restore(state["adam"])
        self._gates.restore(state["gates"])

    def _event_weights(
        self, ts_ms: NDArray[np.int64], history: Neighbours, keys: Tensor, own: Tensor
    ) -> dict[str, Tensor]:
        """Return how much each open part makes of each past event, (B, K) each."""
        dense, is_open = self.dense, self._gates.open
        tables = []  # (classes, columns) each: what a part knows of a feedback class
        if "pool" in is_open:
            tables += [dense.pool_class.unsqueeze(1)]
            tables += [(dense.pool_sign * self._gate["pool"]).unsqueeze(1)]
        if "attention" in is_open:
            tables += [dense.attention_class.unsqueeze(1)]
        if "hawkes" in is_open:
            tables += [dense.amplitude * self._gate["hawkes"]]
        if not tables:
            return {}
        # One product looks all of them up. Padding is of no class and gets nothing but zeros.
        of_class = self._to((history.kind[..., None] == _CLASSES).astype(np.float32))
        widths = [table.shape[1] for table in tables]
        found = list(torch.split(of_class @ torch.cat(tables, 1), widths, 2))
        present = self._to(history.nodes >= 0)  # (B, K)
        weights: dict[str, Tensor] = {}
        if "pool" in is_open:
            share = _softmax(dense.pool_rank + found.pop(0).squeeze(2), present)
            weights["pool"] = share * found.pop(0).squeeze(2)
        if "attention" in is_open or "hawkes" in is_open:
            age_ms = np.where(history.nodes >= 0, ts_ms[:, None] - history.ts_ms, 0)
            age_h = self._to((age_ms / HOUR_MS).astype(np.float32))
        if "attention" in is_open:
            content = (keys @ (own + dense.query).unsqueeze(2)).squeeze(2)
            decay = F.softplus(dense.attention_decay) * age_h / 24
            logits = content / self.config.dim**0.5 + dense.attention_rank - decay
            share = _softmax(logits + found.pop(0).squeeze(2), present) * present
            weights["attention"] = share * self._gate["attention"]
        if "hawkes" in is_open:
            weights["hawkes"] = excitation(age_h, found.pop(0), dense.log_rate.exp())
        return weights

    def _user(
        self, ts_ms: NDArray[np.int64], history: Neighbours, keys: Tensor, own: Tensor
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Return user vectors (B, D), and what they are made of: weights of events, own share."""
        weights = self._event_weights(ts_ms, history, keys, own)
        own = own * self._gate["user"] if "user" in self._gates.open else torch.zeros_like(own)
        if not weights:
            return own, weights, own
        return own + _pooled(reduce(torch.add, weights.values()), keys), weights, own

    def _keys(self, history: Neighbours) -> Tensor:
        """Return the item rows of past events, (B, K, D); padding has row 0, and no weight."""
        rows = self._to(np.maximum(history.nodes, 0).ravel())
        return self._items.weight.index_select(0, rows).view(*history.nodes.shape, self.config.dim)

    def _count_features(
        self, view: View, items: NDArray[np.int64]
    ) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        """Return features (C, n H), weights (n H,), and which of the two count parts are open."""
        both = ("popularity", "click_rate")
        is_open = tuple(name for name in both if name in self._gates.open)
        if not is_open:
            return self._flat.new_zeros(items.shape[0], 1), self._flat.new_zeros(1), is_open
        graph, dense = view.graph, self.dense
        popularity, click_rate = count_features(
            graph.positives, graph.shown, items, n_items=view.n_items, at_ms=view.at_ms
        )
        features = {"popularity": popularity, "click_rate": click_rate}
        weights = {"popularity": dense.popularity, "click_rate": dense.click_rate}
        return (
            self._to(np.concatenate([features[name] for name in is_open], 1)),
            torch.cat([weights[name] * self._gate[name] for name in is_open]),
            is_open,
        )

    def _covisitation_weight(self, history: Neighbours) -> Tensor:
        by_length: Tensor = self.dense.covisitation * self._gate["covisitation"]
        lengths = length_class(history)[:, None] == np.arange(N_LENGTHS)
        return self._to(lengths.astype(np.float32)) @ by_length

    def _neighbour_share(self, view: View, items: NDArray[np.int64]) -> Tensor:
        """Return what the rows of their latest positive users add to item vectors, (C, D)."""
        near = view.graph.edges.items_latest(items, k=self.config.neighbours, before_ms=view.at_ms)
        liked = (near.kind >= 0) & (near.kind <= Kind.IMPLICIT_POSITIVE)
        share = liked / np.maximum(liked.sum(1, keepdims=True), 1)
        with torch.no_grad():
            mean = F.embedding_bag(
                self._to(np.maximum(near.nodes, 0)),
                self._users.weight,
                per_sample_weights=self._to(share.astype(np.float32)),
                mode="sum",
            )
        share_of_score: Tensor = mean * self._gate["neighbours"]
        return share_of_score

    def _catalogue(self, view: View) -> tuple[Tensor, Tensor]:
        """Return vectors (N, D) and biases with counts (N,) of all known items, once per view."""
        if self._known is None or self._known[0] is not view:
            everything = np.arange(view.n_items)
            z = self._items.weight[: view.n_items]
            if "neighbours" in self._gates.open:
                z = z + self._neighbour_share(view, everything)
            features, weights, _ = self._count_features(view, everything)
            base = torch.addmv(self._bias.weight[: view.n_items, 0], features, weights)
            self._known = view, z, base
        return self._known[1:]

    def _sample(
        self, view: View, targets: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Draw the shared negatives; return them and the log-Q of targets and negatives."""
        config, recent = self.config, view.graph.recent
        negatives = sample_negatives(
            config.n_negatives,
            n_items=view.n_items,
            ring=recent,
            share_recent=config.share_recent,
            seed=config.seed,
            step=view.step,
        )
        # The batch's own positives stand in the sample like further draws from the recent ones.
        n_sample = config.n_negatives + targets.shape[0]
        share = (config.share_recent * config.n_negatives + targets.shape[0]) / n_sample
        candidates = np.concatenate([targets, negatives])
        chances = log_q(candidates, n_items=view.n_items, ring=recent, share_recent=share)
        return negatives, chances.astype(np.float32)

    def _measure(
        self, softmax: _Softmax, logits: Tensor, loss: Tensor, shares: dict[str, Tensor]
    ) -> None:
        """Tell the gates what each open part is worth on this batch."""
        n_positives, in_sample = logits.shape
        gains = {}
        for name in self._gates.open:
            share = shares[name]
            share = share[:in_sample] if share.dim() == 1 else share[:n_positives, :in_sample]
            gains[name] = float((softmax.losses(logits - share) - loss).mean())
        self._gates.measured(gains, positives=n_positives * _MEASURE_EVERY)

    def _descend(
        self,
        touched: tuple[tuple[RowTable, NDArray[np.int64], tuple[Tensor, ...]], ...],
        n_positives: int,
    ) -> None:
        """Sum the gradients of each row, clip them together, move rows and dense parameters."""
        moves = []
        for table, rows, leaves in touched:
            grads = [leaf.grad.view(-1, table.dim) for leaf in leaves if leaf.grad is not None]
            if len(grads) == len(leaves):
                distinct, at = _compact(rows, self._place)
                summed = self._flat.new_zeros(distinct.shape[0], table.dim)
                summed.index_add_(0, self._to(at), torch.cat(grads))
                moves.append((table, self._to(distinct), summed))
        grads = [*(grad for _, _, grad in moves), self._gradient]
        squares = [torch.dot(grad.view(-1), grad.view(-1)) for grad in grads]
        norm = float(torch.stack(squares).sum()) ** 0.5
        if norm > (bound := self.config.max_grad_norm * n_positives):
            for grad in grads:
                grad.mul_(bound / norm)
        for table, distinct, grad in moves:
            table.step(distinct, grad)
        self._adam.step(self._gradient)
        self._gradient.zero_()

    def _grow(self, view: View) -> None:
        """Make room for rows that the view names for the first time."""
        n_users = max(view.n_users, int(view.users.max(initial=-1)) + 1)
        n_items = max(view.n_items, int(view.items.max(initial=-1)) + 1)
        self._users.grow(n_users)
        self._items.grow(n_items)
        self._bias.grow(n_items)
        if max(n_users, n_items) > self._place.shape[0]:
            self._place = np.zeros(2 * max(n_users, n_items), np.int64)

    def _place_new_items(self, view: View) -> None:
        """Start an item seen for the first time near what its first user did before."""
        fresh = np.flatnonzero(view.items >= view.n_items)
        if fresh.size == 0:
            return
        _, first = np.unique(view.items[fresh], return_index=True)
        history = _take(view.history, fresh[first])
        present = history.nodes >= 0
        share = present / np.maximum(present.sum(1, keepdims=True), 1)
        means = _pooled(self._to(share.astype(np.float32)), self._keys(history))
        self._items.weight.index_add_(0, self._to(view.items[fresh[first]]), means)

    def _to(self, array: NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor if self._device.type == "cpu" else tensor.to(self._device)


class _Softmax(NamedTuple):
    """The sample that a batch's positives are compared with."""

    log_q: Tensor  # (C,)
    clash: Tensor  # (P, C)
    weight: Tensor  # (P,)

    def losses(self, logits: Tensor) -> Tensor:
        """Return the loss of each positive, (P,); its own column is its index."""
        target = torch.arange(logits.shape[0], device=logits.device)
        return sampled_softmax(logits, target, self.log_q, self.clash)


def _pooled(weights: Tensor, keys: Tensor) -> Tensor:
    """Return the weighted sums (B, D) of keys (B, K, D)."""
    return torch.bmm(weights.unsqueeze(1), keys).squeeze(1)


def _softmax(logits: Tensor, present: Tensor) -> Tensor:
    """Softmax over what is present (B, K); what a row with nothing gets must not be used."""
    return torch.softmax(logits.masked_fill(~present, -1e9), 1)


def _take(history: Neighbours, events: NDArray[np.int64]) -> Neighbours:
    return Neighbours(history.nodes[events], history.ts_ms[events], history.kind[events])
