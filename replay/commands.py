"""The command ``tidegraph replay``: options in, progress and a report out."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import torch
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from replay.clock import parse_speed
from replay.config import ReplayConfig
from replay.datasets import sample_path
from replay.embedded import Replay, Stopped, Survey, survey
from replay.experiment import SYSTEMS
from replay.kafka import KafkaSource, check
from replay.options import log_options, open_log
from replay.report import ReplayResult, build_report, table, write_report
from stream.errors import BadOutput, BadSettings
from stream.events import Kind
from stream.options import config_option
from stream.settings import Settings, load_settings
from stream.typing_rules import load_rules

_DEFAULT = "online,frozen,retrain,popularity,recent_popularity,covisitation,counting"
_SPANS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def parse_span(text: str) -> int:
    """Return the milliseconds of a span such as ``90s``, ``1h`` or ``1d``.

    Raises
    ------
    BadSettings
        If it is something else.

    Examples
    --------
    >>> parse_span("1h")
    3600000

    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)", text.strip())
    if match is None:
        raise BadSettings(f'wanted a span such as 500ms, 90s, 10m, 1h or 1d, got "{text}"')
    return round(float(match[1]) * _SPANS_MS[match[2]])


def parse_systems(text: str) -> tuple[str, ...]:
    """Return the systems of a list with commas, in the order of the report.

    Raises
    ------
    BadSettings
        If one is unknown, or there is none.

    Examples
    --------
    >>> parse_systems("popularity, online")
    ('online', 'popularity')

    """
    asked = {name.strip() for name in text.split(",") if name.strip()}
    unknown = sorted(asked - set(SYSTEMS))
    if unknown or not asked:
        raise BadSettings(
            f"--systems: wanted some of {', '.join(SYSTEMS)}, got {', '.join(unknown) or 'none'}"
        )
    return tuple(name for name in SYSTEMS if name in asked)


@click.command()
@click.option(
    "--path",
    type=click.Path(path_type=Path),
    help="Folder or file of the log. Default: the shipped sample.",
)
@log_options
@click.option(
    "--systems", default=_DEFAULT, show_default=True, help="What to compare, with commas."
)
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(min=0),
    help="Of models and intervals.",
)
@click.option(
    "--speed", default="max", show_default=True, help="Pace in event time: max, 60x, 1x ..."
)
@click.option(
    "--delay",
    default="1h",
    show_default=True,
    help="How late the system `delayed` hears of events.",
)
@click.option(
    "--rules",
    help="A rule set: a file, or kuairand, ratings, music, default. Default: the layout's.",
)
@click.option(
    "--k",
    default=10,
    show_default=True,
    type=click.Choice([5, 10, 20]),
    help="Cut-off of the running figures and the table.",
)
@click.option(
    "--out",
    default=Path("out/replay"),
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder of the report.",
)
@click.option(
    "--log",
    "over",
    default="memory",
    show_default=True,
    type=click.Choice(["memory", "kafka"]),
    help="What the events travel on: a log in this process, or a broker with stream workers.",
)
@config_option
@click.option("--resume", is_flag=True, help="Go on from the last snapshot in --out.")
@click.option("--strict", is_flag=True, help="Stop at the first line that cannot be processed.")
def replay(
    path: Path | None,
    dataset: str | None,
    columns: str | None,
    scale: float | None,
    limit: int | None,
    systems: str,
    seed: int,
    speed: str,
    delay: str,
    rules: str | None,
    k: int,
    out: Path,
    over: str,
    config: Path | None,
    resume: bool,  # noqa: FBT001 - click passes them by name
    strict: bool,  # noqa: FBT001
) -> None:
    """Replay a log in time order and compare learning online with staying offline.

    Without --path the shipped sample of KuaiRand-Pure is replayed. Ctrl-C stops cleanly; --resume
    goes on from there.

    With --log kafka the events go through the topics and the stream workers of --config, which must
    run (`tidegraph up`) and have had no later events. The graph and the accounting are then those
    of --log memory, whatever the number of partitions, as long as no event is out of order by more
    than the lateness. Such a replay cannot be resumed.

    \b
    Example:
        tidegraph replay --dataset kuairand-pure --systems online,frozen,popularity --out out/replay
        tidegraph replay --dataset ratings --path ratings.csv --limit 50000
        tidegraph replay --resume --out out/replay
        tidegraph replay --log kafka --config tidegraph.toml
    """
    if path is None and dataset not in {None, "kuairand-pure"}:
        raise BadSettings(f"--dataset {dataset}: wanted --path, the folder or file of the log")
    if resume and over == "kafka":
        raise BadSettings(
            "--resume: what was sent to a broker cannot be taken back; want --log memory, or a "
            "replay from the beginning on topics of its own"
        )
    # At micro-batches of 64 a second thread gains 3 % and doubles the CPU; one adds in one order.
    torch.set_num_threads(1)
    log = open_log(
        path or sample_path(), dataset=dataset, columns=columns, scale=scale, limit=limit
    )
    settings = load_settings(config) if over == "kafka" else Settings()
    wanted = ReplayConfig(
        dataset=log,
        rules=load_rules(rules or log.rules, signals=log.signals or None),
        out=out,
        systems=parse_systems(systems),
        seed=seed,
        speed=parse_speed(speed),
        delay_ms=parse_span(delay),
        lateness_ms=round(settings.stream.lateness_s * 1_000),
        strict=strict,
    )
    _make_writable(out)
    console = Console(stderr=True)
    if over == "kafka":
        check(wanted, settings)  # before the log is read, which may take a while
    found = _look_ahead(wanted, console)
    _forget_older(out, resume=resume)
    source = None
    if over == "kafka":
        source = KafkaSource(wanted, settings, first_ms=found.first_ms)
    running = Replay(wanted, found, source)
    if resume and not running.resume():
        console.print(f"no snapshot in {out}: starting from the beginning")
    with _clean_stop(running):
        try:
            result = _play(running, console, k)
        except Stopped:
            how = f" with: tidegraph replay … --resume --out {out}"
            console.print(f"stopped; go on{how}" if running.stream.resumable else "stopped")
            raise click.exceptions.Exit(130) from None
    report = build_report(result)
    json_path, html_path = write_report(report, out)
    shutil.rmtree(out / "snapshots", ignore_errors=True)
    Console().print(table(report, k=k))
    click.echo(f"{json_path}\n{html_path}")


def _make_writable(out: Path) -> None:
    """Make the output folder, and make sure that files can be written there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".writable.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise BadOutput(
            f"--out {out}: wanted a folder to write to: {error.strerror}; name another one"
        ) from error


def _forget_older(out: Path, *, resume: bool) -> None:
    """Remove what an earlier replay left in the folder, unless it is to be resumed."""
    if resume:
        return
    shutil.rmtree(out / "snapshots", ignore_errors=True)
    for name in ("report.json", "report.html", "table", "dead.jsonl", "late.jsonl"):
        (out / name).unlink(missing_ok=True)


class _Bar(Progress):
    """A bar with lines of facts under it, none of which a narrow terminal cuts off."""

    facts: tuple[str, ...] = ()

    def get_renderables(self) -> Iterable[RenderableType]:
        """Return the bar, then the facts."""
        yield from super().get_renderables()
        yield from map(Text, self.facts)


def _bar(console: Console) -> _Bar:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
    )
    return _Bar(*columns, console=console)


def _look_ahead(config: ReplayConfig, console: Console) -> Survey:
    with _bar(console) as bar:
        task = bar.add_task("survey", total=config.dataset.n_rows)
        found = survey(config, lambda sent: bar.update(task, completed=sent))
        bar.update(task, total=found.accepted, completed=found.accepted)
    return found


def _play(running: Replay, console: Console, k: int) -> ReplayResult:
    started, already = time.perf_counter(), running.stream.sent
    with _bar(console) as bar:
        task = bar.add_task("replay", total=max(running.config.dataset.n_rows, already))
        trained: dict[str, int] = {}

        def on_offline(what: str, n_events: int) -> None:
            trained[what] = trained.get(what, 0) + n_events
            bar.facts = (*bar.facts[:2], f"  {what} training: {trained[what]:,} events")

        def on_batch(replay: Replay) -> None:
            sent = replay.stream.sent
            rate = (sent - already) / (time.perf_counter() - started)
            bar.facts = _facts(replay, k, rate)
            bar.update(task, completed=sent)

        running.experiment.on_offline = on_offline
        return running.run(on_batch)


def _facts(replay: Replay, k: int, rate: float) -> tuple[str, str]:
    """Return the lines under the bar: rate and classes, running HR."""
    count = replay.classes
    hits = "   ".join(
        f"{name} {clocked.hr(k):.4f}"
        for name, clocked in replay.experiment.results().items()
        if name in {"online", "frozen"} and clocked.rank
    )
    explicit = f"+ {count[Kind.EXPLICIT_POSITIVE]:,} / - {count[Kind.EXPLICIT_NEGATIVE]:,}"
    implicit = f"+ {count[Kind.IMPLICIT_POSITIVE]:,} / - {count[Kind.IMPLICIT_NEGATIVE]:,}"
    return (
        f"  {rate:,.0f} events/s   explicit {explicit}   implicit {implicit}",
        f"  HR@{k}: {hits or 'from the split on'}",
    )


@contextmanager
def _clean_stop(running: Replay) -> Iterator[None]:
    """Make the first Ctrl-C a wish to stop after the batch at hand; the second is immediate."""

    def ask(*_: object) -> None:
        running.stop_asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
