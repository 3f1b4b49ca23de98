"""``tidegraph topics``: make the topics, and tell whether they fit."""

from __future__ import annotations

from pathlib import Path

import click

from stream.options import config_option
from stream.settings import load_settings


@click.group()
def topics() -> None:
    """Make the topics on the broker, or check them.

    \b
    Example:
        tidegraph topics create --config tidegraph.toml
    """


@topics.command()
@config_option
def create(config: Path | None) -> None:
    """Make the topics that are missing; those that are there stay as they are.

    \b
    Example:
        tidegraph topics create --config tidegraph.toml
    """
    from stream import topics

    made = topics.create(load_settings(config).kafka)
    for name in made:
        click.echo(f"made {name}")
    if not made:
        click.echo("nothing to make: all topics are there")


@topics.command()
@config_option
@click.pass_context
def check(context: click.Context, config: Path | None) -> None:
    """Tell what is wrong with the topics; ends with 1 where something is.

    \b
    Example:
        tidegraph topics check --config tidegraph.toml
    """
    from stream import topics

    problems = topics.check(load_settings(config).kafka)
    for problem in problems:
        click.echo(problem)
    if problems:
        context.exit(1)
    click.echo("all topics are there and fit")
