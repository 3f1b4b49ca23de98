"""``tidegraph dead-letters``: look at what could not be processed, and send it again."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import click
import polars as pl
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from stream.commits import read_commits
from stream.dead_letters import (
    Hopeless,
    Letter,
    Plan,
    Ready,
    Redriver,
    check_where,
    chosen,
    find,
    plan,
    read_letters,
    table,
)
from stream.fixes import Fixes, load_fixes
from stream.kafka import KafkaLog
from stream.options import config_option
from stream.settings import Settings, load_settings
from stream.topics import DEAD, INTERACTIONS

_Command = TypeVar("_Command", bound=Callable[..., None])
_SHOWN: Final = 5
_GROUPS: Final = {
    "reason": [pl.col("reason"), pl.col("place")],
    "where": [pl.col("place")],
    "hour": [pl.col("time").dt.strftime("%Y-%m-%d %H:00").alias("hour")],
}


def _shared_options(command: _Command) -> _Command:
    """Say where the broker is and how to print: the same for each command."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for scripts."),
        config_option,
    ):
        command = option(command)
    return command


_where = click.option(
    "--where",
    default="TRUE",
    help="Only letters of which this is true, as in \"reason = 'invalid' AND place = '$.ts_ms'\": "
    "polars SQL over time, reason, message, place, user_id, topic, partition, position, "
    "origin_partition, origin_position and redriven.",
)


@click.group("dead-letters")
def dead_letters() -> None:
    """Look at records that could not be processed; correct them and send them again.

    What a letter is, what --where can ask, and what a file of fixes holds: docs/dead-letters.md.

    \b
    Example:
        tidegraph dead-letters count
        tidegraph dead-letters list --where "reason = 'invalid'" --limit 5
        tidegraph dead-letters redrive --fix fixes.toml --dry-run
    """


@dead_letters.command("list")
@_where
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="Show so many at most, the newest.",
)
@_shared_options
def list_(where: str, limit: int, config: Path | None, *, as_json: bool) -> None:
    """List dead letters, newest first.

    \b
    Example:
        tidegraph dead-letters list --where "place = '$.ts_ms' AND NOT redriven"
    """
    letters = _read(load_settings(config), as_json=as_json)
    found = chosen(letters, where)
    shown = found[: -limit - 1 : -1]
    if as_json:
        _print_json(
            {"total": len(letters), "matching": len(found), "letters": [*map(_summary, shown)]}
        )
        return
    if not letters:
        click.echo(f"No dead letters in {DEAD}.")
        return
    columns = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    columns.add_column("time, UTC", no_wrap=True)
    columns.add_column("letter", no_wrap=True)
    columns.add_column("origin", no_wrap=True)
    columns.add_column("user", overflow="fold")
    columns.add_column("reason", no_wrap=True)
    columns.add_column("place", overflow="fold")
    columns.add_column("redriven", no_wrap=True)
    for letter in shown:
        cells = (
            _date(letter.time_ms),
            f"{letter.partition}:{letter.position}",
            _origin(letter),
            letter.user_id or "",
            letter.reason,
            letter.dead.where,
            "yes" if letter.redriven else "",
        )
        columns.add_row(*(Text(safe(cell)) for cell in cells))
    _print(columns)
    click.echo(f"{len(shown)} of {len(found):,} that match, of {len(letters):,} in all")


@dead_letters.command()
@click.argument("place")
@_shared_options
def show(place: str, config: Path | None, *, as_json: bool) -> None:
    """Show one dead letter whole: PARTITION:OFFSET, or TOPIC:PARTITION:OFFSET of its origin.

    \b
    Example:
        tidegraph dead-letters show 0:17
        tidegraph dead-letters show interactions:0:4711
    """
    log = KafkaLog(load_settings(config).kafka)
    try:
        with _bar("reading") as progress:
            letter = find(log, place, progress)
    finally:
        log.close()
    if as_json:
        told = _summary(letter)
        told["headers"] = {name: safe_bytes(value) for name, value in letter.headers}
        told["original_hex"] = letter.dead.original.hex()
        told["original"] = _text_of(letter.dead.original)
        _print_json(told)
        return
    lines = {
        "letter": f"{letter.partition}:{letter.position} of {DEAD}",
        "since": f"{_date(letter.time_ms)} UTC",
        "origin": _origin(letter),
        "user": letter.user_id or "cannot be read",
        "reason": letter.dead.reason,
        "place": letter.dead.where,
        "redriven": "yes" if letter.redriven else "no",
        "key": "none" if letter.key is None else safe_bytes(letter.key),
    }
    lines |= {f"header {name}": safe_bytes(value) for name, value in letter.headers}
    for name, value in lines.items():
        click.echo(f"{safe(name) + ':':12} {safe(value)}")
    original = letter.dead.original
    text = _text_of(original)
    kind = "hex" if text is None else "text"
    click.echo(f"original:    {len(original):,} bytes, as {kind}")
    click.echo(hex_dump(original) if text is None else safe(text, newlines=True))


@dead_letters.command()
@click.option(
    "--by",
    type=click.Choice([*_GROUPS]),
    default="reason",
    show_default=True,
    help="Count by class of reason and place, by place alone, or by the hour of death (UTC).",
)
@_where
@_shared_options
def count(by: str, where: str, config: Path | None, *, as_json: bool) -> None:
    """Count dead letters.

    \b
    Example:
        tidegraph dead-letters count --by hour
    """
    letters = chosen(_read(load_settings(config), as_json=as_json), where)
    columns = _GROUPS[by]
    names = [column.meta.output_name() for column in columns]
    groups = (
        table(letters)
        .group_by(columns)
        .agg(
            letters=pl.len(),
            share=pl.len() / max(1, len(letters)),
            redriven=pl.col("redriven").sum(),
            oldest=pl.col("time").min(),
            newest=pl.col("time").max(),
        )
    )
    order = names if by == "hour" else [-pl.col("letters").cast(pl.Int64), *names]
    groups = groups.sort(order)
    if as_json:
        rows = groups.with_columns(
            pl.col("oldest", "newest").dt.epoch("ms").name.suffix("_ms")
        ).drop("oldest", "newest")
        _print_json({"total": len(letters), "by": by, "groups": rows.to_dicts()})
        return
    if not letters:
        click.echo("No dead letters match." if where != "TRUE" else f"No dead letters in {DEAD}.")
        return
    shown = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, show_footer=True)
    for place, name in enumerate(names):
        shown.add_column(name, "all" if place == 0 else "", overflow="fold")
    shown.add_column("letters", f"{len(letters):,}", justify="right", no_wrap=True)
    shown.add_column("share", "100.0 %", justify="right", no_wrap=True)
    total_redriven = sum(letter.redriven for letter in letters)
    shown.add_column("redriven", f"{total_redriven:,}", justify="right", no_wrap=True)
    shown.add_column("newest, UTC", no_wrap=True)
    for row in groups.to_dicts():
        shown.add_row(
            *(Text(safe(row[name])) for name in names),
            f"{row['letters']:,}",
            f"{row['share']:.1%}".replace("%", " %"),
            f"{row['redriven']:,}",
            f"{row['newest']:%Y-%m-%d %H:%M:%S}",
        )
    _print(shown)


@dead_letters.command()
@_where
@click.option(
    "--fix",
    "fix_file",
    type=click.Path(path_type=Path),
    help="TOML file of corrections to make before.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@_shared_options
@click.pass_context
def redrive(
    ctx: click.Context,
    where: str,
    fix_file: Path | None,
    config: Path | None,
    *,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Send the original records to `interactions` once more, keyed by their users.

    A letter is sent once: one that was redriven before is left alone, whoever asks and however
    often. A letter that would die again, also after the corrections, is named and not sent; exit
    status 1 says that there was one.

    \b
    Example:
        tidegraph dead-letters redrive --where "place = '$.ts_ms'" --fix fixes.toml
    """
    logging.getLogger("kafka").setLevel(logging.CRITICAL)  # what matters comes as errors
    settings = load_settings(config)
    try:
        check_where(where)
    except ValueError as error:
        raise click.BadParameter(f"{where!r}: {error}", param_hint="--where") from error
    fixes = Fixes() if fix_file is None else load_fixes(fix_file, check_where)
    if as_json and not (yes or dry_run):
        raise click.UsageError("--json cannot ask; add --yes or --dry-run")
    sent: Sequence[Ready] = ()
    log = KafkaLog(settings.kafka)
    try:
        if dry_run:
            with _bar("reading") as progress:
                letters = read_letters(log, progress).letters()
            intended = _plan(log, chosen(letters, where), fixes, settings)
        else:
            with Redriver(settings.kafka, log) as redriver:
                with _bar("reading") as progress:
                    letters = redriver.letters(progress).letters()
                intended = _plan(log, chosen(letters, where), fixes, settings)
                if not as_json:
                    _tell(intended, fixes)
                question = f"Send {len(intended.ready):,} to {INTERACTIONS}?"
                if intended.ready and (yes or click.confirm(question)):
                    with _bar("sending") as progress:
                        redriver.send(intended.ready, progress)
                    sent = intended.ready
    finally:
        log.close()
    if as_json:
        _print_json(
            {
                "dry_run": dry_run,
                "sent": len(sent),
                "ready": len(intended.ready),
                "late": intended.n_late,
                "redriven_before": intended.n_redriven,
                "fixed": intended.n_fixed,
                "would_die_again": [
                    {**_summary(each.letter), "reason": each.reason, "place": each.where}
                    for each in intended.hopeless
                ],
            }
        )
    elif dry_run:
        _tell(intended, fixes)
        click.echo("Dry run: nothing was sent.")
    else:
        click.echo(f"Sent {len(sent):,}." if sent else "Nothing was sent.")
    ctx.exit(1 if intended.hopeless else 0)


def _plan(log: KafkaLog, letters: Sequence[Letter], fixes: Fixes, settings: Settings) -> Plan:
    commits = read_commits(settings.kafka, settings.stream.group)
    lateness_ms = round(settings.stream.lateness_s * 1_000)
    watermarks_ms = {number: commit.watermark_ms for number, (_, commit) in commits.items()}
    return plan(
        letters,
        fixes,
        now_ms=time.time_ns() // 1_000_000,
        horizons_ms=[
            watermarks_ms.get(number, 0) - lateness_ms
            for number in range(log.partitions(INTERACTIONS))
        ],
        max_future_ms=round(settings.stream.max_future_s * 1_000),
        max_record_bytes=settings.kafka.max_record_bytes,
    )


def _tell(intended: Plan, fixes: Fixes) -> None:
    """Say what a redrive is about to do."""
    for fix in fixes.fixes:
        click.echo(f"fix {safe(fix.name)}: applies to {intended.n_fixed[fix.name]:,}")
    late = f", {intended.n_late:,} of them too late for the graph" if intended.n_late else ""
    click.echo(f"{len(intended.ready):,} can be sent{late}")
    click.echo(f"{intended.n_redriven:,} were redriven before")
    groups: dict[tuple[str, str], list[Hopeless]] = {}
    for each in intended.hopeless:
        groups.setdefault((each.reason.partition(":")[0], each.where), []).append(each)
    click.echo(f"{len(intended.hopeless):,} would die again and are not sent")
    for (reason, where), those in groups.items():
        places = ", ".join(f"{e.letter.partition}:{e.letter.position}" for e in those[:_SHOWN])
        more = ", ..." if len(those) > _SHOWN else ""
        click.echo(safe(f"  {len(those):,} {reason} at {where} ({places}{more}), the first:"))
        click.echo(safe(f"    {those[0].reason}"))


def _read(settings: Settings, *, as_json: bool) -> list[Letter]:
    """Return all letters, oldest first."""
    log = KafkaLog(settings.kafka)
    try:
        with _bar("reading") as progress:
            gathered = read_letters(log, progress)
    finally:
        log.close()
    if gathered.n_foreign and not as_json:
        told = f"{gathered.n_foreign:,} records of {DEAD} are no dead letters of ours; left out"
        click.echo(told, err=True)
    return gathered.letters()


@contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on a terminal while something is read or sent."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _summary(letter: Letter) -> dict[str, Any]:
    return {
        "letter": f"{letter.partition}:{letter.position}",
        "time_ms": letter.time_ms,
        "reason": letter.reason,
        "message": letter.dead.reason,
        "place": letter.dead.where,
        "origin": _origin(letter),
        "user_id": letter.user_id,
        "redriven": letter.redriven,
    }


def _origin(letter: Letter) -> str:
    return f"{letter.dead.topic}:{letter.dead.partition}:{letter.dead.offset}"


def safe(text: str, *, newlines: bool = False) -> str:
    r"""Return text that cannot steer a terminal: what is not printable is written as an escape.

    Examples
    --------
    >>> safe("caf\u00e9 \x1b[31mred\n")
    'café \\x1b[31mred\\n'

    """
    return "".join(
        one
        if one.isprintable() or (newlines and one == "\n")
        else one.encode("unicode_escape").decode()
        for one in text
    )


def safe_bytes(value: bytes) -> str:
    r"""Return bytes as text, with escapes for what is none.

    Examples
    --------
    >>> safe_bytes(b"712"), safe_bytes(b"\xff\x00")
    ('712', '\\xff\\x00')

    """
    return safe(value.decode(errors="backslashreplace"))


def hex_dump(value: bytes) -> str:
    r"""Return sixteen bytes a line: where, in hex, and as far as they can be printed.

    Examples
    --------
    >>> print(hex_dump(b"\xff\xfe{1}"))
    00000000  ff fe 7b 31 7d                                   ..{1}

    """
    lines = []
    for first in range(0, len(value), 16):
        part = value[first : first + 16]
        printed = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        lines.append(f"{first:08x}  {part.hex(' '):47}  {printed}")
    return "\n".join(lines)


def _text_of(value: bytes) -> str | None:
    """Return bytes as text if they are text: UTF-8, and no control characters but white space."""
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return None
    return text if all(one.isprintable() or one in "\n\r\t" for one in text) else None


def _date(ts_ms: int) -> str:
    return datetime.fromtimestamp(ts_ms / 1_000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _print(shown: Table) -> None:
    """Print a table: as wide as the terminal, and without cuts where there is none."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(shown)


def _print_json(told: dict[str, Any]) -> None:
    click.echo(json.dumps(told))
