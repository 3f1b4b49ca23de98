"""``tidegraph replay`` from the outside: what it leaves, how it stops, and how it says no."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from replay.datasets import open_dataset
from stream.errors import BadSettings
from tests.house import ROOT
from tidegraph import main

SMALL = ("replay", "--limit", "1500", "--systems", "online,frozen,popularity")

# Short spans of time leave matplotlib without a sensible tick; the figure is drawn all the same.
pytestmark = pytest.mark.filterwarnings("ignore:AutoDateLocator:UserWarning")


def run(*arguments: object) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """Replay a little, undisturbed."""
    out = tmp_path_factory.mktemp("finished")
    return out, run(*SMALL, "--out", out)


def report_of(out: Path) -> dict[str, Any]:
    """Read a report."""
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    return report


def test_the_report_has_the_keys_that_tools_rely_on(finished: tuple[Path, Result]) -> None:
    out, result = finished
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-2:] == [str(out / "report.json"), str(out / "report.html")]
    report = report_of(out)
    assert (report["schema"], report["dataset"], report["seed"]) == (1, "kuairand-pure", 0)
    assert report["rules"] == "kuairand-1"
    events = report["events"]
    assert set(events) >= {"in", "feedback", "no_signal", "duplicate", "late", "dead"}
    assert events["in"] == 1_500 + events["dead"]
    assert sum(report["classes"].values()) == events["feedback"]
    assert set(report["split"]) >= {"t1_ms", "t2_ms", "test_events", "ceiling"}
    assert set(report["systems"]) == {"online", "frozen", "popularity"}
    for system in report["systems"].values():
        assert set(system) >= {
            "hr@10", "ndcg@10", "mrr@10", "hr@20", "ndcg@20", "auc_pos_neg", "events_per_s",
            "cpu_s", "slices",
        }  # fmt: skip
        assert set(system["slices"]["known_items"]) >= {"hr@10", "ndcg@10", "n"}
    assert set(report["degradation"]["frozen"]["ndcg@10"]) >= {"value", "low", "high"}
    assert len(report["state_hash"]) == 32
    assert set(report["freshness_ms"]) == {"p50", "p95", "p99"}
    assert report["peak_rss_mb"] > 0
    assert "torch" in report["versions"]
    assert not (out / "snapshots").exists()


def test_the_embeddings_of_a_replay_can_be_looked_at(finished: tuple[Path, Result]) -> None:
    out, _ = finished
    user = str(next(open_dataset("kuairand-pure", limit=1_500).chunks()).frame["user_id"][0])
    shown = run("embeddings", "user", user, "--table", out, "--json")
    assert shown.exit_code == 0, shown.output
    assert user in shown.output


@pytest.mark.slow
def test_ctrl_c_stops_cleanly_and_resume_finishes(
    finished: tuple[Path, Result], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "tidegraph", *SMALL, "--out", str(tmp_path)]
    with subprocess.Popen(
        [*command, "--speed", "1200x"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        until = time.monotonic() + 120
        while not (tmp_path / "dead.jsonl").exists() and time.monotonic() < until:
            time.sleep(0.02)  # the first dead letter: the replay itself has begun
        process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=120)[0].decode()
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert "--resume --out" in output
    assert (tmp_path / "snapshots").is_dir()
    assert not (tmp_path / "report.json").exists()

    refused = run(*SMALL, "--seed", "1", "--resume", "--out", tmp_path)
    assert refused.exit_code == 2
    assert "other settings" in refused.output

    resumed = run(*SMALL, "--resume", "--out", tmp_path)
    assert resumed.exit_code == 0, resumed.output
    assert "starting from the beginning" not in resumed.output
    here, there = report_of(tmp_path), report_of(finished[0])
    assert here["state_hash"] == there["state_hash"]
    assert here["events"] == there["events"]
    for name, system in there["systems"].items():
        for metric in ("hr@10", "ndcg@10", "mrr@20", "auc_pos_neg", "slices", "intervals"):
            assert here["systems"][name][metric] == system[metric]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--systems", "online,nope"), "--systems: wanted some of online, frozen"),
        (("--systems", ","), "got none"),
        (("--delay", "soon"), 'wanted a span such as 500ms, 90s, 10m, 1h or 1d, got "soon"'),
        (("--speed", "fast"), "fast"),
        (("--path", "no/such/folder"), "no/such/folder"),
        (("--dataset", "ratings"), "wanted --path"),
        (("--rules", "no/such/rules.toml"), "no/such/rules.toml"),
        (("--limit", "50"), "wanted at least 100 accepted events"),
    ],
)
def test_a_mistake_is_one_message_and_leaves_the_folder_as_it_was(
    tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    older = tmp_path / "report.json"
    older.write_text("of an earlier replay")
    result = run("replay", *arguments, "--out", tmp_path)
    assert result.exit_code == 2, result.output
    assert result.output.count("Error: ") == 1
    assert told in " ".join(result.output.split())
    assert "Traceback" not in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    assert older.read_text() == "of an earlier replay"


def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = run(*SMALL, "--out", tmp_path / "file" / "out")
    assert result.exit_code == 2
    assert "wanted a folder to write to: Not a directory; name another one" in result.output


def test_strict_refuses_the_first_bad_line(tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run(*SMALL, "--strict", "--out", out)
    assert result.exit_code == 2
    assert "without --strict the replay goes on" in result.output
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("text", ["", "1", "1 week", "-1h", "nan s"])
def test_a_span_needs_a_number_and_a_unit(text: str) -> None:
    from replay.commands import parse_span

    with pytest.raises(BadSettings, match="wanted a span"):
        parse_span(text)
