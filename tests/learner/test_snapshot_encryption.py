"""The learner's snapshots are encrypted when a key is set, in the background and by command."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from graph_store.snapshot import list_snapshots, newest_whole, write_snapshot
from learner.saving import Saving, snapshot_key
from stream.errors import BadSnapshot
from stream.settings import LearnerSettings
from tidegraph import main

KEY = "0f" * 32


def test_a_child_encrypts(tmp_path: Path) -> None:
    key = snapshot_key(LearnerSettings(snapshot_key=KEY))
    saving = Saving(tmp_path, fingerprint="f", state=lambda: {"a": np.arange(9)}, key=key)
    saving.begin()
    deadline_s = time.monotonic() + 60
    while (done := saving.poll()) is None:
        assert time.monotonic() < deadline_s
    assert done.error is None
    saving.save()
    assert len(list_snapshots(tmp_path)) == 2
    state = newest_whole(tmp_path, fingerprint="f", key=key)
    assert state is not None
    assert state["a"].tolist() == list(range(9))
    with pytest.raises(BadSnapshot, match="no key is set"):
        newest_whole(tmp_path, fingerprint="f")


def test_commands_follow_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = CliRunner()
    monkeypatch.setenv("TIDEGRAPH_LEARNER_SNAPSHOTS", str(tmp_path))
    for n in (1, 2):
        write_snapshot(tmp_path, {"n": n}, fingerprint="f")
    refused = runner.invoke(main, ["snapshot", "encrypt", "--yes"])
    assert (refused.exit_code, "openssl rand -hex 32" in refused.output) == (2, True)
    monkeypatch.setenv("TIDEGRAPH_LEARNER_SNAPSHOT_KEY", KEY)
    torn = runner.invoke(main, ["snapshot", "verify"])
    assert (torn.exit_code, "tidegraph snapshot encrypt" in torn.output) == (1, True)
    made = runner.invoke(main, ["snapshot", "encrypt", "--yes"])
    assert (made.exit_code, "number 3, encrypted with" in made.output) == (0, True)
    assert runner.invoke(main, ["snapshot", "verify"]).output == "     3  whole\n"
    assert runner.invoke(main, ["snapshot", "restore", "3", "--yes"]).exit_code == 0
    shown = json.loads(runner.invoke(main, ["snapshot", "list", "--json"]).output)
    assert [each["number"] for each in shown["snapshots"]] == [4, 3]
    assert all(each["torn"] is None for each in shown["snapshots"])
    monkeypatch.delenv("TIDEGRAPH_LEARNER_SNAPSHOT_KEY")
    shown = json.loads(runner.invoke(main, ["snapshot", "list", "--json"]).output)
    assert all("no key is set" in each["torn"] for each in shown["snapshots"])
