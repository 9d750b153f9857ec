# SPDX-License-Identifier: Apache-2.0
"""Images: what an owner says a good guest looks like, as reference values (RFC 9334).

    platform = "tpm"
    description = "Debian 12, kernel 6.1.0-31"

    [tpm]
    bank = "sha256"

    [tpm.pcrs]
    0 = "5f3a..."                     # the value, or a list of the values that are all right
    7 = ["9c1d...", "77aa..."]

    [[tpm.events]]                    # instead of a value, or beside one that it must then lead to:
    pcr = 4                           # the exact sequence of digests that leads to PCR 4
    digests = [
      { digest = "ab12...", type = "EV_EFI_BOOT_SERVICES_APPLICATION", what = "\\\\EFI\\\\debian\\\\shimx64.efi" },
    ]

`type` and `what` only explain. `start_locality` (0, 3 or 4) belongs beside the events of PCR 0 where the machine starts
from another locality than 0. What cannot protect a key is refused when the image is loaded, with what would mend it:

 (1) no PCR at all, or a bank with SHA-1
 (2) PCRs that prove nothing: 16 and 23 (anybody resets them), 10 (needs a policy for IMA), 17 to 22 (DRTM)
 (3) neither PCR 4 nor PCR 7: without those it is open what booted, and who wrote the later PCRs; and PCR 7 without
     PCR 4 where its events say that Secure Boot was off, so that it admits every loader
 (4) a PCR 0 to 7 that is still zero: that machine does not measure its boot
 (5) events that do not lead to the stated value
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from broker import tomltext
from keys import strictjson
from keys.errors import ProtocolError
from keys.tee import Tee

MAX_IMAGE_CHARS = 200 * 1024
MAX_DESCRIPTION_CHARS = 500
MAX_VALUES = 64  # allowed values of one PCR
MAX_EVENTS = 1024  # events of one PCR
MAX_WHAT_CHARS = 400

BANKS = {"sha256": 32, "sha384": 48, "sha512": 64}  # bytes of a digest
LOCALITIES = (0, 3, 4)  # TCG PC Client Platform Firmware Profile: StartupLocality
PURPOSES = (
    "firmware code",
    "firmware configuration",
    "option ROM code",
    "option ROM configuration",
    "boot applications",
    "partition table, boot configuration",
    "manufacturer's",
    "Secure Boot state and keys",
    "boot loader commands, kernel command line, init-data",
    "files read by the boot loader, initrd",
    "IMA",
    "unified kernel image, boot phases",
    "command line overrides, credentials",
    "system extensions",
    "MOK lists",
    "machine id, volume keys, file systems",
    "debug",
    "DRTM",
    "DRTM",
    "DRTM",
    "DRTM",
    "DRTM",
    "DRTM",
    "application",
)  # of PCR 0 to 23

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


class ExpectedEvent(NamedTuple):
    """One event on the way to a register's value: its digest in lower-case hex, and what an owner calls it."""

    digest: str
    type: str = ""
    what: str = ""


@dataclass(frozen=True, slots=True)
class Register:
    """`values`: all that are allowed, lower-case hex. `events`: the sequence that leads to one of them, or empty."""

    values: tuple[str, ...]
    events: tuple[ExpectedEvent, ...] = ()


@dataclass(frozen=True, slots=True)
class Image:
    """`registers` by the names that claims use for them ("sha256:4"), ascending."""

    platform: Tee
    description: str
    registers: Mapping[str, Register]

    def to_body(self) -> dict[str, Any]:
        return {
            "platform": str(self.platform),
            "description": self.description,
            "registers": {
                name: {"values": list(register.values), "events": [list(event) for event in register.events]}
                for name, register in self.registers.items()
            },
        }

    @classmethod
    def from_body(cls, body: Mapping[str, Any]) -> Image:
        """What `to_body` wrote; other members are left alone. Only the store's bodies come here."""
        return cls(
            Tee(body["platform"]),
            body["description"],
            {
                name: Register(tuple(item["values"]), tuple(ExpectedEvent(*event) for event in item["events"]))
                for name, item in body["registers"].items()
            },
        )


def parse_image(text: str) -> Image:
    """The image that an owner wrote in TOML. Raises ProtocolError that says what would mend it."""
    if len(text) > MAX_IMAGE_CHARS:
        raise ProtocolError("the image is too long", expected=f"at most {MAX_IMAGE_CHARS} characters")
    image = strictjson.members(
        tomltext.loads(text, name="the image"),
        name="the image",
        required=frozenset(("platform", "tpm")),
        optional=frozenset(("description",)),
    )
    if image["platform"] != Tee.TPM:
        raise ProtocolError("images of this platform are not supported", expected=Tee.TPM, found=str(image["platform"]))
    description = strictjson.string(image.get("description", ""), name="description", max_chars=MAX_DESCRIPTION_CHARS)
    tpm = strictjson.members(
        image["tpm"], name="tpm", required=frozenset(("bank",)), optional=frozenset(("pcrs", "events"))
    )
    return Image(Tee.TPM, description, _registers(tpm))


def replay(bank: str, digests: Iterable[str], start_locality: int = 0) -> str:
    """The register's value in hex after extending it with `digests` (hex) in order, from its value at start-up."""
    value = bytes(BANKS[bank] - 1) + bytes((start_locality,))
    for digest in digests:
        value = hashlib.new(bank, value + bytes.fromhex(digest)).digest()
    return value.hex()


def register_index(name: str) -> int:
    """4 for "sha256:4"."""
    return int(name.partition(":")[2])


def _registers(tpm: Mapping[str, Any]) -> dict[str, Register]:
    bank = tpm["bank"]
    if bank not in BANKS:  # (1)
        mend = "use the bank sha256" if bank == "sha1" else ""
        raise ProtocolError("tpm.bank is not usable", expected=", ".join(BANKS), found=str(bank)[:64], mend=mend)
    values = _values(tpm.get("pcrs", {}), bank)
    events = _events(tpm.get("events", []), bank)
    indices = sorted(values.keys() | events.keys())
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
        allowed = values.get(index, (led_to,))
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
    result = {}
    for name, value in pcrs.items():
        if name not in {str(index) for index in range(len(PURPOSES))}:
            raise ProtocolError("tpm.pcrs names no PCR", expected="0 to 23", found=name[:64])
        allowed = value if isinstance(value, list) else [value]
        if not 1 <= len(allowed) <= MAX_VALUES:
            raise ProtocolError(f"PCR {name} needs a value or a list of them", expected=f"1 to {MAX_VALUES} values")
        result[int(name)] = tuple(_digest(item, bank, f"PCR {name}") for item in allowed)
    return result


def _events(tables: object, bank: str) -> dict[int, tuple[tuple[ExpectedEvent, ...], str]]:
    """For each PCR its events and the value that they lead to."""
    if not isinstance(tables, list):
        raise ProtocolError("tpm.events must be [[tpm.events]] tables")
    result: dict[int, tuple[tuple[ExpectedEvent, ...], str]] = {}
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
        _digest(members["digest"], bank, name),
        strictjson.string(members.get("type", ""), name=f"{name}: type", max_chars=64),
        strictjson.string(members.get("what", ""), name=f"{name}: what", max_chars=MAX_WHAT_CHARS),
    )


def _digest(value: object, bank: str, name: str) -> str:
    """Lower-case hex of exactly the bank's length; tools print either case."""
    text = value.lower() if isinstance(value, str) else ""
    if len(text) != 2 * BANKS[bank] or not set(text) <= set("0123456789abcdef"):
        raise ProtocolError(
            f"{name} is not a {bank} digest", expected=f"{2 * BANKS[bank]} hex digits", found=str(value)[:64]
        )
    return text
