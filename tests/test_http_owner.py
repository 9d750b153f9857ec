# SPDX-License-Identifier: Apache-2.0
"""The owners' API: what goes in, what comes out, what is recorded."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.http import image_types, types
from broker.store.protocols import KeyState, RecordKind
from keys import b64
from keys.errors import Conflict, Unavailable
from keys.jwe import MAX_PLAINTEXT_BYTES
from keys.messages import MAX_BODY_BYTES
from tests.fakes.front import Front, Owner, booted, provision
from tests.fakes.house import draft
from tests.fakes.tpm_guest import FakeTpm, Guest

KEY = "/v1/keys/acme/disk/root"
RULE = "/v1/rules/acme/disk/root"
RULES = {"images": ["debian"], "platforms": ["tpm"], "instances": ["any"]}


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Front]:
    front = Front(tmp_path)
    yield front
    front.house.store.close()


@pytest.fixture
def owner(front: Front) -> Owner:
    return front.owner("acme")


def error(owner: Owner, status: int, method: str, path: str, body: Any = None) -> dict[str, str]:
    answer = owner.send(method, path, body)
    assert answer.status_code == status, answer.data
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.json["error"].keys() == {"code", "message", "expected", "found", "mend"}
    words: dict[str, str] = answer.json["error"]
    return words


def plaintext(front: Front, version: int | None = None) -> bytes:
    key = front.house.store.key("acme", "disk", "root", version)
    assert key.sealed is not None
    return front.house.custody.open("acme", "disk", "root", key.version, key.sealed)


def changes(front: Front) -> list[tuple[str, str, str]]:
    """Verdict, subject and reason of the owner's changes, the oldest first."""
    lines = reversed(front.house.lines("acme", "change"))
    return [(line.verdict, line.subject, line.body["why"]) for line in lines]


def test_whoami(front: Front) -> None:
    """An owner is told his name and which key signed, for either kind of key."""
    for name, p256 in (("acme", False), ("globex", True)):
        owner = front.owner(name, p256=p256)
        assert owner.call("GET", "/v1/whoami") == {"owner": name, "kid": owner.identity.kid, "role": "owner"}


# --- keys ---


def test_key_from_put_to_destruction(front: Front, owner: Owner) -> None:
    """Versions count up, the newest is active, and destruction leaves metadata alone."""
    who, now = owner.identity.kid, front.house.now
    put = owner.call("PUT", KEY, {"key": b64.std(b"first"), "why": "new disk"})
    assert put == {"path": "acme/disk/root", "version": 1, "state": "active", "created_at": now, "created_by": who}
    assert plaintext(front) == b"first"
    assert owner.call("PUT", KEY, {"key": b64.std(b"second")})["version"] == 2
    assert owner.call("POST", f"{KEY}/rotate", {"why": "yearly"})["version"] == 3
    assert len(plaintext(front)) == len(b"second")
    assert plaintext(front) != b"second"
    shown = owner.call("GET", KEY)
    assert [(v["version"], v["state"]) for v in shown["versions"]] == [(1, "retired"), (2, "retired"), (3, "active")]
    assert owner.call("GET", "/v1/keys") == {"keys": [put | {"version": 3}]}
    assert owner.call("DELETE", KEY, {"why": "scrapped"}) == {"path": "acme/disk/root", "erased": 3}
    assert {v["state"] for v in owner.call("GET", KEY)["versions"]} == {"destroyed"}
    assert changes(front) == [
        ("put", "key/acme/disk/root", "new disk"),
        ("put", "key/acme/disk/root", ""),
        ("rotated", "key/acme/disk/root", "yearly"),
        ("destroyed", "key/acme/disk/root", "scrapped"),
    ]
    assert all(line.body["who"] == who for line in front.house.lines("acme", "change"))


def test_generated_key(front: Front, owner: Owner) -> None:
    """The broker makes as many random bytes as asked for, 32 by default, and never over a key that is there."""
    assert owner.call("POST", f"{KEY}/generate")["version"] == 1
    assert len(plaintext(front)) == 32
    assert "rotate" in error(owner, 409, "POST", f"{KEY}/generate", {"bytes": 64})["mend"]
    owner.call("DELETE", KEY)
    assert owner.call("POST", f"{KEY}/generate", {"bytes": 64})["version"] == 2
    assert len(plaintext(front)) == 64


def test_rotation_without_a_key(front: Front, owner: Owner) -> None:
    """There is nothing to rotate where no key is, or only a destroyed one."""
    error(owner, 404, "POST", f"{KEY}/rotate")
    owner.call("POST", f"{KEY}/generate")
    owner.call("DELETE", KEY)
    error(owner, 404, "POST", f"{KEY}/rotate")


def test_rotation_of_what_custody_cannot_open(front: Front, owner: Owner) -> None:
    """A key whose sealed bytes were exchanged in the store is not rotated."""
    owner.call("POST", f"{KEY}/generate")
    key = front.house.store.key("acme", "disk", "root")
    sealed = key.sealed or b""
    front.house.store.replace_sealed(key, sealed[:-1] + bytes((sealed[-1] ^ 1,)))
    assert error(owner, 422, "POST", f"{KEY}/rotate")["code"] == "verification"


def test_bytes_of_a_key_never_come_back(front: Front, owner: Owner) -> None:
    """No answer and no line of the ledger holds a key's bytes in any spelling."""
    secret = secrets.token_bytes(32)
    answers = [owner.send("PUT", KEY, {"key": b64.std(secret)})]
    answers += [owner.send("GET", path) for path in (KEY, "/v1/keys", "/v1/decisions")]
    for line in owner.call("GET", "/v1/decisions")["decisions"]:
        answers.append(owner.send("GET", f"/v1/decisions/{line['id']}"))
    whole = b"".join(answer.data for answer in answers)
    for spelling in (secret, secret.hex().encode(), b64.std(secret).encode(), b64.url(secret).encode()):
        assert spelling not in whole


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({}, "`key`"),
        ({"key": ""}, "length"),
        ({"key": "AAA"}, "length"),
        ({"key": "AAB="}, "canonical"),
        ({"key": "AA__"}, "base64"),
        ({"key": 5}, "str"),
        ({"key": "AAAA", "surprise": 1}, "surprise"),
        ({"key": "AAAA", "why": "x" * 501}, "500"),
        (b'{"key":"AAAA","key":"AAAA"}', "twice"),
        (b'{"key":"AAAA"', "not strict JSON"),
        (b'["AAAA"]', "object"),
        (b'{"key":"AAAA","why":1.5}', "only integers"),
    ],
)
def test_put_that_cannot_be_read(front: Front, owner: Owner, body: Any, why: str) -> None:
    """A malformed request is told what is wrong, and nothing changes."""
    assert why in error(owner, 400, "PUT", KEY, body)["message"]
    assert owner.call("GET", "/v1/keys") == {"keys": []}
    assert changes(front) == []


def test_largest_key(front: Front, owner: Owner) -> None:
    """64 KiB fit, one byte more does not."""
    owner.call("PUT", KEY, {"key": b64.std(bytes(MAX_PLAINTEXT_BYTES))})
    error(owner, 400, "PUT", KEY, {"key": b64.std(bytes(MAX_PLAINTEXT_BYTES + 1))})


@pytest.mark.parametrize(
    "path", ["/v1/keys/acme/disk/.root", "/v1/keys/acme/di%20sk/root", "/v1/keys/acme/d/" + "x" * 97]
)
def test_what_is_no_path(owner: Owner, path: str) -> None:
    """A key's path is three segments of plain characters."""
    assert error(owner, 400, "PUT", path, {"key": "AAAA"})["message"] == "not a resource path"


def test_unknown_things(owner: Owner) -> None:
    """What is not there is 404, for reading and for deleting."""
    for method, path in (
        ("GET", KEY), ("DELETE", KEY), ("GET", RULE), ("DELETE", RULE), ("GET", "/v1/images/none"),
        ("GET", "/v1/instances/none"), ("DELETE", "/v1/instances/none"), ("POST", "/v1/guests/none/readmit"),
        ("GET", "/v1/decisions/d-none"),
    ):  # fmt: skip
        assert error(owner, 404, method, path)["code"] == "not-found"


# --- images, rules, instances ---


def test_images(front: Front, owner: Owner) -> None:
    """An image comes back as its owner wrote it, every version of it."""
    first, second = draft(booted(front.house), (4, 7)), draft(booted(front.house), (4,))
    assert owner.call("PUT", "/v1/images/debian", {"toml": first, "why": "enrolled"})["version"] == 1
    stored = owner.call("PUT", "/v1/images/debian", {"toml": second})
    assert stored == {
        "name": "debian", "version": 2, "platform": "tpm", "description": stored["description"],
        "created_at": front.house.now, "created_by": owner.identity.kid, "replaced": [1],
        "life": {"state": "active", "at": front.house.now, "who": owner.identity.kid, "why": "", "until": None},
    }  # fmt: skip
    del stored["replaced"]
    assert owner.call("GET", "/v1/images") == {"images": [stored]}
    assert owner.call("GET", "/v1/images/debian") == stored | {"toml": second}
    assert owner.call("GET", "/v1/images/debian?version=1")["toml"] == first
    error(owner, 404, "GET", "/v1/images/debian?version=3")
    assert changes(front)[0] == ("put", "image/debian@1", "enrolled")


@pytest.mark.parametrize(
    ("name", "toml", "why"),
    [
        ("debian", "not toml", "not TOML"),
        ("debian", 'platform = "tpm"\n[tpm]\nbank = "sha256"\n', "names no PCR"),
        (".debian", 'platform = "tpm"\n[tpm]\nbank = "sha256"\n', "not a name"),
    ],
)
def test_image_that_is_refused(front: Front, owner: Owner, name: str, toml: str, why: str) -> None:
    """An image that would not protect anything, or has no proper name, is not stored."""
    assert why in error(owner, 400, "PUT", f"/v1/images/{name}", {"toml": toml})["message"]
    assert owner.call("GET", "/v1/images") == {"images": []}


OPTIONS = {"clones": "allow", "lease_s": 300, "sticky_failure": False, "unsafe_first_use": False}


def test_rules(front: Front, owner: Owner) -> None:
    """A rule is set, shown, replaced and taken away; then nobody gets the key."""
    stored = owner.call("PUT", RULE, RULES | {"why": "go"})
    assert stored == RULES | OPTIONS | {
        "path": "acme/disk/root", "version": 1, "created_at": front.house.now, "created_by": owner.identity.kid,
    }  # fmt: skip
    assert owner.call("GET", RULE) == stored
    assert owner.call("GET", "/v1/rules") == {"rules": [stored]}
    assert owner.call("PUT", RULE, RULES | {"images": ["debian@2"]})["version"] == 2
    assert owner.call("DELETE", RULE, {"why": "stop"}) == {"name": "disk/root"}
    error(owner, 404, "GET", RULE)
    assert owner.call("GET", "/v1/rules") == {"rules": []}
    assert owner.call("PUT", RULE, RULES)["version"] == 4
    assert changes(front)[2] == ("deleted", "rule/disk/root@3", "stop")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"images": []}, "empty"),
        ({"instances": []}, "empty"),
        ({"platforms": ["zx81"]}, "does not judge"),
        ({"instances": ["any", "web-1"]}, "and others"),
        ({"images": "debian"}, "array"),
    ],
)
def test_rule_that_is_refused(owner: Owner, change: dict[str, Any], why: str) -> None:
    """A rule that allows nothing, or is ambiguous, is not stored."""
    assert why in error(owner, 400, "PUT", RULE, RULES | change)["message"]
    error(owner, 404, "GET", RULE)


def test_instances(front: Front, owner: Owner) -> None:
    """A machine is enrolled by its keys, found by its ids, and forgotten."""
    tpm = FakeTpm(front.house.ca)
    body = {"ak_public": b64.std(tpm.ak_public), "ek_certificate": b64.std(tpm.certificates[0]), "description": "web"}
    stored = owner.call("PUT", "/v1/instances/web-1", body | {"why": "new"})
    assert stored.keys() == {"name", "version", "description", "ids", "created_at", "created_by"}
    assert {id_.partition(":")[0] for id_ in stored["ids"]} == {"tpm-ek", "tpm-ak", "tpm-spki"}
    assert owner.call("GET", "/v1/instances/web-1") == stored
    assert owner.call("GET", "/v1/instances") == {"instances": [stored]}
    [record] = front.house.store.by_alias(RecordKind.INSTANCE, f"tpm-ak:{tpm.ak_name.hex()}")
    assert (record.owner, record.name) == ("acme", "web-1")
    assert owner.call("POST", "/v1/guests/web-1/readmit", {"why": "restored"})["standing"] == "enrolled"
    assert [line.subject for line in front.house.lines("acme", "readmit")] == list(reversed(stored["ids"]))
    assert owner.call("DELETE", "/v1/instances/web-1") == {"name": "web-1"}
    assert front.house.store.by_alias(RecordKind.INSTANCE, stored["ids"][0]) == []


@pytest.mark.parametrize(
    ("name", "body", "why"),
    [
        ("web-1", {}, "names no key"),
        ("web-1", {"ak_public": "AAAA"}, ""),
        ("any", {"ak_public": "AAAA"}, "'any'"),
        ("web-1", {"ids": ["tpm-ak:00"]}, "ids"),
    ],
)
def test_instance_that_is_refused(owner: Owner, name: str, body: dict[str, Any], why: str) -> None:
    """A machine without a usable key, or named like everybody, is not enrolled; ids are never taken over."""
    assert why in error(owner, 400, "PUT", f"/v1/instances/{name}", body)["message"]
    assert owner.call("GET", "/v1/instances") == {"instances": []}


# --- decisions ---


def test_decisions(front: Front) -> None:
    """An owner sees what was decided about his keys, with the trace; another owner sees nothing of it."""
    tpm = booted(front.house)
    owner, other = provision(front, "acme/disk/root", b"secret", tpm), front.owner("globex")
    cookie, _ = front.attest(Guest(tpm, declare=True), "acme/disk/root")
    assert front.fetch("acme/disk/root", cookie=cookie).status_code == 200
    assert front.fetch("acme/disk/none", cookie=cookie).status_code == 403
    page = owner.call("GET", "/v1/decisions")
    assert [(line["kind"], line["verdict"]) for line in page["decisions"]] == [
        ("release", "denied"), ("release", "released"), ("attest", "genuine"),
    ]  # fmt: skip
    assert page["next"] is None
    assert page["decisions"][0]["key"] == "acme/disk/none"
    id_ = page["decisions"][0]["id"]
    shown = owner.call("GET", f"/v1/decisions/{id_}")
    assert page["decisions"][0].items() <= shown.items()
    assert any(check["verdict"] == "failed" and check["mend"] for check in shown["body"]["trace"])
    assert len(shown["hash"]) == 64
    assert other.call("GET", "/v1/decisions") == {"decisions": [], "next": None}
    assert error(other, 404, "GET", f"/v1/decisions/{id_}") == error(other, 404, "GET", "/v1/decisions/d-none")


def test_pages_of_decisions(front: Front, owner: Owner) -> None:
    """Decisions come in pages, and can be asked for by kind and subject."""
    for number in range(5):
        owner.call("PUT", f"/v1/keys/acme/disk/{number}", {"key": "AAAA"})
    seen, before = [], ""
    while True:
        page = owner.call("GET", f"/v1/decisions?limit=2{before}")
        seen += [line["subject"] for line in page["decisions"]]
        if page["next"] is None:
            break
        before = f"&before={page['next']}"
    assert seen == [f"key/acme/disk/{number}" for number in (4, 3, 2, 1, 0)]
    [only] = owner.call("GET", "/v1/decisions?kind=change&subject=key/acme/disk/3")["decisions"]
    assert only["subject"] == "key/acme/disk/3"
    assert owner.call("GET", "/v1/decisions?kind=release")["decisions"] == []


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=201", "limit=x", "limit=1&limit=2", "before=0", "more=1", "kind=a&kind=b"]
)
def test_query_that_cannot_be_read(owner: Owner, query: str) -> None:
    """A query with an unknown name, a name twice or a number out of range is refused."""
    error(owner, 400, "GET", f"/v1/decisions?{query}")


# --- the request itself ---


def test_body_where_none_belongs(owner: Owner) -> None:
    """A body on a read, or a query on a change, is refused and not ignored."""
    for method, path, body in (
        ("GET", "/v1/keys", {}), ("GET", "/v1/keys?x=1", None), ("GET", "/v1/decisions", {}),
        ("PUT", f"{KEY}?version=1", {"key": "AAAA"}),
    ):  # fmt: skip
        error(owner, 400, method, path, body)


def test_signature_is_for_this_request(front: Front, owner: Owner) -> None:
    """A signature for another method, path, query, body or time does not carry a request."""
    for signed in (
        {"method": "GET"}, {"path": "/v1/keys/acme/disk/other"}, {"path": KEY + "?a=b"}, {"body": b"{}"},
        {"now": front.house.now - 120_000},
    ):  # fmt: skip
        assert owner.send("PUT", KEY, {"key": "AAAA"}, signed=signed).status_code == 401
    assert owner.call("GET", "/v1/keys") == {"keys": []}


def test_owner_who_was_removed(front: Front, owner: Owner) -> None:
    """An owner without a record, or whose key was taken away, is nobody from that moment on."""
    owner.call("GET", "/v1/whoami")
    front.owner("acme")  # another key now
    assert owner.send("GET", "/v1/whoami").status_code == 401
    front.house.put(RecordKind.OWNER, "", "acme", None)
    assert owner.send("GET", "/v1/whoami").status_code == 401


def test_body_that_is_too_long(owner: Owner) -> None:
    """A body beyond the limit is refused before it is judged."""
    assert error(owner, 413, "PUT", KEY, b" " * (MAX_BODY_BYTES + 1))["code"] == "too-large"


def test_change_that_fails_leaves_two_lines(front: Front, owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line of a change is there before the change, and a second one says that it failed."""

    def fail(*_: object) -> None:
        assert changes(front)[-1] == ("put", "key/acme/disk/root", "x")
        raise Conflict("somebody was faster")

    monkeypatch.setattr(front.house.store, "put_key", fail)
    assert error(owner, 409, "PUT", KEY, {"key": "AAAA", "why": "x"})["code"] == "conflict"
    assert changes(front)[-1] == ("failed", "key/acme/disk/root", "put: x")


def test_nothing_changes_unrecorded(front: Front, owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the ledger cannot be written nothing is put, deleted or destroyed."""
    owner.call("PUT", KEY, {"key": "AAAA"})
    owner.call("PUT", RULE, RULES)

    def fail(**_: object) -> None:
        raise Unavailable("disk full")

    with monkeypatch.context() as broken:
        broken.setattr(front.house.store, "append", fail)
        for method, path, body in (
            ("PUT", KEY, {"key": "AAAA"}), ("DELETE", KEY, None), ("DELETE", RULE, None), ("PUT", RULE, RULES),
        ):  # fmt: skip
            answer = owner.send(method, path, body)
            assert answer.status_code == 503
            assert answer.headers["Retry-After"] == "1"
    assert owner.call("GET", RULE)["version"] == 1
    key = front.house.store.key("acme", "disk", "root")
    assert (key.version, key.state) == (1, KeyState.ACTIVE)


def test_unexpected_exception(front: Front, owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of our own is 500 in the owners' form, with an id for the operator and none of its words."""

    def fail(*_: object) -> None:
        raise ValueError("the secret itself")

    monkeypatch.setattr(front.house.store, "keys", fail)
    words = error(owner, 500, "GET", "/v1/keys")
    assert words["message"].startswith("the broker failed (incident i-")
    assert "secret" not in json.dumps(words)


def test_refusal_is_explained_to_the_operator_only(
    front: Front, owner: Owner, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says why a signature was refused; the answer is the same for every reason."""
    caplog.set_level("INFO")
    answers = {owner.send("GET", "/v1/keys", signed={name: value}).data for name, value in (
        ("method", "PUT"), ("now", front.house.now - 500_000),
    )}  # fmt: skip
    assert len(answers) == 1
    assert "for another request" in caplog.text
    assert "not valid now" in caplog.text


# --- open to all ---


def test_health_and_readiness(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alive without a store, ready only with one."""
    assert front.send("GET", "/readyz").json == {"status": "ready"}

    def fail() -> None:
        raise Unavailable("disk full")

    monkeypatch.setattr(front.house.store, "ready", fail)
    answer = front.send("GET", "/readyz")
    assert (answer.status_code, answer.json["error"]["code"]) == (503, "unavailable")
    alive = front.send("GET", "/healthz")
    assert (alive.status_code, alive.data) == (200, b"")


def test_jwks(front: Front) -> None:
    """The published keys verify the tokens, and hold nothing private."""
    published = front.send("GET", "/.well-known/jwks.json").json
    assert published == front.house.services.tokens.jwks()
    assert all("d" not in key for key in published["keys"])


def test_why_fits_its_limit() -> None:
    """The reason of a change is bounded, for every change."""
    for kind in (types.PutKey, types.GenerateKey, image_types.PutImage, types.PutRule, types.PutInstance):
        assert issubclass(kind, types.Change)
