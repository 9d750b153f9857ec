# SPDX-License-Identifier: Apache-2.0
"""Long fuzzing of every parser that reads bytes from outside, from valid inputs and a fixed seed."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from agent import eventlog as agent_eventlog
from broker import initdata
from broker.appraisal.images import parse_image
from broker.appraisal.instances import parse_instance
from broker.appraisal.rules import parse_rule
from broker.tokens import TokenSigner
from broker.verifiers import eventlog, eventlog_rules, ima, offline, tpm_structures, x509
from broker.verifiers.tpm import TpmVerifier
from keys import jwe, jwk, strictjson
from keys.errors import RoomkeyError, VerificationError
from keys.messages import Attestation, Challenge, InitData, Request, ResourcePath
from tests.fakes.boot import Boot, event_log
from tests.fakes.ek_ca import EkCa
from tests.fakes.house import claims_of, draft
from tests.fakes.tpm_guest import FakeTpm, Guest

ROUNDS = 20_000  # mutants of each input
SLOWEST_SECONDS = 2.0  # for one mutant; a bound on runaway work, far above what any of them takes
NOW = 1_800_000_000_000

CA = EkCa()
TPM = FakeTpm(CA)
TPM.boot(Boot())
GUEST = Guest(TPM, declare=True)
ATTEST, SIGNATURE = TPM.quote(bytes(32))
WRAPPED = jwe.seal(b"a key", GUEST.tee_pubkey)
SIGNER = TokenSigner([ec.generate_private_key(ec.SECP256R1())], issuer="i", audience="a", lifetime_s=300)

_IMA_FIELDS = (b"sha256:\0" + b"\xcd" * 32, b"/usr/bin/true\0")
_IMA_DIGEST = hashlib.sha1(  # noqa: S324  the list's own digests are SHA-1
    b"".join(len(field).to_bytes(4, "little") + field for field in _IMA_FIELDS)
).hexdigest()
IMA_LIST = f"10 {_IMA_DIGEST} ima-ng sha256:{'cd' * 32} /usr/bin/true\n".encode()
RULE = 'images = ["a"]\nplatforms = ["tpm"]\ninstances = ["any"]\n'
INIT_DATA = 'version = "0.1.0"\nalgorithm = "sha256"\n[data]\n"a" = "b"\n'


def _json(value: object) -> bytes:
    return strictjson.compact(value)


def _text(parse: Callable[[str], object]) -> Callable[[bytes], object]:
    return lambda data: parse(data.decode("utf-8", "replace"))


def _value(parse: Callable[[object], object]) -> Callable[[bytes], object]:
    return lambda data: parse(strictjson.loads(data, name="it", max_bytes=1 << 20))


def _log(data: bytes) -> object:
    return eventlog_rules.judge_log(eventlog.parse_log(data))


def _offline(data: bytes) -> None:
    """Its verdict as an error, like all the others'."""
    at = datetime(2026, 6, 1, tzinfo=UTC)
    if offline.judge("tpm", data, [], [], at, {"ak_name": TPM.ak_name.hex()}).claims is None:
        raise VerificationError("refused")


INPUTS: dict[str, tuple[bytes, Callable[[bytes], object]]] = {
    "TPMS_ATTEST": (ATTEST, tpm_structures.parse_attest),
    "TPMT_SIGNATURE": (SIGNATURE, tpm_structures.parse_signature),
    "TPMT_PUBLIC": (TPM.ek_public, tpm_structures.parse_public),
    "event log": (event_log(TPM.events), _log),
    "event log, the agent's reader": (event_log(TPM.events), lambda data: agent_eventlog.replay(data, 0x000B)),
    "IMA list": (IMA_LIST * 3, ima.parse_ima),
    "certificate": (CA.root.public_bytes(Encoding.DER), x509.load_certificate),
    "/auth": (_json(GUEST.request(ResourcePath("a", "b", "c")).to_json()), Request.from_bytes),
    "/auth's answer": (_json(Challenge("n" * 44).to_json()), Challenge.from_bytes),
    "/attest": (_json(GUEST.attestation(Challenge("n" * 44)).to_json()), Attestation.from_bytes),
    "evidence": (_json(TPM.evidence(bytes(48))), _value(TpmVerifier().decode)),
    "stock evidence": (_json(TPM.stock_evidence(bytes(48))), _value(TpmVerifier().decode)),
    "evidence file": (_json({"tee": "tpm", "evidence": TPM.evidence(bytes(48)), "report_data": "AAAA" * 16}), _offline),
    "tee-pubkey": (_json(GUEST.tee_pubkey.members), _value(jwk.parse)),
    "JWE": (_json(WRAPPED), _value(lambda value: jwe.unseal(value, GUEST.key))),  # type: ignore[arg-type]
    "token": (SIGNER.issue({}, token_id="d-x", now=NOW).encode(), _text(lambda text: SIGNER.verify(text, NOW))),
    "image": (draft(TPM).encode(), _text(parse_image)),
    "rule": (RULE.encode(), _text(parse_rule)),
    "instance": (
        _json({"ak_public": _json(TPM.evidence(bytes(48))["ak_public"]).decode().strip('"')}),
        _value(parse_instance),
    ),
    "init-data": (INIT_DATA.encode(), _text(lambda text: initdata.digest(InitData("toml", text)))),
}


def mutants(data: bytes, seed: str) -> Iterator[bytes]:
    """Bytes near `data`: bits flipped, pieces cut, doubled, overwritten with what breaks lengths."""
    dice = random.Random(seed)
    for _ in range(ROUNDS):
        piece = bytearray(data)
        for _ in range(dice.choice((1, 1, 1, 2, 4, 16))):
            at = dice.randrange(len(piece) + 1)
            match dice.randrange(6):
                case 0 if at < len(piece):
                    piece[at] ^= 1 << dice.randrange(8)
                case 1:
                    del piece[at : at + dice.choice((1, 2, 4, 64))]
                case 2:
                    piece[at:at] = piece[at : at + dice.choice((1, 8, 64))]
                case 3:
                    piece[at : at + 4] = dice.choice(
                        (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\x01")
                    )
                case 4:
                    piece[at : at + 1] = dice.choice(
                        (b'"', b"{", b"[", b"]", b",", b"\\", b"\n", b"9", b"-", b"e", b"\xed\xa0\x80")
                    )
                case _:
                    del piece[at:]
        yield bytes(piece)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@pytest.mark.filterwarnings("ignore:Attribute's length must be:UserWarning")
@pytest.mark.parametrize("name", INPUTS)
def test_mutants_are_read_or_refused(name: str) -> None:
    """Whatever is done to a valid input, its reader takes it or raises one of our errors, quickly."""
    data, read = INPUTS[name]
    read(data)
    refused, slowest = 0, 0.0
    for mutant in mutants(data, name):
        began = time.perf_counter()
        try:
            read(mutant)
        except RoomkeyError:
            refused += 1
        slowest = max(slowest, time.perf_counter() - began)
    assert refused > ROUNDS // 10
    assert slowest < SLOWEST_SECONDS


def test_the_measured_state_is_the_fake_one() -> None:
    """The inputs are what they are called: the fuzzed image is the fuzzed TPM's."""
    assert parse_image(draft(TPM)).registers["sha256:4"].values == (claims_of(TPM).measurements["sha256:4"],)
