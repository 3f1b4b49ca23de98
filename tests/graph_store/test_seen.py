"""What users have met is what a dictionary of sets would say."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from graph_store.seen import SeenItems

N_USERS = 4

pair = st.tuples(st.integers(0, N_USERS - 1), st.integers(0, 40))
batch = st.lists(pair, max_size=30)


def columns(pairs: list[tuple[int, int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return users and items as arrays."""
    users, items = zip(*pairs, strict=True) if pairs else ((), ())
    return np.array(users, np.int64), np.array(items, np.int64)


def previous_of(users: list[int]) -> NDArray[np.int64]:
    """Return, for each event, the last index before it with the same user, or -1."""
    found = [
        max((before for before in range(n) if users[before] == user), default=-1)
        for n, user in enumerate(users)
    ]
    return np.array(found, np.int64)


@given(st.lists(batch, max_size=6))
def test_what_a_user_met_is_a_sorted_set(batches: list[list[tuple[int, int]]]) -> None:
    seen, plain = SeenItems(), dict[int, set[int]]()
    for pairs in batches:
        seen.add(*columns(pairs))
        for user, item in pairs:
            plain.setdefault(user, set()).add(item)
        for user in range(N_USERS):
            assert seen.of(user).tolist() == sorted(plain.get(user, set()))


@given(batch, st.lists(st.tuples(st.integers(0, N_USERS + 200), st.integers(0, 40)), max_size=20))
def test_each_event_sees_what_came_before_it_in_its_own_batch_too(
    before: list[tuple[int, int]], now: list[tuple[int, int]]
) -> None:
    seen = SeenItems()
    seen.add(*columns(before))
    users, items = columns(now)
    pointers, found = seen.before_each(users, items, previous_of(users.tolist()))
    assert pointers.shape == (len(now) + 1,)
    for n, (user, _) in enumerate(now):
        want = {item for other, item in before + now[:n] if other == user}
        got = found[pointers[n] : pointers[n + 1]]
        known = got[got >= 0].tolist()
        assert set(known) == want
        assert len(known) == len(want)  # no item twice


def test_asking_changes_nothing() -> None:
    seen = SeenItems()
    seen.add(*columns([(0, 3)]))
    seen.before_each(*columns([(0, 5), (0, 6)]), np.array([-1, 0]))
    assert seen.of(0).tolist() == [3]


def test_nobody_unknown_has_met_anything() -> None:
    seen = SeenItems()
    for user in (-1, 0, 1_000):
        assert seen.of(user).size == 0


def test_long_lists_outgrow_the_pool_and_stay_whole() -> None:
    seen = SeenItems()
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, 300, 20_000), rng.integers(0, 1_000, 20_000)
    for part in np.array_split(np.arange(20_000), 7):
        seen.add(users[part], items[part])
    for user in range(300):
        assert seen.of(user).tolist() == np.unique(items[users == user]).tolist()


def test_a_restored_set_goes_on_like_the_one_that_was_stopped() -> None:
    rng = np.random.default_rng(1)
    users, items = rng.integers(0, 9, 400), rng.integers(0, 99, 400)
    first, second = SeenItems(), SeenItems()
    first.add(users[:200], items[:200])
    state = first.state()
    first.add(users[200:], items[200:])
    second.restore(state)  # a copy: what came later is not in it
    assert second.of(3).tolist() == np.unique(items[:200][users[:200] == 3]).tolist()
    second.add(users[200:], items[200:])
    for user in range(9):
        np.testing.assert_array_equal(first.of(user), second.of(user))
