"""The files of the project, as the tests of the house see them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
ROOMS: Final = ("stream", "graph_store", "learner", "replay", "serving", "deploy")

_GENERATED: Final = {"out", "var", "build", "dist", "htmlcov", "__pycache__"}
_HIDDEN_BUT_OURS: Final = {".ci", ".gitignore"}


def files() -> Iterator[Path]:
    """Yield every file that somebody wrote, without asking git, which may not be there."""
    for folder, folders, names in os.walk(ROOT):
        folders[:] = sorted(name for name in folders if _is_ours(name))
        yield from (Path(folder, name) for name in sorted(names) if _is_ours(name))


def _is_ours(name: str) -> bool:
    if name.startswith("."):
        return name in _HIDDEN_BUT_OURS
    return name not in _GENERATED and not name.endswith((".pyc", ".nbi", ".nbc", ".egg-info"))
