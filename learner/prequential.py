"""How good the model is on the events that come, tested on a share of them before it learns."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from river.drift import ADWIN

from graph_store.graph import View
from learner.base import Model
from learner.ranking import rank_targets, rows_of

HORIZON: Final = 2_000
"""Values over which a mean fades."""

SIGNALS: Final = ("loss", "hit_ratio_at_10")
"""What is watched for drift."""

HOURS: Final = 48
"""Hours of which the quality is remembered."""

ALARMS: Final = 100
"""Drift alarms that are remembered."""

FREEZE_MS: Final = 86_400_000
"""Event time for which the frozen model stands still: a day, as if it were trained nightly."""

_HOUR_MS: Final = 3_600_000

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


class Hour(NamedTuple):
    """How good the model was on the events of one hour of the stream."""

    hour_ms: int  # when it began
    ranked: int
    hits: float  # sum of the hit ratio at 10
    gain: float  # sum of the NDCG at 10
    frozen_ranked: int = 0  # those that the frozen model ranked as well
    frozen_gain: float = 0.0


class Alarm(NamedTuple):
    """A change that a detector saw."""

    signal: str
    at_ms: int  # event time
    event: int  # how many events had come


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
    twin
        Makes a model built alike, whose parameters then stand still: it ranks the same events from
        the same graph, which shows what learning online is worth. ``None``: there is none.
    freeze_ms
        Event time after which the parameters are copied anew.

    Attributes
    ----------
    hours
        Quality by hour of event time, the newest that had something to rank, in order.
    drifts, alarms
        How often a change was seen in each signal, and the newest times.

    Notes
    -----
    A restart begins with fresh drift detectors: their windows are not kept. The frozen model is as
    the model was when the period (of event time, a whole number of them since 1970) or this process
    began; before anything was learned there is none.

    """

    def __init__(
        self,
        model: Model,
        *,
        share: float,
        seed: int,
        twin: Callable[[], Model] | None = None,
        freeze_ms: int = FREEZE_MS,
    ) -> None:
        self._model = model
        self._share = share
        self._seed = seed
        self._twin = twin
        self._freeze_ms = freeze_ms
        self._frozen: Model | None = None
        self._period: int | None = None  # of the newest event; None before the first
        self.loss, self.hit_ratio, self.ndcg = (FadingMean() for _ in range(3))
        self.drifts = dict.fromkeys(SIGNALS, 0)
        self.hours: list[Hour] = []
        self.alarms: deque[Alarm] = deque(maxlen=ALARMS)
        self._events = 0
        self._newest_ms = 0
        self._detectors = {signal: ADWIN() for signal in SIGNALS}

    def rank(self, view: View) -> None:
        """Rank the positives of a view, if it is one of those that are ranked."""
        self._events += len(view)
        self._newest_ms = max(self._newest_ms, int(view.ts_ms.max(initial=0)))
        self._freeze()
        positives = np.flatnonzero(view.positive)
        if positives.size == 0 or not self._chosen(view.step):
            return
        pointers, seen = view.seen()
        at_once = max(1, _SCORES // max(view.n_items, 1))
        for first in range(0, positives.shape[0], at_once):
            some = positives[first : first + at_once]
            met = rows_of(pointers, seen, some)
            gains = _gains(self._model.score(view, some), view.items[some], met)
            frozen = self._frozen and _gains(self._frozen.score(view, some), view.items[some], met)
            for at, (gain, ts_ms) in enumerate(zip(gains, view.ts_ms[some].tolist(), strict=True)):
                hit = float(gain > 0)
                self.hit_ratio.add(hit)
                self.ndcg.add(gain)
                self._count(ts_ms, hit, gain, frozen[at] if frozen else None)
                self._watch("hit_ratio_at_10", hit)

    def forget(self, user: int) -> None:
        """Take a user's parameters out of the frozen model too."""
        if self._frozen is not None:
            self._frozen.forget(user)

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
            "hours": [list(hour) for hour in self.hours],
            "alarms": [list(alarm) for alarm in self.alarms],
            "events": self._events,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Become what :meth:`state` described."""
        self.loss.restore(state["loss"])
        self.hit_ratio.restore(state["hit_ratio"])
        self.ndcg.restore(state["ndcg"])
        self.drifts = dict(state["drifts"])
        # Older snapshots have none of these.
        self.hours = [Hour(*hour) for hour in state.get("hours", ())]
        self.alarms = deque((Alarm(*alarm) for alarm in state.get("alarms", ())), maxlen=ALARMS)
        self._events = state.get("events", 0)
        self._period = -1  # the model has learned: it is frozen with the next event

    def _freeze(self) -> None:
        if self._twin is None:
            return
        period, before = self._newest_ms // self._freeze_ms, self._period
        self._period = period if before is None else max(period, before)
        if before is not None and period > before:
            self._frozen = self._frozen or self._twin()
            self._frozen.restore(self._model.state())

    def _chosen(self, step: int) -> bool:
        return bool(np.random.default_rng((self._seed, step)).random() < self._share)

    def _watch(self, signal: str, value: float) -> None:
        detector = self._detectors[signal]
        detector.update(value)
        if detector.drift_detected:
            self.drifts[signal] += 1
            self.alarms.append(Alarm(signal, self._newest_ms, self._events))

    def _count(self, ts_ms: int, hit: float, gain: float, frozen: float | None) -> None:
        hour_ms = ts_ms // _HOUR_MS * _HOUR_MS
        at = bisect_left(self.hours, hour_ms, key=lambda hour: hour.hour_ms)
        if at == len(self.hours) or self.hours[at].hour_ms != hour_ms:
            self.hours.insert(at, Hour(hour_ms, 0, 0.0, 0.0))
        before = self.hours[at]
        self.hours[at] = Hour(
            hour_ms,
            before.ranked + 1,
            before.hits + hit,
            before.gain + gain,
            before.frozen_ranked + (frozen is not None),
            before.frozen_gain + (frozen or 0.0),
        )
        del self.hours[:-HOURS]


def _gains(
    scores: NDArray[np.float32],
    targets: NDArray[np.int64],
    met: tuple[NDArray[np.int64], NDArray[np.int64]],
) -> list[float]:
    """Return the NDCG at 10 of each event's item, 0 where it stands lower."""
    ranks = rank_targets(scores, targets, *met).tolist()
    return [1 / math.log2(1 + rank) if rank <= 10 else 0.0 for rank in ranks]
