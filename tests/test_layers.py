"""The rooms know only the rooms below them, and the contract that says so can fail."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house import ROOMS, ROOT


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", program, "--no-cache"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_contracts_hold() -> None:
    ran = lint_imports(ROOT)
    assert ran.returncode == 0, ran.stdout


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("stream", "import graph_store"),
        ("graph_store", "import serving"),
        ("serving", "import graph_store"),
        ("serving", "import torch"),
        ("learner", "import faust"),
        ("learner", "import replay"),
        ("deploy", "import tidegraph"),
    ],
)
def test_an_import_against_the_layers_is_found(tmp_path: Path, room: str, line: str) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for name in ROOMS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(line if name == room else "")
    ran = lint_imports(tmp_path)
    assert ran.returncode == 1, ran.stdout
    assert "1 broken" in ran.stdout
