# SPDX-License-Identifier: Apache-2.0
"""`/kbs/v0`: the KBS attestation protocol 0.4.0, as deployed guests speak it.

The cookie carries a session from `/auth` to the key; a guest without one shows its token instead. The cookie is looked
at first. How errors look is in `broker.http.errors`.
"""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from ipaddress import IPv6Address, ip_address

from flask import Request, Response, request

from broker import attestation, session
from broker.endorsements.source import WouldWait
from broker.http.edge import Edge, RateLimited, answer_in_thread, is_second_turn, json_response, may_wait
from broker.release import release
from keys.envelope import MEDIA_TYPE
from keys.messages import Attestation, ResourcePath
from keys.messages import Request as ChallengeRequest

COOKIE = "kbs-session-id"
COOKIE_PATH = "/kbs/v0"
BEARER = "Bearer "
MINUTE_MS = 60_000
PURGE_EVERY = 100  # guests' calls; each purge forgets up to a thousand expired challenges, counters and so on

_calls = itertools.count(1)


def auth(edge: Edge) -> Response:
    now = admit(edge, "auth")
    message = ChallengeRequest.from_bytes(edge.body())
    issued = session.issue(message, edge.services, now=now, previous=request.cookies.get(COOKIE))
    return _with_cookie(json_response(issued.challenge.to_json()), issued.session_id, issued.expires_at)


def attest(edge: Edge) -> Response:
    now = admit(edge, "attest")
    message = Attestation.from_bytes(edge.body())
    session_id = request.cookies.get(COOKIE)
    try:
        token = attestation.attest(
            session_id,
            message,
            edge.services,
            now=now,
            client=network(request.remote_addr),
            may_wait=may_wait(),
        )
    except WouldWait:
        return answer_in_thread()
    response = json_response({"token": token})
    # The session lives on as long as the attestation that it holds now.
    return _with_cookie(response, session_id or "", now + edge.services.tokens.lifetime_s * 1000)


def resource(edge: Edge, owner: str, type: str, tag: str) -> Response:  # noqa: A002  the protocol's word
    now = admit(edge, "resource")
    path = ResourcePath.parse(f"{owner}/{type}/{tag}")
    jwe = release(
        path,
        edge.services,
        session_id=request.cookies.get(COOKIE),
        token=_bearer(request),
        now=now,
        in_envelope=request.headers.get("Accept") == MEDIA_TYPE,
    )
    return json_response(jwe)


def admit(edge: Edge, call: str) -> int:
    """The time of this call, if its client may make one more: each attempt to attest and each denial is a durable line
    in somebody's ledger, and nobody may write those without end. Raises RateLimited, Unavailable.
    """
    store, now = edge.services.store, edge.services.clock()
    if is_second_turn():
        return now
    if store.hit(f"{call} {network(request.remote_addr)}", MINUTE_MS, now) > edge.limits.challenges_per_minute:
        raise RateLimited("too many calls from one address")
    if next(_calls) % PURGE_EVERY == 0:
        store.purge(now)
        edge.services.dossiers.purge(now)
    return now


def network(address: str | None) -> str:
    """What one client is counted as: its IPv4 address or the /64 of its IPv6 address, all of which is its own."""
    try:
        ip = ip_address((address or "").strip("[]").partition("%")[0])
    except ValueError:
        return "unknown"
    if isinstance(ip, IPv6Address):
        return str(ip.ipv4_mapped or IPv6Address(int(ip) >> 64 << 64))
    return str(ip)


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
