# SPDX-License-Identifier: Apache-2.0
"""Attestation tokens: only ours, only now, only with our key's own algorithm."""

import base64
import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.tokens import TokenSigner, load_signing_key
from keys.errors import ConfigError, Unauthorized

NOW = 1_800_000_000_000
P256 = ec.generate_private_key(ec.SECP256R1())
P384 = ec.generate_private_key(ec.SECP384R1())


def signer(*keys: ec.EllipticCurvePrivateKey, **changes: Any) -> TokenSigner:
    return TokenSigner(list(keys) or [P256], **({"issuer": "roomkey", "audience": "here", "lifetime_s": 300} | changes))


def forged(header: dict[str, Any] | None = None, claims: dict[str, Any] | None = None, key: Any = P256) -> str:
    """A token that is right but for the changes; a member of None is left out."""
    own = signer().jwks()["keys"][0]
    at = NOW // 1000
    good_claims = {"iss": "roomkey", "aud": "here", "iat": at, "nbf": at, "exp": at + 300, "jti": "d-1"}
    head = {"alg": "ES256", "kid": own["kid"], "typ": "JWT"} | (header or {})
    body = good_claims | (claims or {})
    head, body = ({k: v for k, v in part.items() if v is not None} for part in (head, body))
    text = b".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (head, body))
    signature = jwt.algorithms.ECAlgorithm(jwt.algorithms.ECAlgorithm.SHA256).sign(text, key)
    return (text + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


@pytest.mark.parametrize(("key", "algorithm"), [(P256, "ES256"), (P384, "ES384")])
def test_a_token_comes_back_with_its_claims(key: ec.EllipticCurvePrivateKey, algorithm: str) -> None:
    """What was issued verifies, carries issuer, audience, times and id, and its algorithm is its key's."""
    token = signer(key).issue({"submods": {}}, token_id="d-1", now=NOW)
    assert signer(key).verify(token, NOW) == {
        "submods": {},
        "iss": "roomkey",
        "aud": "here",
        "iat": NOW // 1000,
        "nbf": NOW // 1000,
        "exp": NOW // 1000 + 300,
        "jti": "d-1",
    }
    assert jwt.get_unverified_header(token) == {
        "alg": algorithm,
        "typ": "JWT",
        "kid": signer(key).jwks()["keys"][0]["kid"],
    }


def test_no_claim_overrides_the_registered_ones() -> None:
    """Claims from elsewhere cannot make a token live longer or name another audience."""
    token = signer().issue({"exp": 1 << 40, "aud": "there", "iss": "x"}, token_id="d-1", now=NOW)
    claims = signer().verify(token, NOW)
    assert (claims["exp"], claims["aud"], claims["iss"]) == (NOW // 1000 + 300, "here", "roomkey")


def test_an_independent_library_verifies_by_the_published_keys() -> None:
    """joserfc accepts our token with the key that the JWK set names by the token's kid."""
    from joserfc import jwt as other  # noqa: PLC0415  the oracle, used here only
    from joserfc.jwk import KeySet  # noqa: PLC0415

    both = signer(P384, P256)
    keys = KeySet.import_key_set({"keys": [dict(key) for key in both.jwks()["keys"]]})
    token = both.issue({"eat_nonce": "n"}, token_id="d-1", now=NOW)
    assert other.decode(token, keys, algorithms=["ES384"]).claims["eat_nonce"] == "n"
    assert [key["kid"] for key in both.jwks()["keys"]] == [key.thumbprint() for key in keys.keys]


def test_jwks_hold_public_members_only() -> None:
    """The published keys have no private part, and the signer's text shows none."""
    for key in signer(P256, P384).jwks()["keys"]:
        assert set(key) == {"kty", "crv", "x", "y", "alg", "use", "kid"}
    assert repr(signer(P256)) == "TokenSigner(issuer='roomkey', keys=1)"


def test_rotation_newest_signs_all_verify() -> None:
    """After a new key is put in front, old tokens stay good and new ones carry the new key's id; not the other way."""
    old = signer(P256).issue({}, token_id="d-1", now=NOW)
    rotated = signer(P384, P256)
    assert rotated.verify(old, NOW)["jti"] == "d-1"
    new = rotated.issue({}, token_id="d-2", now=NOW)
    with pytest.raises(Unauthorized, match="no key of ours"):
        signer(P256).verify(new, NOW)


@pytest.mark.parametrize(
    ("seconds", "good"), [(-1, False), (0, True), (299, True), (300, False), (10**9, False), (-(10**9), False)]
)
def test_a_token_is_good_from_issue_until_just_before_it_expires(seconds: int, good: bool) -> None:
    """Times are judged without leeway, by the time that is handed in."""
    token = signer().issue({}, token_id="d-1", now=NOW)
    if good:
        signer().verify(token, NOW + seconds * 1000)
    else:
        with pytest.raises(Unauthorized, match="not valid now"):
            signer().verify(token, NOW + seconds * 1000)


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "none"},
        {"alg": "HS256"},
        {"alg": "ES384"},
        {"kid": "unknown"},
        {"kid": 7},
        {"kid": None},
        {"typ": "JOSE"},
        {"typ": None},
        {"jku": "https://evil.example"},
        {"x5u": "https://evil.example"},
        {"jwk": {"kty": "EC"}},
        {"x5c": ["MII="]},
        {"crit": ["exp"]},
    ],
)
def test_a_header_of_another_shape_is_refused(header: dict[str, Any]) -> None:
    """Another algorithm or key, and every way to bring a key along, is refused although the signature is right."""
    signer().verify(forged(), NOW)
    with pytest.raises(Unauthorized):
        signer().verify(forged(header), NOW)


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "other"},
        {"iss": None},
        {"aud": "there"},
        {"aud": None},
        {"exp": None},
        {"nbf": None},
        {"iat": None},
        {"jti": None},
        {"exp": NOW // 1000 + 100.5},
        {"exp": True},
        {"nbf": "0"},
        {"exp": NOW // 1000 + 301},
        {"jti": 7},
    ],
)
def test_claims_that_we_would_not_sign_are_refused(claims: dict[str, Any]) -> None:
    """Issuer, audience, the three times, the id: none may be missing, of another type, or longer than we issue."""
    with pytest.raises(Unauthorized):
        signer().verify(forged(claims=claims), NOW)


def test_another_key_under_our_kid_is_refused() -> None:
    """The signature decides, not the header."""
    with pytest.raises(Unauthorized, match="not one of ours"):
        signer().verify(forged(key=ec.generate_private_key(ec.SECP256R1())), NOW)


@pytest.mark.parametrize(
    "token",
    ["", "a", "a.b", "a.b.c.d", "a.b.c", "..", "e30.e30.", "é.e30.e30", "x" * (16 * 1024 + 1), "e30=.e30.e30"],
)
def test_what_is_no_token_is_refused(token: str) -> None:
    """Wrong number of parts, other alphabets, padding, endless text: Unauthorized, nothing else."""
    with pytest.raises(Unauthorized):
        signer().verify(token, NOW)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_changed_character_is_noticed(data: st.DataObject) -> None:
    """No character of a token can be exchanged for another without the token being refused."""
    token = signer().issue(
        {"a": 1}, token_id="d-1", now=NOW
    )  # signed anew each time, so nothing drawn may depend on it
    at = data.draw(st.integers(0, 1 << 16)) % len(token)
    one, another = data.draw(st.permutations("ABCxyz019-_.=+/ "))[:2]
    other = one if one != token[at] else another
    with pytest.raises(Unauthorized):
        signer().verify(token[:at] + other + token[at + 1 :], NOW)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=80))
def test_no_text_escapes_the_error_tree(token: str) -> None:
    """Whatever stands in the Authorization header is Unauthorized."""
    with pytest.raises(Unauthorized):
        signer().verify(token, NOW)


def pem(key: Any, protection: Any = None) -> bytes:
    encoded: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection or NoEncryption())
    return encoded


def test_signing_keys_are_p256_or_p384() -> None:
    """An unencrypted PEM key on either curve loads."""
    for key in (P256, P384):
        assert load_signing_key(pem(key)).private_numbers() == key.private_numbers()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        pem(P256, BestAvailableEncryption(b"secret")),
        pem(ec.generate_private_key(ec.SECP521R1())),
        pem(ed25519.Ed25519PrivateKey.generate()),
        pem(rsa.generate_private_key(65537, 2048)),
    ],
)
def test_other_signing_keys_are_refused(data: bytes) -> None:
    """Encrypted, broken or of another kind: ConfigError at start-up."""
    with pytest.raises(ConfigError):
        load_signing_key(data)


@pytest.mark.parametrize("changes", [{"lifetime_s": 0}, {"lifetime_s": 301}])
def test_tokens_live_five_minutes_at_most(changes: dict[str, int]) -> None:
    """A lifetime out of range is a ConfigError."""
    with pytest.raises(ConfigError, match="too long"):
        signer(P256, **changes)


def test_no_key_no_signer() -> None:
    """Without a key there is nothing to sign with, said at start-up."""
    with pytest.raises(ConfigError, match="no key"):
        TokenSigner([], issuer="a", audience="b", lifetime_s=300)
