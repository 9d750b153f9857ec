# SPDX-License-Identifier: Apache-2.0
"""The form in which the evidence behind a decision is kept, with all that vouched for it.

A kept dossier is zlib over one line of compact JSON and, behind it, the evidence in the bytes whose SHA-256 the ledger
has. What the operator trusts is the same for very many of them and is kept beside them, under its own digest. No secret
is in a dossier: of a TPM's activation there is the proof key only (`keys.binding`).

In a bundle both stand as JSON; `from_json` makes of them what the verifier was given.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from broker.appraisal.case import KnownGuest
from broker.appraisal.instances import Standing
from broker.claims import Endorsements, Trusted
from broker.evidence import Standings, Submission
from broker.store.protocols import Consumption
from broker.verifiers.registry import verifier_for
from broker.verifiers.snp_floors import Floors
from keys import b64, strictjson
from keys.errors import ProtocolError
from keys.messages import TpmDeclaration
from keys.tee import Tee

MAX_DOSSIER_BYTES = 8 * 1024 * 1024  # uncompressed
LEVEL = 1  # of zlib: hex and base64 shrink to about half, and a guest waits for it


class Dossier(NamedTuple):
    """What one attempt to attest was judged by. `standings` is None where the judgement did not come so far."""

    outcome: Consumption
    submission: Submission
    standings: Standings | None


def pack(dossier: Dossier, trusted: str, evidence: bytes) -> bytes:
    """The kept form. `trusted` is the name that `trusted_name` gave; `evidence` the primary evidence, canonical."""
    head = strictjson.compact({"trusted": trusted, **to_json(dossier)})
    return zlib.compress(head + b"\n" + evidence, LEVEL)


def unpack(data: bytes) -> tuple[dict[str, Any], str, Any]:
    """Dossier without evidence, name of what was trusted, evidence: as JSON. Raises ProtocolError."""
    inflater = zlib.decompressobj()
    try:
        plain = inflater.decompress(data, MAX_DOSSIER_BYTES)
    except zlib.error:
        raise ProtocolError("a dossier cannot be read") from None
    if not inflater.eof:
        raise ProtocolError("a dossier is cut off or too long", expected=f"at most {MAX_DOSSIER_BYTES} bytes")
    head, _, evidence = plain.partition(b"\n")
    members = strictjson.loads(head, name="a dossier", max_bytes=MAX_DOSSIER_BYTES)
    trusted = members.pop("trusted")
    return members, trusted, strictjson.loads(evidence, name="kept evidence", max_bytes=MAX_DOSSIER_BYTES)


def to_json(dossier: Dossier) -> dict[str, Any]:
    """All but the evidence and what the operator trusts."""
    submission, standings = dossier.submission, dossier.standings
    endorsements = submission.endorsements
    return {
        "tee": str(submission.verifier.tee),
        "outcome": str(dossier.outcome),
        "at": submission.at,
        "nonce": submission.nonce,
        "answered": submission.answered,
        "tee_pubkey": dict(submission.tee_pubkey),
        "additional": submission.additional,
        "init_data": None if submission.init_data is None else submission.init_data.hex(),
        "found": _texts(endorsements.found),
        "enrolled": _texts(endorsements.enrolled),
        "activation": None if endorsements.activation is None else b64.std(endorsements.activation),
        "declared": TpmDeclaration(**endorsements.session).to_json() if endorsements.session else None,
        "guests": None if standings is None else [guest.to_json() for guest in standings.guests],
        "enrolments": None
        if standings is None or standings.enrolments is None
        else sorted(map(str, standings.enrolments)),
    }


def from_json(value: Mapping[str, Any], evidence: object, trusted: Mapping[str, Any]) -> Dossier:
    """The dossier as it was judged. Raises ProtocolError, KeyError, TypeError or ValueError on anything else."""
    tee = Tee(value["tee"])
    verifier = verifier_for(tee)
    activation, init_data, declared = value["activation"], value["init_data"], value["declared"]
    endorsements = Endorsements(
        trusted=trusted_from_json(trusted),
        found=_bytes(value["found"]),
        enrolled=_bytes(value["enrolled"]),
        activation=None if activation is None else _unbase64(activation),
        session={} if declared is None else TpmDeclaration.from_json(declared)._asdict(),
    )
    submission = Submission(
        verifier=verifier,
        at=value["at"],
        nonce=value["nonce"],
        answered=value["answered"],
        tee_pubkey=value["tee_pubkey"],
        init_data=None if init_data is None else bytes.fromhex(init_data),
        evidence=verifier.decode(evidence),
        endorsements=endorsements,
        additional=value.get("additional", ""),
    )
    return Dossier(Consumption(value["outcome"]), submission, _standings(value))


def _standings(value: Mapping[str, Any]) -> Standings | None:
    if value["guests"] is None:
        return None
    enrolments = value["enrolments"]
    return Standings(
        tuple(KnownGuest.from_json(guest) for guest in value["guests"]),
        None if enrolments is None else frozenset(map(Standing, enrolments)),
    )


# --- what the operator trusts ---


def trusted_json(trusted: Trusted) -> dict[str, Any]:
    """Certificates as base64 of DER; floors (of SEV-SNP's kind, the only one there is) by name."""
    return {
        "roots": [_der(certificate) for certificate in trusted.roots],
        "certificates": [_der(certificate) for certificate in trusted.certificates],
        "floors": None if trusted.floors is None else asdict(trusted.floors),
    }


def trusted_from_json(value: Mapping[str, Any]) -> Trusted:
    """What `trusted_json` wrote. Raises ProtocolError, KeyError, TypeError or ValueError on anything else."""
    floors = value["floors"]
    if floors is not None:
        given: dict[str, Any] = {name: tuple(one) if isinstance(one, list) else one for name, one in floors.items()}
        floors = Floors(**given)
    roots, certificates = (
        tuple(x509.load_der_x509_certificate(_unbase64(one)) for one in value[which])
        for which in ("roots", "certificates")
    )
    return Trusted(roots, certificates, floors)


def trusted_name(document: bytes) -> str:
    """Under what name a document of what is trusted is kept. No decision's id looks like it."""
    return "trusted-" + hashlib.sha256(document).hexdigest()


def _der(certificate: x509.Certificate) -> str:
    return b64.std(certificate.public_bytes(Encoding.DER))


def _texts(found: Mapping[str, bytes]) -> dict[str, str]:
    return {name: b64.std(data) for name, data in found.items()}


def _bytes(texts: Mapping[str, str]) -> dict[str, bytes]:
    return {name: _unbase64(text) for name, text in texts.items()}


def _unbase64(text: str) -> bytes:
    return b64.from_std(text, name="a part of the dossier", max_bytes=MAX_DOSSIER_BYTES)
