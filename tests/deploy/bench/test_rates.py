"""The highest rate that is held, where the knee is, and what bounds it."""

from __future__ import annotations

from typing import Any

import pytest

from deploy.bench.rates import LEAST, bound, knee, search


class Api:
    """Holds a rate with a p99 of 9 ms, and none above it."""

    def __init__(self, most: float, *, errors: int = 0) -> None:
        self.most = most
        self.errors = errors
        self.asked: list[float] = []

    def __call__(self, rate: float) -> dict[str, Any]:
        self.asked.append(rate)
        held = rate <= self.most
        return {
            "requests_per_s": round(min(rate, self.most)),
            "errors": 0 if held else self.errors,
            "p99_ms": 9.0 if held or self.errors else 900.0,
            "max_ms": 1_000.0,
            "busy_cores": {"server": 0.98, "generator": 0.4, "all": 1.5},
        }


@pytest.mark.parametrize("most", [130.0, 700.0, 2_000.0, 2_100.0, 6_789.0])
@pytest.mark.parametrize("errors", [0, 3])
def test_the_highest_rate_is_found_to_a_tenth(most: float, errors: int) -> None:
    api = Api(most, errors=errors)
    held, beyond = search(api, first=2_000.0)
    assert held["rate"] <= most < beyond["rate"] <= 1.1 * held["rate"] + 1
    assert len(api.asked) < 12


def test_an_api_that_holds_nothing_is_given_up() -> None:
    held, beyond = search(Api(0.0), first=2_000.0)
    assert held == {}
    assert beyond["rate"] < LEAST
    found = knee(held, beyond, workers=1)
    assert found["rate"] == 0


def test_the_knee_tells_what_is_beyond_and_what_bounds_it() -> None:
    found = knee(*search(Api(3_000.0), first=2_000.0), workers=1)
    assert found["rate"] == 3_000
    assert found["beyond"]["requests_per_s"] == 3_000
    assert found["beyond"]["p99_ms"] == 900.0
    assert found["bound_by"] == "server"


@pytest.mark.parametrize(
    ("busy", "workers", "by"),
    [
        ({"server": 0.95, "generator": 0.95, "all": 2.0}, 1, "generator"),
        ({"server": 0.95, "generator": 0.5, "all": 1.6}, 1, "server"),
        ({"server": 1.2, "generator": 0.7, "all": 1.95}, 2, "machine"),
        ({"server": 0.5, "generator": 0.5, "redis": 0.97, "all": 2.0}, 1, "redis"),
        ({"server": 0.5, "generator": 0.5, "all": 1.1}, 1, "nothing that was measured is full"),
    ],
)
def test_what_bounds_a_rate(busy: dict[str, float], workers: int, by: str) -> None:
    assert bound(busy, workers=workers, cores=2) == by
