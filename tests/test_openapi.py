# SPDX-License-Identifier: Apache-2.0
"""The OpenAPI document: it says what the broker does, and everything that it does."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from broker.http import kbs_types
from broker.http.openapi import document
from broker.http.routes import ROUTES, Access
from keys.messages import Attestation, InitData, Request, ResourcePath
from keys.tee import Tee
from tests.fakes.front import Front, booted, provision
from tests.fakes.tpm_guest import FakeTpm, Guest

METHODS = {"get", "put", "post", "delete", "patch", "head", "options", "trace"}


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    front = Front(Path(tmp_path_factory.mktemp("openapi")))
    yield front
    front.house.store.close()


def operations() -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (method.upper(), path): operation
        for path, item in document()["paths"].items()
        for method, operation in item.items()
        if method in METHODS
    }


def test_every_route_has_its_entry() -> None:
    """Document and table have the same calls, each with the authorization that the table gives it."""
    schemes = {
        Access.PUBLIC: [],
        Access.GUEST: [],
        Access.SESSION: [["session"]],
        Access.SESSION_OR_BEARER: [["session"], ["token"]],
        Access.HOST: [],
        Access.OWNER: [["owner"]],
    }
    described = operations()
    assert described.keys() == {(route.method, route.path) for route in ROUTES}
    for route in ROUTES:
        operation = described[route.method, route.path]
        assert [list(entry) for entry in operation["security"]] == schemes[route.access]
        assert str(route.status) in operation["responses"]
        assert operation["operationId"] == route.name


def test_document_is_sound() -> None:
    """It is OpenAPI 3.1 with a name for every operation, and every reference and variable in it resolves."""
    whole = document()
    assert whole["openapi"].startswith("3.1.")
    assert {"title", "version"} <= whole["info"].keys()
    names = [operation["operationId"] for operation in operations().values()]
    assert len(set(names)) == len(names)
    for reference in re.findall(r'"\$ref": "([^"]+)"', json.dumps(whole)):
        assert reference.startswith("#/components/schemas/")
        assert reference.rpartition("/")[2] in whole["components"]["schemas"]
    for (_, path), operation in operations().items():
        declared = {entry["name"] for entry in operation.get("parameters", []) if entry["in"] == "path"}
        assert declared == set(re.findall(r"\{(\w+)\}", path))
        for requirement in operation["security"]:
            assert requirement.keys() <= whole["components"]["securitySchemes"].keys()


def test_it_is_served(front: Front) -> None:
    """Anybody can read it at /v1/openapi.json."""
    assert front.send("GET", "/v1/openapi.json").json == document()


def fits(value: object, kind: type[msgspec.Struct]) -> bool:
    """Whether a message is of its described type, and the type leaves nothing of it out."""
    return bool(msgspec.to_builtins(msgspec.convert(value, kind)) == value)


def test_guests_messages_are_as_described(front: Front) -> None:
    """What guest and broker really send each other is of the types in the document."""
    tpm = booted(front.house)
    provision(front, "acme/disk/root", b"secret", tpm)
    guest = Guest(tpm, declare=True)
    request = guest.request(ResourcePath("acme", "disk", "root"))
    assert fits(request.to_json(), kbs_types.AuthRequest)
    cookie, challenge = front.auth(guest)
    assert fits(challenge.to_json(), kbs_types.Challenge)
    message = guest.attestation(challenge)
    assert fits(message.to_json(), kbs_types.AttestRequest)
    answer = front.answer(cookie, json.dumps(message.to_json()))
    assert fits(answer.json, kbs_types.Token)
    assert fits(front.fetch("acme/disk/root", cookie=cookie).json, kbs_types.Jwe)
    assert fits(front.fetch("acme/disk/none", cookie=cookie).json, kbs_types.KbsError)
    assert fits(front.send("GET", "/.well-known/jwks.json").json, kbs_types.JwkSet)


def test_other_forms_of_guests_messages() -> None:
    """RSA keys, posted init-data and requests without extra parameters are described too."""
    guest = Guest(FakeTpm(), key=rsa.generate_private_key(65537, 2048))
    message = Attestation("nonce", guest.tee_pubkey, {"any": "thing"}, init_data=InitData("toml", "x = 1"))
    assert fits(message.to_json(), kbs_types.AttestRequest)
    assert fits(Request(Tee.TPM).to_json(), kbs_types.AuthRequest)
    assert fits({"version": "0.4.0", "tee": "tpm", "extra-params": ""}, kbs_types.AuthRequest)
    assert fits({"nonce": "x", "extra-params": ""}, kbs_types.Challenge)
