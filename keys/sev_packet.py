# SPDX-License-Identifier: Apache-2.0
"""Wrapping a key for a guest that has not started yet: the packet for SEV's LAUNCH_SECRET, and the table in it.

AMD 55766, Secure Encrypted Virtualization API, 6.6 LAUNCH_SECRET. The processor decrypts the packet with the keys that
only it and the broker have (TEK, TIK), and puts the content into the guest's encrypted memory.

    header = flags u32 (0) || IV (16) || MAC (32)
    packet = AES-128-CTR(TEK, IV, table)
    MAC    = HMAC-SHA256(TIK, 0x01 || flags || IV || guest length u32 || packet length u32 || packet || measure (32))

`measure` is the HMAC of the very launch that was judged, with the processor's own nonce in it: the packet opens in that
guest and in no other, though others may have been started with the same TEK and TIK (firmware from API 0.17 on).

The table is what OVMF hands to Linux (efi_secret): entries by GUID, GUIDs in mixed endianness, padded with zeros to 16.

    table = 1e74f542-71dd-4d66-963e-ef4287ff173b || length u32 || GUID || length u32 (20 + data) || data || ...
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

TABLE = UUID("1e74f542-71dd-4d66-963e-ef4287ff173b")
DISK_PASSPHRASE = UUID("736869e5-84f0-4973-92ec-06879ce3da0b")  # as GRUB and libvirt's users know it

KEY_BYTES = 16  # of TEK and TIK
IV_BYTES = 16
MEASURE_BYTES = 32
HEADER_BYTES = 52
BLOCK_BYTES = 16  # the packet's length is a multiple of it
AREA_BYTES = 0xC00  # what OVMF sets aside for the table
ENTRY_OVERHEAD_BYTES = 20  # GUID and length
MAX_SECRET_BYTES = AREA_BYTES - 2 * ENTRY_OVERHEAD_BYTES  # one entry alone in its table

_FLAGS = bytes(4)  # not compressed
_CONTEXT = b"\x01"


@dataclass(frozen=True, slots=True)
class LaunchKeys:
    """TEK encrypts, TIK authenticates: 16 bytes each, for one launch."""

    tek: bytes = field(repr=False)
    tik: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Packet:
    """What LAUNCH_SECRET takes: the header (52 bytes) and the encrypted table."""

    header: bytes
    data: bytes


def seal(secret: bytes, keys: LaunchKeys, measure: bytes, iv: bytes) -> Packet:
    """`secret` as the guest's disk passphrase. `iv`: 16 random bytes, never used before with these keys.

    Raises RuntimeError for what does not fit; who calls has asked for the length before.
    """
    return encrypt(secret_table([(DISK_PASSPHRASE, secret)]), keys, measure, iv)


def secret_table(entries: Sequence[tuple[UUID, bytes]]) -> bytes:
    """The table with these entries, padded. Raises RuntimeError if it does not fit into the guest's area."""
    body = b"".join(_entry(guid, data) for guid, data in entries)
    table = _entry(TABLE, body)
    if len(table) > AREA_BYTES:
        raise RuntimeError("a table of secrets must fit into the area that the firmware sets aside")
    return table + bytes(-len(table) % BLOCK_BYTES)


def encrypt(table: bytes, keys: LaunchKeys, measure: bytes, iv: bytes) -> Packet:
    """`table` (a multiple of 16 bytes) for the guest whose launch gave `measure` (32 bytes)."""
    if (len(measure), len(iv), len(table) % BLOCK_BYTES) != (MEASURE_BYTES, IV_BYTES, 0):
        raise RuntimeError("a launch packet has a part of the wrong length")
    encryptor = Cipher(algorithms.AES(keys.tek), modes.CTR(iv)).encryptor()
    data = encryptor.update(table) + encryptor.finalize()
    lengths = struct.pack("<II", len(table), len(data))
    mac = hmac.digest(keys.tik, _CONTEXT + _FLAGS + iv + lengths + data + measure, "sha256")
    return Packet(_FLAGS + iv + mac, data)


def _entry(guid: UUID, data: bytes) -> bytes:
    return guid.bytes_le + struct.pack("<I", ENTRY_OVERHEAD_BYTES + len(data)) + data
