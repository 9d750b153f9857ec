# SPDX-License-Identifier: Apache-2.0
"""Changes a volume's keyslots: on a copy of its header in memory, which goes to the disk only when it was tried and has
passed the guard again (`agent.luks`, `agent.luks_write`).

    ADD       the next key gets a keyslot beside the present one
    REMOVE    an older key's keyslot goes; the present key must open what is left, the older one must not
    RECOVERY  the owner's passphrase gets a keyslot, marked by a token, in place of an earlier one

Every step can be done again: what is there already is left as it is. All are undone by nothing but a later step, and
none begins without the key that opens the volume now.
"""

from __future__ import annotations

import os
from typing import Any

from agent.cryptsetup import WRONG_KEY, failed, in_memory, run, through_pipe
from agent.luks import checked_header
from agent.luks_metadata import BLOCK
from agent.luks_write import write_back
from agent.release import Other
from keys import strictjson
from keys.errors import VolumeError
from keys.report import Step

# The key has 32 random bytes: a slow derivation would protect nothing more, and take seconds at each boot.
PBKDF = ("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--hash", "sha256")
RECOVERY_TOKEN = "systemd-recovery"  # noqa: S105  a token's type; the name that others know such a keyslot by


def change(device: str, pin: str, key: bytearray, other: Other) -> None:
    """Do `other.step` to the volume with this pin on `device`, which `key` opens. Raises VolumeError: then the volume
    opens as before.
    """
    secret = other.secret
    with checked_header(device, pin, repair=True) as header:
        copy = header.descriptor
        if not opens(device, copy, key):
            raise VolumeError(f"{device}: its own key does not open it")
        match other.step:
            case Step.ADD:
                if not opens(device, copy, secret):
                    _add(copy, key, secret)
            case Step.REMOVE:
                _remove(device, copy, key, secret)
            case _:
                _replace_recovery(device, copy, key, secret)
        if not opens(device, copy, key) or opens(device, copy, secret) is (other.step is Step.REMOVE):
            raise VolumeError(f"{device}: the changed keyslots do not open as they should")
        try:
            with checked_header(in_memory(copy), pin) as changed:
                write_back(device, changed)
        except OSError as error:
            raise VolumeError(f"{device}: the header cannot be written", found=str(error)) from None


def opens(device: str, header: int, key: bytes | bytearray) -> bool:
    """Whether `key` opens a keyslot of this header. Raises VolumeError."""
    options = ("--test-passphrase", "--type", "luks2", "--batch-mode", "--disable-external-tokens", "--key-file", "-")
    status, words = run(("open", *options, "--header", in_memory(header), "--", device), key, (header,))
    if status not in {0, WRONG_KEY}:
        raise failed(device, status, words)
    return status == 0


def _add(header: int, key: bytearray, new: bytearray) -> None:
    reading = through_pipe(new)
    try:
        _must(("luksAddKey", "--batch-mode", *PBKDF, "--key-file", "-", "--", in_memory(header), in_memory(reading)),
              key, header, reading)  # fmt: skip
    finally:
        os.close(reading)


def _remove(device: str, header: int, key: bytearray, old: bytearray) -> None:
    if key == old:
        raise VolumeError(f"{device}: the key to remove is the one that opens it")
    while opens(device, header, old):
        _must(("luksRemoveKey", "--batch-mode", "--key-file", "-", "--", in_memory(header)), old, header)


def _replace_recovery(device: str, header: int, key: bytearray, passphrase: bytearray) -> None:
    if opens(device, header, passphrase):
        return
    content = _json(header)
    for number, token in content["tokens"].items():
        if token["type"] == RECOVERY_TOKEN:
            _must(("token", "remove", "--token-id", number, "--", in_memory(header)), b"", header)
            for slot in token["keyslots"]:
                _must(("luksKillSlot", "--batch-mode", "--key-file", "-", "--", in_memory(header), slot), key, header)
    before = _json(header)["keyslots"].keys()
    _add(header, key, passphrase)
    [slot] = _json(header)["keyslots"].keys() - before
    token = strictjson.compact({"type": RECOVERY_TOKEN, "keyslots": [slot]})
    _must(("token", "import", "--json-file", "-", "--", in_memory(header)), token, header)


def _must(arguments: tuple[str, ...], key: bytes | bytearray, *descriptors: int) -> None:
    status, words = run(arguments, key, descriptors)
    if status != 0:
        raise failed(arguments[0], status, words)


def _json(header: int) -> dict[str, Any]:
    """The JSON of a header that cryptsetup has just written."""
    size = int.from_bytes(os.pread(header, 8, 8), "big")
    content: dict[str, Any] = strictjson.loads(
        os.pread(header, size - BLOCK, BLOCK).rstrip(b"\0"), name="the header's JSON", max_bytes=size
    )
    return content
