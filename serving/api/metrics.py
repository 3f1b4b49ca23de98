"""What the API tells Prometheus: counted in plain numbers, written down once a second."""

from __future__ import annotations

import asyncio
import os
import time
from bisect import bisect_left
from collections import Counter as Counts
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from serving.api.problems import Problem
from serving.api.reads import BatchAnswer, Ranking
from serving.api.routes import Call, Route
from serving.api.writes import Outcomes
from serving.live import Live
from serving.producing import TOO_LARGE, Entry, Sink
from serving.recommending import Recommendations

SHARED: Final = "PROMETHEUS_MULTIPROC_DIR"
"""Variable that names a folder where the processes of one server count together."""

TELL_S: Final = 1.0
"""Between two times that a process writes down what it counted: each write costs microseconds."""

_BOUNDS_S: Final = (
    0.000_5, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0,
)  # fmt: skip

_PREFIX: Final = "tidegraph_api_"

_Of = Literal["livemin", "livesum", "livemax"]

_GAUGES: Final[dict[str, tuple[str, _Of]]] = {
    "items": ("Items in memory.", "livemin"),
    "users_kept": ("Users in memory.", "livesum"),
    "epoch": ("Model in memory, 0 if none.", "livemin"),
    "step": ("Step of the model in memory.", "livemin"),
    "ready": ("1 if rows are in memory and fresh.", "livemin"),
    "table_up": ("1 if the table answers.", "livemin"),
    "published_age_seconds": ("Since the newest rows in memory were written.", "livemax"),
    "experiments": ("Experiments that run.", "livemin"),
}
"""What they tell, and which of several processes they tell it of: the one that is worst off."""


class Metrics:
    """Counts what one process answers, and tells it together with the other processes'.

    Belongs to the loop that answers. To count costs a fraction of a microsecond; what was counted
    is written down by :meth:`tell`, once a second.

    Parameters
    ----------
    live
        What is served.
    experiments
        Tells how many experiments run.

    Notes
    -----
    Where :data:`SHARED` names a folder, the processes write there, and each tells of all.

    """

    def __init__(self, live: Live, experiments: Callable[[], int] = lambda: 0) -> None:
        self._live = live
        self._experiments = experiments
        self.registry = CollectorRegistry()
        self._seconds = Histogram(
            f"{_PREFIX}seconds",
            "How long answers took.",
            ["method", "route", "status"],
            buckets=_BOUNDS_S,
            registry=self.registry,
        )
        self._append_seconds = Histogram(
            f"{_PREFIX}append_seconds",
            "How long the log took to acknowledge what one request wrote.",
            buckets=_BOUNDS_S,
            registry=self.registry,
        )
        self._lists = self._counter(
            "lists", "Lists, by what they were made of.", "answered_by", "stale"
        )
        self._entries = self._counter(
            "entries", "Entries sent for the log, by what became of them.", "outcome"
        )
        self._users_read = self._counter(
            "users_read", "Users read from the table, as they were not in memory."
        )
        self._gauges = {
            name: Gauge(_PREFIX + name, told, multiprocess_mode=mode, registry=self.registry)
            for name, (told, mode) in _GAUGES.items()
        }
        self._answers: dict[tuple[str, str, int], _Times] = {}
        self._appends = _Times(self._append_seconds)
        self._made: Counts[tuple[str, bool]] = Counts()
        self._sent: Counts[str] = Counts()
        self._read = 0
        for outcome in ("stored", "invalid", "not_stored"):
            self._entries.labels(outcome)  # so that each is there from the start, at 0

    def _counter(self, name: str, told: str, *labels: str) -> Counter:
        return Counter(_PREFIX + name, told, labels, registry=self.registry)

    def observe(self, route: Route | None, status: int, seconds: float) -> None:
        """Count one answer."""
        named = ("", "", status) if route is None else (route.method, route.path, status)
        times = self._answers.get(named)
        if times is None:
            times = self._answers[named] = _Times(self._seconds.labels(*map(str, named)))
        times.add(seconds)

    def counted(self, route: Route) -> Route:
        """Return a route whose lists are counted by what made them, and entries if invalid."""
        if route.answer not in {Recommendations, Ranking, BatchAnswer, Outcomes}:
            return route
        handler = route.handler

        async def handle(call: Call) -> Any:
            try:
                answer = await handler(call)
            except Problem as problem:
                self._count_problem(problem)
                raise
            self._count(answer)
            return answer

        return replace(route, handler=handle)

    def sink(self, sink: Sink) -> Sink:
        """Return a sink whose appends are counted and timed."""
        return _Counted(sink, self._appends, self._sent)

    async def keep_telling(self) -> None:
        """Write down once a second what was counted; does not return."""
        while True:
            self.tell()
            await asyncio.sleep(TELL_S)

    def tell(self) -> None:
        """Write down what was counted and how this process stands with the table."""
        for times in (*self._answers.values(), self._appends):
            times.tell()
        for (step, stale), n in self._made.items():
            self._lists.labels(step, "yes" if stale else "no").inc(n)
        for outcome, n in self._sent.items():
            self._entries.labels(outcome).inc(n)
        self._made.clear()
        self._sent.clear()
        read = self._live.users_read
        self._users_read.inc(read - self._read)
        self._read = read
        state = self._live.state()
        behind_s = max(0.0, time.time() - state.published_ms / 1_000) if state.epoch else 0.0
        for name, value in (
            ("items", state.items),
            ("users_kept", state.users_kept),
            ("epoch", state.epoch or 0),
            ("step", state.step),
            ("ready", state.ready),
            ("table_up", not state.error),
            ("published_age_seconds", behind_s),
            ("experiments", self._experiments()),
        ):
            self._gauges[name].set(float(value))

    def page(self) -> bytes:
        """Return what was told, of all processes, as Prometheus reads it."""
        registry = self.registry
        if folder := os.environ.get(SHARED):
            _forget_ended(Path(folder))
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)

    def _count(self, answer: object) -> None:
        if isinstance(answer, Recommendations):
            self._made[answer.answered_by, answer.stale] += 1
        elif isinstance(answer, Ranking):
            self._count(answer.ranked)
        elif isinstance(answer, BatchAnswer):
            for each in answer.answers:
                self._count(each)
        elif isinstance(answer, Outcomes):
            self._sent["invalid"] += len(answer.entries) - answer.stored

    def _count_problem(self, problem: Problem) -> None:
        if problem.kind == "invalid-entry":
            self._sent["invalid"] += 1
        elif problem.kind == "not-stored":
            self._sent["invalid"] += sum(one["outcome"] == "invalid" for one in problem.errors)


class _Times:
    """Times of one child of a histogram that are not written down yet."""

    __slots__ = ("_child", "_counts", "_sum_s")

    def __init__(self, child: Histogram) -> None:
        self._child = child
        self._counts = [0] * (len(_BOUNDS_S) + 1)  # up to each bound, and beyond
        self._sum_s = 0.0

    def add(self, seconds: float) -> None:
        self._counts[bisect_left(_BOUNDS_S, seconds)] += 1
        self._sum_s += seconds

    def tell(self) -> None:
        child = self._child
        # A histogram takes one time only, at the price of two writes: so past its own door.
        for bucket, n in zip(child._buckets, self._counts, strict=True):
            if n:
                bucket.inc(n)
        if any(self._counts):
            child._sum.inc(self._sum_s)
            self._counts = [0] * len(self._counts)
            self._sum_s = 0.0


class _Counted:
    """A sink that counts what the log took."""

    def __init__(self, sink: Sink, times: _Times, sent: Counts[str]) -> None:
        self._sink = sink
        self._times = times
        self._sent = sent

    async def append(self, topic: str, entries: Sequence[Entry]) -> list[str]:
        started_s = time.perf_counter()
        texts = await self._sink.append(topic, entries)
        self._times.add(time.perf_counter() - started_s)
        refused = [text for text in texts if text]
        self._sent["stored"] += len(texts) - len(refused)
        # What is too large is told as invalid, and counted with those.
        self._sent["not_stored"] += sum(not text.startswith(TOO_LARGE) for text in refused)
        return texts

    async def close(self) -> None:
        await self._sink.close()


def _forget_ended(folder: Path) -> None:
    """Let go of the state of processes that are no more; what they counted stays."""
    for pid in {int(path.stem.rpartition("_")[2]) for path in folder.glob("gauge_live*.db")}:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            with suppress(FileNotFoundError):  # another process was faster
                mark_process_dead(pid)  # type: ignore[no-untyped-call]
