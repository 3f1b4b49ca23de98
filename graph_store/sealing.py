"""Encrypts a file in pieces (AES-256-GCM), so that what was changed, swapped or cut is refused.

A sealed file is a header (a mark, which key, a random salt) and pieces of 1 MiB, each with its own
tag. Each file has a key of its own, made from the owner's key and the salt, so pieces of another
file do not fit. What is encrypted with a piece says which one it is and whether it is the last, so
that none can be moved, left out or added. However large the file, two pieces are in memory.
"""

from __future__ import annotations

import os
from typing import BinaryIO, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from stream.errors import BadSnapshot

MARK: Final = b"TGSEALED1\n"
PIECE: Final = 1 << 20

_NAME_BYTES: Final = 8
_SALT_BYTES: Final = 32
_TAG_BYTES: Final = 16
_HEADER_BYTES: Final = len(MARK) + _NAME_BYTES + _SALT_BYTES

Buffer = bytes | bytearray | memoryview


def key_name(key: bytes) -> str:
    """Return by what a key is told from others; nothing of the key can be found from it.

    Examples
    --------
    >>> key_name(bytes(32))
    '1679491188927c4c'

    """
    return _derived(key, b"tidegraph key name", b"", _NAME_BYTES).hex()


class Sealing:
    """Writes one sealed file.

    Parameters
    ----------
    file
        Open for writing, at its start; left open.
    key
        32 bytes.
    purpose
        What the file is for; only who states the same opens it.

    """

    def __init__(self, file: BinaryIO, key: bytes, purpose: str) -> None:
        self._file = file
        self._purpose = purpose.encode()
        salt = os.urandom(_SALT_BYTES)
        self._cipher = _cipher(key, salt)
        self._number = 0
        self._waiting = bytearray()
        file.write(MARK + bytes.fromhex(key_name(key)) + salt)

    def write(self, data: Buffer) -> None:
        """Add bytes."""
        view = memoryview(data)
        while view:
            # A full piece is kept until more comes, since the last one is sealed as the last.
            if len(self._waiting) == PIECE:
                self._seal(last=False)
            room = PIECE - len(self._waiting)
            self._waiting += view[:room]
            view = view[room:]

    def finish(self) -> None:
        """Write the last piece; without it the file cannot be opened."""
        self._seal(last=True)

    def _seal(self, *, last: bool) -> None:
        nonce = _nonce(self._number, last=last)
        self._file.write(self._cipher.encrypt(nonce, self._waiting, self._purpose))
        self._number += 1
        self._waiting.clear()


class Opening:
    """Reads one sealed file.

    Parameters
    ----------
    file
        Open for reading, at its start; left open.
    key, purpose
        As in :class:`Sealing`.

    Raises
    ------
    BadSnapshot
        If there is no key, it is another one, or the file is not as it was written; so does every
        call.

    """

    def __init__(self, file: BinaryIO, key: bytes | None, purpose: str) -> None:
        header = file.read(_HEADER_BYTES)
        named = header[len(MARK) : len(MARK) + _NAME_BYTES].hex()
        self._where = file.name
        if len(header) < _HEADER_BYTES or not header.startswith(MARK):
            raise BadSnapshot(f"{self._where}: want a sealed file, its header is cut or changed")
        if key is None:
            raise BadSnapshot(
                f"{self._where}: is encrypted, with the key {named}, and no key is set: set "
                "learner.snapshot_key or learner.snapshot_key_file"
            )
        if key_name(key) != named:
            raise BadSnapshot(
                f"{self._where}: is encrypted with the key {named}, and the one that is set is "
                f"{key_name(key)}: set the one it was written with"
            )
        self._file = file
        self._purpose = purpose.encode()
        self._cipher = _cipher(key, header[-_SALT_BYTES:])
        self._number = 0
        self._sealed = file.read(PIECE + _TAG_BYTES)
        self._ready = memoryview(b"")
        self._ended = False

    def readinto(self, target: memoryview) -> int:
        """Fill ``target`` as far as there is more; return how many bytes came."""
        filled = 0
        while filled < len(target):
            if not self._ready:
                if self._ended:
                    break
                self._open()
                continue
            part = self._ready[: len(target) - filled]
            target[filled : filled + len(part)] = part
            self._ready = self._ready[len(part) :]
            filled += len(part)
        return filled

    def read(self) -> bytes:
        """Return all that is left."""
        parts = []
        while not self._ended:
            parts.append(bytes(self._ready))
            self._open()
        parts.append(bytes(self._ready))
        self._ready = memoryview(b"")
        return b"".join(parts)

    def _open(self) -> None:
        """Open the next piece: it is the last if nothing comes after it."""
        after = self._file.read(PIECE + _TAG_BYTES)
        nonce = _nonce(self._number, last=not after)
        try:
            piece = self._cipher.decrypt(nonce, self._sealed, self._purpose)
        except (InvalidTag, ValueError):
            raise BadSnapshot(
                f"{self._where}: piece {self._number + 1} is not as it was written: it was "
                "changed, moved or cut"
            ) from None
        self._ready = memoryview(piece)
        self._number += 1
        self._sealed = after
        self._ended = not after


def is_sealed(file: BinaryIO) -> bool:
    """Return whether a file is sealed, and go back to its start."""
    found = file.read(len(MARK)) == MARK
    file.seek(0)
    return found


def _cipher(key: bytes, salt: bytes) -> AESGCM:
    return AESGCM(_derived(key, b"tidegraph snapshot", salt, 32))


def _derived(key: bytes, purpose: bytes, salt: bytes, length: int) -> bytes:
    return HKDF(algorithm=SHA256(), length=length, salt=salt or None, info=purpose).derive(key)


def _nonce(number: int, *, last: bool) -> bytes:
    """Return 12 bytes that no other piece of the file has."""
    return number.to_bytes(11, "big") + bytes([last])
