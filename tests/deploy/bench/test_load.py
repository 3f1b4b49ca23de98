"""The load generator counts every request once, with the answer that it got."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from itertools import count

import pytest

from deploy.bench.load import Answer, closed_load, get, loading, open_load, post
from deploy.service import free_port, wait_until


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers 200 to each, 503 to ``/full``, and hangs up on ``/broken``."""

    protocol_version = "HTTP/1.1"
    seen = count()

    def do_GET(self) -> None:
        next(self.seen)
        if self.path == "/broken":
            self.close_connection = True
            self.connection.close()
            return
        self.send_response(503 if self.path == "/full" else 200)
        body = b"x" * 3_000
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(202 if body == b"{}" else 400)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_open_load_sends_what_is_due_and_counts_each_status(port: int) -> None:
    answers = open_load(
        port, [get("/ok"), get("/ok"), get("/full")], rate=300, seconds=1, connections=4
    )
    assert answers.statuses == {200: 200, 503: 100}
    assert len(answers.seconds) == 300
    figures = answers.figures()
    assert figures["requests"] == 300
    assert figures["errors"] == 100
    assert 0 < figures["p50_ms"] <= figures["p99_ms"] <= figures["max_ms"]


def test_what_waits_for_a_connection_is_sent_later_and_its_wait_counts(port: int) -> None:
    answers = open_load(port, [get("/ok")], rate=100_000, seconds=0.001, connections=1)
    assert answers.statuses == {200: 100}
    assert answers.seconds == sorted(answers.seconds)  # each waited for all before it


def test_a_closed_load_sends_on_each_connection_when_it_has_its_answer(port: int) -> None:
    before = next(Handler.seen)
    answers = closed_load(port, [get("/ok")], connections=3, seconds=0.5, ramp_s=0.1)
    assert answers.statuses.total() == answers.statuses[200] == next(Handler.seen) - before - 1
    assert answers.statuses[200] >= 3


def test_a_connection_that_breaks_is_an_error(port: int) -> None:
    answers = closed_load(port, [get("/broken")], connections=2, seconds=0.5)
    assert answers.statuses == {0: 2}
    assert answers.figures()["errors"] == 2


def test_bodies_are_sent_whole(port: int) -> None:
    requests = [post("/", b"{}"), post("/", b"{} ")]
    answers = open_load(port, requests, rate=50, seconds=1, connections=2)
    assert answers.statuses == {202: 25, 400: 25}


def test_a_rate_that_rises_sends_half_as_much_meanwhile(port: int) -> None:
    answers = open_load(port, [get("/ok")], rate=200, seconds=1.0, ramp_s=0.5, connections=2)
    assert answers.statuses == {200: 150}


def test_a_load_goes_on_while_something_else_is_done_and_each_answer_is_looked_at(
    port: int,
) -> None:
    seen: list[Answer] = []
    requests = [get("/ok"), get("/full")]
    with loading(port, requests, rate=200, connections=2, look=seen.append) as answers:
        wait_until(lambda: len(seen) >= 100, 60.0, "answers")
    assert len(seen) == answers.statuses.total() >= 100
    assert answers.statuses[200] - answers.statuses[503] in (0, 1)
    assert all(each.body == b"x" * 3_000 and each.due_s <= each.came_s for each in seen)


def test_a_load_on_nobody_is_told() -> None:
    with (
        pytest.raises(ConnectionError),
        loading(free_port(), [get("/ok")], rate=10, connections=1, look=print),
    ):
        pass
