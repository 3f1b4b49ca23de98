"""KuaiRand-Pure, -1K and -27K in their official layouts.

Read are the standard logs. The log of randomly exposed videos is another experiment (what is shown
does not depend on the user) and is read only when it is named as the file. The statistics of videos
(``video_features_statistic*``) cover the whole period, hence the future of every event, and are
never opened.

Gao et al., *KuaiRand: An Unbiased Sequential Recommendation Dataset with Randomly Exposed Videos*,
CIKM 2022.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from replay.datasets.base import Dataset
from replay.datasets.folders import listing, must_exist, unpacked_first
from replay.datasets.rows import Check, build_rows, number, number_checks, text
from replay.datasets.sources import Block
from replay.datasets.tables import Table, open_table
from replay.datasets.times import Unit, example_of, must_be_ms, to_ms, unit_of
from stream.errors import BadData

SIGNALS = {
    "click": "is_click",
    "like": "is_like",
    "follow": "is_follow",
    "comment": "is_comment",
    "forward": "is_forward",
    "hate": "is_hate",
    "long_view": "long_view",
    "play_ms": "play_time_ms",
    "duration_ms": "duration_ms",
    "profile_stay_ms": "profile_stay_time",
    "comment_stay_ms": "comment_stay_time",
    "profile_enter": "is_profile_enter",
    "is_rand": "is_rand",
}
"""Column of the log by wire name of the signal."""

SIZES = ("pure", "1k", "27k")

_COLUMNS = ("user_id", "video_id", "time_ms", *SIGNALS.values())
_PACK = r"(?:\.csv|\.csv\.gz|\.csv\.zst|\.parquet)"
_LOG = re.compile(rf"log_standard_\d+_\d+_to_\d+_\d+_(pure|1k|27k)(?:_part\d+)?{_PACK}")
_FEATURES = re.compile(rf"video_features_basic_(pure|1k|27k){_PACK}")


class KuaiRand(Dataset):
    """The standard logs of one of the three KuaiRand data sets.

    Parameters
    ----------
    path
        The folder of the log files (or the one above it), or a single log file of any name.
    size
        ``pure``, ``1k`` or ``27k``.
    limit
        Keep the first events in time order only.
    spill
        Folder for what does not fit into memory.

    Raises
    ------
    BadData
        If there is no such log, a column is missing, or the times are not milliseconds.

    Examples
    --------
    >>> from replay.datasets import sample_path
    >>> log = KuaiRand(sample_path(), size="pure", limit=2)
    >>> next(log.chunks()).frame["user_id", "item_id", "ts_ms", "signals.click"].rows()
    [('712', '5239', 1650812741436, 1.0), ('13414', '6831', 1650812934945, 1.0)]

    """

    rules = "kuairand"
    signals = tuple(SIGNALS)
    item_column = "video_id"

    def __init__(
        self, path: Path, *, size: str, limit: int | None = None, spill: Path | None = None
    ) -> None:
        files = _find_logs(must_exist(path), size)
        super().__init__(files, limit=limit, spill=spill)
        self.name = f"kuairand-{size}"
        self.tables = [open_table(file) for file in files]
        for table in self.tables:
            self.n_rows += _look_at(table)
        self.n_rows = min(self.n_rows, limit or self.n_rows)
        beside = [file for file in files[0].parent.iterdir() if _FEATURES.fullmatch(file.name)]
        self.features = next(iter(unpacked_first(beside)), None)
        if path.is_dir():
            for random in sorted(files[0].parent.glob("log_random_*")):
                self.note(f"{random.name} was left out: name the file itself to replay it")

    def blocks(self) -> Iterator[Block]:
        """Yield the raw blocks of all files."""
        for table in self.tables:
            yield from table.blocks(_wanted(table))

    def rows(self, block: Block) -> pl.DataFrame:
        """Turn a block into rows."""
        frame = block.frame
        ts_ms, in_ms = to_ms(frame, "time_ms", Unit.MILLISECONDS)
        checks = [in_ms]
        for column in SIGNALS.values():
            checks += number_checks(frame, column, optional=True)
        # What was played has a length: where the log says 0, it does not know what was shown.
        no_length = number(frame, "duration_ms") == 0
        checks.append(Check("duration_ms", no_length, "a length above 0 ms"))
        return build_rows(
            block,
            user="user_id",
            item="video_id",
            ts_ms=ts_ms,
            signals={name: number(frame, column) for name, column in SIGNALS.items()},
            context={"tab": text(frame, "tab")} if "tab" in frame.columns else {},
            checks=checks,
        )


def _wanted(table: Table) -> tuple[str, ...]:
    return (*_COLUMNS, "tab") if "tab" in table.columns else _COLUMNS


def _look_at(table: Table) -> int:
    """Refuse a file of other columns or another unit of time; return its number of rows."""
    table.require(_COLUMNS)
    frame, n_rows = table.first_look(_wanted(table))
    place = f"{table.path}, column time_ms"
    unit = unit_of(frame, "time_ms", place=place)
    must_be_ms(unit, place=place, example=example_of(frame, "time_ms"))
    return n_rows


def _find_logs(path: Path, size: str) -> list[Path]:
    if path.is_file():
        return [path]
    folder = path / "data" if (path / "data").is_dir() else path
    logs = [file for file in folder.iterdir() if _LOG.fullmatch(file.name)]
    sizes = {match[1] for file in logs if (match := _LOG.fullmatch(file.name))}
    found = [file for file in logs if f"_{size}" in file.name]
    if found:
        return unpacked_first(found)
    if sizes:
        other = ", ".join(f"--dataset kuairand-{name}" for name in sorted(sizes))
        raise BadData(f"{folder}: wanted the logs of KuaiRand-{size}, got others; try {other}")
    raise BadData(
        f"{folder}: wanted files named like log_standard_4_08_to_4_21_{size}.csv (or .csv.gz, "
        f".csv.zst, .parquet), got {listing(folder)}"
    )
