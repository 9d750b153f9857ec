# SPDX-License-Identifier: Apache-2.0
"""How errors look outside.

To guests (`/kbs/`), and to hosts that launch guests (`/roomkey/`): the protocol's JSON with `type` and `detail`. Only
what is malformed in their own message is named; of a refusal they learn the decision's id and nothing else. No such
key, no such rule, no such owner and the wrong measurement are one answer. Status 401 or, for what must not be retried,
403; 404 for what is no call of the protocol.

    type                  when
    AttestationError      /auth, /attest and launches
    TokenNotFound         a key is asked for without attested session and without token
    TokenVerifierError    the token is not one of ours, or no longer good
    PolicyDeny            denied
    PluginInternalError   not a key's path, or the broker cannot answer now
    PluginNotFound        no such call

To everybody else: `{"error": {...}}` with cause and mend.

An unexpected exception is a denial: status 500 with an id that the log has too.
"""

from __future__ import annotations

import logging
import os
from types import TracebackType

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException

from broker.http.edge import JSON
from keys.errors import FreshnessError, ProtocolError, ReleaseDenied, RoomkeyError, Unauthorized, Unavailable
from keys.strictjson import compact

GUESTS = ("/kbs/", "/roomkey/")  # the paths whose callers are told nothing
LAUNCHES = "/roomkey/v1/sev/"
KBS_ERRORS = "https://github.com/confidential-containers/kbs/errors/"
RESOURCES = "/kbs/v0/resource"
RETRY_AFTER_S = "1"

_ATTESTATION_CALLS = {
    "/kbs/v0/auth": "Attestation error",
    "/kbs/v0/attest": "Attestation error: RCAR handshake Attest failed",
}
_HTTP_CODES = {404: "not-found", 405: "method", 408: "timeout", 413: "too-large", 503: "unavailable"}

_log = logging.getLogger("roomkey.http")


def early(path: str, status: int, words: str) -> bytes:
    """The body of an error that is answered before the application sees the request."""
    if path.startswith(GUESTS):
        return _kbs_body(_kind(path), words)
    return _owner_body(_HTTP_CODES[status], words)


def install(app: Flask) -> None:
    """Answer every error of `app` in JSON."""
    app.register_error_handler(RoomkeyError, _roomkey)
    app.register_error_handler(HTTPException, _http)
    app.register_error_handler(Exception, _unexpected)


def _roomkey(error: RoomkeyError) -> Response:
    if isinstance(error, Unauthorized) and error.__cause__ is not None:
        _log.info("unauthorized %s %s: %s", request.method, request.path, error.__cause__)
    elif error.http_status >= 500:
        _log.error("%s %s: %s", request.method, request.path, error)
    response = _guest(error) if _is_guest() else _plain(error)
    if isinstance(error, Unavailable):
        response.headers["Retry-After"] = RETRY_AFTER_S
    return response


def _guest(error: RoomkeyError) -> Response:
    decision = "" if error.decision is None else f" (decision {error.decision})"
    if isinstance(error, Unavailable):
        return _kbs(error.http_status, _kind(request.path), "the broker cannot answer now, try again later")
    if isinstance(error, ReleaseDenied):
        return _kbs(403, "PolicyDeny", f"Access denied by policy{decision}")
    words = _attestation_words(request.path)
    if words is not None:
        if isinstance(error, ProtocolError) and error.decision is None:
            return _kbs(401, "AttestationError", f"Attestation error: {_malformed(error)}")
        return _kbs(401, "AttestationError", words + decision)
    if isinstance(error, FreshnessError):
        return _kbs(401, "TokenNotFound", "Attestation Token not found")
    if isinstance(error, Unauthorized):
        return _kbs(401, "TokenVerifierError", "Token verifier error")
    return _kbs(401, "PluginInternalError", "Plugin internal error")


def _plain(error: RoomkeyError) -> Response:
    return _owner(error.http_status, error.code, error.message, error.expected, error.found, error.mend)


def _http(error: HTTPException) -> Response:
    status = error.code or 500
    if _is_guest():
        if request.path.startswith(RESOURCES) and status == 404:
            return _kbs(401, "PluginInternalError", "Plugin internal error")
        if status in (404, 405):
            return _kbs(404, "PluginNotFound", "no such call")
        return _kbs(status, _kind(request.path), error.name)
    response = _owner(status, _HTTP_CODES.get(status, "http"), error.name)
    if status == 405 and isinstance(allowed := getattr(error, "valid_methods", None), list | set | tuple):
        response.headers["Allow"] = ", ".join(sorted(set(allowed) - {"HEAD"}))
    return response


def _unexpected(error: Exception) -> Response:
    incident = f"i-{os.urandom(8).hex()}"
    # Types and places only: the text of a foreign exception may quote what it choked on.
    _log.error("unexpected %s %s: %s at %s", incident, request.path, type(error).__name__, _places(error.__traceback__))
    if _is_guest():
        return _kbs(500, _kind(request.path), f"the broker failed (incident {incident})")
    return _owner(500, "internal", f"the broker failed (incident {incident})", mend="ask the operator for its log")


def _is_guest() -> bool:
    return request.path.startswith(GUESTS)


def _attestation_words(path: str) -> str | None:
    """What a refusal is called where something is attested; None elsewhere."""
    return "Launch refused" if path.startswith(LAUNCHES) else _ATTESTATION_CALLS.get(path)


def _kind(path: str) -> str:
    return "PluginInternalError" if _attestation_words(path) is None else "AttestationError"


def _malformed(error: ProtocolError) -> str:
    """What is wrong with the message. What was found in it is left out: it is the sender's, and may be long."""
    return error.message if error.expected is None else f"{error.message} (expected {error.expected})"


def _kbs(status: int, kind: str, detail: str) -> Response:
    return Response(_kbs_body(kind, detail), status, mimetype=JSON)


def _kbs_body(kind: str, detail: str) -> bytes:
    return compact({"type": KBS_ERRORS + kind, "detail": detail})


def _owner(
    status: int, code: str, message: str, expected: str | None = None, found: str | None = None, mend: str | None = None
) -> Response:
    return Response(_owner_body(code, message, expected, found, mend), status, mimetype=JSON)


def _owner_body(
    code: str, message: str, expected: str | None = None, found: str | None = None, mend: str | None = None
) -> bytes:
    words = {"code": code, "message": message, "expected": expected or "", "found": found or "", "mend": mend or ""}
    return compact({"error": words})


def _places(traceback: TracebackType | None) -> str:
    places = []
    while traceback is not None:
        code = traceback.tb_frame.f_code
        places.append(f"{code.co_filename}:{traceback.tb_lineno} in {code.co_name}")
        traceback = traceback.tb_next
    return " < ".join(reversed(places))
