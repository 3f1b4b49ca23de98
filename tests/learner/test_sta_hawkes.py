"""STA-Hawkes computes the equations of its docstring."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from graph_store.graph import GraphConfig, TemporalGraph, View
from learner.base import Model
from learner.checks import checkerboard, feedback, follow
from learner.models.sta_hawkes import PARTS, STAHawkes, STAHawkesConfig
from learner.online import OnlineLearner
from stream.events import Kind

GRAPH = GraphConfig()


def build(**settings: Any) -> STAHawkes:
    """Return a small model."""
    config = STAHawkesConfig(**{"dim": 8, **settings})
    return STAHawkes(config, k=GRAPH.k_user, n_half_lives=len(GRAPH.half_lives_ms))


def grown(**settings: Any) -> OnlineLearner:
    """Return a learner that has followed a short stream."""
    return follow(build(**settings), checkerboard(480))


def by_hand(learner: OnlineLearner, view: View, event: int) -> NDArray[np.float64]:
    """Score one event with loops and the equations of the module's docstring."""
    model = learner.model
    assert isinstance(model, STAHawkes)
    dense, graph = model.dense, learner.graph
    rows = model.state()
    item_rows, user_rows = rows["items"]["weight"], rows["users"]["weight"]
    bias = rows["bias"]["weight"][:, 0]
    gate = {name: float(value.detach()) for name, value in dense.gate.items()}
    value = {name: p.detach().double().numpy() for name, p in dense.named_parameters()}
    own = user_rows[view.users[event]].astype(np.float64)

    columns = (column[event].tolist() for column in view.history)
    past = [
        (item, kind, (int(view.ts_ms[event]) - ts_ms) / 3_600_000)
        for item, ts_ms, kind in zip(*columns, strict=True)
        if item >= 0
    ]
    h = gate["user"] * own
    if past:
        pool = [value["pool_rank"][k] + value["pool_class"][s] for k, (_, s, _) in enumerate(past)]
        decay = math.log1p(math.exp(float(value["attention_decay"])))
        heed = [
            (own + value["query"]) @ item_rows[i] / math.sqrt(8)
            + value["attention_rank"][k]
            + value["attention_class"][s]
            - decay * age / 24
            for k, (i, s, age) in enumerate(past)
        ]
        for k, (i, s, age) in enumerate(past):
            weight = gate["pool"] * softmax(pool)[k] * value["pool_sign"][s]
            weight += gate["attention"] * softmax(heed)[k]
            rates = np.exp(value["log_rate"])
            weight += gate["hawkes"] * float(value["amplitude"][s] @ np.exp(-rates * age))
            h = h + weight * item_rows[i]

    scores = []
    length = int(np.digitize(len(past), (1, 3, 6, 11, 20)))
    for item in range(view.n_items):
        z = item_rows[item].astype(np.float64)
        near = graph.edges.items_latest(np.array([item]), k=10, before_ms=view.at_ms)
        users = [u for u, s in zip(near.nodes[0], near.kind[0], strict=True) if u >= 0 and s <= 1]
        if users:
            z = z + gate["neighbours"] * user_rows[users].mean(0)
        likes = graph.positives.at(view.at_ms, view.n_items)
        shows = graph.shown.at(view.at_ms, view.n_items)
        average = (likes.sum(0) + 1) / (shows.sum(0) + 2)
        rate = np.log((likes[item] + 5 * average) / (shows[item] + 5) / average)
        cosine = 0.0
        for k, (i, s, _) in enumerate(past):
            if s <= 1:
                others, cosines = graph.covisitation.neighbours(i)
                cosine += 0.8**k * float(cosines[others == item].sum())
        scores.append(
            h @ z
            + bias[item]
            + gate["popularity"] * float(value["popularity"] @ np.log1p(likes[item]))
            + gate["click_rate"] * float(value["click_rate"] @ rate)
            + gate["covisitation"] * value["covisitation"][length] * math.log1p(50 * cosine)
        )
    return np.array(scores)


def softmax(values: list[float]) -> NDArray[np.float64]:
    """Return the softmax, the plain way."""
    powers: NDArray[np.float64] = np.exp(np.array(values) - max(values))
    shares: NDArray[np.float64] = powers / powers.sum()
    return shares


def test_scores_are_the_sum_of_the_parts_in_the_equations() -> None:
    learner = grown()
    view = learner.graph.view(checkerboard(16, seed=5)[0])
    for event in (0, 7, 15):
        scores = learner.model.score(view, np.array([event]))[0]
        np.testing.assert_allclose(scores, by_hand(learner, view, event), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", PARTS)
def test_a_part_that_is_switched_off_leaves_no_trace_in_the_scores(name: str) -> None:
    """Without the part, the model is the one with that part's gate at nothing."""
    without = grown(parts=tuple(part for part in PARTS if part != name))
    assert name not in {part.name for part in without.model.parts()}
    view = without.graph.view(checkerboard(16, seed=5)[0])
    whole = build()
    state, model = without.model.state(), without.model
    assert isinstance(model, STAHawkes)
    with torch.no_grad():
        for key, parameter in model.dense.named_parameters():
            dict(whole.dense.named_parameters())[key].copy_(parameter)
        whole.dense.gate[name].zero_()
    own = whole.state()
    whole.restore({**state, **{name: own[name] for name in ("dense", "adam", "gates")}})
    np.testing.assert_allclose(
        whole.score(view, np.array([3])), model.score(view, np.array([3])), rtol=1e-4, atol=1e-5
    )


def test_every_parameter_gets_a_finite_gradient_that_is_not_zero() -> None:
    model = build()
    follow(model, checkerboard(4_800))
    start = build().dense
    for (name, now), (_, before) in zip(
        model.dense.named_parameters(), start.named_parameters(), strict=True
    ):
        assert now.isfinite().all(), name
        moved = now != before
        if name == "covisitation":
            moved = moved[1:]  # the weight of an empty history multiplies nothing
        assert moved.all(), name


def test_a_part_that_is_worth_too_little_is_closed_and_costs_nothing() -> None:
    learner = grown(settle=50, tolerance_nats=-100.0)
    parts = {part.name: part for part in learner.model.parts()}
    closed = [part for part in parts.values() if not part.open]
    assert len(closed) == 1  # the next waits for the others to take over
    assert closed[0].gate == 0.0


def test_an_explicit_negative_lowers_the_score_of_its_item() -> None:
    """Against the same model after the same batch, but that the user said nothing."""
    scores = {}
    for kind in (Kind.EXPLICIT_NEGATIVE, Kind.NONE):
        learner = grown(explicit_negative=5.0)
        view = learner.graph.view(
            feedback([(0, 2, 900, kind), (1, 3, 901, Kind.EXPLICIT_POSITIVE)])
        )
        learner.model.learn(view)
        scores[kind] = learner.model.score(view, np.array([0]))[0]
    item = int(learner.graph.items.find(["i2"])[0])
    lower = scores[Kind.NONE] - scores[Kind.EXPLICIT_NEGATIVE]
    assert lower[item] > 0.01
    assert lower[item] > 2 * np.abs(np.delete(lower, item)).mean()


def test_a_new_item_starts_near_what_its_first_user_did_before() -> None:
    learner = grown(item_std=0.0)
    fresh = feedback([(0, 50, 900, Kind.IMPLICIT_NEGATIVE)])
    view = learner.graph.view(fresh)
    model = learner.model
    assert isinstance(model, STAHawkes)
    rows = model.state()["items"]["weight"]
    past = view.history.nodes[0]
    expected = rows[past[past >= 0]].mean(0)
    model.learn(view)
    np.testing.assert_allclose(
        model.state()["items"]["weight"][view.items[0]], expected, rtol=1e-5, atol=1e-7
    )


def test_published_vectors_and_weights_give_the_scores_without_covisitation() -> None:
    learner = grown(parts=("pool", "user", "neighbours"))
    model: Model = learner.model
    view = learner.graph.view(checkerboard(16, seed=5)[0])
    users = model.user_vectors(view, np.arange(4))
    items = model.item_vectors(view, np.arange(view.n_items))
    np.testing.assert_allclose(
        users.vectors @ items.vectors.T + items.bias,
        model.score(view, np.arange(4)),
        rtol=1e-4,
        atol=1e-5,
    )


def test_events_that_say_nothing_teach_nothing() -> None:
    graph, model = TemporalGraph(GRAPH), build()
    learner = OnlineLearner(graph, model)
    learner.step(feedback([(0, 0, 1, Kind.IMPLICIT_POSITIVE), (1, 1, 2, Kind.IMPLICIT_POSITIVE)]))
    before = model.state()
    step = learner.step(feedback([(0, 1, 3, Kind.NONE)]))
    assert math.isnan(step.loss)
    np.testing.assert_array_equal(before["dense"], model.state()["dense"])
