"""``tidegraph bench``: how fast and how large each room is; those of whole processes lie here."""

from __future__ import annotations

from importlib import import_module
from typing import Final, NamedTuple

import click

__all__ = ["bench"]


class _Bench(NamedTuple):
    """Where a bench is, and its line, which stands here so that none carries what others import."""

    module: str
    line: str


_BENCHES: Final = {
    "graph": _Bench(
        "replay.bench.graph", "The graph store: appends, recent neighbours, memory, restoring."
    ),
    "learner": _Bench(
        "replay.bench.learner", "Learning steps at several micro-batches, beside TGN and river."
    ),
    "stream": _Bench(
        "deploy.bench.stream", "The stream worker over a broker, beside a faust agent."
    ),
    "pipeline": _Bench(
        "deploy.bench.pipeline", "From a record to a row in Redis: rate, freshness, memory."
    ),
    "serving": _Bench(
        "deploy.bench.serving", "The API: rates, latencies, freshness, a large catalogue."
    ),
}


class _Benches(click.Group):
    """A group that imports a bench when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the benches."""
        return list(_BENCHES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one bench."""
        if cmd_name not in _BENCHES:
            return None
        command: click.Command = getattr(import_module(_BENCHES[cmd_name].module), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the benches from their lines alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, each.line) for name, each in _BENCHES.items()])


@click.group(cls=_Benches)
def bench() -> None:
    """Measure a room beside its peers, on this machine.

    \b
    Example:
        tidegraph bench graph --json
        tidegraph bench learner --json
        tidegraph bench stream --json
        tidegraph bench pipeline --json
        tidegraph bench serving --json
    """
