# SPDX-License-Identifier: Apache-2.0
"""A man in the middle, TLS lost: he wraps what he likes to the guest's public key, and has genuine envelopes of other
sessions, keys, owners and versions. The real agent uses no key but the right one.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from agent import client
from agent.attesters.snp import SnpAttester
from agent.client import fetch
from agent.config import Settings
from agent.deadline import Deadline
from broker.signing import Signer
from keys import b64, envelope, strictjson
from keys.envelope import BUNDLE, MEDIA_TYPE, RELEASE, pack, unpack
from keys.errors import ConfigError, ProtocolError, RoomkeyError, VerificationError
from keys.jwe import MAX_PLAINTEXT_BYTES
from keys.messages import Request, ResourcePath
from keys.tee import Tee
from tests.fakes.kbs import SIGNER, FakeKbs, Grant, honest, pin
from tests.fakes.sev_guest import FakeKernel

PATH = ResourcePath("acme", "disk", "root")
SECRET = b"the disk's key \x00\xff"
EVIL = b"a key that the man in the middle has, too"
MALLORY = Signer(ec.generate_private_key(ec.SECP256R1()))
PUBLIC = SIGNER._key.public_key()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A guest's, with the broker's key pinned."""
    return Settings(tee=Tee.SNP, broker_keys=pin(tmp_path))


def get(settings: Settings, kbs: FakeKbs, **demands: Any) -> bytes:
    """The real agent, with an SNP report of its own."""
    with SnpAttester(settings, Deadline(10), FakeKernel()) as attester:
        return bytes(fetch(settings._replace(brokers=(kbs.url,)), attester, PATH, Deadline(10), **demands).secret)


def test_the_good_envelope_passes(settings: Settings) -> None:
    """What the broker signed for this guest is used, on the first try."""
    with FakeKbs({str(PATH): SECRET}) as kbs:
        assert get(settings, kbs) == SECRET
        [request] = kbs.asked("resource")
    assert request.headers["accept"] == MEDIA_TYPE


def test_the_longest_key_fits(settings: Settings) -> None:
    """A key of 64 KiB comes through the envelope, the JWE and the agent's bounds."""
    secret = bytes(MAX_PLAINTEXT_BYTES)
    with FakeKbs({str(PATH): secret}) as kbs:
        assert get(settings, kbs) == secret


# --- what he makes himself ---


def statement(grant: Grant, signer: Signer = SIGNER, typ: str = RELEASE, **changes: Any) -> str:
    """What `signer` says of a grant, with members of the release changed."""
    return signer.sign(grant.release.to_json() | changes, typ)


def recast(made: str, signature: Callable[[bytes], bytes] | None = None, **header: Any) -> str:
    """A statement under another header; with the signature that it has, or one of his own make."""
    head, payload, old = made.split(".")
    changed = json.loads(b64.from_url(head, name="header", max_bytes=999)) | header
    text = f"{b64.url(strictjson.canonical(changed))}.{payload}"
    return f"{text}.{old if signature is None else b64.url(signature(text.encode()))}"


def relabelled(grant: Grant, signature: Callable[[bytes], bytes] | None = None, **header: Any) -> bytes:
    """An envelope with the genuine payload under another header."""
    return pack(grant.secret, recast(statement(grant), signature, **header))


def under_the_public_key(text: bytes) -> bytes:
    secret = PUBLIC.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return hmac.digest(secret, text, "sha256")


def under_mallorys_key(text: bytes) -> bytes:
    r, s = decode_dss_signature(MALLORY._key.sign(text, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


FORGERIES: dict[str, tuple[Callable[[Grant], bytes], str]] = {  # and as what each is refused
    "a plain secret of his own": (lambda _: EVIL, "no release envelope"),
    "the right secret, plain": (lambda grant: grant.secret, "no release envelope"),
    "signed by himself": (
        lambda grant: pack(EVIL, statement(grant, MALLORY, sha256=envelope.digest(EVIL))), "not signed by a pinned key"
    ),
    "signed by himself under the pinned name": (lambda grant: relabelled(grant, under_mallorys_key), "signature"),
    "genuine statement, other secret": (lambda grant: pack(EVIL, statement(grant)), "signed for"),
    "genuine statement, no secret": (lambda grant: pack(b"", statement(grant)), "signed for"),
    "an owner's bundle as a release": (lambda grant: pack(grant.secret, statement(grant, typ=BUNDLE)), "another type"),
    "a release as a bundle": (lambda grant: relabelled(grant, typ=BUNDLE), "another type"),
    "a bundle relabelled": (
        lambda grant: pack(grant.secret, recast(statement(grant, typ=BUNDLE), typ=RELEASE)), "signature"
    ),
    "alg none": (lambda grant: relabelled(grant, lambda _: b"", alg="none"), "another algorithm"),
    "alg none, signature left": (lambda grant: relabelled(grant, alg="none"), "another algorithm"),
    "alg HS256 with the public key": (
        lambda grant: relabelled(grant, under_the_public_key, alg="HS256"), "another algorithm"
    ),
    "alg ES384": (lambda grant: relabelled(grant, alg="ES384"), "another algorithm"),
    "a key of his own in the header": (
        lambda grant: relabelled(grant, under_mallorys_key, jwk=MALLORY.jwk), "unknown member|too long"
    ),
    "a key of his own by address": (lambda grant: relabelled(grant, jku="https://m.example/keys"), "unknown member"),
    "crit": (lambda grant: relabelled(grant, crit=["exp"]), "unknown member"),
    "kid of his own key": (lambda grant: relabelled(grant, kid=MALLORY.kid), "not signed by a pinned key"),
    "signature cut off": (lambda grant: pack(grant.secret, statement(grant).rpartition(".")[0] + "."), "signature"),
    "two parts": (lambda grant: pack(grant.secret, statement(grant).rpartition(".")[0]), "no compact JWS"),
    "cut in the middle": (lambda grant: pack(grant.secret, statement(grant)[:-20]), "base64url|signature"),
    "envelope cut off": (lambda grant: honest(grant)[:-1], "no release envelope"),
    "empty": (lambda _: b"", "no release envelope"),
    "statement missing": (lambda grant: b'{"key":"' + b64.std(grant.secret).encode() + b'"}', "no release envelope"),
    "statement empty": (lambda grant: pack(grant.secret, ""), "no compact JWS"),
    "the key twice": (
        lambda grant: honest(grant)[:-1] + b',"key":"' + b64.std(EVIL).encode() + b'"}', "no release envelope"
    ),
}  # fmt: skip

# What the broker did sign, for something else.
GENUINE: dict[str, tuple[dict[str, Any], str]] = {
    "another tag": ({"key": "acme/disk/data"}, "another key"),
    "another owner's key of the same name": ({"key": "globex/disk/root"}, "another key"),
    "another session": ({"session": "00" * 32}, "another session"),
    "another nonce": ({"nonce": b64.std(bytes(32))}, "another nonce"),
    "another guest's key": ({"tee_pubkey": "A" * 43}, "another guest's key"),
    "other evidence": ({"evidence": "00" * 32}, "another evidence"),
    "too long a life": ({"expires_at": 1 << 52}, "impossible times"),
    "a release without a version": ({"version": None}, "version"),
    "a member more": ({"debug": True}, "unknown member"),
}


def refused(settings: Settings, forge: Callable[[Grant], bytes], words: str) -> None:
    with FakeKbs({str(PATH): SECRET}) as kbs:
        kbs.forge = forge
        with pytest.raises((VerificationError, ProtocolError), match=words) as caught:
            get(settings, kbs)
        assert len(kbs.asked("resource")) == 1
    for word in (EVIL[:8], SECRET[:8]):
        assert word.decode() not in f"{caught.value} {caught.value.mend}"


@pytest.mark.parametrize("forged", FORGERIES)
def test_a_forged_envelope_is_refused(settings: Settings, forged: str) -> None:
    """What the pinned key did not sign as a release is refused, and nothing of any secret is shown."""
    refused(settings, *FORGERIES[forged])


@pytest.mark.parametrize("other", GENUINE)
def test_a_release_of_something_else_is_refused(settings: Settings, other: str) -> None:
    """What the pinned key did sign, for another key, session, guest or evidence, is refused."""
    changes, words = GENUINE[other]
    refused(settings, lambda grant: pack(grant.secret, statement(grant, **changes)), words)


# --- what he has recorded ---


def recording(kept: list[bytes]) -> Callable[[Grant], bytes]:
    def forge(grant: Grant) -> bytes:
        kept.append(honest(grant))
        return kept[-1]

    return forge


def test_an_envelope_of_an_earlier_session_is_refused(settings: Settings) -> None:
    """A replay to the same guest: each attempt has its own session, nonce, key and evidence."""
    kept: list[bytes] = []
    with FakeKbs({str(PATH): SECRET}) as kbs:
        kbs.forge = recording(kept)
        assert get(settings, kbs) == SECRET
        kbs.forge = lambda _: kept[0]
        with pytest.raises(VerificationError, match="another session"):
            get(settings, kbs)


def test_an_earlier_secret_under_todays_statement_is_refused(settings: Settings) -> None:
    """Parts of two genuine envelopes do not make a third."""
    kept: list[bytes] = []
    with FakeKbs({str(PATH): SECRET + b"1"}) as kbs:
        kbs.forge = recording(kept)
        get(settings, kbs)
        kbs.keys[str(PATH)] = SECRET + b"2"
        kbs.forge = lambda grant: pack(unpack(kept[0])[0], statement(grant))
        with pytest.raises(VerificationError, match="signed for"):
            get(settings, kbs)


def test_the_cookie_of_the_answer_does_not_choose_the_session(settings: Settings) -> None:
    """A session's name that comes with the key comes too late: the one that we asked under counts."""
    other = "f" * 32
    with FakeKbs({str(PATH): SECRET}) as kbs:

        def renamed(grant: Grant) -> bytes:
            kbs.cookie = other
            return pack(grant.secret, statement(grant, session=envelope.digest(other.encode())))

        kbs.forge = renamed
        with pytest.raises(VerificationError, match="another session"):
            get(settings, kbs)


def test_a_delayed_envelope_is_refused(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that was held back until it expired is refused, by a clock that no network sets."""
    with FakeKbs({str(PATH): SECRET}) as kbs:
        clock = iter((5_000, 5_000 + envelope.MAX_LIFETIME_MS + 60_000))
        monkeypatch.setattr(client, "_now_ms", lambda: next(clock))
        with pytest.raises(VerificationError, match="expired"):
            get(settings, kbs)
        clock = iter((5_000, 5_000 + envelope.MAX_LIFETIME_MS))
        assert get(settings, kbs) == SECRET


# --- older versions ---


def test_an_older_version_is_refused(settings: Settings) -> None:
    """A genuine release of version 2 is none where 3 is the least."""
    with FakeKbs({str(PATH): SECRET}) as kbs:
        kbs.versions[str(PATH)] = 2
        assert get(settings, kbs, at_least=2) == SECRET
        with pytest.raises(VerificationError, match="older version"):
            get(settings, kbs, at_least=3)


def test_a_version_that_was_seen_is_the_least(settings: Settings, tmp_path: Path) -> None:
    """Where versions are remembered, an older one than the newest so far is refused, and other keys are not touched."""
    settings = settings._replace(versions=str(tmp_path / "versions.json"))
    with FakeKbs({str(PATH): SECRET}) as kbs:
        for version in (2, 5, 5):
            kbs.versions[str(PATH)] = version
            assert get(settings, kbs) == SECRET
        kbs.versions[str(PATH)] = 4
        with pytest.raises(VerificationError, match="older version"):
            get(settings, kbs)
        assert get(settings._replace(versions=""), kbs) == SECRET
    assert json.loads((tmp_path / "versions.json").read_bytes()) == {str(PATH): 5}


def test_a_key_whose_version_cannot_be_remembered_is_not_used(settings: Settings, tmp_path: Path) -> None:
    """What would let an older key in the next time fails now, and the key is wiped."""
    held: list[bytearray] = []
    settings = settings._replace(versions=str(tmp_path / "none" / "versions.json"))
    with FakeKbs({str(PATH): SECRET}) as kbs, pytest.MonkeyPatch.context() as patch:
        made = client.opened
        patch.setattr(client, "opened", lambda *a, **k: (got := made(*a, **k), held.append(got.secret))[0])
        with pytest.raises(ConfigError, match="cannot be written"):
            get(settings, kbs)
    assert held == [bytearray(len(SECRET))]


def test_a_damaged_memory_stops_before_anything_is_asked(settings: Settings, tmp_path: Path) -> None:
    """Versions that cannot be read are not taken for none."""
    (tmp_path / "versions.json").write_text("{")
    with FakeKbs({str(PATH): SECRET}) as kbs:
        with pytest.raises(ConfigError, match="damaged"):
            get(settings._replace(versions=str(tmp_path / "versions.json")), kbs)
        assert kbs.received == []


# --- whose word is taken ---


def test_without_pinned_keys_nothing_is_asked(settings: Settings, tmp_path: Path) -> None:
    """No file, an empty set, no JSON: an error that says what mends it, and no broker hears of this guest."""
    (tmp_path / "empty").write_text('{"keys":[]}')
    (tmp_path / "broken").write_text("{")
    with FakeKbs({str(PATH): SECRET}) as kbs:
        for name in ("none", "empty", "broken", ""):
            with pytest.raises(ConfigError) as caught:
                get(settings._replace(broker_keys=str(tmp_path / name) if name else ""), kbs)
            assert "signing.pub.json" in (caught.value.mend or "")
        assert kbs.received == []


def test_two_pinned_keys_bridge_a_change(settings: Settings, tmp_path: Path) -> None:
    """With old and new key pinned the agent takes the word of either, and then of the new one alone."""
    both, new = tmp_path / "both", tmp_path / "new"
    both.write_text(json.dumps({"keys": [SIGNER.jwk, MALLORY.jwk]}))
    new.write_text(json.dumps(MALLORY.jwks()))
    with FakeKbs({str(PATH): SECRET}) as kbs:
        assert get(settings._replace(broker_keys=str(both)), kbs) == SECRET
        with pytest.raises(VerificationError, match="not signed by a pinned key"):
            get(settings._replace(broker_keys=str(new)), kbs)
        kbs.forge = lambda grant: pack(grant.secret, statement(grant, MALLORY))
        for file in (both, new):
            assert get(settings._replace(broker_keys=str(file)), kbs) == SECRET


def test_only_a_switch_takes_plain_answers(settings: Settings) -> None:
    """With unsafe_plain_kbs the key of another KBS is taken as it comes, and no envelope is asked for."""
    plain = settings._replace(unsafe_plain_kbs=True, broker_keys="/nonexistent")
    with FakeKbs({str(PATH): SECRET}) as kbs:
        assert get(plain, kbs) == SECRET
        assert kbs.asked("resource")[0].headers["accept"] == "application/json"


@pytest.mark.parametrize("demand", [{"at_least": 2}, {"versions": "/var/versions.json"}])
def test_a_plain_answer_has_no_version(settings: Settings, demand: dict[str, Any]) -> None:
    """What is demanded of a version cannot be had with unsafe_plain_kbs, and is not passed over."""
    versions = demand.pop("versions", "")
    with FakeKbs({str(PATH): SECRET}) as kbs:
        with pytest.raises(ConfigError, match="has no version"):
            get(settings._replace(unsafe_plain_kbs=True, versions=versions), kbs, **demand)
        assert kbs.received == []


def test_a_broker_without_envelopes_is_passed_over(settings: Settings) -> None:
    """A plain answer is an error of that broker alone: the next one is asked, and the error names the switch."""
    with FakeKbs({str(PATH): EVIL}) as plain, FakeKbs({str(PATH): SECRET}) as good:
        plain.forge = lambda grant: grant.secret
        with pytest.raises(ProtocolError, match="no release envelope") as caught:
            get(settings, plain)
        assert "unsafe_plain_kbs" in (caught.value.mend or "")
        with SnpAttester(settings, Deadline(10), FakeKernel()) as attester:
            both = settings._replace(brokers=(plain.url, good.url))
            assert fetch(both, attester, PATH, Deadline(10)).secret == SECRET


# --- the ticket ---


@pytest.mark.parametrize("ticket", [None, "Xk3-ticket"])
def test_a_ticket_goes_with_the_request(settings: Settings, ticket: str | None) -> None:
    """It is in /auth and in no other message, header or path."""
    with FakeKbs({str(PATH): SECRET}) as kbs:
        assert get(settings, kbs, ticket=ticket) == SECRET
        auth, *others = kbs.received
    assert Request.from_bytes(auth.body).ticket == ticket
    assert "Xk3" not in repr((auth.path, auth.headers, others))


def test_a_key_in_words_is_none(settings: Settings) -> None:
    """What the agent holds between answer and use shows no key."""
    with FakeKbs({str(PATH): SECRET}) as kbs, pytest.MonkeyPatch.context() as patch:
        seen: list[str] = []
        made = client.opened
        patch.setattr(client, "opened", lambda *a, **k: (got := made(*a, **k), seen.append(repr(got)))[0])
        get(settings, kbs)
    assert seen == ["Opened(version=1)"]


def test_refusals_are_our_errors(settings: Settings) -> None:
    """A refusal of the broker reaches the agent as before, whatever it accepts."""
    with FakeKbs({}) as kbs, pytest.raises(RoomkeyError, match="does not release"):
        get(settings, kbs)
