"""`tidegraph serve --demo`: one process that learns the sample, serves it, and goes on learning."""

from __future__ import annotations

import json
import re
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from deploy.demo import SharedLog, sample
from deploy.service import Service, free_port, wait_until
from tests.house import ROOT

END_MS = 1_800_000_000_000


def test_the_newest_event_of_the_sample_has_just_happened() -> None:
    entries = sample(END_MS)
    times = [json.loads(value)["ts_ms"] for _, value in entries[-2_000:] if value]
    assert len(entries) > 100_000
    assert max(times) == END_MS
    assert times == sorted(times)


def test_a_shared_log_wakes_who_waits_and_loses_nothing() -> None:
    log = SharedLog()
    assert log.read("t", {0: 0}, limit=10) == []

    def write(name: int) -> None:
        for at in range(500):
            log.append("t", [(b"k", b"%d %d" % (name, at))], timestamp_ms=0)

    writers = [threading.Thread(target=write, args=(name,)) for name in range(3)]
    for writer in writers:
        writer.start()
    read: list[bytes] = []
    deadline = time.monotonic() + 60.0
    while len(read) < 1_500 and time.monotonic() < deadline:
        read += [record.value for record in log.read("t", {0: len(read)}, limit=100)]
    for writer in writers:
        writer.join()
    assert len(set(read)) == 1_500
    for name in range(3):
        assert [value for value in read if value.startswith(b"%d " % name)] == [
            b"%d %d" % (name, at) for at in range(500)
        ]


@pytest.mark.slow
def test_the_demo_gets_ready_and_feedback_changes_a_list(tmp_path: Path) -> None:
    port = free_port()
    demo = Service(
        "demo",
        [sys.executable, "-m", "tidegraph", "serve", "--demo"],
        ROOT,
        answers=lambda: ask(port, "/readyz")[0] == 200,
        log=tmp_path / "demo.log",
        environment={
            "TIDEGRAPH_SERVING_PORT": str(port),
            "TIDEGRAPH_SERVING_KEYS_FILE": str(tmp_path / "keys.json"),
            "TIDEGRAPH_SERVING_AUDIT_FILE": str(tmp_path / "audit.jsonl"),
        },
    )
    with demo:
        log = tmp_path / "demo.log"
        wait_until(lambda: "; try " in log.read_text(), 120.0, "the line that says whom to try")
        (path,) = re.findall(rf"; try http://127\.0\.0\.1:{port}(/\S+)\n", log.read_text())
        assert ask(port, path)[1]["answered_by"] == "vector"
        before = ask(port, "/v1/recommendations/newcomer")[1]
        assert before["answered_by"] == "popularity"
        liked = before["items"][0]["item"]
        event = {
            "v": 1,
            "event_id": "e1",
            "user_id": "newcomer",
            "item_id": liked,
            "ts_ms": time.time_ns() // 1_000_000,
            "signals": {"like": 1},
        }
        assert ask(port, "/v1/log/interactions", event)[0] == 202

        def changed() -> bool:
            _, after = ask(port, "/v1/recommendations/newcomer")
            listed = [item["item"] for item in after["items"]]
            return after["answered_by"] == "vector" and liked not in listed

        wait_until(changed, 120.0, "a list that knows of the event")
        arms = [{"name": "today"}, {"name": "diverse", "settings": {"diversity": 0.5}}]
        assert ask(port, "/v1/experiments", {"name": "x", "arms": arms})[0] == 201

        def taken_part() -> bool:
            return "request_id" in ask(port, "/v1/recommendations/newcomer")[1]

        def met() -> bool:
            found = ask(port, "/v1/experiments/x/results")[1]["arms"]
            return [arm["exposed"] for arm in found] in ([1, 0], [0, 1])

        wait_until(taken_part, 60.0, "a list of the experiment")
        wait_until(met, 120.0, "the collector")
        demo.stop(60.0)
    assert demo.process is not None
    assert demo.process.returncode == 0, demo.last_words()


def ask(port: int, path: str, body: Any = None) -> tuple[int, Any]:
    """Return status and answer; 0 where nothing listens."""
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(asked, timeout=10.0) as answer:
            said = answer.read()
            return answer.status, json.loads(said) if said.startswith(b"{") else said
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())
    except OSError:
        return 0, None
