"""What an operator does is written down before and after; what cannot be written is not done."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from serving.api.audit import Audit, Entry, audited, recorded
from serving.api.problems import Problem
from serving.api.routes import Answer, Call, Principal, Role, Route


class Wanted(msgspec.Struct):
    epoch: int
    note: str = ""


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def route(handler: Any, **given: Any) -> Route:
    usual: dict[str, Any] = {
        "method": "POST",
        "path": "/v1/model/{what}",
        "summary": "",
        "role": Role.OPERATOR,
    }
    return Route(handler=handler, **(usual | given))


def ask(one: Route, call: Call) -> Any:
    async def answer() -> Any:
        return await one.handler(call)

    return asyncio.run(answer())


CALL = Call(
    path={"what": "promote"},
    body=Wanted(7, "a\nb"),
    headers={"x-api-key": "tg_secret"},
    principal=Principal(name="ann", role=Role.OPERATOR),
)


async def succeed(_: Call) -> str:
    return "done"


async def refuse(_: Call) -> str:
    raise Problem(409, "busy", "another one")


async def answer_409(_: Call) -> Answer:
    return Answer(body={}, status=409)


async def fail(_: Call) -> str:
    raise ZeroDivisionError


@pytest.mark.parametrize(
    ("handler", "outcome", "why"),
    [
        (succeed, "done", None),
        (refuse, "failed", "busy"),
        (answer_409, "failed", None),
        (fail, "failed", "ZeroDivisionError"),
    ],
)
def test_an_action_leaves_what_was_asked_and_how_it_ended(
    tmp_path: Path, handler: Any, outcome: str, why: str | None
) -> None:
    path = tmp_path / "logs" / "audit.jsonl"
    wrapped = audited(route(handler), Audit(path))
    try:
        ask(wrapped, CALL)
    except (Problem, ZeroDivisionError):
        assert outcome == "failed"
    asked, ended = lines(path)
    assert asked["who"] == ended["who"] == "ann"
    assert asked["what"] == ended["what"] == "POST /v1/model/{what}"
    assert asked["action"] == ended["action"]
    assert asked["told"] == {"what": "promote", "body": {"epoch": 7, "note": "a\nb"}}
    assert (asked["outcome"], ended["outcome"], ended.get("why")) == ("asked", outcome, why)
    assert asked["at_ms"] <= ended["at_ms"]
    assert "tg_secret" not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_request_that_is_cut_off_is_told(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"

    async def never(_: Call) -> None:
        await asyncio.Event().wait()

    async def run() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(audited(route(never), Audit(path)).handler(CALL), 0.2)

    asyncio.run(run())
    assert [line["outcome"] for line in lines(path)] == ["asked", "failed"]


def test_what_cannot_be_written_down_is_not_done(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    done: list[Call] = []

    async def act(call: Call) -> None:
        done.append(call)

    with pytest.raises(Problem, match="nothing was done") as caught:
        ask(audited(route(act), Audit(tmp_path / "file" / "audit.jsonl")), CALL)
    assert (caught.value.status, done) == (503, [])


@pytest.mark.parametrize("given", [{"method": "GET"}, {"role": Role.WRITER}, {"role": None}])
def test_what_is_no_operators_action_is_left_alone(tmp_path: Path, given: Any) -> None:
    one = route(succeed, **given)
    assert audited(one, Audit(tmp_path / "audit.jsonl")) is one


def test_what_is_long_is_told_by_its_size_and_bytes_are_not_told(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    wrapped = audited(route(succeed), Audit(path))
    for body in (Wanted(1, "x" * 10_000), b"raw"):
        call = Call(path={"what": "a"}, body=body, principal=Principal(name="ann"))
        ask(wrapped, call)
    told = [line["told"] for line in lines(path) if line["outcome"] == "asked"]
    assert told == ["10041 bytes", {"what": "a"}]


def test_lines_of_many_at_once_stay_whole(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"

    def write(number: int) -> None:
        for _ in range(20):
            entry = Entry(at_ms=1, action="a", who=str(number), what="w" * 500, outcome="done")
            Audit(path).add(entry)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(line["who"] for line in lines(path)) == sorted("01234" * 20)


def test_what_a_command_does_is_recorded(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    with recorded(Audit(path), "uid 0", "tidegraph keys new", {"name": "shop"}):
        assert [line["outcome"] for line in lines(path)] == ["asked"]
    with pytest.raises(KeyError), recorded(Audit(path), "uid 0", "tidegraph keys new", {}):
        raise KeyError
    outcomes = [line["outcome"] for line in lines(path)]
    assert outcomes == ["asked", "done", "asked", "failed"]
