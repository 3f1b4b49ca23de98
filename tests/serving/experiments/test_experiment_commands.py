"""The commands, on a real Redis and a real broker: from a file to a report."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from serving.experiments.enrolling import Enrolment
from serving.experiments.redis_store import RedisStore
from stream.events import Feedback, encode
from stream.kafka import KafkaLog
from stream.settings import KafkaSettings, RedisSettings, Settings, as_environment
from stream.topics import FEEDBACK, create
from tidegraph import main

TOML = """
name = "newer"
window_s = 1

[[arms]]
name = "today"

[[arms]]
name = "new"
settings = { diversity = 0.3 }
"""


@pytest.fixture
def redis_settings(redis_url: str, namespace: str) -> RedisSettings:
    return RedisSettings(url=redis_url, namespace=namespace)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, redis_settings: RedisSettings) -> Any:
    told = as_environment(Settings(redis=redis_settings))
    told["TIDEGRAPH_SERVING_AUDIT_FILE"] = str(tmp_path / "audit.jsonl")
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "newer.toml").write_text(TOML, "utf-8")

    def ran(*words: str) -> Result:
        return CliRunner().invoke(main, ["experiment", *words], catch_exceptions=False)

    return ran


def test_an_experiment_is_started_listed_and_stopped_once(run: Any, tmp_path: Path) -> None:
    assert run("list").output == "no experiment was started yet\n"
    assert run("start", "newer.toml").output == "experiment newer runs: today, new\n"
    assert "newer                     runs     since 20" in run("list").output
    told = json.loads(run("list", "--json").output)
    assert told["version"] == 1
    assert told["experiments"][0]["experiment"]["arms"][1]["settings"] == {"diversity": 0.3}
    assert "  stopped  from 20" in run("stop", "newer").output
    again = run("start", "newer.toml")
    assert (again.exit_code, "choose a new name" in again.output) == (2, True)
    written = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [(line["what"], line["outcome"]) for line in written] == [
        ("tidegraph experiment start", "asked"),
        ("tidegraph experiment start", "done"),
        ("tidegraph experiment stop", "asked"),
        ("tidegraph experiment stop", "done"),
        ("tidegraph experiment start", "asked"),
        ("tidegraph experiment start", "failed"),
    ]


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("x.toml", None, "cannot read x.toml: No such file"),
        ("x.toml", "name =", "x.toml is neither TOML nor JSON"),
        ("x.json", "[" * 100_000, "x.json is neither TOML nor JSON"),
        ("x.json", '{"name": "x"}', "x.json: Object missing required field `arms`"),
        ("x.toml", TOML.replace("newer", "New"), "x.toml: Expected `str` matching regex"),
        ("x.toml", TOML.replace('"new"', '"today"'), "x.toml: want arms of different names"),
        ("x.toml", "\xff", "x.toml is neither TOML nor JSON"),
    ],
)
def test_a_file_that_cannot_be_meant_is_the_users_mistake(
    run: Any, name: str, text: str | None, told: str
) -> None:
    if text is not None:
        Path(name).write_bytes(text.encode("latin-1"))
    result = run("start", name)
    assert (result.exit_code, told in result.output) == (2, True), result.output


def test_a_name_that_is_not_there_is_told(run: Any) -> None:
    for words in (("stop", "other"), ("report", "other")):
        result = run(*words)
        assert (result.exit_code, "no experiment 'other'; known are none" in result.output) == (
            2,
            True,
        )


@pytest.mark.slow
def test_a_report_is_made_of_what_the_broker_has(
    run: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kafka: KafkaSettings,
    redis_settings: RedisSettings,
) -> None:
    for name, value in as_environment(Settings(kafka=kafka)).items():
        if name.startswith("TIDEGRAPH_KAFKA_"):
            monkeypatch.setenv(name, value)
    create(kafka)
    run("start", "newer.toml")
    enrolment = Enrolment(RedisStore(redis_settings))
    enrolment.refresh()
    now_ms = time.time_ns() // 1_000_000
    log = KafkaLog(kafka)
    for n in range(40):
        (enrolled,) = enrolment.meet(f"u{n}", at_ms=now_ms + n)
        event = Feedback(1, f"e{n}", f"u{n}", "i", now_ms + n + 1, "explicit_positive", 1.0)
        if enrolled.arm.name == "new":
            log.append(FEEDBACK, [(f"u{n}".encode(), encode(event))], timestamp_ms=now_ms)
    enrolment.flush()
    log.close()
    # The windows are over a minute from now; the command is told that it is later.
    later_ns = (now_ms + 120_000) * 1_000_000
    monkeypatch.setattr("serving.experiments.commands.time.time_ns", lambda: later_ns)
    result = run("report", "newer", "--out", "r.html", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.output)
    arms = {arm["arm"]: arm for arm in told["results"]["arms"]}
    assert arms["today"]["units"] + arms["new"]["units"] == 40
    assert (arms["today"]["mean"]["value"], arms["new"]["mean"]["value"]) == (0.0, 1.0)
    assert "Experiment newer" in (tmp_path / "r.html").read_text("utf-8")
    again = run("report", "newer", "--out", "nowhere/r.html")
    assert (again.exit_code, "cannot write the report to nowhere" in again.output) == (2, True)
