"""``tidegraph keys``: make, list and revoke API keys."""

from __future__ import annotations

import json
import os
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

import click
import msgspec

from serving.api.audit import Audit, recorded
from serving.keys import RoleName, new_key, read_keys, revoke_key
from stream.errors import BadSettings
from stream.options import config_option
from stream.settings import ServingSettings, load_settings


@click.group()
def keys() -> None:
    """Make API keys, list who has one, and revoke them; servers follow within a second.

    The file serving.keys_file holds names, roles and hashes. A key itself is shown once.

    \b
    Example:
        tidegraph keys new shop --role writer
        tidegraph keys list
        tidegraph keys revoke shop
    """


@keys.command()
@click.argument("name")
@click.option(
    "--role",
    type=click.Choice(get_args(RoleName)),
    default="reader",
    show_default=True,
    help="What it may do; each role may do what those before it may.",
)
@click.option(
    "--requests-per-s",
    type=click.FloatRange(min=0, min_open=True),
    metavar="N",
    help="Limit of this key; serving.requests_per_s if left out.",
)
@config_option
def new(name: str, role: RoleName, requests_per_s: float | None, config: Path | None) -> None:
    """Make a key for NAME and print it. It is kept nowhere: give it to who wants it now.

    \b
    Example:
        tidegraph keys new shop --role writer --requests-per-s 200
    """
    settings = load_settings(config).serving
    path = _path(settings)
    with _recorded(settings, "keys new", name=name, role=role):
        click.echo(new_key(path, name, role, requests_per_s=requests_per_s))
    click.echo(f"its hash is in {path}; it will not be shown again", err=True)


@keys.command("list")
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for scripts.")
def list_(config: Path | None, *, as_json: bool) -> None:
    """Show who has a key, and what it may do.

    \b
    Example:
        tidegraph keys list --json
    """
    path = _path(load_settings(config).serving)
    found = read_keys(path) or ()
    if as_json:
        shown = [msgspec.structs.asdict(key) for key in found]
        for key in shown:
            del key["sha256"]
        click.echo(json.dumps({"file": str(path), "keys": shown}))
        return
    if not found:
        click.echo(f"no keys in {path}")
    for each in found:
        made = datetime.fromtimestamp(each.made_ms / 1_000, UTC).strftime("%Y-%m-%d %H:%M UTC")
        limit = "" if each.requests_per_s is None else f"  {each.requests_per_s:g} requests/s"
        click.echo(f"{each.name:<24}  {each.role:<8}  made {made}{limit}")


@keys.command()
@click.argument("name")
@config_option
def revoke(name: str, config: Path | None) -> None:
    """Forget the key of NAME; servers refuse it within a second.

    \b
    Example:
        tidegraph keys revoke shop
    """
    settings = load_settings(config).serving
    with _recorded(settings, "keys revoke", name=name):
        revoke_key(_path(settings), name)
    click.echo(f"the key of {name} is revoked")


def _recorded(settings: ServingSettings, what: str, **told: str) -> AbstractContextManager[None]:
    audit = Audit(Path(settings.audit_file))
    return recorded(audit, f"uid {os.getuid()}", f"tidegraph {what}", told)


def _path(settings: ServingSettings) -> Path:
    if not settings.keys_file:
        raise BadSettings("serving.keys_file is empty: want the path of the file of keys")
    return Path(settings.keys_file)
