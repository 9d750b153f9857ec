# SPDX-License-Identifier: Apache-2.0
"""Is this LUKS2 header one behind which only the key's holder can read and write?

A header is authenticated by nothing, and the host writes the disk. With a null cipher in a segment a volume opens with
the right key and shows what the host put there; with one in a keyslot any key opens it (CVE-2025-59054). So the header
is copied once, the copy is checked, and cryptsetup is given the copy: what the host writes meanwhile changes nothing.
LUKS2 On-Disk Format 1.1.1, section 2:

 (1) both binary headers are there, of version 2 and a size that a header can have, each at its place
 (2) their checksums, by SHA-256, are right
 (3) nothing is in their padding
 (4) they agree in size, epoch, label, UUID and JSON, so that cryptsetup cannot fall back to another one
 (5) what the JSON describes protects what is on the volume (`agent.luks_metadata`)
 (6) it is the volume that it should be: its pin, where one is known

A crash while the header is written (`agent.luks_write`) leaves two that differ, or one with a wrong checksum. Of a
volume whose pin is known the newer sound one counts, and stands in both places of the copy: what cryptsetup could
choose is what was checked.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from agent.luks_metadata import Volume, check
from keys import strictjson
from keys.errors import ProtocolError, VolumeError

SIZES = frozenset(1 << bits for bits in range(14, 23))  # bytes of a binary header with its JSON
BINARY_BYTES = 4096  # of that before the JSON
MAX_HEADER_BYTES = 32 << 20  # all before the data; cryptsetup makes it 16 MiB
MAGICS = (b"LUKS\xba\xbe", b"SKUL\xba\xbe")  # of the first and the second header
VERSION = b"\0\2"


class Header(NamedTuple):
    """A checked copy: the descriptor of the memory that it is in, and what it describes. `mended`: what was wrong with
    one of the two on the disk, "" for nothing.
    """

    descriptor: int
    uuid: str
    volume: Volume
    mended: str = ""


@contextmanager
def checked_header(device: str, pin: str | None = None, *, repair: bool = False) -> Iterator[Header]:
    """A copy in memory of all that `device` (a block device or a file) has before its data, which has passed every
    check above. `pin`: what the volume's must be, in hex; None if nobody knows. `repair`: one of the two headers may be
    what a crash left; for whoever compares the pin. Raises VolumeError.
    """
    copy = os.memfd_create("luks-header")
    try:
        try:
            with open(device, "rb", buffering=0) as source:  # noqa: PTH123  pathlib would cost milliseconds at boot
                uuid, volume, mended = copy_header(source.fileno(), copy, repair=repair)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            raise VolumeError(
                f"{device}: the volume is not there", found=str(error), mend="see that the device's path is right"
            ) from None
        except ProtocolError as error:
            raise _refused(device, str(error)) from None
        if pin is not None and pin != volume.pin:  # (6)
            raise _another(device, pin, volume.pin)
        yield Header(copy, uuid, volume, mended)
    finally:
        os.close(copy)


def copy_header(source: int, copy: int, *, repair: bool = False) -> tuple[str, Volume, str]:
    """Checks (1) to (5) while all before the data is copied from one descriptor to the other; UUID, contents, and what
    was mended. Every byte is read once: what is checked is what is copied. Raises ProtocolError, OSError.
    """
    first = _read(source, BINARY_BYTES)
    size = int.from_bytes(first[8:16], "big")
    if first[:8] != MAGICS[0] + VERSION or size not in SIZES:
        raise ProtocolError("no LUKS2 header")
    headers = first + _read(source, 2 * size - BINARY_BYTES)
    mended = ""
    if repair:
        headers, mended = _mended(headers, size)
    one, other = (_binary(headers[at : at + size], magic, at) for at, magic in ((0, MAGICS[0]), (size, MAGICS[1])))
    if one != other:
        names = (name for name, mine, its in zip(_Binary._fields, one, other, strict=True) if mine != its)
        raise ProtocolError("the two headers differ", found=", ".join(names))  # (4)
    volume = check(strictjson.loads(one.json, name="the header's JSON", max_bytes=size), size)  # (5)
    if volume.offset > MAX_HEADER_BYTES:
        raise ProtocolError(
            "the data begin too far behind the header", expected=f"at most {MAX_HEADER_BYTES}", found=f"{volume.offset}"
        )
    _write(copy, headers)
    _write(copy, _read(source, volume.offset - 2 * size))
    return one.uuid.rstrip(b"\0").decode("ascii", "replace"), volume, mended


def _mended(headers: bytes, size: int) -> tuple[bytes, str]:
    """Both headers after a crash may have come between: of two with right checksums that differ in epoch and JSON alone
    the newer one twice, of one right one that twice. All else stays as it is, for the checks to refuse.
    """
    halves = headers[:size], headers[size:]
    first, second = (_checksum(half) == half[448:512] for half in halves)
    if first and second:
        one, other = (_binary(half, magic, at) for half, magic, at in zip(halves, MAGICS, (0, size), strict=True))
        if one._replace(epoch=other.epoch, json=other.json) != other or one.epoch == other.epoch:
            return headers, ""
        first = one.epoch > other.epoch
        why = f"the {'second' if first else 'first'} header is an older one"
    elif first or second:
        why = f"the {'second' if first else 'first'} header is not whole"
    else:
        return headers, ""
    good = halves[0] if first else halves[1]
    return b"".join(_placed(good, magic, at) for magic, at in zip(MAGICS, (0, size), strict=True)), why


def _placed(header: bytes, magic: bytes, at: int) -> bytes:
    """`header` as it stands in the place `at`."""
    moved = magic + header[6:256] + at.to_bytes(8, "big") + header[264:]
    return moved[:448] + _checksum(moved) + moved[512:]


def _checksum(header: bytes) -> bytes:
    return hashlib.sha256(header[:448] + bytes(64) + header[512:]).digest().ljust(64, b"\0")


class _Binary(NamedTuple):
    """What both binary headers must say alike."""

    size: bytes
    epoch: bytes
    label: bytes
    uuid: bytes
    subsystem: bytes
    json: bytes


def _binary(header: bytes, magic: bytes, at: int) -> _Binary:
    """Checks (1) to (3) of one header and its JSON. Raises ProtocolError."""
    which = "first" if at == 0 else "second"
    if header[:8] != magic + VERSION or int.from_bytes(header[256:264], "big") != at:
        raise ProtocolError(f"the {which} header is none, or of another place")  # (1)
    if header[72:104].rstrip(b"\0") != b"sha256" or header[448:512] != _checksum(header):
        raise ProtocolError(f"the {which} header's checksum is not right")  # (2)
    if any(header[264:448]) or any(header[512:BINARY_BYTES]):
        raise ProtocolError(f"the {which} header has something in its padding")  # (3)
    return _Binary(
        size=header[8:16],
        epoch=header[16:24],
        label=header[24:72],
        uuid=header[168:208],
        subsystem=header[208:256],
        json=header[BINARY_BYTES:].rstrip(b"\0"),
    )


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


def _another(device: str, expected: str, found: str) -> VolumeError:
    return VolumeError(
        f"{device}: another volume than the one that the key belongs to",
        expected=f"pin {expected}",
        found=f"pin {found}",
        mend="another disk is in its place, or it was encrypted anew: if that was you, pin it again",
    )
