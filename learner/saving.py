"""Snapshots in the background: a forked child writes what it was born with, learning goes on."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from graph_store.snapshot import State, write_snapshot
from stream.errors import BadOutput, BadSnapshot
from stream.secret_keys import secret_key
from stream.settings import LearnerSettings

KEEP: Final = 3
"""Snapshots that are kept."""

LOCK: Final = ".lock"
"""File whose lock says who may write to a folder of snapshots."""

ORPHAN_S: Final = 60.0
"""How long the last snapshot of a learner that was killed is waited for."""

_MESSAGE: Final = 4_096  # bytes of an error: less than a pipe holds, so the child never blocks


def snapshot_key(settings: LearnerSettings) -> bytes | None:
    """Return the key with which snapshots are encrypted, or ``None`` if they are not.

    Raises
    ------
    BadSettings
        If it cannot be read or is not of the form.

    """
    return secret_key("learner.snapshot_key", settings.snapshot_key, settings.snapshot_key_file)


@contextmanager
def locked(root: Path, *, orphan_s: float = ORPHAN_S) -> Iterator[None]:
    """Own a folder of snapshots for a while.

    Children that write a snapshot own it too: a learner that starts after another one was killed
    waits until that one's child is done.

    Parameters
    ----------
    root
        Made if it is not there.
    orphan_s
        How long such a child is waited for.

    Raises
    ------
    BadSnapshot
        If another process owns it.
    BadOutput
        If the folder cannot be written to.

    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        file = (root / LOCK).open("a+")
    except OSError as error:
        raise BadOutput(
            f"snapshots: cannot write to {root}: {error.strerror or error}; "
            "set learner.snapshots to a folder that can be written"
        ) from error
    with file:
        until = time.monotonic() + orphan_s
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                file.seek(0)
                owner = file.read().strip()
                if _lives(owner) or time.monotonic() > until:
                    raise BadSnapshot(
                        f"{root}: belongs to another learner, process {owner or 'unknown'}; stop "
                        "that one, or set learner.snapshots to another folder"
                    ) from error
                time.sleep(0.05)
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def _lives(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (ValueError, PermissionError):  # not written yet, or of another user
        return True
    return True


class Done(NamedTuple):
    """How a snapshot in the background ended."""

    error: str | None
    seconds: float  # from the fork to the end


class Saving:
    """Writes snapshots of one process, one at a time.

    Parameters
    ----------
    root
        Their folder.
    fingerprint
        As in :func:`graph_store.snapshot.write_snapshot`.
    state
        Returns what is written. In the background it is called in a forked child, which may
        neither start threads nor touch anything that another thread of this process could have
        locked: no torch operations over several threads, no clients, no logging.
    key
        As in :func:`graph_store.snapshot.write_snapshot`.

    """

    def __init__(
        self,
        root: Path,
        *,
        fingerprint: str,
        state: Callable[[], State],
        key: bytes | None = None,
    ) -> None:
        self._root = root
        self._fingerprint = fingerprint
        self._key = key
        self._state = state
        self._child = 0
        self._pipe = -1
        self._began_s = 0.0

    @property
    def busy(self) -> bool:
        """Whether a snapshot is being written."""
        return bool(self._child)

    def begin(self, state: State | None = None, *, keep: int = KEEP) -> float:
        """Fork a child that writes a snapshot; return for how many seconds that took.

        Parameters
        ----------
        state
            What is written, where a child could not call for it (rows on a GPU).
        keep
            As in :func:`graph_store.snapshot.write_snapshot`.

        """
        assert not self._child
        started = self._began_s = time.perf_counter()
        told, tell = os.pipe()
        with warnings.catch_warnings():
            # Python 3.12 warns of forks beside threads; what the child may do is said above.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            self._write(state, tell, keep)
        os.close(tell)
        self._child, self._pipe = child, told
        return time.perf_counter() - started

    def poll(self) -> Done | None:
        """Return how the snapshot in the background ended, once."""
        if not self._child:
            return None
        child, status = os.waitpid(self._child, os.WNOHANG)
        if not child:
            return None
        said = os.read(self._pipe, _MESSAGE).decode(errors="replace")
        self._forget()
        code = os.waitstatus_to_exitcode(status)
        error = None if code == 0 else said or f"the process that wrote it ended with {code}"
        return Done(error, time.perf_counter() - self._began_s)

    def save(self, *, keep: int = KEEP) -> Path:
        """Write a snapshot now; one in the background is given up.

        Raises
        ------
        BadOutput
            If the folder cannot be written.

        """
        self.give_up()
        return self._save(self._state(), keep)

    def give_up(self) -> None:
        """End the child, if there is one; its unfinished folder is removed by the next write."""
        if self._child:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child, signal.SIGKILL)
            os.waitpid(self._child, 0)
            self._forget()

    def _save(self, state: State, keep: int) -> Path:
        return write_snapshot(
            self._root, state, fingerprint=self._fingerprint, keep=keep, key=self._key
        )

    def _forget(self) -> None:
        os.close(self._pipe)
        self._child, self._pipe = 0, -1

    def _write(self, state: State | None, tell: int, keep: int) -> None:
        """Be the child: write and end, without a word to the threads and files of the parent."""
        code = 1
        try:
            os.nice(10)  # who learns and who serves come first
            given = self._state() if state is None else state
            self._save(given, keep)
            code = 0
        except BaseException as error:  # noqa: BLE001 - whatever it is, the parent must be told
            os.write(tell, f"{type(error).__name__}: {error}".encode()[:_MESSAGE])
        finally:
            os._exit(code)
