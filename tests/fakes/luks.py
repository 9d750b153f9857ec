# SPDX-License-Identifier: Apache-2.0
"""LUKS2 headers as the host of a disk can write them: well-formed, with right checksums, and of any content.

LUKS2 On-Disk Format 1.1.1, section 2. Nothing here opens with a key; `rewrite` changes a volume that cryptsetup made.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

SIZE = 0x4000  # of a binary header with its JSON
DATA = 1 << 20  # where the data of `write` begin
SALT = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="  # 32 bytes


def metadata() -> dict[str, Any]:
    """What cryptsetup writes for one passphrase."""
    area = {"type": "raw", "offset": "32768", "size": "258048", "encryption": "aes-xts-plain64", "key_size": 64}
    slot = {
        "type": "luks2",
        "key_size": 64,
        "af": {"type": "luks1", "stripes": 4000, "hash": "sha256"},
        "area": area,
        "kdf": {"type": "argon2id", "time": 4, "memory": 32, "cpus": 1, "salt": SALT},
    }
    segment = {
        "type": "crypt",
        "offset": str(DATA),
        "size": "dynamic",
        "iv_tweak": "0",
        "encryption": "aes-xts-plain64",
        "sector_size": 512,
    }
    digest = {
        "type": "pbkdf2",
        "keyslots": ["0"],
        "segments": ["0"],
        "hash": "sha256",
        "iterations": 1000,
        "salt": SALT,
        "digest": SALT,
    }
    return {
        "keyslots": {"0": slot},
        "tokens": {},
        "segments": {"0": segment},
        "digests": {"0": digest},
        "config": {"json_size": "12288", "keyslots_size": str(DATA - 2 * SIZE)},
    }


def binary(
    content: dict[str, Any] | bytes,
    *,
    second: bool,
    epoch: int = 3,
    size: int = SIZE,
    algorithm: str = "sha256",
    at: int | None = None,
    version: int = 2,
    label: bytes = b"",
    uuid: bytes = b"2b1c4f6e-0000-4000-8000-000000000000",
    subsystem: bytes = b"",
    padding: bytes = b"",
    more: bytes = b"",
) -> bytes:
    """One binary header with its JSON. `padding` and `more` stand in what must be empty, before and behind the
    checksum.
    """
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    place = (size if second else 0) if at is None else at
    head = (
        struct.pack(">6sHQQ48s32s", b"SKUL\xba\xbe" if second else b"LUKS\xba\xbe", version, size, epoch, label,
                    algorithm.encode())
        + bytes(64)
        + (struct.pack(">40s48sQ", uuid, subsystem, place) + padding).ljust(280, b"\0")
    )  # fmt: skip
    rest = (more.ljust(4096 - 512, b"\0") + text).ljust(size - 512, b"\0")
    checksum = hashlib.sha256(head + bytes(64) + rest).digest().ljust(64, b"\0")
    return head + checksum + rest


def write(path: Path, content: dict[str, Any] | bytes | None = None, **binary_options: Any) -> Path:
    """A volume with both headers and an empty rest."""
    made = metadata() if content is None else content
    headers = b"".join(binary(made, second=second, **binary_options) for second in (False, True))
    path.write_bytes(headers.ljust(DATA + 4096, b"\0"))
    return path


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Apply `change` to the JSON of a volume that cryptsetup made, in both headers, and nothing else."""
    data = bytearray(path.read_bytes())
    size = struct.unpack(">Q", data[8:16])[0]
    content = json.loads(data[4096:size].rstrip(b"\0"))
    change(content)
    for at in (0, size):
        data[at + 4096 : at + size] = json.dumps(content).encode().ljust(size - 4096, b"\0")
        data[at + 448 : at + 512] = bytes(64)
        data[at + 448 : at + 480] = hashlib.sha256(data[at : at + size]).digest()
    path.write_bytes(data)
