"""A replay over a broker ends as one in memory; what cannot go well is said, and does not hang."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from click.testing import CliRunner

from replay.config import ReplayConfig
from replay.embedded import Replay, Stopped, survey
from replay.faults import Faults
from replay.kafka import IN_FLIGHT, KafkaSource, check
from replay.player import encode
from replay.report import ReplayResult
from stream import topics
from stream.errors import BadSettings, LogError
from stream.kafka import KafkaLog
from stream.settings import KafkaSettings, Settings, StreamSettings
from stream.typing_rules import load_rules
from stream.worker import StreamWorker
from tests.replay.replay_driver import config_for, found

torch.set_num_threads(1)

SYSTEMS = ("online", "popularity")


def settings_of(kafka: KafkaSettings, *, partitions: int) -> Settings:
    """Make topics, and return the settings of what works on them."""
    kafka = msgspec.structs.replace(kafka, partitions=partitions)
    topics.create(kafka)
    return Settings(kafka=kafka, stream=StreamSettings(batch=512, port=0))


@contextmanager
def stream_worker(settings: Settings) -> Iterator[None]:
    """Run a stream worker in a thread; what it dies of fails the test."""
    died: list[BaseException] = []
    worker = StreamWorker(settings)

    def run() -> None:
        try:
            worker.run()
        except BaseException as error:  # noqa: BLE001 - told to the test below
            died.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        worker.stop()
        thread.join(30)
    assert not thread.is_alive()
    assert died == []


def over_kafka(config: ReplayConfig, settings: Settings, **options: Any) -> Replay:
    """Return a replay over a broker."""
    check(config, settings)
    survey_of = survey(config, lambda n_events: None)
    source = KafkaSource(config, settings, first_ms=survey_of.first_ms, **options)
    return Replay(config, survey_of, source)


def in_memory(config: ReplayConfig) -> ReplayResult:
    """Replay in this process."""
    return Replay(config, survey(config, lambda n_events: None)).run()


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ReplayResult]:
    """Replay once, in memory."""
    out = tmp_path_factory.mktemp("embedded")
    return out, in_memory(config_for(out, systems=SYSTEMS))


@pytest.mark.parametrize("partitions", [1, 3])
def test_the_same_log_gives_the_same_graph_and_the_same_account(
    embedded: tuple[Path, ReplayResult], kafka: KafkaSettings, tmp_path: Path, partitions: int
) -> None:
    there, expected = embedded
    settings = settings_of(kafka, partitions=partitions)
    with stream_worker(settings):
        result = over_kafka(config_for(tmp_path, systems=SYSTEMS), settings).run()
    assert result.state_hash == expected.state_hash
    assert result.accounting == expected.accounting
    assert result.accounting["duplicate"] > 0
    assert result.classes == expected.classes
    assert result.notes == expected.notes
    # Merged by time, the experiment sees the same events in the same order, so all else is equal.
    assert found(result)["systems"] == found(expected)["systems"]
    assert (tmp_path / "dead.jsonl").read_bytes() == (there / "dead.jsonl").read_bytes()
    assert result.freshness_ms["p50"] > 0


def test_repeated_and_late_events_are_accounted_for_alike(
    kafka: KafkaSettings, tmp_path: Path
) -> None:
    faults = Faults(duplicates=0.1, within_ms=2 * 3_600_000, seed=3)
    usual = config_for(tmp_path / "memory", systems=("popularity",), faults=faults)
    usual.out.mkdir()
    short = replace(usual, lateness_ms=1_800_000)
    expected = in_memory(short)
    assert expected.accounting["late"] > 100
    settings = settings_of(kafka, partitions=1)
    stream = msgspec.structs.replace(settings.stream, lateness_s=1_800.0)
    settings = msgspec.structs.replace(settings, stream=stream)
    out = tmp_path / "kafka"
    out.mkdir()
    with stream_worker(settings):
        result = over_kafka(replace(short, out=out), settings).run()
    assert result.accounting == expected.accounting
    assert result.state_hash == expected.state_hash
    for name in ("dead.jsonl", "late.jsonl"):
        assert (out / name).read_bytes() == (usual.out / name).read_bytes()


def test_only_what_comes_after_the_start_is_read_and_strangers_are_named(
    embedded: tuple[Path, ReplayResult], kafka: KafkaSettings, tmp_path: Path
) -> None:
    settings = settings_of(kafka, partitions=2)
    config = config_for(tmp_path, systems=SYSTEMS)
    first = next(config.chunks()).frame
    log = KafkaLog(settings.kafka)
    older = encode(first.head(50).with_columns(event_id="older-" + first["event_id"].head(50)))
    log.append("interactions", older, timestamp_ms=0)
    running = over_kafka(config, settings)

    def intrude(replay: Replay) -> None:
        if replay.stream.sent and not intruded:
            intruded.append(b"no event")
            log.append("interactions", [(b"712", b"no event")], timestamp_ms=0)

    intruded: list[bytes] = []
    with stream_worker(settings):
        result = running.run(intrude)
    log.close()
    accounting = dict(embedded[1].accounting)
    accounting["in"] += 1
    accounting["dead"] += 1
    assert result.accounting == accounting
    assert result.state_hash == embedded[1].state_hash
    assert any("1 records came to" in note for note in result.notes)


def test_the_same_log_twice_on_the_same_topics_is_refused(
    kafka: KafkaSettings, tmp_path: Path
) -> None:
    settings = settings_of(kafka, partitions=1)
    config = config_for(tmp_path, systems=("popularity",))
    with stream_worker(settings):
        over_kafka(config, settings).run()
        with pytest.raises(BadSettings, match=r"has had events up to .* another kafka\.prefix"):
            over_kafka(config, settings).run()


def test_without_a_worker_it_gives_up_and_says_what_to_do(
    kafka: KafkaSettings, tmp_path: Path
) -> None:
    settings = settings_of(kafka, partitions=1)
    running = over_kafka(config_for(tmp_path, systems=("popularity",)), settings, patience_s=1.0)
    began = time.monotonic()
    with pytest.raises(LogError, match=r"start one with `tidegraph stream`"):
        running.run()
    assert time.monotonic() - began < 20


def test_the_player_waits_for_what_comes_back(
    kafka: KafkaSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("replay.kafka.IN_FLIGHT", 500)
    assert IN_FLIGHT > 500
    settings = settings_of(kafka, partitions=1)
    config = config_for(tmp_path, systems=("popularity",))
    running = over_kafka(config, settings, patience_s=1.0)
    with pytest.raises(LogError):
        running.run()
    log = KafkaLog(settings.kafka)
    assert log.end("interactions") == {0: 2_048}  # one append
    log.close()


def test_stopping_leaves_no_snapshot_and_no_thread(kafka: KafkaSettings, tmp_path: Path) -> None:
    settings = settings_of(kafka, partitions=1)
    config = config_for(tmp_path, systems=("popularity",), speed=1.0)  # hours, if it went on

    def stop(replay: Replay) -> None:
        replay.stop_asked = replay.stream.sent > 0

    with stream_worker(settings), pytest.raises(Stopped):
        over_kafka(config, settings).run(stop)
    assert not (tmp_path / "snapshots").exists()
    assert "player" not in {thread.name for thread in threading.enumerate()}


def test_other_rules_are_refused_before_anything_is_sent(
    kafka: KafkaSettings, tmp_path: Path
) -> None:
    settings = settings_of(kafka, partitions=1)
    config = replace(config_for(tmp_path), rules=load_rules("ratings"))
    with pytest.raises(BadSettings, match=r"wants the rules ratings-1, .* have kuairand-1"):
        check(config, settings)


def test_a_worker_with_other_rules_than_its_settings_say_is_found_out(
    kafka: KafkaSettings, tmp_path: Path
) -> None:
    settings = settings_of(kafka, partitions=1)
    own = tmp_path / "own.toml"
    shipped = Path(__file__).parents[2] / "stream" / "rules" / "kuairand.toml"
    own.write_text(shipped.read_text().replace("kuairand-1", "kuairand-mine"))
    stream = msgspec.structs.replace(settings.stream, rules=str(own))
    with (
        stream_worker(msgspec.structs.replace(settings, stream=stream)),
        pytest.raises(BadSettings, match=r"the stream worker types by kuairand-mine"),
    ):
        over_kafka(config_for(tmp_path, systems=("popularity",)), settings).run()


def replay_command(tmp_path: Path, config: str, *arguments: str) -> str:
    """Run the command in vain and return what it says."""
    from tidegraph import main

    file = tmp_path / "tidegraph.toml"
    file.write_text(config)
    command = ["replay", "--log", "kafka", "--config", str(file), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(main, [*command, "--limit", "200", *arguments])
    assert result.exit_code in {1, 2}, result.output
    assert "Traceback" not in result.output
    return " ".join(result.output.split())


def test_missing_topics_are_named(kafka: KafkaSettings, tmp_path: Path) -> None:
    config = f'[kafka]\nservers = ["{kafka.servers[0]}"]\nprefix = "{kafka.prefix}"\n'
    said = replay_command(tmp_path, config)
    assert f"no topic {kafka.prefix}interactions" in said
    assert "tidegraph topics create" in said


def test_no_broker_is_said(tmp_path: Path) -> None:
    said = replay_command(tmp_path, '[kafka]\nservers = ["127.0.0.1:1"]\n')
    assert "no broker answers at 127.0.0.1:1" in said


def test_resuming_over_a_broker_is_refused(tmp_path: Path) -> None:
    assert "want --log memory" in replay_command(tmp_path, "", "--resume")
