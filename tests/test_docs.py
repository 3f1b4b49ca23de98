"""What the documentation says of commands and files is so."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from tests.house import ROOMS, ROOT, files
from tidegraph import main

PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]

# Written so that this file does not contain what it looks for.
FOREIGN = re.compile(
    r"[p]ypi\.org|[p]ythonhosted\.org|repo\d*\.[m]aven|[n]pmjs\.|index\.[c]rates\.io|[d]ocker\.io"
    r"|[d]eb\.debian\.org|proxy\.[g]olang\.org|(?<![\w.])/[w]ork/|(?<![\w.])/[r]oot/"
)


def command_lines(text: str) -> Iterator[list[str]]:
    """Yield the arguments of each ``tidegraph ...`` in blocks of code and between backticks."""
    joined = re.sub(r"\\\n\s*", " ", text)
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", joined, re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`([^`\n]+)`", joined)
    for line in [line for block in blocks for line in block.splitlines()] + spans:
        found = re.match(r"\s*(?:\$ )?(?:\.venv/bin/)?tidegraph\s+(.+)", line)
        if found:
            command = re.split(r"\s(?:[|>#]|&&)", found[1])[0]
            yield [word for word in shlex.split(command) if word not in {"...", "…"}]


def misfit(words: list[str]) -> str:
    """Tell why the command would not take these words; empty if it would."""
    command: click.Command = main
    context = click.Context(main, info_name="tidegraph")
    while True:
        try:
            _, words, _ = command.make_parser(context).parse_args(list(words))
        except click.UsageError as error:
            return error.format_message()
        if not isinstance(command, click.Group) or not words:
            return f"unexpected {words}" if words else ""
        inner = command.get_command(context, words[0])
        if inner is None:
            return f"no such command: {words[0]}"
        command, words = inner, words[1:]
        context = click.Context(command, info_name=command.name, parent=context)


def commands(
    command: click.Command = main, parent: click.Context | None = None
) -> Iterator[click.Context]:
    """Yield the context of every command and sub-command."""
    context = click.Context(command, info_name=command.name, parent=parent)
    yield context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from commands(inner, context)


def test_the_words_of_a_command_line_are_found_and_judged() -> None:
    text = (
        "```sh\n$ .venv/bin/tidegraph doctor \\\n    --json  # all\n```\n`tidegraph replay --fast`"
    )
    assert list(command_lines(text)) == [["doctor", "--json"], ["replay", "--fast"]]
    assert misfit(["doctor", "--json"]) == ""
    assert "--jsn" in misfit(["doctor", "--jsn"])
    assert misfit(["doktor"]) == "no such command: doktor"
    assert misfit(["embeddings", "user", "712", "8"]) == "unexpected ['8']"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_line_on_a_page_would_be_taken(page: Path) -> None:
    lines = command_lines(page.read_text("utf-8"))
    assert {" ".join(words): why for words in lines if (why := misfit(words))} == {}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_to_a_file_leads_to_one(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text("utf-8"))
    local = [link for link in links if not re.match(r"[a-z]+:", link)]
    assert [link for link in local if not (page.parent / link).exists()] == []


def test_every_command_explains_itself_with_an_example_that_it_would_take() -> None:
    for context in commands():
        text = context.command.get_help(context)
        assert "\n  Example:\n" in text, context.command_path
        examples = text.split("\n  Example:\n")[1].split("\n\n")[0]
        assert "tidegraph " in examples, context.command_path
        for words in command_lines(f"```\n{examples}\n```"):
            assert misfit(words) == "", words


def test_every_option_of_every_command_is_explained() -> None:
    for context in commands():
        for parameter in context.command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{context.command_path} {parameter.opts}"


def test_the_file_map_of_the_readme_matches_the_tree() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    ours = [path.relative_to(ROOT) for path in files() if path.suffix == ".py"]
    rooms = [path for path in ours if path.parts[0] in (*ROOMS, "tidegraph.py")]
    mentioned = set(re.findall(r"\b(\w+\.py)\b", text))
    missing = [str(p) for p in rooms if p.name not in mentioned and p.name != "__init__.py"]
    assert missing == []
    assert mentioned - {path.name for path in ours} == set()


def test_no_file_names_a_registry_or_a_place_on_one_machine() -> None:
    found = []
    for path in files():
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue  # data
        found += [f"{path.relative_to(ROOT)}: {hit}" for hit in FOREIGN.findall(text)]
    assert found == []
