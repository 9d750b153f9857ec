# SPDX-License-Identifier: Apache-2.0
"""A platform's SEV certificates, from the files that tools export to what the broker takes: one certificate a name.

Tools put certificates one behind the other (SEV's PDH_CERT_EXPORT: PDH, PEK, OCA, CEK; then perhaps ASK and ARK), in
files of their own, or both. Each says in its usage what it is. Nothing is verified here; the broker does.

AMD 55766, Secure Encrypted Virtualization API, appendix C. Little-endian:

    SEV certificate, 2084 bytes   usage u32 at 0x08: OCA 0x1001, PEK 0x1002, PDH 0x1003, CEK 0x1004
    CA certificate                usage u32 at 0x24: ARK 0x0, ASK 0x13; bits of exponent and modulus u32 at 0x38, 0x3C;
                                  832 bytes for 2048 bits, 1600 for 4096
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from keys.errors import ConfigError

SEV_BYTES = 2084
CA_BYTES = {2048: 832, 4096: 1600}  # by the modulus' bits
MAX_FILE_BYTES = 4 * SEV_BYTES + 2 * CA_BYTES[4096]
NEEDED = ("pdh", "pek", "oca", "cek")

_SEV = {0x1001: "oca", 0x1002: "pek", 0x1003: "pdh", 0x1004: "cek"}
_CA = {0x0: "ark", 0x13: "ask"}


def read_chain(paths: Iterable[str]) -> dict[str, bytes]:
    """Certificates by name ("pdh", "pek", "oca", "cek"; "ask" and "ark" where they are there) from files.

    A later file's certificate takes the place of an earlier one: the CEK that AMD signed, for the exported one, which
    no CA signed. Raises ConfigError.
    """
    found: dict[str, bytes] = {}
    for path in paths:
        found |= split_chain(_read(path), path)
    if missing := [name for name in NEEDED if name not in found]:
        raise ConfigError(
            f"the platform's certificates lack the {missing[0].upper()}",
            expected=", ".join(name.upper() for name in NEEDED),
            mend="export them with sevctl or sevtool; AMD's CEK is at https://kdsintf.amd.com/cek/id/<the chip's id>",
        )
    return found


def split_chain(data: bytes, path: str) -> dict[str, bytes]:
    """The certificates that follow one another in `data`; `path` names it in errors. Raises ConfigError."""
    found: dict[str, bytes] = {}
    rest = data
    while rest:
        name, size = _kind(rest)
        if size > len(rest) or not name:
            raise ConfigError(
                f"{path} is no file of SEV certificates",
                found=f"something else at byte {len(data) - len(rest)}",
                mend="give certificates in AMD's binary format, one behind the other",
            )
        if name in found:
            raise ConfigError(f"{path} has two certificates of one kind", found=name.upper())
        found[name], rest = rest[:size], rest[size:]
    return found


def _kind(data: bytes) -> tuple[str, int]:
    """(name, bytes) of the certificate at the start of `data`; ("", 0) for anything else."""
    if len(data) < 0x40:
        return "", 0
    usage, exponent, modulus = struct.unpack_from("<I16xII", data, 0x24)
    if exponent == modulus and modulus in CA_BYTES and usage in _CA:
        return _CA[usage], CA_BYTES[modulus]
    return _SEV.get(int.from_bytes(data[8:12], "little"), ""), SEV_BYTES


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:  # noqa: PTH123  as everywhere in the agent
            data = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ConfigError(f"{path} cannot be read", found=str(error)) from None
    if not data or len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{path} is no file of SEV certificates", expected=f"1 to {MAX_FILE_BYTES} bytes")
    return data
