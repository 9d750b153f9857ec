# SPDX-License-Identifier: Apache-2.0
"""Custody under a KEK in a file.

    sealed = "RK1" || KEK id (8) || nonce (12) || AES-256-GCM ciphertext || tag (16)

The KEK itself encrypts nothing: one key for each sealed place and one for `derive` come out of it by HKDF-Expand (RFC
5869 section 2.3) with labels that no other use shares. So a random 96-bit nonce has to be unique only among the few
sealings of one version of one key, and not among all keys that the broker ever holds (NIST SP 800-38D section 8.3).
"""

from __future__ import annotations

import hmac
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from keys import b64
from keys.errors import ConfigError, ProtocolError, Unavailable, VerificationError

KEK_BYTES = 32
KEK_FILE_MODE = 0o400
MAX_FILE_BYTES = 128
MAGIC = b"RK1"
ID_BYTES = 8
NONCE_BYTES = 12
TAG_BYTES = 16
OVERHEAD_BYTES = len(MAGIC) + ID_BYTES + NONCE_BYTES + TAG_BYTES

_ID_LABEL = b"roomkey kek id v1\0"
_SEAL_LABEL = b"roomkey seal v1\0"
_DERIVE_LABEL = b"roomkey derive v1\0"


class LocalCustody:
    """`current` seals; `current` and all of `old` open. Each is 32 random bytes."""

    def __init__(self, current: bytes, old: Sequence[bytes] = (), *, random: Callable[[int], bytes] = os.urandom):
        if any(len(kek) != KEK_BYTES for kek in (current, *old)):
            raise RuntimeError("a KEK has 32 bytes")
        self._random = random
        self._current_id = _kek_id(current)
        self._keks = {_kek_id(kek): kek for kek in (current, *old)}

    @classmethod
    def from_files(cls, kek_file: Path, old_kek_files: Sequence[Path] = ()) -> LocalCustody:
        """Raises ConfigError unless each file is a regular file of this user, of mode 0400, with one line: base64
        (RFC 4648 section 4) of 32 bytes.
        """
        return cls(_read_kek(kek_file), [_read_kek(path) for path in old_kek_files])

    def seal(self, owner: str, type_: str, tag: str, version: int, plaintext: bytes) -> bytes:
        place = _place(owner, type_, tag, version)
        nonce = self._random(NONCE_BYTES)
        key = _expand(self._keks[self._current_id], _SEAL_LABEL + place)
        return MAGIC + self._current_id + nonce + AESGCM(key).encrypt(nonce, plaintext, place)

    def open(self, owner: str, type_: str, tag: str, version: int, sealed: bytes) -> bytes:
        kek_id, nonce, ciphertext = _split(sealed)
        if kek_id not in self._keks:
            raise Unavailable(
                "the key is sealed under a KEK that is not listed",
                expected=f"KEK {kek_id.hex()}",
                mend="list its file under old_kek_files in [custody]",
            )
        place = _place(owner, type_, tag, version)
        try:
            return AESGCM(_expand(self._keks[kek_id], _SEAL_LABEL + place)).decrypt(nonce, ciphertext, place)
        except InvalidTag:
            raise VerificationError("the sealed key was changed, or belongs to another place") from None

    def needs_rewrap(self, sealed: bytes) -> bool:
        """Raises VerificationError where `sealed` is nothing that `seal` made."""
        return _split(sealed)[0] != self._current_id

    def derive(self, purpose: bytes, context: bytes) -> bytes:
        return _expand(self._keks[self._current_id], _DERIVE_LABEL + _prefixed(purpose) + _prefixed(context))


def _split(sealed: bytes) -> tuple[bytes, bytes, bytes]:
    if len(sealed) < OVERHEAD_BYTES or not sealed.startswith(MAGIC):
        raise VerificationError("this is not a sealed key")
    body = sealed[len(MAGIC) :]
    return body[:ID_BYTES], body[ID_BYTES : ID_BYTES + NONCE_BYTES], body[ID_BYTES + NONCE_BYTES :]


def _place(owner: str, type_: str, tag: str, version: int) -> bytes:
    return b"".join(_prefixed(part.encode()) for part in (owner, type_, tag)) + version.to_bytes(8, "big")


def _prefixed(part: bytes) -> bytes:
    return len(part).to_bytes(4, "big") + part


def _kek_id(kek: bytes) -> bytes:
    return _expand(kek, _ID_LABEL)[:ID_BYTES]


def _expand(kek: bytes, info: bytes) -> bytes:
    """The first block of HKDF-Expand with SHA-256. A KEK is uniformly random, so nothing needs extracting."""
    return hmac.digest(kek, info + b"\x01", "sha256")


def _read_kek(path: Path) -> bytes:
    try:
        # Without O_NONBLOCK a FIFO in the file's place would hang the start.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise ConfigError(f"the KEK file {path} cannot be read", found=str(error.strerror)) from None
    try:
        _require_private(path, os.fstat(descriptor))
        line = os.read(descriptor, MAX_FILE_BYTES)
    finally:
        os.close(descriptor)
    try:
        # latin-1 maps every byte to a character, so whatever is no base64 is refused by one rule.
        kek = b64.from_std(line.removesuffix(b"\n").decode("latin-1"), name="the KEK", max_bytes=KEK_BYTES)
    except ProtocolError:
        kek = b""
    if len(kek) != KEK_BYTES:
        raise ConfigError(f"the KEK file {path} holds no KEK", expected="one line: base64 of 32 random bytes")
    return kek


def _require_private(path: Path, info: os.stat_result) -> None:
    if not stat.S_ISREG(info.st_mode):
        raise ConfigError(f"the KEK file {path} is not a regular file")
    if info.st_uid != os.geteuid():
        raise ConfigError(
            f"the KEK file {path} belongs to another user",
            expected=f"uid {os.geteuid()}",
            found=f"uid {info.st_uid}",
            mend=f"chown {os.geteuid()} {path}",
        )
    mode = stat.S_IMODE(info.st_mode)
    if mode != KEK_FILE_MODE:
        raise ConfigError(
            f"the KEK file {path} has the wrong mode",
            expected=f"{KEK_FILE_MODE:04o}",
            found=f"{mode:04o}",
            mend=f"chmod {KEK_FILE_MODE:04o} {path}",
        )
