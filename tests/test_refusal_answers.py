# SPDX-License-Identifier: Apache-2.0
"""What a guest learns of a refusal: an error's class and the decision's id, whatever the reason is."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import TestResponse

from broker import attestation, session, sev_launches
from broker.endorsements.source import WouldWait
from broker.http import guest as guest_calls
from broker.http import sev as sev_calls
from broker.http.errors import KBS_ERRORS
from broker.http.routes import ROUTES, Access, Route
from broker.store.protocols import KeyState, LedgerEntry, RecordKind, StoredKey
from keys.errors import ProtocolError, RoomkeyError, Unavailable
from tests.fakes.boot import Boot
from tests.fakes.front import Front, booted, provision
from tests.fakes.tpm_guest import FakeTpm, Guest

PATH = "acme/disk/root"
DECISION = "d-" + "a" * 20
SECRETS = {"expected": "EXPECTED-" + "e1" * 16, "found": "FOUND-" + "f0" * 16, "mend": "roomkey image enrol MEND"}

# Every answer to a guest that was refused, as it stands on the wire; ID is the decision's.
ANSWERS = {
    ("AttestationError", "Attestation error: RCAR handshake Attest failed (decision ID)"),
    ("AttestationError", "Attestation error: RCAR handshake Attest failed"),
    ("AttestationError", "Attestation error (decision ID)"),
    ("AttestationError", "Attestation error"),
    ("AttestationError", "Launch refused (decision ID)"),
    ("AttestationError", "Launch refused"),
    ("AttestationError", "the broker cannot answer now, try again later"),
    ("PolicyDeny", "Access denied by policy (decision ID)"),
    ("PolicyDeny", "Access denied by policy"),
    ("TokenNotFound", "Attestation Token not found"),
    ("TokenVerifierError", "Token verifier error"),
    ("PluginInternalError", "Plugin internal error"),
    ("PluginInternalError", "the broker cannot answer now, try again later"),
}
HEADERS = {"Content-Type", "Content-Length", "Cache-Control", "Retry-After", "X-Content-Type-Options"}
GUESTS = [route for route in ROUTES if route.access not in {Access.OWNER, Access.PUBLIC}]


def every(kind: type[RoomkeyError]) -> Iterator[type[RoomkeyError]]:
    """The class and all below it."""
    yield kind
    for below in kind.__subclasses__():
        yield from every(below)


def check_answer(answer: TestResponse) -> None:
    """One of the fixed answers and nothing else, in the body and in the headers."""
    assert answer.status_code >= 400
    assert answer.json.keys() == {"type", "detail"}
    kind, detail = answer.json["type"].removeprefix(KBS_ERRORS), re.sub(r"d-[a-z2-7]{20}", "ID", answer.json["detail"])
    assert (kind, detail) in ANSWERS
    assert set(answer.headers.keys()) <= HEADERS


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Front]:
    front = Front(tmp_path)
    front.house.repeatable = False  # its store and its clock are changed
    with front.house:
        yield front


@pytest.fixture
def tpm(front: Front) -> FakeTpm:
    """A machine that may have the key."""
    tpm = booted(front.house)
    provision(front, PATH, b"secret", tpm)
    return tpm


# --- whatever is raised ---


@pytest.mark.parametrize("decision", [None, DECISION])
@pytest.mark.parametrize("kind", sorted(set(every(RoomkeyError)) - {WouldWait}, key=lambda kind: kind.__name__))
@pytest.mark.parametrize("route", GUESTS, ids=lambda route: route.name)
def test_no_word_of_an_error_reaches_a_guest(
    front: Front, route: Route, kind: type[RoomkeyError], decision: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every class of error, on every call that a guest or its host can make, with words of every sort: the answer is
    one of the fixed ones. Only what is malformed in the caller's own message is named, before anything was judged.
    (WouldWait is no answer: the call is made once more, in a thread.)
    """
    if kind is ProtocolError and decision is None and not route.path.startswith("/kbs/v0/resource"):
        return
    error = RoomkeyError.__new__(kind)
    RoomkeyError.__init__(error, "MESSAGE-" + "c0" * 16, **SECRETS)
    error.decision = decision

    def refuse(*_: object, **__: object) -> None:
        raise error

    for module, name in ((attestation, "attest"), (guest_calls, "release"), (session, "issue"),
                         (sev_launches, "start"), (sev_launches, "finish")):  # fmt: skip
        monkeypatch.setattr(module, name, refuse)
    monkeypatch.setattr(sev_calls, "read_start", lambda _: (None, None))
    monkeypatch.setattr(sev_calls, "read_measurement", lambda _: None)
    monkeypatch.setattr(guest_calls.Attestation, "from_bytes", lambda _: None)
    monkeypatch.setattr(guest_calls.ChallengeRequest, "from_bytes", lambda _: None)
    path = route.path.format(owner="acme", type="disk", tag="root", launch="ab" * 16)
    answer = front.send(route.method, path, b"{}", {"Cookie": "kbs-session-id=" + "0" * 32})
    check_answer(answer)
    for word in ("MESSAGE", "EXPECTED", "FOUND", "MEND"):
        assert word not in answer.text + str(answer.headers)


def test_a_fault_of_our_own_is_a_number(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    """What no check foresaw is an incident, and its words stay inside."""

    def fail(*_: object, **__: object) -> None:
        raise ValueError("words of the store")

    monkeypatch.setattr("broker.http.guest.release", fail)
    answer = front.send("GET", f"/kbs/v0/resource/{PATH}")
    assert re.fullmatch(r"the broker failed \(incident i-[0-9a-f]{16}\)", answer.json["detail"])
    assert "store" not in answer.text


# --- what really happens ---


def _other_kernel(front: Front, tpm: FakeTpm) -> None:
    tpm.boot(Boot(kernel=b"another kernel"))


def _no_rule(front: Front, tpm: FakeTpm) -> None:
    front.house.put(RecordKind.RULE, "acme", "disk/root", None)


def _other_platform(front: Front, tpm: FakeTpm) -> None:
    front.house.rule(PATH, images=["debian"], platforms=["snp"])


def _other_machine(front: Front, tpm: FakeTpm) -> None:
    front.house.rule(PATH, images=["debian"], instances=["web-9"])


def _distrusted(front: Front, tpm: FakeTpm) -> None:
    front.house.put(RecordKind.DISTRUST, "acme", "platform:tpm", {"kind": "platform", "value": "tpm", "why": "SECRET"})


def _revoked_image(front: Front, tpm: FakeTpm) -> None:
    front.house.put(RecordKind.IMAGE_STATE, "acme", "debian@1", {"state": "revoked", "until": None, "why": "SECRET"})


def _no_image(front: Front, tpm: FakeTpm) -> None:
    front.house.rule(PATH, images=["nothing"])


def _destroyed_key(front: Front, tpm: FakeTpm) -> None:
    front.house.store.destroy_key("acme", "disk", "root")


def _of_another_key(front: Front, tpm: FakeTpm) -> None:
    """Somebody wrote another key's sealed bytes into the store."""
    sealed = front.house.custody.seal("acme", "disk", "other", 2, b"another key")
    key = StoredKey("acme", "disk", "root", 2, KeyState.ACTIVE, front.house.now, "test", sealed)
    front.house.store.put_key(key)


def _older_clock(front: Front, tpm: FakeTpm) -> None:
    tpm.reset_count += 5
    cookie, _ = front.attest(Guest(tpm, declare=True))
    front.fetch(PATH, cookie=cookie)
    tpm.reset_count -= 5
    tpm.clock = 1


DENIALS: dict[str, Callable[[Front, FakeTpm], None]] = {
    "another kernel": _other_kernel, "no rule": _no_rule, "another platform": _other_platform,
    "another machine": _other_machine, "distrusted": _distrusted, "a revoked image": _revoked_image,
    "no image": _no_image, "a destroyed key": _destroyed_key, "another key's bytes": _of_another_key,
    "an older clock": _older_clock,
}  # fmt: skip


def told(line: LedgerEntry) -> set[str]:
    """All that the trace says of checks that failed, in pieces that mean something."""
    failed = [check for check in line.body["trace"] if check["verdict"] == "failed"]
    assert failed
    return {check[part] for check in failed for part in ("name", "expected", "found", "mend") if len(check[part]) > 3}


@pytest.mark.parametrize("name", DENIALS)
def test_a_denial_says_its_id(front: Front, tpm: FakeTpm, name: str) -> None:
    """The owner's trace has the reason; the answer has none of its words, and is that of every other denial."""
    DENIALS[name](front, tpm)
    cookie, token = front.attest(Guest(tpm, declare=True))
    answers = [front.fetch(PATH, cookie=cookie), front.fetch(PATH, token=token)]
    answers += [front.fetch(path, cookie=cookie) for path in ("acme/disk/nothing", "nobody/disk/root")]
    for answer in answers:
        check_answer(answer)
        assert answer.status_code == 403
    assert len({re.sub(r"d-[a-z2-7]{20}", "ID", answer.text) for answer in answers}) == 1
    line = front.house.store.entry("acme", answers[0].json["detail"].split()[-1].rstrip(")"))
    for words in told(line):
        assert words not in answers[0].text + str(answers[0].headers)


def _of_another_challenge(front: Front, tpm: FakeTpm) -> TestResponse:
    guest = Guest(tpm, declare=True)
    cookie, _ = front.auth(guest, PATH)
    _, other = front.auth(guest, PATH)
    return front.answer(cookie, json.dumps(guest.attestation(other).to_json()))


def _changed(front: Front, tpm: FakeTpm, **members: Any) -> TestResponse:
    guest = Guest(tpm, declare=True)
    cookie, challenge = front.auth(guest, PATH)
    return front.answer(cookie, json.dumps(guest.attestation(challenge, changes=members).to_json()))


def _twice(front: Front, tpm: FakeTpm) -> TestResponse:
    guest = Guest(tpm, declare=True)
    cookie, challenge = front.auth(guest, PATH)
    body = json.dumps(guest.attestation(challenge).to_json())
    front.answer(cookie, body)
    return front.answer(cookie, body)


def _late(front: Front, tpm: FakeTpm) -> TestResponse:
    guest = Guest(tpm, declare=True)
    cookie, challenge = front.auth(guest, PATH)
    front.house.now += 301_000
    return front.answer(cookie, json.dumps(guest.attestation(challenge).to_json()))


def _stranger(front: Front, tpm: FakeTpm) -> TestResponse:
    guest = Guest(FakeTpm(), declare=False)
    guest.tpm.boot(Boot())
    cookie, challenge = front.auth(guest, PATH)
    return front.answer(cookie, json.dumps(guest.attestation(challenge).to_json()))


REFUSALS: dict[str, Callable[[Front, FakeTpm], TestResponse]] = {
    "another challenge": _of_another_challenge,
    "another proof": lambda front, tpm: _changed(front, tpm, activation="A" * 43 + "="),
    "a broken quote": lambda front, tpm: _changed(front, tpm, attest="AAAA"),
    "another signature": lambda front, tpm: _changed(front, tpm, signature="AAAA"),
    "a broken log": lambda front, tpm: _changed(front, tpm, eventlog="AAAA"),
    "a used challenge": _twice,
    "a late answer": _late,
    "a key that nobody knows": _stranger,
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_says_its_id(front: Front, tpm: FakeTpm, name: str) -> None:
    """Of evidence that is refused the same: a class, an id, and nothing of what was expected or found."""
    answer = REFUSALS[name](front, tpm)
    check_answer(answer)
    assert answer.status_code == 401
    line = front.house.store.entry("acme", answer.json["detail"].split()[-1].rstrip(")"))
    for words in told(line) - {"challenge"}:
        assert words not in answer.text + str(answer.headers)


def test_who_cannot_be_answered_learns_that(
    front: Front, tpm: FakeTpm, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """A store that does not answer is told in fixed words, with when to come again."""
    cookie, _ = front.attest(Guest(tpm, declare=True))

    def away(*_: object, **__: object) -> None:
        raise Unavailable("the store at /secret/path does not answer")

    monkeypatch.setattr(type(front.house.store), "append", away)
    answer = front.fetch(PATH, cookie=cookie)
    check_answer(answer)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
