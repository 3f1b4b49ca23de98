"""What is installed is what was written, under names that nobody else owns."""

from __future__ import annotations

import importlib
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from tests.house import ROOMS, ROOT, files

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


@pytest.mark.parametrize("name", [*ROOMS, "tidegraph"])
def test_no_installed_distribution_owns_one_of_our_names(name: str) -> None:
    owners = set(metadata.packages_distributions().get(name, []))
    assert owners <= {"tidegraph"}, f"{name} is also installed by {owners}"
    module = importlib.import_module(name)
    assert module.__file__ is not None
    assert Path(module.__file__).is_relative_to(ROOT)


def test_the_wheel_contains_every_file_of_the_rooms_and_nothing_else(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    (wheel,) = tmp_path.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    paths = (path.relative_to(ROOT) for path in files())
    assert packed == {"tidegraph.py"} | {str(path) for path in paths if path.parts[0] in ROOMS}
    assert {Path(name).suffix for name in packed} > {".py", ".toml"}


def test_the_command_tells_its_version() -> None:
    ran = subprocess.run(
        [Path(sys.executable).with_name("tidegraph"), "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout == f"tidegraph {PROJECT['version']}\n"


def test_the_project_cannot_be_uploaded_by_mistake() -> None:
    assert "Private :: Do Not Upload" in PROJECT["classifiers"]


def test_every_required_package_has_a_tested_version() -> None:
    from deploy.doctor import CONSTRAINTS, examine_packages, pinned

    tested = pinned(CONSTRAINTS.read_text("utf-8"))
    findings = examine_packages(PROJECT["dependencies"], tested)
    assert {finding.name for finding in findings} <= set(tested)
