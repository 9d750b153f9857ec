# SPDX-License-Identifier: Apache-2.0
"""Guests whose hosts hand out no certificate: the broker asks AMD's KDS, and nobody else has to wait for it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from broker import attestation, ledger
from broker.app import create_app
from broker.config import Limits
from broker.endorsements.service import FIRST_PAUSE_MS, EndorsementService
from broker.endorsements.setup import amd_source
from broker.endorsements.source import WouldWait
from broker.http.bridge import Bridge
from broker.services import now_ms
from broker.verifiers.snp_endorsements import crl_name
from broker.verifiers.snp_floors import Floors
from broker.verifiers.snp_report import Line
from keys.errors import EndorsementError, Unavailable, VerificationError
from keys.messages import Challenge
from keys.tee import Tee
from tests.fakes.amd import AT, MEASUREMENT, START, Chip, FakeAmd
from tests.fakes.house import House
from tests.fakes.kds import FakeKds, Reply, names
from tests.fakes.snp_guest import SnpGuest
from tests.fakes.tpm_guest import FakeTpm, Guest

PATH = "acme/disk/root"
SECRET = b"a disk's key \x00\xff"
AMD = FakeAmd()
CHIP = Chip(AMD)
[VCEK] = names([CHIP])
CRL = crl_name(Line.GENOA)


@pytest.fixture
def kds() -> Iterator[FakeKds]:
    with FakeKds(CHIP, AMD) as kds:
        yield kds


@pytest.fixture
def house(tmp_path: Path, kds: FakeKds) -> Iterator[House]:
    with House(tmp_path) as house:
        house.now = int(AT.timestamp() * 1000)
        ask(house, kds)
        house.owner("acme")
        house.key(PATH, SECRET)
        house.image("acme", "ovmf", f'platform = "snp"\n[snp]\nmeasurement = "{MEASUREMENT.hex()}"\n')
        house.rule(PATH, images=["ovmf"], platforms=["snp"])
        yield house


def ask(house: House, kds: FakeKds | None, floors: Floors | None = None) -> None:
    """Let the broker ask `kds` and trust our AMD."""
    trusted = AMD.trusted(floors)
    source = amd_source(trusted, "" if kds is None else kds.url)
    service = EndorsementService(house.store, [source], clock=lambda: house.now)
    known = {**house.services.trusted, Tee.SNP: trusted}
    house.services = replace(house.services, trusted=known, endorsements=service)


def bare() -> SnpGuest:
    """A guest whose host hands out nothing."""
    return SnpGuest(CHIP, certificates={})


def test_a_guest_without_certificates_gets_its_key(house: House, kds: FakeKds) -> None:
    """Its VCEK and the revocation list are fetched once; the next guest of this chip makes nobody ask."""
    assert house.flow(bare(), PATH, PATH) == SECRET
    assert house.flow(bare(), PATH, PATH) == SECRET
    assert (kds.times(VCEK), kds.times(CRL)) == (1, 1)
    assert house.lines("acme", ledger.ATTEST)[0].body["claims"]["facts"]["crl"] == "current"


def test_a_guest_with_certificates_needs_no_kds(house: House, kds: FakeKds) -> None:
    """Where the guest brings what is needed, a KDS that is gone stops nobody."""
    kds.close()
    assert house.flow(SnpGuest(CHIP), PATH, PATH) == SECRET


@pytest.mark.parametrize(
    "reply",
    [Reply(429, headers={"Retry-After": "3"}), Reply(503), Reply(body=b"<html>"), Reply(body=bytes(70_000)),
     Reply(body=Chip(AMD, CHIP.hw_id[::-1]).vcek), Reply(302, headers={"Location": "/elsewhere"})],
    ids=["throttled", "down", "garbage", "oversize", "another chip", "redirected"],
)  # fmt: skip
def test_an_outage_costs_no_challenge(house: House, kds: FakeKds, reply: Reply) -> None:
    """While the VCEK cannot be had the guest is told to come again; the same challenge is good afterwards."""
    kds.put(VCEK, reply)
    guest = bare()
    session_id, challenge = house.challenge(guest, PATH)
    message = guest.attestation(challenge)
    for _ in range(2):
        with pytest.raises(Unavailable) as caught:
            attestation.attest(session_id, message, house.services, now=house.now)
        assert caught.value.decision is None
    assert (house.lines("acme"), kds.times(VCEK)) == ([], 1)
    house.now += FIRST_PAUSE_MS
    kds.know(CHIP)
    assert attestation.attest(session_id, message, house.services, now=house.now)


def test_a_kds_that_is_gone_costs_no_challenge(house: House, kds: FakeKds) -> None:
    """A refused connection is an outage like any other."""
    kds.close()
    with pytest.raises(Unavailable):
        house.attest(bare(), PATH)
    assert house.lines("acme") == []


def test_a_chip_that_amd_does_not_know_is_refused(house: House, kds: FakeKds) -> None:
    """Where AMD says that there is no such chip the guest is refused, with a line that says what mends it."""
    with pytest.raises(VerificationError, match="VCEK"):
        house.attest(SnpGuest(Chip(AMD, bytes(range(64))), certificates={}), PATH)
    [check] = [line for line in house.lines("acme", ledger.ATTEST)[0].body["trace"] if line["verdict"] == "failed"]
    assert "import" in check["mend"]


def test_a_broker_without_network_uses_what_was_imported(house: House, kds: FakeKds) -> None:
    """With the KDS switched off, imported endorsements do."""
    ask(house, None)
    with pytest.raises(VerificationError, match="VCEK"):
        house.attest(bare(), PATH)
    service = house.services.endorsements
    assert service is not None
    service.keep([(VCEK, CHIP.vcek)], house.now)
    assert house.flow(bare(), PATH, PATH) == SECRET
    assert kds.asked == []


def test_a_fetched_list_revokes(house: House, kds: FakeKds) -> None:
    """When AMD's list names the intermediate, its guests are refused."""
    kds.put(CRL, AMD.crl([AMD.ask.serial_number], number=2))
    with pytest.raises(EndorsementError, match="not revoked"):
        house.attest(SnpGuest(CHIP), PATH)


def test_a_list_can_be_required(house: House, kds: FakeKds) -> None:
    """With the floor set, no list or an old one refuses guests, and a current one lets them in."""
    ask(house, kds, Floors(require_crl=True))
    kds.put(CRL, Reply(500))
    with pytest.raises(EndorsementError, match="revocation list"):
        house.attest(SnpGuest(CHIP), PATH)
    house.now += FIRST_PAUSE_MS
    kds.put(CRL, AMD.crl(end=START + timedelta(days=1)))
    with pytest.raises(EndorsementError, match="revocation list"):
        house.attest(SnpGuest(CHIP), PATH)
    house.now += 3600_000
    kds.put(CRL, AMD.crl(number=2))
    assert house.flow(SnpGuest(CHIP), PATH, PATH) == SECRET


def test_who_may_not_wait_changes_nothing(house: House) -> None:
    """In the event loop an attempt that needs a fetch ends before anything is counted, recorded or consumed."""
    guest = bare()
    session_id, challenge = house.challenge(guest, PATH)
    message = guest.attestation(challenge)
    with pytest.raises(WouldWait):
        attestation.attest(session_id, message, house.services, now=house.now, may_wait=False)
    assert house.lines("acme") == []
    assert attestation.attest(session_id, message, house.services, now=house.now)


# --- over HTTP, in the event loop ---


class Scope:
    http_version, server, client, scheme, method = "1.1", "127.0.0.1:8443", "192.0.2.7:50000", "https", "POST"
    query_string = ""

    def __init__(self, path: str, body: bytes, cookie: str = "") -> None:
        self.path = path
        self.headers = {"content-length": str(len(body)), "content-type": "application/json"}
        if cookie:
            self.headers["cookie"] = cookie


class Exchange:
    def __init__(self, body: bytes) -> None:
        self.body = body
        self.status, self.answer, self.cookie = 0, b"", ""

    async def __call__(self) -> bytes:
        return self.body

    def __aiter__(self) -> Any:
        raise AssertionError("the length was announced")

    def response_bytes(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        assert self.status == 0, "answered twice"
        self.status, self.answer = status, body
        self.cookie = dict(headers).get("Set-Cookie", "").partition(";")[0]


async def post(bridge: Bridge, path: str, message: dict[str, Any], cookie: str = "") -> Exchange:
    body = json.dumps(message).encode()
    exchange = Exchange(body)
    await bridge.__rsgi__(Scope(path, body, cookie), exchange)
    return exchange


async def begin(bridge: Bridge, guest: SnpGuest | Guest) -> tuple[str, dict[str, Any]]:
    """Cookie, and the message that answers the challenge."""
    answer = await post(bridge, "/kbs/v0/auth", guest.request().to_json())
    assert answer.status == 200, answer.answer
    return answer.cookie, guest.attestation(Challenge.from_bytes(answer.answer)).to_json()


def test_a_slow_kds_delays_nobody_else(house: House, kds: FakeKds, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one guest's VCEK does not come, other guests are attested; then that one is too, and counted once."""
    gate = kds.gate()
    kds.put(VCEK, Reply(body=CHIP.vcek, gate=gate))
    house.now = now_ms()  # when the fake TPM's maker certifies
    counted: list[str] = []
    hit = house.store.hit

    def count(counter: str, window_ms: int, now: int) -> int:
        counted.append(counter)
        return hit(counter, window_ms, now)

    monkeypatch.setattr(house.store, "hit", count)
    bridge = Bridge(create_app(house.services, Limits()).wsgi_app, threads=1, body_bytes=Limits().body_bytes)

    async def main() -> None:
        cookie, message = await begin(bridge, bare())
        slow = asyncio.create_task(post(bridge, "/kbs/v0/attest", message, cookie))
        await asyncio.sleep(0)  # its first turn is over
        for other in (SnpGuest(CHIP), Guest(FakeTpm(house.ca), declare=True)):
            cookie, message = await begin(bridge, other)
            quick = await post(bridge, "/kbs/v0/attest", message, cookie)
            assert quick.status == 200, quick.answer
        assert not slow.done()
        gate.set()
        answer = await slow
        assert (answer.status, "token" in json.loads(answer.answer)) == (200, True), answer.answer
        bridge.__rsgi_del__(asyncio.get_running_loop())

    asyncio.run(main())
    assert counted.count("attest 192.0.2.7") == 3
    assert kds.times(VCEK) == 1
