"""What an experiment is, and which arm a user or session falls into: the same one, always."""

from __future__ import annotations

import math
from bisect import bisect_right
from hashlib import blake2b
from itertools import accumulate, pairwise
from typing import Annotated, Final, Literal

import msgspec
from msgspec.structs import asdict

N_BUCKETS: Final = 10_000
"""Units are spread over so many buckets; an arm is a range of them, so shares go by 0.01 %."""

Outcome = Literal[
    "explicit_positive", "implicit_positive", "implicit_negative", "explicit_negative"
]

Name = Annotated[str, msgspec.Meta(pattern="^[a-z0-9][a-z0-9_-]{0,63}(?!\\n)$", max_length=64)]
Text = Annotated[str, msgspec.Meta(max_length=200)]
Share = Annotated[float, msgspec.Meta(gt=0, le=1)]
Weight = Annotated[float, msgspec.Meta(gt=0, le=1e6)]
Value = Annotated[float, msgspec.Meta(ge=-1e6, le=1e6)]


class ListSettings(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """What an arm makes of a list besides its model; ``None`` leaves it to the request.

    Parameters
    ----------
    diversity
        As in ``POST /v1/rerank``: 0 keeps the order of the scores, 1 looks only for items that
        differ from those before.
    leave_out_seen
        Whether what the user has met is left out.

    """

    diversity: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    leave_out_seen: bool | None = None


class Arm(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of the things that are compared.

    Parameters
    ----------
    name
        Lower-case letters, digits, ``_`` and ``-``.
    weight
        How many units it gets, in proportion to the other arms.
    model
        Epoch of the model that answers; ``None`` is the one in view.
    learner
        Namespace under which the learner publishes whose model answers, such as one that types
        events by other rules; ``None`` is the usual one.
    settings
        What else differs.
    shadow
        Answered for every unit of the experiment and compared with what is shown, but shown to
        nobody.

    """

    name: Name
    weight: Weight = 1.0
    model: Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)] | None = None
    learner: Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9_.-]{1,64}(?!\\n)$")] | None = None
    settings: ListSettings = ListSettings()
    shadow: bool = False

    def __post_init__(self) -> None:
        """Refuse what could not be meant."""
        if self.model is not None and self.learner is not None:
            raise ValueError(f"want a model or a learner for the arm {self.name!r}, got both")

    @property
    def answers_from(self) -> int | str | None:
        """Epoch or learner; ``None`` is what everybody else is answered from."""
        return self.model if self.learner is None else self.learner

    def changes(self) -> set[str]:
        """Return the names of what differs from the usual.

        Examples
        --------
        >>> sorted(Arm(name="b", model=3, settings=ListSettings(diversity=0.3)).changes())
        ['model', 'settings.diversity']

        """
        named = {f"settings.{name}": value for name, value in asdict(self.settings).items()}
        named["model"] = self.answers_from
        return {name for name, value in named.items() if value is not None}


class Experiment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is compared, on whom, and by what measure. It never changes once it is started.

    Parameters
    ----------
    name
        Lower-case letters, digits, ``_`` and ``-``; used once and never again, because units are
        assigned by it.
    arms
        The first one is the control: what there is today.
    design
        ``split`` gives each unit one arm; ``interleave`` mixes the lists of two arms for everybody
        and counts whose items are taken.
    unit
        What is assigned: a user, or a session (``context.session`` of the events).
    share
        Of all units, who takes part.
    metric
        What an event of each class counts; the outcome of a unit is the sum.
    window_s
        The outcome of a unit is what it does in so many seconds after it first met the experiment.
    before_s
        What it did in so many seconds before the start of the experiment is taken into account
        (CUPED); 0 leaves it out.
    strata
        User attribute by whose values units are compared among their like; empty for none.
    expected_units
        How many units are likely to take part: the always-valid interval is narrowest there.
    alpha
        How often an experiment without any difference may seem to have one.

    Raises
    ------
    ValueError
        If the parts do not go together.

    """

    name: Name
    arms: Annotated[tuple[Arm, ...], msgspec.Meta(min_length=2, max_length=10)]
    design: Literal["split", "interleave"] = "split"
    unit: Literal["user", "session"] = "user"
    share: Share = 1.0
    metric: dict[Outcome, Value] = msgspec.field(
        default_factory=lambda: {"explicit_positive": 1.0, "implicit_positive": 1.0}
    )
    window_s: Annotated[float, msgspec.Meta(ge=1, le=1e8)] = 86_400.0
    before_s: Annotated[float, msgspec.Meta(ge=0, le=1e8)] = 604_800.0
    strata: Text = ""
    expected_units: Annotated[int, msgspec.Meta(ge=100, le=10**12)] = 10_000
    alpha: Annotated[float, msgspec.Meta(ge=1e-6, le=0.5)] = 0.05

    def __post_init__(self) -> None:
        """Refuse what could not be meant."""
        if self.strata and self.unit != "user":
            raise ValueError(f"want users as units where there are strata, got {self.unit}s")
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names):
            raise ValueError(f"want arms of different names, got {', '.join(names)}")
        shown = len(self.shown)
        if self.arms[0].shadow:
            raise ValueError(f"the first arm is the control and is shown; {names[0]!r} is a shadow")
        if self.design == "interleave" and shown != 2:
            raise ValueError(f"want two arms to interleave, got {shown} that are shown")
        numbers = (self.share, self.window_s, self.before_s, self.alpha)
        weights = (arm.weight for arm in self.arms)
        if not all(map(math.isfinite, (*numbers, *weights, *self.metric.values()))):
            raise ValueError("want finite numbers")
        if min(shares(self)) * N_BUCKETS < 1 or round(self.share * N_BUCKETS) < 1:
            raise ValueError("want a share and weights by which every arm gets at least 0.01 %")
        if not any(self.metric.values()):
            raise ValueError(f"want a metric that counts some class, got {self.metric}")

    @property
    def shown(self) -> tuple[Arm, ...]:
        """The arms that somebody gets to see, the control first."""
        return tuple(arm for arm in self.arms if not arm.shadow)

    @property
    def shadows(self) -> tuple[Arm, ...]:
        """The arms that nobody gets to see."""
        return tuple(arm for arm in self.arms if arm.shadow)


class Assigner:
    """Tells which arm each unit of one experiment falls into, in a microsecond or two.

    The halves of a digest of the unit's id, keyed with the experiment's name, say whether it takes
    part and which arm it gets, so that experiments do not depend on each other (Tang et al.,
    *Overlapping Experiment Infrastructure*, KDD 2010), and nothing need be stored.

    Examples
    --------
    >>> arms = (Arm(name="today"), Arm(name="new", model=3))
    >>> assign = Assigner(Experiment(name="newer-model", arms=arms))
    >>> [assign(user) for user in ("712", "713", "714", "715")]
    [0, 1, 0, 1]
    >>> Assigner(Experiment(name="newer-model", arms=arms, share=0.01))("712") is None
    True

    """

    def __init__(self, experiment: Experiment) -> None:
        self._keyed = blake2b(digest_size=16, key=experiment.name.encode())
        self._taking_part = round(experiment.share * N_BUCKETS)
        self._ends = _ends(experiment)

    def __call__(self, unit: str) -> int | None:
        """Return the place of the unit's arm among those shown; ``None`` if it takes no part."""
        keyed = self._keyed.copy()
        keyed.update(unit.encode())
        digest = keyed.digest()
        if _bucket(digest[:8]) >= self._taking_part:
            return None
        return bisect_right(self._ends, _bucket(digest[8:]))


def shares(experiment: Experiment) -> list[float]:
    """Return the share of the units that each arm that is shown gets.

    Examples
    --------
    >>> shares(Experiment(name="x", arms=(Arm(name="a"), Arm(name="b", weight=3.0))))
    [0.25, 0.75]

    """
    return [(end - start) / N_BUCKETS for start, end in pairwise([0, *_ends(experiment)])]


def _ends(experiment: Experiment) -> list[int]:
    """Return the bucket before which each arm ends."""
    weights = [arm.weight for arm in experiment.shown]
    return [round(N_BUCKETS * end / sum(weights)) for end in accumulate(weights)]


def _bucket(digest: bytes) -> int:
    return int.from_bytes(digest, "big") * N_BUCKETS >> 64
