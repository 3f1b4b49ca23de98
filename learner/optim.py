"""The optimizers: row-wise Adagrad for tables that grow, Adam for the few other parameters."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

_BLOCK: Final = 1_024
"""Rows drawn at a time: a row's first value depends on the seed and its number alone."""

_BETA_1: Final = 0.9
_BETA_2: Final = 0.999
_EPSILON: Final = 1e-8


class RowTable:
    r"""A table of parameter rows with one Adagrad accumulator per row.

    .. math:: G_r \mathrel{+}= \tfrac{1}{D} \lVert g_r \rVert^2, \qquad
              w_r \mathrel{-}= \eta \, g_r / \sqrt{G_r}

    Parameters
    ----------
    dim
        Width ``D`` of a row.
    lr
        Learning rate :math:`\eta`.
    std
        Standard deviation of a new row.
    accumulator
        :math:`G_r` of a new row.
    seed
        Two tables with one seed start alike.
    device
        Where the rows live.

    Notes
    -----
    A step costs what its rows cost, however long the table is. Row-wise accumulators take 1/D of
    the memory of elementwise ones (FBGEMM, PyTorch-BigGraph).

    References
    ----------
    Duchi et al., *Adaptive Subgradient Methods for Online Learning and Stochastic Optimization*,
    JMLR 2011.

    Examples
    --------
    >>> table = RowTable(2, lr=0.1, std=0.0, accumulator=0.0, seed=0)
    >>> table.grow(1)
    >>> table.step(torch.tensor([0]), torch.tensor([[3.0, 3.0]]))
    >>> [round(value, 3) for value in table.weight[0].tolist()]
    [-0.1, -0.1]

    """

    def __init__(
        self,
        dim: int,
        *,
        lr: float,
        std: float,
        accumulator: float,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.dim = dim
        self.lr = lr
        self._std = std
        self._accumulator = accumulator
        self._seed = seed
        self.n_rows = 0
        self.weight = torch.zeros(0, dim, device=device)
        self.sums = torch.zeros(0, device=device)

    def grow(self, n_rows: int) -> None:
        """Make sure that rows ``0 .. n_rows - 1`` exist."""
        self.n_rows = max(self.n_rows, n_rows)
        have = self.weight.shape[0]
        if n_rows <= have:
            return
        # Half as much again, so that a growing catalogue is copied a bounded number of times.
        blocks = range(have // _BLOCK, -(-max(n_rows, have * 3 // 2) // _BLOCK))
        fresh = torch.cat([self._first_values(block) for block in blocks])
        self.weight = torch.cat([self.weight, fresh])
        self.sums = torch.cat([self.sums, torch.full_like(fresh[:, 0], self._accumulator)])

    def reset(self, row: int) -> None:
        """Make a row what it was before anything was learned."""
        self.weight[row] = self._first_values(row // _BLOCK)[row % _BLOCK]
        self.sums[row] = self._accumulator

    def leaf(self, rows: Tensor) -> Tensor:
        """Return a copy of ``rows`` (R, D) that gradients can flow to."""
        return self.weight.index_select(0, rows).requires_grad_()

    def step(self, rows: Tensor, grad: Tensor) -> None:
        """Move distinct ``rows`` (R,) against ``grad`` (R, D)."""
        sums = self.sums.index_select(0, rows).add_(grad.square().mean(1))
        self.sums.index_copy_(0, rows, sums)
        self.weight.index_add_(0, rows, grad * sums.rsqrt_().mul_(-self.lr).unsqueeze(1))

    def _first_values(self, block: int) -> Tensor:
        """Return the rows of a block as they begin."""
        drawn = np.random.default_rng((self._seed, block)).standard_normal(
            (_BLOCK, self.dim), np.float32
        )
        return torch.from_numpy(drawn).to(self.weight.device) * self._std

    @property
    def n_bytes(self) -> int:
        """Bytes held."""
        return self.weight.nbytes + self.sums.nbytes

    def state(self) -> dict[str, Any]:
        """Return all that a restart needs."""
        return {
            "n_rows": self.n_rows,
            "weight": self.weight.cpu().numpy().copy(),
            "sums": self.sums.cpu().numpy().copy(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Become what :meth:`state` described."""
        device = self.weight.device
        self.n_rows = state["n_rows"]
        self.weight = torch.from_numpy(np.array(state["weight"])).to(device)
        self.sums = torch.from_numpy(np.array(state["sums"])).to(device)


class Adam:
    r"""Adam over one flat tensor, with its state in plain sight.

    .. math::
        w \mathrel{-}= \eta \, \frac{m / (1 - \beta_1^n)}{\sqrt{v / (1 - \beta_2^n)} + \epsilon}

    Parameters
    ----------
    weight
        What is moved, in place.
    lr
        Learning rate :math:`\eta`; the betas are 0.9 and 0.999.

    Notes
    -----
    ``torch.optim.Adam`` computes the same and takes ten times as long for a hundred numbers, a
    twelfth of a whole step here.

    References
    ----------
    Kingma and Ba, *Adam: A Method for Stochastic Optimization*, ICLR 2015, algorithm 1.

    Examples
    --------
    >>> weight = torch.zeros(1)
    >>> Adam(weight, lr=0.1).step(torch.tensor([5.0]))
    >>> round(weight.item(), 4)
    -0.1

    """

    def __init__(self, weight: Tensor, *, lr: float) -> None:
        self._weight = weight
        self._lr = lr
        self._steps = 0
        self._mean = torch.zeros_like(weight)
        self._square = torch.zeros_like(weight)

    def step(self, grad: Tensor) -> None:
        """Move the weight against its gradient."""
        self._steps += 1
        self._mean.lerp_(grad, 1 - _BETA_1)
        self._square.mul_(_BETA_2).addcmul_(grad, grad, value=1 - _BETA_2)
        root = self._square.sqrt().mul_((1 - _BETA_2**self._steps) ** -0.5).add_(_EPSILON)
        self._weight.addcdiv_(self._mean, root, value=-self._lr / (1 - _BETA_1**self._steps))

    def state(self) -> dict[str, Any]:
        """Return all that a restart needs."""
        return {
            "steps": self._steps,
            "mean": self._mean.cpu().numpy().copy(),
            "square": self._square.cpu().numpy().copy(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Become what :meth:`state` described."""
        self._steps = state["steps"]
        self._mean.copy_(torch.from_numpy(np.array(state["mean"])))
        self._square.copy_(torch.from_numpy(np.array(state["square"])))
