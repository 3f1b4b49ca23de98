"""What is played arrives once, in order, when it is due, and reads back as it was."""

from __future__ import annotations

import math

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.clock import ManualClock, Pace, parse_speed
from replay.datasets import open_dataset
from replay.datasets.base import Chunk
from replay.player import Progress, encode, play
from stream.errors import BadSettings
from stream.events import DeadLetter, Interaction, decode_interaction
from stream.log import MemoryLog

T0 = 1_650_812_741_436
SCHEMA = {
    "event_id": pl.String,
    "user_id": pl.String,
    "item_id": pl.String,
    "ts_ms": pl.Int64,
    "signals.click": pl.Float64,
}
ids = st.text(min_size=1, max_size=5)
numbers = st.floats(allow_nan=False, allow_infinity=False)


def chunk_at(*offsets_ms: int, dead: int = 0) -> Chunk:
    """Make events ``e0``, ``e1``, ... at these times after ``T0``."""
    names = [f"e{offset}" for offset in offsets_ms]
    frame = pl.DataFrame(
        {
            "event_id": names,
            "user_id": ["7"] * len(names),
            "item_id": ["9"] * len(names),
            "ts_ms": [T0 + offset for offset in offsets_ms],
            "signals.click": [1.0] * len(names),
        },
        schema=SCHEMA,
    )
    letter = DeadLetter(b"?", "invalid", "line 1", topic="", partition=-1, offset=-1)
    return Chunk(frame, [letter] * dead)


@given(event_id=ids, user=ids, item=ids, click=numbers, tab=st.none() | ids)
def test_any_event_reads_back_as_it_was(
    event_id: str, user: str, item: str, click: float, tab: str | None
) -> None:
    frame = pl.DataFrame(
        {
            "event_id": [event_id],
            "user_id": [user],
            "item_id": [item],
            "ts_ms": [T0],
            "signals.click": [click],
            "context.tab": [tab],
        },
        schema_overrides={"context.tab": pl.String},
    )
    ((key, value),) = encode(frame)
    assert key == user.encode()
    signals = {"click": click} if click else {}
    context = {} if tab is None else {"tab": tab}
    expected = Interaction(1, event_id, user, item, T0, signals, context)
    assert decode_interaction(value) == expected


def test_every_event_of_the_sample_arrives_once_and_in_order() -> None:
    log = MemoryLog()
    dataset = open_dataset("kuairand-pure", limit=5_000)
    *_, last = play(dataset.chunks(rows=1_000), log)
    records = log.read("interactions", {0: 0}, limit=10_000)
    events = [decode_interaction(record.value) for record in records]
    frame = pl.concat([chunk.frame for chunk in dataset.chunks()])
    assert [getattr(event, "event_id", None) for event in events] == frame["event_id"].to_list()
    assert (last.sent, last.ts_ms) == (5_000, frame["ts_ms"][-1])


def test_a_paced_replay_waits_as_the_events_did() -> None:
    clock, log = ManualClock(), MemoryLog()
    arrivals = [
        (progress.sent, clock.now_s())
        for progress in play([chunk_at(0, 0, 60_000), chunk_at(90_000)], log, speed=60, clock=clock)
    ]
    assert arrivals == [(2, 0.0), (3, 1.0), (4, 1.5)]


def test_as_fast_as_it_goes_never_waits_and_cuts_batches() -> None:
    clock, log = ManualClock(), MemoryLog()
    sent = [p.sent for p in play([chunk_at(0, 10, 20, 10**9)], log, clock=clock, batch=3)]
    assert (sent, clock.now_s()) == ([3, 4], 0.0)


def test_an_event_that_arrives_late_goes_out_with_the_newest_before_it() -> None:
    clock, log = ManualClock(), MemoryLog()
    *_, last = play([chunk_at(0, 2_000, 1_000)], log, speed=1, clock=clock)
    assert clock.now_s() == 2.0
    assert last == Progress(3, T0 + 2_000, [])


def test_dead_lines_are_handed_over_once_even_where_no_event_is_left() -> None:
    chunks = [chunk_at(0, 1, 2, dead=2), chunk_at(dead=1)]
    dead = [len(progress.dead) for progress in play(chunks, MemoryLog(), batch=2)]
    assert dead == [2, 0, 1]


@pytest.mark.parametrize("text", ["", "fast", "0x", "-1x", "60", "x", "nanx"])
def test_a_speed_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(BadSettings, match="60x"):
        parse_speed(text)


def test_an_infinite_pace_finds_everything_due() -> None:
    assert Pace(math.inf, ManualClock()).due_ms(T0) > T0 + 10**12
