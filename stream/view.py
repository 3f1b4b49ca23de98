"""What the web view of the stream worker shows, from its state and its windowed tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from stream.events import Kind

_ORDER = {name: place for place, name in enumerate([*(kind.label for kind in Kind), "erasure"])}
_BARS = 60


class Window(NamedTuple):
    """What was processed in one span of time."""

    start_s: float  # since the epoch
    classes: dict[str, int]

    def json(self) -> dict[str, Any]:
        """Return it as the page ``/classes/`` gives it."""
        start = datetime.fromtimestamp(self.start_s, UTC)
        return {"start": f"{start:%Y-%m-%dT%H:%M:%SZ}", "classes": self.classes}


def windows(
    entries: Iterable[tuple[tuple[str, tuple[float, float]], int]],
) -> list[Window]:
    """Return the windows of a table, oldest first.

    Parameters
    ----------
    entries
        As faust keeps them: ``(class, (start, end)), count``.

    Examples
    --------
    >>> entries = [(("none", (60.0, 119.9)), 2), (("implicit_positive", (60.0, 119.9)), 5)]
    >>> [window.classes for window in windows(entries)]
    [{'implicit_positive': 5, 'none': 2}]

    """
    found: dict[float, dict[str, int]] = defaultdict(dict)
    for (kind, (start_s, _)), count in entries:
        found[start_s][kind] = count
    return [Window(start_s, _in_order(classes)) for start_s, classes in sorted(found.items())]


def page(state: dict[str, Any], minutes: list[Window], *, now_s: float) -> str:
    """Return the whole page as HTML.

    Parameters
    ----------
    state
        As the page ``/state/`` gives it.
    minutes
        Windows of a minute each.
    now_s
        Seconds since the epoch.

    """
    known = {window.start_s: window for window in minutes}
    this = now_s // 60 * 60
    bars = [this - 60 * ago for ago in reversed(range(_BARS))]
    shown = [known.get(start_s, Window(start_s, {})) for start_s in bars]
    hour: dict[str, int] = defaultdict(int)
    for window in shown:
        for kind, count in window.classes.items():
            hour[kind] += count
    return _template().render(
        state=state,
        minutes=[window.json() for window in shown],
        hour=_in_order(hour),
        top=max(sum(window.classes.values()) for window in shown),
    )


def _in_order(classes: dict[str, int]) -> dict[str, int]:
    return dict(sorted(classes.items(), key=lambda item: _ORDER.get(item[0], len(_ORDER))))


@lru_cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("stream"), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["span"] = _span
    environment.filters["moment"] = moment
    environment.filters["words"] = lambda name: name.replace("_", " ")
    return environment.get_template("stream.html")


def _span(seconds: float) -> str:
    """Write a span of time in the unit that suits it.

    Examples
    --------
    >>> [_span(seconds) for seconds in (0.4, 75.0, 7_200.0, 200_000.0)]
    ['0 s', '1.2 min', '2.0 h', '2.3 d']

    """
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def moment(ts_ms: int) -> str:
    """Write a time, in UTC; 0 is none."""
    return f"{datetime.fromtimestamp(ts_ms / 1_000, UTC):%Y-%m-%d %H:%M:%S}" if ts_ms else "none"
