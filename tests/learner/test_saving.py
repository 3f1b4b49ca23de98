"""A child writes what it was born with; the folder has one owner, and an orphan is waited for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import learner
from graph_store.snapshot import State, list_snapshots, newest_whole
from learner.saving import Done, Saving, locked
from stream.errors import BadOutput, BadSnapshot


def finished(saving: Saving, deadline_s: float = 30.0) -> Done:
    """Return how the snapshot in the background ended."""
    end = time.monotonic() + deadline_s
    while (done := saving.poll()) is None:
        assert time.monotonic() < end
    return done


def saving(root: Path, state: Callable[[], State]) -> Saving:
    return Saving(root, fingerprint="f", state=state)


def test_a_child_writes_what_was_there_when_it_was_born(tmp_path: Path) -> None:
    array = np.zeros(1_000)
    each = saving(tmp_path, lambda: {"array": array})
    assert each.begin() < 1.0
    array[:] = 1  # the child has its own
    assert finished(each).error is None
    assert each.poll() is None
    assert not each.busy
    state = newest_whole(tmp_path, fingerprint="f")
    assert state is not None
    assert (state["array"] == 0).all()


def test_what_was_fetched_before_is_written_in_its_place(tmp_path: Path) -> None:
    each = saving(tmp_path, lambda: {"n": 1})
    each.begin({"n": 2})
    assert finished(each).error is None
    assert newest_whole(tmp_path, fingerprint="f") == {"n": 2}


def test_what_goes_wrong_in_the_child_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    each = saving(tmp_path / "file", lambda: {"n": 1})
    each.begin()
    error = finished(each).error
    assert error is not None
    assert error.startswith("BadOutput: snapshot: cannot write to")
    each = saving(tmp_path, lambda: {"n": 1 // 0})
    each.begin()
    assert str(finished(each).error).startswith("ZeroDivisionError")


def test_a_child_that_is_killed_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    gate, hold = os.pipe()  # nobody writes, so the child waits in its state for ever

    def state() -> State:
        os.read(gate, 1)
        return {}

    each = saving(tmp_path, state)
    each.begin()
    os.kill(each._child, signal.SIGKILL)
    assert finished(each).error == "the process that wrote it ended with -9"
    assert list_snapshots(tmp_path) == []
    each.begin()
    each.give_up()
    assert not each.busy
    os.close(hold)
    os.close(gate)


def test_a_snapshot_now_ends_the_one_in_the_background(tmp_path: Path) -> None:
    each = saving(tmp_path, lambda: {"array": np.zeros(1 << 22), "n": 1})
    each.begin()
    folder = each.save()
    assert not each.busy
    assert list_snapshots(tmp_path)[0] == folder
    assert not list(tmp_path.glob(".unfinished*"))


def test_three_are_kept(tmp_path: Path) -> None:
    each = saving(tmp_path, dict)
    for _ in range(5):
        each.begin()
        assert finished(each).error is None
    assert [int(folder.name) for folder in list_snapshots(tmp_path)] == [5, 4, 3]


def test_other_threads_do_not_disturb_the_child(tmp_path: Path) -> None:
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            np.arange(1_000).sum()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        each = saving(tmp_path, lambda: {"array": np.arange(100_000)})
        for _ in range(3):
            each.begin()
            assert finished(each).error is None
    finally:
        stop.set()
        for thread in threads:
            thread.join()


OWNER = """
import os, sys
from pathlib import Path
from learner.saving import Saving, locked

def state():
    print("child", os.getpid(), flush=True)
    sys.stdin.readline()
    return {"n": 7}

with locked(Path(sys.argv[1])):
    if sys.argv[2] == "child":
        Saving(Path(sys.argv[1]), fingerprint="f", state=state).begin()
    else:
        print("owner", os.getpid(), flush=True)
    while True:
        import signal
        signal.pause()
"""


def owner(root: Path, what: str) -> subprocess.Popen[str]:
    """Start a process that owns a folder, and wait until it does."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(root), what],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(learner.__file__).parents[1])},
    )
    assert process.stdout is not None
    assert process.stdout.readline()
    return process


def test_a_folder_has_one_owner_and_the_other_is_told_who(tmp_path: Path) -> None:
    process = owner(tmp_path, "alone")
    with pytest.raises(BadSnapshot, match=rf"another learner, process {process.pid};"):
        locked(tmp_path).__enter__()
    process.kill()
    process.communicate()
    with locked(tmp_path):
        pass


def test_the_last_snapshot_of_a_learner_that_was_killed_is_waited_for(tmp_path: Path) -> None:
    process = owner(tmp_path, "child")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with pytest.raises(BadSnapshot, match="belongs to another learner"):
        locked(tmp_path, orphan_s=0.1).__enter__()
    threading.Timer(0.2, lambda: process.communicate("go\n")).start()
    with locked(tmp_path):
        assert newest_whole(tmp_path, fingerprint="f") == {"n": 7}


def test_a_folder_that_cannot_be_made_is_the_users_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BadOutput, match=r"set learner\.snapshots"):
        locked(tmp_path / "file").__enter__()
