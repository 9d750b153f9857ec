# SPDX-License-Identifier: Apache-2.0
"""Evidence of a real TPM implementation, made by the agent, judged by the verifier: nothing in between is faked."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agent.attesters.tpm import EK_PROFILES, EkProfile, TpmAttester
from agent.config import Settings
from agent.deadline import Deadline
from broker.claims import Binding, Claims, Endorsements, Trusted
from broker.trace import Trace
from broker.verifiers.tpm import TpmVerifier, make_challenge
from keys.binding import activation_proof_key
from keys.errors import VerificationError
from keys.messages import Challenge, ResourcePath, TpmCredential
from tests.fakes.boot import Boot
from tests.fakes.ek_ca import EkCa
from tests.fakes.swtpm import SoftwareTpm
from tests.needs import needs_swtpm

pytestmark = needs_swtpm

CA = EkCa()
DATA = bytes(range(48))
PATH = ResourcePath("owner", "disk", "root")


def flow(tpm: SoftwareTpm, log: Path, boot: Boot, report_data: bytes = DATA) -> Claims:
    """Boot, declare, challenge, activate, quote, verify."""
    tpm.measure_boot(boot, log)
    secret = os.urandom(32)
    with TpmAttester(Settings(tpm=tpm.address, eventlog=str(log)), Deadline(10)) as attester:
        declaration = attester.request(PATH).tpm
        assert declaration is not None
        credential = TpmCredential(*make_challenge(declaration._asdict(), secret, os.urandom))
        evidence = attester.evidence(DATA, attester.accept(Challenge("nonce", credential)))
    verifier, trace = TpmVerifier(), Trace()
    endorsements = Endorsements(
        trusted=Trusted(roots=(CA.root,)), activation=activation_proof_key(secret), session=declaration._asdict()
    )
    claims = verifier.verify(verifier.decode(evidence), endorsements, Binding(report_data), datetime.now(UTC), trace)
    assert not trace.failed
    return claims


@pytest.mark.parametrize("profile", EK_PROFILES, ids=lambda profile: f"{profile.certificate_index:08x}")
def test_a_measured_boot(profile: EkProfile, tmp_path: Path) -> None:
    """A certified TPM's quote is genuine, its log explains the PCRs, and the next boot of another kernel shows."""
    with SoftwareTpm(tmp_path / "tpm") as tpm:
        tpm.manufacture(CA, profile)
        first = flow(tpm, tmp_path / "log", Boot())
        assert first.trust == "ek-certificate"
        assert first.facts["secure_boot"] is True
        assert "\\EFI\\debian\\vmlinuz.efi" in {event.what for event in first.events}
        tpm.reset()
        second = flow(tpm, tmp_path / "log2", Boot(kernel=b"another kernel"))
    assert second.instance_ids == first.instance_ids
    assert second.measurements["sha256:4"] != first.measurements["sha256:4"]
    assert second.measurements["sha256:7"] == first.measurements["sha256:7"]
    assert second.facts["reset_count"] == int(first.facts["reset_count"] or 0) + 1


def test_a_quote_for_another_challenge(tmp_path: Path) -> None:
    """A real TPM's quote does not answer another challenge."""
    with SoftwareTpm(tmp_path / "tpm") as tpm:
        tpm.manufacture(CA)
        with pytest.raises(VerificationError, match="answers this challenge"):
            flow(tpm, tmp_path / "log", Boot(), DATA[::-1])
