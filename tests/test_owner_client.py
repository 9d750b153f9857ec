# SPDX-License-Identifier: Apache-2.0
"""Owners' identities and signed requests, against a small TLS server that answers what it is told to."""

from __future__ import annotations

import hashlib
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from broker import owner_client, owner_identity
from broker.cli.pki import certificate_pem, key_pem, make_ca, make_server
from broker.owner_client import OwnerClient, path_of, sign_request
from broker.owner_identity import Identity, create, endpoint, load, public_file
from keys import b64
from keys.errors import (
    ConfigError,
    Conflict,
    EndorsementError,
    NotFound,
    ProtocolError,
    RoomkeyError,
    Unauthorized,
    Unavailable,
    VerificationError,
)

NOW = 1_800_000_000_000


class Server:
    """Answers every request with `status` and `answer`, and remembers the last request."""

    def __init__(self, folder: Path, *, host: str = "127.0.0.1", tls_1_2: bool = False) -> None:
        ca, ca_key = make_ca("Test", datetime.now(UTC))
        certificate, key = make_server(ca, ca_key, [host], datetime.now(UTC))
        self.ca_pem = certificate_pem(ca)
        (folder / "server.pem").write_bytes(certificate_pem(certificate) + key_pem(key))
        self.status, self.answer, self.headers = 200, b"{}", {}
        self.seen: dict[str, Any] = {}
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                server.seen = {"method": self.command, "path": self.path, "body": body, "headers": dict(self.headers)}
                self.send_response(server.status)
                for name, value in server.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(server.answer)))
                self.end_headers()
                self.wfile.write(server.answer)

            def __getattr__(self, name: str) -> Callable[[], None]:
                if not name.startswith("do_"):
                    raise AttributeError(name)
                return self._serve

            def log_message(self, *args: object) -> None:
                pass

        self.httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "server.pem")
        if tls_1_2:
            context.maximum_version = ssl.TLSVersion.TLSv1_2
        self.httpd.socket = context.wrap_socket(self.httpd.socket, server_side=True)
        self.httpd.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.url = f"https://127.0.0.1:{self.httpd.server_address[1]}"


@contextmanager
def running(folder: Path, **settings: Any) -> Iterator[Server]:
    server = Server(folder, **settings)
    thread = threading.Thread(target=server.httpd.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.httpd.shutdown()
        thread.join()
        server.httpd.server_close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with running(tmp_path) as started:
        yield started


@pytest.fixture
def ca_pem() -> bytes:
    return certificate_pem(make_ca("Test", datetime.now(UTC))[0])


def identity_for(folder: Path, broker: str, ca_pem: bytes | None, algorithm: str = "ed25519") -> Identity:
    return create(
        folder / "id" / "identity.toml", owner="acme", broker=broker, audience="aud", ca_pem=ca_pem, algorithm=algorithm
    )


@contextmanager
def client_of(identity: Identity) -> Iterator[OwnerClient]:
    client = OwnerClient(identity)
    try:
        yield client
    finally:
        client.close()


@pytest.mark.parametrize(("algorithm", "alg"), [("ed25519", "EdDSA"), ("es256", "ES256")])
def test_a_request_is_signed_for_this_method_path_and_body_alone(
    tmp_path: Path, ca_pem: bytes, algorithm: str, alg: str
) -> None:
    """The token names the broker, the method, the path and the body's hash, and its key by RFC 7638 thumbprint."""
    identity = identity_for(tmp_path, "https://broker.example", ca_pem, algorithm)
    header = sign_request(
        identity, method="PUT", path="/v1/x?y=1", body=b"{}", now=NOW, random=lambda size: bytes(range(size))
    )
    scheme, _, token = header.partition(" ")
    claims = jwt.decode(
        token,
        identity.key.public_key(),
        algorithms=[alg],
        audience="aud",
        options={"verify_exp": False, "verify_iat": False},
    )
    assert scheme == "Bearer"
    assert jwt.get_unverified_header(token) == {"alg": alg, "typ": "roomkey-owner+jwt", "kid": identity.kid}
    assert claims == {
        "iss": "acme",
        "aud": "aud",
        "iat": NOW // 1000,
        "exp": NOW // 1000 + 60,
        "jti": b64.url(bytes(range(16))),
        "htm": "PUT",
        "htu": "/v1/x?y=1",
        "sha256": b64.url(hashlib.sha256(b"{}").digest()),
    }


@pytest.mark.parametrize("algorithm", owner_identity.ALGORITHMS)
def test_an_identity_survives_its_files(tmp_path: Path, ca_pem: bytes, algorithm: str) -> None:
    """What `create` wrote, `load` reads; the key is readable by its owner alone and never in the repr."""
    made = identity_for(tmp_path, "https://broker.example:8443", ca_pem, algorithm)
    path = tmp_path / "id" / "identity.toml"
    again = load(path)
    assert (again.owner, again.broker, again.audience, again.jwk) == (made.owner, made.broker, made.audience, made.jwk)
    assert path.with_suffix(".key").stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert json.loads(public_file(path).read_text()) == made.jwk
    assert again.ca_file is not None
    assert again.ca_file.read_bytes() == ca_pem
    assert "PrivateKey" not in repr(again)


def test_an_identity_is_never_overwritten(tmp_path: Path, ca_pem: bytes) -> None:
    """A second `create` in the same place is refused and leaves the first key as it was."""
    identity_for(tmp_path, "https://broker.example", ca_pem)
    before = (tmp_path / "id" / "identity.key").read_bytes()
    with pytest.raises(Conflict, match="identity already"):
        identity_for(tmp_path, "https://broker.example", ca_pem)
    assert (tmp_path / "id" / "identity.key").read_bytes() == before


def test_an_identity_that_cannot_be_written_is_an_error_of_ours(tmp_path: Path, ca_pem: bytes) -> None:
    """A file where the folder should be is a ConfigError."""
    (tmp_path / "id").write_text("")
    with pytest.raises(ConfigError, match="cannot write"):
        identity_for(tmp_path, "https://broker.example", ca_pem)


@pytest.mark.parametrize(
    ("owner", "broker", "pem", "message"),
    [
        ("a/b", "https://b", b"", "owner's name"),
        ("", "https://b", b"", "owner's name"),
        ("acme", "https://b", None, "CA certificate alone"),
        ("acme", "https://b", b"nonsense", "no PEM certificate"),
        ("acme", "http://b", None, "loopback"),
        ("acme", "http://localhost", None, "loopback"),
        ("acme", "ftp://b", None, "broker's URL"),
        ("acme", "https://b:x", None, "broker's URL"),
        ("acme", "https://b/path", None, "broker's URL"),
        ("acme", "https://b?x=1", None, "broker's URL"),
        ("acme", "https://u:p@b", None, "broker's URL"),
        ("acme", "https://", None, "broker's URL"),
    ],
)
def test_an_identity_needs_a_name_an_exact_url_and_a_ca(
    tmp_path: Path, ca_pem: bytes, owner: str, broker: str, pem: bytes | None, message: str
) -> None:
    """Nothing is made from a bad name, a URL that is more than host and port, or without a CA to pin."""
    with pytest.raises(ConfigError, match=message):
        create(tmp_path / "i.toml", owner=owner, broker=broker, audience="a", ca_pem=ca_pem if pem == b"" else pem)
    assert list(tmp_path.iterdir()) == []


def test_urls_name_scheme_host_and_port() -> None:
    """Default ports and loopback plain HTTP, version 6 too."""
    assert endpoint("https://broker.example") == ("https", "broker.example", 443)
    assert endpoint("https://[2001:db8::1]:8443/") == ("https", "2001:db8::1", 8443)
    assert endpoint("http://127.0.0.1") == ("http", "127.0.0.1", 80)
    assert endpoint("http://[::1]:8080") == ("http", "::1", 8080)


def test_the_identity_is_looked_for_where_users_keep_settings() -> None:
    """ROOMKEY_IDENTITY, then XDG_CONFIG_HOME, then ~/.config."""
    find = owner_identity.default_path
    assert find({"ROOMKEY_IDENTITY": "/x/i.toml", "HOME": "/h"}) == Path("/x/i.toml")
    assert find({"XDG_CONFIG_HOME": "/c", "HOME": "/h"}) == Path("/c/roomkey/identity.toml")
    assert find({"HOME": "/h"}) == Path("/h/.config/roomkey/identity.toml")


def _rewrite(path: Path, change: Callable[[str], str]) -> None:
    path.write_text(change(path.read_text()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: "owner = ", "not TOML"),
        (lambda _: "\udc80", "not TOML"),
        (lambda text: text + 'extra = "x"\n', "unknown setting.*extra"),
        (lambda text: text.replace('audience = "aud"\n', ""), "lacks a setting.*audience"),
        (lambda text: text.replace('"aud"', "7"), "every setting is a string"),
        (lambda text: text.replace('ca_file = "identity.ca.pem"\n', ""), "CA certificate alone"),
        (lambda text: text.replace("identity.key", "missing.key"), "cannot read the owner's key"),
        (lambda text: text.replace("identity.key", "identity.toml"), "not an unencrypted PEM"),
        (lambda text: text.replace("identity.key", "other.key"), "another kind"),
    ],
)
def test_a_bad_identity_file_is_named(
    tmp_path: Path, ca_pem: bytes, change: Callable[[str], str], message: str
) -> None:
    """Each defect of an identity file is a ConfigError that says what is wrong."""
    identity_for(tmp_path, "https://broker.example", ca_pem)
    path = tmp_path / "id" / "identity.toml"
    other = path.with_name("other.key")
    other.write_bytes(key_pem(ec.generate_private_key(ec.SECP384R1())))
    other.chmod(0o600)
    path.write_bytes(change(path.read_text()).encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match=message):
        load(path)


def test_a_missing_or_unreadable_identity_says_how_to_make_one(tmp_path: Path) -> None:
    """Without an identity the mend is the command that makes it."""
    with pytest.raises(ConfigError) as missing:
        load(tmp_path / "none.toml")
    assert "roomkey identity new" in (missing.value.mend or "")
    with pytest.raises(ConfigError, match="cannot read the identity"):
        load(tmp_path)


def test_a_key_that_others_can_read_is_refused(tmp_path: Path, ca_pem: bytes) -> None:
    """A group-readable private key is not used, and the mend is the chmod."""
    identity_for(tmp_path, "https://broker.example", ca_pem)
    key = tmp_path / "id" / "identity.key"
    key.chmod(0o640)
    with pytest.raises(ConfigError, match="read by others") as refused:
        load(tmp_path / "id" / "identity.toml")
    assert refused.value.mend == f"chmod 600 {key}"


def test_a_key_behind_a_link_is_refused(tmp_path: Path, ca_pem: bytes) -> None:
    """A symbolic link in the key's place is not followed."""
    identity_for(tmp_path, "https://broker.example", ca_pem)
    key = tmp_path / "id" / "identity.key"
    key.rename(tmp_path / "elsewhere.key")
    key.symlink_to(tmp_path / "elsewhere.key")
    with pytest.raises(ConfigError, match="cannot read the owner's key"):
        load(tmp_path / "id" / "identity.toml")


def test_calls_travel_signed_and_answers_come_back(tmp_path: Path, server: Server) -> None:
    """Method, path, body and signature arrive over TLS 1.3; the answer's JSON is handed back."""
    server.answer = b'{"version":2}'
    with client_of(identity_for(tmp_path, server.url, server.ca_pem)) as client:
        assert client.call("PUT", path_of("keys", "a b", 3), {"why": "é"}) == {"version": 2}
        assert server.seen["path"] == "/v1/keys/a%20b/3"
        assert server.seen["body"] == '{"why":"é"}'.encode()
        assert server.seen["headers"]["Authorization"].startswith("Bearer ")
        server.answer = b""
        assert client.call("DELETE", path_of("x")) is None
        assert "Content-Type" not in server.seen["headers"]


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (404, "not-found", NotFound),
        (409, "conflict", Conflict),
        (401, "unauthorized", Unauthorized),
        (422, "endorsement", EndorsementError),
        (400, "protocol", ProtocolError),
        (503, "unavailable", Unavailable),
        (418, "teapot", ProtocolError),
        (500, "boom", Unavailable),
    ],
)
def test_errors_come_back_as_what_they_were(
    tmp_path: Path, server: Server, status: int, code: str, kind: type[RoomkeyError]
) -> None:
    """The broker's error code chooses the class; cause, expected, found and mend come along."""
    server.status = status
    server.answer = json.dumps(
        {"error": {"code": code, "message": "m", "expected": "e", "found": None, "mend": "do"}}
    ).encode()
    with client_of(identity_for(tmp_path, server.url, server.ca_pem)) as client, pytest.raises(kind) as raised:
        client.call("GET", "/v1/x")
    assert type(raised.value) is kind
    assert (raised.value.message, raised.value.expected, raised.value.found, raised.value.mend) == (
        "m",
        "e",
        None,
        "do",
    )


@pytest.mark.parametrize(
    ("status", "answer", "kind"),
    [
        (302, b"", ProtocolError),
        (400, b"<html>", ProtocolError),
        (502, b"<html>", Unavailable),
        (400, b"[]", ProtocolError),
        (400, b'{"error":"x"}', ProtocolError),
        (400, b'{"error":{}}', ProtocolError),
        (200, b'{"a":1,"a":2}', ProtocolError),
    ],
)
def test_answers_that_are_none_of_ours_are_errors_of_ours(
    tmp_path: Path, server: Server, status: int, answer: bytes, kind: type[RoomkeyError]
) -> None:
    """Redirects are not followed, and neither HTML nor odd JSON gets further than one clear error."""
    server.status, server.answer = status, answer
    server.headers = {"Location": "/elsewhere"}
    with client_of(identity_for(tmp_path, server.url, server.ca_pem)) as client, pytest.raises(kind):
        client.call("GET", "/v1/x")
    assert server.seen["path"] == "/v1/x"


def test_an_endless_answer_is_cut_off(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than the limit is read."""
    monkeypatch.setattr(owner_client, "MAX_ANSWER_BYTES", 64)
    server.answer = b'"' + b"x" * 100 + b'"'
    with (
        client_of(identity_for(tmp_path, server.url, server.ca_pem)) as client,
        pytest.raises(ProtocolError, match="too long"),
    ):
        client.call("GET", "/v1/x")


def test_another_ca_is_refused(tmp_path: Path, server: Server, ca_pem: bytes) -> None:
    """A broker whose certificate the pinned CA did not issue gets no request."""
    with (
        client_of(identity_for(tmp_path, server.url, ca_pem)) as client,
        pytest.raises(VerificationError, match="TLS certificate"),
    ):
        client.call("GET", "/v1/x")
    assert server.seen == {}


def test_another_name_is_refused(tmp_path: Path) -> None:
    """The certificate must be for the host in the URL."""
    with running(tmp_path, host="other.example") as other:
        with (
            client_of(identity_for(tmp_path, other.url, other.ca_pem)) as client,
            pytest.raises(VerificationError, match="TLS certificate"),
        ):
            client.call("GET", "/v1/x")
        assert other.seen == {}


def test_tls_below_1_3_is_refused(tmp_path: Path) -> None:
    """A server that offers TLS 1.2 at most is not talked to."""
    with running(tmp_path, tls_1_2=True) as old:
        with client_of(identity_for(tmp_path, old.url, old.ca_pem)) as client, pytest.raises(VerificationError):
            client.call("GET", "/v1/x")
        assert old.seen == {}


def test_a_broker_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    """A closed port is Unavailable, with a mend."""
    with (
        client_of(identity_for(tmp_path, "http://127.0.0.1:1", None)) as client,
        pytest.raises(Unavailable, match="does not answer"),
    ):
        client.call("GET", "/v1/x")


def test_a_ca_file_that_went_away_is_named(tmp_path: Path, ca_pem: bytes) -> None:
    """An unusable CA file is a ConfigError, not a connection without one."""
    identity = identity_for(tmp_path, "https://broker.example", ca_pem)
    assert identity.ca_file is not None
    identity.ca_file.write_text("gone")
    with pytest.raises(ConfigError, match="CA certificate"):
        OwnerClient(identity)
