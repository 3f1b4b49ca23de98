"""Measures the API with real processes: rates, latencies, freshness, and a large catalogue."""

from __future__ import annotations

import json
import resource
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, Final
from urllib.request import Request, urlopen

import click
import msgspec
import numpy as np
import psutil

from deploy.bench.load import Answers, closed_load, get, open_load, post
from deploy.bench.pipeline import DRAIN_S, learned_all
from deploy.bench.system import append, borrowed, cpu_s, own, worker, workers
from deploy.bench.traffic import Traffic
from deploy.service import Service, wait_until
from replay.bench.measure import machine, show
from serving.redis_table import open_table
from serving.rows import Barrier, ItemRows, Layout, UserRows
from serving.table import Update
from stream.events import decode_interaction
from stream.kafka import KafkaLog
from stream.options import config_option
from stream.settings import Settings

USERS: Final = 2_000
"""Users whose lists are asked for, in turn."""

LIMIT_MS: Final = 500.0
"""The p99 within which the highest rate is looked for."""

VIRTUAL_USERS: Final = (100, 2_500, 5_000)
"""Connections, each with a pause of a second, on average, after each answer."""

PROBES: Final = 100
"""Events after which a list is looked at until it has changed."""

WRITE_BATCH: Final = 1_000
"""Events of one request that brings many."""

RECALL_AT: Final = 100

_POST_WARM_UP_S: Final = 2.0


@contextmanager
def served(settings: Settings, folder: Path) -> Iterator[tuple[Service, float]]:
    """Run the API; give it, and how many seconds it took until it was ready."""
    port = settings.serving.port
    service = worker("serve", settings, folder, port=port, page="/readyz", says="ready")
    began_s = time.perf_counter()
    with service:
        yield service, time.perf_counter() - began_s


def family(service: Service) -> list[psutil.Process]:
    """Return the processes of a service: it, and those that it started."""
    assert service.process is not None
    parent = psutil.Process(service.process.pid)
    return [parent, *parent.children(recursive=True)]


def measured(service: Service, load: Any) -> dict[str, Any]:
    """Run a load and return its figures, with the CPU time that the API took for each request."""
    processes = {str(each.pid): each for each in family(service)}
    before = sum(cpu_s(processes).values())
    answers: Answers = load()
    used_s = sum(cpu_s(processes).values()) - before
    n = max(1, answers.statuses.total())
    return answers.figures() | {"server_cpu_us": round(used_s / n * 1e6, 1)}


def highest(service: Service, port: int, requests: Sequence[bytes], *, seconds: float) -> Any:
    """Return the figures of the highest even rate whose p99 stays within :data:`LIMIT_MS`."""
    best: dict[str, Any] = {}
    low, high = 500.0, 0.0  # what holds, or is taken to, and what does not
    rate = 2_000.0
    while rate > 550.0 and (not high or high / low > 1.1):
        figures = measured(
            service,
            lambda rate=rate: open_load(
                port, requests, rate=rate, seconds=seconds, connections=256
            ),
        )
        if figures["errors"] == 0 and figures["p99_ms"] <= LIMIT_MS:
            low, best = rate, figures | {"rate": rate}
        else:
            high = rate
        rate = (low + high) / 2 if high else low * 1.5
    return best


def changed(settings: Settings, users: Sequence[str], *, start_ms: int) -> dict[str, Any]:
    """Send events, one at a time, and look until the list of the user shows it."""
    root = f"http://127.0.0.1:{settings.serving.port}/v1"
    seconds = []
    for number, user in enumerate(users):
        top = _listed(f"{root}/recommendations/{user}?n=1")
        event = {
            "v": 1,
            "event_id": f"probe-{start_ms}-{number}",
            "user_id": user,
            "item_id": top[0],
            "ts_ms": start_ms + number,
            "signals": {"is_click": 1},
        }
        began_s = time.perf_counter()
        body = json.dumps(event).encode()
        request = Request(  # noqa: S310 - an address of ours
            f"{root}/log/interactions", body, {"Content-Type": "application/json"}
        )
        with urlopen(request, timeout=30):  # noqa: S310
            pass
        while _listed(f"{root}/recommendations/{user}?n=1")[:1] == top:
            if time.perf_counter() - began_s > 30.0:
                wait_until(lambda: False, 0.0, f"the list of {user} to change")
            time.sleep(0.005)
        seconds.append(time.perf_counter() - began_s)
    p50, p99 = np.percentile(seconds, [50, 99]) * 1_000
    return {
        "probes": len(seconds),
        "p50_ms": round(float(p50), 1),
        "p99_ms": round(float(p99), 1),
        "max_ms": round(max(seconds) * 1_000, 1),
    }


def live(settings: Settings, folder: Path, *, seconds: float) -> dict[str, Any]:
    """Measure the API over what workers learned from the sample."""
    traffic = Traffic()
    entries = traffic.past(len(traffic))
    log = KafkaLog(settings.kafka)
    results: dict[str, Any] = {}
    with workers(settings, folder):
        append(log, entries)
        wait_until(lambda: learned_all(log, settings), DRAIN_S, "the sample to be learned")
        reader = open_table(settings.redis).reader()
        names = list(dict.fromkeys((key or b"").decode() for key, _ in entries))
        users = reader.users(names[:USERS]).ids
        last = decode_interaction(entries[-1][1])
        newest_ms = max(int(getattr(last, "ts_ms", 0)), reader.barrier().at_ms)
        with served(settings, folder) as (service, ready_s):
            port = settings.serving.port
            lists = [get(f"/v1/recommendations/{user}?n=10") for user in users]
            closed_load(port, lists, connections=8, seconds=_POST_WARM_UP_S)
            results["start"] = {
                "ready_s": round(ready_s, 2),
                "items": len(reader.item_ids()),
                "users": len(users),
            }
            results["steady_1000"] = measured(
                service, lambda: open_load(port, lists, rate=1_000, seconds=seconds)
            )
            for connections in (1, 64):
                results[f"connections_{connections}"] = measured(
                    service,
                    lambda n=connections: closed_load(
                        port, lists, connections=n, seconds=seconds / 4
                    ),
                )
            results["highest"] = highest(service, port, lists, seconds=seconds / 6)
            for n in VIRTUAL_USERS:
                results[f"virtual_users_{n}"] = measured(
                    service,
                    lambda n=n: closed_load(
                        port,
                        lists,
                        connections=n,
                        seconds=seconds / 3,
                        think_s=1.0,
                        ramp_s=seconds / 12,
                    ),
                )
            results["event_to_list"] = changed(settings, users[:PROBES], start_ms=newest_ms + 1)
            events = _events(entries, newest_ms + 1_000)
            singles = [post("/v1/log/interactions", next(events)) for _ in range(20_000)]
            results["feedback_singly_8"] = measured(
                service,
                lambda: closed_load(port, singles, connections=8, seconds=seconds / 6),
            )
            batches = [
                post(
                    "/v1/log/interactions",
                    b"[" + b",".join(next(events) for _ in range(WRITE_BATCH)) + b"]",
                )
                for _ in range(100)
            ]
            answers = measured(
                service,
                lambda: closed_load(port, batches, connections=4, seconds=seconds / 6),
            )
            answers["events_per_s"] = answers["requests_per_s"] * WRITE_BATCH
            results["feedback_batches_1000"] = answers
            results["memory"] = _memory(service)
    log.close()
    return results


def large(settings: Settings, folder: Path, *, items: int, seconds: float) -> dict[str, Any]:
    """Measure the API over a catalogue of random items around centres, 64-d, without a learner."""
    draw, dim = np.random.default_rng(0), 64
    centres = draw.normal(size=(1_000, dim)).astype(np.float32)
    table, at_ms = open_table(settings.redis), int(time.time() * 1_000)
    table.begin(Layout(dim=dim))

    def around(n: int) -> Any:
        noise = draw.normal(size=(n, dim)).astype(np.float32)
        rows = centres[draw.integers(0, len(centres), n)] + 0.5 * noise
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    vectors, users = around(items), around(500)
    biases = (0.05 * draw.normal(size=items)).astype(np.float32)
    for first in range(0, items, 20_000):
        rows = np.arange(first, min(first + 20_000, items))
        table.publish(
            Update(
                barrier=Barrier(step=first + 1, at_ms=at_ms, published_ms=at_ms),
                items=ItemRows(
                    [f"i{row}" for row in rows.tolist()],
                    vectors[rows],
                    biases[rows],
                    np.zeros((rows.size, 0)),
                    np.full(rows.size, at_ms),
                ),
            )
        )
    ids = [f"u{row}" for row in range(len(users))]
    table.publish(
        Update(
            barrier=Barrier(step=items + 1, at_ms=at_ms, published_ms=at_ms),
            users=UserRows(ids, users, np.full(len(users), at_ms)),
        )
    )
    table.flip()
    serving = msgspec.structs.replace(settings.serving, stale_s=86_400.0)
    settings = msgspec.structs.replace(settings, serving=serving)
    port = settings.serving.port
    with served(settings, folder) as (service, ready_s):
        lists = [get(f"/v1/recommendations/{user}?n=10") for user in ids]
        closed_load(port, lists, connections=4, seconds=_POST_WARM_UP_S)
        found = measured(service, lambda: open_load(port, lists, rate=300, seconds=seconds))
        recalls = []
        for row, user in enumerate(ids[:100]):
            scores = vectors @ users[row] + biases
            best = set(np.argpartition(-scores, RECALL_AT)[:RECALL_AT].tolist())
            url = f"http://127.0.0.1:{port}/v1/recommendations/{user}?n={RECALL_AT}"
            told = {int(item[1:]) for item in _listed(url)}
            recalls.append(len(best & told) / RECALL_AT)
        return found | {
            "items": items,
            "ready_s": round(ready_s, 1),
            "recall_at_100": round(float(np.mean(recalls)), 4),
            "memory": _memory(service),
        }


def _listed(url: str) -> list[str]:
    with urlopen(url, timeout=30) as answer:  # noqa: S310 - an address of ours
        return [each["item"] for each in json.load(answer)["items"]]


def _events(entries: Sequence[tuple[bytes | None, bytes]], first_ms: int) -> Iterator[bytes]:
    """Give the events of the sample again and again, as new ones, from a time on."""
    for number in count():
        event = json.loads(entries[number % len(entries)][1])
        event |= {"event_id": f"bench-{number}", "ts_ms": first_ms + number}
        yield json.dumps(event).encode()


def _memory(service: Service) -> Mapping[str, float]:
    each = [process.memory_info().rss / 1e6 for process in family(service)]
    return {
        "rss_mb": round(sum(each), 1),
        "processes": len(each),
        "largest_mb": round(max(each), 1),
    }


@click.command()
@click.option(
    "--seconds",
    default=60.0,
    show_default=True,
    type=click.FloatRange(min=2),
    help="Of the steady load; the other parts take a share of it.",
)
@click.option(
    "--items",
    default=1_000_000,
    show_default=True,
    type=click.IntRange(min=0),
    help="Of the large catalogue; 0 leaves it out.",
)
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for scripts.")
def serving(
    seconds: float,
    items: int,
    config: Path | None,
    as_json: bool,  # noqa: FBT001 - click passes it by name
) -> None:
    """Measure the API over what the workers learn from the sample, load generator included.

    Without --config a broker and a Redis are started for as long; with it, topics and a namespace
    of their own are used on the servers that the settings name.

    \b
    Example:
        tidegraph bench serving --json
        tidegraph bench serving --seconds 12 --items 0 --json
    """
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a socket for each virtual user
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch, borrowed(config, Path(scratch)) as base:
        with own(base, Path(scratch)) as settings:
            results |= live(settings, Path(scratch), seconds=seconds)
        if items:
            with own(base, Path(scratch)) as settings:
                results["large"] = large(settings, Path(scratch), items=items, seconds=seconds / 3)
    show(
        {
            "bench": "serving",
            "machine": machine("falcon", "granian", "msgspec", "faiss-cpu", "redis"),
            "settings": {
                "data": "the shipped sample of KuaiRand-Pure, learned by the workers; the large "
                "catalogue is random",
                "workers": base.serving.workers,
                "steady_1000, highest, large": "open model: a latency counts from when a request "
                "was due",
                "virtual_users": "closed model, a pause of a second on average",
                "event_to_list": "from before the request that brings an event until the user's "
                "list no longer begins with its item",
            },
            "results": results,
            "peers": {},
            "ratios": {},
        },
        as_json=as_json,
    )
