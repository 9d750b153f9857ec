# SPDX-License-Identifier: Apache-2.0
"""What the agent demands of a release before it uses a key, and seeing that an answer is one.

The order of the checks is that of `keys.envelope`. Nothing that is read here is asked of the network: without the
broker's pinned keys there is no conversation, unless the settings say `unsafe_plain_kbs`; then the key is taken as it
comes, from whoever the TLS connection leads to.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple

from agent import versions
from agent.files import read
from keys import envelope, strictjson
from keys.errors import ConfigError, ProtocolError
from keys.jwk import thumbprint
from keys.report import Report, Step

if TYPE_CHECKING:
    from agent.config import Settings
    from keys.messages import Attestation, ResourcePath

WHAT = "the file of broker keys"


class Demand(NamedTuple):
    """`path`: the key that is wanted, `at_least`: its oldest version. `ticket`: what goes along, if anything. `keys`:
    whose signature counts; None takes plain answers. `report`: on the disk that the key is for. `session`: the one to
    go on from, "" for none.
    """

    path: ResourcePath
    at_least: int
    ticket: str | None
    keys: envelope.Keys | None
    report: Report | None = None
    session: str = ""


class Other(NamedTuple):
    """A key to change the volume's keyslots with: what to do, and the version to name when that is done."""

    step: Step
    version: int
    secret: bytearray

    def __repr__(self) -> str:
        return f"Other(step={self.step!r}, version={self.version})"


class Opened(NamedTuple):
    """A key, and where the broker has said it: its version, and the pin of the volume that it is for; whether that is
    to be made with it, and what to do to its keyslots. `session`: what a next request can go on from.
    """

    secret: bytearray
    version: int | None
    volume: str | None = None
    format: bool = False
    other: Other | None = None
    session: str = ""

    def __repr__(self) -> str:
        return f"Opened(version={self.version})"


def demand(
    settings: Settings,
    path: ResourcePath,
    *,
    at_least: int,
    ticket: str | None,
    report: Report | None = None,
    session: str = "",
) -> Demand:
    """What is demanded of the key at `path`: `at_least` this version, and none older than any before. What another KBS
    would not know does not go to one. Raises ConfigError.
    """
    if settings.unsafe_plain_kbs:
        if at_least > 1 or settings.versions:
            raise ConfigError(
                "a plain answer has no version",
                mend="take unsafe_plain_kbs away, or else --at-least and versions",
            )
        return Demand(path, 0, ticket, None)
    keys = pinned_keys(settings.broker_keys)
    before = versions.known(settings.versions, path) if settings.versions else 0
    return Demand(path, max(at_least, before), ticket, keys, report, session)


def pinned_keys(path: str) -> envelope.Keys:
    """The broker's keys that the file pins. Raises ConfigError."""
    mend = "put the broker's signing.pub.json there, which `roomkey signing-key` prints; or set broker_keys"
    data = read(path, what=WHAT, max_bytes=envelope.MAX_KEYS_BYTES)
    if data is None:
        raise ConfigError("no pinned broker keys", found=path or "not set", mend=mend)
    try:
        return envelope.load_keys(data)
    except ProtocolError as error:
        raise ConfigError(f"{WHAT} {path} cannot be used", found=str(error), mend=mend) from None


def opened(
    plaintext: bytes, wanted: Demand, message: Attestation, *, session_id: str, elapsed_ms: int
) -> Opened:  # fmt: skip
    """The key in what the JWE held. `message` is what we attested with, in the session `session_id`; `elapsed_ms` as
    for `envelope.check`. Raises ProtocolError or VerificationError.
    """
    if wanted.keys is None:
        return Opened(bytearray(plaintext), None)
    try:
        secret, statement, also = envelope.unpack(plaintext)
    except ProtocolError:
        # What was found instead may be a key: no word of it.
        raise ProtocolError(
            "the broker's answer is no release envelope",
            mend="ask a Roomkey broker; only unsafe_plain_kbs takes the plain answer of another KBS",
        ) from None
    payload = envelope.verify(statement, wanted.keys, envelope.RELEASE, max_bytes=envelope.MAX_STATEMENT_BYTES)
    release = envelope.Release.from_json(payload)
    envelope.check(
        release,
        secret,
        also,
        path=wanted.path,
        session=hashlib.sha256(session_id.encode("ascii")).hexdigest(),
        nonce=message.nonce,
        thumbprint=thumbprint(message.tee_pubkey.members),
        evidence=hashlib.sha256(strictjson.canonical(message.primary_evidence)).hexdigest(),
        at_least=wanted.at_least,
        elapsed_ms=elapsed_ms,
    )
    other = None
    if release.also is not None and also is not None:
        other = Other(release.also.step, release.also.version, bytearray(also))
    return Opened(bytearray(secret), release.version, release.volume, release.format, other)
