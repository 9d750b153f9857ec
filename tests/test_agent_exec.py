# SPDX-License-Identifier: Apache-2.0
"""`roomkey-agent exec`: a process gets its secrets where nobody else reads them, or does not run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import run as module
from agent.cli import main
from agent.run import Secret, become, prepare, read_secrets
from keys.errors import AttesterError, ConfigError, NotFound, ProtocolError
from keys.messages import ResourcePath
from tests.fakes.boot import Boot
from tests.fakes.ek_ca import EkCa
from tests.fakes.kbs import FakeKbs, pin
from tests.fakes.swtpm import SoftwareTpm
from tests.fakes.tls import TlsCa
from tests.needs import needs_swtpm

ROOT = Path(__file__).parent.parent
PASSWORD, BINARY = "pässword of the database", b"\0\xff a key's bytes\n"
KEYS = {"o/db/password": PASSWORD.encode(), "o/tls/key": BINARY}

# What a process can see of itself, as JSON; and it tries to write into its file.
SEE = """
import json, os, sys
path = os.environ.get("KEY", "")
seen = {"env": dict(os.environ), "argv": open("/proc/self/cmdline").read(), "core": __import__("resource").getrlimit(4)}
if path:
    seen["file"] = open(path, "rb").read().hex()
    seen["again"] = open(path, "rb").read().hex()
    try:
        open(path, "r+b", buffering=0).write(b"x")
        seen["written"] = True
    except OSError:
        seen["written"] = False
print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """How a machine with a TPM reaches a broker that gives it both keys."""
    directory = tmp_path_factory.mktemp("machine")
    ca = TlsCa(directory / "tls")
    with SoftwareTpm(directory / "tpm") as tpm, FakeKbs(dict(KEYS), ca.server_context()) as kbs:
        tpm.manufacture(EkCa())
        tpm.measure_boot(Boot(), directory / "log")
        yield ["--broker", kbs.url, "--ca-file", str(ca.ca_file), "--tpm", tpm.address, "--timeout", "10",
               "--eventlog", str(directory / "log"), "--broker-keys", pin(directory)]  # fmt: skip


def ran(options: list[str], *words: str, code: str = SEE) -> subprocess.CompletedProcess[bytes]:
    command = [
        sys.executable,
        "-m",
        "agent",
        "exec",
        *options,
        *words,
        "--",
        sys.executable,
        "-c",
        code,
        "its own word",
    ]
    return subprocess.run(
        command, cwd=ROOT, env={"PATH": os.environ["PATH"], "KEPT": "1"}, capture_output=True, check=False
    )


@needs_swtpm
def test_a_process_gets_its_secrets(options: list[str]) -> None:
    """Text in its environment, bytes in a file that can be read again and not written, nothing in its arguments, and
    the rest of the environment as it was.
    """
    done = ran(options, "--env", "DB_PASSWORD=o/db/password", "--file", "KEY=o/tls/key")
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["env"]["DB_PASSWORD"] == PASSWORD
    assert (seen["file"], seen["again"], seen["written"]) == (BINARY.hex(), BINARY.hex(), False)
    assert seen["env"]["KEPT"] == "1"
    assert "own word" in seen["argv"]
    assert PASSWORD not in seen["argv"]
    assert seen["core"][0] == 0
    assert done.stderr == b""


@needs_swtpm
def test_the_status_is_the_commands(options: list[str]) -> None:
    """The agent has become the command."""
    assert ran(options, "--env", "A=o/db/password", code="raise SystemExit(7)").returncode == 7


@needs_swtpm
def test_where_one_key_is_missing_nothing_runs(options: list[str]) -> None:
    """The error is that of the key; the command has printed nothing."""
    done = ran(options, "--env", "A=o/db/password", "--env", "B=o/db/none")
    assert (done.returncode, done.stdout) == (NotFound.exit_status, b"")


@needs_swtpm
def test_bytes_do_not_stand_in_an_environment(options: list[str]) -> None:
    """A key that is no text is refused without a word of it, and the way for it is named."""
    done = ran(options, "--env", "A=o/tls/key")
    assert (done.returncode, done.stdout) == (ConfigError.exit_status, b"")
    assert b"use --file" in done.stderr
    assert b"a key's bytes" not in done.stderr


@needs_swtpm
def test_without_the_cap_nothing_runs(options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the PCR cannot be extended the command is not started; where it can, it is, afterwards."""
    monkeypatch.setattr("keys.secrecy.forbid_core_dumps", lambda: None)
    capped: list[bool] = []
    monkeypatch.setattr("agent.run.become", lambda *_: pytest.fail("it was run") if not capped else sys.exit(0))
    words = ["exec", *options, "--env", "A=o/db/password", "--cap", "--", "true"]

    def fail(*_: object) -> None:
        raise AttesterError("no PCR")

    monkeypatch.setattr("agent.cap.cap", fail)
    assert main(words) == AttesterError.exit_status
    monkeypatch.setattr("agent.cap.cap", lambda *_: capped.append(True))
    with pytest.raises(SystemExit):
        main(words)
    assert capped == [True]


def test_no_command_is_an_error() -> None:
    """Before any key is asked for."""
    assert main(["exec", "--env", "A=o/db/password"]) == ConfigError.exit_status
    assert main(["exec", "--env", "A=o/db/password", "--"]) == ConfigError.exit_status


@pytest.mark.parametrize(
    ("env", "files"),
    [
        ((), ()), (("A",), ()), (("=o/db/password",), ()), (("1A=o/db/x",), ()), (("A B=o/db/x",), ()),
        (("A=o/db/x", "A=o/db/y"), ()), (("A=o/db/x",), ("A=o/db/y",)), (("A" * 129 + "=o/db/x",), ()),
        (tuple(f"A{n}=o/db/x" for n in range(17)), ()), (("A\n=o/db/x",), ()),
    ],
)  # fmt: skip
def test_what_names_no_secrets_is_refused(env: tuple[str, ...], files: tuple[str, ...]) -> None:
    """Names of variables, each once, and not too many."""
    with pytest.raises(ConfigError):
        read_secrets(env, files)


def test_a_path_is_a_keys() -> None:
    """What follows the sign must be OWNER/TYPE/TAG."""
    with pytest.raises(ProtocolError):
        read_secrets(("A=no-path",), ())
    assert read_secrets(("A=o/db/x",), ("B=o/db/y",)) == [
        Secret("A", ResourcePath("o", "db", "x"), as_file=False),
        Secret("B", ResourcePath("o", "db", "y"), as_file=True),
    ]


def test_each_key_is_fetched_once_and_wiped() -> None:
    """A key under two names costs one request; what was fetched is overwritten, also where a later one fails."""
    fetched: list[bytearray] = []

    def fetch(path: ResourcePath) -> bytearray:
        if path.tag == "none":
            raise NotFound("no such key")
        fetched.append(bytearray(b"text"))
        return fetched[-1]

    variables = prepare(read_secrets(("A=o/db/x", "B=o/db/x"), ("C=o/db/x",)), fetch)
    assert (variables["A"], variables["B"]) == ("text", "text")
    descriptor = int(variables["C"].rpartition("/")[2])
    assert os.read(descriptor, 10) == b"text"
    assert os.get_inheritable(descriptor)
    os.close(descriptor)
    assert len(fetched) == 1
    with pytest.raises(NotFound):
        prepare(read_secrets(("A=o/db/x", "B=o/db/none"), ()), fetch)
    assert not any(map(any, fetched))


@pytest.mark.parametrize("command", [["/nonexistent/program"], ["a\0b"], ["/"]])
def test_a_command_that_cannot_be_run_is_named(command: list[str]) -> None:
    """The error says which."""
    with pytest.raises(ConfigError, match="cannot be run"):
        become(command, {"PATH": ""})


def test_a_long_key_is_written_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the kernel takes it piece by piece."""
    write = os.write
    monkeypatch.setattr(module.os, "write", lambda fd, data: write(fd, bytes(data[:3])))
    variables = prepare(read_secrets((), ("A=o/db/x",)), lambda _: bytearray(b"0123456789"))
    descriptor = int(variables["A"].rpartition("/")[2])
    assert os.read(descriptor, 100) == b"0123456789"
    os.close(descriptor)
