# SPDX-License-Identifier: Apache-2.0
"""Launches over HTTP: the whole exchange, strict input, and what a host is told."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.test import TestResponse

from broker.app import create_app
from broker.appraisal.instances import parse_instance
from broker.config import Limits
from broker.http import kbs_types, sev, sev_types
from broker.store.protocols import RecordKind
from keys import b64
from keys.errors import ProtocolError
from tests.fakes.front import Front
from tests.fakes.sev import FakeLaunch, FakePlatform, FakeSev

PATH = "acme/disk/web-root"
SECRET = b"correct horse battery staple"
OVMF = b"firmware"
START = "/roomkey/v1/sev/launches"
ERRORS = "https://github.com/confidential-containers/kbs/errors/"
PLATFORM = FakePlatform(FakeSev())

Spoil = Callable[[dict[str, Any]], Any]


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Front]:
    """A broker whose owner acme lets the platform have a key."""
    front = Front(tmp_path)
    house = front.house
    house.services = replace(house.services, sev_cas=(PLATFORM.amd.ca,))
    front.app = create_app(house.services)
    front.owner("acme")
    house.key(PATH, SECRET)
    house.image("acme", "web", f'platform = "sev"\n[sev]\nlaunch_digest = "{hashlib.sha256(OVMF).hexdigest()}"\n')
    house.put(RecordKind.INSTANCE, "acme", "host-1", parse_instance({"sev_cek": b64.std(PLATFORM.cek)}).to_body())
    house.rule(PATH, images=["web"], platforms=["sev"], instances=["host-1"])
    yield front
    house.store.close()


def start_body(**changes: Any) -> dict[str, Any]:
    return {"resource": PATH, "chain": PLATFORM.to_json(), **changes}


def post(front: Front, path: str, body: Any) -> TestResponse:
    return front.send("POST", path, body if isinstance(body, bytes) else json.dumps(body))


def launch(answer: TestResponse, content: bytes = OVMF) -> FakeLaunch:
    """What QEMU does with the first answer."""
    godh, session = (b64.from_std(answer.json[name], name=name, max_bytes=4096) for name in ("godh", "session"))
    return PLATFORM.launch_start(godh, session, answer.json["policy"]).update(content)


def shown(guest: FakeLaunch, **changes: Any) -> dict[str, Any]:
    return {"measurement": b64.std(guest.measure()), "api_major": 1, "api_minor": 49, "build_id": 6, **changes}


def finish(front: Front, started: TestResponse, body: Any) -> TestResponse:
    return post(front, f"{START}/{started.json['launch']}/measurement", body)


def detail(answer: TestResponse, status: int, kind: str) -> str:
    assert answer.status_code == status, answer.data
    assert answer.json.keys() == {"type", "detail"}
    assert answer.json["type"] == ERRORS + kind
    assert answer.headers["Cache-Control"] == "no-store"
    text: str = answer.json["detail"]
    return text


def fits(value: object, kind: type[msgspec.Struct]) -> bool:
    return bool(msgspec.to_builtins(msgspec.convert(value, kind)) == value)


def test_the_whole_exchange(front: Front) -> None:
    """Two calls bring the owner's key into the guest's memory; every message is of its described type."""
    body = start_body(chain={**PLATFORM.to_json(), "ask": b64.std(PLATFORM.amd.ask), "ark": b64.std(PLATFORM.amd.ark)})
    started = post(front, START, body)
    assert started.status_code == 201
    guest = launch(started)
    answer = finish(front, started, shown(guest))
    assert answer.status_code == 200
    header, packet = (
        b64.from_std(answer.json[name], name=name, max_bytes=4096) for name in ("packet_header", "packet")
    )
    guest.inject(header, packet)
    assert guest.secret(answer.json["guid"]) == SECRET
    assert answer.json["guid"] == "736869e5-84f0-4973-92ec-06879ce3da0b"
    for value, kind in (
        (body, sev_types.SevLaunchRequest),
        (started.json, sev_types.SevLaunch),
        (shown(guest), sev_types.SevMeasurement),
        (answer.json, sev_types.SevPacket),
    ):
        assert fits(value, kind)


def test_a_supplied_ca_is_never_trusted(front: Front) -> None:
    """A chain that ends in a CA of the sender's own is refused, whatever ARK and ASK come with it."""
    stranger = FakePlatform(FakeSev(maker="stranger"))
    chain = {**stranger.to_json(), "ask": b64.std(stranger.amd.ask), "ark": b64.std(stranger.amd.ark)}
    answer = post(front, START, start_body(chain=chain))
    assert detail(answer, 401, "AttestationError").startswith("Launch refused (decision d-")


def without(member: str) -> Spoil:
    return lambda body: {name: value for name, value in body.items() if name != member}


def chained(**changes: Any) -> Spoil:
    return lambda body: body | {"chain": {k: v for k, v in (body["chain"] | changes).items() if v is not None}}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda _: b"", "strict JSON"),
        (lambda _: b"[]", "must be a JSON object"),
        (without("resource"), "lacks a member"),
        (without("chain"), "lacks a member"),
        (lambda body: body | {"more": 1}, "unknown member"),
        (lambda body: body | {"resource": "acme/disk"}, "not a resource path"),
        (lambda body: body | {"resource": 5}, "resource path must be a string"),
        (lambda body: body | {"chain": []}, "chain must be a JSON object"),
        (chained(pdh=None), "chain lacks a member"),
        (chained(cek=None), "chain lacks a member"),
        (chained(oca="!"), "oca is not standard base64"),
        (chained(pek=b64.std(bytes(2083))), "pek has another length"),
        (chained(pek=b64.std(bytes(2085))), "pek is too long"),
        (chained(ask=5), "ask must be a string"),
        (chained(ark=b64.std(bytes(1601))), "ark is too long"),
        (chained(other="AAAA"), "unknown member"),
    ],
)
def test_a_malformed_start(front: Front, spoil: Spoil, words: str) -> None:
    """What is wrong with the message is said in words, and nothing is written or remembered."""
    answer = post(front, START, spoil(start_body()))
    assert words in detail(answer, 401, "AttestationError")
    assert front.house.lines("acme") == []


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda _: b"{", "strict JSON"),
        (without("measurement"), "lacks a member"),
        (without("api_major"), "lacks a member"),
        (without("build_id"), "lacks a member"),
        (lambda body: body | {"policy": 1}, "unknown member"),
        (lambda body: body | {"measurement": b64.std(bytes(47))}, "measurement has another length"),
        (lambda body: body | {"measurement": b64.std(bytes(49))}, "measurement is too long"),
        (lambda body: body | {"api_major": "1"}, "api_major must be a number"),
        (lambda body: body | {"api_minor": True}, "api_minor must be a number"),
        (lambda body: body | {"build_id": 256}, "build_id is not one byte"),
        (lambda body: body | {"build_id": None}, "build_id must be a number"),
    ],
)
def test_a_malformed_measurement(front: Front, spoil: Spoil, words: str) -> None:
    """What is wrong is said in words, and the launch is still good."""
    started = post(front, START, start_body())
    guest = launch(started)
    answer = finish(front, started, spoil(shown(guest)))
    assert words in detail(answer, 401, "AttestationError")
    assert finish(front, started, shown(guest)).status_code == 200


def test_all_denials_look_the_same(front: Front) -> None:
    """No such key, no rule, another machine, another image, a lie about the firmware: one answer but for the id."""
    front.house.key("acme/disk/bare", b"x")
    answers = [post(front, START, start_body(resource=path)) for path in ("acme/disk/bare", "acme/no/key", "no/no/no")]
    front.house.rule(PATH, images=["web"], platforms=["sev"], instances=["host-2"])
    answers.append(post(front, START, start_body()))
    front.house.rule(PATH, images=["web"], platforms=["sev"], instances=["host-1"])
    for content, changes in ((b"another", {}), (OVMF, {"build_id": 7}), (OVMF, {"api_minor": 48})):
        started = post(front, START, start_body())
        answers.append(finish(front, started, shown(launch(started, content), **changes)))
    said = {detail(answer, 403, "PolicyDeny") for answer in answers}
    assert len(said) == len(answers)
    assert {text.partition(" (decision d-")[0] for text in said} == {"Access denied by policy"}
    assert len({len(answer.data) for answer in answers}) == 1
    assert fits(answers[0].json, kbs_types.KbsError)


@pytest.mark.parametrize("launch_id", ["0" * 32, "x", "%00"])
def test_an_unknown_launch(front: Front, launch_id: str) -> None:
    """An id that nobody got is refused with a decision's id and no more."""
    body = {"measurement": b64.std(bytes(48)), "api_major": 1, "api_minor": 49, "build_id": 6}
    answer = post(front, f"{START}/{launch_id}/measurement", body)
    assert detail(answer, 401, "AttestationError").startswith("Launch refused (decision d-")


def test_a_used_launch(front: Front) -> None:
    """The second answer to one launch is refused."""
    started = post(front, START, start_body())
    body = shown(launch(started))
    assert finish(front, started, body).status_code == 200
    assert detail(finish(front, started, body), 401, "AttestationError").startswith("Launch refused (decision d-")


def test_hosts_are_counted(front: Front) -> None:
    """One address may begin and end only so many launches a minute; each call is counted by itself."""
    front.app = create_app(front.house.services, Limits(challenges_per_minute=2))
    started = [post(front, START, start_body()) for _ in range(3)]
    assert [answer.status_code for answer in started] == [201, 201, 429]
    assert started[2].headers["Retry-After"]
    body = shown(launch(started[0]))
    assert [finish(front, started[0], body).status_code for _ in range(3)] == [200, 401, 429]


def test_no_such_call(front: Front) -> None:
    """Whatever else is asked for below the path is no call."""
    for method, path in (("GET", START), ("POST", START + "/"), ("GET", START + "/x"), ("POST", "/roomkey/v2/x")):
        assert detail(front.send(method, path), 404, "PluginNotFound") == "no such call"


@given(st.binary(max_size=200) | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps))
def test_any_body(body: bytes | str) -> None:
    """Nothing but our own error comes out of reading a host's message."""
    data = body.encode("utf-8", "replace") if isinstance(body, str) else body
    for read in (sev.read_start, sev.read_measurement):
        with pytest.raises(ProtocolError):
            read(data)
