# SPDX-License-Identifier: Apache-2.0
"""The vTPM of an SVSM (coconut-svsm): what binds its endorsement key to the SNP report.

The guest passes 64 bytes of nonce, and the SVSM asks for a report at VMPL 0 whose report data is SHA-512(nonce ||
manifest). The manifest of the vTPM service is the TPMT_PUBLIC of its EK; that of all services is a table of manifests.
Source: coconut-svsm, attestation protocol; AMD SVSM specification 58019, section 7.

This says only which EK the report speaks of. That the report is genuine, of VMPL 0, and of an SVSM that the owner
approved, is the SNP verifier's business.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from uuid import UUID

from broker.verifiers.reader import Reader
from broker.verifiers.tpm_credential import check_ek
from broker.verifiers.tpm_structures import Public, parse_public
from keys.errors import VerificationError

NONCE_BYTES = 64
MAX_MANIFEST_BYTES = 64 * 1024
MAX_SERVICES = 16

SERVICES_TABLE = UUID("63849ebb-3d92-4670-a1ff-58f9c94b87bb")
VTPM_SERVICE = UUID("c476f1eb-0123-45a5-9641-b4e7dde5bfe3")


def report_data(nonce: bytes, manifest: bytes) -> bytes:
    """The 64 bytes that the SNP report carries for `manifest`. Raises VerificationError for a nonce of another size."""
    if len(nonce) != NONCE_BYTES:
        raise VerificationError("the nonce has another size", expected=f"{NONCE_BYTES} bytes", found=str(len(nonce)))
    return hashlib.sha512(nonce + manifest).digest()


def endorsed_ek(manifest: bytes, nonce: bytes, reported: bytes) -> Public:
    """The EK of a single-service `manifest` that the report with the data `reported` speaks of.

    Raises VerificationError.
    """
    if not hmac.compare_digest(report_data(nonce, manifest), reported):
        raise VerificationError("the SNP report is not about this manifest and nonce")
    return check_ek(parse_public(manifest))


def parse_services(manifest: bytes) -> Mapping[UUID, bytes]:
    """The manifests of all services by GUID. Raises VerificationError.

    Mixed-endian GUID of the table, u32 total size, u32 count; per entry GUID, u32 offset, u32 size; the data.
    """
    if len(manifest) > MAX_MANIFEST_BYTES:
        raise VerificationError("the services manifest is too long", expected=f"at most {MAX_MANIFEST_BYTES} bytes")
    read = Reader(manifest, "services manifest", "little")
    table, size, count = UUID(bytes_le=read.take(16)), read.uint(4), read.uint(4)
    if table != SERVICES_TABLE or size != len(manifest) or count > MAX_SERVICES:
        raise VerificationError(
            "not a services manifest",
            expected=f"{SERVICES_TABLE}, {len(manifest)} bytes, at most {MAX_SERVICES} services",
            found=f"{table}, {size} bytes, {count} services",
        )
    entries = [(UUID(bytes_le=read.take(16)), read.uint(4), read.uint(4)) for _ in range(count)]
    services: dict[UUID, bytes] = {}
    for guid, offset, length in entries:
        if guid in services or offset < read.at or offset + length > size:
            raise VerificationError("a service is listed twice or lies outside the manifest", found=str(guid))
        services[guid] = manifest[offset : offset + length]
    return services
