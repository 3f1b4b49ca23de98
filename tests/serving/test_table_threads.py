"""A table in memory is read by many threads while one writes."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from serving.rows import Barrier, Covisited, ItemRows, Layout, UserRows
from serving.table import MemoryTable, Update

LAYOUT = Layout(dim=1)
N = 50
STEPS = 300


@pytest.fixture
def turns_taken_often() -> Iterator[None]:
    """Let threads take turns far more often than they do."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


def at_step(step: int) -> Update:
    """Return an update in which every row tells its step, with ids that come and go."""
    ids = [str(one) for one in range(N)]
    passing, gone = f"passing {step}", f"passing {step - 3}"
    vectors = np.full((N, 1), step, np.float32)
    return Update(
        barrier=Barrier(step=step, at_ms=step, published_ms=step),
        users=UserRows(ids, vectors, np.full(N, step)),
        items=ItemRows(
            [*ids, passing],
            np.full((N + 1, 1), step, np.float32),
            np.zeros(N + 1, np.float32),
            np.zeros((N + 1, 0)),
            np.full(N + 1, step),
        ),
        covisited={passing: Covisited(ids, np.ones(N, np.float32), step)},
        seen={"0": [passing], passing: ids},
        item_attributes={passing: {"step": step}},
        user_attributes={passing: {"step": step}},
        gone_items=[gone],
        gone_users=[gone],
    )


@pytest.mark.usefixtures("turns_taken_often")
def test_a_reader_finds_all_rows_of_an_update_or_none_and_follows_the_feed() -> None:
    table = MemoryTable()
    table.begin(LAYOUT)
    table.publish(at_step(0))
    table.flip()
    done = threading.Event()
    wrong: list[str] = []

    def read() -> None:
        try:
            while not done.is_set():
                reader = table.reader()
                step = reader.barrier().step  # first: what is read afterwards is at least as new
                cursor, known = reader.cursor(), set(reader.item_ids())
                rows = reader.items([str(one) for one in range(N)])
                if np.unique(rows.vectors).size != 1:
                    wrong.append(f"rows of several steps: {np.unique(rows.vectors)}")
                reader.covisited(sorted(known))
                reader.all_item_attributes()
                reader.all_user_attributes()
                reader.seen(["0"])["0"]
                table.epochs()
                changes = reader.changes(cursor)
                known = known - changes.gone_items | changes.items
                if len(known) < N + 3 and step > 3:
                    wrong.append(f"only {len(known)} items")
        except Exception as error:  # noqa: BLE001 - whatever it is, the test must see it
            wrong.append(repr(error))

    readers = [threading.Thread(target=read) for _ in range(3)]
    for each in readers:
        each.start()
    for step in range(1, STEPS):
        table.publish(at_step(step))
        if step % 50 == 0:
            table.begin(LAYOUT)
            for before in range(max(step - 3, 0), step + 1):
                table.publish(at_step(before))
            table.flip()
    done.set()
    for each in readers:
        each.join()
    assert wrong == []
