"""`tidegraph up` starts the system, keeps it running, and leaves nothing behind."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner
from rich.console import Console

from deploy.local import kafka_answers
from deploy.service import Service, free_port, listens, wait_until
from deploy.up import QUICK_ENDS, Screen, Watched, _with_ports
from stream.errors import ServiceFailed
from stream.settings import KafkaSettings, Settings, load_settings
from tests.house import ROOT
from tidegraph import main

SERVER = """
import http.server, sys
http.server.HTTPServer(("127.0.0.1", {port}), http.server.BaseHTTPRequestHandler).serve_forever()
"""


class Bench:
    """Watched programs and a clock of their own, which runs as often as they are looked at."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now_s = 0.0
        self.started: list[Service] = []

    def program(self, name: str, code: str) -> Watched:
        port = free_port()
        command = [sys.executable, "-c", code.format(port=port)]
        answers: Callable[[], bool] = lambda: listens("127.0.0.1", port)
        service = Service(name, command, self.folder, answers=answers)
        self.started.append(service)
        return Watched(name, f"127.0.0.1:{port}", service, answers)

    def start(self, program: Watched) -> None:
        program.launch(self.now_s)

    def until(self, program: Watched, condition: Callable[[], bool]) -> None:
        """Look at a program until something is true of it."""

        def looked() -> bool:
            self.now_s += 0.1
            program.look(self.now_s)
            return condition()

        wait_until(looked, 120.0, f"{program.name}, now {program.state}")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    for service in made.started:
        service.kill()


def test_a_program_that_is_killed_comes_back(bench: Bench) -> None:
    web = bench.program("web", SERVER)
    assert web.service is not None
    bench.start(web)
    bench.until(web, lambda: web.is_up)
    first = web.pid
    assert (web.memory_mb or 0) > 1
    web.service.kill()
    assert web.pid is None
    bench.until(web, lambda: web.is_up and web.pid is not None)
    assert web.pid != first
    assert web.restarts == 1


def test_a_program_waits_for_what_it_needs_before_it_comes_back(bench: Bench) -> None:
    broker, worker = bench.program("broker", SERVER), bench.program("worker", SERVER)
    assert broker.service is not None
    assert worker.service is not None
    worker.needs = [broker]
    bench.start(worker)
    bench.until(worker, lambda: worker.is_up)
    worker.service.kill()
    for _ in range(100):
        bench.now_s += 1.0
        worker.look(bench.now_s)
    assert not worker.service.is_running()
    bench.start(broker)
    bench.until(broker, lambda: broker.is_up)
    bench.until(worker, lambda: worker.is_up)


def test_a_program_that_ends_again_and_again_is_given_up(bench: Bench) -> None:
    broken = bench.program("broken", "raise SystemExit('out of {port} reasons to live')")
    bench.start(broken)
    with pytest.raises(ServiceFailed, match=r"(?s)ended 5 times in a row.*status 1.*reasons"):
        bench.until(broken, lambda: False)
    assert broken.restarts == QUICK_ENDS - 1


def test_a_program_that_was_asked_for_the_impossible_is_not_tried_again(bench: Bench) -> None:
    wrong = bench.program("wrong", "import sys; print('no rules {port}'); sys.exit(2)")
    bench.start(wrong)
    with pytest.raises(ServiceFailed, match=r"(?s)wrong cannot start.*no rules"):
        bench.until(wrong, lambda: False)
    assert wrong.restarts == 0


def test_what_was_there_before_is_left_alone_and_its_silence_is_seen(bench: Bench) -> None:
    there = True
    found = Watched("redis", "127.0.0.1:6379", None, lambda: there)
    bench.start(found)
    assert found.is_up
    assert found.pid is found.memory_mb is None
    there = False
    bench.until(found, lambda: found.state == "silent")
    there = True
    bench.until(found, lambda: found.state == "found")


def test_a_terminal_gets_a_table_and_a_file_gets_lines(bench: Bench) -> None:
    web = bench.program("web", SERVER)
    seen = {}
    for terminal in (True, False):
        console = Console(force_terminal=terminal, width=100, record=True, file=io.StringIO())
        with Screen(console) as screen:
            screen.show([web])
            screen.show([web])
            screen.say("ready")
        seen[terminal] = console.export_text()
    assert "restarts" in seen[True]
    assert seen[False] == f"web: starting at {web.address}\nready\n"


def test_a_port_that_is_taken_is_told_before_anything_starts(tmp_path: Path) -> None:
    port = free_port()
    with Service(
        "web",
        [sys.executable, "-c", SERVER.format(port=port)],
        tmp_path,
        answers=lambda: listens("127.0.0.1", port),
    ):
        ran = CliRunner().invoke(
            main, ["up", "--data", str(tmp_path / "var")], env={"TIDEGRAPH_STREAM_PORT": str(port)}
        )
    assert ran.exit_code == 2
    assert f"stream.port {port} is in use" in ran.output
    assert not (tmp_path / "var").exists()


def test_snapshots_lie_beside_the_log_that_they_belong_to(tmp_path: Path) -> None:
    anywhere = {f"TIDEGRAPH_{worker}_PORT": "0" for worker in ("STREAM", "LEARNER", "SERVING")}
    settings = _with_ports(load_settings(environ=anywhere), tmp_path)
    assert settings.serving.port > 0
    assert settings.learner.snapshots == str(tmp_path / "snapshots")
    assert settings.stream.port != settings.learner.port != 0
    chosen = anywhere | {"TIDEGRAPH_LEARNER_SNAPSHOTS": "/elsewhere"}
    assert _with_ports(load_settings(environ=chosen), tmp_path).learner.snapshots == "/elsewhere"
    assert Settings().learner.snapshots == "var/snapshots"  # what --data var makes of it


# The whole system


class Up:
    """`tidegraph up` in a process of its own, and what it says."""

    def __init__(self, data: Path, **settings: str) -> None:
        everywhere = {
            f"TIDEGRAPH_{worker}_PORT": "0" for worker in ("STREAM", "LEARNER", "SERVING")
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tidegraph", "up", "--data", str(data)],
            cwd=ROOT,
            env=os.environ | everywhere | settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.children: list[psutil.Process] = []

    def says(self, pattern: str) -> re.Match[str]:
        """Return when a line matches."""
        assert self.process.stdout is not None
        said = []
        for line in self.process.stdout:
            said.append(line)
            if found := re.search(pattern, line):
                self.children = psutil.Process(self.process.pid).children(recursive=True)
                return found
        raise AssertionError(f"want {pattern}, it ended with\n{''.join(said)}")

    def commands(self) -> set[str]:
        """Return what its processes run, by the last word of their command lines."""
        return {each.cmdline()[-1] for each in self.children if each.cmdline()}

    def kill(self) -> None:
        """End it as a power cut would."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def left(self, within_s: float) -> list[psutil.Process]:
        """Return which of its processes are still there after so long."""
        return psutil.wait_procs(self.children, within_s)[1]


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    started: list[Up] = []

    def start(**settings: str) -> Up:
        started.append(Up(tmp_path / "var", **settings))
        return started[-1]

    yield start
    for each in started:
        each.kill()
        for child in each.left(20.0):
            child.kill()


@pytest.mark.slow
def test_the_system_gets_ready_mends_itself_and_ends_without_a_trace(
    up: Callable[..., Up],
) -> None:
    system = up(TIDEGRAPH_KAFKA_SERVERS="127.0.0.1:0", TIDEGRAPH_REDIS_URL="redis://127.0.0.1:0/0")
    first = int(system.says(r"stream: starting .*process (\d+)")[1])
    system.says("^ready$")
    os.kill(first, signal.SIGKILL)
    system.says(r"stream: ended \(-9\)")
    second = int(system.says(r"stream: up .*process (\d+)")[1])
    assert second != first
    assert {"stream", "learn", "serve"} <= system.commands()
    system.process.send_signal(signal.SIGTERM)
    said, _ = system.process.communicate(timeout=15.0)
    assert system.process.returncode == 0
    assert said.endswith("stopped\n")
    assert system.left(0.0) == []


@pytest.mark.slow
def test_nothing_outlives_an_up_that_is_killed_but_what_was_there(
    up: Callable[..., Up], kafka: KafkaSettings, redis_url: str
) -> None:
    system = up(
        TIDEGRAPH_KAFKA_SERVERS=kafka.servers[0],
        TIDEGRAPH_KAFKA_PREFIX=kafka.prefix,
        TIDEGRAPH_REDIS_URL=redis_url,
        TIDEGRAPH_REDIS_NAMESPACE=kafka.prefix.strip("."),
    )
    system.says("^ready$")
    assert {"stream", "learn", "serve"} <= system.commands()
    system.kill()
    assert system.left(30.0) == []
    assert kafka_answers(kafka)
