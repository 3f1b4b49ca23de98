"""Changes joined in any way say the same as changes taken one by one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from serving.changes import Changes, decode_changes, encode_changes, joined

ids = st.frozensets(st.sampled_from("abcdü"))
parts = st.lists(st.builds(Changes, st.just(""), ids, ids, ids, ids), max_size=8)


def follow(cache: dict[str, int], changes: Changes, table: dict[str, int]) -> None:
    """Keep items as a client does: let go of what is gone, then read what changed."""
    for one in changes.gone_items:
        cache.pop(one, None)
    for one in changes.items:
        if one in table:
            cache[one] = table[one]


@given(parts, st.integers(1, 4))
def test_a_client_that_joins_changes_ends_up_with_what_the_table_holds(
    log: list[Changes], at_once: int
) -> None:
    table: dict[str, int] = {}
    cache: dict[str, int] = {}
    for first in range(0, len(log), at_once):
        some = log[first : first + at_once]
        for step, part in enumerate(some, first):
            for one in part.gone_items:
                table.pop(one, None)
            table |= dict.fromkeys(part.items, step)
        follow(cache, joined("", some), table)
    assert cache == table


@given(parts)
def test_users_are_joined_as_items_are(log: list[Changes]) -> None:
    turned = [Changes("", part.users, part.gone_users, part.items, part.gone_items) for part in log]
    one, other = joined("9", log), joined("9", turned)
    assert (one.users, one.gone_users) == (other.items, other.gone_items)


@given(ids, ids, ids, ids)
def test_changes_are_read_back(
    items: frozenset[str], gone: frozenset[str], users: frozenset[str], left: frozenset[str]
) -> None:
    changes = Changes("7-0", items, gone, users, left)
    assert decode_changes("7-0", encode_changes(changes)) == changes
