"""The learner as a process: reads feedback, learns, forgets, publishes, saves; may be killed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from graph_store.graph import GraphConfig, TemporalGraph
from graph_store.snapshot import State, newest_whole
from learner.attributes import Attributes
from learner.merge import UNREADABLE, Merge, Rows, read_rows
from learner.metrics import LearnerMetrics
from learner.models.sta_hawkes import STAHawkes, STAHawkesConfig
from learner.online import OnlineLearner
from learner.prequential import Prequential
from learner.publish import Publisher
from learner.report import report
from learner.saving import KEEP, Saving, locked, snapshot_key
from serving.table import Table
from stream.errors import BadPosition, BadSnapshot, LogError, TableError, TableTaken
from stream.events import Kind
from stream.log import Log, Positions, advance
from stream.settings import Settings
from stream.typing_rules import load_rules

Start = Literal["snapshot", "earliest", "latest"] | int
"""Where to begin: a place, or the time since which records were appended, in ms."""

TOPIC: Final = "feedback"

_READ: Final = 4_096
"""Records asked for at a time."""

_HELD: Final = 50_000
"""Rows of a partition that are held back for the others, at most: some tens of megabytes."""

_LINGER_S: Final = 0.05
"""How long a micro-batch may wait until it is full: a step of few events costs nearly as much."""

_LAGGING: Final = 4
"""Micro-batches in hand at which the next one is twice as large."""

_PUBLISHING: Final = 4.0
"""Seconds of learning for each of publishing, at least, so that the table never takes over."""

_TABLE_AWAY: Final = 9.0
"""The same where the table did not answer."""

_RETRY_S: Final = (0.2, 1.0)
"""Pause after a write that failed: the first, and the longest."""

_DESCRIBE_S: Final = 0.2
_LAG_S: Final = 0.5
_PROGRESS_S: Final = 5.0
_REPORT_S: Final = 1.0
_SAMPLES: Final = 100_000
"""Events whose way is remembered until they are in view; beyond, one stands for two."""

_log = logging.getLogger(__name__)


class LearnerWorker:
    """Follows the topic ``feedback`` until it is told to stop.

    First it is *loading*: at full speed, with publishing held back. Once it has caught up it
    publishes every row and follows. Its position in the log is part of its snapshots alone.

    A user who wants to be forgotten is taken out of graph, model and table in the order of the log:
    what came before the erasure counts no more, and what comes after it is of a new user. The next
    snapshot does not know the user, and those before it are removed with its writing.

    What is said of items and users goes from its topics straight to the table, while following.

    Parameters
    ----------
    settings
        Of the process.
    log
        Where feedback is read, and what is said of items and users.
    table
        Where rows are published.
    start
        Where to begin; ``snapshot`` is the newest that is whole, or the earliest record where there
        is no snapshot yet.
    model, graph
        What is learned, and what is remembered; the shipped defaults.

    Raises
    ------
    BadSnapshot
        If the folder belongs to another process, or its snapshots were made with something else.
    BadPosition
        If the log does not have what lies at the snapshot's position.
    BadRules
        If the rules by which events are to be typed anew must not be used.

    """

    def __init__(
        self,
        settings: Settings,
        log: Log,
        table: Table,
        *,
        start: Start = "snapshot",
        model: STAHawkesConfig | None = None,
        graph: GraphConfig | None = None,
    ) -> None:
        self.settings = settings.learner
        self.metrics = LearnerMetrics()
        self._log = log
        self._table = table
        self._start = start
        graph_config = graph or GraphConfig()
        config = replace(
            model or STAHawkesConfig(),
            seed=self.settings.seed,
            device=self.settings.device or ("cuda" if torch.cuda.is_available() else "cpu"),
        )
        self.graph = TemporalGraph(graph_config)
        build = partial(
            STAHawkes, config, k=graph_config.k_user, n_half_lives=len(graph_config.half_lives_ms)
        )
        self.model = build()
        self._learner = OnlineLearner(self.graph, self.model)
        self.prequential = Prequential(
            self.model,
            share=self.settings.ranked_share,
            seed=self.settings.seed,
            twin=build if self.settings.frozen else None,
        )
        self._publisher = Publisher(table, self.graph, self.model, now_ms=_now_ms, dim=config.dim)
        self._rules = load_rules(self.settings.rules) if self.settings.rules else None
        self._snapshot_key = snapshot_key(self.settings)
        self._saving = Saving(
            Path(self.settings.snapshots),
            key=self._snapshot_key,
            fingerprint=fingerprint(settings, config, graph_config),
            state=self._state,
        )
        self._fingerprint = fingerprint(settings, config, graph_config)
        self._on_gpu = config.device != "cpu"
        self._stop = False
        self.following = False  # else loading
        self.positions: Positions = {}  # what lies before them is in the graph
        self._read_to: Positions = {}
        self._attributes = Attributes(log)
        self._losses = 0  # of the table, when attributes were last read from the start
        self._counts = {"events": 0, "erasures": 0, "unreadable": 0}
        self._classes = np.zeros(len(Kind), np.int64)  # events by kind
        self._merge = Merge([], idle_s=0.0, now_s=0.0)
        self._rows = Rows.concat([])  # in order, from ``_next`` on not learned yet
        self._next = 0
        self._came_s = 0.0  # when the first of them came
        self._size = self.settings.micro_batch
        self._samples: list[tuple[NDArray[np.int64], float]] = []
        self._n_samples = 0
        self._publish_at_s = self._spare_at_s = 0.0
        self._lag_at_s = self._progress_at_s = self._save_at_s = 0.0
        self._saved_s = time.monotonic()
        self._describe_at_s = 0.0
        self._saving_erasures = self._saved_erasures = 0  # that every kept snapshot knows of
        self._retry_s = _RETRY_S[0]
        self._told: tuple[float, int] = (0.0, 0)
        self._report_at_s = 0.0
        self._reported: tuple[float, int] = (0.0, 0)

    def stop(self) -> None:
        """Let :meth:`run` return soon, with a last snapshot; from any thread or signal handler."""
        self._stop = True

    def run(self, on_turn: Callable[[LearnerWorker], None] = lambda worker: None) -> None:
        """Follow the log until :meth:`stop`.

        Parameters
        ----------
        on_turn
            Called after each turn of the loop.

        Raises
        ------
        TableTaken
            If another learner publishes there now; a snapshot is written first.
        LogError
            If the broker does not answer as wanted; one that is away is waited for.

        """
        with locked(Path(self.settings.snapshots)):
            self._begin()
            try:
                while not self._stop:
                    self._turn()
                    on_turn(self)
                if self.following and self.metrics.values["table_up"]:
                    self._publish()
            except TableTaken:
                self._save_now()
                raise
            finally:
                self._saving.give_up()
            self._save_now()

    def lag(self) -> int:
        """Return how many records of the log are not learned yet."""
        return self._log.lag(TOPIC, self._read_to) + len(self._merge) + self._in_hand

    @property
    def _in_hand(self) -> int:
        return len(self._rows) - self._next

    def _begin(self) -> None:
        """Restore what a snapshot holds, and find out where to read."""
        n_partitions = self._log.partitions(TOPIC)
        state = None
        if self._start == "snapshot":
            state = newest_whole(
                Path(self.settings.snapshots),
                fingerprint=self._fingerprint,
                key=self._snapshot_key,
            )
        if state is not None:
            self._restore(state)
            self._check_positions(n_partitions)
            _log.info("resumed a snapshot of %d events", self._counts["events"])
        elif self._start == "latest":
            self.positions = self._log.end(TOPIC)
        elif isinstance(self._start, int):
            self.positions = self._log.at(TOPIC, self._start)
        else:
            self.positions = self._log.start(TOPIC)
        self._read_to = dict(self.positions)
        now_s = time.monotonic()
        self._merge = Merge(range(n_partitions), idle_s=self.settings.idle_s, now_s=now_s)
        self._save_at_s = now_s + self.settings.snapshot_s
        self._progress_at_s = now_s + _PROGRESS_S
        self._told = self._reported = (now_s, self._counts["events"])
        self.graph.users.state()  # compiled now, so that no child of ours has to

    def _check_positions(self, n_partitions: int) -> None:
        """Make sure that the log still has what comes next."""
        if len(self.positions) != n_partitions:
            raise BadSnapshot(
                f"{self.settings.snapshots}: made with {len(self.positions)} partitions of "
                f"{TOPIC}, which has {n_partitions} now; rebuild with --from earliest"
            )
        first, end = self._log.start(TOPIC), self._log.end(TOPIC)
        for number, position in self.positions.items():
            if not first[number] <= position <= end[number]:
                raise BadPosition(
                    f"{TOPIC}, partition {number}: the snapshot goes on at {position}, the log has "
                    f"{first[number]} to {end[number]}; it was cut or made anew, so rebuild with "
                    "--from earliest"
                )

    def _turn(self) -> None:
        if self._in_hand < self.settings.micro_batch:
            self._read()
        now_s = time.monotonic()
        if self._in_hand >= self.settings.micro_batch or (
            self._in_hand and (now_s - self._came_s >= _LINGER_S or not self.following)
        ):
            self._learn()
        now_s = time.monotonic()
        if now_s >= self._lag_at_s:
            self._look_at_lag()
            self._lag_at_s = time.monotonic() + _LAG_S
        if self.following and now_s >= self._describe_at_s:
            self._describe()
        # Where nothing waits to be learned, publishing takes no time from learning.
        busy = self._in_hand or self.metrics.values["lag_records"]
        if self.following and now_s >= (self._publish_at_s if busy else self._spare_at_s):
            self._publish()
        if now_s >= self._report_at_s:
            self._report(now_s)
        self._save(now_s)
        if now_s >= self._progress_at_s:
            self._tell(now_s)

    def _read(self) -> None:
        wanted = {
            number: at for number, at in self._read_to.items() if self._merge.held(number) < _HELD
        }
        records = self._log.read(TOPIC, wanted, limit=_READ)
        now_s = time.monotonic()
        if records:
            rows, told = read_rows(records, read_ms=_now_ms(), rules=self._rules)
            for each in told:
                _log.error("left out a record that cannot be read: %s", each)
            self._read_to = advance(self._read_to, records)
            self._merge.push(rows, now_s)
        more = self._merge.take(now_s, has_more=self._has_more)
        if len(more):
            if not self._in_hand:
                self._came_s = now_s
                self._rows, self._next = more, 0
            else:
                rest = self._rows.take(np.arange(self._next, len(self._rows)))
                self._rows, self._next = Rows.concat([rest, more]), 0

    def _has_more(self, partition: int) -> bool:
        try:
            return self._log.lag(TOPIC, {partition: self._read_to[partition]}) > 0
        except LogError as error:  # the broker is away: nobody knows, so wait
            _log.warning("%s", error)
            return True

    def _learn(self) -> None:
        """Take the next micro-batch, larger the more of them wait."""
        smallest, largest = self.settings.micro_batch, self.settings.max_micro_batch
        if not self.following:
            self._size = largest
        elif self._in_hand > _LAGGING * self._size:
            self._size = min(2 * self._size, largest)
        elif self._in_hand < self._size:
            self._size = max(self._size // 2, smallest)
        rows = self._rows.take(np.arange(self._next, min(self._next + self._size, len(self._rows))))
        self._next += len(rows)
        started = time.perf_counter()
        for events, erased in rows.turns():
            if len(events):
                step = self._learner.step(events, rank=self.prequential.rank)
                self.prequential.learned(step.loss)
                self._publisher.touched(step.view, step.users, step.items)
                self._counts["events"] += len(events)
                self._classes += np.bincount(events.kind, minlength=len(Kind))
            for user_id in erased:
                forgotten = self._learner.forget(user_id)
                if forgotten is not None:
                    self.prequential.forget(forgotten.user)
                self._publisher.forget(user_id, forgotten)
            self._counts["erasures"] += len(erased)
        self._counts["unreadable"] += int(np.count_nonzero(rows.what == UNREADABLE))
        ends = zip(rows.partition.tolist(), (rows.offset + 1).tolist(), strict=True)
        self.positions.update(ends)  # in each partition's order, so the last one stays
        self.metrics.step_s.add(np.array([time.perf_counter() - started]))
        if self.following:
            self._remember(rows.stamps_ms)
        self._show()

    def _remember(self, stamps_ms: NDArray[np.int64]) -> None:
        """Keep the times of events until their rows are in view."""
        learned = np.full((stamps_ms.shape[0], 1), _now_ms())
        self._samples.append((np.hstack([stamps_ms, learned]), 1.0))
        self._n_samples += stamps_ms.shape[0]
        if self._n_samples > _SAMPLES:
            self._samples = [(stamps[::2], 2.0 * weight) for stamps, weight in self._samples]
            self._n_samples = sum(stamps.shape[0] for stamps, _ in self._samples)

    def _look_at_lag(self) -> None:
        try:
            lag = self.lag()
        except LogError as error:  # reading goes on when the broker is back
            _log.warning("%s", error)
            return
        self.metrics.values["lag_records"] = lag
        if not self.following and lag <= self.settings.ready_lag:
            self.following = True
            self._publisher.touched_all()
            try:
                self._table.reader()
            except TableError:  # it is empty, or nobody knows
                self._attributes.read_again()
            _log.info("caught up with the log after %d events", self._counts["events"])

    def _describe(self) -> None:
        """Read what was said of items and users, unless some of it still waits to be published."""
        if not self._publisher.describing:
            try:
                self._publisher.describe(self._attributes.read())
            except LogError as error:  # reading goes on when the broker is back
                _log.warning("%s", error)
        self._describe_at_s = time.monotonic() + _DESCRIBE_S

    def _publish(self) -> None:
        """Write touched rows; without a table go on learning, and try again after a pause."""
        values = self.metrics.values
        started = time.monotonic()
        try:
            whole = self._publisher.publish_part()
        except TableTaken:
            values["table_up"] = 0
            raise
        except TableError as error:
            ended = time.monotonic()
            self._publish_at_s = ended + max(self._retry_s, _TABLE_AWAY * (ended - started))
            self._spare_at_s = self._publish_at_s
            self._retry_s = min(2 * self._retry_s, _RETRY_S[1])
            if values["table_up"] or not values["table_errors"]:
                _log.warning("publishing is held back until the table answers: %s", error)
            values["table_up"] = 0
            values["table_errors"] += 1
        else:
            ended = time.monotonic()
            # As long as readers see nothing newer at all, one turn of each is enough.
            pause_s = _PUBLISHING * (ended - started) if self._publisher.in_view else 0.0
            self._spare_at_s = started + self.settings.publish_s if whole else ended
            self._publish_at_s = max(ended + pause_s, self._spare_at_s)
            self._retry_s = _RETRY_S[0]
            if not values["table_up"] and values["table_errors"]:
                _log.info("the table answers again")
            values["table_up"] = 1
            values["publishes"] += 1
            if not self._publisher.describing:
                self._attributes.published()
            if whole:
                self._in_view()
        if self._losses != self._publisher.losses:
            self._losses = self._publisher.losses
            self._attributes.read_again()
        values["waiting_rows"] = self._publisher.waiting

    def _in_view(self) -> None:
        """Count how long the events took whose rows are now in view."""
        if not self.metrics.values["ready"]:
            self.metrics.values["ready"] = 1
            _log.info("every row is in view: ready")
        if not self._samples:
            return
        learned = np.concatenate([stamps for stamps, _ in self._samples])
        weights = np.repeat(
            [weight for _, weight in self._samples], [len(stamps) for stamps, _ in self._samples]
        )
        published = np.full((learned.shape[0], 1), _now_ms())
        self.metrics.fresh(np.hstack([learned, published]), weights)
        self._samples, self._n_samples = [], 0

    def _save(self, now_s: float) -> None:
        """Begin a snapshot in the background when it is time; see how the last one went."""
        values = self.metrics.values
        values["snapshot_age_seconds"] = now_s - self._saved_s
        if (done := self._saving.poll()) is not None:
            values["snapshot_seconds"] = done.seconds
            if done.error is None:
                values["snapshots"] += 1
                self._saved_erasures = self._saving_erasures
            else:
                values["snapshot_errors"] += 1
                _log.error("a snapshot could not be written: %s", done.error)
        if now_s >= self._save_at_s and not self._saving.busy:
            started = time.perf_counter()
            # A child must not touch the GPU, so what lies there is fetched before.
            self._saving_erasures = self._counts["erasures"]
            self._saving.begin(self._state() if self._on_gpu else None, keep=self._keep)
            values["snapshot_pause_seconds"] = time.perf_counter() - started
            self._saved_s = now_s
            self._save_at_s = now_s + self.settings.snapshot_s

    @property
    def _keep(self) -> int:
        """Return how many snapshots to leave: none that knows more than the next one."""
        return KEEP if self._counts["erasures"] == self._saved_erasures else 1

    def _save_now(self) -> None:
        self._saving.save(keep=self._keep)
        self._saved_erasures = self._counts["erasures"]
        self.metrics.values["snapshots"] += 1

    def _show(self) -> None:
        values, prequential = self.metrics.values, self.prequential
        values.update(self._counts)
        values["loss"] = prequential.loss.value
        values["hit_ratio_at_10"] = prequential.hit_ratio.value
        values["ndcg_at_10"] = prequential.ndcg.value
        values["watermark_seconds"] = self.graph.newest_ms / 1_000
        values["micro_batch"] = self._size
        self.metrics.drifts = prequential.drifts

    def _tell(self, now_s: float) -> None:
        """Log one line of progress."""
        before_s, before = self._told
        events = self._counts["events"]
        _log.info(
            "%s: %d events, %.0f/s, lag %d, loss %.3f, HR@10 %.3f, %d rows waiting",
            "following" if self.following else "loading",
            events,
            (events - before) / (now_s - before_s),
            self.metrics.values["lag_records"],
            self.prequential.loss.value,
            self.prequential.hit_ratio.value,
            self._publisher.waiting,
        )
        self._told = (now_s, events)
        self._progress_at_s = now_s + _PROGRESS_S

    def _report(self, now_s: float) -> None:
        """Tell the table how it goes; one that is away is asked seldom."""
        before_s, before = self._reported
        events = self._counts["events"]
        started = time.monotonic()
        try:
            self._table.tell(
                report(
                    self.metrics,
                    self.prequential,
                    classes={kind.label: int(self._classes[kind]) for kind in Kind},
                    events_per_s=(events - before) / max(now_s - before_s, 1e-3),
                    watermark_ms=self.graph.newest_ms,
                    following=self.following,
                    model=self._fingerprint,
                    now_ms=_now_ms(),
                )
            )
        except TableError as error:  # publishing says so aloud
            _log.debug("%s", error)
        ended = time.monotonic()
        self._report_at_s = ended + max(_REPORT_S, _TABLE_AWAY * (ended - started))
        self._reported = (now_s, events)

    def _state(self) -> State:
        return {
            "positions": sorted(self.positions.items()),
            "attributes": self._attributes.state(),
            "counts": dict(self._counts),
            "classes": self._classes.tolist(),
            "prequential": self.prequential.state(),
            "graph": self.graph.state(),
            "model": self.model.state(),
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self.positions = dict(state["positions"])
        self._attributes.restore(state.get("attributes", {}))
        self._counts = dict(state["counts"])
        self._classes = np.array(state.get("classes", self._classes), np.int64)
        self.prequential.restore(state["prequential"])
        self.graph.restore(state["graph"])
        self.model.restore(state["model"])
        self._show()


def fingerprint(settings: Settings, model: STAHawkesConfig, graph: GraphConfig) -> str:
    """Return 32 hex digits of what a snapshot must have been made of to be resumed.

    The device is left out: what was learned on one goes on on the other.
    """
    made_of: tuple[Any, ...] = settings.kafka.topic(TOPIC), replace(model, device="cpu"), graph
    if settings.learner.rules:
        made_of += (settings.learner.rules,)
    return blake2b(repr(made_of).encode(), digest_size=16).hexdigest()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
