"""The kernel is the sum of its exponentials, and what is old excites no more."""

from __future__ import annotations

import math

import pytest
import torch

from learner.hawkes import excitation

AMPLITUDE = torch.tensor([[[0.5, -1.5], [2.0, 0.25]]])  # (1, K, R): one user, two past events
RATE_PER_H = torch.tensor([3.0, 0.01])


def test_each_past_event_gets_the_sum_of_its_classs_exponentials() -> None:
    age_h = torch.tensor([[0.5, 40.0]])
    found = excitation(age_h, AMPLITUDE, RATE_PER_H)
    want = [
        [
            sum(
                a * math.exp(-rate * age)
                for a, rate in zip(amplitudes, RATE_PER_H.tolist(), strict=True)
            )
            for age, amplitudes in zip(age_h[0].tolist(), AMPLITUDE[0].tolist(), strict=True)
        ]
    ]
    assert found.tolist()[0] == pytest.approx(want[0], rel=1e-6)


def test_at_age_zero_the_amplitudes_add_up() -> None:
    assert excitation(torch.zeros(1, 2), AMPLITUDE, RATE_PER_H).tolist() == [[-1.0, 2.25]]


def test_after_a_century_nothing_is_left() -> None:
    age_h = torch.full((1, 2), 876_600.0)
    assert excitation(age_h, AMPLITUDE, RATE_PER_H).tolist() == [[0.0, 0.0]]


def test_gradients_are_those_of_the_formula() -> None:
    amplitude = torch.tensor([1.3], dtype=torch.float64, requires_grad=True)
    rate = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
    age_h = torch.tensor(2.0, dtype=torch.float64)
    torch.autograd.backward(excitation(age_h, amplitude, rate))
    assert amplitude.grad is not None
    assert rate.grad is not None
    assert amplitude.grad.item() == pytest.approx(math.exp(-1.4))
    assert rate.grad.item() == pytest.approx(-2.0 * 1.3 * math.exp(-1.4))
