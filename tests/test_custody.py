# SPDX-License-Identifier: Apache-2.0
"""Custody: what is sealed opens in its own place under a listed KEK, and nowhere else."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from hypothesis import given, settings
from hypothesis import strategies as st

from keys.custody import rewrap
from keys.custody.local import KEK_BYTES, MAGIC, OVERHEAD_BYTES, LocalCustody
from keys.errors import ConfigError, RoomkeyError, Unavailable, VerificationError

KEK, OLD = bytes(range(32)), bytes(range(32, 64))
PLACE = ("acme", "disk", "web-1", 3)
SECRET = b"correct horse battery staple"


def kek_file(folder: Path, content: bytes = base64.b64encode(KEK) + b"\n", mode: int = 0o400) -> Path:
    path = folder / "kek"
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_sealed_key_opens_in_its_place() -> None:
    """What was sealed for a place comes back from it, and the sealed form is as long as documented."""
    custody = LocalCustody(KEK)
    sealed = custody.seal(*PLACE, SECRET)
    assert custody.open(*PLACE, sealed) == SECRET
    assert len(sealed) == OVERHEAD_BYTES + len(SECRET)
    assert sealed.startswith(MAGIC)
    assert SECRET not in sealed


@pytest.mark.parametrize(
    "other",
    [
        ("acmf", "disk", "web-1", 3),
        ("acme", "disc", "web-1", 3),
        ("acme", "disk", "web-2", 3),
        ("acme", "disk", "web-1", 4),
        ("acmed", "isk", "web-1", 3),
        ("acme", "diskw", "eb-1", 3),
    ],
)
def test_sealed_key_opens_nowhere_else(other: tuple[str, str, str, int]) -> None:
    """A sealed key moved to another owner, type, tag or version, or between the fields of its path, does not open."""
    custody = LocalCustody(KEK)
    with pytest.raises(VerificationError, match="another place"):
        custody.open(*other, custody.seal(*PLACE, SECRET))


def test_each_sealing_differs() -> None:
    """The same key sealed twice gives two nonces and two ciphertexts."""
    custody = LocalCustody(KEK)
    first, second = custody.seal(*PLACE, SECRET), custody.seal(*PLACE, SECRET)
    assert first != second
    assert first[:11] == second[:11]


def test_places_do_not_share_a_key() -> None:
    """Two places sealed with one nonce and one plaintext do not show the same key stream."""
    custody = LocalCustody(KEK, random=bytes)
    first = custody.seal("acme", "disk", "a", 1, SECRET)
    second = custody.seal("acme", "disk", "b", 1, SECRET)
    assert first[: OVERHEAD_BYTES - 16] == second[: OVERHEAD_BYTES - 16]
    assert first[23:] != second[23:]
    assert first[23 : 23 + len(SECRET)] != second[23 : 23 + len(SECRET)]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_changed_bit_is_refused(data: st.DataObject) -> None:
    """No single changed bit of a sealed key goes unnoticed."""
    custody = LocalCustody(KEK)
    sealed = bytearray(custody.seal(*PLACE, SECRET))
    bit = data.draw(st.integers(0, len(sealed) * 8 - 1))
    sealed[bit // 8] ^= 1 << bit % 8
    with pytest.raises((VerificationError, Unavailable)):
        custody.open(*PLACE, bytes(sealed))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=120), st.booleans())
def test_garbage_raises_only_our_errors(garbage: bytes, with_magic: bool) -> None:
    """Whatever bytes the store gives back, only our own errors come out."""
    custody = LocalCustody(KEK)
    sealed = (custody.seal(*PLACE, b"")[:11] if with_magic else b"") + garbage
    for call in (lambda: custody.open(*PLACE, sealed), lambda: custody.needs_rewrap(sealed)):
        try:
            call()
        except RoomkeyError:
            continue


def test_truncated_sealed_key_is_refused() -> None:
    """A sealed key with a byte less than the smallest possible is no sealed key."""
    custody = LocalCustody(KEK)
    empty = custody.seal(*PLACE, b"")
    assert custody.open(*PLACE, empty) == b""
    for broken in (empty[:-1], b"RK2" + empty[3:]):
        with pytest.raises(VerificationError, match="not a sealed key"):
            custody.open(*PLACE, broken)
        with pytest.raises(VerificationError, match="not a sealed key"):
            custody.needs_rewrap(broken)


def test_old_keks_open_and_the_current_one_seals() -> None:
    """After a rotation old keys still open, need rewrapping, and are afterwards under the new KEK alone."""
    sealed = LocalCustody(OLD).seal(*PLACE, SECRET)
    both = LocalCustody(KEK, [OLD])
    assert both.open(*PLACE, sealed) == SECRET
    assert both.needs_rewrap(sealed)
    again = rewrap(both, *PLACE, sealed)
    assert not both.needs_rewrap(again)
    assert LocalCustody(KEK).open(*PLACE, again) == SECRET


def test_unlisted_kek_is_unavailable_and_says_so() -> None:
    """A key under a KEK that nobody listed is not called forged: the operator learns which KEK is missing."""
    sealed = LocalCustody(OLD).seal(*PLACE, SECRET)
    with pytest.raises(Unavailable) as caught:
        LocalCustody(KEK).open(*PLACE, sealed)
    assert sealed[3:11].hex() in str(caught.value)
    assert "old_kek_files" in str(caught.value.mend)


def test_derived_secrets_are_their_purposes_and_contexts_own() -> None:
    """Derived secrets have 32 bytes, repeat for the same words, and differ for any others, and for another KEK."""
    custody = LocalCustody(KEK, [OLD])
    secret = custody.derive(b"tpm activation", b"session")
    assert secret == LocalCustody(KEK).derive(b"tpm activation", b"session")
    others = [
        custody.derive(b"tpm activation", b"sessioo"),
        custody.derive(b"tpm activatio", b"nsession"),
        custody.derive(b"tpm activationsession", b""),
        LocalCustody(OLD).derive(b"tpm activation", b"session"),
    ]
    assert len(secret) == 32
    assert len({secret, *others}) == 5


def test_kek_does_not_show() -> None:
    """Neither the object's text nor its errors hold the KEK."""
    custody = LocalCustody(KEK)
    for text in (repr(custody), str(custody)):
        assert KEK.hex() not in text
        assert repr(KEK) not in text
        assert base64.b64encode(KEK).decode() not in text


def test_kek_of_wrong_length_is_misuse() -> None:
    """A KEK that is not 32 bytes is a programming error, in either list."""
    with pytest.raises(RuntimeError):
        LocalCustody(KEK[:-1])
    with pytest.raises(RuntimeError):
        LocalCustody(KEK, [OLD + b"x"])


def test_kek_files_are_read(tmp_path: Path) -> None:
    """A KEK file is one line of base64, with or without its newline; old ones are read the same way."""
    (tmp_path / "old").mkdir()
    new = kek_file(tmp_path)
    old = kek_file(tmp_path / "old", base64.b64encode(OLD))
    custody = LocalCustody.from_files(new, [old])
    assert custody.open(*PLACE, LocalCustody(KEK).seal(*PLACE, SECRET)) == SECRET
    assert custody.open(*PLACE, LocalCustody(OLD).seal(*PLACE, SECRET)) == SECRET
    assert not custody.needs_rewrap(LocalCustody(KEK).seal(*PLACE, SECRET))


@pytest.mark.parametrize("mode", [0o600, 0o440, 0o404, 0o500, 0o4400])
def test_kek_file_of_another_mode_is_refused(tmp_path: Path, mode: int) -> None:
    """A KEK file that anybody else could read, or anybody could write, is refused with the command that mends it."""
    with pytest.raises(ConfigError) as caught:
        LocalCustody.from_files(kek_file(tmp_path, mode=mode))
    assert caught.value.mend == f"chmod 0400 {tmp_path / 'kek'}"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        base64.b64encode(KEK[:-1]),
        base64.b64encode(KEK + b"\0"),
        base64.b64encode(KEK) + b"\n\n",
        base64.b64encode(KEK) + b"\r\n",
        b" " + base64.b64encode(KEK),
        base64.b64encode(KEK)[:-2] + b"1=",
        base64.b64encode(KEK).rstrip(b"="),
        KEK,
        b"\xff" * 44,
        base64.b64encode(KEK) * 10,
    ],
)
def test_kek_file_with_anything_else_is_refused(tmp_path: Path, content: bytes) -> None:
    """Only one line of canonical base64 of 32 bytes is a KEK, and the error shows none of what was there."""
    with pytest.raises(ConfigError, match="holds no KEK") as caught:
        LocalCustody.from_files(kek_file(tmp_path, content))
    assert caught.value.found is None


def test_kek_file_behind_a_link_is_refused(tmp_path: Path) -> None:
    """A symbolic link in the KEK file's place is refused: who may move it decides which key it is."""
    link = tmp_path / "link"
    link.symlink_to(kek_file(tmp_path))
    with pytest.raises(ConfigError, match="cannot be read"):
        LocalCustody.from_files(link)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_kek_file_must_be_a_file(tmp_path: Path, make: Callable[[Path, int], None]) -> None:
    """A FIFO or a folder in the KEK file's place is refused at once."""
    make(tmp_path / "kek", 0o400)
    with pytest.raises(ConfigError, match="not a regular file"):
        LocalCustody.from_files(tmp_path / "kek")


def test_missing_kek_file_is_an_error(tmp_path: Path) -> None:
    """No KEK file, no custody."""
    with pytest.raises(ConfigError, match="No such file"):
        LocalCustody.from_files(tmp_path / "kek")


def test_kek_file_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A KEK file that another user owns, and so may change, is refused."""
    path = kek_file(tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    with pytest.raises(ConfigError, match="another user"):
        LocalCustody.from_files(path)


def test_kek_length_is_what_init_makes() -> None:
    """A KEK has 32 bytes: AES-256 and the strength of its derivations."""
    assert KEK_BYTES == 32


def test_sealed_form_is_the_documented_one() -> None:
    """What the header of the module writes down opens a sealed key with a library's HKDF: the form on disk is fixed."""
    sealed = LocalCustody(KEK).seal(*PLACE, SECRET)
    place = b"\0\0\0\4acme\0\0\0\4disk\0\0\0\5web-1" + (3).to_bytes(8, "big")
    key = HKDFExpand(hashes.SHA256(), 32, b"roomkey seal v1\0" + place).derive(KEK)
    assert sealed[3:11] == HKDFExpand(hashes.SHA256(), 8, b"roomkey kek id v1\0").derive(KEK)
    assert AESGCM(key).decrypt(sealed[11:23], sealed[23:], place) == SECRET
