"""Intervals: what they must hold whatever the draws, and what a large sample must give."""

from __future__ import annotations

import numpy as np
import pytest

from replay.bootstrap import degradation, mean, resample, user_sums
from replay.metrics import gain


def test_sums_are_those_of_each_user() -> None:
    values = np.array([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]])
    assert user_sums(values, np.array([5, 1, 5])).tolist() == [[2.0, 20.0], [5.0, 50.0]]


def test_every_draw_takes_as_many_users_as_there_are() -> None:
    assert resample(np.ones((7, 1)), draws=20).tolist() == [[7.0]] * 20


def test_the_same_seed_draws_the_same_users_whatever_the_columns() -> None:
    sums = np.arange(10.0)[:, None]
    both = np.concatenate([sums, sums**2], axis=1)
    assert (
        resample(sums, draws=5, seed=3)[:, 0].tolist()
        == resample(both, draws=5, seed=3)[:, 0].tolist()
    )
    assert resample(sums, draws=5, seed=3).tolist() != resample(sums, draws=5, seed=4).tolist()


def test_the_interval_of_a_mean_is_the_textbooks_when_users_have_one_event_each() -> None:
    random = np.random.default_rng(0)
    values = (random.random(2_000) < 0.3).astype(float)[:, None]
    (found,) = mean(values, np.arange(2_000), draws=2_000)
    half = 1.96 * values.std() / np.sqrt(2_000)
    assert found.value == values.mean()
    assert found.low == pytest.approx(found.value - half, abs=0.002)
    assert found.high == pytest.approx(found.value + half, abs=0.002)


def test_events_of_one_user_hang_together() -> None:
    """Ten copies of each event tell no more than one: the interval must not shrink."""
    random = np.random.default_rng(0)
    values = (random.random(500) < 0.3).astype(float)[:, None]
    once = mean(values, np.arange(500))
    copies = mean(np.repeat(values, 10, axis=0), np.repeat(np.arange(500), 10))
    assert copies == once


def test_a_gain_is_a_negative_degradation_and_its_interval_knows_the_pairing() -> None:
    """Online is better by the same share for every user, so nothing is left to chance."""
    offline = np.array([3.0, 1.0, np.inf, 15.0] * 50)
    online = np.where(offline < 10, offline, 2.0)
    users = np.arange(200)
    found = degradation(offline, online, users, "hr@10")
    assert found.value == pytest.approx((0.5 - 1.0) / 0.5)
    assert found.low < found.value < found.high
    same = degradation(offline, offline, users, "ndcg@10")
    assert same == (0.0, 0.0, 0.0)
    assert gain(online, "hr@10").mean() == 1.0


def test_against_nothing_there_is_no_degradation() -> None:
    missed = np.array([np.inf, np.inf])
    found = degradation(missed, np.array([1.0, 1.0]), np.array([0, 1]))
    assert all(np.isnan(figure) for figure in found)
