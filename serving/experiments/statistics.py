r"""Whether a difference could be chance, also for somebody who looks every minute.

Units (users or sessions) come one after the other, each with an outcome :math:`y` and what it did
before the experiment, :math:`x`. All figures follow from counts, means and centred sums of these,
so nothing about a unit need be kept.

References
----------
* Deng, Xu, Kohavi, Walker, *Improving the Sensitivity of Online Controlled Experiments by
  Utilizing Pre-Experiment Data*, WSDM 2013 (CUPED).
* Miratrix, Sekhon, Yu, *Adjusting Treatment Effect Estimates by Post-Stratification in Randomized
  Experiments*, JRSS B 2013.
* Robbins, *Statistical Methods Related to the Law of the Iterated Logarithm*, Annals of
  Mathematical Statistics 1970, and Johari, Koomen, Pekelis, Walsh, *Always Valid Inference*,
  Operations Research 2022 (the normal mixture); Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas,
  *Time-uniform central limit theory and asymptotic confidence sequences*, Annals of Statistics 2024
  (with an estimated variance).
* Lindon, Malek, *Anytime-Valid Inference for Multinomial Count Data*, NeurIPS 2022 (sample ratio).
* Chan, Golub, LeVeque, *Updating Formulae and a Pairwise Algorithm for Computing Sample Variances*,
  1979.

"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Final, NamedTuple

import msgspec

MIN_UNITS: Final = 100
"""Units before which an always-valid interval says nothing: the central limit needs some."""

MIN_CELL: Final = 10
"""Units that every arm of a stratum has; smaller strata are put together."""

_CONCENTRATION: Final = 100.0
"""Of the Dirichlet prior of :func:`sample_ratio_p`: a mismatch of some per cent is expected."""


class Moments(msgspec.Struct, array_like=True, gc=False):
    """Count, means and centred sums of pairs ``(x, y)``: all that the estimates need.

    Examples
    --------
    >>> sums = Moments()
    >>> for x, y in ((0.0, 1.0), (2.0, 5.0)):
    ...     sums.add(x, y)
    >>> sums
    Moments(n=2, x=1.0, y=3.0, xx=2.0, xy=4.0, yy=8.0)

    """

    n: int = 0
    x: float = 0.0
    y: float = 0.0
    xx: float = 0.0
    xy: float = 0.0
    yy: float = 0.0

    def add(self, x: float, y: float) -> None:
        """Take one unit in."""
        self.n += 1
        dx, dy = x - self.x, y - self.y
        self.x += dx / self.n
        self.y += dy / self.n
        rest = y - self.y
        self.xx += dx * (x - self.x)
        self.xy += dx * rest
        self.yy += dy * rest

    def __add__(self, other: Moments) -> Moments:
        """Return the moments of the units of both (Chan et al.)."""
        n = self.n + other.n
        if n == 0:
            return Moments()
        dx, dy = other.x - self.x, other.y - self.y
        share, both = other.n / n, self.n * other.n / n
        return Moments(
            n,
            self.x + share * dx,
            self.y + share * dy,
            self.xx + other.xx + both * dx * dx,
            self.xy + other.xy + both * dx * dy,
            self.yy + other.yy + both * dy * dy,
        )


class Estimate(NamedTuple):
    """A figure, the variance that chance gives it, and the units behind it."""

    value: float
    variance: float
    n: int


class Interval(NamedTuple):
    """A figure and what it could be instead."""

    value: float
    low: float
    high: float


def slope(cells: Sequence[Moments]) -> float:
    r"""Return how much of the past carries over, :math:`\theta` of CUPED.

    .. math:: \theta = \frac{\sum_c \sum_{i \in c} (x_i - \bar x_c)(y_i - \bar y_c)}
                            {\sum_c \sum_{i \in c} (x_i - \bar x_c)^2}

    Centred within the cells (arm and stratum), so that no effect of an arm gets into it.

    """
    below = sum(cell.xx for cell in cells)
    return sum(cell.xy for cell in cells) / below if below > 0 else 0.0


def mean(cell: Moments, *, theta: float = 0.0, centre: float = 0.0) -> Estimate:
    r"""Return the mean outcome, :math:`\bar y - \theta (\bar x - c)`, variance :math:`s^2 / n`.

    Parameters
    ----------
    cell
        Units of an arm, or of a stratum in it.
    theta
        Of :func:`slope`; 0 leaves the past out.
    centre
        Mean of x over all arms, :math:`c`.

    Examples
    --------
    >>> mean(Moments(n=2, x=1.0, y=3.0, xx=2.0, xy=4.0, yy=8.0))
    Estimate(value=3.0, variance=4.0, n=2)

    """
    if cell.n < 2:
        return Estimate(cell.y if cell.n else math.nan, math.inf, cell.n)
    square = max(cell.yy - 2 * theta * cell.xy + theta * theta * cell.xx, 0.0)
    value = cell.y - theta * (cell.x - centre)
    return Estimate(value, square / (cell.n - 1) / cell.n, cell.n)


def difference(strata: Sequence[tuple[Moments, Moments]], *, cuped: bool = True) -> Estimate:
    r"""Return how much more the treated units bring than the control's, in the mean.

    .. math:: \Delta = \sum_h \frac{n_h}{n} (\tilde y_{h1} - \tilde y_{h0}), \qquad
              V = \sum_h \left(\frac{n_h}{n}\right)^2
                  \left(\frac{\tilde s_{h1}^2}{n_{h1}} + \frac{\tilde s_{h0}^2}{n_{h0}}\right),

    with :math:`\tilde y_i = y_i - \theta x_i` and :math:`\theta` of :func:`slope`.

    Post-stratification with weights :math:`n_h / n`; strata with fewer than :data:`MIN_CELL` units
    in an arm are put together first.

    Parameters
    ----------
    strata
        Of each stratum the control's units and the treated ones; one pair if there are no strata.
    cuped
        Whether the past is taken into account.

    Examples
    --------
    >>> control = Moments(n=50, y=1.0, yy=49.0)
    >>> treated = Moments(n=50, y=1.5, yy=98.0)
    >>> difference([(control, treated)])
    Estimate(value=0.5, variance=0.06, n=100)

    """
    usable = _merged(strata)
    theta = slope([cell for pair in usable for cell in pair]) if cuped else 0.0
    total = sum(control.n + treated.n for control, treated in usable)
    value = variance = 0.0
    for control, treated in usable:
        weight = (control.n + treated.n) / total if total else 0.0
        old, new = mean(control, theta=theta), mean(treated, theta=theta)
        value += weight * (new.value - old.value)
        variance += weight * weight * (new.variance + old.variance)
    return Estimate(value, variance, total) if total else Estimate(math.nan, math.inf, 0)


def confidence_interval(estimate: Estimate, alpha: float) -> Interval:
    r"""Return :math:`\Delta \pm z_{1 - \alpha/2} \sqrt{V}`: valid for one look at a planned time.

    Examples
    --------
    >>> confidence_interval(Estimate(0.5, 0.01, 400), 0.05)
    Interval(value=0.5, low=0.304, high=0.696)

    """
    return _around(estimate, NormalDist().inv_cdf(1 - alpha / 2) * math.sqrt(estimate.variance))


def confidence_sequence(estimate: Estimate, alpha: float, *, tuned_for: int) -> Interval:
    r"""Return an interval that may be looked at after every unit.

    .. math:: \Delta_t \pm \hat\sigma_t
              \sqrt{\frac{2 (t \rho^2 + 1)}{t^2 \rho^2} \ln \frac{\sqrt{t \rho^2 + 1}}{\alpha}},
              \qquad \hat\sigma_t^2 = t V_t, \qquad
              \rho^2 = \frac{-2 \ln \alpha + \ln(1 - 2 \ln \alpha)}{t^*}

    With probability :math:`1 - \alpha` the true difference lies within *all* of these intervals
    together, so an experiment may be stopped when one of them leaves out 0 (Waudby-Smith et al.,
    their equation 6; Robbins' normal mixture with an estimated variance). The guarantee is that of
    the central limit; before :data:`MIN_UNITS` the interval is everything.

    Parameters
    ----------
    estimate
        Of :func:`difference` or :func:`mean`.
    alpha
        How often 0 may be left out wrongly, ever.
    tuned_for
        Units at which the interval is the narrowest it can be, :math:`t^*`; stated beforehand.

    Examples
    --------
    >>> confidence_sequence(Estimate(0.5, 0.01, 400), 0.05, tuned_for=400)
    Interval(value=0.5, low=0.196, high=0.804)

    """
    if not _speaks(estimate):
        return Interval(estimate.value, -math.inf, math.inf)
    mixed = estimate.n * _rho_squared(alpha, tuned_for)
    log = math.log(math.sqrt(mixed + 1) / alpha)
    return _around(estimate, math.sqrt(estimate.variance * 2 * (mixed + 1) / mixed * log))


def always_valid_p(estimate: Estimate, alpha: float, *, tuned_for: int) -> float:
    r"""Return the least level at which :func:`confidence_sequence` leaves out 0.

    .. math:: p_t = \min\left(1, \sqrt{t \rho^2 + 1}
              \exp\left(-\frac{t \rho^2}{2 (t \rho^2 + 1)} \frac{\Delta_t^2}{V_t}\right)\right)

    The :math:`\rho` is that of ``alpha``, so that both say the same at this level.

    Examples
    --------
    >>> always_valid_p(Estimate(0.3035, 0.01, 400), 0.05, tuned_for=400)
    0.05

    """
    if not _speaks(estimate):
        return 1.0
    mixed = estimate.n * _rho_squared(alpha, tuned_for)
    square = estimate.value * estimate.value / estimate.variance
    return min(1.0, math.exp(0.5 * math.log(mixed + 1) - 0.5 * mixed / (mixed + 1) * square))


def sample_ratio_p(counts: Sequence[int], shares: Sequence[float]) -> float:
    r"""Return how well the units of the arms fit the shares; below 0.001 something is broken.

    .. math:: p = \min\left(1, \prod_a \theta_a^{n_a} \Big/
              \frac{\Gamma(\kappa)}{\Gamma(\kappa + n)}
              \prod_a \frac{\Gamma(\kappa \theta_a + n_a)}{\Gamma(\kappa \theta_a)}\right)

    The Dirichlet-multinomial mixture of Lindon and Malek: exact, and as often as one likes.

    Parameters
    ----------
    counts
        Units that came, by arm.
    shares
        What was wanted, :math:`\theta`; they add up to 1.

    Examples
    --------
    >>> (
    ...     sample_ratio_p([5_040, 4_960], [0.5, 0.5]),
    ...     sample_ratio_p([5_400, 4_600], [0.5, 0.5]) < 1e-9,
    ... )
    (1.0, True)

    """
    wanted = [_CONCENTRATION * share for share in shares]
    mixture = math.lgamma(sum(wanted)) - math.lgamma(sum(wanted) + sum(counts))
    mixture += sum(
        math.lgamma(prior + count) - math.lgamma(prior)
        for prior, count in zip(wanted, counts, strict=True)
    )
    plain = sum(count * math.log(share) for count, share in zip(counts, shares, strict=True))
    return math.exp(min(plain - mixture, 0.0))


def _around(estimate: Estimate, radius: float) -> Interval:
    return Interval(estimate.value, estimate.value - radius, estimate.value + radius)


def _speaks(estimate: Estimate) -> bool:
    return estimate.n >= MIN_UNITS and 0 < estimate.variance < math.inf


def _rho_squared(alpha: float, tuned_for: int) -> float:
    logged = -2 * math.log(alpha)
    return (logged + math.log(logged + 1)) / tuned_for


def _merged(strata: Sequence[tuple[Moments, Moments]]) -> list[tuple[Moments, Moments]]:
    """Put the smallest strata together until each has enough units in both arms."""
    rest = sorted(strata, key=lambda pair: min(pair[0].n, pair[1].n), reverse=True)
    while len(rest) > 1 and min(rest[-1][0].n, rest[-1][1].n) < MIN_CELL:
        small, smaller = rest[-2], rest[-1]
        rest[-2:] = [(small[0] + smaller[0], small[1] + smaller[1])]
    return rest
