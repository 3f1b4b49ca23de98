"""What is on the wire becomes an event, or a fault with its reason and its place."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.errors import BadEvent
from stream.events import (
    N_CLASSES,
    DeadLetter,
    Erasure,
    Feedback,
    FeedbackBatch,
    Interaction,
    Kind,
    Retraction,
    decode_feedback,
    decode_interaction,
    encode,
    event_key,
    read_feedback,
)

T0 = 1_650_812_741_436
CLICK = {
    "v": 1,
    "event_id": "e1",
    "user_id": "712",
    "item_id": "5239",
    "ts_ms": T0,
    "signals": {"click": 1},
}
RETRACTION = {
    "v": 1,
    "event_id": "e2",
    "user_id": "712",
    "ts_ms": T0 + 5,
    "retracts": "e1",
    "item_id": "5239",
    "target_ts_ms": T0,
}


def wire(record: dict[str, Any], **changes: object) -> bytes:
    return json.dumps({**record, **changes}).encode()


def without(record: dict[str, Any], name: str) -> bytes:
    return json.dumps({key: value for key, value in record.items() if key != name}).encode()


def test_an_interaction_is_read_and_written_again() -> None:
    event = decode_interaction(wire(CLICK, context={"tab": "1"}, request_id="r"))
    assert event == Interaction(1, "e1", "712", "5239", T0, {"click": 1.0}, {"tab": "1"}, "r")
    assert decode_interaction(encode(event)) == event


def test_a_retraction_and_an_erasure_are_told_from_interactions() -> None:
    assert decode_interaction(wire(RETRACTION)) == Retraction(
        1, "e2", "712", T0 + 5, "e1", "5239", T0
    )
    assert decode_interaction(b'{"v":1,"erase_user":"712"}') == Erasure(1, "712")


def test_integer_ids_become_strings_everywhere() -> None:
    big = 10**30
    event = decode_interaction(wire(CLICK, event_id=-1, user_id=712, item_id=big, request_id=0))
    assert event == Interaction(1, "-1", "712", str(big), T0, {"click": 1.0}, {}, "0")
    assert decode_interaction(wire(RETRACTION, retracts=17)) == Retraction(
        1, "e2", "712", T0 + 5, "17", "5239", T0
    )
    assert decode_interaction(b'{"v":1,"erase_user":712}') == Erasure(1, "712")


def test_unknown_fields_are_ignored_so_that_writers_may_be_newer() -> None:
    assert decode_interaction(wire(CLICK, colour=["red"])) == decode_interaction(wire(CLICK))


@pytest.mark.parametrize(
    ("value", "where", "reason"),
    [
        (b"", "$", "undecodable: input data was truncated"),
        (b"\xff\xfe", "$", "undecodable: "),
        (b'{"v":1,"event_id":"\xff"}', "$", "undecodable: 'utf-8' codec"),
        (wire(CLICK)[:-1], "$", "undecodable: input data was truncated"),
        (b"\xef\xbb\xbf" + wire(CLICK), "$", "undecodable: "),
        (b'{"x":' * 100_000, "$", "undecodable: nested too deeply"),
        (b"[1]", "$", "invalid: expected `object`, got `array`"),
        (wire(CLICK, event_id="\ud800"), "$", "undecodable: "),
        (wire(CLICK, v=2), "$.v", "version: this reader understands 1, got 2"),
        (wire(CLICK, v=True), "$.v", "invalid: expected `int`, got `bool`"),
        (without(CLICK, "v"), "$.v", "invalid: this field is missing"),
        (without(CLICK, "event_id"), "$.event_id", "invalid: this field is missing"),
        (without(CLICK, "signals"), "$.signals", "invalid: this field is missing"),
        (wire(CLICK, user_id=""), "$.user_id", "invalid: want an id, got an empty string"),
        (wire(CLICK, event_id=""), "$.event_id", "invalid: want an id, got an empty string"),
        (wire(CLICK, item_id=""), "$.item_id", "invalid: want an id, got an empty string"),
        (wire(CLICK, user_id=True), "$.user_id", "invalid: expected `int | str`, got `bool`"),
        (wire(CLICK, item_id=1.0), "$.item_id", "invalid: expected `int | str`, got `float`"),
        (wire(CLICK, item_id=None), "$.item_id", "invalid: expected `int | str`, got `null`"),
        (wire(CLICK, ts_ms=str(T0)), "$.ts_ms", "invalid: expected `int`, got `str`"),
        (wire(CLICK, ts_ms=1.5), "$.ts_ms", "invalid: expected `int`, got `float`"),
        (wire(CLICK, signals=[]), "$.signals", "invalid: expected `object`, got `array`"),
        (wire(CLICK, signals={"a": 1, "b": "1"}), "$.signals.b", "invalid: expected `float`"),
        (wire(CLICK, signals={"a": True}), "$.signals.a", "invalid: expected `float`, got `bool`"),
        (wire(CLICK, signals={"a": None}), "$.signals.a", "invalid: expected `float`, got `null`"),
        (wire(CLICK, signals={"a": 10**400}), "$.signals.a", "invalid: number out of range"),
        (wire(CLICK, context={"tab": 1}), "$.context.tab", "invalid: expected `str`, got `int`"),
        (wire(CLICK, retracts="e0"), "$", "invalid: a record says one thing, got signals and"),
        (wire(CLICK, erase_user="712"), "$", "invalid: a record says one thing"),
        (wire(RETRACTION, retracts=""), "$.retracts", "invalid: want an id"),
        (without(RETRACTION, "target_ts_ms"), "$.target_ts_ms", "invalid: this field is missing"),
        (wire(RETRACTION, target_ts_ms=0), "$.target_ts_ms", "invalid: want milliseconds"),
        (b'{"v":1,"erase_user":""}', "$.erase_user", "invalid: want an id"),
        (b'{"v":3,"erase_user":"712"}', "$.v", "version: "),
    ],
)
def test_what_cannot_be_right_is_refused_with_reason_and_place(
    value: bytes, where: str, reason: str
) -> None:
    with pytest.raises(BadEvent) as refused:
        decode_interaction(value)
    assert refused.value.where == where
    assert refused.value.reason.startswith(reason)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_numbers_that_are_not_finite_are_named_by_their_signal(number: str) -> None:
    value = wire(CLICK, signals={"click": 1, "play_ms": 7}).replace(b": 7", f": {number}".encode())
    with pytest.raises(BadEvent) as refused:
        decode_interaction(value)
    assert refused.value.where == "$.signals.play_ms"
    assert refused.value.reason.startswith("invalid: ")


@pytest.mark.parametrize(
    ("ts_ms", "told"),
    [
        (T0 // 1000, "seconds, multiply by 1000"),
        (T0 * 1000, "microseconds, divide by 1000"),
        (T0 * 10**6, "nanoseconds, divide by 1000000"),
    ],
)
def test_time_in_another_unit_is_named(ts_ms: int, told: str) -> None:
    with pytest.raises(BadEvent) as refused:
        decode_interaction(wire(CLICK, ts_ms=ts_ms))
    assert refused.value.where == "$.ts_ms"
    assert refused.value.reason.endswith(f"got {ts_ms}: these look like {told}")


@pytest.mark.parametrize("ts_ms", [0, -T0, 315_532_799_999, 4_102_444_800_000, 10**400])
def test_time_out_of_range_is_refused_without_a_guess(ts_ms: int) -> None:
    with pytest.raises(BadEvent) as refused:
        decode_interaction(wire(CLICK, ts_ms=ts_ms))
    assert refused.value.where == "$.ts_ms"
    assert "look like" not in refused.value.reason
    assert len(refused.value.reason) < 150


def test_the_first_and_the_last_millisecond_are_accepted() -> None:
    for ts_ms in (315_532_800_000, 4_102_444_799_999):
        event = decode_interaction(wire(CLICK, ts_ms=ts_ms))
        assert isinstance(event, Interaction)
        assert event.ts_ms == ts_ms


def test_a_field_name_spelled_with_escapes_is_the_same_field() -> None:
    value = wire(RETRACTION).replace(b'"retracts"', b'"\\u0072etracts"')
    assert decode_interaction(value) == decode_interaction(wire(RETRACTION))


def test_words_of_other_records_may_stand_in_the_context() -> None:
    event = decode_interaction(wire(CLICK, context={"note": "retracts erase_user \\"}))
    assert isinstance(event, Interaction)
    assert event.context == {"note": "retracts erase_user \\"}


@given(st.binary(max_size=60))
def test_garbage_is_a_bad_event_and_nothing_else(value: bytes) -> None:
    with pytest.raises(BadEvent):
        decode_interaction(value)


@given(st.integers(0, len(wire(CLICK)) - 1), st.binary(max_size=3))
def test_a_damaged_record_is_an_event_or_a_bad_event(place: int, damage: bytes) -> None:
    good = wire(CLICK)
    fault = BadEvent("invalid: none")
    try:
        decode_interaction(good[:place] + damage + good[place + 1 :])
    except BadEvent as found:
        fault = found
    assert fault.where.startswith("$")
    assert fault.reason.split(":")[0] in {"undecodable", "invalid", "version"}


def test_kinds_and_their_names_on_the_wire_are_fixed() -> None:
    assert {kind.label: int(kind) for kind in Kind} == {
        "explicit_positive": 0,
        "implicit_positive": 1,
        "implicit_negative": 2,
        "explicit_negative": 3,
        "none": 4,
        "retraction": 5,
    }
    assert all(Kind.of(kind.label) is kind for kind in Kind)
    assert Kind.NONE == N_CLASSES


def test_a_dead_letter_keeps_any_bytes_through_json() -> None:
    letter = DeadLetter(bytes(range(256)), "undecodable: no", "$", "interactions", 3, 17)
    assert msgspec.json.decode(encode(letter), type=DeadLetter) == letter


ids = st.text('ab1é"\\', min_size=1, max_size=3)
times = st.integers(T0, T0 + 5)
typed = st.builds(
    Feedback,
    v=st.just(1),
    event_id=ids,
    user_id=ids,
    item_id=ids,
    ts_ms=times,
    kind=st.sampled_from([kind.label for kind in Kind if kind != Kind.RETRACTION]),
    weight=st.sampled_from([0.1, 0.5, 1.0]),
    rule=ids,
    rules_version=ids,
    signals=st.dictionaries(ids, st.floats(allow_nan=False, allow_infinity=False), max_size=2),
)
retractions = st.builds(
    Feedback,
    v=st.just(1),
    event_id=ids,
    user_id=ids,
    item_id=ids,
    ts_ms=times,
    kind=st.just("retraction"),
    weight=st.just(0.0),
    retracts=ids,
    target_ts_ms=times,
)
feedback = st.lists(st.one_of(typed, retractions), max_size=6)


def rows(batch: FeedbackBatch) -> list[tuple[object, ...]]:
    return list(
        zip(
            batch.event_id,
            batch.key.tolist(),
            batch.user_id,
            batch.item_id,
            batch.ts_ms.tolist(),
            batch.kind.tolist(),
            batch.weight.tolist(),
            batch.retracts.tolist(),
            batch.target_ts_ms.tolist(),
            strict=True,
        )
    )


def row(event: Feedback) -> tuple[object, ...]:
    return (
        event.event_id,
        event_key(event.event_id),
        event.user_id,
        event.item_id,
        event.ts_ms,
        int(Kind.of(event.kind)),
        float(np.float32(event.weight)),
        0 if event.retracts is None else event_key(event.retracts),
        event.target_ts_ms or 0,
    )


@given(feedback)
def test_columns_hold_what_the_records_say(events: list[Feedback]) -> None:
    expected = [row(event) for event in events]
    assert rows(FeedbackBatch.from_feedback(events)) == expected
    assert rows(FeedbackBatch.from_records([encode(event) for event in events])) == expected


@given(feedback)
def test_records_written_from_columns_give_the_same_columns(events: list[Feedback]) -> None:
    batch = FeedbackBatch.from_feedback(events)
    assert rows(FeedbackBatch.from_records(batch.to_records())) == rows(batch)


@given(feedback, feedback)
def test_concat_and_take_and_order_move_whole_rows(
    some: list[Feedback], more: list[Feedback]
) -> None:
    both = FeedbackBatch.concat(
        [FeedbackBatch.from_feedback(some), FeedbackBatch.from_feedback(more)]
    )
    expected = [row(event) for event in some + more]
    assert rows(both) == expected
    assert len(both) == len(expected)
    backwards = np.arange(len(expected), dtype=np.int64)[::-1]
    assert rows(both.take(backwards)) == expected[::-1]
    by_time = [(event.ts_ms, event_key(event.event_id)) for event in some + more]
    order = sorted(range(len(expected)), key=by_time.__getitem__)
    assert rows(both.in_order()) == [expected[place] for place in order]


def test_no_batches_make_an_empty_batch_of_the_same_types() -> None:
    nothing = FeedbackBatch.concat([])
    assert len(nothing) == 0
    assert [nothing.key.dtype, nothing.ts_ms.dtype] == [np.uint64, np.int64]
    assert [nothing.kind.dtype, nothing.weight.dtype] == [np.int8, np.float32]


def test_erasures_are_read_beside_the_feedback_and_never_dropped() -> None:
    event = Feedback(1, "e1", "712", "5239", T0, "implicit_positive", 0.5)
    values = [encode(event), encode(Erasure(1, "712"))]
    batch, erasures = read_feedback(values)
    assert (batch.event_id, erasures) == (["e1"], [Erasure(1, "712")])
    with pytest.raises(BadEvent, match="event_id"):
        FeedbackBatch.from_records(values)


def test_a_record_that_is_no_feedback_is_refused_by_its_own_fault() -> None:
    with pytest.raises(BadEvent) as refused:
        decode_feedback(wire(CLICK, kind="liked", weight=1.0))
    assert refused.value.where == "$.kind"
