# SPDX-License-Identifier: Apache-2.0
"""The JSON of a LUKS2 header: does what it describes protect what is on the volume? Pure.

LUKS2 On-Disk Format 1.1.1, section 3. The host writes the header, so what is not known here is refused, by name:

 (1) the five objects and no other; the sizes of JSON and keyslots area that the binary header has room for
 (2) no flags, nothing required, nothing under way (a reencryption)
 (3) one segment, of type crypt, behind the keyslots area, with exactly an allowed cipher, and if it has integrity tags
     then HMAC-SHA-256 and nothing of the journal left out
 (4) every keyslot holds a passphrase's key for that segment's cipher, is itself encrypted with an allowed cipher, lies
     in the keyslots area and over no other, and costs no more than a bound to open
 (5) one digest, which binds the volume key of all these keyslots to that segment
 (6) tokens of known types only, for keyslots that are there. No token is ever used here

The pin is what stays the same when passphrases come and go: the segment, and the digest of the volume key. A volume
with another pin is another volume, whatever key opens it.
"""

from __future__ import annotations

import hashlib
import re
from itertools import pairwise
from typing import Any, NamedTuple, NoReturn

from keys import b64, strictjson
from keys.errors import ProtocolError

CIPHER = "aes-xts-plain64"
INTEGRITY_CIPHERS = (CIPHER, "aes-xts-random")  # the latter has its IV in the tag
KEY_BYTES = 64  # of AES-256 in XTS, two keys
TAG_KEY_BYTES = 32  # of HMAC-SHA-256, behind them
SECTORS = (512, 1024, 2048, 4096)  # bytes
STRIPES = 4000  # of the anti-forensic splitter
HASHES = {"sha256": 32, "sha512": 64}  # bytes
BLOCK = 4096  # bytes; areas begin and end at multiples of it
MAX_SALT_BYTES = 64
MIN_ITERATIONS, MAX_ITERATIONS = 1000, 10_000_000  # of PBKDF2; the most takes some 5 s
MAX_MEMORY_KIB, MAX_TIME, MAX_CPUS = 1 << 20, 64, 4  # of Argon2id: 1 GiB, passes, lanes
MAX_KEYSLOTS = MAX_TOKENS = 32
TOKENS = frozenset(("roomkey", "clevis", "systemd-recovery", "systemd-tpm2", "systemd-fido2", "systemd-pkcs11"))
INTEGRITY = {"type": "hmac(sha256)", "journal_encryption": "none", "journal_integrity": "none"}

_OBJECTS = frozenset(("keyslots", "tokens", "segments", "digests", "config"))
_SEGMENT = frozenset(("type", "offset", "size", "iv_tweak", "encryption", "sector_size"))
_KEYSLOT = frozenset(("type", "key_size", "af", "area", "kdf"))
_AREA = frozenset(("type", "offset", "size", "encryption", "key_size"))
_AF = frozenset(("type", "stripes", "hash"))
_PBKDF2 = frozenset(("type", "hash", "iterations", "salt"))
_ARGON2ID = frozenset(("type", "time", "memory", "cpus", "salt"))
_DIGEST = frozenset(("type", "keyslots", "segments", "hash", "iterations", "salt", "digest"))

_ID = re.compile(r"(?:0|[1-9][0-9]?)\Z")
_DECIMAL = re.compile(r"(?:0|[1-9][0-9]{0,17})\Z")


class Volume(NamedTuple):
    """What a sound header describes. `offset` of the data in bytes; `size` in bytes, None for all that there is;
    `keyslots` by number. `pin`: SHA-256 in hex, see above.
    """

    cipher: str
    sector_bytes: int
    offset: int
    size: int | None
    integrity: bool
    keyslots: tuple[int, ...]
    tokens: tuple[str, ...]
    pin: str


def check(header: object, header_bytes: int) -> Volume:
    """Checks (1) to (6) of the JSON in a binary header of `header_bytes` with it. Raises ProtocolError that names what
    is wrong.
    """
    objects = _members(header, "the header", _OBJECTS)
    area = _config(objects["config"], header_bytes)  # (1) (2)
    name, found = _one(objects["segments"], "segment")
    segment = _segment(found, area)  # (3)
    integrity = "integrity" in segment
    slots = _ids(objects["keyslots"], "keyslots", MAX_KEYSLOTS)
    if not slots:
        _no("the volume has no keyslot")
    key_bytes = KEY_BYTES + (TAG_KEY_BYTES if integrity else 0)
    taken = sorted((*_keyslot(slot, f"keyslot {number}", key_bytes, area), number) for number, slot in slots.items())
    for (_, end, one), (start, _, other) in pairwise(taken):
        if start < end:
            _no(f"keyslots {one} and {other} lie over each other")  # (4)
    digest = _digest(objects["digests"], name, frozenset(slots))  # (5)
    tokens = _tokens(objects["tokens"], frozenset(slots))  # (6)
    return Volume(
        cipher=segment["encryption"],
        sector_bytes=segment["sector_size"],
        offset=int(segment["offset"]),
        size=None if segment["size"] == "dynamic" else int(segment["size"]),
        integrity=integrity,
        keyslots=tuple(sorted(map(int, slots))),
        tokens=tokens,
        pin=_pin(segment, digest),
    )


def _config(value: object, header_bytes: int) -> tuple[int, int]:
    """Where the keyslots area begins and ends."""
    config = _members(value, "config", frozenset(("json_size", "keyslots_size")), frozenset(("flags", "requirements")))
    if "flags" in config:
        _no("the header sets flags", config["flags"], "none")
    if "requirements" in config:
        _no("the header requires something, or a reencryption is under way", config["requirements"], "nothing")
    json_size, keyslots_size = (_decimal(config[name], f"config.{name}") for name in ("json_size", "keyslots_size"))
    if json_size != header_bytes - BLOCK:
        _no("config.json_size is not that of the header", json_size, header_bytes - BLOCK)
    if keyslots_size % BLOCK:
        _no("config.keyslots_size is no number of blocks", keyslots_size)
    return 2 * header_bytes, 2 * header_bytes + keyslots_size


def _segment(value: object, area: tuple[int, int]) -> dict[str, Any]:
    segment = _members(value, "the segment", _SEGMENT, frozenset(("integrity", "flags")))
    _same(segment["type"], "crypt", "the segment's type")
    if "flags" in segment:
        _no("the segment has flags, as in a reencryption", segment["flags"], "none")
    _same(segment["iv_tweak"], "0", "the segment's iv_tweak")
    integrity = "integrity" in segment
    if integrity and segment["integrity"] != INTEGRITY:
        _no("the segment's integrity is another", segment["integrity"], INTEGRITY)
    _among(segment["encryption"], INTEGRITY_CIPHERS if integrity else (CIPHER,), "the data's cipher")
    _among(segment["sector_size"], SECTORS, "the segment's sector_size")
    offset = _decimal(segment["offset"], "the segment's offset")
    if offset < area[1] or offset % BLOCK:
        _no("the data begin at an impossible place", offset, f"a multiple of {BLOCK}, {area[1]} or more")
    if segment["size"] != "dynamic":
        size = _decimal(segment["size"], "the segment's size")
        if not size or size % segment["sector_size"]:
            _no("the segment's size is no number of sectors", size)
    return segment


def _keyslot(value: object, name: str, key_bytes: int, area: tuple[int, int]) -> tuple[int, int]:
    """Where it begins and ends."""
    slot = _members(value, name, _KEYSLOT, frozenset(("priority",)))
    _same(slot["type"], "luks2", f"{name}'s type")
    _same(slot["key_size"], key_bytes, f"{name}'s key_size")
    _among(slot.get("priority", 1), (0, 1, 2), f"{name}'s priority")
    af = _members(slot["af"], f"{name}'s af", _AF)
    for member, wanted in (("type", "luks1"), ("stripes", STRIPES), ("hash", "sha256")):
        _same(af[member], wanted, f"{name}'s af.{member}")
    _kdf(slot["kdf"], f"{name}'s kdf")
    place = _members(slot["area"], f"{name}'s area", _AREA)
    for member, known in (("type", "raw"), ("encryption", CIPHER), ("key_size", KEY_BYTES)):
        _same(place[member], known, f"{name}'s area.{member}")
    start, size = (_decimal(place[member], f"{name}'s area.{member}") for member in ("offset", "size"))
    least = key_bytes * STRIPES
    if start < area[0] or start + size > area[1] or start % BLOCK or size < least:
        _no(f"{name} lies at an impossible place", f"{size} bytes at {start}", f"{least} or more, in {area}")
    return start, start + size


def _kdf(value: object, name: str) -> None:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "pbkdf2":
        kdf = _members(value, name, _PBKDF2)
        _among(kdf["hash"], HASHES, f"{name}.hash")
        _between(kdf["iterations"], MIN_ITERATIONS, MAX_ITERATIONS, f"{name}.iterations")
    else:
        _same(kind, "argon2id", f"{name}.type")
        kdf = _members(value, name, _ARGON2ID)
        for member, least, most in (("time", 1, MAX_TIME), ("memory", 32, MAX_MEMORY_KIB), ("cpus", 1, MAX_CPUS)):
            _between(kdf[member], least, most, f"{name}.{member}")
    b64.from_std(kdf["salt"], name=f"{name}.salt", max_bytes=MAX_SALT_BYTES)


def _digest(value: object, segment: str, slots: frozenset[str]) -> dict[str, Any]:
    _, found = _one(value, "digest")
    digest = _members(found, "the digest", _DIGEST)
    _same(digest["type"], "pbkdf2", "the digest's type")
    _same(digest["segments"], [segment], "the digest's segments")
    if _names(digest["keyslots"], "the digest's keyslots") != slots:
        _no("the digest binds other keyslots than there are", digest["keyslots"], sorted(slots))
    _among(digest["hash"], HASHES, "the digest's hash")
    _between(digest["iterations"], MIN_ITERATIONS, MAX_ITERATIONS, "the digest's iterations")
    b64.from_std(digest["salt"], name="the digest's salt", max_bytes=MAX_SALT_BYTES)
    if len(b64.from_std(digest["digest"], name="the digest's digest", max_bytes=64)) != HASHES[digest["hash"]]:
        _no("the digest's digest has another length than its hash")
    return digest


def _tokens(value: object, slots: frozenset[str]) -> tuple[str, ...]:
    types = []
    for number, token in _ids(value, "tokens", MAX_TOKENS).items():
        if not isinstance(token, dict):
            _no(f"token {number} is no object")
        _among(token.get("type"), TOKENS, f"token {number}'s type")
        # What else a token says is its maker's own; it is not read here.
        if not _names(token.get("keyslots"), f"token {number}'s keyslots") <= slots:
            _no(f"token {number} is for keyslots that are not there", token["keyslots"], sorted(slots))
        types.append(token["type"])
    return tuple(types)


def _pin(segment: dict[str, Any], digest: dict[str, Any]) -> str:
    stable = {name: member for name, member in digest.items() if name != "keyslots"}
    return hashlib.sha256(strictjson.canonical({"digest": stable, "segment": segment})).hexdigest()


# --- what a member may be ---


def _members(
    value: object, name: str, required: frozenset[str], optional: frozenset[str] = frozenset()
) -> dict[str, Any]:
    return strictjson.members(value, name=name, required=required, optional=optional)


def _ids(value: object, name: str, most: int) -> dict[str, Any]:
    if not isinstance(value, dict) or len(value) > most or not all(_ID.match(number) for number in value):
        _no(f"{name} are no objects under their numbers", expected=f"at most {most}")
    return value


def _one(value: object, name: str) -> tuple[str, object]:
    found = list(_ids(value, f"{name}s", 99).items())
    if len(found) != 1:
        _no(f"the volume does not have one {name}", len(found), 1)
    return found[0]


def _names(value: object, name: str) -> frozenset[str]:
    if not isinstance(value, list) or not all(isinstance(number, str) and _ID.match(number) for number in value):
        _no(f"{name} is no list of numbers")
    if len(set(value)) != len(value):
        _no(f"{name} names one twice", value)
    return frozenset(value)


def _decimal(value: object, name: str) -> int:
    if not isinstance(value, str) or not _DECIMAL.match(value):
        _no(f"{name} is no decimal number in a text")
    return int(value)


def _between(value: object, least: int, most: int, name: str) -> None:
    if type(value) is not int or not least <= value <= most:
        _no(f"{name} is out of bounds", value, f"{least} to {most}")


def _same(value: object, wanted: object, name: str) -> None:
    # True is 1 in Python and not in JSON.
    if type(value) is not type(wanted) or value != wanted:
        _no(f"{name} is another", value, wanted)


def _among(value: object, known: Any, name: str) -> None:
    if type(value) not in {type(one) for one in known} or value not in known:
        _no(f"{name} is not one that is allowed", value, " or ".join(map(str, sorted(known))))


def _no(message: str, found: object = None, expected: object = None) -> NoReturn:
    raise ProtocolError(
        message,
        expected=None if expected is None else str(expected),
        found=None if found is None else str(found)[:128],
    )
