# SPDX-License-Identifier: Apache-2.0
"""The release envelope: only what a pinned key signed for exactly this guest, key and moment is taken."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.signing import Signer
from keys import b64, envelope, jwe, jwk, strictjson
from keys.envelope import BUNDLE, MAX_STATEMENT_BYTES, RELEASE, Also, Keys, Release, load_keys
from keys.errors import ProtocolError, VerificationError
from keys.messages import MAX_SEGMENT_CHARS, ResourcePath
from keys.report import Step
from tests.fakes.json_values import mutations

SECRET = b"a disk's key \x00\xff"
PATH = ResourcePath("acme", "disk", "root")
CURVES = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1()}
SIGNERS = {name: Signer(ec.generate_private_key(curve)) for name, curve in CURVES.items()}
SIGNER = SIGNERS["P-256"]
PAYLOAD = {"a": 1, "b": ["\u00e9", None]}
RELEASED = Release(
    key=str(PATH),
    version=3,
    session="ab" * 32,
    nonce=b64.std(bytes(32)),
    tee_pubkey="k" * 43,
    decision="d-" + 20 * "a",
    evidence="cd" * 32,
    image="debian-12@4",
    rule=7,
    volume="12" * 32,
    format=False,
    also=None,
    challenged_at=1_000_000,
    released_at=1_002_000,
    expires_at=1_302_000,
    sha256=hashlib.sha256(SECRET).hexdigest(),
)


def json_set(*keys: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"keys": list(keys), **more}).encode()


def pinned(*signers: Signer) -> Keys:
    return load_keys(json_set(*(signer.jwk for signer in signers)))


def read(statement: object, keys: Keys | None = None, typ: str = RELEASE) -> dict[str, Any]:
    return envelope.verify(statement, keys or pinned(SIGNER), typ, max_bytes=MAX_STATEMENT_BYTES)


def signed(header: object, payload: bytes | None = None, signer: Signer = SIGNER) -> str:
    """A statement with any header and payload under `signer`'s key."""
    head = header if isinstance(header, bytes) else strictjson.canonical(header)
    text = f"{b64.url(head)}.{b64.url(strictjson.canonical(PAYLOAD) if payload is None else payload)}"
    der = signer._key.sign(text.encode(), ec.ECDSA(envelope.ALGORITHMS[signer.jwk["crv"]][1]()))
    size = envelope.CURVES[signer.jwk["crv"]][1]
    r, s = decode_dss_signature(der)
    return f"{text}.{b64.url(r.to_bytes(size, 'big') + s.to_bytes(size, 'big'))}"


def header(signer: Signer = SIGNER, **changes: Any) -> dict[str, Any]:
    made = {"alg": signer.jwk["alg"], "kid": signer.kid, "typ": RELEASE} | changes
    return {name: value for name, value in made.items() if value is not ...}


# --- the broker's keys ---


def test_a_set_of_keys_is_read() -> None:
    """A set as the broker publishes it is read, whatever its white space, and each key is under its thumbprint."""
    assert pinned(SIGNER).by_kid.keys() == {SIGNER.kid}
    assert pinned(*SIGNERS.values()).by_kid.keys() == {signer.kid for signer in SIGNERS.values()}
    assert load_keys(json.dumps(SIGNER.jwks(), indent=4).encode() + b"\n") == pinned(SIGNER)
    assert SIGNER.kid == jwk.thumbprint(SIGNER.jwk)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{}", b"[]", json_set(), b'{"keys":{}}', json_set(SIGNER.jwk, x=1), json_set(SIGNER.jwk, SIGNER.jwk),
        json_set(*(Signer(ec.generate_private_key(ec.SECP256R1())).jwk for _ in range(9))),
        json_set(SIGNER.jwk) + b" " * envelope.MAX_KEYS_BYTES,
    ],
)  # fmt: skip
def test_other_sets_are_refused(data: bytes) -> None:
    """No key, too many, one twice, further members and what is no JSON are refused."""
    with pytest.raises(ProtocolError):
        load_keys(data)


def test_as_many_keys_as_allowed_are_read() -> None:
    """Eight keys on the wider curve fit into the bounds."""
    signers = [Signer(ec.generate_private_key(ec.SECP384R1())) for _ in range(envelope.MAX_KEYS)]
    assert len(pinned(*signers).by_kid) == envelope.MAX_KEYS


@pytest.mark.parametrize(
    "change",
    [
        *({name: ...} for name in SIGNER.jwk),
        {"d": "AA"}, {"key_ops": ["verify"]}, {"kty": "OKP"}, {"kty": "RSA"}, {"use": "enc"}, {"crv": "P-521"},
        {"crv": "P-384"}, {"crv": "secp256k1"}, {"alg": "ES384"}, {"alg": "HS256"}, {"alg": "none"}, {"kid": "1"},
        {"kid": SIGNERS["P-384"].kid}, {"kid": 1}, {"x": SIGNER.jwk["y"]}, {"x": SIGNER.jwk["x"] + "="},
        {"x": b64.url(bytes(31))}, {"y": "A" * 200},
    ],
)  # fmt: skip
def test_other_keys_are_refused(change: dict[str, Any]) -> None:
    """Private parts, other curves and uses, a point off its curve, and an alg or kid that is not the key's own."""
    key = {name: value for name, value in (SIGNER.jwk | change).items() if value is not ...}
    with pytest.raises(ProtocolError):
        load_keys(json_set(key))


@pytest.mark.parametrize("value", [None, 7, "key", []])
def test_a_key_is_an_object(value: Any) -> None:
    """Anything else in the list is refused."""
    with pytest.raises(ProtocolError):
        load_keys(json_set(value))


@settings(max_examples=200, deadline=None)
@given(mutations(SIGNER.jwks()))
def test_only_our_errors_escape_from_a_set(text: bytes) -> None:
    """A mutated set is refused with our error, or its keys are still under their thumbprints."""
    try:
        keys = load_keys(text)
    except ProtocolError:
        return
    assert keys == pinned(SIGNER)


# --- statements ---


@pytest.mark.parametrize("name", SIGNERS)
def test_a_statement_comes_back(name: str) -> None:
    """What either kind of key signed is read with the set that has it, beside others."""
    statement = SIGNERS[name].sign(PAYLOAD, RELEASE)
    assert read(statement, pinned(SIGNERS[name])) == PAYLOAD
    assert read(statement, pinned(*SIGNERS.values())) == PAYLOAD


@pytest.mark.parametrize("name", SIGNERS)
def test_another_library_reads_our_statements(name: str) -> None:
    """A JOSE library that shares no code with ours verifies the signature, and reads header and payload."""
    signer = SIGNERS[name]
    statement = signer.sign(PAYLOAD, RELEASE)
    found = jwt.api_jws.decode_complete(statement, jwt.PyJWK(signer.jwk), algorithms=[signer.jwk["alg"]])
    assert json.loads(found["payload"]) == PAYLOAD
    assert found["header"] == header(signer)


def test_a_statement_is_canonical() -> None:
    """The same header and payload are the same bytes, members sorted, without white space."""
    head, payload, _ = SIGNER.sign({"b": 1, "a": 2}, RELEASE).split(".")
    assert b64.from_url(payload, name="payload", max_bytes=99) == b'{"a":2,"b":1}'
    assert b64.from_url(head, name="header", max_bytes=999) == strictjson.canonical(header())


@pytest.mark.parametrize(
    "statement",
    [
        None, 7, "", "a", "a.b", "a.b.c.d", "..", "é.é.é", signed(header()) + "=", signed(header()) + ".",
        signed(header())[:-1], " " + signed(header()), signed(header()).replace(".", ". "),
        signed(header(), b'{"a":"' + MAX_STATEMENT_BYTES * b"x" + b'"}'),
    ],
)  # fmt: skip
def test_what_is_no_statement_is_refused(statement: object) -> None:
    """(1) Other shapes, other encodings of the same bytes, and what is too long are refused."""
    with pytest.raises(ProtocolError):
        read(statement)


def test_a_statement_is_bounded_as_a_whole() -> None:
    """(1) What is allowed is the length of all three parts together."""
    statement = signed(header())
    assert envelope.verify(statement, pinned(SIGNER), RELEASE, max_bytes=len(statement)) == PAYLOAD
    with pytest.raises(ProtocolError, match="the statement is too long"):
        envelope.verify(statement, pinned(SIGNER), RELEASE, max_bytes=len(statement) - 1)


@pytest.mark.parametrize(
    "head",
    [
        *(header(**{name: ...}) for name in ("alg", "kid", "typ")),
        *(header(**{name: "x"}) for name in ("jku", "x5u", "x5c", "b64", "cty")),
        header(jwk=SIGNER.jwk), header(crit=[]), [], b"", b"{}", b"null",
        strictjson.canonical(header()).replace(b",", b", "), json.dumps(header() | {"typ": "x"}, indent=1).encode(),
        strictjson.canonical(header())[:-1] + b',"typ":"x"}', strictjson.canonical(header() | {"kid": "k" * 300}),
        strictjson.compact(dict(reversed(header().items()))),
    ],
)  # fmt: skip
def test_other_headers_are_refused(head: object) -> None:
    """(2) A header with another member, without one, with one twice, or spelled otherwise is refused, though signed."""
    with pytest.raises(ProtocolError):
        read(signed(head))


@pytest.mark.parametrize("typ", [BUNDLE, "JWT", "", RELEASE.upper(), None, 7, [RELEASE]])
def test_another_type_is_refused(typ: object) -> None:
    """(3) What the broker signed for another use does not pass."""
    with pytest.raises(VerificationError, match="another type"):
        read(signed(header(typ=typ)))
    with pytest.raises(VerificationError, match="another type"):
        read(SIGNER.sign(PAYLOAD, RELEASE), typ=BUNDLE)


@pytest.mark.parametrize("kid", ["", "x", None, 7, [], {}, SIGNERS["P-384"].kid])
def test_a_key_that_is_not_pinned_is_refused(kid: object) -> None:
    """(4) Only a pinned key counts, and the error says which those are."""
    with pytest.raises(VerificationError, match=SIGNER.kid):
        read(signed(header(kid=kid)))
    with pytest.raises(VerificationError, match="pinned"):
        read(SIGNERS["P-384"].sign(PAYLOAD, RELEASE))


@pytest.mark.parametrize("alg", ["ES384", "none", "None", "HS256", "", "es256", None, 256, ["ES256"]])
def test_another_algorithm_is_refused(alg: object) -> None:
    """(5) The key decides which algorithm is right."""
    with pytest.raises(VerificationError, match="another algorithm"):
        read(signed(header(alg=alg)))


@pytest.mark.parametrize("encoding", [Encoding.DER, Encoding.PEM])
def test_a_public_key_is_no_shared_secret(encoding: Encoding) -> None:
    """(5) An HMAC under the bytes of the public key, as HS256, is refused."""
    text = ".".join(b64.url(strictjson.canonical(part)) for part in (header(alg="HS256"), PAYLOAD))
    secret = SIGNER._key.public_key().public_bytes(encoding, PublicFormat.SubjectPublicKeyInfo)
    with pytest.raises(VerificationError, match="another algorithm"):
        read(f"{text}.{b64.url(hmac.digest(secret, text.encode(), 'sha256'))}")


@pytest.mark.parametrize("signature", [b"", bytes(64), b"\xff" * 64, bytes(63), bytes(65), bytes(96)])
def test_another_signature_is_refused(signature: bytes) -> None:
    """(6) No signature, one of zeros, one out of range, one of another length."""
    text = signed(header()).rpartition(".")[0]
    with pytest.raises(VerificationError, match="signature"):
        read(f"{text}.{b64.url(signature)}")


def test_a_signature_in_der_or_with_a_tail_is_refused() -> None:
    """(6) The signature is r and s and nothing else: one form for one signature."""
    statement = signed(header())
    text, _, last = statement.rpartition(".")
    raw = b64.from_url(last, name="signature", max_bytes=64)
    padded = raw[:32] + b"\0" + raw[32:]  # the same numbers, one byte longer
    for other in (
        padded,
        SIGNER._key.sign(text.encode(), ec.ECDSA(envelope.ALGORITHMS["P-256"][1]())),
        raw + b"\0",
        b"\0" + raw,
    ):
        with pytest.raises(VerificationError, match="signature"):
            read(f"{text}.{b64.url(other)}")


def test_a_foreign_key_under_a_pinned_name_is_refused() -> None:
    """(6) Whoever writes the pinned key's name into a header has not its private half."""
    with pytest.raises(VerificationError, match="signature"):
        read(signed(header(), signer=Signer(ec.generate_private_key(ec.SECP256R1()))))


@pytest.mark.parametrize(
    "payload",
    [b"", b"[]", b"null", b"7", b'{"a":1,"a":1}', b'{"a": 1}', b'{"b":1,"a":1}', b'{"a":1.0}', b"{}\n", b"\xff"],
)
def test_other_payloads_are_refused(payload: bytes) -> None:
    """(7) A payload that is no object, or has another spelling, is refused, though signed."""
    with pytest.raises(ProtocolError):
        read(signed(header(), payload))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_changed_bit_is_refused(data: st.DataObject) -> None:
    """No changed bit of a statement goes unnoticed."""
    raw = bytearray(SIGNER.sign(PAYLOAD, RELEASE).encode())
    bit = data.draw(st.integers(0, len(raw) * 8 - 1))
    raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises((ProtocolError, VerificationError)):
        read(raw.decode("latin-1"))


# --- releases ---


def test_a_release_comes_back() -> None:
    """What the broker writes the agent reads, with or without a rule's version."""
    also = Also(Step.ADD, 4, "ab" * 32)
    for changes in ({"rule": None}, {"volume": None}, {"format": True}, {"also": also}, {}):
        released = RELEASED._replace(**changes)
        assert Release.from_json(json.loads(strictjson.canonical(released.to_json()))) == released


@pytest.mark.parametrize("name", Release._fields)
def test_a_release_has_all_members(name: str) -> None:
    """A missing member is refused, and so is one of another type or form."""
    members = RELEASED.to_json()
    with pytest.raises(ProtocolError, match=name):
        Release.from_json({other: value for other, value in members.items() if other != name})
    strange: list[object] = [[], {}, True, 1.5, "", "é", "a b", "x" * 500, 0, -1, 1 << 53, f"{members[name]}\n"]
    allowed: tuple[object, ...] = {"rule": (None,), "volume": (None,), "also": (None,), "format": (True, False)}.get(
        name, ()
    )
    for value in (value for value in [*strange, None] if not any(value is one for one in allowed)):
        with pytest.raises(ProtocolError):
            Release.from_json(members | {name: value})


def test_a_release_has_no_other_members() -> None:
    """An unknown member is refused: what is not checked is not there."""
    with pytest.raises(ProtocolError, match="unknown member"):
        Release.from_json(RELEASED.to_json() | {"debug": True})
    with pytest.raises(ProtocolError):
        Release.from_json([])


def test_the_largest_release_fits() -> None:
    """A statement with the longest names, and the longest secret beside it, stay within the bounds."""
    segment, largest = "x" * MAX_SEGMENT_CHARS, envelope.MAX_INTEGER
    released = RELEASED._replace(
        key=f"{segment}/{segment}/{segment}", image="x" * 256, version=largest, rule=largest,
        also=Also(Step.RECOVERY, largest, "ab" * 32),
        challenged_at=largest, released_at=largest, expires_at=largest,
    )  # fmt: skip
    statement = SIGNERS["P-384"].sign(Release.from_json(released.to_json()).to_json(), RELEASE)
    assert len(statement) < 2 * 1024
    parts = (bytes(jwe.MAX_PLAINTEXT_BYTES), "x" * MAX_STATEMENT_BYTES, bytes(envelope.MAX_ALSO_BYTES))
    packed = envelope.pack(*parts)
    assert len(packed) <= jwe.MAX_ENVELOPE_BYTES
    assert envelope.unpack(packed) == parts


# --- the envelope ---


def test_an_envelope_comes_back() -> None:
    """Secret and statement come out as they went in."""
    statement = SIGNER.sign(RELEASED.to_json(), RELEASE)
    for secret, also in ((SECRET, None), (b"", None), (SECRET, b"another")):
        assert envelope.unpack(envelope.pack(secret, statement, also)) == (secret, statement, also)


def test_what_does_not_fit_is_misuse() -> None:
    """A secret or statement that is too long for an envelope is a programming error."""
    with pytest.raises(RuntimeError):
        envelope.pack(bytes(jwe.MAX_PLAINTEXT_BYTES + 1), "x")
    with pytest.raises(RuntimeError):
        envelope.pack(b"", "x" * (MAX_STATEMENT_BYTES + 1))
    with pytest.raises(RuntimeError):
        envelope.pack(b"", "x", bytes(envelope.MAX_ALSO_BYTES + 1))


@pytest.mark.parametrize(
    "data",
    [
        SECRET, b"", b"{}", b'"key"', b'{"key":"AA=="}', b'{"release":"x"}', b'{"key":"AA==","release":"x","x":1}',
        b'{"key":"AA==","key":"AA==","release":"x"}', b'{"key":"AA","release":"x"}', b'{"key":7,"release":"x"}',
        b'{"key":"AA==","release":7}', b'{"key":"AA==","release":null}',
        b'{"key":"AA==","release":"' + b"x" * (MAX_STATEMENT_BYTES + 1) + b'"}',
        b'{"key":"' + base64.b64encode(bytes(jwe.MAX_PLAINTEXT_BYTES + 1)) + b'","release":"x"}',
        b'{"key":"AA==","release":"x"}' + b" " * jwe.MAX_ENVELOPE_BYTES,
    ],
)  # fmt: skip
def test_what_is_no_envelope_is_refused(data: bytes) -> None:
    """A plain secret, missing and further members, other encodings, and what is too long are refused."""
    with pytest.raises(ProtocolError):
        envelope.unpack(data)


@settings(max_examples=200, deadline=None)
@given(mutations({"key": "AAA=", "release": "a.b.c"}))
def test_only_our_errors_escape_from_an_envelope(text: bytes) -> None:
    """A mutated envelope is read or refused with our error."""
    try:
        envelope.unpack(text)
    except ProtocolError:
        return


# --- the checks ---


def check(
    released: Release = RELEASED, secret: bytes = SECRET, also: bytes | None = None, **changes: Any
) -> None:  # fmt: skip
    """`check` of a guest that asked for what RELEASED says."""
    ours: dict[str, Any] = {
        "path": PATH, "session": RELEASED.session, "nonce": RELEASED.nonce, "thumbprint": RELEASED.tee_pubkey,
        "evidence": RELEASED.evidence, "at_least": 1, "elapsed_ms": 0,
    }  # fmt: skip
    envelope.check(released, secret, also, **ours | changes)


def test_another_other_key_is_refused() -> None:
    """The key to change keyslots with is the one that was signed for: no other one, none too much and none missing."""
    released = RELEASED._replace(also=Also(Step.ADD, 4, envelope.digest(b"the next key")))
    check(released, also=b"the next key")
    for one, also in ((released, b"another"), (released, None), (RELEASED, b"the next key")):
        with pytest.raises(VerificationError, match="other key"):
            check(one, also=also)


@pytest.mark.parametrize(
    "change", [{"step": "format"}, {"step": "x"}, {"version": 0}, {"version": True}, {"sha256": "ab"}, {"more": 1}]
)
def test_what_to_do_with_keyslots_is_exact(change: dict[str, object]) -> None:
    """A step, a version or a digest that are none are refused."""
    also = {"step": "add", "version": 4, "sha256": "ab" * 32}
    Also.from_json(also)
    with pytest.raises(ProtocolError):
        Also.from_json(also | change)


def test_the_right_release_passes() -> None:
    """What was asked for, by whom, and in time."""
    check()


@pytest.mark.parametrize("other", ["globex/disk/root", "acme/disk/data", "acme/file/root"])
def test_another_key_is_refused(other: str) -> None:
    """(1) Another owner's key of the same type and tag, another tag, another type."""
    with pytest.raises(VerificationError, match="another key"):
        check(RELEASED._replace(key=other))
    with pytest.raises(VerificationError, match="another key"):
        check(path=ResourcePath.parse(other))


def test_another_secret_is_refused() -> None:
    """(2) A secret that the statement is not about, and the error shows nothing of either."""
    with pytest.raises(VerificationError, match="signed for") as caught:
        check(secret=SECRET + b"\0")
    assert RELEASED.sha256[:8] not in str(caught.value)


@pytest.mark.parametrize(
    ("ours", "words"),
    [("session", "session"), ("nonce", "nonce"), ("thumbprint", "guest's key"), ("evidence", "evidence")],
)
def test_another_guests_release_is_refused(ours: str, words: str) -> None:
    """(3) to (6): a genuine release of another session, challenge, guest's key or evidence is a replay."""
    with pytest.raises(VerificationError, match=f"another {words}"):
        check(**{ours: "other"})


def test_an_older_version_is_refused() -> None:
    """(7) The oldest wanted version passes, the one before it does not."""
    check(at_least=3)
    with pytest.raises(VerificationError, match="older version") as caught:
        check(at_least=4)
    assert "4 or newer" in str(caught.value)
    assert "--at-least" in (caught.value.mend or "")


@pytest.mark.parametrize(
    "times",
    [
        (1_000_000, 999_999, 1_000_001), (1_000_000, 1_000_000, 1_000_000), (1_000_000, 1_000_001, 1_000_000),
        (1_000_000, 1_000_000, 1_300_001),
    ],
)  # fmt: skip
def test_impossible_times_are_refused(times: tuple[int, int, int]) -> None:
    """(8) Released before its challenge, good for no time, good for more than five minutes."""
    names = ("challenged_at", "released_at", "expires_at")
    with pytest.raises(VerificationError, match="impossible times"):
        check(RELEASED._replace(**dict(zip(names, times, strict=True))))


def test_times_at_their_limits_pass() -> None:
    """(8) Released in the moment of the challenge, good for exactly five minutes."""
    check(RELEASED._replace(released_at=1_000_000, expires_at=1_300_000))


def test_an_expired_release_is_refused() -> None:
    """(9) Good until as much time has passed as lies between challenge and expiry, whatever the guest's date."""
    check(elapsed_ms=302_000)
    with pytest.raises(VerificationError, match="expired"):
        check(elapsed_ms=302_001)
