"""Loads an HTTP server from this process: requests that are due by the clock, or one after another.

In the open model a request is due at its time whatever became of those before it, and its latency
counts from then; so a server that stalls is charged for all who would have waited (no coordinated
omission). In the closed model each connection sends its next request when it has its answer.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import uvloop

GIVE_UP_S: Final = 10.0
"""How long answers are waited for after the last request was due."""

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
        self._wanted = 0  # bytes of the answer, once its head is there
        self._status = 0
        self.due_s = 0.0
        self.busy = False
        self.open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self.open = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        if self.busy:
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
            self._wanted = end + len(_HEAD_END) + length
        if len(self._came) >= self._wanted:
            self._came, self._wanted = b"", 0
            self._done(self._status)

    def _done(self, status: int) -> None:
        self.busy = False
        self._answered(self, status)

    def close(self) -> None:
        self._transport.close()


def open_load(
    port: int, requests: Sequence[bytes], *, rate: float, seconds: float, connections: int = 64
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
        For how long.
    connections
        Kept open; a request that finds none free waits for one, which counts.

    """
    return uvloop.run(_open(port, requests, rate, seconds, connections))


async def _open(
    port: int, requests: Sequence[bytes], rate: float, seconds: float, connections: int
) -> Answers:
    answers, waiting = Answers(), deque[tuple[bytes, float]]()
    free: deque[_Connection] = deque()

    def answered(connection: _Connection, status: int) -> None:
        answers.statuses[status] += 1
        answers.seconds.append(time.perf_counter() - connection.due_s)
        if not connection.open:
            return
        if waiting:
            connection.send(*waiting.popleft())
        else:
            free.append(connection)

    everything = await _connect(port, connections, answered)
    free.extend(everything)
    began_s, n = time.perf_counter(), round(rate * seconds)
    sent = 0
    while sent < n:
        now_s = time.perf_counter()
        while sent < n and (due_s := began_s + sent / rate) <= now_s:
            request = requests[sent % len(requests)]
            sent += 1
            if free:
                free.popleft().send(request, due_s)
            else:
                waiting.append((request, due_s))
        await asyncio.sleep(0.000_5)
    await _settled(answers, n)
    answers.wall_s = time.perf_counter() - began_s
    return _closed(answers, everything, n)


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
    return uvloop.run(_close_loop(port, requests, connections, seconds, think_s, ramp_s))


async def _close_loop(
    port: int,
    requests: Sequence[bytes],
    connections: int,
    seconds: float,
    think_s: float,
    ramp_s: float,
) -> Answers:
    answers, loop, draw = Answers(), asyncio.get_running_loop(), random.Random(0)
    sent = 0

    def send(connection: _Connection) -> None:
        nonlocal sent
        now_s = time.perf_counter()
        if connection.open and now_s < until_s:
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
    until_s = began_s + seconds
    for number, connection in enumerate(everything):
        loop.call_later(ramp_s * number / connections, send, connection)
    await asyncio.sleep(seconds)
    await _settled(answers, sent)
    answers.wall_s = time.perf_counter() - began_s
    return _closed(answers, everything, sent)


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


def _closed(answers: Answers, connections: Sequence[_Connection], n: int) -> Answers:
    if (missing := n - answers.statuses.total()) > 0:
        answers.statuses[-1] += missing
    for connection in connections:
        connection.busy = False
        connection.close()
    return answers
