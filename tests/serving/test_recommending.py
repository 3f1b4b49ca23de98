"""Requests that wait together are answered together, each list from one model."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest.mock import patch

import pytest

from serving import recommending
from serving.live import Copy
from serving.recommending import AT_ONCE, Ask, Recommender
from serving.retrieval import recommend
from tests.serving.world import following, publish, published, update, user


def test_lists_of_one_request_are_of_one_model() -> None:
    table = published()
    with following(table) as live:
        first = live.copy
        assert first is not None

        async def flip_in_between() -> set[int]:
            recommender = Recommender(live)
            asked = asyncio.create_task(recommender.recommend_all([Ask(n=1)] * (2 * AT_ONCE + 1)))
            for _ in range(2):  # asked, and the first of them answered
                await asyncio.sleep(0)
            live._copy = second
            return {answer.model for answer in await asked}

        publish(table, update(2))
        second = Copy(table.reader())
        live.__exit__()  # this test alone says which model is in view
        live._copy = first
        assert asyncio.run(flip_in_between()) == {second.epoch}


class Broken:
    """A reader with a defect where users are read."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)

    def users(self, user_ids: Any) -> Any:
        raise ValueError("a defect")


def test_a_defect_in_reading_a_user_costs_the_vector_and_not_the_list(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with following(published(update(users=user("u", [1, 0])))) as live:
        assert live.copy is not None
        live.copy.reader = Broken(live.copy.reader)
        answer = asyncio.run(Recommender(live).recommend(Ask(user_id="u")))
    assert answer.answered_by == "popularity"
    assert answer.items
    assert "users cannot be read" in caplog.text


def test_requests_that_wait_together_are_scored_together() -> None:
    names = [f"u{n}" for n in range(5)]
    table = published(*(update(users=user(name, [1, 0])) for name in names))

    async def ask_together() -> None:
        recommender = Recommender(live)
        asks = [Ask(user_id=name) for name in names]
        await asyncio.gather(*(recommender.recommend(ask) for ask in asks))  # reads the users
        with patch.object(recommending, "recommend", wraps=recommend) as scored:
            await asyncio.gather(*(recommender.recommend(ask) for ask in asks))
        assert [len(call.args[1]) for call in scored.call_args_list] == [len(names)]

    with following(table) as live:
        asyncio.run(ask_together())
