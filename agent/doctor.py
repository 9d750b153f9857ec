# SPDX-License-Identifier: Apache-2.0
"""What would keep this machine from its key? One line for each thing that the agent needs, with what mends it.

Looks and changes nothing; at the broker it leaves one unused challenge.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import NamedTuple

from agent import efi_secret
from agent.attesters.snp import SnpAttester
from agent.attesters.tpm import ALL_PCRS, TpmAttester, read_event_log
from agent.client import Conversation
from agent.config import Settings
from agent.connection import endpoint, tls_context
from agent.cryptsetup import ENVIRONMENT
from agent.deadline import Deadline
from agent.eventlog import replay
from agent.release import pinned_keys
from agent.tpm2 import Tpm
from agent.tpm2_marshal import ALG_SHA256, HASHES
from agent.unlock import has_device_mapper
from keys.errors import AttesterError, ConfigError, RoomkeyError, VolumeError
from keys.messages import PROTOCOL_VERSION, Request
from keys.tee import Tee

Probe = Callable[[Settings, Deadline], str]


class Finding(NamedTuple):
    """`about` and `found` are words for a console; `mend` is empty where nothing is wrong. What is ok and has one all
    the same is a warning.
    """

    about: str
    ok: bool
    found: str
    mend: str


def examine(settings: Settings) -> list[Finding]:
    """One finding for each probe, each with a deadline of its own; for the brokers one each.

    A SEV guest asks no broker: its key came with the launch.
    """
    probes = _PLATFORMS.get(settings.tee, [("platform", _no_platform)]) + _VOLUME
    findings = [_finding(about, probe, settings) for about, probe in probes]
    if settings.tee is Tee.SEV:
        return findings
    findings.append(_broker_keys(settings))
    if not settings.brokers:
        findings.append(Finding("broker", ok=False, found="none", mend="set brokers in the agent's config"))
    one_by_one = ((url, settings._replace(brokers=(url,))) for url in settings.brokers)
    return findings + [_finding(f"broker {url}", _broker, one) for url, one in one_by_one]


def table(findings: list[Finding]) -> str:
    """The findings as lines: verdict, what, what was found, and under a failure or warning what mends it."""
    width = max(len(finding.about) for finding in findings)
    lines = []
    for about, ok, found, mend in findings:
        verdict = "FAIL" if not ok else "warn" if mend else "ok  "
        lines.append(f"{verdict}  {about:{width}}  {found}")
        if mend:
            lines.append(f"{'':6}{'':{width}}  mend: {mend}")
    return "\n".join(lines) + "\n"


def _finding(about: str, probe: Probe, settings: Settings) -> Finding:
    try:
        found = probe(settings, Deadline(settings.timeout))
    except RoomkeyError as error:
        return Finding(about, ok=False, found=str(error), mend=error.mend or "")
    return Finding(about, ok=True, found=found, mend="")


def _broker_keys(settings: Settings) -> Finding:
    about = "broker keys"
    if settings.unsafe_plain_kbs:
        words = "unsafe_plain_kbs: a key is taken from whoever the pinned CA vouches for, of any version"
        return Finding(about, ok=True, found=words, mend="take it away where the broker is a Roomkey")
    return _finding(about, _pinned, settings)


def _pinned(settings: Settings, _deadline: Deadline) -> str:
    return f"{settings.broker_keys}: {', '.join(pinned_keys(settings.broker_keys).by_kid)}"


def _tpm(settings: Settings, deadline: Deadline) -> str:
    with Tpm.open(settings.tpm, deadline) as tpm:
        banks = tpm.banks()
        if ALG_SHA256 not in banks:
            raise AttesterError("the TPM has no SHA-256 bank", mend="enable the bank in the firmware's settings")
        names = ", ".join(HASHES.get(bank, f"{bank:04x}") for bank in banks)
        return f"{settings.tpm}, maker {tpm.manufacturer() or 'unnamed'}, banks {names}"


def _attestation_key(settings: Settings, deadline: Deadline) -> str:
    with TpmAttester(settings, deadline) as attester:
        return f"Name {attester.ak_name.hex()}"


def _ek_certificate(settings: Settings, deadline: Deadline) -> str:
    with TpmAttester(settings, deadline) as attester:
        if attester.ek is None:
            raise AttesterError(
                "none that fits this TPM's endorsement key",
                mend="without one an owner enrols the attestation key: roomkey-agent evidence",
            )
        return f"{attester.ek.profile.label}, with {len(attester.ek.certificates) - 1} of its issuers"


def _event_log(settings: Settings, deadline: Deadline) -> str:
    log = read_event_log(settings.eventlog)
    if not log:
        raise AttesterError(
            "none",
            found=settings.eventlog or "not set",
            mend="mount securityfs on /sys/kernel/security; without a log only rules on PCR values can be kept",
        )
    replayed = replay(log, ALG_SHA256)
    with Tpm.open(settings.tpm, deadline) as tpm:
        values = tpm.pcr_read(ALG_SHA256, ALL_PCRS)
    if differing := [str(pcr) for pcr, value in sorted(replayed.items()) if values[pcr] != value]:
        raise AttesterError(
            "the log does not lead to the TPM's values",
            found=f"PCR {', '.join(differing)}",
            mend="expected for PCRs that the running system extends; else keep rules on PCR values",
        )
    return f"{len(log)} bytes, leads to PCR {', '.join(map(str, sorted(replayed)))}"


def _snp_report(settings: Settings, deadline: Deadline) -> str:
    with SnpAttester(settings, deadline) as attester:
        report, certificates, by_tsm = attester.report(os.urandom(64))
        chip = attester.instance().get("snp_chip_id", "not named")
    way = settings.tsm if by_tsm else settings.sev_guest
    version, vmpl = (int.from_bytes(report[at : at + 4], "little") for at in (0, 0x30))
    table = f"{len(certificates)} bytes of" if certificates else "no"
    return f"{way}: version {version}, VMPL {vmpl}, {table} certificates from the host, chip {chip}"


def _launch_secret(settings: Settings, _deadline: Deadline) -> str:
    if not efi_secret.is_there(settings.secrets):
        raise AttesterError("none", found=f"nothing to read in {settings.secrets}", mend=efi_secret.MEND)
    return f"waits in {settings.secrets}; the next `unlock` or `get` takes it"


def _no_platform(settings: Settings, _deadline: Deadline) -> str:
    raise ConfigError("this agent makes no evidence of it", found=settings.tee, mend=f"tee is one of {_NAMES}")


def _cryptsetup(_settings: Settings, _deadline: Deadline) -> str:
    path = shutil.which("cryptsetup", path=ENVIRONMENT["PATH"])
    if path is None:
        raise VolumeError("not installed", mend="install cryptsetup")
    return path


def _device_mapper(_settings: Settings, _deadline: Deadline) -> str:
    if not has_device_mapper():
        raise VolumeError("this kernel has none", mend="load the module dm_mod; without it `unlock` only tests the key")
    return "present"


def _broker(settings: Settings, deadline: Deadline) -> str:
    target = endpoint(settings.brokers[0])
    tls = tls_context(settings.ca_file) if target.secure else None
    with Conversation(target, tls, deadline) as conversation:
        conversation.challenge(Request(settings.tee))
    line = "TLS 1.3 to the pinned CA" if target.secure else "plain http on loopback"
    return f"{line}, takes protocol {PROTOCOL_VERSION}"


_PLATFORMS: dict[Tee, list[tuple[str, Probe]]] = {
    Tee.TPM: [
        ("TPM", _tpm),
        ("attestation key", _attestation_key),
        ("EK certificate", _ek_certificate),
        ("event log", _event_log),
    ],
    Tee.SNP: [("SNP report", _snp_report)],
    Tee.SEV: [("launch secret", _launch_secret)],
}
_VOLUME: list[tuple[str, Probe]] = [("cryptsetup", _cryptsetup), ("device-mapper", _device_mapper)]
_NAMES = ", ".join(_PLATFORMS)
