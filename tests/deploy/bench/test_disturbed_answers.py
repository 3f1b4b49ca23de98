"""The canary tells an answer of two models from one of one model."""

from __future__ import annotations

import copy
import json
from itertools import pairwise
from typing import Any

import pytest

from deploy.bench.disturbed import DIM, ITEMS, USERS, Canary, model_of
from serving.live import Live
from serving.table import MemoryTable
from tests.serving.world import Asking, following, once, reads

N = 5


def asked(live: Live) -> list[dict[str, Any]]:
    """Return an answer of each kind that the canary asks for."""

    async def all_of_them(asking: Asking) -> list[Any]:
        batch = {"requests": [{"user": "u1"}, {"user": "u2"}]}
        rank = {"user": "u1", "items": ["i1", "i2"]}
        return [
            await asking("/v1/recommendations/{user}", user="u1", n=N),
            await asking("/v1/recommendations:batch", body=batch),
            await asking("/v1/rank", body=rank),
        ]

    return [reads(each) for each in once(Asking(live), all_of_them)]


def test_every_kind_of_answer_is_known_by_its_model() -> None:
    canary = Canary(MemoryTable())
    for number in (1, 2):
        assert canary.bring() == number
        with following(canary.table) as live:
            assert [model_of(each, canary.numbers) for each in asked(live)] == [number] * 3
    canary.pin(1)
    with following(canary.table) as live:
        assert [model_of(each, canary.numbers) for each in asked(live)] == [1] * 3
    canary.pin(None)
    with following(canary.table) as live:
        assert [model_of(each, canary.numbers) for each in asked(live)] == [2] * 3


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_an_answer_of_two_models_is_of_none(kind: int) -> None:
    canary = Canary(MemoryTable())
    canary.bring()
    with following(canary.table) as live:
        first = asked(live)[kind]
    canary.bring()
    with following(canary.table) as live:
        second = asked(live)[kind]

    def lists(answer: dict[str, Any]) -> Any:
        return answer["answers"][-1] if "answers" in answer else answer.get("ranked", answer)

    assert model_of(first, canary.numbers) == 1
    for what in ("model", "step"):
        mixed = copy.deepcopy(first)
        lists(mixed)[what] = lists(second)[what]
        assert model_of(mixed, canary.numbers) is None
    mixed = copy.deepcopy(first)
    lists(mixed)["items"][-1] = lists(second)["items"][-1]
    assert model_of(mixed, canary.numbers) is None
    mixed = copy.deepcopy(first)
    for item in lists(mixed)["items"]:
        item["parts"]["taste"] = 0.0  # a user of one model, items of the other
    assert model_of(mixed, canary.numbers) is None


def test_a_batch_of_two_models_is_of_none() -> None:
    canary, answers = Canary(MemoryTable()), []
    for _ in range(2):
        canary.bring()
        with following(canary.table) as live:
            answers.append(asked(live)[0])
    assert model_of({"answers": answers}, canary.numbers) is None
    assert model_of({"answers": answers[:1] * 2}, canary.numbers) == 1


def test_neighbours_have_nothing_in_common() -> None:
    canary = Canary(MemoryTable())
    vectors = []
    for _ in range(DIM + 1):
        canary.bring()
        reader = canary.table.reader()
        assert len(reader.item_ids()) == ITEMS
        vectors.append(
            (reader.items(["i0"]).vectors[0], reader.users([f"u{USERS - 1}"]).vectors[0])
        )
    for (item, user), (next_item, next_user) in pairwise(vectors):
        assert item @ user == 1
        assert item @ next_user == user @ next_item == 0


def test_requests_are_whole() -> None:
    requests = Canary(MemoryTable()).requests()
    assert len(requests) == 3 * USERS
    for request in requests:
        head, body = request.split(b"\r\n\r\n", 1)
        if head.startswith(b"POST"):
            json.loads(body)
