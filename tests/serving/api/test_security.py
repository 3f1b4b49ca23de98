"""Who shows a key or a token that holds is let in, as far as its role goes; nobody else is."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import jwt
import msgspec
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from serving.api.limits import Limits
from serving.api.problems import Problem
from serving.api.routes import COUNTED_BYTES, Call, Principal, Role, Route
from serving.api.security import LOOK_S, Guard
from serving.keys import new_key, revoke_key
from stream.errors import BadSettings
from stream.settings import ServingSettings

SECRET = "a secret of thirty-two bytes, just"
CLAIMS = {"iss": "https://issuer.example", "aud": "tidegraph", "sub": "ann", "roles": ["writer"]}
LOCAL = {"host": "127.0.0.1:8080"}


class Clock:
    """The time, as far as the guard knows; goes on when told."""

    def __init__(self) -> None:
        self.now_s = time.time()

    def __call__(self) -> float:
        return self.now_s


def settings(folder: Path, **given: Any) -> ServingSettings:
    return ServingSettings(keys_file=str(folder / "keys.json"), **given)


def hs256(folder: Path, **given: Any) -> ServingSettings:
    usual = {
        "jwt_key": SECRET,
        "jwt_algorithm": "HS256",
        "jwt_issuer": CLAIMS["iss"],
        "jwt_audience": CLAIMS["aud"],
    }
    return settings(folder, **(usual | given))


def admit(guard: Guard, headers: Mapping[str, str], role: Role | None = Role.READER) -> Principal:
    return asyncio.run(guard.admit(headers, role, "10.0.0.9"))


def refused(guard: Guard, headers: Mapping[str, str], role: Role = Role.READER) -> Problem:
    with pytest.raises(Problem) as caught:
        admit(guard, headers, role)
    return caught.value


def token(claims: Mapping[str, Any] | None = None, key: Any = SECRET, **given: Any) -> str:
    payload = {"exp": time.time() + 600, **CLAIMS, **(claims or {})}
    return jwt.encode(payload, key, **({"algorithm": "HS256"} | given))


def bearer(text: str) -> dict[str, str]:
    return {"authorization": f"Bearer {text}"}


def public_pem(key: Any) -> str:
    pem: bytes = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return pem.decode()


@pytest.mark.parametrize("has", list(Role))
@pytest.mark.parametrize("wanted", list(Role))
def test_a_key_lets_in_as_far_as_its_role_goes(tmp_path: Path, has: Role, wanted: Role) -> None:
    given = settings(tmp_path)
    name: Any = has.name.lower()
    key = new_key(Path(given.keys_file), "shop", name)
    guard = Guard(given)
    if has >= wanted:
        assert admit(guard, {"x-api-key": key}, wanted) == Principal(name="shop", role=has)
    else:
        problem = refused(guard, {"x-api-key": key}, wanted)
        assert problem.status == 403
        assert problem.detail == f"this wants the role {wanted.name.lower()}, and yours is {name}"


def test_everybody_is_let_in_where_no_role_is_wanted(tmp_path: Path) -> None:
    given = settings(tmp_path)
    new_key(Path(given.keys_file), "shop", "reader")
    assert admit(Guard(given), {"host": "evil.example"}, None).role is Role.READER


@pytest.mark.parametrize(
    ("headers", "detail"),
    [
        ({}, "want a key in X-API-Key, or a token"),
        ({"x-api-key": ""}, "key in X-API-Key is not known"),
        ({"x-api-key": "tg_guessed"}, "key in X-API-Key is not known"),
        ({"x-api-key": "tg_" + "x" * 1_000_000}, "key in X-API-Key is not known"),
        ({"x-api-key": "\udcff\x00"}, "key in X-API-Key is not known"),
        ({"x-api-key": "KEY, KEY"}, "key in X-API-Key is not known"),
        ({"x-api-key": "KEY "}, "key in X-API-Key is not known"),
        ({"x-api-key": "KEY", "authorization": "Bearer x"}, "got both"),
        ({"authorization": "KEY"}, "want Authorization: Bearer and a token"),
        ({"authorization": "Basic YTpi"}, "want Authorization: Bearer and a token"),
        ({"authorization": "Bearer KEY"}, "tokens are not set up here"),
    ],
)
def test_without_a_key_that_holds_nobody_is_let_in(
    tmp_path: Path, headers: dict[str, str], detail: str
) -> None:
    given = settings(tmp_path)
    key = new_key(Path(given.keys_file), "shop", "operator")
    shown = {name: value.replace("KEY", key) for name, value in headers.items()}
    problem = refused(Guard(given), shown)
    assert problem.status == 401
    assert detail in problem.detail
    assert problem.headers["WWW-Authenticate"].startswith("Bearer realm=")
    assert key not in problem.body().decode()


def test_a_hash_from_the_file_is_no_key(tmp_path: Path) -> None:
    given = settings(tmp_path)
    new_key(Path(given.keys_file), "shop", "operator")
    stored = msgspec.json.decode(Path(given.keys_file).read_bytes())["keys"][0]["sha256"]
    assert refused(Guard(given), {"x-api-key": stored}).status == 401


def test_a_key_made_or_revoked_is_known_within_a_second(tmp_path: Path) -> None:
    given, clock = settings(tmp_path), Clock()
    path = Path(given.keys_file)
    first = new_key(path, "first", "reader")
    guard = Guard(given, clock=clock)
    second = new_key(path, "second", "reader")
    revoke_key(path, "first")
    clock.now_s += LOOK_S
    assert admit(guard, {"x-api-key": second}).name == "second"
    assert refused(guard, {"x-api-key": first}).status == 401


def test_a_file_that_is_gone_takes_its_keys_along_and_opens_nothing(tmp_path: Path) -> None:
    given, clock = settings(tmp_path), Clock()
    key = new_key(Path(given.keys_file), "shop", "operator")
    guard = Guard(given, clock=clock)
    Path(given.keys_file).unlink()
    clock.now_s += LOOK_S
    assert refused(guard, {"x-api-key": key}).status == 401
    assert refused(guard, LOCAL).status == 401
    assert not guard.open


def test_a_file_that_became_unreadable_leaves_the_keys_as_they_were(tmp_path: Path) -> None:
    given, clock = settings(tmp_path), Clock()
    key = new_key(Path(given.keys_file), "shop", "operator")
    guard = Guard(given, clock=clock)
    Path(given.keys_file).write_text("[" * 5_000)
    clock.now_s += LOOK_S
    assert admit(guard, {"x-api-key": key}).name == "shop"
    with pytest.raises(BadSettings, match="is not a file of keys"):
        Guard(given)


def test_the_first_key_closes_a_server_that_was_open(tmp_path: Path) -> None:
    given, clock = settings(tmp_path), Clock()
    guard = Guard(given, clock=clock)
    assert admit(guard, LOCAL, Role.OPERATOR) == Principal()
    Path(given.keys_file).write_text("torn")
    clock.now_s += LOOK_S
    assert refused(guard, LOCAL).status == 401
    Path(given.keys_file).unlink()
    key = new_key(Path(given.keys_file), "shop", "reader")
    clock.now_s += LOOK_S
    assert admit(guard, {"x-api-key": key}).name == "shop"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "api.example", ""])
def test_without_keys_nobody_else_can_connect(tmp_path: Path, host: str) -> None:
    with pytest.raises(BadSettings, match="tidegraph keys new NAME"):
        Guard(settings(tmp_path, host=host))
    new_key(tmp_path / "keys.json", "shop", "reader")
    Guard(settings(tmp_path, host=host))


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "rebound.example:8080"},
        {"host": "127.0.0.1.evil.example"},
        {"host": "127.0.0.1@evil.example"},
        {"host": "localhost/evil.example"},
        {"host": "[::1"},
        {},
        LOCAL | {"origin": "https://evil.example"},
        LOCAL | {"origin": "http://127.0.0.1:3000"},
        LOCAL | {"origin": "null"},
        LOCAL | {"origin": ""},
        LOCAL | {"sec-fetch-site": "cross-site"},
        LOCAL | {"x-forwarded-for": "10.0.0.1"},
        LOCAL | {"forwarded": "for=10.0.0.1"},
    ],
)
def test_an_open_server_refuses_pages_and_proxies(tmp_path: Path, headers: dict[str, str]) -> None:
    assert refused(Guard(settings(tmp_path)), headers).status == 403


@pytest.mark.parametrize(
    "headers",
    [
        LOCAL,
        {"host": "localhost"},
        {"host": "[::1]:8080", "origin": "http://[::1]:8080"},
        LOCAL | {"origin": "http://127.0.0.1:8080", "sec-fetch-site": "same-origin"},
        LOCAL | {"origin": "https://shop.example", "sec-fetch-site": "cross-site"},
    ],
)
def test_an_open_server_lets_in_programs_and_its_own_pages(
    tmp_path: Path, headers: dict[str, str]
) -> None:
    guard = Guard(settings(tmp_path, cors_origins=("https://shop.example",)))
    assert admit(guard, headers, Role.OPERATOR).name == "anonymous"


@pytest.mark.parametrize("algorithm", ["HS256", "RS256", "EdDSA"])
def test_a_token_of_each_algorithm_is_taken(tmp_path: Path, algorithm: Any) -> None:
    key: Any = SECRET
    told = SECRET
    if algorithm == "RS256":
        key = rsa.generate_private_key(65_537, 2_048)
    elif algorithm == "EdDSA":
        key = ed25519.Ed25519PrivateKey.generate()
    if algorithm != "HS256":
        told = public_pem(key)
    (tmp_path / "key.pem").write_text(told)
    given = hs256(
        tmp_path, jwt_key="", jwt_key_file=str(tmp_path / "key.pem"), jwt_algorithm=algorithm
    )
    guard = Guard(given)
    shown = bearer(token({"roles": ["reader", "writer", "juggler"]}, key, algorithm=algorithm))
    assert admit(guard, shown, Role.WRITER) == Principal(name="ann", role=Role.WRITER)
    assert admit(guard, shown, Role.WRITER).name == "ann"
    assert refused(guard, shown, Role.OPERATOR).status == 403


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"exp": 1}, "has ended"),
        ({"exp": None}, "lacks one of"),
        ({"exp": "soon"}, "does not hold"),
        ({"exp": 1e400}, "token"),
        ({"exp": float("nan")}, "token"),
        ({"nbf": 4e9}, "has not begun"),
        ({"iat": 4e9}, "has not begun"),
        ({"iss": "https://evil.example"}, "another issuer"),
        ({"iss": None}, "lacks one of"),
        ({"aud": "another"}, "another audience"),
        ({"aud": None}, "lacks one of"),
        ({"sub": None}, "lacks one of"),
        ({"sub": 7}, "its form"),
        ({"sub": ""}, "want sub"),
        ({"sub": "x" * 257}, "want sub"),
        ({"sub": "ann\r\nX-Role: operator"}, "control characters"),
        ({"sub": "\ud800"}, "control characters"),
        ({"roles": "operator"}, "want roles"),
        ({"roles": {"operator": True}}, "want roles"),
        ({"roles": [["operator"]]}, "want roles"),
    ],
    ids=str,
)
def test_a_token_that_does_not_hold_is_refused(
    tmp_path: Path, changed: dict[str, Any], reason: str
) -> None:
    claims = {"exp": 4e9, **CLAIMS, **changed}
    payload = json.dumps({k: v for k, v in claims.items() if v is not None}).encode()
    shown = jwt.api_jws.PyJWS().encode(payload, SECRET, algorithm="HS256")
    problem = refused(Guard(hs256(tmp_path)), bearer(shown))
    assert problem.status == 401
    assert reason in problem.detail


def test_a_token_that_names_no_role_is_known_but_may_do_nothing(tmp_path: Path) -> None:
    guard = Guard(hs256(tmp_path))
    for roles in ([], ["Operator"], ["root"]):
        assert refused(guard, bearer(token({"roles": roles}))).status == 403


def test_a_token_that_was_checked_ends_nevertheless(tmp_path: Path) -> None:
    clock = Clock()
    guard = Guard(hs256(tmp_path), clock=clock)
    shown = bearer(token({"exp": clock.now_s + 60}))
    assert admit(guard, shown).name == "ann"
    clock.now_s += 66
    problem = refused(guard, shown)
    assert (problem.status, "has ended" in problem.detail) == (401, True)


def test_keys_and_tokens_are_taken_side_by_side(tmp_path: Path) -> None:
    given = hs256(tmp_path)
    key = new_key(Path(given.keys_file), "shop", "reader")
    guard = Guard(given)
    assert admit(guard, {"x-api-key": key}).name == "shop"
    assert admit(guard, bearer(token())).name == "ann"


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"jwt_issuer": ""}, "want serving.jwt_issuer and serving.jwt_audience"),
        ({"jwt_audience": ""}, "want serving.jwt_issuer and serving.jwt_audience"),
        ({"jwt_key": "short"}, "at least 32 bytes, got 5"),
        ({"jwt_key_file": "/nowhere"}, "both set"),
        ({"jwt_key": "", "jwt_key_file": "/nowhere"}, "cannot read /nowhere"),
        ({"jwt_algorithm": "EdDSA"}, "wants a public key in PEM"),
        ({"jwt_algorithm": "RS256", "jwt_key": "ED"}, "wants an RSA key"),
        ({"jwt_algorithm": "EdDSA", "jwt_key": "RSA"}, "wants an Ed25519 key"),
        ({"jwt_algorithm": "EdDSA", "jwt_key": "EC"}, "wants an Ed25519 key"),
        ({"jwt_algorithm": "RS256", "jwt_key": "WEAK"}, "2048 bits or more, got 1024"),
        ({"jwt_key": "RSA"}, "is a PEM key"),
    ],
    ids=str,
)
def test_keys_for_tokens_that_cannot_be_used_are_refused(
    tmp_path: Path, given: dict[str, str], reason: str
) -> None:
    made: dict[str, Callable[[], Any]] = {
        "ED": ed25519.Ed25519PrivateKey.generate,
        "RSA": lambda: rsa.generate_private_key(65_537, 2_048),
        "WEAK": lambda: rsa.generate_private_key(65_537, 1_024),
        "EC": lambda: ec.generate_private_key(ec.SECP256R1()),
    }
    if make := made.get(given.get("jwt_key", "")):
        given = given | {"jwt_key": public_pem(make())}
    with pytest.raises(BadSettings, match=reason) as caught:
        Guard(hs256(tmp_path, **given))
    assert SECRET not in str(caught.value)


def test_nothing_shows_a_secret(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    given = hs256(tmp_path)
    key = new_key(Path(given.keys_file), "shop", "reader")
    guard = Guard(given)
    shown = token()
    admit(guard, bearer(shown))
    refused(guard, {"x-api-key": key}, Role.OPERATOR)
    everything = repr((guard, given, vars(guard))) + caplog.text
    for secret in (SECRET, key, shown):
        assert secret not in everything
    assert "asked for an operator's" in caplog.text


def test_each_key_has_its_own_limit(tmp_path: Path) -> None:
    given = settings(tmp_path, requests_per_s=2)
    path = Path(given.keys_file)
    usual, own = new_key(path, "usual", "reader"), new_key(path, "own", "reader", requests_per_s=5)
    guard = Guard(given, Limits(clock=lambda: 7.0))
    for key, limit in ((usual, 2), (own, 5)):
        for _ in range(limit):
            admit(guard, {"x-api-key": key})
        problem = refused(guard, {"x-api-key": key})
        assert (problem.status, problem.headers["Retry-After"]) == (429, "1")


def test_a_file_that_may_not_be_read_opens_nothing(tmp_path: Path) -> None:
    (tmp_path / "keys.json").mkdir()
    with pytest.raises(BadSettings, match="cannot read"):
        Guard(settings(tmp_path))


def test_a_token_that_was_taken_holds_until_its_end_whoever_shows_it(tmp_path: Path) -> None:
    clock = Clock()
    guard = Guard(hs256(tmp_path), clock=clock)
    taken = bearer(token({"exp": clock() + 60, "jti": "once"}))
    for agent in ("its owner", "a thief"):
        assert admit(guard, taken | {"user-agent": agent}, Role.WRITER).name == "ann"
    clock.now_s += 66
    assert refused(guard, taken).status == 401


# What much at once counts


def test_a_request_that_brings_much_counts_as_several(tmp_path: Path) -> None:
    clock = Clock()
    given = settings(tmp_path, requests_per_s=10.0)
    key = new_key(tmp_path / "keys.json", "ann", "writer")
    guard = Guard(given, Limits(clock=clock), clock=clock)
    shown = {"x-api-key": key}

    async def handler(call: Call) -> int:
        return len(call.body)

    def ask(body: Any, **how: Any) -> None:
        admit(guard, shown)
        route = Route(method="POST", path="/x", handler=handler, summary="", body=bytes, **how)
        call = Call(body=body, headers=shown)
        assert asyncio.run(_awaited(guard.charged(route).handler(call))) == len(body)

    ask(b" " * COUNTED_BYTES)
    ask(b" " * (4 * COUNTED_BYTES + 1))
    ask([1, 2, 3, 4], counts=len)  # one and five and four are ten
    refusal = refused(guard, shown)
    assert (refusal.status, refusal.headers["Retry-After"]) == (429, "1")
    clock.now_s += 1.0
    ask([0] * 61, counts=len)
    assert refused(guard, shown).headers["Retry-After"] == "6"


def test_where_no_keys_are_set_up_nothing_is_charged(tmp_path: Path) -> None:
    guard = Guard(settings(tmp_path, requests_per_s=1.0))

    async def handler(_: Call) -> str:
        return "done"

    route = Route(method="POST", path="/x", handler=handler, summary="", body=bytes)
    for _ in range(3):
        admit(guard, LOCAL)
        call = Call(body=bytes(100_000), headers=LOCAL)
        assert asyncio.run(_awaited(guard.charged(route).handler(call))) == "done"


async def _awaited(answer: Awaitable[Any]) -> Any:
    return await answer
