"""Whatever is killed, nothing is lost or counted twice, and the graph comes out the same."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis as redis_py

from tests.integration.system import (
    Entry,
    System,
    Worker,
    kuairand,
    random_points,
    system,
    undisturbed,
    until,
    value_of,
)

pytestmark = pytest.mark.slow

N_EVENTS = 6_000
N_KILLS = 10
SEED = 20_220_408


@pytest.fixture
def running(tmp_path: Path) -> Iterator[System]:
    with system(tmp_path, batch=16) as made:
        yield made


def with_retries_and_poison(entries: list[Entry], seed: int) -> list[Entry]:
    """Send a tenth of the events again a little later, and spoil every thousandth record."""
    draw = random.Random(seed)
    sent: list[Entry] = []
    for n, entry in enumerate(entries):
        sent.append(entry)
        if draw.random() < 0.1:
            sent.append(sent[-draw.randrange(1, min(50, len(sent)) + 1)])
        if n % 1_000 == 999:
            sent.append((entry[0], entry[1][:-7]))
    return sent


def check(made: System, learner: Worker) -> None:
    """Wait until everything sent has come through, and compare with the undisturbed run."""
    records = made.interactions()
    want = undisturbed(records, made.settings)
    until(lambda: made.committed() == len(records), "the stream workers to finish")
    assert made.accounting() == want.accounting
    want.accounting.check()
    n_feedback = sum(map(len, want.feedback.values()))
    # The end of a transaction reaches the partitions one after the other.
    until(lambda: sum(map(len, made.feedback().values())) >= n_feedback, "the last transaction")
    assert made.feedback() == want.feedback
    if not learner.is_running():
        learner.start()
    until(
        lambda: (
            value_of(learner, "tidegraph_learner_events_total") == n_feedback
            and value_of(learner, "tidegraph_learner_ready") == 1
            and value_of(learner, "tidegraph_learner_waiting_rows") == 0
        ),
        "the learner to finish and publish",
    )
    graph = made.stop_learner(learner)
    assert graph.state_hash() == want.graph.state_hash()
    assert value_of_table(made) == want.graph.newest_ms


def value_of_table(made: System) -> int:
    """Make sure that every user's row is as of their last event; return the barrier's time."""
    reader = made.reader()
    barrier = reader.barrier()
    graph = undisturbed(made.interactions(), made.settings).graph
    users = [graph.users.id_of(row) for row in range(graph.n_users)]
    latest = graph.edges.users_latest(graph.users.rows(users), k=1, before_ms=graph.newest_ms + 1)
    with_edges = latest.nodes[:, 0] >= 0
    rows = reader.users(users)
    assert rows.ids == users
    assert (rows.ts_ms[with_edges] == latest.ts_ms[with_edges, 0]).all()
    return barrier.at_ms


def decided(made: System, n_records: int) -> None:
    until(lambda: made.committed() >= n_records, f"{n_records} records to be decided about")


def learned(learner: Worker, n_events: int) -> None:
    until(
        lambda: value_of(learner, "tidegraph_learner_events_total") >= n_events,
        f"{n_events} events to be learned",
    )


def start(*workers: Worker) -> None:
    for worker in workers:
        worker.launch()
    for worker in workers:
        worker.start()


def test_a_stream_worker_killed_at_ten_points(running: System) -> None:
    stream, learner = running.worker("stream"), running.worker("learn")
    start(stream, learner)
    entries = with_retries_and_poison(kuairand(N_EVENTS), SEED)
    sent = 0
    for point in random_points(SEED, N_KILLS, len(entries)):
        running.send(entries[sent : point + 500])
        sent = max(sent, point + 500)
        decided(running, point)
        stream.kill()
        stream.launch()
    running.send(entries[sent:])
    check(running, learner)


def test_two_stream_workers_one_killed_and_one_added(running: System) -> None:
    first, second, learner = (running.worker(name) for name in ("stream", "stream", "learn"))
    start(first, second, learner)
    entries = with_retries_and_poison(kuairand(N_EVENTS), SEED + 1)
    third = len(entries) // 3
    running.send(entries[:third])
    decided(running, third // 2)
    first.kill()
    running.send(entries[third : 2 * third])
    decided(running, 2 * third)  # by the one that is left
    added = running.worker("stream")
    added.start()
    running.send(entries[2 * third :])
    check(running, learner)


def test_a_learner_killed_at_ten_points(running: System) -> None:
    stream, learner = running.worker("stream"), running.worker("learn")
    start(stream, learner)
    entries = kuairand(N_EVENTS)
    sent = 0
    for point in random_points(SEED + 2, N_KILLS, len(entries)):
        running.send(entries[sent : point + 500])
        sent = max(sent, point + 500)
        learned(learner, int(0.95 * point))
        learner.kill()
        learner.launch()
    running.send(entries[sent:])
    check(running, learner)


def test_the_broker_stopped_and_started(running: System) -> None:
    stream, learner = running.worker("stream"), running.worker("learn")
    start(stream, learner)
    entries = kuairand(N_EVENTS)
    half = len(entries) // 2
    running.send(entries[:half])
    decided(running, half // 2)
    running.broker.kill()
    running.broker.start()
    running.send(entries[half:])

    def supervised() -> bool:
        for worker in (stream, learner):  # one that gives up is started again
            worker.launch()
        return running.committed() == len(entries)

    until(supervised, "the stream worker to finish")
    check(running, learner)


def test_redis_stopped_emptied_and_started(running: System) -> None:
    stream, learner = running.worker("stream"), running.worker("learn")
    start(stream, learner)
    entries = kuairand(N_EVENTS)
    third = len(entries) // 3
    running.send(entries[:third])
    until(lambda: value_of(learner, "tidegraph_learner_ready") == 1, "the learner to be ready")
    running.redis.kill()  # it keeps nothing on disk, so it comes back empty
    running.send(entries[third : 2 * third])
    until(
        lambda: (
            value_of(learner, "tidegraph_learner_table_up") == 0
            and value_of(learner, "tidegraph_learner_events_total") > 1.5 * third
        ),
        "the learner to go on without a table",
    )
    running.redis.start()
    until(lambda: value_of(learner, "tidegraph_learner_table_up") == 1, "the table to be back")
    with redis_py.Redis.from_url(running.settings.redis.url) as client:
        client.flushall()
    running.send(entries[2 * third :])
    check(running, learner)
