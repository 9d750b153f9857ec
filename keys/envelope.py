# SPDX-License-Identifier: Apache-2.0
"""The release envelope: a key, and the broker's signed statement of what this key is and whom it was released to.

A JWE says nothing of who made it: the guest's public key is no secret, so whoever gets between guest and broker can
wrap a key of his own to it, or another key's bytes, or an older version's. So inside the JWE there is

    {"key": base64 of the secret, "release": a statement of type RELEASE}

and where the guest shall change its volume's keyslots, a member `also` with the other key that this needs.

A statement is a compact JWS (RFC 7515) over canonical JSON (RFC 8785), ES256 or ES384. The agent has the public keys
beforehand, as a JWK set (RFC 7517): the keys decide which algorithm is right, and nothing in a statement can bring
another.

Checks of `verify`, for a statement of any type:

 (1) three parts of canonical base64url, of bounded length
 (2) the header is strict, canonical JSON with `alg`, `kid`, `typ` and no other member
 (3) `typ` is the type that is wanted: what was signed for another use counts for nothing here
 (4) `kid` is the thumbprint of one of the pinned keys
 (5) `alg` is that key's algorithm
 (6) the signature is right
 (7) the payload is strict, canonical JSON, an object

Checks of `check`, for a release whose statement was verified:

 (1) the key's path is the one that was asked for, its owner included
 (2) the secret is the one that was signed for, and so is the other one
 (3) the session is ours
 (4) the nonce is the one that our evidence answered
 (5) the guest's key is the one that our evidence was bound to
 (6) the evidence is ours
 (7) the version is not older than the oldest that is wanted
 (8) it was released after its challenge, and is good for at most five minutes
 (9) it has not expired, by the time that has passed here since before the challenge was asked for: no clock is needed
"""

from __future__ import annotations

import hashlib
import re
from typing import Any, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from keys import b64, strictjson
from keys.errors import ProtocolError, VerificationError
from keys.jwe import MAX_ENVELOPE_BYTES, MAX_PLAINTEXT_BYTES
from keys.jwk import Curves, ec_key, ec_members, thumbprint
from keys.messages import ResourcePath
from keys.report import Step

RELEASE = "roomkey-release+jws"
BUNDLE = "roomkey-decision+jws"
MEDIA_TYPE = "application/vnd.roomkey.release+json"  # what a guest that wants an envelope accepts

MAX_STATEMENT_BYTES = 4 * 1024  # of a release, signed: with the longest names it has 2 KiB
MAX_LIFETIME_MS = 300_000  # from a release to its expiry
MAX_ALSO_BYTES = 512  # of the other key, a passphrase
MAX_KEYS = 8  # in one set
MAX_KEYS_BYTES = 16 * 1024
MAX_HEADER_BYTES = 256
MAX_INTEGER = (1 << 53) - 1  # what every reader of JSON has (RFC 7493, 2.2)

CURVES: Curves = {"P-256": (ec.SECP256R1, 32), "P-384": (ec.SECP384R1, 48)}
ALGORITHMS: dict[str, tuple[str, type[hashes.HashAlgorithm]]] = {  # RFC 7518 section 3.4: one for each curve
    "P-256": ("ES256", hashes.SHA256),
    "P-384": ("ES384", hashes.SHA384),
}

_JWK = frozenset(("alg", "crv", "kid", "kty", "use", "x", "y"))
_HEADER = frozenset(("alg", "kid", "typ"))
_HEX = re.compile(r"[0-9a-f]{64}\Z")
_TEXTS = {
    "session": _HEX,
    "nonce": re.compile(r"[A-Za-z0-9+/]{43}=\Z"),
    "tee_pubkey": re.compile(r"[A-Za-z0-9_-]{43}\Z"),
    "decision": re.compile(r"d-[a-z2-7]{20}\Z"),
    "evidence": _HEX,
    "image": re.compile(r"[!-~]{1,256}\Z"),
    "sha256": _HEX,
}
_NUMBERS = ("version", "challenged_at", "released_at", "expires_at")


class Key(NamedTuple):
    """A public key, its JWK name of a curve, and the one algorithm that it signs with."""

    public: ec.EllipticCurvePublicKey
    crv: str
    alg: str


class Keys(NamedTuple):
    """The keys that may sign, under their thumbprints."""

    by_kid: dict[str, Key]


class Also(NamedTuple):
    """What the guest shall do to its volume's keyslots with another key: `step` ADD, REMOVE or RECOVERY, the `version`
    that it names when it is done, and the other key's SHA-256 in hex.
    """

    step: Step
    version: int
    sha256: str

    @classmethod
    def from_json(cls, value: object) -> Also:
        """Raises ProtocolError."""
        members = strictjson.members(value, name="the release's also", required=frozenset(cls._fields))
        step, version, sha256 = (members[name] for name in cls._fields)
        if step not in {Step.ADD, Step.REMOVE, Step.RECOVERY} or not _is_hex(sha256):
            raise ProtocolError("the release's also is malformed")
        if type(version) is not int or not 0 < version <= MAX_INTEGER:
            raise ProtocolError("the release's also has no version")
        return cls(Step(step), version, sha256)


class Release(NamedTuple):
    """Who got what. `key`: the path; `version`: the key's. `session`: SHA-256 of the session's id in hex. `nonce`: the
    challenge's text. `tee_pubkey`: RFC 7638 thumbprint of the guest's key. `decision`: id of the ledger's line.
    `evidence`: SHA-256 of the canonical primary evidence in hex. `image`: the approved image that fitted. `rule`: the
    version of the release rule. `volume`: the pin of the one LUKS2 volume that the key is for, SHA-256 in hex, None if
    the owner has pinned none. `format`: the volume is to be made with this key, and to be reported. `also`: what to do
    to its keyslots besides, if anything. Times in milliseconds since the epoch, by the broker's clock. `sha256`: of the
    secret, in hex; for its sake a statement is as secret as the key.
    """

    key: str
    version: int
    session: str
    nonce: str
    tee_pubkey: str
    decision: str
    evidence: str
    image: str
    rule: int | None
    volume: str | None
    format: bool
    also: Also | None
    challenged_at: int
    released_at: int
    expires_at: int
    sha256: str

    def to_json(self) -> dict[str, Any]:
        return self._asdict() | {"also": None if self.also is None else self.also._asdict()}

    @classmethod
    def from_json(cls, value: object) -> Release:
        """Raises ProtocolError."""
        members = strictjson.members(value, name="the release", required=frozenset(cls._fields))
        ResourcePath.parse(members["key"])
        for name, pattern in _TEXTS.items():
            if not isinstance(members[name], str) or not pattern.match(members[name]):
                raise ProtocolError(f"the release's {name} is malformed")
        if members["volume"] is not None and not _is_hex(members["volume"]):
            raise ProtocolError("the release's volume is malformed")
        if type(members["format"]) is not bool:
            raise ProtocolError("the release's format is malformed")
        also = None if members["also"] is None else Also.from_json(members["also"])
        for name in _NUMBERS + (() if members["rule"] is None else ("rule",)):
            if type(members[name]) is not int or not 0 < members[name] <= MAX_INTEGER:
                raise ProtocolError(f"the release's {name} is no positive whole number")
        return cls(**members | {"also": also})


def _is_hex(value: object) -> bool:
    return isinstance(value, str) and _HEX.match(value) is not None


# --- the broker's keys ---


def public_jwk(public: ec.EllipticCurvePublicKey) -> dict[str, str]:
    """`public` (P-256 or P-384) as a member of a JWK set."""
    members = ec_members(public, CURVES)
    return members | {"alg": ALGORITHMS[members["crv"]][0], "use": "sig", "kid": thumbprint(members)}


def load_keys(data: bytes) -> Keys:
    """The keys of a JWK set: 1 to 8, all different, each under its own thumbprint, nothing private. Raises
    ProtocolError.
    """
    name = "the set of broker keys"
    value = strictjson.loads(data, name=name, max_bytes=MAX_KEYS_BYTES)
    listed = strictjson.members(value, name=name, required=frozenset(("keys",)))["keys"]
    if not isinstance(listed, list) or not 1 <= len(listed) <= MAX_KEYS:
        raise ProtocolError(f"{name} must be a list", expected=f"1 to {MAX_KEYS} keys")
    by_kid = dict(map(_read_key, listed))
    if len(by_kid) != len(listed):
        raise ProtocolError(f"{name} has a key twice")
    return Keys(by_kid)


def _read_key(value: object) -> tuple[str, Key]:
    members = strictjson.members(value, name="a broker key", required=_JWK)
    texts = {name: strictjson.string(item, name=f"{name} of a broker key", max_chars=128)
             for name, item in members.items()}  # fmt: skip
    public = ec_key(texts, name="a broker key", curves=CURVES)
    # All that can be derived must be as derived: kid names this key, kty, use and alg the one way to use it.
    if texts != (expected := public_jwk(public)):
        words = f"{expected['kid']}, {expected['kty']}, {expected['use']}, {expected['alg']}"
        raise ProtocolError("a broker key does not fit its kid, kty, use or alg", expected=words)
    return texts["kid"], Key(public, texts["crv"], texts["alg"])


# --- statements ---


def verify(statement: object, keys: Keys, typ: str, *, max_bytes: int) -> dict[str, Any]:
    """The payload of a statement of type `typ`, at most `max_bytes` long, that one of `keys` signed.

    Raises ProtocolError (not in the form of a statement) or VerificationError (not signed by one of them for this).
    """
    text = strictjson.string(statement, name="the statement", max_chars=max_bytes)
    parts = text.split(".")
    if len(parts) != 3:
        raise ProtocolError("the statement is no compact JWS", expected="3 parts", found=str(len(parts)))
    header, payload, signature = (
        b64.from_url(part, name="a part of the statement", max_bytes=max_bytes) for part in parts
    )  # (1)
    named = strictjson.members(
        _canonical(header, "the statement's header", MAX_HEADER_BYTES), name="the statement's header", required=_HEADER
    )  # (2)
    if named["typ"] != typ:
        raise VerificationError("the statement is of another type", expected=typ)  # (3)
    key = keys.by_kid.get(named["kid"]) if isinstance(named["kid"], str) else None
    if key is None:
        raise VerificationError(
            "the statement is not signed by a pinned key", expected=" or ".join(keys.by_kid)
        )  # (4)  # fmt: skip
    if named["alg"] != key.alg:
        raise VerificationError("the statement names another algorithm than its key's", expected=key.alg)  # (5)
    _check_signature(key, text.rpartition(".")[0].encode("ascii"), signature)  # (6)
    value = _canonical(payload, "the statement", max_bytes)
    if not isinstance(value, dict):
        raise ProtocolError("the statement is no JSON object")
    return value  # (7)


def _canonical(data: bytes, name: str, max_bytes: int) -> Any:
    value = strictjson.loads(data, name=name, max_bytes=max_bytes)
    if strictjson.canonical(value) != data:
        raise ProtocolError(f"{name} is not canonical JSON")
    return value


def _check_signature(key: Key, signed: bytes, signature: bytes) -> None:
    """`signature` is r and s, each as long as the curve's field (RFC 7518 section 3.4)."""
    size = CURVES[key.crv][1]
    r, s = (int.from_bytes(half, "big") for half in (signature[:size], signature[size:]))
    try:
        if len(signature) != 2 * size:
            raise InvalidSignature
        key.public.verify(encode_dss_signature(r, s), signed, ec.ECDSA(ALGORITHMS[key.crv][1]()))
    except InvalidSignature:
        raise VerificationError("the statement's signature is wrong") from None


# --- the envelope ---


def digest(secret: bytes) -> str:
    """`Release.sha256` of a secret."""
    return hashlib.sha256(secret).hexdigest()


def pack(secret: bytes, statement: str, also: bytes | None = None) -> bytes:
    """The envelope of `secret` (at most 64 KiB), the signed statement about it, and the other key (at most 512 bytes),
    where there is one: at most jwe.MAX_ENVELOPE_BYTES.
    """
    if len(secret) > MAX_PLAINTEXT_BYTES or len(statement) > MAX_STATEMENT_BYTES or len(also or b"") > MAX_ALSO_BYTES:
        raise RuntimeError("too long for an envelope")
    other = {} if also is None else {"also": b64.std(also)}
    return strictjson.compact({"key": b64.std(secret), "release": statement} | other)


def unpack(data: bytes) -> tuple[bytes, str, bytes | None]:
    """Secret, statement and other key of an envelope; nothing is verified yet. Raises ProtocolError."""
    members = strictjson.members(
        strictjson.loads(data, name="the release envelope", max_bytes=MAX_ENVELOPE_BYTES),
        name="the release envelope",
        required=frozenset(("key", "release")),
        optional=frozenset(("also",)),
    )
    secret = b64.from_std(members["key"], name="the envelope's key", max_bytes=MAX_PLAINTEXT_BYTES)
    statement = strictjson.string(members["release"], name="the release", max_chars=MAX_STATEMENT_BYTES)
    if "also" not in members:
        return secret, statement, None
    return secret, statement, b64.from_std(members["also"], name="the envelope's also", max_bytes=MAX_ALSO_BYTES)


def check(
    release: Release,
    secret: bytes,
    also: bytes | None,
    *,
    path: ResourcePath,
    session: str,
    nonce: str,
    thumbprint: str,
    evidence: str,
    at_least: int,
    elapsed_ms: int,
) -> None:
    """See that `release` is the answer to what this guest asked, and `secret` and `also` the keys that it is about.

    `session`, `nonce`, `thumbprint` and `evidence` are this guest's own, in the form of the release's members.
    `elapsed_ms`: milliseconds on a clock that only goes forward, since before the challenge was asked for. Raises
    VerificationError.
    """
    if release.key != str(path):
        raise VerificationError("the release is of another key", expected=str(path), found=release.key)  # (1)
    if release.sha256 != digest(secret):
        raise VerificationError("the key is not the one that the broker signed for")  # (2)
    if (None if release.also is None else release.also.sha256) != (None if also is None else digest(also)):
        raise VerificationError("the other key is not the one that the broker signed for")
    for what, ours, found in (
        ("session", session, release.session),  # (3)
        ("nonce", nonce, release.nonce),  # (4)
        ("guest's key", thumbprint, release.tee_pubkey),  # (5)
        ("evidence", evidence, release.evidence),  # (6)
    ):
        if found != ours:
            raise VerificationError(f"the release is for another {what}")
    if release.version < at_least:
        raise VerificationError(
            "the release is of an older version",
            expected=f"{at_least} or newer",
            found=str(release.version),
            mend="if an older version is wanted on purpose, the floor must go: --at-least, or the file of `versions`",
        )  # (7)
    lifetime_ms = release.expires_at - release.released_at
    if release.released_at < release.challenged_at or not 0 < lifetime_ms <= MAX_LIFETIME_MS:
        raise VerificationError(
            "the release has impossible times", expected=f"good for at most {MAX_LIFETIME_MS} ms"
        )  # (8)  # fmt: skip
    good_for_ms = release.expires_at - release.challenged_at
    if elapsed_ms > good_for_ms:
        raise VerificationError(
            "the release has expired", expected=f"within {good_for_ms} ms of the challenge", found=f"{elapsed_ms} ms"
        )  # (9)
