"""``tidegraph serve`` and ``tidegraph embeddings``: answer from what is published, look at it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
from numpy.typing import NDArray

from serving.redis_table import open_table
from serving.rows import Barrier
from serving.table import MemoryTable, Reader, Table
from stream.errors import BadSettings, UserError
from stream.events import Kind
from stream.options import config_option
from stream.settings import Settings, load_settings

_SHOWN = 10


def _shared_options(command: Callable[..., None]) -> Callable[..., None]:
    """Say where the table is and how to print, the same for each command; give it a reader."""

    @wraps(command)
    def with_reader(
        *,
        config: Path | None,
        url: str | None,
        namespace: str | None,
        saved: Path | None,
        **others: Any,
    ) -> None:
        if saved is None:
            settings = load_settings(config).redis
            given = {"url": url, "namespace": namespace}
            given = {name: value for name, value in given.items() if value is not None}
            table: Table = open_table(msgspec.structs.replace(settings, **given))
        else:
            table = MemoryTable.load(saved)
        command(reader=table.reader(), **others)

    shared: Callable[..., None] = with_reader
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for scripts."),
        click.option(
            "--table",
            "saved",
            type=click.Path(path_type=Path),
            help="Read what a replay saved: its --out folder or the file in it.",
        ),
        click.option(
            "--namespace",
            help="Prefix under which the learner publishes in Redis; of the settings if left out.",
        ),
        click.option(
            "--redis",
            "url",
            help="Read the table that a learner publishes at this address; that of the settings "
            "if left out.",
        ),
        click.option(
            "--config",
            type=click.Path(path_type=Path),
            envvar="TIDEGRAPH_CONFIG",
            show_envvar=True,
            help="Settings file that says where the table is; each setting also has a variable, "
            "as TIDEGRAPH_REDIS_URL.",
        ),
    ):
        shared = option(shared)
    return shared


@click.command()
@config_option
@click.option(
    "--demo",
    is_flag=True,
    help="Replay the sample log and go on learning in this process, without Kafka and Redis.",
)
@click.pass_obj
def serve(
    demonstrate: Callable[[Settings], None] | None, config: Path | None, *, demo: bool
) -> None:
    """Answer requests over HTTP from what a learner publishes; take feedback back into Kafka.

    The table is read from Redis into memory and followed. While Redis is away answers come from the
    last good copy, marked as stale; before there is one they are 503. The API is described at
    /openapi.json and, as a page, at /docs; the console is at /. SIGTERM and Ctrl-C end it.

    \b
    Example:
        tidegraph serve --demo
    """
    from serving import server

    settings = load_settings(config)
    if not demo:
        server.serve(settings)
    elif demonstrate is None:
        raise BadSettings("--demo: the rooms that replay and learn are not installed here")
    else:
        demonstrate(settings)


@click.group()
def embeddings() -> None:
    """Look at the published embeddings: a vector, how old it is, what lies near it.

    Neighbours are the ten items with the greatest cosine. They show where a vector points; a
    recommendation adds biases and counts to that.

    \b
    Example:
        tidegraph embeddings user 712
        tidegraph embeddings item 5239 --table out/demo
        tidegraph embeddings similar 5239 --json
    """


@embeddings.command()
@click.argument("user_id")
@_shared_options
def user(user_id: str, reader: Reader, *, as_json: bool) -> None:
    """Show the vector of USER_ID as of the user's last event, and the items near it.

    \b
    Example:
        tidegraph embeddings user 712 --table out/demo
    """
    rows = reader.users([user_id])
    if not rows.ids:
        raise _unknown("user", user_id, reader)
    shown: dict[str, Any] = {"user_id": user_id, "vector": rows.vectors[0].tolist()}
    shown |= _age(int(rows.ts_ms[0]), int(rows.published_ms[0]), reader.barrier())
    shown["seen"] = len(reader.seen([user_id])[user_id])
    shown["recent"] = [
        {"item_id": item_id, "kind": Kind(kind).label, "ts_ms": ts_ms}
        for item_id, kind, ts_ms in rows.recent[0]
    ]
    shown["neighbours"] = _nearest(reader, rows.vectors[0])
    _show(shown, as_json=as_json)


@embeddings.command()
@click.argument("item_id")
@_shared_options
def item(item_id: str, reader: Reader, *, as_json: bool) -> None:
    """Show the vector, the bias and the counts of ITEM_ID, and the items near it.

    \b
    Example:
        tidegraph embeddings item 5239 --redis redis://localhost:6379/0
    """
    rows = reader.items([item_id])
    if not rows.ids:
        raise _unknown("item", item_id, reader)
    shown: dict[str, Any] = {"item_id": item_id, "vector": rows.vectors[0].tolist()}
    barrier = reader.barrier()
    shown |= _age(int(rows.ts_ms[0]), int(rows.published_ms[0]), barrier)
    shown["bias"] = float(rows.biases[0])
    now = rows.counts_at(barrier.at_ms, reader.layout)[0]
    shown["counts"] = [
        {"name": count.name, "half_life_ms": count.half_life_ms, "count": float(value)}
        for count, value in zip(reader.layout.counts, now, strict=True)
    ]
    shown["neighbours"] = _nearest(reader, rows.vectors[0], without=item_id)
    _show(shown, as_json=as_json)


@embeddings.command()
@click.argument("item_id")
@_shared_options
def similar(item_id: str, reader: Reader, *, as_json: bool) -> None:
    """Show what goes with ITEM_ID: by the model's vectors, and by who met both.

    \b
    Example:
        tidegraph embeddings similar 5239 --table out/demo
    """
    rows = reader.items([item_id])
    if not rows.ids:
        raise _unknown("item", item_id, reader)
    shown: dict[str, Any] = {"item_id": item_id}
    shown |= _age(int(rows.ts_ms[0]), int(rows.published_ms[0]), reader.barrier())
    shown["neighbours"] = _nearest(reader, rows.vectors[0], without=item_id)
    listed = reader.covisited([item_id]).get(item_id)
    pairs = [] if listed is None else zip(listed.item_ids, listed.weights.tolist(), strict=True)
    shown["covisited"] = [{"item_id": other, "weight": weight} for other, weight in pairs][:_SHOWN]
    _show(shown, as_json=as_json)


def _unknown(what: str, name: str, reader: Reader) -> UserError:
    items = reader.item_ids()
    examples = ", ".join(items[:3])
    return UserError(
        f"no {what} {name!r} among the published rows of epoch {reader.epoch}, which hold "
        f"{len(items)} items" + (f" ({examples}, ...)" if items else "")
    )


def _age(ts_ms: int, published_ms: int, barrier: Barrier) -> dict[str, int]:
    return {
        "ts_ms": ts_ms,
        "behind_ms": barrier.at_ms - ts_ms,
        "published_ms": published_ms,
        "age_ms": time.time_ns() // 1_000_000 - published_ms,
    }


def _nearest(
    reader: Reader, vector: NDArray[np.float32], without: str | None = None
) -> list[dict[str, Any]]:
    """Return the items with the greatest cosine to ``vector`` (D,)."""
    rows = reader.items([one for one in reader.item_ids() if one != without])
    lengths = np.linalg.norm(rows.vectors, axis=1) * np.linalg.norm(vector)  # (n,)
    products = rows.vectors @ vector
    cosines = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
    best = np.argsort(-cosines, kind="stable")[:_SHOWN]
    return [{"item_id": rows.ids[row], "cosine": float(cosines[row])} for row in best]


def _show(shown: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(shown))
        return
    for name, value in shown.items():
        match name:
            case "user_id" | "item_id":
                click.echo(f"{name} {value}")
            case "vector":
                numbers = " ".join(f"{number:.3f}" for number in value)
                click.echo(f"vector of {len(value)}, length {np.linalg.norm(value):.3f}: {numbers}")
            case "ts_ms":
                click.echo(
                    f"as of {_date(value)}, {_span(shown['behind_ms'])} behind the newest "
                    f"published event; written {_span(shown['age_ms'])} ago"
                )
            case "behind_ms" | "published_ms" | "age_ms":
                pass  # said together with ts_ms
            case _ if isinstance(value, list):
                click.echo(f"{name}:" if value else f"{name}: none")
                for row in value:
                    click.echo("  " + "  ".join(map(_cell, row.values())))
            case _:
                click.echo(f"{name}: {_cell(value)}")


def _cell(value: float | str) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _date(ts_ms: int) -> str:
    return datetime.fromtimestamp(ts_ms / 1_000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _span(ms: int) -> str:
    """Write a span of time in the unit that suits it.

    Examples
    --------
    >>> [_span(ms) for ms in (12, 3_400, 90_000, 7_200_000, 200_000_000)]
    ['12 ms', '3.4 s', '1.5 min', '2.0 h', '2.3 d']

    """
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1_000)):
        if ms >= size:
            return f"{ms / size:.1f} {unit}"
    return f"{ms} ms"
