"""The whole API answers as its document says, whatever is asked: no answer is an error of ours."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from serving.api.app import Api
from serving.assembly import build
from serving.producing import LogSink
from serving.table import MemoryTable
from stream.log import MemoryLog
from stream.settings import Settings, load_settings
from tests.serving.published import Live, events

LEARNED = Live().follow(events(400))
FOLDER = tempfile.TemporaryDirectory(prefix="tidegraph-contract-")


def served(table: MemoryTable) -> Api:
    """Return the API over a table, on this machine without keys."""
    base = load_settings(environ={})
    serving = msgspec.structs.replace(
        base.serving,
        keys_file="",
        audit_file=str(Path(FOLDER.name, "audit.jsonl")),
        stale_s=1e12,
        request_s=120.0,
    )
    made: Settings = msgspec.structs.replace(base, serving=serving)
    return build(made, table, LogSink(MemoryLog()))


API = served(LEARNED.table)
CHECKS = [
    not_a_server_error,
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
]
LOCAL = {"Host": "127.0.0.1"}


SCHEMA = schemathesis.openapi.from_asgi("/openapi.json", API, headers=LOCAL)


@schemathesis.serializer("application/x-ndjson")
def as_lines(_: schemathesis.SerializationContext, value: Any) -> bytes:
    entries = value if isinstance(value, list) else [value]
    return b"".join(msgspec.json.encode(entry) + b"\n" for entry in entries)


@pytest.fixture(scope="module", autouse=True)
def folder() -> Iterator[None]:
    yield
    FOLDER.cleanup()


@pytest.mark.slow
@SCHEMA.parametrize()
@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_request_is_answered_with_an_error_of_ours(case: schemathesis.Case[Any]) -> None:
    answer = case.call(headers=LOCAL)
    if answer.status_code != 503:  # as there is no broker, for one
        case.validate_response(answer, checks=CHECKS)
    problem = "problem+json" in answer.headers.get("content-type", [""])[0]
    assert problem is (answer.status_code >= 400)
