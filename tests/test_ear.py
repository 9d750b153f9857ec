# SPDX-License-Identifier: Apache-2.0
"""The attestation result: complete, where others look for it, and never better than what was judged."""

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from broker.appraisal.ear import FLOORS, PROFILE, VERIFIER_ID, ear_claims, policy_id, status
from broker.claims import Claims
from broker.verifiers.registry import VERIFIERS
from broker.verifiers.snp_floors import Floors
from keys.binding import report_data
from keys.messages import Attestation
from keys.tee import Tee
from tests.fakes.amd import AT, Chip, FakeAmd
from tests.fakes.house import House
from tests.fakes.snp_guest import SnpGuest
from tests.fakes.tpm_guest import FakeTpm, Guest

GUEST = Guest(FakeTpm())
MESSAGE = Attestation("bm9uY2U=", GUEST.tee_pubkey, {})
CLAIMS = Claims(
    Tee.TPM,
    ("tpm-ek:01", "tpm-ak:02"),
    "ek-certificate",
    {"sha256:4": "aa" * 32, "sha256:11": "bb" * 32, "sha384:4": "cc" * 48},
    facts={"ak_name": "02", "clock": 7},
)


def test_the_guests_key_is_where_a_stock_kbs_looks() -> None:
    """The key that the evidence is bound to is in the annotated evidence and in cnf, the nonce beside it."""
    claims = ear_claims(CLAIMS, MESSAGE)
    evidence = claims["submods"]["cpu0"]["ear.veraison.annotated-evidence"]
    assert evidence["runtime_data_claims"] == {
        "nonce": MESSAGE.nonce,
        "tee-pubkey": GUEST.tee_pubkey.members,
        "additional-evidence": "",
    }
    assert claims["cnf"] == {"jwk": GUEST.tee_pubkey.members}
    assert claims["eat_nonce"] == MESSAGE.nonce
    assert evidence["report_data"] == report_data(Tee.TPM, MESSAGE.nonce, GUEST.tee_pubkey.members).hex()


def test_what_was_measured_is_under_the_platforms_name() -> None:
    """Facts, identity and the SHA-256 PCRs stand under "tpm", PCRs as pcrNN; other banks do not pass for them."""
    evidence = ear_claims(CLAIMS, MESSAGE)["submods"]["cpu0"]["ear.veraison.annotated-evidence"]
    assert evidence["tpm"] == {
        "ak_name": "02",
        "clock": 7,
        "pcr04": "aa" * 32,
        "pcr11": "bb" * 32,
        "trust": "ek-certificate",
        "instance_ids": ["tpm-ek:01", "tpm-ak:02"],
    }
    assert "init_data" not in evidence


def test_posted_init_data_is_in_the_result() -> None:
    """A digest that the verifier compared is passed on."""
    evidence = ear_claims(replace(CLAIMS, init_data="dd"), MESSAGE)["submods"]["cpu0"][
        "ear.veraison.annotated-evidence"
    ]
    assert evidence["init_data"] == "dd"


@pytest.mark.parametrize(
    ("trust", "hardware", "overall"), [("ek-certificate", 2, "warning"), ("enrolled", 97, "contraindicated")]
)
def test_the_result_approves_of_nothing_that_was_not_judged(trust: str, hardware: int, overall: str) -> None:
    """No owner has approved the measurements yet: executables are unrecognised, and the status is never affirming."""
    cpu = ear_claims(replace(CLAIMS, trust=trust), MESSAGE)["submods"]["cpu0"]
    assert cpu["ear.trustworthiness-vector"] == {"instance-identity": 2, "executables": 33, "hardware": hardware}
    assert cpu["ear.status"] == overall


def test_profile_policy_and_verifier_are_named() -> None:
    """The spelling's profile, the version of this verifier, and the floors by name and hash are in the result."""
    claims = ear_claims(CLAIMS, MESSAGE)
    assert claims["eat_profile"] == PROFILE
    assert claims["ear.verifier-id"] == VERIFIER_ID
    assert claims["submods"]["cpu0"]["ear.appraisal-policy-id"] == policy_id(Tee.TPM)
    assert policy_id(Tee.TPM).startswith("roomkey-tpm-floors-1 sha256:")


def test_the_verifiers_version_is_the_distributions() -> None:
    """The build that the token names is the version in pyproject.toml."""
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text("utf-8"))["project"]
    assert VERIFIER_ID["build"] == f"{project['name']} {project['version']}"


def test_every_judged_platform_has_floors() -> None:
    """No platform gets a verifier without a statement of what it must fulfil."""
    assert set(VERIFIERS) <= set(FLOORS)


SNP = Claims(
    Tee.SNP,
    ("snp-chip:01",),
    "vcek",
    {"measurement": "aa" * 48, "host_data": "00" * 32},
    facts={"policy_debug_allowed": False, "reported_tcb_snp": 24},
)


def annotated(claims: Claims) -> dict[str, object]:
    evidence = ear_claims(claims, MESSAGE)["submods"]["cpu0"]["ear.veraison.annotated-evidence"]
    shown: dict[str, object] = evidence[str(claims.tee)]
    return shown


def test_a_reports_fields_stand_under_their_names() -> None:
    """Measurements and facts of a report are where a stock KBS's policies look for them, with their types."""
    assert annotated(SNP) == {
        "measurement": "aa" * 48,
        "host_data": "00" * 32,
        "policy_debug_allowed": False,
        "reported_tcb_snp": 24,
        "trust": "vcek",
        "instance_ids": ["snp-chip:01"],
    }


def test_pcrs_beside_a_report_stand_under_tpm() -> None:
    """On Azure the PCRs are below "tpm", so that no name of the report's can be taken for one of theirs."""
    azure = replace(SNP, tee=Tee.AZ_SNP_VTPM, measurements=dict(SNP.measurements) | {"sha256:4": "bb" * 32})
    assert annotated(azure)["tpm"] == {"pcr04": "bb" * 32}
    assert annotated(azure)["measurement"] == "aa" * 48
    assert "pcr04" not in annotated(azure)


@pytest.mark.parametrize("tee", [Tee.SNP, Tee.AZ_SNP_VTPM])
@pytest.mark.parametrize(
    ("trust", "hardware"), [("vcek", 2), ("vlek", 2), ("vcek-named", 97), ("vlek-named", 97), ("ek-certificate", 97)]
)
def test_hardware_that_counts_by_name_only_is_not_called_genuine(tee: Tee, trust: str, hardware: int) -> None:
    """AMD's word is enough on lines that nobody can forge, and nobody else's word is enough on this platform."""
    vector = ear_claims(replace(SNP, tee=tee, trust=trust), MESSAGE)["submods"]["cpu0"]["ear.trustworthiness-vector"]
    assert vector["hardware"] == hardware


@pytest.mark.parametrize("tee", [Tee.SNP, Tee.AZ_SNP_VTPM])
def test_the_policys_hash_covers_the_operators_floors(tee: Tee) -> None:
    """No floors are the strict default; any other floor makes another policy, also in the token."""
    other = Floors(min_guest_svn=1)
    assert policy_id(tee) == policy_id(tee, Floors()) != policy_id(tee, other)
    token = ear_claims(replace(SNP, tee=tee), MESSAGE, other)["submods"]["cpu0"]
    assert token["ear.appraisal-policy-id"] == policy_id(tee, other)
    assert policy_id(Tee.SNP) != policy_id(Tee.AZ_SNP_VTPM)


def test_a_guests_token_names_the_floors_that_held(tmp_path: Path) -> None:
    """The broker's own token has the policy of the floors that its operator set."""
    floors = Floors(min_guest_svn=0, max_vmpl=1)
    with House(tmp_path) as house:
        house.now = int(AT.timestamp() * 1000)
        house.services = replace(house.services, trusted={Tee.SNP: FakeAmd().trusted(floors)})
        _, token = house.attest(SnpGuest(Chip(FakeAmd())))
        cpu = house.services.tokens.verify(token, house.now)["submods"]["cpu0"]
    assert cpu["ear.appraisal-policy-id"] == policy_id(Tee.SNP, floors) != policy_id(Tee.SNP)
    assert cpu["ear.trustworthiness-vector"]["hardware"] == 2


@pytest.mark.parametrize(
    ("values", "tier"),
    [
        ([], "none"), ([-1], "none"), ([0], "none"), ([1], "none"),
        ([2], "affirming"), ([31], "affirming"), ([-2], "affirming"), ([-32], "affirming"),
        ([32], "warning"), ([95], "warning"), ([-33], "warning"), ([-96], "warning"),
        ([96], "contraindicated"), ([127], "contraindicated"), ([-97], "contraindicated"), ([-128], "contraindicated"),
        ([2, 33], "warning"), ([2, 97, 33], "contraindicated"), ([0, 2], "affirming"),
    ],
)  # fmt: skip
def test_the_status_is_the_worst_tier(values: list[int], tier: str) -> None:
    """AR4SI's ranges, both signs, and the worst of several decides."""
    assert status({str(index): value for index, value in enumerate(values)}) == tier
