"""The file of API keys: who has one, what they may do, and its hash; never a key itself."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

import msgspec

from stream.errors import BadOutput, BadSettings, UserError

RoleName = Literal["reader", "writer", "operator"]

PREFIX: Final = "tg_"
"""Every key begins so, by which scanners for leaked secrets know one."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}", re.ASCII)


class ApiKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is kept of a key.

    Parameters
    ----------
    name
        Who has it.
    role
        What they may do.
    sha256
        Of the key, as hexadecimal digits. A key has 256 random bits, so nobody finds it by trying.
    made_ms
        When, since 1970.
    requests_per_s
        Limit of this key; ``None`` is that of the settings.

    """

    name: str
    role: RoleName
    sha256: str
    made_ms: int
    requests_per_s: float | None = None


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    version: Literal[1] = 1
    keys: tuple[ApiKey, ...] = ()


def digest(key: str) -> str:
    """Return what stands in the file for a key.

    Examples
    --------
    >>> digest("tg_example")[:12]
    '849bcdf2697a'

    """
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def read_keys(path: Path) -> tuple[ApiKey, ...] | None:
    """Return the keys of a file; ``None`` if there is no file.

    Raises
    ------
    BadSettings
        If it cannot be read.

    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=_File).keys
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BadSettings(f"keys: cannot read {path}: {error.strerror or error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadSettings(
            f"keys: {path} is not a file of keys: {error}; tidegraph keys new makes one"
        ) from error


def new_key(path: Path, name: str, role: RoleName, *, requests_per_s: float | None = None) -> str:
    """Make a key, keep its hash, and return it: nobody can tell it again.

    Parameters
    ----------
    path
        Of the file; made, for its owner alone, if it is not there.
    name, role, requests_per_s
        As in :class:`ApiKey`.

    Raises
    ------
    UserError
        If the name cannot be used or is taken.
    BadOutput
        If the file cannot be written.

    """
    if not _NAME.fullmatch(name):
        raise UserError(
            f"keys: want a name of 1 to 64 letters, digits and . _ @ -, beginning with a letter or "
            f"digit, got {name!r}"
        )
    key = PREFIX + secrets.token_urlsafe(32)
    made = ApiKey(
        name=name,
        role=role,
        sha256=digest(key),
        made_ms=time.time_ns() // 1_000_000,
        requests_per_s=requests_per_s,
    )
    with _owned(path):
        keys = read_keys(path) or ()
        if any(each.name == name for each in keys):
            raise UserError(f"keys: {path} has a key named {name}: choose another, or revoke it")
        _write(path, (*keys, made))
    return key


def revoke_key(path: Path, name: str) -> None:
    """Forget a key; servers refuse it within a second.

    Raises
    ------
    UserError
        If there is none of that name.
    BadOutput
        If the file cannot be written.

    """
    with _owned(path):
        keys = read_keys(path) or ()
        left = tuple(each for each in keys if each.name != name)
        if len(left) == len(keys):
            known = ", ".join(each.name for each in keys) or "none"
            raise UserError(f"keys: {path} has no key named {name!r}; there are: {known}")
        _write(path, left)


@contextmanager
def _owned(path: Path) -> Iterator[None]:
    """Have nobody else change the file meanwhile."""
    lock = path.with_name(path.name + ".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise BadOutput(f"keys: cannot write to {path}: {error.strerror or error}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _write(path: Path, keys: tuple[ApiKey, ...]) -> None:
    """Put a new file in place of the old one: it is there as a whole or not at all."""
    text = msgspec.json.format(msgspec.json.encode(_File(keys=keys)), indent=2) + b"\n"
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        unfinished.unlink(missing_ok=True)
        handle = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError as error:
        raise BadOutput(f"keys: cannot write {path}: {error.strerror or error}") from error
