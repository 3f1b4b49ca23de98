"""What the API answers under load while Redis is killed, and while models are flipped."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from deploy.bench.load import Answer, get, loading, post
from deploy.service import Service, wait_until
from serving.rows import Barrier, ItemRows, Layout, UserRows
from serving.table import Table, Update

CONNECTIONS: Final = 8

IN_A_ROW: Final = 50
"""Answers that must say the same before it counts as the state of things."""

PATIENCE_S: Final = 120.0
"""How long a state is waited for."""

ITEMS: Final = 200
USERS: Final = 50
DIM: Final = 8
N: Final = 10


def outage(
    port: int, requests: Sequence[bytes], redis: Service, *, rate: float, seconds: float
) -> dict[str, Any]:
    """Kill Redis under load, start it again, and return what was answered meanwhile.

    Parameters
    ----------
    port
        Of an API that answers what is fresh.
    requests
        For lists, taken in turn.
    redis
        Of the API and of a learner that follows. It keeps nothing on disk, so everything must be
        published again.
    rate
        Requests per second.
    seconds
        How long it stays away, at least.

    Returns
    -------
    Figures of the whole load, and in seconds ``stale_after_s``, from the kill to the last answer
    that did not say that it is stale, and ``fresh_after_s``, from when Redis was started to the
    last answer that did.

    """
    told: list[tuple[float, bool, int]] = []  # when it came, whether stale, of which model

    def look(answer: Answer) -> None:
        if answer.status == 200:
            found = json.loads(answer.body)
            told.append((answer.came_s, found["stale"], found["model"]))

    def says(*, stale: bool) -> bool:
        latest = told[-IN_A_ROW:]
        return len(latest) == IN_A_ROW and all(each[1] == stale for each in latest)

    with loading(port, requests, rate=rate, connections=CONNECTIONS, look=look) as answers:
        wait_until(lambda: says(stale=False), PATIENCE_S, "answers that are fresh")
        killed_s = time.perf_counter()
        redis.kill()
        wait_until(
            lambda: says(stale=True) and time.perf_counter() >= killed_s + seconds,
            PATIENCE_S,
            "answers that say that they are stale",
        )
        back_s = time.perf_counter()
        redis.start()
        wait_until(lambda: says(stale=False), PATIENCE_S, "answers that are fresh again")
    away = [stale for came_s, stale, _ in told if killed_s <= came_s < back_s]
    fresh_s = max(came_s for came_s, stale, _ in told if not stale and came_s < back_s)
    stale_s = max(came_s for came_s, stale, _ in told if stale)
    return answers.figures() | {
        "away_s": round(back_s - killed_s, 2),
        "answers_away": len(away),
        "stale_share": round(sum(away) / len(away), 4),
        "stale_after_s": round(max(0.0, fresh_s - killed_s), 3),
        "fresh_after_s": round(max(0.0, stale_s - back_s), 3),
        "models": len({model for _, _, model in told}),
    }


class Canary:
    """Models of which each tells its number in every row and step, so that no two mix unseen.

    Of model ``v`` every vector is the axis ``v`` and every bias is ``v``: two vectors of one model
    have the product 1, those of neighbours 0.

    Parameters
    ----------
    table
        Where they are published.

    """

    def __init__(self, table: Table) -> None:
        self.table = table
        self.numbers: dict[int, int] = {}  # by epoch

    def bring(self) -> int:
        """Bring a model into view that was not there before, and return its number."""
        epoch, number = self.table.begin(Layout(dim=DIM)), len(self.numbers) + 1
        self.numbers[epoch] = number
        now_ms = time.time_ns() // 1_000_000
        self.table.publish(
            Update(
                barrier=Barrier(step=number, at_ms=number, published_ms=now_ms),
                items=ItemRows(
                    [f"i{row}" for row in range(ITEMS)],
                    self._axes(number, ITEMS),
                    np.full(ITEMS, number, np.float32),
                    np.zeros((ITEMS, 0)),
                    np.full(ITEMS, number),
                ),
                users=UserRows(
                    [f"u{row}" for row in range(USERS)],
                    self._axes(number, USERS),
                    np.full(USERS, number),
                ),
            )
        )
        self.table.flip()
        return number

    def pin(self, number: int | None) -> None:
        """Give readers a model of before, or the newest again."""
        epochs = {value: epoch for epoch, value in self.numbers.items()}
        self.table.pin(None if number is None else epochs[number])

    def requests(self) -> list[bytes]:
        """Return what to ask: lists, batches of lists, ranked candidates."""
        users = [f"u{row}" for row in range(USERS)]
        batch = {"requests": [{"user": user, "n": N} for user in users]}
        asked = []
        for user in users:
            rank = {"user": user, "items": [f"i{row}" for row in range(N)]}
            asked += [
                get(f"/v1/recommendations/{user}?n={N}"),
                post("/v1/recommendations:batch", json.dumps(batch).encode()),
                post("/v1/rank", json.dumps(rank).encode()),
            ]
        return asked

    @staticmethod
    def _axes(number: int, n: int) -> Any:
        axes = np.zeros((n, DIM), np.float32)
        axes[:, number % DIM] = 1
        return axes


def model_of(answer: Mapping[str, Any], numbers: Mapping[int, int]) -> int | None:
    """Return the number of the model that all of an answer is of; ``None`` if it is of several.

    Parameters
    ----------
    answer
        What came for one of :meth:`Canary.requests`.
    numbers
        Of the models, by epoch.

    Examples
    --------
    >>> items = [{"parts": {"taste": 1.0, "popularity": 2.0}}]
    >>> answer = {"model": 17, "step": 2, "answered_by": "vector", "items": items}
    >>> model_of(answer, {16: 1, 17: 2})
    2
    >>> model_of(answer | {"model": 16}, {16: 1, 17: 2}) is None
    True

    """
    if "answers" in answer:
        found = {model_of(each, numbers) for each in answer["answers"]}
        return found.pop() if len(found) == 1 else None
    told = answer.get("ranked", answer)
    number = numbers[told["model"]]
    taste = float(told["answered_by"] == "vector")  # else the user could not be read in time
    parts = [(item["parts"]["taste"], item["parts"]["popularity"]) for item in told["items"]]
    return number if told["step"] == number and set(parts) == {(taste, number)} else None


def flips(port: int, canary: Canary, *, rate: float, models: int) -> dict[str, Any]:
    """Flip and pin models under load, and return how many answers were of which, and of several.

    Parameters
    ----------
    port
        Of an API that has a model of the canary in view.
    canary
        Brings the others.
    rate
        Requests per second.
    models
        How many are brought into view; at each second one the one before is pinned for a while.

    """
    counted: Counter[int | None] = Counter()

    def look(answer: Answer) -> None:
        if answer.status == 200:
            counted[model_of(json.loads(answer.body), canary.numbers)] += 1

    def answered(number: int) -> None:
        enough = counted[number] + IN_A_ROW
        wait_until(
            lambda: counted[number] >= enough, PATIENCE_S, f"answers of the model number {number}"
        )

    with loading(port, canary.requests(), rate=rate, connections=CONNECTIONS, look=look) as answers:
        for _ in range(models):
            number = canary.bring()
            answered(number)
            if number % 2 == 0:
                canary.pin(number - 1)
                answered(number - 1)
                canary.pin(None)
                answered(number)
    mixed = counted.pop(None, 0)
    return answers.figures() | {
        "mixed": mixed,
        "answers_by_model": {str(number): n for number, n in sorted(counted.items()) if number},
    }
