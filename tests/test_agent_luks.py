# SPDX-License-Identifier: Apache-2.0
"""What a LUKS2 header must be before a key is used on it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.luks import checked_header
from keys.errors import VolumeError
from tests.fakes.luks import DATA, SIZE, binary, metadata, write


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return tmp_path / "disk.img"


def refused(disk: Path, words: str) -> None:
    with pytest.raises(VolumeError) as caught, checked_header(str(disk)):
        pass
    assert words in str(caught.value)
    assert caught.value.mend


def changed(*path: str, to: Any) -> dict[str, Any]:
    """The usual metadata with one member set, or removed where `to` is None."""
    content = metadata()
    parent = content
    for name in path[:-1]:
        parent = parent[name]
    if to is None:
        del parent[path[-1]]
    else:
        parent[path[-1]] = to
    return content


def test_the_copy_is_all_that_is_before_the_data(disk: Path) -> None:
    """The copy holds headers and keyslots, byte for byte, none of the data, and is gone afterwards."""
    write(disk)
    with checked_header(str(disk)) as copy:
        assert os.pread(copy, 2 * DATA, 0) == disk.read_bytes()[:DATA]
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(copy)


def test_what_the_host_writes_afterwards_is_not_in_the_copy(disk: Path) -> None:
    """A header that is exchanged after the check changes nothing."""
    write(disk)
    good = disk.read_bytes()[:DATA]
    with checked_header(str(disk)) as copy:
        write(disk, changed("segments", "0", "encryption", to="cipher_null-ecb"))
        assert os.pread(copy, DATA, 0) == good


@pytest.mark.parametrize("size", [0x4000, 0x8000, 0x10000])
def test_headers_of_all_sizes(disk: Path, size: int) -> None:
    """A header with a larger JSON area is as good."""
    write(disk, size=size)
    with checked_header(str(disk)):
        pass


@pytest.mark.parametrize(
    "content",
    [
        changed("segments", "0", "encryption", to="aes-xts-random"),
        changed("keyslots", "1", to=metadata()["keyslots"]["0"]),
        changed("keyslots", "0", "kdf", "type", to="pbkdf2"),
        changed("config", "requirements", to={"mandatory": []}),
        changed("config", "flags", to=["allow-discards"]),
        changed("tokens", "0", to={"type": "luks2-keyring", "keyslots": ["0"], "key_description": "x"}),
    ],
)
def test_what_a_header_may_be(disk: Path, content: dict[str, Any]) -> None:
    """Integrity tags, several keyslots, either KDF, flags and tokens are ordinary."""
    write(disk, content)
    with checked_header(str(disk)):
        pass


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (changed("segments", "0", "encryption", to="cipher_null-ecb"), "data are not encrypted"),
        (changed("segments", "0", "encryption", to="capi:ecb(cipher_null)-plain"), "data are not encrypted"),
        (changed("segments", "0", "type", to="linear"), "data are not encrypted"),
        (changed("segments", "0", "flags", to=["backup-final"]), "data are not encrypted"),
        (changed("segments", "1", to=metadata()["segments"]["0"]), "one segment"),
        (changed("segments", to={"1": metadata()["segments"]["0"]}), "one segment"),
        (changed("segments", to={}), "one segment"),
        (changed("keyslots", "0", "area", "encryption", to="cipher_null-ecb"), "keyslot is not encrypted"),
        (changed("keyslots", "1", to=changed("keyslots", "0", "area", "encryption", to="cipher_null-cbc-plain")
                 ["keyslots"]["0"]), "keyslot is not encrypted"),
        (changed("keyslots", "0", "type", to="reencrypt"), "keyslot is of another kind"),
        (changed("keyslots", "0", "area", "type", to="datashift"), "keyslot is of another kind"),
        (changed("keyslots", "0", "af", "type", to="none"), "keyslot is of another kind"),
        (changed("keyslots", "0", "kdf", "type", to="raw"), "keyslot is of another kind"),
        (changed("keyslots", "0", "kdf", to=None), "another form"),
        (changed("config", "requirements", to={"mandatory": ["online-reencrypt-v2"]}), "requires"),
        (changed("digests", to={}), "not bound"),
        (changed("digests", "1", to=metadata()["digests"]["0"]), "not bound"),
        (changed("digests", "0", "segments", to=[]), "not bound"),
        (changed("digests", "0", "type", to="crc32"), "not bound"),
        (changed("segments", "0", "offset", to=str(2 * SIZE - 1)), "impossible place"),
        (changed("segments", "0", "offset", to=str((32 << 20) + 1)), "impossible place"),
        (changed("segments", "0", "offset", to="-5"), "impossible place"),
        (changed("segments", "0", "offset", to="9" * 12), "impossible place"),
        (changed("segments", "0", "offset", to=str(DATA * 2)), "no LUKS2 header"),
        (changed("segments", "0", "offset", to=DATA), "another form"),
        (changed("segments", "0", "encryption", to=["aes"]), "another form"),
        (changed("config", to=None), "lacks a member"),
        (changed("more", to={}), "unknown member"),
        (b"[]", "JSON object"),
        (b'{"config":{},"config":{}}', "twice"),
        (json.dumps(metadata()).encode() + b"\0{}", "not strict JSON"),
    ],
)  # fmt: skip
def test_a_header_that_does_not_protect_is_refused(disk: Path, content: Any, words: str) -> None:
    """Null ciphers, reencryption, more than one meaning: no key is used on a header that the host could have made."""
    write(disk, content)
    refused(disk, words)


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"epoch": 4},
        {"algorithm": "crc32"},
        {"at": 0x2000},
        {"version": 1},
        {"content": changed("tokens", to={"0": {}})},
    ],
)
def test_the_two_headers_must_agree(disk: Path, second: bool, options: dict[str, Any]) -> None:
    """Where one header is another than its twin, or damaged, cryptsetup is not left to choose."""
    write(disk)
    data = bytearray(disk.read_bytes())
    start = SIZE if second else 0
    options = {"content": metadata(), **options}
    data[start : start + SIZE] = binary(options.pop("content"), second=second, **options)
    disk.write_bytes(data)
    with pytest.raises(VolumeError), checked_header(str(disk)):
        pass


@pytest.mark.parametrize("at", [100, 300, 5000, SIZE + 100, SIZE + 5000])
def test_a_checksum_is_compared(disk: Path, at: int) -> None:
    """A changed byte under a checksum is a damaged header."""
    write(disk)
    data = bytearray(disk.read_bytes())
    data[at] ^= 1
    disk.write_bytes(data)
    with pytest.raises(VolumeError), checked_header(str(disk)):
        pass


@pytest.mark.parametrize("size", [0, 1, 4096, 0x3000, 0x800000, 1 << 62])
def test_a_size_that_no_header_has(disk: Path, size: int) -> None:
    """The size is one of those that cryptsetup writes, before anything is read by it."""
    write(disk)
    data = bytearray(disk.read_bytes())
    data[8:16] = size.to_bytes(8, "big")
    disk.write_bytes(data)
    refused(disk, "no LUKS2 header")


@pytest.mark.parametrize("keep", [0, 10, 4096, SIZE, 2 * SIZE - 1, DATA - 1])
def test_a_disk_that_ends_early(disk: Path, keep: int) -> None:
    """What is cut short is no volume."""
    write(disk)
    os.truncate(disk, keep)
    refused(disk, "no LUKS2 header")


@pytest.mark.parametrize("name", ["none", "nul\0"])
def test_a_disk_that_is_not_there(tmp_path: Path, name: str) -> None:
    """A missing device, and a name that no device has, are named as such."""
    refused(tmp_path / name, "not there")


def _anything() -> st.SearchStrategy[Callable[[dict[str, Any]], None]]:
    values = st.recursive(
        st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["0", "type"]), inner, max_size=2),
        max_leaves=4,
    )
    paths = st.sampled_from([
        ("config",), ("config", "requirements"), ("segments",), ("segments", "0"), ("segments", "0", "offset"),
        ("segments", "0", "encryption"), ("keyslots",), ("keyslots", "0"), ("keyslots", "0", "area"),
        ("keyslots", "0", "kdf"), ("digests",), ("digests", "0"), ("digests", "0", "segments"),
    ])  # fmt: skip
    return st.builds(lambda path, value: lambda content: _set(content, path, value), paths, values)


def _set(content: Any, path: tuple[str, ...], value: Any) -> None:
    for name in path[:-1]:
        content = content[name]
    content[path[-1]] = value


@settings(max_examples=100, deadline=None)
@given(change=_anything())
def test_any_other_form_is_a_volume_error(change: Callable[[dict[str, Any]], None], tmp_path_factory: Any) -> None:
    """Whatever stands in a member's place, the header passes unharmed or is refused with our error."""
    content = metadata()
    change(content)
    disk = write(tmp_path_factory.getbasetemp() / "fuzzed.img", content)
    try:
        with checked_header(str(disk)) as copy:
            assert os.fstat(copy).st_size == DATA
    except VolumeError:
        pass
