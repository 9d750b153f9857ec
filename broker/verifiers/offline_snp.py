# SPDX-License-Identifier: Apache-2.0
"""SEV-SNP and Azure evidence without a broker: AMD's roots are built in, and what the host did not send is handed in.

The endorsements are a VCEK's or VLEK's certificate, which goes before the one in the evidence; certificates of the
chain, which are candidates like AMD's own; and AMD's revocation lists. DER or PEM, a bundle too. An ARK counts for
nothing here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from broker.claims import Binding, Claims, Endorsements, Trusted
from broker.trace import Trace
from broker.verifiers.az_vtpm_evidence import AzSnpEvidence
from broker.verifiers.registry import verifier_for
from broker.verifiers.snp_endorsements import PREFIX, name_of
from broker.verifiers.snp_evidence import CertificateKind, SnpEvidence
from broker.verifiers.snp_floors import Floors
from broker.verifiers.snp_roots import built_in
from broker.verifiers.x509 import load_certificates
from keys.errors import ConfigError, EndorsementError
from keys.tee import Tee

KDS_URL = "https://kdsintf.amd.com/"

_PEM_LIST = b"-----BEGIN X509 CRL-----"
_KINDS = {"SEV-VCEK": CertificateKind.VCEK, "SEV-VLEK": CertificateKind.VLEK}  # by the subject's common name

Evidence = SnpEvidence | AzSnpEvidence


class SnpPart:
    """`broker.verifiers.offline.Part` for `snp` and `az-snp-vtpm`. `trusted` stands for AMD's own, for tests."""

    def __init__(
        self, tee: Tee, endorsements: Sequence[bytes], floors: Floors | None, trusted: Trusted | None = None
    ) -> None:
        self._verifier = verifier_for(tee)
        self._veks: dict[CertificateKind, bytes] = {}
        self._found: dict[str, bytes] = {}
        known = built_in() if trusted is None else trusted
        chain = [certificate for data in endorsements for certificate in self._sort(data, known)]
        self._trusted = replace(
            known, certificates=(*known.certificates, *chain), floors=Floors() if floors is None else floors
        )

    def decode(self, evidence: object) -> Evidence:
        decoded: Evidence = self._verifier.decode(evidence)
        return decoded

    def verify(self, evidence: Evidence, _instance: object, report_data: bytes, at: datetime, trace: Trace) -> Claims:
        if isinstance(evidence, SnpEvidence):
            evidence = replace(evidence, certificates={**evidence.certificates, **self._veks})
            has_vcek = CertificateKind.VCEK in evidence.certificates
        else:
            evidence = replace(evidence, vcek=self._veks.get(CertificateKind.VCEK, evidence.vcek))
            has_vcek = evidence.vcek is not None
        required = self._verifier.needs(evidence).required
        if required and not has_vcek:
            raise ConfigError(
                "the evidence lacks the certificate of the chip's key (VCEK)",
                mend=f"give it: --endorsement FILE, which AMD hands out at {KDS_URL}{required[0].removeprefix(PREFIX)}",
            )
        endorsements = Endorsements(trusted=self._trusted, found=self._found)
        return self._verifier.verify(evidence, endorsements, Binding(report_data), at, trace)

    def _sort(self, data: bytes, known: Trusted) -> list[x509.Certificate]:
        """Keep a VCEK, VLEK or revocation list, and hand back certificates of the chain."""
        try:
            certificates = load_certificates(data)
        except EndorsementError:
            self._keep_list(data, known)
            return []
        if _PEM_LIST in data:  # the library reads past it, and what it revokes would count for nothing
            raise ConfigError("a revocation list stands among certificates", mend="give it in a file of its own")
        chain = []
        for certificate in certificates:
            names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
            kind = _KINDS.get(str(names[0].value)) if names else None
            if kind is None:
                chain.append(certificate)
            elif kind in self._veks:
                raise ConfigError(f"two certificates of a {kind.upper()} are given", mend="give the one of this guest")
            else:
                self._veks[kind] = certificate.public_bytes(Encoding.DER)
        return chain

    def _keep_list(self, data: bytes, known: Trusted) -> None:
        try:
            name = name_of(data, known)
        except EndorsementError as error:
            raise ConfigError(
                "an endorsement is neither a certificate nor a revocation list of AMD's", found=error.message
            ) from error
        if name in self._found:  # an old one would hide what the other revokes
            raise ConfigError("two revocation lists of one product line are given", mend="give the newer one")
        self._found[name] = data
