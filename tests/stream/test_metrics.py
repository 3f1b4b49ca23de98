"""What the stream worker counts for Prometheus."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from stream.intake import Accounting
from stream.metrics import OUTCOMES, StreamMetrics
from stream.worker import BatchDone

COUNTS = st.integers(0, 5_000)


@st.composite
def batches(draw: st.DrawFn) -> BatchDone:
    counts = {outcome: draw(COUNTS) for outcome in OUTCOMES}
    return BatchDone(
        accounting=Accounting(in_=sum(counts.values()), **counts),
        classes=draw(st.dictionaries(st.sampled_from(["none", "explicit_positive"]), COUNTS)),
        watermark_ms=draw(st.integers(0, 1 << 42)),
        lag=draw(COUNTS),
        partitions=(0,),
        seconds=draw(st.floats(0, 100)),
    )


def scraped(metrics: StreamMetrics) -> dict[tuple[str, ...], float]:
    """Return what Prometheus reads: by name and the values of the labels."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(metrics.text())
        for sample in family.samples
    }


@given(st.lists(batches(), max_size=5))
def test_the_counters_are_the_sums_of_the_batches(done: list[BatchDone]) -> None:
    metrics = StreamMetrics()
    for each in done:
        metrics.batch(each)
    found = scraped(metrics)
    for outcome in OUTCOMES:
        total = sum(getattr(each.accounting, outcome) for each in done)
        assert found["tidegraph_stream_records_total", outcome] == total
        assert metrics.records()[outcome] == total
    kinds = {kind for each in done for kind in each.classes}
    assert set(metrics.classes()) == kinds
    for kind in kinds:
        total = sum(each.classes.get(kind, 0) for each in done)
        assert found["tidegraph_stream_classes_total", kind] == metrics.classes()[kind] == total
    assert found["tidegraph_stream_commits_total",] == len(done)
    assert found["tidegraph_stream_batch_seconds_count",] == len(done)
    if done:
        assert found["tidegraph_stream_watermark_seconds",] == done[-1].watermark_ms / 1_000
        assert found["tidegraph_stream_lag_records",] == done[-1].lag


def test_the_lag_is_told_also_without_a_batch() -> None:
    metrics = StreamMetrics()
    metrics.lag(17)
    assert scraped(metrics)["tidegraph_stream_lag_records",] == 17


def test_two_workers_of_one_process_do_not_share_counters() -> None:
    one, other = StreamMetrics(), StreamMetrics()
    one.lag(1)
    assert scraped(other)["tidegraph_stream_lag_records",] == 0
