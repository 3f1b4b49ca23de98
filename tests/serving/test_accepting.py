"""What clients send, checked: what the API takes, the stream worker takes too, and the reverse."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.accepting import Checked, Reading, item_row, split, words_of
from stream.errors import BadEvent
from stream.events import (
    Described,
    Erasure,
    Feedback,
    Interaction,
    Kind,
    decode_described,
    decode_feedback,
    decode_interaction,
    digest_id,
    encode,
)
from stream.intake import Intake
from stream.log import Record
from stream.typing_rules import RuleSet, load_rules

T0 = 1_650_812_741_436
RULES = load_rules("kuairand")
READING = Reading(RULES, max_future_ms=1_000)
HIDDEN = Reading(RULES, max_future_ms=1_000, pseudonym=lambda user_id: f"u_{user_id}")

EVENT: dict[str, Any] = {
    "v": 1,
    "event_id": "e1",
    "user_id": "712",
    "item_id": "5239",
    "ts_ms": T0,
    "signals": {"click": 1},
}
RETRACTION: dict[str, Any] = {
    "v": 1,
    "event_id": "e2",
    "user_id": "712",
    "ts_ms": T0,
    "retracts": "e1",
    "item_id": "5239",
    "target_ts_ms": T0,
}

odd = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([T0, T0 + 1_000, T0 + 1_001, T0 * 1_000, 1, "", "712", 712, 1e300]),
    st.text(max_size=3),
    st.dictionaries(st.text(max_size=3), st.floats(allow_nan=False), max_size=2),
)
"""What may stand in a field, right or wrong."""


@st.composite
def sent(draw: st.DrawFn) -> bytes:
    """An event with some of its fields left out, replaced or added; or no event at all."""
    event = dict(draw(st.sampled_from([EVENT, RETRACTION])))
    names = [*EVENT, "retracts", "target_ts_ms", "context", "request_id", "other"]
    for name in draw(st.lists(st.sampled_from(names), max_size=2)):
        event[name] = draw(odd)
    for name in draw(st.lists(st.sampled_from(names), max_size=1)):
        event.pop(name, None)
    value = msgspec.json.encode(event)
    return value[: draw(st.integers(0, len(value)))] if draw(st.integers(0, 9)) == 0 else value


def worker_takes(key: bytes | None, value: bytes) -> bool:
    """Tell what the stream worker makes of a record that is appended at ``T0``."""
    intake = Intake(RULES, max_future_ms=1_000)
    return not intake.take([Record("interactions", 0, 0, key, value, T0)]).dead


@given(sent())
def test_what_is_taken_is_no_dead_letter_and_what_is_refused_would_be_one(raw: bytes) -> None:
    for reading in (READING, HIDDEN):
        try:
            named, (key, value) = reading.interaction(raw, T0)
        except BadEvent:
            keys = [b"712"]
            with suppress(msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError):
                keys.append(str(msgspec.json.decode(raw)["user_id"]).encode())
            assert not any(worker_takes(key, raw) for key in keys)
        else:
            assert value is not None
            assert worker_takes(key, value)
            event = decode_interaction(value)
            assert not isinstance(event, Erasure)
            assert event.event_id == named
            assert (key == b"u_" + str(msgspec.json.decode(raw)["user_id"]).encode()) == (
                reading is HIDDEN
            )


def test_what_is_right_already_goes_into_the_log_as_it_came() -> None:
    raw = b' {"other":[1],' + msgspec.json.encode(EVENT)[1:]
    assert READING.interaction(raw, T0) == ("e1", (b"712", raw))
    _, (key, value) = HIDDEN.interaction(raw, T0)
    assert (key, value) == (b"u_712", encode(decode_interaction(raw)).replace(b"712", b"u_712"))


def test_an_event_without_an_id_gets_the_same_one_each_time() -> None:
    nameless = {name: value for name, value in EVENT.items() if name != "event_id"}
    made = digest_id("712", "5239", T0, {"click": 1.0})
    for raw in (msgspec.json.encode(nameless), b" \n" + msgspec.json.encode(nameless)):
        named, (key, value) = READING.interaction(raw, T0)
        assert (named, key) == (made, b"712")
        assert value is not None
        assert decode_interaction(value) == decode_interaction(
            msgspec.json.encode({**EVENT, "event_id": made})
        )
    # The id of a user who is hidden must not be found by trying ids.
    assert HIDDEN.interaction(raw, T0)[0] == digest_id("u_712", "5239", T0, {"click": 1.0})
    other = {name: value for name, value in RETRACTION.items() if name != "event_id"}
    assert READING.interaction(msgspec.json.encode(other), T0)[0] == digest_id("712", "e1", T0, {})


def fault(read: Any, said: dict[str, Any]) -> str:
    with pytest.raises(BadEvent) as raised:
        read(msgspec.json.encode(said), T0)
    return str(raised.value)


def test_whoever_wants_to_forget_a_user_is_shown_how() -> None:
    told = fault(READING.interaction, {"v": 1, "erase_user": "712"})
    assert told == "$.erase_user: invalid: to forget a user, ask for DELETE /v1/users/{user}"


def test_no_event_is_from_the_future() -> None:
    for said in (EVENT, RETRACTION):
        at_the_bound = msgspec.json.encode({**said, "ts_ms": T0 + 1_000})
        assert READING.interaction(at_the_bound, T0)[1][1] == at_the_bound
        told = fault(READING.interaction, {**said, "ts_ms": T0 + 1_001})
        assert told == "$.ts_ms: invalid: want at most 1000 ms ahead of now, got 1001 ms"


@pytest.mark.parametrize("rules", ["kuairand", "default", "music"])
def test_words_mean_the_same_under_all_rules(rules: str) -> None:
    meant = {
        "like": Kind.EXPLICIT_POSITIVE,
        "dislike": Kind.EXPLICIT_NEGATIVE,
        "click": Kind.IMPLICIT_POSITIVE,
        "skip": Kind.IMPLICIT_NEGATIVE,
    }
    reading = Reading(load_rules(rules), max_future_ms=0)
    assert meant.keys() - reading.words.keys() == ({"click"} if rules == "music" else set())
    for word, kind in meant.items():
        if word in reading.words:
            said = {"user_id": 712, "item_id": 5239, "type": word}
            _, (key, value) = reading.feedback(msgspec.json.encode(said), T0)
            assert value is not None
            record = Record("interactions", 0, 0, key, value, T0)
            (typed,) = Intake(load_rules(rules)).take([record]).feedback
            assert isinstance(typed, Feedback)
            assert Kind.of(typed.kind) == kind, word


def test_rules_that_know_one_signal_know_one_word() -> None:
    assert words_of(load_rules("ratings")) == {"rating": "rating"}
    everything = RuleSet(RULES.version, RULES.rules[-1:], ())  # one rule: all was skipped
    assert words_of(everything) == {"skip": "skip"}


def test_feedback_is_an_interaction_in_other_words() -> None:
    said = {
        "user_id": 712,
        "item_id": "5239",
        "type": "play_ms",
        "value": 61_802,
        "ts_ms": T0 - 5,
        "event_id": 8,
        "context": {"tab": "1"},
        "request_id": "c1f0",
    }
    named, (key, value) = READING.feedback(msgspec.json.encode(said), T0)
    assert (named, key) == ("8", b"712")
    assert value is not None
    assert decode_interaction(value) == Interaction(
        1, "8", "712", "5239", T0 - 5, {"play_ms": 61_802.0}, {"tab": "1"}, "c1f0"
    )
    del said["ts_ms"], said["event_id"]
    named, (_, value) = HIDDEN.feedback(msgspec.json.encode(said), T0)
    assert value is not None
    event = decode_interaction(value)
    assert isinstance(event, Interaction)
    assert (event.ts_ms, event.user_id, event.context) == (T0, "u_712", {"tab": "1"})
    assert named == event.event_id == digest_id("u_712", "5239", T0, {"play_ms": 61_802.0})


def test_wrong_feedback_is_told_where_and_why() -> None:
    right = {"user_id": 712, "item_id": 5239, "type": "like"}
    for changed, where in (
        ({"type": "purchase"}, "$.type: invalid: the rules kuairand-1 know no 'purchase', only "),
        ({"value": 0}, "$.value: invalid: want a value above 0, got 0.0"),
        ({"value": "1"}, "$.value: invalid: expected `float`, got `str`"),
        ({"user_id": ""}, "$.user_id: invalid: want an id, got an empty string"),
        ({"item_id": ""}, "$.item_id: invalid: want an id, got an empty string"),
        ({"item_id": True}, "$.item_id: invalid: expected `int | str`, got `bool`"),
        ({"event_id": ""}, "$.event_id: invalid: want an id, got an empty string"),
        ({"ts_ms": T0 // 1_000}, "$.ts_ms: invalid: want milliseconds"),
        ({"ts_ms": T0 * 1_000_000}, "$.ts_ms: invalid: want milliseconds"),
        ({"ts_ms": T0 + 1_001}, "$.ts_ms: invalid: want at most 1000 ms ahead of now, got 1001 ms"),
        ({"timestamp": T0}, "$: invalid: object contains unknown field `timestamp`"),
    ):
        assert fault(READING.feedback, {**right, **changed}).startswith(where)
        # A pseudonym of nothing would hide that there is nothing.
        assert fault(HIDDEN.feedback, {**right, **changed}).startswith(where)


def test_an_edge_is_typed_feedback() -> None:
    said = {"user_id": 712, "item_id": 5239, "kind": "implicit_negative", "weight": 0.5}
    named, (key, value) = READING.edge(msgspec.json.encode(said), T0)
    assert key == b"712"
    assert value is not None
    assert decode_feedback(value) == Feedback(1, named, "712", "5239", T0, "implicit_negative", 0.5)
    assert "weight above 0" in fault(READING.edge, {**said, "weight": 0})
    assert "invalid enum value" in fault(READING.edge, {**said, "kind": "none"})
    assert "ahead of now" in fault(READING.edge, {**said, "ts_ms": T0 + 2_000})


def test_rows_say_something_or_take_it_back() -> None:
    said = {"id": 5239, "attributes": {"tags": ["sea", "art"], "year": 2021, "x": None}}
    named, (key, value) = item_row(msgspec.json.encode(said), T0)
    assert (named, key) == ("5239", b"5239")
    assert value is not None
    assert decode_described(value) == Described(
        1, {"tags": ["sea", "art"], "year": 2021, "x": None}
    )
    gone = {"id": "712", "delete": True}
    assert item_row(msgspec.json.encode(gone), T0) == ("712", (b"712", None))
    assert HIDDEN.user_row(msgspec.json.encode(gone), T0) == ("712", (b"u_712", None))
    assert "want an id" in fault(item_row, {"id": ""})
    assert "no attributes where" in fault(item_row, {**said, "delete": True})
    for attributes, where in (
        ({"deep": {"er": 1}}, "$.attributes: invalid: expected `bool | int"),
        ({"deep": [[1]]}, "$.attributes[...][0]: invalid: expected `bool | int"),
        ({"": 1}, "key in $.attributes: invalid: expected `str` of length >= 1"),
        ([], "$.attributes: invalid: expected `object`, got `array`"),
    ):
        assert fault(item_row, {"id": "1", "attributes": attributes}).startswith(where)


@given(st.lists(st.sampled_from([b'{"a": "x, [y]"}', b"[]", b'"\\n"', b"1", b"{}"]), max_size=5))
def test_a_list_and_lines_are_split_alike(entries: list[bytes]) -> None:
    assert split(b" [" + b" , ".join(entries) + b"]\n", lines=False) == (entries, False)
    assert split(b"\r\n".join([b"", *entries, b" "]), lines=True) == (entries, False)
    assert split(b" {}", lines=False) == ([b" {}"], True)


def test_a_wrong_entry_does_not_concern_the_others() -> None:
    checked = Checked()
    for raws in ([b'{"id":1}', b"{", b'{"id":2}'], [b'{"id":""}', b'{"id":3}']):
        checked.add(raws, item_row, T0)
    assert [each.outcome for each in checked.outcomes] == [
        "stored",
        "invalid",
        "stored",
        "invalid",
        "stored",
    ]
    assert checked.places == [0, 2, 4]
    assert [key for key, _ in checked.entries] == [b"1", b"2", b"3"]
    assert checked.outcomes[1].reason == "undecodable: input data was truncated"
    assert checked.outcomes[3].where == "$.id"
