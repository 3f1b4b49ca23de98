"""The guard: who asks, by key or by token, what they may do, and how often."""

from __future__ import annotations

import ipaddress
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn
from urllib.parse import urlsplit

from serving.api.limits import Limits
from serving.api.problems import Problem
from serving.api.routes import Call, Principal, Role, Route
from serving.api.tokens import BadToken, Tokens
from serving.keys import digest, read_keys
from stream.errors import BadSettings
from stream.settings import ServingSettings

ANYBODY: Final = Principal(name="anonymous", role=Role.READER)
"""Who asks what everybody may ask."""

LOCAL: Final = Principal(name="anonymous", role=Role.OPERATOR)
"""Who asks on this machine where no keys are set up."""

LOOK_S: Final = 1.0
"""A key that was made or revoked is known to the servers after so long."""

_MAX_KEY: Final = 256  # characters, a few times those of a key
_MAX_TOKENS: Final = 10_000  # that are remembered as checked

_log = logging.getLogger(__name__)


class _Known(NamedTuple):
    """A key or token that holds."""

    principal: Principal | None  # ``None``: it names no role
    bucket: str
    requests_per_s: float
    until_s: float


class Guard:
    """Lets in who shows an API key or a token, and refuses the others.

    A key comes as ``X-API-Key``, a token as ``Authorization: Bearer``. Without keys and tokens
    set up, everybody on this machine is let in and nobody else, not even over a web page or a
    proxy on this machine.

    Parameters
    ----------
    settings
        Where it listens, and its keys, tokens and limits.
    limits
        Counts the requests; left out, they are counted in this process.
    clock
        Seconds since 1970.

    Raises
    ------
    BadSettings
        If keys or tokens cannot be used as set up, or none are although others than this machine
        could connect.

    """

    def __init__(
        self,
        settings: ServingSettings,
        limits: Limits | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._limits = limits or Limits()
        self._clock = clock
        self._file = Path(settings.keys_file) if settings.keys_file else None
        self._signature: tuple[int, ...] = ()
        self._keys: dict[str, _Known] = {}
        self._checked: dict[str, _Known] = {}
        self._tokens = Tokens(settings) if settings.jwt_key or settings.jwt_key_file else None
        self._open = self._tokens is None
        self._origins = frozenset(settings.cors_origins)
        self._look_s = clock() + LOOK_S
        self._look()
        self._check_exposure()

    @property
    def open(self) -> bool:
        """Whether no keys and tokens are set up, so that everybody on this machine is let in."""
        return self._open

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
            401 without a key or token that holds, 403 if it may not do this, 429 if it asks too
            often.

        """
        if role is None:
            return ANYBODY
        now_s = self._clock()
        if now_s >= self._look_s:
            self._look_s = now_s + LOOK_S
            try:
                self._look()
            except BadSettings as error:
                _log.error("%s; the keys that were known before hold on", error)
        if self._open:
            self._check_local(headers)
            return LOCAL
        known = self._known(headers, now_s)
        if known.requests_per_s:
            wait_s = await self._limits.take(known.bucket, known.requests_per_s)
            if wait_s:
                raise Problem(
                    429,
                    "too-many-requests",
                    f"this key may ask {known.requests_per_s:g} times a second; ask again in "
                    f"{wait_s:.3f} s",
                    headers={"Retry-After": str(math.ceil(wait_s))},
                )
        principal = known.principal
        if principal is None or principal.role < role:
            has = "none" if principal is None else principal.role.name.lower()
            if role is Role.OPERATOR:
                _log.warning("%s, whose role is %s, asked for an operator's", known.bucket, has)
            raise Problem(
                403,
                "forbidden",
                f"this wants the role {role.name.lower()}, and yours is {has}",
            )
        return principal

    def charged(self, route: Route) -> Route:
        """Return a route whose requests count as many as their bodies say."""
        if route.body is None:
            return route
        handler, counts = route.handler, route.counts

        async def handle(call: Call) -> Any:
            if (more := counts(call.body) - 1) and not self._open:
                known = self._known(call.headers, self._clock())
                if known.requests_per_s:
                    self._limits.charge(known.bucket, known.requests_per_s, more)
            return await handler(call)

        return replace(route, handler=handle)

    def _known(self, headers: Mapping[str, str], now_s: float) -> _Known:
        """Return who has the key or the token of a request."""
        key = headers.get("x-api-key")
        authorization = headers.get("authorization")
        if key is not None:
            if authorization is not None:
                _refuse("want X-API-Key or Authorization, got both")
            known = self._keys.get(digest(key)) if len(key) <= _MAX_KEY else None
            if known is None:
                _refuse("the key in X-API-Key is not known")
            return known
        if authorization is None:
            _refuse("want a key in X-API-Key, or a token in Authorization: Bearer", error="")
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer":
            _refuse("want Authorization: Bearer and a token; a key goes into X-API-Key")
        if self._tokens is None:
            _refuse("tokens are not set up here; want a key in X-API-Key")
        marked = digest(token)
        known = self._checked.get(marked)
        if known is None:
            known = self._check(token, self._tokens)
            if len(self._checked) >= _MAX_TOKENS:
                self._checked.pop(next(iter(self._checked)))
            self._checked[marked] = known
        if now_s >= known.until_s:
            del self._checked[marked]
            _refuse("the token has ended: get a new one")
        return known

    def _check(self, token: str, tokens: Tokens) -> _Known:
        try:
            claims = tokens.check(token)
        except BadToken as error:
            _refuse(str(error))
        role = claims.role
        return _Known(
            None if role is None else Principal(name=claims.subject, role=role),
            f"token {claims.subject}",
            self._settings.requests_per_s,
            claims.until_s,
        )

    def _look(self) -> None:
        """Read the file of keys if it is another one by now.

        Raises
        ------
        BadSettings
            If it cannot be read; the keys that were known before hold on.

        """
        if self._file is None or (signature := _signature(self._file)) == self._signature:
            return
        self._signature = signature
        # Even one that cannot be read closes the door, and one that is gone does not open it again.
        self._open = self._open and not signature
        self._keys = {
            each.sha256: _Known(
                Principal(name=each.name, role=Role[each.role.upper()]),
                f"key {each.name}",
                self._settings.requests_per_s
                if each.requests_per_s is None
                else each.requests_per_s,
                math.inf,
            )
            for each in read_keys(self._file) or ()
        }

    def _check_exposure(self) -> None:
        host = self._settings.host
        if is_local(host):
            return
        if self._open:
            raise BadSettings(
                f"serving.host is {host}, where others can connect, and there are no keys in "
                f"{self._file or 'serving.keys_file'} and no serving.jwt_key: make a key with "
                "tidegraph keys new NAME --role reader, or listen on 127.0.0.1"
            )
        if not self._settings.cert_file:
            _log.warning(
                "keys and tokens come to %s in clear text: set serving.cert_file and "
                "serving.key_file, or let only a proxy that speaks TLS connect",
                host,
            )

    def _check_local(self, headers: Mapping[str, str]) -> None:
        """Refuse what a web page or a proxy on this machine asks for somebody else."""
        host = headers.get("host", "")
        if not _host_is_local(host):
            _refuse_remote(f"came for the host {host[:100]!r}")
        if "x-forwarded-for" in headers or "forwarded" in headers:
            _refuse_remote("came over a proxy")
        origin = headers.get("origin")
        if origin is None:
            if headers.get("sec-fetch-site") in {"cross-site", "same-site"}:
                _refuse_remote("came from another web site's page")
        elif origin.partition("://")[2] != host and origin not in self._origins:
            _refuse_remote(f"came from a page of {origin[:100]!r}")


def _signature(path: Path) -> tuple[int, ...]:
    """Return what tells one version of a file from the next; empty if there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return ()
    except OSError:
        return (-1,)
    return status.st_ino, status.st_mtime_ns, status.st_size


def is_local(host: str) -> bool:
    """Return whether only this machine can connect to a host.

    Examples
    --------
    >>> [is_local(host) for host in ("localhost", "127.8.0.1", "::1", "0.0.0.0", "a.example")]
    [True, True, True, False, False]

    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@lru_cache(maxsize=256)
def _host_is_local(header: str) -> bool:
    """Return whether a ``Host`` header names this machine, with whatever port.

    Examples
    --------
    >>> [_host_is_local(host) for host in ("localhost:80", "[::1]:8080", "a.example", "", "[", "@")]
    [True, True, False, False, False, False]

    """
    if not header or any(sign in header for sign in "/@\\?#"):
        return False
    try:
        return is_local(urlsplit(f"//{header}").hostname or "")
    except ValueError:
        return False


def _refuse(detail: str, error: str = ', error="invalid_token"') -> NoReturn:
    told = f'Bearer realm="tidegraph"{error}'
    raise Problem(401, "unauthorized", detail, headers={"WWW-Authenticate": told})


def _refuse_remote(how: str) -> NoReturn:
    raise Problem(
        403,
        "keys-wanted",
        f"no keys are set up here, so only programs of this machine may ask, and this {how}; "
        "tidegraph keys new makes a key",
    )
