"""Rules type whole batches as they would one event, and a set that cannot be right is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.errors import BadRules
from stream.events import Kind
from stream.typing_rules import SHIPPED, RuleSet, load_rules, parse_rules

KUAIRAND = load_rules("kuairand")
SIGNALS = ["click", "like", "play_ms", "duration_ms"]


def rule(name: str, when: str, kind: str = "explicit_positive", weight: str = "1.0") -> str:
    return f"[[rule]]\nname = '{name}'\nwhen = '''{when}'''\nkind = '{kind}'\nweight = {weight}\n"


def rules(*lines: str, signals: list[str] | None = None) -> RuleSet:
    listed = f"signals = {signals or SIGNALS}\n"
    return parse_rules('version = "x"\n' + listed + "".join(lines), source="my.toml")


def names(found: RuleSet, **signals: list[float]) -> list[str | None]:
    typed = found.classify(pl.DataFrame(signals))
    return [None if place < 0 else found.rules[place].name for place in typed.rule]


def test_kuairand_types_as_its_paper_names_the_signals() -> None:
    found = load_rules("kuairand")
    events = {
        "hate beats like": {"hate": 1, "like": 1, "click": 1},
        "like": {"like": 1},
        "follow": {"follow": 1},
        "forward": {"forward": 1, "click": 1},
        "comment": {"comment": 1},
        "click": {"click": 1},
        "long view": {"long_view": 1},
        "looked at the author": {"profile_enter": 1, "play_ms": 900},
        "only shown": {},
    }
    typed = found.classify_mappings([{k: float(v) for k, v in e.items()} for e in events.values()])
    labels = [Kind(kind).label for kind in typed.kind]
    assert dict(zip(events, labels, strict=True)) == {
        "hate beats like": "explicit_negative",
        "like": "explicit_positive",
        "follow": "explicit_positive",
        "forward": "explicit_positive",
        "comment": "explicit_positive",
        "click": "implicit_positive",
        "long view": "implicit_positive",
        "looked at the author": "implicit_negative",
        "only shown": "implicit_negative",
    }
    assert typed.weight.tolist() == pytest.approx([1, 1, 1, 1, 1, 0.5, 0.5, 0.1, 0.1])


@pytest.mark.parametrize(
    ("rating", "label"),
    [
        (5.0, "explicit_positive"),
        (4.5, "explicit_positive"),
        (4.0, "implicit_positive"),
        (3.5, "implicit_positive"),
        (3.0, "implicit_negative"),
        (2.5, "implicit_negative"),
        (2.0, "explicit_negative"),
        (0.5, "explicit_negative"),
        (0.0, "none"),
    ],
)
def test_ratings_are_four_classes_and_half_steps_round_up(rating: float, label: str) -> None:
    typed = load_rules("ratings").classify_mappings([{"rating": rating}])
    assert Kind(typed.kind[0]).label == label


@pytest.mark.parametrize(
    ("signals", "label"),
    [
        ({"play_ms": 30_000}, "implicit_positive"),
        ({"play_ms": 20_000}, "none"),
        ({"play_ms": 9_999}, "implicit_negative"),
        ({"play_ms": 9_000, "duration_ms": 12_000}, "implicit_positive"),
        ({"play_ms": 9_000, "duration_ms": 30_000}, "none"),
        ({"play_ms": 9_000, "duration_ms": 180_000}, "implicit_negative"),
        ({"play_ms": 200_000, "duration_ms": 180_000, "dislike": 1}, "explicit_negative"),
        ({"like": 1, "play_ms": 1_000}, "explicit_positive"),
        ({"skip": 1, "play_ms": 100_000}, "implicit_negative"),
        ({}, "none"),
    ],
)
def test_music_goes_by_share_or_by_time_where_the_length_is_unknown(
    signals: dict[str, float], label: str
) -> None:
    typed = load_rules("music").classify_mappings([signals])
    assert Kind(typed.kind[0]).label == label


@pytest.mark.parametrize(
    ("signals", "label"),
    [
        ({"purchase": 1, "click": 1}, "explicit_positive"),
        ({"hide": 1, "like": 1}, "explicit_negative"),
        ({"add_to_cart": 1}, "implicit_positive"),
        ({"play_ms": 5_000}, "none"),
        ({"play_ms": 5_000, "duration_ms": 9_000}, "implicit_positive"),
        ({"impression": 1}, "implicit_negative"),
        ({"rating": 3}, "implicit_negative"),
        ({"view": 1, "dwell_ms": 70}, "none"),
    ],
)
def test_the_default_set_knows_the_usual_names(signals: dict[str, float], label: str) -> None:
    typed = load_rules("default").classify_mappings([signals])
    assert Kind(typed.kind[0]).label == label


@pytest.mark.parametrize("name", sorted(file.stem for file in SHIPPED.glob("*.toml")))
def test_shipped_sets_load_and_name_themselves(name: str) -> None:
    found = load_rules(name)
    assert found.version.startswith(f"{name}-")


flags = st.dictionaries(
    st.sampled_from([*KUAIRAND.signals, "unheard_of"]),
    st.sampled_from([0.0, 1.0, 2.5, -1.0]),
)


@given(st.lists(flags, max_size=8))
def test_a_batch_is_typed_as_its_events_one_by_one(events: list[dict[str, float]]) -> None:
    found = KUAIRAND
    whole = found.classify_mappings(events)
    alone = [found.classify_mappings([event]) for event in events]
    table = found.classify(
        pl.DataFrame(
            [{name: event.get(name) for name in found.signals} for event in events],
            schema=dict.fromkeys(found.signals, pl.Float64),
        )
    )
    for column, dtype in enumerate((np.int8, np.float32, np.int16)):
        assert whole[column].dtype == dtype
        assert whole[column].tolist() == [one[column][0] for one in alone]
        assert whole[column].tolist() == table[column].tolist()


def test_the_first_rule_that_fires_wins_and_none_is_none() -> None:
    found = rules(rule("big", "play_ms > 10"), rule("any", "play_ms > 0", "implicit_negative"))
    assert names(found, play_ms=[11.0, 10.0, 0.0]) == ["big", "any", None]
    typed = found.classify(pl.DataFrame({"play_ms": [11.0, 10.0, 0.0]}))
    assert typed.weight.tolist() == [1.0, 1.0, 0.0]
    assert typed.kind.tolist() == [Kind.EXPLICIT_POSITIVE, Kind.IMPLICIT_NEGATIVE, Kind.NONE]


def test_missing_columns_nulls_and_integers_are_taken_for_numbers() -> None:
    found = rules(rule("liked", '"like" > 0'), rule("not clicked", "click = 0"))
    table = pl.DataFrame({"like": [1, None, 0], "other": ["a", "b", "c"]})
    typed = found.classify(table)
    assert typed.rule.tolist() == [0, 1, 1]


def test_a_share_of_an_unknown_length_can_be_left_unanswered() -> None:
    found = rules(rule("most", "play_ms / NULLIF(duration_ms, 0) > 0.5"))
    assert names(found, play_ms=[6.0, 6.0], duration_ms=[10.0, 0.0]) == ["most", None]


@pytest.mark.parametrize("n", [0, 1, 3])
def test_a_set_that_looks_at_nothing_types_every_event(n: int) -> None:
    found = rules(rule("all", "TRUE"))
    assert found.classify(pl.DataFrame({"click": [1.0] * n})).rule.tolist() == [0] * n
    assert found.classify_mappings([{}] * n).rule.tolist() == [0] * n


@pytest.mark.parametrize(
    ("when", "told"),
    [
        ("cilck > 0", "unknown signal cilck in `cilck > 0`; did you mean click?"),
        ("Click > 0", "did you mean click?"),
        ("x > 0", "unknown signal x in `x > 0`; known are click, duration_ms, like, play_ms"),
        ("click >", "is not a polars SQL expression: unable to parse"),
        ("", "is not a polars SQL expression"),
        ("click > 0; SELECT 1", "is not a polars SQL expression"),
        ("*", "is not a polars SQL expression"),
        ("click", "to be true or false, got Float64; compare it, as in `click > 0`"),
        ("NULL", "to be true or false, got Null"),
        ("click > 'a'", "cannot be evaluated: cannot compare string with numeric type"),
        ("SUM(click) > 0", "one event at a time, without aggregates or windows"),
        ("FIRST(click) > 0", "one event at a time"),
        ("click >= MIN(click)", "one event at a time"),
        ("click > AVG(click) OVER ()", "one event at a time"),
        ("LAG(click) OVER (ORDER BY play_ms) > 0", "one event at a time"),
        ("COUNT(*) > 1", "looks at no signal"),
        ("ROW_NUMBER() OVER () > 1", "looks at no signal"),
        ("1 = 1", "looks at no signal; write TRUE"),
        ("(SELECT 1) > 0", "looks at no signal"),
        ("FALSE", "rule 1 (mine) can never fire: `FALSE` is true of no event"),
        ("click > 0 AND click < 0", "can never fire"),
    ],
)
def test_a_condition_that_cannot_be_right_is_refused_by_name(when: str, told: str) -> None:
    with pytest.raises(BadRules) as refused:
        rules(rule("mine", when))
    assert str(refused.value).startswith("my.toml: rule 1 (mine)")
    assert told in str(refused.value)


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ([rule("a", "click > 0", weight="0")], "want a finite weight above 0, got 0.0"),
        ([rule("a", "click > 0", weight="-1")], "want a finite weight above 0, got -1.0"),
        ([rule("a", "click > 0", weight="nan")], "want a finite weight above 0, got nan"),
        ([rule("a", "click > 0", weight="inf")], "want a finite weight above 0, got inf"),
        ([rule("a", "click > 0", weight="true")], "Expected `float`, got `bool`"),
        ([rule("a", "click > 0", "none")], "want kind to be one of explicit_positive, "),
        ([rule("a", "click > 0", "liked")], "Invalid enum value 'liked' - at `$.rule[0].kind`"),
        ([rule("a", "click > 0") + "wieght = 2\n"], "unknown field `wieght`"),
        ([rule("a", "click > 1"), rule("a", "click > 0")], "rule 2 (a): there is an earlier rule"),
        ([], "missing required field `rule`"),
        (["rule = []\n"], "want at least one [[rule]], got none"),
        (["[[rule]\n"], "my.toml: "),
    ],
)
def test_a_set_that_cannot_be_right_is_refused_with_the_reason(lines: list[str], told: str) -> None:
    with pytest.raises(BadRules) as refused:
        rules(*lines)
    assert told in str(refused.value)


@pytest.mark.parametrize(
    "lines",
    [
        [rule("first", "click > 0"), rule("again", "click > 0")],
        [rule("first", "click > 0"), rule("narrower", "click > 2")],
        [rule("all", "TRUE"), rule("rest", "click > 0")],
        [rule("yes", "click > 0"), rule("no", "click <= 0"), rule("rest", "play_ms > 7")],
        [rule("either", "click > 0 OR play_ms > 5"), rule("both", "click > 1 AND play_ms > 9")],
    ],
)
def test_a_rule_behind_rules_that_take_everything_it_matches_is_refused(lines: list[str]) -> None:
    with pytest.raises(BadRules, match=r"can never fire: .*earlier rules take"):
        rules(*lines)


@pytest.mark.parametrize(
    "lines",
    [
        [rule("narrow", "click > 2"), rule("wide", "click > 0")],
        [rule("half", "play_ms > 0.5 * duration_ms"), rule("rest", "duration_ms > 0")],
        [rule("exact", "play_ms = 17 AND duration_ms = 18 AND click = 3"), rule("rest", "TRUE")],
        [rule("window", "play_ms > 30000 AND play_ms < 30001")],
        [rule("zero", "click < 1 AND play_ms < 1"), rule("clicked", "click >= 1")],
        [rule("long", "play_ms + duration_ms > 1e9")],
        [rule("all", "TRUE")],
    ],
)
def test_a_rule_that_can_fire_is_left_alone(lines: list[str]) -> None:
    assert len(rules(*lines).rules) == len(lines)


def test_a_set_that_lists_its_signals_may_be_used_on_a_log_that_lacks_some() -> None:
    found = load_rules("music", signals=["play_ms"])
    assert found == load_rules("music")
    assert names(found, play_ms=[30_000.0]) == ["played"]


def test_a_set_without_a_list_of_signals_takes_those_of_the_log() -> None:
    text = 'version = "x"\n' + rule("liked", '"like" > 0')
    assert parse_rules(text, source="my.toml", signals=["like"]).signals == ("like",)
    with pytest.raises(BadRules, match='unknown signal like in `"like" > 0`; did you mean click'):
        parse_rules(text, source="my.toml", signals=["click"])
    with pytest.raises(BadRules, match="want a list of the signals"):
        parse_rules(text, source="my.toml")


def test_a_file_of_ones_own_is_read_with_or_without_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    text = 'version = "mine-1"\nsignals = ["click"]\n' + rule("clicked", "click > 0")
    file.write_text("\ufeff" + text.replace("\n", "\r\n"), encoding="utf-8")
    assert load_rules(file) == load_rules(str(file))
    assert load_rules(file).version == "mine-1"


def test_a_file_that_cannot_be_read_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(BadRules, match="want a file, or one of default, kuairand, music, ratings"):
        load_rules(tmp_path / "nowhere.toml")
    with pytest.raises(BadRules, match="cannot read the rule set"):
        load_rules(tmp_path)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(BadRules, match="cannot read the rule set"):
        load_rules(tmp_path / "binary.toml")
