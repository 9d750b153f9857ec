# SPDX-License-Identifier: Apache-2.0
"""The line to the TPM: whole responses in any number of pieces, and an end to every wait."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.deadline import Deadline
from agent.tpm2 import Tpm
from agent.tpm2_transport import MAX_RESPONSE_BYTES, Transport, connect
from keys.errors import AttesterError, ConfigError, Unavailable
from tests.fakes.swtpm import SoftwareTpm
from tests.needs import needs_swtpm

RESPONSE = b"\x80\x01" + (14).to_bytes(4, "big") + bytes(4) + b"body"


@contextmanager
def peer() -> Iterator[tuple[Transport, socket.socket]]:
    """A transport and the TPM's end of its line."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    transport = Transport(ours.detach(), "the test")
    with theirs:
        try:
            yield transport, theirs
        finally:
            transport.close()


def test_a_response_may_come_in_pieces() -> None:
    """A response is whole however the line cuts it."""
    with peer() as (transport, tpm):

        def trickle() -> None:
            tpm.recv(100)
            for byte in RESPONSE:
                tpm.sendall(bytes((byte,)))

        thread = threading.Thread(target=trickle)
        thread.start()
        assert transport.exchange(b"command", Deadline(5)) == RESPONSE
        thread.join()


@pytest.mark.parametrize("size", [0, 9, MAX_RESPONSE_BYTES + 1, 0xFFFFFFFF])
def test_an_impossible_size_is_refused(size: int) -> None:
    """A response is at least its header and at most 4096 bytes, whatever its header says."""
    with peer() as (transport, tpm):
        tpm.sendall(b"\x80\x01" + size.to_bytes(4, "big") + bytes(4))
        with pytest.raises(AttesterError, match="impossible size"):
            transport.exchange(b"command", Deadline(5))


def test_bytes_after_a_response_are_refused() -> None:
    """A second response that nobody asked for is not taken for the next one."""
    with peer() as (transport, tpm):
        tpm.sendall(RESPONSE + b"!")
        with pytest.raises(AttesterError, match="more than one"):
            transport.exchange(b"command", Deadline(5))


def test_a_closed_line_is_an_error() -> None:
    """A TPM that goes away in the middle of a response is an AttesterError."""
    with peer() as (transport, tpm):
        tpm.sendall(RESPONSE[:5])
        tpm.shutdown(socket.SHUT_WR)
        with pytest.raises(AttesterError, match="closed"):
            transport.exchange(b"command", Deadline(5))


def test_a_line_that_breaks_is_an_error() -> None:
    """A write to nobody is an AttesterError, not an OSError."""
    with peer() as (transport, tpm):
        tpm.close()
        with pytest.raises(AttesterError, match="cannot be used"):
            transport.exchange(b"command", Deadline(5))


def test_a_command_that_is_not_taken_whole_is_an_error() -> None:
    """A line that takes half a command is given up."""
    with peer() as (transport, _), pytest.raises(AttesterError, match="whole command"):
        transport.exchange(bytes(64 << 20), Deadline(5))


def test_a_silent_tpm_costs_no_more_than_the_deadline() -> None:
    """No response by the deadline is Unavailable, then and not later."""
    with peer() as (transport, _):
        started = time.monotonic()
        with pytest.raises(Unavailable, match="the TPM"):
            transport.exchange(b"command", Deadline(0.05))
        assert time.monotonic() - started < 8


@pytest.mark.parametrize("spelling", ["", "tpm0", "device:", "swtpm:", "/dev/tpmrm0", "tabrmd:x"])
def test_an_unknown_spelling_is_a_config_error(spelling: str) -> None:
    """Only device: and swtpm: lead to a TPM."""
    with pytest.raises(ConfigError, match="not a way"):
        connect(spelling, Deadline(1))


@pytest.mark.parametrize(
    "spelling",
    ["swtpm:192.0.2.1:2321", "swtpm:tpm.example:2321", "swtpm:127.0.0.1", "swtpm:127.0.0.1:x", "swtpm:2321"],
)
def test_a_software_tpm_is_reached_over_loopback_only(spelling: str) -> None:
    """No TPM command crosses a network in the clear."""
    with pytest.raises(ConfigError, match="loopback"):
        connect(spelling, Deadline(1))


@pytest.mark.parametrize("kind", ["device:{}/none", "swtpm:unix:{}/none", "swtpm:unix:{}/\0"])
def test_a_missing_tpm_is_an_attester_error(kind: str, tmp_path: Path) -> None:
    """Nothing at the address is an AttesterError that says what to set."""
    with pytest.raises(AttesterError, match="no TPM at") as caught:
        connect(kind.format(tmp_path), Deadline(1))
    assert caught.value.mend is not None


def test_a_port_without_a_tpm_is_an_attester_error() -> None:
    """A refused connection is an AttesterError."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(AttesterError, match="no TPM at") as caught:
        connect(f"swtpm:127.0.0.1:{port}", Deadline(1))
    assert caught.value.found == "Connection refused"


@needs_swtpm
def test_a_unix_socket_leads_to_a_tpm(tmp_path: Path) -> None:
    """swtpm:unix:PATH speaks to a real software TPM."""
    with SoftwareTpm(tmp_path) as tpm, tpm.open() as client:
        assert len(client.get_random(8)) == 8


@needs_swtpm
def test_tcp_leads_to_a_tpm(tmp_path: Path) -> None:
    """swtpm:HOST:PORT speaks to a real software TPM."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    command = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={tmp_path}", "--flags", "not-need-init,startup-clear"]
    with subprocess.Popen([*command, "--server", f"type=tcp,port={port}"]) as process:
        try:
            with _open_when_up(f"swtpm:localhost:{port}") as client:
                assert len(client.get_random(8)) == 8
        finally:
            process.kill()


@needs_swtpm
def test_a_character_device_leads_to_a_tpm(tmp_path: Path) -> None:
    """device:PATH speaks to a software TPM behind a terminal device, the nearest thing to /dev/tpmrm0 without one."""
    ours, theirs = os.openpty()
    tty.setraw(ours)
    tty.setraw(theirs)
    path = os.ttyname(theirs)
    command = ["swtpm", "chardev", "--tpm2", "--tpmstate", f"dir={tmp_path}", "--flags", "not-need-init,startup-clear"]
    with subprocess.Popen([*command, "--fd", str(ours)], pass_fds=(ours,)) as process:
        try:
            with Tpm.open(f"device:{path}", Deadline(10)) as client:
                assert len(client.get_random(8)) == 8
                assert client.banks()
        finally:
            process.kill()
    os.close(ours)
    os.close(theirs)


def _open_when_up(spelling: str) -> Tpm:
    end = time.monotonic() + 10
    while True:
        try:
            return Tpm.open(spelling, Deadline(10))
        except AttesterError:
            if time.monotonic() > end:
                raise
