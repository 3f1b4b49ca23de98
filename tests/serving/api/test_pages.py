"""Pages for people take scripts and styles from here alone, and none from inside a page."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections.abc import Awaitable
from typing import Any

import pytest

from serving.api.pages import routes
from serving.api.routes import Answer, Call

PAGES = {route.path: route.handler for route in routes([], version="1.0")}


def get(path: str, **named: str) -> Answer:
    async def ask(answer: Awaitable[Any]) -> Any:
        return await answer

    answer: Answer = asyncio.run(ask(PAGES[path](Call(path=named))))
    return answer


def policy(answer: Answer) -> dict[str, str]:
    """Return what the policy of a page says, by directive, each of which it says once."""
    said = answer.headers["Content-Security-Policy"].split("; ")
    told = dict(each.split(" ", 1) for each in said)
    assert len(told) == len(said)
    return told


@pytest.mark.parametrize("file", ["", "app.js", "console.css", "mark.svg"])
def test_the_console_allows_nothing_inside_a_page_and_nothing_from_elsewhere(file: str) -> None:
    told = policy(get("/console/{file}" if file else "/console/", file=file))
    assert told["default-src"] == "'self'"
    assert not {"style-src", "script-src", "connect-src"} & told.keys()  # so these are 'self' too
    assert told["frame-ancestors"] == "'none'"
    assert "unsafe" not in str(told)


def test_the_document_allows_its_own_style_and_no_other() -> None:
    answer = get("/docs")
    told = policy(answer)
    (style,) = re.findall("<style>(.*?)</style>", answer.body.decode(), re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert told["style-src"] == f"'sha256-{digest}'"
    assert "script-src" not in told
    assert "unsafe" not in str(told)
    assert " style=" not in answer.body.decode()
