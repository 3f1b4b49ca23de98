"""``tidegraph bench serving``: the API over what workers learn, disturbed, and over many items."""

from __future__ import annotations

import json
import resource
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any, Final
from urllib.request import Request, urlopen

import click
import msgspec
import numpy as np

from deploy.bench.disturbed import Canary, flips, outage
from deploy.bench.large import large
from deploy.bench.load import closed_load, open_load, post
from deploy.bench.pipeline import DRAIN_S, learned_all
from deploy.bench.rates import LIMIT_MS, knee, listed, lists_of, measured, memory, search
from deploy.bench.system import append, borrowed, own, served, workers
from deploy.bench.traffic import Traffic
from deploy.local import prepare_redis
from deploy.service import wait_until
from replay.bench.measure import machine, show
from serving.redis_table import open_table
from stream.events import decode_interaction
from stream.kafka import KafkaLog
from stream.options import config_option
from stream.settings import RedisSettings, Settings

USERS: Final = 2_000
"""Users whose lists are asked for, in turn."""

START_ITEMS: Final = 12_000
"""Items of the catalogue with which it is seen how fast the API is ready."""

VIRTUAL_USERS: Final = (100, 2_500, 5_000)
"""Connections, each with a request a second, on average."""

OUTAGE_S: Final = 10.0
"""How long Redis is away."""

DISTURBED_RATE: Final = 200.0
"""Requests per second while Redis is away, and while models are flipped."""

FLIPS: Final = 20
"""Models brought into view under load."""

PROBES: Final = 100
"""Events after which a list is looked at until it has changed."""

WRITE_BATCH: Final = 1_000
"""Events of one request that brings many."""

SINGLY_PER_S: Final = 6_000
BATCHES_PER_S: Final = 80
"""Requests that are made ready for each second of a load: more than an API takes, so that no event
comes twice, which would cost less."""

GORSE: Final[Mapping[str, Mapping[str, float]]] = {
    "connections_1": {"requests_per_s": 1_825, "p99_ms": 0.9},
    "connections_64": {"requests_per_s": 7_000, "p99_ms": 18.0},
    "feedback_singly_8": {"requests_per_s": 830},
    "feedback_batches_1000": {"events_per_s": 27_000},
    "event_to_list": {"p50_ms": 38_000, "max_ms": 66_000},
    "memory": {"rss_mb": 250, "redis_mb": 700},
}
"""What the named peer does, under the names of our results: measured elsewhere, once."""

_WARM_UP_S: Final = 6.0


def changed(settings: Settings, users: Sequence[str], *, start_ms: int) -> dict[str, Any]:
    """Send events, one at a time, and look until the list of the user shows it."""
    root = f"http://127.0.0.1:{settings.serving.port}/v1"
    seconds = []
    for number, user in enumerate(users):
        top = listed(f"{root}/recommendations/{user}?n=1")
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
        while listed(f"{root}/recommendations/{user}?n=1")[:1] == top:
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
    with workers(settings, folder) as processes:
        append(log, entries)
        wait_until(lambda: learned_all(log, settings), DRAIN_S, "the sample to be learned")
        reader = open_table(settings.redis).reader()
        names = list(dict.fromkeys((key or b"").decode() for key, _ in entries))
        users = reader.users(names[:USERS]).ids
        last = decode_interaction(entries[-1][1])
        newest_ms = max(int(getattr(last, "ts_ms", 0)), reader.barrier().at_ms)
        with served(settings, folder) as (service, ready_s):
            port = settings.serving.port
            lists = lists_of(users)
            closed_load(port, lists, connections=8, seconds=_WARM_UP_S)
            results["start"] = {
                "ready_s": round(ready_s, 2),
                "items": len(reader.item_ids()),
                "users": len(users),
            }
            figures = partial(measured, service, settings)
            opened, closed = partial(open_load, port, lists), partial(closed_load, port, lists)
            results["steady_1000"] = figures(partial(opened, rate=1_000, seconds=seconds))
            for n in (1, 64):
                load = partial(closed, connections=n, seconds=seconds / 4)
                results[f"connections_{n}"] = figures(load)
            held, beyond = search(
                lambda rate: figures(
                    partial(opened, rate=rate, seconds=seconds / 6, connections=256)
                ),
                first=2_000.0,
            )
            results["knee"] = knee(held, beyond, workers=settings.serving.workers)
            for n in VIRTUAL_USERS:
                virtual = {"connections": n, "seconds": seconds / 3, "ramp_s": seconds / 12}
                results[f"virtual_users_{n}"] = figures(partial(closed, **virtual, think_s=1.0))
                results[f"virtual_users_{n}_open"] = figures(partial(opened, **virtual, rate=n))
            results["event_to_list"] = changed(settings, users[:PROBES], start_ms=newest_ms + 1)
            lasts_s = seconds / 6
            events = _events(entries, newest_ms + 1_000)
            singles = [_appending(events, 1) for _ in range(round(SINGLY_PER_S * lasts_s))]
            results["feedback_singly_8"] = figures(
                lambda: closed_load(port, singles, connections=8, seconds=lasts_s)
            )
            wait_until(lambda: learned_all(log, settings), DRAIN_S, "all feedback to be learned")
            batches = [
                _appending(events, WRITE_BATCH) for _ in range(round(BATCHES_PER_S * lasts_s))
            ]
            answers = figures(lambda: closed_load(port, batches, connections=4, seconds=lasts_s))
            answers["events_per_s"] = answers["requests_per_s"] * WRITE_BATCH
            results["feedback_batches_1000"] = answers
            others = {
                f"{name}_mb": round(each.memory_info().rss / 1e6, 1)
                for name, each in processes.items()
            }
            results["memory"] = memory(service) | others
            if "redis_mb" in others:
                ours = results["memory"]["rss_mb"] + others["redis_mb"]
                share = ours / sum(GORSE["memory"].values())
                results["memory"]["api_and_redis_to_gorse"] = round(share, 3)
    log.close()
    return results


def disturbed(settings: Settings, folder: Path, *, seconds: float) -> dict[str, Any]:
    """Measure the API while a Redis of its own is killed, and while models are flipped."""
    redis, server = prepare_redis(RedisSettings(url="redis://127.0.0.1:0/0"), folder / "killed")
    assert server is not None
    settings = msgspec.structs.replace(settings, redis=redis)
    port, traffic, results = settings.serving.port, Traffic(), {}
    with server:
        log = KafkaLog(settings.kafka)
        with workers(settings, folder):
            entries = traffic.past(len(traffic))
            append(log, entries)
            wait_until(lambda: learned_all(log, settings), DRAIN_S, "the sample to be learned")
            users = list(dict.fromkeys((key or b"").decode() for key, _ in entries))[:USERS]
            with served(settings, folder):
                results["redis_killed"] = outage(
                    port,
                    lists_of(users),
                    server,
                    rate=DISTURBED_RATE,
                    seconds=min(seconds, OUTAGE_S),
                )
        log.close()
        canary = Canary(open_table(msgspec.structs.replace(redis, namespace="canary")))
        canary.bring()
        settings = msgspec.structs.replace(
            settings, redis=msgspec.structs.replace(redis, namespace="canary")
        )
        with served(settings, folder):
            results["model_flips"] = flips(port, canary, rate=DISTURBED_RATE, models=FLIPS)
    return results


def beside_gorse(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return how many times as fast as Gorse each part is.

    Examples
    --------
    >>> beside_gorse({"connections_64": {"requests_per_s": 8_750}, "start": {"ready_s": 2.0}})
    {'connections_64/gorse': 1.25}

    """
    ratios = {}
    for name, theirs in GORSE.items():
        for unit in ("requests_per_s", "events_per_s"):
            if name in results and unit in theirs:
                ratios[f"{name}/gorse"] = results[name][unit] / theirs[unit]
    if "event_to_list" in results:
        ratios["event_to_list/gorse"] = (
            GORSE["event_to_list"]["p50_ms"] / results["event_to_list"]["p50_ms"]
        )
    return ratios


def _named(items: int) -> str:
    """Return the case of a generated catalogue.

    Examples
    --------
    >>> _named(1_000_000), _named(250_000)
    ('ann_1m', 'ann_250000')

    """
    millions, rest = divmod(items, 1_000_000)
    return f"ann_{items if rest else f'{millions}m'}"


def _events(entries: Sequence[tuple[bytes | None, bytes]], first_ms: int) -> Iterator[bytes]:
    """Give the events of the sample again and again, as new ones, from a time on."""
    for number in count():
        event = msgspec.json.decode(entries[number % len(entries)][1])
        event |= {"event_id": f"bench-{number}", "ts_ms": first_ms + number}
        yield msgspec.json.encode(event)


def _appending(events: Iterator[bytes], n: int) -> bytes:
    """Return a request that brings the next ``n`` events."""
    body = b",".join(islice(events, n))
    return post("/v1/log/interactions", body if n == 1 else b"[%b]" % body)


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
    of their own are used on the servers that the settings name. The Redis that is killed is always
    one that was started for it.

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
        with own(base, Path(scratch)) as settings:
            results |= disturbed(settings, Path(scratch), seconds=seconds)
        for name, n, share in (("start_12000", START_ITEMS, 12), (_named(items), items, 3)):
            if n:
                with own(base, Path(scratch)) as settings:
                    results[name] = large(settings, Path(scratch), items=n, seconds=seconds / share)
    show(
        {
            "bench": "serving",
            "machine": machine("falcon", "granian", "msgspec", "faiss-cpu", "redis"),
            "settings": {
                "data": "the shipped sample of KuaiRand-Pure, learned by the workers; the large "
                "catalogue is random",
                "workers": base.serving.workers,
                "steady_1000, knee, start_12000, ann_1m": "open model: a latency counts from when "
                "a request was due",
                "virtual_users_N": "N connections, ramped; closed model: after each answer a pause "
                "of a second on average",
                "virtual_users_N_open": "the same in the open model: N requests per second",
                "knee": f"the highest rate held with a p99 of at most {LIMIT_MS:.0f} ms, and what "
                "was busy at the lowest one that was not",
                "redis_killed": "a Redis of its own that comes back empty; fresh_after_s counts "
                "from when it is started again",
                "model_flips": "each model tells its number in every row; mixed counts answers of "
                "more than one",
                "event_to_list": "from before the request that brings an event until the user's "
                "list no longer begins with its item",
                "gorse": "not of this run: Gorse 0.4.15 on two cores, KuaiRand, PostgreSQL and "
                "Redis, lists computed ahead; the best of each range",
            },
            "results": results,
            "peers": {"gorse": GORSE},
            "ratios": beside_gorse(results),
        },
        as_json=as_json,
    )
