"""What a route is: one entry of the table from which the app and its OpenAPI document are made."""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import msgspec


class Role(enum.IntEnum):
    """What somebody may do; each role may do what those before it may."""

    READER = 1
    WRITER = 2
    OPERATOR = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Principal:
    """Who asks.

    Parameters
    ----------
    name
        Of the key or the token's subject; ``anonymous`` where no keys are set up.
    role
        The greatest that they have.

    """

    name: str = "anonymous"
    role: Role = Role.OPERATOR


class Call(msgspec.Struct, frozen=True, kw_only=True):  # made for each request: a dataclass is slow
    """A request that was let in, read and checked.

    Parameters
    ----------
    path
        The parts of the path that the route names, decoded.
    query
        The route's ``query`` struct, or ``None``.
    body
        What the route's ``body`` says, or ``None``.
    headers
        By lower-case name.
    principal
        Who asks.

    """

    path: Mapping[str, str] = {}
    query: Any = None
    body: Any = None
    headers: Mapping[str, str] = {}
    principal: Principal = Principal()


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """An answer that is more than a body of JSON with the route's usual status.

    Parameters
    ----------
    body
        Bytes as they are, anything else as JSON.
    status
        Of HTTP.
    media_type
        Of ``body``.
    headers
        To be sent besides.

    """

    body: Any
    status: int = 200
    media_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


COUNTED_BYTES: Final = 16_384
"""So much of a body counts as one request."""


def one_or_more(body: Any) -> int:
    """Return as how many requests a body counts that is read as it came: one for each 16 KiB.

    Examples
    --------
    >>> [one_or_more(body) for body in (None, b"", bytes(16_384), bytes(16_385))]
    [1, 1, 1, 2]

    """
    return max(1, -(-len(body) // COUNTED_BYTES)) if isinstance(body, bytes) else 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """One thing that can be asked.

    Parameters
    ----------
    method, path
        As in ``GET /v1/items/{item}/similar``; a part in braces is any text, percent-decoded;
        a slash in it must be encoded.
    handler
        Returns a struct, which is sent as JSON, or an :class:`Answer`; raises
        :class:`serving.api.problems.Problem`.
    summary
        One line, for the OpenAPI document.
    role
        Who may ask; ``None`` is everybody, also without a key.
    query, body, answer
        The structs that are read and sent; the OpenAPI document describes them. ``query`` has
        fields of text, numbers, booleans and lists of these (repeated parameters).
    raw
        The handler reads the body itself, as where one wrong entry of many must not refuse the
        others: ``Call.body`` is the bytes as they came, and ``body`` describes them.
    status
        Of the usual answer.
    problems
        The statuses of the problems that the handler raises besides 400, 401, 403 and 429.
    tag
        The heading that the document puts it under.
    counts
        As how many requests one with this body counts, where keys are limited.

    """

    method: Literal["GET", "POST", "PUT", "DELETE"]
    path: str
    handler: Callable[[Call], Awaitable[Any]]
    summary: str
    role: Role | None = Role.READER
    query: type[msgspec.Struct] | None = None
    body: Any = None
    answer: Any = None
    raw: bool = False
    status: int = 200
    problems: tuple[int, ...] = ()
    tag: str = "recommendations"
    counts: Callable[[Any], int] = one_or_more
