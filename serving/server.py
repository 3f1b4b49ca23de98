"""The API as a server: this process, or several on one port, each with the items in memory."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import resource
import signal
import socket
import ssl
import tempfile
from pathlib import Path
from typing import Any, Final

import click
import msgspec
import uvloop
from granian.constants import HTTPModes, Interfaces, Loops
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.server import Server as Processes
from granian.server.embed import Server as Embedded

from serving.api.security import Guard
from serving.pseudonyms import pseudonym_of
from stream.errors import BadSettings
from stream.settings import ServingSettings, Settings
from stream.typing_rules import load_rules

_CONNECTIONS: Final = 16_384
"""Of one process, at most; those beyond wait to be accepted."""

_WAITING: Final = 4_096
"""Connections that wait to be accepted, at most."""

_HEADER_MS: Final = 10_000
_HEADER_BYTES: Final = 131_072
_STOP_S: Final = 8
"""For how long answers that are being made are waited for when the server ends."""


def serve(settings: Settings) -> None:
    """Answer requests until SIGTERM or Ctrl-C.

    With one worker in this process; with several in one process each, and one that ends by itself
    is started again. Redis and Kafka need not be there: requests that need them are answered with
    503 until they are.

    Raises
    ------
    BadSettings
        If the port is taken, the certificate cannot be used, or the settings are not safe.

    """
    settings = checked(settings)
    click.echo(f"the API is at {address(settings.serving)}", err=True)
    if settings.serving.workers > 1:
        _serve_from_several(settings)
    else:
        from serving.assembly import load_app

        run(serve_here(load_app(settings), settings.serving))


def _serve_from_several(settings: Settings) -> None:
    serving = settings.serving
    _allow_connections()
    with tempfile.TemporaryDirectory(prefix="tidegraph-serving-") as shared:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = shared  # before a process makes a metric
        server = Processes(
            "tidegraph",
            workers=serving.workers,
            respawn_failed_workers=True,
            respawn_interval=0.0,
            workers_kill_timeout=_STOP_S,
            loop=Loops.uvloop,
            **_options(serving),
        )
        # A fork would inherit locks that threads of libraries hold.
        multiprocessing.set_start_method("spawn", force=True)
        server.serve(target_loader=_Loader(settings, os.getpid()), wrap_loader=False)


class _Loader(msgspec.Struct, frozen=True):
    """Goes to each process and loads there what it answers with; the first one needs none of it."""

    settings: Settings
    parent: int

    def __call__(self) -> Any:
        from serving.assembly import load_app

        return load_app(self.settings, self.parent)


async def serve_here(api: Any, settings: ServingSettings) -> None:
    """Answer requests in this process, on the loop that runs, until SIGTERM or Ctrl-C.

    The settings are :func:`checked` ones.
    """
    _allow_connections()
    server = Embedded(api, **_options(settings) | {"log_level": LogLevels.error})
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, server.stop)
    try:
        await server.serve()
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def checked(settings: Settings) -> Settings:
    """Return settings that can be served by, with a port where any was asked for.

    Raises
    ------
    BadSettings
        If the port is taken, the certificate cannot be used, or the settings are not safe.

    """
    serving = settings.serving
    if bool(serving.cert_file) != bool(serving.key_file):
        raise BadSettings("serving.cert_file and serving.key_file: want both for TLS, or neither")
    if serving.cert_file:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
                serving.cert_file, serving.key_file
            )
        except OSError as error:  # of which SSLError is one
            raise BadSettings(
                f"serving.cert_file {serving.cert_file} and serving.key_file {serving.key_file}: "
                f"want a certificate and its key in PEM: {error}"
            ) from error
    Guard(serving)
    load_rules(settings.stream.rules)
    pseudonym_of(serving)
    return msgspec.structs.replace(
        settings, serving=msgspec.structs.replace(serving, port=_port(serving))
    )


def address(settings: ServingSettings) -> str:
    """Return where the API is."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"{'https' if settings.cert_file else 'http'}://{host}:{settings.port}"


def run(main: Any) -> None:
    """Run a coroutine on the loop that the servers use."""
    uvloop.run(main)


def _port(settings: ServingSettings) -> int:
    """Return the port to listen on.

    Granian's processes share a port, and would share it with another server's as well: so it is
    tried without sharing before.

    Raises
    ------
    BadSettings
        If it cannot be listened on.

    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise BadSettings(
                f"serving.host and serving.port: cannot listen on {settings.host}, port "
                f"{settings.port}: {error.strerror}; set another port, 0 for any"
            ) from error
        port: int = probe.getsockname()[1]
        return port


def _options(settings: ServingSettings) -> dict[str, Any]:
    tls = {"ssl_cert": Path(settings.cert_file), "ssl_key": Path(settings.key_file)}
    return {
        "address": settings.host,
        "port": settings.port,
        "interface": Interfaces.ASGI,
        "http": HTTPModes.http1,
        "websockets": False,
        "backlog": _WAITING,
        "backpressure": _CONNECTIONS,
        "http1_settings": HTTP1Settings(
            header_read_timeout=_HEADER_MS, max_buffer_size=_HEADER_BYTES
        ),
        "log_level": LogLevels.warning,
        **(tls if settings.cert_file else {}),
    }


def _allow_connections() -> None:
    """Let this process and its children open as many files as they may."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * _CONNECTIONS
    resource.setrlimit(
        resource.RLIMIT_NOFILE,
        (wanted if most == resource.RLIM_INFINITY else min(wanted, most), most),
    )
