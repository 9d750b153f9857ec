# SPDX-License-Identifier: Apache-2.0
"""What a LUKS2 header must be before a key is used on it."""

from __future__ import annotations

import copy
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.luks import checked_header
from keys.errors import VolumeError
from tests.fakes.luks import DATA, SALT, SIZE, binary, metadata, rewrite, write

Content = dict[str, Any]
HMAC = {"type": "hmac(sha256)", "journal_encryption": "none", "journal_integrity": "none"}
PBKDF2 = {"type": "pbkdf2", "hash": "sha256", "iterations": 1000, "salt": SALT}
MEBIBYTE = 1 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return tmp_path / "disk.img"


def refused(disk: Path, words: str) -> None:
    with pytest.raises(VolumeError) as caught, checked_header(str(disk)):
        pass
    assert words in str(caught.value)
    assert caught.value.mend


def changed(path: str, to: Any = None, content: Content | None = None) -> Content:
    """The usual metadata with the member at `path` set, or removed where `to` is None."""
    content = metadata() if content is None else content
    parent = content
    *way, last = path.split(".")
    for name in way:
        parent = parent[name]
    if to is None:
        del parent[last]
    else:
        parent[last] = to
    return content


def two_slots(offset: int = 32768 + 258048) -> Content:
    """Two keyslots of one volume key, the second at `offset`."""
    content = metadata()
    content["keyslots"]["1"] = copy.deepcopy(content["keyslots"]["0"])
    content["keyslots"]["1"]["area"]["offset"] = str(offset)
    content["digests"]["0"]["keyslots"] = ["0", "1"]
    return content


def tagged() -> Content:
    """A volume with integrity tags: its keyslot holds the key for them too."""
    content = metadata()
    content["segments"]["0"]["integrity"] = dict(HMAC)
    content["keyslots"]["0"]["key_size"] = 96
    content["keyslots"]["0"]["area"]["size"] = "385024"
    return content


# --- what passes ---


def test_the_copy_is_all_that_is_before_the_data(disk: Path) -> None:
    """The copy holds headers and keyslots, byte for byte, none of the data, and is gone afterwards."""
    write(disk)
    with checked_header(str(disk)) as header:
        assert os.pread(header.descriptor, 2 * DATA, 0) == disk.read_bytes()[:DATA]
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(header.descriptor)


def test_what_the_host_writes_afterwards_is_not_in_the_copy(disk: Path) -> None:
    """A header that is exchanged after the check changes nothing."""
    write(disk)
    good = disk.read_bytes()[:DATA]
    with checked_header(str(disk)) as header:
        write(disk, changed("segments.0.encryption", "cipher_null-ecb"))
        assert os.pread(header.descriptor, DATA, 0) == good


@pytest.mark.parametrize("size", [0x4000, 0x8000, 0x10000])
def test_headers_of_all_sizes(disk: Path, size: int) -> None:
    """A header with a larger JSON area is as good."""
    content = changed("config.json_size", str(size - 4096))
    content["config"]["keyslots_size"] = str(DATA - 2 * size)
    content["keyslots"]["0"]["area"]["offset"] = str(2 * size)
    write(disk, content, size=size)
    with checked_header(str(disk)):
        pass


GOOD: dict[str, Content] = {
    "as usual": metadata(),
    "two keyslots": two_slots(),
    "integrity tags": tagged(),
    "integrity tags with the IV in them": changed("segments.0.encryption", "aes-xts-random", tagged()),
    "PBKDF2": changed("keyslots.0.kdf", PBKDF2),
    "PBKDF2 with SHA-512": changed("keyslots.0.kdf", PBKDF2 | {"hash": "sha512"}),
    "a keyslot that is preferred": changed("keyslots.0.priority", 2),
    "large sectors": changed("segments.0.sector_size", 4096),
    "a keyslot that fills the area": changed("config.keyslots_size", "258048"),
    "a keyslot that is as small as can be": changed("keyslots.0.area.size", "256000"),
    "32 tokens": changed("tokens", {str(n): {"type": "clevis", "keyslots": []} for n in range(32)}),
    "a fixed size": changed("segments.0.size", str(MEBIBYTE)),
    "a recovery passphrase": changed("tokens.0", {"type": "systemd-recovery", "keyslots": ["0"]}),
    "a note of our own": changed("tokens.3", {"type": "roomkey", "keyslots": [], "key": "acme/disk/root"}),
    "after a reencryption": {
        **metadata(), "digests": {"1": metadata()["digests"]["0"]}, "keyslots": {"1": metadata()["keyslots"]["0"]}
    },
}  # fmt: skip
GOOD["after a reencryption"]["digests"]["1"]["keyslots"] = ["1"]


@pytest.mark.parametrize("name", GOOD)
def test_what_a_header_may_be(disk: Path, name: str) -> None:
    """What cryptsetup makes for passphrases and with integrity tags is ordinary."""
    write(disk, GOOD[name])
    with checked_header(str(disk)) as header:
        assert header.uuid == "2b1c4f6e-0000-4000-8000-000000000000"
        assert header.volume.offset == DATA


def test_what_is_told_of_a_volume(disk: Path) -> None:
    """Cipher, sizes, keyslots and tokens, as the header has them."""
    content = changed("segments.0.size", str(MEBIBYTE), two_slots())
    write(disk, changed("tokens.0", {"type": "clevis", "keyslots": ["1"]}, content))
    with checked_header(str(disk)) as header:
        volume = header.volume
    assert volume[:7] == ("aes-xts-plain64", 512, DATA, MEBIBYTE, False, (0, 1), ("clevis",))


# --- what does not ---

CIPHERS = ["cipher_null-ecb", "capi:ecb(cipher_null)-plain", "capi:xts(ecb(aes-generic))-plain64", "aes-xts-plain",
           "aes-xts-plain64 ", "AES-XTS-PLAIN64", "aes-cbc-essiv:sha256", "serpent-xts-plain64", "aes-xts-random",
           "", 5, ["aes-xts-plain64"], None]  # fmt: skip
NUMBERS = ["", "-1", "+1", "01", "1.0", "0x8000", " 1", "1 ", "9" * 19, 32768, True, ["1"], {}]

# Where, what stands there (None: nothing), and the words that name the defect.
BAD: dict[str, tuple[list[Any], str]] = {
    "segments.0.encryption": (CIPHERS, "data's cipher|lacks a member"),
    "segments.0.type": (["linear", "Crypt", "", 1, None], "segment's type|lacks a member"),
    "segments.0.iv_tweak": (["1", "00", 0, "", None], "iv_tweak|lacks a member"),
    "segments.0.sector_size": ([0, 256, 8192, 513, "512", True, 512.0, None], "sector_size|lacks a member|strict JSON"),
    "segments.0.size": ([*NUMBERS, "0", "511", "513", "Dynamic", None], "segment's size|lacks a member"),
    "segments.0.offset": (
        [*NUMBERS, "0", str(2 * SIZE), str(DATA - 4096), str(DATA + 1), str(33 << 20), None],
        "segment's offset|impossible place|too far|lacks a member",
    ),
    "segments.0.flags": ([["backup-final"], ["in-reencryption"], []], "segment has flags"),
    "segments.0.integrity": (
        [{}, "hmac(sha256)", HMAC | {"type": "none"}, HMAC | {"type": "crc32c"}, HMAC | {"journal_integrity": "crc"},
         HMAC | {"more": 1}],
        "segment's integrity",
    ),
    "segments.0.more": ([1], "unknown member"),
    "segments.1": ([metadata()["segments"]["0"]], "one segment"),
    "segments": ([{}, {"x": metadata()["segments"]["0"]}, {"00": {}}, [], None], "one segment|numbers|lacks a member"),
    "segments.0": (["", [], 1], "JSON object"),
    "keyslots": ([{}, [], {"x": {}}, {"-1": {}}, {str(n): {} for n in range(33)}, None],
                 "no keyslot|numbers|lacks a member"),
    "keyslots.0": (["", [], 1], "JSON object"),
    "keyslots.0.type": (["reencrypt", "luks1", "", 2, None], "keyslot 0's type|lacks a member"),
    "keyslots.0.key_size": ([32, 63, 65, 96, 128, 0, "64", None], "keyslot 0's key_size|lacks a member"),
    "keyslots.0.priority": ([3, -1, "1", True], "priority"),
    "keyslots.0.mode": (["reencrypt"], "unknown member"),
    "keyslots.0.area": ([[], "raw"], "JSON object"),
    "keyslots.0.area.type": (["datashift", "journal", "none", "checksum", None], "area.type|lacks a member"),
    "keyslots.0.area.encryption": (
        ["cipher_null-ecb", "capi:ecb(cipher_null)-plain", "aes-cbc-essiv:sha256", "aes-xts-random", "", 1, None],
        "area.encryption|lacks a member",
    ),
    "keyslots.0.area.key_size": ([16, 32, 0, "64", None], "area.key_size|lacks a member"),
    "keyslots.0.area.offset": (
        [*NUMBERS, "0", "4096", str(2 * SIZE - 4096), str(2 * SIZE + 512), str(DATA), str(DATA - 4096), None],
        "area.offset|impossible place|lacks a member",
    ),
    "keyslots.0.area.size": (
        [*NUMBERS, "0", "255999", str(DATA - 2 * SIZE + 1), None], "area.size|impossible place|lacks a member"
    ),
    "keyslots.0.area.shift": (["1"], "unknown member"),
    "keyslots.0.af": ([[], ""], "JSON object"),
    "keyslots.0.af.type": (["none", "", 1, None], "af.type|lacks a member"),
    "keyslots.0.af.stripes": ([1, 3999, 4001, "4000", None], "af.stripes|lacks a member"),
    "keyslots.0.af.hash": (["sha1", "sha512", "md5", "", None], "af.hash|lacks a member"),
    "keyslots.0.kdf": (
        [
            {}, [], {"type": "raw"}, {"type": "argon2i", "time": 4, "memory": 32, "cpus": 1, "salt": SALT},
            PBKDF2 | {"hash": "sha1"}, PBKDF2 | {"hash": 256}, PBKDF2 | {"iterations": 999},
            PBKDF2 | {"iterations": 10_000_001}, PBKDF2 | {"iterations": "1000"}, PBKDF2 | {"iterations": True},
            PBKDF2 | {"salt": "?"}, PBKDF2 | {"salt": "AAE"}, PBKDF2 | {"more": 1}, {"type": "pbkdf2"},
            PBKDF2 | {"salt": "AAAA" * 30},
        ],
        "keyslot 0's kdf",
    ),
    "keyslots.0.kdf.time": ([0, 65, -1, "4", None], "kdf.time|lacks a member"),
    "keyslots.0.kdf.memory": ([0, 31, (1 << 20) + 1, "32", None], "kdf.memory|lacks a member"),
    "keyslots.0.kdf.cpus": ([0, 5, "1", None], "kdf.cpus|lacks a member"),
    "keyslots.0.kdf.salt": ([1, "AAB", "A===", None], "kdf.salt|lacks a member"),
    "keyslots.1": ([metadata()["keyslots"]["0"]], "lie over each other"),
    "digests": ([{}, [], None], "one digest|numbers|lacks a member"),
    "digests.0": (["", []], "JSON object"),
    "digests.1": ([metadata()["digests"]["0"]], "one digest"),
    "digests.0.type": (["crc32", "", None], "digest's type|lacks a member"),
    "digests.0.segments": ([[], ["1"], ["0", "0"], ["0", "1"], "0", None], "digest's segments|lacks a member"),
    "digests.0.keyslots": (
        [[], ["1"], ["0", "1"], ["0", "0"], "0", [0], None], "digest's keyslots|other keyslots|lacks a member"
    ),
    "digests.0.hash": (["sha1", "crc32", 1, "sha512", None], "digest's hash|another length|lacks a member"),
    "digests.0.iterations": ([0, 999, 10_000_001, "1000", None], "digest's iterations|lacks a member"),
    "digests.0.salt": (["?", 1, None], "digest's salt|lacks a member"),
    "digests.0.digest": (["", "AAAA", "?", 1, None], "digest's digest|lacks a member"),
    "digests.0.more": ([1], "unknown member"),
    "tokens": ([[], {"x": {}}, {str(n): {} for n in range(33)}, None], "numbers|lacks a member"),
    "tokens.0": (
        [
            "", {}, {"type": "luks2-keyring", "keyslots": ["0"], "key_description": "x"},
            {"type": "evil", "keyslots": []}, {"type": 1, "keyslots": []}, {"type": "roomkey"},
            {"type": "roomkey", "keyslots": ["7"]}, {"type": "roomkey", "keyslots": ["0", "0"]},
            {"type": "roomkey", "keyslots": [0]}, {"type": "roomkey", "keyslots": "0"},
        ],
        "token 0",
    ),
    "config": ([[], "", None], "JSON object|lacks a member"),
    "config.requirements": (
        [{"mandatory": ["online-reencrypt-v2"]}, {"mandatory": ["opal"]}, {"mandatory": []}, {}, []], "requires"
    ),
    "config.flags": ([["allow-discards"], ["no-journal"], []], "sets flags"),
    "config.more": ([1], "unknown member"),
    "config.json_size": ([*NUMBERS, "0", "12287", "16384", None], "json_size|lacks a member"),
    "config.keyslots_size": (
        [*NUMBERS, "0", "4095", str(DATA), None], "keyslots_size|impossible place|lacks a member"
    ),
    "more": ([{}], "unknown member"),
}  # fmt: skip
MUTANTS = [(path, value, words) for path, (values, words) in BAD.items() for value in values]


def test_there_are_many_mutants() -> None:
    """At least 200 headers, each with a defect of its own, stand in the table."""
    assert len({(path, json.dumps(value)) for path, value, _ in MUTANTS}) >= 200


@pytest.mark.parametrize(("path", "value", "words"), MUTANTS)
def test_a_header_that_does_not_protect_is_refused(disk: Path, path: str, value: Any, words: str) -> None:
    """Each defect is named: no key is used on a header that the host could have made."""
    write(disk, changed(path, value))
    with pytest.raises(VolumeError, match=words) as caught, checked_header(str(disk)):
        pass
    assert caught.value.mend


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (two_slots(32768 + 258048 - 4096), "keyslots 0 and 1 lie over each other"),
        (two_slots(32768 - 4096), "keyslot 1 lies at an impossible place"),
        (changed("segments.0.encryption", "cipher_null-ecb", tagged()), "data's cipher"),
        (changed("keyslots.0.key_size", 64, tagged()), "key_size"),
        (changed("keyslots.0.area.size", "258048", tagged()), "impossible place"),
        (changed("segments.0.integrity", None, tagged()), "key_size"),
        (changed("digests.0.keyslots", ["0"], two_slots()), "other keyslots"),
        (b"[]", "JSON object"),
        (b'{"config":{},"config":{}}', "twice"),
        (json.dumps(metadata()).encode() + b"\0{}", "not strict JSON"),
        (json.dumps(metadata()).encode() + b" x", "not strict JSON"),
    ],
)
def test_defects_of_more_than_one_member(disk: Path, content: Any, words: str) -> None:
    """Areas over each other, tags without their key, a JSON that can be read in two ways."""
    write(disk, content)
    refused(disk, words)


def test_a_keyslots_area_of_broken_blocks(disk: Path) -> None:
    """Also where everything would fit into it."""
    write(disk, changed("config.keyslots_size", str(DATA - 2 * SIZE - 512)))
    refused(disk, "keyslots_size is no number of blocks")


def test_a_defect_is_told_with_what_was_expected(disk: Path) -> None:
    """What stands there, cut to a bearable length, beside what should; and neither where there is nothing to say."""
    write(disk, changed("segments.0.encryption", "x" * 500))
    with (
        pytest.raises(VolumeError, match=f"expected aes-xts-plain64, found {'x' * 128}[^x]"),
        checked_header(str(disk)),
    ):
        pass
    write(disk, changed("keyslots", {}))
    with pytest.raises(VolumeError) as caught, checked_header(str(disk)):
        pass
    assert "None" not in str(caught.value)
    assert "expected" not in str(caught.value)


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epoch": 4}, "the two headers differ: found epoch|the two headers differ"),
        ({"label": b"other"}, "label"),
        ({"uuid": b"2b1c4f6e-0000-4000-8000-000000000001"}, "uuid"),
        ({"subsystem": b"other"}, "subsystem"),
        ({"algorithm": "crc32"}, "checksum"),
        ({"at": 0x2000}, "another place"),
        ({"version": 1}, "no LUKS2 header|another place"),
        ({"padding": b"\1"}, "padding"),
        ({"more": b"\1"}, "padding"),
        ({"content": changed("tokens.0", {"type": "clevis", "keyslots": []})}, "json"),
    ],
)
def test_the_two_headers_must_agree(disk: Path, second: bool, options: dict[str, Any], words: str) -> None:
    """Where one header is another than its twin, or damaged, cryptsetup is not left to choose."""
    write(disk)
    data = bytearray(disk.read_bytes())
    start = SIZE if second else 0
    options = {"content": metadata(), **options}
    data[start : start + SIZE] = binary(options.pop("content"), second=second, **options)
    disk.write_bytes(data)
    with pytest.raises(VolumeError, match=words), checked_header(str(disk)):
        pass


@pytest.mark.parametrize("at", [100, 300, 5000, SIZE + 100, SIZE + 5000])
def test_a_checksum_is_compared(disk: Path, at: int) -> None:
    """A changed byte under a checksum is a damaged header."""
    write(disk)
    data = bytearray(disk.read_bytes())
    data[at] ^= 1
    disk.write_bytes(data)
    refused(disk, "checksum")


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


# --- which volume it is ---


def test_another_volume_is_refused(disk: Path) -> None:
    """With a pin only the volume that it is of passes, however good the header of the other is."""
    write(disk)
    with checked_header(str(disk)) as header:
        pin = header.volume.pin
    with checked_header(str(disk), pin):
        pass
    write(disk, changed("digests.0.digest", "A" * 43 + "="))
    with pytest.raises(VolumeError, match="another volume") as caught, checked_header(str(disk), pin):
        pass
    assert pin in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        changed("segments.0.offset", str(DATA + 4096)), changed("segments.0.size", str(MEBIBYTE)),
        changed("segments.0.sector_size", 4096), changed("digests.0.salt", "A" * 43 + "="),
        changed("digests.0.iterations", 1001), tagged(),
    ],
)  # fmt: skip
def test_the_pin_holds_all_that_says_how_data_are_read(disk: Path, content: Content) -> None:
    """Where, how much, how encrypted and by which key: each is another pin."""
    write(disk)
    with checked_header(str(disk)) as header:
        pin = header.volume.pin
    write(disk, content)
    with checked_header(str(disk)) as other:
        assert other.volume.pin != pin


def _cryptsetup(*words: object, key: bytes) -> None:
    subprocess.run(
        ["cryptsetup", "--batch-mode", "--key-file", "-", *map(str, words)], input=key, check=True, capture_output=True
    )


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume that cryptsetup made."""
    disk = tmp_path_factory.mktemp("real") / "disk.img"
    with disk.open("wb") as file:
        file.truncate(32 * MEBIBYTE)
    _cryptsetup("luksFormat", "--type", "luks2", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", 1000, disk, key=b"1")
    return disk


def test_the_pin_outlives_passphrases(real: Path, tmp_path: Path) -> None:
    """A passphrase more, converted, a passphrase less, a token: cryptsetup changes the header, and the pin stays."""
    with checked_header(str(real)) as header:
        pin = header.volume.pin
    second = tmp_path / "second"
    second.write_bytes(b"2")
    _cryptsetup(
        "luksAddKey", "--pbkdf", "argon2id", "--pbkdf-force-iterations", 4, "--pbkdf-memory", 32, real, second, key=b"1"
    )
    with checked_header(str(real), pin) as header:
        assert header.volume.keyslots == (0, 1)
    _cryptsetup("luksConvertKey", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", 2000, "-S", 1, real, key=b"2")
    _cryptsetup("luksKillSlot", real, 0, key=b"2")
    note = tmp_path / "token"
    note.write_text('{"type": "roomkey", "keyslots": ["1"], "key": "acme/disk/root"}')
    subprocess.run(["cryptsetup", "token", "import", "--json-file", note, real], check=True, capture_output=True)
    with checked_header(str(real), pin) as header:
        assert (header.volume.keyslots, header.volume.tokens) == ((1,), ("roomkey",))


def test_a_reencryption_is_another_volume(real: Path, tmp_path: Path) -> None:
    """With a new volume key the header is sound, and its pin another."""
    disk = tmp_path / "disk.img"
    disk.write_bytes(real.read_bytes())
    with checked_header(str(disk)) as header:
        pin, [slot] = header.volume.pin, header.volume.keyslots
    key = tmp_path / "key"
    key.write_bytes(b"2" if slot else b"1")
    subprocess.run(
        ["cryptsetup", "reencrypt", "--batch-mode", "--force-offline-reencrypt", "--key-slot", str(slot),
         "--key-file", key, "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", disk],
        check=True, capture_output=True,
    )  # fmt: skip
    with checked_header(str(disk)) as header:
        assert header.volume.pin != pin


def test_a_null_cipher_in_a_real_header_is_refused(real: Path, tmp_path: Path) -> None:
    """The forgery that opens with the right key: everything of the volume's own, but for the data's cipher."""
    disk = tmp_path / "disk.img"
    disk.write_bytes(real.read_bytes())

    def forge(content: Content) -> None:
        content["segments"]["0"]["encryption"] = "cipher_null-ecb"

    rewrite(disk, forge)
    refused(disk, "data's cipher")


# --- whatever stands there ---


def _anything() -> st.SearchStrategy[Callable[[Content], object]]:
    values = st.recursive(
        st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["0", "type"]), inner, max_size=2),
        max_leaves=4,
    )
    paths = st.sampled_from([path for path in BAD if "more" not in path])
    return st.builds(lambda path, value: lambda content: _set(content, path.split("."), value), paths, values)


def _set(content: Any, path: list[str], value: Any) -> None:
    for name in path[:-1]:
        content = content[name]
    content[path[-1]] = value


@settings(max_examples=200, deadline=None)
@given(change=_anything())
def test_any_other_form_is_a_volume_error(change: Callable[[Content], object], tmp_path_factory: Any) -> None:
    """Whatever stands in a member's place, the header passes unharmed or is refused with our error."""
    content = metadata()
    change(content)
    disk = write(tmp_path_factory.getbasetemp() / "fuzzed.img", content)
    try:
        with checked_header(str(disk)) as header:
            assert os.fstat(header.descriptor).st_size == DATA
    except VolumeError:
        pass
