# SPDX-License-Identifier: Apache-2.0
"""Evidence of AMD SEV-SNP: an ATTESTATION_REPORT over the report data, and the certificates that the host has for it.

Asked for through configfs-tsm where the kernel has it, else through /dev/sev-guest. What the host adds is a convenience
that saves the broker a fetch from AMD; nothing is trusted for it. REPORT_DATA has 64 bytes: the digest, then zeros.
AMD 56860, table 22 (ATTESTATION_REPORT).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Self

from agent.kernel import Kernel
from agent.tsm import tsm_report
from keys import b64
from keys.errors import AttesterError, ProtocolError
from keys.messages import Challenge, Request, ResourcePath
from keys.tee import Tee

if TYPE_CHECKING:
    from agent.config import Settings
    from agent.deadline import Deadline

PROVIDER = "sev_guest"  # configfs-tsm's name for SEV-SNP
REPORT_BYTES = 1184
REPORT_DATA = slice(0x50, 0x90)
KEY_INFO = 0x48  # one byte is enough: SIGNING_KEY is in bits 4:2
CPUID_FAMILY = 0x188
CHIP_ID = slice(0x1A0, 0x1E0)
VCEK = 0
TURIN_FAMILY = 0x1A
TURIN_CHIP_ID_BYTES = 8  # of the 64; the others are zero


class SnpReport(NamedTuple):
    """`certificates` is the host's table (GUIDs, offsets, lengths; then DER or PEM), or empty. `by_tsm`: it came
    through configfs-tsm, not from the device.
    """

    report: bytes
    certificates: bytes
    by_tsm: bool


class SnpAttester:
    """This guest's SNP firmware. Nothing stays open between two reports."""

    def __init__(self, settings: Settings, deadline: Deadline, kernel: Kernel | None = None) -> None:
        self._settings = settings
        self._deadline = deadline
        self._kernel = Kernel() if kernel is None else kernel
        self._last: SnpReport | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def request(self, resource: ResourcePath) -> Request:
        return Request(Tee.SNP, resource)

    def accept(self, challenge: Challenge) -> bytes | None:
        if challenge.tpm is not None:
            raise ProtocolError("the challenge is for a TPM, which this guest did not declare")
        return None

    def evidence(self, report_data: bytes, activation: bytes | None = None) -> dict[str, Any]:  # noqa: ARG002  no TPM, no activation
        """The report and, if the host has any, its certificates, in the form of the interface that gave them."""
        report, certificates, by_tsm = self.report(report_data)
        evidence = {"outblob" if by_tsm else "report": b64.std(report)}
        if certificates:
            evidence["auxblob" if by_tsm else "cert_table"] = b64.std(certificates)
        return evidence | ({"provider": PROVIDER} if by_tsm else {})

    def instance(self) -> dict[str, Any]:
        """The chip's name, if a report can tell it; from the last report, because hosts throttle new ones."""
        return instance_of((self._last or self.report(b"")).report)

    def report(self, report_data: bytes) -> SnpReport:
        """A report over `report_data` (at most 64 bytes). Raises AttesterError, or Unavailable at the deadline."""
        bound = report_data.ljust(64, b"\0")
        try:
            report = SnpReport(
                *tsm_report(self._kernel, self._settings.tsm, bound, PROVIDER, self._deadline), by_tsm=True
            )
        except AttesterError as error:
            report = self._by_device(bound, error)
        if len(report.report) != REPORT_BYTES or report.report[REPORT_DATA] != bound:
            raise AttesterError("what the kernel gave is no report over what was asked for")
        # A table that begins with its end has no certificates.
        self._last = report if any(report.certificates[:24]) else report._replace(certificates=b"")
        return self._last

    def _by_device(self, bound: bytes, first: AttesterError) -> SnpReport:
        from agent.sev_guest import device_report  # noqa: PLC0415  ctypes; most guests come without

        try:
            return SnpReport(
                *device_report(self._kernel, self._settings.sev_guest, bound, self._deadline), by_tsm=False
            )
        except AttesterError as second:
            raise AttesterError(
                "no SEV-SNP report", found=f"{first}; {second}", mend=second.mend or first.mend
            ) from None


def instance_of(report: bytes) -> dict[str, Any]:
    """What an owner enrols, from a report: {"snp_chip_id": hex}, or {} where it names no chip.

    A report that a cloud provider's key (VLEK) signed names the provider, and only the key's certificate says which;
    and a host may mask CHIP_ID. Turin's ids have 8 bytes and then zeros, under CPUID family 0x1A.
    """
    chip_id = report[CHIP_ID]
    if report[KEY_INFO] >> 2 & 0b111 != VCEK or not any(chip_id):
        return {}
    if report[CPUID_FAMILY] == TURIN_FAMILY and not any(chip_id[TURIN_CHIP_ID_BYTES:]):
        chip_id = chip_id[:TURIN_CHIP_ID_BYTES]
    return {"snp_chip_id": chip_id.hex()}
