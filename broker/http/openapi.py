# SPDX-License-Identifier: Apache-2.0
"""The OpenAPI 3.1 document, made from the table of routes and the types in it."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import msgspec

from broker.http import kbs_types, types
from broker.http.edge import JSON
from broker.http.routes import ROUTES, Access, Route

API_VERSION = "1.0"  # of the calls described, not of the program
SCHEMES: dict[str, dict[str, str]] = {
    "session": {
        "type": "apiKey",
        "in": "cookie",
        "name": "kbs-session-id",
        "description": "Set by /kbs/v0/auth; good for one attestation, and afterwards for the keys it was made for.",
    },
    "token": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "The attestation result that /kbs/v0/attest answered.",
    },
    "owner": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": (
            "Signed by the owner's Ed25519 or P-256 key for this one request: header alg, kid (RFC 7638 thumbprint), "
            'typ "roomkey-owner+jwt"; claims iss (owner), aud, iat, exp (at most 120 s later), jti (16 random bytes or '
            "more, base64url), htm (method), htu (path with query), sha256 (of the body, base64url)."
        ),
    },
}
SECURITY: dict[Access, list[dict[str, list[str]]]] = {
    Access.PUBLIC: [],
    Access.GUEST: [],
    Access.SESSION: [{"session": []}],
    Access.SESSION_OR_BEARER: [{"session": []}, {"token": []}],
    Access.HOST: [],
    Access.OWNER: [{"owner": []}],
}

_ERRORS_OF_GUESTS = {"401": "Refused, or not understood", "403": "Denied", "413": "Too long", "503": "Try again later"}
_ERRORS_OF_OWNERS = {
    "400": "Not what this call takes",
    "401": "Not signed by an owner's key for this request",
    "404": "No such thing in the caller's namespace",
    "409": "Somebody else changed it first",
    "413": "Too long",
    "503": "Try again later",
}
_TAGS = {"kbs": "guests", "roomkey": "hosts", "v1": "owners"}
_VARIABLE = re.compile(r"\{(\w+)\}")


@cache
def document() -> dict[str, Any]:
    """The whole document, as JSON values."""
    used = {kind for route in ROUTES for kind in (route.request, route.response) if kind is not None}
    named = sorted(used | {types.Error, kbs_types.KbsError}, key=lambda kind: kind.__name__)
    _, schemas = msgspec.json.schema_components(named, ref_template="#/components/schemas/{name}")
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Roomkey",
            "version": API_VERSION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            "description": "Keys for guests that prove what they booted. Guests: KBS attestation protocol 0.4.0 under "
            "/kbs/v0. Hosts of guests that cannot attest at run time: /roomkey/v1. Owners: /v1.",
        },
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": SCHEMES},
    }


def _operation(route: Route, schemas: dict[str, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.summary,
        "tags": [_TAGS.get(root := route.path.split("/")[1], root)],
        "security": SECURITY[route.access],
        "responses": _responses(route),
    }
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _VARIABLE.findall(route.path)
    ]
    if route.request is not None and route.method == "GET":
        members = schemas[route.request.__name__]["properties"].items()
        parameters += [{"name": name, "in": "query", "required": False, "schema": schema} for name, schema in members]
    elif route.request is not None:
        required = bool(schemas[route.request.__name__]["required"])
        operation["requestBody"] = {"required": required, "content": _content(route.request)}
    if parameters:
        operation["parameters"] = parameters
    return operation


def _responses(route: Route) -> dict[str, Any]:
    success: dict[str, Any] = {"description": route.summary}
    if route.response is not None:
        success["content"] = _content(route.response)
    if route.access is Access.PUBLIC:
        return {str(route.status): success}
    guest = route.access is not Access.OWNER
    errors = _ERRORS_OF_GUESTS if guest else _ERRORS_OF_OWNERS
    body = _content(kbs_types.KbsError if guest else types.Error)
    return {str(route.status): success} | {
        status: {"description": words, "content": body} for status, words in errors.items()
    }


def _content(kind: type[msgspec.Struct]) -> dict[str, Any]:
    return {JSON: {"schema": {"$ref": f"#/components/schemas/{kind.__name__}"}}}
