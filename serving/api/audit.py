"""The audit log: who did what as an operator, when, and how it ended; lines are only added."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from serving.api.problems import Problem
from serving.api.routes import Answer, Call, Role, Route
from stream.errors import BadOutput

ASKED: Final = "asked"
DONE: Final = "done"
FAILED: Final = "failed"

_MAX_TOLD: Final = 2_000  # bytes of what was asked for


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of the file.

    Parameters
    ----------
    at_ms
        Since 1970.
    action
        The same in the lines of one action: when it was asked for, and how it ended.
    who
        Name of the key or subject of the token.
    what
        Method and path of the route, or the command.
    told
        What was asked for: the parts of the path and the body, or the size of much.
    outcome
        ``asked``, ``done`` or ``failed``.
    why
        The kind of the problem, where it failed.

    """

    at_ms: int
    action: str
    who: str
    what: str
    told: Any = {}
    outcome: str
    why: str = ""


class Audit:
    """Adds lines to a file, each written at once and flushed to disk.

    Several processes may write to one file, and it may be moved away at any time: the next line
    begins a new one.

    Parameters
    ----------
    path
        Of the file; made, for its owner alone, if it is not there.

    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, entry: Entry) -> None:
        """Write one line.

        Raises
        ------
        BadOutput
            If it cannot be written.

        """
        line = msgspec.json.encode(entry) + b"\n"
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                written = os.write(handle, line)
                os.fsync(handle)
            finally:
                os.close(handle)
        except OSError as error:
            raise self._unwritable(error.strerror or str(error)) from error
        if written < len(line):
            raise self._unwritable(os.strerror(errno.ENOSPC))

    def _unwritable(self, why: str) -> BadOutput:
        return BadOutput(
            f"audit: cannot write to {self._path}: {why}; make room there, or set "
            "serving.audit_file to another place"
        )


class Action:
    """One action of an operator, from the question to how it ended.

    Parameters
    ----------
    audit
        Where it is written down.
    who, what, told
        As in :class:`Entry`. Nothing that is secret.

    """

    def __init__(self, audit: Audit, who: str, what: str, told: Mapping[str, Any]) -> None:
        self._audit = audit
        self._who, self._what = who, what
        encoded = msgspec.json.encode(told)
        self._told: Any = told if len(encoded) <= _MAX_TOLD else f"{len(encoded)} bytes"
        self._id = uuid.uuid4().hex[:16]

    def tell(self, outcome: str, why: str = "") -> None:
        """Write down how far it came.

        Raises
        ------
        BadOutput
            If it cannot be written.

        """
        self._audit.add(
            Entry(
                at_ms=time.time_ns() // 1_000_000,
                action=self._id,
                who=self._who,
                what=self._what,
                told=self._told if outcome == ASKED else {},
                outcome=outcome,
                why=why,
            )
        )


@contextmanager
def recorded(audit: Audit, who: str, what: str, told: Mapping[str, Any]) -> Iterator[None]:
    """Write down what is done inside, before and after.

    Raises
    ------
    BadOutput
        If it cannot be written down; then nothing is done.

    """
    action = Action(audit, who, what, told)
    action.tell(ASKED)
    try:
        yield
    except BaseException as error:
        action.tell(FAILED, type(error).__name__)
        raise
    action.tell(DONE)


def audited(route: Route, audit: Audit) -> Route:
    """Return a route whose actions are written down, if they are an operator's.

    What cannot be written down is not done.

    Parameters
    ----------
    route
        Any; one that only reads, or that others than operators may use, stays as it is.
    audit
        Where to.

    """
    if route.role is not Role.OPERATOR or route.method == "GET":
        return route
    handler = route.handler

    async def handle(call: Call) -> Any:
        told: dict[str, Any] = dict(call.path)
        if call.body is not None and not isinstance(call.body, bytes):
            told["body"] = call.body
        action = Action(audit, call.principal.name, f"{route.method} {route.path}", told)
        try:
            await asyncio.to_thread(action.tell, ASKED)
        except BadOutput as error:
            raise Problem(503, "no-audit", f"{error}; nothing was done") from error
        try:
            answer = await handler(call)
        except BaseException as error:
            why = error.kind if isinstance(error, Problem) else type(error).__name__
            await asyncio.to_thread(action.tell, FAILED, why)
            raise
        failed = isinstance(answer, Answer) and answer.status >= 400
        await asyncio.to_thread(action.tell, FAILED if failed else DONE)
        return answer

    return dataclasses.replace(route, handler=handle)
