"""Writing over the API: what is answered is what the log has, whatever goes wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any

import falcon.testing
import msgspec
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import (
    ignored_auth,
    negative_data_rejection,
    positive_data_acceptance,
)

from deploy.service import free_port
from serving.api.app import create_app
from serving.api.openapi import document
from serving.api.routes import Principal, Role, Route
from serving.api.writes import routes
from serving.producing import Entry, KafkaSink, LogSink, Sink
from serving.rows import Barrier, Layout
from serving.table import MemoryTable, Update
from stream import topics
from stream.events import Feedback, decode_described, decode_feedback, decode_interaction
from stream.intake import Intake
from stream.kafka import KafkaLog
from stream.log import MemoryLog, Record
from stream.settings import KafkaSettings, ServingSettings
from stream.typing_rules import load_rules

T0 = 1_650_812_741_436
RULES = load_rules("kuairand")
LIKE = {"user_id": 712, "item_id": 5239, "type": "like"}
EVENT = {
    "v": 1,
    "event_id": "e1",
    "user_id": 712,
    "item_id": "5239",
    "ts_ms": T0,
    "signals": {"click": 1},
}


class Guard:
    """Lets everybody in as the role that the test sets."""

    async def admit(self, headers: Mapping[str, str], role: Role | None, client: str) -> Principal:
        return Principal()


class Failing:
    """A sink that stores some entries and tells of the others what the test wants."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts

    async def append(self, topic: str, entries: Sequence[Entry]) -> list[str]:
        return list(self._texts[: len(entries)])

    async def close(self) -> None:
        pass


def writing(
    sink: Sink, table: MemoryTable | None = None, pseudonym: Callable[[str], str] = str
) -> list[Route]:
    return routes(
        sink,
        RULES,
        table or MemoryTable(),
        max_future_ms=1_000,
        pseudonym=pseudonym,
        now_ms=lambda: T0,
    )


def client_of(told: list[Route]) -> falcon.testing.TestClient:
    app = create_app(told, Guard(), ServingSettings(max_body_bytes=20_000_000))
    return falcon.testing.TestClient(app)


@pytest.fixture
def log() -> MemoryLog:
    return MemoryLog()


@pytest.fixture
def client(log: MemoryLog) -> falcon.testing.TestClient:
    return client_of(writing(LogSink(log, max_record_bytes=2_000)))


def records(log: MemoryLog, topic: str) -> list[Record]:
    return log.read(topic, log.start(topic), limit=100_000)


def values(log: MemoryLog, topic: str) -> list[bytes]:
    return [one.value for one in records(log, topic)]


def test_single_feedback_is_stored_and_typed(
    client: falcon.testing.TestClient, log: MemoryLog
) -> None:
    result = client.post("/v1/feedback", json=LIKE)
    assert result.status_code == 202
    (entry,) = result.json["entries"]
    assert (result.json["stored"], entry["outcome"]) == (1, "stored")
    (typed,) = Intake(RULES).take(records(log, "interactions")).feedback
    assert isinstance(typed, Feedback)
    assert (typed.event_id, typed.user_id, typed.kind) == (entry["id"], "712", "explicit_positive")
    assert typed.ts_ms == T0


def test_feedback_that_is_sent_again_counts_once(
    client: falcon.testing.TestClient, log: MemoryLog
) -> None:
    said = {**LIKE, "event_id": "e1", "ts_ms": T0}
    answers = [client.post("/v1/feedback", json=said).json for _ in range(3)]
    assert answers == [{"stored": 1, "entries": [{"outcome": "stored", "id": "e1"}]}] * 3
    del said["event_id"]  # then it is made of the rest
    ids = {client.post("/v1/feedback", json=said).json["entries"][0]["id"] for _ in range(3)}
    assert len(ids) == 1
    intake = Intake(RULES)
    intake.take(records(log, "interactions"))
    assert (intake.accounting.feedback, intake.accounting.duplicate) == (2, 4)


@pytest.mark.parametrize("as_lines", [False, True])
def test_a_batch_tells_what_became_of_each_event(
    client: falcon.testing.TestClient, log: MemoryLog, *, as_lines: bool
) -> None:
    large = {**EVENT, "event_id": "e3", "context": {"page": "x" * 3_000}}
    nameless = {name: value for name, value in EVENT.items() if name != "event_id"}
    events = [EVENT, {**EVENT, "ts_ms": T0 // 1_000}, large, nameless, 7]
    if as_lines:
        body = b"\n".join(map(msgspec.json.encode, events))
        headers = {"Content-Type": "application/x-ndjson"}
    else:
        body, headers = msgspec.json.encode(events), {"Content-Type": "application/json"}
    result = client.post("/v1/log/interactions", body=body, headers=headers)
    assert result.status_code == 202
    stored, seconds, too_large, named, garbage = result.json["entries"]
    assert result.json["stored"] == 2
    assert stored == {"outcome": "stored", "id": "e1"}
    assert (seconds["outcome"], seconds["where"]) == ("invalid", "$.ts_ms")
    assert seconds["reason"].endswith("these look like seconds, multiply by 1000")
    assert (too_large["outcome"], too_large["id"]) == ("invalid", "e3")
    assert too_large["reason"].startswith("too large: want a record of at most 2000 bytes")
    assert (garbage["outcome"], garbage["where"]) == ("invalid", "$")
    came = [decode_interaction(value) for value in values(log, "interactions")]
    assert [getattr(event, "event_id", None) for event in came] == ["e1", named["id"]]


def test_a_single_event_that_is_wrong_is_a_bad_request(
    client: falcon.testing.TestClient, log: MemoryLog
) -> None:
    for path, body, where in (
        ("/v1/feedback", msgspec.json.encode({**LIKE, "type": "buy"}), "body.type"),
        ("/v1/feedback", b"{", "body"),
        ("/v1/feedback", b"", "body"),
        ("/v1/log/interactions", b'{"v":1,"erase_user":"712"}', "body.erase_user"),
        ("/v1/log/interactions", b"[" * 100_000, None),
        ("/v1/log/interactions", b'{"a":' * 100_000, "body"),
        ("/v1/log/interactions", b"[1, 2", None),
        ("/v1/log/interactions", b"\xff", "body"),
        ("/v1/graph/edges", msgspec.json.encode({**LIKE, "kind": "none"}), "body"),
        ("/v1/items:bulk", b'{"id": ""}', "body.id"),
        ("/v1/process", b"[nan]", None),
    ):
        headers = {"Content-Type": "application/json"}
        result = client.post(path, body=body, headers=headers)
        assert result.status_code == 400, (path, body[:50], result.json)
        assert [each["where"] for each in result.json.get("errors", [])] == (
            [] if where is None else [where]
        )
    assert not log.end("interactions")[0]


def test_a_batch_has_a_limit_and_may_be_empty(
    client: falcon.testing.TestClient, log: MemoryLog
) -> None:
    assert client.post("/v1/feedback", json=[]).json == {"stored": 0, "entries": []}
    result = client.post("/v1/feedback", json=[LIKE] * 10_000)
    assert (result.status_code, result.json["stored"]) == (202, 10_000)
    result = client.post("/v1/feedback", json=[LIKE] * 10_001)
    assert (result.status_code, result.json["type"]) == (413, "/problems/too-many-entries")
    assert log.end("interactions") == {0: 10_000}


def test_what_was_not_stored_is_named_so_that_it_can_be_sent_again() -> None:
    away = "unavailable: the log did not take it within 5 s"
    client = client_of(writing(Failing(["", away, "too large: 9"])))
    events = [EVENT, {"v": 2}, {**EVENT, "event_id": "e2"}, {**EVENT, "event_id": "e3"}]
    result = client.post("/v1/log/interactions", json=events)
    assert result.status_code == 503
    assert result.headers["retry-after"] == "1"
    assert result.json["type"] == "/problems/not-stored"
    assert result.json["detail"].startswith("1 of 4 entries are stored, 3 not")
    assert [(each["where"], each["outcome"], each["id"]) for each in result.json["errors"]] == [
        ("body[1]", "invalid", ""),
        ("body[2]", "not_stored", "e2"),
        ("body[3]", "invalid", "e3"),
    ]


def test_a_broker_that_is_away_is_a_problem_of_ours() -> None:
    nowhere = KafkaSettings(servers=(f"127.0.0.1:{free_port()}",))
    client = client_of(writing(KafkaSink(nowhere, delivery_s=0.3)))
    result = client.post("/v1/feedback", json=LIKE)
    assert (result.status_code, result.json["type"]) == (503, "/problems/not-stored")
    (error,) = result.json["errors"]
    assert error["id"]
    assert error["what"] == "unavailable: the log did not take it within 0.3 s"
    assert nowhere.servers[0] not in result.text
    assert client.delete("/v1/users/712").status_code == 503
    assert client.put("/v1/items/1", json={"attributes": {}}).status_code == 503


def test_edges_go_past_the_rules(client: falcon.testing.TestClient, log: MemoryLog) -> None:
    edge = {"user_id": 712, "item_id": 5239, "kind": "explicit_negative", "event_id": "e1"}
    assert client.post("/v1/graph/edges", json=[edge]).json["stored"] == 1
    (record,) = records(log, "feedback")
    typed = Feedback(1, "e1", "712", "5239", T0, "explicit_negative", 1.0)
    assert (record.key, decode_feedback(record.value)) == (b"712", typed)
    assert not log.end("interactions")[0]


def test_process_types_without_storing(client: falcon.testing.TestClient, log: MemoryLog) -> None:
    events = [
        EVENT,
        {**EVENT, "signals": {"hate": 1}},
        {"v": 1},
        {"v": 1, "erase_user": 712},
        {**EVENT, "signals": {}},
    ]
    result = client.post("/v1/process", json=events)
    assert result.status_code == 200
    assert result.json["rules_version"] == "kuairand-1"
    clicked, hated, wrong, erasure, skipped = result.json["events"]
    assert clicked == {"kind": "implicit_positive", "weight": 0.5, "rule": "watched"}
    assert hated == {"kind": "explicit_negative", "weight": 1.0, "rule": "hate"}
    missing = "invalid: this field is missing"
    assert wrong == {"kind": "", "where": "$.user_id", "reason": missing}
    assert erasure == {"kind": "erasure"}
    assert skipped["rule"] == "skipped"
    assert client.post("/v1/process", json={"v": 3}).json["events"][0]["where"] == "$.user_id"
    assert client.post("/v1/process", json=[]).json["events"] == []
    assert not any(log.end(topic)[0] for topic in topics.TOPICS)


def test_a_user_is_forgotten_in_both_topics(log: MemoryLog) -> None:
    client = client_of(writing(LogSink(log), pseudonym=lambda user_id: f"u_{user_id}"))
    said = {"attributes": {"city": "Oslo"}}
    assert client.put("/v1/users/712", json=said).json["entries"][0]["id"] == "712"
    assert client.delete("/v1/users/712").status_code == 202
    (erasure,) = records(log, "interactions")
    assert (erasure.key, erasure.value) == (b"u_712", b'{"v":1,"erase_user":"u_712"}')
    put, gone = records(log, "users")
    assert (put.key, gone.key, decode_described(gone.value)) == (b"u_712", b"u_712", None)
    assert Intake(RULES).take([erasure]).accounting.erasure == 1


def test_what_is_said_about_items_comes_back_and_can_be_taken_back(log: MemoryLog) -> None:
    table = MemoryTable()
    client = client_of(writing(LogSink(log), table))
    assert client.get("/v1/items").status_code == 503  # nothing is published yet
    rows = [{"id": f"i{n:02}", "attributes": {"n": n, "tags": ["sea"]}} for n in range(25)]
    assert client.put("/v1/items/i%201", json={"attributes": {"n": 1}}).status_code == 202
    assert client.delete("/v1/items/i07").status_code == 202
    body = b"".join(msgspec.json.encode(row) + b"\n" for row in rows)
    lines = {"Content-Type": "application/x-ndjson"}
    assert client.post("/v1/items:bulk", body=body, headers=lines).json["stored"] == 25
    came = records(log, "items")
    assert [one.key for one in came[:2]] == [b"i 1", b"i07"]
    publish(table, came)
    pages, after = [], ""
    for _ in range(3):
        page = client.get("/v1/items", params={"limit": 10, "after": after}).json
        pages.append(len(page["rows"]))
        after = page.get("after", "")
    assert (pages, after) == ([10, 10, 6], "")
    exported = client.get("/v1/items", headers={"Accept": "application/x-ndjson"})
    assert exported.headers["content-type"] == "application/x-ndjson"
    listed = [msgspec.json.decode(line) for line in exported.content.splitlines()]
    assert listed == [{"id": "i 1", "attributes": {"n": 1}}, *rows]
    assert client.get("/v1/items/i03").json == rows[3]
    result = client.get("/v1/items/i99")
    assert (result.status_code, result.json["type"]) == (404, "/problems/unknown-item")
    # What was exported can be imported.
    again = client.post("/v1/items:bulk", body=exported.content, headers=lines)
    assert again.json["stored"] == 26
    assert client.get("/v1/items", params={"limit": 0}).status_code == 400
    result = client.put("/v1/items/x", json={"attributes": {"deep": {"er": 1}}})
    assert result.status_code == 400


def publish(table: MemoryTable, came: list[Record]) -> None:
    """Do with attributes what the learner does."""
    table.begin(Layout(dim=2))
    attributes: dict[str, dict[str, Any]] = {}
    for record in came:
        described = decode_described(record.value)
        attributes[(record.key or b"").decode()] = (
            {} if described is None else dict(described.attributes)
        )
    barrier = Barrier(step=1, at_ms=60, published_ms=99)
    table.publish(Update(barrier=barrier, item_attributes=attributes))
    table.flip()


def test_users_are_listed_by_the_names_that_the_log_has(log: MemoryLog) -> None:
    table = MemoryTable()
    client = client_of(writing(LogSink(log), table, pseudonym=lambda user_id: f"u_{user_id}"))
    table.begin(Layout(dim=2))
    barrier = Barrier(step=1, at_ms=60, published_ms=99)
    table.publish(Update(barrier=barrier, user_attributes={"u_712": {"city": "Oslo"}}))
    table.flip()
    assert client.get("/v1/users/712").json == {"id": "712", "attributes": {"city": "Oslo"}}
    assert client.get("/v1/users/713").status_code == 404
    assert [row["id"] for row in client.get("/v1/users").json["rows"]] == ["u_712"]


def test_who_may_write() -> None:
    for route in writing(LogSink(MemoryLog())):
        reads = route.method == "GET" or route.path == "/v1/process"
        assert route.role == (Role.READER if reads else Role.WRITER), route.path


def test_the_document_describes_the_entries() -> None:
    told = document(writing(LogSink(MemoryLog())), version="1")
    body = told["paths"]["/v1/feedback"]["post"]["requestBody"]["content"]
    assert set(body) == {"application/json", "application/x-ndjson"}
    assert {"UserFeedback", "Edge", "Row", "Interaction", "Outcomes"} <= set(
        told["components"]["schemas"]
    )


SCHEMA = schemathesis.openapi.from_dict(
    document(writing(LogSink(MemoryLog()), EMPTY := MemoryTable()), version="1")
)
SCHEMA.app = client_of(writing(LogSink(MemoryLog()), EMPTY)).app
publish(EMPTY, [])


@schemathesis.serializer("application/x-ndjson")
def as_lines(_: schemathesis.SerializationContext, value: Any) -> bytes:
    entries = value if isinstance(value, list) else [value]
    return b"".join(msgspec.json.encode(entry) + b"\n" for entry in entries)


@pytest.mark.slow
@SCHEMA.parametrize()
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_no_request_breaks_it(case: schemathesis.Case[Any]) -> None:
    # A time may be wrong although it is a number, a wrong entry does not refuse its list, and the
    # guard here lets everybody in.
    excluded = [positive_data_acceptance, negative_data_rejection, ignored_auth]
    case.call_and_validate(excluded_checks=excluded)


@pytest.fixture
def kafka_log(kafka: KafkaSettings) -> Iterator[KafkaLog]:
    topics.create(kafka)
    log = KafkaLog(kafka)
    yield log
    log.close()


def test_what_is_acknowledged_is_on_the_broker(kafka: KafkaSettings, kafka_log: KafkaLog) -> None:
    sink = KafkaSink(kafka, delivery_s=30)
    app = create_app(writing(sink), Guard(), ServingSettings())

    async def ask() -> list[falcon.testing.Result]:
        async with falcon.testing.ASGIConductor(app) as conductor:
            singles: list[Awaitable[falcon.testing.Result]] = [
                conductor.simulate_post("/v1/feedback", json={**LIKE, "event_id": n})
                for n in range(50)
            ]
            batch = [{**EVENT, "event_id": f"b{n}", "user_id": n} for n in range(1_000)]
            answers = await asyncio.gather(
                *singles, conductor.simulate_post("/v1/log/interactions", json=batch)
            )
            await sink.close()
        return list(answers)

    answers = asyncio.run(ask())
    assert [answer.status_code for answer in answers] == [202] * 51
    told = {entry["id"] for answer in answers for entry in answer.json["entries"]}
    came = kafka_log.read("interactions", kafka_log.start("interactions"), limit=10_000)
    while kafka_log.lag("interactions", positions := behind(kafka_log, came)):
        came += kafka_log.read("interactions", positions, limit=10_000)
    assert {str(msgspec.json.decode(one.value)["event_id"]) for one in came} == told
    assert len(came) == 1_050


def behind(log: KafkaLog, came: list[Record]) -> dict[int, int]:
    positions = log.start("interactions")
    for record in came:
        positions[record.partition] = max(positions[record.partition], record.offset + 1)
    return positions
