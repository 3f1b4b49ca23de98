"""What the commands that read a log have in common: its options, and a bar while it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from replay.datasets import DATASETS, Dataset, guess_dataset, open_dataset
from replay.datasets.base import OnRead

_OPTIONS = (
    click.option(
        "--dataset",
        type=click.Choice(DATASETS),
        help="Layout of the log. Default: what it looks like.",
    ),
    click.option(
        "--columns",
        metavar="ROLE=NAME,...",
        help="Ratings: user=..,item=..,rating=..,time=.. where the names do not tell.",
    ),
    click.option("--scale", type=float, help="Ratings: the greatest rating. Default: that found."),
    click.option("--limit", type=click.IntRange(min=1), help="Read the first N events in time."),
)


def log_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of :func:`replay.datasets.open_dataset`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def open_log(
    path: Path,
    *,
    dataset: str | None,
    columns: str | None,
    scale: float | None,
    limit: int | None,
) -> Dataset:
    """Open the log that the options name; without a layout, that which it looks like."""
    layout = dataset or ("ratings" if columns else guess_dataset(path))
    return open_dataset(layout, path, columns=columns, scale=scale, limit=limit)


@contextmanager
def reading(what: str) -> Iterator[OnRead]:
    """Show a bar of the bytes read while a log is put in order; nothing without a terminal."""
    text = TextColumn("{task.description}")
    columns = (text, BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
