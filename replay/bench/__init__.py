"""Benches: how fast and how large each room is, beside its peers."""

from __future__ import annotations

import click

from replay.bench.graph import graph
from replay.bench.learner import learner

__all__ = ["bench"]


@click.group()
def bench() -> None:
    """Measure a room beside its peers, on this machine.

    \b
    Example:
        tidegraph bench graph --json
        tidegraph bench learner --json
    """


bench.add_command(graph)
bench.add_command(learner)
