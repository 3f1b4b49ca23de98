"""Parts that earn nothing are closed, one at a time."""

from __future__ import annotations

import pytest

from learner.gates import Gates


def test_nothing_is_decided_before_the_stream_has_settled() -> None:
    gates = Gates({"a": 0.01, "b": 0.01}, settle=100)
    assert gates.measured({"a": 0.5, "b": -1.0}, positives=99) is None
    assert gates.measured({"a": 0.5, "b": -1.0}, positives=1) == "b"


def test_between_two_closings_the_others_get_time_to_take_over() -> None:
    gates = Gates({"a": 0.01, "b": 0.01, "c": 0.01}, settle=1)
    assert gates.measured({"a": 0.0, "b": -1.0, "c": 1.0}, positives=1) == "b"
    assert gates.measured({"a": 0.0, "c": 1.0}, positives=2_499) is None
    assert gates.measured({"a": 0.0, "c": 1.0}, positives=1) == "a"
    assert gates.open == ("c",)


def test_the_gain_is_the_mean_of_what_was_measured() -> None:
    gates = Gates({"a": 0.0}, settle=10**9)
    for gain in (1.0, 2.0, 6.0):
        gates.measured({"a": gain}, positives=1)
    assert gates.gain_nats["a"] == pytest.approx(3.0)


def test_a_restart_decides_as_the_undisturbed_run_would() -> None:
    first, second = (Gates({"a": 0.3, "b": 0.3}, settle=10) for _ in range(2))
    first.measured({"a": 0.5, "b": 0.1}, positives=9)
    second.restore(first.state())
    assert first.measured({"a": 0.5, "b": 0.1}, positives=1) == "b"
    assert second.measured({"a": 0.5, "b": 0.1}, positives=1) == "b"
    assert first.state() == second.state()


def test_what_takes_long_has_to_earn_more() -> None:
    gates = Gates({"cheap": 0.0, "slow": 0.5}, settle=1)
    assert gates.measured({"cheap": 0.1, "slow": 0.4}, positives=1) == "slow"
