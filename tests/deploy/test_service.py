"""A program beside us is started when it answers, and is gone when it must be."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from deploy.service import Service, free_port, listens, wait_until
from stream.errors import ServiceFailed
from tests.house import ROOT

PLAIN = "import http.server as h; h.HTTPServer(('127.0.0.1', {port}), h.BaseHTTPRequestHandler)"
SERVER = PLAIN + ".serve_forever()"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SERVER


def service(folder: Path, code: str = SERVER) -> tuple[Service, int]:
    port = free_port()
    command = [sys.executable, "-c", code.format(port=port)]
    return Service("web", command, folder, answers=lambda: listens("127.0.0.1", port)), port


def test_a_service_answers_when_started_and_is_gone_when_stopped(tmp_path: Path) -> None:
    web, port = service(tmp_path)
    for _ in range(2):
        with web:
            assert web.is_running()
            assert listens("127.0.0.1", port)
        assert not web.is_running()
        assert not listens("127.0.0.1", port)


def test_a_service_that_does_not_hear_is_killed(tmp_path: Path) -> None:
    web, port = service(tmp_path, STUBBORN)
    web.start()
    web.stop(within_s=0.5)
    assert not web.is_running()
    assert web.process is not None
    assert web.process.returncode == -signal.SIGKILL
    assert not listens("127.0.0.1", port)


def test_a_service_that_ends_tells_its_last_words(tmp_path: Path) -> None:
    web, _ = service(tmp_path, "raise SystemExit('no room for port {port}')")
    with pytest.raises(ServiceFailed, match=r"(?s)web ended when it was started.*no room for port"):
        web.start()


def test_a_service_that_never_answers_is_stopped(tmp_path: Path) -> None:
    web, _ = service(tmp_path, "print('dreaming', flush=True); import time; time.sleep(3600)")
    with pytest.raises(ServiceFailed, match=r"(?s)waited 1 s for web to answer.*dreaming"):
        web.start(within_s=1.0)
    assert not web.is_running()


def test_a_service_ends_when_we_are_killed(tmp_path: Path) -> None:
    web, port = service(tmp_path)
    code = (
        "import pathlib, signal\n"
        "from deploy.service import Service, listens\n"
        f"web = Service('web', {web.command!r}, pathlib.Path({str(tmp_path)!r}),\n"
        f"              answers=lambda: listens('127.0.0.1', {port}))\n"
        "web.start()\n"
        "print(web.process.pid, flush=True)\n"
        "signal.pause()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert psutil.pid_exists(pid)
    # In a group of its own: what the terminal sends to our group does not reach it.
    assert os.getpgid(pid) == pid
    parent.kill()
    parent.communicate()
    wait_until(lambda: not listens("127.0.0.1", port), 10.0, "the service to end")
