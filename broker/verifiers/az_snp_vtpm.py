# SPDX-License-Identifier: Apache-2.0
"""The verifier of Azure's confidential VMs on SEV-SNP: a vTPM's quote, and the hardware report that vouches for it.

The vTPM is part of the paravisor, which runs at VMPL 0 below the guest's own kernel and is what the launch measures.
Its attestation key (AK) stands in the runtime data that the hardware report is bound to.

    (1) the HCL report: `hcl` (1) to (4), with a report of SEV-SNP
    (2) its runtime data name the AK: `hcl` (5)
    (3) the hardware report is bound to exactly these runtime data: `hcl` (6)
    (4) the hardware report is genuine and meets the operator's floors: `snp` (1) to (12) but for init-data; its VMPL is
        0, whatever the floors allow: who asks from a higher VMPL is a guest and no paravisor. Below the floors it is
        refused too, but once (5) to (7) have said what else there is to say
    (5) the vTPM's quote answers this challenge: `az_vtpm_quote` (1) to (3)
    (6) version 2: the guest's report data stand in the runtime data, so the hardware report is as fresh as the quote.
        Before version 2 it may be an old one of this vTPM: the TCB and the chip are then those of some time since it
        was made
    (7) posted init-data is what PCR 8 holds

What these checks cannot know is that the paravisor is Microsoft's. Anyone can run code of his own at VMPL 0 of a
genuine machine, have a genuine report over runtime data with a key of his own, and sign quotes in software. So an image
must pin the paravisor, by its measurement or by its ID key (`broker.appraisal.images` refuses others), and no claim of
this verifier counts without that: not the PCRs, not `azure_*`, which is what the paravisor says, not the AK's id.

The VM's name is its AK ("az-ak"), first: Azure moves VMs between chips. A name made by the guest would be worth
nothing; this one is as good as the paravisor, and a rule that names it is only ever judged together with an image that
pins the paravisor. Where a product line's chips have leaked their seeds ("vcek-named"), an attacker forges a report
with any measurement and any runtime data. He can write an enrolled AK into them, but cannot sign with it, since its
private half is in the enrolled VM's vTPM; with a key of his own he has no name that a rule knows. So naming by AK holds
there too, and `any` does not let him in.
"""

from __future__ import annotations

import hmac
from dataclasses import replace
from datetime import datetime
from typing import ClassVar

from broker.claims import BelowFloors, Binding, Claims, EndorsementRequest, Endorsements
from broker.trace import Stage, Trace
from broker.verifiers.az_vtpm_evidence import AzSnpEvidence, decode_evidence
from broker.verifiers.az_vtpm_quote import quote_facts, verify_az_quote
from broker.verifiers.hcl import Hardware, HclReport, RuntimeData, check_binding, parse_hcl, read_runtime_data
from broker.verifiers.snp import ReportBelowFloors, VerifiedReport, needed, verify_report
from broker.verifiers.snp_evidence import CertificateKind, SnpEvidence
from broker.verifiers.steps import Next, Step, in_steps
from broker.verifiers.tpm_initdata import check_init_data
from broker.verifiers.tpm_structures import SHA256
from keys.errors import VerificationError
from keys.tee import Tee

DIGEST_BYTES = 48  # of the KBS runtime data, SHA-384: the whole extraData
USER_DATA_SINCE = 2  # the evidence's version
PARAVISOR_VMPL = 0


STEPS: tuple[Step, ...] = (
    (Stage.ROOT_OF_TRUST, "hardware report is bound to the vTPM's attestation key"),
    (Stage.ROOT_OF_TRUST, "hardware report is genuine, and asked for by the paravisor"),
    (Stage.ROOT_OF_TRUST, "vTPM's quote is genuine, and answers this challenge"),
    (Stage.TRUST, "hardware report answers this challenge too (user-data)"),
    (Stage.MEASUREMENT, "init-data is what PCR 8 holds"),
)


class AzSnpVtpmVerifier:
    """`broker.claims.Verifier` for `az-snp-vtpm`."""

    tee: ClassVar[Tee] = Tee.AZ_SNP_VTPM

    def decode(self, evidence: object) -> AzSnpEvidence:
        """Raises ProtocolError."""
        return decode_evidence(evidence)

    def needs(self, evidence: AzSnpEvidence) -> EndorsementRequest:
        """The VCEK where the evidence brings none that fits, the line's revocation list, and under which ids an owner
        may have enrolled the VM or its chip.
        """
        try:
            hcl = parse_hcl(evidence.hcl_report)
            request = needed(_hardware_evidence(evidence, hcl))
            return replace(request, instance_ids=(read_runtime_data(hcl.runtime_data).ak_id, *request.instance_ids))
        except VerificationError:  # `verify` will say so, with a trace
            return EndorsementRequest()

    def verify(
        self, evidence: AzSnpEvidence, endorsements: Endorsements, bound_to: Binding, at: datetime, trace: Trace
    ) -> Claims:
        """The claims of genuine evidence; checks (1) to (7). Raises VerificationError, with every check in `trace`."""
        trace.require(
            Stage.TRUST,
            "challenge has its full length",
            len(bound_to.report_data) == DIGEST_BYTES,
            expected=f"{DIGEST_BYTES} bytes",
            found=len(bound_to.report_data),
        )
        with in_steps(trace, STEPS, genuine=BelowFloors) as next_step:
            return self._verify(evidence, endorsements, bound_to, at, trace, next_step)

    def _verify(
        self, evidence: AzSnpEvidence, endorsements: Endorsements, bound_to: Binding, at: datetime, trace: Trace,
        next_step: Next,
    ) -> Claims:  # fmt: skip
        next_step()
        hcl, runtime = _read(evidence, trace)  # (1) to (3)
        next_step()
        hardware, below = _verify_hardware(evidence, hcl, endorsements, at, trace)  # (4)
        next_step()
        attest = verify_az_quote(evidence.quote, runtime.ak, bound_to.report_data, trace)  # (5)
        next_step()
        fresh = _check_user_data(evidence.version, runtime.user_data, bound_to.report_data, trace)  # (6)
        pcrs = evidence.quote.pcrs
        next_step()
        if bound_to.init_data is not None:
            check_init_data(bound_to.init_data, pcrs, trace)  # (7)
        values = {f"{SHA256.name}:{index}": value.hex() for index, value in pcrs[SHA256.name].items()}
        about = {"evidence_version": evidence.version, "hardware_report_fresh": fresh}
        claims = Claims(
            tee=self.tee,
            instance_ids=(runtime.ak_id, *hardware.instance_ids),
            trust=hardware.trust,
            measurements={**hardware.measurements, **values},
            facts={**hardware.facts, **quote_facts(attest), **runtime.facts, **about},
            init_data=None if bound_to.init_data is None else bound_to.init_data.hex(),
        )
        if below is not None:
            raise BelowFloors(below.message, claims, expected=below.expected, found=below.found, mend=below.mend)
        return claims


def _hardware_evidence(evidence: AzSnpEvidence, hcl: HclReport) -> SnpEvidence:
    """What `snp` judges. The report of another platform is none of SEV-SNP: its parser says so."""
    certificates = {} if evidence.vcek is None else {CertificateKind.VCEK: evidence.vcek}
    return SnpEvidence(hcl.report, certificates)


def _read(evidence: AzSnpEvidence, trace: Trace) -> tuple[HclReport, RuntimeData]:
    """Checks (1) to (3)."""
    with trace.recording(Stage.ROOT_OF_TRUST):
        hcl = parse_hcl(evidence.hcl_report)
        if hcl.hardware is not Hardware.SNP:
            raise VerificationError(
                "the HCL report holds another platform's report",
                expected=Hardware.SNP.name,
                found=hcl.hardware.name,
                mend=f"the VM is of another kind: let its agent speak as {Tee.AZ_TDX_VTPM}",
            )
        runtime = read_runtime_data(hcl.runtime_data)
        check_binding(hcl)
    trace.check(
        Stage.ROOT_OF_TRUST, "hardware report is bound to the vTPM's attestation key", True, found=runtime.ak_id
    )
    return hcl, runtime


def _verify_hardware(
    evidence: AzSnpEvidence, hcl: HclReport, endorsements: Endorsements, at: datetime, trace: Trace
) -> tuple[VerifiedReport, ReportBelowFloors | None]:
    """Check (4). Genuine but below the floors, the report is handed on with that error: it is raised once all else is
    known to be genuine, too, so that nothing is told as a claim that is not proved.
    """
    below = None
    try:
        verified = verify_report(
            _hardware_evidence(evidence, hcl), endorsements, report_data=hcl.expected_report_data, at=at, trace=trace
        )
    except ReportBelowFloors as error:
        verified, below = error.verified, error
    trace.require(
        Stage.ROOT_OF_TRUST,
        "hardware report was asked for by the paravisor (VMPL)",
        verified.report.vmpl == PARAVISOR_VMPL,
        expected=PARAVISOR_VMPL,
        found=verified.report.vmpl,
    )
    return verified, below


def _check_user_data(version: int, user_data: bytes | None, report_data: bytes, trace: Trace) -> bool:
    """Check (6): whether the hardware report was made for this challenge."""
    name = "hardware report answers this challenge too (user-data)"
    found = b"" if user_data is None else user_data[: len(report_data)]
    fresh = hmac.compare_digest(found, report_data)
    if version >= USER_DATA_SINCE:
        trace.require(
            Stage.TRUST,
            name,
            fresh,
            expected=report_data,
            found=found or "no user-data",
            mend="let the guest write the report data to the vTPM, wait, and read the HCL report again",
        )
    else:
        words = "it does" if fresh else "it may be older than the quote"
        trace.not_required(Stage.TRUST, name, found=f"evidence of version {version}: {words}")
    return fresh
