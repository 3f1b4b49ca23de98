"""A program that runs beside us: started, watched, stopped, killed, started again."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from stream.errors import ServiceFailed

START_S: Final = 300.0
"""How long a program may take until it answers; one that ends is noticed at once."""

STOP_S: Final = 10.0
"""How long a program may take to end after it was asked to; then it is killed."""

_POLL_S: Final = 0.05
_SHOWN_LINES: Final = 15


class Service:
    """A program with its log, which ends when we do.

    It runs in a process group of its own, so that Ctrl-C on the terminal reaches it through us
    and in our order. Where the system can do it (Linux), it gets a SIGTERM when we are killed.

    Parameters
    ----------
    name
        Of the log file, and in messages.
    command
        Program and arguments.
    folder
        Working directory; made if need be.
    answers
        Tells whether the program is ready; asked until it is.
    log
        File that its output is appended to; ``None`` is ``NAME.log`` in ``folder``.
    container
        Name of the container that ``command`` runs, where it runs one.
    environment
        Put over ours.

    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        folder: Path,
        *,
        answers: Callable[[], bool],
        log: Path | None = None,
        container: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.command = list(command)
        self.folder = folder
        self.answers = answers
        self.log = log or folder / f"{name}.log"
        self.container = container
        self.environment = dict(environment or {})
        self.process: subprocess.Popen[bytes] | None = None
        self._asked = False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def is_running(self) -> bool:
        """Tell whether the process is there, ready or not."""
        return self.process is not None and self.process.poll() is None

    def launch(self) -> None:
        """Start the program and return at once."""
        if self.is_running():
            return
        self._asked = False
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*_ends_with_us(), *self.command],
                cwd=self.folder,
                env=os.environ | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
            )

    def start(self, within_s: float = START_S) -> None:
        """Start the program and return when it answers.

        Raises
        ------
        ServiceFailed
            If it ends, or does not answer in time; it is then stopped.

        """
        self.launch()
        try:
            wait_until(
                lambda: not self.is_running() or self.answers(), within_s, f"{self.name} to answer"
            )
        except BaseException as error:
            self.kill()
            if isinstance(error, ServiceFailed):
                raise ServiceFailed(f"{error}; {self.last_words()}") from error
            raise
        if not self.is_running():
            raise ServiceFailed(f"{self.name} ended when it was started; {self.last_words()}")

    def ask_to_end(self) -> None:
        """Send the program one SIGTERM and return at once."""
        # Only one: a second may mean to it that it must not finish what it does.
        if self.process is not None and not self._asked:
            self._asked = True
            self.process.terminate()

    def stop(self, within_s: float = STOP_S) -> None:
        """Ask the program to end and return when it has; after ``within_s`` seconds kill it."""
        if self.process is None:
            return
        self.ask_to_end()
        try:
            self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End the program as a power cut would, and return when it is gone."""
        if self.process is None:
            return
        if self.container and self.is_running():
            subprocess.run(["docker", "kill", self.container], capture_output=True, check=False)
        self.process.kill()
        self.process.wait()

    def last_words(self) -> str:
        """Return the end of the log."""
        if not self.log.exists():
            return "it has no log"
        lines = self.log.read_text("utf-8", "replace").splitlines()[-_SHOWN_LINES:]
        return "\n  ".join([f"the end of {self.log}:", *lines])


def stop_all(services: Sequence[Service], within_s: float = STOP_S) -> None:
    """Stop programs that do not need each other, all at once."""
    deadline = time.monotonic() + within_s
    for service in services:
        service.ask_to_end()
    for service in services:
        service.stop(max(0.0, deadline - time.monotonic()))


def wait_until(condition: Callable[[], bool], within_s: float, what: str) -> None:
    """Return when the condition holds.

    Raises
    ------
    ServiceFailed
        If it does not within so many seconds; the message names ``what`` was waited for.

    """
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            raise ServiceFailed(f"waited {within_s:.0f} s for {what}, in vain")
        time.sleep(_POLL_S)


def listens(host: str, port: int) -> bool:
    """Tell whether something takes connections there."""
    try:
        with socket.create_connection((host, port), timeout=1.0):
            return True
    except OSError:
        return False


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on.

    It lies below the ports that systems give to clients: while a server is down, a client that
    tries its port again and again could otherwise be given that very port, and keep it.
    """
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def docker_answers() -> bool:
    """Tell whether a Docker engine is there to run containers."""
    if shutil.which("docker") is None:
        return False
    try:
        asked = subprocess.run(["docker", "info"], capture_output=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return asked.returncode == 0


def _ends_with_us() -> list[str]:
    # The signal survives the exec, so the process is the program itself.
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "TERM", "--"] if setpriv else []
