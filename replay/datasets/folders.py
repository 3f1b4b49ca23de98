"""Finding the files of a layout in a folder, and saying what is there when they are not."""

from __future__ import annotations

import os
from pathlib import Path

from stream.errors import BadData

PACKS = ("", ".gz", ".zst")


def must_exist(path: Path) -> Path:
    """Return the path, or refuse one that leads nowhere or is closed to us.

    Raises
    ------
    BadData
        If there is neither file nor folder, or it may not be read.

    """
    if not path.exists():
        raise BadData(f"{path}: wanted a log file or a folder of log files, but nothing is there")
    if not os.access(path, os.R_OK):
        raise BadData(
            f"{path}: wanted a log, but this user may not read it; change its permissions"
        )
    return path


def listing(folder: Path, *, most: int = 12) -> str:
    """Say what a folder holds.

    Examples
    --------
    >>> from replay.datasets import sample_path
    >>> "LICENSE" in listing(sample_path())
    True

    """
    names = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
    told = ", ".join(names[:most]) + (f" and {len(names) - most} more" if names[most:] else "")
    return told or "nothing"


def unpacked_first(paths: list[Path]) -> list[Path]:
    """Sort by name, and keep one of a file that lies there both plain and packed.

    Examples
    --------
    >>> [path.name for path in unpacked_first([Path("b.csv"), Path("a.csv.gz"), Path("a.csv")])]
    ['a.csv', 'b.csv']

    """
    kept: dict[str, Path] = {}
    for path in sorted(paths):
        stem = path.name.removesuffix(".gz").removesuffix(".zst").removesuffix(".parquet")
        kept.setdefault(stem.removesuffix(".csv"), path)
    return list(kept.values())
