"""Runs loads against the API: rates, latencies, the cores they keep busy, and where the knee is."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final
from urllib.request import urlopen

import psutil

from deploy.bench.load import Answers, get
from deploy.bench.system import cpu_s, servers
from deploy.service import Service
from stream.settings import Settings

LIMIT_MS: Final = 500.0
"""The p99 within which the highest rate is looked for."""

LEAST: Final = 100.0
"""Requests per second below which no rate is tried."""

FULL: Final = 0.9
"""Share of a core, or of all, from which it is said to bound a rate."""


def family(service: Service) -> list[psutil.Process]:
    """Return the processes of a service: it, and those that it started."""
    assert service.process is not None
    parent = psutil.Process(service.process.pid)
    return [parent, *parent.children(recursive=True)]


def measured(service: Service, settings: Settings, load: Callable[[], Answers]) -> dict[str, Any]:
    """Run a load and return its figures, with the CPU time that the API took for each request.

    ``busy_cores`` says how many cores were busy meanwhile: with the API, with the load itself, with
    Redis and the broker where they run here, and in all.
    """
    own = {str(each.pid): each for each in family(service)}
    watched = own | {"generator": psutil.Process(), **servers(settings)}
    psutil.cpu_percent()  # from here on
    before, began_s = cpu_s(watched), time.perf_counter()
    answers = load()
    wall_s, after = time.perf_counter() - began_s, cpu_s(watched)
    used_s = {name: after[name] - before[name] for name in watched}
    api_s = sum(used_s.pop(name) for name in own)
    busy = {"server": api_s / wall_s, **{name: s / wall_s for name, s in used_s.items()}}
    busy["all"] = psutil.cpu_percent() / 100 * (os.cpu_count() or 1)
    n = max(1, answers.statuses.total())
    return answers.figures() | {
        "server_cpu_us": round(api_s / n * 1e6, 1),
        "busy_cores": {name: round(each, 2) for name, each in busy.items()},
    }


def search(
    run: Callable[[float], dict[str, Any]], *, first: float
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the figures of the highest rate that was held, and of the lowest that was not.

    A rate is held if there is no error and the p99 is within :data:`LIMIT_MS`. Rates rise by half
    until one is not held; then the gap is halved until it is a tenth.

    Parameters
    ----------
    run
        Measures one rate, in requests per second.
    first
        The rate to begin with.

    Examples
    --------
    >>> def run(rate):
    ...     return {"errors": 0, "p99_ms": 9.0 if rate < 2_800 else 900.0}
    >>> held, beyond = search(run, first=2_000.0)
    >>> held["rate"], beyond["rate"]
    (2750, 3000)

    """
    held: dict[str, Any] = {}
    beyond: dict[str, Any] = {}
    rate = first
    while True:
        found = {"rate": round(rate), **run(rate)}
        if found["errors"] or found["p99_ms"] > LIMIT_MS:
            beyond = found
        else:
            held = found
        low, high = held.get("rate", 0.0), beyond.get("rate", 0.0)
        if high and (high <= 1.1 * low or high < LEAST):
            return held, beyond
        rate = (low + high) / 2 if high else 1.5 * rate


def knee(held: Mapping[str, Any], beyond: Mapping[str, Any], *, workers: int) -> dict[str, Any]:
    """Return the figures of the highest rate that was held, what is beyond, and what bounds it.

    Parameters
    ----------
    held, beyond
        Figures of :func:`measured`, as :func:`search` finds them.
    workers
        Processes of the API.

    """
    return {
        "rate": 0,
        **held,
        "beyond": {
            name: beyond[name]
            for name in ("rate", "requests_per_s", "p99_ms", "max_ms", "errors", "busy_cores")
        },
        "bound_by": bound(beyond["busy_cores"], workers=workers, cores=os.cpu_count() or 1),
    }


def bound(busy: Mapping[str, float], *, workers: int, cores: int) -> str:
    """Say what bounds a rate, from the cores that were busy meanwhile.

    Examples
    --------
    >>> bound({"server": 0.97, "generator": 0.6, "redis": 0.1, "all": 1.7}, workers=1, cores=2)
    'server'
    >>> bound({"server": 0.7, "generator": 0.6, "redis": 0.1, "all": 1.95}, workers=1, cores=2)
    'machine'

    """
    for name, most in (("generator", 1), ("redis", 1), ("server", workers), ("all", cores)):
        if busy.get(name, 0.0) >= FULL * most:
            return "machine" if name == "all" else name
    return "nothing that was measured is full"


def lists_of(users: Sequence[str]) -> list[bytes]:
    """Return requests for the users' lists."""
    return [get(f"/v1/recommendations/{user}?n=10") for user in users]


def listed(url: str) -> list[str]:
    """Return the items of a list."""
    with urlopen(url, timeout=30) as answer:  # noqa: S310 - an address of ours
        return [each["item"] for each in json.load(answer)["items"]]


def memory(service: Service) -> dict[str, float]:
    """Return the memory of a service's processes, in MB (10^6 bytes)."""
    each = [process.memory_info().rss / 1e6 for process in family(service)]
    return {
        "rss_mb": round(sum(each), 1),
        "processes": len(each),
        "largest_mb": round(max(each), 1),
    }
