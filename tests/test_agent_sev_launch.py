# SPDX-License-Identifier: Apache-2.0
"""The host's side of a SEV launch: certificates, broker, QEMU, in this order, and no guest that starts without."""

from __future__ import annotations

import base64
import contextlib
import json
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.cli import main
from agent.config import Settings
from agent.deadline import Deadline
from agent.sev_chain import MAX_FILE_BYTES, read_chain, split_chain
from agent.sev_launch import Launch, finish, qemu_options, read_launch, start
from keys import b64, strictjson
from keys.errors import (
    AttesterError,
    ConfigError,
    NotFound,
    ProtocolError,
    ReleaseDenied,
    RoomkeyError,
    Unavailable,
    VerificationError,
)
from keys.messages import ResourcePath
from tests.fakes.kbs import FakeKbs, Script, answer, raw, refusal
from tests.fakes.qmp import FakeQemu
from tests.fakes.tls import TlsCa
from tests.vectors import VECTORS, needs_vectors

PATH = ResourcePath("acme", "disk", "web-root")
DECISION = "d-" + 4 * "abc27"
GODH, SESSION = bytes(range(256)) * 8 + bytes(36), bytes(range(128))
HEADER, PACKET = bytes(range(52)), bytes(range(48))
STARTED = {"launch": "l-1", "godh": b64.std(GODH), "session": b64.std(SESSION), "policy": 0x2F}
SENT = {"packet_header": b64.std(HEADER), "packet": b64.std(PACKET), "guid": "736869e5-84f0-4973-92ec-06879ce3da0b"}


def sev_certificate(usage: int, mark: int = 0) -> bytes:
    """2084 bytes that say what they are, and nothing else."""
    return bytes((1, 0, 0, 0, mark, 0, 0, 0)) + usage.to_bytes(4, "little") + bytes(2072)


def ca_certificate(usage: int, bits: int = 4096) -> bytes:
    size = {2048: 832, 4096: 1600}[bits]
    head = b"\1\0\0\0" + b"K" * 32 + usage.to_bytes(4, "little") + bytes(16) + 2 * bits.to_bytes(4, "little")
    return head.ljust(size, b"\0")


PDH, PEK, OCA, CEK = (sev_certificate(usage) for usage in (0x1003, 0x1002, 0x1001, 0x1004))
AMDS_CEK = sev_certificate(0x1004, mark=7)


class Guest:
    """What the processor has measured, and what it was given."""

    def __init__(self) -> None:
        self.injected: list[tuple[bytes, bytes]] = []

    def measure(self) -> bytes:
        return bytes(range(48))

    def inject(self, header: bytes, packet: bytes) -> None:
        self.injected.append((header, packet))


class Host:
    """A host with its platform's certificates in a file, a broker, and a QEMU that waits."""

    def __init__(self, directory: Path, broker: FakeKbs) -> None:
        self.directory = directory
        self.broker = broker
        self.answers: list[Script] = broker.script[""]  # of the calls that are no guest's
        self.settings = Settings((broker.url,))
        self.chain = directory / "chain.cert"
        self.chain.write_bytes(PDH + PEK + OCA + CEK)
        self.launch_dir = str(directory / "launch")
        self.guest = Guest()

    def start(self, deadline: float = 5) -> Launch:
        return start(self.settings, PATH, [str(self.chain)], self.launch_dir, Deadline(deadline))

    def started(self) -> Launch:
        self.answers.append(answer(201, STARTED))
        return self.start()

    def qemu(self, **changes: Any) -> FakeQemu:
        fake = FakeQemu(self.directory / "qmp", self.guest, policy=0x2F)
        fake.sev |= {name.replace("_", "-"): value for name, value in changes.items()}
        return fake

    def finish(self, qemu: FakeQemu, deadline: float = 5) -> Launch:
        return finish(self.settings, self.launch_dir, qemu.path, Deadline(deadline))


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with FakeKbs({}) as broker:
        yield Host(tmp_path, broker)


# Certificates


def test_one_file_or_many_in_any_order(tmp_path: Path) -> None:
    """Certificates are told by their usage, wherever they stand; CA certificates of both sizes are known."""
    (tmp_path / "a").write_bytes(OCA + ca_certificate(0x13) + PDH)
    (tmp_path / "b").write_bytes(CEK + ca_certificate(0x0, 2048) + PEK)
    found = read_chain([str(tmp_path / "a"), str(tmp_path / "b")])
    assert found == {
        "pdh": PDH, "pek": PEK, "oca": OCA, "cek": CEK, "ask": ca_certificate(0x13), "ark": ca_certificate(0x0, 2048)
    }  # fmt: skip


def test_amds_cek_takes_the_exported_ones_place(tmp_path: Path) -> None:
    """The exported CEK has no signature of AMD's; the one of a later file counts."""
    (tmp_path / "a").write_bytes(PDH + PEK + OCA + CEK)
    (tmp_path / "b").write_bytes(AMDS_CEK)
    assert read_chain([str(tmp_path / "a"), str(tmp_path / "b")])["cek"] == AMDS_CEK


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (PDH + PEK + OCA, "lack the CEK"),
        (b"", "1 to"),
        (bytes(MAX_FILE_BYTES + 1), "1 to"),
        (PDH[:-1], "something else at byte 0"),
        (PDH + bytes(64), "something else at byte 2084"),
        (PDH + b"\n", "something else at byte 2084"),
        (PDH + sev_certificate(0x1005), "something else at byte 2084"),
        (PDH + ca_certificate(0x14), "something else at byte 2084"),
        (PDH + ca_certificate(0x13)[:-1], "something else at byte 2084"),
        (PDH + PDH, "two certificates of one kind"),
    ],
)
def test_what_is_no_chain_is_refused(tmp_path: Path, data: bytes, words: str) -> None:
    """A file that is not made of certificates, or lacks one, is named, with where it goes wrong."""
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(ConfigError, match=words):
        read_chain([str(tmp_path / "a")])


@pytest.mark.parametrize("name", ["none", "a\0"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    """A path that cannot be read is a ConfigError."""
    with pytest.raises(ConfigError, match="cannot be read"):
        read_chain([str(tmp_path / name)])


@given(st.binary(max_size=200))
def test_splitting_ends_in_parts_or_our_error(data: bytes) -> None:
    """Whatever a file holds."""
    with contextlib.suppress(ConfigError):
        assert b"".join(split_chain(data, "f").values()) == data


@needs_vectors
@pytest.mark.parametrize("platform", ["naples", "rome"])
def test_recorded_chains_are_told_apart(platform: str, tmp_path: Path) -> None:
    """Real certificates, one behind the other as tools export them, come out under their names."""
    folder = VECTORS / "sev" / platform
    names = ("pdh", "pek", "oca", "cek", "ask", "ark")
    (tmp_path / "full").write_bytes(b"".join((folder / f"{name}.cert").read_bytes() for name in names))
    assert read_chain([str(tmp_path / "full")]) == {n: (folder / f"{n}.cert").read_bytes() for n in names}


# start


def test_start_posts_the_chain_and_writes_qemus_files(host: Host) -> None:
    """The broker gets key and certificates; QEMU's files hold the base64 of what it answers."""
    launch = host.started()
    assert launch == Launch("l-1", host.broker.url, str(PATH), 0x2F) == read_launch(host.launch_dir)
    [request] = host.broker.received
    assert (request.method, request.path) == ("POST", "/roomkey/v1/sev/launches")
    assert request.headers["content-type"] == "application/json"
    assert json.loads(request.body) == {
        "resource": "acme/disk/web-root",
        "chain": {"pdh": b64.std(PDH), "pek": b64.std(PEK), "oca": b64.std(OCA), "cek": b64.std(CEK)},
    }
    for name, content in (("godh.b64", GODH), ("session.b64", SESSION)):
        assert base64.b64decode((Path(host.launch_dir) / name).read_bytes(), validate=True) == content


def test_qemus_options_are_those_of_the_launch(tmp_path: Path) -> None:
    """Policy, files and monitor are given as QEMU reads them, a kernel is measured; a comma in a path is doubled."""
    options = qemu_options(Launch("l", "u", "r", 0x31002F), str(tmp_path / "a,b"), 47)
    folder = str(tmp_path / "a,b").replace(",", ",,")
    files = f"dh-cert-file={folder}/godh.b64,session-file={folder}/session.b64"
    assert options == [
        "-machine",
        "confidential-guest-support=sev0",
        "-object",
        f"sev-guest,id=sev0,cbitpos=47,reduced-phys-bits=1,kernel-hashes=on,policy=0x31002f,{files}",
        "-S",
        "-qmp",
        f"unix:{folder}/qmp.sock,server=on,wait=off",
    ]


def test_a_folder_is_used_once(host: Host) -> None:
    """A folder with a launch in it is refused before anybody is asked, one with other files of ours before they are
    overwritten.
    """
    host.started()
    with pytest.raises(ConfigError, match="another launch"):
        host.start()
    assert len(host.broker.received) == 1
    (Path(host.launch_dir) / "launch.json").unlink()
    host.answers.append(answer(201, STARTED))
    with pytest.raises(ConfigError, match="cannot be written"):
        host.start()


def test_a_broker_that_cannot_be_reached_is_passed_over(host: Host) -> None:
    """The next broker is asked; the launch remembers which one knows it."""
    host.settings = host.settings._replace(brokers=("http://127.0.0.1:1", host.broker.url))
    assert host.started().broker == host.broker.url
    host.settings = host.settings._replace(brokers=("http://127.0.0.1:1",))
    host.launch_dir += "2"
    with pytest.raises(Unavailable, match="cannot be reached"):
        host.start()
    with pytest.raises(ConfigError, match="no broker"):
        start(Settings(), PATH, [str(host.chain)], host.launch_dir, Deadline(5))


def test_a_silent_broker_uses_up_its_share_only(host: Host) -> None:
    """Each broker gets an equal part of the time that is left."""
    shares = []

    class Shared(Deadline):
        def share(self, parts: int) -> Deadline:
            shares.append(parts)
            return super().share(parts)

    host.settings = host.settings._replace(brokers=("http://127.0.0.1:1", host.broker.url))
    host.answers.append(answer(201, STARTED))
    start(host.settings, PATH, [str(host.chain)], host.launch_dir, Shared(5))
    assert shares == [2, 1]


def test_a_broker_is_reached_by_tls(tmp_path: Path) -> None:
    """With https the pinned CA vouches for the broker, and nobody else."""
    ca = TlsCa(tmp_path / "tls")
    with FakeKbs({}, ca.server_context()) as broker:
        host = Host(tmp_path, broker)
        host.settings = host.settings._replace(ca_file=str(ca.ca_file))
        assert host.started().broker.startswith("https://")


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (refusal(403, "PolicyDeny", f"Access denied by policy (decision {DECISION})"), ReleaseDenied),
        (refusal(401, "AttestationError", f"Launch refused (decision {DECISION})"), VerificationError),
        (refusal(401, "AttestationError", "Attestation error: pdh has another length"), ProtocolError),
        (refusal(404, "PluginNotFound", "no such call"), NotFound),
        (raw(503, b"", "Retry-After: 1\r\n"), Unavailable),
        (raw(500, b"oops"), ProtocolError),
        (answer(200, STARTED), ProtocolError),
    ],
)
def test_a_refusal_keeps_its_kind_and_its_decision(host: Host, reply: bytes, kind: type[RoomkeyError]) -> None:
    """What the broker's answer stands for is raised, with the decision that its owner can read; no file is written."""
    host.answers.append(reply)
    with pytest.raises(kind) as caught:
        host.start()
    assert type(caught.value) is kind or kind is Unavailable
    if DECISION.encode() in reply:
        assert DECISION in str(caught.value)
        assert caught.value.decision == DECISION
    assert not Path(host.launch_dir).exists()


@pytest.mark.parametrize(
    "change",
    [
        {"launch": "../x"},
        {"launch": ""},
        {"launch": 1},
        {"launch": "l" * 129},
        {"policy": -1},
        {"policy": 1 << 32},
        {"policy": True},
        {"godh": b64.std(GODH[:-1])},
        {"godh": b64.std(GODH + b"\0")},
        {"session": b64.std(SESSION[:-1])},
        {"session": "%"},
        {"more": 1},
    ],
)
def test_an_answer_that_is_none_is_refused(host: Host, change: dict[str, Any]) -> None:
    """Sizes, names and numbers of the answer are checked before anything is written."""
    host.answers.append(answer(201, STARTED | change))
    with pytest.raises(ProtocolError):
        host.start()
    assert not Path(host.launch_dir).exists()


# finish


def test_finish_gives_the_secret_and_lets_the_guest_run(host: Host) -> None:
    """Measurement and firmware go to the broker, the packet to QEMU, and only then the guest runs."""
    launch = host.started()
    host.answers.append(answer(200, SENT))
    with host.qemu() as qemu:
        assert host.finish(qemu) == launch
        assert qemu.running
        assert qemu.commands == [
            "qmp_capabilities", "query-sev", "query-sev-launch-measure", "sev-inject-launch-secret", "cont"
        ]  # fmt: skip
    assert host.guest.injected == [(HEADER, PACKET)]
    request = host.broker.received[-1]
    assert (request.method, request.path) == ("POST", "/roomkey/v1/sev/launches/l-1/measurement")
    assert json.loads(request.body) == {
        "measurement": b64.std(bytes(range(48))), "api_major": 1, "api_minor": 49, "build_id": 6
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"enabled": False}, "no SEV guest"),
        ({"state": "running"}, "does not wait"),
        ({"state": "launch-update"}, "does not wait"),
        ({"policy": 0x2E}, "another policy"),
        ({"api_major": None}, "which SEV firmware"),
        ({"build_id": 256}, "which SEV firmware"),
        ({"api_minor": True}, "which SEV firmware"),
    ],
)
def test_a_qemu_that_does_not_fit_costs_no_launch(host: Host, change: dict[str, Any], words: str) -> None:
    """A guest in another state or under another policy is found before the launch's one measurement is shown."""
    host.started()
    with host.qemu(**change) as qemu:
        with pytest.raises((AttesterError, ProtocolError), match=words):
            host.finish(qemu)
        assert not qemu.running
    assert len(host.broker.received) == 1


REFUSED = refusal(401, "AttestationError", f"Launch refused (decision {DECISION})")
FAILED = b'{"error": {"class": "GenericError", "desc": "SEV: no"}, "id": %d}\n'


@pytest.mark.parametrize(
    ("reply", "script", "kind"),
    [
        (REFUSED, {}, VerificationError),
        (refusal(403, "PolicyDeny", "Access denied by policy"), {}, ReleaseDenied),
        (lambda _sock: None, {}, Unavailable),
        (raw(200, b"{"), {}, ProtocolError),
        (answer(200, SENT | {"packet": ""}), {}, ProtocolError),
        (answer(200, SENT | {"packet": b64.std(PACKET[:-1])}), {}, ProtocolError),
        (answer(200, SENT | {"packet": b64.std(bytes(16 * 1024 + 16))}), {}, ProtocolError),
        (answer(200, SENT | {"packet_header": b64.std(HEADER[:-1])}), {}, ProtocolError),
        (answer(200, {"packet": b64.std(PACKET)}), {}, ProtocolError),
        (answer(200, SENT), {"query-sev": b'{"return": [], "id": 2}\n'}, AttesterError),
        (answer(200, SENT), {"query-sev": FAILED % 2}, AttesterError),
        (answer(200, SENT), {"query-sev-launch-measure": FAILED % 3}, AttesterError),
        (answer(200, SENT), {"query-sev-launch-measure": b'{"return": [], "id": 3}\n'}, ProtocolError),
        (answer(200, SENT), {"query-sev-launch-measure": b'{"return": {"data": "AA=="}, "id": 3}\n'}, ProtocolError),
        (answer(200, SENT), {"sev-inject-launch-secret": FAILED % 4}, AttesterError),
        (answer(200, SENT), {"sev-inject-launch-secret": b"?\n"}, ProtocolError),
    ],
)
def test_whatever_fails_the_guest_does_not_start(
    host: Host, reply: Script, script: dict[str, bytes], kind: type[RoomkeyError]
) -> None:
    """A broker that refuses or talks nonsense, a QEMU that refuses: no `cont` is ever sent."""
    host.started()
    host.answers.append(reply)
    with host.qemu() as qemu:
        qemu.script |= script
        with pytest.raises(kind):
            host.finish(qemu)
        assert "cont" not in qemu.commands
        assert not qemu.running
    if "sev-inject-launch-secret" not in script:
        assert host.guest.injected == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda _text: "",
        lambda text: text.replace("l-1", "l/1"),
        lambda text: text.replace('"l-1"', "1"),
        lambda text: text.replace("47", "-47"),
        lambda text: text.replace('"policy"', '"politics"'),
        lambda text: text + " " * 4096,
        lambda _text: "[]",
    ],
)
def test_a_folder_that_holds_no_launch_is_named(host: Host, spoil: Callable[[str], str]) -> None:
    """A launch's file that is missing or was changed is a ConfigError that says which folder to give."""
    host.started()
    path = Path(host.launch_dir) / "launch.json"
    path.write_text(spoil(path.read_text()))
    with pytest.raises(ConfigError, match="no launch to finish") as caught:
        read_launch(host.launch_dir)
    assert "sev-launch start" in (caught.value.mend or "")


@pytest.mark.parametrize("name", ["none", "n\0"])
def test_a_folder_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    """No folder, no launch."""
    with pytest.raises(ConfigError, match="no launch to finish"):
        read_launch(str(tmp_path / name))


# As a user runs it


def test_the_commands_do_the_steps(host: Host, capfd: pytest.CaptureFixture[str]) -> None:
    """`start` prints QEMU's options in one line for a shell, `finish` says that the guest runs."""
    cek = host.directory / "cek"
    cek.write_bytes(AMDS_CEK)
    ask = host.directory / "ask"
    ask.write_bytes(ca_certificate(0x13))
    host.answers += [answer(201, STARTED), answer(200, SENT)]
    options = ["--broker", host.broker.url, "--config", str(host.directory / "agent.toml")]
    (host.directory / "agent.toml").write_text("timeout = 5\n")
    arguments = ["--key", str(PATH), "--cek", str(cek), "--ask", str(ask), "--chain", str(host.chain)]
    arguments += ["--dir", host.launch_dir]
    assert main(["sev-launch", "start", *arguments, *options]) == 0
    out, err = capfd.readouterr()
    assert shlex.split(out) == qemu_options(read_launch(host.launch_dir), host.launch_dir, 51)
    assert "kernel-hashes=on" in err
    assert f"sev-launch finish --dir {host.launch_dir} --qmp {host.launch_dir}/qmp.sock" in err
    posted = strictjson.loads(host.broker.received[0].body, name="", max_bytes=1 << 20)["chain"]
    assert (posted["cek"], posted["ask"]) == (b64.std(AMDS_CEK), b64.std(ca_certificate(0x13)))
    with host.qemu() as qemu:
        assert main(["sev-launch", "finish", "--dir", host.launch_dir, "--qmp", qemu.path, *options]) == 0
        assert qemu.running
    assert "acme/disk/web-root" in capfd.readouterr().err


def test_a_failed_step_has_its_exit_status(host: Host, capfd: pytest.CaptureFixture[str]) -> None:
    """A refusal ends in its status, and prints no options to start QEMU with."""
    host.answers.append(refusal(403, "PolicyDeny", f"Access denied by policy (decision {DECISION})"))
    arguments = ["--key", str(PATH), "--chain", str(host.chain), "--dir", host.launch_dir, "--broker", host.broker.url]
    assert main(["sev-launch", "start", *arguments]) == ReleaseDenied.exit_status
    out, err = capfd.readouterr()
    assert out == ""
    assert f"roomkey decision show {DECISION}" in err
