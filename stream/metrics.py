"""What the stream worker tells Prometheus."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from stream.worker import BatchDone

OUTCOMES: Final = ("feedback", "no_signal", "duplicate", "late", "dead")
"""What becomes of a record; together they are all that came in."""

_BATCH_S: Final = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class StreamMetrics:
    """Counters and gauges of one stream worker since it started, in a registry of their own.

    Safe from any thread. What was ever counted is in the offset commits, see ``stream.commits``.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._records = Counter(
            "tidegraph_stream_records",
            "Records that came in, by what became of them.",
            ["outcome"],
            registry=self.registry,
        )
        self._classes = Counter(
            "tidegraph_stream_classes",
            "Events accepted, by what they mean.",
            ["kind"],
            registry=self.registry,
        )
        self._lag = Gauge(
            "tidegraph_stream_lag_records",
            "Records that wait in the partitions of this worker.",
            registry=self.registry,
        )
        self._watermark = Gauge(
            "tidegraph_stream_watermark_seconds",
            "Time of the newest event accepted, in seconds since the epoch.",
            registry=self.registry,
        )
        self._batch = Histogram(
            "tidegraph_stream_batch_seconds",
            "How long a batch took from its first record to its commit.",
            buckets=_BATCH_S,
            registry=self.registry,
        )
        self._commits = Counter(
            "tidegraph_stream_commits",
            "Transactions committed.",
            registry=self.registry,
        )
        for outcome in OUTCOMES:
            self._records.labels(outcome)  # so that each is there from the start, at 0

    def batch(self, done: BatchDone) -> None:
        """Count a batch that was committed."""
        for outcome in OUTCOMES:
            self._records.labels(outcome).inc(getattr(done.accounting, outcome))
        for kind, count in done.classes.items():
            self._classes.labels(kind).inc(count)
        self._lag.set(done.lag)
        self._watermark.set(done.watermark_ms / 1_000)
        self._batch.observe(done.seconds)
        self._commits.inc()

    def lag(self, records: int) -> None:
        """Tell how many records wait."""
        self._lag.set(records)

    def records(self) -> dict[str, int]:
        """Return how many records came in, by outcome."""
        return _totals(self._records, "outcome")

    def classes(self) -> dict[str, int]:
        """Return how many events were accepted, by what they mean; only kinds that came."""
        return _totals(self._classes, "kind")

    def text(self) -> str:
        """Return everything in Prometheus' text format."""
        return generate_latest(self.registry).decode()


def _totals(counter: Counter, label: str) -> dict[str, int]:
    (family,) = counter.collect()
    return {
        sample.labels[label]: int(sample.value)
        for sample in family.samples
        if sample.name.endswith("_total")
    }
