# SPDX-License-Identifier: Apache-2.0
"""Asking AMD's key distribution service: what each answer means, and that no wait and no answer is without bounds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.endorsements import kds as module
from broker.endorsements.kds import MAX_BYTES, MAX_RETRY_AFTER_S, RETRY_AFTER_S, Kds
from broker.endorsements.source import FetchFailed
from broker.verifiers.snp_endorsements import crl_name, vcek_name
from broker.verifiers.snp_report import Line
from tests.fakes.kds import FakeKds, Reply
from tests.fakes.tls import TlsCa

CRL = crl_name(Line.GENOA)
VCEK = vcek_name(Line.TURIN, bytes(range(8)), {"fmc": 1, "bootloader": 2, "tee": 3, "snp": 4, "microcode": 255})


@pytest.fixture
def kds() -> Iterator[FakeKds]:
    with FakeKds() as kds:
        yield kds


def failure(kds: FakeKds, name: str = CRL) -> FetchFailed:
    with pytest.raises(FetchFailed) as caught:
        Kds(kds.url).fetch(name)
    return caught.value


def test_a_name_is_asked_for_under_its_path(kds: FakeKds) -> None:
    """The request's path is the name without its prefix, behind the path of the base URL; the body comes as it is."""
    kds.put(VCEK, b"\x30\x00genuine")
    assert Kds(kds.url).fetch(VCEK) == b"\x30\x00genuine"
    kds.always = Reply(body=b"mirrored")
    assert Kds(f"{kds.url}/amd/mirror/").fetch(CRL) == b"mirrored"
    assert kds.asked == [
        "/vcek/v1/Turin/0001020304050607?fmcSPL=01&blSPL=02&teeSPL=03&snpSPL=04&ucodeSPL=255",
        "/amd/mirror/vcek/v1/Genoa/crl",
    ]


def test_no_such_thing_is_an_answer(kds: FakeKds) -> None:
    """404 says that there is nothing, which is no failure."""
    assert Kds(kds.url).fetch(CRL) is None


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("17", 17), ("0", 0), ("99999999", MAX_RETRY_AFTER_S), ("", RETRY_AFTER_S), ("-1", RETRY_AFTER_S),
     ("Wed, 21 Oct 2026 07:28:00 GMT", RETRY_AFTER_S), ("9" * 5000, RETRY_AFTER_S), ("1.5", RETRY_AFTER_S)],
)  # fmt: skip
def test_too_many_requests_is_about_the_whole_service(kds: FakeKds, header: str, seconds: int) -> None:
    """429 asks to be left alone for as long as Retry-After says, within bounds, or for a minute."""
    kds.always = Reply(429, headers={"Retry-After": header} if header else {})
    error = failure(kds)
    assert (error.whole, error.pause_ms) == (True, seconds * 1000)


@pytest.mark.parametrize("status", [201, 204, 301, 302, 307, 400, 403, 410, 500, 502, 503, 504])
def test_any_other_status_is_a_failure_of_this_request(kds: FakeKds, status: int) -> None:
    """Nothing but 200 and 404 is an answer, and a redirect is not followed, wherever it leads."""
    kds.always = Reply(status, headers={"Location": f"{kds.url}/elsewhere"})
    error = failure(kds)
    assert (error.whole, error.pause_ms, error.found) == (False, 0, f"status {status}")
    assert len(kds.asked) == 1


def test_a_service_that_is_gone_fails_as_a_whole(kds: FakeKds) -> None:
    """A refused connection is no fault of what was asked for."""
    kds.close()
    assert failure(kds).whole


def test_an_answer_that_is_too_long_is_not_read(kds: FakeKds) -> None:
    """One byte more than the limit is a failure, announced or not; the limit itself is not."""
    kds.put(CRL, bytes(MAX_BYTES))
    assert Kds(kds.url).fetch(CRL) == bytes(MAX_BYTES)
    long = bytes(MAX_BYTES + 1)
    chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(long), long)
    for reply in (Reply(body=long), Reply(body=chunked, headers={"Transfer-Encoding": "chunked"})):
        kds.put(CRL, reply)
        assert failure(kds).message == "AMD's KDS answered too much"


def test_an_answer_is_taken_as_it_is(kds: FakeKds) -> None:
    """Nothing is unpacked: an answer that says that it is compressed could be far longer than it looks."""
    kds.put(CRL, Reply(body=b"packed", headers={"Content-Encoding": "gzip"}))
    assert Kds(kds.url).fetch(CRL) == b"packed"


def test_an_answer_that_is_cut_off_is_a_failure(kds: FakeKds) -> None:
    """A body that is shorter than announced is not taken for the whole."""
    kds.put(CRL, Reply(body=b"half", headers={"Content-Length": "8"}))
    assert failure(kds).whole


def test_a_service_that_says_nothing_is_left(kds: FakeKds, monkeypatch: pytest.MonkeyPatch) -> None:
    """No byte within the time for one read: a failure."""
    monkeypatch.setattr(module, "READ_S", 0.05)
    kds.always = Reply(gate=kds.gate())
    assert failure(kds).whole


def test_a_service_that_stops_in_the_middle_is_left(kds: FakeKds, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body of which only the beginning comes is a failure after the time for one read."""
    monkeypatch.setattr(module, "READ_S", 0.05)
    kds.always = Reply(body=b"long", rest=kds.gate())
    assert failure(kds).whole


def test_a_service_that_goes_on_too_long_is_left(kds: FakeKds, monkeypatch: pytest.MonkeyPatch) -> None:
    """However steadily the bytes come, beyond the time for the whole answer it is a failure."""
    times = iter((0.0, 0.0, 100.0))  # at the start, after the header, after the first piece of the body
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(times)))
    kds.always = Reply(body=b"long")
    error = failure(kds)
    assert (error.whole, error.message) == (True, "AMD's KDS answers too slowly")


@pytest.mark.parametrize("secure", [False, True])
def test_a_header_that_goes_on_too_long_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secure: bool) -> None:
    """Before the body, too, the time for the whole answer ends the wait, however long one read may take."""
    monkeypatch.setattr(module, "READ_S", 20.0)
    monkeypatch.setattr(module, "TOTAL_S", 0.1)
    ca = TlsCa(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(ca.ca_file))
    with FakeKds(tls=ca.server_context() if secure else None) as kds:
        kds.always = Reply(gate=kds.gate())
        started = time.monotonic()
        error = failure(kds)
    assert (error.whole, error.message) == (True, "AMD's KDS answers too slowly")
    assert len(kds.asked) == 1
    assert time.monotonic() - started < module.READ_S


def test_a_header_that_was_cut_off_is_no_answer(kds: FakeKds, monkeypatch: pytest.MonkeyPatch) -> None:
    """What came until the time was over is not taken for an answer without a body, or for one that there is nothing."""
    times = iter((0.0, 100.0))
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(times)))
    kds.always = Reply(404)
    assert failure(kds).whole


def test_no_proxy_of_the_environment_is_used(kds: FakeKds, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where requests go, the config alone says."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9/")
    kds.put(CRL, b"direct")
    assert Kds(kds.url).fetch(CRL) == b"direct"


def test_tls_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over https the service's certificate must lead to one of the system's CAs; else nothing is asked."""
    ca = TlsCa(tmp_path)
    with FakeKds(tls=ca.server_context()) as kds:
        kds.put(CRL, b"list")
        assert failure(kds).whole
        assert kds.asked == []
        monkeypatch.setenv("SSL_CERT_FILE", str(ca.ca_file))
        assert Kds(kds.url).fetch(CRL) == b"list"


@pytest.fixture(scope="module")
def raw() -> Iterator[FakeKds]:
    with FakeKds() as kds:
        yield kds


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: ", b"HTTP/1.1 200\r\n\r\n",
                     b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"HTTP/1.1 429 X\r\nRetry-After: "]),
    st.binary(max_size=40),
)  # fmt: skip
def test_whatever_comes_is_bytes_nothing_or_a_failure(raw: FakeKds, head: bytes, tail: bytes) -> None:
    """No answer, HTTP or not, makes anything but our own error escape."""
    raw.always = Reply(raw=head + tail)
    with suppress(FetchFailed):
        assert isinstance(Kds(raw.url).fetch(CRL), bytes | None)
