"""What lies beside the code fits it: compose, images, alert rules, dashboard, settings."""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import promql_parser
import pytest
import yaml

from deploy.doctor import pinned
from learner.metrics import LearnerMetrics
from serving.api.metrics import Metrics
from serving.live import Live
from serving.table import MemoryTable
from stream.metrics import StreamMetrics
from stream.settings import Settings, load_settings
from tests.house import ROOMS, ROOT
from tidegraph import COMMANDS

DEPLOY = ROOT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load(DEPLOY.joinpath("compose.yaml").read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
IMAGES = sorted(DEPLOY.joinpath("images").iterdir())
VARIABLES = {
    f"TIDEGRAPH_{section.name}_{field.name}".upper()
    for section in msgspec.structs.fields(Settings)
    for field in msgspec.structs.fields(section.type)
}


# Compose


def test_every_service_tells_how_it_is_and_comes_back() -> None:
    for name, service in SERVICES.items():
        once = name == "topics"
        assert ("healthcheck" in service) is not once, name
        assert service["restart"] == ("on-failure" if once else "unless-stopped"), name


def test_ports_are_open_to_this_machine_only() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_what_a_service_waits_for_exists_and_can_be_waited_for() -> None:
    for service in SERVICES.values():
        for other, how in service.get("depends_on", {}).items():
            wanted = "healthcheck" in SERVICES[other]
            assert how["condition"] == (
                "service_healthy" if wanted else "service_completed_successfully"
            )


def test_volumes_and_mounted_files_exist() -> None:
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert DEPLOY.joinpath(source).exists(), source
            else:
                assert source in COMPOSE["volumes"]


@pytest.mark.parametrize("name", OURS)
def test_our_services_run_commands_with_settings_that_exist(name: str) -> None:
    service = OURS[name]
    assert service["command"][0] in COMMANDS
    assert DEPLOY.parent.joinpath(service["build"]["dockerfile"]).exists()
    variables: Mapping[str, str] = service["environment"]
    assert {key for key in variables if key.startswith("TIDEGRAPH_")} <= VARIABLES
    settings = load_settings(environ=variables)
    # A port that is published or asked for its health is the one that is listened on.
    listened = {settings.stream.port, settings.learner.port, settings.serving.port}
    text = " ".join([*service.get("ports", []), *service.get("healthcheck", {}).get("test", [])])
    asked = {int(port) for port in re.findall(r"127\.0\.0\.1:(\d+)", text)}
    assert asked <= listened
    broker = SERVICES["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    assert all(f"//{server}," in broker for server in settings.kafka.servers)


# Images


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def needs(room: str) -> tuple[set[str], set[str]]:
    """Return the rooms and the distributions that a room imports, at once or when it is used."""
    waiting, seen = list(ROOT.joinpath(room).rglob("*.py")), set[Path]()
    rooms, packages = {room}, {"click"}
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        for name in imports(path):
            top, *rest = name.split(".")
            if top in ROOMS:
                rooms.add(top)
                module = ROOT.joinpath(top, *rest)
                found = [module.with_suffix(".py"), module / "__init__.py"]
                waiting += [file for file in found if file.exists()]
            elif top not in sys.stdlib_module_names:
                packages.add(top)
    owners = metadata.packages_distributions()
    return rooms, {re.sub(r"[-_.]+", "-", owners[name][0]).lower() for name in packages}


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.stem)
def test_an_image_holds_what_its_room_needs_and_no_more(image: Path) -> None:
    text = image.read_text("utf-8").replace("\\\n", " ")
    rooms, packages = needs(image.stem)
    copied = set(re.findall(r"^COPY (\w+) \1$", text, re.MULTILINE))
    assert copied == rooms
    (installed,) = re.findall(r"^RUN pip install (.*)", text, re.MULTILINE)
    words = re.sub(r"""-c \S+|--\S+( "\S+")?|\[\S+\]|'""", "", installed).split()
    assert {word.replace("_", "-") for word in words} == packages
    tested = pinned(ROOT.joinpath("constraints.txt").read_text("utf-8"))
    assert packages <= set(tested)


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.stem)
def test_an_image_runs_one_command_as_nobody_special(image: Path) -> None:
    text = image.read_text("utf-8")
    assert re.findall(r"^USER (.*)", text, re.MULTILINE) == ["tidegraph"]
    assert "PYTHONPATH=/app" in text
    (arguments,) = re.findall(r"^CMD (.*)", text, re.MULTILINE)
    assert json.loads(arguments)[0] in COMMANDS


# Alert rules and dashboard


def exported() -> set[str]:
    """Return the names of all time series that the workers and the API export."""
    names = {"up"}  # Prometheus' own
    api = Metrics(Live(MemoryTable()))
    for registry in (StreamMetrics().registry, LearnerMetrics().registry, api.registry):
        for family in registry.collect():
            suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}
            names |= {family.name + suffix for suffix in suffixes.get(family.type, [""])}
    return names


def alerts() -> list[dict[str, Any]]:
    rules = yaml.safe_load(DEPLOY.joinpath("prometheus", "alerts.yml").read_text("utf-8"))
    return [rule for group in rules["groups"] for rule in group["rules"]]


def dashboard() -> list[dict[str, Any]]:
    panels: list[dict[str, Any]] = json.loads(
        DEPLOY.joinpath("grafana", "dashboard.json").read_text("utf-8")
    )["panels"]
    return panels


EXPRESSIONS = [rule["expr"] for rule in alerts()] + [
    target["expr"] for panel in dashboard() for target in panel["targets"]
]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_expression_is_promql_over_metrics_that_exist(expression: str) -> None:
    promql_parser.parse(expression)
    metrics = re.findall(r"\b(?:tidegraph_\w+|up\b)", expression)
    assert metrics
    assert set(metrics) <= exported()


def test_every_metric_of_ours_is_on_the_dashboard() -> None:
    shown = set(re.findall(r"\btidegraph_\w+", " ".join(EXPRESSIONS)))
    families = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in shown}
    exist = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in exported() - {"up"}}
    assert families == exist


def test_every_alert_says_what_happened_and_the_manual_what_to_do() -> None:
    manual = ROOT.joinpath("docs", "operating.md").read_text("utf-8")
    for rule in alerts():
        assert rule["annotations"]["summary"]
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert f"`{rule['alert']}`" in manual


def test_the_workers_that_prometheus_reads_are_those_of_compose() -> None:
    config = yaml.safe_load(DEPLOY.joinpath("prometheus", "prometheus.yml").read_text("utf-8"))
    for job in config["scrape_configs"]:
        (target,) = job["static_configs"][0]["targets"]
        service, port = target.split(":")
        assert service == job["job_name"]
        assert f"127.0.0.1:{port}:{port}" in OURS[service]["ports"]


def test_prometheus_shows_the_api_a_key_from_a_file_that_git_ignores() -> None:
    config = yaml.safe_load(DEPLOY.joinpath("prometheus", "prometheus.yml").read_text("utf-8"))
    (job,) = [job for job in config["scrape_configs"] if job["job_name"] == "serve"]
    (path,) = job["http_headers"]["X-API-Key"]["files"]
    assert "./prometheus:/etc/prometheus:ro" in SERVICES["prometheus"]["volumes"]
    file = path.replace("/etc/prometheus/", "deploy/prometheus/")
    assert f"/{file}" in ROOT.joinpath(".gitignore").read_text("utf-8").splitlines()
    assert file in ROOT.joinpath("docs", "operating.md").read_text("utf-8")


def test_panels_do_not_overlap() -> None:
    taken = set[tuple[int, int]]()
    for panel in dashboard():
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells


# Settings


@pytest.mark.parametrize(
    "path", sorted(DEPLOY.joinpath("config").glob("*.toml")), ids=lambda path: path.stem
)
def test_the_examples_of_settings_are_good_settings(path: Path) -> None:
    settings = load_settings(path, environ={})
    if path.stem == "local":
        assert settings == Settings()
    else:
        assert len(settings.kafka.servers) == settings.kafka.replication
