"""The pages for people: the console's files, and the document of the API as a page."""

from __future__ import annotations

import base64
import hashlib
import mimetypes
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import jinja2
import msgspec

from serving.api.openapi import document
from serving.api.problems import Problem
from serving.api.routes import Answer, Call, Route

CONSOLE: Final = Path(__file__).parents[1] / "console"

# Nothing from elsewhere, no script or style inside a page, and no page of ours inside another.
_POLICY: Final = (
    "default-src 'self'; img-src 'self' data:; object-src 'none'; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'self'"
)
_PAGE: Final = {
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_STYLE: Final = re.compile(r"<style>(.*?)</style>", re.DOTALL)


def routes(described: Sequence[Route], *, version: str, console: Path = CONSOLE) -> list[Route]:
    """Return the pages, which everybody may see: they hold no data.

    Parameters
    ----------
    described
        The routes of the document.
    version
        Of the program.
    console
        Folder of the console's files; all are read now.

    """
    files = _read(console)
    told = document(described, version=version)
    openapi = msgspec.json.encode(told)
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    page = loader.load(template, "docs.html").render(told=told, shown=_shown)

    async def root(_: Call) -> Answer:
        return Answer(body=b"", status=307, headers={"Location": "/console/"})

    async def file(call: Call) -> Answer:
        return _answer(files, call.path.get("file") or "index.html", call.headers)

    policy = {"Content-Security-Policy": f"{_POLICY}; style-src {_hashes(page)}"}

    async def docs(_: Call) -> Answer:
        html = "text/html; charset=utf-8"
        return Answer(body=page.encode(), media_type=html, headers=_PAGE | policy)

    async def machine(_: Call) -> Answer:
        return Answer(body=openapi, headers={"Cache-Control": "no-cache"})

    pages = {
        "/": root,
        "/console/": file,
        "/console/{file}": file,
        "/docs": docs,
        "/openapi.json": machine,
    }
    return [
        Route(method="GET", path=path, handler=handler, summary="", role=None)
        for path, handler in pages.items()
    ]


def _read(folder: Path) -> dict[str, tuple[bytes, str, str]]:
    """Return content, media type and tag of each file by its name."""
    files = {}
    for path in sorted(folder.glob("*")):
        if path.is_file() and not path.name.startswith((".", "_")):
            content = path.read_bytes()
            kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
            kind += "; charset=utf-8" if kind.startswith("text/") else ""
            files[path.name] = content, kind, f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    return files


def _answer(
    files: Mapping[str, tuple[bytes, str, str]], name: str, asked: Mapping[str, str]
) -> Answer:
    if name not in files:
        raise Problem(404, "not-found", f"the console has no file {name[:100]!r}")
    content, kind, tag = files[name]
    headers = {**_PAGE, "ETag": tag}
    if asked.get("if-none-match") == tag:
        return Answer(body=b"", status=304, media_type=kind, headers=headers)
    return Answer(body=content, media_type=kind, headers=headers)


def _hashes(page: str) -> str:
    """Return what names the styles inside a page, and so allows these and no others."""
    digests = (hashlib.sha256(style.encode()).digest() for style in _STYLE.findall(page))
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)


def _shown(schema: Any) -> str:
    """Return a schema as it is printed."""
    return msgspec.json.format(msgspec.json.encode(schema), indent=2).decode()
