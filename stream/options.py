"""The option of every command that works with a broker or a table: where its settings are."""

from __future__ import annotations

from pathlib import Path

import click

config_option = click.option(
    "--config",
    type=click.Path(path_type=Path),
    envvar="TIDEGRAPH_CONFIG",
    show_envvar=True,
    help="TOML file with the settings; the environment goes over it.",
)
"""Gives a command the argument ``config``, as :func:`stream.settings.load_settings` takes it."""
