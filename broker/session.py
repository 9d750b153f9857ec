# SPDX-License-Identifier: Apache-2.0
"""Challenges: 32 random bytes for one use, bound to one session, dead after five minutes.

The store knows a session by the hash of its id, so whoever reads the store cannot take a session over. It never holds
the TPM activation secret either: that is derived again from custody's key, the session and the nonce.
"""

from __future__ import annotations

import hashlib
import re
from typing import NamedTuple

from broker.services import Services
from broker.verifiers.registry import verifier_for
from broker.verifiers.tpm_credential import make_challenge
from keys import b64
from keys.custody import Custody
from keys.messages import Challenge, Request, TpmCredential

SESSION_BYTES = 16  # random bytes of a session id
NONCE_BYTES = 32

_SESSION_ID = re.compile(r"[0-9a-f]{32}\Z")
_ACTIVATION = b"tpm activation"


class Issued(NamedTuple):
    """A new session: its id for the cookie, the challenge, and when both die (milliseconds since the epoch)."""

    session_id: str
    challenge: Challenge
    expires_at: int


def issue(request: Request, services: Services, *, now: int, previous: str | None = None) -> Issued:
    """A fresh challenge for `request`. `previous`: the id of the session that it goes on from, if any: where that holds
    an attestation, a lease of that one's is this one's.

    Raises ProtocolError for a platform without a verifier or a TPM declaration that cannot be used; Unavailable.
    """
    verifier_for(request.tee)
    session_id = services.random(SESSION_BYTES).hex()
    nonce = b64.std(services.random(NONCE_BYTES))
    session = store_name(session_id)
    credential = None
    if request.tpm is not None:
        secret = activation_secret(services.custody, session, nonce)
        credential = TpmCredential(*make_challenge(request.tpm._asdict(), secret, services.random))
    expires_at = now + services.challenge_lifetime_ms
    held = services.store.session_attestation(store_name(previous), now) if previous else None
    body = {
        "tee": str(request.tee),
        "nonce": nonce,
        "issued_at": now,
        "resource": None if request.resource is None else str(request.resource),
        "tpm": None if request.tpm is None else request.tpm.to_json(),
        "ticket": None if request.ticket is None else ticket_name(request.ticket),
        "holder": session if held is None else held[1]["holder"],
    }
    services.store.put_session(session, body, expires_at)
    return Issued(session_id, Challenge(nonce, credential), expires_at)


def store_name(session_id: str | None) -> str:
    """Under what name the store keeps a session: SHA-256 of its id in hex; "" for what cannot be a session id."""
    if session_id is None or not _SESSION_ID.match(session_id):
        return ""
    return hashlib.sha256(session_id.encode("ascii")).hexdigest()


def ticket_name(ticket: str) -> str:
    """Under what name the store keeps a ticket: SHA-256 of its text in hex. It has 128 random bits or more."""
    return hashlib.sha256(f"roomkey ticket {ticket}".encode("ascii")).hexdigest()


def activation_secret(custody: Custody, session: str, nonce: str) -> bytes:
    """The 32 bytes that this session's credential seals to the guest's TPM. Both parts have a fixed length."""
    return custody.derive(_ACTIVATION, f"{session} {nonce}".encode("ascii"))
