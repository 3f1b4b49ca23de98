"""Loads an HTTP server from this process: requests that are due by the clock, or one after another.

In the open model a request is due at its time whatever became of those before it, and its latency
counts from then; so a server that stalls is charged for all who would have waited (no coordinated
omission). In the closed model each connection sends its next request when it has its answer.
"""

from __future__ import annotations

import asyncio
import math
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np
import uvloop

GIVE_UP_S: Final = 10.0
"""How long answers are waited for after the last request was due."""

_TICK_S: Final = 0.001  # between two looks at what is due
_HEAD_END: Final = b"\r\n\r\n"
_LENGTH: Final = b"content-length:"


def get(path: str, headers: str = "") -> bytes:
    """Return a request for a page.

    Examples
    --------
    >>> get("/healthz")
    b'GET /healthz HTTP/1.1\\r\\nHost: 127.0.0.1\\r\\n\\r\\n'

    """
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{headers}\r\n".encode()


def post(path: str, body: bytes, headers: str = "") -> bytes:
    """Return a request that brings JSON."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n{headers}\r\n"
    )
    return head.encode() + body


class Answer(NamedTuple):
    """One answer: times of ``time.perf_counter``, and a status as :class:`Answers` counts them."""

    due_s: float
    came_s: float
    status: int
    body: bytes


Look = Callable[[Answer], None]
"""What is done with each answer, as it comes; it must be quick, as the load waits for it."""


@dataclass(kw_only=True)
class Answers:
    """What came back.

    Parameters
    ----------
    seconds
        From when each request was due until its answer was whole.
    statuses
        How often each status came; 0 is a connection that broke, -1 no answer in time.
    wall_s
        From the first request to the last answer.

    """

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    wall_s: float = 0.0

    def figures(self) -> dict[str, Any]:
        """Return rate, latencies and errors; anything but a status of 2xx is an error."""
        good = sum(n for status, n in self.statuses.items() if 200 <= status < 300)
        found: dict[str, Any] = {
            "requests_per_s": round(good / self.wall_s),
            "requests": self.statuses.total(),
            "errors": self.statuses.total() - good,
            "statuses": {str(status): n for status, n in sorted(self.statuses.items())},
        }
        if self.seconds:
            ms = np.array(self.seconds) * 1_000
            for name, percentile in (("p50", 50), ("p95", 95), ("p99", 99), ("max", 100)):
                found[f"{name}_ms"] = round(float(np.percentile(ms, percentile)), 2)
            found["mean_ms"] = round(float(ms.mean()), 2)
        return found


class _Connection(asyncio.Protocol):
    """One connection, with one request under way at most."""

    def __init__(self, answered: Callable[[_Connection, int], None]) -> None:
        self._answered = answered
        self._transport: Any = None
        self._came = b""
        self._head = 0  # bytes of the answer's head, once it is there
        self._wanted = 0  # and of the whole answer
        self._status = 0
        self.body = b""
        self.due_s = 0.0
        self.busy = False
        self.open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self.open = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        if self.busy:
            self.body = b""
            self._done(0)

    def send(self, request: bytes, due_s: float) -> None:
        """Send a request that was due at ``due_s``."""
        self.busy, self.due_s = True, due_s
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._came = self._came + data if self._came else data
        if not self._wanted:
            end = self._came.find(_HEAD_END)
            if end < 0:
                return
            head = self._came[:end].lower()
            self._status = int(head[9:12])
            at = head.find(_LENGTH)
            length = int(head[at + len(_LENGTH) :].split(b"\r", 1)[0]) if at >= 0 else 0
            self._head = end + len(_HEAD_END)
            self._wanted = self._head + length
        if len(self._came) >= self._wanted:
            self.body = self._came[self._head :]
            self._came, self._wanted = b"", 0
            self._done(self._status)

    def _done(self, status: int) -> None:
        self.busy = False
        self._answered(self, status)

    def close(self) -> None:
        self._transport.close()


def open_load(
    port: int,
    requests: Sequence[bytes],
    *,
    rate: float,
    seconds: float,
    connections: int = 64,
    ramp_s: float = 0.0,
) -> Answers:
    """Send requests at an even rate, taken in turn, and return what came back.

    Parameters
    ----------
    port
        Of a server on 127.0.0.1.
    requests
        As :func:`get` and :func:`post` make them.
    rate
        Requests per second.
    seconds
        For how long, the ramp included.
    connections
        Kept open; a request that finds none free waits for one, which counts.
    ramp_s
        Over which the rate rises evenly from nothing.

    """
    answers, n = Answers(), round(rate * (seconds - ramp_s / 2))
    when = partial(due_s, rate=rate, ramp_s=ramp_s)
    uvloop.run(_open(answers, port, requests, when, lambda sent: sent < n, connections))
    return answers


@contextmanager
def loading(
    port: int, requests: Sequence[bytes], *, rate: float, connections: int, look: Look
) -> Iterator[Answers]:
    """Send requests at an even rate from a thread, for as long as the body runs.

    Parameters
    ----------
    port, requests, rate, connections
        As for :func:`open_load`.
    look
        Called with each answer, in that thread.

    """
    answers, ended = Answers(), threading.Event()
    when = partial(due_s, rate=rate, ramp_s=0.0)
    load = _open(answers, port, requests, when, lambda _: not ended.is_set(), connections, look)
    with ThreadPoolExecutor(1, "load") as thread:
        running = thread.submit(uvloop.run, load)
        try:
            yield answers
        finally:
            ended.set()
        running.result()


def due_s(number: int, *, rate: float, ramp_s: float) -> float:
    """Return when a request is due, counted from 0, after the start.

    Examples
    --------
    >>> [due_s(number, rate=2.0, ramp_s=0.0) for number in range(4)]
    [0.0, 0.5, 1.0, 1.5]
    >>> [due_s(number, rate=2.0, ramp_s=4.0) for number in (0, 1, 4, 5, 6)]
    [0.0, 2.0, 4.0, 4.5, 5.0]

    """
    if number < rate * ramp_s / 2:
        return math.sqrt(2 * ramp_s * number / rate)
    return number / rate + ramp_s / 2


async def _open(
    answers: Answers,
    port: int,
    requests: Sequence[bytes],
    when: Callable[[int], float],
    going_on: Callable[[int], bool],
    connections: int,
    look: Look | None = None,
) -> None:
    waiting = deque[tuple[bytes, float]]()
    free: deque[_Connection] = deque()

    def answered(connection: _Connection, status: int) -> None:
        now_s = time.perf_counter()
        answers.statuses[status] += 1
        answers.seconds.append(now_s - connection.due_s)
        if look is not None:
            look(Answer(connection.due_s, now_s, status, connection.body))
        if not connection.open:
            return
        if waiting:
            connection.send(*waiting.popleft())
        else:
            free.append(connection)

    everything = await _connect(port, connections, answered)
    free.extend(everything)
    began_s, sent = time.perf_counter(), 0
    while going_on(sent):
        now_s = time.perf_counter()
        while going_on(sent) and (at_s := began_s + when(sent)) <= now_s:
            request = requests[sent % len(requests)]
            sent += 1
            if free:
                free.popleft().send(request, at_s)
            else:
                waiting.append((request, at_s))
        # Timers of the loop count whole milliseconds: less would never rest, and take a core.
        await asyncio.sleep(max(_TICK_S, began_s + when(sent) - time.perf_counter()))
    await _settled(answers, sent)
    answers.wall_s = time.perf_counter() - began_s
    _close(answers, everything, sent)


def closed_load(
    port: int,
    requests: Sequence[bytes],
    *,
    connections: int,
    seconds: float,
    think_s: float = 0.0,
    ramp_s: float = 0.0,
) -> Answers:
    """Let each connection send one request after another, and return what came back.

    Parameters
    ----------
    port, requests
        As for :func:`open_load`.
    connections
        How many.
    seconds
        For how long, the ramp included.
    think_s
        Pause of a connection after each answer, on average: drawn evenly from 0 to twice that.
    ramp_s
        Over which the connections begin.

    """
    answers = Answers()
    uvloop.run(_closed(answers, port, requests, connections, seconds, think_s, ramp_s))
    return answers


async def _closed(
    answers: Answers,
    port: int,
    requests: Sequence[bytes],
    connections: int,
    seconds: float,
    think_s: float,
    ramp_s: float,
) -> None:
    loop, draw = asyncio.get_running_loop(), random.Random(0)
    sent, ended = 0, False

    def send(connection: _Connection) -> None:
        nonlocal sent
        now_s = time.perf_counter()
        if connection.open and not ended:
            request = requests[sent % len(requests)]
            sent += 1
            connection.send(request, now_s)

    def answered(connection: _Connection, status: int) -> None:
        answers.statuses[status] += 1
        answers.seconds.append(time.perf_counter() - connection.due_s)
        if think_s:
            loop.call_later(draw.uniform(0, 2 * think_s), send, connection)
        else:
            send(connection)

    everything = await _connect(port, connections, answered)
    began_s = time.perf_counter()
    for number, connection in enumerate(everything):
        loop.call_later(ramp_s * number / connections, send, connection)
    await asyncio.sleep(seconds)
    ended = True  # not by the clock: what is sent from here on would not be waited for
    await _settled(answers, sent)
    answers.wall_s = time.perf_counter() - began_s
    _close(answers, everything, sent)


async def _connect(
    port: int, n: int, answered: Callable[[_Connection, int], None]
) -> list[_Connection]:
    loop = asyncio.get_running_loop()
    made = []
    for _ in range(n):
        _, connection = await loop.create_connection(
            lambda: _Connection(answered), "127.0.0.1", port
        )
        made.append(connection)
    return made


async def _settled(answers: Answers, n: int) -> None:
    until_s = time.perf_counter() + GIVE_UP_S
    # Looked at rather than told: nothing more on the way of an answer.
    while answers.statuses.total() < n and time.perf_counter() < until_s:  # noqa: ASYNC110
        await asyncio.sleep(0.001)


def _close(answers: Answers, connections: Sequence[_Connection], n: int) -> None:
    if (missing := n - answers.statuses.total()) > 0:
        answers.statuses[-1] += missing
    for connection in connections:
        connection.busy = False
        connection.close()
