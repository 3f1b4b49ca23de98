"""Answers requests as a recommender does, with what the experiments that run make of each list."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

import msgspec

from serving.experiments.assignment import Arm, Experiment
from serving.experiments.enrolling import Enrolled, Enrolment
from serving.live import Copy, wall_ms
from serving.recommending import Ask, Recommendations, Recommender, TakesPart

MAX_BESIDE: Final = 64
"""Lists of shadow arms that are made at once; under more load some are left out."""

_log = logging.getLogger("tidegraph.serving")


class Shadow(NamedTuple):
    """A list that is made beside the answer, and whose it is."""

    experiment: Experiment
    arm: Arm
    ask: Ask


class Trial(NamedTuple):
    """What becomes of one request.

    Parameters
    ----------
    enrolled
        The experiments that it takes part in.
    shown
        What is asked for in its place: one list, or the control's and the treated one, which are
        mixed.
    shadows
        What is asked for besides.

    """

    enrolled: list[Enrolled]
    shown: list[Ask]
    shadows: list[Shadow]

    @classmethod
    def of(cls, ask: Ask, enrolled: list[Enrolled]) -> Trial:
        """Return what experiments make of a request."""
        split = [each for each in enrolled if each.experiment.design == "split"]
        plain = decided(ask, [each.arm for each in split])
        mixed = next((each for each in enrolled if each.experiment.design == "interleave"), None)
        shown = [plain] if mixed is None else [decided(plain, [a]) for a in mixed.experiment.shown]
        shadows: list[Shadow] = []
        for one in enrolled:
            others = decided(ask, [each.arm for each in split if each is not one])
            hidden = one.experiment.shadows
            shadows += [Shadow(one.experiment, arm, decided(others, [arm])) for arm in hidden]
        return cls(enrolled, shown, shadows)


def decided(ask: Ask, arms: Sequence[Arm]) -> Ask:
    """Return a request with what arms decide; no two that are shown decide the same."""
    changed: dict[str, Any] = {}
    for arm in arms:
        changed |= {} if arm.answers_from is None else {"model": arm.answers_from}
        changed |= msgspec.to_builtins(arm.settings)
    return replace(ask, **changed) if changed else ask


class Trials:
    """A :class:`Recommender` whose lists are those of the arms; for one event loop.

    Parameters
    ----------
    recommender
        Makes the lists.
    enrolment
        Says which arms a request gets; somebody else starts and ends it.

    """

    def __init__(self, recommender: Recommender, enrolment: Enrolment) -> None:
        self._recommender = recommender
        self._enrolment = enrolment
        self._beside: set[asyncio.Task[None]] = set()
        self._n_beside = 0

    def recommend(
        self, ask: Ask, session: str = "", *, preview: bool = False
    ) -> Awaitable[Recommendations]:
        """Return a list; raises as the recommender does.

        Parameters
        ----------
        ask, session
            What is asked for, and in which session.
        preview
            Whether somebody else looks: the list is the same, and nothing is noted.

        """
        if self._enrolment.idle:
            return self._recommender.recommend(ask)
        return self._one(ask, session, preview=preview)

    def recommend_all(
        self, asks: Sequence[Ask], sessions: Sequence[str]
    ) -> Awaitable[list[Recommendations]]:
        """Return one list for each; raises as the recommender does."""
        if self._enrolment.idle:
            return self._recommender.recommend_all(asks)
        return self._all(asks, sessions)

    async def _one(self, ask: Ask, session: str, *, preview: bool) -> Recommendations:
        (answer,) = await self._all([ask], [session], preview=preview)
        return answer

    async def _all(
        self, asks: Sequence[Ask], sessions: Sequence[str], *, preview: bool = False
    ) -> list[Recommendations]:
        self._recommender.in_view()  # raises where there is nothing that a unit could meet
        noted_ms = None if preview else wall_ms()
        trials = [
            Trial.of(ask, self._enrolment.meet(ask.user_id or "", session, at_ms=noted_ms))
            for ask, session in zip(asks, sessions, strict=True)
        ]
        wanted = [ask for trial in trials for ask in trial.shown]
        lists = iter(await self._made(wanted))
        answers = [self._answer(trial, lists, preview=preview) for trial in trials]
        for trial, answer in zip(trials, answers, strict=True):
            if trial.shadows and not preview:
                self._compare_beside(trial.shadows, [one.item for one in answer.items])
        return answers

    def _answer(
        self, trial: Trial, lists: Iterator[Recommendations], *, preview: bool
    ) -> Recommendations:
        found = [next(lists) for _ in trial.shown]
        answer = found[0]
        if not trial.enrolled:
            return answer
        request_id, items = "" if preview else uuid.uuid4().hex, answer.items
        for experiment, _ in trial.enrolled:
            if experiment.design == "interleave":
                of = {one.item: one for each in reversed(found) for one in each.items}
                control, treated = ([one.item for one in each.items] for each in found)
                n = trial.shown[0].n
                mixed = self._enrolment.mix(experiment, control, treated, n, request_id=request_id)
                items = [of[item_id] for item_id in mixed]
        parts = [
            TakesPart(experiment.name, arm.name if experiment.design == "split" else None)
            for experiment, arm in trial.enrolled
        ]
        return msgspec.structs.replace(
            answer, items=items, request_id=request_id, experiments=parts
        )

    async def _made(self, asks: Sequence[Ask]) -> list[Recommendations]:
        """Return the lists, without what users have met since a model named was last learned."""
        if of_models := [ask for ask in asks if ask.model is not None]:
            users = {ask.user_id for ask in of_models if ask.user_id is not None}
            copy = await self._recommender.with_users(users)
            asks = [ask if ask.model is None else _without_seen(copy, ask) for ask in asks]
        return await self._recommender.recommend_all(asks)

    def _compare_beside(self, shadows: Sequence[Shadow], shown: Sequence[str]) -> None:
        those = shadows[: MAX_BESIDE - self._n_beside]
        if not those:
            return
        self._n_beside += len(those)
        task = asyncio.get_running_loop().create_task(self._compare(those, shown))
        self._beside.add(task)  # a task that nobody holds may be collected
        task.add_done_callback(self._beside.discard)

    async def _compare(self, shadows: Sequence[Shadow], shown: Sequence[str]) -> None:
        try:
            answers = await self._made([each.ask for each in shadows])
        except Exception:  # noqa: BLE001 - what nobody is shown must not break what is
            _log.debug("a shadow arm has no list", exc_info=True)
            return
        finally:
            self._n_beside -= len(shadows)
        for (experiment, arm, ask), answer in zip(shadows, answers, strict=True):
            if self._recommender.answered_from(ask.model, answer):  # else it is gone
                self._enrolment.compare(experiment, arm, shown, [one.item for one in answer.items])


def _without_seen(copy: Copy, ask: Ask) -> Ask:
    user = None if ask.user_id is None else copy.user(ask.user_id, old=True)
    if user is None or not ask.leave_out_seen:
        return ask
    return replace(ask, exclude=[*ask.exclude, *copy.catalogue.ids(user.seen), *user.unplaced])
