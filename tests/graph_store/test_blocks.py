"""Blocks never overlap, and one that was given back is the next of its class to be handed out."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from graph_store.blocks import NO_BLOCK, SMALLEST, give_block, new_free_lists, take_block
from graph_store.memory import with_room

POOL = 64

# Take a block of a class, or give back the n-th of those held.
orders = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.integers(0, 1)),
        st.tuples(st.just("give"), st.integers(0, 20)),
    ),
    min_size=20,
    max_size=60,
)


@given(orders)
def test_the_pool_keeps_the_books_of_a_plain_list(orders: list[tuple[str, int]]) -> None:
    lists, links = new_free_lists(), np.full(POOL, 99, np.int32)
    held: list[tuple[int, int]] = []
    free: dict[int, list[int]] = {size_class: [] for size_class in range(2)}
    used = 0
    for what, n in orders:
        if what == "take":
            size = SMALLEST << n
            if free[n]:
                want = free[n].pop()
            elif used + size <= POOL:
                want, used = used, used + size
            else:
                want = NO_BLOCK
            assert take_block(n, lists, links) == want
            if want != NO_BLOCK:
                held.append((want, n))
                links[want : want + size] = 99  # whoever holds a block writes all over it
        elif held:
            block, size_class = held.pop(n % len(held))
            give_block(block, size_class, lists, links)
            free[size_class].append(block)
    slots = [slot for block, n in held for slot in range(block, block + (SMALLEST << n))]
    assert len(set(slots)) == len(slots)


def test_growing_copies_what_was_there_and_fills_the_rest() -> None:
    array = np.array([[1, 2], [3, 4]], np.int16)
    bigger = with_room(array, 100, fill=7)
    assert bigger.dtype == np.int16
    assert bigger[:2].tolist() == array.tolist()
    assert bigger.shape[0] >= 100
    assert (bigger[2:] == 7).all()


def test_what_is_long_enough_is_not_copied() -> None:
    array = np.zeros(5)
    assert with_room(array, 5) is array


def test_growing_one_by_one_copies_a_bounded_number_of_times() -> None:
    array, copies = np.zeros(1), 0
    for size in range(1, 10_000):
        bigger = with_room(array, size)
        copies += bigger is not array
        array = bigger
    assert copies < 20
