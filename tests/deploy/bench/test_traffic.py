"""What the benches send is the log, with ids and times that an intake takes."""

from __future__ import annotations

import pytest

from deploy.bench.faust_agent import Typing
from deploy.bench.traffic import Traffic, paced
from replay.clock import ManualClock
from replay.player import Entry
from stream.events import decode_interaction
from stream.intake import Intake
from stream.log import MemoryLog
from stream.typing_rules import load_rules

START_MS = 1_650_812_741_436


@pytest.fixture(scope="module")
def traffic() -> Traffic:
    """Read the sample once."""
    return Traffic()


def taken(entries: list[Entry]) -> tuple[Intake, list[bytes]]:
    """Return an intake that took the entries, and the feedback."""
    log = MemoryLog()
    log.append("interactions", entries, timestamp_ms=START_MS)
    intake = Intake(load_rules("kuairand"))
    records = log.read("interactions", {0: 0}, limit=len(entries))
    return intake, [value for _, value in intake.take(records).entries()]


def test_the_log_goes_on_where_it_ends(traffic: Traffic) -> None:
    n = len(traffic)
    ends, again = traffic.past(n + 1_000)[n - 1_000 : n], traffic.past(n + 1_000)[n:]
    intake, feedback = taken([*ends, *again])
    assert intake.accounting.late == intake.accounting.dead == 0
    # The sample itself repeats some of its rows, in the second round as in the first.
    assert len(feedback) > 1_900
    repeated = taken(traffic.past(1_000))[0].accounting.duplicate
    assert taken(again)[0].accounting.duplicate == repeated > 0


def test_live_events_carry_their_time_and_no_id_comes_twice(traffic: Traffic) -> None:
    entries = traffic.live(5, 300, start_ms=START_MS, rate=100)
    events = [decode_interaction(value) for _, value in entries]
    assert [event.ts_ms - START_MS for event in events] == [10 * n for n in range(5, 305)]  # type: ignore[union-attr]
    intake, _ = taken(entries)
    assert intake.accounting.feedback == 300


class _SlowSender:
    def __init__(self, clock: ManualClock) -> None:
        self.clock, self.sizes = clock, [0]

    def send(self, entries: list[Entry]) -> None:
        self.sizes.append(len(entries))
        self.clock.sleep(0.05)  # five ticks


def test_a_slow_send_is_caught_up_with(traffic: Traffic) -> None:
    clock = ManualClock()
    sender = _SlowSender(clock)
    began = clock.now_s()
    sent = paced(traffic, sender.send, rate=1_000, seconds=1.0, start_ms=START_MS, clock=clock)
    assert sent == sum(sender.sizes) == 1_000
    assert max(sender.sizes) == 50
    assert clock.now_s() - began == pytest.approx(1.0, abs=0.11)


def test_the_peer_writes_the_very_feedback_that_we_write(traffic: Traffic) -> None:
    entries = traffic.past(20_000)
    intake, expected = taken(entries)
    peer = Typing(intake.lateness_ms)
    came = [record for _, value in entries if (record := peer.take(0, value)) is not None]
    assert came == expected
    assert peer.counts["duplicate"] == intake.accounting.duplicate > 0
