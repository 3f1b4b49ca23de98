"""``tidegraph up``: the whole system on one machine, started, watched and stopped as one."""

from __future__ import annotations

import math
import signal
import ssl
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import click
import msgspec
import psutil
from rich.console import Console
from rich.live import Live
from rich.table import Table

from deploy.local import broker_listens, prepare_broker, prepare_redis, redis_listens
from deploy.service import START_S, Service, free_port, listens, stop_all
from stream.errors import BadSettings, ServiceFailed
from stream.options import config_option
from stream.settings import (
    LearnerSettings,
    ServingSettings,
    Settings,
    as_environment,
    load_settings,
)

QUICK_S: Final = 30.0
"""A program that ran for less than this when it ended, ended quickly."""

QUICK_ENDS: Final = 5
"""After so many quick ends in a row a program is given up."""

WORKERS_STOP_S: Final = 10.0
SERVICES_STOP_S: Final = 4.0
"""Time for the workers to end, and after them for broker and Redis: 14 s in all."""

_USER_ERROR: Final = 2
"""Exit status of a command that was asked for what cannot be done."""

_TICK_S: Final = 0.25
_HEALTH_S: Final = 5.0


@dataclass(kw_only=True, slots=True)
class Restarts:
    """When a program that ended by itself is started again.

    Examples
    --------
    >>> restarts = Restarts()
    >>> [restarts.delay_s(ran_s=1.0) for _ in range(5)]
    [0.5, 1.0, 2.0, 4.0, None]
    >>> restarts.delay_s(ran_s=60.0)
    0.5

    """

    quick: int = 0

    def delay_s(self, ran_s: float) -> float | None:
        """Return how long to wait before the next start, or ``None`` to give the program up."""
        self.quick = self.quick + 1 if ran_s < QUICK_S else 1
        return None if self.quick >= QUICK_ENDS else 0.5 * 2 ** (self.quick - 1)


class Watched:
    """A program of the system: whether it is there, how it is, and how often it had to come back.

    Parameters
    ----------
    name
        Of the program.
    address
        Where it answers.
    service
        The program; ``None`` is one that was there before us, and is left alone.
    answers
        Tells whether it is well.
    needs
        Programs without which it is not started again: it would only end again.

    """

    def __init__(
        self,
        name: str,
        address: str,
        service: Service | None,
        answers: Callable[[], bool],
        needs: Sequence[Watched] = (),
    ) -> None:
        self.name = name
        self.address = address
        self.service = service
        self.answers = answers
        self.needs = needs
        self.state = "found" if service is None else "starting"
        self.restarts = 0
        self._policy = Restarts()
        self._was_up = False
        self._launched_s = self._asked_s = -math.inf
        self._again_s: float | None = None

    @property
    def is_up(self) -> bool:
        """Whether it answered when last asked."""
        return self.state in {"up", "found"}

    @property
    def pid(self) -> int | None:
        """Process id, where it is a process of ours."""
        if self.service is None or self.service.process is None or not self.service.is_running():
            return None
        return self.service.process.pid

    @property
    def memory_mb(self) -> int | None:
        """Memory of the process, where it can be told: not that of a container."""
        if self.pid is None or (self.service is not None and self.service.container):
            return None
        try:
            return int(psutil.Process(self.pid).memory_info().rss) >> 20
        except psutil.Error:
            return None

    def launch(self, now_s: float) -> None:
        """Start it, without waiting for it."""
        if self.service is not None:
            self._launched_s = now_s
            self._again_s = None
            self.state = "starting"
            self.service.launch()

    def look(self, now_s: float) -> None:
        """Bring ``state`` up to date, and start the program again where it is time.

        Raises
        ------
        ServiceFailed
            If it ends again and again, cannot be started as it was asked to, or does not answer.

        """
        service = self.service
        if service is not None and not service.is_running():
            if self._again_s is None:
                self._ended(service, now_s)
            elif now_s >= self._again_s and all(other.is_up for other in self.needs):
                self.restarts += 1
                self.launch(now_s)
            return
        waits = self.state == "starting"
        if waits or now_s - self._asked_s >= _HEALTH_S:
            self._asked_s = now_s
            if self.answers():
                self.state = "found" if service is None else "up"
                self._was_up = True
            elif waits and service is not None and now_s - self._launched_s > START_S:
                raise ServiceFailed(
                    f"{self.name} does not answer {START_S:.0f} s after its start; "
                    f"{service.last_words()}"
                )
            elif not waits:
                self.state = "silent"

    def _ended(self, service: Service, now_s: float) -> None:
        assert service.process is not None
        status = service.process.returncode
        if status == _USER_ERROR and not self._was_up:
            raise ServiceFailed(f"{self.name} cannot start; {service.last_words()}")
        delay_s = self._policy.delay_s(now_s - self._launched_s)
        if delay_s is None:
            raise ServiceFailed(
                f"{self.name} ended {QUICK_ENDS} times in a row within {QUICK_S:.0f} s of its "
                f"start, the last time with status {status}; {service.last_words()}"
            )
        self.state = f"ended ({status}), again in {delay_s:g} s"
        self._again_s = now_s + delay_s


class Screen:
    """What the user sees: a table that is kept current, or lines where there is no terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._said: dict[str, str] = {}

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, line: str) -> None:
        """Print a line for good."""
        self._console.print(line, highlight=False, soft_wrap=True)

    def show(self, programs: Iterable[Watched]) -> None:
        """Show how the programs are now."""
        if self._live is not None:
            self._live.update(_table(programs), refresh=True)
            return
        for program in programs:
            if self._said.get(program.name) != program.state:
                self._said[program.name] = program.state
                process = "" if program.pid is None else f", process {program.pid}"
                self.say(f"{program.name}: {program.state} at {program.address}{process}")


@click.command()
@config_option
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("var"),
    show_default=True,
    help="Folder of the broker's data, the snapshots and the logs.",
)
@click.option("--services", is_flag=True, help="Kafka and Redis alone: no topics, no workers.")
def up(config: Path | None, data: Path, *, services: bool) -> None:
    """Run the whole system here: Kafka, Redis, a stream worker, a learner and the API.

    A Kafka or Redis that answers at the address in the settings is used, and left running. Else one
    is started: in a container, or from programs of this machine. `ready` means that all of them
    answer. A program that ends is started again. Ctrl-C stops them all within 15 s.

    \b
    Example:
        tidegraph up --data var
    """
    settings = _with_ports(load_settings(config), data)
    with _signals_interrupt():
        try:
            _run(settings, data, services_only=services)
        except KeyboardInterrupt:
            click.echo("stopped")


def _run(settings: Settings, data: Path, *, services_only: bool) -> None:
    from stream import topics

    logs = data.resolve() / "logs"
    kafka, broker = prepare_broker(settings.kafka, data / "kafka")
    redis, server = prepare_redis(settings.redis, data / "redis")
    settings = msgspec.structs.replace(settings, kafka=kafka, redis=redis)
    shown_redis = redis.url.rpartition("@")[2].removeprefix("redis://")
    services = [
        Watched("kafka", kafka.servers[0], broker, lambda: broker_listens(kafka)),
        Watched("redis", shown_redis, server, lambda: redis_listens(redis)),
    ]
    environment = as_environment(settings)
    workers = [
        Watched("stream", *_worker("stream", settings.stream.port, environment, logs), services),
        Watched("learn", *_worker("learn", settings.learner.port, environment, logs), services),
        Watched("serve", *_api(settings.serving, environment, logs)),  # needs none of the others
    ]
    for program in services:
        if program.service is not None:
            program.service.log = logs / f"{program.name}.log"
            program.answers = program.service.answers
    running: list[Watched] = []
    with Screen(Console()) as screen:
        try:
            _start(services, running, screen)
            if not services_only:
                for made in topics.create(kafka):
                    screen.say(f"made topic {made}")
                _start(workers, running, screen)
            screen.say("ready")
            _watch(running, screen, until=lambda: False)
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
            _stop(workers, WORKERS_STOP_S)
            _stop(services, SERVICES_STOP_S)


def _start(programs: Sequence[Watched], running: list[Watched], screen: Screen) -> None:
    for program in programs:
        program.launch(time.monotonic())
        running.append(program)
    _watch(running, screen, until=lambda: all(program.is_up for program in running))


def _watch(running: Sequence[Watched], screen: Screen, *, until: Callable[[], bool]) -> None:
    while True:
        for program in running:
            program.look(time.monotonic())
        screen.show(running)
        if until():
            return
        time.sleep(_TICK_S)


def _stop(programs: Sequence[Watched], within_s: float) -> None:
    stop_all([program.service for program in programs if program.service is not None], within_s)


def _worker(
    command: str, port: int, environment: dict[str, str], logs: Path
) -> tuple[str, Service, Callable[[], bool]]:
    """Return the address of a worker, the program, and what tells whether it is well."""
    url = f"http://127.0.0.1:{port}"
    return _program(command, url, lambda: _page_answers(f"{url}/metrics"), environment, logs)


def _api(
    settings: ServingSettings, environment: dict[str, str], logs: Path
) -> tuple[str, Service, Callable[[], bool]]:
    """Return the same of the API, which may listen anywhere, and with TLS."""
    from serving.server import address  # only here: it brings the server along

    url = address(settings)
    return _program("serve", url, lambda: _page_answers(f"{url}/healthz"), environment, logs)


def _program(
    command: str,
    url: str,
    answers: Callable[[], bool],
    environment: dict[str, str],
    logs: Path,
) -> tuple[str, Service, Callable[[], bool]]:
    arguments = [sys.executable, "-m", "tidegraph", command]
    log = logs / f"{command}.log"
    service = Service(
        command, arguments, Path.cwd(), answers=answers, log=log, environment=environment
    )
    return url, service, answers


def _with_ports(settings: Settings, data: Path) -> Settings:
    """Fill in what must be known before the workers start: free ports, and where snapshots go."""
    stream, learner, serving = settings.stream, settings.learner, settings.serving
    for name, port in (
        ("stream.port", stream.port),
        ("learner.port", learner.port),
        ("serving.port", serving.port),
    ):
        if port and listens("127.0.0.1", port):
            raise BadSettings(
                f"{name} {port} is in use: stop the other `tidegraph up`, or set another port"
            )
    # Snapshots hold positions in the broker's log, so they lie beside it.
    moved = learner.snapshots == LearnerSettings().snapshots
    snapshots = str(data.resolve() / "snapshots") if moved else learner.snapshots
    return msgspec.structs.replace(
        settings,
        stream=msgspec.structs.replace(stream, port=stream.port or free_port()),
        learner=msgspec.structs.replace(
            learner, port=learner.port or free_port(), snapshots=snapshots
        ),
        serving=msgspec.structs.replace(serving, port=serving.port or free_port()),
    )


def _page_answers(url: str) -> bool:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # it is not secrets we send
    try:
        with urllib.request.urlopen(  # noqa: S310 - an address of ours
            url, timeout=2.0, context=context
        ) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _table(programs: Iterable[Watched]) -> Table:
    table = Table("process", "state", "pid", "restarts", "memory", "address", title="tidegraph up")
    for program in programs:
        memory = program.memory_mb
        table.add_row(
            program.name,
            f"[{'green' if program.is_up else 'yellow'}]{program.state}[/]",
            "" if program.pid is None else str(program.pid),
            str(program.restarts),
            "" if memory is None else f"{memory:,} MB",
            program.address,
        )
    return table
