"""The doctor tells what is there, what is not, and how to get it."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from deploy.doctor import Finding, examine_packages, examine_programs
from tidegraph import main


def test_packages_are_compared_with_the_versions_that_were_tested() -> None:
    requirements = ["NumPy>=2.0", "no_such-package>=1", "redis", "pytest; extra == 'dev'"]
    assert examine_packages(requirements, {"numpy": "0.1", "no-such-package": "1.2"}) == [
        Finding(
            name="numpy",
            state="differs",
            found=np.__version__,
            needed=True,
            advice="tested with 0.1",
        ),
        Finding(
            name="no-such-package",
            state="missing",
            found="",
            needed=True,
            advice="pip install no-such-package==1.2",
        ),
        Finding(name="redis", state="ok", found=metadata.version("redis"), needed=False),
    ]


def test_a_program_that_is_missing_comes_with_the_way_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    findings = {finding.name: finding for finding in examine_programs()}
    assert {finding.state for finding in findings.values()} == {"missing"}
    assert "apt-get install redis-server" in findings["redis-server"].advice


def test_docker_without_an_engine_counts_as_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "docker"
    monkeypatch.setenv("PATH", str(tmp_path))
    states = []
    for status in (1, 0):
        program.write_text(f"#!/bin/sh\nexit {status}\n")
        program.chmod(0o755)
        states += [one.state for one in examine_programs() if one.name == "docker"]
    assert states == ["missing", "ok"]


def test_this_environment_is_ready_and_says_what_will_compute() -> None:
    result = CliRunner().invoke(main, ["doctor", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.output)
    assert report["ready"] is True
    assert report["machine"]["device"] in {"cpu", "cuda"}
    assert report["machine"]["memory_mb"] > 100
    assert "torch" in [finding["name"] for finding in report["packages"]]


def test_a_missing_package_that_the_embedded_run_needs_is_a_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metadata, "requires", lambda _: ["no-such-package>=1"])
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 1
    assert (
        "missing  no-such-package                pip install 'no-such-package>=1'" in result.output
    )
    assert "Not ready" in result.output
