"""``tidegraph learn`` and ``tidegraph snapshot`` as a user meets them."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from graph_store import snapshot
from graph_store.snapshot import list_snapshots, write_snapshot
from learner.saving import LOCK
from tidegraph import main


def run(folder: Path, *arguments: str) -> Result:
    """Run a command whose snapshots are in ``folder``."""
    return CliRunner(env={"TIDEGRAPH_LEARNER_SNAPSHOTS": str(folder)}).invoke(main, arguments)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write two snapshots."""
    for n in (1, 2):
        state = {"positions": [[0, 5 * n]], "counts": {"events": 5 * n}, "a": np.arange(100)}
        write_snapshot(tmp_path, state, fingerprint="f")
    return tmp_path


def tear(folder: Path) -> None:
    """Cut the newest snapshot short."""
    os.truncate(list_snapshots(folder)[0] / snapshot.ARRAYS, 9)


def flip(folder: Path) -> None:
    """Flip a bit of the newest snapshot."""
    file = list_snapshots(folder)[0] / snapshot.ARRAYS
    data = bytearray(file.read_bytes())
    data[9] ^= 1
    file.write_bytes(data)


def test_snapshots_are_listed_with_what_they_hold(folder: Path) -> None:
    result = run(folder, "snapshot", "list")
    assert result.exit_code == 0
    newest, oldest = result.output.splitlines()
    assert newest.split()[0] == "2"
    assert "10 events  positions 0:10" in newest
    assert "5 events  positions 0:5" in oldest
    told = json.loads(run(folder, "snapshot", "list", "--json").output)
    assert [each["events"] for each in told["snapshots"]] == [10, 5]
    assert told["snapshots"][0]["positions"] == {"0": 10}
    assert told["snapshots"][0]["torn"] is None


def test_a_torn_one_is_listed_as_torn(folder: Path) -> None:
    tear(folder)
    lines = run(folder, "snapshot", "list").output.splitlines()
    assert "torn: " in lines[0]
    assert "it was cut short" in lines[0]
    assert "torn" not in lines[1]
    told = json.loads(run(folder, "snapshot", "list", "--json").output)
    assert "cut short" in told["snapshots"][0]["torn"]


def test_no_snapshots_is_said(tmp_path: Path) -> None:
    assert run(tmp_path, "snapshot", "list").output == f"no snapshots in {tmp_path}\n"
    result = run(tmp_path, "snapshot", "verify")
    assert result.exit_code == 2
    assert "want at least one snapshot" in result.output


def test_verify_reads_everything(folder: Path) -> None:
    result = run(folder, "snapshot", "verify")
    assert result.exit_code == 0
    assert result.output.count("whole") == 2
    flip(folder)
    result = run(folder, "snapshot", "verify")
    assert result.exit_code == 1
    assert "2  torn" in result.output
    assert "1  whole" in result.output
    assert "the newest snapshot is torn" in result.output


def test_a_torn_old_one_is_told_and_no_failure(folder: Path) -> None:
    flip(folder)
    write_snapshot(folder, {"n": 3}, fingerprint="f", keep=3)
    result = run(folder, "snapshot", "verify")
    assert result.exit_code == 0
    assert "2  torn" in result.output


def test_restore_makes_an_older_one_the_newest(folder: Path) -> None:
    result = run(folder, "snapshot", "restore", "1", "--yes")
    assert result.exit_code == 0
    assert result.output == "snapshot 1 is now also number 3, the newest\n"
    told = json.loads(run(folder, "snapshot", "list", "--json").output)
    assert [each["events"] for each in told["snapshots"]] == [5, 10, 5]


def test_restore_asks_first_and_knows_what_is_there(folder: Path) -> None:
    assert run(folder, "snapshot", "restore", "1").exit_code == 1
    assert len(list_snapshots(folder)) == 2
    result = run(folder, "snapshot", "restore", "9", "--yes")
    assert result.exit_code == 2
    assert "(2, 1), got 9" in result.output


def test_restore_leaves_a_folder_alone_that_a_learner_owns(folder: Path) -> None:
    with (folder / LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(f"{os.getpid()}\n")
        file.flush()
        result = run(folder, "snapshot", "restore", "1", "--yes")
    assert result.exit_code == 2
    assert f"belongs to another learner, process {os.getpid()}" in result.output


def test_a_start_that_is_no_place_and_no_time_is_the_users_error(tmp_path: Path) -> None:
    result = run(tmp_path, "learn", "--from", "yesterday")
    assert result.exit_code == 2
    assert "--from: want snapshot, earliest, latest, a time like" in result.output


def test_no_broker_is_told_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream.kafka.WAIT_S", 1.0)
    monkeypatch.setenv("TIDEGRAPH_KAFKA_SERVERS", "127.0.0.1:1")
    monkeypatch.setenv("TIDEGRAPH_LEARNER_PORT", "0")
    result = run(tmp_path, "learn")
    assert result.exit_code == 1
    assert "no broker answers at 127.0.0.1:1" in result.output


@pytest.mark.parametrize(
    "command",
    [
        ["learn"],
        ["snapshot"],
        ["snapshot", "list"],
        ["snapshot", "verify"],
        ["snapshot", "restore"],
    ],
)
def test_every_command_explains_itself_with_an_example(tmp_path: Path, command: list[str]) -> None:
    result = run(tmp_path, *command, "--help")
    assert result.exit_code == 0
    assert "Example:\n" in result.output
