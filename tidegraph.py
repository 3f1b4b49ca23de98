"""The command: each room's sub-commands hung on one name."""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple

import click

from stream.errors import TidegraphError, UserError
from stream.settings import Settings


class Place(NamedTuple):
    """Where a command lives, and its line in the list of commands."""

    module: str
    name: str
    line: str


# The lines stand here so that the list is printed without importing a single room.
COMMANDS = {
    "replay": Place("replay.commands", "replay", "Replay a log and compare online with offline."),
    "validate": Place("replay.validate", "validate", "Tell what is wrong with a log."),
    "classify": Place("replay.classify", "classify", "Show what a rule set makes of a log."),
    "serve": Place("serving.commands", "serve", "Answer requests over HTTP."),
    "embeddings": Place("serving.commands", "embeddings", "Look at the published embeddings."),
    "keys": Place("serving.key_commands", "keys", "Make, list and revoke keys of the API."),
    "experiment": Place(
        "serving.experiments.commands", "experiment", "Compare models or settings on real users."
    ),
    "up": Place("deploy.up", "up", "Run the whole system on this machine."),
    "topics": Place("stream.commands", "topics", "Make the topics on the broker, or check them."),
    "stream": Place("stream.app_command", "stream", "Run a stream worker."),
    "learn": Place("learner.commands", "learn", "Run a learner."),
    "snapshot": Place("learner.commands", "snapshot", "Look at snapshots, check them, go back."),
    "dead-letters": Place(
        "stream.dead_letter_commands", "dead_letters", "See and resend what could not be processed."
    ),
    "status": Place("deploy.status", "status", "Tell on one screen how the system is doing."),
    "doctor": Place("deploy.doctor", "doctor", "Tell what is installed and what is missing."),
    "bench": Place("deploy.bench", "bench", "Measure a room beside its peers."),
}


class Failure(click.ClickException):
    """An error of ours as a message and an exit status, without a traceback."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Rooms(click.Group):
    """A group that imports a room when one of its commands is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the commands in the order in which they are met."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        place = COMMANDS.get(cmd_name)
        if place is None:
            return None
        command: click.Command = getattr(import_module(place.module), place.name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from their lines alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, place.line) for name, place in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; what is raised on purpose becomes a message and an exit status.

        The user's mistake ends with 2, another error of ours with 1, Ctrl-C with 130.
        """
        try:
            return super().invoke(ctx)
        except UserError as error:
            raise Failure(str(error), exit_code=2) from error
        except TidegraphError as error:
            raise Failure(str(error), exit_code=1) from error
        except KeyboardInterrupt as error:
            raise Failure("stopped by Ctrl-C", exit_code=130) from error


@click.group(cls=Rooms, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tidegraph", message="%(prog)s %(version)s")
@click.pass_context
def main(context: click.Context) -> None:
    """Learn from every interaction seconds after it happens, and replay logs to prove it.

    \b
    Example:
        tidegraph replay --dataset kuairand-pure --out out/demo
    """
    context.obj = _demo


def _demo(settings: Settings) -> None:
    """Run what `tidegraph serve --demo` asks for: it takes rooms above the one that serves."""
    from deploy.demo import demonstrate

    demonstrate(settings)


if __name__ == "__main__":
    main()
