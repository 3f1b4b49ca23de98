"""``tidegraph stream``: run a stream worker."""

from __future__ import annotations

from pathlib import Path

import click

from stream.options import config_option
from stream.settings import load_settings


@click.command()
@config_option
def stream(config: Path | None) -> None:
    """Type interactions as they come: run a stream worker until it is told to stop.

    Reads the topic `interactions` and writes `feedback`, dead letters and late events, each record
    once. Several workers of one group share the partitions. Its web view, its counters and its
    health are on the port stream.port. SIGTERM and Ctrl-C end it after the transaction in hand.

    \b
    Example:
        tidegraph stream --config tidegraph.toml
    """
    settings = load_settings(config)
    from stream.app import run  # faust takes a while to import

    run(settings)
