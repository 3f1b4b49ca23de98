"""Every model keeps the contract, and the contract finds models that do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from graph_store.graph import GraphConfig, View
from learner.base import Learned, Model
from learner.checks import (
    Build,
    Check,
    check_batch_equals_loop,
    check_empty_graph,
    check_every_parameter_moves,
    check_learns_a_checkerboard,
    check_no_future,
    check_same_seed_same_result,
    check_scoring_changes_nothing,
    check_survives_restart,
    check_unknown_ids,
    yield_checks,
)
from learner.models.sta_hawkes import PARTS, STAHawkes, STAHawkesConfig

GRAPH = GraphConfig()


def sta_hawkes(**settings: Any) -> Build:
    """Return a builder of small models."""

    def build(device: str) -> Model:
        config = STAHawkesConfig(**{"dim": 16, "device": device, **settings})
        return STAHawkes(config, k=GRAPH.k_user, n_half_lives=len(GRAPH.half_lives_ms))

    return build


ZOO: dict[str, Build] = {
    "every_part": sta_hawkes(),
    "pool_and_rows": sta_hawkes(parts=("pool", "user")),
    "attention": sta_hawkes(parts=("attention", "neighbours", "click_rate")),
    "parts_that_close": sta_hawkes(settle=10, tolerance_nats=-10.0),
}


@pytest.mark.parametrize("check", list(yield_checks()), ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", ZOO)
def test_contract(name: str, check: Check) -> None:
    if name == "parts_that_close" and check in {
        check_learns_a_checkerboard,
        check_every_parameter_moves,
    }:
        return  # all that it could learn with is closed on purpose
    check(ZOO[name])


class Around(STAHawkes):
    """A model to be broken in one place."""

    calls = 0


class Forgetful(Around):
    """Keeps a count outside of its state, and lets it tell on the loss."""

    def learn(self, view: View) -> Learned:
        self.calls += 1
        return super().learn(view)._replace(loss=float(self.calls))


class Clairvoyant(Around):
    """Looks at the whole batch when it scores."""

    def score(self, view: View, events: NDArray[np.int64]) -> NDArray[np.float32]:
        return super().score(view, events) + np.float32(view.users.sum())


class Relative(Around):
    """Scores an event by its place among those asked for."""

    def score(self, view: View, events: NDArray[np.int64]) -> NDArray[np.float32]:
        place = np.arange(events.shape[0], dtype=np.float32)
        return super().score(view, events) + place[:, None]


class Impressionable(Around):
    """Learns from being asked."""

    def score(self, view: View, events: NDArray[np.int64]) -> NDArray[np.float32]:
        self.learn(view)
        return super().score(view, events)


class Provincial(Around):
    """Gives no score to a user without a history."""

    def score(self, view: View, events: NDArray[np.int64]) -> NDArray[np.float32]:
        scores = super().score(view, events)
        scores[view.history.nodes[events, 0] < 0] = np.nan
        return scores


class Pedantic(Around):
    """Takes the catalogue to have a first item."""

    def score(self, view: View, events: NDArray[np.int64]) -> NDArray[np.float32]:
        scores = super().score(view, events)
        scores -= scores[:, :1].max()
        return scores


class Moody(Around):
    """Draws from a generator that nobody seeded."""

    def score(self, view: View, events: NDArray[np.int64]) -> NDArray[np.float32]:
        return super().score(view, events) + np.float32(np.random.default_rng().random())


class Deaf(Around):
    """Learns nothing."""

    def learn(self, view: View) -> Learned:
        return Learned(0.0, view.users, view.items)


BROKEN: dict[Callable[..., Around], Check] = {
    Forgetful: check_survives_restart,
    Clairvoyant: check_no_future,
    Relative: check_batch_equals_loop,
    Impressionable: check_scoring_changes_nothing,
    Provincial: check_unknown_ids,
    Pedantic: check_empty_graph,
    Moody: check_same_seed_same_result,
}


def broken(kind: Callable[..., Around], parts: tuple[str, ...] = PARTS) -> Build:
    """Return a builder of broken models."""
    config = STAHawkesConfig(dim=16, parts=parts)
    return lambda _: kind(config, k=GRAPH.k_user, n_half_lives=len(GRAPH.half_lives_ms))


@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.__name__)
def test_a_model_that_breaks_a_clause_is_found(kind: Callable[..., Around]) -> None:
    with pytest.raises((AssertionError, ValueError)):
        BROKEN[kind](broken(kind))


@pytest.mark.parametrize("check", [check_learns_a_checkerboard, check_every_parameter_moves])
def test_a_model_that_does_not_learn_is_found(check: Check) -> None:
    with pytest.raises(AssertionError):  # without counts, which the graph keeps for the deaf too
        check(broken(Deaf, ("pool", "user")))


def test_all_parts_are_on_by_default() -> None:
    assert STAHawkesConfig().parts == PARTS
