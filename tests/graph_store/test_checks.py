"""The contract of edge stores holds for ours, and finds stores that break it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from graph_store import checks
from graph_store.checks import Build, Check, yield_checks
from graph_store.ids import Ids
from graph_store.store import Edges, EdgeStore, Neighbours
from tests.graph_store.plain_store import PlainStore, edges_of, events_of

STORES: dict[str, Build] = {"edges": EdgeStore, "plain": PlainStore}


@pytest.mark.parametrize("check", list(yield_checks()), ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", STORES)
def test_contract(name: str, check: Check) -> None:
    check(STORES[name])


class KeepsOneMore(EdgeStore):
    def __init__(self, *, k_user: int, k_item: int) -> None:
        super().__init__(k_user=k_user + 1, k_item=k_item)


class ForgetsItems(EdgeStore):
    def items_latest(
        self, items: NDArray[np.int64], *, k: int, before_ms: int | NDArray[np.int64]
    ) -> Neighbours:
        return super().items_latest(items - 1, k=k, before_ms=before_ms)


class KeepsTheLastToArrive(EdgeStore):
    """Takes the order of arrival for the order of events."""

    arrived = 0

    def append(self, edges: Edges) -> int:
        new = super().append(edges._replace(ts_ms=edges.ts_ms * 0 + self.arrived))
        self.arrived += 1
        return new


class TakesRepeatsForNew(PlainStore):
    def append(self, edges: Edges) -> int:
        fresh = [event._replace(key=event.key + len(self.events)) for event in events_of(edges)]
        return super().append(edges_of(fresh))


class HashesNoKinds(EdgeStore):
    def append(self, edges: Edges) -> int:
        return super().append(edges._replace(kind=edges.kind * 0))


class SeesTheMoment(EdgeStore):
    """Reads up to and including the time asked for."""

    def users_latest(
        self, users: NDArray[np.int64], *, k: int, before_ms: int | NDArray[np.int64]
    ) -> Neighbours:
        return super().users_latest(users, k=k, before_ms=before_ms + 1)


class BlindInsideABatch(EdgeStore):
    """Gives every event of a batch what its user had when the batch began."""

    def histories(self, edges: Edges, *, k: int) -> Neighbours:
        return self.users_latest(edges.user, k=k, before_ms=edges.ts_ms)


class AppendsWhenAsked(EdgeStore):
    def histories(self, edges: Edges, *, k: int) -> Neighbours:
        found = super().histories(edges, k=k)
        self.append(edges)
        return found


class RemovesRetracted(PlainStore):
    """Frees the slot of a retracted edge, so that an older one shows again."""

    def retract(
        self,
        user: NDArray[np.int64],
        item: NDArray[np.int64],
        ts_ms: NDArray[np.int64],
        key: NDArray[np.uint64],
    ) -> None:
        gone = set(zip(ts_ms.tolist(), key.tolist(), strict=True))
        self.events = {event for event in self.events if event[:2] not in gone}


class ForgetsEarlyRetractions(EdgeStore):
    def retract(
        self,
        user: NDArray[np.int64],
        item: NDArray[np.int64],
        ts_ms: NDArray[np.int64],
        key: NDArray[np.uint64],
    ) -> None:
        super().retract(user, item, ts_ms, key)
        self._waiting = self._waiting[:0]


class SavesOnlyEdges(EdgeStore):
    """Keeps waiting retractions outside of its state."""

    def state(self) -> dict[str, Any]:
        return super().state() | {"waiting": self._waiting[:0].copy()}


class SharesItsState(PlainStore):
    """Hands out what it goes on changing."""

    def state(self) -> dict[str, Any]:
        return super().state() | {"events": self.events}


class WrapsAround(EdgeStore):
    """Takes row -1 for the last one."""

    def items_latest(
        self, items: NDArray[np.int64], *, k: int, before_ms: int | NDArray[np.int64]
    ) -> Neighbours:
        last = checks.N_ITEMS - 1
        return super().items_latest(np.where(items < 0, last, items), k=k, before_ms=before_ms)


class RemembersNothings(PlainStore):
    """Makes an edge of an event that says nothing."""

    def append(self, edges: Edges) -> int:
        return super().append(edges._replace(kind=np.minimum(edges.kind, 3)))


class HashesRows(EdgeStore):
    """Puts the order of ids' arrival into the digest."""

    def state_hash(self, users: Ids, items: Ids) -> str:
        return super().state_hash(users, items) + str(id(self))


BROKEN: list[tuple[Build, Check]] = [
    (KeepsOneMore, checks.check_retracted_edges_keep_their_slot),
    (KeepsTheLastToArrive, checks.check_keeps_the_newest),
    (ForgetsItems, checks.check_keeps_both_directions),
    (KeepsTheLastToArrive, checks.check_order_does_not_show),
    (HashesRows, checks.check_order_does_not_show),
    (TakesRepeatsForNew, checks.check_repeats_do_not_show),
    (HashesNoKinds, checks.check_hash_sees_every_part),
    (SeesTheMoment, checks.check_reads_are_strictly_before),
    (BlindInsideABatch, checks.check_histories_are_exact_inside_a_batch),
    (AppendsWhenAsked, checks.check_histories_change_nothing),
    (RemovesRetracted, checks.check_retracted_edges_keep_their_slot),
    (ForgetsEarlyRetractions, checks.check_retractions_wait_for_their_event),
    (SavesOnlyEdges, checks.check_survives_a_restart),
    (SharesItsState, checks.check_survives_a_restart),
    (WrapsAround, checks.check_unknown_rows_have_no_neighbours),
    (RemembersNothings, checks.check_kinds_without_meaning_make_no_edge),
]


@pytest.mark.parametrize(
    ("build", "check"), BROKEN, ids=lambda value: getattr(value, "__name__", str(value))
)
def test_a_store_that_breaks_a_clause_is_found(build: Build, check: Check) -> None:
    with pytest.raises(AssertionError):
        check(build)


def test_every_clause_has_a_store_that_breaks_it() -> None:
    assert {check for _, check in BROKEN} == set(yield_checks())
