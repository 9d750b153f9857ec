# SPDX-License-Identifier: Apache-2.0
"""TPM 2.0 structures as bytes: what the agent sends, and a reader for what comes back.

Trusted Platform Module Library, Part 2 (structures). Everything is big-endian; TPM2B_x is a u16 size and that many
bytes, TPML_x a u32 count and the elements. A TPM is as much outside as a network peer: each read is checked against
the end of the buffer, each count against a limit, and bytes left over are an error.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from typing import NamedTuple

from keys.errors import AttesterError

ALG_RSA = 0x0001
ALG_SHA1 = 0x0004
ALG_AES = 0x0006
ALG_SHA256 = 0x000B
ALG_SHA384 = 0x000C
ALG_SHA512 = 0x000D
ALG_NULL = 0x0010
ALG_ECDSA = 0x0018
ALG_ECC = 0x0023
ALG_CFB = 0x0043
CURVE_P256 = 0x0003
CURVE_P384 = 0x0004

HASHES = {ALG_SHA1: "sha1", ALG_SHA256: "sha256", ALG_SHA384: "sha384", ALG_SHA512: "sha512"}
HASH_IDS = {name: alg for alg, name in HASHES.items()}

PCRS = 24  # registers of a PC Client TPM
MAX_BANKS = 16  # hash algorithms in one TPML_PCR_SELECTION
MAX_SELECT_BYTES = 4  # sizeofSelect of one TPMS_PCR_SELECTION

GENERATED = b"\xffTCG"  # TPM_GENERATED_VALUE
ST_ATTEST_QUOTE = 0x8018


class Reader:
    """Takes fields off the front of `data`. Every method raises AttesterError when the bytes end too early."""

    __slots__ = ("_data", "_offset")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._offset = 0

    def take(self, size: int) -> bytes:
        end = self._offset + size
        if end > len(self._data):
            raise AttesterError("the TPM's answer ends in the middle of a field")
        field = self._data[self._offset : end]
        self._offset = end
        return field

    def u8(self) -> int:
        return self.take(1)[0]

    def u16(self) -> int:
        return int.from_bytes(self.take(2), "big")

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "big")

    def tpm2b(self) -> bytes:
        """The body of a TPM2B."""
        return self.take(self.u16())

    def count(self, limit: int) -> int:
        """A TPML's count, at most `limit`."""
        count = self.u32()
        if count > limit:
            raise AttesterError("the TPM's answer has too long a list", expected=f"at most {limit}", found=f"{count}")
        return count

    def rest(self) -> bytes:
        return self.take(len(self._data) - self._offset)

    def end(self) -> None:
        """Nothing may be left."""
        if left := len(self._data) - self._offset:
            raise AttesterError("the TPM's answer has bytes after its end", found=f"{left} bytes")


def u16(value: int) -> bytes:
    return struct.pack(">H", value)


def u32(value: int) -> bytes:
    return struct.pack(">I", value)


def tpm2b(body: bytes) -> bytes:
    return u16(len(body)) + body


def pcr_selection(bank: int, indices: Iterable[int]) -> bytes:
    """TPML_PCR_SELECTION of one bank. PCR n is bit n % 8 of byte n // 8."""
    bitmap = bytearray(PCRS // 8)
    for index in indices:
        bitmap[index // 8] |= 1 << index % 8
    return u32(1) + u16(bank) + bytes((len(bitmap),)) + bitmap


def read_pcr_selection(reader: Reader) -> list[tuple[int, list[int]]]:
    """TPML_PCR_SELECTION as (bank, indices) in the order of the bytes."""
    selection = []
    for _ in range(reader.count(MAX_BANKS)):
        bank, size = reader.u16(), reader.u8()
        if size > MAX_SELECT_BYTES:
            raise AttesterError("the TPM's answer has too long a PCR bitmap", found=f"{size} bytes")
        bitmap = reader.take(size)
        selection.append((bank, [i for i in range(8 * size) if bitmap[i // 8] >> i % 8 & 1]))
    return selection


class Quoted(NamedTuple):
    """What the agent itself needs from a quote's TPMS_ATTEST."""

    extra_data: bytes
    selection: list[tuple[int, list[int]]]
    pcr_digest: bytes


def read_quote(attest: bytes) -> Quoted:
    """The quote in a TPMS_ATTEST. Raises AttesterError for anything else. Part 2, 10.12.12."""
    reader = Reader(attest)
    if reader.take(4) != GENERATED or reader.u16() != ST_ATTEST_QUOTE:
        raise AttesterError("the TPM answered something else than a quote")
    reader.tpm2b()  # qualifiedSigner
    extra_data = reader.tpm2b()
    reader.take(17 + 8)  # clockInfo, firmwareVersion
    quoted = Quoted(extra_data, read_pcr_selection(reader), reader.tpm2b())
    reader.end()
    return quoted


def ecc_template(
    name_alg: int, attributes: int, policy: bytes, symmetric: bytes, scheme: bytes, curve: int, unique: bytes
) -> bytes:
    """TPMT_PUBLIC of an ECC key without a KDF; `unique` stands for both x and y. Part 2, 12.2.4."""
    return (
        u16(ALG_ECC) + u16(name_alg) + u32(attributes) + tpm2b(policy)
        + symmetric + scheme + u16(curve) + u16(ALG_NULL) + tpm2b(unique) + tpm2b(unique)
    )  # fmt: skip


def rsa_template(
    name_alg: int, attributes: int, policy: bytes, symmetric: bytes, scheme: bytes, bits: int, unique: bytes
) -> bytes:
    """TPMT_PUBLIC of an RSA key with the default exponent 65537. Part 2, 12.2.4."""
    return (
        u16(ALG_RSA) + u16(name_alg) + u32(attributes) + tpm2b(policy)
        + symmetric + scheme + u16(bits) + u32(0) + tpm2b(unique)
    )  # fmt: skip


def aes_cfb(bits: int) -> bytes:
    """TPMT_SYM_DEF_OBJECT of a storage key."""
    return u16(ALG_AES) + u16(bits) + u16(ALG_CFB)


NO_SYMMETRIC = NO_SCHEME = u16(ALG_NULL)


def name(public: bytes) -> bytes:
    """The Name of a TPMT_PUBLIC: nameAlg, then the digest. Raises AttesterError. Part 1, 16."""
    reader = Reader(public)
    reader.u16()
    name_alg = reader.u16()
    if name_alg not in HASHES:
        raise AttesterError("the TPM's key has an unknown name algorithm", found=f"{name_alg:04x}")
    return u16(name_alg) + hashlib.new(HASHES[name_alg], public).digest()
