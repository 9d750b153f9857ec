# SPDX-License-Identifier: Apache-2.0
"""The table of routes: nothing beside it, everything in it guarded as it says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.http.routes import ROUTES, Access, Route
from tests.fakes.front import Front

# Who may pass without an owner's signature. A change here is a change of the broker's promises.
OPEN = {
    ("POST", "/kbs/v0/auth"): Access.GUEST,
    ("POST", "/kbs/v0/attest"): Access.SESSION,
    ("GET", "/kbs/v0/resource/{owner}/{type}/{tag}"): Access.SESSION_OR_BEARER,
    ("POST", "/roomkey/v1/sev/launches"): Access.HOST,
    ("POST", "/roomkey/v1/sev/launches/{launch}/measurement"): Access.HOST,
    ("GET", "/healthz"): Access.PUBLIC,
    ("GET", "/readyz"): Access.PUBLIC,
    ("GET", "/.well-known/jwks.json"): Access.PUBLIC,
    ("GET", "/v1/openapi.json"): Access.PUBLIC,
}
OWNED = [route for route in ROUTES if route.access is Access.OWNER]
METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE")


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    front = Front(Path(tmp_path_factory.mktemp("routes")))
    yield front
    front.house.store.close()


def concrete(route: Route, owner: str = "acme") -> str:
    """The route's path with something in each variable."""
    values = {
        "owner": owner, "type": "disk", "tag": "root", "name": "thing", "version": "1", "id": "d-x",
        "launch": "0" * 32,
    }  # fmt: skip
    path = route.path
    for name, value in values.items():
        path = path.replace("{" + name + "}", value)
    return path


def test_application_is_the_table(front: Front) -> None:
    """Flask knows the table's routes and no others."""
    known = {(route.method, route.rule, route.name) for route in ROUTES}
    served = {
        (method, rule.rule, rule.endpoint)
        for rule in front.app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD"}
    }
    assert served == known
    assert len({route.name for route in ROUTES}) == len(ROUTES)


def test_open_routes_are_the_reviewed_list() -> None:
    """Every route but the nine in this file's list wants an owner's signature."""
    assert {(r.method, r.path): r.access for r in ROUTES if r.access is not Access.OWNER} == OPEN


@pytest.mark.parametrize("route", OWNED, ids=lambda route: f"{route.method} {route.path}")
def test_owners_route_without_a_signature(front: Front, route: Route) -> None:
    """No owner's route does anything for who does not sign, whatever the rest of the request is."""
    for headers in ({}, {"Authorization": "Bearer a.b.c"}, {"Authorization": "Basic YTpi"}):
        answer = front.send(route.method, concrete(route), b"rubbish", headers)
        assert answer.status_code == 401
        assert answer.json["error"]["code"] == "unauthorized"
        assert answer.json["error"]["mend"]


@pytest.mark.parametrize(
    "route", [route for route in OWNED if "{owner}" in route.path], ids=lambda route: f"{route.method} {route.path}"
)
def test_owners_route_of_another_owner(front: Front, route: Route) -> None:
    """What belongs to another owner looks like what is not there, on every route that names an owner."""
    bodies: dict[str, object] = {
        "put_key": {"key": "AAAA"},
        "put_rule": {"images": ["a"], "platforms": ["tpm"], "instances": ["any"]},
        "pin_volume": {"pin": "12" * 32},
        "put_recovery": {"passphrase": "A" * 44},
        "put_shadow": {"images": ["a"], "platforms": ["tpm"], "instances": ["any"]},
        "lint_candidate": {"images": ["a"], "platforms": ["tpm"], "instances": ["any"]},
        "try_rule": {"images": ["a"], "platforms": ["tpm"], "instances": ["any"]},
    }
    owner, other = front.owner("acme"), front.owner("globex")
    front.house.key("globex/disk/root", b"x")
    front.house.image("globex", "a", IMAGE)
    front.house.rule("globex/disk/root", images=["a"])
    lines = len(front.house.lines("globex"))
    seen = [owner.send(route.method, concrete(route, name), bodies.get(route.name)) for name in ("globex", "nobody")]
    assert [answer.status_code for answer in seen] == [404, 404]
    assert seen[0].data == seen[1].data
    assert len(front.house.lines("globex")) == lines
    assert other.call("GET", "/v1/keys/globex/disk/root")["versions"][-1]["state"] == "active"


IMAGE = 'platform = "tpm"\n[tpm]\nbank = "sha256"\n[tpm.pcrs]\n7 = "' + "ab" * 32 + '"\n'


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_other_methods(front: Front, route: Route) -> None:
    """A method that the table does not have for a path is no call, HEAD and OPTIONS included."""
    allowed = {other.method for other in ROUTES if other.path == route.path}
    for method in set(METHODS) - allowed:
        answer = front.send(method, concrete(route))
        if route.path.startswith(("/kbs/", "/roomkey/")):
            assert answer.status_code == 404
        else:
            assert answer.status_code == 405
            assert set(answer.headers["Allow"].split(", ")) == allowed


def test_paths_are_exact(front: Front) -> None:
    """No redirect, no slash more or less: what is signed is what is routed."""
    for path in ("/v1/keys/", "//v1/keys", "/v1//keys", "/V1/keys", "/", "/static/x", "/v1"):
        answer = front.send("GET", path)
        assert answer.status_code == 404
        assert answer.json["error"]["code"] == "not-found"
