"""Every record is accounted for, and decided about as the plainest model decides."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.errors import BadAccounting, BadEvent, BadSettings
from stream.events import Erasure, Feedback, Interaction, Kind, decode_feedback, encode
from stream.intake import Accounting, Intake, IntakeResult
from stream.log import Record
from stream.typing_rules import load_rules

T0 = 1_650_812_741_436
LATENESS_MS = 10
KUAIRAND = load_rules("kuairand")
MUSIC = load_rules("music")


def record(
    value: bytes, *, key: bytes | None = b"712", partition: int = 0, offset: int = 0
) -> Record:
    return Record("interactions", partition, offset, key, value, T0)


def click(event_id: str, ts_ms: int = T0, **signals: float) -> Record:
    return record(encode(Interaction(1, event_id, "712", "5239", ts_ms, signals or {"click": 1})))


def retraction(event_id: str, ts_ms: int, retracts: str) -> Record:
    told = {"event_id": event_id, "ts_ms": ts_ms, "retracts": retracts, "target_ts_ms": T0}
    return record(json.dumps({"v": 1, "user_id": "712", "item_id": "5239", **told}).encode())


class Sent(NamedTuple):
    """A record, and what the writer of the test knows about it."""

    record: Record
    event_id: str | None  # None: not an event
    ts_ms: int
    content: str
    kind: str  # its kind if accepted, "erasure" or "dead"


def sent(partition: int, event_id: str, after_ms: int, shape: str) -> Sent:
    ts_ms = T0 + after_ms
    user = f"user {partition}"
    event: dict[str, Any] = {"v": 1, "event_id": event_id, "user_id": user, "item_id": "i"}
    event |= {"ts_ms": ts_ms}
    key: bytes | None = user.encode()
    kind = shape
    match shape:
        case "explicit_positive":
            event["signals"] = {"like": 1, "play_ms": 20_000}
        case "none":
            event["signals"] = {"play_ms": 20_000}
        case "retraction":
            event |= {"retracts": "e0", "target_ts_ms": T0}
        case "erasure":
            event = {"v": 1, "erase_user": user}
        case "of another version":
            event |= {"v": 2, "signals": {}}
            kind = "dead"
        case "without signals":
            kind = "dead"
        case "of another user":
            event["signals"] = {}
            key, kind = b"somebody", "dead"
        case "without a key":
            event["signals"] = {}
            key, kind = None, "dead"
    value = json.dumps(event).encode()
    if shape == "cut short":
        value, kind = value[:-1], "dead"
    told = Record("interactions", partition, 0, key, value, T0)
    is_event = kind not in {"dead", "erasure"}
    return Sent(told, event_id if is_event else None, ts_ms, json.dumps(event), kind)


shapes = st.sampled_from(
    [
        "explicit_positive",
        "explicit_positive",
        "none",
        "retraction",
        "erasure",
        "of another version",
        "without signals",
        "of another user",
        "without a key",
        "cut short",
    ]
)
traffic = st.lists(
    st.builds(
        sent,
        st.integers(0, 1),
        st.sampled_from(["e1", "e2", "e3", "e4", "e5", "e6"]),
        st.integers(0, 3 * LATENESS_MS),
        shapes,
    ),
    max_size=40,
)


def plainly(log: list[Sent]) -> tuple[list[str], Counter[str]]:
    """Decide about each record by looking at everything that was seen before it."""
    decisions: list[str] = []
    conflicts = 0
    accepted: list[Sent] = []
    seen: list[Sent] = []  # duplicates too
    for now in log:
        mine = [one for one in accepted if one.record.partition == now.record.partition]
        newest_ms = max([one.ts_ms for one in mine], default=0)
        same = [
            one
            for one in seen
            if one.record.partition == now.record.partition
            and one.event_id == now.event_id
            and one.ts_ms >= newest_ms - LATENESS_MS
        ]
        if now.event_id is None:
            decisions.append(now.kind)
        elif now.ts_ms < newest_ms - LATENESS_MS:
            decisions.append("late")
        elif same:
            decisions.append("duplicate")
            conflicts += max(same, key=lambda one: one.ts_ms).content != now.content
            seen.append(now)
        else:
            decisions.append(now.kind)
            accepted.append(now)
            seen.append(now)
    counts = Counter(decisions)
    counts["conflict"] = conflicts
    return decisions, counts


def in_batches(intake: Intake, records: list[Record], sizes: list[int]) -> list[IntakeResult]:
    results = []
    start = 0
    for size in [*sizes, len(records)]:
        results.append(intake.take(records[start : start + size]))
        start += size
    return results


def together(results: list[IntakeResult]) -> tuple[list[Feedback | Erasure], list[Any], list[Any]]:
    return (
        [event for result in results for event in result.feedback],
        [letter for result in results for letter in result.dead],
        [one for result in results for one in result.late],
    )


@given(traffic, st.lists(st.integers(0, 7), max_size=6))
def test_every_decision_is_that_of_the_plain_model_however_records_are_batched(
    log: list[Sent], sizes: list[int]
) -> None:
    intake = Intake(MUSIC, lateness_ms=LATENESS_MS)
    results = in_batches(intake, [one.record for one in log], sizes)
    feedback, dead, late = together(results)
    decisions, counts = plainly(log)

    expected = [
        (one.kind, one.event_id)
        for one, decision in zip(log, decisions, strict=True)
        if decision not in {"dead", "late", "duplicate"}
    ]
    assert [
        (event.kind, event.event_id) if isinstance(event, Feedback) else ("erasure", None)
        for event in feedback
    ] == expected
    by = {
        name: [one.record for one, decision in zip(log, decisions, strict=True) if decision == name]
        for name in ("dead", "late")
    }
    assert [letter.original for letter in dead] == [one.value for one in by["dead"]]
    assert late == by["late"]
    assert intake.accounting == Accounting(
        in_=len(log),
        feedback=counts["explicit_positive"] + counts["retraction"] + counts["erasure"],
        no_signal=counts["none"],
        duplicate=counts["duplicate"],
        late=counts["late"],
        dead=counts["dead"],
        conflict=counts["conflict"],
        retraction=counts["retraction"],
        erasure=counts["erasure"],
    )


@given(traffic, traffic, st.sampled_from([0, LATENESS_MS]))
def test_a_restart_decides_as_the_undisturbed_run_would(
    before: list[Sent], after: list[Sent], lateness_ms: int
) -> None:
    undisturbed = Intake(MUSIC, lateness_ms=lateness_ms)
    undisturbed.take([one.record for one in before])
    restarted = Intake(MUSIC, lateness_ms=lateness_ms)
    restarted.restore(undisturbed.state())

    records = [one.record for one in after]
    assert restarted.take(records) == undisturbed.take(records)
    assert restarted.accounting == undisturbed.accounting
    assert repr(restarted.state()) == repr(undisturbed.state())


@given(
    traffic,
    st.lists(st.integers(1, 5), max_size=30),
    st.sets(st.integers(0, 30)),
    st.sampled_from([0, LATENESS_MS]),
    st.integers(1, 6),
)
def test_a_window_read_again_from_the_log_decides_as_the_undisturbed_run_would(
    log: list[Sent], sizes: list[int], restarts: set[int], lateness_ms: int, chunk: int
) -> None:
    """Only the watermark, an offset and the accounting outlive a worker; the log has the rest."""
    records = [
        one.record._replace(partition=0, offset=3 * offset) for offset, one in enumerate(log)
    ]
    undisturbed = Intake(MUSIC, lateness_ms=lateness_ms)
    restarted = Intake(MUSIC, lateness_ms=lateness_ms)
    start = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stream.intake._CHUNK", chunk)
        for turn, size in enumerate([*sizes, len(records)]):
            batch = records[start : start + size]
            assert restarted.take(batch) == undisturbed.take(batch)
            start += size
            if turn in restarts:
                before = restarted
                first, watermark_ms = before.first_offset(0), before.watermark_ms(0)
                first = 3 * start if first is None else first
                restarted = Intake(MUSIC, lateness_ms=lateness_ms)
                restarted.accounting = before.accounting
                known = [one for one in records[:start] if one.offset >= first]
                half = len(known) // 2
                restarted.remember(0, watermark_ms or 0, known[:half])
                restarted.remember(0, watermark_ms or 0, known[half:])
    assert restarted.accounting == undisturbed.accounting
    later = [click(f"e{n}", T0 + n) for n in range(7)]
    assert restarted.take(later) == undisturbed.take(later)


def test_only_what_can_still_matter_is_read_again() -> None:
    intake = Intake(KUAIRAND, lateness_ms=LATENESS_MS)
    assert intake.first_offset(0) is None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stream.intake._CHUNK", 5)
        for n in range(100):
            intake.take([click(f"e{n}", T0 + n)._replace(offset=n)])
    first = intake.first_offset(0)
    assert first is not None
    assert 99 - LATENESS_MS - 5 < first <= 99 - LATENESS_MS
    assert len(intake._windows[0].chunks) <= 4


def test_what_is_read_again_begins_at_the_first_event_that_still_matters() -> None:
    intake = Intake(KUAIRAND, lateness_ms=LATENESS_MS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stream.intake._CHUNK", 3)
        log = [click("e0", T0 + 5), click("e1", T0 + 1), click("e2", T0 + 4)]
        log += [click("e3", T0 + 5 + LATENESS_MS)]
        for offset, one in enumerate(log):
            intake.take([one._replace(offset=offset)])
        assert intake.first_offset(0) == 0
        intake.take([click("e4", T0 + 6 + LATENESS_MS)._replace(offset=4)])
        assert intake.first_offset(0) == 3


def test_a_window_restored_from_a_snapshot_may_begin_anywhere() -> None:
    intake = Intake(KUAIRAND, lateness_ms=LATENESS_MS)
    intake.take([click("e1")._replace(offset=17)])
    restored = Intake(KUAIRAND, lateness_ms=LATENESS_MS)
    restored.restore(intake.state())
    assert (intake.first_offset(0), restored.first_offset(0)) == (17, 0)


def test_an_id_is_remembered_from_the_newest_time_that_it_came_with() -> None:
    intake = Intake(KUAIRAND, lateness_ms=LATENESS_MS)
    log = [click("e1", T0), click("e1", T0 + 5), click("e2", T0 + LATENESS_MS + 5)]
    assert intake.take(log).accounting.duplicate == 1
    assert intake.take([click("e1", T0 + 5)]).accounting.duplicate == 1
    assert intake.take([click("e3", T0 + LATENESS_MS + 6)]).accounting.feedback == 1
    assert intake.take([click("e1", T0 + 6)]).accounting.feedback == 1


def test_words_of_a_fault_do_not_grow_with_the_record() -> None:
    """Else a dead letter may be too large for its topic."""
    name = "s" * 100_000
    value = click("e1").value.replace(b'"click"', f'"{name}"'.encode()).replace(b":1}}", b":true}}")
    far = record(b'{"v":1,"erase_user":712}', key=b"7" * 100_000)
    letters = Intake(KUAIRAND).take([record(value), far]).dead
    assert [len(letter.where) for letter in letters] == [500, len("$.erase_user")]
    assert [len(letter.reason) <= 500 for letter in letters] == [True, True]
    assert [letter.original for letter in letters] == [value, far.value]


@given(
    st.lists(
        st.tuples(
            st.one_of(st.binary(max_size=40), st.sampled_from([click("e1").value, b"{}"])),
            st.one_of(st.none(), st.just(b"712"), st.binary(max_size=3)),
        ),
        max_size=20,
    )
)
def test_garbage_is_accounted_for_and_kept_to_the_byte(
    garbage: list[tuple[bytes, bytes | None]],
) -> None:
    intake = Intake(KUAIRAND)
    result = intake.take(
        [record(value, key=key, offset=n) for n, (value, key) in enumerate(garbage)]
    )
    result.accounting.check()
    assert result.accounting.in_ == len(garbage)
    kept = {letter.offset: letter.original for letter in result.dead}
    good = [click("e1").value, b"712"]
    for offset, (value, key) in enumerate(garbage):
        assert kept.get(offset, value) == value
        assert (offset in kept) == ([value, key] != good)


@given(st.permutations(range(LATENESS_MS)), st.data())
def test_a_log_shuffled_within_the_lateness_with_repeats_gives_the_same_events(
    order: list[int], data: st.DataObject
) -> None:
    log = [click(f"e{n}", T0 + n) for n in order]
    again = data.draw(st.lists(st.sampled_from(log)))
    intake = Intake(KUAIRAND, lateness_ms=LATENESS_MS)
    result = intake.take([*log, *again])
    assert sorted(result.batch().event_id) == sorted(f"e{n}" for n in order)
    assert (intake.accounting.duplicate, intake.accounting.conflict) == (len(again), 0)


def test_an_event_at_the_edge_of_the_lateness_is_taken_and_one_before_it_is_late() -> None:
    intake = Intake(KUAIRAND, lateness_ms=LATENESS_MS)
    edge, before = click("e2", T0 - LATENESS_MS), click("e3", T0 - LATENESS_MS - 1)
    result = intake.take([click("e1", T0), edge, before])
    assert result.batch().event_id == ["e1", "e2"]
    assert result.late == [before]
    assert intake.watermark_ms(0) == T0
    assert intake.watermark_ms(1) is None


def test_an_id_is_remembered_up_to_the_edge_of_the_lateness_and_not_beyond() -> None:
    intake = Intake(KUAIRAND, lateness_ms=LATENESS_MS)
    log = [click("e1", T0), click("e2", T0 + LATENESS_MS), click("e1", T0)]
    assert intake.take(log).accounting.duplicate == 1
    log = [click("e3", T0 + LATENESS_MS + 1), click("e1", T0 + LATENESS_MS + 1)]
    assert intake.take(log).batch().event_id == ["e3", "e1"]


def test_a_repeat_with_other_content_is_a_duplicate_and_a_conflict() -> None:
    intake = Intake(KUAIRAND)
    other = click("e1", T0, hate=1)
    first = click("e1", T0, click=1, play_ms=7)
    signals = b'"signals":{"click":1,"play_ms":7}'
    respelled = first.value.replace(signals, b'"signals": {"play_ms": 7, "click": 1}')
    assert respelled != first.value
    again = record(respelled)
    result = intake.take([first, again, other, again])
    batch = result.batch()
    assert (batch.event_id, batch.kind.tolist()) == (["e1"], [Kind.IMPLICIT_POSITIVE])
    assert (result.accounting.duplicate, result.accounting.conflict) == (3, 1)


def test_a_duplicate_does_not_move_the_watermark() -> None:
    """Else a repeat with a wild time would make good events late."""
    intake = Intake(KUAIRAND, lateness_ms=LATENESS_MS)
    intake.take([click("e1", T0), click("e1", T0 + LATENESS_MS)])
    assert intake.watermark_ms(0) == T0


def test_partitions_have_watermarks_and_windows_of_their_own() -> None:
    intake = Intake(KUAIRAND, lateness_ms=LATENESS_MS)
    ahead = click("e1", T0 + 1_000)
    behind = click("e1", T0)._replace(partition=1)
    assert intake.take([ahead, behind]).accounting.feedback == 2


def test_a_dead_letter_says_where_it_came_from_and_why() -> None:
    intake = Intake(KUAIRAND)
    (letter,) = intake.take([record(b"{", partition=3, offset=17)]).dead
    assert (letter.topic, letter.partition, letter.offset) == ("interactions", 3, 17)
    assert (letter.original, letter.where) == (b"{", "$")
    assert letter.reason == "undecodable: input data was truncated"


@pytest.mark.parametrize(("key", "came"), [(None, "none"), (b"7120", "7120"), (b"\xff", r"\xff")])
def test_a_record_must_be_keyed_by_its_user(key: bytes | None, came: str) -> None:
    """Else a user's events lie in several partitions, and nobody can order or deduplicate them."""
    erasure = record(b'{"v":1,"erase_user":712}', key=key)
    letters = Intake(KUAIRAND).take([click("e1")._replace(key=key), erasure]).dead
    reason = f"key: want the record's key to be the user, 712, got {came}"
    assert [(letter.reason, letter.where) for letter in letters] == [
        (reason, "$.user_id"),
        (reason, "$.erase_user"),
    ]


def test_an_integer_user_is_keyed_by_its_digits() -> None:
    value = click("e1").value.replace(b'"712"', b"712")
    assert Intake(KUAIRAND).take([record(value)]).batch().user_id == ["712"]


def test_the_future_is_bounded_where_this_is_asked_for() -> None:
    intake = Intake(KUAIRAND, max_future_ms=1_000)
    result = intake.take([click("e1", T0 + 1_000), click("e2", T0 + 1_001)])
    assert result.batch().event_id == ["e1"]
    assert (result.dead[0].where, result.dead[0].reason) == (
        "$.ts_ms",
        "invalid: want at most 1000 ms ahead of the record, got 1001 ms",
    )


def test_feedback_is_the_whole_event_and_what_it_means() -> None:
    event = Interaction(1, "e1", "712", "5239", T0, {"like": 1, "odd": 2.5}, {"tab": "1"}, "r")
    (entry,) = Intake(KUAIRAND).take([record(encode(event))]).entries()
    assert entry[0] == b"712"
    assert decode_feedback(entry[1]) == Feedback(
        v=1,
        event_id="e1",
        user_id="712",
        item_id="5239",
        ts_ms=T0,
        kind="explicit_positive",
        weight=1.0,
        rule="endorsed",
        rules_version="kuairand-1",
        signals={"like": 1.0, "odd": 2.5},
        context={"tab": "1"},
        request_id="r",
    )


def test_an_event_that_says_nothing_is_accepted_without_rule_and_weight() -> None:
    result = Intake(MUSIC).take([click("e1", T0, play_ms=20_000)])
    assert result.feedback == [
        Feedback(1, "e1", "712", "5239", T0, "none", 0.0, signals={"play_ms": 20_000.0})
    ]
    assert result.accounting == Accounting(in_=1, no_signal=1)


def test_retractions_and_erasures_travel_with_the_feedback_in_order() -> None:
    erasure = record(b'{"v":1,"erase_user":"712"}')
    result = Intake(KUAIRAND).take([retraction("e2", T0 + 1, "e1"), erasure, click("e1"), erasure])
    assert [decode_feedback(value) for _, value in result.entries()] == [
        Feedback(1, "e2", "712", "5239", T0 + 1, "retraction", 0.0, retracts="e1", target_ts_ms=T0),
        Erasure(1, "712"),
        result.feedback[2],
        Erasure(1, "712"),
    ]
    assert [key for key, _ in result.entries()] == [b"712"] * 4
    assert result.batch().event_id == ["e2", "e1"]
    assert result.accounting == Accounting(in_=4, feedback=4, retraction=1, erasure=2)


def test_ids_are_forgotten_when_they_are_older_than_the_lateness() -> None:
    intake = Intake(KUAIRAND, lateness_ms=1_000)
    for n in range(50):
        intake.take([click(f"e{n * 100 + m}", T0 + n * 100 + m) for m in range(100)])
        assert len(intake._windows[0].seen) <= 1_250 + 100
    assert len(intake.state()["partitions"]["0"]["event_id"]) == 1_001


def test_no_records_are_no_trouble() -> None:
    result = Intake(KUAIRAND).take([])
    assert (result.feedback, result.dead, result.late) == ([], [], [])
    assert len(result.batch()) == 0


def test_counts_that_do_not_add_up_stop_everything() -> None:
    with pytest.raises(BadAccounting, match="2 records came in, 3 are accounted for"):
        Accounting(in_=2, feedback=2, late=1).check()


@pytest.mark.parametrize("name", ["lateness_ms", "max_future_ms"])
def test_negative_spans_are_refused(name: str) -> None:
    with pytest.raises(BadSettings, match=f"want {name} to be 0 or more, got -1"):
        Intake(KUAIRAND, **{name: -1})


def test_a_fault_of_ours_in_the_rules_is_not_taken_for_a_bad_event() -> None:
    """A dead letter is the producer's fault; anything else must be seen."""
    assert not issubclass(BadAccounting, BadEvent)
