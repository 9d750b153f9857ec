# SPDX-License-Identifier: Apache-2.0
"""Instances: the machines that an owner knows, each by what its hardware can prove.

An owner hands in public keys, certificates and hardware ids; the ids are made out of them here and never taken from
outside, so two of them cannot contradict each other:

    tpm-ek:<hex>      SHA-256 of the endorsement key's SubjectPublicKeyInfo; such a guest proves it by activation
    tpm-ak:<hex>      the attestation key's Name; the owner vouches that this key lives in that machine's TPM
    tpm-spki:<hex>    SHA-256 of the same key's SubjectPublicKeyInfo, for guests that do not send the public area
    snp-chip:<hex>    an AMD processor, by its hardware id: 64 bytes, Turin 8. Every guest on it, not one
    snp-csp:<text>    a cloud provider, by the cspID of its VLEK certificates. Every machine that it has
    sev-cek:<hex>     an AMD processor, by SHA-256 of the public key field of its SEV CEK certificate (1028 bytes)
    az-ak:<hex>       an Azure guest, by SHA-256 of the SubjectPublicKeyInfo of its vTPM's attestation key; as good as
                      the paravisor that holds the key, which its image must pin
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from broker.appraisal.registers import digest
from broker.trace import Trace
from broker.verifiers.sev_certificates import SEV_CERTIFICATE_BYTES, Usage, parse_certificate
from broker.verifiers.tpm_credential import check_ek
from broker.verifiers.tpm_quote import check_ak
from broker.verifiers.tpm_structures import Public, parse_public
from broker.verifiers.x509 import load_certificate
from keys import b64, strictjson
from keys.errors import ProtocolError, VerificationError
from keys.messages import MAX_CERTIFICATE_BYTES, MAX_PUBLIC_BYTES

MAX_DESCRIPTION_CHARS = 500
MAX_CSP_ID_CHARS = 256
CHIP_ID_BYTES = 64
TURIN_CHIP_ID_BYTES = 8
MIN_AZ_AK_BITS = 2048

_KEYS = frozenset(("ak_public", "ek_public", "ek_certificate", "snp_chip_id", "snp_csp_id", "sev_cek", "az_ak"))


class Standing(StrEnum):
    """Where a machine stands with its owner. Only an enrolled one gets keys."""

    PENDING = "pending"  # it has shown a right image, and waits for its owner's word
    ENROLLED = "enrolled"
    DENIED = "denied"  # its owner said no; it does not wait again
    REVOKED = "revoked"  # it was enrolled, and its owner took that back
    QUARANTINED = "quarantined"  # the broker saw it twice at the same time
    FAILED = "failed"  # it was refused, and the rule says that it stays so


class Bound(NamedTuple):
    """For which key (path) and image (NAME or NAME@VERSION) a ticket or an approval enrolled a machine, and with which
    init-data it came (hex; None where there was none). It counts for nothing else.
    """

    key: str
    image: str
    init_data: str | None = None


@dataclass(frozen=True, slots=True)
class Instance:
    """`ids`: every id under which this machine can turn up. `enrolled`: the TPMT_PUBLIC of its attestation key, and
    after it that of the endorsement key where the owner gave it, under which the other may have been made; None where
    the machine is known by other ids alone. `why` says why it stands as it does, in the words of whom changed that;
    `decision` is the ledger's line that led to it, "" where there is none.
    """

    ids: tuple[str, ...]
    enrolled: bytes | None = field(default=None, repr=False)
    description: str = ""
    standing: Standing = Standing.ENROLLED
    bound: Bound | None = None
    why: str = ""
    decision: str = ""

    def to_body(self) -> dict[str, Any]:
        return {
            "ids": list(self.ids),
            "enrolled": None if self.enrolled is None else b64.std(self.enrolled),
            "description": self.description,
            "standing": str(self.standing),
            "bound": None if self.bound is None else list(self.bound),
            "why": self.why,
            "decision": self.decision,
        }

    @classmethod
    def from_body(cls, body: Mapping[str, Any]) -> Instance:
        """What `to_body` wrote, earlier releases' without a standing too; only the store's bodies come here."""
        enrolled, bound = body["enrolled"], body.get("bound")
        return cls(
            tuple(body["ids"]),
            None if enrolled is None else b64.from_std(enrolled, name="enrolled", max_bytes=2 * MAX_PUBLIC_BYTES),
            body["description"],
            Standing(body.get("standing", Standing.ENROLLED)),
            None if bound is None else Bound(*bound),
            body.get("why", ""),
            body.get("decision", ""),
        )


def parse_instance(value: object) -> Instance:
    """What an owner posts: an object with at least one of `ak_public` (TPMT_PUBLIC), `ek_public` (TPMT_PUBLIC),
    `ek_certificate` (DER), `sev_cek` (SEV certificate), `az_ak` (SubjectPublicKeyInfo), all in standard base64,
    `snp_chip_id` (hex) and `snp_csp_id` (text); and optionally a `description`.

    Raises ProtocolError; also for keys that no guest could ever be trusted by.
    """
    posted = strictjson.members(
        value, name="the instance", required=frozenset(), optional=_KEYS | frozenset(("description",))
    )
    if not _KEYS & posted.keys():
        raise ProtocolError(
            "the instance names no key",
            expected="ak_public, ek_public, ek_certificate, snp_chip_id, snp_csp_id, sev_cek or az_ak",
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
        others = tuple(f"{kind}:{read(posted[name])}" for name, (kind, read) in _OTHERS.items() if name in posted)
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
    return Instance(ids + others, None if ak is None else ak.raw + parent, description)


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


def _snp_chip(value: object) -> str:
    """A hardware id in hex. Turin's fills the first 8 of CHIP_ID's 64 bytes, and is taken in either form."""
    name = "snp_chip_id"
    if isinstance(value, str) and len(value) == 2 * TURIN_CHIP_ID_BYTES:
        text = digest(value, name, size=TURIN_CHIP_ID_BYTES)
    else:
        text = digest(value, name, size=CHIP_ID_BYTES)
    if not text.strip("0"):
        raise ProtocolError("snp_chip_id is zero: that is what a masked CHIP_ID shows", mend="let the host show it")
    turin = text[: 2 * TURIN_CHIP_ID_BYTES]
    return text if text[len(turin) :].strip("0") else turin


def _snp_csp(value: object) -> str:
    text = strictjson.string(value, name="snp_csp_id", max_chars=MAX_CSP_ID_CHARS)
    if not text or not text.isascii() or not text.isprintable():
        raise ProtocolError("snp_csp_id is not a cspID", expected="printable ASCII, like CN=cc-us-east-2.amazonaws.com")
    return text


def _sev_cek(value: object) -> str:
    """As AMD's KDS gives it, with the signature of the ASK; who signed it is judged when a guest is launched."""
    raw = b64.from_std(value, name="sev_cek", max_bytes=SEV_CERTIFICATE_BYTES)
    return _digest(parse_certificate(raw, Usage.CEK, signers={Usage.ASK}).public_key)


def _az_ak(value: object) -> str:
    raw = b64.from_std(value, name="az_ak", max_bytes=MAX_PUBLIC_BYTES)
    try:
        key = load_der_public_key(raw)
    except (ValueError, UnsupportedAlgorithm):
        raise ProtocolError("az_ak is not a SubjectPublicKeyInfo") from None
    if not isinstance(key, rsa.RSAPublicKey) or key.key_size < MIN_AZ_AK_BITS:
        raise ProtocolError(
            "az_ak is not an attestation key of Azure's", expected=f"RSA, {MIN_AZ_AK_BITS} bits or more"
        )
    return _digest(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


_OTHERS: Mapping[str, tuple[str, Callable[[object], str]]] = {  # kind of id, what makes it out of the member
    "snp_chip_id": ("snp-chip", _snp_chip),
    "snp_csp_id": ("snp-csp", _snp_csp),
    "sev_cek": ("sev-cek", _sev_cek),
    "az_ak": ("az-ak", _az_ak),
}


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
