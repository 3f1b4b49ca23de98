"""What the learner tells about itself to whoever reads the table, as plain JSON values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from learner.metrics import LearnerMetrics
from learner.prequential import Prequential

_SHOWN: Final = (
    "events", "erasures", "unreadable", "publishes", "table_errors", "snapshots", "snapshot_errors",
    "lag_records", "waiting_rows", "micro_batch",
)  # fmt: skip


def report(
    metrics: LearnerMetrics,
    prequential: Prequential,
    *,
    classes: Mapping[str, int],
    events_per_s: float,
    watermark_ms: int,
    following: bool,
    model: str,
    now_ms: int,
) -> dict[str, Any]:
    """Return what ``docs/table.md`` describes.

    Parameters
    ----------
    metrics, prequential
        Of the learner.
    classes
        Events learned by label.
    events_per_s
        Events learned since the report before.
    watermark_ms
        Time of the newest event.
    following
        Whether the log was caught up with.
    model
        Fingerprint of what the model is made of.
    now_ms
        The wall clock.

    """
    values = metrics.values
    return {
        "told_ms": now_ms,
        "phase": "following" if following else "loading",
        "ready": bool(values["ready"]),
        "model": model,
        **{name: int(values[name]) for name in _SHOWN},
        "events_per_s": events_per_s,
        "watermark_ms": watermark_ms,
        "snapshot_age_s": values["snapshot_age_seconds"],
        "loss": _number(prequential.loss.value),
        "hit_ratio_at_10": _number(prequential.hit_ratio.value),
        "ndcg_at_10": _number(prequential.ndcg.value),
        "classes": dict(classes),
        "hours": [
            {
                "hour_ms": hour.hour_ms,
                "ranked": hour.ranked,
                "hit_ratio_at_10": hour.hits / hour.ranked,
                "ndcg_at_10": hour.gain / hour.ranked,
                "frozen_ndcg_at_10": (
                    hour.frozen_gain / hour.frozen_ranked if hour.frozen_ranked else None
                ),
            }
            for hour in prequential.hours
        ],
        "drifts": [alarm._asdict() for alarm in prequential.alarms],
        "freshness": {
            stage: {
                "bounds_s": histogram.bounds.tolist(),
                "counts": histogram.counts.tolist(),
                "sum_s": histogram.sum,
            }
            for stage, histogram in metrics.freshness_s.items()
        },
    }


def _number(value: float) -> float | None:
    """Return a mean of nothing as JSON can say it."""
    return None if math.isnan(value) else value
