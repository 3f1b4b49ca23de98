"""Row-wise Adagrad moves what was touched, as the formula says, and nothing else."""

from __future__ import annotations

import numpy as np
import torch

from learner.optim import RowTable


def table(**settings: float) -> RowTable:
    """Return a table of three columns."""
    return RowTable(3, **{"lr": 0.1, "std": 0.1, "accumulator": 0.01, **settings}, seed=0)  # type: ignore[arg-type]


def test_steps_follow_the_formula_row_by_row() -> None:
    rows = table()
    rows.grow(5)
    expected = rows.weight.double().numpy().copy()
    sums = np.full(expected.shape[0], 0.01)
    rng = np.random.default_rng(0)
    for _ in range(4):
        touched = rng.choice(5, size=2, replace=False)
        grad = rng.normal(size=(2, 3))
        rows.step(torch.from_numpy(touched), torch.from_numpy(grad).float())
        for row, g in zip(touched, grad, strict=True):
            sums[row] += (g**2).mean()
            expected[row] -= 0.1 * g / np.sqrt(sums[row])
    np.testing.assert_allclose(rows.weight.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_a_row_starts_the_same_however_the_table_grew() -> None:
    at_once, slowly = table(), table()
    at_once.grow(5_000)
    for n_rows in (1, 2_000, 2_001, 5_000):
        slowly.grow(n_rows)
    np.testing.assert_array_equal(at_once.weight[:5_000].numpy(), slowly.weight[:5_000].numpy())


def test_growing_keeps_what_was_learned() -> None:
    rows = table()
    rows.grow(2)
    rows.step(torch.tensor([1]), torch.ones(1, 3))
    before = rows.weight[1].clone()
    rows.grow(10_000)
    assert torch.equal(rows.weight[1], before)


def test_restoring_gives_the_same_next_step() -> None:
    first, second = table(), table()
    first.grow(4)
    first.step(torch.tensor([0, 2]), torch.ones(2, 3))
    second.restore(first.state())
    for rows in (first, second):
        rows.step(torch.tensor([2]), torch.full((1, 3), 0.5))
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.sums, second.sums)
