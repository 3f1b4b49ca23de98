"""``tidegraph experiment``: start, stop and list experiments, and report what came of them."""

from __future__ import annotations

import json
import os
import time
import tomllib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import click
import msgspec

from serving.api.audit import Audit, recorded
from serving.experiments.assignment import Experiment
from serving.experiments.redis_store import RedisStore
from serving.experiments.registry import Entry, Registry
from serving.redis_table import RedisTable, open_table
from stream.errors import BadData, BadOutput
from stream.options import config_option
from stream.settings import Settings, load_settings

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object, for scripts."
)


@click.group()
def experiment() -> None:
    """Compare models, rule sets or settings on real users; docs/experiments.md says how.

    \b
    Example:
        tidegraph experiment start newer-model.toml
        tidegraph experiment list
        tidegraph experiment report newer-model --out newer-model.html
        tidegraph experiment stop newer-model
    """


@experiment.command()
@click.argument("file", type=click.Path(path_type=Path))
@config_option
def start(file: Path, config: Path | None) -> None:
    """Start the experiment that FILE (TOML or JSON) describes; servers follow within a second.

    \b
    Example:
        tidegraph experiment start newer-model.toml
    """
    asked, settings = read_experiment(file), load_settings(config)
    with _changing(settings, "start", asked.name) as (registry, table):
        registry.start(asked, table, at_ms=_now_ms(), by=_who())
    names = ", ".join(arm.name + " (shadow)" * arm.shadow for arm in asked.arms)
    click.echo(f"experiment {asked.name} runs: {names}")


@experiment.command()
@click.argument("name")
@config_option
def stop(name: str, config: Path | None) -> None:
    """Stop the experiment NAME for good: everybody gets the usual again.

    Units whose window is not over are left out of its results.

    \b
    Example:
        tidegraph experiment stop newer-model
    """
    settings = load_settings(config)
    with _changing(settings, "stop", name) as (registry, table):
        entry = registry.stop(name, table, at_ms=_now_ms(), by=_who())
    click.echo(_line(entry))


@experiment.command("list")
@config_option
@json_option
def list_(config: Path | None, *, as_json: bool) -> None:
    """List the experiments, oldest first.

    \b
    Example:
        tidegraph experiment list --json
    """
    with closing(RedisStore(load_settings(config).redis)) as store:
        version, entries = Registry(store).read()
    if as_json:
        shown = {"version": version, "experiments": msgspec.to_builtins(entries)}
        click.echo(json.dumps(shown))
        return
    for entry in entries:
        click.echo(_line(entry))
    if not entries:
        click.echo("no experiment was started yet")


@experiment.command()
@click.argument("name")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="HTML file to write; NAME.html in this folder if left out.",
)
@config_option
@json_option
def report(name: str, out: Path | None, config: Path | None, *, as_json: bool) -> None:
    """Bring the results of NAME up to now and write them as one HTML file.

    \b
    Example:
        tidegraph experiment report newer-model --out newer-model.html
    """
    from serving.experiments.report import headline, page
    from serving.experiments.results import Collector, results_of
    from stream.kafka import KafkaLog

    settings = load_settings(config)
    with closing(RedisStore(settings.redis)) as store:
        Registry(store).get(name)  # a wrong name is told before anything is read
        with closing(KafkaLog(settings.kafka)) as log:
            table = open_table(settings.redis)
            Collector(store, log, lambda users: table.reader().user_attributes(users)).catch_up(
                _now_ms()
            )
        results = results_of(store, name)
    file = out or Path(f"{name}.html")
    try:
        file.write_text(page(results), encoding="utf-8")
    except OSError as error:
        raise BadOutput(f"cannot write the report to {file}: {error.strerror}") from error
    if as_json:
        click.echo(json.dumps({"file": str(file), "results": msgspec.to_builtins(results)}))
        return
    click.echo(headline(results))
    click.echo(f"see {file}")


def read_experiment(file: Path) -> Experiment:
    """Return the experiment that a file describes: TOML, or JSON if its name ends so.

    Raises
    ------
    BadData
        If the file cannot be read, or says what could not be meant.

    """
    try:
        raw = file.read_text(encoding="utf-8")
        told: Any = json.loads(raw) if file.suffix == ".json" else tomllib.loads(raw)
        return msgspec.convert(told, Experiment)
    except OSError as error:
        raise BadData(f"cannot read {file}: {error.strerror}") from error
    except msgspec.ValidationError as error:
        raise BadData(f"{file}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise BadData(f"{file} is neither TOML nor JSON of a name in .json: {error}") from error


@contextmanager
def _changing(settings: Settings, what: str, name: str) -> Iterator[tuple[Registry, RedisTable]]:
    """Give what an experiment is started and stopped in; the audit log has what came of it."""
    audit = Audit(Path(settings.serving.audit_file))
    with (
        closing(RedisStore(settings.redis)) as store,
        closing(open_table(settings.redis)) as table,
        recorded(audit, _who(), f"tidegraph experiment {what}", {"name": name}),
    ):
        yield Registry(store), table


def _who() -> str:
    return f"uid {os.getuid()}"


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _line(entry: Entry) -> str:
    from serving.experiments.report import when

    arms = ", ".join(arm.name for arm in entry.experiment.arms)
    span = f"since {when(entry.started_ms)}"
    if entry.stopped_ms is not None:
        span = f"from {when(entry.started_ms)} to {when(entry.stopped_ms)}"
    state = "runs" if entry.running else "stopped"
    return f"{entry.experiment.name:<24}  {state:<7}  {span}  {arms}"
