"""What is read is what was published: lists, filters, neighbours, and every step of the chain."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np
import pytest

from serving.api.problems import Problem
from serving.rows import Layout
from serving.table import MemoryTable, Update
from tests.serving.published import STILL, events
from tests.serving.published import Live as Learner
from tests.serving.test_retrieval import ROUNDING, assert_lists_agree
from tests.serving.world import (
    Asking,
    ask,
    following,
    has_step,
    ids,
    items,
    once,
    publish,
    published,
    reads,
    until,
    update,
    user,
)

LIST = "/v1/recommendations/{user}"
ALONG = [1.0, 0.0]


def test_at_a_barrier_the_lists_are_the_learners() -> None:
    learner, batches = Learner(STILL), events(480)
    learner.follow(batches[:24])
    with following(learner.table) as live:
        learner.follow(batches[24:])
        learner.publisher.touched_all()
        learner.publisher.publish()
        barrier = learner.table.reader().barrier()
        until(live, has_step(barrier.step), "the last step")
        everybody = learner.graph.users.ids_of(np.arange(learner.graph.n_users))
        asked = {"requests": [{"user": one} for one in everybody]}
        answers = ask(live, "/v1/recommendations:batch", body=asked).answers
    assert len(answers) > 30
    for user_id, answer in zip(everybody, answers, strict=True):
        want, seen = learner.scores(user_id), learner.table.reader().seen([user_id])[user_id]
        assert answer.user == user_id
        assert (answer.step, answer.at_ms) == (barrier.step, barrier.at_ms)
        assert answer.answered_by == "vector"
        assert_lists_agree(ids(answer), want, seen)
        assert len(answer.items) == 10
        got = [want[one] for one in ids(answer)]
        scores = [one.score for one in answer.items]
        np.testing.assert_allclose(scores, got, atol=1e-4 + ROUNDING)  # told with four digits
        for one in answer.items:
            parts = one.parts.taste + one.parts.popularity + one.parts.covisitation
            assert parts == pytest.approx(one.score, abs=3e-4)


def test_a_list_says_what_it_was_made_from() -> None:
    with following(published(update(3, users=user("u", ALONG), published_ms=5))) as live:
        answer = reads(ask(live, LIST, user="u", n=2))
        epoch = live.state().epoch
    assert answer["vector_age_ms"] > 1_000_000_000_000
    del answer["vector_age_ms"]
    assert answer.pop("items")[0] == {
        "item": "i4",
        "score": 2.2163,
        "reason": "is popular now",
        "parts": {"taste": 0.6235, "popularity": 1.5928, "covisitation": 0.0},
    }
    assert answer == {
        "user": "u",
        "answered_by": "vector",
        "fallback": False,
        "model": epoch,
        "step": 3,
        "at_ms": 30,
        "stale": False,
    }


def test_seen_items_are_left_out_unless_they_are_wanted() -> None:
    table = published(update(users=user("u", ALONG), seen={"u": ["i5", "i6", "new"]}))
    with following(table) as live:
        assert {"i5", "i6"}.isdisjoint(ids(ask(live, LIST, user="u")))
        assert {"i5", "i6"} <= {*ids(ask(live, LIST, user="u", leave_out_seen=False))}
        table.publish(update(2, items=items(["new"])))  # met before it was published
        until(live, has_step(2), "the new item")
        assert "new" not in ids(ask(live, LIST, user="u"))
        assert "new" in ids(ask(live, "/v1/popular"))


def test_a_list_takes_filters_and_ids_to_include_and_exclude() -> None:
    said = {"i1": {"tag": ["sea", "art"]}, "i2": {"tag": "sea", "year": 7}, "i3": {"tag": "art"}}
    with following(published(update(users=user("u", ALONG), item_attributes=said))) as live:

        def got(**query: Any) -> set[str]:
            return {*ids(ask(live, LIST, user="u", **query))}

        assert got(filter=["tag:sea"]) == {"i1", "i2"}
        assert got(filter=["tag:sea", "year:7"]) == {"i2"}
        assert got(filter=["tag:sea", "tag:art"]) == {"i1", "i2", "i3"}
        assert got(filter=["tag:rock"]) == set()
        assert got(include=["i1", "i4", "nothing"], exclude=["i4"]) == {"i1"}
        assert got(include=["i1", "i3"], filter=["tag:art"], context=["i3"]) == {"i1"}
        assert len(got(n=3)) == 3
        with pytest.raises(Problem, match="want attribute:value"):
            got(filter=["sea"])


def test_every_step_of_the_chain_is_named() -> None:
    said = {"kin": {"city": "Rome"}, "new": {"city": "Rome"}, "far": {"city": "Oslo"}}
    table = published(update(users=user("kin", [0.0, 50.0]), user_attributes=said))
    with following(table) as live:
        ask(live, LIST, user="kin")  # whom the average of Rome is made of
        steps = {
            "vector": ask(live, LIST, user="kin"),
            "events": ask(live, LIST, user="nobody", context=["i0"]),
            "attributes": ask(live, LIST, user="new"),
            "popularity": ask(live, LIST, user="far"),
        }
        publish(table, update(2, gone_items=[f"i{n}" for n in range(8)]))
        until(live, lambda live: live.state().items == 0, "the empty model")
        steps["precomputed"] = ask(live, LIST, user="nobody", n=3)
    for step, answer in steps.items():
        assert answer.answered_by == step
        assert answer.fallback == (step != "vector")
        assert answer.items
    assert ids(steps["events"])[0] == "i3"  # goes with i0
    assert steps["events"].items[0].reason == "goes with items met lately"
    assert steps["attributes"].items[0].reason == "suits users with the same attributes"
    assert ids(steps["popularity"])[:2] == ["i7", "i6"]
    assert ids(steps["precomputed"]) == ["i7", "i6", "i5"]


def test_a_zero_vector_gives_way_to_the_events() -> None:
    with following(published(update(users=user("u", [0, 0], ["i0"])))) as live:
        assert ask(live, LIST, user="u").answered_by == "events"


def test_a_session_needs_no_user() -> None:
    with following(published()) as live:
        body = {"items": ["i0", "unheard"], "n": 3}
        answer = ask(live, "/v1/recommendations:session", body=body)
    assert answer.user is None
    assert answer.answered_by == "events"
    assert ids(answer)[0] == "i3"
    assert "i0" not in ids(answer)


def test_candidates_are_ranked_seen_or_not() -> None:
    table = published(update(users=user("u", [9.0, 0.0]), seen={"u": ["i0"]}))
    with following(table) as live:
        body = {"items": ["i7", "i0", "nothing"], "user": "u"}
        answer = ask(live, "/v1/rank", body=body)
        anybody = ask(live, "/v1/rank", body={"items": ["i7", "i0"]})
    assert ids(answer.ranked) == ["i0", "i7"]
    assert answer.unknown == ["nothing"]
    assert ids(anybody.ranked) == ["i7", "i0"]


def test_a_list_is_reordered_within_limits() -> None:
    said = {f"i{n}": {"by": "Ann" if n < 3 else "Bo"} for n in range(8)}
    table = published(update(users=user("u", [99.0, 0.0]), item_attributes=said))
    with following(table) as live:

        def got(names: list[str], **others: Any) -> list[str]:
            body = {"items": [{"item": one} for one in names], **others}
            return ids(ask(live, "/v1/rerank", body=body))

        assert got(["i7", "i0", "i1"]) == ["i7", "i0", "i1"]
        assert got(["i7", "i0", "i1"], user="u") == ["i0", "i1", "i7"]
        assert got(["i0", "i1", "i7"], diversity=0.9) == ["i0", "i7", "i1"]
        limits = [{"attribute": "by", "most": 1}]
        assert got(["i0", "i1", "i7", "i6"], limits=limits) == ["i0", "i7"]
        assert got(["i0", "i1", "i7"], n=2) == ["i0", "i1"]
        scored = [{"item": "i0", "score": 1}, {"item": "i1", "score": 2}, {"item": "?", "score": 3}]
        answer = ask(live, "/v1/rerank", body={"items": scored})
        assert [(one.item, one.before) for one in answer.items] == [("i1", 1), ("i0", 0)]
        assert answer.unknown == ["?"]
        with pytest.raises(Problem, match="for all or for none, got 1 for 2"):
            ask(live, "/v1/rerank", body={"items": [{"item": "i0", "score": 1}, {"item": "i1"}]})


def test_what_goes_with_an_item_is_first_what_is_visited_with_it() -> None:
    with following(published()) as live:
        answer = ask(live, "/v1/items/{item}/similar", item="i0", n=4)
        with pytest.raises(Problem, match="nothing is published of the item 'x'") as raised:
            ask(live, "/v1/items/{item}/similar", item="x")
    assert raised.value.status == 404
    found = [(one.item, one.score, one.by) for one in answer.items]
    assert found[:2] == [("i3", 1.0, "visits"), ("i4", 0.5, "visits")]
    assert [(item, by) for item, _, by in found[2:]] == [("i1", "vector"), ("i2", "vector")]


def test_popular_and_latest_lists() -> None:
    said = {"i2": {"created_ms": 5}, "i4": {"created_ms": 9}, "gone": {"created_ms": 10}}
    with following(published(update(item_attributes=said))) as live:
        assert ids(ask(live, "/v1/popular", n=3)) == ["i7", "i6", "i5"]
        assert ids(ask(live, "/v1/popular", filter=["created_ms:9"])) == ["i4"]
        assert ids(ask(live, "/v1/latest", n=5)) == ["gone", "i4", "i2"]
        assert ids(ask(live, "/v1/latest", n=5, filter=["created_ms:5"])) == ["i2"]


def test_what_is_published_of_a_user() -> None:
    more = {"n": {"city": "Rome"}}
    table = published(
        update(users=user("u", [3, 4], ["i0", "i2"]), seen={"u": ["i0", "i2", "i5"]}),
        update(users=user("n", [4, 3]), user_attributes=more),
    )
    with following(table) as live:
        near = ask(live, LIST, user="n")
        assert near.answered_by == "vector"
        history = reads(ask(live, "/v1/history/{user}", user="u"))
        edge = {"kind": "explicit_positive", "ts_ms": 7}
        assert history["events"] == [{"item": "i0", **edge}, {"item": "i2", **edge}]
        assert history["n_seen"] == 3
        features = ask(live, "/v1/features/{user}", user="u")
        assert features.events == {"explicit_positive": 2}
        assert (features.vector_norm, features.covisitation_weight) == (5.0, 1.0)
        assert ask(live, "/v1/features/{user}", user="n").attributes == {"city": "Rome"}
        graph = reads(ask(live, "/v1/graph/users/{user}", user="u"))
        assert graph["edges"] == history["events"]
        assert [one["item"] for one in graph["items"]["i0"]] == ["i3", "i4"]
        assert graph["users"] == [{"user": "n", "score": 0.96}]
        assert graph["among"] == 1
        neighbours = ask(live, "/v1/users/{user}/neighbours", user="u")
        assert [one.user for one in neighbours.users] == ["n"]
        embedding = ask(live, "/v1/embeddings/users/{user}", user="u")
        assert (embedding.vector, embedding.ts_ms) == ([3.0, 4.0], 7)
        assert ask(live, "/v1/embeddings/items/{item}", item="i0").vector == [1.0, 0.0]
        for path in ("history", "features", "graph/users", "embeddings/users"):
            with pytest.raises(Problem, match="nothing is published of the user 'x'"):
                ask(live, f"/v1/{path}/{{user}}", user="x")


def test_users_are_known_by_their_pseudonyms() -> None:
    with following(published(update(users=user("p-ann", ALONG)))) as live:
        asking = Asking(live, pseudonym=lambda name: f"p-{name}")
        answer = once(asking, lambda asking: asking(LIST, user="ann"))
    assert (answer.user, answer.answered_by) == ("ann", "vector")


def test_a_published_event_changes_the_list() -> None:
    table = published(update(users=user("u", ALONG)))
    with following(table) as live:
        before = ask(live, LIST, user="u")
        table.publish(update(2, users=user("u", ALONG, ["i0"]), seen={"u": [ids(before)[0]]}))
        until(live, has_step(2), "the event")
        after = ask(live, LIST, user="u")
        table.publish(update(3, gone_users=["u"]))
        until(live, has_step(3), "the erasure")
        gone = ask(live, LIST, user="u")
    assert ids(before)[0] not in ids(after)
    assert after.items[0].parts.covisitation > 0
    assert (gone.answered_by, gone.vector_age_ms) == ("popularity", None)


def test_nothing_published_is_a_problem_until_something_is() -> None:
    table = MemoryTable()
    with following(table) as live:
        with pytest.raises(Problem, match="nothing could be read") as raised:
            ask(live, LIST, user="u")
        assert raised.value.status == 503
        publish(table)
        until(live, lambda live: live.copy, "the first model")
        assert ask(live, LIST, user="u").items


@pytest.mark.slow
def test_no_answer_mixes_two_models() -> None:
    """Each model has vectors of its own length, items and users alike: a score tells of which."""
    table, n_users = MemoryTable(), 40
    names = [f"u{n}" for n in range(n_users)]
    sizes: dict[int, float] = {}

    def model(size: float) -> None:
        epoch = table.begin(Layout(dim=2))
        sizes[epoch] = size
        for name in names:
            table.publish(Update(barrier=update().barrier, users=user(name, [size, 0])))
        one = items(["only"], size=size)._replace(counts=np.zeros((1, 0)))
        table.publish(Update(barrier=update().barrier, items=one))
        table.flip()

    model(1)
    mixed: list[Any] = []
    done = threading.Event()

    async def load(asking: Asking) -> int:
        asked = 0
        while not done.is_set() or asked < 200:
            answers = await asyncio.gather(*(asking(LIST, user=one) for one in names))
            batch = {"requests": [{"user": one} for one in names]}
            several = (await asking("/v1/recommendations:batch", body=batch)).answers
            if len({one.model for one in several}) != 1:
                mixed.append(several)
            for answer in (*answers, *several):
                asked += 1
                score = answer.items[0].score
                if answer.answered_by != "vector" or score != sizes[answer.model] ** 2:
                    mixed.append(answer)
            await asyncio.sleep(0)
        return asked

    def flips() -> None:
        for size in range(2, 14):
            model(size)
            until(live, lambda live: live.state().epoch == max(sizes), "the new model")
        done.set()

    with following(table) as live:
        writer = threading.Thread(target=flips)
        writer.start()
        try:
            once(Asking(live), load)
        finally:
            done.set()
            writer.join()
    assert not mixed
    assert len(sizes) == 13
