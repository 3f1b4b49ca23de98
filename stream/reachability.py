"""Made-up signal values that try out whether each rule of a set can fire."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

_NUMBER = re.compile(r"(?<![\w.])\d+\.?\d*(?:[eE][+-]?\d+)?|(?<![\w.])\.\d+(?:[eE][+-]?\d+)?")


def trial_rows(
    when: str,
    used: Sequence[str],
    *,
    n_rows: int,
    signals: Sequence[str] = (),
    beside: str = "",
    seed: int = 0,
) -> pl.DataFrame:
    """Return rows of signal values some of which should make a rule fire, and fire first.

    The signals of the rule take all combinations of telling values (0, 1, a fraction, a negative
    number; each number in the expression, what lies just beside it, its half and its double), or a
    sample where these are more than ``n_rows``. The other signals are 0 in the first half of the
    result and anything in the second.

    Parameters
    ----------
    when, used
        The expression and the signals it asks for.
    n_rows
        Most rows of each half.
    signals
        The other signals of the set.
    beside
        The other expressions of the set.
    seed
        Of the sampling.

    Examples
    --------
    >>> rows = trial_rows("click > 3", ["click"], n_rows=100)
    >>> rows["click"].unique().sort().to_list()
    [-3.0, -1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 2.999997, 3.0, 3.000003, 4.0, 6.0, 1000000.0]

    """
    rng = np.random.default_rng(seed)
    mine = _combinations(when, len(used), n_rows, rng)
    others = [name for name in signals if name not in used]
    busy = rng.choice(telling_values(f"{when} {beside}"), (len(mine), len(others)))
    busy[rng.random(busy.shape) < rng.random((len(mine), 1))] = 0.0
    quiet_half = np.concatenate([mine, np.zeros_like(busy)], axis=1)
    busy_half = np.concatenate([mine, busy], axis=1)
    return pl.DataFrame(np.concatenate([quiet_half, busy_half]), schema=[*used, *others])


def telling_values(when: str) -> NDArray[np.float64]:
    """Return the values around which an expression may change its answer, ascending.

    Examples
    --------
    >>> telling_values("TRUE").tolist()
    [-1.0, 0.0, 0.5, 1.0, 2.0, 1000000.0]

    """
    values = {-1.0, 0.0, 0.5, 1.0, 2.0, 1e6}
    for number in _numbers(when):
        near = 1e-6 * max(number, 1.0)
        values |= {number, number - near, number + near, number - 1, number + 1}
        values |= {number / 2, number * 2, -number}
    return np.array(sorted(values))


def _numbers(when: str) -> list[float]:
    return [float(number) for number in _NUMBER.findall(when)]


def _combinations(
    when: str, n_signals: int, n_rows: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    values = telling_values(when)
    if len(values) ** n_signals <= n_rows:
        every = list(itertools.product(values.tolist(), repeat=n_signals))
        return np.array(every, dtype=np.float64).reshape(len(every), n_signals)
    shape = (n_rows, n_signals)
    exact = rng.choice([0.0, 1.0, *_numbers(when)], shape)  # many equalities are met only so
    return np.where(rng.random(shape) < 0.5, exact, rng.choice(values, shape))
