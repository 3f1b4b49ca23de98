"""What a replay found, as one dict of plain values: its figures, its files, its table."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.table import Table

from learner.base import Part
from replay import bootstrap
from replay.metrics import (
    CUTOFFS,
    RANK_METRICS,
    Catalogue,
    Outcomes,
    TestEvents,
    buckets,
    gain,
    summarise,
)
from replay.page import page
from stream.errors import BadOutput

SCHEMA: Final = 1
"""Version of ``report.json``; keys are added without a new version, never renamed."""

OFFLINE: Final = ("static", "frozen", "frozen_counts", "retrain")
"""Systems that ``online`` is held against, in the order of how much of them is live."""

LEARNERS: Final = ("online", "delayed", *OFFLINE)
"""Systems that run the project's own model; any other is a baseline."""

INTERVAL_METRICS: Final = tuple(f"{name}@{k}" for k in CUTOFFS for name in ("hr", "ndcg"))


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a system cost, over the whole replay.

    Parameters
    ----------
    learn_s, rank_s
        Wall seconds spent in learning, in scoring and ranking.
    learned_events, ranked_events
        How many events that was.
    cpu_s
        CPU seconds of both, all threads.
    state_bytes
        Size of its state at the end.
    retrain_s
        Seconds of each retrain, for systems that have them.

    """

    learn_s: float
    rank_s: float
    learned_events: int
    ranked_events: int
    cpu_s: float
    state_bytes: int | None = None
    retrain_s: Sequence[float] = ()


@dataclass(frozen=True, kw_only=True)
class SystemResult:
    """One system: what it made of the test events, and what that cost."""

    outcomes: Outcomes
    cost: Cost


@dataclass(frozen=True, kw_only=True)
class ReplayResult:
    """All that a replay found, before any figure is worked out.

    Parameters
    ----------
    dataset, rules
        Name of the data set; version of the rule set.
    seed
        Of the models and of the bootstrap.
    accounting
        ``in``, ``feedback``, ``no_signal``, ``duplicate``, ``late``, ``dead``; also ``conflict``
        and ``retraction``, which are counted inside the others.
    classes
        Events of each class, by label.
    t1_ms, t2_ms
        Start of validation, start of the test.
    events, catalogue
        The test events and the items.
    systems
        By name, in the order of the table.
    state_hash
        Of the graph at the end.
    freshness_ms
        Time from an event to its servable embedding: ``p50``, ``p95``, ``p99``.
    peak_rss_mb
        Largest memory of the process, MiB.
    wall_s
        Seconds of the whole replay.
    versions
        Of Python and of the libraries.
    settings
        Everything that was chosen: of the run and of the model, nested as one likes.
    data
        Facts of the log: rows, users, items, first and last time, fingerprint, share of ties ...
    parts
        What each part of the online model is worth.
    notes
        What a reader has to know: "the log was not in time order: sorted" ...

    """

    dataset: str
    rules: str
    seed: int
    accounting: Mapping[str, int]
    classes: Mapping[str, int]
    t1_ms: int
    t2_ms: int
    events: TestEvents
    catalogue: Catalogue
    systems: Mapping[str, SystemResult]
    state_hash: str
    freshness_ms: Mapping[str, float]
    peak_rss_mb: float
    wall_s: float
    versions: Mapping[str, str]
    settings: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    parts: Sequence[Part] = ()
    notes: Sequence[str] = ()


def build_report(result: ReplayResult, *, draws: int = bootstrap.DRAWS) -> dict[str, Any]:
    """Work out every figure of the report.

    Parameters
    ----------
    result
        What the replay found.
    draws
        Draws behind each interval.

    Returns
    -------
    The content of ``report.json``: see ``docs/report.md`` for each key.

    """
    events = result.events
    ranked = events.ranked
    ranks = {name: system.outcomes.rank for name, system in result.systems.items()}
    users = events.user[ranked]
    drawn = _Drawn(ranks, users, draws=draws, seed=result.seed)
    return {
        "schema": SCHEMA,
        "dataset": result.dataset,
        "rules": result.rules,
        "seed": result.seed,
        "events": dict(result.accounting),
        "classes": dict(result.classes),
        "split": {
            "t1_ms": result.t1_ms,
            "t2_ms": result.t2_ms,
            "test_events": int(ranked.sum()),
            "typed_test_events": len(events),
            "test_users": int(np.unique(users).shape[0]),
            "ceiling": _defined(events.ceiling),
        },
        "systems": {
            name: summarise(events, system.outcomes, result.catalogue)
            | {"intervals": drawn.intervals(name)}
            | _cost(system.cost)
            for name, system in result.systems.items()
        },
        "degradation": {
            name: drawn.degradation(name) for name in OFFLINE if {name, "online"} <= ranks.keys()
        },
        "advantage": {
            name: drawn.advantage(name)
            for name in ranks
            if name not in LEARNERS and "online" in ranks
        },
        "curve": _curve(events, ranks, draws=draws, seed=result.seed),
        "parts": [
            {
                "part": part.name,
                "gate": part.gate,
                "gain_nats": _defined(part.gain_nats),
                "open": part.open,
            }
            for part in result.parts
        ],
        "state_hash": result.state_hash,
        "freshness_ms": dict(result.freshness_ms),
        "peak_rss_mb": result.peak_rss_mb,
        "wall_s": result.wall_s,
        "bootstrap": {"draws": draws, "unit": "user", "coverage": bootstrap.COVERAGE},
        "data": dict(result.data),
        "settings": dict(result.settings),
        "versions": dict(result.versions),
        "notes": list(result.notes),
    }


def write_report(report: Mapping[str, Any], out: Path) -> tuple[Path, Path]:
    """Write ``report.json`` and ``report.html`` into a folder, each whole or not at all.

    Parameters
    ----------
    report
        From :func:`build_report`.
    out
        The folder; made where it is missing.

    Returns
    -------
    Paths of the two files.

    Raises
    ------
    BadOutput
        If the folder cannot be written to.

    """
    text = json.dumps(report, indent=2, allow_nan=False) + "\n"
    html = page(report)
    try:
        out.mkdir(parents=True, exist_ok=True)
        return _write_whole(out / "report.json", text), _write_whole(out / "report.html", html)
    except OSError as error:
        raise BadOutput(
            f"wanted to write report.json and report.html into {out}, got: {error.strerror}; "
            "give a folder that you may write to"
        ) from error


def table(report: Mapping[str, Any], *, k: int = 10) -> Table:
    """Return the systems with their intervals, best NDCG@k first, for a terminal of 80 columns."""
    title = f"{report['dataset']}: {report['split']['test_events']:,} ranked test events"
    found = Table(title=title, box=SIMPLE_HEAD, collapse_padding=True, show_edge=False)
    found.add_column("system", no_wrap=True)
    for heading in (f"HR@{k}", "95 %", f"NDCG@{k}", "95 %", "AUC +/-", "events/s"):
        found.add_column(heading, justify="right", no_wrap=True)
    systems = report["systems"]
    for name in sorted(systems, key=lambda name: -(systems[name][f"ndcg@{k}"] or 0.0)):
        system = systems[name]
        found.add_row(
            name,
            *(
                text
                for metric in (f"hr@{k}", f"ndcg@{k}")
                for text in (_digits(system[metric]), _range(system["intervals"][metric]))
            ),
            _digits(system["auc_pos_neg"], 3),
            "-" if system["events_per_s"] is None else f"{system['events_per_s']:,.0f}",
            style="bold" if name == "online" else None,
        )
    return found


class _Drawn:
    """The same draws of users for every system, so that any two are compared pairwise."""

    def __init__(
        self,
        ranks: Mapping[str, NDArray[np.float64]],
        users: NDArray[np.int64],
        *,
        metrics: Sequence[str] = RANK_METRICS,
        draws: int,
        seed: int,
    ) -> None:
        self._metrics = metrics
        columns = {
            (name, metric): gain(rank, metric) for name, rank in ranks.items() for metric in metrics
        }
        self._column = {key: n for n, key in enumerate(columns)}
        values = np.stack([*columns.values(), np.ones(users.shape[0])], axis=1)
        sums = bootstrap.user_sums(values, users)
        self._totals = np.concatenate(
            [sums.sum(axis=0)[None], bootstrap.resample(sums, draws=draws, seed=seed)]
        )

    def intervals(self, name: str) -> dict[str, Any]:
        """Return the mean of each metric of one system."""
        return {
            metric: self._interval(self._of(name, metric), self._totals[:, -1])
            for metric in INTERVAL_METRICS
        }

    def degradation(self, offline: str) -> dict[str, Any]:
        """Return what ``online`` loses against a system, as a share of the system's figure."""
        return {
            metric: self._interval(
                self._of(offline, metric) - self._of("online", metric), self._of(offline, metric)
            )
            for metric in self._metrics
        }

    def advantage(self, baseline: str) -> dict[str, Any]:
        """Return what ``online`` has over a baseline, as a share of the baseline's figure."""
        return {
            metric: self._interval(
                self._of("online", metric) - self._of(baseline, metric),
                self._of(baseline, metric),
            )
            for metric in self._metrics
        }

    def _of(self, name: str, metric: str) -> NDArray[np.float64]:
        return self._totals[:, self._column[name, metric]]

    @staticmethod
    def _interval(part: NDArray[np.float64], whole: NDArray[np.float64]) -> dict[str, float | None]:
        """Return a share with its interval: the first total is of all users, the rest are drawn."""
        with np.errstate(divide="ignore", invalid="ignore"):
            shares = part / whole
        found = bootstrap.interval(float(shares[0]), shares[1:])
        return {key: _defined(figure) for key, figure in found._asdict().items()}


def _curve(
    events: TestEvents, ranks: Mapping[str, NDArray[np.float64]], *, draws: int, seed: int
) -> dict[str, Any]:
    """Return the course of the test: figures and degradation per bucket of time."""
    users = events.user[events.ranked]
    width_ms, starts = buckets(events.ts_ms[events.ranked])
    sides = [name for name in ("online", "frozen", "retrain") if name in ranks]
    rows = []
    for start_ms in np.unique(starts):
        where = starts == start_ms
        drawn = _Drawn(
            {name: ranks[name][where] for name in sides},
            users[where],
            metrics=("ndcg@10",),
            draws=draws,
            seed=seed,
        )
        rows.append(
            {
                "start_ms": int(start_ms),
                "n": int(where.sum()),
                "systems": {
                    name: {
                        metric: float(gain(rank[where], metric).mean())
                        for metric in INTERVAL_METRICS
                    }
                    for name, rank in ranks.items()
                },
                "degradation": {
                    name: drawn.degradation(name) for name in sides[1:] if "online" in ranks
                },
            }
        )
    return {"bucket_ms": width_ms, "buckets": rows}


def _cost(cost: Cost) -> dict[str, Any]:
    """Return the cost of a system; ``events_per_s`` is that of learning and ranking together."""
    both_s = cost.learn_s + cost.rank_s
    return {
        "events_per_s": cost.learned_events / both_s if both_s else None,
        "learn_events_per_s": cost.learned_events / cost.learn_s if cost.learn_s else None,
        "rank_events_per_s": cost.ranked_events / cost.rank_s if cost.rank_s else None,
        "cpu_s": cost.cpu_s,
        "state_bytes": cost.state_bytes,
        "retrain_s": list(cost.retrain_s),
    }


def _write_whole(path: Path, text: str) -> Path:
    """Write beside the old file, then put the new one in its place in one step."""
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(beside).chmod(0o644)  # mkstemp makes it readable to its owner alone
        Path(beside).replace(path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise
    return path


def _defined(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _digits(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _range(found: Mapping[str, float | None]) -> str:
    return "-".join(_digits(found[end], 3).removeprefix("0") for end in ("low", "high"))
