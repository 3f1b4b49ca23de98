"""One replay: a log played, typed, learned, ranked, published and saved, here or over a broker."""

from __future__ import annotations

import resource
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from graph_store.graph import View
from graph_store.snapshot import newest_whole, write_snapshot
from learner.base import Learned
from learner.models.sta_hawkes import STAHawkes
from learner.online import MICRO_BATCH
from learner.publish import Publisher
from replay.config import ReplayConfig
from replay.experiment import Experiment, ExperimentConfig, Split
from replay.report import Cost, ReplayResult, SystemResult
from replay.source import MemorySource, Source
from serving.table import FILE_NAME, MemoryTable
from stream.errors import BadData
from stream.events import N_CLASSES, DeadLetter, FeedbackBatch, Kind

MAX_RANKED: Final = 50_000
"""Test events ranked at most: of more a random share is, which the report states."""

_SNAPSHOTS: Final = "snapshots"
_PUBLISH_S: Final = 2.0
_LIBRARIES: Final = ("torch", "numpy", "numba", "polars", "river", "implicit", "redis", "tidegraph")


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What one pass over the log tells before the replay: how much there is, and where it parts."""

    split: Split
    accepted: int
    first_ms: int
    ties: float  # share of events that share their time with the one before


class Stopped(Exception):  # noqa: N818 - a wish of the user, not an error
    """The user asked to stop; what was done so far is in the snapshot."""


def survey(config: ReplayConfig, on_batch: Callable[[int], None]) -> Survey:
    """Pass over the log once to find T1 and T2, the 70 % and 85 % quantiles of accepted events.

    Raises
    ------
    BadData
        If too little is accepted to split.

    """
    times: list[NDArray[np.int64]] = []
    positive: list[NDArray[np.bool_]] = []
    stream = MemorySource(replace(config, speed=float("inf")))
    for batch, dead, _, _ in stream.batches():
        if config.strict and dead:
            raise _strict(dead[0])
        events = batch.kind != Kind.RETRACTION
        times.append(batch.ts_ms[events])
        positive.append(batch.kind[events] <= Kind.IMPLICIT_POSITIVE)
        on_batch(stream.sent)
    ts_ms = np.concatenate(times) if times else np.empty(0, np.int64)
    if ts_ms.shape[0] < 100 or ts_ms.min() == ts_ms.max():
        accounting = ", ".join(f"{name} {n}" for name, n in stream.accounting().items() if n)
        raise BadData(
            f"{config.dataset.name}: wanted at least 100 accepted events at different times to "
            f"split, got {ts_ms.shape[0]} ({accounting}); look at the log with `tidegraph validate`"
        )
    order = np.argsort(ts_ms, kind="stable")
    ts_ms, liked = ts_ms[order], np.concatenate(positive)[order]
    n = ts_ms.shape[0]
    t1_ms, t2_ms = int(ts_ms[int(0.7 * n)]), int(ts_ms[int(0.85 * n)])
    in_test = int(liked[ts_ms > t2_ms].sum())
    return Survey(
        split=Split(
            t1_ms=t1_ms,
            t2_ms=t2_ms,
            end_ms=int(ts_ms[-1]),
            ranked_share=min(1.0, MAX_RANKED / max(in_test, 1)),
        ),
        accepted=n,
        first_ms=int(ts_ms[0]),
        ties=float((np.diff(ts_ms) == 0).sum() / n),
    )


class Replay:
    """One replay of one log, from the first line to the result; it can be stopped and resumed.

    Parameters
    ----------
    config
        What is replayed.
    found
        What the survey of the log found.
    source
        Where the accepted events come from; default a log in this process.

    """

    def __init__(self, config: ReplayConfig, found: Survey, source: Source | None = None) -> None:
        self.config = config
        self.found = found
        self.stream: Source = source or MemorySource(config)
        self.classes: Counter[int] = Counter()
        graph = ExperimentConfig(systems=config.systems, split=found.split).graph
        self.experiment = Experiment(
            ExperimentConfig(
                systems=config.systems,
                split=found.split,
                seed=config.seed,
                delay_ms=config.delay_ms,
            ),
            lambda: STAHawkes(
                replace(config.model, seed=config.seed),
                k=graph.k_user,
                n_half_lives=len(graph.half_lives_ms),
            ),
        )
        self.stop_asked = False
        self.resumed_at: int | None = None
        self._pending = FeedbackBatch.from_feedback([])
        self._table = MemoryTable()
        self._publisher = Publisher(
            self._table,
            self.experiment.graph,
            self.experiment.model,
            now_ms=lambda: time.time_ns() // 1_000_000,
            dim=config.model.dim,
        )
        self._published_at = 0.0
        self._waiting: list[tuple[float, int]] = []  # when events were appended (s), how many
        self._fresh_ms: list[tuple[float, int]] = []  # until they were servable, how many
        self._started = time.perf_counter()
        self._before_s = 0.0
        self._dead = _Lines(config.out / "dead.jsonl")
        self._late = _Lines(config.out / "late.jsonl")
        self.experiment.on_learned = self._touch

    def resume(self) -> bool:
        """Go on from the newest whole snapshot of this very replay; False if there is none.

        Raises
        ------
        BadSnapshot
            If there is one, but of other data, other settings or another version.

        """
        state = newest_whole(self.config.out / _SNAPSHOTS, fingerprint=self.config.fingerprint())
        if state is None:
            return False
        self.stream.restore(state["stream"])
        self.classes = Counter(dict(enumerate(state["classes"])))
        self.experiment.restore(state["experiment"])
        pending = [text.encode() for text in state["pending"]]
        self._pending = FeedbackBatch.from_records(pending)
        self._before_s = state["wall_s"]
        self._dead.cut(state["dead_bytes"])
        self._late.cut(state["late_bytes"])
        self._publisher.touched_all()
        self.resumed_at = self.stream.sent
        return True

    def run(self, on_batch: Callable[[Replay], None] = lambda replay: None) -> ReplayResult:
        """Replay to the end.

        Parameters
        ----------
        on_batch
            Called after each batch of records.

        Raises
        ------
        Stopped
            If ``stop_asked`` was set; a snapshot was written first, where one can be resumed.

        """
        snapshot_at = time.perf_counter() + self.config.snapshot_s
        if self.resumed_at is None:
            self._dead.cut(0)
            self._late.cut(0)
        for batch, dead, late, appended in self.stream.batches():
            if self.config.strict and dead:
                raise _strict(dead[0])
            self._dead.write(dead)
            self._late.write([record.value.decode(errors="replace") for record in late])
            self._waiting += appended
            self.classes.update(batch.kind.tolist())
            self._feed(batch, last=False)
            on_batch(self)
            if self.stop_asked:
                self._snapshot()
                raise Stopped
            if time.perf_counter() >= snapshot_at:
                self._snapshot()
                snapshot_at = time.perf_counter() + self.config.snapshot_s
        self._feed(FeedbackBatch.from_feedback([]), last=True)
        self._publish()
        self._table.save(self.config.out / FILE_NAME)
        return self._result()

    def _feed(self, batch: FeedbackBatch, *, last: bool) -> None:
        """Cut what was accepted into micro-batches; one never reaches over T1 or T2."""
        events = FeedbackBatch.concat([self._pending, batch])
        first, n = 0, len(events)
        while n - first >= MICRO_BATCH or (last and first < n):
            some = events.take(np.arange(first, min(first + MICRO_BATCH, n))).in_order()
            phases = np.array([self.experiment.phase_of(ts) for ts in some.ts_ms.tolist()])
            for phase in np.unique(phases):
                self.experiment.step(some.take(np.flatnonzero(phases == phase)))
            first += MICRO_BATCH
            if time.perf_counter() - self._published_at > _PUBLISH_S:
                self._publish()
        self._pending = events.take(np.arange(min(first, n), n))

    def _touch(self, view: View, learned: Learned) -> None:
        self._publisher.touched(view, learned.users, learned.items)

    def _publish(self) -> None:
        self._publisher.publish()
        self._published_at, now = time.perf_counter(), time.time()
        self._fresh_ms += [((now - since) * 1_000, n) for since, n in self._waiting if n]
        self._waiting.clear()

    def _snapshot(self) -> None:
        if not self.stream.resumable:
            return
        write_snapshot(
            self.config.out / _SNAPSHOTS,
            {
                "stream": self.stream.state(),
                "classes": [self.classes[kind] for kind in range(len(Kind))],
                "experiment": self.experiment.state(),
                "pending": [value.decode() for value in self._pending.to_records()],
                "wall_s": self._before_s + time.perf_counter() - self._started,
                "dead_bytes": self._dead.n_bytes,
                "late_bytes": self._late.n_bytes,
            },
            fingerprint=self.config.fingerprint(),
        )

    def _result(self) -> ReplayResult:
        config, experiment = self.config, self.experiment
        accounting = self.stream.accounting()
        classes: dict[str, int] = {
            kind.label: self.classes[kind] for kind in list(Kind)[:N_CLASSES]
        }
        systems = {}
        held = experiment.model.n_bytes + sum(experiment.graph.n_bytes().values())
        for name, clocked in experiment.results().items():
            learn_s = clocked.learn_s + (experiment.graph_s if name == "online" else 0.0)
            systems[name] = SystemResult(
                outcomes=clocked.outcomes(),
                cost=Cost(
                    learn_s=learn_s,
                    rank_s=clocked.rank_s,
                    learned_events=clocked.learned_events,
                    ranked_events=clocked.ranked_events,
                    cpu_s=clocked.cpu_s,
                    state_bytes=held if name == "online" else None,
                    retrain_s=tuple(clocked.retrain_s),
                ),
            )
        split, found = self.found.split, self.found
        return ReplayResult(
            dataset=config.dataset.name,
            rules=config.rules.version,
            seed=config.seed,
            accounting=accounting,
            classes=classes,
            t1_ms=split.t1_ms,
            t2_ms=split.t2_ms,
            events=experiment.test_events(),
            catalogue=experiment.catalogue(),
            systems=systems,
            state_hash=experiment.graph.state_hash(),
            freshness_ms=_percentiles(self._fresh_ms),
            peak_rss_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            wall_s=self._before_s + time.perf_counter() - self._started,
            versions={"python": python_version()} | {name: version(name) for name in _LIBRARIES},
            settings={
                "micro_batch": MICRO_BATCH,
                "lateness_ms": config.lateness_ms,
                "delay_ms": config.delay_ms,
                "offline_epochs": experiment.epochs,
                "ranked_share": split.ranked_share,
                "model": asdict(config.model),
                "graph": asdict(experiment.config.graph),
            },
            data={
                "files": [path.name for path in config.dataset.files],
                "fingerprint": config.dataset.fingerprint(),
                "accepted": found.accepted,
                "users": experiment.graph.n_users,
                "items": experiment.graph.n_items,
                "first_ms": found.first_ms,
                "last_ms": split.end_ms,
                "ties": found.ties,
                "graph_bytes": experiment.graph.n_bytes(),
            },
            parts=experiment.model.parts(),
            notes=[*config.dataset.notes, *self.stream.notes],
        )


class _Lines:
    """A file of JSON lines that is begun only when there is one, and cut back on a resume."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.n_bytes = 0

    def write(self, things: list[Any]) -> None:
        if not things:
            return
        block = b"".join(msgspec.json.encode(thing) + b"\n" for thing in things)
        with self._path.open("ab") as file:
            file.write(block)
        self.n_bytes += len(block)

    def cut(self, n_bytes: int) -> None:
        self.n_bytes = n_bytes
        if self._path.exists():
            with self._path.open("r+b") as file:
                file.truncate(n_bytes)
            if not n_bytes:
                self._path.unlink()


def _percentiles(fresh_ms: list[tuple[float, int]]) -> dict[str, float]:
    """Return how long events took to become servable: the median, 95 % and 99 % points."""
    if not fresh_ms:
        return {}
    waits, counts = (np.array(column) for column in zip(*sorted(fresh_ms), strict=True))
    shares = np.cumsum(counts) / counts.sum()
    return {
        name: float(waits[np.searchsorted(shares, share)])
        for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
    }


def _strict(letter: DeadLetter) -> BadData:
    return BadData(
        f"{letter.where}: {letter.reason}; without --strict the replay goes on and keeps such"
        " lines in dead.jsonl"
    )
