"""The results of an experiment as one page that reads offline: a verdict, tables and figures."""

from __future__ import annotations

import datetime as dt
import io
import re
from typing import Any, Final

import msgspec
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from serving.experiments.results import BROKEN, Bounds, Effect, Results
from serving.experiments.statistics import MIN_UNITS

_COLOURS: Final = ("#040404", "#050505", "#060606", "#070707")
_INK, _MUTED, _RULE = "#010101", "#020202", "#030303"
_VARIABLES: Final = {
    _INK: "var(--ink)",
    _MUTED: "var(--muted)",
    _RULE: "var(--rule)",
    **{colour: f"var(--arm{number})" for number, colour in enumerate(_COLOURS, 1)},
}
"""What each drawn colour becomes: a variable of the page, so that it suits light and dark."""

_STYLE: Final[dict[Any, Any]] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tidegraph",
    "font.size": 11,
    "text.color": _INK,
    "axes.labelcolor": _MUTED,
    "axes.edgecolor": _RULE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "axes.axisbelow": True,
    "grid.color": _RULE,
    "grid.linewidth": 0.8,
}


def page(results: Results) -> str:
    """Return the whole page as HTML."""
    environment = Environment(
        loader=PackageLoader("serving.experiments", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Any] = {
        "digits": digits,
        "percent": percent,
        "count": lambda value: f"{value:,}",
        "when": when,
        "span": span,
    }
    environment.filters |= filters
    experiment = results.entry.experiment
    return environment.get_template("report.html").render(
        results=results,
        entry=results.entry,
        experiment=experiment,
        mixed=experiment.design == "interleave",
        headline=headline(results),
        broken=results.sample_ratio_p < BROKEN,
        changes={
            arm.name: ", ".join(sorted(_changed(arm))) or "nothing" for arm in experiment.arms
        },
        min_units=MIN_UNITS,
        figures={
            "curve": Markup(curve(results)),  # noqa: S704 - our own drawing
            "arms": Markup(arms(results)),  # noqa: S704 - our own drawing
        },
    )


def headline(results: Results) -> str:
    """Say in one sentence what came out.

    Examples
    --------
    >>> from serving.experiments.assignment import Arm, Experiment
    >>> from serving.experiments.registry import Entry
    >>> from serving.experiments.results import Fold
    >>> asked = Experiment(name="newer", arms=(Arm(name="today"), Arm(name="new", model=3)))
    >>> headline(Fold(Entry(experiment=asked, started_ms=0)).results())
    'Nothing can be said of newer yet.'

    """
    name = results.entry.experiment.name
    if results.sample_ratio_p < BROKEN:
        return f"The arms of {name} do not have the units that they should: trust no figure here."
    told = [_told(effect) for effect in results.effects if effect.verdict != "open"]
    if told:
        return " ".join(told)
    if all(effect.difference.low is None for effect in results.effects):
        return f"Nothing can be said of {name} yet."
    return f"So far, {name} shows no difference that chance could not make."


def curve(results: Results) -> str:
    """Draw each effect over time with its always-valid interval; empty without points."""
    from matplotlib import rc_context
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    if not results.curve:
        return ""
    with rc_context(_STYLE):
        figure, axes = _plot(3.6)
        moments: Any = [_utc(point.at_ms) for point in results.curve]
        axes.axhline(0.0, color=_INK, linewidth=1.2)
        for place, effect in enumerate(results.effects):
            colour = _COLOURS[place % len(_COLOURS)]
            found = [point.effects[place] for point in results.curve]
            low, value, high = (
                [getattr(each, end) if each.low is not None else float("nan") for each in found]
                for end in ("low", "value", "high")
            )
            axes.fill_between(moments, low, high, color=colour, alpha=0.16, linewidth=0)
            axes.plot(moments, value, color=colour, linewidth=2, label=effect.arm)
        axes.grid(axis="y")
        locator = AutoDateLocator(tz=dt.UTC, minticks=3, maxticks=8)  # type: ignore[no-untyped-call]
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(
            ConciseDateFormatter(locator, tz=dt.UTC)  # type: ignore[no-untyped-call]
        )
        axes.set_xlabel("time, UTC")
        axes.set_ylabel("preference" if _mixed(results) else "difference per unit")
        if len(results.effects) > 1:
            axes.legend(*axes.get_legend_handles_labels(), frameon=False, labelcolor=_INK)
        return _svg(figure, "curve")


def arms(results: Results) -> str:
    """Draw the mean outcome of each arm with its interval; empty where none is known."""
    from matplotlib import rc_context

    known = [arm for arm in results.arms if arm.mean.low is not None]
    if not known or _mixed(results):
        return ""
    with rc_context(_STYLE):
        figure, axes = _plot(0.8 + 0.4 * len(known))
        colours = dict(zip([effect.arm for effect in results.effects], _COLOURS, strict=False))
        for y, arm in enumerate(reversed(known)):
            colour, of = colours.get(arm.arm, _MUTED), arm.mean
            assert of.low is not None
            assert of.high is not None
            assert of.value is not None
            axes.plot([of.low, of.high], [y, y], color=colour, linewidth=2.4)
            axes.plot(of.value, y, "o", color=colour, markersize=7)
        axes.set_yticks(range(len(known)), [arm.arm for arm in reversed(known)])
        axes.tick_params(axis="y", labelcolor=_INK)
        axes.set_ylim(-0.6, len(known) - 0.4)
        axes.grid(axis="x")
        axes.set_xlabel("mean outcome of a unit")
        return _svg(figure, "arms")


def digits(value: float | None) -> str:
    """Return a figure with four significant digits, or a dash.

    Examples
    --------
    >>> digits(0.123456), digits(-12.0), digits(None)
    ('0.1235', '−12', '–')

    """
    text = "\N{EN DASH}" if value is None else f"{value:.4g}"
    return text.replace("-", "\N{MINUS SIGN}")


def percent(value: float | None) -> str:
    """Return a share in percent.

    Examples
    --------
    >>> percent(0.0312), percent(-0.5), percent(None)
    ('3.1 %', '−50.0 %', '–')

    """
    if value is None:
        return "\N{EN DASH}"
    return f"{100 * value:.1f} %".replace("-", "\N{MINUS SIGN}")


def when(at_ms: int) -> str:
    """Return a time to the minute, UTC.

    Examples
    --------
    >>> when(1_650_812_741_436)
    '2022-04-24 15:05 UTC'

    """
    return f"{_utc(at_ms):%Y-%m-%d %H:%M} UTC"


def span(seconds: float) -> str:
    """Return a duration in the unit that suits it.

    Examples
    --------
    >>> span(60), span(5_400), span(86_400), span(604_800)
    ('1 min', '1.5 h', '24 h', '7 days')

    """
    for unit, size, least in (("days", 86_400, 172_800), ("h", 3_600, 3_600), ("min", 60, 60)):
        if seconds >= least:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s"


def _told(effect: Effect) -> str:
    found: Bounds = effect.difference
    share = "" if effect.relative is None else f" ({percent(effect.relative)})"
    return (
        f"{effect.arm} is {effect.verdict} than the control: {digits(found.value)}{share}, "
        f"from {digits(found.low)} to {digits(found.high)}."
    )


def _changed(arm: Any) -> list[str]:
    told = msgspec.to_builtins(arm.settings)
    found = [f"{name} {str(value).lower()}" for name, value in told.items()]
    found += [f"model of epoch {arm.model}"] * (arm.model is not None)
    return found + [f"model of the learner {arm.learner}"] * (arm.learner is not None)


def _mixed(results: Results) -> bool:
    return results.entry.experiment.design == "interleave"


def _utc(at_ms: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(at_ms / 1_000, dt.UTC)


def _plot(height_in: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, height_in), layout="constrained")
    figure.patch.set_alpha(0.0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0.0)
    return figure, axes


def _svg(figure: Any, name: str) -> str:
    """Return the drawing as an element of the page: fluid, in the page's colours and fonts."""
    file = io.StringIO()
    figure.savefig(
        file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
    )
    text = file.getvalue()
    text = text[text.index("<svg") :]
    for drawn, variable in _VARIABLES.items():
        text = text.replace(drawn, variable)
    # Ids must be unique on the page, and every drawing counts its own from one.
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(href="#|url\(#)', rf"\1{name}-", text)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    opening, rest = text.split(">", 1)
    return re.sub(r' (width|height)="[^"]*"', "", opening) + ">" + rest
