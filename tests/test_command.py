"""The command imports little, lists everything, and turns errors into exit statuses."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from stream.errors import BadData, TableError
from tests.house import ROOT
from tidegraph import COMMANDS, Place, main

FAILURES = {
    "user": BadData("want a folder, got a file; name the folder"),
    "ours": TableError("the table does not answer"),
    "stopped": KeyboardInterrupt(),
    "defect": ZeroDivisionError(),
}


@click.command()
@click.argument("how")
def failing(how: str) -> None:
    """Fail as asked."""
    raise FAILURES[how]


@pytest.mark.parametrize(
    ("how", "exit_code", "output"),
    [
        ("user", 2, "Error: want a folder, got a file; name the folder\n"),
        ("ours", 1, "Error: the table does not answer\n"),
        ("stopped", 130, "Error: stopped by Ctrl-C\n"),
    ],
)
def test_an_error_becomes_one_line_and_an_exit_status(
    monkeypatch: pytest.MonkeyPatch, how: str, exit_code: int, output: str
) -> None:
    monkeypatch.setitem(COMMANDS, "failing", Place(__name__, "failing", ""))
    result = CliRunner().invoke(main, ["failing", how])
    assert (result.exit_code, result.output) == (exit_code, output)


def test_a_defect_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMANDS, "failing", Place(__name__, "failing", ""))
    with pytest.raises(ZeroDivisionError):
        CliRunner().invoke(main, ["failing", "defect"], catch_exceptions=False)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_found_under_its_own_name(name: str) -> None:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    assert command.name == name


def test_an_unknown_command_is_a_usage_error() -> None:
    result = CliRunner().invoke(main, ["reply"])
    assert result.exit_code == 2
    assert "No such command 'reply'" in result.output


def test_the_list_of_commands_imports_no_room() -> None:
    """The time that this takes is the time until a user sees help."""
    program = (
        "import sys, tidegraph\n"
        "tidegraph.main(['--help'], standalone_mode=False)\n"
        "print(*sorted({'torch', 'polars', 'numba', 'redis', 'faust'} & set(sys.modules)))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert all(f"\n  {name} " in ran.stdout for name in COMMANDS)
    assert ran.stdout.splitlines()[-1] == ""
