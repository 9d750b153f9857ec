# SPDX-License-Identifier: Apache-2.0
"""broker.verifiers.offline: an evidence file judged with what is at hand, or not judged at all."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.trace import Verdict
from broker.verifiers.offline import MAX_FILE_BYTES, Judgement, judge
from keys import b64
from keys.errors import ConfigError
from tests.fakes import tpm_forge as forge
from tests.fakes.boot import Boot
from tests.fakes.ek_ca import EkCa
from tests.fakes.tpm_guest import FakeTpm

AT = datetime.now(UTC)
DATA = bytes(range(48))
CA = EkCa()


class AkCa(EkCa):
    """The same authority, whose certificates are of attestation keys."""

    def certify(self, ek: Any) -> x509.Certificate:
        made = super().certify(ek)
        builder = x509.CertificateBuilder(made.issuer, made.subject, ek, made.serial_number)
        uses = dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
                              "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"), False)  # fmt: skip
        return (
            builder.not_valid_before(made.not_valid_before_utc)
            .not_valid_after(made.not_valid_after_utc)
            .add_extension(x509.KeyUsage(digital_signature=True, **uses), critical=True)
            .sign(self._key, made.signature_hash_algorithm)  # type: ignore[arg-type]
        )


AK_CA = AkCa("Roomkey test cloud")
TPM = FakeTpm()
TPM.boot(Boot())
FILE = {"tee": "tpm", "evidence": TPM.evidence(DATA), "report_data": b64.std(DATA)}
STOCK = {"tee": "tpm", "evidence": TPM.stock_evidence(DATA), "report_data": b64.std(DATA)}
NAME = {"ak_name": TPM.ak_name.hex()}
LEAF = AK_CA.certify(TPM._ak.public_key()).public_bytes(Encoding.DER)
MIDDLE = AK_CA.intermediate.public_bytes(Encoding.PEM)


def run(
    file: object = FILE,
    expect: dict[str, str] | None = None,
    *,
    endorsements: list[bytes] | None = None,
    roots: list[bytes] | None = None,
    tee: str = "tpm",
    at: datetime = AT,
) -> Judgement:
    data = file if isinstance(file, bytes) else json.dumps(file).encode()
    return judge(tee, data, endorsements or [], roots or [], at, NAME if expect is None else expect)


def failed(judgement: Judgement) -> str:
    """The name of the one check that failed."""
    assert judgement.verdict is Verdict.FAILED
    (check,) = judgement.trace.failed
    return check.name


def test_key_that_the_caller_names() -> None:
    """Evidence of the named key is genuine, and its trust says that the caller vouched."""
    claims, trace, verdict = run()
    assert verdict is Verdict.PASSED
    assert claims is not None
    assert (claims.trust, claims.facts["secure_boot"]) == ("expected", True)
    assert not trace.failed
    assert run(expect={"ak_name": TPM.ak_name.hex().upper()}).verdict is Verdict.PASSED


def test_another_key_than_the_named() -> None:
    """Evidence of another key is refused."""
    judgement = run(expect={"ak_name": FakeTpm().ak_name.hex()})
    assert (failed(judgement), judgement.claims) == ("another attestation key", None)


def test_key_with_a_certificate() -> None:
    """A certificate of the key that leads to a trusted root is an anchor, in DER or PEM, in any order."""
    judgement = run(expect={}, endorsements=[MIDDLE, LEAF], roots=[AK_CA.root_pem])
    assert judgement.verdict is Verdict.PASSED
    assert judgement.claims is not None
    assert judgement.claims.trust == "ak-certificate"


@pytest.mark.parametrize(
    ("endorsements", "root", "message"),
    [
        ([MIDDLE], AK_CA, "no endorsement is a certificate of the attestation key"),
        ([LEAF], AK_CA, "no configured root vouches for this certificate"),
        ([LEAF, MIDDLE], CA, "no configured root vouches for this certificate"),
        ([CA.certify(TPM._ak.public_key()).public_bytes(Encoding.DER), MIDDLE], CA, "not an AK certificate"),
    ],
    ids=["another key's", "no intermediate", "another root", "an EK's"],
)
def test_certificates_that_do_not_vouch(endorsements: list[bytes], root: EkCa, message: str) -> None:
    """A certificate that is not the key's, of another use, or that leads elsewhere refuses the evidence."""
    assert failed(run(expect={}, endorsements=endorsements, roots=[root.root_pem])) == message


def test_certificate_at_another_time() -> None:
    """Certificates are judged at the given time."""
    late = AT + timedelta(days=20_000)
    judgement = run(expect={}, endorsements=[LEAF, MIDDLE], roots=[AK_CA.root_pem], at=late)
    assert failed(judgement) == "a certificate is not valid at this time"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tee": "sev"}, "platform cannot be judged"),
        ({"expect": {}}, "whose attestation key"),
        ({"expect": {}, "endorsements": [LEAF]}, "whose attestation key"),
        ({"expect": {}, "roots": [AK_CA.root_pem]}, "whose attestation key"),
        ({"expect": {}, "endorsements": [TPM.ak_public], "roots": [AK_CA.root_pem]}, "whose attestation key"),
        ({"endorsements": [b"something"]}, "neither a certificate nor"),
        ({"endorsements": [b"\x30\x00"]}, "neither a certificate nor"),
        ({"roots": [b"\x30\x00"]}, "root cannot be read"),
        ({"file": {"tee": "tpm", "evidence": FILE["evidence"]}}, "which challenge"),
        ({"expect": {**NAME, "report_data": "xyz"}}, "not hex"),
        ({"file": STOCK}, "lacks the attestation key's attributes"),
        ({"file": STOCK, "endorsements": [FakeTpm().ak_public]}, "lacks the attestation key's attributes"),
    ],
)
def test_what_cannot_be_judged(options: dict[str, Any], message: str) -> None:
    """Without an anchor, a challenge or a readable endorsement there is no verdict."""
    with pytest.raises(ConfigError, match=message):
        run(**options)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        (b"{", "evidence file is not strict JSON: Expecting property name enclosed in double quotes at character 1"),
        (b" " * (MAX_FILE_BYTES + 1), "evidence file is too long"),
        ({"tee": "tpm"}, "evidence file lacks a member"),
        ({**FILE, "more": 1}, "evidence file has an unknown member"),
        ({**FILE, "evidence": {}}, "TPM evidence lacks a member"),
        ({**FILE, "report_data": "A" * 100}, "report_data is too long"),
        ({**FILE, "tee": "snp"}, "file is of this platform"),
        ({**FILE, "instance": 1}, "instance must be a JSON object"),
        ({**FILE, "instance": {"ek_public": "*"}}, "ek_public is not standard base64"),
        ({**FILE, "instance": {"ek_public": "AAAA"}}, "TPMT_PUBLIC is not an RSA or ECC key"),
        ({**FILE, "evidence": {**FILE["evidence"], "ak_public": "AAAA"}}, "TPMT_PUBLIC is not an RSA or ECC key"),
        ({**FILE, "report_data": b64.std(DATA[::-1])}, "quote answers this challenge (extraData)"),
    ],
)
def test_files_that_are_refused(file: object, name: str) -> None:
    """A file that is malformed, of another platform or about another challenge is refused, with the reason."""
    judgement = run(file)
    assert failed(judgement) == name
    assert judgement.claims is None


def test_file_of_the_agent() -> None:
    """The file may describe the machine and carry an activation proof; neither is needed nor in the way."""
    certified = FakeTpm(CA)
    file = {
        **FILE,
        "evidence": {**FILE["evidence"], "activation": b64.std(bytes(32))},
        "instance": {
            "ak_public": "AAAA",
            "ak_name": "00",
            "ek_public": b64.std(certified.ek_public),
            "ek_certificates": [],
        },
    }
    assert run(file).verdict is Verdict.PASSED
    assert run({**FILE, "instance": {"ek_public": None, "ek_certificates": []}}).verdict is Verdict.PASSED


def test_evidence_of_a_stock_guest() -> None:
    """A stock guest's evidence is judged with the key's public area as an endorsement."""
    judgement = run(STOCK, endorsements=[TPM.ak_public])
    assert judgement.verdict is Verdict.PASSED
    assert judgement.claims is not None
    assert judgement.claims.instance_ids == (f"tpm-ak:{TPM.ak_name.hex()}",)


def test_key_below_an_endorsement_key() -> None:
    """A key below an EK is genuine where the EK's public area is at hand, from the file or from the caller."""
    public, parent = forge.public_area(forge.ec_key()), forge.storage_area(forge.ec_key(which=3))
    quote = forge.Quote(forge.ec_key(), qualified_signer=forge.signer(public, forge.signer(parent)))
    evidence = {
        "ak_public": b64.std(public),
        "attest": b64.std(quote.attest()),
        "signature": b64.std(quote.signature()),
        "pcrs": {bank: {str(i): v.hex() for i, v in values.items()} for bank, values in quote.values.items()},
    }
    file = {"tee": "tpm", "evidence": evidence, "report_data": b64.std(DATA)}
    expect = {"ak_name": forge.name(public).hex()}
    assert failed(run(file, expect)) == "attestation key lives in the endorsement hierarchy"
    assert run(file, expect, endorsements=[public, parent]).verdict is Verdict.PASSED
    assert run({**file, "instance": {"ek_public": b64.std(parent)}}, expect).verdict is Verdict.PASSED


def test_expected_claims() -> None:
    """Expectations are compared with facts, registers, report data and trust, without regard to letter case."""
    expect = {
        **NAME,
        "sha256:4": TPM.pcrs[4].hex().upper(),
        "secure_boot": "True",
        "clock": str(run().claims.facts["clock"]),  # type: ignore[union-attr]
        "report_data": DATA.hex(),
        "trust": "expected",
    }
    judgement = run(expect=expect)
    assert judgement.verdict is Verdict.PASSED
    assert [check.name for check in judgement.trace.checks[-len(expect) :]] == [
        f"{name} is as expected" for name in expect
    ]


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("sha256:4", "00" * 32, TPM.pcrs[4].hex()),
        ("secure_boot", "false", "true"),
        ("sha1:4", "00" * 20, "no such claim"),
        ("init_data", "None", "no such claim"),
        ("trust", "ek-certificate", "expected"),
    ],
)
def test_expectations_that_are_not_met(name: str, value: str, found: str) -> None:
    """Genuine evidence with another claim than expected, or without it, does not pass; its claims are shown."""
    judgement = run(expect={**NAME, name: value})
    assert failed(judgement) == f"{name} is as expected"
    assert judgement.trace.failed[0].found == found
    assert judgement.claims is not None


def test_expected_challenge_overrides_the_file() -> None:
    """What the caller expects decides about the challenge, not what the file says about itself."""
    other = {**FILE, "report_data": b64.std(DATA[::-1])}
    assert run(other, {**NAME, "report_data": DATA.hex()}).verdict is Verdict.PASSED
    assert failed(run(expect={**NAME, "report_data": DATA[::-1].hex()})).startswith("quote answers this challenge")


@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_changed_files_raise_only_our_error(data: st.DataObject) -> None:
    """A file with changed bytes is judged, refused, or cannot be judged; nothing else happens."""
    raw = bytearray(json.dumps(FILE).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with suppress(ConfigError):
        run(bytes(raw))


def test_p384_certificate_key_is_compared() -> None:
    """A certificate of a key on another curve is not the attestation key's."""
    other = AK_CA.certify(ec.generate_private_key(ec.SECP384R1()).public_key()).public_bytes(Encoding.DER)
    assert "no endorsement is a certificate" in failed(run(expect={}, endorsements=[other], roots=[AK_CA.root_pem]))
