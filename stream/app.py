"""The ingest process: a faust app that hosts, watches and shows the stream worker.

Event batches flow past faust, in the worker's thread. faust gives what surrounds them: the process
and its signals, the web view, the windowed tables, the timers, and its own command line with
``TIDEGRAPH_CONFIG`` set (``faust -A stream.app worker``, ``faust -A stream.app tables``).
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import threading
import time
import traceback
from collections import Counter
from typing import Any, Final, NoReturn

import faust
from faust.exceptions import ProducerSendError
from faust.web import Request, Response, View

from stream.collecting import collect_seldom
from stream.errors import BadSettings, TidegraphError, UserError
from stream.kafka import KafkaLog, tls_context
from stream.metrics import StreamMetrics
from stream.settings import KafkaSettings, Settings, load_settings
from stream.view import Window, moment, page, windows
from stream.worker import BatchDone, StreamWorker

TELL_S: Final = 1.0
"""How often the tables are told what was processed."""

NOTE_S: Final = 5.0
"""How often the log says how it goes."""

STOP_S: Final = 8.0
"""How long a stop may take until the process ends itself."""

CLASS_COUNTS: Final = "class-counts"

_MINUTE_S, _HOUR_S, _DAY_S = 60.0, 3_600.0, 86_400.0

log = logging.getLogger("tidegraph.stream")


class ClassCounts(faust.Record, serializer="json"):
    """What a worker processed since it last told.

    Parameters
    ----------
    at_s
        When, in seconds since the epoch: the windows go by it.
    watermark_ms
        Time of the newest event accepted.
    classes
        Events by what they mean.

    """

    at_s: float
    watermark_ms: int
    classes: dict[str, int]


class Ingest:
    """The worker in one thread, and what watches over it in another.

    Threads, because neither may wait for the event loop: ingestion begins while the tables are
    still being read back, and a loop that hangs must not keep a stuck process alive.

    Parameters
    ----------
    settings
        Of the process.

    Raises
    ------
    BadRules
        If the rules must not be used.

    """

    def __init__(self, settings: Settings) -> None:
        self.metrics = StreamMetrics()
        self.settings = settings
        self._worker = StreamWorker(settings, on_batch=self._took)
        self._thread = threading.Thread(target=self._work, name="stream-worker", daemon=True)
        self._watchdog_s = settings.stream.watchdog_s
        self._stop_by_s: float | None = None
        self._lock = threading.Lock()
        self._untold: Counter[str] = Counter()
        self._watermark_ms = 0
        self._records_per_s = 0.0
        self._noted_s = self._started_s = time.monotonic()
        self._noted_records = 0

    def start(self) -> None:
        """Begin."""
        collect_seldom()
        self._thread.start()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def stop(self) -> None:
        """Let the worker end the transaction in hand; returns when it has."""
        self._stop_by_s = self._stop_by_s or time.monotonic() + STOP_S
        if self._thread.ident is not None:
            self._worker.stop()
            self._thread.join()

    def untold(self) -> ClassCounts | None:
        """Return what was processed since the last call."""
        with self._lock:
            classes, self._untold = self._untold, Counter()
        if not classes:
            return None
        return ClassCounts(at_s=time.time(), watermark_ms=self._watermark_ms, classes=dict(classes))

    def measure_lag(self) -> None:
        """Bring the gauge up to date, also while no batch does."""
        self.metrics.lag(self._worker.progress.lag)

    def health(self) -> str:
        """Return ``ok``, or what is wrong."""
        if self._stop_by_s is not None:
            return "stopping"
        idle_s, lag = self._worker.progress
        if lag and idle_s > self._watchdog_s / 2:
            return f"stuck: {lag} records wait, none was processed for {idle_s:.0f} s"
        return "ok"

    def state(self) -> dict[str, Any]:
        """Return how it goes, for the page ``/state/``."""
        idle_s, lag = self._worker.progress
        return {
            "group": self.settings.kafka.topic(self.settings.stream.group),
            "servers": list(self.settings.kafka.servers),
            "rules": self.settings.stream.rules,
            "health": self.health(),
            "uptime_s": round(time.monotonic() - self._started_s, 1),
            "idle_s": round(idle_s, 1),
            "lag": lag,
            "watermark_ms": self._watermark_ms,
            "records_per_s": round(self._records_per_s, 1),
            "records": self.metrics.records(),
            "classes": self.metrics.classes(),
        }

    def _took(self, done: BatchDone) -> None:
        """Count a batch; in the worker's thread."""
        self.metrics.batch(done)
        self._watermark_ms = done.watermark_ms
        with self._lock:
            self._untold.update(done.classes)

    def _work(self) -> None:
        try:
            self._worker.run()
        except TidegraphError as error:
            _end(2 if isinstance(error, UserError) else 1, str(error))
        except BaseException:  # noqa: BLE001 - a defect of ours, and nobody else would see it
            _end(1, traceback.format_exc())

    def _watch(self) -> None:
        """End the process where it would not go on, or not end, by itself."""
        while True:
            time.sleep(min(0.5, self._watchdog_s / 4))
            if self._stop_by_s is not None:
                if time.monotonic() > self._stop_by_s:
                    self._end_late()
                continue
            idle_s, lag = self._worker.progress
            if lag and idle_s > self._watchdog_s:
                _end(
                    1,
                    f"watchdog: {lag} records wait and none was processed for {idle_s:.0f} s "
                    f"(stream.watchdog_s is {self._watchdog_s:g}); ending, to be started again",
                )
            if time.monotonic() - self._noted_s >= NOTE_S:
                self._note()

    def _note(self) -> None:
        """Say in the log how it goes."""
        now_s, records = time.monotonic(), sum(self.metrics.records().values())
        self._records_per_s = (records - self._noted_records) / (now_s - self._noted_s)
        self._noted_s, self._noted_records = now_s, records
        classes = ", ".join(f"{kind} {n}" for kind, n in self.metrics.classes().items())
        log.info(
            "%.0f records/s, %d waiting, watermark %s; %d so far: %s",
            self._records_per_s,
            self._worker.progress.lag,
            moment(self._watermark_ms),
            records,
            classes or "none",
        )

    def _end_late(self) -> NoReturn:
        if self._thread.is_alive():
            _end(1, f"the transaction in hand did not end within {STOP_S:g} s; it is given up")
        _end(0, "faust did not stop in time; everything is committed")


def _end(exit_status: int, message: str) -> NoReturn:
    """End the process from any thread, though the event loop may hang."""
    sys.stderr.write(f"Error: {message}\n" if exit_status else f"{message}\n")
    sys.stderr.flush()
    os._exit(exit_status)


class StreamApp(faust.App):
    """The app: ingestion begins before everything else, and ends before everything else."""

    ingest: Ingest
    class_counts: Any  # faust's topic

    async def on_first_start(self) -> None:
        """Make no folders, as faust would: the tables are in memory."""

    async def on_start(self) -> None:
        """Begin to ingest, whatever the tables still have to read back."""
        log.info("web view at http://127.0.0.1:%d/", self.conf.web_port)
        self.ingest.start()
        await super().on_start()

    async def on_stop(self) -> None:
        """End the transaction in hand, tell the tables of it, and let go of the broker."""
        await asyncio.to_thread(self.ingest.stop)
        await self.tell()
        await super().on_stop()

    async def tell(self) -> None:
        """Send what was processed since the last time to the tables of the group."""
        counts = self.ingest.untold()
        if counts is not None:
            try:
                await self.class_counts.send(value=counts, partition=0)
            except ProducerSendError as error:  # a view must not stop what it shows
                log.warning("class counts of a second are not in the tables: %s", error)


class Host(faust.Worker):
    """The process around the app."""

    app: StreamApp

    def execute_from_commandline(self) -> NoReturn:
        """Run until the app is told to stop; see :func:`run`."""
        self.spinner = None
        _port(self.app.conf.web_port)
        _check_broker(self.app.ingest.settings.kafka)
        super().execute_from_commandline()


def run(settings: Settings) -> NoReturn:
    """Run a stream worker until the process is told to stop.

    Raises
    ------
    BadSettings
        If the settings are not those of this broker or this machine.
    LogError
        If no broker answers.
    SystemExit
        With 0 if the process was told to stop, with 1 if faust failed. A worker that fails, or
        that does not get on, ends the process from its thread, with a message.

    """
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    handler.addFilter(_Sparing())
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    log.setLevel(logging.INFO)
    host = Host(build_app(settings), quiet=True, override_logging=False, redirect_stdouts=False)
    host.execute_from_commandline()


class _Sparing(logging.Filter):
    """Of what aiokafka says, one line in a while: it repeats itself while a broker is away."""

    def __init__(self) -> None:
        super().__init__()
        self._next_s = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.name.startswith("aiokafka"):
            return True
        now_s = time.monotonic()
        passes = now_s >= self._next_s
        if passes:
            self._next_s = now_s + NOTE_S
        return passes


def build_app(settings: Settings) -> StreamApp:
    """Return the app; nothing connects until it is started.

    Raises
    ------
    BadSettings
        If the rules or the files for TLS are not what they should be.

    Notes
    -----
    The windows go by when events were processed, not by the events' own time: faust forgets windows
    by the wall clock, so those of a log from years ago would be gone at once.

    The tables are global and everything counted comes by one partition, so that every worker of the
    group shows the counts of all. They are a view: faust counts a message again after a crash, and
    what was not yet told is lost with the process. Exact is what the offset commits say
    (``stream.commits``).
    """
    kafka = settings.kafka
    app = StreamApp(
        f"{kafka.topic(settings.stream.group)}-app",
        broker=[f"aiokafka://{server}" for server in kafka.servers],
        broker_credentials=_credentials(kafka),
        broker_session_timeout=10.0,  # the tables of a killed worker are taken over after that
        store="memory://",
        topic_replication_factor=kafka.replication,
        topic_disable_leader=True,
        web_port=settings.stream.port or _port(0),
        web_router_enabled=False,
        web_tables_enabled=False,
        autodiscover=False,
        stream_wait_empty=False,
        Worker=Host,
    )
    app.ingest = Ingest(settings)
    app.class_counts = app.topic(
        kafka.topic(CLASS_COUNTS), value_type=ClassCounts, partitions=kafka.partitions
    )

    def table(name: str, size_s: float, expires_s: float) -> Any:
        return (
            app.GlobalTable(
                name,
                help=f"Events by class, in windows of {size_s:.0f} s, for {expires_s:.0f} s.",
                default=int,
                partitions=kafka.partitions,
                recovery_buffer_size=1,  # as faust asks of global tables
                extra_topic_configs={"segment.ms": "600000"},  # only closed ones are compacted
            )
            .tumbling(size_s, expires=expires_s)
            .relative_to_field(ClassCounts.at_s)  # type: ignore[arg-type] # a descriptor, by faust
        )

    minutes = table("classes-by-minute", _MINUTE_S, _DAY_S)
    hours = table("classes-by-hour", _HOUR_S, 7 * _DAY_S)

    @app.agent(app.class_counts, name="count-classes")
    async def count_classes(told: Any) -> None:
        """Count what the workers of the group tell."""
        async for counts in told:
            for kind, events in counts.classes.items():
                minutes[kind] += events
                hours[kind] += events

    @app.timer(TELL_S)
    async def tell() -> None:
        await app.tell()

    @app.timer(NOTE_S)
    async def measure_lag() -> None:
        app.ingest.measure_lag()

    @app.timer(_MINUTE_S)
    async def forget() -> None:
        # faust forgets only what this process counted itself, not what it read back or follows.
        for table in (minutes, hours):
            data, oldest_s = table.table.data, time.time() - table.table.window.expires
            for key in [key for key in data if key[1][1] < oldest_s]:
                del data[key]

    def shown(table: Any) -> list[Window]:
        return windows(table.table.data.items())

    def state() -> dict[str, Any]:
        return {**app.ingest.state(), "tables_ready": app.tables.actives_ready}

    @app.page("/")
    async def index_page(self: View, _: Request) -> Response:
        return self.html(page(state(), shown(minutes), now_s=time.time()))

    @app.page("/state/")
    async def state_page(self: View, _: Request) -> Response:
        return self.json(state())

    @app.page("/classes/")
    async def classes_page(self: View, _: Request) -> Response:
        told = {"minutes": minutes, "hours": hours}
        return self.json(
            {name: [window.json() for window in shown(table)] for name, table in told.items()}
        )

    @app.page("/metrics")
    async def metrics_page(self: View, _: Request) -> Response:
        return self.text(app.ingest.metrics.text(), content_type="text/plain")

    @app.page("/healthz")
    async def health_page(self: View, _: Request) -> Response:
        health = app.ingest.health()
        return self.json({"health": health}, status=200 if health == "ok" else 503)

    return app


def __getattr__(name: str) -> StreamApp:
    """Make the app when faust's command line asks for it, from ``TIDEGRAPH_CONFIG``."""
    if name != "app":
        raise AttributeError(name)
    app = globals()[name] = build_app(load_settings())
    return app


def _credentials(kafka: KafkaSettings) -> Any:
    context = tls_context(kafka)
    if kafka.security.startswith("SASL"):
        return faust.SASLCredentials(
            username=kafka.user,
            password=kafka.password,
            mechanism=kafka.mechanism,
            ssl_context=context,
        )
    return None if context is None else faust.SSLCredentials(context)


def _port(wanted: int) -> int:
    """Return a port that nobody listens on: the one that is wanted, or with 0 any."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", wanted))
        except OSError as error:
            raise BadSettings(
                f"settings: cannot listen on port {wanted} ({error.strerror}); "
                "set stream.port to a free one, or to 0 for any"
            ) from error
        return int(probe.getsockname()[1])


def _check_broker(kafka: KafkaSettings) -> None:
    """Make sure that faust finds what it needs, as it would wait for it or end in a traceback."""
    connection = KafkaLog(kafka)
    try:
        came = connection.partitions(CLASS_COUNTS)
    finally:
        connection.close()
    if came != kafka.partitions:
        raise BadSettings(
            f"kafka: {kafka.topic(CLASS_COUNTS)} has {came} partitions, want {kafka.partitions}; "
            "set kafka.partitions, or delete the topic and make it anew with "
            "`tidegraph topics create`"
        )
