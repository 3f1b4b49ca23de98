"""Events typed by one rule set are, typed anew, what another one makes of their signals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stream.events import Feedback, FeedbackBatch, Kind, encode
from stream.retyping import retyped
from stream.typing_rules import RuleSet, load_rules

SIGNALS = ["click", "like", "hate", "long_view", "play_ms"]
signals = st.dictionaries(st.sampled_from(SIGNALS), st.sampled_from([0.0, 1.0, 30_000.0]))


def of_click(folder: Path) -> RuleSet:
    """Return rules for which only a click means something, and means much."""
    file = folder / "clicks.toml"
    file.write_text(
        'version = "clicks-1"\nsignals = ["click"]\n[[rule]]\nname = "click"\nwhen = "click > 0"\n'
        'kind = "explicit_positive"\nweight = 0.75\n',
        "utf-8",
    )
    return load_rules(file)


def typed(number: int, said: dict[str, float], rules: RuleSet) -> Feedback:
    """Return an event as the stream worker writes it."""
    by = rules.classify_mappings([said])
    rule = int(by.rule[0])
    named = (rules.rules[rule].name, rules.version) if rule >= 0 else ("", "")
    kind, weight = Kind(int(by.kind[0])).label, float(by.weight[0])
    return Feedback(1, f"e{number}", "u", "i", 1_650_812_741_436, kind, weight, *named, said)


@given(events=st.lists(signals, max_size=20))
def test_they_are_what_the_other_rules_would_have_made_of_them(
    events: list[dict[str, float]],
) -> None:
    first, second = load_rules("kuairand"), load_rules("music")
    values = [encode(typed(number, said, first)) for number, said in enumerate(events)]
    batch = FeedbackBatch.from_records(values)
    anew = retyped(batch, values, second, rows=np.arange(len(values)))
    want = [typed(number, said, second) for number, said in enumerate(events)]
    assert [Kind(kind).label for kind in anew.kind.tolist()] == [event.kind for event in want]
    assert anew.weight.tolist() == [np.float32(event.weight) for event in want]
    assert anew.event_id == batch.event_id


def test_edges_and_retractions_stay_as_they_are(tmp_path: Path) -> None:
    at_ms = 1_650_812_741_436
    edge = Feedback(1, "e1", "u", "i", at_ms, "implicit_negative", 0.3)
    gone = Feedback(1, "e2", "u", "i", at_ms, "retraction", 0.0, retracts="e9", target_ts_ms=at_ms)
    click = typed(3, {"click": 1.0}, load_rules("kuairand"))
    values = [encode(event) for event in (edge, gone, click, click)]
    batch = FeedbackBatch.from_records(values)
    anew = retyped(batch, values, of_click(tmp_path), rows=np.array([0, 1, 2]))
    labels = [Kind(kind).label for kind in anew.kind.tolist()]
    assert labels == [edge.kind, gone.kind, "explicit_positive", click.kind]
    assert anew.weight.tolist() == [np.float32(0.3), 0.0, 0.75, click.weight]
    assert batch.kind[2] == Kind.of(click.kind)  # what came in is not changed


def test_of_nothing_comes_nothing(tmp_path: Path) -> None:
    batch = FeedbackBatch.from_records([])
    assert len(retyped(batch, [], of_click(tmp_path), rows=np.empty(0, np.int64))) == 0
