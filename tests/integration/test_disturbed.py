"""Under load: a Redis that is killed costs no answer, and no answer is of two models."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from deploy.bench.disturbed import Canary, flips, outage
from deploy.bench.load import get
from deploy.bench.system import served
from deploy.local import redis_server
from deploy.service import free_port
from serving.redis_table import open_table
from stream.settings import (
    KafkaSettings,
    RedisSettings,
    ServingSettings,
    Settings,
)
from tests.integration.system import kuairand, system, until, value_of

pytestmark = pytest.mark.slow

N_EVENTS = 3_000
RATE = 60.0


def test_a_redis_killed_under_load_costs_no_answer_and_all_are_fresh_again(tmp_path: Path) -> None:
    entries = kuairand(N_EVENTS)
    with system(tmp_path) as running:
        stream, learner = running.worker("stream"), running.worker("learn")
        for worker in (stream, learner):
            worker.launch()
        for worker in (stream, learner):
            worker.start()
        running.send(entries)
        until(
            lambda: (
                running.committed() == len(entries)
                and value_of(learner, "tidegraph_learner_ready") == 1
            ),
            "the learner to follow",
        )
        settings = msgspec.structs.replace(
            running.settings, serving=ServingSettings(port=free_port())
        )
        users = dict.fromkeys((key or b"").decode() for key, _ in entries[:500])
        # Some are asked for the first time while Redis is away.
        requests = [get(f"/v1/recommendations/{user}?n=10") for user in [*users, "nobody"]]
        with served(settings, tmp_path):
            found = outage(settings.serving.port, requests, running.redis, rate=RATE, seconds=1.0)
    assert found["errors"] == 0, found
    assert found["answers_away"] > 0
    assert found["stale_share"] > 0
    assert found["models"] >= 2  # what was lost was published anew


@pytest.mark.parametrize("processes", [1, 2])
def test_no_answer_is_of_two_models_while_they_are_flipped(tmp_path: Path, processes: int) -> None:
    serving = ServingSettings(port=free_port(), workers=processes)
    nowhere = KafkaSettings(servers=("127.0.0.1:1",))
    with redis_server(RedisSettings(url="redis://127.0.0.1:0/0"), tmp_path / "redis") as redis:
        settings = Settings(kafka=nowhere, redis=redis, serving=serving)
        canary = Canary(open_table(redis))
        canary.bring()
        with served(settings, tmp_path):
            found = flips(serving.port, canary, rate=RATE, models=6)
    assert found["errors"] == 0, found
    assert found["mixed"] == 0
    assert set(found["answers_by_model"]) >= {str(number) for number in range(2, 8)}
