"""`tidegraph serve`: it starts, answers, shares its port among processes, and ends cleanly."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest
from click.testing import CliRunner

from deploy.service import Service, free_port, wait_until
from serving.catalogue import PAIRS
from serving.redis_table import RedisTable
from serving.rows import Barrier, Count, ItemRows, Layout
from serving.server import checked
from serving.table import Update
from stream.errors import BadSettings
from stream.settings import Settings, load_settings
from tests.certificates import certificates
from tests.house import ROOT
from tidegraph import main

START_S = 120.0


class Server:
    """`tidegraph serve` in a process of its own."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.port = free_port()
        self.scheme = "http"
        self.trusted: ssl.SSLContext | None = None
        nowhere = {
            "TIDEGRAPH_KAFKA_SERVERS": "127.0.0.1:1",
            "TIDEGRAPH_REDIS_URL": "redis://127.0.0.1:1/0",
            "TIDEGRAPH_SERVING_PORT": str(self.port),
            "TIDEGRAPH_SERVING_KEYS_FILE": str(folder / "keys.json"),
            "TIDEGRAPH_SERVING_AUDIT_FILE": str(folder / "audit.jsonl"),
        }
        self.service = Service(
            "serve",
            [sys.executable, "-m", "tidegraph", "serve"],
            ROOT,
            answers=lambda: self.get("/healthz")[0] == 200,
            log=folder / "serve.log",
            environment=nowhere | settings,
        )

    def get(self, path: str) -> tuple[int, bytes]:
        """Return status and body; 0 where nothing listens."""
        address = f"{self.scheme}://127.0.0.1:{self.port}{path}"
        try:
            with urllib.request.urlopen(address, timeout=10.0, context=self.trusted) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()
        except (OSError, http.client.HTTPException):
            return 0, b""

    def json(self, path: str) -> Any:
        return json.loads(self.get(path)[1])

    def processes(self) -> list[psutil.Process]:
        assert self.service.process is not None
        return psutil.Process(self.service.process.pid).children(recursive=True)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    started: list[Server] = []

    def make(**settings: str) -> Server:
        started.append(Server(tmp_path, **settings))
        return started[-1]

    yield make
    for each in started:
        each.service.kill()


def publish(table: RedisTable) -> None:
    """Publish and flip one item."""
    table.begin(Layout(dim=2, counts=(Count(PAIRS, 1_000),)))
    one = np.ones((1, 2), np.float32)
    rows = ItemRows(["7"], one, np.zeros(1, np.float32), np.zeros((1, 1)), np.array([60]))
    now_ms = 4_000_000_000_000  # never stale
    table.publish(Update(barrier=Barrier(step=1, at_ms=60, published_ms=now_ms), items=rows))
    table.flip()


@pytest.mark.slow
def test_it_starts_without_redis_gets_ready_with_it_and_ends_without_a_trace(
    server: Callable[..., Server], redis_url: str, namespace: str
) -> None:
    api = server(
        TIDEGRAPH_REDIS_URL=redis_url,
        TIDEGRAPH_REDIS_NAMESPACE=namespace,
        TIDEGRAPH_SERVING_WORKERS="2",
    )
    api.service.start(START_S)
    for path in ("/readyz", "/v1/recommendations/712"):
        status, body = api.get(path)
        assert (status, json.loads(body)["type"]) == (503, "/problems/not-ready")
    publish(RedisTable(redis_url, namespace=namespace))
    answering: list[int] = []

    def both() -> bool:
        answering.append(api.json("/v1/status")["process"])
        return len(set(answering)) == 2 and all(api.get("/readyz")[0] == 200 for _ in range(20))

    wait_until(both, START_S, "readiness of both processes")
    listed = api.json("/v1/recommendations/712")
    assert [item["item"] for item in listed["items"]] == ["7"]
    assert b"the item 'shoes/7'" in api.get("/v1/embeddings/items/shoes%2F7")[1]

    def counted() -> float:
        lines = api.get("/metrics")[1].decode().splitlines()
        named = ("tidegraph_api_seconds_count", 'route="/v1/status"')
        return sum(float(one.split()[-1]) for one in lines if all(name in one for name in named))

    wait_until(lambda: counted() == len(answering), 60.0, "the count of both processes")
    processes = api.processes()
    with socket.create_connection(("127.0.0.1", api.port)) as idle:
        idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert idle.recv(15) == b"HTTP/1.1 200 OK"
        api.service.stop(20.0)
    assert api.service.process is not None
    assert api.service.process.returncode == 0, api.service.last_words()
    assert psutil.wait_procs(processes, 10.0)[1] == []
    assert "Traceback" not in api.service.last_words()


@pytest.mark.slow
def test_a_process_that_dies_comes_back_and_none_outlives_the_first(
    server: Callable[..., Server],
) -> None:
    api = server(TIDEGRAPH_SERVING_WORKERS="2")
    api.service.start(START_S)
    first = api.json("/v1/status")["process"]
    os.kill(first, signal.SIGKILL)

    def comes_back() -> bool:
        status, body = api.get("/v1/status")
        return status == 200 and json.loads(body)["process"] != first

    wait_until(comes_back, START_S, "another process")
    processes = api.processes()
    api.service.kill()
    assert psutil.wait_procs(processes, 30.0)[1] == []


@pytest.mark.slow
def test_it_speaks_tls(server: Callable[..., Server], tmp_path: Path) -> None:
    made = certificates(tmp_path)
    api = server(
        TIDEGRAPH_SERVING_CERT_FILE=str(made.certificate), TIDEGRAPH_SERVING_KEY_FILE=str(made.key)
    )
    api.scheme, api.trusted = "https", ssl.create_default_context(cafile=made.authority)
    api.service.start(START_S)
    assert api.get("/healthz") == (200, b"up\n")
    api.scheme = "http"
    assert api.get("/healthz")[0] == 0


@pytest.mark.slow
def test_one_worker_is_the_process_itself_and_ends_cleanly(
    server: Callable[..., Server],
) -> None:
    api = server()
    api.service.start(START_S)
    assert api.service.process is not None
    assert api.json("/v1/status")["process"] == api.service.process.pid
    assert api.processes() == []
    assert b"tidegraph_api_seconds_count" in api.get("/metrics")[1]
    api.service.stop(20.0)
    assert api.service.process.returncode == 0, api.service.last_words()
    assert "Traceback" not in api.service.last_words()


def test_a_port_that_is_taken_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ran = CliRunner().invoke(main, ["serve"], env={"TIDEGRAPH_SERVING_PORT": str(port)})
    assert ran.exit_code == 2
    assert f"cannot listen on 127.0.0.1, port {port}" in ran.output


def test_a_port_that_another_server_shares_is_taken() -> None:
    with socket.socket() as shared:
        shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        shared.bind(("127.0.0.1", 0))
        shared.listen()
        with pytest.raises(BadSettings, match="cannot listen"):
            checked(with_serving(port=shared.getsockname()[1]))


def test_any_free_port_will_do() -> None:
    assert checked(with_serving(port=0)).serving.port > 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"cert_file": "cert.pem"}, "want both for TLS"),
        ({"cert_file": "no.pem", "key_file": "no.key"}, r"cert_file no\.pem.*No such file"),
        ({"host": "0.0.0.0"}, "no keys"),
        ({"host": "192.0.2.1", "keys_file": ""}, "no keys"),
    ],
)
def test_settings_that_cannot_be_served_by_are_told(
    settings: dict[str, Any], said: str, tmp_path: Path
) -> None:
    settings = {"port": 0, "keys_file": str(tmp_path / "none.json")} | settings
    with pytest.raises(BadSettings, match=said):
        checked(with_serving(**settings))


def test_a_certificate_that_is_none_is_told(tmp_path: Path) -> None:
    path = tmp_path / "cert.pem"
    path.write_text("no certificate")
    with pytest.raises(BadSettings, match="want a certificate and its key in PEM"):
        checked(with_serving(cert_file=str(path), key_file=str(path)))


def test_a_demo_without_the_rooms_for_it_is_told() -> None:
    from serving.commands import serve

    ran = CliRunner().invoke(serve, ["--demo"])
    assert isinstance(ran.exception, BadSettings)


def with_serving(**settings: Any) -> Settings:
    base = load_settings(environ={})
    return msgspec.structs.replace(base, serving=msgspec.structs.replace(base.serving, **settings))
