"""The app: every route behind one adapter that admits, reads, checks, asks, and answers."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, nullcontext
from types import UnionType
from typing import Any, Final, Protocol, Union, get_args, get_origin
from urllib.parse import unquote_to_bytes

import falcon
import falcon.asgi
import msgspec

from serving.api.cors import Cors
from serving.api.problems import MEDIA_TYPE, Problem
from serving.api.routes import Answer, Call, Principal, Role, Route
from stream.errors import LogError, TableError
from stream.settings import ServingSettings

JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"

MAX_PART: Final = 512
"""Characters of a part of the path, at most."""

_SLASH: Final = "\udc2f"
"""Stands for an encoded slash of a path until its parts are told apart; no decoding yields it."""

_HEADERS: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
_CONTROL: Final = re.compile("[\x00-\x1f\x7f\ufffd]")
_CAPITAL: Final = re.compile("(?<!^)(?=[A-Z])")
_WHERE: Final = " - at `"

Observe = Callable[[Route | None, int, float], None]
"""Is told the route (``None``: there is none of that path), the status and the seconds it took."""

_log = logging.getLogger(__name__)


class Admission(Protocol):
    """Says who may ask what."""

    async def admit(self, headers: Mapping[str, str], role: Role | None, client: str) -> Principal:
        """Return who asks.

        Parameters
        ----------
        headers
            By lower-case name.
        role
            That the route wants; ``None`` lets everybody in.
        client
            Address from which the request came.

        Raises
        ------
        Problem
            401, 403 or 429.

        """
        ...


def create_app(
    routes: Iterable[Route],
    guard: Admission,
    settings: ServingSettings,
    *,
    observe: Observe = lambda route, status, seconds: None,
    running: Callable[[], AbstractAsyncContextManager[Any]] = nullcontext,
) -> Api:
    """Return an ASGI app that answers the routes, and everything else with a problem.

    Parameters
    ----------
    routes
        What can be asked; no two with the same method and path.
    guard
        Is asked first for each request.
    settings
        Limits of a request: size and time.
    observe
        Is told of each answer.
    running
        What it returns is entered before the first request, on the loop that answers, and left
        after the last.

    """
    middleware: list[Any] = [_Running(running)]
    if settings.cors_origins:
        middleware.append(Cors(settings.cors_origins))
    app = Api(middleware=middleware)
    app.add_error_handler(Exception, _answer_error(observe))
    app.add_error_handler(falcon.HTTPError, _answer_error(observe))
    limit = _TimeLimit(settings.request_s)
    by_path: dict[str, list[Route]] = {}
    for route in routes:
        by_path.setdefault(route.path, []).append(route)
    for path, there in by_path.items():
        resource = _Resource()
        for route in there:
            responder = _responder(route, guard, settings, limit, observe)
            name = f"on_{route.method.lower()}"
            assert not hasattr(resource, name), f"{route.method} {path} is there twice"
            setattr(resource, name, responder)
            if route.method == "GET":
                resource.on_head = responder  # falcon leaves the body out
        app.add_route(path, resource)
    return app


class Api(falcon.asgi.App[Any, Any]):
    """Answers also what falcon itself cannot read."""

    async def __call__(  # type: ignore[override] # falcon's ASGI app overrides its WSGI app so
        self, scope: Any, receive: Any, send: Any
    ) -> None:
        """Answer one request, or follow one server from its start to its end."""
        if scope["type"] == "http" and not scope["query_string"].isascii():
            await _send(send, Problem(400, "invalid-request", "the query must be percent-encoded"))
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1003})
        else:
            if scope["type"] == "http":
                receive = _later(receive)
                if b"%2f" in (raw := scope.get("raw_path") or b"").lower():
                    scope = scope | {"path": _path(raw)}
            await super().__call__(scope, receive, send)


def _path(raw: bytes) -> str:
    """Return a path decoded, all but its encoded slashes, which belong to an id.

    Examples
    --------
    >>> _path(b"/v1/items/shoes%2Fred%252f/similar").replace(_SLASH, "|")
    '/v1/items/shoes|red%2f/similar'

    """
    parts = raw.replace(b"%2f", b"%2F").split(b"%2F")
    return _SLASH.join(unquote_to_bytes(part).decode(errors="replace") for part in parts)


def _later(receive: Any) -> Any:
    """Tell falcon that the body comes later.

    It waits for a body's first bytes before it looks at anything else: whoever may not ask, sends
    too much, or sends nothing is to be refused before that.
    """
    told = False

    async def event() -> Any:
        nonlocal told
        if not told:
            told = True
            return {"type": "http.request", "body": b"", "more_body": True}
        return await receive()

    return event


class _Resource:
    """The responders of one path; falcon finds them by name."""

    on_head: Any


class _Running:
    """Enters a context when the app starts, and leaves it when the app ends."""

    def __init__(self, running: Callable[[], AbstractAsyncContextManager[Any]]) -> None:
        self._running = running
        self._stack = AsyncExitStack()

    async def process_startup(self, scope: Any, event: Any) -> None:
        await self._stack.enter_async_context(self._running())

    async def process_shutdown(self, scope: Any, event: Any) -> None:
        await self._stack.aclose()


class _TimeLimit:
    """Ends requests that take too long, with one timer for all: one for each costs too much.

    Parameters
    ----------
    within_s
        How long a request may take; it may be a tenth more.

    """

    def __init__(self, within_s: float) -> None:
        self._within_s = within_s
        self._running: dict[asyncio.Task[Any], float] = {}  # since when, the longest first
        self._ended: set[asyncio.Task[Any]] = set()
        self._looks: asyncio.AbstractEventLoop | None = None  # that will call _look
        self.problem = Problem(
            503,
            "too-slow",
            f"not answered within {within_s:g} s; ask for less, or again later",
            headers={"Retry-After": "1"},
        )

    def begin(self, now_s: float) -> asyncio.Task[Any]:
        """Watch the task that calls."""
        task = asyncio.current_task()
        assert task is not None  # else there would be nobody to call
        self._running[task] = now_s
        if self._looks is not (loop := task.get_loop()):
            self._look_soon(loop)
        return task

    def end(self, task: asyncio.Task[Any]) -> None:
        """Watch a task no longer."""
        self._running.pop(task, None)
        self._ended.discard(task)

    def ended(self, task: asyncio.Task[Any]) -> bool:
        """Return whether it was this that cancelled a task, which then goes on."""
        if task not in self._ended:
            return False
        self._ended.remove(task)
        task.uncancel()
        return True

    def _look_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        self._looks = loop
        loop.call_later(self._within_s / 10, self._look)

    def _look(self) -> None:
        oldest_s = time.perf_counter() - self._within_s
        for task in [task for task, since_s in self._running.items() if since_s <= oldest_s]:
            del self._running[task]
            self._ended.add(task)
            task.cancel()
        if self._running:
            self._look_soon(asyncio.get_running_loop())
        else:
            self._looks = None


def _responder(
    route: Route,
    guard: Admission,
    settings: ServingSettings,
    limit: _TimeLimit,
    observe: Observe,
) -> Callable[..., Awaitable[None]]:
    """Return what falcon calls for one route."""
    read_query = _query_reader(route.query)
    read_body = None if route.body is None else _BodyReader(route, settings.max_body_bytes)
    encode = msgspec.json.Encoder().encode
    handler, role, usual = route.handler, route.role, route.status
    headers = list(_HEADERS.items())

    async def respond(
        request: falcon.asgi.Request, response: falcon.asgi.Response, **path: str
    ) -> None:
        started = time.perf_counter()
        task = limit.begin(started)
        try:
            told = request.headers
            principal = await guard.admit(told, role, request.remote_addr)
            for name, part in path.items():
                path[name] = _checked_part(name, part)
            query = read_query(request.params)
            body = None if read_body is None else await read_body(request)
            call = Call(path=path, query=query, body=body, headers=told, principal=principal)
            answer = await handler(call)
            status, media_type = usual, JSON
            response.set_headers(headers)
            if answer.__class__ is Answer:
                status, media_type = answer.status, answer.media_type
                response.set_headers(dict(answer.headers))
                answer = answer.body
            response.status = status
            response.content_type = media_type
            response.data = answer if answer.__class__ is bytes else encode(answer)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is answered as a problem
            _fill(response, as_problem(error))
        except asyncio.CancelledError:
            if not limit.ended(task):
                raise
            _fill(response, limit.problem)
        finally:
            limit.end(task)
        observe(route, response.status_code, time.perf_counter() - started)

    return respond


def as_problem(error: Exception) -> Problem:
    """Return the problem that an error is to whoever asked.

    Examples
    --------
    >>> as_problem(falcon.HTTPNotFound()).details().type
    '/problems/not-found'

    """
    if isinstance(error, Problem):
        return error
    if isinstance(error, falcon.HTTPError):
        word = _CAPITAL.sub("-", type(error).__name__.removeprefix("HTTP")).lower()
        word = {"route-not-found": "not-found"}.get(word, word)
        said = error.description or _DETAILS.get(word) or error.title
        return Problem(error.status_code, word, said, headers=dict(error.headers or {}))
    if isinstance(error, TableError | LogError):
        _log.warning("cannot answer: %s", error)  # it names addresses, which are nobody's business
        what = "published table" if isinstance(error, TableError) else "log"
        return Problem(
            503,
            "unavailable",
            f"the {what} does not answer now; ask again later",
            headers={"Retry-After": "1"},
        )
    _log.error("a request failed", exc_info=error)
    return Problem(500, "internal-error", "a defect of the server; its log tells more")


_DETAILS: Final = {
    "not-found": "there is nothing at this path; /openapi.json says what there is",
    "method-not-allowed": "this path does not take the method; Allow says which it takes",
}


def _fill(response: falcon.asgi.Response, problem: Problem) -> None:
    response.status = problem.status.value
    response.content_type = MEDIA_TYPE
    response.set_headers(_HEADERS)
    response.set_headers(problem.headers)
    response.data = problem.body()


async def _send(send: Any, problem: Problem) -> None:
    body = problem.body()
    headers = [(b"content-type", MEDIA_TYPE.encode()), (b"content-length", b"%d" % len(body))]
    status = problem.status.value
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _answer_error(observe: Observe) -> Any:
    """Return what falcon calls for a request that reached no route."""

    async def answer(_: Any, response: falcon.asgi.Response, error: Exception, __: Any) -> None:
        _fill(response, as_problem(error))
        observe(None, response.status_code, 0.0)

    return answer


def _checked_part(name: str, part: str) -> str:
    if not part or len(part) > MAX_PART or _CONTROL.search(part):
        raise Problem(
            400,
            "invalid-request",
            f"{name}: want text of 1 to {MAX_PART} characters in UTF-8, none a control character",
            errors=[{"where": f"path.{name}"}],
        )
    return part.replace(_SLASH, "/")


def _invalid(error: msgspec.ValidationError, origin: str) -> Problem:
    """Return the problem of a value that is not as its struct says."""
    what, _, where = str(error).partition(_WHERE)
    where = f"{origin}{where.rstrip('`').removeprefix('$')}"
    return Problem(
        400, "invalid-request", f"{where}: {what}", errors=[{"where": where, "what": what}]
    )


def _query_reader(
    struct: type[msgspec.Struct] | None,
) -> Callable[[Mapping[str, str | list[str]]], Any]:
    """Return what reads the query of one route."""
    if struct is None:

        def refuse(given: Mapping[str, str | list[str]]) -> None:
            if given:
                raise _unknown(given, ())

        return refuse
    fields = {field.encode_name: field for field in msgspec.structs.fields(struct)}
    lists = {name for name, field in fields.items() if _list_type(field.type) is not None}
    usual = None
    if not any(field.required for field in fields.values()):
        usual = msgspec.convert({}, struct)

    def read(given: Mapping[str, str | list[str]]) -> Any:
        if not given and usual is not None:
            return usual
        if not given.keys() <= fields.keys():
            raise _unknown(given, fields)
        values: Mapping[str, Any] = given
        if lists:
            values = {
                name: [value] if name in lists and value.__class__ is str else value
                for name, value in given.items()
            }
        try:
            return msgspec.convert(values, struct, strict=False)
        except msgspec.ValidationError as error:
            raise _invalid(error, "query") from None

    return read


def _unknown(given: Iterable[str], known: Iterable[str]) -> Problem:
    unknown = sorted(set(given) - set(known))
    wanted = f"this path takes {', '.join(known)}" if known else "this path takes none"
    named = ", ".join(repr(name[:50]) for name in unknown[:5])
    return Problem(400, "unknown-parameter", f"unknown query parameters {named}; {wanted}")


class _BodyReader:
    """Reads the body of one route's requests.

    A body that may be a list may also come as lines, one entry on each.

    Parameters
    ----------
    route
        Whose ``body`` says the type; where it is ``bytes`` or ``raw``, it is given as it came.
    max_bytes
        Greatest body.

    """

    def __init__(self, route: Route, max_bytes: int) -> None:
        wanted = route.body
        self._max_bytes = max_bytes
        self._raw = route.raw or wanted is bytes
        self._decode = None if self._raw else msgspec.json.Decoder(wanted).decode
        entry = _list_type(wanted)
        self._decode_lines = None if entry is None else msgspec.json.Decoder(entry).decode_lines
        self.media_types = media_types(wanted)

    async def __call__(self, request: falcon.asgi.Request) -> Any:
        """Return the body of a request, decoded."""
        media_type, _, parameters = (request.content_type or "").lower().partition(";")
        media_type = media_type.strip()
        if media_type not in self.media_types:
            wanted = " or ".join(self.media_types)
            raise Problem(
                415,
                "wrong-media-type",
                f"want Content-Type {wanted}, got {media_type[:100] or 'none'!r}",
                headers={"Accept": ", ".join(self.media_types)},
            )
        if "charset" in parameters and "utf-8" not in parameters:
            raise Problem(415, "wrong-media-type", "want the body in UTF-8")
        body = await self._read(request)
        if self._raw:
            return body
        try:
            if media_type == NDJSON:
                assert self._decode_lines is not None  # else it is not among the media types
                return self._decode_lines(body)
            assert self._decode is not None
            return self._decode(body)
        except msgspec.ValidationError as error:
            raise _invalid(error, "body") from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Problem(400, "unreadable-body", f"want a body of {media_type}: {error}") from None
        except RecursionError:
            raise Problem(400, "unreadable-body", "the body is nested too deep") from None

    async def _read(self, request: falcon.asgi.Request) -> bytes:
        length = request.content_length
        if length is not None and length > self._max_bytes:
            raise self._too_large()
        if length is not None:
            return await request.stream.readall()
        parts: list[bytes] = []
        size = 0
        async for part in request.stream:
            size += len(part)
            if size > self._max_bytes:
                raise self._too_large()
            parts.append(part)
        return b"".join(parts)

    def _too_large(self) -> Problem:
        return Problem(
            413, "too-large", f"want a body of at most {self._max_bytes:,} bytes; send it in parts"
        )


def media_types(body: Any) -> tuple[str, ...]:
    """Return the media types in which a route's body may come.

    Examples
    --------
    >>> media_types(dict), media_types(dict | list[dict])
    (('application/json',), ('application/json', 'application/x-ndjson'))

    """
    if body is bytes or _list_type(body) is not None:
        return JSON, NDJSON
    return (JSON,)


def _list_type(kind: Any) -> Any:
    """Return the type of the entries if ``kind`` is, or may be, a list."""
    origin = get_origin(kind)
    if origin in {UnionType, Union}:
        found = (_list_type(one) for one in get_args(kind))
        return next((one for one in found if one is not None), None)
    return get_args(kind)[0] if origin in {list, tuple} else None
