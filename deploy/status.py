"""``tidegraph status``: on one screen, how every part of a running system is doing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeVar

import click
import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from deploy.readings import Broker, Down, Metrics, Readings, Topic, read
from graph_store.snapshot import Described
from serving.redis_table import TableInfo
from stream.commits import Commit
from stream.intake import Accounting
from stream.options import config_option
from stream.settings import load_settings
from stream.topics import INTERACTIONS

_SAMPLE_S: Final = 1.0
_WATCH_S: Final = 2.0
_STAGES: Final = ("typed", "read", "learned", "published", "total")
_TOLD: Final = ("in_", "feedback", "no_signal", "duplicate", "late", "dead")

_Part = TypeVar("_Part")


class Section(msgspec.Struct, kw_only=True):
    """One part of the system; without a problem it is up.

    Where there is a problem, the other fields hold what is known all the same.
    """

    problem: str = ""
    remedy: str = ""


class BrokerStatus(Section):
    """The broker."""

    servers: str = ""
    version: str = ""
    nodes: int = 0


class TopicStatus(msgspec.Struct):
    """One topic; ``records`` is how many offsets lie between its beginnings and its ends."""

    name: str
    partitions: int
    records: int
    ends: list[int]
    retention_ms: int | None


class TopicsStatus(Section):
    """All topics."""

    topics: list[TopicStatus] = []


class PartitionStatus(msgspec.Struct):
    """One partition of ``interactions``, and how far it is typed.

    ``lag`` is an upper bound: the end of a transaction, as of a redrive, takes an offset too.
    """

    partition: int
    committed: int | None
    end: int
    lag: int
    watermark_ms: int | None


class StreamStatus(Section):
    """The stream workers: from what they commit, and from the counters of the one that is here."""

    partitions: list[PartitionStatus] = []
    lag: int | None = None
    records_per_s: float | None = None
    watermark_ms: int | None = None
    behind_s: float | None = None
    accounting: dict[str, int] = {}
    accounted: bool | None = None
    classes: dict[str, int] = {}


class Span(msgspec.Struct):
    """Half, and 99 of 100, took no longer, in seconds since the worker started."""

    p50_s: float | None
    p99_s: float | None


class LearnerStatus(Section):
    """The learner."""

    ready: bool | None = None
    events: int | None = None
    events_per_s: float | None = None
    lag: int | None = None
    loss: float | None = None
    hit_ratio_at_10: float | None = None
    ndcg_at_10: float | None = None
    micro_batch: int | None = None
    watermark_ms: int | None = None
    table_up: bool | None = None
    waiting_rows: int | None = None
    freshness: dict[str, Span] = {}


class ApiStatus(Section):
    """The API: all its processes, and of their state that of the one that is worst off.

    ``figures`` tells why no more is known than whether it is ready.
    """

    where: str = ""
    figures: str = ""
    ready: bool | None = None
    epoch: int | None = None
    step: int | None = None
    age_s: float | None = None
    items: int | None = None
    users_kept: int | None = None
    table_up: bool | None = None
    requests_per_s: float | None = None
    lists: Span | None = None
    answered_by: dict[str, int] = {}
    stale_lists: int | None = None
    experiments: int | None = None


class TableStatus(Section):
    """The published table in Redis; ``epoch`` is the version of the model."""

    where: str = ""
    epoch: int | None = None
    row_layout: int | None = None
    step: int | None = None
    at_ms: int | None = None
    age_s: float | None = None
    users: int | None = None
    items: int | None = None
    memory_bytes: int | None = None


class SnapshotStatus(Section):
    """The newest snapshot."""

    number: int | None = None
    age_s: float | None = None
    n_bytes: int | None = None


class Status(msgspec.Struct, kw_only=True):
    """How everything is; the JSON of ``tidegraph status --json`` has these very keys."""

    at_ms: int
    well: bool
    broker: BrokerStatus
    topics: TopicsStatus
    stream: StreamStatus
    learner: LearnerStatus
    api: ApiStatus
    table: TableStatus
    snapshot: SnapshotStatus


def judge(now: Readings, before: Readings | None = None) -> Status:
    """Make a status of what was read, and of what was read before where rates are wanted."""
    broker = _down(BrokerStatus, now.broker)
    if isinstance(now.broker, Broker):
        broker = BrokerStatus(**now.broker._asdict())
    table = _down(TableStatus, now.table)
    if isinstance(now.table, TableInfo):
        table = TableStatus(
            where=now.table.where,
            epoch=now.table.epoch,
            row_layout=now.table.row_layout,
            step=now.table.barrier.step,
            at_ms=now.table.barrier.at_ms,
            age_s=now.table.age_ms / 1_000,
            users=now.table.users,
            items=now.table.items,
            memory_bytes=now.table.memory_bytes,
        )
    snapshot = _down(SnapshotStatus, now.snapshot)
    if isinstance(now.snapshot, Described):
        newest = now.snapshot
        snapshot = SnapshotStatus(
            number=newest.number, age_s=now.at_s - newest.written_s, n_bytes=newest.n_bytes
        )
    topics, stream, learner = _topics(now), _stream(now, before), _learner(now, before)
    api = _api(now, before)
    sections: tuple[Section, ...] = (broker, topics, stream, learner, api, table, snapshot)
    return Status(
        at_ms=round(now.at_s * 1_000),
        well=not any(section.problem for section in sections),
        broker=broker,
        topics=topics,
        stream=stream,
        learner=learner,
        api=api,
        table=table,
        snapshot=snapshot,
    )


_S = TypeVar("_S", bound=Section)


def _down(section: type[_S], reading: object) -> _S:
    if isinstance(reading, Down):
        return section(problem=reading.problem, remedy=reading.remedy)
    return section()


def _topics(now: Readings) -> TopicsStatus:
    status = _down(TopicsStatus, now.topics)
    if isinstance(now.topics, Down):
        return status
    status.topics = [
        TopicStatus(
            topic.name,
            len(topic.end),
            sum(topic.end.values()) - sum(topic.start.values()),
            [topic.end[number] for number in sorted(topic.end)],
            topic.retention_ms,
        )
        for topic in now.topics
    ]
    if missing := [topic.name for topic in now.topics if not topic.end]:
        status.problem = f"missing: {', '.join(missing)}"
        status.remedy = "make them with `tidegraph topics create`"
    return status


def _stream(now: Readings, before: Readings | None) -> StreamStatus:
    status = _down(StreamStatus, now.stream)
    if isinstance(now.stream, Metrics):
        classes = now.stream.by("tidegraph_stream_classes_total", "kind")
        status.classes = {kind: int(count) for kind, count in classes.items()}
    if isinstance(now.commits, Down) or isinstance(now.topics, Down):
        if not status.problem and isinstance(now.commits, Down):
            status.problem, status.remedy = now.commits
        return status
    commits = now.commits
    topic = next((each for each in now.topics if each.name == INTERACTIONS), None)
    if topic is not None and topic.end:
        status.partitions = [_partition(topic, number, commits) for number in sorted(topic.end)]
        status.lag = sum(each.lag for each in status.partitions)
    accounting = sum((commit.accounting for _, commit in commits.values()), Accounting())
    status.accounting = asdict(accounting)
    parts = sum(status.accounting[name] for name in _TOLD[1:])
    status.accounted = parts == accounting.in_
    if not status.accounted:
        status.problem = f"{accounting.in_} records came in, {parts} are accounted for"
        status.remedy = "stop: events were lost or counted twice, which is a defect; report it"
    watermarks = [commit.watermark_ms for _, commit in commits.values() if commit.watermark_ms]
    if watermarks:
        status.watermark_ms = max(watermarks)
        status.behind_s = now.at_s - status.watermark_ms / 1_000
    if before is not None and not isinstance(before.commits, Down):
        earlier = sum(commit.accounting.in_ for _, commit in before.commits.values())
        status.records_per_s = _rate(accounting.in_, earlier, now.at_s - before.at_s)
    return status


def _partition(
    topic: Topic, number: int, commits: dict[int, tuple[int, Commit]]
) -> PartitionStatus:
    end = topic.end[number]
    if number not in commits:
        return PartitionStatus(number, None, end, end - topic.start[number], None)
    committed, commit = commits[number]
    lag = max(0, end - max(committed, topic.start[number]))
    return PartitionStatus(number, committed, end, lag, commit.watermark_ms or None)


def _learner(now: Readings, before: Readings | None) -> LearnerStatus:
    status = _down(LearnerStatus, now.learner)
    if isinstance(now.learner, Down):
        return status
    metrics = now.learner
    events = "tidegraph_learner_events_total"
    status.ready = _truth(metrics, "tidegraph_learner_ready")
    status.events = _whole(metrics, events)
    status.lag = _whole(metrics, "tidegraph_learner_lag_records")
    status.loss = metrics.value("tidegraph_learner_loss")
    status.hit_ratio_at_10 = metrics.value("tidegraph_learner_hit_ratio_at_10")
    status.ndcg_at_10 = metrics.value("tidegraph_learner_ndcg_at_10")
    status.micro_batch = _whole(metrics, "tidegraph_learner_micro_batch")
    status.table_up = _truth(metrics, "tidegraph_learner_table_up")
    status.waiting_rows = _whole(metrics, "tidegraph_learner_waiting_rows")
    if seconds := metrics.value("tidegraph_learner_watermark_seconds"):
        status.watermark_ms = round(seconds * 1_000)
    freshness = "tidegraph_learner_freshness_seconds"
    status.freshness = {
        stage: Span(
            metrics.quantile(freshness, 0.5, stage=stage),
            metrics.quantile(freshness, 0.99, stage=stage),
        )
        for stage in _STAGES
    }
    if before is not None and isinstance(before.learner, Metrics) and status.events is not None:
        earlier = before.learner.value(events)
        if earlier is not None:
            status.events_per_s = _rate(status.events, earlier, now.at_s - before.at_s)
    return status


def _api(now: Readings, before: Readings | None) -> ApiStatus:
    if isinstance(now.api, Down):
        return _down(ApiStatus, now.api)
    status = ApiStatus(where=now.api.where, ready=not now.api.unready)
    if now.api.unready:
        status.problem = f"not ready: {now.api.unready}"
        status.remedy = "does a learner publish, and does Redis answer? Old lists are given so far"
    metrics = now.api.metrics
    if isinstance(metrics, Down):
        status.figures = f"{metrics.problem}: {metrics.remedy}"
        return status
    status.epoch = _whole(metrics, "tidegraph_api_epoch") or None
    if status.epoch is not None:
        status.step = _whole(metrics, "tidegraph_api_step")
        status.age_s = metrics.value("tidegraph_api_published_age_seconds")
    status.items = _whole(metrics, "tidegraph_api_items")
    status.users_kept = _whole(metrics, "tidegraph_api_users_kept")
    status.table_up = _truth(metrics, "tidegraph_api_table_up")
    status.experiments = _whole(metrics, "tidegraph_api_experiments")
    seconds, route = "tidegraph_api_seconds", "/v1/recommendations/{user}"
    status.lists = Span(
        metrics.quantile(seconds, 0.5, route=route), metrics.quantile(seconds, 0.99, route=route)
    )
    lists = "tidegraph_api_lists_total"
    status.answered_by = {by: int(n) for by, n in metrics.by(lists, "answered_by").items()}
    status.stale_lists = int(metrics.by(lists, "stale").get("yes", 0))
    earlier = None if before is None or isinstance(before.api, Down) else before.api.metrics
    if before is not None and isinstance(earlier, Metrics):
        gone_s = now.at_s - before.at_s
        status.requests_per_s = _rate(_requests(metrics), _requests(earlier), gone_s)
    return status


def _requests(metrics: Metrics) -> float:
    """Return how many answers there were, other than to probes and to questions like ours."""
    by_route = metrics.by("tidegraph_api_seconds_count", "route")
    return sum(count for route, count in by_route.items() if route.startswith("/v1/"))


def _whole(metrics: Metrics, name: str) -> int | None:
    value = metrics.value(name)
    return None if value is None else int(value)


def _truth(metrics: Metrics, name: str) -> bool | None:
    value = metrics.value(name)
    return None if value is None else bool(value)


def _rate(count: float, earlier: float, seconds: float) -> float | None:
    """Return how fast a counter grows; ``None`` where it was started anew."""
    return (count - earlier) / seconds if seconds > 0 and count >= earlier else None


def screen(status: Status) -> RenderableType:
    """Return what a terminal shows."""
    date = _date(status.at_ms)
    verdict = "[bold green]all is well[/]" if status.well else "[bold red]something is down[/]"
    parts = Table.grid(padding=(0, 2))
    parts.add_column(no_wrap=True)
    parts.add_column(no_wrap=True)
    parts.add_column(overflow="fold")
    rows: list[tuple[str, Section, str]] = [
        ("broker", status.broker, _broker_line(status.broker)),
        ("topics", status.topics, _topics_line(status.topics)),
        ("stream", status.stream, _stream_line(status.stream)),
        ("learner", status.learner, _learner_line(status.learner)),
        ("API", status.api, _api_line(status.api)),
        ("table", status.table, _table_line(status.table)),
        ("snapshot", status.snapshot, _snapshot_line(status.snapshot)),
    ]
    for name, section, line in rows:
        state = Text("down", "bold red") if section.problem else Text("up", "green")
        told = Text(line)
        if section.problem:
            told = Text("\n").join(
                [
                    Text(section.problem, "red"),
                    *([Text(f"-> {section.remedy}", "yellow")] if section.remedy else []),
                    *([told] if line else []),
                ]
            )
        parts.add_row(Text(name, "bold"), state, told)
    facts = Table.grid(padding=(0, 2))
    facts.add_column(no_wrap=True, min_width=8)
    facts.add_column(overflow="fold")
    for name, fact in _facts(status):
        facts.add_row(Text(name, "bold"), fact)
    tables = [block for block in (_partitions(status.stream), _logs(status.topics)) if block]
    side_by_side = Table.grid(padding=(0, 4))
    side_by_side.add_row(*tables)
    head = Text.from_markup(f"[bold]tidegraph[/] {date} UTC  {verdict}")
    shown: list[RenderableType] = [head, "", parts, ""]
    shown += [facts, ""] if facts.row_count else []
    return Group(*shown, side_by_side)


def _broker_line(broker: BrokerStatus) -> str:
    if not broker.nodes:
        return ""
    return f"Kafka {broker.version} at {broker.servers}, {_many(broker.nodes, 'node')}"


def _topics_line(topics: TopicsStatus) -> str:
    there = sum(topic.partitions > 0 for topic in topics.topics)
    return f"{there} of {len(topics.topics)}" if topics.topics else ""


def _stream_line(stream: StreamStatus) -> str:
    return _joined(
        _known(stream.records_per_s, "{:,.0f} records/s"),
        _known(stream.lag, "lag {:,}"),
        _known(stream.watermark_ms, "watermark {}", _date),
        _known(stream.behind_s, "{} behind the clock", span),
    )


def _learner_line(learner: LearnerStatus) -> str:
    return _joined(
        _known(learner.ready, "{}", lambda ready: "ready" if ready else "catching up"),
        _known(learner.events_per_s, "{:,.0f} events/s"),
        _known(learner.lag, "lag {:,}"),
        _known(learner.loss, "loss {:.4f}"),
        _known(learner.hit_ratio_at_10, "HR@10 {:.4f}"),
        _known(learner.ndcg_at_10, "NDCG@10 {:.4f}"),
        _known(learner.micro_batch, "micro-batch {:,}"),
        "" if learner.table_up in {None, True} else "cannot publish",
        _known(learner.waiting_rows or None, "{:,} rows wait for Redis"),
    )


def _api_line(api: ApiStatus) -> str:
    return _joined(
        api.where,
        "ready" if api.ready else "",
        _known(api.epoch, "epoch {}"),
        _known(api.step, "step {:,}"),
        _known(api.age_s, "rows {} old", span),
        _known(api.items, "{:,} items"),
        _known(api.users_kept, "{:,} users kept"),
        "" if api.table_up in {None, True} else "Redis does not answer it",
        _known(api.requests_per_s, "{:,.0f} requests/s"),
        _known(api.experiments or None, "{} experiments"),
        api.figures,
    )


def _table_line(table: TableStatus) -> str:
    return _joined(
        _known(table.epoch, "epoch {}"),
        _known(table.step, "step {:,}"),
        _known(table.age_s, "written {} ago", span),
        _known(table.users, "{:,} users"),
        _known(table.items, "{:,} items"),
        _known(table.memory_bytes, "Redis holds {}", size),
    )


def _snapshot_line(snapshot: SnapshotStatus) -> str:
    return _joined(
        _known(snapshot.number, "number {}"),
        _known(snapshot.age_s, "{} old", span),
        _known(snapshot.n_bytes, "{}", size),
    )


def _facts(status: Status) -> Iterator[tuple[str, Text]]:
    """Tell what became of records, the classes, the lists, and how long until events count."""
    told = status.stream.accounting
    if told.get("in_"):
        parts = " + ".join(f"{name} {told[name]:,}" for name in _TOLD[1:])
        equals = Text("=", "green") if status.stream.accounted else Text("is not", "bold red")
        yield "records", Text.assemble(f"in {told['in_']:,} ", equals, f" {parts}")
    if total := sum(status.stream.classes.values()):
        shares = sorted(status.stream.classes.items(), key=lambda each: -each[1])
        yield "classes", Text(_joined(*(f"{kind} {count / total:.1%}" for kind, count in shares)))
    spans = [
        f"{stage} {span(each.p50_s)} / {span(each.p99_s)}"
        for stage, each in status.learner.freshness.items()
        if each.p50_s is not None and each.p99_s is not None
    ]
    if lists := sum(status.api.answered_by.values()):
        made = sorted(status.api.answered_by.items(), key=lambda each: -each[1])
        took = status.api.lists
        yield (
            "lists",
            Text(
                _joined(
                    f"{lists:,}",
                    *(f"{by} {count / lists:.1%}" for by, count in made),
                    _known(status.api.stale_lists or None, "{:,} stale"),
                    f"p50 / p99 {span(took.p50_s)} / {span(took.p99_s)}"
                    if took is not None and took.p50_s is not None and took.p99_s is not None
                    else "",
                )
            ),
        )
    if spans:
        yield "fresh", Text(f"p50 / p99 of each stage: {_joined(*spans)}")


def _partitions(stream: StreamStatus) -> RenderableType | None:
    if not stream.partitions:
        return None
    shown = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in ("partition", "committed", "end", "lag"):
        shown.add_column(name, justify="right")
    shown.add_column("watermark, UTC")
    for each in stream.partitions:
        shown.add_row(
            str(each.partition),
            "nothing" if each.committed is None else f"{each.committed:,}",
            f"{each.end:,}",
            f"{each.lag:,}",
            "" if each.watermark_ms is None else _date(each.watermark_ms),
        )
    return shown


def _logs(topics: TopicsStatus) -> RenderableType | None:
    there = [topic for topic in topics.topics if topic.partitions]
    if not there:
        return None
    shown = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    shown.add_column("topic")
    shown.add_column("partitions", justify="right")
    shown.add_column("offsets held", justify="right")
    shown.add_column("kept for")
    for each in there:
        kept = "good" if each.retention_ms is None else span(each.retention_ms / 1_000)
        shown.add_row(each.name, f"{each.partitions}", f"{each.records:,}", kept)
    return shown


def _known(
    value: _Part | None, wording: str, words: Callable[[_Part], object] = lambda value: value
) -> str:
    return "" if value is None else wording.format(words(value))


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _date(ts_ms: int) -> str:
    return datetime.fromtimestamp(ts_ms / 1_000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def span(seconds: float) -> str:
    """Write a span of time in the unit that suits it.

    Examples
    --------
    >>> [span(seconds) for seconds in (0.012, 3.4, 90, 7_200, 200_000, 1.3e8)]
    ['12 ms', '3.4 s', '1.5 min', '2.0 h', '2.3 d', '4.1 years']

    """
    for unit, length_s in (("years", 31_557_600), ("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length_s:
            return f"{seconds / length_s:.1f} {unit}"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1_000:.0f} ms"


def size(n_bytes: int) -> str:
    """Write a number of bytes in the unit that suits it.

    Examples
    --------
    >>> [size(n_bytes) for n_bytes in (900, 25_000, 3_400_000, 12_000_000_000)]
    ['900 B', '25.0 kB', '3.4 MB', '12.0 GB']

    """
    for unit, length in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n_bytes >= length:
            return f"{n_bytes / length:.1f} {unit}"
    return f"{n_bytes} B"


@click.command()
@config_option
@click.option("--watch", is_flag=True, help="Stay, and look again every two seconds, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for scripts.")
@click.option(
    "--api-key",
    default="",
    envvar="TIDEGRAPH_API_KEY",
    show_envvar=True,
    help="A reader's, for the figures of an API that has keys; others see it unless it is in the "
    "variable.",
)
@click.pass_context
def status(
    ctx: click.Context, config: Path | None, *, watch: bool, as_json: bool, api_key: str
) -> None:
    """Tell how the broker, the workers, the API, the table and the snapshots are doing.

    Looks twice, a second apart, for the rates. Exit status 0 says that all is well, 1 that
    something is down: it is shown with what to do, beside all that is up.

    \b
    Example:
        tidegraph status --config tidegraph.toml --watch
    """
    if watch and as_json:
        raise click.UsageError("--watch is for a terminal and --json for scripts; take one of them")
    settings = load_settings(config)
    before = read(settings, api_key)
    if watch:
        console = Console()
        with Live(screen(judge(before)), console=console, screen=console.is_terminal) as live:
            while True:
                time.sleep(_WATCH_S)
                now = read(settings, api_key)
                live.update(screen(judge(now, before)), refresh=True)
                before = now
    time.sleep(_SAMPLE_S)
    found = judge(read(settings, api_key), before)
    if as_json:
        click.echo(msgspec.json.encode(found))
    else:
        console = Console()
        (console if console.is_terminal else Console(width=120)).print(screen(found))
    ctx.exit(0 if found.well else 1)
