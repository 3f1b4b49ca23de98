"""Which parts of a model earn their place: what each is worth is measured as the stream goes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

_HORIZON: Final = 200.0
"""Measurements over which a part's worth is averaged."""

_PAUSE_POSITIVES: Final = 2_500
"""Positives between two closings, in which the other parts take over what the closed one did."""


class Gates:
    r"""Decides which parts stay open, by the loss that each one's absence would have added.

    The gain of part :math:`p` on a batch is :math:`\bar\ell(s - s_p) - \bar\ell(s)` in nats per
    positive, measured before the batch is learned from. Scores are sums of parts, so that it
    takes no second model. After ``settle`` positives the part that falls shortest of its price
    is closed; then the next, after a pause. A closed part stays closed for the life of the model
    (a retrained one starts anew) and costs nothing.

    Parameters
    ----------
    price_nats
        The parts, all open, and what each must be worth: more for what takes long to compute.
    settle
        Positives before the first decision.

    Examples
    --------
    >>> gates = Gates({"a": 0.01, "b": 0.01}, settle=1)
    >>> gates.measured({"a": 0.5, "b": 0.001}, positives=10)
    'b'
    >>> gates.open
    ('a',)

    """

    def __init__(self, price_nats: Mapping[str, float], *, settle: int) -> None:
        self.open = tuple(price_nats)
        self.gain_nats = dict.fromkeys(price_nats, math.nan)
        self._price_nats = dict(price_nats)
        self._measurements = 0
        self._positives = 0
        self._decide_at = settle

    def measured(self, gains: Mapping[str, float], *, positives: int) -> str | None:
        """Take in one batch's gains of the open parts; return the part that this closed, if any."""
        self._measurements += 1
        share = max(1 / self._measurements, 1 / _HORIZON)
        for name, gain in gains.items():
            before = self.gain_nats[name]
            self.gain_nats[name] = gain if math.isnan(before) else before + share * (gain - before)
        self._positives += positives
        if self._positives < self._decide_at or not self.open:
            return None
        earned = {name: self.gain_nats[name] - self._price_nats[name] for name in self.open}
        worst = min(self.open, key=earned.__getitem__)
        if earned[worst] >= 0:
            return None
        self.open = tuple(name for name in self.open if name != worst)
        self._decide_at = self._positives + _PAUSE_POSITIVES
        return worst

    def state(self) -> dict[str, Any]:
        """Return all that a restart needs."""
        return {
            "open": list(self.open),
            "gain_nats": {
                name: None if math.isnan(gain) else gain for name, gain in self.gain_nats.items()
            },
            "measurements": self._measurements,
            "positives": self._positives,
            "decide_at": self._decide_at,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Become what :meth:`state` described."""
        self.open = tuple(state["open"])
        self.gain_nats = {
            name: math.nan if gain is None else gain for name, gain in state["gain_nats"].items()
        }
        self._measurements = state["measurements"]
        self._positives = state["positives"]
        self._decide_at = state["decide_at"]
