"""What the two commands tell of a log, and how they end."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from replay.classify import classified
from replay.datasets import open_dataset, sample_path
from replay.validate import examine
from stream.typing_rules import load_rules, parse_rules
from tidegraph import main

MINE = """
version = "mine"
signals = ["rating"]
[[rule]]
name = "worst"
when = "rating = 2"
kind = "explicit_negative"
weight = 1.0
[[rule]]
name = "liked"
when = "rating >= 4"
kind = "explicit_positive"
weight = 1.0
"""
LOG = """user,item,rating,time
1,a,5,881250949
1,b,4,881250950
2,a,1,881250951
1,b,4,881250950
"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Four ratings, of which one repeats another."""
    path = tmp_path / "ratings.csv"
    path.write_text(LOG)
    return path


def run(*arguments: str | Path) -> Result:
    """Run the command as a user would."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_validate_finds_what_is_wrong(log: Path) -> None:
    log.write_text(LOG + "3,c,many,881250952\n")
    result = run("validate", log, "--json")
    found: dict[str, Any] = json.loads(result.stdout)
    assert result.exit_code == 0
    assert (found["events"], found["dead"], found["duplicates"], found["ties"]) == (4, 1, 1, 1)
    assert (found["users"], found["items"]) == (2, 2)
    assert found["classes"] == {
        "explicit_positive": 1,
        "implicit_positive": 2,
        "implicit_negative": 0,
        "explicit_negative": 1,
    }
    assert found["reasons"] == {"column rating: invalid: wanted a number": 1}
    assert found["examples"][0]["line"] == "3,c,many,881250952"
    assert found["notes"] == ["the log was not in time order: sorted"]


def test_validate_counts_copies_across_chunks_once(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.write_text("user,item,rating,time\n" + "1,a,5,881250949\n" * 7)
    dataset = open_dataset("ratings", log)
    for rows in (1, 2, 3, 7):
        monkeypatch.setattr(dataset, "chunks", partial(type(dataset).chunks, dataset, rows=rows))
        found = examine(dataset, load_rules("ratings"))
        assert (found.events, found.duplicates, found.ties) == (7, 6, 6)


def test_validate_tells_unknown_items_and_constant_signals() -> None:
    found = examine(open_dataset("kuairand-pure", limit=2_000), load_rules("kuairand"))
    assert found.unknown_items == 0
    assert found.constant["is_rand"] == 0.0
    assert sum(found.classes.values()) == found.events == 2_000


def test_validate_shows_a_log_on_the_terminal(log: Path) -> None:
    result = run("validate", log)
    assert "4 of 2 users and 2 items" in result.output
    assert "note: the log was not in time order: sorted" in result.output


@pytest.mark.parametrize("command", ["validate", "classify"])
def test_a_log_that_cannot_be_read_ends_with_2_and_one_message(
    tmp_path: Path, command: str
) -> None:
    result = run(command, tmp_path / "nowhere.csv")
    assert result.exit_code == 2
    assert "nothing is there" in result.output
    assert "Traceback" not in result.output


def test_a_log_without_a_single_event_ends_with_2(log: Path) -> None:
    log.write_text("user,item,rating,time\n1,a,x,881250949\n")
    result = run("validate", log)
    assert result.exit_code == 2
    assert "not one line is an event" in result.output


def test_classify_counts_by_rule_and_explains(log: Path) -> None:
    result = run("classify", log, "--explain")
    assert result.exit_code == 0
    assert "because rating > 4" in result.output
    assert "user 1, item a, 881250949000 ms: rating 5" in result.output


def test_classify_shows_where_two_sets_differ(log: Path) -> None:
    against = parse_rules(MINE, source="mine")
    found = classified(open_dataset("ratings", log), load_rules("ratings"), against)
    assert {rule.rule: rule.count for rule in found.rules} == {
        "five": 1,
        "four": 2,
        "three": 0,
        "low": 1,
        "(no rule)": 0,
    }
    assert found.confusion == {
        "explicit_positive": {"explicit_positive": 1},
        "implicit_positive": {"explicit_positive": 2},
        "explicit_negative": {"none": 1},
    }
    told = [(diff.rule, diff.other_rule, diff.count) for diff in found.differences]
    assert told == [("four", "liked", 2), ("low", "(no rule)", 1)]
    assert [example.item_id for example in found.differences[1].examples] == ["a"]


def test_classify_takes_rule_files_and_prints_json(tmp_path: Path, log: Path) -> None:
    rules = tmp_path / "mine.toml"
    rules.write_text(MINE)
    result = run("classify", log, "--rules", rules, "--against", "ratings", "--json")
    found = json.loads(result.stdout)
    assert (found["rules_version"], found["other_version"]) == ("mine", "ratings-1")
    assert [rule["count"] for rule in found["rules"]] == [0, 3, 1]
    assert run("classify", log, "--rules", rules, "--against", "ratings").exit_code == 0


def test_a_rule_set_that_must_not_be_used_ends_with_2(tmp_path: Path, log: Path) -> None:
    rules = tmp_path / "mine.toml"
    rules.write_text(MINE.replace("rating >= 4", "raiting >= 4"))
    result = run("classify", log, "--rules", rules)
    assert result.exit_code == 2
    assert "rating" in result.output


def test_retractions_are_not_typed(tmp_path: Path) -> None:
    event = '{"v":1,"event_id":"a","user_id":"7","item_id":"9","ts_ms":1650812741436,'
    lines = [
        event + '"signals":{"click":1}}',
        event.replace('"a"', '"b"') + '"retracts":"a","target_ts_ms":1650812741436}',
    ]
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    found = classified(open_dataset("events", tmp_path), load_rules("default"))
    assert (found.events, found.retractions) == (1, 1)


@pytest.mark.parametrize("command", ["validate", "classify"])
def test_the_shipped_sample_passes(command: str) -> None:
    assert run(command, sample_path(), "--limit", "1000").exit_code == 0
