"""Public logs as interactions in time order."""

from __future__ import annotations

import re
from pathlib import Path

from replay.datasets.base import Chunk, Dataset
from replay.datasets.events import Events
from replay.datasets.folders import must_exist
from replay.datasets.kuairand import SIZES, KuaiRand
from replay.datasets.ratings import Ratings, parse_columns
from replay.datasets.sources import first_lines, is_parquet
from replay.datasets.tables import open_table
from replay.datasets.zvuk import Zvuk
from stream.errors import BadSettings

__all__ = [
    "DATASETS",
    "Chunk",
    "Dataset",
    "Events",
    "KuaiRand",
    "Ratings",
    "Zvuk",
    "guess_dataset",
    "open_dataset",
    "sample_path",
]

DATASETS = (*(f"kuairand-{size}" for size in SIZES), "ratings", "zvuk", "events")
"""Layouts by the names that ``--dataset`` takes."""


def sample_path() -> Path:
    """Return the folder of the log that ships with the project: KuaiRand-Pure, ten days of it."""
    return Path(__file__).parent / "sample" / "kuairand-pure"


def open_dataset(
    name: str,
    path: Path | str | None = None,
    *,
    columns: str | None = None,
    scale: float | None = None,
    limit: int | None = None,
    spill: Path | None = None,
) -> Dataset:
    """Open a log; nothing but the beginning of its files is read yet.

    Parameters
    ----------
    name
        One of :data:`DATASETS`.
    path
        Folder or file; None opens the log that ships with the project.
    columns
        For ratings: ``user=..,item=..,rating=..,time=..``, where the names do not tell.
    scale
        For ratings: the greatest of the scale, where it is not the greatest of the log.
    limit
        Keep the first events in time order only.
    spill
        Folder for what does not fit into memory; default the system's temporary folder.

    Raises
    ------
    BadData
        If the log cannot be read as that layout.
    BadSettings
        If there is no such layout, or a setting does not belong to it.

    Examples
    --------
    >>> log = open_dataset("kuairand-pure", limit=1_000)
    >>> sum(chunk.frame.height for chunk in log.chunks())
    1000

    """
    if name not in DATASETS:
        raise BadSettings(f'dataset: wanted one of {", ".join(DATASETS)}, got "{name}"')
    if name != "ratings" and (columns is not None or scale is not None):
        raise BadSettings(f"--columns and --scale are for --dataset ratings; {name} needs neither")
    if scale is not None and not 0 < scale < float("inf"):
        raise BadSettings(f"scale: wanted the greatest rating of the scale, above 0, got {scale}")
    if limit is not None and limit < 1:
        raise BadSettings(f"limit: wanted at least 1 event, got {limit}")
    if path is None and name != "kuairand-pure":
        raise BadSettings(f"dataset {name}: wanted --path, as only kuairand-pure ships with us")
    place = sample_path() if path is None else Path(path)
    if name == "ratings":
        mapped = parse_columns(columns) if columns else None
        return Ratings(place, columns=mapped, scale=scale, limit=limit, spill=spill)
    if name == "zvuk":
        return Zvuk(place, limit=limit, spill=spill)
    if name == "events":
        return Events(place, limit=limit, spill=spill)
    return KuaiRand(place, size=name.removeprefix("kuairand-"), limit=limit, spill=spill)


def guess_dataset(path: Path | str) -> str:
    """Return the layout that a folder or file looks like, from names and columns.

    Raises
    ------
    BadData
        If there is nothing, or nothing that looks like a log.

    Examples
    --------
    >>> guess_dataset(sample_path())
    'kuairand-pure'

    """
    place = Path(path)
    if must_exist(place).is_dir():
        folder = place / "data" if (place / "data").is_dir() else place
        names = " ".join(sorted(entry.name for entry in folder.iterdir()))
        if match := re.search(r"log_standard_\S*_(pure|1k|27k)(?=[_.])", names):
            return f"kuairand-{match[1]}"
        if "zvuk" in names:
            return "zvuk"
        return "events" if ".jsonl" in names or ".ndjson" in names else "ratings"
    if not is_parquet(place) and first_lines(place, 1)[0].startswith("{"):
        return "events"
    columns = open_table(place).columns
    if "video_id" in columns:
        sizes = [size for size in SIZES if f"_{size}" in place.name]
        return f"kuairand-{sizes[0] if sizes else SIZES[0]}"
    return "zvuk" if "track_id" in columns else "ratings"
