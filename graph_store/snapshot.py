"""Writes the whole state of a process as one folder, and reads it back only if it is whole.

A snapshot is a folder with two files. ``arrays.bin`` holds the bytes of every array, one after
the other; ``manifest.json`` the rest of the state, where each array lies, the SHA-256 of
``arrays.bin``, and the SHA-256 of itself. The folder is written under another name, flushed to
disk, and renamed: it is there as a whole or not at all. With a key, both files are sealed as
:mod:`graph_store.sealing` does it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from graph_store.sealing import Opening, Sealing, is_sealed
from stream.errors import BadOutput, BadSnapshot, TidegraphError

State = dict[str, Any]

VERSION: Final = 1
"""Changes with the layout of the two files. What rooms put into the state is theirs to check."""

ARRAYS: Final = "arrays.bin"
MANIFEST: Final = "manifest.json"

_ARRAY: Final = "$array"
_UNFINISHED: Final = ".unfinished-"
_PIECE: Final = 1 << 24


class Described(NamedTuple):
    """What is known of a snapshot without reading it through."""

    number: int
    written_s: float  # since the epoch
    n_bytes: int
    state: State  # with descriptions in place of arrays


def write_snapshot(
    root: Path, state: State, *, fingerprint: str, keep: int = 2, key: bytes | None = None
) -> Path:
    """Write ``state`` as the newest snapshot under ``root``, and return its folder.

    Parameters
    ----------
    root
        Made if it is not there. Snapshots are numbered; the newest has the greatest number.
    state
        Nested dicts with text keys, lists, arrays, and what JSON knows; tuples become lists.
    fingerprint
        What the state belongs to: the input and the settings. Only who states the same reads it.
    keep
        How many snapshots to leave; older ones and unfinished ones are removed.
    key
        32 bytes with which it is encrypted; ``None`` writes it as it is.

    Raises
    ------
    BadOutput
        If the folder cannot be written. What was there before is left as it was.
    TidegraphError
        If the state holds something else.

    """
    if keep < 1:
        raise TidegraphError(f"snapshots: want to keep at least 1, got {keep}")
    arrays: list[NDArray[Any]] = []
    tree = _pack(state, "state", arrays)
    try:
        root.mkdir(parents=True, exist_ok=True)
        for old in root.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(old)
        before = list_snapshots(root)
        number = int(before[0].name) + 1 if before else 1
        unfinished = root / f"{_UNFINISHED}{number:012d}"
        unfinished.mkdir()
        size, digest = _write_arrays(unfinished / ARRAYS, arrays, key)
        body = {
            "version": VERSION,
            "fingerprint": fingerprint,
            "files": {ARRAYS: {"bytes": size, "sha256": digest}},
            "state": tree,
        }
        _write_manifest(unfinished / MANIFEST, body, key)
        _flush(unfinished)
        folder = unfinished.rename(root / f"{number:012d}")
        _flush(root)
        for old in before[keep - 1 :]:
            shutil.rmtree(old)
    except OSError as error:
        raise BadOutput(
            f"snapshot: cannot write to {root}: {error.strerror or error}; make room there or"
            " choose another folder (the snapshot before this one is untouched)"
        ) from error
    return folder


def read_snapshot(folder: Path, *, fingerprint: str | None, key: bytes | None = None) -> State:
    """Return the state that a snapshot holds.

    Parameters
    ----------
    folder
        As :func:`list_snapshots` gives them.
    fingerprint
        As in :func:`write_snapshot`; ``None`` reads it whatever it belongs to.
    key
        That it was encrypted with; ``None`` if it was not.

    Raises
    ------
    BadSnapshot
        If a file is missing, cut short or changed, or the snapshot is of another version, belongs
        to something else, or was not encrypted with this key. With a key, one that is not
        encrypted is refused: whoever can write to the folder could have put it there.

    """
    body = _read_manifest(folder / MANIFEST, key)
    if fingerprint not in {None, body.get("fingerprint")}:
        raise BadSnapshot(
            f"{folder}: belongs to another log or other settings (fingerprint"
            f" {body.get('fingerprint')}, want {fingerprint}); resume what it was made from,"
            " or start anew in another folder"
        )
    arrays = _read_arrays(folder / ARRAYS, body, key)
    state = _unpack(body["state"], arrays)
    assert isinstance(state, dict)
    return state


def newest_whole(root: Path, *, fingerprint: str, key: bytes | None = None) -> State | None:
    """Return the state of the newest snapshot that is whole; None if there is no snapshot.

    One that is torn, tampered with, or belongs to something else is passed over for the one
    before it.

    Raises
    ------
    BadSnapshot
        If there are snapshots but none can be used; the message says why, for each.

    """
    refused: list[str] = []
    for folder in list_snapshots(root):
        try:
            return read_snapshot(folder, fingerprint=fingerprint, key=key)
        except BadSnapshot as error:
            refused.append(str(error))
    if refused:
        raise BadSnapshot("no snapshot can be used:\n  " + "\n  ".join(refused))
    return None


def list_snapshots(root: Path) -> list[Path]:
    """Return the folders of the finished snapshots, newest first; their names are their numbers."""
    if not root.is_dir():
        return []
    numbered = (folder for folder in root.iterdir() if folder.name.isdecimal())
    return sorted(numbered, key=lambda folder: int(folder.name), reverse=True)


def describe(folder: Path, *, key: bytes | None = None) -> Described:
    """Look at a snapshot without reading its arrays.

    Parameters
    ----------
    folder, key
        As in :func:`read_snapshot`.

    Raises
    ------
    BadSnapshot
        If the manifest is missing, cut short, changed or encrypted otherwise, or the arrays are
        not of their size.

    """
    body = _read_manifest(folder / MANIFEST, key)
    _check_size(folder / ARRAYS, body)
    try:
        status = (folder / MANIFEST).stat()
    except OSError as error:
        raise BadSnapshot(f"{folder}: cannot be read: {error.strerror or error}") from error
    return Described(
        number=int(folder.name),
        written_s=status.st_mtime,
        n_bytes=status.st_size + int(body["files"][ARRAYS]["bytes"]),
        state=body["state"],
    )


def make_newest(root: Path, number: int, *, key: bytes | None = None) -> Path:
    """Copy a snapshot so that it is the newest, and return the folder of the copy.

    Parameters
    ----------
    root, number
        Where, and which.
    key
        As in :func:`read_snapshot`.

    Raises
    ------
    BadSnapshot
        If there is no such snapshot, or it is not whole.
    BadOutput
        If the copy cannot be written.

    """
    there = list_snapshots(root)
    chosen = next((folder for folder in there if int(folder.name) == number), None)
    if chosen is None:
        known = ", ".join(str(int(folder.name)) for folder in there) or "none"
        raise BadSnapshot(f"{root}: want one of the snapshots there ({known}), got {number}")
    read_snapshot(chosen, fingerprint=None, key=key)
    newest = int(there[0].name) + 1
    unfinished = root / f"{_UNFINISHED}{newest:012d}"
    try:
        shutil.copytree(chosen, unfinished, copy_function=shutil.copy)
        for file in unfinished.iterdir():
            _flush(file)
        _flush(unfinished)
        folder = unfinished.rename(root / f"{newest:012d}")
        _flush(root)
    except OSError as error:
        raise BadOutput(
            f"snapshot: cannot write to {root}: {error.strerror or error}; make room there"
        ) from error
    return folder


def encrypt_newest(root: Path, key: bytes) -> Path:
    """Write the newest snapshot, which is not encrypted, as an encrypted one; remove all others.

    Raises
    ------
    BadSnapshot
        If there is none, it is not whole, or it is encrypted already.
    BadOutput
        If it cannot be written.

    """
    there = list_snapshots(root)
    if not there:
        raise BadSnapshot(f"{root}: want at least one snapshot, there is none")
    manifest = there[0] / MANIFEST
    if manifest.is_file():
        with manifest.open("rb") as file:
            if is_sealed(file):
                raise BadSnapshot(f"{there[0]}: the newest snapshot is encrypted already")
    fingerprint = _read_manifest(manifest, None)["fingerprint"]
    state = read_snapshot(there[0], fingerprint=fingerprint)
    return write_snapshot(root, state, fingerprint=fingerprint, keep=1, key=key)


def _pack(value: object, where: str, arrays: list[NDArray[Any]]) -> object:
    """Return ``value`` as JSON, its arrays replaced by their number."""
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            raise TidegraphError(f"{where}: want an array of numbers, got one of Python objects")
        arrays.append(value)
        dtype = value.dtype.descr if value.dtype.names else value.dtype.str
        return {_ARRAY: len(arrays) - 1, "dtype": dtype, "shape": list(value.shape)}
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_pack(one, f"{where}[{n}]", arrays) for n, one in enumerate(value)]
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str) or key == _ARRAY:
                raise TidegraphError(
                    f"{where}: want keys that are text and not {_ARRAY!r}, got {key!r}"
                )
        return {key: _pack(one, f"{where}.{key}", arrays) for key, one in value.items()}
    raise TidegraphError(
        f"{where}: want an array, a dict, a list or what JSON knows, got {type(value).__name__}"
    )


def _unpack(tree: object, arrays: list[NDArray[Any]]) -> object:
    """Return the value that :func:`_pack` was given."""
    if isinstance(tree, list):
        return [_unpack(one, arrays) for one in tree]
    if isinstance(tree, dict):
        if _ARRAY in tree:
            return arrays[tree[_ARRAY]]
        return {key: _unpack(one, arrays) for key, one in tree.items()}
    return tree


def _bytes_of(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Look at an array that lies in one piece as bytes."""
    return array.reshape(-1).view(np.uint8) if array.size else np.empty(0, np.uint8)


def _pieces(array: NDArray[Any]) -> Iterator[NDArray[np.uint8]]:
    """Cut an array's bytes so that what was hashed is still in cache when it is written."""
    flat = _bytes_of(np.ascontiguousarray(array))
    for start in range(0, flat.size, _PIECE):
        yield flat[start : start + _PIECE]


def _write_arrays(path: Path, arrays: list[NDArray[Any]], key: bytes | None) -> tuple[int, str]:
    """Write the arrays one after the other; return the file's size, and the SHA-256 of them."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        sealing = None if key is None else Sealing(file, key, ARRAYS)
        target: BinaryIO | Sealing = sealing or file
        for array in arrays:
            for piece in _pieces(array):
                digest.update(piece.data)
                target.write(piece.data)
        if sealing is not None:
            sealing.finish()
        file.flush()
        os.fsync(file.fileno())
        return file.tell(), digest.hexdigest()


def _described(tree: object) -> Iterator[dict[str, Any]]:
    """Yield the description of each array in the order they were written."""
    if isinstance(tree, list):
        for one in tree:
            yield from _described(one)
    elif isinstance(tree, dict):
        if _ARRAY in tree:
            yield tree
        else:
            for one in tree.values():
                yield from _described(one)


def _read_arrays(path: Path, body: State, key: bytes | None) -> list[NDArray[Any]]:
    """Read all arrays, hashing what was read."""
    want = body["files"][ARRAYS]
    arrays: list[NDArray[Any]] = []
    digest = hashlib.sha256()
    _check_size(path, body)
    try:
        with path.open("rb") as file:
            # The manifest was opened with the same key, or without.
            source: BufferedReader | Opening = file if key is None else Opening(file, key, ARRAYS)
            for described in _described(body["state"]):
                array = np.empty(described["shape"], _dtype(described["dtype"]))
                flat = _bytes_of(array)
                for start in range(0, flat.size, _PIECE):
                    piece = flat[start : start + _PIECE]
                    source.readinto(piece.data)
                    digest.update(piece.data)
                arrays.append(array)
    except OSError as error:
        raise BadSnapshot(f"{path}: cannot be read: {error.strerror or error}") from error
    if digest.hexdigest() != want["sha256"]:
        raise BadSnapshot(f"{path}: its bytes are not those that were written (SHA-256 differs)")
    return arrays


def _check_size(path: Path, body: State) -> None:
    want = body["files"][ARRAYS]["bytes"]
    try:
        size = path.stat().st_size
    except OSError as error:
        raise BadSnapshot(f"{path}: cannot be read: {error.strerror or error}") from error
    if size != want:
        raise BadSnapshot(f"{path}: want {want} bytes, got {size}: it was cut short")


def _dtype(described: str | list[list[str]]) -> np.dtype[Any]:
    if isinstance(described, str):
        return np.dtype(described)
    return np.dtype([(name, kind) for name, kind in described])


def _canonical(body: State) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()


def _write_manifest(path: Path, body: State, key: bytes | None = None) -> None:
    """Write one line with the SHA-256 of the rest of the file, then the rest."""
    text = _canonical(body)
    with path.open("wb") as file:
        sealing = None if key is None else Sealing(file, key, MANIFEST)
        target: BinaryIO | Sealing = sealing or file
        target.write(f'{{"sha256":"{hashlib.sha256(text).hexdigest()}","body":'.encode())
        target.write(text + b"}\n")
        if sealing is not None:
            sealing.finish()
        file.flush()
        os.fsync(file.fileno())


def _read_manifest(path: Path, key: bytes | None) -> State:
    """Return the body of a manifest that is as it was written."""
    try:
        with path.open("rb") as file:
            sealed = is_sealed(file)
            if key is not None and not sealed:
                raise BadSnapshot(
                    f"{path}: is not encrypted, although a key is set: tidegraph snapshot encrypt "
                    "makes an encrypted one of the newest; or unset the key"
                )
            text = Opening(file, key, MANIFEST).read() if sealed else file.read()
        manifest = json.loads(text)
        body, digest = manifest["body"], manifest["sha256"]
    except OSError as error:
        raise BadSnapshot(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise BadSnapshot(f"{path}: is not a whole manifest: {error}") from error
    if not isinstance(body, dict) or hashlib.sha256(_canonical(body)).hexdigest() != digest:
        raise BadSnapshot(f"{path}: its text is not what was written (SHA-256 differs)")
    if body.get("version") != VERSION:
        raise BadSnapshot(
            f"{path}: want version {VERSION}, this is version {body.get('version')};"
            " start anew, or use the release that wrote it"
        )
    return body


def _flush(path: Path) -> None:
    """Make a file, or a folder's entries, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
