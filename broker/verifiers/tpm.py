# SPDX-License-Identifier: Apache-2.0
"""The verifier of TPM 2.0 evidence: a quote over PCRs, and what makes it trustworthy.

    (1) the attestation key's public area is known: from the evidence, or for stock guests from its enrolment
    (2) the quote is genuine, answers this challenge, and is about exactly these values: `tpm_quote` (1) to (7)
    (3) floors of a careful default: extraData of 32 bytes, nameAlg SHA-256 or better, at least one PCR of a bank that
        is not SHA-1; values of SHA-1 banks are never claims
    (4) the key is trusted: `tpm_trust` (1) to (5)
    (5) the key lives in the endorsement hierarchy, as a primary or as a child of the EK: qualifiedSigner, which the TPM
        signed, is computed again. Keys elsewhere see obfuscated counters and versions
    (6) posted init-data is what PCR 8 holds
    (7) the event log, where there is one, is well-formed and honest; it explains the PCRs that it replays to

A PCR's value is evidence; the log only explains. So a PCR that the log does not replay to keeps its value and has no
events, while a log that no firmware would write is refused.
"""

from __future__ import annotations

from datetime import datetime
from hashlib import sha256
from typing import ClassVar

from broker.claims import Binding, Claims, EndorsementRequest, Endorsements, Fact, LoggedEvent
from broker.trace import Stage, Trace
from broker.verifiers.eventlog import DRTM_PCRS, EV_NO_ACTION, EventLog, parse_log, replay
from broker.verifiers.eventlog_rules import BootState, judge_log
from broker.verifiers.eventlog_words import describe, type_name
from broker.verifiers.steps import Next, Step, in_steps
from broker.verifiers.tpm_credential import make_challenge
from broker.verifiers.tpm_evidence import TpmEvidence, decode_evidence
from broker.verifiers.tpm_initdata import check_init_data
from broker.verifiers.tpm_quote import PcrValues, VerifiedQuote, verify_quote
from broker.verifiers.tpm_structures import (
    RH_ENDORSEMENT,
    RH_NULL,
    RH_OWNER,
    RH_PLATFORM,
    SCHEMES,
    SHA1,
    Hash,
    Public,
    qualified_name,
)
from broker.verifiers.tpm_trust import Trust, attestation_key, instance_id, judge_trust
from keys.binding import TPM_QUALIFYING_DATA_BYTES, tpm_qualifying_data
from keys.errors import VerificationError
from keys.tee import Tee

__all__ = ["TpmVerifier", "make_challenge"]


INIT_DATA = (Stage.MEASUREMENT, "init-data is what PCR 8 holds")
STEPS: tuple[Step, ...] = (
    (Stage.ROOT_OF_TRUST, "attestation key's public area is known"),
    (Stage.ROOT_OF_TRUST, "quote is genuine, and answers this challenge"),
    (Stage.MEASUREMENT, "quote covers PCRs of a strong bank"),
    (Stage.TRUST, "attestation key is one that is trusted"),
    (Stage.ROOT_OF_TRUST, "attestation key lives in the endorsement hierarchy"),
    INIT_DATA,
    (Stage.MEASUREMENT, "event log is well-formed"),
)


class TpmVerifier:
    """`broker.claims.Verifier` for `tpm`."""

    tee: ClassVar[Tee] = Tee.TPM

    def decode(self, evidence: object) -> TpmEvidence:
        """Raises ProtocolError."""
        return decode_evidence(evidence)

    def needs(self, evidence: TpmEvidence) -> EndorsementRequest:
        """The id under which an owner may have enrolled the attestation key."""
        try:
            return EndorsementRequest((instance_id(evidence),))
        except VerificationError:  # no such key exists; `verify` will say so, with a trace
            return EndorsementRequest()

    def verify(
        self, evidence: TpmEvidence, endorsements: Endorsements, bound_to: Binding, at: datetime, trace: Trace
    ) -> Claims:
        """The claims of genuine evidence; checks (1) to (7). Raises VerificationError, with every check in `trace`."""
        with in_steps(trace, STEPS) as next_step:
            return self._verify(evidence, endorsements, bound_to, at, trace, next_step)

    def _verify(
        self, evidence: TpmEvidence, endorsements: Endorsements, bound_to: Binding, at: datetime, trace: Trace,
        next_step: Next,
    ) -> Claims:  # fmt: skip
        qualifying_data = tpm_qualifying_data(bound_to.report_data)
        next_step()
        ak = attestation_key(evidence, endorsements, trace)  # (1)
        next_step()
        quote = verify_quote(  # (2)
            attest=evidence.attest,
            signature=evidence.signature,
            ak=ak,
            qualifying_data=qualifying_data,
            pcrs=evidence.pcrs,
            trace=trace,
        )
        next_step()
        pcrs = _check_floors(quote, ak, qualifying_data, trace)  # (3)
        next_step()
        trust = judge_trust(ak, evidence, endorsements, qualifying_data, at, trace)  # (4)
        next_step()
        hierarchy = _check_hierarchy(quote, ak, trust.ek, trace)  # (5)
        next_step()
        if bound_to.init_data is not None:
            check_init_data(bound_to.init_data, pcrs, trace)  # (6)
        next_step()
        events, boot = _explain(evidence.eventlog, pcrs, trace)  # (7)
        return Claims(
            tee=self.tee,
            instance_ids=_instance_ids(ak, trust),
            trust=trust.by,
            measurements={f"{bank}:{i}": v.hex() for bank, values in pcrs.items() for i, v in sorted(values.items())},
            facts={**_facts(quote, ak), "ak_hierarchy": hierarchy, **_certificate_facts(trust), **boot},
            events=events,
            init_data=None if bound_to.init_data is None else bound_to.init_data.hex(),
        )


def _instance_ids(ak: Public, trust: Trust) -> tuple[str, ...]:
    """Strongest first. An EK names the machine only where its certificate was verified."""
    certified = trust.ek if trust.certificate is not None else None
    ek_ids = () if certified is None else (f"tpm-ek:{sha256(certified.spki).hexdigest()}",)
    return (*ek_ids, f"tpm-ak:{ak.name.hex()}")


def _check_floors(quote: VerifiedQuote, ak: Public, qualifying_data: bytes, trace: Trace) -> PcrValues:
    """Check (3); the values that may become claims."""
    trace.require(
        Stage.TRUST,
        "challenge has its full length",
        len(qualifying_data) == TPM_QUALIFYING_DATA_BYTES,
        expected=f"{TPM_QUALIFYING_DATA_BYTES} bytes of extraData",
        found=len(qualifying_data),
    )
    trace.require(
        Stage.ROOT_OF_TRUST,
        "attestation key's Name has a strong hash",
        ak.name_hash is not SHA1,
        expected="sha256, sha384 or sha512",
        found=ak.name_hash.name,
    )
    pcrs = {bank: values for bank, values in quote.pcrs.items() if values and bank != SHA1.name}
    trace.require(
        Stage.MEASUREMENT,
        "quote covers PCRs of a strong bank",
        bool(pcrs),
        expected="a PCR of sha256, sha384 or sha512",
        found=" ".join(bank for bank, values in quote.pcrs.items() if values) or "no PCR",
        mend="quote the SHA-256 bank",
    )
    return pcrs


def _check_hierarchy(quote: VerifiedQuote, ak: Public, ek: Public | None, trace: Trace) -> str:
    """Check (5): "primary" or "child of the EK"."""
    signer = quote.attest.qualified_signer
    places = {"primary": qualified_name(RH_ENDORSEMENT, ak)}
    if ek is not None:
        places["child of the EK"] = qualified_name(qualified_name(RH_ENDORSEMENT, ek), ak)
    place = next((place for place, name in places.items() if name == signer), None)
    wrong = {"owner": RH_OWNER, "null": RH_NULL, "platform": RH_PLATFORM}
    trace.require(
        Stage.ROOT_OF_TRUST,
        "attestation key lives in the endorsement hierarchy",
        place is not None,
        expected=" or ".join(places),
        found=place
        or next((f"{name} hierarchy" for name, handle in wrong.items() if qualified_name(handle, ak) == signer), None)
        or "a child of another key",
        mend="create the attestation key as a primary of the endorsement hierarchy, or enrol it with its parent",
    )
    return place or ""


def _explain(raw: bytes | None, pcrs: PcrValues, trace: Trace) -> tuple[tuple[LoggedEvent, ...], dict[str, Fact]]:
    """Check (7): the events of every PCR that the log replays to, and what they prove about the boot."""
    if raw is None:
        trace.not_required(Stage.MEASUREMENT, "event log", found="none")
        return (), {}
    with trace.recording(Stage.MEASUREMENT):
        log = parse_log(raw)
        state = judge_log(log)
    banks = [bank for bank in log.banks if bank.name in pcrs]
    explained = {bank.name: _explained(log, bank, pcrs) for bank in banks}
    words = {bank: " ".join(map(str, sorted(indices))) for bank, indices in explained.items()}
    trace.check(
        Stage.MEASUREMENT,
        "event log is well-formed and replays to quoted values",
        True,
        found="; ".join(f"{bank}: {indices}" for bank, indices in words.items()) or "no bank of it is quoted",
    )
    missing = {bank: sorted(values.keys() - explained.get(bank, set())) for bank, values in pcrs.items()}
    if any(missing.values()):
        found = "; ".join(f"{bank}: {' '.join(map(str, indices))}" for bank, indices in missing.items() if indices)
        trace.not_required(Stage.MEASUREMENT, "PCRs that the event log does not explain", found=found)
    return _events(log, explained), _boot_facts(log, state, explained, trace)


def _explained(log: EventLog, bank: Hash, pcrs: PcrValues) -> set[int]:
    """The quoted PCRs whose values the log replays to; a PCR without events has its value after a reset."""
    replayed = replay(log, bank)
    zeros, ones = bytes(bank.size), b"\xff" * bank.size
    return {
        index
        for index, value in pcrs[bank.name].items()
        if value == replayed.get(index, ones if index in DRTM_PCRS else zeros)
    }


def _events(log: EventLog, explained: dict[str, set[int]]) -> tuple[LoggedEvent, ...]:
    found: list[LoggedEvent] = []
    for event in log.events:
        if event.type == EV_NO_ACTION:
            continue
        what = describe(event)
        for bank, digest in zip(log.banks, event.digests, strict=True):
            if event.pcr in explained.get(bank.name, ()):
                register = f"{bank.name}:{event.pcr}"
                found.append(LoggedEvent(register, type_name(event.type), digest.hex(), what))
    return tuple(found)


def _boot_facts(log: EventLog, state: BootState, explained: dict[str, set[int]], trace: Trace) -> dict[str, Fact]:
    """What the log states, as far as a quoted PCR proves it."""
    facts: dict[str, Fact] = {}
    proven = set().union(*explained.values())
    if 0 in proven and log.startup_locality is not None:
        facts["startup_locality"] = log.startup_locality
    bank = next((bank for bank, indices in explained.items() if 4 in indices), None)
    if bank is not None and state.efi_applications is not None:
        facts["efi_applications"] = " ".join(state.efi_applications[bank])
    if 7 in proven and state.secure_boot is not None:
        facts["secure_boot"] = state.secure_boot
    else:
        found = state.secure_boot_unclear or "PCR 7 is not proven by the log"
        trace.not_required(Stage.MEASUREMENT, "state of Secure Boot", found=found)
    return facts


def _facts(quote: VerifiedQuote, ak: Public) -> dict[str, Fact]:
    attest = quote.attest
    return {
        "ak_name": ak.name.hex(),
        "ak_attributes": f"{ak.attributes:08x}",
        "signature_scheme": SCHEMES[quote.signature.scheme],
        "signature_hash": quote.signature.hash.name,
        "qualified_signer": attest.qualified_signer.hex(),
        "clock": attest.clock,
        "reset_count": attest.reset_count,
        "restart_count": attest.restart_count,
        "safe": attest.safe,
        "firmware_version": attest.firmware_version.hex(),
    }


def _certificate_facts(trust: Trust) -> dict[str, Fact]:
    certificate = trust.certificate
    if certificate is None:
        return {}
    return {
        "ek_subject": certificate.subject,
        "ek_issuer": certificate.issuer,
        "ek_serial": certificate.serial,
        "ek_manufacturer": certificate.manufacturer,
        "ek_model": certificate.model,
        "ek_version": certificate.version,
        "ek_root": trust.root,
    }
