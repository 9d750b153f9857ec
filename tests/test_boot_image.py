# SPDX-License-Identifier: Apache-2.0
"""What `make boot-demo` builds: the parts that can be seen without booting."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.boot import initramfs, vm
from deploy.boot.cpio import TRAILER, Entry, archive, directory, link, node, regular
from deploy.boot.runtime import REPOSITORY


def listed(data: bytes) -> list[Entry]:
    """The entries of a newc archive, read back."""
    entries, at = [], 0
    while True:
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * index : at + 14 + 8 * index], 16) for index in range(13)]
        name = data[at + 110 : at + 110 + fields[11] - 1].decode()
        begin = at + (110 + fields[11] + 3) // 4 * 4
        if name == TRAILER:
            assert not any(data[begin:])
            return entries
        assert fields[2:4] == [0, 0]  # of root
        assert fields[5] == 0  # of no time
        entries.append(Entry(name, fields[1], data[begin : begin + fields[6]], (fields[9], fields[10])))
        at = begin + (fields[6] + 3) // 4 * 4


@given(
    files=st.dictionaries(st.from_regex(r"[a-z]{1,4}(/[a-z]{1,4}){0,2}", fullmatch=True), st.binary(max_size=40)),
    random=st.randoms(),
)
def test_the_order_of_files_changes_nothing(files: dict[str, bytes], random: object) -> None:
    """The same files give the same bytes, in whatever order they came, and can be read back."""
    entries = [regular(f"f-{name.replace('/', '/f-')}.x", data) for name, data in files.items()]
    shuffled = entries[:]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    packed = archive(entries)
    assert packed == archive(shuffled)
    assert {entry for entry in listed(packed) if stat.S_ISREG(entry.mode)} == set(entries)


def test_folders_come_before_what_is_in_them() -> None:
    """The kernel makes files in the order of the archive: a folder that is not there yet would lose them."""
    names = [entry.name for entry in listed(archive([regular("a/b/c", b""), directory("a-b"), link("a/l", "b")]))]
    assert names == ["a", "a/b", "a/b/c", "a/l", "a-b"]


def test_nodes_and_doubles() -> None:
    """A device node is a header without contents; two different files of one name are a mistake."""
    assert listed(archive([node("dev/console", 5, 1)]))[1] == Entry("dev/console", stat.S_IFCHR | 0o600, b"", (5, 1))
    with pytest.raises(RuntimeError, match="two different files"):
        archive([regular("a", b"1"), regular("a", b"2")])


def test_modules_come_after_what_they_need(tmp_path: Path) -> None:
    """insmod resolves nothing: the numbers are the order."""
    for name, needs in (("dm-crypt", "dm-mod"), ("dm-mod", "dax"), ("dax", ""), ("unused", "")):
        (tmp_path / f"{name}.ko").write_bytes(f"ELF\0license=GPL\0depends={needs}\0name={name}\0".encode())
    names = [Path(entry.name).name for entry in initramfs.modules(tmp_path)]
    assert names == ["00-dax.ko", "01-dm_mod.ko", "02-dm_crypt.ko"]


def test_kvm_only_where_the_processor_can(tmp_path: Path) -> None:
    """A device alone may be of a KVM in software, under which firmware hangs."""
    device = tmp_path / "kvm"
    device.touch(0o600)
    assert "kvm" in vm.accelerator("flags : fpu svm", device)
    assert "tcg,thread=multi" in vm.accelerator("flags : fpu svm", tmp_path / "missing")
    assert "tcg,thread=multi" in vm.accelerator("flags : fpu", device)
    assert os.access(device, os.R_OK)


def test_the_guest_reaches_one_address_only(tmp_path: Path) -> None:
    """The network is restricted to a pipe to the broker; without a port there is none; no disk is ever written."""
    machine = vm.Machine(tmp_path, tmp_path, tmp_path, "quiet", tmp_path, 4711)
    words = vm.command(machine, tmp_path, tmp_path)
    network = next(word for word in words if word.startswith("user,"))
    assert network == "user,id=net,restrict=on,guestfwd=tcp:10.0.2.100:8443-cmd:/bin/busybox nc 127.0.0.1 4711"
    assert "user,id=net,restrict=on" in vm.command(machine._replace(port=0), tmp_path, tmp_path)
    assert any("snapshot=on" in word for word in words)


def test_the_agents_package_is_the_same_twice(tmp_path: Path) -> None:
    """The same sources give the same package, with the agent whole, no custody, and what its units call."""
    packages = [tmp_path / name for name in ("one.deb", "other.deb")]
    for package in packages:
        subprocess.run([REPOSITORY / "deploy/package/build", package], check=True)
    assert packages[0].read_bytes() == packages[1].read_bytes()
    subprocess.run(["dpkg-deb", "-x", packages[0], tmp_path / "tree"], check=True)
    home = tmp_path / "tree/usr/lib/roomkey"
    assert {path.name for path in (home / "agent").glob("*.py")} == {
        p.name for p in (REPOSITORY / "agent").glob("*.py")
    }
    assert not (home / "keys/custody").exists()
    start = (
        f"import sys; sys.path.insert(0, {str(home)!r}); import agent.cli as c; print(c.__file__); c.main(['--help'])"
    )
    said = subprocess.run([sys.executable, "-I", "-c", start], check=True, capture_output=True, text=True).stdout
    assert said.startswith(str(home))
    assert "enroll" in said
    for unit in (tmp_path / "tree/lib/systemd/system").iterdir():
        for line in unit.read_text().splitlines():
            if line.startswith("ExecStart="):
                assert (tmp_path / "tree" / line.removeprefix("ExecStart=/").split()[0]).exists()
