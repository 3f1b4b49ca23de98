"""Partitions become one stream: the oldest next row each time, nothing lost, order kept in each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from learner.merge import ERASURE, EVENT, UNREADABLE, Merge, Rows, read_rows
from stream.events import Erasure, Feedback, encode
from stream.log import Record
from stream.typing_rules import load_rules

IDLE_S = 10.0
START_MS = 1_650_812_741_000

Row = tuple[int, int, int]
"""Partition, offset, time."""


def record(partition: int, offset: int, value: bytes, **headers: bytes) -> Record:
    """Return a record of ``feedback``."""
    return Record("feedback", partition, offset, b"u", value, 7, tuple(headers.items()))


def event(partition: int, offset: int, ts: int) -> Record:
    """Return the record of an event that happened ``ts`` after the start."""
    feedback = Feedback(1, f"{partition}-{offset}", "u", "i", START_MS + ts, "none", 0.0)
    return record(partition, offset, encode(feedback))


def rows(*these: Row) -> Rows:
    """Return events as rows."""
    return read_rows([event(*each) for each in these], read_ms=0)[0]


def taken(merge: Merge, now_s: float, more: Sequence[int] = ()) -> list[tuple[int, int]]:
    """Take what has its turn; return where each row lay."""
    found = merge.take(now_s, has_more=more.__contains__)
    return list(zip(found.partition.tolist(), found.offset.tolist(), strict=True))


class PlainMerge:
    """Takes one row after the other, from lists."""

    def __init__(self, n: int) -> None:
        self.queues: list[list[Row]] = [[] for _ in range(n)]
        self.came_s = [0.0] * n
        self.asked: list[tuple[float, bool] | None] = [None] * n  # when for the last time, answer

    def push(self, these: list[Row], now_s: float) -> None:
        for row in these:
            self.queues[row[0]].append(row)
            self.came_s[row[0]] = now_s
            self.asked[row[0]] = None

    def take(self, now_s: float, more: Sequence[int]) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        passed_over = [False] * len(self.queues)
        for number, queue in enumerate(self.queues):
            if not any(self.queues):
                break
            if queue:
                continue
            if now_s - self.came_s[number] < IDLE_S:
                return []
            asked = self.asked[number]
            if asked is None or now_s >= asked[0] + IDLE_S:
                asked = self.asked[number] = now_s, number in more
            if asked[1]:
                return []
            passed_over[number] = True
        while any(self.queues):
            if any(
                not queue and not over for queue, over in zip(self.queues, passed_over, strict=True)
            ):
                break
            oldest = min(
                (queue[0] for queue in self.queues if queue), key=lambda row: (row[2], row[0])
            )
            found.append(self.queues[oldest[0]].pop(0)[:2])
        return found


step = st.tuples(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 6)), max_size=8),
    st.sampled_from([0.0, 1.0, IDLE_S]),
    st.sets(st.integers(0, 2)),
)


@given(steps=st.lists(step, max_size=12))
def test_rows_come_as_from_a_plain_merge(
    steps: list[tuple[list[tuple[int, int]], float, set[int]]],
) -> None:
    merge, plain = Merge(range(3), idle_s=IDLE_S, now_s=0.0), PlainMerge(3)
    now_s, offsets = 0.0, [0, 0, 0]
    for come, later_s, more in steps:
        now_s += later_s
        these: list[Row] = []
        for partition, ts in come:
            these.append((partition, offsets[partition], ts))
            offsets[partition] += 1
        merge.push(rows(*these), now_s)
        plain.push(these, now_s)
        assert taken(merge, now_s, sorted(more)) == plain.take(now_s, sorted(more))
        assert len(merge) == sum(map(len, plain.queues))
        assert [merge.held(number) for number in range(3)] == list(map(len, plain.queues))


def test_a_partition_without_rows_is_waited_for_until_it_is_idle() -> None:
    merge = Merge([0, 1], idle_s=IDLE_S, now_s=0.0)
    merge.push(rows((0, 0, 5)), 1.0)
    assert taken(merge, 9.9) == []
    assert taken(merge, 10.0) == [(0, 0)]


def test_a_partition_that_the_log_has_more_of_is_waited_for_without_end() -> None:
    merge = Merge([0, 1], idle_s=IDLE_S, now_s=0.0)
    merge.push(rows((0, 0, 5)), 1.0)
    assert taken(merge, 10.0, more=[1]) == []
    assert taken(merge, 19.9) == []
    assert taken(merge, 20.0, more=[1]) == []
    merge.push(rows((1, 0, 3), (1, 1, 9)), 21.0)
    assert taken(merge, 21.0) == [(1, 0), (0, 0)]


def test_all_partitions_at_the_end_are_idle_together() -> None:
    merge = Merge([0, 1, 2], idle_s=IDLE_S, now_s=0.0)
    merge.push(rows((0, 0, 1), (1, 0, 2), (2, 0, 3)), 0.0)
    assert taken(merge, 0.0) == [(0, 0)]
    assert taken(merge, IDLE_S) == [(1, 0)]
    assert taken(merge, IDLE_S) == [(2, 0)]


def test_what_is_no_event_keeps_its_place() -> None:
    values = [
        encode(Feedback(1, "e", "u", "i", START_MS, "explicit_positive", 1.0)),
        encode(Erasure(1, "712")),
        b"{",
        encode(Feedback(1, "f", "u", "i", START_MS + 1, "none", 0.0)),
    ]
    read, told = read_rows([record(0, n, value) for n, value in enumerate(values)], read_ms=5)
    assert read.what.tolist() == [EVENT, ERASURE, UNREADABLE, EVENT]
    assert read.batch.user_id[1] == "712"
    assert read.events().event_id == ["e", "f"]
    (why,) = told
    assert why.startswith("feedback, partition 0, offset 2: $: undecodable")
    merge = Merge([0], idle_s=IDLE_S, now_s=0.0)
    merge.push(read, 0.0)
    assert taken(merge, 0.0) == [(0, 0), (0, 1), (0, 2), (0, 3)]


def test_the_times_of_a_record_come_from_its_headers() -> None:
    value = encode(Feedback(1, "e", "u", "i", START_MS, "none", 0.0))
    read, _ = read_rows(
        [
            record(0, 0, value, appended_ms=b"3", typed_ms=b"4"),
            record(0, 1, value),
            record(0, 2, value, appended_ms=b"3", typed_ms=b"soon"),
            record(0, 3, value, other=b"1", headers=b"2"),
        ],
        read_ms=9,
    )
    assert read.stamps_ms.tolist() == [[3, 4, 9], [7, 7, 9], [7, 7, 9], [7, 7, 9]]


def test_nothing_read_is_no_rows() -> None:
    read, told = read_rows([], read_ms=0, rules=load_rules("kuairand"))
    assert (len(read), told) == (0, [])
    assert read.stamps_ms.shape == (0, 3)
    merge = Merge([0], idle_s=IDLE_S, now_s=0.0)
    merge.push(read, 0.0)
    assert taken(merge, 99.0) == []
    assert np.array_equal(read.partition, np.empty(0))
