"""How far a figure could have come out otherwise: intervals by drawing the users again."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from replay.metrics import gain

DRAWS: Final = 1_000
"""Draws behind every interval that is reported."""

COVERAGE: Final = 0.95
"""Share of draws that an interval holds."""


class Interval(NamedTuple):
    """A figure and the interval that holds :data:`COVERAGE` of its draws."""

    value: float
    low: float
    high: float


def user_sums(values: NDArray[np.float64], users: NDArray[np.int64]) -> NDArray[np.float64]:
    """Add up ``values`` (M, C) per user; the result is (U, C), users ascending.

    Examples
    --------
    >>> user_sums(np.array([[1.0], [2.0], [4.0]]), np.array([7, 3, 7])).tolist()
    [[2.0], [5.0]]

    """
    who, index = np.unique(users, return_inverse=True)
    columns = [np.bincount(index, column, who.shape[0]) for column in values.T]
    return np.stack(columns, axis=1) if columns else np.empty((who.shape[0], 0))


def resample(
    sums: NDArray[np.float64], *, draws: int = DRAWS, seed: int = 0
) -> NDArray[np.float64]:
    """Draw ``U`` users with replacement, ``draws`` times, and add up what they bring.

    A user is drawn with all of its events, because the events of one user hang together: an
    interval over events would come out too narrow.

    Parameters
    ----------
    sums
        What each user brings, shape (U, C). Columns drawn together are compared on the same users.
    draws
        How many times.
    seed
        Same seed, same draws, for any number of columns.

    Returns
    -------
    Totals, shape (draws, C).

    """
    n_users = sums.shape[0]
    totals = np.zeros((draws, sums.shape[1]))
    random = np.random.default_rng(seed)
    for draw in range(draws if n_users else 0):
        times = np.bincount(random.integers(n_users, size=n_users), minlength=n_users)
        totals[draw] = times.astype(np.float64) @ sums  # as floats, so that BLAS does it
    return totals


def interval(value: float, drawn: NDArray[np.float64]) -> Interval:
    """Return ``value`` with the quantiles of its draws; draws that are undefined are passed over.

    Examples
    --------
    >>> interval(0.5, np.linspace(0.0, 1.0, 41))
    Interval(value=0.5, low=0.025, high=0.975)

    """
    outside = (1.0 - COVERAGE) / 2.0
    defined = drawn[np.isfinite(drawn)]
    if defined.size == 0:
        return Interval(value, float("nan"), float("nan"))
    low, high = np.quantile(defined, [outside, 1.0 - outside])
    return Interval(value, float(low), float(high))


def mean(
    values: NDArray[np.float64],
    users: NDArray[np.int64],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> list[Interval]:
    """Return the mean over events of each column of ``values`` (M, C), with its interval.

    Examples
    --------
    Users who are all alike leave nothing to chance.

    >>> mean(np.array([[1.0], [0.0], [1.0], [0.0]]), np.array([0, 0, 1, 1]))
    [Interval(value=0.5, low=0.5, high=0.5)]

    """
    counted = np.concatenate([values, np.ones((values.shape[0], 1))], axis=1)
    totals = resample(user_sums(counted, users), draws=draws, seed=seed)
    return [
        interval(_ratio(column.sum(), column.shape[0]), drawn / totals[:, -1])
        for column, drawn in zip(values.T, totals.T, strict=False)
    ]


def degradation(
    rank_offline: NDArray[np.float64],
    rank_online: NDArray[np.float64],
    users: NDArray[np.int64],
    metric: str = "ndcg@10",
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval:
    r"""Return what going online costs of a metric, as a share of what offline reaches.

    .. math:: D = \frac{M(\text{offline}) - M(\text{online})}{M(\text{offline})}

    Negative is a gain. Both sides are drawn on the same users, so what makes a user hard for
    both does not widen the interval.

    Parameters
    ----------
    rank_offline, rank_online
        Ranks of the same events, shape (M,).
    users
        User of each event, shape (M,).
    metric
        Any name that :func:`replay.metrics.gain` knows.
    draws, seed
        As in :func:`resample`.

    Examples
    --------
    >>> offline, online = np.array([3.0, np.inf]), np.array([3.0, 8.0])
    >>> degradation(offline, online, np.array([0, 0]), "hr@10")
    Interval(value=-1.0, low=-1.0, high=-1.0)

    """
    gains = np.stack([gain(rank_offline, metric), gain(rank_online, metric)], axis=1)
    totals = resample(user_sums(gains, users), draws=draws, seed=seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = 1.0 - totals[:, 1] / totals[:, 0]
    offline, online = gains.sum(axis=0)
    return interval(1.0 - _ratio(online, offline), drawn)


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")
