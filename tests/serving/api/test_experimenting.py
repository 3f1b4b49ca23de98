"""Experiments over HTTP, through the real app."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import falcon.testing
import pytest

from serving.api.app import create_app
from serving.api.experimenting import routes
from serving.api.problems import Problem
from serving.api.routes import Principal, Role
from serving.experiments.redis_store import RedisStore
from serving.experiments.store import MemoryStore
from serving.redis_table import open_table
from serving.table import MemoryTable
from stream.settings import RedisSettings, ServingSettings
from tests.serving.world import publish

ASKED: dict[str, Any] = {
    "name": "newer-model",
    "arms": [{"name": "today"}, {"name": "new", "model": 3}, {"name": "tried", "shadow": True}],
}


def with_arm(**others: Any) -> dict[str, Any]:
    return {"name": "o", "arms": [{"name": "today"}, {"name": "new", **others}]}


class Guard:
    """Says that everybody is who they say, with the role of that name."""

    async def admit(self, headers: Mapping[str, str], role: Role | None, client: str) -> Principal:
        given = Role[headers.get("x-api-key", "READER")]
        if role is not None and given < role:
            raise Problem(403, "not-allowed", "want another role")
        return Principal(name=given.name.lower(), role=given)


@pytest.fixture
def client() -> falcon.testing.TestClient:
    table = MemoryTable()
    for _ in range(3):
        publish(table)
    app = create_app(routes(MemoryStore(), table), Guard(), ServingSettings())
    return falcon.testing.TestClient(app, headers={"x-api-key": "OPERATOR"})


def test_an_experiment_is_started_watched_and_stopped(client: falcon.testing.TestClient) -> None:
    assert client.get("/v1/experiments").json == {"version": 0, "experiments": []}
    started = client.post("/v1/experiments", json=ASKED)
    assert started.status_code == 201
    assert started.json["started_by"] == "operator"
    assert started.json["experiment"].items() >= {"name": "newer-model", "design": "split"}.items()
    assert [arm["model"] for arm in started.json["experiment"]["arms"]] == [None, 3, None]
    assert client.get("/v1/experiments").json["experiments"] == [started.json]
    results = client.get("/v1/experiments/newer-model/results").json
    assert results["entry"] == started.json
    assert [arm["arm"] for arm in results["arms"]] == ["today", "new"]
    assert results["effects"][0]["verdict"] == "open"
    assert results["effects"][0]["difference"] == {"value": None, "low": None, "high": None}
    stopped = client.post("/v1/experiments/newer-model/stop").json
    assert stopped["stopped_ms"] >= stopped["started_ms"]
    assert client.post("/v1/experiments/newer-model/stop").json == stopped


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "kind"),
    [
        ("POST", "/v1/experiments", ASKED, 409, "experiment-refused"),
        ("POST", "/v1/experiments", {**ASKED, "name": "Other"}, 400, "invalid-request"),
        ("POST", "/v1/experiments", {**ASKED, "name": "o", "share": 2}, 400, "invalid-request"),
        ("POST", "/v1/experiments", {"name": "o"}, 400, "invalid-request"),
        ("POST", "/v1/experiments", with_arm(model=9), 409, "experiment-refused"),
        ("POST", "/v1/experiments", with_arm(rules="v2"), 400, "invalid-request"),
        ("POST", "/v1/experiments", with_arm(settings={"mmr": 1}), 400, "invalid-request"),
        ("POST", "/v1/experiments", with_arm(settings={"diversity": "1"}), 400, "invalid-request"),
        ("POST", "/v1/experiments", with_arm(settings={"diversity": 1.1}), 400, "invalid-request"),
        ("POST", "/v1/experiments/none/stop", None, 404, "unknown-experiment"),
        ("GET", "/v1/experiments/none/results", None, 404, "unknown-experiment"),
        ("GET", "/v1/experiments/%7Bx%7D/results", None, 404, "unknown-experiment"),
    ],
)
def test_what_is_wrong_is_a_problem(
    client: falcon.testing.TestClient, method: str, path: str, body: Any, status: int, kind: str
) -> None:
    client.post("/v1/experiments", json=ASKED)
    answer = client.simulate_request(method, path, json=body)
    assert answer.status_code == status
    assert answer.json["type"] == f"/problems/{kind}", answer.json


def test_only_an_operator_starts_and_stops(client: falcon.testing.TestClient) -> None:
    told = {"x-api-key": "WRITER"}
    assert client.post("/v1/experiments", json=ASKED, headers=told).status_code == 403
    assert client.post("/v1/experiments/x/stop", headers=told).status_code == 403
    assert client.get("/v1/experiments", headers={"x-api-key": "READER"}).status_code == 200


def test_without_its_redis_the_api_says_so(unused_tcp: int) -> None:
    away = RedisSettings(url=f"redis://127.0.0.1:{unused_tcp}")
    app = create_app(routes(RedisStore(away), open_table(away)), Guard(), ServingSettings())
    client = falcon.testing.TestClient(app, headers={"x-api-key": "OPERATOR"})
    for answer in (client.get("/v1/experiments"), client.post("/v1/experiments", json=ASKED)):
        assert answer.status_code == 503


@pytest.fixture
def unused_tcp() -> int:
    from deploy.service import free_port

    return free_port()
