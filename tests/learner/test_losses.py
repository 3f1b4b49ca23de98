"""The sampled softmax is the dense one on its sample, and log-Q makes up for how it was drawn."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from learner.losses import dislike, sampled_softmax


def log_softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the log of the softmax, the plain way."""
    top = scores.max()
    shifted: NDArray[np.float64] = scores - top - np.log(np.exp(scores - top).sum())
    return shifted


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 7))
def test_the_loss_is_the_log_softmax_over_what_does_not_clash(
    seed: int, n_rows: int, n_columns: int
) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (n_rows, n_columns))
    log_q = rng.normal(0, 2, n_columns)
    target = rng.integers(0, n_columns, n_rows)
    clash = rng.random((n_rows, n_columns)) < 0.3
    clash[np.arange(n_rows), target] = False
    want = []
    for row in range(n_rows):
        kept = np.flatnonzero(~clash[row])
        losses = -log_softmax((logits[row] - log_q)[kept])
        want.append(losses[kept.tolist().index(target[row])])
    found = sampled_softmax(
        torch.from_numpy(logits),
        torch.from_numpy(target),
        torch.from_numpy(log_q),
        torch.from_numpy(clash),
    )
    np.testing.assert_allclose(found.numpy(), want, rtol=1e-9, atol=1e-12)


def test_log_q_makes_the_expected_sample_the_whole_catalogue() -> None:
    """Over every sample of two negatives, the corrected partition sum is the dense one.

    The sum of exp(s - log Q) over the negatives, with Q the expected number of draws, has the
    dense sum as its expectation: computed here over all samples with their probabilities, from
    the losses themselves.
    """
    scores = np.array([0.3, -1.0, 2.0, 0.5])
    draw = np.array([0.1, 0.2, 0.3, 0.4])  # of one negative
    n_negatives = 2
    expected = {"corrected": 0.0, "plain": 0.0}
    for sample in product(range(4), repeat=n_negatives):
        chance = float(np.prod(draw[list(sample)]))
        for name, q in (("corrected", n_negatives * draw), ("plain", np.ones(4))):
            # The target is a column of its own, with score 0 and log Q = 0.
            columns = np.concatenate([[0.0], scores[list(sample)]])
            log_q = np.concatenate([[0.0], np.log(q[list(sample)])])
            loss = sampled_softmax(
                torch.from_numpy(columns)[None],
                torch.tensor([0]),
                torch.from_numpy(log_q),
                torch.zeros(1, 1 + n_negatives, dtype=torch.bool),
            )
            expected[name] += chance * float(loss.exp())
    dense = 1 + np.exp(scores).sum()  # exp(-log softmax) of a target with score 0
    assert expected["corrected"] == pytest.approx(dense)
    assert expected["plain"] != pytest.approx(dense, rel=0.1)


def test_what_clashes_gets_no_gradient_and_the_rest_is_pushed_by_its_share() -> None:
    logits = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    clash = torch.tensor([[False, True, False]])
    loss = sampled_softmax(logits, torch.tensor([0]), torch.zeros(3, dtype=torch.float64), clash)
    torch.autograd.backward(loss.sum())
    assert logits.grad is not None
    assert logits.grad.tolist() == [[-0.5, 0.0, 0.5]]


def test_a_dislike_costs_more_the_higher_its_score_and_pushes_by_the_sigmoid() -> None:
    scores = torch.tensor([-2.0, 0.0, 3.0], dtype=torch.float64, requires_grad=True)
    loss = dislike(scores)
    values = scores.detach().numpy()
    np.testing.assert_allclose(loss.detach().numpy(), np.log1p(np.exp(values)))
    torch.autograd.backward(loss.sum())
    assert scores.grad is not None
    np.testing.assert_allclose(scores.grad.numpy(), 1 / (1 + np.exp(-values)))
