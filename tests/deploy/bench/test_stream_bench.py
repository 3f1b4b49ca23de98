"""The benches over a broker answer in the agreed form."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from deploy.bench import bench
from deploy.bench.stream import Sampler
from stream.settings import KafkaSettings


def report_of(tmp_path: Path, kafka: KafkaSettings, redis_url: str, *arguments: str) -> Any:
    """Run a bench on the servers of the tests."""
    config = tmp_path / "tidegraph.toml"
    config.write_text(
        f'[kafka]\nservers = ["{kafka.servers[0]}"]\npartitions = 2\n[redis]\nurl = "{redis_url}"\n'
    )
    result = CliRunner().invoke(bench, [*arguments, "--config", str(config), "--json"])
    assert result.exit_code == 0, (result.output, result.exception)
    return json.loads(result.output)


@pytest.mark.slow
def test_the_stream_bench_has_the_keys_that_tools_rely_on(
    tmp_path: Path, kafka: KafkaSettings, redis_url: str
) -> None:
    sizes = "--events 10000 --peer-events 500 --rounds 1 --limit 300"
    report = report_of(tmp_path, kafka, redis_url, "stream", *sizes.split())
    ours, peer = report["results"]["transaction"], report["peers"]["faust_agent"]
    assert report["bench"] == "stream"
    assert ours["events_per_s"] > 0
    assert ours["accounting"]["in_"] == ours["events"] == 10_000
    assert sum(ours["share_of_time"].values()) == pytest.approx(1.0, abs=0.01)
    assert peer["accounting"]["in"] == 500
    assert report["ratios"]["transaction/faust_agent"] > 0


@pytest.mark.slow
def test_the_pipeline_bench_has_the_keys_that_tools_rely_on(
    tmp_path: Path, kafka: KafkaSettings, redis_url: str
) -> None:
    sizes = "--events 2000 --seconds 2 --rate 100"
    report = report_of(tmp_path, kafka, redis_url, "pipeline", *sizes.split())
    assert report["checks"]["state_hash_equal_to_embedded"] is True
    assert report["checks"]["accounting_exact"] is True
    assert 0 < report["checks"]["ranked_share"] <= 1
    rate, freshness = report["results"]["end_to_end"], report["results"]["freshness"]
    assert rate["events_per_s"] > 0
    assert set(rate["cpu_s"]) == {"broker", "redis", "stream", "learner"}
    assert 0 < freshness["p50_ms"] <= freshness["p99_ms"]
    assert freshness["probes"] > 10
    assert set(freshness["mean_ms_by_stage"]) >= {"typed", "read", "learned", "published", "total"}


@pytest.mark.slow
def test_a_soak_watches_memory_and_lag(
    tmp_path: Path, kafka: KafkaSettings, redis_url: str
) -> None:
    report = report_of(tmp_path, kafka, redis_url, "pipeline", "--soak", "0.2", "--rate", "100")
    soak = report["results"]["soak"]
    assert set(soak["rss_slope_mb_per_h"]) == {"broker", "redis", "stream", "learner"}
    assert soak["lag_records"]["max"] >= 0
    assert report["checks"] == {}


def busy(until: threading.Event) -> None:
    """Count until told to stop, the most part here."""
    n = 0
    while not until.is_set():
        n += sum(range(50))


def test_the_sampler_sees_where_a_thread_is() -> None:
    until = threading.Event()
    thread = threading.Thread(target=busy, args=(until,))
    thread.start()
    with Sampler(thread, {"busy": "counting", "nowhere": "nothing"}) as sampler:
        deadline = time.monotonic() + 20
        while sum(sampler.shares().values()) == 0 and time.monotonic() < deadline:
            until.wait(0.01)
    until.set()
    thread.join()
    assert sampler.shares() == {"counting": 1.0, "nothing": 0.0}
