# SPDX-License-Identifier: Apache-2.0
"""AMD's certificate revocation lists: one a product line, signed by its ARK, naming ASKs and ASVKs that count no more.

RFC 5280, section 5; AMD 57230, chapter 4 (KDS, /vcek/v1/{line}/crl). VCEKs and VLEKs are never revoked (all of them
have the serial number 0): they are superseded as the TCB goes on. The checks:

    (1) a v2 list in DER or PEM, with its number and the time of its next update
    (2) no critical extension, of the list or of an entry: none is understood here, and any could change the meaning
    (3) issued by the ARK of the line, whose certificate passes `snp_certificates.read_ark`
    (4) the signature is right, both as the list declares it and as RSASSA-PSS with SHA-384, MGF1 with SHA-384 and 48
        bytes of salt; what is declared inside the signed part and outside is the same
    (5) thisUpdate <= at < nextUpdate

A list that is stale still revokes what it names: whoever asks decides what a missing (5) means.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding

from broker.verifiers.snp_certificates import read_ark, rsa_key, verify_pss
from broker.verifiers.snp_report import Line
from broker.verifiers.x509 import readable, words
from keys.errors import EndorsementError

MAX_CRL_BYTES = 64 * 1024  # AMD's have about 900
# What AMD's lists already named when this was written, for where no list is at hand: a number is never taken off again.
KNOWN_REVOKED: Mapping[Line, frozenset[int]] = {Line.GENOA: frozenset((0x20001,))}  # an ASK, 2022-10-31
CACHED = 16  # lists that were read and whose signatures were checked


@dataclass(frozen=True, slots=True)
class Crl:
    """A genuine list. `number` grows with each of a line; `revoked` are serial numbers of the ARK's certificates."""

    line: Line
    number: int
    this_update: datetime
    next_update: datetime
    revoked: frozenset[int]


@lru_cache(maxsize=CACHED)
def read_crl(data: bytes, ark: x509.Certificate) -> Crl:
    """The list in `data`, DER or PEM, if `ark` issued it: checks (1) to (4). Raises EndorsementError.

    `ark` is a root that the caller trusts.
    """
    if len(data) > MAX_CRL_BYTES:
        raise EndorsementError("a revocation list is too long", expected=f"at most {MAX_CRL_BYTES} bytes")
    line = read_ark(ark)
    pem = data.lstrip().startswith(b"-----BEGIN")
    with readable("a revocation list"):
        crl = x509.load_pem_x509_crl(data) if pem else x509.load_der_x509_crl(data)
        if crl.issuer != ark.subject:  # (3)
            raise EndorsementError(
                "the revocation list is another issuer's", expected=words(ark.subject), found=words(crl.issuer)
            )
        _check_signed(crl, ark)  # (4)
        this_update, next_update = crl.last_update_utc, crl.next_update_utc
        entries, extensions = list(crl), list(crl.extensions)
        for found in (*extensions, *(one for entry in entries for one in entry.extensions)):
            if found.critical:  # (2)
                raise EndorsementError(
                    "a revocation list has a critical extension that is not understood", found=found.oid.dotted_string
                )
    number = next((found.value.crl_number for found in extensions if isinstance(found.value, x509.CRLNumber)), None)
    if number is None or next_update is None:  # (1)
        raise EndorsementError("a revocation list has no number, or no time of the next update", found=f"line {line}")
    return Crl(line, number, this_update, next_update, frozenset(entry.serial_number for entry in entries))


def check_current(crl: Crl, at: datetime) -> None:
    """Check (5). Raises EndorsementError for a list that is stale, or from the future."""
    if not crl.this_update <= at < crl.next_update:
        raise EndorsementError(
            "the revocation list is not current",
            expected=f"{crl.this_update:%Y-%m-%dT%H:%M:%SZ} until before {crl.next_update:%Y-%m-%dT%H:%M:%SZ}",
            found=f"{at:%Y-%m-%dT%H:%M:%SZ}",
            mend=f"fetch or import the list of {crl.line} that AMD publishes now",
        )


def _check_signed(crl: x509.CertificateRevocationList, ark: x509.Certificate) -> None:
    """Check (4). The key signs under one set of parameters: what verifies as declared and as AMD's, declares AMD's."""
    key = rsa_key(ark)
    try:
        verify_pss(key, crl.public_bytes(Encoding.DER), crl.tbs_certlist_bytes, crl.signature)
        right = crl.is_signature_valid(key)
    except InvalidSignature:
        right = False
    if not right:
        raise EndorsementError(
            "the revocation list's signature is wrong",
            expected="RSASSA-PSS with SHA-384 and 48 bytes of salt",
            found=f"issuer {words(ark.subject)}",
        )
