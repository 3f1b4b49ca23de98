"""What goes wrong with a request, as RFC 9457 tells it (``application/problem+json``)."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

import msgspec

MEDIA_TYPE: Final = "application/problem+json"


class ProblemDetails(msgspec.Struct, omit_defaults=True):
    """The body of an answer that is an error (RFC 9457, section 3.1).

    Parameters
    ----------
    type
        Names the kind of problem: ``/problems/`` and a word, for programs to tell them apart.
    title
        The kind in words.
    status
        As in the answer's first line.
    detail
        What was wanted, what came, where, and what to do.
    errors
        The places in the request that are wrong, where there are several.

    """

    type: str
    title: str
    status: int
    detail: str
    errors: list[dict[str, str]] = []


class Problem(Exception):  # noqa: N818 - the standard's word
    """A request that cannot be answered as asked.

    Parameters
    ----------
    status
        Of HTTP, 400 or more.
    kind
        The word of the problem's type, such as ``unknown-user``.
    detail
        What was wanted, what came, where, and what to do; never a secret, never a traceback.
    errors
        The places that are wrong, where there are several.
    headers
        To be sent with the answer, such as ``Retry-After``.

    Examples
    --------
    >>> Problem(404, "unknown-item", "no item 77 is published").details().title
    'Unknown item'

    """

    def __init__(
        self,
        status: int,
        kind: str,
        detail: str,
        *,
        errors: list[dict[str, str]] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = HTTPStatus(status)
        self.kind = kind
        self.detail = detail
        self.errors = errors or []
        self.headers = dict(headers or {})

    def details(self) -> ProblemDetails:
        """Return the body of the answer."""
        return ProblemDetails(
            f"/problems/{self.kind}",
            self.kind.replace("-", " ").capitalize(),
            self.status.value,
            self.detail,
            self.errors,
        )

    def body(self) -> bytes:
        """Return the body of the answer as JSON."""
        return msgspec.json.encode(self.details())
