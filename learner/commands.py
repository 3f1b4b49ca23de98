"""``tidegraph learn`` and ``tidegraph snapshot``."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click

from graph_store.sealing import key_name
from graph_store.snapshot import (
    describe,
    encrypt_newest,
    list_snapshots,
    make_newest,
    read_snapshot,
)
from learner.saving import locked, snapshot_key
from stream.errors import BadSettings, BadSnapshot, TidegraphError
from stream.options import config_option
from stream.settings import load_settings

_NICE: Final = 10
"""On a machine that it shares with them, whoever answers or types comes before the learner."""


@click.command()
@config_option
@click.option(
    "--from",
    "start",
    default="snapshot",
    show_default=True,
    metavar="snapshot|earliest|latest|TIME",
    help="Where to begin. TIME is ISO 8601 (UTC unless it says otherwise) or milliseconds since "
    "1970: from the records appended then. Without a snapshot, snapshot is earliest.",
)
def learn(config: Path | None, start: str) -> None:
    """Learn from feedback as it comes: run a learner until it is told to stop.

    Reads the topic `feedback`, updates graph and model, writes the rows that changed to the table
    in Redis, and saves snapshots in the folder learner.snapshots, which it owns alone. Metrics are
    on the port learner.port at /metrics, its state at /healthz. SIGTERM and Ctrl-C end it after a
    last snapshot.

    \b
    Example:
        tidegraph learn --config tidegraph.toml --from earliest
    """
    begin = parse_start(start)
    settings = load_settings(config)
    import torch

    from learner.metrics import serving
    from learner.worker import LearnerWorker
    from serving.redis_table import open_table
    from stream.collecting import collect_seldom
    from stream.kafka import KafkaLog

    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO, stream=sys.stderr
    )
    collect_seldom()
    os.nice(_NICE)
    torch.set_num_threads(1)  # the matrices are small, and a forked child must not share a pool
    log = KafkaLog(settings.kafka, wait_s=0.02)
    try:
        worker = LearnerWorker(settings, log, open_table(settings.redis), start=begin)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: worker.stop())
        with serving(worker.metrics, settings.learner.port) as port:
            click.echo(f"metrics at http://127.0.0.1:{port}/metrics", err=True)
            worker.run()
    finally:
        log.close()


def parse_start(text: str) -> Any:
    """Return where a learner begins.

    Raises
    ------
    BadSettings
        If the text is none of the places and no time.

    Examples
    --------
    >>> parse_start("latest"), parse_start("2022-04-24T18:39:01"), parse_start("1650825541000")
    ('latest', 1650825541000, 1650825541000)

    """
    if text in {"snapshot", "earliest", "latest"}:
        return text
    if text.isdecimal() and len(text) > len("20220424"):
        return int(text)
    try:
        when = datetime.fromisoformat(text)
    except ValueError as error:
        raise BadSettings(
            f"--from: want snapshot, earliest, latest, a time like 2022-04-24T18:39:01 or "
            f"milliseconds since 1970, got {text!r}"
        ) from error
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return int(when.timestamp() * 1_000)


@click.group()
def snapshot() -> None:
    """Look at the snapshots of the learner: list them, check them, go back to one.

    \b
    Example:
        tidegraph snapshot list
        tidegraph snapshot verify
        tidegraph snapshot restore 41 --yes
        tidegraph snapshot encrypt --yes
    """


@snapshot.command("list")
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for scripts.")
def list_(config: Path | None, *, as_json: bool) -> None:
    """Show the snapshots, newest first: number, age, size, events, positions, what is torn.

    The arrays are not read; `verify` reads everything.

    \b
    Example:
        tidegraph snapshot list --config tidegraph.toml
    """
    root, key = _root(config)
    shown: list[dict[str, Any]] = []
    for folder in list_snapshots(root):
        try:
            found = describe(folder, key=key)
        except BadSnapshot as error:
            shown.append({"number": int(folder.name), "torn": str(error)})
            continue
        shown.append(
            {
                "number": found.number,
                "age_s": round(time.time() - found.written_s, 1),
                "bytes": found.n_bytes,
                "events": found.state.get("counts", {}).get("events"),
                "positions": dict(found.state.get("positions", [])),
                "torn": None,
            }
        )
    if as_json:
        click.echo(json.dumps({"folder": str(root), "snapshots": shown}))
        return
    if not shown:
        click.echo(f"no snapshots in {root}")
    for each in shown:
        if each["torn"]:
            click.echo(f"{each['number']:>6}  torn: {each['torn']}")
            continue
        positions = " ".join(f"{number}:{at}" for number, at in each["positions"].items())
        click.echo(
            f"{each['number']:>6}  {each['age_s']:.0f} s old  {each['bytes'] / 1e6:.1f} MB"
            f"  {each['events']} events  positions {positions}"
        )


@snapshot.command()
@config_option
def verify(config: Path | None) -> None:
    """Read every snapshot through and compare the checksums; ends with 1 if the newest is torn.

    \b
    Example:
        tidegraph snapshot verify --config tidegraph.toml
    """
    root, key = _root(config)
    newest: BadSnapshot | None = None
    folders = list_snapshots(root)
    if not folders:
        raise BadSnapshot(f"{root}: want at least one snapshot, there is none")
    for folder in folders:
        try:
            read_snapshot(folder, fingerprint=None, key=key)
        except BadSnapshot as error:
            click.echo(f"{int(folder.name):>6}  torn: {error}")
            if folder == folders[0]:
                newest = error
        else:
            click.echo(f"{int(folder.name):>6}  whole")
    if newest is not None:
        raise TidegraphError(
            f"{root}: the newest snapshot is torn; a learner starts from the newest whole one"
        )


@snapshot.command()
@click.argument("number", type=click.IntRange(min=1))
@config_option
@click.option("--yes", is_flag=True, help="Do it without asking.")
def restore(number: int, config: Path | None, *, yes: bool) -> None:
    """Make snapshot NUMBER the newest, so that the learner starts from it.

    It is copied; the others stay until newer ones take their place. The learner must not run.

    \b
    Example:
        tidegraph snapshot restore 41 --yes
    """
    root, key = _root(config)
    if not yes:
        click.confirm(f"start the next learner from snapshot {number} of {root}?", abort=True)
    with locked(root):
        folder = make_newest(root, number, key=key)
    click.echo(f"snapshot {number} is now also number {int(folder.name)}, the newest")


@snapshot.command()
@config_option
@click.option("--yes", is_flag=True, help="Do it without asking.")
def encrypt(config: Path | None, *, yes: bool) -> None:
    """Encrypt the newest snapshot with the key that is set, and remove those that are not.

    For the day on which learner.snapshot_key or learner.snapshot_key_file is first set: from then
    on what is not encrypted is refused. The learner must not run.

    \b
    Example:
        tidegraph snapshot encrypt --yes
    """
    root, key = _root(config)
    if key is None:
        raise BadSettings(
            "want learner.snapshot_key or learner.snapshot_key_file set, neither is; "
            "openssl rand -hex 32 makes a key"
        )
    if not yes:
        click.confirm(f"leave only an encrypted copy of the newest in {root}?", abort=True)
    with locked(root):
        folder = encrypt_newest(root, key)
    click.echo(f"the newest is now number {int(folder.name)}, encrypted with {key_name(key)}")


def _root(config: Path | None) -> tuple[Path, bytes | None]:
    """Return where the snapshots are, and what they are encrypted with."""
    settings = load_settings(config).learner
    return Path(settings.snapshots), snapshot_key(settings)
