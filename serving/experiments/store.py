"""What experiments remember: definitions, who met them, whose items were shown; here, in memory."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Final, Protocol

from serving.experiments.interleaving import Team

MAX_UNITS: Final = 200_000
"""Units of an experiment that are remembered: the first ones, which all arms have alike."""

_MAX_REQUESTS: Final = 10_000


class Store(Protocol):
    """Where experiments are kept. Times are milliseconds since 1970, by the API's clock.

    Methods raise :class:`stream.errors.TableError` when the store does not answer.
    """

    def definitions(self) -> bytes | None:
        """Return what :meth:`replace` put there last."""
        ...

    def replace(self, old: bytes | None, new: bytes) -> bool:
        """Put ``new`` in the place of ``old``; say no if something else is there by now."""
        ...

    def expose(self, name: str, units: Mapping[str, int]) -> None:
        """Note when each unit met an experiment. The first time counts, and :data:`MAX_UNITS`."""
        ...

    def exposed(self, name: str, from_ms: int) -> list[tuple[str, int]]:
        """Return who met an experiment first at ``from_ms`` or later, oldest first."""
        ...

    def show(self, name: str, request_id: str, teams: Mapping[str, Team], *, keep_s: float) -> None:
        """Note whose items a request was answered with."""
        ...

    def shown(self, name: str, request_ids: Iterable[str]) -> dict[str, dict[str, Team]]:
        """Return whose items requests were answered with, of those still known."""
        ...

    def count(self, name: str, amounts: Mapping[str, float]) -> None:
        """Add to the counts of an experiment."""
        ...

    def counts(self, name: str) -> dict[str, float]:
        """Return the counts of an experiment."""
        ...

    def save(self, name: str, state: bytes) -> None:
        """Keep how far the results of an experiment are."""
        ...

    def saved(self, name: str) -> bytes | None:
        """Return what :meth:`save` kept last."""
        ...

    def forget(self, name: str, units: Iterable[str]) -> None:
        """Forget that these units met an experiment."""
        ...

    def finish(self, name: str) -> None:
        """Forget every unit of an experiment; its results stay."""
        ...

    def lease(self, holder: str, for_s: float) -> bool:
        """Say whether ``holder`` is, or now becomes, the one who collects results."""
        ...

    def release(self, holder: str) -> None:
        """Let somebody else collect results."""
        ...

    def close(self) -> None:
        """Let go of what it is connected with; the next use connects anew."""
        ...


class MemoryStore:
    """A :class:`Store` of one process, for any threads.

    Examples
    --------
    >>> store = MemoryStore()
    >>> store.expose("x", {"712": 10})
    >>> store.expose("x", {"712": 20, "713": 20})
    >>> store.exposed("x", 0)
    [('712', 10), ('713', 20)]

    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._definitions: bytes | None = None
        self._exposed: dict[str, dict[str, int]] = defaultdict(dict)
        self._teams: OrderedDict[tuple[str, str], dict[str, Team]] = OrderedDict()
        self._counts: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        self._saved: dict[str, bytes] = {}
        self._holder, self._until_s = "", 0.0

    def definitions(self) -> bytes | None:
        """Return what :meth:`replace` put there last."""
        return self._definitions

    def replace(self, old: bytes | None, new: bytes) -> bool:
        """Put ``new`` in the place of ``old``; say no if something else is there by now."""
        with self._lock:
            if self._definitions != old:
                return False
            self._definitions = new
            return True

    def expose(self, name: str, units: Mapping[str, int]) -> None:
        """Note when each unit met an experiment."""
        with self._lock:
            known = self._exposed[name]
            fresh = (each for each in units.items() if each[0] not in known)
            known.update(list(islice(fresh, MAX_UNITS - len(known))))

    def exposed(self, name: str, from_ms: int) -> list[tuple[str, int]]:
        """Return who met an experiment first at ``from_ms`` or later, oldest first."""
        with self._lock:
            found = [each for each in self._exposed[name].items() if each[1] >= from_ms]
        return sorted(found, key=lambda each: (each[1], each[0]))

    def show(self, name: str, request_id: str, teams: Mapping[str, Team], *, keep_s: float) -> None:
        """Note whose items a request was answered with; the last ten thousand are kept."""
        with self._lock:
            self._teams[name, request_id] = dict(teams)
            if len(self._teams) > _MAX_REQUESTS:
                self._teams.popitem(last=False)

    def shown(self, name: str, request_ids: Iterable[str]) -> dict[str, dict[str, Team]]:
        """Return whose items requests were answered with, of those still known."""
        with self._lock:
            found = {each: self._teams.get((name, each)) for each in request_ids}
        return {each: teams for each, teams in found.items() if teams is not None}

    def count(self, name: str, amounts: Mapping[str, float]) -> None:
        """Add to the counts of an experiment."""
        with self._lock:
            for field, amount in amounts.items():
                self._counts[name][field] += amount

    def counts(self, name: str) -> dict[str, float]:
        """Return the counts of an experiment."""
        with self._lock:
            return dict(self._counts[name])

    def save(self, name: str, state: bytes) -> None:
        """Keep how far the results of an experiment are."""
        self._saved[name] = state

    def saved(self, name: str) -> bytes | None:
        """Return what :meth:`save` kept last."""
        return self._saved.get(name)

    def forget(self, name: str, units: Iterable[str]) -> None:
        """Forget that these units met an experiment."""
        with self._lock:
            for unit in units:
                self._exposed[name].pop(unit, None)

    def finish(self, name: str) -> None:
        """Forget every unit of an experiment; its results stay."""
        with self._lock:
            self._exposed.pop(name, None)

    def lease(self, holder: str, for_s: float) -> bool:
        """Say whether ``holder`` is, or now becomes, the one who collects results."""
        with self._lock:
            now_s = time.monotonic()
            if self._holder != holder and now_s < self._until_s:
                return False
            self._holder, self._until_s = holder, now_s + for_s
            return True

    def release(self, holder: str) -> None:
        """Let somebody else collect results."""
        with self._lock:
            if self._holder == holder:
                self._until_s = 0.0

    def close(self) -> None:
        """Do nothing: there is no connection."""
