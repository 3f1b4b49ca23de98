"""Measures the learner: the shipped default at several micro-batches, beside TGN and river."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import click
import numpy as np
import torch
from numpy.typing import NDArray

from graph_store.graph import GraphConfig, TemporalGraph, View
from graph_store.ids import Ids
from graph_store.store import Edges
from learner.models.sta_hawkes import STAHawkes, STAHawkesConfig
from learner.ranking import rank_targets
from replay.bench.measure import Meter, machine, medians, peak_rss_mb, show
from replay.bench.peers import Peer, PygTgn, RiverMf
from replay.datasets import open_dataset
from replay.player import play
from stream.events import Kind, read_feedback
from stream.intake import Intake
from stream.log import MemoryLog, advance
from stream.typing_rules import load_rules

WARM_UP: Final = 60_000
"""Events that are learned, at micro-batch 64, before any clock starts: the gates have settled."""

NEVER: Final = 10**9
"""Positives before the first gate may close, where every part is to stay open."""

_RATIOS: Final = (
    ("mb64", "pyg_tgn"),
    ("mb256", "pyg_tgn_mb256_d64"),
    ("all_parts_mb64", "pyg_tgn"),
    ("mb64", "river_mf"),
)


@dataclass(frozen=True)
class Log:
    """The typed events of a log, in order, with rows for ids."""

    users: Ids
    items: Ids
    events: Edges
    weight: NDArray[np.float32]

    def __len__(self) -> int:
        """Count the events."""
        return len(self.weight)

    def part(self, first: int, last: int) -> Log:
        """Return some of the events."""
        cut, all_of = slice(first, last), self.events
        events = Edges(
            all_of.user[cut], all_of.item[cut], all_of.ts_ms[cut], all_of.kind[cut], all_of.key[cut]
        )
        return Log(self.users, self.items, events, self.weight[cut])


def read_log() -> Log:
    """Return the typed events of the log that ships with the project."""
    dataset, log, positions = open_dataset("kuairand-pure"), MemoryLog(), {0: 0}
    intake, values = Intake(load_rules(dataset.rules, signals=dataset.signals)), []
    for _ in play(dataset.chunks(), log):
        records = log.read("interactions", positions, limit=1 << 30)
        positions = advance(positions, records)
        log.trim("interactions", positions)
        values += [value for _, value in intake.take(records).entries()]
    batch = read_feedback(values)[0].in_order()
    typed = batch.take(np.flatnonzero(batch.kind < Kind.NONE))
    users, items = Ids(), Ids()
    rows = (users.rows(typed.user_id), items.rows(typed.item_id))
    return Log(users, items, Edges(*rows, typed.ts_ms, typed.kind, typed.key), typed.weight)


class Ours:
    """A graph and a model that learn a log in micro-batches.

    Parameters
    ----------
    log
        Whose rows are used.
    config
        Of the model.
    batch
        Events of a step.
    ranked
        Whether each positive's item is ranked among all items before the step.

    """

    def __init__(
        self, log: Log, config: STAHawkesConfig, *, batch: int = 64, ranked: bool = False
    ) -> None:
        graph = GraphConfig()
        self.batch = batch
        self.ranked = 0 if ranked else None
        self.config = config
        self.graph = TemporalGraph(graph, users=log.users, items=log.items)
        self.model = STAHawkes(config, k=graph.k_user, n_half_lives=len(graph.half_lives_ms))

    def become(self, other: Ours) -> None:
        """Take over what another one has learned."""
        self.graph.restore_content(other.graph.content())
        self.model.restore(other.model.state())

    def steps(self, log: Log) -> Iterator[int]:
        """Learn a log, yielding after each step how many events it had."""
        for first in range(0, len(log), self.batch):
            some = log.part(first, first + self.batch)
            view = self.graph.look(some.events, some.weight)
            if self.ranked is not None:
                self.ranked += self._rank(view)
            self.model.learn(view)
            self.graph.append(view)
            yield len(view)

    def _rank(self, view: View) -> int:
        pointers, seen = view.seen()
        positive = np.flatnonzero(view.positive)
        rows = [seen[pointers[n] : pointers[n + 1]] for n in positive.tolist()]
        lengths = [row.shape[0] for row in rows]
        rank_targets(
            self.model.score(view, positive),
            view.items[positive],
            np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
            np.concatenate(rows) if rows else seen[:0],
        )
        return positive.shape[0]


def timed(steps: Iterator[int], *, wait: Callable[[], None]) -> dict[str, float]:
    """Run steps to the end, each one a lap."""
    meter = Meter()
    running = True
    while running:
        lap = Meter()
        with lap.lap(events=0):
            n_events = next(steps, 0)
            wait()
        running = n_events > 0
        if running:
            meter.events += n_events
            meter.cpu_s += lap.cpu_s
            meter.wall_s += lap.wall_s
    return meter.result()


def _warm(log: Log, config: STAHawkesConfig) -> Ours:
    learned = Ours(log, config)
    for _ in learned.steps(log):
        pass
    return learned


def _tell(ours: Ours) -> dict[str, Any]:
    return {
        "micro_batch": ours.batch,
        "dim": ours.config.dim,
        "n_negatives": ours.config.n_negatives,
        "settle": ours.config.settle,
        "open_parts": [part.name for part in ours.model.parts() if part.open],
    }


@click.command()
@click.option(
    "--events",
    default=16_384,
    show_default=True,
    type=click.IntRange(4_096, 100_000),
    help="Of each round, for every case of ours and for river.",
)
@click.option(
    "--tgn-events",
    default=6_400,
    show_default=True,
    type=click.IntRange(512, 100_000),
    help="Of each round, for PyG's TGN: the first ones of the same.",
)
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(min=1), help="Of all.")
@click.option(
    "--device",
    default=None,
    type=click.Choice(["cpu", "cuda"]),
    help="Where models run. Default: cuda where there is one.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for scripts.")
def learner(
    events: int,
    tgn_events: int,
    rounds: int,
    device: str | None,
    as_json: bool,  # noqa: FBT001 - click passes it by name
) -> None:
    """Measure learning on the shipped sample, with one thread.

    The first 60,000 events are learned first; rounds then go on through the log. Each round runs
    every case and peer in turn on the same events.

    \b
    Example:
        tidegraph bench learner --rounds 3 --json
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    log = read_log()
    if WARM_UP + events * rounds > len(log):
        raise click.UsageError(
            f"--events x --rounds: the sample has {len(log) - WARM_UP:,} events after the first "
            f"{WARM_UP:,}, and {events * rounds:,} are asked for"
        )
    past = log.part(0, WARM_UP)
    shipped = _warm(past, STAHawkesConfig(device=device))
    everything = _warm(past, replace(shipped.config, settle=NEVER))
    cases = {f"mb{size}": Ours(log, shipped.config, batch=size) for size in (64, 256, 1_024, 4_096)}
    cases["mb64_ranked"] = Ours(log, shipped.config, ranked=True)
    for case in cases.values():
        case.become(shipped)
    cases["all_parts_mb64"] = everything
    tgn = {
        "pyg_tgn": PygTgn(log.events, batch=200, dim=100, device=device),
        "pyg_tgn_mb256_d64": PygTgn(log.events, batch=256, dim=64, device=device),
    }
    river = RiverMf()
    peers: tuple[Peer, ...] = (*tgn.values(), river)
    for each in peers:
        each.fill(past.events)

    figures: dict[str, list[dict[str, float]]] = {}
    memory: dict[str, int] = {}
    ranked: list[int] = []
    for n in range(rounds):
        first = WARM_UP + n * events
        now = log.part(first, first + events)
        for name, case in cases.items():
            figures.setdefault(name, []).append(timed(case.steps(now), wait=wait))
            memory.setdefault(name, peak_rss_mb())
        for name, peer in tgn.items():
            some = now.part(0, tgn_events).events
            figures.setdefault(name, []).append(timed(peer.steps(some), wait=wait))
            rest = now.part(tgn_events, events).events
            peer.fill(rest)
            memory.setdefault(name, peak_rss_mb())
        figures.setdefault("river_mf", []).append(timed(river.steps(now.events), wait=wait))
        memory.setdefault("river_mf", peak_rss_mb())
        ranked.append(cases["mb64_ranked"].ranked or 0)
    found = {
        name: medians(rounds_of) | {"peak_rss_mb": memory[name]}
        for name, rounds_of in figures.items()
    }
    size = {"events": events, "rounds": rounds}
    tgn_size = {"events": min(tgn_events, events), "rounds": rounds}
    show(
        {
            "bench": "learner",
            "machine": machine("numba", "numpy", "river", "torch", "torch_geometric")
            | ({"gpu": torch.cuda.get_device_name()} if device == "cuda" else {}),
            "settings": {
                "data": "typed events of the shipped sample of KuaiRand-Pure",
                "log_events": len(log),
                "users": len(log.users),
                "items": len(log.items),
                "warm_up_events": WARM_UP,
                "device": device,
                "torch_threads": torch.get_num_threads(),
                "learning": "look, learn, append; the graph is on the CPU",
                "p50_ms, p99_ms": "of one step",
                "peak_rss_mb": "of the whole process after the case's first round",
                "model": asdict(shipped.config),
            },
            "results": {
                name: found[name]
                | size
                | _tell(case)
                | ({"ranked": ranked[-1]} if case.ranked is not None else {})
                for name, case in cases.items()
            },
            "peers": {
                "pyg_tgn": found["pyg_tgn"] | tgn_size | {"batch": 200, "dim": 100},
                "pyg_tgn_mb256_d64": found["pyg_tgn_mb256_d64"]
                | tgn_size
                | {"batch": 256, "dim": 64},
                "river_mf": found["river_mf"] | size | {"batch": 1, "model": "BiasedMF"},
            },
            "ratios": {
                f"{case}/{peer}": round(
                    found[case]["events_per_s"] / found[peer]["events_per_s"], 2
                )
                for case, peer in _RATIOS
            },
        },
        as_json=as_json,
    )
