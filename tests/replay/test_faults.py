"""Faults are the same for the same seed, stay within their bounds, and lose only what they say."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.datasets.base import Chunk
from replay.faults import Faults, corrupted, with_faults
from stream.errors import BadEvent, BadSettings
from stream.events import decode_interaction

GOOD = b'{"v":1,"event_id":"a","user_id":"7","item_id":"9","ts_ms":1650812741436,"signals":{}}'


def chunks_of(times: list[int], size: int) -> list[Chunk]:
    """Cut sorted times into chunks; an event is named by its number."""
    frame = pl.DataFrame(
        {"event_id": [str(n) for n in range(len(times))], "ts_ms": sorted(times)},
        schema={"event_id": pl.String, "ts_ms": pl.Int64},
    )
    return [Chunk(part, []) for part in frame.iter_slices(size)]


def arrived(chunks: list[Chunk], faults: Faults) -> pl.DataFrame:
    """Return what arrives, in order."""
    return pl.concat([chunk.frame for chunk in with_faults(chunks, faults)])


times = st.lists(st.integers(10**12, 10**12 + 1_000), min_size=1, max_size=60)


@given(times=times, size=st.integers(1, 20), within_ms=st.integers(0, 400), seed=st.integers(0, 9))
def test_nothing_is_lost_and_nothing_is_later_than_allowed(
    times: list[int], size: int, within_ms: int, seed: int
) -> None:
    faults = Faults(duplicates=0.3, within_ms=within_ms, seed=seed)
    chunks = chunks_of(times, size)
    found = arrived(chunks, faults)
    assert set(found["event_id"]) == {str(n) for n in range(len(times))}
    late_ms = found["ts_ms"].cum_max() - found["ts_ms"]
    assert (late_ms < max(within_ms, 1)).all()
    assert arrived(chunks, faults).equals(found)


def test_a_tenth_is_sent_twice() -> None:
    chunks = chunks_of(list(range(10**12, 10**12 + 20_000)), 1_000)
    found = arrived(chunks, Faults(duplicates=0.1, within_ms=500))
    assert 1_850 <= found.height - 20_000 <= 2_150
    assert not found["ts_ms"].is_sorted()


def test_a_gap_loses_whole_spans_and_nothing_else() -> None:
    chunks = chunks_of(list(range(10**12, 10**12 + 1_000)), 37)
    kept = arrived(chunks, Faults(gaps=0.5, span_ms=100))["ts_ms"]
    spans = kept.to_frame().group_by(pl.col("ts_ms") // 100).len()
    assert spans["len"].to_list() == [100] * spans.height
    assert 1 <= spans.height <= 9


def test_a_burst_arrives_at_the_end_of_its_span() -> None:
    chunks = chunks_of([10**12, 10**12 + 40, 10**12 + 99, 10**12 + 100], 2)
    found = arrived(chunks, Faults(bursts=1.0, within_ms=1_000, span_ms=100))
    assert found["event_id"].to_list() == ["0", "1", "2", "3"]


def test_each_damaged_copy_is_undecodable_and_the_good_record_stays() -> None:
    damage = corrupted(share=0.5, seed=3)
    sent = [value for _, value in damage([(b"7", GOOD)] * 200)]
    assert sent.count(GOOD) == 200
    bad = [value for value in sent if value != GOOD]
    assert 70 <= len(bad) <= 130
    for value in bad:
        with pytest.raises(BadEvent):
            decode_interaction(value)
    assert [value for _, value in damage([(b"7", GOOD)] * 200)] != sent  # goes on, not over again
    assert [value for _, value in corrupted(share=0.5, seed=3)([(b"7", GOOD)] * 200)] == sent


@pytest.mark.parametrize(
    "settings", [{"duplicates": 1.5}, {"gaps": -0.1}, {"within_ms": -1}, {"span_ms": 0}]
)
def test_nonsense_is_refused(settings: dict[str, float]) -> None:
    with pytest.raises(BadSettings, match="faults: wanted"):
        Faults(**settings)  # type: ignore[arg-type]
