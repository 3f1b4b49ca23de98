"""Dead letters over HTTP: found, refused where they cannot be mended, and sent once more, once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any

import falcon.testing
import pytest

from serving.api.app import create_app
from serving.api.letters import KafkaLetterbox, routes
from serving.api.routes import Principal, Role
from stream.events import DeadLetter, encode
from stream.kafka import KafkaLog
from stream.log import Record, advance
from stream.settings import KafkaSettings, ServingSettings, Settings
from stream.topics import DEAD, INTERACTIONS, create

SECONDS = {"scale": {"ts_ms": 1000}}


class Guard:
    """Lets operators in, of whom everybody is one."""

    async def admit(self, headers: Mapping[str, str], role: Role | None, client: str) -> Principal:
        assert role is Role.OPERATOR
        return Principal()


class Desk:
    """A client of the routes."""

    def __init__(self, letterbox: KafkaLetterbox | None) -> None:
        settings = ServingSettings(request_s=120.0)  # a broker's first transaction takes a while
        self._client = falcon.testing.TestClient(create_app(routes(letterbox), Guard(), settings))

    def list(self, query: str = "") -> Any:
        return self._client.simulate_get("/v1/dead-letters", query_string=query)

    def redrive(self, **asked: Any) -> Any:
        return self._client.simulate_post("/v1/dead-letters:redrive", json=asked)


def dead(number: int, ts_ms: int) -> DeadLetter:
    event = {
        "v": 1,
        "event_id": f"e{number}",
        "user_id": "712",
        "item_id": "5239",
        "ts_ms": ts_ms,
        "signals": {"click": 1},
    }
    original = json.dumps(event).encode()
    return DeadLetter(original, "invalid: looks like seconds", "$.ts_ms", INTERACTIONS, 0, number)


@pytest.fixture
def log(kafka: KafkaSettings) -> Iterator[KafkaLog]:
    create(kafka)
    with closing(KafkaLog(kafka)) as log:
        letters = [dead(0, 1_650_812_741), dead(1, -1), dead(2, 1_650_812_742)]
        odd = DeadLetter(b"\xff" * 5_000, "undecodable: want JSON", "", INTERACTIONS, 0, 3)
        for letter in (*letters, odd):
            log.append(DEAD, [(None, encode(letter))], timestamp_ms=0)  # the broker's time counts
        yield log


@pytest.mark.slow
@pytest.mark.usefixtures("log")
def test_letters_are_counted_by_fault_and_shown_the_newest_first(kafka: KafkaSettings) -> None:
    desk = Desk(KafkaLetterbox(Settings(kafka=kafka)))
    found = desk.list().json
    assert (found["total"], found["looked_at"]) == (4, 4)
    assert [(each["reason"], each["place"], each["letters"]) for each in found["groups"]] == [
        ("invalid", "$.ts_ms", 3),
        ("undecodable", "", 1),
    ]
    newest = found["letters"][0]
    assert newest["original"].startswith(r"\xff\xff")
    assert (newest["cut"], newest["user_id"]) == (True, None)
    times = [each["time_ms"] for each in found["letters"]]
    assert times == sorted(times, reverse=True)
    found = desk.list("reason=invalid&limit=2&redriven=false").json
    assert found["total"] == 3
    assert {each["place"] for each in found["letters"]} == {"$.ts_ms"}
    assert len(found["letters"]) == 2
    assert desk.list("place=$.user_id").json["letters"] == []


@pytest.mark.slow
def test_what_can_be_mended_is_sent_once_and_the_rest_is_named(
    kafka: KafkaSettings, log: KafkaLog
) -> None:
    desk = Desk(KafkaLetterbox(Settings(kafka=kafka)))
    before = log.end(INTERACTIONS)
    would = desk.redrive(reason="invalid", fix=SECONDS).json
    assert (would["dry_run"], would["ready"], would["sent"]) == (True, 2, 0)
    assert log.end(INTERACTIONS) == before
    (hopeless,) = would["hopeless"]
    assert hopeless["place"] == "$.ts_ms"
    one = desk.list("reason=invalid&limit=1").json["letters"][0]["letter"]
    did = desk.redrive(letters=[one], fix=SECONDS, dry_run=False).json
    assert (did["sent"], did["would_die_again"]) == (1, 0)
    did = desk.redrive(place="$.ts_ms", fix=SECONDS, dry_run=False).json
    assert (did["sent"], did["redriven_before"], did["would_die_again"]) == (1, 1, 1)
    again = desk.redrive(place="$.ts_ms", fix=SECONDS, dry_run=False).json
    assert (again["sent"], again["redriven_before"]) == (0, 2)
    records: list[Record] = []
    while log.lag(INTERACTIONS, advance(before, records)):
        records += log.read(INTERACTIONS, advance(before, records), limit=10)
    assert sorted(json.loads(each.value)["event_id"] for each in records) == ["e0", "e2"]
    assert desk.list("redriven=true").json["total"] == 2


@pytest.mark.parametrize(
    ("asked", "status", "words"),
    [
        ({"fix": {}}, 422, "changes nothing"),
        ({"fix": {"scale": {"ts_ms": 0}}}, 422, "not 0"),
        ({"fix": {"rename": {"signals.*": "a"}}}, 422, "only scale and cast"),
        # An expression could read the server's files, so there is no place for one.
        ({"fix": {**SECONDS, "when": "TRUE"}}, 400, "when"),
        ({"where": "TRUE"}, 400, "where"),
        ({"fix": SECONDS}, 404, "without a broker"),
    ],
)
def test_what_cannot_be_done_is_refused(asked: Any, status: int, words: str) -> None:
    answer = Desk(None).redrive(**asked)
    assert answer.status_code == status
    assert words in answer.json["detail"]


def test_a_broker_that_does_not_answer_is_told() -> None:
    nowhere = KafkaSettings(servers=("127.0.0.1:1",))
    answer = Desk(KafkaLetterbox(Settings(kafka=nowhere))).list()
    assert answer.status_code == 503
    assert answer.json["type"] == "/problems/unavailable"
