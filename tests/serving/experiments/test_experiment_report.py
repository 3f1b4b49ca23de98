"""The page says what was found, in words that fit, reads offline, and has a figure for each."""

from __future__ import annotations

import random
import re
from html.parser import HTMLParser
from typing import Any

import msgspec
import pytest

from serving.experiments.assignment import Arm, Assigner, Experiment, ListSettings
from serving.experiments.registry import Entry
from serving.experiments.report import headline, page
from serving.experiments.results import Fold, Results
from stream.events import Feedback

START_MS = 1_650_000_000_000
ARMS = (Arm(name="today"), Arm(name="new", model=3, settings=ListSettings(diversity=0.5)))


def found(effect: float, n: int = 1_500, **others: Any) -> Results:
    asked = msgspec.convert({"name": "x", "arms": ARMS, "window_s": 60, **others}, Experiment)
    fold, chance = Fold(Entry(experiment=asked, started_ms=START_MS)), random.Random(1)
    assign = Assigner(asked)
    for number in range(n):
        user, at_ms = f"u{number}", START_MS + number * 10_000
        fold.expose(user, at_ms)
        for likes in range(3):
            if chance.random() < 0.3 + effect * (assign(user) or 0):
                event = Feedback(1, f"{user}-{likes}", user, "i", at_ms, "implicit_positive", 1.0)
                fold.take(event, {})
    fold.close(START_MS + n * 10_000 + 1_000_000)
    return fold.results({"tried/requests": 4.0, "tried/common": 3.0})


class Page(HTMLParser):
    """Collects what a page is made of, and that every element is closed."""

    VOID = frozenset({"meta", "path", "use", "rect", "br"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.outside: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self._look(attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._look(attrs)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def _look(self, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in {"src", "href", "xlink:href"} and not (value or "").startswith("#"):
                self.outside.append(value or "")


@pytest.mark.parametrize(
    ("effect", "told"),
    [
        (0.0, "So far, x shows no difference that chance could not make."),
        (0.3, r"new is better than the control: 0\.\d+ \(\d+\.\d %\), from 0\.\d+ to \d\.\d+\."),
        (-0.25, r"new is worse than the control: .0\.\d+ \(.\d+\.\d %\), from .\d\.\d+ to .0"),
    ],
)
def test_the_headline_says_what_was_found(effect: float, told: str) -> None:
    assert re.match(told, headline(found(effect)))


def test_a_broken_split_is_said_before_anything_else() -> None:
    results = msgspec.structs.replace(found(0.3), sample_ratio_p=1e-6)
    assert "trust no figure" in headline(results)
    assert 'class="broken"' in page(results)
    assert 'class="broken"' not in page(found(0.3))


@pytest.mark.parametrize(
    "results",
    [
        found(0.3),
        found(0.0, n=0),
        found(0.1, n=50),
        found(0.2, arms=(*ARMS, Arm(name="third"), Arm(name="tried", shadow=True))),
        found(0.2, arms=(ARMS[0], Arm(name="tried", shadow=True)), strata="<b>"),
        found(0.2, design="interleave"),
    ],
    ids=["effect", "nothing", "little", "three arms", "shadow alone", "mixed"],
)
def test_the_page_is_whole_and_reads_offline(results: Results) -> None:
    html = page(results)
    read = Page(html)
    assert read.open == []
    assert read.outside == []
    assert len(read.ids) == len(set(read.ids))
    assert "url(http" not in html
    assert "<b>" not in html
    assert not re.search(r"#0[1-7]0[1-7]0[1-7]", html)  # every drawn colour is the page's
    assert ("<svg" in html) == any(arm.mean.low is not None for arm in results.arms)
    for arm in results.arms:
        assert f'<th scope="row">{arm.arm}</th>' in html
    if results.shadows:
        assert "75.0 %" in html


def test_the_figures_draw_the_interval_and_name_each_arm() -> None:
    results = found(0.2, arms=(*ARMS, Arm(name="third")))
    html = page(results)
    assert html.count("<figure>") == 2
    curve = html[html.index("<svg") : html.index("</svg>")]
    assert curve.count("FillBetweenPolyCollection") == 2
    assert ">third<" in curve
    assert ">new<" in curve
