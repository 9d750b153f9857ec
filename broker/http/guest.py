# SPDX-License-Identifier: Apache-2.0
"""`/kbs/v0`: the KBS attestation protocol 0.4.0, as deployed guests speak it.

The cookie carries a session from `/auth` to the key; a guest without one shows its token instead. The cookie is looked
at first. How errors look is in `broker.http.errors`.
"""

from __future__ import annotations

import itertools
from datetime import UTC, datetime

from flask import Request, Response, request

from broker import attestation, session
from broker.http.edge import Edge, RateLimited, json_response
from broker.release import release
from keys.messages import Attestation, ResourcePath
from keys.messages import Request as ChallengeRequest

COOKIE = "kbs-session-id"
COOKIE_PATH = "/kbs/v0"
BEARER = "Bearer "
MINUTE_MS = 60_000
PURGE_EVERY = 100  # challenges; each purge forgets up to a thousand expired ones

_issued = itertools.count(1)


def auth(edge: Edge) -> Response:
    message = ChallengeRequest.from_bytes(edge.body())
    services = edge.services
    now = services.clock()
    if services.store.hit(f"challenge {request.remote_addr}", MINUTE_MS, now) > edge.limits.challenges_per_minute:
        raise RateLimited("too many challenges from one address")
    issued = session.issue(message, services, now=now)
    if next(_issued) % PURGE_EVERY == 0:
        services.store.purge(now)
    return _with_cookie(json_response(issued.challenge.to_json()), issued.session_id, issued.expires_at)


def attest(edge: Edge) -> Response:
    message = Attestation.from_bytes(edge.body())
    session_id = request.cookies.get(COOKIE)
    now = edge.services.clock()
    token = attestation.attest(session_id, message, edge.services, now=now)
    response = json_response({"token": token})
    # The session lives on as long as the attestation that it holds now.
    return _with_cookie(response, session_id or "", now + edge.services.tokens.lifetime_s * 1000)


def resource(edge: Edge, owner: str, type: str, tag: str) -> Response:  # noqa: A002  the protocol's word
    path = ResourcePath.parse(f"{owner}/{type}/{tag}")
    jwe = release(
        path,
        edge.services,
        session_id=request.cookies.get(COOKIE),
        token=_bearer(request),
        now=edge.services.clock(),
    )
    return json_response(jwe)


def _bearer(http: Request) -> str | None:
    header = http.headers.get("Authorization", "")
    return header.removeprefix(BEARER) if header.startswith(BEARER) else None


def _with_cookie(response: Response, session_id: str, expires_at: int) -> Response:
    response.set_cookie(
        COOKIE,
        session_id,
        expires=datetime.fromtimestamp(expires_at / 1000, UTC),
        path=COOKIE_PATH,
        secure=request.is_secure,
        httponly=True,
        samesite="Strict",
    )
    return response
