# SPDX-License-Identifier: Apache-2.0
"""SNP evidence from a model of the kernel's two interfaces, and from recorded answers of real ones."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import struct
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.attesters.registry import attester_for
from agent.attesters.snp import SnpAttester, SnpReport, instance_of
from agent.client import fetch
from agent.config import Settings
from agent.deadline import Deadline
from agent.kernel import Kernel
from agent.sev_guest import BUSY_SECONDS, device_report
from agent.tsm import ATTEMPTS, MAX_BLOB_BYTES, tsm_report
from broker.verifiers.snp_evidence import decode_evidence
from keys import b64
from keys.errors import AttesterError, ConfigError, ProtocolError, Unavailable
from keys.messages import Challenge, Request, ResourcePath, TpmCredential
from keys.tee import Tee
from tests.fakes.kbs import FakeKbs, pin
from tests.fakes.sev_guest import BUSY, DEVICE, GENERIC, INVALID_LENGTH, TSM, FakeKernel, fake_report
from tests.vectors import VECTORS, needs_vectors

PATH = ResourcePath("owner", "disk", "root")
DATA = bytes(range(48))
BOUND = DATA + bytes(16)
TABLE = bytes(range(24)) + b"certificates"
SNP = VECTORS / "snp"


def attester(kernel: Kernel, seconds: float = 5) -> SnpAttester:
    return SnpAttester(Settings(tee=Tee.SNP), Deadline(seconds), kernel)


# Which interface


def test_configfs_comes_first() -> None:
    """Where both interfaces exist the device is not opened, and the evidence has the form of configfs-tsm."""
    kernel = FakeKernel(certificates=TABLE)
    evidence = attester(kernel).evidence(DATA)
    assert evidence == {
        "outblob": b64.std(fake_report(BOUND)),
        "auxblob": b64.std(TABLE),
        "provider": "sev_guest",
    }
    assert kernel.requests == []


def test_the_device_comes_second() -> None:
    """Where there is no configfs-tsm the device answers, and the evidence has its form."""
    evidence = attester(FakeKernel(tsm=False, certificates=TABLE)).evidence(DATA)
    assert evidence == {
        "report": b64.std(fake_report(BOUND)),
        "cert_table": b64.std(TABLE.ljust(4096, b"\0")),
    }


@pytest.mark.parametrize("tsm", [True, False])
def test_no_certificates_no_member(tsm: bool) -> None:
    """A host without certificates adds no member, nor does one whose table is only its end."""
    for certificates in (b"", bytes(4096)):
        evidence = attester(FakeKernel(tsm=tsm, certificates=certificates)).evidence(DATA)
        assert evidence.keys() == ({"outblob", "provider"} if tsm else {"report"})


@pytest.mark.parametrize("tsm", [True, False])
def test_the_broker_reads_what_the_agent_sends(tsm: bool) -> None:
    """Both forms decode on the other side to exactly the firmware's bytes."""
    assert decode_evidence(attester(FakeKernel(tsm=tsm)).evidence(DATA)).report == fake_report(BOUND)


def test_without_both_the_error_names_both() -> None:
    """A machine without SNP is told what was looked for and what mends it."""
    with pytest.raises(AttesterError, match="no SEV-SNP report") as caught:
        attester(FakeKernel(tsm=False, device=False)).evidence(DATA)
    assert TSM in str(caught.value)
    assert DEVICE in str(caught.value)
    assert caught.value.mend


def test_a_broken_configfs_is_passed_over() -> None:
    """Certificates too large for configfs-tsm (EIO) do not keep the device from answering."""
    kernel = FakeKernel(failing={"outblob": errno.EIO})
    assert attester(kernel).evidence(DATA).keys() == {"report"}
    assert kernel.items == {}


def test_a_report_over_something_else_is_refused() -> None:
    """A report that does not carry the report data is not sent: the broker would refuse it, and say nothing."""
    with pytest.raises(AttesterError, match="no report over"):
        attester(FakeKernel(firmware=lambda _data, _vmpl: fake_report(bytes(64)))).evidence(DATA)


@pytest.mark.parametrize("size", [0, 1183, 1185])
def test_a_report_of_another_size_is_refused(size: int) -> None:
    """Only 1184 bytes are a report."""
    kernel = FakeKernel(firmware=lambda data, _vmpl: fake_report(data).ljust(1185, b"\0")[:size])
    with pytest.raises(AttesterError, match="no report over"):
        attester(kernel).evidence(DATA)


# configfs-tsm


def tsm(kernel: FakeKernel, provider: str = "sev_guest") -> tuple[bytes, bytes]:
    try:
        return tsm_report(kernel, TSM, BOUND, provider, Deadline(5))
    finally:
        assert kernel.items == {}, "the directory is always removed"


def test_each_report_has_a_directory_of_its_own() -> None:
    """Two reports use two directories, with names that nobody guesses; both are gone afterwards."""
    kernel = FakeKernel()
    tsm(kernel)
    tsm(kernel)
    first, second = kernel.made
    assert first != second
    assert len(first) == len("roomkey-") + 32


def test_a_kernel_without_auxblob_is_fine() -> None:
    """The file may be missing, as on other platforms."""
    assert tsm(FakeKernel(missing=frozenset(("auxblob", "privlevel_floor")))) == (fake_report(BOUND), b"")


def test_another_providers_report_is_not_taken() -> None:
    """On a TDX guest nothing is written, and the provider is named."""
    kernel = FakeKernel(provider=b"tdx_guest\n")
    with pytest.raises(AttesterError, match="tdx_guest"):
        tsm(kernel)


def test_a_provider_is_named_without_control_characters() -> None:
    """What a strange kernel says cannot write on the console as it likes."""
    with pytest.raises(AttesterError) as caught:
        tsm(FakeKernel(provider=b"\x1b[2J\xff" + bytes(100)))
    assert str(caught.value).isprintable()


def _again(item: object) -> None:
    raise BlockingIOError(errno.EWOULDBLOCK, "try again")


def _intrude(item: object) -> None:
    item.generation += 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("trouble", [_again, _intrude])
def test_interference_begins_it_again(trouble: object) -> None:
    """A write between (EWOULDBLOCK, or another generation) throws the report away, and a new one is asked for."""
    kernel = FakeKernel(before_outblob=[trouble] * (ATTEMPTS - 1))  # type: ignore[list-item]
    assert tsm(kernel) == (fake_report(BOUND), b"")
    assert kernel.before_outblob == []


@pytest.mark.parametrize("trouble", [_again, _intrude])
def test_interference_ends(trouble: object) -> None:
    """Whoever interferes for ever is named, after a bounded number of attempts."""
    kernel = FakeKernel(before_outblob=[trouble] * 99)  # type: ignore[list-item]
    with pytest.raises(AttesterError, match="keeps writing"):
        tsm(kernel)
    assert len(kernel.before_outblob) == 99 - ATTEMPTS


def test_a_report_that_somebody_else_bound_is_not_taken() -> None:
    """Another's inblob between our write and our read changes the generation; ours is written again."""

    def intrude(item: object) -> None:
        item.inblob, item.generation = bytes(64), item.generation + 1  # type: ignore[attr-defined]

    assert tsm(FakeKernel(before_outblob=[intrude])) == (fake_report(BOUND), b"")


def test_a_guest_below_an_svsm_asks_for_its_own_level() -> None:
    """Where the floor is VMPL 2 the report is asked for at 2, which it says."""
    assert tsm(FakeKernel(floor=2)) == (fake_report(BOUND, 2), b"")


@pytest.mark.parametrize("name", ["mkdir", "provider", "privlevel_floor", "generation", "inblob", "outblob", "auxblob"])
def test_every_failing_call_is_ours(name: str) -> None:
    """Whatever call fails ends as AttesterError with the kernel's words, and leaves no directory."""
    with pytest.raises(AttesterError, match="Permission denied") as caught:
        tsm(FakeKernel(failing={name: errno.EACCES}))
    assert "root" in (caught.value.mend or "")


def test_a_directory_that_stays_does_not_cost_the_report() -> None:
    """If only the removal fails the report is good."""
    kernel = FakeKernel(failing={"rmdir": errno.EBUSY})
    assert tsm_report(kernel, TSM, BOUND, "sev_guest", Deadline(5)).outblob == fake_report(BOUND)


def test_a_blob_without_end_is_cut_off() -> None:
    """No more than 32 KiB are read."""
    with pytest.raises(AttesterError, match="too long"):
        tsm(FakeKernel(certificates=bytes(MAX_BLOB_BYTES + 1)))
    assert tsm(FakeKernel(certificates=bytes(MAX_BLOB_BYTES)))[1] == bytes(MAX_BLOB_BYTES)


def test_a_generation_that_is_no_number_is_refused() -> None:
    """Nothing is compared that cannot be."""
    kernel = FakeKernel(missing=frozenset(("privlevel_floor",)))
    kernel._content = lambda item, name: b"sev_guest" if name == "provider" else b"-1\n"  # type: ignore[method-assign]  # noqa: ARG005
    with pytest.raises(AttesterError, match="not a number"):
        tsm(kernel)


def test_the_deadline_holds() -> None:
    """After the deadline no report is begun, with either interface."""
    for kernel in (FakeKernel(), FakeKernel(tsm=False)):
        with pytest.raises(Unavailable):
            attester(kernel, seconds=-1).evidence(DATA)
        assert kernel.items == {}
        assert kernel.open_files == 0


# /dev/sev-guest


def device(kernel: FakeKernel, seconds: float = 5) -> tuple[bytes, bytes]:
    try:
        return device_report(kernel, DEVICE, BOUND, Deadline(seconds))
    finally:
        assert kernel.open_files == 0, "the device is always closed"


EXTENDED, PLAIN = 0xC0205302, 0xC0205300


@pytest.mark.parametrize("size", [1, 4096, 4097, 16384])
def test_certificates_are_fetched_in_the_needed_length(size: int) -> None:
    """First without room, then with as many pages as the hypervisor wants."""
    kernel = FakeKernel(certificates=b"c" * size)
    report, certificates = device(kernel)
    assert report == fake_report(BOUND)
    assert certificates == (b"c" * size).ljust(-(-size // 4096) * 4096, b"\0")
    assert kernel.requests == [EXTENDED, EXTENDED]


def test_without_certificates_one_request_is_enough() -> None:
    """A host that has none answers the first request with a report."""
    kernel = FakeKernel()
    assert device(kernel) == (fake_report(BOUND), b"")
    assert kernel.requests == [EXTENDED]


@pytest.mark.parametrize("kernel", [FakeKernel(extended=False), FakeKernel(certificates=bytes(16385))])
def test_a_plain_report_where_no_extended_one_is_to_be_had(kernel: FakeKernel) -> None:
    """A hypervisor without extended requests, or one with more certificates than a request can take, is asked for the
    plain report.
    """
    assert device(kernel) == (fake_report(BOUND), b"")
    assert kernel.requests == [EXTENDED, PLAIN]


@pytest.mark.parametrize("number", [errno.ENOTTY, errno.EINVAL])
def test_a_driver_without_extended_reports_is_asked_for_a_plain_one(number: int) -> None:
    """An older driver does not know the request."""
    kernel = FakeKernel(ioctl_errors=[(number, 0)])
    assert device(kernel) == (fake_report(BOUND), b"")


def test_a_length_of_nothing_is_no_length() -> None:
    """A hypervisor that wants more room than none, and says none, is asked for the plain report."""
    kernel = FakeKernel(ioctl_errors=[(errno.EIO, INVALID_LENGTH << 32)])
    assert device(kernel) == (fake_report(BOUND), b"")
    assert kernel.requests == [EXTENDED, PLAIN]


def test_certificates_that_keep_growing_are_done_without() -> None:
    """A host that changes the length each time is asked for the plain report in the end."""
    kernel = FakeKernel(certificates=b"c")
    right = kernel._certificates

    def grow(argument: object, source: int) -> None:
        try:
            right(argument, source)
        finally:
            kernel.certificates += bytes(4096)

    kernel._certificates = grow  # type: ignore[method-assign]
    assert device(kernel) == (fake_report(BOUND), b"")
    assert kernel.requests == [EXTENDED] * 3 + [PLAIN]


def test_certificates_that_fail_to_come_are_done_without() -> None:
    """A hypervisor that says how much it has, and then fails to give it, is asked for the plain report at once."""
    kernel = FakeKernel(certificates=b"c")
    right = kernel._certificates

    def fail(argument: object, source: int) -> None:
        kernel.extended = kernel.requests == [EXTENDED]
        right(argument, source)

    kernel._certificates = fail  # type: ignore[method-assign]
    assert device(kernel) == (fake_report(BOUND), b"")
    assert kernel.requests == [EXTENDED, EXTENDED, PLAIN]


def test_a_busy_host_is_asked_again_with_pauses() -> None:
    """Throttled requests are repeated, two seconds apart."""
    kernel = FakeKernel(ioctl_errors=[(errno.EIO, BUSY << 32), (errno.EAGAIN, BUSY << 32)])
    assert device(kernel) == (fake_report(BOUND), b"")
    assert kernel.pauses == [BUSY_SECONDS, BUSY_SECONDS]


def test_a_host_that_is_always_busy_costs_the_deadline_and_no_more() -> None:
    """The waiting ends with the deadline."""
    kernel = FakeKernel(ioctl_errors=[(errno.EIO, BUSY << 32)] * 9)

    def pause(seconds: float, deadline: Deadline, waiting_for: str) -> None:
        kernel.pauses.append(seconds)
        if len(kernel.pauses) == 3:
            deadline._end = 0
        deadline.left(waiting_for)

    kernel.pause = pause  # type: ignore[method-assign]
    with pytest.raises(Unavailable, match="throttles"):
        device_report(kernel, DEVICE, BOUND, Deadline(5))
    assert kernel.open_files == 0
    assert len(kernel.requests) == 3


def test_a_firmware_error_is_named() -> None:
    """The firmware's number reaches whoever has to look it up; no other request is made."""
    kernel = FakeKernel(ioctl_errors=[(errno.EIO, 0x1B)])
    with pytest.raises(AttesterError, match="firmware error 0x1b"):
        device(kernel)
    assert kernel.requests == [EXTENDED]


def test_a_locked_out_guest_is_told_to_restart() -> None:
    """Where the driver has thrown its key away (ENOTTY, firmware not called) the mend is a restart."""
    kernel = FakeKernel(ioctl_errors=[(errno.ENOTTY, 0xFF)] * 2)
    with pytest.raises(AttesterError, match="Inappropriate ioctl") as caught:
        device(kernel)
    assert "restart" in (caught.value.mend or "")


def test_a_hypervisors_error_is_named() -> None:
    """An error of the hypervisor for the plain report, too, is named with its number."""
    kernel = FakeKernel(ioctl_errors=[(errno.EIO, GENERIC << 32)] * 2)
    with pytest.raises(AttesterError, match="error 3"):
        device(kernel)


@pytest.mark.parametrize(
    ("head", "words"),
    [((0x16, 1184), "status 0x16"), ((0, 1183), "found 1183"), ((0, 0xFFFFFFFF), "found 4294967295")],
)
def test_a_response_that_is_none_is_refused(head: tuple[int, int], words: str) -> None:
    """Status and size of the response are looked at before its bytes."""
    with pytest.raises(AttesterError, match=words):
        device(FakeKernel(response=struct.pack("<II", *head).ljust(4000, b"\0")))


@given(
    st.binary(min_size=4000, max_size=4000),
    st.lists(st.tuples(st.just(errno.EIO), st.integers(0, 2**64 - 1)), max_size=4),
)
def test_nothing_but_our_errors_escapes_from_the_device(response: bytes, errors: list[tuple[int, int]]) -> None:
    """Whatever the host answers: a report of 1184 bytes, or an error of ours."""
    kernel = FakeKernel(response=response, ioctl_errors=errors)
    with contextlib.suppress(AttesterError, Unavailable):
        assert len(device(kernel)[0]) == 1184


# The instance


def test_a_chip_is_named_by_its_id() -> None:
    """A report that the chip's own key signs gives the id, from the report that was just made."""
    kernel = FakeKernel(tsm=False)
    one = attester(kernel)
    one.evidence(DATA)
    assert one.instance() == {"snp_chip_id": "c1" * 64}
    assert kernel.requests == [EXTENDED]


def test_an_instance_alone_asks_for_a_report() -> None:
    """Without evidence before it the instance comes from a report over zeros."""
    assert attester(FakeKernel()).instance() == {"snp_chip_id": "c1" * 64}


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        (fake_report(BOUND, signing_key=1), {}),
        (fake_report(BOUND, chip_id=b""), {}),
        (fake_report(BOUND, cpuid=(0x1A, 2, 1), chip_id=b"\x01" * 8), {"snp_chip_id": "01" * 8}),
        (fake_report(BOUND, cpuid=(0x1A, 2, 1), chip_id=b"\x01" * 9), {"snp_chip_id": "01" * 9 + "00" * 55}),
        (fake_report(BOUND, chip_id=b"\x01" * 8), {"snp_chip_id": "01" * 8 + "00" * 56}),
    ],
    ids=["VLEK", "masked", "Turin", "not Turin's form", "not Turin's family"],
)
def test_what_names_the_instance(report: bytes, expected: dict[str, str]) -> None:
    """A provider's key and a masked id name no chip; Turin's id has 8 bytes, and only Turin's."""
    assert instance_of(report) == expected


# Recorded answers


@needs_vectors
def test_a_recorded_response_of_the_driver_is_taken_apart() -> None:
    """The 4000 bytes that a real driver gave hold the report at its place."""
    kernel = FakeKernel(response=(SNP / "reports/milan-v2-ioctl-response.bin").read_bytes())
    assert device(kernel) == ((SNP / "reports/milan-v2-ioctl-response-parse-only.bin").read_bytes(), b"")


@needs_vectors
def test_a_recorded_report_goes_through_configfs_unchanged() -> None:
    """A real report and its real table come out as the kernel gave them."""
    report = (SNP / "reports/genoa-v3-tsm.bin").read_bytes()
    table = (SNP / "cert_tables/genoa-v3-tsm.auxblob.bin").read_bytes()
    kernel = FakeKernel(firmware=lambda _data, _vmpl: report, certificates=table)
    made = attester(kernel).report(report[0x50:0x90])
    assert made == SnpReport(report, table, by_tsm=True)


@needs_vectors
def test_recorded_reports_name_their_chips() -> None:
    """For every recorded report the instance is the chip id of its certificate, or none for a provider's key."""
    seen = set()
    for case in json.loads((SNP / "manifest.json").read_text())["cases"]:
        if "report" in case["files"] and "vek" in case and case["expect"] == "valid":
            report = (SNP / case["files"]["report"]).read_bytes()
            if len(report) == 1184:
                hwid = case["vek"].get("hwid")
                assert instance_of(report) == ({"snp_chip_id": hwid} if hwid else {}), case["name"]
                seen.add((case["product"], bool(hwid)))
    assert seen >= {("Milan", True), ("Genoa", True), ("Turin", True), ("Milan", False)}


# In the conversation with a broker


def test_a_guest_gets_its_key(tmp_path: Path) -> None:
    """auth, attest, resource with SNP evidence, over either interface."""
    for kernel in (FakeKernel(), FakeKernel(tsm=False)):
        with FakeKbs({str(PATH): b"key"}) as kbs, attester(kernel) as one:
            assert fetch(Settings((kbs.url,), broker_keys=pin(tmp_path)), one, PATH, Deadline(5)).secret == b"key"
            request = Request.from_bytes(kbs.asked("auth")[0].body)
        assert (request.tee, request.resource, request.tpm) == (Tee.SNP, PATH, None)


def test_a_credential_that_nobody_asked_for_is_refused() -> None:
    """A challenge for a TPM does not fit this guest."""
    with pytest.raises(ProtocolError, match="TPM"):
        attester(FakeKernel()).accept(Challenge("n", TpmCredential(b"a", b"b")))
    assert attester(FakeKernel()).accept(Challenge("n", None)) is None


def test_the_registry_knows_snp() -> None:
    """tee "snp" leads to this attester; a platform without one is named."""
    assert attester_for(Tee.SNP) is SnpAttester
    with pytest.raises(ConfigError, match="snp, tpm"):
        attester_for(Tee.SEV)


# The real calls


def test_the_kernels_calls_are_the_systems(tmp_path: Path) -> None:
    """Each call does what its name says; a long file shows that it is long."""
    kernel = Kernel()
    kernel.mkdir(str(tmp_path / "d"))
    (tmp_path / "d/f").write_bytes(b"")
    kernel.write(str(tmp_path / "d/f"), b"12345")
    assert kernel.read(str(tmp_path / "d/f"), 9) == b"12345"
    assert kernel.read(str(tmp_path / "d/f"), 4) == b"12345"
    assert kernel.read(str(tmp_path / "d/f"), 3) == b"1234"
    (tmp_path / "d/f").unlink()
    kernel.rmdir(str(tmp_path / "d"))
    assert not (tmp_path / "d").exists()
    with pytest.raises(Unavailable):
        kernel.pause(9, Deadline(-1), "x")


def test_an_ioctl_reaches_the_system() -> None:
    """A file that knows no ioctl answers ENOTTY; the buffer is given as it is."""
    kernel = Kernel()
    fd = kernel.open("/dev/null")
    with pytest.raises(OSError, match="Inappropriate"):
        kernel.ioctl(fd, PLAIN, ctypes.create_string_buffer(32))
    kernel.close(fd)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)


def test_an_ioctls_answer_is_in_the_buffer() -> None:
    """What the kernel writes into the argument is seen: FIONREAD of a pipe."""
    ours, theirs = os.pipe()
    os.write(theirs, b"12345")
    argument = ctypes.create_string_buffer(4)
    Kernel().ioctl(ours, 0x541B, argument)
    assert int.from_bytes(argument.raw, "little") == 5
    os.close(ours)
    os.close(theirs)


def test_a_short_write_is_an_error() -> None:
    """configfs takes a value in one write or not at all."""
    with mock.patch("os.write", return_value=1), pytest.raises(OSError, match="short write"):
        Kernel().write("/dev/null", b"12")
