"""Lets pages of named web sites read answers (CORS); nobody else's, and by default none."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import falcon.asgi

from stream.errors import BadSettings

_ORIGIN: Final = re.compile(r"https?://([a-z0-9.-]+|\[[0-9a-f:]+\])(:\d{1,5})?", re.ASCII)
_MAX_AGE_S: Final = 600
_TOLD: Final = "Retry-After, WWW-Authenticate"
_TAKEN: Final = "Authorization, Content-Type, X-API-Key"


class Cors:
    """A middleware that answers a browser's question beforehand, and marks answers.

    Parameters
    ----------
    origins
        As browsers send them: scheme, host and port, in lower case.

    Raises
    ------
    BadSettings
        If one is not of that form; ``*`` is not, since answers tell of people.

    Examples
    --------
    >>> Cors(["https://shop.example", "http://localhost:3000"])
    Cors(http://localhost:3000, https://shop.example)

    """

    def __init__(self, origins: Sequence[str]) -> None:
        for origin in origins:
            if not _ORIGIN.fullmatch(origin):
                raise BadSettings(
                    "serving.cors_origins: want origins like https://shop.example, in lower case "
                    f"and without a path, got {origin!r}"
                )
        self._origins = frozenset(origins)

    def __repr__(self) -> str:
        return f"Cors({', '.join(sorted(self._origins))})"

    async def process_request(
        self, request: falcon.asgi.Request, response: falcon.asgi.Response
    ) -> None:
        """Answer the question whether a request may be sent, before any route is looked for."""
        asked = request.get_header("Access-Control-Request-Method")
        if request.method != "OPTIONS" or asked is None or not self._mark(request, response):
            return
        response.set_header("Access-Control-Allow-Methods", "GET, POST, PUT, DELETE")
        response.set_header("Access-Control-Allow-Headers", _TAKEN)
        response.set_header("Access-Control-Max-Age", str(_MAX_AGE_S))
        response.status = 204
        response.complete = True

    async def process_response(
        self,
        request: falcon.asgi.Request,
        response: falcon.asgi.Response,
        resource: object,
        req_succeeded: bool,  # noqa: FBT001 - falcon's signature
    ) -> None:
        """Say who may read the answer."""
        self._mark(request, response)

    def _mark(self, request: falcon.asgi.Request, response: falcon.asgi.Response) -> bool:
        response.append_header("Vary", "Origin")
        origin = request.get_header("Origin")
        if origin not in self._origins or origin is None:
            return False
        response.set_header("Access-Control-Allow-Origin", origin)
        response.set_header("Access-Control-Expose-Headers", _TOLD)
        return True
