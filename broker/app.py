# SPDX-License-Identifier: Apache-2.0
"""The broker put together: services out of a config, an application out of services."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from flask import Flask, Response, request
from werkzeug.exceptions import MethodNotAllowed

from broker import owners
from broker.claims import Trusted
from broker.config import Config, Limits
from broker.dossiers import Dossiers
from broker.endorsements.setup import amd_trusted, endorsement_service
from broker.files import read_certificates, read_file
from broker.http import errors
from broker.http.call import Call
from broker.http.edge import JSON, Edge
from broker.http.routes import ROUTES, Access, Route
from broker.services import Services
from broker.signing import load_signer
from broker.store import open_store
from broker.tokens import TokenSigner, load_signing_key
from broker.verifiers import sev_roots
from keys import strictjson
from keys.custody.local import LocalCustody
from keys.errors import ConfigError, ProtocolError, Unauthorized
from keys.tee import Tee


def create_app(services: Services, limits: Limits | None = None) -> Flask:
    """The application: the table of routes in front of `services`."""
    edge = Edge(services, limits or Limits())
    app = Flask("roomkey", static_folder=None, template_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = edge.limits.body_bytes
    app.url_map.merge_slashes = False  # no redirects: a signed path is the path
    for route in ROUTES:
        app.add_url_rule(
            route.rule,
            route.name,
            _view(route, edge),
            methods=[route.method],
            strict_slashes=True,
            provide_automatic_options=False,
        )
    errors.install(app)
    app.after_request(_no_store)
    return app


def build_services(config: Config) -> Services:
    """What `config` describes, opened. To be called in the process that uses it. Raises ConfigError, Unavailable."""
    custody = LocalCustody.from_files(config.custody.kek_file, config.custody.old_kek_files)
    tokens = TokenSigner(
        [_signing_key(path) for path in (config.token.key_file, *config.token.old_key_files)],
        issuer=config.issuer,
        audience=config.broker.audience,
        lifetime_s=config.token.lifetime_s,
    )
    signer = load_signer(config)
    amd = amd_trusted(config)
    trusted = {
        Tee.TPM: Trusted(
            roots=_certificates(config.tpm.ek_root_files), certificates=_certificates(config.tpm.ek_intermediate_files)
        ),
        Tee.SNP: amd,
        Tee.AZ_SNP_VTPM: amd,
    }
    store = open_store(config.store.url)
    return Services(
        store=store,
        custody=custody,
        tokens=tokens,
        signer=signer,
        dossiers=Dossiers(store, config.decisions.evidence_days),
        audience=config.broker.audience,
        trusted=trusted,
        endorsements=endorsement_service(config, store),
        sev_cas=sev_roots.built_in(),
        challenge_lifetime_ms=config.challenge.lifetime_s * 1000,
    )


def _view(route: Route, edge: Edge) -> Callable[..., Response]:
    handle = _owner_view(route, edge) if route.access is Access.OWNER else _open_view(route, edge)
    allowed = [other.method for other in ROUTES if other.path == route.path]

    def view(**params: str) -> Response:
        if request.method != route.method:  # Werkzeug adds HEAD to GET, and a HEAD must not release a key
            raise MethodNotAllowed(allowed)
        return handle(params)

    return view


def _no_store(response: Response) -> Response:
    response.headers["Cache-Control"] = "no-store"
    return response


def _open_view(route: Route, edge: Edge) -> Callable[[dict[str, str]], Response]:
    return lambda params: route.handler(edge, **params)


def _owner_view(route: Route, edge: Edge) -> Callable[[dict[str, str]], Response]:
    services = edge.services

    def handle(params: dict[str, str]) -> Response:
        body = edge.body()
        now = services.clock()
        who = owners.authenticate(
            request.headers.get("Authorization"),
            method=request.method,
            path=_signed_path(),
            body=body,
            store=services.store,
            audience=services.audience,
            now=now,
        )
        if who.role not in route.roles:
            raise Unauthorized(
                "this key may only propose images",
                expected="a key that may do everything",
                found=f"role {who.role}",
                mend="sign with another of the owner's keys, or let the operator register this one as such",
            )
        answer = route.handler(Call(services, who, now, params), _decode(route, body))
        return Response(msgspec.json.encode(answer), route.status, mimetype=JSON)

    return handle


def _signed_path() -> str:
    """Path and query as the owner must have signed them: what is signed is what is routed."""
    path, query = quote(request.path, safe="/"), request.query_string.decode("latin-1")
    return f"{path}?{query}" if query else path


def _decode(route: Route, body: bytes) -> msgspec.Struct | None:
    """The request's struct, or None where the route takes none. Raises ProtocolError."""
    if route.request is None:
        if body or request.args:
            raise ProtocolError("this request takes neither body nor query")
        return None
    value: Any
    if route.method == "GET":
        value = request.args.to_dict()
        if body or len(value) != len(list(request.args.items(multi=True))):
            raise ProtocolError("this request takes a query with every name once, and no body")
    elif request.args:
        raise ProtocolError("this request takes no query")
    else:
        value = strictjson.loads(body, name="the request", max_bytes=len(body)) if body else {}
    try:
        return msgspec.convert(value, route.request, strict=route.method != "GET")
    except msgspec.ValidationError as error:
        raise ProtocolError(f"the request is not what this call takes: {error}") from None


def _signing_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        return load_signing_key(read_file(path, private=True))
    except ConfigError as error:
        raise ConfigError(
            f"{path}: {error.message}", expected=error.expected, found=error.found, mend=error.mend
        ) from None


def _certificates(paths: tuple[Path, ...]) -> tuple[x509.Certificate, ...]:
    return tuple(certificate for path in paths for certificate in read_certificates(path))
