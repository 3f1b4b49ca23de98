"""Outcomes are what a plain count says, however the stream is cut and wherever it is resumed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.experiments.assignment import Arm, Assigner, Experiment, ListSettings
from serving.experiments.enrolling import Enrolment
from serving.experiments.registry import Entry, Registry
from serving.experiments.results import GRACE_MS, Collector, Fold, State, results_of
from serving.experiments.statistics import Moments
from serving.experiments.store import MemoryStore
from serving.table import MemoryTable
from stream.events import Erasure, Feedback, Label, encode
from stream.log import MemoryLog
from stream.topics import FEEDBACK

START_MS = 1_650_000_000_000
HOUR_MS = 3_600_000
ARMS = (Arm(name="today"), Arm(name="new", settings=ListSettings(diversity=0.3)))
KINDS: tuple[Label, ...] = ("explicit_positive", "implicit_positive", "implicit_negative")


def experiment(**others: Any) -> Experiment:
    asked = {"name": "x", "arms": ARMS, "window_s": 3_600, "before_s": 7_200, **others}
    return msgspec.convert(asked, Experiment)


def entry(**others: Any) -> Entry:
    return Entry(experiment=experiment(**others), started_ms=START_MS)


def event(user: str, ts_ms: int, kind: Label = "implicit_positive", **others: Any) -> Feedback:
    of = {"v": 1, "event_id": f"{user}-{ts_ms}", "user_id": user, "item_id": "5239", **others}
    return Feedback(ts_ms=ts_ms, kind=kind, weight=1.0, **of)


def moments(pairs: Sequence[tuple[float, float]]) -> Moments:
    sums = Moments()
    for x, y in pairs:
        sums.add(x, y)
    return sums


users = st.sampled_from([str(number) for number in range(12)])
times = st.integers(START_MS - 3 * HOUR_MS, START_MS + 3 * HOUR_MS)
events = st.lists(st.builds(event, users, times, st.sampled_from(KINDS)), max_size=60)
exposures = st.dictionaries(users, st.integers(START_MS, START_MS + HOUR_MS))


@given(events=events, met=exposures, cuts=st.lists(st.integers(0, 60), max_size=4))
def test_outcomes_are_those_of_a_plain_count_however_often_it_is_resumed(
    events: list[Feedback], met: dict[str, int], cuts: list[int]
) -> None:
    asked = entry()
    assign = Assigner(asked.experiment)
    fold = Fold(asked)
    places = [0, *sorted(cuts), len(events)]
    for start, end in pairwise(places):
        fold = Fold(asked, msgspec.msgpack.decode(msgspec.msgpack.encode(fold.state), type=State))
        for user, at_ms in met.items():
            fold.expose(user, at_ms)
        for each in events[start:end]:
            fold.take(each, {})
    fold.close(START_MS + 3 * HOUR_MS)
    wanted: list[list[tuple[float, float]]] = [[], []]
    for user, at_ms in sorted(met.items(), key=lambda each: (each[1], each[0])):
        liked = [e.ts_ms for e in events if e.user_id == user and "positive" in e.kind]
        before = [ts_ms for ts_ms in liked if START_MS - 2 * HOUR_MS <= ts_ms < START_MS]
        after = [ts_ms for ts_ms in liked if at_ms <= ts_ms < at_ms + HOUR_MS]
        wanted[assign(user) or 0].append((len(before), len(after)))
    cells = fold.state.cells.get("", [Moments(), Moments()])
    assert cells == [moments(pairs) for pairs in wanted]
    assert fold.state.exposed == [len(pairs) for pairs in wanted]
    assert not fold.state.open


def test_a_unit_is_counted_once_its_window_is_over_and_only_once() -> None:
    fold = Fold(entry())
    fold.expose("712", START_MS)
    over_ms = START_MS + HOUR_MS + GRACE_MS
    fold.close(over_ms - 1)
    assert list(fold.state.open) == ["712"]
    fold.close(over_ms)
    fold.expose("712", START_MS)  # the store is read again with some overlap
    fold.close(over_ms + 10 * HOUR_MS)
    assert not fold.state.open
    assert fold.results().arms[0].units + fold.results().arms[1].units == 1


def test_units_whose_window_the_end_cuts_off_are_left_out() -> None:
    stopped = msgspec.structs.replace(entry(), stopped_ms=START_MS + 90 * 60_000)
    fold = Fold(stopped)
    for n in range(4):
        fold.expose(str(n), START_MS + n * 20 * 60_000)
    fold.expose("late", START_MS + 2 * HOUR_MS)
    fold.close(START_MS + 10 * HOUR_MS)
    results = fold.results()
    assert sum(arm.exposed for arm in results.arms) == 4
    assert sum(arm.units for arm in results.arms) == 2  # those met at 0 and 20 minutes
    assert fold.state.finished
    assert not fold.state.open


def test_a_unit_that_is_forgotten_leaves_nothing() -> None:
    fold = Fold(entry())
    fold.take(event("712", START_MS - 1), {})
    fold.expose("712", START_MS)
    fold.forget("712")
    fold.close(START_MS + 10 * HOUR_MS)
    assert sum(arm.exposed + arm.units for arm in fold.results().arms) == 0
    assert b"712" not in msgspec.msgpack.encode(fold.state)


class World:
    """An API, a log and a collector, with a clock that is turned by hand."""

    def __init__(self, **others: Any) -> None:
        self.store = MemoryStore()
        self.log = MemoryLog(2)
        self.asked = experiment(**others)
        Registry(self.store).start(self.asked, MemoryTable(), at_ms=START_MS, by="op")
        self.enrolment = Enrolment(self.store)
        self.enrolment.refresh()

    def tell(self, *records: Feedback | Erasure) -> None:
        for each in records:
            user = each.user_id if isinstance(each, Feedback) else each.erase_user
            self.log.append(FEEDBACK, [(user.encode(), encode(each))], timestamp_ms=START_MS)

    def collected(self, at_ms: int, **others: Any) -> Any:
        self.enrolment.flush()
        Collector(self.store, self.log, **others).catch_up(at_ms)
        return results_of(self.store, "x")


def liking(user: str, at_ms: int, rate: float, chance: random.Random) -> list[Feedback]:
    likes = sum(chance.random() < rate / 10 for _ in range(10))
    return [event(user, at_ms + 1_000 * (1 + n)) for n in range(likes)]


def test_an_effect_is_found_from_end_to_end_with_cuped_and_strata() -> None:
    world = World(strata="country")
    assign, chance = Assigner(world.asked), random.Random(1)
    countries = {}
    for n in range(1_500):
        user, at_ms = f"u{n}", START_MS + n * 1_000
        fond = chance.choice([1.0, 5.0])
        countries[user] = {"country": chance.choice(["no", "pe"])}
        for each in liking(user, START_MS - HOUR_MS, fond, chance):
            world.tell(each)
        arm = world.enrolment.meet(user, at_ms=at_ms)[0].arm
        assert arm == world.asked.shown[assign(user) or 0]
        world.tell(*liking(user, at_ms, fond + 0.8 * (arm.name == "new"), chance))
    results = world.collected(
        START_MS + 5 * HOUR_MS, attributes=lambda asked: {u: countries[u] for u in asked}
    )
    (effect,) = results.effects
    assert effect.verdict == "better"
    assert effect.difference.low < 0.8 < effect.difference.high
    assert effect.relative == pytest.approx(0.8 / 3, abs=0.1)
    assert effect.variance_saved > 0.4
    assert effect.p < 0.001
    assert results.sample_ratio_p > 0.05
    assert results.curve[-1].units <= 1_500
    assert [arm.units for arm in results.arms] == [arm.exposed for arm in results.arms]
    assert not world.store.exposed("x", START_MS + HOUR_MS * 2)


def test_a_mixed_list_credits_the_arm_whose_items_are_liked() -> None:
    world = World(design="interleave")
    chance = random.Random(2)
    for n in range(300):
        user, at_ms, request_id = f"u{n}", START_MS + n * 1_000, f"r{n}"
        (enrolled,) = world.enrolment.meet(user, at_ms=at_ms)
        assert enrolled.arm.name == "today"
        items = world.enrolment.mix(
            enrolled.experiment, ["a", "b", "c"], ["x", "y", "z"], 4, request_id=request_id
        )
        liked = [item for item in items if chance.random() < (0.6 if item in "xyz" else 0.3)]
        for place, item in enumerate(liked):
            world.tell(event(user, at_ms + place, item_id=item, request_id=request_id))
        world.tell(event(user, at_ms + 9, item_id="x", request_id="of somebody else"))
    results = world.collected(START_MS + 5 * HOUR_MS)
    assert [arm.arm for arm in results.arms] == ["new"]
    assert results.effects[0].verdict == "better"
    assert 0.1 < results.effects[0].difference.value < 0.9


def test_a_shadow_is_compared_and_gets_nobody() -> None:
    world = World(
        arms=(ARMS[0], Arm(name="tried", shadow=True, settings=ListSettings(diversity=0.5)))
    )
    for n in range(10):
        (enrolled,) = world.enrolment.meet(f"u{n}", at_ms=START_MS)
        assert enrolled.arm == ARMS[0]
        (shadow,) = enrolled.experiment.shadows
        world.enrolment.compare(enrolled.experiment, shadow, ["a", "b"], ["b", "c"])
    results = world.collected(START_MS + HOUR_MS)
    assert results.effects == []
    assert (results.shadows[0].requests, results.shadows[0].common) == (10, 0.5)
    assert [arm.exposed for arm in results.arms] == [10]


def test_an_erased_user_is_forgotten_in_the_order_of_the_log() -> None:
    world = World()
    for user in ("712", "713"):
        world.enrolment.meet(user, at_ms=START_MS)
        world.tell(event(user, START_MS + 1))
    world.tell(Erasure(1, "712"))
    results = world.collected(START_MS + HOUR_MS // 2)
    assert results.open_units == 1
    assert [unit for unit, _ in world.store.exposed("x", 0)] == ["713"]
    assert b"712" not in (world.store.saved("x") or b"")


def test_sessions_are_units_too() -> None:
    world = World(unit="session")
    assert world.enrolment.meet("712", at_ms=START_MS) == []  # no session, no experiment
    world.enrolment.meet("712", "s1", at_ms=START_MS)
    world.tell(event("712", START_MS + 1, context={"session": "s1"}))
    world.tell(event("712", START_MS + 2, context={"session": "s2"}))
    results = world.collected(START_MS + 5 * HOUR_MS)
    assert sorted(arm.mean.value or 0.0 for arm in results.arms) == [0.0, 1.0]


def test_one_collector_works_at_a_time_and_the_next_goes_on() -> None:
    world = World()
    first, second = (Collector(world.store, world.log) for _ in range(2))
    world.enrolment.meet("712", at_ms=START_MS)
    world.enrolment.flush()
    world.tell(event("712", START_MS + 1))
    assert first.step(START_MS + 1) == 1
    assert second.step(START_MS + 1) == 0
    first.close()
    second.catch_up(START_MS + 5 * HOUR_MS)
    found = results_of(world.store, "x")
    assert sum((arm.mean.value or 0.0) * arm.units for arm in found.arms) == 1.0


def test_feedback_that_the_log_no_longer_has_is_told() -> None:
    world = World()
    collector = Collector(world.store, world.log)
    collector.step(START_MS)
    world.tell(*(event("712", START_MS + n) for n in range(5)))
    world.log.trim(FEEDBACK, world.log.end(FEEDBACK))
    collector.catch_up(START_MS + 1)
    assert results_of(world.store, "x").gaps == 1


def test_the_curve_has_a_bounded_number_of_points_that_do_not_depend_on_the_batches() -> None:
    found = []
    for n_steps in (1, 700):
        fold, chance = Fold(entry(window_s=60)), random.Random(3)
        for n in range(7_000):
            fold.expose(f"u{n}", START_MS + n * 10_000)
            if chance.random() < 0.3:
                fold.take(event(f"u{n}", START_MS + n * 10_000), {})
            if n % (7_000 // n_steps) == 0:
                fold.close(START_MS + n * 10_000)
        fold.close(START_MS + 70_010_000)
        found.append(fold.state.curve)
    assert found[0] == found[1]
    assert 60 < len(found[0]) < 128
    widths = [(p.effects[0].high or 0.0) - (p.effects[0].low or 0.0) for p in found[0]]
    assert widths[-1] < 0.3 * widths[0]
