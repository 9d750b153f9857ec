# SPDX-License-Identifier: Apache-2.0
"""Instances: the machines that an owner knows, each by what its hardware can prove.

An owner hands in public keys and certificates; the ids are made out of them here and never taken from outside, so two
of them cannot contradict each other:

    tpm-ek:<hex>      SHA-256 of the endorsement key's SubjectPublicKeyInfo; such a guest proves it by activation
    tpm-ak:<hex>      the attestation key's Name; the owner vouches that this key lives in that machine's TPM
    tpm-spki:<hex>    SHA-256 of the same key's SubjectPublicKeyInfo, for guests that do not send the public area
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from broker.trace import Trace
from broker.verifiers.tpm_credential import check_ek
from broker.verifiers.tpm_quote import check_ak
from broker.verifiers.tpm_structures import Public, parse_public
from broker.verifiers.x509 import load_certificate
from keys import b64, strictjson
from keys.errors import ProtocolError, VerificationError
from keys.messages import MAX_CERTIFICATE_BYTES, MAX_PUBLIC_BYTES

MAX_DESCRIPTION_CHARS = 500

_KEYS = frozenset(("ak_public", "ek_public", "ek_certificate"))


@dataclass(frozen=True, slots=True)
class Instance:
    """`ids`: every id under which this machine can turn up. `enrolled`: the TPMT_PUBLIC of its attestation key, and
    after it that of the endorsement key where the owner gave it, under which the other may have been made; None where
    the machine is known by its endorsement key alone.
    """

    ids: tuple[str, ...]
    enrolled: bytes | None = field(default=None, repr=False)
    description: str = ""

    def to_body(self) -> dict[str, Any]:
        enrolled = None if self.enrolled is None else b64.std(self.enrolled)
        return {"ids": list(self.ids), "enrolled": enrolled, "description": self.description}

    @classmethod
    def from_body(cls, body: Mapping[str, Any]) -> Instance:
        """What `to_body` wrote; only the store's bodies come here."""
        enrolled = body["enrolled"]
        return cls(
            tuple(body["ids"]),
            None if enrolled is None else b64.from_std(enrolled, name="enrolled", max_bytes=2 * MAX_PUBLIC_BYTES),
            body["description"],
        )


def parse_instance(value: object) -> Instance:
    """What an owner posts: an object with at least one of `ak_public` (TPMT_PUBLIC), `ek_public` (TPMT_PUBLIC) and
    `ek_certificate` (DER), all in standard base64, and optionally a `description`.

    Raises ProtocolError; also for keys that no guest could ever be trusted by.
    """
    posted = strictjson.members(
        value, name="the instance", required=frozenset(), optional=_KEYS | frozenset(("description",))
    )
    if not _KEYS & posted.keys():
        raise ProtocolError(
            "the instance names no key",
            expected="ak_public, ek_public or ek_certificate",
            mend="make the guest's description with `roomkey-agent evidence` and enrol from that file",
        )
    description = strictjson.string(posted.get("description", ""), name="description", max_chars=MAX_DESCRIPTION_CHARS)
    try:
        ek_public = _public(posted, "ek_public")
        if ek_public is not None:
            check_ek(ek_public)
        ek = _endorsement_key(ek_public, posted)
        ak = _public(posted, "ak_public")
        if ak is not None:
            check_ak(ak, Trace())
    except VerificationError as error:
        raise ProtocolError(
            f"the instance cannot be enrolled: {error.message}",
            expected=error.expected,
            found=error.found,
            mend=error.mend,
        ) from None
    ids: tuple[str, ...] = () if ek is None else (f"tpm-ek:{_digest(ek)}",)
    if ak is not None:
        ids += (f"tpm-ak:{ak.name.hex()}", f"tpm-spki:{_digest(ak.spki)}")
    parent = b"" if ek_public is None else ek_public.raw
    return Instance(ids, None if ak is None else ak.raw + parent, description)


def _public(posted: Mapping[str, object], name: str) -> Public | None:
    if name not in posted:
        return None
    return parse_public(b64.from_std(posted[name], name=name, max_bytes=MAX_PUBLIC_BYTES))


def _endorsement_key(public: Public | None, posted: Mapping[str, object]) -> bytes | None:
    """Its SubjectPublicKeyInfo."""
    found = set() if public is None else {public.spki}
    if "ek_certificate" in posted:
        der = b64.from_std(posted["ek_certificate"], name="ek_certificate", max_bytes=MAX_CERTIFICATE_BYTES)
        key = load_certificate(der).public_key()
        found.add(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
    if len(found) > 1:
        raise ProtocolError("ek_public is not the key in ek_certificate")
    return found.pop() if found else None


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
