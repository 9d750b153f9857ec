# SPDX-License-Identifier: Apache-2.0
"""The TPM client against a real software TPM, and against one that lies."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import tpm2
from agent.attesters.tpm import AK_TEMPLATE, EK_PROFILES
from agent.deadline import Deadline
from agent.tpm2_marshal import ALG_SHA256, ALG_SHA384, pcr_selection, read_quote, tpm2b, u16, u32
from agent.tpm2_transport import Transport
from keys.errors import AttesterError, RoomkeyError, Unavailable
from tests.fakes.swtpm import SoftwareTpm, nv_write
from tests.needs import NO_SWTPM, has_swtpm, needs_swtpm

EK_TEMPLATE = EK_PROFILES[0].template


@pytest.fixture(scope="module")
def software_tpm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoftwareTpm]:
    if not has_swtpm:
        pytest.skip(NO_SWTPM)
    with SoftwareTpm(tmp_path_factory.mktemp("tpm")) as tpm:
        yield tpm


@pytest.fixture
def tpm(software_tpm: SoftwareTpm) -> Iterator[tpm2.Tpm]:
    with software_tpm.open() as client:
        yield client


class Liar:
    """A transport that answers with prepared parameters; the last one again and again."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers)
        self.commands: list[bytes] = []

    def exchange(self, command: bytes, _deadline: Deadline) -> bytes:
        self.commands.append(command)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    def close(self) -> None:
        pass


def response(body: bytes = b"", rc: int = 0, tag: int = 0x8001) -> bytes:
    return u16(tag) + u32(10 + len(body)) + u32(rc) + body


def authorized(parameters: bytes, handle: bytes = b"", sessions: int = 1) -> bytes:
    """A response to a command with sessions: handle, size, parameters, and an empty acknowledgment each."""
    acknowledgment = u16(0) + b"\1" + u16(0)
    return response(handle + u32(len(parameters)) + parameters + sessions * acknowledgment, tag=0x8002)


def lying(*answers: bytes) -> tpm2.Tpm:
    return tpm2.Tpm(Liar(*answers), Deadline(5))  # type: ignore[arg-type]


# A real TPM


def test_startup_leaves_a_running_tpm_alone(tpm: tpm2.Tpm) -> None:
    """TPM2_Startup on a TPM that runs is no error."""
    tpm.startup()


def test_random_bytes_differ(tpm: tpm2.Tpm) -> None:
    """TPM2_GetRandom gives as many bytes as were asked for, and others each time."""
    first, second = tpm.get_random(16), tpm.get_random(16)
    assert len(first) == len(second) == 16
    assert first != second


def test_a_primary_key_is_the_same_each_time_and_is_flushed(tpm: tpm2.Tpm) -> None:
    """A template gives one key for ever, and no slot stays taken: a TPM without resource manager has three."""
    names = set()
    for _ in range(5):
        with tpm.primary(tpm2.RH_ENDORSEMENT, AK_TEMPLATE) as key:
            names.add(key.name)
    assert len(names) == 1
    assert tpm.handles(0x80000000, 0x80FFFFFF) == []


def test_a_primary_key_is_flushed_after_a_failure(tpm: tpm2.Tpm) -> None:
    """An exception inside does not leave the key loaded."""
    with pytest.raises(RuntimeError), tpm.primary(tpm2.RH_ENDORSEMENT, AK_TEMPLATE):
        raise RuntimeError
    assert tpm.handles(0x80000000, 0x80FFFFFF) == []


def test_a_loaded_key_can_be_read(tpm: tpm2.Tpm) -> None:
    """TPM2_ReadPublic shows the key that TPM2_CreatePrimary made."""
    with tpm.primary(tpm2.RH_ENDORSEMENT, AK_TEMPLATE) as key:
        assert tpm.read_public(key.handle) == key


def test_pcrs_are_read_eight_at_a_time(tpm: tpm2.Tpm) -> None:
    """All 24 PCRs come back, each under its own index."""
    digest = hashlib.sha256(b"event").digest()
    before = tpm.pcr_read(ALG_SHA256, range(24))
    tpm.pcr_extend(23, {ALG_SHA256: digest})
    after = tpm.pcr_read(ALG_SHA256, range(24))
    assert after == before | {23: hashlib.sha256(before[23] + digest).digest()}


def test_a_quote_covers_nonce_and_pcrs(tpm: tpm2.Tpm) -> None:
    """TPM2_Quote signs the qualifying data and the digest of the selected PCRs, in index order."""
    with tpm.primary(tpm2.RH_ENDORSEMENT, AK_TEMPLATE) as key:
        attest, signature = tpm.quote(key.handle, bytes(range(32)), ALG_SHA256, [7, 0])
    values = tpm.pcr_read(ALG_SHA256, [0, 7])
    digest = hashlib.sha256(values[0] + values[7]).digest()
    assert read_quote(attest) == (bytes(range(32)), [(ALG_SHA256, [0, 7])], digest)
    assert signature.startswith(b"\x00\x18\x00\x0b")


def test_an_nv_area_larger_than_a_chunk_is_read_whole(tpm: tpm2.Tpm) -> None:
    """NV is read in pieces of 512 bytes, to the last byte."""
    data = bytes(range(256)) * 5 + b"end"
    nv_write(tpm, 0x01C10000, data)
    assert tpm.nv_read(0x01C10000) == data
    assert tpm.handles(0x01C10000, 0x01C10000) == [0x01C10000]


def test_an_absent_nv_area_is_named(tpm: tpm2.Tpm) -> None:
    """A refused command is a TpmError with the response code's name."""
    with pytest.raises(tpm2.TpmError, match="TPM_RC_HANDLE") as caught:
        tpm.nv_read(0x01C1FFFF)
    assert caught.value.rc == 0x18B


def test_the_session_of_a_failed_activation_is_flushed(tpm: tpm2.Tpm) -> None:
    """A credential for another key is TPM_RC_INTEGRITY or so, ten times over: no session stays behind."""
    for _ in range(10):
        with (
            tpm.primary(tpm2.RH_ENDORSEMENT, AK_TEMPLATE) as ak,
            tpm.primary(tpm2.RH_ENDORSEMENT, EK_TEMPLATE) as ek,
            pytest.raises(tpm2.TpmError),
            tpm.endorsement_session() as session,
        ):
            tpm.activate_credential(ak.handle, ek.handle, session, tpm2b(bytes(32)) + bytes(34), bytes(68))
    assert tpm.handles(0x02000000, 0x03FFFFFF) == []


def test_the_tpm_is_described(tpm: tpm2.Tpm) -> None:
    """Banks and manufacturer are what swtpm states."""
    assert ALG_SHA256 in tpm.banks()
    assert tpm.manufacturer() == "IBM"


@needs_swtpm
def test_a_tpm_that_no_firmware_started_is_started(tmp_path: Path) -> None:
    """A TPM fresh from its power switch refuses everything until TPM2_Startup."""
    command = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={tmp_path}", "--flags", "not-need-init"]
    ours, theirs = socket.socketpair()
    with ours, theirs, subprocess.Popen([*command, "--fd", str(theirs.fileno())], pass_fds=(theirs.fileno(),)) as tpm:
        try:
            ours.setblocking(False)
            with tpm2.Tpm(Transport(ours.detach(), "the test"), Deadline(10)) as client:
                with pytest.raises(tpm2.TpmError, match="TPM_RC_INITIALIZE"):
                    client.get_random(1)
                client.startup()
                assert client.get_random(1)
        finally:
            tpm.kill()


# A TPM that lies


@pytest.mark.parametrize("rc", sorted(tpm2.RC_RETRY))
def test_a_busy_tpm_is_asked_again(rc: int) -> None:
    """TPM_RC_RETRY, TESTING and YIELDED mean: the same command once more."""
    liar = Liar(response(rc=rc), response(rc=rc), response(tpm2b(b"x")))
    assert tpm2.Tpm(liar, Deadline(5)).get_random(1) == b"x"  # type: ignore[arg-type]
    assert liar.commands == 3 * liar.commands[:1]


def test_a_tpm_that_stays_busy_is_given_up() -> None:
    """A TPM that answers RETRY for ever is Unavailable at the deadline."""
    with pytest.raises(Unavailable, match="the TPM"):
        tpm2.Tpm(Liar(response(rc=0x922)), Deadline(0.05)).get_random(1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rc", "words"),
    [
        (0x100, "TPM_RC_INITIALIZE"),
        (0x1DF, "TPM_RC_INTEGRITY"),
        (0x12F, "TPM_RC_AUTH_UNAVAILABLE"),
        (0x921, "TPM_RC_LOCKOUT"),
        (0x98E, "TPM_RC_AUTH_FAIL"),
        (0x7FF, "response code"),
    ],
)
def test_a_refusal_is_named(rc: int, words: str) -> None:
    """Response codes are named without their parameter, handle or session number."""
    with pytest.raises(tpm2.TpmError) as caught:
        lying(response(rc=rc)).get_random(1)
    assert words in str(caught.value)
    assert f"{rc:#x}" in str(caught.value)


def test_startup_passes_other_refusals_on() -> None:
    """Only TPM_RC_INITIALIZE means that the TPM runs already."""
    with pytest.raises(tpm2.TpmError, match="TPM_RC_FAILURE"):
        lying(response(rc=0x101)).startup()


COUNTED = u32(1) + pcr_selection(ALG_SHA256, [0])
PRIMARY_REST = 2 * u16(0) + bytes(6) + u16(0)  # creation data and hash, ticket
FIRST, SECOND = (u32(n) + pcr_selection(ALG_SHA256, [0]) + u32(1) + tpm2b(bytes(32)) for n in (1, 2))

LIES: dict[str, tuple[Callable[[tpm2.Tpm], object], bytes, str]] = {
    "another tag": (lambda t: t.get_random(1), authorized(tpm2b(b"x")), "another tag"),
    "bytes after random": (lambda t: t.get_random(1), response(tpm2b(b"x") + b"!"), "after its end"),
    "bytes after sessions": (
        lambda t: t.create_primary(tpm2.RH_ENDORSEMENT, AK_TEMPLATE),
        authorized(b"", handle=u32(1), sessions=2),
        "after its end",
    ),
    "parameters longer than the answer": (
        lambda t: t.quote(1, b"", ALG_SHA256, [0]),
        response(u32(99) + b"x", tag=0x8002),
        "in the middle",
    ),
    "a key with another Name": (
        lambda t: t.create_primary(tpm2.RH_ENDORSEMENT, AK_TEMPLATE),
        authorized(tpm2b(AK_TEMPLATE) + PRIMARY_REST + tpm2b(bytes(34)), handle=u32(1)),
        "the Name",
    ),
    "a read key with another Name": (
        lambda t: t.read_public(1),
        response(tpm2b(AK_TEMPLATE) + tpm2b(bytes(34)) + tpm2b(bytes(34))),
        "the Name",
    ),
    "no bank": (
        lambda t: t.pcr_read(ALG_SHA384, [0]),
        response(u32(1) + pcr_selection(ALG_SHA384, []) + u32(0)),
        "no sha384 bank",
    ),
    "another bank": (lambda t: t.pcr_read(ALG_SHA384, [0]), response(FIRST), "other PCRs"),
    "another PCR": (lambda t: t.pcr_read(ALG_SHA256, [1]), response(FIRST), "other PCRs"),
    "no PCR value": (lambda t: t.pcr_read(ALG_SHA256, [0]), response(COUNTED + u32(0)), "other PCRs"),
    "bytes after PCR values": (lambda t: t.pcr_read(ALG_SHA256, [0]), response(FIRST + b"!"), "after its end"),
    "another capability": (lambda t: t.handles(0, 1), response(b"\0" + u32(6) + u32(0)), "another capability"),
    "too many handles": (
        lambda t: t.handles(0, 1),
        response(b"\0" + u32(1) + u32(255) + bytes(1020)),
        "too long a list",
    ),
    "no manufacturer": (
        lambda t: t.manufacturer(),
        response(b"\0" + u32(6) + u32(1) + u32(0x106) + b"SOME"),
        "does not state",
    ),
    "two properties": (lambda t: t.manufacturer(), response(b"\0" + u32(6) + u32(2) + bytes(16)), "too long a list"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_refused(lie: str) -> None:
    """An answer that does not have its command's form is an AttesterError."""
    ask, answer, words = LIES[lie]
    with pytest.raises(AttesterError, match=words):
        ask(lying(answer))


def test_pcrs_that_change_while_they_are_read_are_read_again() -> None:
    """Values of two moments are never mixed: all commands must show one update counter."""

    def part(counter: int, indices: list[int]) -> bytes:
        values = len(indices) * tpm2b(bytes((counter,)) * 32)
        return response(u32(counter) + pcr_selection(ALG_SHA256, indices) + u32(len(indices)) + values)

    low, high = list(range(8)), list(range(8, 16))
    values = lying(part(1, low), part(2, high), part(2, low), part(2, high)).pcr_read(ALG_SHA256, range(16))
    assert set(values.values()) == {b"\2" * 32}


def test_pcrs_that_never_rest_are_given_up() -> None:
    """A counter that changes with each command ends in an error, not in a loop."""

    class Restless(Liar):
        def exchange(self, command: bytes, deadline: Deadline) -> bytes:
            self.commands.append(command)
            selection, values = command[10:], 8 * tpm2b(bytes(32))
            return response(u32(len(self.commands)) + selection + u32(8) + values)

    with pytest.raises(AttesterError, match="faster"):
        tpm2.Tpm(Restless(b""), Deadline(5)).pcr_read(ALG_SHA256, range(16))  # type: ignore[arg-type]


def nv_public(attributes: int, size: int, rest: bytes = b"") -> bytes:
    area = u32(0x01C00002) + u16(ALG_SHA256) + u32(attributes) + tpm2b(b"") + u16(size) + rest
    return response(tpm2b(area) + tpm2b(b"name"))


def test_a_huge_nv_area_is_not_read() -> None:
    """An NV area of more than 8 KiB is refused before it is read."""
    with pytest.raises(AttesterError, match="too large"):
        lying(nv_public(0, tpm2.MAX_NV_BYTES + 1)).nv_read(0x01C00002)


def test_nv_data_of_another_length_is_refused() -> None:
    """A piece of NV must have the length that was asked for."""
    with pytest.raises(AttesterError, match="amount"):
        lying(nv_public(tpm2.NV_AUTHREAD, 4), authorized(tpm2b(b"abc"))).nv_read(0x01C00002)


@pytest.mark.parametrize(
    ("attributes", "reader"),
    [
        (tpm2.NV_AUTHREAD | tpm2.NV_OWNERREAD, 0x01C00002),
        (tpm2.NV_OWNERREAD, tpm2.RH_OWNER),
        (0, 0x01C00002),
    ],
)
def test_nv_is_read_by_whom_it_lets_read(attributes: int, reader: int) -> None:
    """An area with AUTHREAD is read by its own authorization, one with OWNERREAD alone by the owner's."""
    liar = Liar(nv_public(attributes, 1), authorized(tpm2b(b"x")))
    assert tpm2.Tpm(liar, Deadline(5)).nv_read(0x01C00002) == b"x"  # type: ignore[arg-type]
    assert liar.commands[1][10:14] == u32(reader)


def test_a_strange_maker_is_shown_without_control_characters() -> None:
    """The manufacturer's four bytes reach a console only as far as they are printable."""
    assert lying(response(b"\0" + u32(6) + u32(1) + u32(0x105) + b"A\x1b\0Z")).manufacturer() == "AZ"


ASKS: list[Callable[[tpm2.Tpm], object]] = [
    lambda t: t.startup(),
    lambda t: t.get_random(8),
    lambda t: t.create_primary(tpm2.RH_ENDORSEMENT, AK_TEMPLATE),
    lambda t: t.read_public(1),
    lambda t: t.flush(1),
    lambda t: t.endorsement_session().__enter__(),
    lambda t: t.activate_credential(1, 2, 3, b"", b""),
    lambda t: t.quote(1, b"", ALG_SHA256, [0]),
    lambda t: t.pcr_read(ALG_SHA256, [0]),
    lambda t: t.pcr_extend(0, {}),
    lambda t: t.nv_read(1),
    lambda t: t.handles(0, 1),
    lambda t: t.banks(),
    lambda t: t.manufacturer(),
]


@given(
    st.sampled_from(ASKS), st.lists(st.binary(max_size=80), min_size=1, max_size=3), st.sampled_from((0x8001, 0x8002))
)
@settings(max_examples=200, deadline=None)
def test_no_answer_makes_the_client_fail_otherwise(
    ask: Callable[[tpm2.Tpm], object], bodies: list[bytes], tag: int
) -> None:
    """Whatever a TPM answers, the client returns or raises an error of ours."""
    with contextlib.suppress(RoomkeyError):
        ask(lying(*(response(body, tag=tag) for body in bodies)))
