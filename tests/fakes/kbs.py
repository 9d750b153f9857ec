# SPDX-License-Identifier: Apache-2.0
"""A key broker for the agent's tests: right unless a script says otherwise, and able to misbehave below HTTP.

It hands out keys to whoever quotes its nonce, or shows an SNP report over it; it judges nothing else. Who asks for a
release envelope gets one, signed by `SIGNER`, which `pin` writes down for agents.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import socket
import ssl
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Self

from cryptography.hazmat.primitives.asymmetric import ec

from agent.tpm2_marshal import read_quote
from broker.signing import Signer
from broker.verifiers.tpm_credential import make_challenge
from keys import b64, binding, envelope, jwe, strictjson
from keys.envelope import Release
from keys.jwk import TeePubkey, thumbprint
from keys.messages import Attestation, Challenge, Request, TpmCredential
from keys.tee import Tee

ERRORS = "https://github.com/confidential-containers/kbs/errors/"

SIGNER = Signer(ec.generate_private_key(ec.SECP256R1()))

Script = bytes | Callable[[socket.socket], object]  # raw bytes to send, or what to do with the connection


class Received(NamedTuple):
    """One request. `what` is the first segment after /kbs/v0."""

    method: str
    what: str
    path: str
    headers: dict[str, str]
    body: bytes


class Grant(NamedTuple):
    """A key on its way to a guest: the secret, what the broker would sign, and what the key is wrapped to."""

    secret: bytes
    release: Release
    tee_pubkey: TeePubkey


Forge = Callable[[Grant], bytes]


class _Session:
    def __init__(self, name: str) -> None:
        self.name = name
        self.nonce = b64.std(os.urandom(32))
        self.challenged_at = time.time_ns() // 1_000_000
        self.activation: bytes | None = None
        self.key: TeePubkey | None = None
        self.evidence = ""


class FakeKbs:
    """`keys`: path -> bytes, `versions` of those that are not 1, `volumes` the pins. `script["attest"]` is played, one
    a request, before the right answers. `forge` makes what is wrapped to the guest's key: a man in the middle can wrap
    whatever he likes.
    """

    def __init__(self, keys: dict[str, bytes], tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> None:
        self.keys = keys
        self.versions: dict[str, int] = {}
        self.volumes: dict[str, str] = {}
        self.forge: Forge = honest
        self.cookie = ""  # that goes with the key
        self.script: dict[str, list[Script]] = defaultdict(list)
        self.received: list[Received] = []
        self.connections = 0
        self._sessions: dict[str, _Session] = {}
        self._tls = tls
        self._listener = socket.create_server((host, 0))
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        port = self._listener.getsockname()[1]
        self.url = f"{'http' if tls is None else 'https'}://{host}:{port}"

    def __enter__(self) -> Self:
        self._spawn(self._accept)
        return self

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._open:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)

    def asked(self, what: str) -> list[Received]:
        """The requests of one kind."""
        return [request for request in self.received if request.what == what]

    def _spawn(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(sock)
            self._spawn(self._serve, sock)

    def _serve(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            connection = sock if self._tls is None else self._tls.wrap_socket(sock, server_side=True)
            with connection, connection.makefile("rb") as stream:
                while request := _read(stream):
                    self.received.append(request)
                    scripts = self.script[request.what]
                    answer = scripts.pop(0) if scripts else self._answer(request)
                    if callable(answer):
                        answer(connection)
                        return
                    connection.sendall(answer)

    def _answer(self, request: Received) -> bytes:
        if request.what == "auth":
            return self._auth(request)
        session = self._sessions.get(request.headers.get("cookie", "").removeprefix("kbs-session-id="))
        if session is None:
            return refusal(401, "TokenNotFound", "no session")
        if request.what == "attest":
            return _attest(session, request)
        if session.key is None:
            return refusal(401, "TokenNotFound", "not attested")
        path = request.path.removeprefix("/kbs/v0/resource/")
        if path not in self.keys:
            return refusal(404, "PluginInternalError", "Plugin internal error")
        plaintext = self.keys[path]
        if request.headers["accept"] == envelope.MEDIA_TYPE:
            plaintext = self.forge(self._grant(path, session, session.key))
        cookie = f"Set-Cookie: kbs-session-id={self.cookie}\r\n" if self.cookie else ""
        return answer(200, jwe.seal(plaintext, session.key, activation=session.activation), cookie)

    def _grant(self, path: str, session: _Session, key: TeePubkey) -> Grant:
        now = time.time_ns() // 1_000_000
        release = Release(
            key=path,
            version=self.versions.get(path, 1),
            session=hashlib.sha256(session.name.encode()).hexdigest(),
            nonce=session.nonce,
            tee_pubkey=thumbprint(key.members),
            decision="d-" + 20 * "b",
            evidence=session.evidence,
            image="debian@1",
            rule=1,
            volume=self.volumes.get(path),
            format=False,
            also=None,
            challenged_at=session.challenged_at,
            released_at=now,
            expires_at=now + envelope.MAX_LIFETIME_MS,
            sha256=envelope.digest(self.keys[path]),
        )
        return Grant(self.keys[path], release, key)

    def _auth(self, request: Received) -> bytes:
        asked, name = Request.from_bytes(request.body), os.urandom(16).hex()
        session = _Session(name)
        credential = None
        if asked.tpm is not None:
            session.activation = os.urandom(32)
            credential = TpmCredential(*make_challenge(asked.tpm._asdict(), session.activation, os.urandom))
        self._sessions[name] = session
        cookie = f"Set-Cookie: kbs-session-id={name}; Path=/kbs/v0; HttpOnly\r\n"
        return answer(200, Challenge(session.nonce, credential).to_json(), cookie)


def honest(grant: Grant) -> bytes:
    """The envelope that a broker makes of it."""
    return envelope.pack(grant.secret, SIGNER.sign(grant.release.to_json(), envelope.RELEASE))


def pin(directory: Path) -> str:
    """The file of pinned keys for an agent that takes the word of `SIGNER`."""
    file = directory / "broker-keys.json"
    file.write_bytes(strictjson.compact(SIGNER.jwks()))
    return str(file)


def answer(status: int, value: Any, headers: str = "") -> bytes:
    """An HTTP answer with a JSON body."""
    return raw(status, strictjson.compact(value), headers)


def raw(status: int, body: bytes, headers: str = "") -> bytes:
    return f"HTTP/1.1 {status} Status\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body


def refusal(status: int, kind: str, detail: str, headers: str = "") -> bytes:
    return answer(status, {"type": ERRORS + kind, "detail": detail}, headers)


def _attest(session: _Session, request: Received) -> bytes:
    message = Attestation.from_bytes(request.body)
    evidence = message.primary_evidence
    session.evidence = hashlib.sha256(strictjson.canonical(evidence)).hexdigest()
    report_data = binding.report_data(Tee.TPM, session.nonce, message.tee_pubkey.members, message.additional_evidence)
    if report := evidence.get("outblob") or evidence.get("report"):
        if message.nonce != session.nonce or base64.b64decode(report)[0x50:0x90] != report_data.ljust(64, b"\0"):
            return refusal(403, "AttestationError", "refused: decision d-" + 20 * "a")
        session.key = message.tee_pubkey
        return answer(200, {"token": "e30.e30.e30"})
    bound = binding.tpm_qualifying_data(report_data)
    quote = read_quote(b64.from_std(evidence["attest"], name="attest", max_bytes=1024))
    proof = None
    if session.activation is not None:
        proof = b64.std(binding.activation_proof(binding.activation_proof_key(session.activation), bound))
    if message.nonce != session.nonce or quote.extra_data != bound or evidence.get("activation") != proof:
        return refusal(403, "AttestationError", "refused: decision d-" + 20 * "a")
    session.key = message.tee_pubkey
    return answer(200, {"token": "e30.e30.e30"})


def _read(stream: Any) -> Received | None:
    """One request, or None at the end of the connection."""
    first = stream.readline().split()
    if len(first) != 3:
        return None
    headers = {}
    while line := stream.readline().strip():
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.strip().lower()] = value.strip()
    method, path = first[0].decode(), first[1].decode()
    body = stream.read(int(headers.get("content-length", 0)))
    return Received(method, path.removeprefix("/kbs/v0/").partition("/")[0], path, headers, body)
