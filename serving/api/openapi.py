"""The OpenAPI 3.1 document, made from the table of routes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any, Final

import msgspec

from serving.api.app import JSON, MAX_PART, media_types
from serving.api.problems import MEDIA_TYPE, ProblemDetails
from serving.api.routes import Route

_PART: Final = re.compile(r"\{(\w+)\}")
_REFERENCE: Final = "#/components/schemas/{name}"

_KEYS: Final[list[dict[str, list[str]]]] = [{"key": []}, {"token": []}]
_SCHEMES: Final = {
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    "token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
}


def document(routes: Iterable[Route], *, version: str) -> dict[str, Any]:
    """Return the document that describes the routes.

    Parameters
    ----------
    routes
        Those without a summary are left out: pages for people.
    version
        Of the program.

    """
    told = [route for route in routes if route.summary]
    kinds = [kind for route in told for kind in (route.query, route.body, route.answer)]
    described = [kind for kind in kinds if kind is not None]
    schemas, components = msgspec.json.schema_components(
        [*described, ProblemDetails], ref_template=_REFERENCE
    )
    problem = schemas[-1]
    by_kind = {repr(kind): schema for kind, schema in zip(described, schemas, strict=False)}
    paths: dict[str, dict[str, Any]] = {}
    for route in told:
        operation = _operation(route, by_kind, components, problem)
        paths.setdefault(route.path, {})[route.method.lower()] = operation
    written = msgspec.json.encode([paths, components])
    for route in told:  # what a query struct says is said by the parameters
        if route.query is not None:
            name = route.query.__name__
            if f'"{_REFERENCE.format(name=name)}"'.encode() not in written:
                components.pop(name, None)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "tidegraph",
            "version": version,
            "description": "Recommendations from what was learned seconds ago.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "tags": [{"name": tag} for tag in dict.fromkeys(route.tag for route in told)],
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": _SCHEMES},
    }


def _operation(
    route: Route,
    by_kind: dict[str, dict[str, Any]],
    components: dict[str, Any],
    problem: dict[str, Any],
) -> dict[str, Any]:
    words = [route.method.lower(), *re.findall(r"\w+", route.path.removeprefix("/v1"))]
    operation: dict[str, Any] = {
        "operationId": "_".join(words),
        "summary": route.summary,
        "tags": [route.tag],
        "parameters": [_path_parameter(name) for name in _PART.findall(route.path)],
        "security": [] if route.role is None else _KEYS,
    }
    if route.role is not None:
        operation["description"] = f"For the role {route.role.name.lower()} and those above it."
    if route.query is not None:
        operation["parameters"] += _query_parameters(components[route.query.__name__])
    if route.body is not None:
        schema = by_kind[repr(route.body)]
        operation["requestBody"] = {
            "required": True,
            "content": {kind: {"schema": schema} for kind in media_types(route.body)},
        }
    answer: dict[str, Any] = {"description": HTTPStatus(route.status).phrase}
    if route.answer is not None:
        answer["content"] = {JSON: {"schema": by_kind[repr(route.answer)]}}
    operation["responses"] = {
        str(route.status): answer,
        **{
            str(status): {
                "description": HTTPStatus(status).phrase,
                "content": {MEDIA_TYPE: {"schema": problem}},
            }
            for status in _problems(route)
        },
    }
    return operation


def _problems(route: Route) -> list[int]:
    """Return the statuses of the problems that a route may answer with."""
    statuses = {*route.problems, 503}
    if route.path.count("{") or route.query is not None or route.body is not None:
        statuses.add(400)
    if route.body is not None:
        statuses |= {413, 415}
    if route.role is not None:
        statuses |= {401, 403, 429}
    return sorted(statuses)


def _path_parameter(name: str) -> dict[str, Any]:
    schema = {
        "type": "string",
        "minLength": 1,
        "maxLength": MAX_PART,
        "pattern": "^[^\\u0000-\\u001f\\u007f\\ufffd]+$",
    }
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _query_parameters(struct: dict[str, Any]) -> list[dict[str, Any]]:
    required = struct.get("required", [])
    parameters = []
    for name, schema in struct["properties"].items():
        parameter: dict[str, Any] = {"name": name, "in": "query", "required": name in required}
        if told := schema.pop("description", None):
            parameter["description"] = told
        if schema.get("type") == "array":
            parameter |= {"style": "form", "explode": True}
        parameters.append(parameter | {"schema": schema})
    return parameters
