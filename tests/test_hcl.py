# SPDX-License-Identifier: Apache-2.0
"""broker.verifiers.hcl: Azure's HCL report, its runtime data, and what binds the two."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.verifiers.hcl import (
    MAX_HCL_BYTES,
    Hardware,
    HclReport,
    check_binding,
    parse_hcl,
    read_runtime_data,
)
from keys import b64
from keys.errors import VerificationError
from tests.fakes import tpm_forge as forge
from tests.fakes.az_guest import CONFIGURATION, HASHES, compact, digest, hcl_report, jwk, runtime_data
from tests.vectors import VECTORS, needs_vectors

AK = jwk("HCLAkPub", forge.rsa_key())
EK = jwk("HCLEkPub", forge.rsa_key())
USER_DATA = bytes(range(0xC0, 0x100))
RUNTIME = runtime_data([AK, EK], user_data=USER_DATA)
REAL = ("azure/hcl-report-snp.bin", "azure/hcl-report-tdx.bin", "snp/evidence/genoa-v3-azure-hcl.bin")


def snp(runtime: bytes = RUNTIME, hash_type: int = 1) -> bytes:
    """A hardware report of SEV-SNP, of which only REPORT_DATA matters here."""
    return (b"\x03" + bytes(0x4F) + digest(runtime, hash_type)).ljust(1184, b"\x07")


def tdx(runtime: bytes = RUNTIME) -> bytes:
    return (b"\x81" + bytes(127) + digest(runtime)).ljust(1024, b"\x07")


GOOD = hcl_report(snp(), RUNTIME)


def runtime_refused(data: bytes, message: str) -> None:
    with pytest.raises(VerificationError, match=message) as caught:
        read_runtime_data(data)
    assert caught.type is VerificationError


def test_parts() -> None:
    """The parts come out as they went in, in both header versions and from an NV area with or without padding."""
    for version, tail in ((2, None), (1, None), (2, b""), (2, bytes(4))):
        parsed = parse_hcl(hcl_report(snp(), RUNTIME, version=version, tail=tail))
        assert parsed == HclReport(version, Hardware.SNP, snp(), 1, RUNTIME)
        assert parsed.report_data == parsed.expected_report_data == digest(RUNTIME)
        check_binding(parsed)


def test_parts_of_tdx() -> None:
    """A TDREPORT is 1024 bytes and has REPORTDATA in another place."""
    parsed = parse_hcl(hcl_report(tdx(), RUNTIME, hardware=4))
    assert parsed == HclReport(2, Hardware.TDX, tdx(), 1, RUNTIME)
    check_binding(parsed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"magic": b"HCLB"}, "signature is not allowed"),
        ({"version": 0}, "version is not allowed"),
        ({"version": 3}, "version is not allowed"),
        ({"report_size": len(GOOD)}, "sizes is not allowed"),
        ({"request": 1}, "request type is not allowed"),
        ({"status": 1}, "status is not allowed"),
        ({"reserved": bytes(11) + b"\1"}, "holds something reserved"),
        ({"data_size": 20 + len(RUNTIME) + 1}, "sizes is not allowed"),
        ({"data_version": 2}, "version of runtime data is not allowed"),
        ({"hardware": 3}, "hardware report type is not allowed"),
        ({"hash_type": 0}, "hash type is not allowed"),
        ({"hash_type": 4}, "hash type is not allowed"),
        ({"size": len(RUNTIME) - 1}, "sizes is not allowed"),
        ({"size": 0x7FFFFFFF}, "sizes is not allowed"),
        ({"size": 3000, "data_size": 3020, "report_size": 4236}, "cut short"),
        ({"tail": bytes(7) + b"\1"}, "holds something behind the runtime data"),
        ({"tail": bytes(MAX_HCL_BYTES)}, "too long"),
    ],
    ids=str,
)
def test_parts_that_are_refused(options: dict[str, Any], message: str) -> None:
    """Every field has to be what it can be, and every size what is there."""
    with pytest.raises(VerificationError, match=message):
        parse_hcl(hcl_report(snp(), RUNTIME, **options))


def test_nothing_behind_a_tdreport() -> None:
    """Bytes behind a TDREPORT, where SEV-SNP's report would go on, are refused."""
    with pytest.raises(VerificationError, match="behind the hardware report"):
        parse_hcl(hcl_report(tdx() + bytes(159) + b"\1", RUNTIME, hardware=4))


@pytest.mark.parametrize("length", [0, 3, 31, 32, 1215, 1216, 1235, 1236, 1236 + len(RUNTIME) - 1])
def test_cut_short(length: int) -> None:
    """A report that ends anywhere before its runtime data do is refused."""
    with pytest.raises(VerificationError, match="cut short"):
        parse_hcl(GOOD[:length])


# --- runtime data ---------------------------------------------------------------------------------------------------


def test_runtime_data() -> None:
    """Key, names, configuration and user data come out; the AK's id is the SHA-256 of its SubjectPublicKeyInfo."""
    runtime = read_runtime_data(RUNTIME)
    spki = forge.rsa_key().public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert runtime.ak == forge.rsa_key().public_key()
    assert runtime.ak_id == f"az-ak:{sha256(spki).hexdigest()}"
    assert runtime.keys == ("HCLAkPub", "HCLEkPub")
    assert runtime.configuration == CONFIGURATION
    assert runtime.user_data == USER_DATA
    assert runtime.facts == {
        "azure_console_enabled": True,
        "azure_root_cert_thumbprint": CONFIGURATION["root-cert-thumbprint"],
        "azure_secure_boot": True,
        "azure_tpm_enabled": True,
        "azure_tpm_persisted": True,
        "azure_vm_unique_id": CONFIGURATION["vmUniqueId"],
    }


def test_runtime_data_of_an_older_and_a_newer_paravisor() -> None:
    """User data may be missing or in lower case; members that are not known are left alone and are no facts."""
    old = {"keys": [AK], "vm-configuration": {"secure-boot": False, "current-time": 1678652405}}
    runtime = read_runtime_data(compact(old))
    assert runtime.user_data is None
    assert runtime.facts == {"azure_secure_boot": False, "azure_current_time": 1678652405}
    new = {**old, "user-data": USER_DATA.hex(), "more": [1], "vm-configuration": {"new-switch": True}}
    runtime = read_runtime_data(compact(new))
    assert (runtime.user_data, runtime.facts) == (USER_DATA, {})


@pytest.mark.parametrize("bits", [3072, 4096])
def test_longer_keys(bits: int) -> None:
    """An AK of another size that TPMs have is read."""
    key = forge.rsa_key(bits)
    assert read_runtime_data(runtime_data([jwk("HCLAkPub", key)])).ak == key.public_key()


def with_modulus(change: Callable[[int], int]) -> dict[str, Any]:
    n = change(forge.rsa_key().public_key().public_numbers().n)
    return {**AK, "n": b64.url(n.to_bytes((n.bit_length() + 7) // 8, "big"))}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (None, "keys must be a list"),
        ({}, "keys must be a list"),
        ([AK] * 17, "keys must be a list"),
        ([], "must have one HCLAkPub"),
        ([EK], "must have one HCLAkPub"),
        ([AK, AK], "must have one HCLAkPub"),
        ([AK, 1], "a key must be a JSON object"),
        ([{"kty": "RSA"}], "kid must be a string"),
        ([{"kid": "k" * 129}], "kid is too long"),
        ([{**AK, "kty": "EC"}], "HCLAkPub is not allowed"),
        ([{**AK, "e": "Aw"}], "HCLAkPub is not allowed"),
        ([{**AK, "e": "AQABAQABAQAB"}], "HCLAkPub.e is too long"),
        ([{**AK, "n": AK["n"] + "="}], "HCLAkPub.n is not"),
        ([{**AK, "n": "A" * 700}], "HCLAkPub.n is too long"),
        ([{"kid": "HCLAkPub", "kty": "RSA", "e": "AQAB"}], "HCLAkPub.n must be"),
        ([with_modulus(lambda n: n >> 1 | 1)], "HCLAkPub is not allowed"),
        ([with_modulus(lambda n: n >> 1024 | 1)], "HCLAkPub is not allowed"),
        ([with_modulus(lambda n: n - 1)], "HCLAkPub is not allowed"),
    ],
    ids=range(18),
)
def test_keys_that_are_refused(keys: Any, message: str) -> None:
    """There is one attestation key, and it is an RSA key of a size and exponent that TPMs have."""
    runtime_refused(runtime_data(keys), message)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"vm-configuration": None}, "vm-configuration must be"),
        ({"vm-configuration": {"secure-boot": "true"}}, "secure-boot has another type"),
        ({"vm-configuration": {"secure-boot": 1}}, "secure-boot has another type"),
        ({"vm-configuration": {"vmUniqueId": None}}, "vmUniqueId has another type"),
        ({"vm-configuration": {"vmUniqueId": "x" * 129}}, "vmUniqueId is too long"),
        ({"vm-configuration": {"current-time": True}}, "current-time has another type"),
        ({"user-data": None}, "user-data must be a string"),
        ({"user-data": "00" * 63}, "user-data must be hex"),
        ({"user-data": "00" * 65}, "user-data is too long"),
        ({"user-data": "0g" + "00" * 63}, "user-data must be hex"),
        ({"user-data": "00" * 63 + "0\n"}, "user-data must be hex"),
    ],
    ids=str,
)
def test_members_that_are_refused(members: dict[str, Any], message: str) -> None:
    """What would become a fact or be compared has its type, and no more."""
    runtime_refused(runtime_data([AK], members), message)


def test_runtime_data_is_strict_json() -> None:
    """A member that appears twice, text that is no JSON, and JSON that is no object are refused."""
    runtime_refused(RUNTIME.replace(b'{"keys"', b'{"keys":[],"keys"', 1), "a member appears twice")
    runtime_refused(RUNTIME + b" {}", "not strict JSON")
    runtime_refused(RUNTIME[:-1], "not strict JSON")
    runtime_refused(b"\xff" + RUNTIME, "not strict JSON")
    runtime_refused(b"[]", "must be a JSON object")


# --- binding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hash_type", sorted(HASHES))
def test_binding(hash_type: int) -> None:
    """REPORT_DATA is the hash that the report names, over the bytes as they are, and zeros; one bit more is refused."""
    parsed = parse_hcl(hcl_report(snp(RUNTIME, hash_type), RUNTIME, hash_type=hash_type))
    check_binding(parsed)
    for at in (0x50, 0x50 + 63):
        report = bytearray(snp(RUNTIME, hash_type))
        report[at] ^= 1
        with pytest.raises(VerificationError, match="not the hash of the runtime data"):
            check_binding(parse_hcl(hcl_report(bytes(report), RUNTIME, hash_type=hash_type)))


def test_binding_of_other_runtime_data() -> None:
    """Neither other bytes of the same JSON nor another hash bind; nor does one platform's report pass for another's."""
    spaced = json.dumps(json.loads(RUNTIME)).encode()
    for raw in (
        hcl_report(snp(), spaced),
        hcl_report(snp(), RUNTIME, hash_type=2),
        hcl_report(tdx(), RUNTIME),
        hcl_report(snp()[:1024], RUNTIME, hardware=4),
    ):
        with pytest.raises(VerificationError, match="not the hash of the runtime data"):
            check_binding(parse_hcl(raw))


# --- real reports, and anything -------------------------------------------------------------------------------------


@needs_vectors
@pytest.mark.parametrize("path", REAL)
def test_real_reports(path: str) -> None:
    """Real HCL reports of three generations are read and are bound."""
    parsed = parse_hcl((VECTORS / path).read_bytes())
    check_binding(parsed)
    assert read_runtime_data(parsed.runtime_data).ak.key_size == 2048


@given(raw=st.binary(max_size=2048))
@settings(max_examples=100, deadline=None)
def test_any_bytes_raise_only_our_error(raw: bytes) -> None:
    """Whatever the bytes are, they are parsed or refused as bad evidence."""
    with suppress(VerificationError):
        parse_hcl(raw)
    with suppress(VerificationError):
        parse_hcl(GOOD[:1216] + raw)
    with suppress(VerificationError):
        read_runtime_data(raw)


@given(at=st.integers(0, len(GOOD) - 1), mask=st.integers(1, 255))
@settings(max_examples=200, deadline=None)
def test_a_changed_byte(at: int, mask: int) -> None:
    """A changed byte is refused unless it lies in the hardware report, whose own signature covers it."""
    raw = bytearray(GOOD)
    raw[at] ^= mask
    with suppress(VerificationError):
        parsed = parse_hcl(bytes(raw))
        check_binding(parsed)
        version = 4 <= at < 8
        assert version or (32 <= at < 1216 and not 112 <= at < 176)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["kid", "n", "e", *CONFIGURATION]), inner)
    ),
    max_leaves=6,
)


@given(value=JSON, name=st.sampled_from(["keys", "vm-configuration", "user-data"]))
@settings(max_examples=150, deadline=None)
def test_any_json_raises_only_our_error(value: Any, name: str) -> None:
    """Whatever JSON value stands anywhere, the runtime data are read or refused as bad evidence."""
    for data in (compact(value), runtime_data([AK], {name: value}), runtime_data([AK | {"n": value}])):
        with suppress(VerificationError):
            read_runtime_data(data)
