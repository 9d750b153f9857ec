# SPDX-License-Identifier: Apache-2.0
"""The application without a server: Flask's own client in front of a `House`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from werkzeug.test import TestResponse

from broker.app import create_app
from broker.config import Limits
from broker.owner_client import sign_request
from broker.owner_identity import Identity, OwnerKey, public_jwk
from broker.owners import parse_key, to_body
from broker.store.protocols import RecordKind
from keys.messages import Challenge, ResourcePath
from tests.fakes.boot import Boot
from tests.fakes.house import AUDIENCE, House, draft
from tests.fakes.tpm_guest import FakeTpm, Guest

COOKIE = "kbs-session-id"


class Owner:
    """An owner who signs what he asks for."""

    def __init__(self, front: Front, name: str, key: OwnerKey) -> None:
        self._front = front
        self.name = name
        self.identity = Identity(name, AUDIENCE, AUDIENCE, None, key)

    def send(self, method: str, path: str, body: Any = None, *, signed: dict[str, Any] | None = None) -> TestResponse:
        """`body`: bytes as they are, anything else as JSON. `signed` overwrites what is signed, not what is sent."""
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        request = {"method": method, "path": path, "body": data, "now": self._front.house.now} | (signed or {})
        header = sign_request(self.identity, random=os.urandom, **request)
        return self._front.send(method, path, data, {"Authorization": header})

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON of an answer that must be a success."""
        answer = self.send(method, path, body)
        assert answer.status_code in (200, 201), answer.data
        return answer.json


class Front:
    """The application of a `House` in `directory`."""

    def __init__(self, directory: Path, limits: Limits | None = None) -> None:
        self.house = House(directory)
        self.app = create_app(self.house.services, limits)

    def send(
        self, method: str, path: str, data: bytes | str | None = None, headers: dict[str, str] | None = None
    ) -> TestResponse:
        """One request of a client without a memory: cookies are sent by hand."""
        client = self.app.test_client(use_cookies=False)
        return client.open(path, method=method, data=data, headers=headers, base_url="https://broker.test")

    def owner(self, name: str, *, p256: bool = False) -> Owner:
        """A registered owner."""
        key: OwnerKey = ec.generate_private_key(ec.SECP256R1()) if p256 else ed25519.Ed25519PrivateKey.generate()
        self.house.put(RecordKind.OWNER, "", name, to_body([parse_key(public_jwk(key))]))
        return Owner(self, name, key)

    # --- guests ---

    def auth(self, guest: Guest, resource: str | None = None) -> tuple[str, Challenge]:
        """The cookie ("name=value") and the challenge."""
        path = None if resource is None else ResourcePath.parse(resource)
        answer = self.send("POST", "/kbs/v0/auth", json.dumps(guest.request(path).to_json()))
        assert answer.status_code == 200, answer.data
        return cookie_of(answer), Challenge.from_bytes(answer.data)

    def attest(self, guest: Guest, resource: str | None = None) -> tuple[str, str]:
        """Cookie and token."""
        cookie, challenge = self.auth(guest, resource)
        answer = self.answer(cookie, json.dumps(guest.attestation(challenge).to_json()))
        assert answer.status_code == 200, answer.data
        return cookie, answer.json["token"]

    def answer(self, cookie: str, body: bytes | str) -> TestResponse:
        return self.send("POST", "/kbs/v0/attest", body, {"Cookie": cookie})

    def fetch(
        self, path: str, *, cookie: str | None = None, token: str | None = None, accept: str | None = None
    ) -> TestResponse:
        headers = {} if cookie is None else {"Cookie": cookie}
        if accept is not None:
            headers["Accept"] = accept
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        return self.send("GET", f"/kbs/v0/resource/{path}", headers=headers)


def cookie_of(answer: TestResponse) -> str:
    return answer.headers["Set-Cookie"].partition(";")[0]


def booted(house: House, **kwargs: Any) -> FakeTpm:
    """A machine of the house's TPM maker, up and running."""
    tpm = FakeTpm(house.ca, **kwargs)
    tpm.boot(Boot())
    return tpm


def provision(front: Front, path: str, secret: bytes, tpm: FakeTpm) -> Owner:
    """An owner with a key at `path` that any certified machine gets which boots what `tpm` has booted."""
    owner = front.owner(ResourcePath.parse(path).owner)
    front.house.key(path, secret)
    front.house.image(owner.name, "debian", draft(tpm))
    front.house.rule(path, images=["debian"])
    return owner
