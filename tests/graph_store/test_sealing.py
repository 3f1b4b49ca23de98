"""An encrypted snapshot shows nothing, and is read back with its key or not at all."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph_store import sealing, snapshot
from graph_store.sealing import PIECE, Opening, Sealing, key_name
from graph_store.snapshot import (
    describe,
    encrypt_newest,
    list_snapshots,
    make_newest,
    newest_whole,
    read_snapshot,
    write_snapshot,
)
from stream.errors import BadSnapshot

KEY = bytes(range(32))
OTHER = bytes(32)
SEALED_PIECE = PIECE + 16
HEADER = sealing._HEADER_BYTES


class Named(io.BytesIO):
    name = "the file"


def sealed(data: bytes, *, steps: int = 1 << 30, purpose: str = "p") -> bytes:
    file = io.BytesIO()
    writer = Sealing(file, KEY, purpose)
    for start in range(0, len(data), steps):
        writer.write(data[start : start + steps])
    writer.finish()
    return file.getvalue()


def opened(data: bytes, key: bytes | None = KEY, purpose: str = "p") -> bytes:
    return Opening(Named(data), key, purpose).read()


SIZES = st.sampled_from([0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 2 * PIECE + 7])


@given(size=SIZES, written=st.integers(200_000, 3 << 20), read=st.integers(200_000, 3 << 20))
def test_what_is_opened_is_what_was_sealed_however_it_was_cut(
    size: int, written: int, read: int
) -> None:
    data = (os.urandom(997) * (size // 997 + 1))[:size]
    file = sealed(data, steps=written)
    assert len(file) == HEADER + size + 16 * max(1, -(-size // PIECE))
    reader = Opening(Named(file), KEY, "p")
    found = bytearray()
    target = bytearray(read)
    while count := reader.readinto(memoryview(target)):
        found += target[:count]
    assert found == data
    assert opened(file) == data


def test_the_same_is_never_sealed_the_same_twice() -> None:
    one, other = sealed(b"abc"), sealed(b"abc")
    assert one[HEADER:] != other[HEADER:]
    assert b"abc" not in one
    assert key_name(KEY).encode() not in one
    assert KEY not in one


@given(st.data())
def test_no_byte_can_be_changed(data: st.DataObject) -> None:
    file = bytearray(sealed(b"x" * 300))
    file[data.draw(st.integers(0, len(file) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(BadSnapshot):
        opened(bytes(file))


@given(st.integers(0, HEADER + 300 + 15))
def test_no_file_can_be_cut(length: int) -> None:
    with pytest.raises(BadSnapshot):
        opened(sealed(b"x" * 300)[:length])


def pieces(file: bytes) -> list[bytes]:
    body = file[HEADER:]
    return [body[at : at + SEALED_PIECE] for at in range(0, len(body), SEALED_PIECE)]


@pytest.mark.parametrize(
    "order", [[1, 0, 2], [0, 2], [0, 1], [0], [0, 0, 1, 2], [0, 1, 2, 2], [0, 2, 1], []], ids=str
)
def test_no_piece_can_be_moved_left_out_or_added(order: list[int]) -> None:
    file = sealed(b"a" * PIECE + b"b" * PIECE + b"c" * PIECE)
    parts = pieces(file)
    assert opened(file[:HEADER] + b"".join(parts)) == b"a" * PIECE + b"b" * PIECE + b"c" * PIECE
    with pytest.raises(BadSnapshot, match="changed, moved or cut"):
        opened(file[:HEADER] + b"".join(parts[n] for n in order))


def test_no_piece_of_another_file_of_the_same_key_fits() -> None:
    one, other = sealed(b"a" * 2 * PIECE), sealed(b"b" * 2 * PIECE)
    with pytest.raises(BadSnapshot, match="piece 2 is not as it was written"):
        opened(one[:HEADER] + pieces(one)[0] + pieces(other)[1])
    with pytest.raises(BadSnapshot, match="piece 1 is not as it was written"):
        opened(sealed(b"a"), purpose="q")


def test_the_key_that_is_wanted_is_named() -> None:
    file = sealed(b"x")
    with pytest.raises(BadSnapshot, match=f"with the key {key_name(KEY)}, and no key is set"):
        opened(file, None)
    with pytest.raises(BadSnapshot, match=f"the one that is set is {key_name(OTHER)}"):
        opened(file, OTHER)


def written(root: Path, n: int = 1, key: bytes | None = KEY) -> Path:
    array = np.full(300_000, n)  # some pieces
    return write_snapshot(
        root, {"user": "ann of the sealed", "n": n, "a": array}, fingerprint="f", key=key
    )


def test_an_encrypted_snapshot_is_read_back_and_shows_nothing(tmp_path: Path) -> None:
    folder = written(tmp_path)
    state = read_snapshot(folder, fingerprint="f", key=KEY)
    assert (state["user"], int(state["a"].sum())) == ("ann of the sealed", 300_000)
    state["a"][:] = 2  # can be written to, like any other
    assert describe(folder, key=KEY).state["n"] == 1
    assert describe(folder, key=KEY).n_bytes == sum(f.stat().st_size for f in folder.iterdir())
    for file in folder.iterdir():
        assert b"ann of" not in file.read_bytes()
        assert b"fingerprint" not in file.read_bytes()
    assert int(make_newest(tmp_path, 1, key=KEY).name) == 2
    assert newest_whole(tmp_path, fingerprint="f", key=KEY) is not None


@pytest.mark.parametrize("key", [None, OTHER])
def test_without_its_key_a_snapshot_is_refused_by_all(tmp_path: Path, key: bytes | None) -> None:
    folder = written(tmp_path)
    asks: list[Callable[[], object]] = [
        lambda: read_snapshot(folder, fingerprint="f", key=key),
        lambda: newest_whole(tmp_path, fingerprint="f", key=key),
        lambda: describe(folder, key=key),
        lambda: make_newest(tmp_path, 1, key=key),
    ]
    for ask in asks:
        with pytest.raises(BadSnapshot, match=f"is encrypted.* with the key {key_name(KEY)}"):
            ask()


def test_with_a_key_what_is_not_encrypted_is_refused(tmp_path: Path) -> None:
    folder = written(tmp_path, key=None)
    assert read_snapshot(folder, fingerprint="f")["n"] == 1
    with pytest.raises(BadSnapshot, match="is not encrypted, although a key is set"):
        read_snapshot(folder, fingerprint="f", key=KEY)


@pytest.mark.parametrize("name", [snapshot.ARRAYS, snapshot.MANIFEST])
@pytest.mark.parametrize("how", ["flipped", "cut", "of another", "plain", "lost", "header"])
def test_a_snapshot_that_was_tampered_with_is_passed_over(
    tmp_path: Path, name: str, how: str
) -> None:
    written(tmp_path, 1)
    newest = written(tmp_path, 2)
    path = newest / name
    data = bytearray(path.read_bytes())
    if how == "flipped":
        data[-1] ^= 1
        path.write_bytes(data)
    elif how == "header":
        data[0] ^= 1
        path.write_bytes(data)
    elif how == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif how == "lost":
        path.unlink()
    else:
        key = KEY if how == "of another" else None
        shutil.copy(written(tmp_path / "other", 3, key) / name, path)
    with pytest.raises(BadSnapshot):
        read_snapshot(newest, fingerprint="f", key=KEY)
    state = newest_whole(tmp_path, fingerprint="f", key=KEY)
    assert state is not None
    assert state["n"] == 1


def test_the_day_a_key_is_set_the_newest_is_encrypted_and_the_others_go(tmp_path: Path) -> None:
    with pytest.raises(BadSnapshot, match="there is none"):
        encrypt_newest(tmp_path, KEY)
    written(tmp_path, 1, None)
    written(tmp_path, 2, None)
    encrypt_newest(tmp_path, KEY)
    assert [int(folder.name) for folder in list_snapshots(tmp_path)] == [3]
    state = newest_whole(tmp_path, fingerprint="f", key=KEY)
    assert state is not None
    assert state["n"] == 2
    with pytest.raises(BadSnapshot, match="encrypted already"):
        encrypt_newest(tmp_path, KEY)
