"""The report as one page that reads offline: what was found, in words, tables and figures."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from replay import figures

LIMIT: Final = 0.15
"""Share of a metric that the system design lets online learning cost."""

SYSTEMS: Final = {
    "online": "ranks each micro-batch, then learns from it. Everything is live",
    "delayed": "as online, but every event is revealed to it later",
    "frozen": "parameters stand still from T2 on; histories and decayed counts stay live",
    "frozen_counts": "parameters and decayed counts stand still from T2 on; histories stay live",
    "static": "parameters, histories and counts all stand still from T2 on",
    "retrain": "trained anew on the whole log every few hours and still in between; histories and "
    "counts stay live",
    "popularity": "most positive events since the log began",
    "recent_popularity": "most positive events lately",
    "covisitation": "met by the same users as the user's history, lately",
    "item_knn": "shrunk cosine between items over the users who liked both",
    "counting": "co-visitation and recent popularity added up: no learning at all",
    "isgd": "matrix factorisation, one gradient step per positive event",
    "ease": "linear item-to-item model in closed form, retrained every few hours",
    "signed_ease": "the same with the negative events in the matrix",
    "vsknn": "votes of the most similar earlier sessions",
    "ials": "implicit matrix factorisation, retrained every few hours, users folded in",
}
"""What each system is, and what of it is live during the test."""

SLICES: Final = {
    "known_items": "items known before T2",
    "new_items": "items new since T2",
    "known_users": "users known before T2",
    "new_users": "users new since T2",
    "history_0": "no history yet",
    "history_1_10": "history of 1 to 10 events",
    "history_11_50": "history of 11 to 50",
    "history_over_50": "history of more than 50",
    **{f"popularity_decile_{n}": f"popularity, tenth {n}" for n in range(1, 10)},
    "popularity_decile_10": "popularity, tenth 10 (most popular)",
}


def page(report: Mapping[str, Any]) -> str:
    """Return the whole page as HTML.

    Parameters
    ----------
    report
        The content of ``report.json``: the page says nothing that is not in there.

    """
    environment = Environment(
        loader=PackageLoader("replay", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "digits": digits,
        "percent": percent,
        "count": count,
        "when": when,
        "span": span,
    }
    names = sorted(report["systems"], key=lambda name: -(report["systems"][name]["ndcg@10"] or 0))
    compared = _compared(report, names)
    shown = [
        (key, label)
        for key, label in SLICES.items()
        if names and report["systems"][names[0]]["slices"][key]["n"]
    ]
    main = [(key, label) for key, label in shown if not key.startswith("popularity")]
    drawn = {
        "degradation": figures.degradation(report, limit=LIMIT) if report["degradation"] else "",
        "systems": figures.systems(report) if names else "",
        "curve": figures.curve(report, limit=LIMIT) if report["curve"]["buckets"] else "",
        "slices": figures.slices(report, compared, main) if main else "",
        "classes": figures.classes(report),
        "parts": figures.parts(report) if report["parts"] else "",
    }
    return environment.get_template("report.html").render(
        report=report,
        headline=headline(report),
        verdicts={name: verdict(of) for name, of in report["degradation"].items()},
        names=names,
        compared=compared,
        slices=shown,
        about={name: SYSTEMS.get(name, SYSTEMS.get(name.split("_")[0], "")) for name in names},
        limit=LIMIT,
        settings=list(_flat(report["settings"])),
        figures={name: Markup(svg) for name, svg in drawn.items()},  # noqa: S704 - our own drawing
    )


def headline(report: Mapping[str, Any]) -> str:
    """Say in one sentence what going online did.

    Examples
    --------
    >>> found = {"value": -0.1, "low": -0.12, "high": -0.08}
    >>> headline({"degradation": {"frozen": {"ndcg@10": found}}, "systems": {}})
    'Going online gains 10.0 % of NDCG@10 against the same model frozen.'

    """
    found = report["degradation"].get("frozen", {}).get("ndcg@10")
    if not found or found["value"] is None:
        return "What each system made of the same test events."
    share = percent(abs(found["value"]))
    if found["high"] is not None and found["high"] < 0:
        return f"Going online gains {share} of NDCG@10 against the same model frozen."
    if found["low"] is not None and found["low"] > 0:
        return f"Going online costs {share} of NDCG@10 against the same model frozen."
    return "Going online makes no difference to NDCG@10 that chance could not make."


def verdict(found: Mapping[str, Any]) -> str:
    """Say whether a degradation keeps within the limit and within our own bar.

    Examples
    --------
    >>> verdict({"ndcg@10": {"value": -0.02, "low": -0.05, "high": 0.01}})
    'within the limit of 15 %; our own bar of 0 is inside the interval'

    """
    high, low = found["ndcg@10"]["high"], found["ndcg@10"]["low"]
    if high is None or low is None:
        return "cannot be told"
    if high <= LIMIT:
        kept = "within the limit of 15 %"
    else:
        kept = (
            "beyond the limit of 15 %"
            if low > LIMIT
            else "the limit of 15 % is inside the interval"
        )
    if high <= 0:
        return f"{kept}; our own bar of 0 is met"
    return f"{kept}; our own bar of 0 is " + ("missed" if low > 0 else "inside the interval")


def digits(value: float | None, places: int = 4) -> str:
    """Return a figure with a fixed number of places, or a dash.

    Examples
    --------
    >>> digits(0.12345), digits(None)
    ('0.1235', '–')

    """
    return "\N{EN DASH}" if value is None else f"{value:.{places}f}"


def percent(value: float | None, places: int = 1) -> str:
    """Return a share in percent.

    Examples
    --------
    >>> percent(-0.0312)
    '−3.1 %'

    """
    if value is None:
        return "\N{EN DASH}"
    return f"{100 * value:.{places}f} %".replace("-", "\N{MINUS SIGN}")


def count(value: float | None) -> str:
    """Return a whole number in groups of three.

    Examples
    --------
    >>> count(1234567.2)
    '1,234,567'

    """
    return "\N{EN DASH}" if value is None else f"{value:,.0f}"


def when(ts_ms: int) -> str:
    """Return a time to the minute, UTC.

    Examples
    --------
    >>> when(1_650_812_741_436)
    '2022-04-24 15:05 UTC'

    """
    moment = dt.datetime.fromtimestamp(ts_ms / 1000.0, tz=dt.UTC)
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def span(value_ms: float | None) -> str:
    """Return a duration in the unit that suits it.

    Examples
    --------
    >>> span(0.25), span(840.0), span(90_000.0), span(7_200_000.0)
    ('0.25 ms', '840 ms', '90 s', '2 h')

    """
    if value_ms is None:
        return "\N{EN DASH}"
    for unit, width_ms in (
        ("d", 172_800_000.0),
        ("h", 3_600_000.0),
        ("min", 120_000.0),
        ("s", 1e3),
    ):
        if value_ms >= width_ms:
            per_unit = {"d": 86_400_000.0, "h": 3_600_000.0, "min": 60_000.0, "s": 1e3}[unit]
            return f"{value_ms / per_unit:.3g} {unit}"
    return f"{value_ms:.3g} ms"


def _compared(report: Mapping[str, Any], names: list[str]) -> list[str]:
    """Return the systems to show slice by slice: online, frozen and the best baseline."""
    baselines = [name for name in names if name in report["advantage"]]
    wanted = [name for name in ("online", "frozen") if name in names] + baselines[:1]
    return wanted or names[:3]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested settings as dotted names and values."""
    rows: list[tuple[str, str]] = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", str(value)))
    return rows
