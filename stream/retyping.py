"""Types events anew that were typed before: each brings the signals that the other rules saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream.decoding import decode
from stream.events import FeedbackBatch, Kind
from stream.typing_rules import RuleSet


def retyped(
    batch: FeedbackBatch, values: Sequence[bytes], rules: RuleSet, *, rows: NDArray[np.int64]
) -> FeedbackBatch:
    """Return events with the classes and weights that other rules give them.

    Retractions stay, and so do edges, which no rule has typed.

    Parameters
    ----------
    batch, values
        The events, and the records of the topic ``feedback`` that they were read from.
    rules
        By which they are typed.
    rows
        Which of them are looked at.

    Examples
    --------
    >>> from stream.typing_rules import load_rules
    >>> value = (
    ...     b'{"v":1,"event_id":"e1","user_id":"712","item_id":"5239","ts_ms":1650812741436,'
    ...     b'"kind":"none","weight":0.0,"signals":{"rating":4}}'
    ... )
    >>> batch = FeedbackBatch.from_records([value])
    >>> by = load_rules("ratings")
    >>> Kind(retyped(batch, [value], by, rows=np.array([0])).kind[0]).label
    'implicit_positive'

    """
    kind, weight = batch.kind.copy(), batch.weight.copy()
    places, signals = [], []
    for row in rows[batch.kind[rows] != Kind.RETRACTION].tolist():
        said = decode(_said, values[row])
        if said.rules_version or batch.kind[row] == Kind.NONE:
            places.append(row)
            signals.append(said.signals)
    if places:
        typed = rules.classify_mappings(signals)
        kind[places], weight[places] = typed.kind, typed.weight
    return replace(batch, kind=kind, weight=weight)


class _Said(msgspec.Struct, gc=False):
    rules_version: str = ""
    signals: dict[str, float] = {}


_said = msgspec.json.Decoder(_Said)
