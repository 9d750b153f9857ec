# SPDX-License-Identifier: Apache-2.0
"""The [tpm] part of an image: reference values of PCRs, or the events that lead to them.

What cannot protect a key is refused, with what would mend it:

 (1) no PCR at all, or a bank with SHA-1
 (2) PCRs that prove nothing: 16 and 23 (anybody resets them), 10 (needs a policy for IMA), 17 to 22 (DRTM)
 (3) neither PCR 4 nor PCR 7: without those it is open what booted, and who wrote the later PCRs; and PCR 7 without
     PCR 4 where its events say that Secure Boot was off, so that it admits every loader
 (4) a PCR 0 to 7 that is still zero: that machine does not measure its boot
 (5) events that do not lead to the stated value
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from functools import partial

from broker.appraisal.registers import PURPOSES, ExpectedEvent, Register, digest, values
from keys import strictjson
from keys.errors import ProtocolError

MAX_EVENTS = 1024  # events of one PCR
MAX_WHAT_CHARS = 400

BANKS = {"sha256": 32, "sha384": 48, "sha512": 64}  # bytes of a digest
LOCALITIES = (0, 3, 4)  # TCG PC Client Platform Firmware Profile: StartupLocality

_ANCHORS = frozenset((4, 7))
_SECURE_BOOT_OFF = tuple(  # UEFI_VARIABLE_DATA of the variable SecureBoot, with no value or 0
    bytes.fromhex("61dfe48bca93d211aa0d00e098032b8c 0a00000000000000")
    + len(value).to_bytes(8, "little")
    + "SecureBoot".encode("utf-16-le")
    + value
    for value in (b"", b"\0")
)
_MEASURED_BOOT = frozenset(range(8))
_USELESS = {
    10: "PCR 10 grows with every file that IMA measures; without a policy for IMA no value of it stays right",
    16: "anybody in the guest can reset PCR 16",
    23: "anybody in the guest can reset PCR 23",
} | {index: f"PCR {index} belongs to a dynamic launch (DRTM), which is not judged yet" for index in range(17, 23)}


def read_tpm(table: object, *, banks: Collection[str] = tuple(BANKS), events: bool = True) -> dict[str, Register]:
    """The registers of [tpm], ascending. `banks` and `events`: what the platform's evidence has. Raises
    ProtocolError.
    """
    tpm = strictjson.members(
        table,
        name="tpm",
        required=frozenset(("bank",)),
        optional=frozenset(("pcrs", "events") if events else ("pcrs",)),
    )
    bank = tpm["bank"]
    if bank not in banks:  # (1)
        mend = "use the bank sha256" if bank == "sha1" else ""
        raise ProtocolError("tpm.bank is not usable", expected=", ".join(banks), found=str(bank)[:64], mend=mend)
    return _registers(_values(tpm.get("pcrs", {}), bank), _events(tpm.get("events", []), bank), bank)


def replay(bank: str, digests: Iterable[str], start_locality: int = 0) -> str:
    """The register's value in hex after extending it with `digests` (hex) in order, from its value at start-up."""
    value = bytes(BANKS[bank] - 1) + bytes((start_locality,))
    for step in digests:
        value = hashlib.new(bank, value + bytes.fromhex(step)).digest()
    return value.hex()


_Steps = tuple[tuple[ExpectedEvent, ...], str]  # the events of a PCR and the value that they lead to


def _registers(given: Mapping[int, tuple[str, ...]], events: Mapping[int, _Steps], bank: str) -> dict[str, Register]:
    indices = sorted(given.keys() | events.keys())
    if not indices:
        raise ProtocolError("the image names no PCR", mend="name at least PCR 4 or PCR 7 under [tpm.pcrs]")
    for index in indices:  # (2)
        if index in _USELESS:
            raise ProtocolError(f"PCR {index} cannot be in an image", found=_USELESS[index], mend="leave it out")
    if not _ANCHORS & set(indices):  # (3)
        raise ProtocolError(
            "the image proves nothing without PCR 4 or PCR 7",
            found="any program that boots can show the same values",
            mend="add PCR 4, or PCR 7 where Secure Boot admits only loaders that you trust",
        )
    off = {hashlib.new(bank, data).hexdigest() for data in _SECURE_BOOT_OFF}
    if 4 not in indices and any(step.digest in off for step in events.get(7, ((), ""))[0]):
        raise ProtocolError(
            "PCR 7 proves nothing without PCR 4: Secure Boot was off",
            found="any loader boots with the same value",
            mend="add PCR 4, or switch Secure Boot on and enrol the image again",
        )
    registers = {}
    for index in indices:
        steps, led_to = events.get(index, ((), ""))
        allowed = given.get(index, (led_to,))
        if led_to and led_to not in allowed:  # (5)
            raise ProtocolError(
                f"the events of PCR {index} do not lead to its value",
                expected=" or ".join(allowed),
                found=led_to,
                mend="enrol the image again, or remove the value or the events",
            )
        if index in _MEASURED_BOOT and any(set(value) == {"0"} for value in allowed):  # (4)
            raise ProtocolError(
                f"PCR {index} is zero: the machine does not measure its boot",
                mend="leave it out, or switch measured boot on in the firmware",
            )
        registers[f"{bank}:{index}"] = Register(allowed, steps)
    return registers


def _values(pcrs: object, bank: str) -> dict[int, tuple[str, ...]]:
    if not isinstance(pcrs, dict):
        raise ProtocolError("tpm.pcrs must be a table")
    parse = partial(digest, size=BANKS[bank], what=f"{bank} digest")
    result = {}
    for name, value in pcrs.items():
        if name not in {str(index) for index in range(len(PURPOSES))}:
            raise ProtocolError("tpm.pcrs names no PCR", expected="0 to 23", found=name[:64])
        result[int(name)] = values(value, f"PCR {name}", parse)
    return result


def _events(tables: object, bank: str) -> dict[int, _Steps]:
    if not isinstance(tables, list):
        raise ProtocolError("tpm.events must be [[tpm.events]] tables")
    result: dict[int, _Steps] = {}
    for table in tables:
        members = strictjson.members(
            table,
            name="tpm.events",
            required=frozenset(("pcr", "digests")),
            optional=frozenset(("start_locality",)),
        )
        index, locality, digests = members["pcr"], members.get("start_locality", 0), members["digests"]
        if type(index) is not int or index not in range(len(PURPOSES)):
            raise ProtocolError("tpm.events names no PCR", expected="pcr = 0 to 23", found=str(index)[:64])
        if index in result:
            raise ProtocolError(f"the events of PCR {index} are given twice")
        if type(locality) is not int or locality not in LOCALITIES or (locality and index):
            raise ProtocolError("start_locality is not one", expected="0, 3 or 4, and only for PCR 0")
        if not isinstance(digests, list) or not 1 <= len(digests) <= MAX_EVENTS:
            raise ProtocolError(f"PCR {index} needs a list of digests", expected=f"1 to {MAX_EVENTS} events")
        steps = tuple(_event(item, bank, f"an event of PCR {index}") for item in digests)
        result[index] = steps, replay(bank, (step.digest for step in steps), locality)
    return result


def _event(item: object, bank: str, name: str) -> ExpectedEvent:
    members = strictjson.members(item, name=name, required=frozenset(("digest",)), optional=frozenset(("type", "what")))
    return ExpectedEvent(
        digest(members["digest"], name, size=BANKS[bank], what=f"{bank} digest"),
        strictjson.string(members.get("type", ""), name=f"{name}: type", max_chars=64),
        strictjson.string(members.get("what", ""), name=f"{name}: what", max_chars=MAX_WHAT_CHARS),
    )
