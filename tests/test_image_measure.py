# SPDX-License-Identifier: Apache-2.0
"""`roomkey image measure`: launch digests of AMD guests."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import struct
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.appraisal.images import parse_image
from broker.cli import image_measure, main
from broker.cli.image_measure import Launch, Mode, Vmm, launch_digest
from broker.verifiers.snp_id_key import key_digest
from keys.errors import ConfigError

PAGE = 4096
FOOTER, HASHES, RESET, METADATA = (
    uuid.UUID(text).bytes_le
    for text in (
        "96b582de-1fb2-45f7-baea-a366c55a082d",
        "7255371f-3a3b-4b04-927b-1da6efa8d454",
        "00f771de-1a7e-4fcb-890e-68c77e2fb44e",
        "dc886566-984a-4798-a75e-5585a7bf67cc",
    )
)
SEC_MEM, SECRETS, CPUID, KERNEL_HASHES = 1, 2, 3, 0x10
SECTIONS = (
    (0x800000, 2 * PAGE, SEC_MEM), (0x80D000, PAGE, SECRETS), (0x80E000, PAGE, CPUID),
    (0x80F000, PAGE, KERNEL_HASHES),
)  # fmt: skip


def firmware(sections: Sequence[tuple[int, int, int]] = SECTIONS, *, reset: bool = True, size: int = PAGE) -> bytes:
    """A firmware image's last page: SEV metadata, and the GUID table that leads to them."""
    metadata = b"ASEV" + struct.pack("<III", 16 + 12 * len(sections), 1, len(sections))
    metadata += b"".join(struct.pack("<III", *section) for section in sections)
    entries = [(HASHES, struct.pack("<II", 0x80FC00, 0x400)), (METADATA, struct.pack("<I", 2048))]
    if reset:
        entries.append((RESET, struct.pack("<I", 0x80B004)))
    table = b"".join(data + struct.pack("<H", len(data) + 18) + guid for guid, data in entries)
    footer = struct.pack("<H", len(table) + 18) + FOOTER
    tail = metadata.ljust(2048 - len(table) - len(footer) - 32, b"\0") + table + footer + bytes(32)
    return bytes(size - len(tail)) + tail


@pytest.fixture
def ovmf(tmp_path: Path) -> Path:
    path = tmp_path / "OVMF.fd"
    path.write_bytes(firmware())
    return path


def snp_page(digest: bytes, kind: int, gpa: int, contents: bytes = bytes(48)) -> bytes:
    """PAGE_INFO of AMD 56860, 8.17.2, hashed."""
    info = digest + contents + struct.pack("<HBBBBBBQ", 0x70, kind, 0, 0, 0, 0, 0, gpa)
    assert len(info) == 112
    return hashlib.sha384(info).digest()


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["image", "measure", *map(str, arguments)])


def test_snp_digest_is_the_specifications(ovmf: Path, tmp_path: Path) -> None:
    """Firmware, metadata pages and CPU states are hashed page by page, in this order."""
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(b"kernel")
    launch = Launch(Mode.SNP, ovmf, kernel=kernel, append="ro", vcpus=2, vcpu_type="EPYC-Milan")
    library: Any = importlib.import_module("sevsnpmeasure.vmsa")
    hashes: Any = importlib.import_module("sevsnpmeasure.sev_hashes")
    table = hashes.SevHashes(str(kernel), None, "ro").construct_table()
    mode: Any = importlib.import_module("sevsnpmeasure.sev_mode").SevMode  # type: ignore[attr-defined]
    digest = snp_page(bytes(48), 1, 2**32 - PAGE, hashlib.sha384(firmware()).digest())
    digest = snp_page(snp_page(digest, 3, 0x800000), 3, 0x801000)
    digest = snp_page(snp_page(digest, 5, 0x80D000), 6, 0x80E000)
    page = (bytes(0xC00) + table).ljust(PAGE, b"\0")
    digest = snp_page(digest, 1, 0x80F000, hashlib.sha384(page).digest())
    for vmsa in library.VMSA(mode.SEV_SNP, 0x80B004, 0xA00F11, 1).pages(2):
        digest = snp_page(digest, 2, 0xFFFFFFFFF000, hashlib.sha384(vmsa).digest())
    assert launch_digest(launch) == digest


def test_what_the_digest_depends_on(ovmf: Path, tmp_path: Path) -> None:
    """Everything that a launch names changes its digest, and nothing else does."""
    for name in ("kernel", "initrd"):
        (tmp_path / name).write_bytes(name.encode())
    kernel, initrd = tmp_path / "kernel", tmp_path / "initrd"
    other = tmp_path / "other.fd"
    other.write_bytes(b"\1" + firmware()[1:])
    base: dict[str, Any] = {"mode": Mode.SNP, "firmware": ovmf, "vcpu_type": "EPYC-Milan"}
    changes: list[dict[str, Any]] = [
        {},
        {"firmware": other},
        {"vcpus": 2},
        {"vcpu_type": "EPYC-Genoa"},
        {"guest_features": 0x21},
        {"vmm": Vmm.EC2},
        {"vmm": Vmm.GCE},
        {"mode": Mode.SEV_ES},
        {"mode": Mode.SEV},
        {"kernel": kernel},
        {"kernel": kernel, "initrd": initrd},
        {"kernel": kernel, "append": "ro"},
    ]
    digests = [launch_digest(Launch(**{**base, **change})) for change in changes]
    assert len(set(digests)) == len(digests)
    assert launch_digest(Launch(**{**base, "vcpu_type": None, "vcpu_sig": 0xA00F11})) == digests[0]
    assert [len(digest) for digest in digests[:1] + digests[7:9]] == [48, 32, 32]
    assert digests[8] == hashlib.sha256(firmware()).digest()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"vcpu_type": "EPYC-Naples"}, "unknown CPU type .*EPYC-Milan.*EPYC-Naples"),
        ({"vcpu_type": None}, "depends on the CPU's type"),
        ({"vcpu_sig": 2**32}, "32 bits"),
        ({"vcpu_sig": -1}, "32 bits"),
        ({"vcpus": 0}, "no such number of CPUs"),
        ({"vcpus": image_measure.MAX_VCPUS + 1}, "no such number of CPUs"),
        ({"guest_features": 2**64}, "64 bits"),
        ({"guest_features": -1}, "64 bits"),
        ({"append": "ro"}, "with a kernel only"),
        ({"initrd": Path("/dev/null")}, "with a kernel only"),
        ({"kernel": Path("/dev/null")}, "is no file"),
        ({"firmware": Path("/nowhere/OVMF.fd")}, "is no file"),
        ({"firmware": Path("/" + "x" * 5000)}, "cannot read the file"),
    ],
)
def test_values_that_make_no_sense(change: dict[str, Any], why: str, ovmf: Path) -> None:
    """What no launch can have is refused, in words that name what is allowed."""
    launch: dict[str, Any] = {"mode": Mode.SNP, "firmware": ovmf, "vcpu_type": "EPYC-Milan", **change}
    with pytest.raises(ConfigError, match=why):
        launch_digest(Launch(**launch))


def test_sizes_are_bounded(ovmf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file, the command line and the memory that the firmware names have a greatest size."""
    kernel = tmp_path / "kernel"
    kernel.write_bytes(bytes(11))
    launch = Launch(Mode.SNP, ovmf, kernel=kernel, initrd=kernel, append="x" * 11, vcpu_type="EPYC")
    launch_digest(launch)
    for limit in ("MAX_FIRMWARE_BYTES", "MAX_KERNEL_BYTES", "MAX_INITRD_BYTES", "MAX_APPEND_BYTES"):
        with monkeypatch.context() as patch:
            patch.setattr(image_measure, limit, 10)
            with pytest.raises(ConfigError, match="too long"):
                launch_digest(launch)
    ovmf.write_bytes(firmware(((0, 0xFFFFF000, SEC_MEM),)))
    with pytest.raises(ConfigError, match="of memory"):
        launch_digest(Launch(Mode.SNP, ovmf, vcpu_type="EPYC"))


@pytest.mark.parametrize(
    ("data", "launch", "why"),
    [
        (b"", {}, "."),
        (b"x" * 10, {}, "."),
        (bytes(PAGE), {}, "no firmware"),
        (firmware() + b"\0", {}, "no firmware"),
        (b"x" * 100, {"mode": Mode.SEV}, "no firmware"),
        (firmware(()), {}, "no firmware"),
        (firmware(reset=False), {}, "SEV_ES_RESET_BLOCK"),
        (firmware(((0, PAGE, 9),)), {}, "9 is not a valid SectionType"),
        (firmware(((0, 100, SEC_MEM),)), {}, "AssertionError"),
        (firmware(SECTIONS[:3]), {"kernel": True}, "KERNEL_HASHES"),
        (firmware(((0x80F000, 2 * PAGE, KERNEL_HASHES),)), {"kernel": True}, "AssertionError"),
    ],
)
def test_firmware_that_is_none(data: bytes, launch: dict[str, Any], why: str, tmp_path: Path) -> None:
    """A file that is no firmware, or none for this launch, is refused; nothing of the library's escapes."""
    path = tmp_path / "OVMF.fd"
    path.write_bytes(data)
    arguments = {"mode": Mode.SNP, "vcpu_type": "EPYC", **launch}
    if arguments.pop("kernel", None):
        arguments["kernel"] = path
    with pytest.raises(ConfigError, match=why) as caught:
        launch_digest(Launch(firmware=path, **arguments))
    assert caught.value.mend is not None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.tuples(st.integers(0, 2047), st.binary(min_size=1, max_size=8)), max_size=4),
    mode=st.sampled_from(list(Mode)),
)
def test_nothing_else_escapes(changes: list[tuple[int, bytes]], mode: Mode, tmp_path: Path) -> None:
    """Whatever the firmware's tables say, there is a digest or one of our errors."""
    data = bytearray(firmware())
    for at, change in changes:
        data[PAGE - 2048 + at : PAGE - 2048 + at + len(change)] = change
    path = tmp_path / "OVMF.fd"
    path.write_bytes(data[:PAGE])
    with contextlib.suppress(ConfigError):
        assert len(launch_digest(Launch(mode, path, vcpus=2, vcpu_type="EPYC"))) in {32, 48}


def test_without_the_extra(ovmf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the library is not installed, the error says how to install it."""
    monkeypatch.setitem(sys.modules, "sevsnpmeasure.guest", None)
    result = run("snp", "--firmware", ovmf, "--vcpus", 1, "--vcpu-type", "EPYC")
    assert result.exit_code == ConfigError.exit_status
    assert "pip install 'roomkey[measure]'" in result.stderr


SNP = ("snp", "--vcpus", 2, "--vcpu-type", "EPYC-Milan", "--firmware")


def test_prints_the_digest_and_the_next_step(ovmf: Path) -> None:
    """Standard output is the digest and nothing else; the rest is said on standard error."""
    result = run(*SNP, ovmf)
    expected = launch_digest(Launch(Mode.SNP, ovmf, vcpus=2, vcpu_type="EPYC-Milan")).hex()
    assert (result.exit_code, result.stdout) == (0, expected + "\n")
    assert "--toml" in result.stderr
    assert "nothing of what it starts" in result.stderr
    assert json.loads(run(*SNP, ovmf, "--json").stdout) == {"mode": "snp", "measurement": expected}


def test_numbers_in_both_forms(ovmf: Path) -> None:
    """SEV_FEATURES and signatures are read as hex with 0x, and as decimals."""
    hexadecimal = run(*SNP, ovmf, "--guest-features", "0x21", "--vcpu-sig", "0xa00f11").stdout
    assert hexadecimal == run(*SNP, ovmf, "--guest-features", "33").stdout != run(*SNP, ovmf).stdout
    assert run(*SNP, ovmf, "--guest-features", "many").exit_code == 2


def test_ec2_comes_with_a_word_of_caution(ovmf: Path) -> None:
    """EC2's digests differ between projects, and the command says so."""
    assert "EC2" in run(*SNP, ovmf, "--vmm", "ec2").stderr
    assert "EC2" not in run(*SNP, ovmf, "--vmm", "gce").stderr


def test_kernel_leaves_nothing_to_note(ovmf: Path, tmp_path: Path) -> None:
    """With direct kernel boot the digest covers what starts, so there is nothing to warn of."""
    (tmp_path / "kernel").write_bytes(b"kernel")
    assert "Note" not in run(*SNP, ovmf, "--kernel", tmp_path / "kernel", "--append", "ro").stderr
    assert "kernel-hashes=on" in run(*SNP, ovmf, "--kernel", tmp_path / "kernel", "--append", "ro").stderr


@pytest.mark.parametrize("mode", list(Mode))
def test_images_load(mode: Mode, ovmf: Path, tmp_path: Path) -> None:
    """The image that is printed loads, and holds the digest."""
    odd = tmp_path / 'a "firmware"\\ \u202e\x07ä.fd'
    odd.write_bytes(ovmf.read_bytes())
    more = () if mode is Mode.SEV else ("--vcpus", 1, "--vcpu-type", "EPYC")
    result = run(mode, "--firmware", odd, *more, "--toml")
    image = parse_image(result.stdout)
    digest = launch_digest(Launch(mode, odd, vcpu_type="EPYC")).hex()
    name = "measurement" if mode is Mode.SNP else "launch_digest"
    assert image.registers[name].values == (digest,)
    assert image.floors.get("es", False) == (mode is Mode.SEV_ES)
    assert 'a "firmware"\\ ??ä.fd' in image.description


def test_images_with_keys(ovmf: Path, tmp_path: Path) -> None:
    """The digests of the ID and author key stand beside the measurement."""
    keys = [ec.generate_private_key(ec.SECP384R1()).public_key() for _ in range(2)]
    for name, key in zip(("id.pem", "author.pem"), keys, strict=True):
        (tmp_path / name).write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    result = run(*SNP, ovmf, "--id-key", tmp_path / "id.pem", "--author-key", tmp_path / "author.pem", "--toml")
    registers = parse_image(result.stdout).registers
    found = [registers[name].values for name in ("id_key_digest", "author_key_digest")]
    assert found == [(key_digest(key).hex(),) for key in keys]


@pytest.mark.parametrize("mode", [Mode.SNP, Mode.SEV])
def test_put(mode: Mode, ovmf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --put the image is stored at once, and the next step names the rule, SEV's platform included."""
    calls: list[tuple[str, str, dict[str, Any]]] = []

    class Client:
        def call(self, method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
            calls.append((method, path, body))
            return {"version": 3, "life": {"state": "active"}, "replaced": []}

        def close(self) -> None:
            calls.append(("closed", "", {}))

    monkeypatch.setattr(image_measure, "identity_at", lambda path: path)
    monkeypatch.setattr(image_measure, "OwnerClient", lambda _: Client())
    more = () if mode is Mode.SEV else ("--vcpus", 1, "--vcpu-type", "EPYC")
    result = run(mode, "--firmware", ovmf, *more, "--put", "web", "--why", "new")
    assert (result.exit_code, result.stdout) == (0, "image web@3 stored\n")
    (method, path, body), closed = calls
    assert (method, path.rsplit("/", 1)[1], body["why"], closed[0]) == ("PUT", "web", "new", "closed")
    assert parse_image(body["toml"]).platform == ("snp" if mode is Mode.SNP else "sev")
    assert ("--platform sev" in result.stderr) == (mode is Mode.SEV)
