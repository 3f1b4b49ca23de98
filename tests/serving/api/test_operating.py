"""What an operator is told, and which model is given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import falcon.testing
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving.api import operating
from serving.api.app import create_app
from serving.api.metrics import Metrics
from serving.api.problems import Problem
from serving.api.routes import Principal, Role, Route
from serving.catalogue import PAIRS
from serving.live import Live
from serving.rows import Barrier, Count, ItemRows, Layout
from serving.table import MemoryTable, Reader, Update
from stream.errors import TableError
from stream.settings import ServingSettings

NOW_MS = 1_700_000_000_000
HOURS = [
    {
        "hour_ms": 3_600_000,
        "ranked": 4,
        "hit_ratio_at_10": 0.5,
        "ndcg_at_10": 0.25,
        "frozen_ndcg_at_10": 0.125,
    }
]
DRIFTS = [{"signal": "loss", "at_ms": 7_200_000, "event": 12}]
STAGE = {"bounds_s": [0.1, 1.0], "counts": [3, 1, 0], "sum_s": 0.9}
REPORT = {
    "told_ms": NOW_MS,
    "phase": "following",
    "model": "f" * 32,
    "events": 12,
    "events_per_s": 1.5,
    "classes": {"implicit_positive": 12},
    "loss": 0.6,
    "hit_ratio_at_10": None,
    "ndcg_at_10": 0.1,
    "hours": HOURS,
    "drifts": DRIFTS,
    "freshness": {"total": STAGE},
    "something": "newer",
}


class Guard:
    """Gives everybody one role."""

    def __init__(self) -> None:
        self.role = Role.OPERATOR

    async def admit(self, headers: Mapping[str, str], role: Role | None, client: str) -> Principal:
        if role is not None and role > self.role:
            raise Problem(403, "forbidden", "want another role")
        return Principal(role=self.role)


class Table(MemoryTable):
    """A table that can go away."""

    away = False

    def reader(self, epoch: int | None = None) -> Reader:
        if self.away:
            raise TableError("the Redis at redis://10.1.2.3:6379 does not answer")
        return super().reader(epoch)

    def epochs(self):  # type: ignore[no-untyped-def] # the same
        if self.away:
            raise TableError("the Redis at redis://10.1.2.3:6379 does not answer")
        return super().epochs()


class System:
    """A table, what follows it, and a client of the routes."""

    def __init__(self) -> None:
        self.table = Table()
        self.now_ms = NOW_MS
        self.live = Live(self.table, stale_s=60.0, now_ms=lambda: self.now_ms)
        self.guard = Guard()
        metrics = Metrics(self.live)
        routes = operating.routes(self.live, self.table, metrics)
        slow = Route(method="GET", path="/v1/x/{y}", handler=self.fail, summary="")
        app = create_app([*routes, slow], self.guard, ServingSettings(), observe=metrics.observe)
        self.client = falcon.testing.TestClient(app)

    async def fail(self, _: object) -> None:
        raise Problem(404, "unknown-item", "no such item")

    def publish(self) -> int:
        """Publish and flip a model of one item."""
        epoch = self.table.begin(Layout(dim=2, counts=(Count(PAIRS, 1_000),)))
        rows = ItemRows(
            ["7"],
            np.ones((1, 2), np.float32),
            biases=np.zeros(1, np.float32),
            ts_ms=np.array([60]),
            counts=np.zeros((1, 1)),
        )
        barrier = Barrier(step=epoch, at_ms=60, published_ms=self.now_ms)
        self.table.publish(Update(barrier=barrier, items=rows))
        self.table.flip()
        return epoch

    def look(self) -> None:
        """Have the table followed once."""
        self.live._attempt(wait_ms=0)


@pytest.fixture
def system() -> Iterator[System]:
    made = System()
    yield made
    made.live.__exit__()


def test_ready_is_told_only_when_rows_are_loaded_and_fresh(system: System) -> None:
    get = system.client.get
    assert get("/healthz").text == "up\n"
    assert get("/readyz").status_code == 503
    system.publish()
    assert get("/readyz").status_code == 503
    system.look()
    ready = get("/readyz")
    assert (ready.status_code, ready.text) == (200, "ready\n")
    system.now_ms += 61_000
    system.look()
    late = get("/readyz")
    assert (late.status_code, late.json["type"]) == (503, "/problems/not-ready")
    assert "nothing was published for too long" in late.json["detail"]
    assert get("/healthz").status_code == 200


def test_addresses_inside_are_told_to_operators_alone(system: System) -> None:
    system.table.away = True
    system.look()
    told = system.client.get("/v1/status").json["table"]["error"]
    assert "10.1.2.3" in told
    system.guard.role = Role.READER
    for path in ("/v1/status", "/readyz", "/v1/model", "/v1/drift"):
        assert "10.1.2.3" not in system.client.get(path).text, path


def test_the_status_tells_of_the_table_and_of_the_learner(system: System) -> None:
    empty = system.client.get("/v1/status").json
    assert (empty["ready"], empty["learner"], empty["table"]["epoch"]) == (False, None, None)
    epoch = system.publish()
    system.table.tell(REPORT)
    system.look()
    told = system.client.get("/v1/status").json
    assert told["ready"] is True
    assert (told["table"]["epoch"], told["table"]["items"]) == (epoch, 1)
    assert (told["learner"]["events"], told["learner"]["phase"]) == (12, "following")
    assert told["learner"]["hours"] == []


def test_what_the_learner_told_is_given_and_kept_while_the_table_is_away(system: System) -> None:
    system.publish()
    none = system.client.get("/v1/performance")
    assert (none.status_code, none.json["type"]) == (503, "/problems/no-report")
    system.table.tell(REPORT)
    for away in (False, True):
        system.table.away = away
        performance = system.client.get("/v1/performance").json
        assert performance["hours"] == HOURS
        assert performance["hit_ratio_at_10"] is None
        assert performance["freshness"] == {"total": STAGE}
        assert system.client.get("/v1/drift").json == {"drifts": DRIFTS}


def test_models_are_given_by_hand_and_the_learner_is_followed_again(system: System) -> None:
    client = system.client
    first, second = system.publish(), system.publish()
    told = client.get("/v1/model").json
    assert (told["given"], told["follows"]) == (second, True)
    assert [model["epoch"] for model in told["models"]] == [second, first]
    back = client.post("/v1/model/rollback", json={})
    assert (back.status_code, back.json["given"], back.json["follows"]) == (200, first, False)
    third = system.publish()
    assert client.get("/v1/model").json["given"] == first
    none = client.post("/v1/model/rollback", json={})
    assert (none.status_code, none.json["type"]) == (409, "/problems/no-such-model")
    assert client.post("/v1/model/promote", json={"epoch": second}).json["given"] == second
    unknown = client.post("/v1/model/promote", json={"epoch": 99})
    assert (unknown.status_code, unknown.json["type"]) == (409, "/problems/no-such-model")
    followed = client.post("/v1/model/promote", json={}).json
    assert (followed["given"], followed["follows"]) == (third, True)
    assert client.post("/v1/model/promote", json={"epoch": "x"}).status_code == 400


def test_only_an_operator_gives_models(system: System) -> None:
    system.publish()
    system.guard.role = Role.WRITER
    for what in ("promote", "rollback"):
        assert system.client.post(f"/v1/model/{what}", json={}).status_code == 403


def test_answers_are_counted_by_route_and_status(system: System) -> None:
    system.publish()
    system.look()
    for path in ("/v1/x/1", "/v1/x/2", "/nothing", "/healthz"):
        system.client.get(path)
    page = system.client.get("/metrics").text
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }

    def counted(route: str, status: int, method: str = "GET") -> float:
        labels = (("method", method), ("route", route), ("status", str(status)))
        return samples["tidegraph_api_seconds_count", *labels]

    assert counted("/v1/x/{y}", 404) == 2
    assert counted("/healthz", 200) == 1
    assert counted("", 404, "") == 1
    assert samples["tidegraph_api_items",] == 1
    assert samples["tidegraph_api_table_up",] == 1
