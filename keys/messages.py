# SPDX-License-Identifier: Apache-2.0
"""The messages of the KBS attestation protocol 0.4.0, one class each, read strictly and written canonically.

Members and their spelling are the protocol's: kebab-case outside, snake_case inside `tee-evidence`. Unknown and
duplicate members are refused. A message that is refused here has changed nothing: the challenge is still good.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from keys import b64, strictjson
from keys.errors import ProtocolError
from keys.jwk import TeePubkey, parse
from keys.tee import Tee

PROTOCOL_VERSION = "0.4.0"
MAX_BODY_BYTES = 256 * 1024  # of any request or answer
MAX_NONCE_CHARS = 4096  # the `se` challenge is a JSON text; all others are 44 characters
MAX_INIT_DATA_CHARS = 64 * 1024
MAX_SEGMENT_CHARS = 96  # of each of the three parts of a key's path
MAX_CERTIFICATES = 6  # EK certificate and chain
MAX_CERTIFICATE_BYTES = 8 * 1024
MAX_PUBLIC_BYTES = 2 * 1024  # TPMT_PUBLIC
MAX_CREDENTIAL_BYTES = 1024  # credential blob, encrypted secret

_SEGMENT = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*\Z")
_TICKET = re.compile(r"[A-Za-z0-9_-]{1,128}\Z")


class ResourcePath(NamedTuple):
    """Where a key lives: `<owner>/<type>/<tag>`. The first segment is the owner's namespace."""

    owner: str
    type: str
    tag: str

    @classmethod
    def parse(cls, text: object) -> ResourcePath:
        """Raises ProtocolError unless `text` has three segments of letters, digits, `_`, `-` and, not first, `.`."""
        segments = strictjson.string(text, name="resource path", max_chars=3 * MAX_SEGMENT_CHARS + 2).split("/")
        if len(segments) != 3 or not all(len(s) <= MAX_SEGMENT_CHARS and _SEGMENT.match(s) for s in segments):
            raise ProtocolError("not a resource path", expected="OWNER/TYPE/TAG of letters, digits, '_', '-', '.'")
        return cls(*segments)

    def __str__(self) -> str:
        return f"{self.owner}/{self.type}/{self.tag}"


class TpmDeclaration(NamedTuple):
    """What a guest with a TPM declares for credential activation: TPMT_PUBLICs and DER certificates, leaf first."""

    ak_public: bytes
    ek_public: bytes
    ek_certificates: tuple[bytes, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "ak-public": b64.std(self.ak_public),
            "ek-public": b64.std(self.ek_public),
            "ek-certificates": [b64.std(der) for der in self.ek_certificates],
        }

    @classmethod
    def from_json(cls, value: object) -> TpmDeclaration:
        tpm = strictjson.members(
            value, name="extra-params.tpm", required=frozenset(("ak-public", "ek-public", "ek-certificates"))
        )
        certificates = tpm["ek-certificates"]
        if not isinstance(certificates, list) or not 1 <= len(certificates) <= MAX_CERTIFICATES:
            raise ProtocolError("ek-certificates must be a list", expected=f"1 to {MAX_CERTIFICATES} certificates")
        return cls(
            b64.from_std(tpm["ak-public"], name="ak-public", max_bytes=MAX_PUBLIC_BYTES),
            b64.from_std(tpm["ek-public"], name="ek-public", max_bytes=MAX_PUBLIC_BYTES),
            tuple(b64.from_std(der, name="ek-certificates", max_bytes=MAX_CERTIFICATE_BYTES) for der in certificates),
        )


class TpmCredential(NamedTuple):
    """The broker's answer: the bodies of TPM2B_ID_OBJECT and TPM2B_ENCRYPTED_SECRET (TPM 2.0 Part 1, 24)."""

    credential_blob: bytes
    encrypted_secret: bytes

    def to_json(self) -> dict[str, Any]:
        return {
            "credential-blob": b64.std(self.credential_blob),
            "encrypted-secret": b64.std(self.encrypted_secret),
        }

    @classmethod
    def from_json(cls, value: object) -> TpmCredential:
        tpm = strictjson.members(
            value, name="extra-params.tpm", required=frozenset(("credential-blob", "encrypted-secret"))
        )
        return cls(
            *(
                b64.from_std(tpm[name], name=name, max_bytes=MAX_CREDENTIAL_BYTES)
                for name in ("credential-blob", "encrypted-secret")
            )
        )


class Request(NamedTuple):
    """`POST /auth`. `resource`, `tpm` and `ticket` are Roomkey's own extra parameters; a stock guest sends none of
    them. `ticket` is what an owner gave a guest that is not enrolled yet: whoever has it can be enrolled with it.
    """

    tee: Tee
    resource: ResourcePath | None = None
    tpm: TpmDeclaration | None = None
    ticket: str | None = None

    def __repr__(self) -> str:
        ticket = None if self.ticket is None else "..."  # it opens a door
        return f"Request(tee={self.tee!r}, resource={self.resource!r}, tpm={self.tpm!r}, ticket={ticket!r})"

    def to_json(self) -> dict[str, Any]:
        extra: dict[str, Any] = {"supported-hash-algorithms": ["sha256", "sha384", "sha512"]}
        if self.resource is not None:
            extra["resource"] = str(self.resource)
        if self.tpm is not None:
            extra["tpm"] = self.tpm.to_json()
        if self.ticket is not None:
            extra["ticket"] = self.ticket
        return {"version": PROTOCOL_VERSION, "tee": str(self.tee), "extra-params": extra}

    @classmethod
    def from_bytes(cls, body: bytes) -> Request:
        """Raises ProtocolError; for another version with the words that deployed guests look for."""
        request = strictjson.members(
            strictjson.loads(body, name="the request", max_bytes=MAX_BODY_BYTES),
            name="the request",
            required=frozenset(("version", "tee", "extra-params")),
        )
        version = strictjson.string(request["version"], name="version", max_chars=64)
        if version != PROTOCOL_VERSION:
            raise ProtocolError(
                f"KBS Client Protocol Version Mismatch: expect ={PROTOCOL_VERSION} while the request is {version}"
            )
        tee = strictjson.string(request["tee"], name="tee", max_chars=64)
        if tee not in set(Tee):
            raise ProtocolError("tee is not a platform that this broker knows", found=tee)
        extra = request["extra-params"]
        if extra == "":
            return cls(Tee(tee))
        extra = strictjson.members(
            extra,
            name="extra-params",
            required=frozenset(),
            optional=frozenset(("supported-hash-algorithms", "resource", "tpm", "ticket")),
        )
        algorithms = extra.get("supported-hash-algorithms", ["sha384"])
        if not isinstance(algorithms, list) or not all(isinstance(name, str) for name in algorithms):
            raise ProtocolError("supported-hash-algorithms must be a list of names")
        if "tpm" in extra and tee != Tee.TPM:
            raise ProtocolError("extra-params.tpm goes with tee tpm", found=tee)
        return cls(
            Tee(tee),
            ResourcePath.parse(extra["resource"]) if "resource" in extra else None,
            TpmDeclaration.from_json(extra["tpm"]) if "tpm" in extra else None,
            check_ticket(extra["ticket"]) if "ticket" in extra else None,
        )


def check_ticket(text: object) -> str:
    """`text` if it can be a ticket: 1 to 128 letters, digits, `_` and `-`. Raises ProtocolError without showing it."""
    if not isinstance(text, str) or not _TICKET.match(text):
        raise ProtocolError("not a ticket", expected="1 to 128 letters, digits, '_', '-'")
    return text


class Challenge(NamedTuple):
    """The answer to `/auth`. `nonce` is hashed as the text it is. `tpm` only if the guest declared one."""

    nonce: str
    tpm: TpmCredential | None = None

    def to_json(self) -> dict[str, Any]:
        return {"nonce": self.nonce, "extra-params": "" if self.tpm is None else {"tpm": self.tpm.to_json()}}

    @classmethod
    def from_bytes(cls, body: bytes) -> Challenge:
        """Raises ProtocolError; also when the broker selects a hash that this agent does not use."""
        challenge = strictjson.members(
            strictjson.loads(body, name="the challenge", max_bytes=MAX_BODY_BYTES),
            name="the challenge",
            required=frozenset(("nonce", "extra-params")),
        )
        nonce = strictjson.string(challenge["nonce"], name="nonce", max_chars=MAX_NONCE_CHARS)
        extra = challenge["extra-params"]
        if extra == "":
            return cls(nonce)
        extra = strictjson.members(
            extra,
            name="extra-params",
            required=frozenset(),
            optional=frozenset(("selected-hash-algorithm", "tpm")),
        )
        if extra.get("selected-hash-algorithm", "sha384") != "sha384":
            raise ProtocolError("the broker selected another hash", expected="sha384")
        return cls(nonce, TpmCredential.from_json(extra["tpm"]) if "tpm" in extra else None)


class InitData(NamedTuple):
    """Posted init-data: the text whose digest the host passed at launch."""

    format: str
    body: str


class Attestation(NamedTuple):
    """`POST /attest`. `primary_evidence` is the platform's JSON form, still unread."""

    nonce: str
    tee_pubkey: TeePubkey
    primary_evidence: Any
    additional_evidence: str = ""
    init_data: InitData | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "init-data": None if self.init_data is None else self.init_data._asdict(),
            "runtime-data": {"nonce": self.nonce, "tee-pubkey": self.tee_pubkey.members},
            "tee-evidence": {
                "primary_evidence": self.primary_evidence,
                "additional_evidence": self.additional_evidence,
            },
        }

    @classmethod
    def from_bytes(cls, body: bytes) -> Attestation:
        """Raises ProtocolError."""
        message = strictjson.members(
            strictjson.loads(body, name="the attestation", max_bytes=MAX_BODY_BYTES),
            name="the attestation",
            required=frozenset(("runtime-data", "tee-evidence")),
            optional=frozenset(("init-data",)),
        )
        runtime = strictjson.members(
            message["runtime-data"], name="runtime-data", required=frozenset(("nonce", "tee-pubkey"))
        )
        evidence = strictjson.members(
            message["tee-evidence"],
            name="tee-evidence",
            required=frozenset(("primary_evidence", "additional_evidence")),
        )
        return cls(
            strictjson.string(runtime["nonce"], name="nonce", max_chars=MAX_NONCE_CHARS),
            parse(runtime["tee-pubkey"]),
            evidence["primary_evidence"],
            strictjson.string(evidence["additional_evidence"], name="additional_evidence", max_chars=MAX_BODY_BYTES),
            _init_data(message.get("init-data")),
        )


def _init_data(value: object) -> InitData | None:
    if value is None:
        return None
    members = strictjson.members(value, name="init-data", required=frozenset(("format", "body")))
    return InitData(
        strictjson.string(members["format"], name="init-data.format", max_chars=16),
        strictjson.string(members["body"], name="init-data.body", max_chars=MAX_INIT_DATA_CHARS),
    )
