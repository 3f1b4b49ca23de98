"""Two lists mixed into one, so that each user judges both at once: team draft, and its credit.

References
----------
* Radlinski, Kurup, Joachims, *How Does Clickthrough Data Reflect Retrieval Quality?*, CIKM 2008
  (team draft).
* Chapelle, Joachims, Radlinski, Yue, *Large-Scale Validation and Analysis of Interleaved Search
  Evaluation*, TOIS 2012 (credit, and the user as the unit of the test).

"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

Team = Literal[0, 1]
"""The control is 0."""


class Draft(NamedTuple):
    """What is shown, best first, and whose each item is."""

    items: list[str]
    teams: list[Team]


def team_draft(control: Sequence[str], treated: Sequence[str], n: int, *, seed: str) -> Draft:
    """Mix two lists: in each round both, in an order drawn by lot, put in their best item left.

    Neither list can gain by where its items come to stand: after every second item both have put
    in as many, as long as both have items left, and who begins a round is a fair coin.

    Parameters
    ----------
    control, treated
        Items of each, best first.
    n
        Items wanted.
    seed
        Of the coin, such as the request's id: the same request gives the same list.

    Examples
    --------
    >>> team_draft(["a", "b", "c"], ["b", "d", "a"], 4, seed="r1")
    Draft(items=['b', 'a', 'c', 'd'], teams=[1, 0, 0, 1])

    """
    coin = random.Random(seed)
    lists = (iter(control), iter(treated))
    drafted: dict[str, Team] = {}
    turns: list[Team] = []
    exhausted: set[Team] = set()
    while len(drafted) < n and len(exhausted) < 2:
        if not turns:
            turns = [1, 0] if coin.random() < 0.5 else [0, 1]
        team = turns.pop()
        item = next((each for each in lists[team] if each not in drafted), None)
        if item is None:
            exhausted.add(team)
        else:
            drafted[item] = team
    return Draft(list(drafted), list(drafted.values()))


def credit(teams: Mapping[str, Team], outcomes: Mapping[str, float]) -> float:
    """Return by how much the treated team's items brought more than the control's.

    Parameters
    ----------
    teams
        Whose each shown item is.
    outcomes
        What came of each item; items that were not shown count for nobody.

    Examples
    --------
    >>> credit({"a": 0, "b": 1, "d": 1}, {"b": 1.0, "d": 1.0, "a": 1.0, "other": 5.0})
    1.0

    """
    return sum((2 * teams[item] - 1) * value for item, value in outcomes.items() if item in teams)


def preference(credited: float) -> float:
    """Return what one unit says after all of its requests: -1, 0 or 1, so that none weighs more.

    Examples
    --------
    >>> preference(3.5), preference(0.0), preference(-0.5)
    (1.0, 0.0, -1.0)

    """
    return float((credited > 0) - (credited < 0))
