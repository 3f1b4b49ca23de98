"""The draft is fair, whatever the lists are, and credit goes to whose the items are."""

from __future__ import annotations

import statistics

from hypothesis import given
from hypothesis import strategies as st

from serving.experiments.interleaving import credit, preference, team_draft

lists = st.lists(st.sampled_from("abcdefghij"), unique=True, max_size=10)


@given(control=lists, treated=lists, n=st.integers(0, 12), seed=st.text(max_size=8))
def test_the_draft_is_fair(control: list[str], treated: list[str], n: int, seed: str) -> None:
    items, teams = team_draft(control, treated, n, seed=seed)
    assert (items, teams) == tuple(team_draft(control, treated, n, seed=seed))
    assert len(items) == len(set(items)) == len(teams) == min(n, len({*control, *treated}))
    for place, (item, team) in enumerate(zip(items, teams, strict=True)):
        before = set(items[:place])
        own, other = (treated, control) if team else (control, treated)
        # It is the best of its team that was left,
        assert item == next(each for each in own if each not in before)
        # and no team is ahead by more than one as long as the other has anything left.
        so_far = [each == team for each in teams[: place + 1]]
        ahead = 2 * sum(so_far) - len(so_far)
        assert ahead <= 1 or not set(other) - before


@given(items=lists, seed=st.text(max_size=8))
def test_the_same_list_twice_is_shown_as_it_is(items: list[str], seed: str) -> None:
    assert team_draft(items, items, 10, seed=seed).items == items


def test_by_chance_neither_of_two_equal_arms_wins() -> None:
    """Users who click by place alone prefer no arm: the bias of place falls on both alike."""
    control, treated = list("abcdefgh"), list("hgfedcba")
    found = []
    for request in range(4_000):
        items, teams = team_draft(control, treated, 8, seed=f"r{request}")
        clicks = dict.fromkeys(items[:3], 1.0)
        found.append(preference(credit(dict(zip(items, teams, strict=True)), clicks)))
    error = statistics.stdev(found) / len(found) ** 0.5
    assert abs(statistics.mean(found)) < 4 * error
    assert min(found) == -1
    assert max(found) == 1


def test_who_likes_the_treated_arms_items_prefers_it() -> None:
    control, treated, liked = list("abcdefgh"), list("xyzabcde"), {"x": 1.0, "y": 1.0, "z": 1.0}
    found = []
    for request in range(200):
        items, teams = team_draft(control, treated, 6, seed=f"r{request}")
        found.append(preference(credit(dict(zip(items, teams, strict=True)), liked)))
    assert set(found) == {1.0}
