# SPDX-License-Identifier: Apache-2.0
"""The protocol's messages: what deployed guests send is read, everything else is refused with a word about it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keys import b64
from keys.errors import ProtocolError
from keys.jwk import parse
from keys.messages import (
    MAX_BODY_BYTES,
    MAX_CERTIFICATE_BYTES,
    MAX_CERTIFICATES,
    MAX_CREDENTIAL_BYTES,
    MAX_PUBLIC_BYTES,
    MAX_SEGMENT_CHARS,
    Attestation,
    Challenge,
    InitData,
    Request,
    ResourcePath,
    TpmCredential,
    TpmDeclaration,
)
from keys.tee import Tee
from tests.fakes.json_values import mutations
from tests.fakes.kbs_vectors import NONCE, TEE_PUBKEY

PATH = ResourcePath("acme", "disk", "web-1")
DECLARATION = TpmDeclaration(b"ak", b"ek", (b"leaf", b"issuer"))
CREDENTIAL = TpmCredential(b"blob", b"secret")
REQUEST = Request(Tee.TPM, PATH, DECLARATION)
CHALLENGE = Challenge(NONCE, CREDENTIAL)
ATTESTATION = Attestation(NONCE, parse(TEE_PUBKEY), {"a": [1]}, "", InitData("toml", "x = 1"))
Message = Request | Challenge | Attestation


def body(value: object) -> bytes:
    return json.dumps(value).encode()


def changed(message: Message, *path: str, **members: Any) -> bytes:
    """`message` as JSON with `members` set at `path`; a member set to `...` is removed."""
    value = json.loads(body(message.to_json()))
    target = value
    for step in path:
        target = target[step]
    target.update(members)
    for name in [name for name, item in members.items() if item is ...]:
        del target[name]
    return body(value)


# --- paths ---


@pytest.mark.parametrize(
    "text", ["a/b/c", "default/key/1", "A-_.9/_/-", "a..b/c/d", "/".join(["x" * MAX_SEGMENT_CHARS] * 3)]
)
def test_resource_paths_are_read(text: str) -> None:
    """Three segments of the allowed characters are a path, and it is written as it came."""
    assert str(ResourcePath.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "a/b",
        "a/b/c/d",
        "a//c",
        "/b/c",
        "a/b/",
        "./b/c",
        "a/../c",
        "a/.b/c",
        "a/b/c\n",
        "a/b/c ",
        "a/b/ü",
        "a/b/c%2e",
        "a\\b/c/d",
        "a/b/\u0661",
        "a/b/" + "x" * (MAX_SEGMENT_CHARS + 1),
        "a/b/" + "x" * 1000,
        None,
        7,
        ["a/b/c"],
    ],
)
def test_other_paths_are_refused(text: object) -> None:
    """Fewer or more segments, dots that walk, other characters and long names are refused."""
    with pytest.raises(ProtocolError):
        ResourcePath.parse(text)


# --- /auth ---


@pytest.mark.parametrize(
    "request_",
    [
        Request(Tee.SNP),
        Request(Tee.TPM, PATH),
        Request(Tee.TPM, None, DECLARATION),
        REQUEST,
        Request(Tee.SNP, PATH, None, "a" + 127 * "-"),
    ],
)
def test_request_comes_back(request_: Request) -> None:
    """What our agent sends the broker reads."""
    assert Request.from_bytes(body(request_.to_json())) == request_


@pytest.mark.parametrize(
    "extra",
    ["", {}, {"supported-hash-algorithms": ["sha256", "sha384", "sha512", "sm3"]}, {"supported-hash-algorithms": []}],
)
def test_stock_guests_requests_are_read(extra: object) -> None:
    """The forms that deployed guests send carry neither path nor TPM and are read."""
    text = body({"version": "0.4.0", "tee": "tdx", "extra-params": extra})
    assert Request.from_bytes(text) == Request(Tee.TDX)


def test_request_of_another_version_hears_the_known_words() -> None:
    """Deployed guests look for this sentence."""
    with pytest.raises(ProtocolError) as caught:
        Request.from_bytes(changed(REQUEST, version="0.1.0"))
    assert str(caught.value) == "KBS Client Protocol Version Mismatch: expect =0.4.0 while the request is 0.1.0"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": ...}, "lacks a member"),
        ({"tee": ...}, "lacks a member"),
        ({"extra-params": ...}, "lacks a member"),
        ({"version": 4}, "version must be a string"),
        ({"version": "0" * 65}, "version is too long"),
        ({"tee": "toaster"}, "not a platform"),
        ({"tee": "TPM"}, "not a platform"),
        ({"tee": None}, "tee must be"),
        ({"tee": "t" * 65}, "tee is too long"),
        ({"tee": "snp"}, "goes with tee tpm"),
        ({"nonce": ""}, "unknown member"),
        ({"extra-params": None}, "must be a JSON object"),
        ({"extra-params": "x"}, "must be a JSON object"),
        ({"extra-params": {"x": 1}}, "unknown member"),
        ({"extra-params": {"supported-hash-algorithms": "sha384"}}, "list of names"),
        ({"extra-params": {"supported-hash-algorithms": [384]}}, "list of names"),
        ({"extra-params": {"resource": "a/b"}}, "not a resource path"),
        ({"extra-params": {"resource": None}}, "resource path must be a string"),
        ({"extra-params": {"tpm": None}}, "must be a JSON object"),
        *(({"extra-params": {"ticket": ticket}}, "not a ticket") for ticket in (None, 7, "", "a b", "a\n", 129 * "a")),
    ],
)
def test_other_requests_are_refused(change: dict[str, Any], message: str) -> None:
    """Every missing, unknown or malformed member of a request is refused by name."""
    with pytest.raises(ProtocolError, match=message):
        Request.from_bytes(changed(REQUEST, **change))


def test_a_ticket_is_not_shown() -> None:
    """Neither a request in words nor the refusal of a malformed ticket has the ticket in it."""
    assert "Xk3" not in repr(REQUEST._replace(ticket="Xk3-ticket"))
    assert repr(REQUEST) == repr(Request(*REQUEST)) != repr(REQUEST._replace(ticket="Xk3-ticket"))
    with pytest.raises(ProtocolError) as caught:
        Request.from_bytes(changed(REQUEST, "extra-params", ticket="Xk3 ticket"))
    assert "Xk3" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ak-public": ...}, "lacks a member"),
        ({"ek-public": ...}, "lacks a member"),
        ({"x": 1}, "unknown member"),
        ({"ek-certificates": ...}, "lacks a member"),
        ({"ek-certificates": []}, "must be a list"),
        ({"ek-certificates": "AAAA"}, "must be a list"),
        ({"ek-certificates": ["AAAA"] * (MAX_CERTIFICATES + 1)}, "list"),
        ({"ek-certificates": [7]}, "ek-certificates must be a string"),
        ({"ek-certificates": ["AAA"]}, "ek-certificates"),
        ({"ek-certificates": [b64.std(bytes(MAX_CERTIFICATE_BYTES + 1))]}, "ek-certificates is too long"),
        ({"ak-public": "AAA"}, "ak-public is not"),
        ({"ek-public": "_-8="}, "ek-public is not"),
        ({"ak-public": b64.std(bytes(MAX_PUBLIC_BYTES + 1))}, "ak-public is too long"),
        ({"ek-public": b64.std(bytes(MAX_PUBLIC_BYTES + 1))}, "ek-public is too long"),
    ],
)
def test_other_tpm_declarations_are_refused(change: dict[str, Any], message: str) -> None:
    """Every missing, unknown, malformed or oversized part of a TPM's declaration is refused by name."""
    with pytest.raises(ProtocolError, match=message):
        Request.from_bytes(changed(REQUEST, "extra-params", "tpm", **change))


# --- the challenge ---


@pytest.mark.parametrize("challenge", [Challenge(NONCE), CHALLENGE])
def test_challenge_comes_back(challenge: Challenge) -> None:
    """What the broker answers our agent reads."""
    assert Challenge.from_bytes(body(challenge.to_json())) == challenge


def test_stock_brokers_challenges_are_read() -> None:
    """A plain challenge, and one that selects the hash that we use, are read."""
    for extra in ("", {}, {"selected-hash-algorithm": "sha384"}):
        assert Challenge.from_bytes(body({"nonce": NONCE, "extra-params": extra})) == Challenge(NONCE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nonce": ...}, "lacks a member"),
        ({"extra-params": ...}, "lacks a member"),
        ({"nonce": 7}, "nonce must be"),
        ({"nonce": "n" * 4097}, "nonce is too long"),
        ({"x": 1}, "unknown member"),
        ({"extra-params": 7}, "JSON object"),
        ({"extra-params": {"selected-hash-algorithm": "sha512"}}, "another hash"),
        ({"extra-params": {"selected-hash-algorithm": None}}, "another hash"),
        ({"extra-params": {"x": 1}}, "unknown member"),
        ({"extra-params": {"tpm": {}}}, "lacks a member"),
        ({"extra-params": {"tpm": {"credential-blob": "AA=="}}}, "lacks a member"),
        ({"extra-params": {"tpm": CREDENTIAL.to_json() | {"x": 1}}}, "unknown member"),
        ({"extra-params": {"tpm": CREDENTIAL.to_json() | {"credential-blob": "!"}}}, "credential-blob is not"),
        (
            {"extra-params": {"tpm": TpmCredential(bytes(MAX_CREDENTIAL_BYTES + 1), b"").to_json()}},
            "credential-blob is too long",
        ),
        (
            {"extra-params": {"tpm": TpmCredential(b"", bytes(MAX_CREDENTIAL_BYTES + 1)).to_json()}},
            "encrypted-secret is too long",
        ),
    ],
)
def test_other_challenges_are_refused(change: dict[str, Any], message: str) -> None:
    """Every missing, unknown, malformed or oversized member of a challenge is refused by name."""
    with pytest.raises(ProtocolError, match=message):
        Challenge.from_bytes(changed(CHALLENGE, **change))


# --- /attest ---


def test_attestation_comes_back() -> None:
    """What our agent posts the broker reads, with init-data and without."""
    for message in (ATTESTATION, ATTESTATION._replace(init_data=None), ATTESTATION._replace(additional_evidence="{}")):
        assert Attestation.from_bytes(body(message.to_json())) == message


@pytest.mark.parametrize("evidence", [None, "", [], {"a": {"b": [1]}}])
def test_primary_evidence_is_handed_on_unread(evidence: object) -> None:
    """Whatever JSON the platform has for its evidence, its verifier gets it as it is."""
    text = changed(ATTESTATION, "tee-evidence", primary_evidence=evidence)
    assert Attestation.from_bytes(text).primary_evidence == evidence


def test_absent_init_data_is_none() -> None:
    """Init-data may be null or absent; both mean that none was posted."""
    for absent in (None, ...):
        assert Attestation.from_bytes(changed(ATTESTATION, **{"init-data": absent})).init_data is None


@pytest.mark.parametrize(
    ("path", "change", "message"),
    [
        ((), {"runtime-data": ...}, "lacks a member"),
        ((), {"tee-evidence": ...}, "lacks a member"),
        ((), {"x": 1}, "unknown member"),
        ((), {"tee": "tpm"}, "unknown member"),
        ((), {"runtime-data": []}, "JSON object"),
        (("runtime-data",), {"nonce": ...}, "lacks a member"),
        (("runtime-data",), {"nonce": None}, "nonce must be"),
        (("runtime-data",), {"nonce": "n" * 4097}, "nonce is too long"),
        (("runtime-data",), {"x": 1}, "unknown member"),
        (("runtime-data",), {"tee-pubkey": ...}, "lacks a member"),
        (("runtime-data",), {"tee-pubkey": {}}, "kty"),
        (("tee-evidence",), {"primary_evidence": ...}, "lacks a member"),
        (("tee-evidence",), {"x": 1}, "unknown member"),
        (("tee-evidence",), {"additional_evidence": ...}, "lacks a member"),
        (("tee-evidence",), {"additional_evidence": None}, "additional_evidence must be a string"),
        ((), {"init-data": "x"}, "JSON object"),
        ((), {"init-data": {}}, "lacks a member"),
        (("init-data",), {"format": ...}, "lacks a member"),
        (("init-data",), {"body": ...}, "lacks a member"),
        (("init-data",), {"x": 1}, "unknown member"),
        (("init-data",), {"format": 7}, "init-data.format must be"),
        (("init-data",), {"format": "t" * 17}, "init-data.format is too long"),
        (("init-data",), {"body": None}, "init-data.body must be"),
        (("init-data",), {"body": "x" * (64 * 1024 + 1)}, "init-data.body is too long"),
    ],
)
def test_other_attestations_are_refused(path: tuple[str, ...], change: dict[str, Any], message: str) -> None:
    """Every missing, unknown, malformed or oversized member of an attestation is refused by name."""
    with pytest.raises(ProtocolError, match=message):
        Attestation.from_bytes(changed(ATTESTATION, *path, **change))


# --- all of them ---

READERS: list[tuple[Callable[[bytes], Message], Message]] = [
    (Request.from_bytes, REQUEST), (Challenge.from_bytes, CHALLENGE), (Attestation.from_bytes, ATTESTATION)
]  # fmt: skip


@pytest.mark.parametrize(("read", "message"), READERS)
def test_messages_are_bounded_strict_json(read: Callable[[bytes], Message], message: Message) -> None:
    """A body a byte too long, of another shape, or with a duplicate member is refused."""
    text = body(message.to_json())
    assert read(text + b" " * (MAX_BODY_BYTES - len(text))) == message
    with pytest.raises(ProtocolError, match="too long"):
        read(text + b" " * (MAX_BODY_BYTES - len(text) + 1))
    name = json.dumps(next(iter(message.to_json()))).encode()
    with pytest.raises(ProtocolError, match="twice"):
        read(b"{" + name + b":1," + text[1:])
    for other in (b"null", b"[]", b'""', b"", b"\xff"):
        with pytest.raises(ProtocolError):
            read(other)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_only_our_errors_escape(data: st.DataObject) -> None:
    """A mutated message is read, and then written and read alike, or refused with our error."""
    read, message = data.draw(st.sampled_from(READERS))
    text = data.draw(mutations(message.to_json()) | st.binary(max_size=80))
    try:
        found = read(text)
    except ProtocolError:
        return
    assert read(body(found.to_json())) == found
