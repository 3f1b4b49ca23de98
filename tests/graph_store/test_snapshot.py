"""A snapshot is read back as it was written, or refused with the reason and passed over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import graph_store
from graph_store import snapshot
from graph_store.ids import Ids
from graph_store.snapshot import (
    describe,
    list_snapshots,
    make_newest,
    newest_whole,
    read_snapshot,
    write_snapshot,
)
from graph_store.store import Edges, EdgeStore
from stream.errors import BadOutput, BadSnapshot, TidegraphError

ARRAYS = st.sampled_from(
    [
        np.arange(5),
        np.zeros((2, 0, 3), np.float32),
        np.arange(6, dtype=np.int8).reshape(2, 3).T,
        np.array(3.5),
        np.array([(1, 2.0)], dtype=[("a", "<i4"), ("b", "<f8")]),
        np.array([True, False]),
    ]
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | ARRAYS
KEYS = st.text().filter(lambda key: key != "$array")
STATES = st.dictionaries(
    KEYS,
    st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner)),
    max_size=4,
)


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return list(one) == list(other) and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    if isinstance(one, np.ndarray):
        same = one.dtype == other.dtype and one.shape == other.shape
        return bool(same and one.tolist() == other.tolist())
    return type(one) is type(other) and bool(one == other)


@given(state=STATES)
def test_what_is_read_is_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, state: dict[str, Any]
) -> None:
    folder = write_snapshot(tmp_path_factory.mktemp("root"), state, fingerprint="f")
    assert equal(read_snapshot(folder, fingerprint="f"), state)


def test_arrays_that_were_read_can_be_written_to(tmp_path: Path) -> None:
    folder = write_snapshot(tmp_path, {"a": np.zeros(3)}, fingerprint="f")
    read_snapshot(folder, fingerprint="f")["a"][:] = 1


def test_a_graph_goes_on_from_its_snapshot(tmp_path: Path) -> None:
    users, items, store = Ids(), Ids(), EdgeStore()
    n = np.arange(3)
    store.append(
        Edges(
            users.rows(["a", "b", "a"]),
            items.rows(["x", "y", "z"]),
            n,
            np.zeros(3, np.int8),
            n.astype(np.uint64),
        )
    )
    state = {"users": users.state(), "items": items.state(), "edges": store.state()}
    write_snapshot(tmp_path, state, fingerprint="f")
    read = newest_whole(tmp_path, fingerprint="f")
    assert read is not None
    same_users, same_items, same_store = Ids(), Ids(), EdgeStore()
    same_users.restore(read["users"])
    same_items.restore(read["items"])
    same_store.restore(read["edges"])
    assert same_store.state_hash(same_users, same_items) == store.state_hash(users, items)


def test_the_newest_is_found_and_older_ones_are_removed(tmp_path: Path) -> None:
    assert newest_whole(tmp_path / "nothing", fingerprint="f") is None
    for n in range(5):
        write_snapshot(tmp_path, {"n": n}, fingerprint="f", keep=2)
    assert newest_whole(tmp_path, fingerprint="f") == {"n": 4}
    assert len(list(tmp_path.iterdir())) == 2


def two_snapshots(root: Path) -> Path:
    """Write two, and return the folder of the newest."""
    write_snapshot(root, {"n": 1, "a": np.arange(100)}, fingerprint="f")
    return write_snapshot(root, {"n": 2, "a": np.arange(100) + 1}, fingerprint="f")


def truncate(folder: Path) -> None:
    os.truncate(folder / snapshot.ARRAYS, 799)


def flip_a_bit(folder: Path) -> None:
    data = bytearray((folder / snapshot.ARRAYS).read_bytes())
    data[400] ^= 1
    (folder / snapshot.ARRAYS).write_bytes(data)


def lose_the_arrays(folder: Path) -> None:
    (folder / snapshot.ARRAYS).unlink()


def lose_the_manifest(folder: Path) -> None:
    (folder / snapshot.MANIFEST).unlink()


def tear_the_manifest(folder: Path) -> None:
    os.truncate(folder / snapshot.MANIFEST, 100)


def change_a_number(folder: Path) -> None:
    text = (folder / snapshot.MANIFEST).read_text()
    (folder / snapshot.MANIFEST).write_text(text.replace('"n":2', '"n":3'))


def come_from_another_version(folder: Path) -> None:
    body = json.loads((folder / snapshot.MANIFEST).read_text())["body"]
    snapshot._write_manifest(folder / snapshot.MANIFEST, body | {"version": 99})


def belong_to_another_log(folder: Path) -> None:
    body = json.loads((folder / snapshot.MANIFEST).read_text())["body"]
    snapshot._write_manifest(folder / snapshot.MANIFEST, body | {"fingerprint": "g"})


DAMAGE = [
    (truncate, "want 800 bytes, got 799"),
    (flip_a_bit, "bytes are not those that were written"),
    (lose_the_arrays, "cannot be read"),
    (lose_the_manifest, "cannot be read"),
    (tear_the_manifest, "not a whole manifest"),
    (change_a_number, "text is not what was written"),
    (come_from_another_version, "want version 1, this is version 99"),
    (belong_to_another_log, "another log or other settings"),
]


@pytest.mark.parametrize(
    ("damage", "reason"), DAMAGE, ids=lambda value: getattr(value, "__name__", "")
)
def test_a_damaged_snapshot_is_refused_and_the_one_before_it_used(
    tmp_path: Path, damage: Any, reason: str
) -> None:
    newest = two_snapshots(tmp_path)
    damage(newest)
    with pytest.raises(BadSnapshot, match=reason):
        read_snapshot(newest, fingerprint="f")
    state = newest_whole(tmp_path, fingerprint="f")
    assert state is not None
    assert state["n"] == 1


def test_when_none_is_whole_the_reasons_are_given(tmp_path: Path) -> None:
    write_snapshot(tmp_path, {"n": 1}, fingerprint="g")
    truncate(write_snapshot(tmp_path, {"a": np.arange(100)}, fingerprint="f"))
    with pytest.raises(BadSnapshot, match=r"(?s)got 799.*fingerprint g, want f"):
        newest_whole(tmp_path, fingerprint="f")


SCRIPT = """
import sys, pathlib
import numpy as np
from graph_store.snapshot import write_snapshot
root = pathlib.Path(sys.argv[1])
write_snapshot(root, {"n": 1}, fingerprint="f")
state = {"a": np.zeros(4 << 20, np.uint8), "n": 2}
while True:  # killed from outside, at any point of any write
    print(write_snapshot(root, state, fingerprint="f").name, flush=True)
"""


@pytest.mark.parametrize("writes", [0, 1, 2, 3])
def test_a_writer_killed_at_any_point_leaves_a_whole_snapshot(tmp_path: Path, writes: int) -> None:
    here = str(Path(graph_store.__file__).parents[1])
    writer = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": here},
    )
    assert writer.stdout is not None
    for _ in range(writes):
        writer.stdout.readline()
    while not list(tmp_path.glob(".unfinished-*")) or len(list(tmp_path.iterdir())) < 2:
        assert writer.poll() is None
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    state = newest_whole(tmp_path, fingerprint="f")
    assert state is not None
    assert state["n"] == (1 if writes == 0 and "a" not in state else 2)
    write_snapshot(tmp_path, {"n": 9}, fingerprint="f")
    assert newest_whole(tmp_path, fingerprint="f") == {"n": 9}
    assert not list(tmp_path.glob(".unfinished-*"))


def test_a_write_that_stops_half_way_leaves_what_was_there(tmp_path: Path) -> None:
    two_snapshots(tmp_path)
    unfinished = tmp_path / ".unfinished-000000000003"
    unfinished.mkdir()
    (unfinished / snapshot.ARRAYS).write_bytes(b"half")
    state = newest_whole(tmp_path, fingerprint="f")
    assert state is not None
    assert state["n"] == 2


def test_a_folder_that_cannot_be_written_is_the_users_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BadOutput, match=r"cannot write to .*file"):
        write_snapshot(tmp_path / "file", {}, fingerprint="f")


@pytest.mark.parametrize(
    ("state", "where"),
    [
        ({"a": {"b": object()}}, r"state\.a\.b: want an array.* got object"),
        ({"a": [{1: 2}]}, r"state\.a\[0\]: want keys that are text.* got 1"),
        ({"a": np.array([None])}, r"state\.a: want an array of numbers"),
    ],
)
def test_what_cannot_be_kept_is_refused_with_its_place(
    tmp_path: Path, state: dict[str, Any], where: str
) -> None:
    with pytest.raises(TidegraphError, match=where):
        write_snapshot(tmp_path, state, fingerprint="f")
    assert list(tmp_path.iterdir()) == []


def test_snapshots_are_listed_newest_first_and_described_without_their_arrays(
    tmp_path: Path,
) -> None:
    assert list_snapshots(tmp_path / "nothing") == []
    two_snapshots(tmp_path)
    (tmp_path / ".lock").write_text("1")
    assert [int(folder.name) for folder in list_snapshots(tmp_path)] == [2, 1]
    found = describe(list_snapshots(tmp_path)[0])
    assert (found.number, found.state["n"]) == (2, 2)
    assert found.n_bytes == sum(
        file.stat().st_size for file in list_snapshots(tmp_path)[0].iterdir()
    )
    assert found.state["a"]["shape"] == [100]


@pytest.mark.parametrize(
    "harm", [truncate, lose_the_arrays, lose_the_manifest, tear_the_manifest, change_a_number]
)
def test_what_is_torn_cannot_be_described(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    folder = two_snapshots(tmp_path)
    harm(folder)
    with pytest.raises(BadSnapshot):
        describe(folder)


def test_a_snapshot_can_be_read_whatever_it_belongs_to(tmp_path: Path) -> None:
    folder = two_snapshots(tmp_path)
    assert read_snapshot(folder, fingerprint=None)["n"] == 2
    with pytest.raises(BadSnapshot, match="another log"):
        read_snapshot(folder, fingerprint="g")


def test_an_older_snapshot_becomes_the_newest(tmp_path: Path) -> None:
    two_snapshots(tmp_path)
    assert int(make_newest(tmp_path, 1).name) == 3
    state = newest_whole(tmp_path, fingerprint="f")
    assert state is not None
    assert state["n"] == 1
    assert not list(tmp_path.glob(".unfinished-*"))


def test_only_a_whole_snapshot_that_is_there_becomes_the_newest(tmp_path: Path) -> None:
    folder = two_snapshots(tmp_path)
    with pytest.raises(BadSnapshot, match=r"want one of the snapshots there \(2, 1\), got 7"):
        make_newest(tmp_path, 7)
    flip_a_bit(folder)
    with pytest.raises(BadSnapshot, match="SHA-256 differs"):
        make_newest(tmp_path, 2)
    assert len(list_snapshots(tmp_path)) == 2
