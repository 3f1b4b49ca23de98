"""What the learner shows of itself: plain numbers, as Prometheus reads them, over HTTP."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from learner.prequential import SIGNALS
from stream.errors import BadSettings

STAGES: Final = ("typed", "read", "learned", "published", "total")
"""From the append of an interaction until it was typed; from there until it was read; and so on."""

_STEP_S: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_FRESHNESS_S: Final = (
    0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0,
    60.0, 300.0, 3_600.0,
)  # fmt: skip

_PREFIX: Final = "tidegraph_learner_"

_COUNTERS: Final = {
    "events": "Events learned, those before a restart included.",
    "erasures": "Users who want to be forgotten: counted, not yet acted upon.",
    "unreadable": "Records of feedback that could not be read.",
    "publishes": "Updates written to the table.",
    "table_errors": "Updates that the table did not take.",
    "snapshots": "Snapshots written.",
    "snapshot_errors": "Snapshots that could not be written.",
}

_GAUGES: Final = {
    "lag_records": "Records that wait to be learned from.",
    "loss": "Fading mean of the loss per positive, in nats.",
    "hit_ratio_at_10": "Fading mean, over the share of positives that is ranked before learning.",
    "ndcg_at_10": "Fading mean, over the same events.",
    "ready": "1 once the log was caught up with and every row is in view.",
    "snapshot_age_seconds": "Since the newest snapshot of this process was begun.",
    "snapshot_pause_seconds": "For how long the newest snapshot stopped the learning.",
    "snapshot_seconds": "How long the newest snapshot took, beside the learning.",
    "table_up": "1 if the last write to the table succeeded.",
    "waiting_rows": "Rows of users and items that wait to be written.",
    "watermark_seconds": "Time of the newest event learned, in seconds since the epoch.",
    "micro_batch": "Events of a step, at most.",
}


class Histogram:
    """Counts of values between fixed bounds, filled by whole arrays.

    Parameters
    ----------
    bounds
        Upper bounds, ascending; a last one at infinity is added.

    Examples
    --------
    >>> histogram = Histogram((0.1, 1.0))
    >>> histogram.add(np.array([0.1, 0.5, 7.0]))
    >>> histogram.buckets()
    [('0.1', 1.0), ('1.0', 2.0), ('+Inf', 3.0)]

    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = np.array(bounds)
        self.counts = np.zeros(len(bounds) + 1)  # between the bounds, and beyond
        self.sum = 0.0

    def add(self, values: NDArray[np.float64], weights: NDArray[np.float64] | None = None) -> None:
        """Count values, each as often as its weight says."""
        places = np.searchsorted(self.bounds, values)
        self.counts += np.bincount(places, weights, minlength=self.counts.shape[0])
        self.sum += float((values if weights is None else values * weights).sum())

    def buckets(self) -> list[tuple[str, float]]:
        """Return each bound with the number of values up to it."""
        names = [*map(str, self.bounds.tolist()), "+Inf"]
        return list(zip(names, np.cumsum(self.counts).tolist(), strict=True))


class LearnerMetrics:
    """The numbers of one learner, set by one thread and read by any.

    ``values`` holds one number for each counter and gauge, by its name without the prefix.
    """

    def __init__(self) -> None:
        self.values: dict[str, float] = dict.fromkeys((*_COUNTERS, *_GAUGES), 0.0)
        self.drifts = dict.fromkeys(SIGNALS, 0)
        self.step_s = Histogram(_STEP_S)
        self.freshness_s = {stage: Histogram(_FRESHNESS_S) for stage in STAGES}
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def fresh(self, stamps_ms: NDArray[np.int64], weights: NDArray[np.float64]) -> None:
        """Count events that are in view.

        Parameters
        ----------
        stamps_ms
            When each was appended, typed, read, learned and published, ``(n, 5)``.
        weights
            How many events each row stands for, ``(n,)``.

        """
        # Clocks of several machines differ a little; a stage never takes less than nothing.
        took_s = np.maximum(np.diff(stamps_ms, axis=1), 0) / 1_000
        total_s = np.maximum(stamps_ms[:, -1] - stamps_ms[:, 0], 0) / 1_000
        for stage, values in zip(STAGES, (*took_s.T, total_s), strict=True):
            self.freshness_s[stage].add(values, weights)

    def collect(self) -> Iterator[Metric]:
        """Yield everything, as prometheus_client asks for it."""
        for name, told in _COUNTERS.items():
            yield CounterMetricFamily(_PREFIX + name, told, value=self.values[name])
        for name, told in _GAUGES.items():
            yield GaugeMetricFamily(_PREFIX + name, told, value=self.values[name])
        drift = CounterMetricFamily(
            _PREFIX + "drift", "Times that a detector saw a change.", labels=["signal"]
        )
        for signal, count in self.drifts.items():
            drift.add_metric([signal], count)
        yield drift
        yield HistogramMetricFamily(
            _PREFIX + "step_seconds",
            "How long a micro-batch took.",
            buckets=self.step_s.buckets(),
            sum_value=self.step_s.sum,
        )
        freshness = HistogramMetricFamily(
            _PREFIX + "freshness_seconds",
            "From the append of an interaction to its servable embedding, by stage.",
            labels=["stage"],
        )
        for stage, histogram in self.freshness_s.items():
            freshness.add_metric([stage], histogram.buckets(), sum_value=histogram.sum)
        yield freshness


@contextmanager
def serving(metrics: LearnerMetrics, port: int) -> Iterator[int]:
    """Answer ``/metrics`` and ``/healthz`` on all interfaces; give the port.

    ``/healthz`` answers 200 while the learner runs, with ``ready`` or ``loading``.

    Raises
    ------
    BadSettings
        If the port is taken.

    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the name is the library's
            path = self.path.partition("?")[0]
            if path == "/metrics":
                self._answer(200, generate_latest(metrics.registry), CONTENT_TYPE_LATEST)
            elif path == "/healthz":
                said = b"ready\n" if metrics.values["ready"] else b"loading\n"
                self._answer(200, said, "text/plain")
            else:
                self._answer(404, b"want /metrics or /healthz\n", "text/plain")

        def log_message(self, *arguments: Any) -> None:
            """Say nothing: a scrape every few seconds is no news."""

        def _answer(self, status: int, body: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    try:
        server = ThreadingHTTPServer(("", port), Handler)
    except OSError as error:
        raise BadSettings(
            f"learner.port: cannot listen on {port}: {error.strerror}; set another one, 0 for any"
        ) from error
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
