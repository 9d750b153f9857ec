# SPDX-License-Identifier: Apache-2.0
"""`roomkey image measure tpm`: the PCRs of a boot from its files. `make boot-demo` boots a VM with such an image."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from broker.appraisal.images import parse_image
from broker.cli import main
from broker.measure.authenticode import authenticode
from broker.measure.bzimage import patched
from broker.measure.direct_boot import MAX_APPEND_BYTES, Event, events, value
from broker.measure.uki_boot import uki_events
from broker.verifiers.tpm_structures import HASHES as _TPM_HASHES
from broker.verifiers.uki import predict_pcr11
from keys.errors import ConfigError
from tests.fakes.pe import CERTIFICATES, CHECKSUM, HEADERS, OPTIONAL, PE, TABLE, kernel, pe, uki

HASHES = {known.name.lower(): known for known in _TPM_HASHES.values()}

SHA256 = "sha256"
SEPARATOR_ONLY = "3d458cfe55cc03ea1f443f1562beec8df51c75e14a9fcf9a7234a13f198e7969"
# PCR 7 of Debian's OVMF 2022.11 with fresh variables, as `make boot-demo` reads it from a VM.
PCR_7 = "65caf8dd1e0ea7a6347b635d2b379c93b9a1351edc2afc3ecda700e534eb3068"


def changed(data: bytes, at: int, to: bytes) -> bytes:
    return data[:at] + to + data[at + len(to) :]


@given(at=st.integers(0, 0x7FF))
def test_every_byte_counts_but_the_checksum_and_the_certificates_entry(at: int) -> None:
    """A digest covers all of an application but what signing changes."""
    data = pe()
    other = changed(data, at, bytes((data[at] ^ 0xFF,)))
    holes = {*range(CHECKSUM, CHECKSUM + 4), *range(CERTIFICATES, CERTIFICATES + 4)}
    if at in holes:
        assert authenticode(other, SHA256) == authenticode(data, SHA256)
        return
    with contextlib.suppress(ConfigError):  # a header that makes no sense any more
        assert authenticode(other, SHA256) != authenticode(data, SHA256)


def test_a_signature_changes_nothing() -> None:
    """A signed application has the digest that it had before it was signed."""
    assert authenticode(pe(signature=b"s" * 64), SHA256) == authenticode(pe(), SHA256)


def test_the_digest_is_of_headers_sections_in_order_and_the_rest() -> None:
    """Sections count by their place in the file, empty ones not at all, and what follows them counts too."""
    data = pe([(0x600, 0x100), (0, 0), (0x400, 0x200)])
    parts = data[:CHECKSUM], data[CHECKSUM + 4 : CERTIFICATES], data[CERTIFICATES + 8 :]
    assert authenticode(data, "sha384") == hashlib.sha384(b"".join(parts)).digest()


def test_the_entry_of_an_older_header_is_elsewhere() -> None:
    """PE32 has its certificates' entry 16 bytes earlier than PE32+."""
    data = pe(magic=0x10B)
    entry = CERTIFICATES - 16
    assert (
        authenticode(data, SHA256)
        == hashlib.sha256(data[:CHECKSUM] + data[CHECKSUM + 4 : entry] + data[entry + 8 :]).digest()
    )


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "ends too early"),
        (changed(pe(), 0, b"ZM"), "no PE file"),
        (changed(pe(), PE, b"NE"), "no PE file"),
        (changed(pe(), 0x3C, b"\xff\xff\xff\x7f"), "no PE file"),
        (pe()[: OPTIONAL + 1], "ends too early"),
        (pe(magic=0x107), "another kind"),
        (pe(optional_bytes=0x90), "another kind"),
        (changed(pe(), PE + 6, b"\x61\0"), "another kind"),
        (pe(headers=TABLE), "do not end where they say"),
        (pe(headers=0x801), "do not end where they say"),
        (pe(signature=b"s" * 64) + b"more", "not at the end"),
        (pe([(HEADERS - 1, 0x10)]), "overlap"),
        (pe([(0x400, 0x200), (0x500, 0x100)]), "overlap"),
        (pe([(0x400, 0x401)]), "overlap"),
    ],
)
def test_what_firmware_would_not_start_is_refused(data: bytes, why: str) -> None:
    """A file whose headers make no sense has no digest, and the error says why."""
    with pytest.raises(ConfigError, match=why):
        authenticode(data, SHA256)


@pytest.mark.parametrize(
    ("memory", "flags", "address"),
    [
        (512, 2, 0x1FFD6000),
        (2815, 2, 0xAFED6000),
        (2816, 2, 0x7FFD6000),  # from 2.75 GiB on q35 has 2 GiB below 4
        (65536, 2, 0x7FFD6000),
        (65536, 0, 0x37FFE000),  # a kernel that says how far up it can read an initrd
    ],
)
def test_the_header_is_filled_in_as_qemu_does_it(memory: int, flags: int, address: int) -> None:
    """Type of loader, heap, command line, and the initrd's place under the end of the memory."""
    before = kernel(flags=flags, limit=0x37FFFFFF)
    after = patched(before, 0x1234, memory)
    assert after[0x210] == 0xB0
    assert after[0x211] == 0x80
    assert after[0x218:0x220] == address.to_bytes(4, "little") + (0x1234).to_bytes(4, "little")
    assert after[0x224:0x226] == b"\x00\xfe"
    assert after[0x228:0x22C] == b"\x00\x00\x02\x00"
    assert after[:0x210] + after[0x22C:] == before[:0x210] + before[0x22C:]


@pytest.mark.parametrize(
    ("data", "initrd_bytes", "memory", "why"),
    [
        (b"", 1, 512, "no Linux kernel"),
        (changed(kernel(), 0x202, b"NrdS"), 1, 512, "no Linux kernel"),
        (kernel(protocol=0x20B), 1, 512, "no Linux kernel"),
        (kernel(), 1, 0, "no such size"),
        (kernel(), 1, (1 << 20) + 1, "no such size"),
        (kernel(), 512 << 20, 512, "does not fit"),
    ],
)
def test_what_qemu_would_not_boot_is_refused(data: bytes, initrd_bytes: int, memory: int, why: str) -> None:
    """No prediction is made of a boot that cannot be."""
    with pytest.raises(ConfigError, match=why):
        patched(data, initrd_bytes, memory)


def test_firmware_without_keys_of_secure_boot() -> None:
    """PCRs 2, 7 and 8 are what Debian's OVMF leaves there when Secure Boot has no keys."""
    predicted = events(kernel(), b"initrd", "quiet", 512, SHA256)
    assert value(predicted[2], SHA256).hex() == SEPARATOR_ONLY
    assert value(predicted[7], SHA256).hex() == PCR_7
    assert value(predicted[8], SHA256) == bytes(32)


def test_each_input_changes_its_events_only() -> None:
    """Another command line or initrd of the same length is in PCR 9, another kernel in PCR 4, another memory in 4."""
    before = events(kernel(), b"initrd", "quiet", 512, SHA256)
    for after, pcrs in (
        (events(kernel(), b"initrd", "quiet ", 512, SHA256), {9}),
        (events(kernel(), b"INITRD", "quiet", 512, SHA256), {9}),
        (events(kernel(), b"initrd+", "quiet", 512, SHA256), {4, 9}),
        (events(changed(kernel(), 0x500, b"!"), b"initrd", "quiet", 512, SHA256), {4}),
        (events(kernel(), b"initrd", "quiet", 1024, SHA256), {4}),
    ):
        assert {index for index in before if before[index] != after[index]} == pcrs


@pytest.mark.parametrize(
    ("append", "why"),
    [
        ("ü", "printable ASCII"),
        ("a\nb", "printable ASCII"),
        ("a" * (MAX_APPEND_BYTES + 1), "printable"),
        ("vga=1", "vga"),
    ],
)
def test_a_command_line_that_cannot_be_predicted(append: str, why: str) -> None:
    """What QEMU or the kernel would read otherwise is refused."""
    with pytest.raises(ConfigError, match=why):
        events(kernel(), b"initrd", append, 512, SHA256)


def test_a_value_is_the_chain_of_its_events() -> None:
    """Each event extends what was there before."""
    one, two = (Event(hashlib.sha256(name).digest(), "", "") for name in (b"1", b"2"))
    first = hashlib.sha256(bytes(32) + one.digest).digest()
    assert value((one, two), SHA256) == hashlib.sha256(first + two.digest).digest()


STUB = {".sbat": b"sbat,1", ".sdmagic": b"#### LoaderInfo: systemd-stub 252.39-1~deb12u2 ####"}
PARTS = {".osrel": b"ID=debian", ".cmdline": b"quiet\n", ".linux": kernel(), ".initrd": b"initrd"}


def test_a_unified_kernel_image() -> None:
    """Its kernel, command line and initrd are where a direct boot has them, and each section is in PCR 11."""
    image = uki(STUB | PARTS)
    predicted = uki_events(image, (), SHA256)
    assert [event.digest for event in predicted[4][2:]] == [authenticode(image, SHA256), authenticode(kernel(), SHA256)]
    assert predicted[7] == events(kernel(), b"initrd", "quiet", 512, SHA256)[7]
    assert [event.digest for event in predicted[9]] == [
        hashlib.sha256("quiet\0".encode("utf-16-le")).digest(),
        hashlib.sha256(b"initrd").digest(),
    ]
    assert value(predicted[11], SHA256) == predict_pcr11(PARTS, (), HASHES[SHA256])
    assert predicted[12] == ()


def test_a_newer_stub_measures_more_sections() -> None:
    """From 255 on the stub's own sections count, and systemd's phases come behind."""
    parts = STUB | PARTS | {".sdmagic": b"#### LoaderInfo: systemd-stub 257.1 ####"}
    measured = {name: data for name, data in parts.items() if name != ".sdmagic"}
    predicted = uki_events(uki(parts), ("enter-initrd",), SHA256)
    assert value(predicted[11], SHA256) == predict_pcr11(measured, ("enter-initrd",), HASHES[SHA256])


@pytest.mark.parametrize(
    ("parts", "phases", "why"),
    [
        (STUB | PARTS, ("lunch",), "no phase"),
        (STUB | {".linux": kernel(), ".initrd": b"i"}, (), "no unified kernel image"),
        (STUB | PARTS | {".cmdline": b"\xff"}, (), "not ASCII"),
        (PARTS, (), "not known what this stub"),
        (PARTS | {".sdmagic": b"LoaderInfo: systemd-stub 254.1"}, (), "not known what this stub"),
        (STUB | PARTS | {".linux": b"no kernel"}, (), "nothing that UEFI firmware starts"),
    ],
)
def test_an_image_that_cannot_be_predicted(parts: dict[str, bytes], phases: tuple[str, ...], why: str) -> None:
    """What is not known to be measured in one way only is refused."""
    with pytest.raises(ConfigError, match=why):
        uki_events(uki(parts), phases, SHA256)


def test_two_sections_of_one_name() -> None:
    """Which of the two the stub would take is not ours to guess."""
    with pytest.raises(ConfigError, match="two sections"):
        uki_events(pe(named=(".linux", ".linux")), (), SHA256)


def test_a_unified_kernel_image_becomes_an_image(tmp_path: Path) -> None:
    """PCR 11 stands beside PCR 4, and PCR 12 stays zero: no command line from outside."""
    file = tmp_path / "web.efi"
    file.write_bytes(uki(STUB | PARTS))
    result = CliRunner().invoke(main, ["image", "measure", "tpm", "--uki", str(file), "--toml"])
    registers = parse_image(result.stdout).registers
    assert {"sha256:4", "sha256:11"} <= registers.keys()
    assert registers["sha256:12"].values == ("00" * 32,)


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--kernel", "k"),
        ("--uki", "u", "--memory", "1"),
        ("--phase", "sysinit", "--kernel", "k", "--initrd", "i", "--memory", "1"),
    ],
)
def test_what_is_booted_is_said_once(options: tuple[str, ...]) -> None:
    """A kernel with its parts, or a UKI: neither and both are mistakes of use."""
    assert CliRunner().invoke(main, ["image", "measure", "tpm", *options]).exit_code == 2


def measure(folder: Path, *options: str) -> Result:
    (folder / "kernel").write_bytes(kernel())
    (folder / "initrd").write_bytes(b"initrd")
    files = ["--kernel", str(folder / "kernel"), "--initrd", str(folder / "initrd"), "--memory", "512"]
    return CliRunner().invoke(main, ["image", "measure", "tpm", *files, *options])


@pytest.mark.parametrize("bank", ["sha256", "sha384"])
def test_the_image_asks_for_what_was_predicted(tmp_path: Path, bank: str) -> None:
    """The TOML is an image with the predicted values, the recorded PCR 0, and PCR 15 while nobody has capped it."""
    size = hashlib.new(bank).digest_size
    result = measure(tmp_path, "--toml", "--append", "quiet", "--pcr0", "AB" * size, "--once-per-boot", "--bank", bank)
    assert result.exit_code == 0, result.output
    assert f'0 = "{"ab" * size}"  # recorded, not predicted' in result.stdout
    image = parse_image(result.stdout)
    predicted = events(kernel(), b"initrd", "quiet", 512, bank)
    expected = {f"{bank}:{index}": (value(sequence, bank).hex(),) for index, sequence in predicted.items()}
    expected |= {f"{bank}:0": ("ab" * size,), f"{bank}:15": ("00" * size,)}
    assert {name: register.values for name, register in image.registers.items()} == expected


def test_values_are_printed_for_people_and_programs(tmp_path: Path) -> None:
    """A table with what was measured, and the same as JSON; and it says what is missing."""
    result = measure(tmp_path)
    assert result.exit_code == 0
    assert PCR_7 in result.stdout
    assert "initrd" in result.stdout
    assert "does not say which firmware" in result.stderr
    printed = json.loads(measure(tmp_path, "--json").stdout)
    assert printed["pcrs"]["7"] == PCR_7


@pytest.mark.parametrize("pcr0", ["xyz", "ab", "00" * 32])
def test_a_pcr_0_that_is_none(tmp_path: Path, pcr0: str) -> None:
    """A recorded value of another length, of no hex or of zeros is refused."""
    result = measure(tmp_path, "--pcr0", pcr0)
    assert result.exit_code != 0
    assert "--pcr0" in result.output
