"""How good the model is on the events that come, tested on a share of them before it learns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from river.drift import ADWIN

from graph_store.graph import View
from learner.base import Model
from learner.ranking import rank_targets, rows_of

HORIZON: Final = 2_000
"""Values over which a mean fades."""

SIGNALS: Final = ("loss", "hit_ratio_at_10")
"""What is watched for drift."""

_SCORES: Final = 1 << 24
"""Scores held at a time: 64 MB."""


class FadingMean:
    r"""A mean that follows the stream, plain over the first ``horizon`` values.

    .. math:: m_n = m_{n-1} + \max(1/n, 1/H) \, (x_n - m_{n-1})

    Parameters
    ----------
    horizon
        :math:`H`.

    Examples
    --------
    >>> mean = FadingMean(horizon=2)
    >>> for value in (0.0, 1.0, 1.0):
    ...     mean.add(value)
    >>> mean.value
    0.75

    """

    def __init__(self, horizon: int = HORIZON) -> None:
        self._horizon = horizon
        self.n = 0
        self.value = math.nan

    def add(self, value: float) -> None:
        """Take one value in."""
        self.n += 1
        before = 0.0 if self.n == 1 else self.value
        self.value = before + max(1 / self.n, 1 / self._horizon) * (value - before)

    def state(self) -> list[float | int | None]:
        """Return all that a restart needs."""
        return [self.n, None if math.isnan(self.value) else self.value]

    def restore(self, state: list[Any]) -> None:
        """Become what :meth:`state` described."""
        self.n, value = state
        self.value = math.nan if value is None else value


class Prequential:
    """Ranks the items of some positive events before they are learned from; keeps fading means.

    A share of the micro-batches is ranked whole, so that what a batch costs once (the vectors of
    all items) is paid seldom; each positive event has the same chance. Which ones is a function
    of the seed and the step alone.

    Parameters
    ----------
    model
        Asked for scores, never changed.
    share
        Of the micro-batches.
    seed
        Of the choice.

    Notes
    -----
    A restart begins with fresh drift detectors: their windows are not kept.

    """

    def __init__(self, model: Model, *, share: float, seed: int) -> None:
        self._model = model
        self._share = share
        self._seed = seed
        self.loss, self.hit_ratio, self.ndcg = (FadingMean() for _ in range(3))
        self.drifts = dict.fromkeys(SIGNALS, 0)
        self._detectors = {signal: ADWIN() for signal in SIGNALS}

    def rank(self, view: View) -> None:
        """Rank the positives of a view, if it is one of those that are ranked."""
        positives = np.flatnonzero(view.positive)
        if positives.size == 0 or not self._chosen(view.step):
            return
        pointers, seen = view.seen()
        at_once = max(1, _SCORES // max(view.n_items, 1))
        for first in range(0, positives.shape[0], at_once):
            some = positives[first : first + at_once]
            scores = self._model.score(view, some)
            ranks = rank_targets(scores, view.items[some], *rows_of(pointers, seen, some))
            for rank in ranks.tolist():
                hit = rank <= 10
                self.hit_ratio.add(float(hit))
                self.ndcg.add(1 / math.log2(1 + rank) if hit else 0.0)
                self._watch("hit_ratio_at_10", float(hit))

    def learned(self, loss: float) -> None:
        """Take in the loss of a step, NaN where there was nothing to learn from."""
        if not math.isnan(loss):
            self.loss.add(loss)
            self._watch("loss", loss)

    def state(self) -> dict[str, Any]:
        """Return all that a restart needs."""
        return {
            "loss": self.loss.state(),
            "hit_ratio": self.hit_ratio.state(),
            "ndcg": self.ndcg.state(),
            "drifts": dict(self.drifts),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Become what :meth:`state` described."""
        self.loss.restore(state["loss"])
        self.hit_ratio.restore(state["hit_ratio"])
        self.ndcg.restore(state["ndcg"])
        self.drifts = dict(state["drifts"])

    def _chosen(self, step: int) -> bool:
        return bool(np.random.default_rng((self._seed, step)).random() < self._share)

    def _watch(self, signal: str, value: float) -> None:
        detector = self._detectors[signal]
        detector.update(value)
        self.drifts[signal] += bool(detector.drift_detected)
