"""How much each key may ask: a token bucket in Redis, of which each process takes a share.

A request costs nothing but a subtraction: a process takes up to a tenth of a second's requests
at once, and asks Redis again when they are used up. Where Redis is away, or none is used, each
process fills a bucket of its own, so that keys may then ask as much of each process.

A request that brings much counts as several. It is let in as one, and what it counts beyond that
is owed: its name may ask again when that is paid, so that no way to ask gets more than the limit.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from serving.redis_nodes import RedisNodes
from stream.errors import BadSettings, TableError
from stream.settings import RedisSettings

SHARE_S: Final = 0.1
"""So much of a second's requests is taken from Redis at once."""

_KEPT_S: Final = 1.0  # a share that was not used by then is lost, so that shares do not pile up
_WITHIN_S = 0.5  # for which a request waits for Redis, before the own bucket answers
_AWAY_S: Final = 2.0  # for which a Redis that did not answer is left alone
_MAX_NAMES: Final = 10_000  # whose shares are kept

_SCRIPT: Final = """
local rate, size, want, owed = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]),
                               tonumber(ARGV[4])
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local was = redis.call('HMGET', KEYS[1], 'left', 'at_s')
local left, at = tonumber(was[1]) or size, tonumber(was[2]) or now
left = math.min(size, left + math.max(0, now - at) * rate) - owed
local given = math.max(0, math.min(want, math.floor(left)))
redis.call('HSET', KEYS[1], 'left', string.format('%.6f', left - given),
           'at_s', string.format('%.6f', now))
redis.call('PEXPIRE', KEYS[1], math.ceil(1000 * (size - left + given) / rate) + 1000)
return {given, given > 0 and 0 or math.ceil(1000000 * (1 - left) / rate)}
"""
"""Pays what is owed and gives up to ``want`` requests, or the microseconds until there is one.

The clock is Redis's.
"""

_log = logging.getLogger(__name__)


class Bucket:
    """Fills with ``rate_per_s`` up to what comes in a second, at least one.

    Parameters
    ----------
    rate_per_s
        Requests.
    now_s
        Of the clock that the other calls use; it begins full.

    Examples
    --------
    >>> bucket = Bucket(2, 0.0)
    >>> [bucket.take(at) for at in (0.0, 0.0, 0.0, 0.5)]
    [0.0, 0.0, 0.5, 0.0]

    """

    __slots__ = ("at_s", "left", "rate_per_s")

    def __init__(self, rate_per_s: float, now_s: float) -> None:
        self.rate_per_s = rate_per_s
        self.left = capacity(rate_per_s)
        self.at_s = now_s

    def take(self, now_s: float) -> float:
        """Take one; return 0, or for how many seconds there is none."""
        gone_s = max(0.0, now_s - self.at_s)
        self.left = min(capacity(self.rate_per_s), self.left + gone_s * self.rate_per_s)
        self.at_s = now_s
        if self.left >= 1:
            self.left -= 1
            return 0.0
        return (1 - self.left) / self.rate_per_s

    def charge(self, n: int) -> None:
        """Take ``n`` that were let in already; what is missing is owed."""
        self.left -= n


def capacity(rate_per_s: float) -> float:
    """Return how many requests may come at once."""
    return max(1.0, rate_per_s)


class _Share:
    """What this process may still answer of one name's requests."""

    __slots__ = ("asked", "empty_until_s", "left", "owed", "own", "until_s")

    def __init__(self, own: Bucket) -> None:
        self.left = 0
        self.owed = 0
        self.until_s = 0.0
        self.empty_until_s = 0.0
        self.asked: asyncio.Task[None] | None = None
        self.own = own

    def pay(self) -> None:
        """Take what is owed from what is left; the rest is asked of Redis before the next one."""
        paid = min(self.left, self.owed)
        self.left -= paid
        self.owed -= paid


class Limits:
    """Counts the requests of each name.

    Parameters
    ----------
    redis
        Where all processes count together; ``None`` counts in this one.
    clock
        Seconds that only go forward.

    """

    def __init__(
        self, redis: RedisSettings | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._shares: dict[tuple[str, float], _Share] = {}
        self._away_until_s = 0.0 if redis else float("inf")
        self._nodes: RedisNodes | None = None
        if redis is not None:
            self._nodes = RedisNodes(redis.url, password=redis.password, ca_file=redis.ca_file)
            self._namespace = redis.namespace
            self._thread = ThreadPoolExecutor(1, "limits")

    async def take(self, name: str, rate_per_s: float) -> float:
        """Count one request; return 0, or for how many seconds there may be none.

        Parameters
        ----------
        name
            Whose requests are counted together; any text.
        rate_per_s
            Their limit.

        """
        share = self._shares.get((name, rate_per_s))
        if share is None:
            share = self._share(name, rate_per_s)
        while True:
            now_s = self._clock()
            if now_s < self._away_until_s:
                return share.own.take(now_s)
            if share.left and now_s < share.until_s:
                share.left -= 1
                return 0.0
            if now_s < share.empty_until_s:
                return share.empty_until_s - now_s
            # Whoever comes first asks Redis; the others wait for the same answer.
            if share.asked is None or share.asked.done():
                share.asked = asyncio.create_task(self._ask(name, rate_per_s, share))
            await asyncio.shield(share.asked)

    def charge(self, name: str, rate_per_s: float, n: int) -> None:
        """Count ``n`` more requests, that were let in already, before the next of this name.

        Parameters
        ----------
        name, rate_per_s
            As in :meth:`take`.
        n
            Any number, also more than come in a second.

        """
        share = self._shares.get((name, rate_per_s)) or self._share(name, rate_per_s)
        if self._clock() < self._away_until_s:
            share.own.charge(n)
            return
        share.owed += n
        share.pay()

    def close(self) -> None:
        """Let go of Redis."""
        if self._nodes is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)
            self._nodes.close()

    def _share(self, name: str, rate_per_s: float) -> _Share:
        if len(self._shares) >= _MAX_NAMES:
            self._shares.pop(next(iter(self._shares)))
        share = _Share(Bucket(rate_per_s, self._clock()))
        self._shares[name, rate_per_s] = share
        return share

    async def _ask(self, name: str, rate_per_s: float, share: _Share) -> None:
        """Take a share from Redis, or find that it is away."""
        loop = asyncio.get_running_loop()
        owed = share.owed
        asking = loop.run_in_executor(self._thread, self._given, name, rate_per_s, owed)
        try:
            given, wait_s = await asyncio.wait_for(asking, _WITHIN_S)
        except (TableError, BadSettings, TimeoutError) as error:
            _log.warning(
                "limits: counting in this process, as Redis does not: %s",
                str(error) or f"no answer within {_WITHIN_S} s",
            )
            self._away_until_s = self._clock() + _AWAY_S
            return
        now_s = self._clock()
        share.left, share.until_s, share.empty_until_s = given, now_s + _KEPT_S, now_s + wait_s
        share.owed -= owed
        share.pay()  # what was charged meanwhile

    def _given(self, name: str, rate_per_s: float, owed: int) -> tuple[int, float]:
        """Pay and ask Redis, in the thread."""
        assert self._nodes is not None
        size = capacity(rate_per_s)
        want = max(1, int(size * SHARE_S))
        # A digest, since a name is any text and a key of Redis must be ours.
        key = f"{self._namespace}:limit:{hashlib.sha256(name.encode()).hexdigest()[:32]}"
        with self._nodes.answering():
            server = self._nodes.of(key)
            answer: object = server.eval(_SCRIPT, 1, key, rate_per_s, size, want, owed)
        assert isinstance(answer, list)
        return int(answer[0]), int(answer[1]) / 1_000_000
