"""The adapter: what comes in is checked, what goes out is JSON or a problem."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import falcon.testing
import msgspec
import pytest
import schemathesis
from hypothesis import HealthCheck, settings

from serving.api.app import Api, create_app, media_types
from serving.api.openapi import document
from serving.api.problems import Problem
from serving.api.routes import Answer, Call, Principal, Role, Route
from stream.errors import LogError, TableError
from stream.settings import ServingSettings

LIMITS = ServingSettings(request_s=2.0, max_body_bytes=1_000)


class Asked(msgspec.Struct, kw_only=True):
    n: Annotated[int, msgspec.Meta(ge=1, le=100, description="How many.")] = 10
    exclude: list[str] = []
    deep: bool = False


class Given(msgspec.Struct, forbid_unknown_fields=True):
    item_id: str
    weight: Annotated[float, msgspec.Meta(ge=0)] = 1.0


class Told(msgspec.Struct):
    path: dict[str, str]
    query: dict[str, Any] | None = None
    body: list[Given] = []
    name: str = ""


class Guard:
    """Lets everybody in who says their role."""

    async def admit(self, headers: Mapping[str, str], role: Role | None, client: str) -> Principal:
        if role is None:
            return Principal()
        if "x-api-key" not in headers:
            raise Problem(401, "no-key", "want a key", headers={"WWW-Authenticate": "ApiKey"})
        if headers["x-api-key"] != role.name:
            raise Problem(403, "not-allowed", "want another role")
        return Principal(name=headers["x-api-key"], role=role)


async def tell(call: Call) -> Told:
    body = call.body if isinstance(call.body, list) else [call.body] if call.body else []
    query = call.query and msgspec.structs.asdict(call.query)
    return Told(dict(call.path), query, body, call.principal.name)


async def fail(call: Call) -> None:
    errors = {
        "problem": Problem(409, "busy", "another one", headers={"Retry-After": "3"}),
        "table": TableError("nothing is published yet"),
        "log": LogError("the broker is away"),
        "defect": ValueError("secret"),
        "deep": RecursionError(),
        "slow": TimeoutError("of the handler"),
    }
    raise errors[call.path["how"]]


async def wait(_: Call) -> None:
    await asyncio.Event().wait()


async def raw(call: Call) -> Answer:
    return Answer(body=call.body, status=201, media_type="text/plain", headers={"ETag": '"1"'})


ROUTES = [
    Route(
        method="GET", path="/v1/told/{user}", handler=tell, summary="t", query=Asked, answer=Told
    ),
    Route(method="PUT", path="/v1/told/{user}", handler=tell, summary="t", body=Given, answer=Told),
    Route(method="GET", path="/v1/open", handler=tell, summary="t", role=None, answer=Told),
    Route(
        method="POST",
        path="/v1/told:batch",
        handler=tell,
        summary="Batch",
        role=Role.WRITER,
        body=Given | list[Given],
        status=202,
        answer=Told,
    ),
    Route(method="GET", path="/fail/{how}", handler=fail, summary="", role=None),
    Route(method="GET", path="/wait", handler=wait, summary="", role=None),
    Route(method="POST", path="/raw", handler=raw, summary="", role=None, body=Given, raw=True),
]
APP = create_app(ROUTES, Guard(), LIMITS)


@pytest.fixture
def seen() -> list[tuple[str | None, int]]:
    return []


@pytest.fixture
def client(seen: list[tuple[str | None, int]]) -> falcon.testing.TestClient:
    def observe(route: Route | None, status: int, seconds: float) -> None:
        assert seconds >= 0
        seen.append((None if route is None else route.path, status))

    app = create_app(ROUTES, Guard(), LIMITS, observe=observe)
    return falcon.testing.TestClient(app, headers={"X-API-Key": "READER"})


def problem(result: falcon.testing.Result, status: int, word: str) -> dict[str, Any]:
    """Return the details of a problem after a look at its form."""
    assert (result.status_code, result.headers["content-type"]) == (
        status,
        "application/problem+json",
    )
    details: dict[str, Any] = result.json
    assert details["type"] == f"/problems/{word}", details
    assert details["status"] == status
    assert details["title"]
    assert details["detail"]
    return details


def test_path_and_query_are_read_and_checked(client: falcon.testing.TestClient) -> None:
    result = client.get(
        "/v1/told/a%20b%C3%BC", query_string="n=3&exclude=x&exclude=y%2Cz&deep=true"
    )
    assert result.status_code == 200
    assert result.headers["content-type"] == "application/json"
    assert result.headers["cache-control"] == "no-store"
    assert result.json == {
        "path": {"user": "a bü"},
        "query": {"n": 3, "exclude": ["x", "y,z"], "deep": True},
        "body": [],
        "name": "READER",
    }
    plain = client.get("/v1/told/712").json
    assert plain["query"] == {"n": 10, "exclude": [], "deep": False}
    one = client.get("/v1/told/712", query_string="exclude=x").json
    assert one["query"]["exclude"] == ["x"]


@pytest.mark.parametrize(
    ("query", "word", "said"),
    [
        ("n=0", "invalid-request", "query.n: Expected `int` >= 1"),
        ("n=ten", "invalid-request", "query.n"),
        ("n=1&n=2", "invalid-request", "query.n"),
        ("deep=perhaps", "invalid-request", "query.deep"),
        ("m=1", "unknown-parameter", "'m'; this path takes n, exclude, deep"),
        ("%FF=1", "unknown-parameter", "this path takes"),
    ],
)
def test_a_wrong_query_is_told(
    client: falcon.testing.TestClient, query: str, word: str, said: str
) -> None:
    details = problem(client.get("/v1/told/712", query_string=query), 400, word)
    assert said in details["detail"]


def test_a_query_where_none_is_taken_is_told(client: falcon.testing.TestClient) -> None:
    details = problem(client.get("/v1/open", query_string="x=1"), 400, "unknown-parameter")
    assert "takes none" in details["detail"]


@pytest.mark.parametrize("part", ["%00", "a%0Ab", "x" * 513])
def test_a_part_of_the_path_that_is_no_id_is_told(
    client: falcon.testing.TestClient, part: str
) -> None:
    details = problem(client.get(f"/v1/told/{part}"), 400, "invalid-request")
    assert details["errors"] == [{"where": "path.user"}]


@pytest.mark.parametrize(
    ("part", "user"),
    [
        ("shoes%2Fred", "shoes/red"),
        ("%2f..%2F", "/../"),
        ("a%252Fb%2Fc", "a%2Fb/c"),
        ("%C3%A9%2F+", "é/+"),
    ],
)
def test_an_encoded_slash_belongs_to_the_id(
    client: falcon.testing.TestClient, part: str, user: str
) -> None:
    assert client.get(f"/v1/told/{part}").json["path"] == {"user": user}


def test_an_encoded_slash_parts_no_path(client: falcon.testing.TestClient) -> None:
    problem(client.get("/v1%2Ftold/712"), 404, "not-found")


def test_a_body_is_read_as_one_as_a_list_and_as_lines(client: falcon.testing.TestClient) -> None:
    writer = {"X-API-Key": "WRITER"}
    one, two = {"item_id": "7"}, {"item_id": "8", "weight": 2}
    full = [{"item_id": "7", "weight": 1.0}, {"item_id": "8", "weight": 2.0}]
    for body, expected in ((one, full[:1]), ([one, two], full), ([], [])):
        result = client.post("/v1/told:batch", json=body, headers=writer)
        assert (result.status_code, result.json["body"]) == (202, expected)
    lines = b"\n".join(msgspec.json.encode(each) for each in (one, two)) + b"\n"
    result = client.post(
        "/v1/told:batch", body=lines, headers={**writer, "Content-Type": "application/x-ndjson"}
    )
    assert (result.status_code, result.json["body"]) == (202, full)
    assert media_types(Given | list[Given]) == ("application/json", "application/x-ndjson")
    assert media_types(dict[str, list[str]]) == ("application/json",)


@pytest.mark.parametrize(
    ("body", "headers", "status", "word", "said"),
    [
        (b'{"item_id": 7}', {}, 400, "invalid-request", "body.item_id: Expected `str`"),
        (b'{"item_id": "7", "x": 1}', {}, 400, "invalid-request", "unknown field"),
        (b"{", {}, 400, "unreadable-body", "want a body of application/json"),
        (b"", {}, 400, "unreadable-body", "want a body"),
        (b'{"item_id": "\xff"}', {}, 400, "unreadable-body", ""),
        (b"[" * 900, {}, 400, "invalid-request", ""),
        (b'{"item_id": "7", "x": ' + b"[" * 900, {}, 400, "invalid-request", ""),
        (b" " * 1_001, {}, 413, "too-large", "at most 1,000 bytes"),
        (b"{}", {"Content-Type": "text/plain"}, 415, "wrong-media-type", "got 'text/plain'"),
        (b"{}", {"Content-Type": "application/x-ndjson"}, 415, "wrong-media-type", "got"),
        (
            b"{}",
            {"Content-Type": "application/json; charset=latin-1"},
            415,
            "wrong-media-type",
            "UTF-8",
        ),
    ],
)
def test_a_wrong_body_is_told(
    client: falcon.testing.TestClient,
    body: bytes,
    headers: dict[str, str],
    status: int,
    word: str,
    said: str,
) -> None:
    result = client.simulate_put(
        "/v1/told/712", body=body, headers={"Content-Type": "application/json"} | headers
    )
    assert said in problem(result, status, word)["detail"]


def test_deep_json_is_told() -> None:
    class Free(msgspec.Struct):
        value: Any

    async def take(_: Call) -> None:
        raise AssertionError

    route = Route(method="POST", path="/f", handler=take, summary="", body=Free, role=None)
    app = create_app([route], Guard(), ServingSettings())
    body = b'{"value": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    headers = {"Content-Type": "application/json"}
    result = falcon.testing.TestClient(app).simulate_post("/f", body=body, headers=headers)
    assert "deep" in problem(result, 400, "unreadable-body")["detail"]


def test_a_body_without_a_length_is_bounded() -> None:
    status, body = asyncio.run(_chunked(APP, [b" " * 400] * 4))
    assert (status, msgspec.json.decode(body)["type"]) == (413, "/problems/too-large")
    status, body = asyncio.run(_chunked(APP, [b'{"item_', b'id": "7"}']))
    assert (status, msgspec.json.decode(body)["body"][0]["item_id"]) == (200, "7")


async def _chunked(app: Api, parts: Sequence[bytes]) -> tuple[int, bytes]:
    """Send a body of unknown length to an app."""
    headers = [(b"x-api-key", b"READER"), (b"content-type", b"application/json")]
    scope = falcon.testing.create_scope(path="/v1/told/712", method="PUT")
    scope["headers"] = headers
    events = iter(
        {"type": "http.request", "body": part, "more_body": at < len(parts) - 1}
        for at, part in enumerate(parts)
    )
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return next(events)

    async def send(event: dict[str, Any]) -> None:
        sent.append(event)

    await app(scope, receive, send)
    return sent[0]["status"], sent[1]["body"]


def test_who_may_not_ask_is_told(client: falcon.testing.TestClient) -> None:
    result = client.get("/v1/told/712", headers={"X-API-Key": "WRITER"})
    problem(result, 403, "not-allowed")
    refused = falcon.testing.TestClient(client.app).get("/v1/told/712")
    problem(refused, 401, "no-key")
    assert refused.headers["www-authenticate"] == "ApiKey"
    assert falcon.testing.TestClient(client.app).get("/v1/open").status_code == 200


def test_a_path_or_method_that_is_not_there_is_told(
    client: falcon.testing.TestClient, seen: list[tuple[str | None, int]]
) -> None:
    assert "/openapi.json" in problem(client.get("/v1/nothing"), 404, "not-found")["detail"]
    result = client.delete("/v1/told/712")
    problem(result, 405, "method-not-allowed")
    assert set(result.headers["allow"].split(", ")) == {"GET", "HEAD", "OPTIONS", "PUT"}
    for method in ("TRACE", "PATCH", "POST"):
        problem(client.simulate_request(method, "/v1/told/712"), 405, "method-not-allowed")
    assert seen[:2] == [(None, 404), (None, 405)]
    assert client.simulate_head("/v1/told/712").status_code == 200


@pytest.mark.parametrize(
    ("how", "status", "word", "retry"),
    [
        ("problem", 409, "busy", "3"),
        ("table", 503, "unavailable", "1"),
        ("log", 503, "unavailable", "1"),
        ("defect", 500, "internal-error", None),
        ("deep", 500, "internal-error", None),
        ("slow", 500, "internal-error", None),
    ],
)
def test_what_a_handler_raises_becomes_a_problem(
    client: falcon.testing.TestClient, how: str, status: int, word: str, retry: str | None
) -> None:
    result = client.get(f"/fail/{how}")
    details = problem(result, status, word)
    assert "secret" not in result.text
    assert "Traceback" not in details["detail"]
    assert result.headers.get("retry-after") == retry


def test_an_answer_that_takes_too_long_is_given_up(
    client: falcon.testing.TestClient, seen: list[tuple[str | None, int]]
) -> None:
    assert "2 s" in problem(client.get("/wait"), 503, "too-slow")["detail"]
    assert seen == [("/wait", 503)]


def test_bytes_are_taken_and_given_as_they_are(client: falcon.testing.TestClient) -> None:
    headers = {"Content-Type": "application/json"}
    result = client.simulate_post("/raw", body=b"not JSON", headers=headers)
    assert (result.status_code, result.content) == (201, b"not JSON")
    assert (result.headers["content-type"], result.headers["etag"]) == ("text/plain", '"1"')


def test_other_sites_may_read_only_where_the_settings_say_so() -> None:
    asked = {"Origin": "https://shop.example", "Access-Control-Request-Method": "GET"}
    for origins, allowed in (((), None), (("https://shop.example",), "https://shop.example")):
        app = create_app(ROUTES, Guard(), ServingSettings(cors_origins=origins))
        client = falcon.testing.TestClient(app, headers=asked)
        result = client.get("/v1/open")
        assert result.headers.get("access-control-allow-origin") == allowed
        before = client.simulate_options("/v1/open")
        assert before.headers.get("access-control-allow-origin") == allowed
        other = client.get("/v1/open", headers={"Origin": "https://other.example"})
        assert "access-control-allow-origin" not in other.headers


def test_a_query_of_raw_bytes_is_told() -> None:
    scope = falcon.testing.create_scope(path="/v1/open")
    scope["query_string"] = b"x=\xff\xfe"
    events: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(event: dict[str, Any]) -> None:
        events.append(event)

    asyncio.run(APP(scope, receive, send))
    assert events[0]["status"] == 400


def test_the_document_describes_the_routes() -> None:
    told = document(ROUTES, version="1.2.3")
    assert set(told["paths"]) == {"/v1/told/{user}", "/v1/open", "/v1/told:batch"}
    get = told["paths"]["/v1/told/{user}"]["get"]
    assert [each["name"] for each in get["parameters"]] == ["user", "n", "exclude", "deep"]
    assert get["parameters"][1]["schema"]["maximum"] == 100
    assert get["parameters"][1]["description"] == "How many."
    assert set(get["responses"]) == {"200", "400", "401", "403", "429", "503"}
    assert told["paths"]["/v1/open"]["get"]["security"] == []
    batch = told["paths"]["/v1/told:batch"]["post"]
    assert set(batch["requestBody"]["content"]) == {"application/json", "application/x-ndjson"}
    assert set(batch["responses"]) >= {"202", "413", "415"}
    names = [one["operationId"] for path in told["paths"].values() for one in path.values()]
    assert len(set(names)) == len(names)
    assert set(told["components"]["schemas"]) == {"Given", "Told", "ProblemDetails"}
    assert told["paths"]["/v1/told/{user}"]["put"]["responses"]["200"]["content"]


SCHEMA = schemathesis.openapi.from_dict(document(ROUTES, version="1"))
SCHEMA.app = create_app(ROUTES, Guard(), ServingSettings())  # whose limits no example reaches
ONLY = settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


@schemathesis.serializer("application/x-ndjson")
def as_lines(_: schemathesis.SerializationContext, value: Any) -> bytes:
    entries = value if isinstance(value, list) else [value]
    return b"".join(msgspec.json.encode(entry) + b"\n" for entry in entries)


@SCHEMA.parametrize()
@ONLY
def test_answers_are_as_the_document_says(case: schemathesis.Case[Any]) -> None:
    role = "WRITER" if case.path.endswith(":batch") else "READER"
    case.call_and_validate(headers={"X-API-Key": role})
