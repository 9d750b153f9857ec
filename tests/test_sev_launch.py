# SPDX-License-Identifier: Apache-2.0
"""A launch session and its packet: known answers, and the processor's side understands what the broker makes."""

from __future__ import annotations

import hashlib
import json
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.trace import Trace
from broker.verifiers import sev_launch
from broker.verifiers.sev_certificates import Usage, parse_certificate, verify_platform
from broker.verifiers.sev_launch import (
    DOMAIN,
    ES,
    NODBG,
    NOKS,
    NOSEND,
    SEV,
    STRICT_POLICY,
    Session,
    fitting_digest,
    make_session,
    parse_measurement,
    policy_of,
)
from keys import sev_packet
from keys.errors import ProtocolError
from keys.sev_packet import DISK_PASSPHRASE, MAX_SECRET_BYTES, LaunchKeys
from tests.fakes.sev import FakePlatform, FakeSev, FirmwareError, ec_key
from tests.vectors import VECTORS, needs_vectors

AMD = FakeSev()
PLATFORM = FakePlatform(AMD)
KEYS = LaunchKeys(tek=bytes(range(16)), tik=bytes(range(16, 32)))
IMAGE = b"firmware"
DIGEST = hashlib.sha256(IMAGE).hexdigest()
POLICY = STRICT_POLICY | ES


def session(keys: LaunchKeys = KEYS, policy: int = POLICY) -> Session:
    pdh = verify_platform(PLATFORM.chain, [AMD.ca], Trace()).pdh.key
    return make_session(keys, policy, ephemeral=ec_key(), pdh=pdh, nonce=b"n" * 16, iv=b"v" * 16)


# --- known answers ---


@needs_vectors
def test_known_answers() -> None:
    """Session, measurements and packets are byte for byte what other tools made of the same inputs."""
    answers = json.loads((VECTORS / "sev" / "manifest.json").read_text())["known_answers"]
    of = bytes.fromhex
    given_, answer = answers["session"]["inputs"], answers["session"]
    keys = LaunchKeys(of(given_["tek"]), of(given_["tik"]))
    blob = sev_launch.session_blob(of(given_["ecdh_shared_secret"]), keys, 0, of(given_["nonce"]), of(given_["iv"]))
    assert blob.hex() == answer["session_blob_128_bytes"]
    for one in answers["launch_measure"]:
        measurement = parse_measurement(
            of(one["measure"] + one["mnonce"]), api=(one["api_major"], one["api_minor"]), build=one["build_id"]
        )
        digests = ["00" * 32, one["launch_digest"], "ff" * 32]
        assert fitting_digest(of(one["tik"]), measurement, int(one["policy"], 16), digests) == one["launch_digest"]
    for one in answers["launch_secret"]:
        table = sev_packet.secret_table([(UUID(item["guid"]), of(item["data_hex"])) for item in one["secrets"]])
        assert table.hex() == one["table_hex"]
        packet = sev_packet.encrypt(
            table, LaunchKeys(of(one["tek"]), of(one["tik"])), of(one["launch_measure"]), of(one["iv"])
        )
        assert (packet.header.hex(), packet.data.hex()) == (one["header_hex"], one["payload_hex"])


# --- session ---


def test_the_processor_reads_the_session() -> None:
    """What the processor takes out of a session are TEK and TIK, and the certificate is one that it takes."""
    made = session()
    assert (len(made.godh), len(made.blob)) == (2084, 128)
    launched = PLATFORM.launch_start(made.godh, made.blob, POLICY)
    assert (launched._tek, launched._tik) == (KEYS.tek, KEYS.tik)
    assert parse_certificate(made.godh, Usage.PDH, signers=set()).api == (0, 0)


def test_a_session_is_for_one_processor_and_one_policy() -> None:
    """Another processor cannot open it, and the host cannot take a bit from the policy or add one."""
    made = session()
    with pytest.raises(FirmwareError, match="session"):
        FakePlatform(AMD).launch_start(made.godh, made.blob, POLICY)
    for bit in range(32):
        with pytest.raises(FirmwareError, match="policy"):
            PLATFORM.launch_start(made.godh, made.blob, POLICY ^ 1 << bit)


def test_the_policy() -> None:
    """The strict policy forbids debugging, key sharing and sending; API versions stand in the upper half."""
    assert (NODBG, NOKS, ES, NOSEND, DOMAIN, SEV) == (1, 2, 4, 8, 16, 32)
    assert STRICT_POLICY == 0x3B
    assert policy_of(STRICT_POLICY | ES, (1, 49)) == 0x3101003F


@pytest.mark.parametrize(
    ("tek", "tik", "nonce", "iv"), [(15, 16, 16, 16), (16, 17, 16, 16), (16, 16, 12, 16), (16, 16, 16, 0)]
)
def test_a_session_of_wrong_parts(tek: int, tik: int, nonce: int, iv: int) -> None:
    """Parts of another length are our own mistake and give no session."""
    with pytest.raises(RuntimeError):
        sev_launch.session_blob(bytes(48), LaunchKeys(bytes(tek), bytes(tik)), 0, bytes(nonce), bytes(iv))


# --- measurement ---


def test_a_measurement_fits_its_digest_and_no_other() -> None:
    """Of several digests the launched one is found, wherever it stands; every number under the HMAC counts."""
    made = session()
    blob = PLATFORM.launch_start(made.godh, made.blob, POLICY).update(IMAGE).measure()
    right = parse_measurement(blob, api=(1, 49), build=6)
    for digests in ([DIGEST], ["00" * 32, DIGEST], [DIGEST, "00" * 32]):
        assert fitting_digest(KEYS.tik, right, POLICY, digests) == DIGEST
    assert fitting_digest(KEYS.tik, right, POLICY, []) is None
    assert fitting_digest(KEYS.tik, right, POLICY, ["00" * 32]) is None
    assert fitting_digest(KEYS.tik, right, POLICY ^ 1, [DIGEST]) is None
    assert fitting_digest(KEYS.tek, right, POLICY, [DIGEST]) is None
    for api, build in (((2, 49), 6), ((1, 50), 6), ((1, 49), 7)):
        assert fitting_digest(KEYS.tik, parse_measurement(blob, api=api, build=build), POLICY, [DIGEST]) is None


@given(at=st.integers(0, 47), mask=st.integers(1, 255))
def test_every_byte_of_a_measurement_counts(at: int, mask: int) -> None:
    """A measurement with any byte of HMAC or nonce changed fits nothing."""
    right = parse_measurement(bytes(48), api=(1, 49), build=6)
    blob = bytearray(sev_launch.measure(KEYS.tik, right, POLICY, bytes.fromhex(DIGEST)) + right.mnonce)
    assert fitting_digest(KEYS.tik, parse_measurement(bytes(blob), api=(1, 49), build=6), POLICY, [DIGEST]) == DIGEST
    blob[at] ^= mask
    assert fitting_digest(KEYS.tik, parse_measurement(bytes(blob), api=(1, 49), build=6), POLICY, [DIGEST]) is None


@pytest.mark.parametrize(
    ("size", "api", "build"),
    [(47, (1, 49), 6), (49, (1, 49), 6), (0, (1, 49), 6), (48, (256, 0), 6), (48, (1, -1), 6), (48, (1, 49), 256)],
)
def test_a_measurement_of_wrong_parts(size: int, api: tuple[int, int], build: int) -> None:
    """Another length, or a number that is no byte, is refused as malformed."""
    with pytest.raises(ProtocolError):
        parse_measurement(bytes(size), api=api, build=build)


# --- packet ---


@given(st.binary(max_size=MAX_SECRET_BYTES))
def test_the_guest_finds_what_the_owner_stored(secret: bytes) -> None:
    """Every key that fits arrives as it is, under the GUID of a disk's passphrase."""
    made = session()
    guest = PLATFORM.launch_start(made.godh, made.blob, POLICY).update(IMAGE)
    packet = sev_packet.seal(secret, KEYS, guest.measure()[:32], b"i" * 16)
    guest.inject(packet.header, packet.data)
    assert guest.secret("736869e5-84f0-4973-92ec-06879ce3da0b") == secret
    assert len(packet.data) % 16 == 0
    assert len(packet.header) == 52


def test_a_packet_is_for_one_guest() -> None:
    """A second guest from the same session, with the same keys, image and policy, cannot take it."""
    made = session()
    first, second = (PLATFORM.launch_start(made.godh, made.blob, POLICY).update(IMAGE) for _ in range(2))
    packet = sev_packet.seal(b"secret", KEYS, first.measure()[:32], b"i" * 16)
    with pytest.raises(FirmwareError, match="packet"):
        second.inject(packet.header, packet.data)
    for at in range(len(packet.header)):
        header = bytearray(packet.header)
        header[at] ^= 1
        with pytest.raises(FirmwareError):
            first.inject(bytes(header), packet.data)
    first.inject(packet.header, packet.data)


def test_what_does_not_fit_is_never_sent() -> None:
    """A table beyond the firmware's area, or a part of another length, is our own mistake and gives no packet."""
    sev_packet.seal(bytes(MAX_SECRET_BYTES), KEYS, bytes(32), bytes(16))
    with pytest.raises(RuntimeError):
        sev_packet.seal(bytes(MAX_SECRET_BYTES + 1), KEYS, bytes(32), bytes(16))
    for table, measure, iv in ((15, 32, 16), (16, 31, 16), (16, 32, 12)):
        with pytest.raises(RuntimeError):
            sev_packet.encrypt(bytes(table), KEYS, bytes(measure), bytes(iv))


def test_a_table_of_several_secrets() -> None:
    """Entries follow each other, and the length leaves the padding out."""
    other = UUID("736869e5-aaaa-4973-92ec-06879ce3da0b")
    table = sev_packet.secret_table([(DISK_PASSPHRASE, b"one"), (other, b"two!")])
    assert len(table) == 80
    assert int.from_bytes(table[16:20], "little") == 20 + 23 + 24
    assert table[20:36] == DISK_PASSPHRASE.bytes_le


def test_no_key_in_words() -> None:
    """TEK and TIK are in no text that a log could hold."""
    assert repr(KEYS) == "LaunchKeys()"
