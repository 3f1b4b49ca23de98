"""Clocks around what is measured, and the one form in which every bench answers."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
import psutil


class Meter:
    """Collects wall and CPU seconds of what is measured; a lap is one batch.

    Examples
    --------
    >>> meter = Meter()
    >>> with meter.lap(events=100):
    ...     _ = sum(range(10_000))
    >>> sorted(meter.result())
    ['cpu_us_per_event', 'events_per_s', 'p50_ms', 'p99_ms']

    """

    def __init__(self) -> None:
        self.events = 0
        self.wall_s: list[float] = []
        self.cpu_s = 0.0

    @contextmanager
    def lap(self, *, events: int) -> Iterator[None]:
        """Measure the body, which works on that many events."""
        cpu, wall = time.process_time(), time.perf_counter()
        yield
        self.wall_s.append(time.perf_counter() - wall)
        self.cpu_s += time.process_time() - cpu
        self.events += events

    def result(self) -> dict[str, float]:
        """Return rate, CPU time per event, and how long a lap took."""
        p50, p99 = np.percentile(self.wall_s, [50, 99]) * 1_000
        return {
            "events_per_s": round(self.events / sum(self.wall_s)),
            "cpu_us_per_event": round(self.cpu_s / self.events * 1e6, 3),
            "p50_ms": round(float(p50), 3),
            "p99_ms": round(float(p99), 3),
        }


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Return the median of each key over rounds.

    Examples
    --------
    >>> medians([{"a": 1.0}, {"a": 9.0}, {"a": 2.0}])
    {'a': 2.0}

    """
    return {key: median(one[key] for one in rounds) for key in rounds[0]}


def peak_rss_mb() -> int:
    """Return the most memory this process ever had, in MB (10^6 bytes)."""
    status = Path("/proc/self/status")
    if status.exists():  # what follows counts the process that started this one, on Linux
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) * 1024 // 10**6
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 // 10**6


def machine(*distributions: str) -> dict[str, Any]:
    """Return what the figures depend on: the machine, Python, and versions."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "load_1m": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        **{name: version(name) for name in distributions},
    }


def show(report: dict[str, Any], *, as_json: bool) -> None:
    """Print a bench's answer, as one JSON object or as lines."""
    if as_json:
        click.echo(json.dumps(report))
        return
    for part in ("results", "peers"):
        for name, figures in report[part].items():
            line = "  ".join(f"{key} {value}" for key, value in figures.items())
            click.echo(f"{name:24} {line}")
    for name, ratio in report["ratios"].items():
        click.echo(f"{name:24} {ratio:.1f} times as fast")
