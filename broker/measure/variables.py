# SPDX-License-Identifier: Apache-2.0
"""The variables in a file of OVMF's (OVMF_VARS.fd): which keys of Secure Boot a VM is started with.

UEFI Platform Initialization 1.7, volume 3, 3.2.1 (firmware volume header); EDK II, MdeModulePkg,
Include/Guid/VariableFormat.h (VARIABLE_STORE_HEADER, AUTHENTICATED_VARIABLE_HEADER, all little endian):

 (1) the file begins with a firmware volume that holds variables, and in it a store of authenticated ones, healthy
 (2) each variable lies in the store, its name is text; the next one begins at a multiple of four
 (3) of those that are not deleted there is one of each name
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

from keys.errors import ConfigError

MAX_VARIABLES = 4096
NVRAM = bytes.fromhex("8d2bf1ff96768b4ca9852747075b4f50")  # fff12b8d-7696-4c8b-a985-2747075b4f50
AUTHENTICATED = bytes.fromhex("782cf3aa7b949a43a1802e144ec37792")  # aaf32c78-947b-439a-a180-2e144ec37792
GLOBAL = bytes.fromhex("61dfe48bca93d211aa0d00e098032b8c")  # 8be4df61-93ca-11d2-aa0d-00e098032b8c
SECURITY = bytes.fromhex("cbb219d73a3d9645a3bcdad00e67656f")  # d719b2cb-3d3a-4596-a3bc-dad00e67656f
ENABLE = bytes.fromhex("c70ba3f008af564599c4001009c93a44")  # f0a30bc7-af08-4556-99c4-001009c93a44

_VOLUME = struct.Struct("<16x16sQ4s4xH6x")  # GUID, length, signature, bytes of the header
_STORE = struct.Struct("<16sIBB6x")  # GUID, size with this header, format, state
_VARIABLE = struct.Struct("<HBxI8x16x4xII16s")  # start, state, attributes, bytes of the name, of the data, GUID
_START, _FORMATTED, _HEALTHY = 0x55AA, 0x5A, 0xFE
_ADDED, _BEING_DELETED = 0x3F, 0x3E  # a variable that counts; one that counts as long as there is no newer one


class Variables(NamedTuple):
    """The contents of the variables that Secure Boot goes by. `enabled`: whether firmware will check what it starts."""

    pk: bytes
    kek: bytes
    db: bytes
    dbx: bytes
    enabled: bool


def secure_boot_variables(data: bytes) -> Variables:
    """What is in the file of variables. Raises ConfigError."""
    found = _variables(data)
    pk, kek = found.get((GLOBAL, "PK"), b""), found.get((GLOBAL, "KEK"), b"")
    db, dbx = found.get((SECURITY, "db"), b""), found.get((SECURITY, "dbx"), b"")
    return Variables(pk, kek, db, dbx, pk != b"" and found.get((ENABLE, "SecureBootEnable")) == b"\1")


def _variables(data: bytes) -> Mapping[tuple[bytes, str], bytes]:
    """(vendor's GUID, name) -> content."""
    volume, length, signature, header_bytes = _unpack(_VOLUME, data, 0)
    if volume != NVRAM or signature != b"_FVH" or length > len(data) or header_bytes < _VOLUME.size:
        raise _unusable("it holds no variables")
    store, size, format_, state = _unpack(_STORE, data, header_bytes)
    if store != AUTHENTICATED or (format_, state) != (_FORMATTED, _HEALTHY):
        raise _unusable("no store of authenticated variables, or a damaged one")  # (1)
    at, end = header_bytes + _STORE.size, header_bytes + size
    if end > length:
        raise _unusable("the store reaches over its volume's end")
    found: dict[tuple[bytes, str], bytes] = {}
    older: dict[tuple[bytes, str], bytes] = {}
    for _ in range(MAX_VARIABLES):
        if at + _VARIABLE.size > end:
            return older | found
        start, state, _, name_bytes, data_bytes, guid = _unpack(_VARIABLE, data, at)
        if start != _START:
            return older | found
        begin = at + _VARIABLE.size
        if begin + name_bytes + data_bytes > end:
            raise _unusable("a variable reaches over the end of the store")  # (2)
        content = data[begin + name_bytes : begin + name_bytes + data_bytes]
        if state in {_ADDED, _BEING_DELETED}:
            key = guid, _name(data[begin : begin + name_bytes])
            place = found if state == _ADDED else older
            if key in place:
                raise _unusable(f"two variables {key[1]}")  # (3)
            place[key] = content
        at = (begin + name_bytes + data_bytes + 3) & ~3
    raise _unusable("too many variables")


def _name(data: bytes) -> str:
    try:
        name = data.decode("utf-16-le")
    except UnicodeDecodeError:
        name = ""
    if not name.endswith("\0"):
        raise _unusable("a variable whose name is no text")
    return name[:-1]


def _unpack(form: struct.Struct, data: bytes, at: int) -> tuple[Any, ...]:
    if at + form.size > len(data):
        raise _unusable("it ends too early")
    return form.unpack_from(data, at)


def _unusable(why: str) -> ConfigError:
    return ConfigError(
        "this is no file of OVMF's variables", found=why, mend="name the OVMF_VARS file that the VM starts with"
    )
