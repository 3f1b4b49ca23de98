"""Same unit, same arm; arms as large as asked; experiments that do not depend on each other."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.experiments.assignment import Arm, Assigner, Experiment, shares
from tests.house import ROOT

ARMS = (Arm(name="today"), Arm(name="new", model=3))
USERS = [str(number) for number in range(20_000)]

weights = st.lists(st.floats(0.1, 10.0), min_size=2, max_size=6)


def experiment(name: str = "x", **others: object) -> Experiment:
    return msgspec.convert({"name": name, "arms": ARMS, **others}, Experiment)


@given(weights=weights, share=st.floats(0.001, 1.0), unit=st.text(max_size=30))
def test_a_unit_stays_where_it_is(weights: list[float], share: float, unit: str) -> None:
    arms = tuple(Arm(name=f"arm{n}", weight=weight) for n, weight in enumerate(weights))
    asked = Experiment(name="x", arms=arms, share=share)
    again = msgspec.json.decode(msgspec.json.encode(asked), type=Experiment)
    found = Assigner(asked)(unit)
    assert found == Assigner(again)(unit)
    assert found is None or 0 <= found < len(arms)
    assert sum(shares(asked)) == pytest.approx(1.0)


def test_another_process_says_the_same() -> None:
    """A hash that begins anew in every process would pass all other tests."""
    program = (
        "from serving.experiments.assignment import *\n"
        "assign = Assigner(Experiment(name='x', arms=(Arm(name='a'), Arm(name='b'))))\n"
        "print(*map(assign, 'abcdefghijklmnop'))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assign = Assigner(experiment())
    assert ran.stdout.split() == [str(assign(unit)) for unit in "abcdefghijklmnop"]


def test_shares_and_weights_are_kept() -> None:
    arms = (Arm(name="today", weight=1), Arm(name="b", weight=3), Arm(name="c", shadow=True))
    counts = Counter(map(Assigner(experiment(arms=arms, share=0.4)), USERS))
    assert set(counts) == {None, 0, 1}  # a shadow gets nobody
    for found, wanted in ((counts[None], 0.6), (counts[0], 0.1), (counts[1], 0.3)):
        error = math.sqrt(wanted * (1 - wanted) / len(USERS))
        assert abs(found / len(USERS) - wanted) < 4 * error


def test_two_experiments_do_not_depend_on_each_other() -> None:
    one, other = Assigner(experiment("one")), Assigner(experiment("other"))
    counts = Counter((one(user), other(user)) for user in USERS)
    assert max(abs(count / len(USERS) - 0.25) for count in counts.values()) < 0.013
    taking_part = Assigner(experiment("one", share=0.5))
    arms = Counter(arm for user in USERS if (arm := taking_part(user)) is not None)
    assert abs(arms[0] - arms[1]) < 4 * math.sqrt(sum(arms.values()))


def test_more_traffic_moves_nobody() -> None:
    assigners = [Assigner(experiment(share=share)) for share in (0.1, 0.5, 1.0)]
    for few, more in pairwise(assigners):
        assert all(few(user) in {None, more(user)} for user in USERS[:2_000])


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"name": "No Spaces"}, r"matching regex .* `\$\.name`"),
        ({"name": "x:y"}, "matching regex"),
        ({"name": "x\n"}, "matching regex"),
        ({"name": "x" * 65}, "length <= 64"),
        ({"arms": ARMS[:1]}, r"length >= 2 - at `\$\.arms`"),
        ({"arms": (ARMS[0], ARMS[0])}, "arms of different names"),
        ({"arms": (Arm(name="a", shadow=True), ARMS[0])}, "the first arm is the control"),
        ({"arms": (ARMS[0], Arm(name="b", weight=0.0))}, r"`\$\.arms\[1\]\.weight`"),
        ({"arms": (ARMS[0], Arm(name="b", weight=math.nan))}, "finite|weight"),
        ({"arms": (ARMS[0], Arm(name="b", weight=1e-6))}, "at least 0.01 %"),
        ({"arms": (*ARMS, Arm(name="c")), "design": "interleave"}, "two arms to interleave"),
        ({"strata": "country", "unit": "session"}, "want users as units"),
        ({"share": 0}, r"`\$\.share`"),
        ({"share": 1e-9}, "at least 0.01 %"),
        ({"share": math.nan}, "finite|share"),
        ({"alpha": 0.9}, "alpha"),
        ({"window_s": 0}, "window_s"),
        ({"before_s": math.inf}, "before_s"),
        ({"metric": {}}, "counts some class"),
        ({"metric": {"explicit_positive": 0.0}}, "counts some class"),
        ({"metric": {"none": 1.0}}, "Invalid enum value 'none'"),
        ({"colour": "red"}, "unknown field `colour`"),
    ],
)
def test_what_could_not_be_meant_is_refused(wrong: dict[str, object], told: str) -> None:
    asked = msgspec.to_builtins({"name": "x", "arms": ARMS, **wrong})
    with pytest.raises(msgspec.ValidationError, match=told):
        msgspec.convert(asked, Experiment)
