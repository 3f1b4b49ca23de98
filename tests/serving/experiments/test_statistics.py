"""The estimates agree with numpy, and the promises of the intervals hold in simulation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from serving.experiments.statistics import (
    MIN_CELL,
    MIN_UNITS,
    Estimate,
    Moments,
    always_valid_p,
    confidence_interval,
    confidence_sequence,
    difference,
    mean,
    sample_ratio_p,
    slope,
)

Floats = NDArray[np.float64]
Draw = Callable[[np.random.Generator, tuple[int, ...]], NDArray[Any]]

ALPHA = 0.05
OUTCOMES: dict[str, tuple[Draw, float]] = {
    "normal": (lambda random, shape: random.normal(3.0, 2.0, shape), 3.0),
    "one in twenty": (lambda random, shape: (random.random(shape) < 0.05) * 1.0, 0.05),
    "few who do much": (lambda random, shape: random.negative_binomial(0.2, 0.1, shape) * 1.0, 1.8),
}
"""Ways in which outcomes fall, and their means."""

pairs = st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), max_size=30)


def moments(x: Floats, y: Floats) -> Moments:
    """Return the moments of many units, not by way of :meth:`Moments.add`."""
    if not len(y):
        return Moments()
    dx, dy = x - x.mean(), y - y.mean()
    return Moments(len(y), x.mean(), y.mean(), float(dx @ dx), float(dx @ dy), float(dy @ dy))


def near(one: Moments, other: Moments) -> bool:
    mine, theirs = ((m.n, m.x, m.y, m.xx, m.xy, m.yy) for m in (one, other))
    return bool(np.allclose(mine, theirs, atol=1e-9))


@given(first=pairs, second=pairs)
def test_moments_agree_with_numpy_however_the_units_are_parted(
    first: list[tuple[int, int]], second: list[tuple[int, int]]
) -> None:
    parts = []
    for part in (first, second):
        sums = Moments()
        for x, y in part:
            sums.add(x, y)
        parts.append(sums)
    every = np.array(first + second, np.float64).reshape(-1, 2)
    assert near(parts[0] + parts[1], moments(every[:, 0], every[:, 1]))


def test_cuped_takes_away_exactly_what_the_past_explains() -> None:
    # y = 2 x + e with e at right angles to x in each arm, and an effect of 1.
    past = np.tile([0.0, 2.0, 0.0, 2.0], 10)
    noise = np.tile([1.0, 1.0, -1.0, -1.0], 10)
    control, treated = moments(past, 2 * past + noise), moments(past, 2 * past + noise + 1)
    assert slope([control, treated]) == 2.0
    plain, better = difference([(control, treated)], cuped=False), difference([(control, treated)])
    assert plain.value == better.value == 1.0
    # The variance of y is 4 * 1 + 1, of which the noise's is 1; a correlation squared of 4/5.
    assert plain.variance == pytest.approx(2 * (5 * 40 / 39) / 40)
    assert better.variance == pytest.approx(plain.variance * (1 - 4 / 5))


def test_cuped_corrects_a_start_that_was_uneven_by_chance() -> None:
    x0, x1 = np.repeat([0.0, 2.0], [60, 40]), np.repeat([0.0, 2.0], [40, 60])
    control, treated = moments(x0, 3 * x0), moments(x1, 3 * x1 + 1)
    assert difference([(control, treated)], cuped=False).value == pytest.approx(1 + 3 * 0.4)
    assert difference([(control, treated)]).value == pytest.approx(1.0)


def test_the_stratified_estimate_weighs_each_stratum_by_its_units() -> None:
    y = np.tile([0.0, 2.0], 20)
    small = (moments(0 * y[:20], y[:20]), moments(0 * y[:20], y[:20] + 4))
    large = (moments(0 * y, y + 10), moments(0 * y[:20], y[:20] + 11))
    found = difference([small, large])
    assert found.value == pytest.approx((40 * 4 + 60 * 1) / 100)
    v20, v40 = (20 / 19) / 20, (40 / 39) / 40
    assert found.variance == pytest.approx(0.4**2 * 2 * v20 + 0.6**2 * (v20 + v40))
    assert found.n == 100


def test_strata_too_small_to_compare_are_put_together() -> None:
    y = np.tile([0.0, 2.0], 20)
    few = moments(0 * y[: MIN_CELL - 1], y[: MIN_CELL - 1])
    enough = moments(0 * y, y)
    assert difference([(enough, enough), (few, few)]) == difference([(enough + few, enough + few)])
    assert difference([(few, Moments())]).variance == math.inf
    assert math.isnan(difference([]).value)


@given(
    value=st.floats(-5, 5),
    variance=st.floats(1e-6, 10),
    n=st.integers(MIN_UNITS, 100_000),
    alpha=st.floats(0.001, 0.3),
)
def test_p_and_interval_say_the_same(value: float, variance: float, n: int, alpha: float) -> None:
    found = Estimate(value, variance, n)
    low, high = confidence_sequence(found, alpha, tuned_for=1_000)[1:]
    p = always_valid_p(found, alpha, tuned_for=1_000)
    if abs(p - alpha) > 1e-9:
        assert (p < alpha) == (not low <= 0 <= high)
    plain = confidence_interval(found, alpha)
    assert low < plain.low <= value <= plain.high < high  # what looking at any time costs


def test_nothing_is_said_of_few_units_or_of_units_that_are_all_alike() -> None:
    for found in (Estimate(9.0, 1e-6, MIN_UNITS - 1), Estimate(9.0, 0.0, 5_000)):
        assert confidence_sequence(found, 0.05, tuned_for=100)[1:] == (-math.inf, math.inf)
        assert always_valid_p(found, 0.05, tuned_for=100) == 1.0


def looks(draw: Draw, *, effect: float, runs: int, units: int, seed: int) -> tuple[Floats, Floats]:
    """Return the ends (runs, units) of the interval after every unit, of simulated experiments."""
    random = np.random.default_rng(seed)
    treated = random.random((runs, units)) < 0.5
    y = draw(random, (runs, units)) + effect * treated
    sums = []
    for arm in (~treated, treated):
        n = arm.cumsum(1)
        first, second = (arm * y).cumsum(1), (arm * y * y).cumsum(1)
        with np.errstate(divide="ignore", invalid="ignore"):
            average = first / n
            sums.append((average, (second / n - average**2) / (n - 1)))
    (m0, v0), (m1, v1) = sums
    value, variance = m1 - m0, v0 + v1
    # The radius depends on the data by sqrt(V) alone, so one call per count gives the factor.
    factor = np.full(units, math.inf)
    for seen in range(MIN_UNITS, units + 1):
        found = confidence_sequence(Estimate(0.0, 1.0, seen), ALPHA, tuned_for=2_000)
        factor[seen - 1] = found.high
    known = np.isfinite(variance) & (variance > 1e-12)
    radius = np.where(known, factor * np.sqrt(np.where(known, variance, 1.0)), math.inf)
    value = np.where(np.isfinite(value), value, 0.0)
    return value - radius, value + radius


@pytest.mark.slow
@pytest.mark.parametrize("name", OUTCOMES)
def test_who_looks_after_every_unit_is_hardly_ever_fooled(name: str) -> None:
    draw, _ = OUTCOMES[name]
    low, high = looks(draw, effect=0.0, runs=500, units=4_000, seed=1)
    wrong = ((low > 0) | (high < 0)).any(axis=1).mean()
    assert wrong <= ALPHA
    # The same looks at an interval for one look would find something in far more of them.
    assert wrong < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("name", OUTCOMES)
def test_all_intervals_of_an_experiment_hold_the_true_effect(name: str) -> None:
    draw, average = OUTCOMES[name]
    effect = 0.3 * average
    low, high = looks(draw, effect=effect, runs=500, units=4_000, seed=2)
    always = ((low <= effect) & (effect <= high)).all(axis=1).mean()
    assert always >= 1 - ALPHA
    if name == "normal":
        assert ((low > 0).any(axis=1)).mean() > 0.95  # and an effect is found


@pytest.mark.slow
def test_one_look_covers_as_often_as_promised() -> None:
    random = np.random.default_rng(3)
    held = 0
    for _ in range(4_000):
        old, new = random.exponential(1.0, 300), random.exponential(1.2, 200)
        pair = moments(0 * old, old), moments(0 * new, new)
        low, high = confidence_interval(difference([pair]), ALPHA)[1:]
        held += low <= 0.2 <= high
    assert held / 4_000 == pytest.approx(0.95, abs=0.012)  # 3.5 standard errors


@pytest.mark.slow
def test_looks_with_cuped_and_strata_are_honest_too() -> None:
    random = np.random.default_rng(4)
    fooled = 0
    widths: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(200):
        stratum = random.integers(3, size=3_000)
        x = random.poisson(1.0 + stratum) * 1.0
        y = random.poisson(0.2 + 0.5 * x + stratum) * 1.0
        arm = random.random(3_000) < 0.5
        cells = [(Moments(), Moments()) for _ in range(3)]
        wrong = False
        for n, (of, before, outcome, shown) in enumerate(
            zip(stratum.tolist(), x.tolist(), y.tolist(), arm.tolist(), strict=True), 1
        ):
            cells[of][shown].add(before, outcome)
            if n >= MIN_UNITS and n % 10 == 0:
                found = confidence_sequence(difference(cells), ALPHA, tuned_for=2_000)
                wrong |= not found.low <= 0 <= found.high
        fooled += wrong
        for cuped in (True, False):
            whole = [sum((pair[n] for pair in cells), Moments()) for n in (0, 1)]
            found = confidence_sequence(
                difference(cells if cuped else [(whole[0], whole[1])], cuped=cuped),
                ALPHA, tuned_for=2_000,
            )  # fmt: skip
            widths[cuped].append(found.high - found.low)
    assert fooled / 200 <= ALPHA
    assert np.mean(widths[True]) < 0.8 * np.mean(widths[False])


@pytest.mark.slow
def test_a_fair_split_is_hardly_ever_called_broken_and_a_broken_one_is() -> None:
    random = np.random.default_rng(5)
    shares = [0.25, 0.75]
    alarms = 0
    for _ in range(300):
        treated = (random.random(5_000) < 0.75).cumsum()
        alarms += any(
            sample_ratio_p([n - int(treated[n - 1]), int(treated[n - 1])], shares) < 0.05
            for n in range(1, 5_001, 10)
        )
    assert alarms / 300 <= 0.05
    lost = int((random.random(20_000) < 0.72).sum())  # a filter of robots that eats 4 % of an arm
    assert sample_ratio_p([20_000 - lost, lost], shares) < 0.001


def test_the_mean_of_an_arm_is_moved_to_where_all_arms_began() -> None:
    x, y = np.array([1.0, 3.0]), np.array([5.0, 9.0])
    found = mean(moments(x, y), theta=2.0, centre=1.0)
    assert found == Estimate(5.0, 0.0, 2)
    assert mean(Moments()).n == 0
