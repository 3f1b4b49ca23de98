"""What the web view of the stream worker shows."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from stream.view import Window, page, windows

STATE = {
    "group": "shop.stream",
    "servers": ["kafka-1:9092"],
    "rules": "kuairand",
    "health": "ok",
    "uptime_s": 75.0,
    "idle_s": 0.1,
    "lag": 1_234,
    "watermark_ms": 1_650_812_741_436,
    "records_per_s": 51_200.4,
    "records": {"feedback": 9, "no_signal": 1, "duplicate": 0, "late": 0, "dead": 0},
    "classes": {"implicit_positive": 9, "none": 1},
    "tables_ready": True,
}
ENTRIES = st.dictionaries(
    st.tuples(st.sampled_from(["none", "implicit_positive", "retraction"]), st.integers(0, 5)),
    st.integers(0, 100),
)


def shown(minutes: list[Window], **changed: Any) -> str:
    return page({**STATE, **changed}, minutes, now_s=3_600.0 + 59.0)


@given(ENTRIES)
def test_windows_are_in_order_of_time_and_lose_nothing(entries: dict[tuple[str, int], int]) -> None:
    found = windows(
        ((kind, (60.0 * minute, 60.0 * minute + 59.9)), count)
        for (kind, minute), count in entries.items()
    )
    starts = [window.start_s for window in found]
    assert starts == sorted(set(starts))
    told = {
        (kind, window.start_s // 60): count
        for window in found
        for kind, count in window.classes.items()
    }
    assert told == entries


def test_the_page_says_how_it_goes() -> None:
    text = shown([Window(3_600.0, {"implicit_positive": 9, "none": 1})])
    for words in (
        "shop.stream",
        "Running for 1.2 min",
        "51,200",
        "1,234",
        "2022-04-24 15:05:41",
        "90.0 %",
        "most in a minute: 10",
    ):
        assert words in text


def test_the_chart_is_of_the_last_hour_only() -> None:
    text = shown([Window(0.0, {"none": 7_777}), Window(60.0, {"implicit_positive": 9})])
    assert "most in a minute: 9" in text
    assert "7,777" not in text


def test_the_page_says_what_is_wrong_and_takes_nothing_for_markup() -> None:
    text = shown([], health="stuck: 5 records wait", group="<b>shop</b>", tables_ready=False)
    assert "stuck: 5 records wait" in text
    assert "being read back" in text
    assert "<b>shop</b>" not in text


def test_a_worker_that_has_seen_nothing_has_a_page() -> None:
    text = shown([], watermark_ms=0, classes={})
    assert "Nothing was processed in the last hour." in text
