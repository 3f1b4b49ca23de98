"""Our own format: JSON lines, each a record of the topic ``interactions`` (docs/events.md)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import polars as pl

from replay.datasets.base import Dataset
from replay.datasets.folders import listing, must_exist, unpacked_first
from replay.datasets.rows import DEAD, NO_TIME
from replay.datasets.sources import Block, line_frame, text_blocks
from replay.datasets.times import must_be_ms, unit_of
from stream.errors import BadData, BadEvent
from stream.events import Erasure, Interaction, Retraction, decode_interaction

_FILE = re.compile(r".*\.(?:jsonl|ndjson|json)(?:\.gz|\.zst)?")
_LOOKED_AT = 1_000


class _Time(msgspec.Struct):
    ts_ms: float | None = None


class Events(Dataset):
    """Records as they travel in the log.

    The bytes of each line go through unchanged (column ``record``). A retraction has its place in
    time as an event has, and a value in the column ``retracts``. An erasure has no time, so it
    cannot be replayed.

    Parameters
    ----------
    path
        A file of JSON lines, or a folder of such files.
    limit
        Keep the first events in time order only.
    spill
        Folder for what does not fit into memory.

    Raises
    ------
    BadData
        If there is no such file, or the times are not milliseconds.

    """

    name = "events"
    rules = "default"

    def __init__(self, path: Path, *, limit: int | None = None, spill: Path | None = None) -> None:
        super().__init__(_find_files(must_exist(path)), limit=limit, spill=spill)
        for file in self.files:
            self.n_rows += _look_at(file)
        self.n_rows = min(self.n_rows, limit or self.n_rows)
        first = self.rows(next(self.blocks()))
        names = [name for name in first.columns if name.startswith("signals.")]
        self.signals = tuple(name.removeprefix("signals.") for name in names)

    def blocks(self) -> Iterator[Block]:
        """Yield the raw lines of all files."""
        for file in self.files:
            line_no = 1
            for data, read_bytes in text_blocks(file):
                lines = line_frame(data).with_row_index(".line", offset=line_no)
                line_no += lines.height
                yield Block(file, lines.filter(pl.col("line").str.strip_chars() != ""), read_bytes)

    def rows(self, block: Block) -> pl.DataFrame:
        """Turn a block into rows, with the columns ``record`` and ``retracts`` beside."""
        events: list[dict[str, object]] = []
        signals: list[dict[str, float]] = []
        for line_no, raw in block.frame.select(".line", ".raw").iter_rows():
            try:
                event = _decode(raw)
            except BadEvent as error:
                where = f"{block.file.name} line {line_no}, {error.where}"
                events.append({".where": where, ".reason": error.reason, ".raw": raw})
                signals.append({})
                continue
            row = {name: getattr(event, name) for name in _PLAIN}
            retracts = event.retracts if isinstance(event, Retraction) else None
            events.append({**row, "record": raw, "retracts": retracts})
            signals.append(event.signals if isinstance(event, Interaction) else {})
        frame = pl.DataFrame(events, schema=_SCHEMA)
        names = sorted({name for mapping in signals for name in mapping})
        values = pl.DataFrame(signals, schema=dict.fromkeys(names, pl.Float64)).fill_null(0.0)
        return frame.with_columns(
            pl.col("event_id", "user_id", "item_id").fill_null(""),
            pl.col("ts_ms").fill_null(NO_TIME),
            *(values[name].alias(f"signals.{name}") for name in names),
        )

    def finish(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Give signals that a part of the log never had their 0."""
        return frame.with_columns(pl.col("^signals\\..*$").fill_null(0.0))


def _decode(raw: bytes) -> Interaction | Retraction:
    event = decode_interaction(raw)
    if isinstance(event, Erasure):
        reason = "invalid: an erasure has no time, so it cannot be replayed"
        raise BadEvent(reason, "$.erase_user")
    return event


_PLAIN = ("event_id", "user_id", "item_id", "ts_ms")
_SCHEMA = {
    "event_id": pl.String,
    "user_id": pl.String,
    "item_id": pl.String,
    "ts_ms": pl.Int64,
    "record": pl.Binary,
    "retracts": pl.String,
    **DEAD,
}


def _look_at(file: Path) -> int:
    """Refuse a file without a record or in another unit of time; return its lines, estimated."""
    found = next(text_blocks(file), None)
    if found is None:
        raise BadData(f"{file}: wanted JSON lines, got an empty file")
    data, read_bytes = found
    decoder = msgspec.json.Decoder(_Time)
    times: list[float] = []
    for line in data.split(b"\n", _LOOKED_AT)[:_LOOKED_AT]:
        try:
            ts_ms = decoder.decode(line).ts_ms
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
        if ts_ms is not None:
            times.append(ts_ms)
    if not times:
        start = data[:80].decode("utf-8", "replace").partition("\n")[0]
        raise BadData(
            f'{file}: wanted JSON lines such as {{"v":1,"event_id":"..","ts_ms":1650812741436,..}},'
            f" got {start}"
        )
    frame = pl.DataFrame({"ts_ms": times})
    place = f"{file}, ts_ms"
    must_be_ms(unit_of(frame, "ts_ms", place=place), place=place, example=f"{times[0]:.0f}")
    n_lines = data.count(b"\n") + (data[-1:] != b"\n")
    return n_lines * file.stat().st_size // read_bytes


def _find_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    found = unpacked_first([file for file in path.iterdir() if _FILE.fullmatch(file.name)])
    if not found:
        raise BadData(f"{path}: wanted files of JSON lines (.jsonl), got {listing(path)}")
    return found
