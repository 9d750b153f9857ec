# SPDX-License-Identifier: Apache-2.0
"""How recorded SEV and SEV-ES evidence is judged: AMD's certificates, and known answers of a launch.

Known answers are no list of entries; they become entries here, named as their negatives name them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from broker.trace import Trace
from broker.verifiers import sev_launch
from broker.verifiers.sev_certificates import (
    Ca,
    Chain,
    SevCertificate,
    Usage,
    parse_ca,
    parse_certificate,
    verify_ark,
    verify_ca,
    verify_platform,
)
from keys import sev_packet
from keys.errors import VerificationError
from keys.sev_packet import LaunchKeys
from keys.tee import Tee
from tests.conformance.kinds import ClaimDiffersError, Kind, compare
from tests.conformance.manifest import BadEntryError, Case, Section

TEES = frozenset((Tee.SEV,))
SIGNERS = {
    Usage.CEK: {Usage.ASK},
    Usage.OCA: {Usage.OCA},
    Usage.PEK: {Usage.OCA, Usage.CEK},
    Usage.PDH: {Usage.PEK},
}


# --- certificates ---------------------------------------------------------------------------------------------------


def judge_ca_chain(case: Case) -> None:
    ca = _ca(case)
    numbers = ca.ark.key.public_numbers()
    bits = numbers.n.bit_length()
    claims = {
        "version": int.from_bytes(ca.ark.raw[:4], "little"),
        "modulus_bits": bits,
        "hash": "SHA-256" if bits == 2048 else "SHA-384",
        "exponent": numbers.e,
        "ark_key_id": ca.ark.key_id.hex(),
        "ask_key_id": ca.ask.key_id.hex(),
        "ark_modulus_sha256": hashlib.sha256(numbers.n.to_bytes(bits // 8, "big")).hexdigest(),
        "ark_spki_sha256": ca.ark.spki_sha256,
    }
    compare(case, claims)


def judge_ca_certificate(case: Case) -> None:
    """One CA certificate alone: an ARK signs itself, of an ASK there is nothing more to see than its form."""
    for name in case.files:
        certificate = parse_ca(case.bytes(name))
        if certificate.usage is Usage.ARK:
            _same("product", case.origin.get("product"), verify_ark(certificate))


def judge_platform_chain(case: Case) -> None:
    chain = Chain(*(case.bytes(name) for name in ("pdh", "pek", "oca", "cek")))
    verify_platform(chain, [_ca(case)], Trace())
    found = {
        usage: parse_certificate(case.bytes(usage.name.lower()), usage, signers=SIGNERS[usage]) for usage in SIGNERS
    }
    compare(case, {usage.name.lower(): _claims(certificate) for usage, certificate in found.items()})


def _ca(case: Case) -> Ca:
    ca = verify_ca(parse_ca(case.bytes("ark")), parse_ca(case.bytes("ask")))
    product = case.origin.get("product")
    if product is not None and product != ca.generation:
        raise VerificationError("the CA is another generation's", expected=str(product), found=ca.generation)
    return ca


def _claims(certificate: SevCertificate) -> dict[str, Any]:
    return {
        "usage": f"{certificate.usage:#x}",
        "algo": f"{certificate.algorithm:#x}",
        "api": "{}.{}".format(*certificate.api),
        "curve": {"secp384r1": "P-384"}[certificate.key.curve.name],
        "signers": [usage.name for usage in certificate.slots],
        "sha256": hashlib.sha256(certificate.raw).hexdigest(),
    }


# --- known answers --------------------------------------------------------------------------------------------------


def judge_session(case: Case) -> None:
    answer, given = case.origin, case.origin["inputs"]
    shared, nonce, iv = (_unhex(given, name) for name in ("ecdh_shared_secret", "nonce", "iv"))
    master = sev_launch.derive(shared, b"sev-master-secret", nonce)
    keys = LaunchKeys(_unhex(given, "tek"), _unhex(given, "tik"))
    blob = sev_launch.session_blob(shared, keys, int.from_bytes(_unhex(given, "policy"), "little"), nonce, iv)
    found = {
        "master": master,
        "kek": sev_launch.derive(master, b"sev-kek"),
        "kik": sev_launch.derive(master, b"sev-kik"),
        "wrap_tk": blob[16:48],
        "wrap_mac": blob[64:96],
        "policy_mac": blob[96:128],
        "session_blob_128_bytes": blob,
    }
    for name, value in found.items():
        _same(name, answer[name], value.hex())


def judge_measure(case: Case) -> None:
    answer = dict(case.origin)
    if case.entry is not case.origin:
        _change(answer, str(case.entry.get("name")))
    blob = _unhex(answer, "measure") + _unhex(answer, "mnonce")
    measurement = sev_launch.parse_measurement(
        blob, api=(answer["api_major"], answer["api_minor"]), build=answer["build_id"]
    )
    policy, digest = int(str(answer["policy"]), 16), str(answer["launch_digest"])
    if sev_launch.fitting_digest(_unhex(answer, "tik"), measurement, policy, [digest]) != digest:
        raise VerificationError("the measurement is not that of the launch digest")


def judge_secret(case: Case) -> None:
    answer = case.origin
    entries = [(UUID(entry["guid"]), _unhex(entry, "data_hex")) for entry in answer["secrets"]]
    table = sev_packet.secret_table(entries)
    keys = LaunchKeys(_unhex(answer, "tek"), _unhex(answer, "tik"))
    packet = sev_packet.encrypt(table, keys, _unhex(answer, "launch_measure"), _unhex(answer, "iv"))
    for name, value in (("table_hex", table), ("header_hex", packet.header), ("payload_hex", packet.data)):
        _same(name, answer[name], value.hex())


_KNOWN = {"session": judge_session, "launch_measure": judge_measure, "launch_secret": judge_secret}
_MEMBERS = {"nonce": "mnonce", "tik": "tik", "measure": "measure", "digest": "launch_digest"}
_FLIPPED = re.compile(r"one (?:launch )?(\w+) bit flipped\Z")
_ANOTHER = re.compile(r"another (?:launch )?(\w+)\Z")
_NUMBER = re.compile(r"(policy|build_id|api_major|api_minor) (0x[0-9a-f]+|[0-9]+)(?: in place of \S+)?\Z")


def _change(answer: dict[str, Any], name: str) -> None:
    """What the words of a negative say: "launch_measure[1] with build_id 41"."""
    words = name.partition(" with ")[2]
    if match := _NUMBER.match(words):
        answer[match[1]] = match[2] if match[1] == "policy" else int(match[2], 0)
        return
    match = _FLIPPED.match(words) or _ANOTHER.match(words)
    member = None if match is None else _MEMBERS.get(match[1].lower())
    if member is None:
        raise BadEntryError(f"{words!r} cannot be understood")
    value = bytearray(_unhex(answer, member))
    value[0] ^= 1
    answer[member] = value.hex()


def _answers(value: Any) -> list[dict[str, Any]]:
    entries = []
    for what in _KNOWN.keys() & value.keys() if isinstance(value, dict) else ():
        listed = value[what] if isinstance(value[what], list) else [value[what]]
        names = [f"{what}[{at}]" for at in range(len(listed))] if isinstance(value[what], list) else [what]
        entries += [
            {"name": name, "kind": f"sev-{what}", "expect": "valid", **one}
            for name, one in zip(names, listed, strict=True)
        ]
    return sorted(entries, key=lambda entry: str(entry["name"]))


def _negatives(value: Any) -> list[dict[str, Any]]:
    return [{"base": str(entry["name"]).partition(" with ")[0], **entry} for entry in value]


def _unhex(holder: Mapping[str, Any], name: str) -> bytes:
    try:
        return bytes.fromhex(str(holder[name]))
    except (KeyError, ValueError) as error:
        raise BadEntryError(f"{name} is not hex") from error


def _same(what: str, expected: object, found: object) -> None:
    if expected != found:
        raise ClaimDiffersError(f"{what}: expected {expected!r:.200}, found {found!r:.200}")


KINDS: Mapping[str, Kind] = {
    "sev-ca-chain": Kind(frozenset({"ark"}), judge_ca_chain, TEES),
    "sev-ca-cert": Kind(frozenset({"ark", "ask"}), judge_ca_certificate, TEES),
    "sev-platform-chain": Kind(frozenset({"cek"}), judge_platform_chain, TEES),
    **{f"sev-{what}": Kind(frozenset(), judge, TEES) for what, judge in _KNOWN.items()},
}
SECTIONS: Mapping[str, Section] = {"known_answers": _answers, "known_answer_negatives": _negatives}
