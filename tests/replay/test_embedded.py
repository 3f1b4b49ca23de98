"""A replay ends the same whether it was killed, shuffled or repeated on the way."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from replay.config import ReplayConfig
from replay.datasets import open_dataset
from replay.embedded import Replay, Stopped, survey
from replay.faults import Faults
from serving.table import MemoryTable
from stream.errors import BadData, BadSnapshot
from stream.typing_rules import load_rules
from tests.house import ROOT
from tests.replay.replay_driver import config_for, found

torch.set_num_threads(1)

MINUTE_MS = 60_000
PACE = 8_000.0  # the log's first two and a half hours in a few seconds, in many small batches


def replay_of(config: ReplayConfig) -> Replay:
    """Survey a log and return its replay."""
    return Replay(config, survey(config, lambda n_events: None))


def stopped_after(config: ReplayConfig, n_batches: int) -> None:
    """Replay some batches of records and stop as Ctrl-C would."""
    running, seen = replay_of(config), []

    def count(replay: Replay) -> None:
        seen.append(replay.stream.sent)
        replay.stop_asked = len(seen) == n_batches

    with pytest.raises(Stopped):
        running.run(count)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Replay once, as fast as it goes."""
    out = tmp_path_factory.mktemp("undisturbed")
    return out, json.loads(json.dumps(found(replay_of(config_for(out)).run())))


def started(out: Path) -> subprocess.Popen[str]:
    """Start the driver in a process of its own, or start it again."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.replay.replay_driver", str(out), str(PACE)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


def assert_same_end(out: Path, undisturbed: tuple[Path, dict[str, Any]], end: Any) -> None:
    """Compare all that must not depend on how a replay came to its end."""
    there, expected = undisturbed
    assert end == expected
    assert (out / "dead.jsonl").read_bytes() == (there / "dead.jsonl").read_bytes()
    tables = [MemoryTable.load(folder).reader() for folder in (out, there)]
    assert tables[0].item_ids() == tables[1].item_ids()
    users = open_users(there)
    assert tables[0].users(users).ids == tables[1].users(users).ids
    assert tables[0].seen(users) == tables[1].seen(users)


def open_users(out: Path) -> list[str]:
    """Return the users of the small log."""
    chunks = config_for(out).dataset.chunks()
    return sorted({user for chunk in chunks for user in chunk.frame["user_id"].to_list()})


@pytest.mark.slow
def test_a_replay_killed_at_any_moment_and_resumed_ends_as_if_undisturbed(
    undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    draw = np.random.default_rng(7)
    for wanted in draw.integers(3, 9, 2).tolist():
        with started(tmp_path) as process:
            assert process.stdout is not None
            for _ in range(wanted):
                process.stdout.readline()
            time.sleep(float(draw.random()) * 0.1)  # in the middle of a step or of a snapshot
            process.kill()
        assert process.returncode == -9, "it came to its end before it was killed"
    assert not (tmp_path / "result.json").exists()
    with started(tmp_path) as process:
        output, _ = process.communicate()
    assert process.returncode == 0
    first = int(output.splitlines()[1])
    assert first > 300, "it began anew instead of going on"
    assert_same_end(tmp_path, undisturbed, json.loads((tmp_path / "result.json").read_text()))


def test_a_torn_snapshot_is_passed_over_for_the_one_before(
    undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    config = config_for(tmp_path, snapshot_s=0.0)
    stopped_after(config, 2)
    _, newer = sorted((tmp_path / "snapshots").iterdir())
    arrays = newer / "arrays.bin"
    arrays.write_bytes(arrays.read_bytes()[:-1_000])
    with (tmp_path / "dead.jsonl").open("ab") as file:
        file.write(b'{"half a lin')  # what a kill in the middle of a write leaves
    running = replay_of(config)
    assert running.resume()
    assert running.resumed_at == 2_048
    assert_same_end(tmp_path, undisturbed, json.loads(json.dumps(found(running.run()))))


def test_a_snapshot_of_other_data_settings_or_rules_is_refused(tmp_path: Path) -> None:
    config = config_for(tmp_path, systems=("online", "popularity"))
    stopped_after(config, 1)
    rules = config.rules
    weaker = replace(rules, rules=(*rules.rules[:-1], rules.rules[0]))
    for other in (
        replace(config, dataset=open_dataset("kuairand-pure", limit=2_999)),
        replace(config, systems=("online",)),
        replace(config, seed=1),
        replace(config, model=replace(config.model, dim=4)),
        replace(config, rules=weaker),  # of the same version, by mistake
    ):
        with pytest.raises(BadSnapshot, match=r"another log or other settings.*start anew"):
            replay_of(other).resume()
    assert replay_of(config).resume()


def test_without_a_snapshot_there_is_nothing_to_resume(tmp_path: Path) -> None:
    assert not replay_of(config_for(tmp_path)).resume()


def test_the_same_log_shuffled_and_a_tenth_sent_twice_leaves_the_same_graph(
    undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    _, plain = undisturbed
    faults = Faults(duplicates=0.1, within_ms=60 * MINUTE_MS, seed=3)
    result = replay_of(config_for(tmp_path, faults=faults)).run()
    accounting = dict(result.accounting)
    assert result.state_hash == plain["state_hash"]
    assert dict(result.classes) == plain["classes"]
    assert accounting["feedback"] == plain["accounting"]["feedback"]
    assert accounting["dead"] == plain["accounting"]["dead"]
    assert accounting["late"] == 0
    more = accounting["duplicate"] - plain["accounting"]["duplicate"]
    assert 200 < more < 400
    assert accounting["in"] == plain["accounting"]["in"] + more
    for counts in (accounting, plain["accounting"]):
        ends = ("feedback", "no_signal", "duplicate", "late", "dead")
        assert counts["in"] == sum(counts[name] for name in ends)


def test_the_seed_reaches_the_model(tmp_path: Path) -> None:
    vectors = []
    for seed in (0, 1):
        config = config_for(tmp_path, seed=seed, systems=("popularity",))
        running = replay_of(config)
        batch = next(running.stream.batches()).batch
        view = running.experiment.graph.view(batch.take(np.arange(64)))
        running.experiment.model.learn(view)
        vectors.append(running.experiment.model.state()["items"]["weight"])
    assert not np.array_equal(*vectors)


def test_strict_stops_before_anything_is_learned_or_written(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    lines = [
        json.dumps(
            {"v": 1, "event_id": f"e{n}", "user_id": f"u{n % 7}", "item_id": f"i{n % 11}",
             "ts_ms": 1_650_812_741_000 + n, "signals": {"click": n % 2}}
        )
        for n in range(300)
    ]  # fmt: skip
    lines[140] = '{"v": 1, "event_id": "broken'
    log.write_text("\n".join(lines) + "\n")
    out = tmp_path / "out"
    out.mkdir()
    dataset = open_dataset("events", log)
    config = config_for(
        out, dataset=dataset, rules=load_rules(dataset.rules), systems=("online",), strict=True
    )
    with pytest.raises(BadData, match=r"log\.jsonl.*141.*without --strict"):
        replay_of(config)
    assert list(out.iterdir()) == []
    result = replay_of(replace(config, strict=False)).run()
    assert result.accounting["dead"] == 1
    assert result.accounting["in"] == 300
    assert len((out / "dead.jsonl").read_text().splitlines()) == 1
