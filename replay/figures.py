"""The figures of the report: drawn once, coloured by the page, so that they suit light and dark."""

from __future__ import annotations

import datetime as dt
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

INK: Final = "#010101"
MUTED: Final = "#020202"
RULE: Final = "#030303"
ONLINE: Final = "#040404"
FROZEN: Final = "#050505"
RETRAIN: Final = "#060606"
OTHER: Final = "#070707"

COLOURS: Final = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    RULE: "var(--rule)",
    ONLINE: "var(--online)",
    FROZEN: "var(--frozen)",
    RETRAIN: "var(--retrain)",
    OTHER: "var(--other)",
}
"""What each drawn colour becomes: a variable of the page's style sheet."""

OF_SYSTEM: Final = {"online": ONLINE, "frozen": FROZEN, "retrain": RETRAIN}

_STYLE: Final[dict[Any, Any]] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tidegraph",
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": RULE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "xtick.color": MUTED,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
}


def degradation(report: Mapping[str, Any], *, limit: float) -> str:
    """Draw D of NDCG@10 of each offline system, with intervals, against 0 and the limit."""
    found = {name: of["ndcg@10"] for name, of in report["degradation"].items() if of}
    rows = [(name, of) for name, of in found.items() if of["value"] is not None]
    with mpl.rc_context(_STYLE):
        figure, axes = _plot(1.1 + 0.5 * len(rows))
        axes.axvspan(limit, 10.0, color=FROZEN, alpha=0.12, linewidth=0)
        axes.axvline(0.0, color=INK, linewidth=1.2)
        axes.axvline(limit, color=FROZEN, linewidth=1.2, linestyle=(0, (4, 3)))
        for y, (name, of) in enumerate(reversed(rows)):
            _whisker(axes, y, of, OF_SYSTEM.get(name, OTHER))
        ends = [of[key] for _, of in rows for key in ("low", "high") if of[key] is not None]
        low, high = min([*ends, -0.05]), max([*ends, limit])
        room = 0.08 * (high - low)
        axes.set_xlim(low - room, high + room)
        axes.set_ylim(-0.6, len(rows) - 0.1)
        axes.set_yticks(range(len(rows)), [name for name, _ in reversed(rows)])
        top = len(rows) - 0.35
        _note(axes, 0.0, top, "our bar: 0", INK, right=True)
        _note(axes, limit, top - 0.35, f"limit: {limit:.0%}", FROZEN, right=False)
        axes.xaxis.set_major_formatter(lambda value, _: _percent(value))
        axes.set_xlabel("what going online costs of NDCG@10 (left of 0 it gains)")
        return _svg(figure, "degradation")


def systems(report: Mapping[str, Any]) -> str:
    """Draw NDCG@10 of every system with its interval, best first."""
    every = report["systems"]
    names = sorted(every, key=lambda name: every[name]["ndcg@10"] or 0.0)
    with mpl.rc_context(_STYLE):
        figure, axes = _plot(0.9 + 0.32 * len(names))
        for y, name in enumerate(names):
            if every[name]["ndcg@10"] is not None:
                _whisker(axes, y, every[name]["intervals"]["ndcg@10"], OF_SYSTEM.get(name, OTHER))
        axes.set_yticks(range(len(names)), names)
        axes.set_xlim(left=0.0)
        axes.grid(axis="x")
        axes.set_xlabel("NDCG@10")
        return _svg(figure, "systems")


def curve(report: Mapping[str, Any], *, limit: float) -> str:
    """Draw NDCG@10 over the test and, below, the degradation of all of the test up to each time."""
    rows = report["curve"]["buckets"]
    shown = [name for name in ("frozen", "retrain", "online") if name in report["systems"]]
    shown = shown or list(report["systems"])[:3]
    middles: Any = [_utc(row["start_ms"] + report["curve"]["bucket_ms"] // 2) for row in rows]
    values = {name: [row["systems"][name]["ndcg@10"] for row in rows] for name in shown}
    offline = [name for name in shown if name in report["degradation"]]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.6, 4.6 if offline else 3.2), layout="constrained")
        figure.patch.set_alpha(0.0)
        ratios = [1.7, 1.0] if offline else [1.0]
        panels = figure.subplots(len(ratios), 1, sharex=True, squeeze=False, height_ratios=ratios)
        upper, lower = panels[0, 0], panels[-1, 0]
        for name, fallback in zip(shown, (FROZEN, RETRAIN, ONLINE), strict=False):
            style = (0, (4, 2)) if name == "retrain" else "-"
            upper.plot(
                middles, values[name], color=OF_SYSTEM.get(name, fallback), label=name, marker="o",
                linewidth=2.2 if name == "online" else 1.6, linestyle=style, markersize=3,
            )  # fmt: skip
        upper.set_ylim(bottom=0.0)
        upper.set_ylabel("NDCG@10")
        upper.legend(
            *upper.get_legend_handles_labels(),
            frameon=False,
            loc="lower right",
            bbox_to_anchor=(1, 1),
            ncols=3,
            labelcolor=INK,
        )
        for name in offline:
            lower.plot(middles, _so_far(rows, name), color=OF_SYSTEM.get(name, OTHER), linewidth=2)
        if offline:
            lower.axhline(0.0, color=INK, linewidth=1.2)
            lower.axhline(limit, color=FROZEN, linewidth=1.2, linestyle=(0, (4, 3)))
            lower.set_ylabel("D so far")
            lower.yaxis.set_major_formatter(lambda value, _: _percent(value))
        for axes in panels[:, 0]:
            axes.patch.set_alpha(0.0)
            axes.grid(axis="y")
            axes.tick_params(axis="y", labelcolor=MUTED)
        _time_axis(lower)
        return _svg(figure, "curve")


def slices(
    report: Mapping[str, Any], names: Sequence[str], shown: Sequence[tuple[str, str]]
) -> str:
    """Draw NDCG@10 of a few systems in each slice."""
    every = report["systems"]
    with mpl.rc_context(_STYLE):
        figure, axes = _plot(0.9 + 0.34 * len(shown))
        for y, (key, _) in enumerate(reversed(shown)):
            values = [every[name]["slices"][key]["ndcg@10"] for name in names]
            present = [value for value in values if value is not None]
            if present:
                axes.plot([min(present), max(present)], [y, y], color=RULE, linewidth=3)
            colours = (ONLINE, FROZEN, OTHER)
            for n, (name, value) in enumerate(zip(names, values, strict=True)):
                if value is not None:
                    colour = OF_SYSTEM.get(name, colours[n])
                    label = name if key == shown[0][0] else None
                    axes.plot(value, y, "o", color=colour, markersize=7, label=label, zorder=4 - n)
        axes.set_yticks(range(len(shown)), [label for _, label in reversed(shown)])
        axes.set_xlim(left=0.0)
        axes.grid(axis="x")
        axes.set_xlabel("NDCG@10")
        axes.legend(
            *axes.get_legend_handles_labels(), frameon=False, loc="lower right",
            bbox_to_anchor=(1.0, 1.0), ncols=3, labelcolor=INK,
        )  # fmt: skip
        return _svg(figure, "slices")


def classes(report: Mapping[str, Any]) -> str:
    """Draw how many events each class of feedback has."""
    labels = [name.replace("_", " ") for name in report["classes"]]
    counts = list(report["classes"].values())
    with mpl.rc_context(_STYLE):
        figure, axes = _plot(0.5 + 0.36 * len(counts))
        places = range(len(counts) - 1, -1, -1)
        colours = [ONLINE if "positive" in label else FROZEN for label in labels]
        axes.barh(places, counts, color=colours, height=0.55)
        for place, count in zip(places, counts, strict=True):
            _note(axes, count, place, f"{count:,}", INK, right=True)
        axes.set_yticks(places, labels)
        axes.set_xticks([])
        axes.set_xlim(0, 1.15 * max([*counts, 1]))
        axes.spines["bottom"].set_visible(False)
        return _svg(figure, "classes")


def parts(report: Mapping[str, Any]) -> str:
    """Draw what the absence of each part of the model would have cost."""
    rows = [row for row in report["parts"] if row["gain_nats"] is not None]
    with mpl.rc_context(_STYLE):
        figure, axes = _plot(0.7 + 0.32 * len(rows))
        for y, row in enumerate(reversed(rows)):
            colour = ONLINE if row["open"] else OTHER
            axes.barh(y, row["gain_nats"], color=colour, height=0.55)
        axes.set_yticks(range(len(rows)), [row["part"] for row in reversed(rows)])
        axes.grid(axis="x")
        axes.set_xlabel("nats per positive")
        return _svg(figure, "parts")


def _plot(height_in: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.6, height_in), layout="constrained")
    figure.patch.set_alpha(0.0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0.0)
    return figure, axes


def _note(axes: Axes, x: float, y: float, text: str, colour: str, *, right: bool) -> None:
    """Write beside a point; the gap is not made of spaces, which a browser would drop."""
    axes.annotate(
        text, (x, y), (5 if right else -5, 0), textcoords="offset points", color=colour,
        ha="left" if right else "right", va="center", fontsize=10,
    )  # fmt: skip


def _so_far(rows: Sequence[Mapping[str, Any]], offline: str) -> list[float]:
    """Return D of NDCG@10 over all buckets up to each, NaN while the offline side has no hit."""
    sums = {"online": 0.0, offline: 0.0}
    found = []
    for row in rows:
        for name in sums:
            sums[name] += row["n"] * row["systems"][name]["ndcg@10"]
        found.append(1.0 - sums["online"] / sums[offline] if sums[offline] else float("nan"))
    return found


def _whisker(axes: Axes, y: float, of: Mapping[str, Any], colour: str) -> None:
    if of["low"] is not None:
        axes.plot(
            [of["low"], of["high"]], [y, y], color=colour, linewidth=2.4, solid_capstyle="round"
        )
    axes.plot(of["value"], y, "o", color=colour, markersize=7)


def _time_axis(axes: Axes) -> None:
    locator = AutoDateLocator(tz=dt.UTC, maxticks=8)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    written = ConciseDateFormatter(locator, tz=dt.UTC)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_formatter(written)
    axes.set_xlabel("time of the events, UTC")


def _utc(ts_ms: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(ts_ms / 1000.0, tz=dt.UTC)


def _percent(value: float) -> str:
    return f"{value:+.0%}".replace("-", "\N{MINUS SIGN}") if abs(value) > 1e-9 else "0"


def _svg(figure: Figure, name: str) -> str:
    """Return the drawing as an element of the page: fluid, in the page's colours and fonts."""
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(file, format="svg", metadata=nothing)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    for drawn, variable in COLOURS.items():
        text = text.replace(drawn, variable)
    # Ids must be unique on the page, and every drawing counts its own from one.
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(href="#|url\(#)', rf"\1{name}-", text)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    opening, rest = text.split(">", 1)
    return re.sub(r' (width|height)="[^"]*"', "", opening) + ">" + rest
