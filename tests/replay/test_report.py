"""The report: its keys, its arithmetic, its files, its page."""

from __future__ import annotations

import io
import json
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from learner.base import Part
from replay.bootstrap import degradation
from replay.metrics import HOUR_MS, Catalogue, Outcomes, TestEvents, gain
from replay.page import headline, page, verdict
from replay.report import Cost, ReplayResult, SystemResult, build_report, table, write_report
from stream.errors import BadOutput

N_EVENTS, N_USERS, N_ITEMS = 900, 60, 40
COST = Cost(learn_s=2.0, rank_s=0.5, learned_events=5_000, ranked_events=1_000, cpu_s=2.25)


def make_result(
    names: tuple[str, ...] = ("online", "frozen", "retrain", "counting"),
) -> ReplayResult:
    """Make a replay in which each system is a little worse than the one before it."""
    random = np.random.default_rng(0)
    kind = random.choice(4, N_EVENTS, p=[0.1, 0.5, 0.35, 0.05]).astype(np.int8)
    ranked = kind <= 1
    ease = random.geometric(0.08, int(ranked.sum())).astype(float)
    systems = {
        name: SystemResult(
            outcomes=Outcomes(
                rank=np.where(random.random(ease.shape) < 0.05, np.inf, ease * (1 + 0.4 * n)),
                top=random.integers(0, N_ITEMS, (ease.shape[0], 20), dtype=np.int32),
                own_score=random.random(N_EVENTS).astype(np.float32),
            ),
            cost=replace(COST, retrain_s=(1.5, 1.0)) if name == "retrain" else COST,
        )
        for n, name in enumerate(names)
    }
    return ReplayResult(
        dataset="made-up",
        rules="made-up-1",
        seed=0,
        accounting={
            "in": 6_100, "feedback": 6_000, "no_signal": 40, "duplicate": 50, "late": 7, "dead": 3,
        },
        classes={
            "explicit_positive": 500, "implicit_positive": 2_500, "implicit_negative": 2_900,
            "explicit_negative": 100,
        },
        t1_ms=0,
        t2_ms=1_650_812_741_436,
        events=TestEvents(
            user=random.integers(0, N_USERS, N_EVENTS),
            item=random.integers(0, N_ITEMS, N_EVENTS),
            ts_ms=1_650_812_741_436 + np.sort(random.integers(0, 5 * HOUR_MS, N_EVENTS)),
            kind=kind,
            history_length=random.integers(0, 80, N_EVENTS),
            item_known=np.ones(N_EVENTS, bool),
            item_known_before_t2=random.random(N_EVENTS) < 0.9,
            user_known_before_t2=random.random(N_EVENTS) < 0.9,
            ranked=ranked,
        ),
        catalogue=Catalogue(
            events_before_t2=random.integers(0, 30, N_ITEMS), first_ms=np.zeros(N_ITEMS, np.int64)
        ),
        systems=systems,
        state_hash="c0ffee" * 4,
        freshness_ms={"p50": 3.0, "p95": 9.5, "p99": 20.0},
        peak_rss_mb=321.0,
        wall_s=12.0,
        versions={"python": "3.11"},
        settings={"micro_batch": 64, "model": {"dim": 64}},
        data={"rows": 6_100},
        parts=[
            Part(name="counts", gate=0.8, gain_nats=0.7, open=True),
            Part(name="attention", gate=0.0, gain_nats=0.003, open=False),
        ],
        notes=["the log was not in time order: <sorted> & noted"],
    )  # fmt: skip


@pytest.fixture(scope="module")
def result() -> ReplayResult:
    return make_result()


@pytest.fixture(scope="module")
def report(result: ReplayResult) -> dict[str, Any]:
    return build_report(result, draws=200)


def test_the_keys_that_tools_rely_on_are_there(report: dict[str, Any]) -> None:
    assert report["schema"] == 1
    assert {"in", "feedback", "no_signal", "duplicate", "late", "dead"} <= report["events"].keys()
    assert {"t1_ms", "t2_ms", "test_events", "ceiling"} <= report["split"].keys()
    metrics = ["hr@10", "ndcg@10", "mrr@10", "hr@20", "ndcg@20", "auc_pos_neg"]
    for system in report["systems"].values():
        assert {*metrics, "events_per_s", "cpu_s", "slices"} <= system.keys()
        assert system["slices"]["known_items"].keys() == {"hr@10", "ndcg@10", "n"}
    for offline in ("frozen", "retrain"):
        assert report["degradation"][offline]["ndcg@10"].keys() == {"value", "low", "high"}
    assert {"p50", "p95", "p99"} <= report["freshness_ms"].keys()
    assert {"dataset", "rules", "seed", "classes", "state_hash", "peak_rss_mb", "versions"} <= (
        report.keys()
    )


def test_degradation_is_that_of_the_function_on_the_same_ranks(
    result: ReplayResult, report: dict[str, Any]
) -> None:
    online, frozen = (result.systems[name].outcomes.rank for name in ("online", "frozen"))
    users = result.events.user[result.events.ranked]
    found = report["degradation"]["frozen"]["hr@10"]
    expected = degradation(frozen, online, users, "hr@10", draws=200, seed=0)
    assert found == pytest.approx(expected._asdict())
    assert found["high"] < 0  # online was made the better one


def test_the_lead_over_a_baseline_has_the_other_sign_and_the_baseline_below(
    result: ReplayResult, report: dict[str, Any]
) -> None:
    online, counting = (
        gain(result.systems[name].outcomes.rank, "ndcg@10").mean()
        for name in ("online", "counting")
    )
    found = report["advantage"]["counting"]["ndcg@10"]
    assert found["value"] == pytest.approx(online / counting - 1.0)
    assert report["advantage"].keys() == {"counting"}


def test_an_interval_holds_its_own_figure(report: dict[str, Any]) -> None:
    for system in report["systems"].values():
        for metric, found in system["intervals"].items():
            assert found["value"] == pytest.approx(system[metric])
            assert found["low"] < found["value"] < found["high"]


def test_the_buckets_of_the_curve_add_up_to_the_whole(report: dict[str, Any]) -> None:
    rows = report["curve"]["buckets"]
    n = sum(row["n"] for row in rows)
    hits = sum(row["n"] * row["systems"]["online"]["hr@10"] for row in rows)
    assert n == report["split"]["test_events"]
    assert hits / n == pytest.approx(report["systems"]["online"]["hr@10"])


def test_rates_are_events_over_seconds(report: dict[str, Any]) -> None:
    system = report["systems"]["online"]
    assert system["events_per_s"] == 2_000.0
    assert system["learn_events_per_s"] == 2_500.0
    assert system["rank_events_per_s"] == 2_000.0


def test_the_same_result_and_seed_give_the_same_bytes(result: ReplayResult, tmp_path: Path) -> None:
    pages = []
    for name in ("one", "two"):
        files = write_report(build_report(result, draws=50), tmp_path / name)
        pages.append([file.read_bytes() for file in files])
    assert pages[0] == pages[1]


def test_the_json_file_is_the_report_and_holds_no_nan(
    report: dict[str, Any], tmp_path: Path
) -> None:
    json_path, html_path = write_report(report, tmp_path / "new" / "folder")
    assert json.loads(json_path.read_text()) == report
    assert sorted(path.name for path in json_path.parent.iterdir()) == [
        "report.html",
        "report.json",
    ]
    assert "NaN" not in json_path.read_text()
    assert html_path.read_text().startswith("<!doctype html>")


def test_a_folder_that_cannot_be_made_is_the_users_mistake_and_says_what_to_do(
    report: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(BadOutput, match="give a folder that you may write to"):
        write_report(report, file / "below")


def test_a_failed_write_leaves_the_old_report_and_nothing_half_written(
    report: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_report(report, tmp_path)
    before = (tmp_path / "report.json").read_bytes()

    def disk_full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(BadOutput, match="No space left on device"):
        write_report(report | {"seed": 1}, tmp_path)
    assert (tmp_path / "report.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]


class Elements(HTMLParser):
    """Collects what the tests ask of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.drawings = 0
        self.texts: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids += [found["id"] or ""] if "id" in found else []
        self.links += [found[key] or "" for key in ("src", "href", "xlink:href") if key in found]
        self.drawings += bool(found.get("role") == "img" and found.get("aria-label"))
        if tag not in {"meta", "br", "path", "use"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in {"meta", "br", "path", "use"}:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def read(html: str) -> Elements:
    elements = Elements()
    elements.feed(html)
    assert elements.open == []
    return elements


def test_the_page_reads_offline_and_every_figure_has_words(report: dict[str, Any]) -> None:
    html = page(report)
    elements = read(html)
    assert elements.drawings == html.count("<figure>") == html.count("<figcaption>") == 6
    assert all(link.startswith("#") for link in elements.links)
    assert "http" not in re.sub(r'xmlns(:xlink)?="[^"]*"', "", html)
    assert len(set(elements.ids)) == len(elements.ids)
    assert all(link[1:] in elements.ids for link in elements.links)


def test_the_page_has_no_colour_that_the_style_sheet_does_not_know(report: dict[str, Any]) -> None:
    drawings = re.findall(r"<svg.*?</svg>", page(report), flags=re.DOTALL)
    colours = {colour for svg in drawings for colour in re.findall(r"#[0-9a-f]{6}\b", svg)}
    assert colours == set()


def test_the_page_shows_what_was_found(report: dict[str, Any]) -> None:
    text = " ".join(" ".join(read(page(report)).texts).split())
    assert headline(report) in text
    assert f"{report['systems']['online']['ndcg@10']:.4f}" in text
    assert f"{report['systems']['counting']['auc_pos_neg']:.3f}" in text
    assert report["state_hash"] in text
    assert "<sorted> & noted" in text  # escaped in the source, so that it reads as written
    assert "model.dim" in text
    assert "2 in 2.5 s" in text


@pytest.mark.parametrize(
    "names", [("popularity",), ("online",), ("online", "frozen"), ("frozen", "ials"), ()]
)
def test_any_subset_of_systems_makes_a_report(names: tuple[str, ...]) -> None:
    found = build_report(make_result(names), draws=20)
    read(page(found))
    assert (found["degradation"] != {}) == ({"online", "frozen"} <= set(names))
    assert table(found).row_count == len(names)


def test_a_test_without_a_single_event_makes_a_report_too() -> None:
    whole = make_result(("online", "frozen"))
    nothing = np.zeros(0, np.int64)
    events = replace(
        whole.events,
        user=nothing, item=nothing, ts_ms=nothing, kind=nothing.astype(np.int8),
        history_length=nothing, item_known=nothing.astype(bool),
        item_known_before_t2=nothing.astype(bool), user_known_before_t2=nothing.astype(bool),
        ranked=nothing.astype(bool),
    )  # fmt: skip
    empty = Outcomes(
        rank=nothing.astype(float), top=np.zeros((0, 20), np.int32),
        own_score=nothing.astype(np.float32),
    )  # fmt: skip
    systems = {name: SystemResult(outcomes=empty, cost=COST) for name in whole.systems}
    found = build_report(replace(whole, events=events, systems=systems, parts=()), draws=20)
    assert found["systems"]["online"]["hr@10"] is None
    assert found["split"]["ceiling"] is None
    read(page(found))


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (-0.2, -0.1, "Going online gains 15.0 % of"),
        (0.1, 0.2, "Going online costs 15.0 % of"),
        (-0.1, 0.1, "makes no difference to NDCG@10 that chance could not make"),
    ],
)
def test_the_headline_claims_no_more_than_the_interval(low: float, high: float, said: str) -> None:
    found = {"value": 0.15 if low > 0 else -0.15, "low": low, "high": high}
    assert said in headline({"degradation": {"frozen": {"ndcg@10": found}}})


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (-0.2, -0.1, "within the limit of 15 %; our own bar of 0 is met"),
        (-0.2, 0.1, "within the limit of 15 %; our own bar of 0 is inside the interval"),
        (0.1, 0.2, "the limit of 15 % is inside the interval; our own bar of 0 is missed"),
        (0.2, 0.3, "beyond the limit of 15 %; our own bar of 0 is missed"),
        (None, None, "cannot be told"),
    ],
)
def test_the_verdict_follows_the_interval(low: float, high: float, said: str) -> None:
    assert verdict({"ndcg@10": {"value": 0.0, "low": low, "high": high}}) == said


def test_the_table_starts_with_the_best_and_fits_a_terminal(report: dict[str, Any]) -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    longest = {**report, "systems": {**report["systems"]}}
    longest["systems"]["recent_popularity"] = longest["systems"].pop("retrain")
    console.print(table(longest, k=5))
    lines = [line.split() for line in console.export_text().splitlines() if line.count(".") > 4]
    assert [line[0] for line in lines] == ["online", "frozen", "recent_popularity", "counting"]
    assert lines[0][1] == f"{report['systems']['online']['hr@5']:.4f}"
    assert lines[0][3] == f"{report['systems']['online']['ndcg@5']:.4f}"
