# SPDX-License-Identifier: Apache-2.0
"""Is this LUKS2 header one behind which only the key's holder can read and write?

A header is authenticated by nothing, and the host writes the disk. With a null cipher in a segment a volume opens with
the right key and shows what the host put there; with one in a keyslot any key opens it (CVE-2025-59054). So the header
is copied once, the copy is checked, and cryptsetup is given the copy: what the host writes meanwhile changes nothing.
LUKS2 On-Disk Format 1.1.1, sections 2 and 3:

    (1) both binary headers are there, of one size and epoch, their checksums right and their JSON the same, so that
        cryptsetup cannot fall back to another one
    (2) nothing is under way or required (reencryption), no feature that is not known here
    (3) one segment, of type crypt, with an allowed cipher
    (4) every keyslot holds a passphrase's key, is encrypted with an allowed cipher, and is no reencryption's
    (5) one digest, which binds the keyslots' volume key to the segment
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from keys import strictjson
from keys.errors import ProtocolError, VolumeError

CIPHERS = frozenset(("aes-xts-plain64", "aes-xts-random"))  # the latter goes with integrity tags
KDFS = frozenset(("pbkdf2", "argon2i", "argon2id"))
SIZES = frozenset(1 << bits for bits in range(14, 23))  # bytes of a binary header with its JSON
BINARY_BYTES = 4096  # of that before the JSON
MAX_HEADER_BYTES = 32 << 20  # all before the data; cryptsetup makes it 16 MiB
MAGICS = (b"LUKS\xba\xbe", b"SKUL\xba\xbe")  # of the first and the second header

_HEADER = frozenset(("keyslots", "tokens", "segments", "digests", "config"))


@contextmanager
def checked_header(device: str) -> Iterator[int]:
    """A descriptor of a copy in memory of all that `device` (a block device or a file) has before its data; the copy
    has passed every check above. Raises VolumeError.
    """
    copy = os.memfd_create("luks-header")
    try:
        try:
            with open(device, "rb", buffering=0) as source:  # noqa: PTH123  pathlib would cost milliseconds at boot
                _copy(source.fileno(), copy)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            raise VolumeError(
                f"{device}: the volume is not there", found=str(error), mend="see that the device's path is right"
            ) from None
        except ProtocolError as error:
            raise _refused(device, str(error)) from None
        except (KeyError, TypeError, AttributeError):
            raise _refused(device, "the header's JSON has another form") from None
        yield copy
    finally:
        os.close(copy)


def _copy(source: int, copy: int) -> None:
    """Every byte is read once: what is checked is what is copied."""
    first = _read(source, BINARY_BYTES)
    size = int.from_bytes(first[8:16], "big")
    if first[:8] != MAGICS[0] + b"\0\2" or size not in SIZES:
        raise ProtocolError("no LUKS2 header")
    headers = first + _read(source, 2 * size - BINARY_BYTES)
    one, other = (_binary(headers[at : at + size], magic, at) for at, magic in ((0, MAGICS[0]), (size, MAGICS[1])))
    if one != other:  # (1)
        raise ProtocolError("the two headers differ")
    offset = _check(strictjson.loads(one[1], name="the header", max_bytes=size))
    if not 2 * size <= offset <= MAX_HEADER_BYTES:
        raise ProtocolError("the data begin at an impossible place", found=f"{offset}")
    _write(copy, headers)
    _write(copy, _read(source, offset - 2 * size))


def _binary(header: bytes, magic: bytes, at: int) -> tuple[bytes, bytes]:
    """(size and epoch, JSON text) of one binary header and its JSON, check (1)."""
    checksum = hashlib.sha256(header[:448] + bytes(64) + header[512:]).digest()
    right = (
        header[:8] == magic + b"\0\2"
        and header[72:104].rstrip(b"\0") == b"sha256"
        and int.from_bytes(header[256:264], "big") == at
        and header[448:512] == checksum.ljust(64, b"\0")
    )
    if not right:
        raise ProtocolError("a header is damaged")
    return header[8:24], header[BINARY_BYTES:].rstrip(b"\0")


def _check(header: Any) -> int:
    """Checks (2) to (5); where the data begin, in bytes."""
    strictjson.members(header, name="the header", required=_HEADER)
    if header["config"].get("requirements", {}).get("mandatory", []):  # (2)
        raise ProtocolError("the header requires something that is not known, or a reencryption is under way")
    if header["segments"].keys() != {"0"}:  # (3)
        raise ProtocolError("the volume does not have one segment")
    segment = header["segments"]["0"]
    if segment["type"] != "crypt" or segment["encryption"] not in CIPHERS or "flags" in segment:
        raise ProtocolError("the data are not encrypted as they must be", expected=" or ".join(sorted(CIPHERS)))
    for slot in header["keyslots"].values():  # (4)
        kinds = (slot["type"], slot["area"]["type"], slot["af"]["type"])
        if kinds != ("luks2", "raw", "luks1") or slot["kdf"]["type"] not in KDFS:
            raise ProtocolError("a keyslot is of another kind")
        if slot["area"]["encryption"] not in CIPHERS:
            raise ProtocolError("a keyslot is not encrypted as it must be", expected=" or ".join(sorted(CIPHERS)))
    [digest] = header["digests"].values() if len(header["digests"]) == 1 else [{"type": ""}]
    if digest["type"] != "pbkdf2" or digest["segments"] != ["0"]:  # (5)
        raise ProtocolError("the volume's key is not bound by one digest")
    offset = segment["offset"]
    return int(offset) if offset.isascii() and offset.isdecimal() and len(offset) < 12 else 0


def _read(source: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = os.read(source, size - len(data))
        if not piece:
            raise ProtocolError("no LUKS2 header")
        data += piece
    return data


def _write(copy: int, data: bytes) -> None:
    written = 0
    while written < len(data):
        written += os.write(copy, data[written:])


def _refused(device: str, why: str) -> VolumeError:
    return VolumeError(
        f"{device}: no LUKS2 volume that protects what is on it",
        found=why,
        mend="see that the path is right; if it is, somebody may have changed the disk's header: do not trust it",
    )
