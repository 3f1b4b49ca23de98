"""What Prometheus is told of the API is what happened, whichever process is asked."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import falcon.testing
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving.api.metrics import SHARED
from serving.assembly import build
from serving.experiments.assignment import Arm, Experiment, ListSettings
from serving.experiments.registry import Registry
from serving.experiments.store import MemoryStore
from serving.producing import Entry, LogSink
from stream.log import MemoryLog
from stream.settings import ServingSettings, Settings
from tests.house import ROOT
from tests.serving.world import published, update, user

Samples = Mapping[tuple[str, ...], float]


class Sink(LogSink):
    """A log that can go away."""

    away = False

    async def append(self, topic: str, entries: Sequence[Entry]) -> list[str]:
        if self.away:
            return ["unavailable: the log did not take it"] * len(entries)
        return await super().append(topic, entries)


def samples(page: str) -> Samples:
    """Return the numbers of a page by name and values of labels, in the order of their names."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


async def asked(folder: Path) -> Samples:
    """Ask an API for one of each, and return what it tells of that."""
    keys, audit = str(folder / "keys.json"), str(folder / "audit.jsonl")
    serving = ServingSettings(stale_s=1e10, keys_file=keys, audit_file=audit)
    vector = update(users=user("ann", [1, 0], ["i1"]))
    sink = Sink(MemoryLog())
    table, store = published(vector), MemoryStore()
    arms = (Arm(name="today"), Arm(name="new", settings=ListSettings(diversity=0.3)))
    Registry(store).start(Experiment(name="e", arms=arms), table, at_ms=1, by="op")
    app = build(Settings(serving=serving), table, sink, experiments=store)
    async with falcon.testing.ASGIConductor(app) as api:

        async def get(path: str) -> str:
            return (await api.simulate_get(path, host="localhost")).text

        async def post(path: str, body: Any) -> None:
            await api.simulate_post(path, json=body, host="localhost")

        await get("/v1/recommendations/ann")
        await get("/v1/recommendations/ann")
        await get("/v1/recommendations/bob")
        both = [{"user": "ann"}, {"user": "bob"}]
        await post("/v1/recommendations:batch", {"requests": both})
        await post("/v1/rank", {"items": ["i2"], "user": "ann"})
        good = {"user_id": "ann", "item_id": "i2", "type": "like"}
        await post("/v1/feedback", [good, good, {**good, "type": "nonsense"}])
        await post("/v1/feedback", {"user_id": "ann"})
        sink.away = True
        await post("/v1/feedback", [good, {}])
        await get("/nothing")
        page = await get("/metrics")
    return samples(page)


def test_lists_entries_and_reads_are_counted_as_what_became_of_them(tmp_path: Path) -> None:
    told = asyncio.run(asked(tmp_path))
    assert told["tidegraph_api_lists_total", "vector", "no"] == 4
    assert told["tidegraph_api_lists_total", "popularity", "no"] == 2
    assert told["tidegraph_api_users_read_total",] == 2
    assert told["tidegraph_api_users_kept",] == 2
    assert told["tidegraph_api_entries_total", "stored"] == 2
    assert told["tidegraph_api_entries_total", "invalid"] == 3
    assert told["tidegraph_api_entries_total", "not_stored"] == 1
    assert told["tidegraph_api_append_seconds_count",] == 2
    assert told["tidegraph_api_append_seconds_bucket", "+Inf"] == 2
    route = "/v1/recommendations/{user}"
    assert told["tidegraph_api_seconds_count", "GET", route, "200"] == 3
    assert told["tidegraph_api_seconds_bucket", "+Inf", "GET", route, "200"] == 3
    assert told["tidegraph_api_seconds_sum", "GET", route, "200"] > 0
    assert told["tidegraph_api_seconds_count", "", "", "404"] == 1
    assert told["tidegraph_api_seconds_count", "POST", "/v1/feedback", "503"] == 1
    assert told["tidegraph_api_ready",] == 1
    assert told["tidegraph_api_experiments",] == 1


_PROCESS = """
from serving.api.metrics import Metrics
from serving.live import Live
from tests.serving.world import published
live = Live(published(), stale_s={stale_s})
live._attempt(wait_ms=0)
metrics = Metrics(live)
for _ in range(3):
    metrics.observe(None, 404, 0.0)
metrics.tell()
print(metrics.page().decode())
"""


def test_what_an_ended_process_counted_stays_and_its_state_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SHARED, str(tmp_path))
    pages = [
        subprocess.run(
            [sys.executable, "-c", _PROCESS.format(stale_s=stale_s)],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for stale_s in ("1.0", "1e10")
    ]
    first, second = map(samples, pages)
    counted = ("tidegraph_api_seconds_count", "", "", "404")
    assert (first[counted], second[counted]) == (3, 6)
    ready = ("tidegraph_api_ready",)
    assert (first[ready], second[ready]) == (0, 1)
