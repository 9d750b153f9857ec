# SPDX-License-Identifier: Apache-2.0
"""AMD's CA certificates for SEV-SNP, which come with the product (`amd/`), and the pins of its roots.

An ARK is told by its public key: names and addresses in a certificate identify nothing, and a root that comes with the
evidence never becomes one of ours. AMD publishes the certificates at its KDS, /vcek/v1/{line}/cert_chain and
/vlek/v1/{line}/cert_chain.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from broker.claims import Trusted
from broker.verifiers.snp_certificates import read_ark
from broker.verifiers.snp_report import Line
from broker.verifiers.x509 import load_certificate
from keys.errors import EndorsementError

# SHA-256 of the DER SubjectPublicKeyInfo, lower-case hex. There is no other ARK of these lines.
ARK_SPKI_SHA256: Mapping[Line, str] = {
    Line.MILAN: "9f056bee44377e29308cb5ffa895bdfb62d18881fa6bed8d6f075b0204089cb9",
    Line.GENOA: "429a69c9422aa258ee4d8db5fcda9c6470ef15f8cd5a9cebd6cbc7d90b863831",
    Line.TURIN: "4f125410563a2ab9a50356f9243f6fe0b6f73de98603f53f90339c70e9d7ad08",
}


def check_ark(certificate: x509.Certificate, pins: Mapping[Line, str] = ARK_SPKI_SHA256) -> Line:
    """The line of an ARK whose form and own signature are right and whose key is the pinned one of that line.

    Raises EndorsementError.
    """
    line = read_ark(certificate)
    spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    found = hashlib.sha256(spki).hexdigest()
    if found != pins.get(line):
        raise EndorsementError(
            f"this ARK-{line} is not AMD's", expected=f"key {pins.get(line, 'of another line')}", found=found
        )
    return line


@cache
def built_in() -> Trusted:
    """AMD's three ARKs as roots, its three ASKs and three ASVKs as candidates. Raises EndorsementError if damaged."""
    arks = tuple(_load(line, "ark") for line in Line)
    for ark in arks:
        check_ark(ark)
    return Trusted(roots=arks, certificates=tuple(_load(line, kind) for kind in ("ask", "asvk") for line in Line))


def _load(line: Line, kind: str) -> x509.Certificate:
    return load_certificate((files("broker.verifiers") / "amd" / f"{line.lower()}-{kind}.pem").read_bytes())
