"""What experiments remember, in Redis: keys and bytes are described in ``docs/experiments.md``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Final

import msgspec

from serving.experiments.interleaving import Team
from serving.experiments.store import MAX_UNITS
from serving.redis_nodes import CHUNK, Command, RedisNodes
from stream.settings import RedisSettings

_REPLACE: Final = """
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1
"""
_LEASE: Final = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
_RELEASE: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 1
"""


class RedisStore:
    """A :class:`serving.experiments.store.Store` in Redis, for any threads and processes.

    Nothing is connected before the first use. Every method raises
    :class:`stream.errors.TableError` when Redis does not answer, and
    :class:`stream.errors.BadSettings` when it does not take the password.

    Parameters
    ----------
    settings
        Where it is, and the prefix of every key.

    """

    def __init__(self, settings: RedisSettings) -> None:
        self._nodes = RedisNodes(settings.url, password=settings.password, ca_file=settings.ca_file)
        self._all = f"{settings.namespace}:experiments"
        self._one = f"{settings.namespace}:experiment:"

    def close(self) -> None:
        """Close the connections."""
        self._nodes.close()

    def definitions(self) -> bytes | None:
        """Return what :meth:`replace` put there last."""
        (found,) = self._run([("GET", self._all)])
        return found  # type: ignore[no-any-return]

    def replace(self, old: bytes | None, new: bytes) -> bool:
        """Put ``new`` in the place of ``old``; say no if something else is there by now."""
        return bool(self._script(_REPLACE, self._all, old or b"", new))

    def expose(self, name: str, units: Mapping[str, int]) -> None:
        """Note when each unit met an experiment.

        The bound is looked at before, so that several processes may pass it by what they send at
        the same moment.
        """
        key = self._key(name, "exposed")
        (known,) = self._run([("ZCARD", key)])
        rest = iter(list(units.items())[: max(MAX_UNITS - known, 0)])
        while part := list(islice(rest, CHUNK)):
            pairs = [word for unit, at_ms in part for word in (at_ms, unit)]
            self._run([("ZADD", key, "NX", *pairs)])

    def exposed(self, name: str, from_ms: int) -> list[tuple[str, int]]:
        """Return who met an experiment first at ``from_ms`` or later, oldest first."""
        key = self._key(name, "exposed")
        (found,) = self._run([("ZRANGE", key, from_ms, "+inf", "BYSCORE", "WITHSCORES")])
        # RESP2 answers a flat list, RESP3 pairs; execute_command gives what the server said.
        pairs = found if not found or isinstance(found[0], list | tuple) else _paired(found)
        return [(unit.decode(), int(float(at_ms))) for unit, at_ms in pairs]

    def show(self, name: str, request_id: str, teams: Mapping[str, Team], *, keep_s: float) -> None:
        """Note whose items a request was answered with."""
        key = self._key(name, f"request:{request_id}")
        self._run([("SET", key, msgspec.msgpack.encode(teams), "PX", int(keep_s * 1_000))])

    def shown(self, name: str, request_ids: Iterable[str]) -> dict[str, dict[str, Team]]:
        """Return whose items requests were answered with, of those still known."""
        asked = list(request_ids)
        found = self._run([("GET", self._key(name, f"request:{each}")) for each in asked])
        return {
            each: msgspec.msgpack.decode(value, type=dict[str, Team])
            for each, value in zip(asked, found, strict=True)
            if value is not None
        }

    def count(self, name: str, amounts: Mapping[str, float]) -> None:
        """Add to the counts of an experiment."""
        key = self._key(name, "counts")
        self._run([("HINCRBYFLOAT", key, field, amount) for field, amount in amounts.items()])

    def counts(self, name: str) -> dict[str, float]:
        """Return the counts of an experiment."""
        (found,) = self._run([("HGETALL", self._key(name, "counts"))])
        pairs = found.items() if isinstance(found, dict) else _paired(found)
        return {field.decode(): float(amount) for field, amount in pairs}

    def save(self, name: str, state: bytes) -> None:
        """Keep how far the results of an experiment are."""
        self._run([("SET", self._key(name, "results"), state)])

    def saved(self, name: str) -> bytes | None:
        """Return what :meth:`save` kept last."""
        (found,) = self._run([("GET", self._key(name, "results"))])
        return found  # type: ignore[no-any-return]

    def forget(self, name: str, units: Iterable[str]) -> None:
        """Forget that these units met an experiment."""
        if gone := list(units):
            self._run([("ZREM", self._key(name, "exposed"), *gone)])

    def finish(self, name: str) -> None:
        """Forget every unit of an experiment; its results stay."""
        self._run([("UNLINK", self._key(name, "exposed"))])

    def lease(self, holder: str, for_s: float) -> bool:
        """Say whether ``holder`` is, or now becomes, the one who collects results."""
        return bool(self._script(_LEASE, f"{self._all}:collector", holder, int(for_s * 1_000)))

    def release(self, holder: str) -> None:
        """Let somebody else collect results."""
        self._script(_RELEASE, f"{self._all}:collector", holder)

    def _key(self, name: str, what: str) -> str:
        """Return a key; the braces keep what belongs to one experiment on one node of a cluster."""
        return f"{self._one}{{{name}}}:{what}"

    def _run(self, commands: Sequence[Command]) -> list[Any]:
        with self._nodes.answering():
            return self._nodes.run(commands)

    def _script(self, script: str, key: str, *arguments: Any) -> Any:
        with self._nodes.answering():
            return self._nodes.of(key).eval(script, 1, key, *arguments)


def _paired(flat: Sequence[Any]) -> list[tuple[Any, Any]]:
    return list(zip(flat[::2], flat[1::2], strict=True))
