"""Every store keeps the same; names are used once; two operators do not undo each other's work."""

from __future__ import annotations

import threading
from typing import Any

import msgspec
import pytest

from deploy.service import free_port, wait_until
from serving.experiments.assignment import Arm, Experiment, ListSettings
from serving.experiments.enrolling import Enrolment
from serving.experiments.redis_store import RedisStore
from serving.experiments.registry import (
    MAX_RUNNING,
    ExperimentRefused,
    Registry,
    UnknownExperiment,
)
from serving.experiments.store import MemoryStore, Store
from serving.table import MemoryTable
from stream.errors import BadSettings, TableError
from stream.settings import RedisSettings

TABLE = MemoryTable()


def asked(name: str, **settings: Any) -> Experiment:
    """Return an experiment; without settings one that does not get in the way of others."""
    new = Arm(name="new", settings=ListSettings(**settings))
    return Experiment(name=name, arms=(Arm(name="today"), new))


@pytest.fixture(params=["memory", "plain", "cluster"])
def store(request: pytest.FixtureRequest, namespace: str) -> Store:
    if request.param == "memory":
        return MemoryStore()
    if request.param == "cluster":
        of: RedisSettings = request.getfixturevalue("redis_cluster")
        return RedisStore(msgspec.structs.replace(of, namespace=namespace))
    return RedisStore(RedisSettings(url=request.getfixturevalue("redis_url"), namespace=namespace))


def test_the_first_time_a_unit_met_an_experiment_counts(store: Store) -> None:
    store.expose("x", {"b": 20, "å ": 10})
    store.expose("x", {"b": 5, "c": 20})
    store.expose("y", {"b": 1})
    assert store.exposed("x", 0) == [("å ", 10), ("b", 20), ("c", 20)]
    assert store.exposed("x", 11) == [("b", 20), ("c", 20)]
    store.forget("x", ["b", "nobody"])
    store.forget("x", [])
    assert store.exposed("x", 11) == [("c", 20)]
    store.finish("x")
    assert store.exposed("x", 0) == []
    assert store.exposed("y", 0) == [("b", 1)]


def test_only_so_many_units_are_remembered(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("store", "redis_store"):
        monkeypatch.setattr(f"serving.experiments.{module}.MAX_UNITS", 3)
    store.expose("x", {"a": 1, "b": 2})
    store.expose("x", {"c": 3, "d": 4})
    store.expose("x", {"e": 5})
    assert [unit for unit, _ in store.exposed("x", 0)] == ["a", "b", "c"]


def test_whose_items_were_shown_is_known_by_the_request(store: Store) -> None:
    store.show("x", "r1", {"a": 0, "b": 1}, keep_s=60)
    assert store.shown("x", ["r1", "r2"]) == {"r1": {"a": 0, "b": 1}}
    assert store.shown("y", ["r1"]) == {}
    assert store.shown("x", []) == {}


def test_counts_and_states_are_kept(store: Store) -> None:
    assert (store.counts("x"), store.saved("x")) == ({}, None)
    store.count("x", {"new/requests": 1, "new/common": 0.25})
    store.count("x", {"new/requests": 1})
    store.save("x", b"\x00state")
    assert store.counts("x") == {"new/requests": 2, "new/common": 0.25}
    assert store.saved("x") == b"\x00state"


def test_one_collector_holds_the_lease(store: Store) -> None:
    assert store.lease("one", 60)
    assert store.lease("one", 60)
    assert not store.lease("other", 60)
    store.release("other")
    assert not store.lease("other", 60)
    store.release("one")
    assert store.lease("other", 60)


def test_an_experiment_is_started_and_stopped_once(store: Store) -> None:
    registry = Registry(store)
    assert registry.read() == (0, [])
    started = registry.start(asked("x"), TABLE, at_ms=10, by="ada")
    assert registry.get("x") == started
    assert registry.read().version == 1
    stopped = registry.stop("x", TABLE, at_ms=20, by="bob")
    assert (stopped.started_ms, stopped.stopped_ms, stopped.stopped_by) == (10, 20, "bob")
    assert registry.stop("x", TABLE, at_ms=30, by="eve") == stopped
    assert registry.read().version == 2
    with pytest.raises(ExperimentRefused, match="choose a new name"):
        registry.start(asked("x"), TABLE, at_ms=40, by="ada")
    with pytest.raises(UnknownExperiment, match="no experiment 'y'; known are x"):
        registry.stop("y", TABLE, at_ms=40, by="ada")


def test_two_experiments_cannot_decide_the_same(store: Store) -> None:
    registry = Registry(store)
    registry.start(asked("x", diversity=0.1), TABLE, at_ms=1, by="")
    registry.start(asked("y", leave_out_seen=False), TABLE, at_ms=1, by="")
    with pytest.raises(ExperimentRefused, match=r"'x' runs and differs in settings\.diversity"):
        registry.start(asked("z", diversity=0.9), TABLE, at_ms=1, by="")
    shadow = Arm(name="s", shadow=True, settings=ListSettings(diversity=0.9))
    registry.start(Experiment(name="z", arms=(Arm(name="today"), shadow)), TABLE, at_ms=1, by="")
    registry.stop("x", TABLE, at_ms=2, by="")
    registry.start(asked("again", diversity=0.9), TABLE, at_ms=3, by="")


def test_no_start_is_lost_when_many_start_at_once(store: Store) -> None:
    names = [f"x{n}" for n in range(5)]
    threads = [
        threading.Thread(target=Registry(store).start, args=[asked(name), TABLE],
                         kwargs={"at_ms": 1, "by": name})
        for name in names
    ]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    version, entries = Registry(store).read()
    assert sorted(entry.experiment.name for entry in entries) == names
    assert version == len(names)


class Contested(MemoryStore):
    """Somebody else starts an experiment just before the first change."""

    contested = True

    def replace(self, old: bytes | None, new: bytes) -> bool:
        if self.contested:
            self.contested = False
            Registry(self).start(asked("theirs"), TABLE, at_ms=1, by="")
        return super().replace(old, new)


def test_a_start_that_somebody_was_faster_than_is_done_again_on_theirs() -> None:
    store = Contested()
    Registry(store).start(asked("ours"), TABLE, at_ms=2, by="")
    names = [entry.experiment.name for entry in Registry(store).read().entries]
    assert names == ["theirs", "ours"]


def test_not_too_many_run() -> None:
    registry = Registry(MemoryStore())
    for n in range(MAX_RUNNING):
        registry.start(asked(f"x{n}"), TABLE, at_ms=1, by="")
    with pytest.raises(ExperimentRefused, match="stop one first"):
        registry.start(asked("more"), TABLE, at_ms=1, by="")


@pytest.mark.parametrize("raw", [b"{", b'{"v":9,"version":1,"entries":[]}'])
def test_what_another_version_wrote_is_not_guessed_at(raw: bytes) -> None:
    store = MemoryStore()
    store.replace(None, raw)
    with pytest.raises(TableError):
        Registry(store).read()


def test_an_enrolment_follows_the_store_by_itself(store: Store) -> None:
    with Enrolment(store) as enrolment:
        assert enrolment.meet("712", at_ms=1) == []
        Registry(store).start(asked("x"), TABLE, at_ms=1, by="")
        wait_until(lambda: bool(enrolment.meet("712", at_ms=5)), 30, "the experiment")
        wait_until(lambda: store.exposed("x", 0) == [("712", 5)], 30, "the experiment")
        Registry(store).stop("x", TABLE, at_ms=9, by="")
        wait_until(lambda: not enrolment.meet("713", at_ms=9), 30, "the experiment")


def test_an_enrolment_goes_on_without_its_store_and_loses_no_exposure() -> None:
    store, away = MemoryStore(), RedisStore(RedisSettings(url=f"redis://127.0.0.1:{free_port()}"))
    Registry(store).start(asked("x"), TABLE, at_ms=1, by="")
    enrolment = Enrolment(store)
    enrolment.refresh()
    (before,) = enrolment.meet("712", at_ms=5)
    enrolment.flush()
    enrolment._store, enrolment._registry = away, Registry(away)
    assert enrolment.meet("712", at_ms=6) == [before]
    enrolment.meet("713", at_ms=7)
    enrolment.mix(before.experiment, ["a"], ["b"], 1, request_id="r1")
    enrolment.compare(before.experiment, before.arm, ["a"], ["a"])
    for doing in (enrolment.flush, enrolment.refresh):
        with pytest.raises(TableError):
            doing()
    enrolment.compare(before.experiment, before.arm, ["a"], ["b"])
    enrolment._store = store
    enrolment.flush()
    assert store.exposed("x", 0) == [("712", 5), ("713", 7)]
    assert len(store.shown("x", ["r1"])["r1"]) == 1
    assert store.counts("x") == {f"{before.arm.name}/requests": 2, f"{before.arm.name}/common": 1}


def test_a_wrong_address_is_the_users_mistake() -> None:
    with pytest.raises(BadSettings, match="is not the address of a Redis"):
        RedisStore(RedisSettings(url="http://127.0.0.1"))
