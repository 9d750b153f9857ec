# SPDX-License-Identifier: Apache-2.0
"""The KBS attestation protocol 0.4.0, the guest's side: from nothing to a key, in three requests on one connection.

    POST /kbs/v0/auth            what this guest is, which key it wants   -> nonce, and a session cookie
    POST /kbs/v0/attest          evidence over nonce and ephemeral key    -> a token, which the session keeps for us
    GET  /kbs/v0/resource/PATH                                            -> the key, wrapped to the ephemeral key,
                                                                             in an envelope that the broker has signed

The ephemeral key lives for one attempt. All that a broker says of a refusal is a decision's id; the owner reads the
reasons with `roomkey decision show ID`.
"""

from __future__ import annotations

import random
import re
import time
from typing import TYPE_CHECKING, Any, Self

from cryptography.hazmat.primitives.asymmetric import ec

from agent import versions
from agent.connection import MAX_ANSWER_BYTES, Answer, Connection, Endpoint, endpoint, tls_context
from agent.release import Demand, Opened, demand, opened
from keys import binding, jwe, jwk, strictjson
from keys.envelope import MEDIA_TYPE
from keys.errors import (
    ConfigError,
    FreshnessError,
    NotFound,
    ProtocolError,
    ReleaseDenied,
    RoomkeyError,
    Unavailable,
    VerificationError,
)
from keys.messages import Attestation, Challenge, Request, ResourcePath
from keys.secrecy import wipe

if TYPE_CHECKING:
    from agent.attesters.registry import Attester
    from agent.config import Settings
    from agent.deadline import Deadline
    from keys.report import Report

PREFIX = "/kbs/v0"
JSON = "application/json"
ERROR_TYPE_PREFIX = "https://github.com/confidential-containers/kbs/errors/"
FIRST_BACKOFF = 0.5  # seconds; the longest wait after the first failure, doubled after each
LONGEST_BACKOFF = 5.0
SHORTEST_ATTEMPT = 0.25  # seconds; no attempt begins when less than this remains
MAX_FRESHNESS_RETRIES = 2  # a session that is lost three times is not lost by accident
MAX_DETAIL_CHARS = 300  # of a broker's words that are shown

_COOKIE = re.compile(r"kbs-session-id=([A-Za-z0-9_.~-]{1,256})\Z")
_DECISION = re.compile(r"\bd-[a-z2-7]{20}\b")

# KBS error types -> our errors, where the type says more than the status does.
_BY_TYPE: dict[str, type[RoomkeyError]] = {
    "PolicyDeny": ReleaseDenied,
    "TokenNotFound": FreshnessError,
    "TokenVerifierError": FreshnessError,
    "InvalidRequestPath": NotFound,
    "PluginInternalError": NotFound,
    "PluginNotFound": NotFound,
    "JweError": ProtocolError,
}
_REFUSALS = {
    "auth": "the broker gives this guest no challenge",
    "attest": "the broker does not accept this guest's evidence",
    "resource": "the broker does not release the key to this guest",
    "sev": "the broker does not take part in this launch",
}
_UNAVAILABLE = frozenset((429, 502, 503, 504))


class _Later(Unavailable):
    """A broker that says when to come again. `after` in seconds."""

    after = 0.0


def fetch(
    settings: Settings,
    attester: Attester,
    path: ResourcePath,
    deadline: Deadline,
    *,
    at_least: int = 1,
    ticket: str | None = None,
    report: Report | None = None,
    session: str = "",
) -> Opened:
    """The key at `path`, in version `at_least` or newer, from the first broker that gives it. `ticket` and `report` go
    along. `session`: of an answer that this request goes on from.

    A broker that cannot be reached, or that does not keep to the protocol, is passed over for the next. After a round
    all are tried again if one of them may come back, until the deadline. A refusal ends it at once: another broker of
    the same service would say the same, and asking again only helps whoever guesses. Raises the last error.
    """
    if not settings.brokers:
        raise ConfigError("no broker", mend="set brokers in the agent's config, or give --broker")
    wanted = demand(settings, path, at_least=at_least, ticket=ticket, report=report, session=session)
    targets = [endpoint(url) for url in settings.brokers]
    tls = tls_context(settings.ca_file) if any(target.secure for target in targets) else None
    backoff = FIRST_BACKOFF
    stale = 0
    known: RoomkeyError | None = None
    while True:
        failure: RoomkeyError = Unavailable("no broker answered")
        again = False
        wait = 0.0
        for untried, target in zip(range(len(targets), 0, -1), targets, strict=True):
            # Each broker gets an equal share of what is left, so that a silent first one cannot use up all of it.
            with Conversation(target, tls if target.secure else None, deadline.share(untried)) as conversation:
                try:
                    got = conversation.fetch(attester, wanted)
                except FreshnessError as error:
                    stale += 1
                    if stale > MAX_FRESHNESS_RETRIES:
                        raise
                    failure, again = error, True
                except Unavailable as error:
                    # That time ran out in a later round says less than what went wrong in the one before.
                    failure = error if known is None or deadline.remaining() > 0 else known
                    again = True
                    wait = max(wait, getattr(error, "after", 0.0))
                except ProtocolError as error:
                    failure = error
                else:
                    return _remembered(settings, wanted, got, deadline)
        room = deadline.remaining() - SHORTEST_ATTEMPT
        jitter = random.uniform(0, min(backoff, max(room, 0)))  # noqa: S311  keeps guests apart, guards nothing
        pause = max(wait, jitter)
        if not again or pause > room:
            raise failure
        known = failure
        deadline.pause(pause, "the broker")
        backoff = min(2 * backoff, LONGEST_BACKOFF)


class Conversation:
    """One attempt with one broker."""

    def __init__(self, target: Endpoint, tls: Any, deadline: Deadline) -> None:
        self._connection = Connection(target, tls, deadline)
        self._cookie = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._connection.close()

    def fetch(self, attester: Attester, wanted: Demand) -> Opened:
        """auth, attest, resource. Raises RoomkeyError of the kind that `refusal` makes of the broker's answer, and
        what `opened` raises.
        """
        request = attester.request(wanted.path)._replace(ticket=wanted.ticket)
        began = _now_ms()
        self._cookie = wanted.session
        challenge = self.challenge(request)
        activation = attester.accept(challenge)
        key = ec.generate_private_key(ec.SECP256R1())
        tee_pubkey = jwk.from_ec(key.public_key())
        told = "" if wanted.report is None else wanted.report.to_text()
        bound = binding.report_data(request.tee, challenge.nonce, tee_pubkey.members, told)
        message = Attestation(challenge.nonce, tee_pubkey, attester.evidence(bound, activation), told)
        answer = _json(self._ask("POST", "/attest", message.to_json()), "the attestation's answer")
        strictjson.members(answer, name="the attestation's answer", required=frozenset(("token",)))
        session_id = self._cookie  # what the next answer sets comes too late
        plain = wanted.keys is None
        accept, max_bytes = (JSON, jwe.MAX_PLAINTEXT_BYTES) if plain else (MEDIA_TYPE, jwe.MAX_ENVELOPE_BYTES)
        wrapped = _json(self._ask("GET", f"/resource/{wanted.path}", None, accept), "the wrapped key")
        plaintext = jwe.unseal(wrapped, key, activation=activation, max_bytes=max_bytes)
        got = opened(plaintext, wanted, message, session_id=session_id, elapsed_ms=_now_ms() - began)
        return got._replace(session=session_id)

    def challenge(self, request: Request) -> Challenge:
        """The answer to /auth; the session's cookie is kept."""
        before = self._cookie
        challenge = Challenge.from_bytes(self._ask("POST", "/auth", request.to_json()))
        if self._cookie == before:
            raise ProtocolError("the broker sent no session cookie", expected="kbs-session-id")
        return challenge

    def _ask(self, method: str, path: str, message: dict[str, Any] | None, accept: str = JSON) -> bytes:
        """The body of a 200. The cookie of an earlier answer goes along, a new one replaces it."""
        headers = {"Accept": accept}
        if self._cookie:
            headers["Cookie"] = f"kbs-session-id={self._cookie}"
        body = None
        if message is not None:
            headers["Content-Type"] = JSON
            body = strictjson.compact(message)
        answer = self._connection.ask(method, PREFIX + path, body, headers)
        if answer.status != 200:
            raise refusal(path, answer)
        for cookie in answer.cookies:
            if match := _COOKIE.match(cookie.partition(";")[0].strip()):
                self._cookie = match[1]
        return answer.body


def _remembered(settings: Settings, wanted: Demand, got: Opened, deadline: Deadline) -> Opened:
    """The key, once its version is written down where the settings say so."""
    try:
        if settings.versions and got.version is not None:
            versions.remember(settings.versions, wanted.path, got.version, deadline)
    except RoomkeyError:
        wipe(got.secret)
        raise
    return got


def _now_ms() -> int:
    """Milliseconds on a clock that only goes forward, also while this machine sleeps."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


def refusal(path: str, answer: Answer) -> RoomkeyError:
    """The error that an answer of refusal stands for. `path` is the call's, without what stands before its first word:
    /auth, /attest, /resource or /sev.
    """
    if answer.status in _UNAVAILABLE:
        later = _Later("the broker has no time now", found=f"status {answer.status}")
        later.after = answer.retry_after
        return later
    if 300 <= answer.status < 400:
        return ProtocolError("the broker redirects", mend="give the address that it redirects to as the broker's URL")
    kind, detail = _error_body(answer.body)
    decision = _DECISION.search(detail)
    error = _kind(kind, path, answer.status, judged=decision is not None)(
        _REFUSALS[path.split("/")[1]],
        found=f"decision {decision[0]}" if decision else f"status {answer.status}, {kind}: {detail}",
    )
    if decision:
        error.decision = decision[0]
        error.mend = f"the owner reads why with: roomkey decision show {decision[0]}"
    return error


def _kind(kind: str, path: str, status: int, *, judged: bool) -> type[RoomkeyError]:
    if status not in {401, 403, 404}:
        return ProtocolError
    if kind in _BY_TYPE:
        return _BY_TYPE[kind]
    if (path == "/attest" and status == 403) or (judged and path.startswith(("/attest", "/sev"))):
        return VerificationError
    if status == 401:
        # At /auth nothing is old yet: 401 is how the protocol refuses a version. A launch has no session.
        return ProtocolError if path.startswith(("/auth", "/sev")) else FreshnessError
    return ReleaseDenied if status == 403 else NotFound


def _error_body(body: bytes) -> tuple[str, str]:
    """(type without its prefix, detail) of a KBS error, fit for a console; a body that is none gives empty words."""
    try:
        members = strictjson.loads(body, name="the error", max_bytes=8 * 1024)
        kind, detail = members["type"], members["detail"]
    except (ProtocolError, KeyError, TypeError):
        return "", "no reason given"
    return _printable(str(kind).removeprefix(ERROR_TYPE_PREFIX)), _printable(str(detail))


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() and c.isascii() else "?" for c in text[:MAX_DETAIL_CHARS])


def _json(body: bytes, name: str) -> Any:
    return strictjson.loads(body, name=name, max_bytes=MAX_ANSWER_BYTES)
