"""The doctor tells what is there, what is not, and how to get it."""

from __future__ import annotations

import json
import socket
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from deploy.doctor import Finding, examine_packages, examine_programs, examine_serving
from deploy.service import free_port
from serving.keys import new_key
from stream.settings import ServingSettings, Settings
from tests.certificates import certificates
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


def test_what_only_the_api_needs_is_said_to_be_for_it() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metadata, "version", missing)
        (found,) = examine_packages(["Falcon>=4"], {})
    assert (found.needed, found.advice) == (False, "for `tidegraph serve`: pip install 'Falcon>=4'")


def missing(name: str) -> str:
    raise metadata.PackageNotFoundError(name)


def serving(**given: Any) -> dict[str, Finding]:
    usual: dict[str, Any] = {"port": free_port(), "keys_file": ""}
    settings = Settings(serving=ServingSettings(**(usual | given)))
    return {finding.name: finding for finding in examine_serving(settings)}


def test_what_serving_needs_is_there_or_told_with_what_to_do(tmp_path: Path) -> None:
    made = certificates(tmp_path)
    keys = tmp_path / "keys.json"
    new_key(keys, "a", "reader")
    made.key.chmod(0o600)
    tls = {"cert_file": str(made.certificate), "key_file": str(made.key)}
    found = serving(keys_file=str(keys), **tls)
    assert {finding.state for finding in found.values()} == {"ok"}
    assert found["serving"].found == "can start, with TLS"
    assert found["serving.keys_file"].found == f"{keys} (0600)"
    keys.chmod(0o606)
    made.key.chmod(0o640)
    found = serving(keys_file=str(keys), **tls)
    assert found["serving.key_file"].state == "ok"
    assert found["serving.keys_file"].state == "wrong"
    assert f"chmod 600 {keys}" in found["serving.keys_file"].advice
    broken = serving(cert_file=str(keys), key_file=str(made.key))["serving"]
    assert broken.state == "wrong"
    assert "want a certificate and its key in PEM" in broken.advice
    assert "tidegraph keys new" in serving(host="0.0.0.0")["serving"].advice


def test_a_port_that_another_program_has_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        found = serving(port=other.getsockname()[1])["serving.port"]
    assert found.state == "wrong"
    assert "another program listens there" in found.advice
    assert serving()["serving.port"].state == "ok"


def test_settings_that_cannot_be_read_are_told_beside_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "tidegraph.toml"
    path.write_text("[serving]\nport = 'many'\n")
    result = CliRunner().invoke(main, ["doctor", "--config", str(path)])
    assert result.exit_code == 0, result.output
    assert "wrong    settings" in result.output
    assert "serving.port" in result.output


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
