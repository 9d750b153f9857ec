# SPDX-License-Identifier: Apache-2.0
"""Talking to QEMU's monitor: one command, one answer, and no way to hang or to be misled."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.deadline import Deadline
from agent.qmp import MAX_EVENTS, MAX_LINE_BYTES, Qmp
from keys.errors import AttesterError, ProtocolError, RoomkeyError, Unavailable
from tests.fakes.qmp import FakeQemu


class Guest:
    """A guest that was measured, and takes any secret."""

    def __init__(self) -> None:
        self.injected: list[tuple[bytes, bytes]] = []

    def measure(self) -> bytes:
        return bytes(range(48))

    def inject(self, header: bytes, packet: bytes) -> None:
        self.injected.append((header, packet))


def qemu(tmp_path: Path) -> FakeQemu:
    return FakeQemu(tmp_path / "qmp", Guest())


def test_commands_are_answered_among_events(tmp_path: Path) -> None:
    """The handshake comes first; what a command returns is found among events; hyphens stand for underscores."""
    with qemu(tmp_path) as fake, Qmp(fake.path, Deadline(5)) as qmp:
        assert qmp.execute("query-sev")["state"] == "launch-secret"
        assert qmp.execute("query-sev-launch-measure").keys() == {"data"}
        assert qmp.execute("sev-inject-launch-secret", packet_header="AA==", secret="AQ==") == {}
        assert fake.commands[0] == "qmp_capabilities"
        assert fake._guest.injected == [(b"\0", b"\1")]  # type: ignore[attr-defined]


def test_a_refusal_has_qemus_words(tmp_path: Path) -> None:
    """An error is an AttesterError with the command and the description."""
    with (
        qemu(tmp_path) as fake,
        Qmp(fake.path, Deadline(5)) as qmp,
        pytest.raises(AttesterError, match=r"refuses frobnicate .*has not been found"),
    ):
        qmp.execute("frobnicate")


@pytest.mark.parametrize(
    ("at", "line", "words"),
    [
        ("", b"SSH-2.0-OpenSSH_9.2\r\n", "not strict JSON"),
        ("", b'{"id": 1}\n', "does not greet"),
        ("", b"[]\n", "no JSON object"),
        ("", b"x" * (MAX_LINE_BYTES + 1) + b"\n", "too long"),
        ("", b"x" * (3 * MAX_LINE_BYTES), "too long"),
        ("query-sev", b'{"return": {}, "id": 1}\n', "answers another command"),
        ("query-sev", b'{"return": {}}\n', "answers another command"),
        ("query-sev", b'{"event": "X"}\n' * (MAX_EVENTS + 1), "events"),
    ],
)
def test_what_is_no_qemu_is_refused(tmp_path: Path, at: str, line: bytes, words: str) -> None:
    """Other protocols, other commands' answers, endless lines and endless events end as ProtocolError."""
    with qemu(tmp_path) as fake:
        fake.script[at] = line
        with pytest.raises(ProtocolError, match=words), Qmp(fake.path, Deadline(5)) as qmp:
            qmp.execute("query-sev")


def test_as_many_events_as_allowed_are_passed_over(tmp_path: Path) -> None:
    """A busy machine is not taken for a broken one."""
    with qemu(tmp_path) as fake, Qmp(fake.path, Deadline(5)) as qmp:
        fake.script["query-sev"] = b'{"event": "X"}\n' * MAX_EVENTS + b'{"return": 7, "id": 2}\n'
        assert qmp.execute("query-sev") == 7


def test_an_error_without_words_is_one_too(tmp_path: Path) -> None:
    """An answer that is neither return nor a proper error refuses; what it says is printable."""
    with qemu(tmp_path) as fake, Qmp(fake.path, Deadline(5)) as qmp:
        fake.script["query-sev"] = b'{"id": 2}\n'
        with pytest.raises(AttesterError, match="refuses"):
            qmp.execute("query-sev")
        fake.script["query-sev"] = b'{"id": 3, "error": {"desc": "\\u001b[2J"}}\n'
        with pytest.raises(AttesterError) as caught:
            qmp.execute("query-sev")
        assert str(caught.value).isprintable()


def test_a_qemu_that_ends_is_told(tmp_path: Path) -> None:
    """A closed monitor is an AttesterError, at once."""
    with qemu(tmp_path) as fake, Qmp(fake.path, Deadline(5)) as qmp:
        fake.script["query-sev"] = lambda sock: sock.shutdown(socket.SHUT_RDWR)
        with pytest.raises(AttesterError, match="closed its monitor"):
            qmp.execute("query-sev")
        with pytest.raises(AttesterError):
            qmp.execute("query-sev")


@pytest.mark.parametrize("name", ["none", "n\0"])
def test_no_monitor_is_told_with_what_mends_it(tmp_path: Path, name: str) -> None:
    """A socket that does not exist, or cannot, names QEMU's option."""
    with pytest.raises(AttesterError, match="cannot be used") as caught, Qmp(str(tmp_path / name), Deadline(5)):
        pass
    assert "-qmp unix:" in (caught.value.mend or "")


def test_a_silent_qemu_costs_the_deadline(tmp_path: Path) -> None:
    """Nothing waits longer than the deadline."""
    with qemu(tmp_path) as fake:
        fake.script[""] = b""
        with pytest.raises(Unavailable), Qmp(fake.path, Deadline(0.05)):
            pass
        with pytest.raises(Unavailable), Qmp(fake.path, Deadline(-1)):
            pass


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(line=st.binary(max_size=80))
def test_nothing_but_our_errors_escapes(tmp_path_factory: pytest.TempPathFactory, line: bytes) -> None:
    """Whatever stands in a line: an answer or an error of ours."""
    with qemu(tmp_path_factory.mktemp("q")) as fake:

        def play(sock: socket.socket) -> None:
            sock.sendall(line + b"\n")
            sock.shutdown(socket.SHUT_RDWR)

        fake.script["query-sev"] = play
        with pytest.raises(RoomkeyError), Qmp(fake.path, Deadline(5)) as qmp:
            qmp.execute("query-sev")
