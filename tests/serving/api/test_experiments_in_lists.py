"""Experiments decide lists as they say, tell so in the answer, and break nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import falcon.testing
import msgspec
import numpy as np
import pytest

from deploy.demo import SharedLog
from deploy.service import free_port
from serving.assembly import build
from serving.experiments.assignment import Arm, Assigner, Experiment, ListSettings
from serving.experiments.redis_store import RedisStore
from serving.experiments.registry import ExperimentRefused, Registry
from serving.experiments.results import Collector, results_of
from serving.experiments.store import MemoryStore, Store
from serving.live import wall_ms
from serving.producing import LogSink
from serving.recommending import Ask, Recommender
from serving.rerank import rerank
from serving.rows import UserRows
from serving.table import MemoryTable
from stream.events import Feedback, encode
from stream.intake import Intake
from stream.log import MemoryLog
from stream.settings import RedisSettings, Settings, load_settings
from stream.topics import FEEDBACK, INTERACTIONS
from stream.typing_rules import load_rules
from tests.serving.world import (
    Asking,
    ask,
    following,
    ids,
    once,
    publish,
    published,
    reads,
    update,
    user,
)

LIST = "/v1/recommendations/{user}"
BATCH = "/v1/recommendations:batch"
SESSION = "/v1/recommendations:session"
USERS = [f"u{n}" for n in range(40)]
HERE = {"host": "127.0.0.1"}
TODAY, OLDER = Arm(name="today"), Arm(name="older", model=1)


def everybody(vector: Sequence[float]) -> UserRows:
    return UserRows(USERS, np.array([vector] * len(USERS), np.float32), np.full(len(USERS), 7))


@pytest.fixture
def table() -> MemoryTable:
    """Give a table of two models, for which everybody has another taste."""
    table = published(update(users=everybody([9, 0])))
    publish(table, update(2, users=everybody([0, 9])))
    return table


def started(table: MemoryTable, *arms: Arm, store: Store | None = None, **others: Any) -> Store:
    store = store or MemoryStore()
    asked = Experiment(name="x", arms=arms, window_s=3_600, **others)
    Registry(store).start(asked, table, at_ms=time.time_ns() // 1_000_000, by="op")
    return store


def asking(live: Any, store: Store, **options: Any) -> Asking:
    made = Asking(live, store, **options)
    made.enrolment.refresh()
    return made


def lists(made: Asking, n: int = 3, **others: Any) -> list[Any]:
    requests = [{"user": one, "n": n, **others} for one in USERS]
    found = once(made, lambda a: a(BATCH, body={"requests": requests}))
    return list(found.answers)


def listed(made: Asking, path: str = LIST, **others: Any) -> Awaitable[Any]:
    return made(path, **others)


def settled(made: Asking, wanted: Callable[[Asking], Awaitable[Any]]) -> Any:
    """Return an answer once what was begun beside it is done too."""

    async def run() -> Any:
        answer = await wanted(made)
        await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()})
        return answer

    return asyncio.run(run())


def test_each_arm_is_answered_from_its_model_and_the_answer_says_so(table: MemoryTable) -> None:
    table.pin(1)
    with following(table) as live:
        first = ids(ask(live, LIST, user="u0", n=3))
    table.pin(None)
    with following(table) as live:
        second = ids(ask(live, LIST, user="u0", n=3))
        assert first != second
        store = started(table, TODAY, OLDER)
        answers = lists(asking(live, store))
        assign = Assigner(Registry(store).get("x").experiment)
        for one, answer in zip(USERS, answers, strict=True):
            told = [("x", "older" if assign(one) else "today")]
            assert [(part.experiment, part.arm) for part in answer.experiments] == told
            assert (answer.model, ids(answer)) == ((1, first) if assign(one) else (2, second))
            alone = once(asking(live, store), partial(listed, user=one, n=3))
            assert (alone.model, ids(alone)) == (answer.model, ids(answer))
    assert {answer.model for answer in answers} == {1, 2}
    assert len({answer.request_id for answer in answers}) == len(USERS)


def test_an_arm_may_be_another_learner_as_one_with_other_rules(table: MemoryTable) -> None:
    strict = Arm(name="strict", learner="strict")
    with pytest.raises(ExperimentRefused, match="no learner publishes under"):
        started(table, TODAY, strict)
    publish(table.beside("strict"), update(9, users=everybody([9, 0]), published_ms=wall_ms()))
    store = started(table, TODAY, strict, Arm(name="hidden", learner="strict", shadow=True))
    with following(table) as live:
        made = asking(live, store)
        for one in USERS:
            answer = settled(made, partial(listed, user=one, n=3))
            (part,) = answer.experiments
            want = (9, "i1") if part.arm == "strict" else (2, "i7")
            assert (answer.step, answer.items[0].item) == want
        made.enrolment.flush()
        assert store.counts("x")["hidden/requests"] == len(USERS)
        Registry(store).stop("x", table, at_ms=1, by="op")
        made.enrolment.refresh()
        assert live.copy_of("strict") is None


def test_an_arm_is_a_model_or_a_learner_and_not_both() -> None:
    with pytest.raises(ValueError, match="a model or a learner"):
        Arm(name="x", model=1, learner="strict")


def test_a_model_of_an_arm_outlives_flips_and_a_restart_and_ends_with_its_experiment(
    table: MemoryTable,
) -> None:
    store = started(table, TODAY, OLDER)
    for step in (3, 4):
        publish(table, update(step, users=everybody([1, 1])))
    with following(table) as live:
        assert {answer.model for answer in lists(asking(live, store))} == {1, 4}
        Registry(store).stop("x", table, at_ms=1, by="op")
        assert {answer.model for answer in lists(asking(live, store))} == {4}
        assert not live.others
    publish(table)
    assert [each.epoch for each in table.epochs()] == [5, 4]


def test_where_its_model_is_gone_an_arm_is_answered_from_the_one_in_view(
    table: MemoryTable, caplog: pytest.LogCaptureFixture
) -> None:
    store = started(table, TODAY, OLDER)
    table.keep([])
    publish(table)
    with following(table) as live:
        answers = lists(asking(live, store))
    assert {answer.model for answer in answers} == {3}
    assert {part.arm for answer in answers for part in answer.experiments} == {"today", "older"}
    assert "the model of epoch 1 is gone" in caplog.text


def test_what_was_met_since_a_model_was_last_learned_is_left_out(table: MemoryTable) -> None:
    table.publish(update(3, seen={one: ["i0", "i7"] for one in USERS}))
    with following(table) as live:
        answers = lists(asking(live, started(table, TODAY, OLDER)), n=8)
    assert {answer.model for answer in answers} == {1, 2}
    for answer in answers:
        assert sorted(ids(answer)) == [f"i{n}" for n in range(1, 7)]


def test_a_diverse_list_is_chosen_from_more_of_the_best(table: MemoryTable) -> None:
    store = started(table, TODAY, Arm(name="diverse", settings=ListSettings(diversity=0.8)))
    with following(table) as live:
        plain = ids(ask(live, LIST, user="u0", n=1))
        copy = live.copy
        assert copy is not None
        best = asyncio.run(Recommender(live).recommend(Ask(user_id="u0", n=5))).items
        rows = copy.catalogue.rows([one.item for one in best])
        scores = np.array([one.score for one in best], np.float32)
        for answer in lists(asking(live, store), n=2):
            (part,) = answer.experiments
            if part.arm == "today":
                assert ids(answer) == [one.item for one in best[:2]]
                continue
            asked = Ask(user_id=answer.user, n=8)
            everything = asyncio.run(Recommender(live).recommend(asked)).items
            rows = copy.catalogue.rows([one.item for one in everything])
            scores = np.array([one.score for one in everything], np.float32)
            chosen = rerank(scores, copy.catalogue.vectors[rows], 2, diversity=0.8)
            assert ids(answer) == [everything[at].item for at in chosen.tolist()]
            assert ids(answer) != [one.item for one in best[:2]]
            assert ids(answer)[0] == plain[0]


def test_an_arm_may_show_again_what_was_met(table: MemoryTable) -> None:
    table.publish(update(3, seen={one: ["i7"] for one in USERS}))
    store = started(table, TODAY, Arm(name="again", settings=ListSettings(leave_out_seen=False)))
    with following(table) as live:
        for answer in lists(asking(live, store), n=8):
            assert ("i7" in ids(answer)) == (answer.experiments[0].arm == "again")


def test_mixed_lists_hold_items_of_both_and_feedback_is_credited(table: MemoryTable) -> None:
    store, log = started(table, TODAY, OLDER, design="interleave"), MemoryLog()
    with following(table) as live:
        made = asking(live, store)
        answers = [answer for _ in range(3) for answer in lists(made, n=4)]
        asks = [Ask(user_id="u0", n=4, model=model) for model in (2, 1)]
        of = [ids(each) for each in asyncio.run(Recommender(live).recommend_all(asks))]
    assert of[0] != of[1]
    made.enrolment.flush()
    later_ms = time.time_ns() // 1_000_000 + 1
    for n, answer in enumerate(answers):
        assert [(part.experiment, part.arm) for part in answer.experiments] == [("x", None)]
        assert answer.model == 2
        teams = store.shown("x", [answer.request_id])[answer.request_id]
        assert set(teams) == set(ids(answer))
        assert sorted(teams.values()) == [0, 0, 1, 1]
        for item, team in teams.items():
            assert item in of[team]
        assert not set(ids(answer)) <= set(of[0])
        liked = next(item for item in ids(answer) if teams[item] == 1)
        event = Feedback(1, f"e{n}", answer.user, liked, later_ms, "implicit_positive", 1.0)
        event = msgspec.structs.replace(event, request_id=answer.request_id)
        log.append(FEEDBACK, [(answer.user.encode(), encode(event))], timestamp_ms=later_ms)
    Collector(store, log).catch_up(later_ms + 4_000_000)
    (arm,) = results_of(store, "x").arms
    assert (arm.arm, arm.exposed, arm.units, arm.mean.value) == ("older", 40, 40, 1.0)


def test_whoever_only_looks_sees_the_list_and_meets_nothing(table: MemoryTable) -> None:
    hidden = Arm(name="hidden", model=1, shadow=True)
    store = started(table, TODAY, OLDER, hidden)
    with following(table) as live:
        made = asking(live, store)
        for one in USERS[:5]:
            seen = settled(made, partial(listed, user=one, n=4, preview=True))
            made.enrolment.flush()
            assert (store.exposed("x", 0), store.counts("x"), seen.request_id) == ([], {}, "")
            got = settled(made, partial(listed, user=one, n=4))
            assert (ids(seen), seen.experiments) == (ids(got), got.experiments)
            made.enrolment.flush()
            assert [unit for unit, _ in store.exposed("x", 0)] == [one]
            assert store.counts("x")["hidden/requests"] == 1
            store = started(table, TODAY, OLDER, hidden)
            made = asking(live, store)


def test_of_a_mixed_list_that_somebody_looks_at_nothing_is_credited(table: MemoryTable) -> None:
    store = started(table, TODAY, OLDER, design="interleave")
    with following(table) as live:
        made = asking(live, store)
        looked = once(made, partial(listed, user="u0", n=4, preview=True))
        made.enrolment.flush()
        assert looked.request_id == ""
        assert len(set(ids(looked))) == 4
        assert (store.exposed("x", 0), store.shown("x", [""])) == ([], {})


def test_a_shadow_arm_is_counted_and_changes_nothing(table: MemoryTable) -> None:
    store = started(table, TODAY, Arm(name="tried", model=1, shadow=True))
    with following(table) as live:
        plain = ask(live, LIST, user="u0", n=5)
        made = asking(live, store)
        hidden = asyncio.run(Recommender(live).recommend(Ask(user_id="u0", n=5, model=1)))
        answer = settled(made, lambda a: a(LIST, user="u0", n=5))
        found = settled(made, lambda a: a(BATCH, body={"requests": [{"user": "u1"}]}))
    assert (ids(answer), answer.model) == (ids(plain), 2)
    assert ids(found.answers[0])
    made.enrolment.flush()
    counts = store.counts("x")
    assert counts["tried/requests"] == 2
    n_common = len(set(ids(plain)).intersection(ids(hidden)))
    assert 0 < n_common < 5
    assert counts["tried/common"] == 1 + n_common / 5  # the second list holds all items


def test_a_shadow_arm_whose_model_is_gone_is_not_compared(table: MemoryTable) -> None:
    store = started(table, TODAY, Arm(name="tried", model=1, shadow=True))
    with following(table) as live:
        made = asking(live, store)
        live.also([])
        assert ids(settled(made, lambda a: a(LIST, user="u0")))
    made.enrolment.flush()
    assert store.counts("x") == {}


def test_sessions_get_arms_too(table: MemoryTable) -> None:
    store = started(table, TODAY, OLDER, unit="session")
    with following(table) as live:
        made = asking(live, store)
        models = set()
        for n in range(20):
            body = {"items": ["i0"], "session": f"s{n}"}
            nobody = once(made, partial(listed, path=SESSION, body=body))
            known = once(made, partial(listed, user="u0", session=f"s{n}"))
            assert nobody.experiments == known.experiments != []
            assert nobody.model == known.model
            models.add(known.model)
        assert once(made, lambda a: a(LIST, user="u0")).experiments == []
    assert models == {1, 2}


def test_units_are_the_pseudonyms(table: MemoryTable) -> None:
    store = started(table, TODAY, OLDER)
    with following(table) as live:
        made = asking(live, store, pseudonym=lambda name: name.removeprefix("real-"))
        answer = once(made, lambda a: a(LIST, user="real-u0"))
    made.enrolment.flush()
    assert answer.user == "real-u0"
    assert [unit for unit, _ in store.exposed("x", 0)] == ["u0"]


def test_the_same_user_gets_the_same_arm_whichever_process_answers(table: MemoryTable) -> None:
    store = started(table, TODAY, OLDER)
    told = []
    for _ in range(2):
        with following(table) as live:
            told.append([answer.experiments for answer in lists(asking(live, store))])
    assert told[0] == told[1]


def test_a_request_that_takes_no_part_is_answered_as_ever(table: MemoryTable) -> None:
    with following(table) as live:
        plain = set(reads(ask(live, LIST, user="u0")))
        assert plain.isdisjoint({"request_id", "experiments"})
        made = asking(live, started(table, TODAY, OLDER, share=0.01))
        answers = lists(made)
        outside = next(answer for answer in answers if not answer.experiments)
        assert set(reads(outside)) == plain


def test_without_its_store_lists_are_answered_as_ever(table: MemoryTable) -> None:
    away = RedisStore(RedisSettings(url=f"redis://127.0.0.1:{free_port()}"))
    with following(table) as live, closing(away):
        made = Asking(live, away)
        with made.enrolment:
            assert [answer.experiments for answer in lists(made)] == [[]] * len(USERS)


def test_a_batch_larger_than_what_is_answered_at_once_is_whole(table: MemoryTable) -> None:
    many = [f"v{n}" for n in range(150)]
    for one in many:
        table.publish(update(3, users=user(one, [1, 0])))
    requests = {"requests": [{"user": one, "n": 1} for one in many]}
    with following(table) as live:
        made = asking(live, started(table, TODAY, OLDER))
        answers = once(made, lambda a: a(BATCH, body=requests)).answers
    assert [answer.user for answer in answers] == many
    assert {answer.model for answer in answers} == {1, 2}


def test_from_the_start_over_http_to_a_difference(table: MemoryTable, tmp_path: Path) -> None:
    """Two servers, one after the other, over one store and one log."""
    store, log = MemoryStore(), SharedLog()
    asked = {
        "name": "older-model",
        "window_s": 3_600,
        "arms": [{"name": "today"}, {"name": "older", "model": 1}],
    }
    many = [f"v{n}" for n in range(600)]

    async def first() -> None:
        async with served(table, store, log, tmp_path) as client:
            started = await client.post("/v1/experiments", json=asked, **HERE)
            assert started.status_code == 201, started.json
            answers: list[Any] = []
            while not any(answer.get("experiments") for answer in answers):
                body = {"requests": [{"user": one, "n": 2} for one in many]}
                answers = (await client.post(BATCH, json=body, **HERE)).json["answers"]
            entries = [
                {"user_id": answer["user"], "item_id": answer["items"][0]["item"],
                 "type": "like", "request_id": answer["request_id"]}
                for n, answer in enumerate(answers)
                if n % 4 < (3 if answer["experiments"][0]["arm"] == "older" else 1)
            ]  # fmt: skip
            told = await client.post("/v1/feedback", json=entries, **HERE)
            assert told.json["stored"] == len(entries) > 100, told.json["entries"][:1]
            path = "/v1/experiments/older-model/results"
            exposed = 0
            until_s = time.monotonic() + 60
            while exposed < len(many) and time.monotonic() < until_s:
                found = (await client.get(path, **HERE)).json
                exposed = sum(arm["exposed"] for arm in found["arms"])
            assert exposed == len(many)

    async def second() -> Any:
        async with served(table, store, log, tmp_path) as client:
            return (await client.get("/v1/experiments/older-model/results", **HERE)).json

    asyncio.run(first())
    type_all(log)
    collector = Collector(store, log)
    collector.catch_up(time.time_ns() // 1_000_000 + 7_200_000)
    results = asyncio.run(second())
    (effect,) = results["effects"]
    assert (effect["arm"], effect["verdict"]) == ("older", "better")
    assert 0.3 < effect["difference"]["value"] < 0.7


def type_all(log: MemoryLog) -> None:
    """Do what a stream worker does."""
    stream = load_settings(environ={}).stream
    intake = Intake(
        load_rules(stream.rules),
        lateness_ms=round(stream.lateness_s * 1_000),
        max_future_ms=round(stream.max_future_s * 1_000),
    )
    typed = intake.take(log.read(INTERACTIONS, {0: 0}, limit=10_000)).entries()
    log.append(FEEDBACK, typed, timestamp_ms=time.time_ns() // 1_000_000)


def served(
    table: MemoryTable, store: Store, log: MemoryLog, folder: Path
) -> falcon.testing.ASGIConductor:
    """Return a server as the demo has it, and a client on this machine."""
    settings: Settings = load_settings(environ={})
    serving = msgspec.structs.replace(
        settings.serving,
        keys_file="",
        audit_file=str(folder / "audit.jsonl"),
        stale_s=1e12,
        request_s=120.0,
    )
    settings = msgspec.structs.replace(settings, serving=serving)
    api = build(settings, table, LogSink(log), experiments=store, open_log=lambda: nullcontext(log))
    return falcon.testing.ASGIConductor(api)
