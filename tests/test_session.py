# SPDX-License-Identifier: Apache-2.0
"""Challenges: unguessable, bound to their session, and the store alone is not enough to take one over."""

import base64
import hashlib
import json
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from broker import session
from broker.store.protocols import Consumption
from keys.custody.local import LocalCustody
from keys.errors import ProtocolError
from keys.messages import Request, ResourcePath, TpmDeclaration
from keys.tee import Tee
from tests.fakes.house import House
from tests.fakes.tpm_guest import FakeTpm, Guest


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with House(tmp_path) as house:
        yield house


def test_challenges_are_32_random_bytes_and_never_the_same(house: House) -> None:
    """Nonce and session id come from the random source, in full length, and differ from each other every time."""
    issued = [session.issue(Request(Tee.TPM), house.services, now=house.now) for _ in range(200)]
    nonces = {one.challenge.nonce for one in issued}
    ids = {one.session_id for one in issued}
    assert len(nonces) == len(ids) == 200
    assert all(len(base64.b64decode(nonce, validate=True)) == 32 and len(nonce) == 44 for nonce in nonces)
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in ids)


def test_a_challenge_lives_as_long_as_configured(house: House) -> None:
    """It is good until just before its five minutes are over, and expired from then on."""
    one, other = (session.issue(Request(Tee.TPM), house.services, now=house.now) for _ in range(2))
    assert one.expires_at == house.now + 300_000
    name = session.store_name(one.session_id)
    assert house.store.consume_session(name, one.expires_at - 1)[0] is Consumption.JUDGE
    late = session.store_name(other.session_id)
    assert house.store.consume_session(late, other.expires_at)[0] is Consumption.EXPIRED


def test_the_store_never_sees_the_session_id(house: House, tmp_path: Path) -> None:
    """A session is kept under the hash of its id, so a reader of the store cannot take it over."""
    one = session.issue(Request(Tee.TPM, ResourcePath("acme", "disk", "root")), house.services, now=house.now)
    assert session.store_name(one.session_id) == hashlib.sha256(one.session_id.encode()).hexdigest()
    with closing(sqlite3.connect(tmp_path / "roomkey.db")) as connection:
        dump = "\n".join(connection.iterdump())
    assert one.challenge.nonce in dump
    assert one.session_id not in dump


@pytest.mark.parametrize("text", [None, "", "0" * 31, "0" * 33, "g" * 32, "A" * 32, "0" * 32 + "\n"])
def test_what_is_no_session_id_names_no_session(text: str | None) -> None:
    """Anything but 32 lower-case hex digits is not even looked up by its hash."""
    assert session.store_name(text) == ""


def test_a_tpm_gets_a_credential_that_only_it_opens(house: House) -> None:
    """A guest that declared its TPM gets this session's secret sealed to it, for an EC and for an RSA EK."""
    for rsa_ek in (False, True):
        tpm = FakeTpm(house.ca, rsa_ek=rsa_ek)
        session_id, challenge = house.challenge(Guest(tpm, declare=True))
        assert challenge.tpm is not None
        secret = tpm.activate(challenge.tpm)
        name = session.store_name(session_id)
        assert secret == session.activation_secret(house.custody, name, challenge.nonce)
        body = house.store.session(name)
        assert body is not None
        assert base64.b64encode(secret).decode() not in json.dumps(body)
        assert secret.hex() not in json.dumps(body)


def test_no_two_sessions_share_an_activation_secret(house: House) -> None:
    """Another session, another nonce, another broker: another secret each time."""
    secrets = {
        session.activation_secret(custody, name, nonce)
        for custody in (house.custody, LocalCustody(bytes(32)))
        for name in ("a" * 64, "b" * 64)
        for nonce in ("n" * 44, "m" * 44)
    }
    assert len(secrets) == 8
    assert all(len(secret) == 32 for secret in secrets)


def test_a_platform_without_a_verifier_gets_no_challenge(house: House) -> None:
    """What could not be judged later is refused at once, and no session is made."""
    with pytest.raises(ProtocolError, match="no verifier"):
        session.issue(Request(Tee.CSV), house.services, now=house.now)


def test_a_declaration_that_cannot_be_used_gets_no_challenge(house: House) -> None:
    """A TPM declaration with something else in the EK's place is refused before anything is stored."""
    tpm = FakeTpm(house.ca)
    for declaration in (
        TpmDeclaration(tpm.ak_public, tpm.ak_public, tpm.certificates),
        TpmDeclaration(b"", tpm.ek_public, tpm.certificates),
    ):
        with pytest.raises(ProtocolError, match="cannot be used"):
            session.issue(Request(Tee.TPM, None, declaration), house.services, now=house.now)
