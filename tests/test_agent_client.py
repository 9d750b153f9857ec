# SPDX-License-Identifier: Apache-2.0
"""The agent's side of the KBS protocol, with a real software TPM, over TLS, against brokers good and bad."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from agent import client
from agent.attesters.tpm import TpmAttester
from agent.client import fetch
from agent.config import Settings
from agent.deadline import Deadline
from keys import jwe, jwk
from keys.errors import (
    ConfigError,
    FreshnessError,
    NotFound,
    ProtocolError,
    ReleaseDenied,
    RoomkeyError,
    Unavailable,
    VerificationError,
)
from keys.messages import Attestation, Request, ResourcePath
from tests.fakes.boot import Boot
from tests.fakes.ek_ca import EkCa
from tests.fakes.kbs import FakeKbs, answer, pin, raw, refusal
from tests.fakes.swtpm import SoftwareTpm
from tests.fakes.tls import TlsCa
from tests.needs import needs_swtpm

pytestmark = needs_swtpm

PATH = ResourcePath("owner", "disk", "root")
KEY = b"a disk key of 32 bytes, and more"
DECISION = "d-" + 4 * "abc27"


class Guest:
    """A machine with a TPM, and what it needs to ask for a key."""

    def __init__(self, tpm: SoftwareTpm, ca: TlsCa, eventlog: Path) -> None:
        self.tpm = tpm
        self.ca = ca
        self.settings = Settings(
            ca_file=str(ca.ca_file), tpm=tpm.address, eventlog=str(eventlog), broker_keys=pin(ca.ca_file.parent)
        )

    def broker(self, keys: dict[str, bytes] | None = None) -> FakeKbs:
        return FakeKbs({str(PATH): KEY} if keys is None else keys, self.ca.server_context())

    def fetch(self, *brokers: FakeKbs | str, seconds: float = 5) -> bytes:
        urls = tuple(broker if isinstance(broker, str) else broker.url for broker in brokers)
        deadline = Deadline(seconds)
        settings = self.settings._replace(brokers=urls)
        with TpmAttester(settings, deadline) as attester:
            return bytes(fetch(settings, attester, PATH, deadline).secret)


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    directory = tmp_path_factory.mktemp("guest")
    with SoftwareTpm(directory / "tpm") as tpm:
        tpm.manufacture(EkCa())
        tpm.measure_boot(Boot(), directory / "log")
        yield Guest(tpm, TlsCa(directory / "tls"), directory / "log")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Back off for milliseconds."""
    monkeypatch.setattr(client, "FIRST_BACKOFF", 0.002)


def test_a_guest_gets_its_key(guest: Guest) -> None:
    """auth, attest, resource: three requests on one connection, and the key comes out."""
    with guest.broker() as kbs:
        assert guest.fetch(kbs) == KEY
        assert [request.what for request in kbs.received] == ["auth", "attest", "resource"]
        assert kbs.connections == 1


def test_what_is_sent_is_the_protocol(guest: Guest) -> None:
    """The request names version, platform, key and TPM; attestation and resource go under the session's cookie."""
    with guest.broker() as kbs:
        guest.fetch(kbs)
        auth, attest, resource = kbs.received
    request = Request.from_bytes(auth.body)
    assert request.resource == PATH
    assert request.tpm is not None
    assert "cookie" not in auth.headers
    assert attest.headers["cookie"] == resource.headers["cookie"]
    assert attest.headers["content-type"] == "application/json"
    assert Attestation.from_bytes(attest.body).primary_evidence.keys() >= {"activation", "eventlog"}
    assert resource.path == "/kbs/v0/resource/owner/disk/root"


def test_a_tpm_without_certificate_uses_the_plain_wrapping(guest: Guest, tmp_path: Path) -> None:
    """Without a certified EK there is no activation, and the key comes under ECDH-ES+A256KW."""
    with SoftwareTpm(tmp_path / "bare") as tpm, guest.broker() as kbs:
        bare = Guest(tpm, guest.ca, tmp_path / "none")
        assert bare.fetch(kbs) == KEY
        assert Request.from_bytes(kbs.asked("auth")[0].body).tpm is None


def test_plain_http_on_loopback_needs_no_ca(guest: Guest) -> None:
    """A broker on this machine may go without TLS."""
    with FakeKbs({str(PATH): KEY}) as kbs:
        settings = guest.settings._replace(brokers=(kbs.url,), ca_file="")
        with TpmAttester(settings, Deadline(5)) as attester:
            assert fetch(settings, attester, PATH, Deadline(5)).secret == KEY


def test_each_attempt_has_its_own_ephemeral_key(guest: Guest) -> None:
    """No two attestations show the same tee-pubkey."""
    with guest.broker() as kbs:
        for _ in range(2):
            guest.fetch(kbs)
        keys = [Attestation.from_bytes(request.body).tee_pubkey.members["x"] for request in kbs.asked("attest")]
    assert len(set(keys)) == 2


def test_an_activated_guest_does_not_take_the_plain_wrapping(guest: Guest) -> None:
    """A key that is wrapped without the activation secret is refused, though the ephemeral key would open it."""
    with guest.broker() as kbs:

        def downgraded() -> bytes:
            attested = Attestation.from_bytes(kbs.asked("attest")[0].body)
            return answer(200, jwe.seal(KEY, attested.tee_pubkey))

        kbs.script["resource"].append(lambda sock: sock.sendall(downgraded()))
        with pytest.raises(ProtocolError, match="another way"):
            guest.fetch(kbs)


def test_a_key_for_another_guest_does_not_open(guest: Guest) -> None:
    """A key that is wrapped to another ephemeral key or another secret is a VerificationError."""
    other = jwk.from_ec(ec.generate_private_key(ec.SECP256R1()).public_key())
    with guest.broker() as kbs:
        kbs.script["resource"].append(answer(200, jwe.seal(KEY, other, activation=os.urandom(32))))
        with pytest.raises(VerificationError, match="does not open"):
            guest.fetch(kbs)


@pytest.mark.parametrize(
    ("status", "kind", "error"),
    [
        (401, "PolicyDeny", ReleaseDenied),
        (403, "PolicyDeny", ReleaseDenied),
        (403, "Other", ReleaseDenied),
        (404, "Other", NotFound),
        (401, "PluginInternalError", NotFound),
        (401, "PluginNotFound", NotFound),
    ],
)
def test_a_refused_key_is_not_asked_for_again(guest: Guest, status: int, kind: str, error: type[RoomkeyError]) -> None:
    """Each refusal is its own error, ends the attempt, and shows the decision's id."""
    with guest.broker() as kbs, guest.broker() as second:
        kbs.script["resource"].append(refusal(status, kind, f"decision {DECISION}"))
        with pytest.raises(error) as caught:
            guest.fetch(kbs, second)
        assert len(kbs.received) == 3
        assert second.received == []
    assert type(caught.value) is error
    assert caught.value.decision == DECISION
    assert DECISION in (caught.value.mend or "")


@pytest.mark.parametrize(
    ("what", "status", "detail", "error"),
    [
        ("auth", 401, "version", ProtocolError),
        ("auth", 400, "no", ProtocolError),
        ("auth", 403, "no", ReleaseDenied),
        ("attest", 401, f"RCAR handshake Attest failed (decision {DECISION})", VerificationError),
        ("attest", 403, "no", VerificationError),
        ("attest", 400, "no", ProtocolError),
    ],
)
def test_a_refused_attestation_is_not_tried_again(
    guest: Guest, what: str, status: int, detail: str, error: type[RoomkeyError]
) -> None:
    """Evidence that was judged and refused is refused the next time, too."""
    with guest.broker() as kbs:
        kbs.script[what].append(refusal(status, "AttestationError", detail))
        with pytest.raises(error) as caught:
            guest.fetch(kbs)
        assert type(caught.value) is error
        assert len(kbs.asked(what)) == 1


@pytest.mark.parametrize(("status", "kind"), [(401, "JweError"), (400, "Other"), (500, "PluginInternalError")])
def test_a_broker_that_cannot_say_is_no_refusal(guest: Guest, status: int, kind: str) -> None:
    """A failure of the broker itself is a ProtocolError, and does not end the search."""
    with guest.broker() as kbs, guest.broker() as second:
        kbs.script["resource"] += 2 * [refusal(status, kind, "no")]
        with pytest.raises(ProtocolError):
            guest.fetch(kbs)
        assert guest.fetch(kbs, second) == KEY


def test_a_lost_session_begins_again(guest: Guest) -> None:
    """A challenge or session that the broker no longer knows is taken anew, from the start."""
    with guest.broker() as kbs:
        kbs.script["attest"].append(refusal(401, "AttestationError", "no"))
        kbs.script["resource"].append(refusal(401, "TokenNotFound", "no"))
        assert guest.fetch(kbs) == KEY
        assert len(kbs.asked("auth")) == 3


def test_a_session_that_is_always_lost_ends_it(guest: Guest) -> None:
    """After two new starts a lost session is an error: nobody attests for ever."""
    with guest.broker() as kbs:
        kbs.script["attest"] += 9 * [refusal(401, "AttestationError", "no")]
        with pytest.raises(FreshnessError):
            guest.fetch(kbs)
        assert len(kbs.asked("attest")) == 3


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_busy_broker_is_asked_again(guest: Guest, status: int) -> None:
    """A broker without time is asked again, from the start."""
    with guest.broker() as kbs:
        kbs.script["auth"] += 2 * [raw(status, b"")]
        assert guest.fetch(kbs) == KEY
        assert len(kbs.asked("auth")) == 3


def test_retry_after_is_obeyed(guest: Guest) -> None:
    """A broker that says when to come again is not asked before."""
    with guest.broker() as kbs:
        kbs.script["auth"].append(raw(503, b"", "Retry-After: 1\r\n"))
        started = time.monotonic()
        assert guest.fetch(kbs) == KEY
        assert time.monotonic() - started >= 1


def test_a_retry_after_beyond_the_deadline_ends_it_at_once(guest: Guest) -> None:
    """Nobody waits for a moment that comes too late."""
    with guest.broker() as kbs:
        kbs.script["auth"].append(raw(503, b"", "Retry-After: 60\r\n"))
        started = time.monotonic()
        with pytest.raises(Unavailable, match="no time now"):
            guest.fetch(kbs)
        assert time.monotonic() - started < 15


def test_the_next_broker_is_asked_when_one_is_down(guest: Guest) -> None:
    """A broker that cannot be reached is passed over, in the order of the settings."""
    with guest.broker() as first, guest.broker() as second, guest.broker() as third:
        down = first.url
        first.__exit__()
        second.script["auth"] += 9 * [raw(503, b"")]
        assert guest.fetch(down, second, third) == KEY
        assert len(second.asked("auth")) == 1


def test_a_silent_broker_leaves_time_for_the_next(guest: Guest) -> None:
    """A broker that accepts and says nothing uses up its share of the time only."""
    with guest.broker() as silent, guest.broker() as good:
        silent.script["auth"].append(lambda sock: sock.recv(1))
        assert guest.fetch(silent, good, seconds=2) == KEY


def test_brokers_that_are_down_are_tried_until_the_deadline(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """While there is time all brokers are tried again; the last failure is what is told."""
    monkeypatch.setattr(client, "SHORTEST_ATTEMPT", 0.1)
    with guest.broker() as kbs:
        kbs.script["auth"] += 1000 * [raw(503, b"")]
        started = time.monotonic()
        with pytest.raises(Unavailable, match="no time now"):
            guest.fetch(kbs, seconds=0.5)
        assert time.monotonic() - started < 15
        assert len(kbs.asked("auth")) >= 3


def test_time_that_runs_out_does_not_hide_why(guest: Guest) -> None:
    """When no time is left for another round, what is said is why the last whole one failed."""
    deadline = Deadline(5)

    class Slow(TpmAttester):
        asked = 0

        def request(self, path: ResourcePath) -> Request:
            self.asked += 1
            if self.asked > 1:
                deadline._end = 0
                deadline.left("the TPM")
            return super().request(path)

    settings = guest.settings._replace(brokers=("https://127.0.0.1:9",))
    try:
        with Slow(settings, deadline) as attester, pytest.raises(Unavailable, match="cannot be reached"):
            fetch(settings, attester, PATH, deadline)
    finally:
        guest.tpm.reset()  # no time was left to flush the keys, and no resource manager does it here
        guest.tpm.measure_boot(Boot(), Path(guest.settings.eventlog))
    assert attester.asked == 2


def test_pauses_grow_and_are_jittered(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pause is drawn between nothing and a limit that doubles, up to the longest."""
    drawn: list[float] = []

    def uniform(low: float, high: float) -> float:
        drawn.append(high)
        return low

    monkeypatch.setattr(random, "uniform", uniform)
    monkeypatch.setattr(client, "FIRST_BACKOFF", 0.5)
    with guest.broker() as kbs:
        kbs.script["auth"] += 6 * [raw(503, b"")]
        assert guest.fetch(kbs, seconds=60) == KEY
    assert drawn == [0.5, 1.0, 2.0, 4.0, 5.0, 5.0]


NO_COOKIE = answer(200, {"nonce": "x", "extra-params": ""})
OTHER_COOKIE = answer(200, {"nonce": "x", "extra-params": ""}, "Set-Cookie: session=abc\r\n")
STRANGE_COOKIE = answer(200, {"nonce": "x", "extra-params": ""}, "Set-Cookie: kbs-session-id=a,b\r\n")


@pytest.mark.parametrize(
    ("what", "broken", "words"),
    [
        ("auth", raw(200, b"<html>"), "the challenge is not strict JSON"),
        ("auth", raw(200, b'{"nonce":"a","nonce":"b"}'), "appears twice"),
        ("auth", NO_COOKIE, "cookie"),
        ("auth", OTHER_COOKIE, "cookie"),
        ("auth", STRANGE_COOKIE, "cookie"),
        ("attest", raw(200, b"garbage"), "the attestation's answer is not strict JSON"),
        ("attest", answer(200, {}), "lacks a member"),
        ("attest", raw(307, b"", "Location: http://192.0.2.1/\r\n"), "redirects"),
        ("attest", raw(400, b"<html>"), "no reason given"),
        ("attest", answer(400, {"type": "x"}), "no reason given"),
        ("attest", answer(400, []), "no reason given"),
        ("resource", raw(200, b"\xff"), "the wrapped key is not strict JSON"),
        ("resource", answer(200, {"key": "abc"}), "the wrapped key lacks a member"),
    ],
)
def test_a_broken_answer_is_a_protocol_error(guest: Guest, what: str, broken: bytes, words: str) -> None:
    """A broker that does not keep to the protocol is not asked again, and nothing foreign escapes."""
    with guest.broker() as kbs:
        kbs.script[what].append(broken)
        with pytest.raises(ProtocolError, match=words):
            guest.fetch(kbs)
        assert len(kbs.asked("auth")) == 1


def test_a_broken_broker_is_passed_over(guest: Guest, tmp_path: Path) -> None:
    """An answer that is no protocol, or another CA's certificate, does not keep the next broker from giving the key."""
    stranger = TlsCa(tmp_path).server_context()
    with FakeKbs({}, stranger) as hijacked, guest.broker() as broken, guest.broker() as good:
        broken.script["auth"].append(raw(200, b"<html>"))
        assert guest.fetch(hijacked, broken, good) == KEY


def test_a_brokers_words_reach_the_console_harmless(guest: Guest) -> None:
    """Of what a broker says only printable ASCII is shown, and not much of it."""
    with guest.broker() as kbs:
        kbs.script["auth"].append(refusal(400, "Bad\x1b[2J", "\x1b[31m\u202e\u00e9" + 1000 * "x"))
        with pytest.raises(ProtocolError) as caught:
            guest.fetch(kbs)
    text = str(caught.value)
    assert text.isascii()
    assert text.isprintable()
    assert len(text) < 700


def test_a_cookie_that_the_attestation_renews_is_used(guest: Guest) -> None:
    """A broker may give the session another id once it is attested."""
    with guest.broker() as kbs:
        headers = "Set-Cookie: kbs-session-id=renewed; Path=/kbs/v0\r\n"
        kbs.script["attest"].append(answer(200, {"token": "e30.e30.e30"}, headers))
        kbs.script["resource"].append(refusal(403, "PolicyDeny", "no"))
        with pytest.raises(ReleaseDenied):
            guest.fetch(kbs)
        assert kbs.asked("resource")[0].headers["cookie"] == "kbs-session-id=renewed"


def test_the_base_of_a_brokers_url_is_kept(guest: Guest) -> None:
    """A broker behind a path of a shared host is asked under that path."""
    with guest.broker() as kbs, pytest.raises(RoomkeyError):
        guest.fetch(kbs.url + "/shared/")
    assert kbs.received[0].path == "/shared/kbs/v0/auth"


def test_no_broker_is_a_config_error(guest: Guest) -> None:
    """Without a broker nothing is tried."""
    with pytest.raises(ConfigError, match="no broker"):
        guest.fetch()
