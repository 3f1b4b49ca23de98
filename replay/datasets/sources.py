"""Files, plain or packed, as blocks of rows: bounded memory, line numbers, nothing lost.

Text goes through as lines. Lines are split at the separator, many at once; only lines that hold a
quote go through the CSV parser of the standard library. What is not a proper line stays in the
block, marked with the reason, so that it can become a dead letter with its original bytes.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import polars as pl
import zstandard

from stream.errors import BadData

BLOCK_BYTES = 8 << 20
"""Text is read in pieces of this size, so that a file of any size needs the same memory."""

PARQUET_ROWS = 131_072
"""Rows of a Parquet file that are read at a time."""

_PACKED_BYTES = 256 << 10
_QUOTE = '"'
_BOM = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


class Block(NamedTuple):
    """Some rows of one file, in the order of the file.

    ``frame`` has the columns of the file (strings where it is text), and beside them ``.line`` (the
    number of the line or row, from 1), ``.raw`` (text only: the line as it came, bytes) and
    ``.broken`` (why the line is no row at all, null for a good one).
    """

    file: Path
    frame: pl.DataFrame
    read_bytes: int
    """How much of the file on disk has been read so far."""


def is_parquet(path: Path) -> bool:
    """Tell whether the file is Parquet, by its name."""
    return path.suffix in {".parquet", ".pq"}


def _unpacked(disk: IO[bytes]) -> Iterator[bytes]:
    """Yield the content of a plain, gzip or zstd file (known by its first bytes) piece by piece."""
    magic = disk.read(4)
    disk.seek(0)
    if magic == b"\x28\xb5\x2f\xfd":
        yield from _unpacked_zstd(disk)
        return
    stream = gzip.GzipFile(fileobj=disk) if magic[:2] == b"\x1f\x8b" else disk
    while piece := stream.read(BLOCK_BYTES):
        yield piece


def _unpacked_zstd(disk: IO[bytes]) -> Iterator[bytes]:
    frame = zstandard.ZstdDecompressor().decompressobj()
    packed = b""
    while packed := packed or disk.read(_PACKED_BYTES):
        if frame.eof:  # one file may be several frames, one after the other
            frame = zstandard.ZstdDecompressor().decompressobj()
        yield frame.decompress(packed)
        packed = frame.unused_data
    if not frame.eof:
        raise EOFError("it ends in the middle")


def first_lines(path: Path, n: int) -> list[str]:
    """Return up to ``n`` first lines, without their ends and without a byte order mark.

    Raises
    ------
    BadData
        If the file is empty, packed but torn, or not UTF-8 text.

    """
    blocks = text_blocks(path)
    found = next(blocks, None)
    if found is None:
        raise BadData(f"{path}: wanted a log, got an empty file")
    lines = [line for line in found[0].split(b"\n", n + 8) if line.strip()][:n]
    if not lines:
        raise BadData(f"{path}: wanted a log, got an empty file")
    return [line.decode("utf-8", "replace").rstrip("\r") for line in lines]


def text_blocks(path: Path) -> Iterator[tuple[bytes, int]]:
    """Yield whole lines, about ``BLOCK_BYTES`` at a time, and how much of the file is read.

    Raises
    ------
    BadData
        If the file is torn, or no UTF-8 text.

    """
    with path.open("rb") as disk:
        rest, start = b"", True
        pieces = _unpacked(disk)
        while True:
            try:
                piece = next(pieces, None)
            except (EOFError, OSError, zlib.error, zstandard.ZstdError) as error:
                raise BadData(
                    f"{path}: the packed file is torn or damaged ({error}); fetch it again"
                ) from error
            if piece is None:
                break
            if start and piece.startswith(_UTF16):
                raise BadData(f"{path}: wanted UTF-8 text, got UTF-16; convert it with iconv")
            rest += piece.removeprefix(_BOM) if start else piece
            start = False
            end = rest.rfind(b"\n") + 1
            if not end and len(rest) > 4 * BLOCK_BYTES:
                raise BadData(f"{path}: wanted lines of text, got a line of more than 32 MiB")
            if end >= BLOCK_BYTES // 2:
                yield rest[:end], disk.tell()
                rest = rest[end:]
        if rest:
            yield rest, disk.tell()


def split_blocks(path: Path, *, separator: str, columns: list[str], skip: int) -> Iterator[Block]:
    """Yield the rows of a separated text file.

    Parameters
    ----------
    path
        Plain, gzip or zstd.
    separator
        Text between two fields, of any length.
    columns
        Names of the fields, in order.
    skip
        Lines to leave out at the start: 1 where there is a header.

    """
    line_no = 1
    for data, read_bytes in text_blocks(path):
        lines = line_frame(data).with_row_index(".line", offset=line_no)
        line_no += lines.height
        lines = lines.filter((pl.col(".line") > skip) & (pl.col(".raw").bin.size() > 0))
        yield Block(path, _split(lines, separator, columns), read_bytes)


def line_frame(data: bytes) -> pl.DataFrame:
    r"""Cut bytes into lines: ``line`` (text), ``.raw`` (bytes) and ``.broken`` (why it is no text).

    Examples
    --------
    >>> line_frame(b"a,b\r\n\xff,d\n")[".broken"].to_list()
    [None, 'not UTF-8 text']

    """
    try:
        frame = pl.read_lines(io.BytesIO(data))
        return frame.with_columns(
            pl.col("line").cast(pl.Binary).alias(".raw"),
            pl.lit(None, dtype=pl.String).alias(".broken"),
        )
    except pl.exceptions.ComputeError:
        raw = [line.removesuffix(b"\r") for line in data.removesuffix(b"\n").split(b"\n")]
        text = [line.decode("utf-8", "replace") for line in raw]
        whole = [line.encode() == was for line, was in zip(text, raw, strict=True)]
        broken = [None if ok else "not UTF-8 text" for ok in whole]
        schema = {"line": pl.String, ".raw": pl.Binary, ".broken": pl.String}
        return pl.DataFrame({"line": text, ".raw": raw, ".broken": broken}, schema=schema)


def _split(lines: pl.DataFrame, separator: str, columns: list[str]) -> pl.DataFrame:
    quoted = pl.col("line").str.contains(_QUOTE, literal=True)
    if len(separator) == 1 and lines.select(quoted.any()).item():
        parts = [_split_plain(lines.filter(~quoted), separator, columns)]
        parts.append(_split_quoted(lines.filter(quoted), separator, columns))
        return pl.concat(parts).sort(".line")
    return _split_plain(lines, separator, columns)


def _split_plain(lines: pl.DataFrame, separator: str, columns: list[str]) -> pl.DataFrame:
    n_fields = pl.col("line").str.count_matches(separator, literal=True) + 1
    fields = pl.col("line").str.split_exact(separator, len(columns) - 1)
    return lines.select(
        ".line",
        ".raw",
        pl.coalesce(
            ".broken",
            pl.when(n_fields != len(columns)).then(
                pl.format(f"wanted {len(columns)} fields, got {{}}", n_fields)
            ),
        ).alias(".broken"),
        fields.struct.rename_fields(columns).struct.unnest(),
    )


def _split_quoted(lines: pl.DataFrame, separator: str, columns: list[str]) -> pl.DataFrame:
    rows: list[list[str | None]] = []
    broken: list[str | None] = []
    for line, reason in zip(lines["line"], lines[".broken"], strict=True):
        try:
            fields = next(csv.reader([line], delimiter=separator, strict=True))
        except csv.Error as error:
            fields, reason = [], reason or f"bad quoting: {error}"
        if not reason and len(fields) != len(columns):
            reason = f"wanted {len(columns)} fields, got {len(fields)}"
        broken.append(reason)
        rows.append([None] * len(columns) if reason else list(fields))
    named = pl.DataFrame(rows, schema=dict.fromkeys(columns, pl.String), orient="row")
    marks = pl.Series(".broken", broken, dtype=pl.String)
    return pl.concat([lines.select(".line", ".raw"), marks.to_frame(), named], how="horizontal")


def parquet_blocks(path: Path, *, columns: list[str]) -> Iterator[Block]:
    """Yield the named columns of a Parquet file, with ``.raw`` null."""
    size = path.stat().st_size
    total = parquet_height(path)
    for start in range(0, total, PARQUET_ROWS):
        frame = pl.scan_parquet(path).select(columns).slice(start, PARQUET_ROWS).collect()
        yield Block(
            path,
            frame.with_row_index(".line", offset=start + 1).with_columns(
                pl.lit(None, dtype=pl.Binary).alias(".raw"),
                pl.lit(None, dtype=pl.String).alias(".broken"),
            ),
            size * min(start + PARQUET_ROWS, total) // total,
        )


def parquet_height(path: Path) -> int:
    """Return the number of rows of a Parquet file, from its foot."""
    return int(pl.scan_parquet(path).select(pl.len()).collect().item())


def parquet_columns(path: Path) -> list[str]:
    """Return the column names of a Parquet file.

    Raises
    ------
    BadData
        If it is no Parquet file, or a torn one.

    """
    try:
        return list(pl.read_parquet_schema(path))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise BadData(f"{path}: wanted a Parquet file, got something else or a torn one") from error
