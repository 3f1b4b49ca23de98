"""Time of a replay: how fast the past is played, and a clock that tests move by hand."""

from __future__ import annotations

import math
import re
import time
from typing import Protocol

from stream.errors import BadSettings

_SPEED = re.compile(r"(\d+(?:\.\d+)?)x")


class Clock(Protocol):
    """What the player needs to know of time."""

    def now_s(self) -> float:
        """Return seconds since any fixed moment; never goes back."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


class SystemClock:
    """The clock of the machine."""

    def now_s(self) -> float:
        """Return seconds of the monotonic clock."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait that long."""
        time.sleep(seconds)


class ManualClock:
    """A clock that moves only when somebody sleeps or moves it.

    Examples
    --------
    >>> clock = ManualClock()
    >>> clock.sleep(2.5)
    >>> clock.now_s()
    2.5

    """

    def __init__(self) -> None:
        self._now_s = 0.0

    def now_s(self) -> float:
        """Return the sum of all that was slept."""
        return self._now_s

    def sleep(self, seconds: float) -> None:
        """Move on by ``seconds``, at once."""
        self._now_s += seconds


def parse_speed(text: str) -> float:
    """Return how many times faster than real time a replay runs; ``max`` is infinite.

    Raises
    ------
    BadSettings
        If it is neither ``max`` nor a positive number with an ``x``.

    Examples
    --------
    >>> parse_speed("60x"), parse_speed("0.5x"), parse_speed("max")
    (60.0, 0.5, inf)

    """
    if text == "max":
        return math.inf
    match = _SPEED.fullmatch(text)
    speed = float(match[1]) if match else 0.0
    if not speed:
        raise BadSettings(f'speed: wanted "max" or a number with an x such as 60x, got "{text}"')
    return speed


class Pace:
    """When an event of the past is due.

    Parameters
    ----------
    speed
        Seconds of the log per second of the clock; infinite for as fast as it goes.
    clock
        What is waited on.

    Examples
    --------
    >>> clock = ManualClock()
    >>> pace = Pace(60.0, clock)
    >>> pace.due_ms(1_000_000)  # the first event is due at once
    1000000
    >>> pace.wait_for(1_120_000)
    >>> clock.now_s()
    2.0

    """

    def __init__(self, speed: float, clock: Clock) -> None:
        self._speed = speed
        self._clock = clock
        self._start_s = 0.0
        self._start_ms: int | None = None

    def due_ms(self, first_ms: int) -> int:
        """Return the event time up to which events are due now.

        The first call starts the pace: an event at ``first_ms`` is due at that moment.
        """
        if self._start_ms is None:
            self._start_ms, self._start_s = first_ms, self._clock.now_s()
        if math.isinf(self._speed):
            return 2**63 - 1
        gone_s = self._clock.now_s() - self._start_s
        return self._start_ms + int(gone_s * self._speed * 1_000)

    def wait_for(self, ts_ms: int) -> None:
        """Sleep until an event at ``ts_ms`` is due."""
        ahead_ms = ts_ms - self.due_ms(ts_ms)
        if ahead_ms > 0:
            self._clock.sleep(ahead_ms / 1_000 / self._speed)
