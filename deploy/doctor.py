"""``tidegraph doctor``: what this machine has, which device it uses, what is missing or wrong."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import stat
import subprocess
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Literal

import click
import msgspec
import psutil

from deploy.readings import Api, ask_api
from deploy.service import listens
from stream.errors import BadSettings, TidegraphError
from stream.options import config_option
from stream.settings import ServingSettings, Settings, load_settings

CONSTRAINTS: Final = Path(__file__).parents[1] / "constraints.txt"
"""The versions that were tested together; only a checkout has them."""

_NOT_FOR_EMBEDDED: Final = {
    "confluent-kafka",
    "faust-streaming",
    "implicit",
    "kafka-python",
    "prometheus-client",
    "redis",
    "river",
}
"""Packages without which a replay in one process still runs, less a baseline or two."""

_FOR_SERVING: Final = {"faiss-cpu", "falcon", "granian", "pyjwt"}
"""Packages that nothing but the API needs, also where it runs in one process with the rest."""

_SECRETS: Final = ("key_file", "keys_file", "jwt_key_file", "pseudonym_key_file")
"""Settings of the API that name files which others must not read or change."""

_OTHERS: Final = stat.S_IRWXO | stat.S_IWGRP

_PROGRAMS: Final = {
    "redis-server": (
        "tests, and a table that other processes read",
        "apt-get install redis-server",
    ),
    "docker": ("containers for tests and for a local system", "see the manual of Docker Engine"),
    "java": ("a local Kafka broker (Java 17 or newer)", "apt-get install default-jre-headless"),
    "mvn": ("fetches that broker, once", "apt-get install maven"),
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked for.

    Parameters
    ----------
    name
        Of the package, program or setting.
    state
        ``differs`` is another version than the tested one, ``wrong`` what cannot work as it is set.
    found
        Its version, place or value, empty where missing.
    needed
        Whether the embedded run needs it.
    advice
        What it is for, or how to get it; empty where there is nothing to do.

    """

    name: str
    state: Literal["ok", "differs", "missing", "wrong"]
    found: str
    needed: bool
    advice: str = ""


def pinned(constraints: str) -> dict[str, str]:
    """Return the versions in the text of a constraints file, by normalised name.

    Examples
    --------
    >>> pinned("# tested\\nTorch_Geometric==2.8.1\\ntriton==3.7.1 ; sys_platform == 'linux'\\n")
    {'torch-geometric': '2.8.1', 'triton': '3.7.1'}

    """
    found = re.findall(r"^([\w.-]+)==([^\s;]+)", constraints, re.MULTILINE)
    return {_normalised(name): version for name, version in found}


def examine_packages(requirements: list[str], tested: dict[str, str]) -> list[Finding]:
    """Compare the installed packages with what is required and with what was tested.

    Parameters
    ----------
    requirements
        As in the metadata of a distribution; those of extras are left out.
    tested
        Versions by normalised name; a package without one is taken as it is.

    """
    findings = []
    for requirement in requirements:
        if "extra ==" in requirement:
            continue
        name = _normalised(re.split(r"[^\w.-]", requirement, maxsplit=1)[0])
        needed = name not in _NOT_FOR_EMBEDDED | _FOR_SERVING
        wanted = tested.get(name, "")
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            get = f"pip install {name}=={wanted}" if wanted else f"pip install '{requirement}'"
            get = f"for `tidegraph serve`: {get}" if name in _FOR_SERVING else get
            findings.append(
                Finding(name=name, state="missing", found="", needed=needed, advice=get)
            )
            continue
        differs = wanted not in {"", found}
        findings.append(
            Finding(
                name=name,
                state="differs" if differs else "ok",
                found=found,
                needed=needed,
                advice=f"tested with {wanted}" if differs else "",
            )
        )
    return findings


def examine_programs() -> list[Finding]:
    """Look for the programs that other runs than the embedded one use."""
    findings = []
    for name, (use, get) in _PROGRAMS.items():
        place = shutil.which(name)
        if place is None:
            advice = f"for {use}: {get}"
            findings.append(
                Finding(name=name, state="missing", found="", needed=False, advice=advice)
            )
        elif name == "docker" and not _runs(["docker", "info"]):
            advice = f"for {use}: {place} is there, but no engine answers; start it"
            findings.append(
                Finding(name=name, state="missing", found="", needed=False, advice=advice)
            )
        else:
            findings.append(Finding(name=name, state="ok", found=place, needed=False))
    return findings


def examine_serving(settings: Settings) -> list[Finding]:
    """Look whether the API could be started with these settings, and whether its secrets are."""
    serving = settings.serving
    return [
        _port(serving),
        _safety(settings),
        *(_secret(name, Path(path)) for name in _SECRETS if (path := getattr(serving, name))),
    ]


def _port(serving: ServingSettings) -> Finding:
    where = f"{serving.host}:{serving.port}"
    name = "serving.port"
    if not serving.port or not listens(serving.host, serving.port):
        return Finding(name=name, state="ok", found=f"{where} is free", needed=False)
    if isinstance(ask_api(serving), Api):
        return Finding(name=name, state="ok", found=f"{where} is the API's", needed=False)
    advice = "another program listens there; set another port, or 0 for any"
    return Finding(name=name, state="wrong", found=where, needed=False, advice=advice)


def _safety(settings: Settings) -> Finding:
    """Return whether everything else lets the API start: TLS, keys, tokens, rules."""
    from serving.server import checked  # only here: it brings the server along

    serving = msgspec.structs.replace(settings.serving, port=0)  # it has a finding of its own
    try:
        checked(msgspec.structs.replace(settings, serving=serving))
    except TidegraphError as error:
        return Finding(name="serving", state="wrong", found="", needed=False, advice=str(error))
    tls = "with TLS" if serving.cert_file else "without TLS"
    return Finding(name="serving", state="ok", found=f"can start, {tls}", needed=False)


def _secret(name: str, path: Path) -> Finding:
    """Return whether a file is its owner's alone; its group may read it."""
    name = f"serving.{name}"
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return Finding(name=name, state="ok", found="not there", needed=False)
    except OSError as error:
        advice = f"{path}: {error.strerror}"
        return Finding(name=name, state="wrong", found="", needed=False, advice=advice)
    found = f"{path} ({stat.S_IMODE(mode):04o})"
    if mode & _OTHERS:
        advice = f"others can read or change it: chmod 600 {path}"
        return Finding(name=name, state="wrong", found=found, needed=False, advice=advice)
    return Finding(name=name, state="ok", found=found, needed=False)


def examine_machine() -> dict[str, Any]:
    """Tell what will compute: a GPU that torch can use, or else the CPU."""
    memory = psutil.virtual_memory()
    machine: dict[str, Any] = {
        "device": "cpu",
        "device_name": platform.processor() or platform.machine(),
        "cores": psutil.cpu_count() or os.cpu_count(),
        "memory_mb": memory.total >> 20,
        "available_mb": memory.available >> 20,
    }
    try:
        import torch
    except (ImportError, OSError) as error:
        return machine | {"torch_error": str(error)}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        machine["device"] = "cuda"
        machine["device_name"] = properties.name
        machine["device_memory_mb"] = properties.total_memory >> 20
    return machine


@click.command()
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for scripts.")
@click.pass_context
def doctor(ctx: click.Context, config: Path | None, *, as_json: bool) -> None:
    """Tell what is installed, which device will be used, and what is missing or set wrong.

    Exit status 1 means that the embedded run (everything in one process) cannot work.

    \b
    Example:
        tidegraph doctor --json
    """
    tested = pinned(CONSTRAINTS.read_text("utf-8")) if CONSTRAINTS.exists() else {}
    packages = examine_packages(metadata.requires("tidegraph") or [], tested)
    programs = examine_programs()
    machine = examine_machine()
    try:
        serving = examine_serving(load_settings(config))
    except BadSettings as error:
        serving = [
            Finding(name="settings", state="wrong", found="", needed=False, advice=str(error))
        ]
    ready = "torch_error" not in machine and not any(
        finding.needed and finding.state == "missing" for finding in packages
    )
    if as_json:
        report = {
            "ready": ready,
            "tidegraph": metadata.version("tidegraph"),
            "python": platform.python_version(),
            "machine": machine,
            "packages": [asdict(finding) for finding in packages],
            "programs": [asdict(finding) for finding in programs],
            "serving": [asdict(finding) for finding in serving],
        }
        click.echo(json.dumps(report))
    else:
        click.echo(f"tidegraph {metadata.version('tidegraph')}, Python {platform.python_version()}")
        click.echo(_describe(machine))
        for finding in packages + programs + serving:
            line = f"{finding.state:8} {finding.name:17} {finding.found:12} {finding.advice}"
            click.echo(line.rstrip())
        click.echo(
            "Ready: the embedded run has all it needs."
            if ready
            else "Not ready: the embedded run needs what is missing above; `make demo` installs it."
        )
    ctx.exit(0 if ready else 1)


def _describe(machine: dict[str, Any]) -> str:
    line = (
        f"will compute on {machine['device']} ({machine['device_name']}), "
        f"{machine['cores']} cores, {machine['memory_mb']:,} MB of memory, "
        f"{machine['available_mb']:,} MB of it free"
    )
    if "torch_error" in machine:
        line += f"; torch cannot be loaded: {machine['torch_error']}"
    return line


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _runs(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False, timeout=20).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
