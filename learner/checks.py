"""What every model must satisfy: a contract of small checks, run against each one that is added."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from graph_store.graph import GraphConfig, TemporalGraph
from learner.base import Model
from learner.online import OnlineLearner
from stream.events import Feedback, FeedbackBatch, Kind

Build = Callable[[str], Model]
"""Makes an untrained model on a device, the same each time."""

Check = Callable[[Build], None]

_START_MS = 1_650_812_741_000
_N_GROUP = 8  # users and items of either colour


def feedback(events: list[tuple[int, int, int, Kind]]) -> FeedbackBatch:
    """Return events ``(user, item, second, kind)`` as accepted feedback, in order."""
    return FeedbackBatch.from_feedback(
        [
            Feedback(
                1,
                f"{second:06d}-{user}-{item}",
                f"u{user}",
                f"i{item}",
                _START_MS + 1_000 * second,
                kind.label,
                1.0,
            )
            for user, item, second, kind in events
        ]
    ).in_order()


def checkerboard(n_events: int, *, seed: int = 0) -> list[FeedbackBatch]:
    """Return batches of 16 in which even users like even items and skip odd ones, and the reverse.

    User ``u`` never meets item ``u``: the withheld item of its own colour.
    """
    rng = np.random.default_rng(seed)
    events = []
    for second in range(n_events):
        user, item = (int(row) for row in rng.integers(0, 2 * _N_GROUP, 2))
        if user == item:
            item = (item + 2) % (2 * _N_GROUP)
        same = user % 2 == item % 2
        kind = Kind.IMPLICIT_POSITIVE if same else Kind.IMPLICIT_NEGATIVE
        if second % 17 == 0:
            kind = Kind.EXPLICIT_POSITIVE if same else Kind.EXPLICIT_NEGATIVE
        events.append((user, item, second, kind))
    return [feedback(events[first : first + 16]) for first in range(0, n_events, 16)]


def follow(model: Model, batches: list[FeedbackBatch]) -> OnlineLearner:
    """Let a model follow a stream from an empty graph."""
    learner = OnlineLearner(TemporalGraph(GraphConfig()), model)
    for batch in batches:
        learner.step(batch)
    return learner


def check_no_future(build: Build) -> None:
    """Changing what happens after an event changes no score at it, not even inside its batch."""
    *before, last = checkerboard(320)
    half = len(last) // 2
    other = feedback([(n, n + 1, 10_000 + n, Kind.EXPLICIT_POSITIVE) for n in range(half)])
    changed = FeedbackBatch.concat([last.take(np.arange(half)), other])
    scores = [
        _scores(follow(build("cpu"), before), batch, np.arange(half)) for batch in (last, changed)
    ]
    np.testing.assert_array_equal(scores[0], scores[1])


def check_survives_restart(build: Build) -> None:
    """A new model that got the state goes on, to the last bit, like the one that was stopped."""
    batches = checkerboard(640)
    first = follow(build("cpu"), batches[:20])
    second = OnlineLearner(TemporalGraph(GraphConfig()), build("cpu"))
    second.graph.restore(_stored(first.graph.state()))
    second.model.restore(_stored(first.model.state()))
    for batch in batches[20:]:
        losses = [learner.step(batch).loss for learner in (first, second)]
        np.testing.assert_array_equal(losses[0], losses[1])
    tail = batches[-1]
    everyone = np.arange(len(tail))
    np.testing.assert_array_equal(_scores(first, tail, everyone), _scores(second, tail, everyone))


def check_batch_equals_loop(build: Build) -> None:
    """Scoring events together or one by one is the same."""
    *before, last = checkerboard(320)
    learner = follow(build("cpu"), before)
    together = _scores(learner, last, np.arange(len(last)))
    alone = [_scores(learner, last, np.array([n])) for n in range(len(last))]
    np.testing.assert_allclose(together, np.concatenate(alone), rtol=1e-5, atol=1e-6)


def check_scoring_changes_nothing(build: Build) -> None:
    """Who was ranked leaves no trace in what is learned."""
    batches = checkerboard(320)
    silent, asked = (follow(build("cpu"), batches[:10]) for _ in range(2))
    for batch in batches[10:]:
        silent.step(batch)
        asked.step(batch, rank=lambda view: _keep(asked.model.score(view, np.arange(len(view)))))
    everyone = np.arange(16)
    np.testing.assert_array_equal(
        _scores(silent, batches[0], everyone), _scores(asked, batches[0], everyone)
    )


def check_unknown_ids(build: Build) -> None:
    """A user and an item never heard of get finite scores, and are learned from."""
    learner = follow(build("cpu"), checkerboard(160))
    strange = feedback([(77, 99, 9_000, Kind.EXPLICIT_POSITIVE), (77, 1, 9_001, Kind.NONE)])
    assert np.isfinite(_scores(learner, strange, np.array([0, 1]))).all()
    assert learner.step(strange).items.size


def check_forgets(build: Build) -> None:
    """What is left under the row of a user who was forgotten is what a stranger has."""
    learner = follow(build("cpu"), checkerboard(640))
    graph = learner.graph
    rows = graph.users.find(["u3", "u4"])
    assert learner.forget("u3") is not None
    learner.forget("nobody")
    (new,) = graph.users.rows(["u99"])
    scores = learner.model.score(
        graph.reading(np.array([rows[0], new, rows[1]]), np.full(3, graph.newest_ms + 1)),
        np.arange(3),
    )
    np.testing.assert_array_equal(scores[0], scores[1])
    assert not np.array_equal(scores[1], scores[2])


def check_empty_graph(build: Build) -> None:
    """The first batch of a stream has no candidates, and can be learned from."""
    learner = OnlineLearner(TemporalGraph(GraphConfig()), build("cpu"))
    first = feedback([(0, 0, 0, Kind.IMPLICIT_POSITIVE)])
    assert _scores(learner, first, np.array([0])).shape == (1, 0)
    learner.step(first)
    assert np.isfinite(_scores(learner, first, np.array([0]))).all()


def check_same_seed_same_result(build: Build) -> None:
    """Two runs of one seed are one run."""
    batches = checkerboard(320)
    runs = [_scores(follow(build("cpu"), batches), batches[0], np.arange(16)) for _ in range(2)]
    np.testing.assert_array_equal(runs[0], runs[1])


def check_learns_a_checkerboard(build: Build) -> None:
    """Nearly every user's withheld item comes before most items of the other colour."""
    learner = follow(build("cpu"), checkerboard(6_400))
    graph = learner.graph
    users = graph.users.rows([f"u{user}" for user in range(2 * _N_GROUP)])
    items = graph.items.rows([f"i{item}" for item in range(2 * _N_GROUP)])
    now = np.full(users.shape, graph.newest_ms + 1)
    scores = learner.model.score(graph.reading(users, now), np.arange(users.shape[0]))[:, items]
    colour = np.arange(2 * _N_GROUP) % 2
    wins = [
        (scores[user, user] > scores[user, colour != colour[user]]).mean()
        for user in range(2 * _N_GROUP)
    ]
    assert np.mean(wins) > 0.9, f"withheld items win {np.mean(wins):.0%} of their comparisons"


def check_every_parameter_moves(build: Build) -> None:
    """Learning changes every array of numbers in the state, and leaves all of them finite."""
    model = build("cpu")
    learner = follow(model, checkerboard(160))
    before = dict(_numbers(model.state()))
    for batch in checkerboard(320, seed=1):
        learner.step(batch)
    for name, after in _numbers(model.state()):
        assert np.isfinite(after).all(), name
        assert not np.array_equal(before[name], after[tuple(map(slice, before[name].shape))]), name


def check_cpu_equals_gpu(build: Build) -> None:
    """Both devices learn the same, but for the last digits."""
    batches = checkerboard(320)
    runs = [
        _scores(follow(build(device), batches), batches[0], np.arange(16))
        for device in ("cpu", "cuda")
    ]
    np.testing.assert_allclose(runs[0], runs[1], rtol=1e-2, atol=1e-3)


def yield_checks() -> Iterator[Check]:
    """Yield the contract, one clause at a time, so that a failure names the clause."""
    yield check_no_future
    yield check_survives_restart
    yield check_batch_equals_loop
    yield check_scoring_changes_nothing
    yield check_unknown_ids
    yield check_forgets
    yield check_empty_graph
    yield check_same_seed_same_result
    yield check_learns_a_checkerboard
    yield check_every_parameter_moves
    if torch.cuda.is_available():
        yield check_cpu_equals_gpu


def _scores(
    learner: OnlineLearner, batch: FeedbackBatch, events: NDArray[np.int64]
) -> NDArray[np.float32]:
    return learner.model.score(learner.graph.view(batch), events)


def _keep(_: object) -> None:
    """Take the answer of a scoring and make nothing of it."""


def _stored(state: dict[str, Any]) -> dict[str, Any]:
    """Return a copy that shares nothing with the original, as if it came from a disk."""
    return {
        name: _stored(value)
        if isinstance(value, dict)
        else value.copy()
        if isinstance(value, np.ndarray)
        else value
        for name, value in state.items()
    }


def _numbers(state: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, NDArray[Any]]]:
    for name, value in state.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, np.ndarray) and value.dtype.kind == "f":
            yield prefix + name, value
