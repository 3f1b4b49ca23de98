"""What the learner shows: every name that dashboards rely on, and where it is served."""

from __future__ import annotations

from urllib.error import HTTPError
from urllib.request import urlopen

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from learner.metrics import STAGES, Histogram, LearnerMetrics, serving
from stream.errors import BadSettings

NAMES = [
    "events_total",
    "lag_records",
    "step_seconds_bucket",
    "loss",
    "hit_ratio_at_10",
    "ndcg_at_10",
    "drift_total",
    "ready",
    "freshness_seconds_bucket",
    "snapshot_age_seconds",
    "snapshot_pause_seconds",
    "table_up",
    "waiting_rows",
    "watermark_seconds",
    "micro_batch",
]


def served(port: int, path: str) -> str:
    with urlopen(f"http://127.0.0.1:{port}{path}") as answer:
        body: bytes = answer.read()
    return body.decode()


@given(
    values=st.lists(st.floats(0, 10), max_size=20), weights=st.lists(st.integers(1, 3), min_size=20)
)
def test_buckets_count_values_up_to_their_bound(values: list[float], weights: list[int]) -> None:
    bounds = (0.5, 1.0, 5.0)
    histogram = Histogram(bounds)
    pairs = list(zip(values, weights, strict=False))
    histogram.add(np.array(values, float), np.array([weight for _, weight in pairs], float))
    want = [sum(w for v, w in pairs if v <= bound) for bound in (*bounds, np.inf)]
    assert [count for _, count in histogram.buckets()] == want
    assert histogram.sum == pytest.approx(sum(v * w for v, w in pairs))


def test_every_name_is_served() -> None:
    metrics = LearnerMetrics()
    metrics.values["events"] = 7
    metrics.drifts["loss"] = 2
    metrics.fresh(np.array([[0, 100, 300, 600, 1_000]]), np.array([3.0]))
    with serving(metrics, 0) as port:
        text = served(port, "/metrics")
        assert served(port, "/healthz") == "loading\n"
        metrics.values["ready"] = 1
        assert served(port, "/healthz") == "ready\n"
        with pytest.raises(HTTPError, match="404") as refused:
            served(port, "/")
        refused.value.close()
        with pytest.raises(BadSettings, match=rf"learner\.port: cannot listen on {port}"):
            serving(metrics, port).__enter__()
    samples = {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert {name[0].removeprefix("tidegraph_learner_") for name in samples} >= set(NAMES)
    assert samples["tidegraph_learner_events_total",] == 7
    assert samples["tidegraph_learner_drift_total", "loss"] == 2
    took_s = dict(zip(STAGES, (0.1, 0.2, 0.3, 0.4, 1.0), strict=True))
    for stage, seconds in took_s.items():
        assert samples["tidegraph_learner_freshness_seconds_sum", stage] == pytest.approx(
            3 * seconds
        )
        assert samples["tidegraph_learner_freshness_seconds_bucket", str(seconds), stage] == 3


def test_clocks_that_differ_never_make_a_stage_negative() -> None:
    metrics = LearnerMetrics()
    metrics.fresh(np.array([[100, 0, 50, 40, 90]]), np.array([1.0]))
    assert all(histogram.sum >= 0 for histogram in metrics.freshness_s.values())
    assert all(histogram.buckets()[-1][1] == 1 for histogram in metrics.freshness_s.values())
