# SPDX-License-Identifier: Apache-2.0
"""An owner's requests to the broker's `/v1`: signed one by one, over TLS 1.3 to the pinned CA and nobody else.

Each request carries a JWT of one minute that names its method, path and the hash of its body, so a captured one can do
nothing else and nothing twice (see `broker.owners`). Redirects are not followed and no proxy is used.
"""

from __future__ import annotations

import hashlib
import os
import ssl
import time
from collections.abc import Callable
from typing import Any, Protocol
from urllib.parse import quote

import jwt
import urllib3
from urllib3.exceptions import HTTPError
from urllib3.exceptions import SSLError as Urllib3SSLError

from broker.owner_identity import Identity, endpoint
from broker.owners import TOKEN_TYPE
from keys import b64, strictjson
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

TOKEN_LIFETIME_S = 60
JTI_BYTES = 16
CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 30.0
MAX_ANSWER_BYTES = 8 * 1024 * 1024  # a page of decisions with their traces

_ERRORS: dict[str, type[RoomkeyError]] = {
    kind.code: kind
    for kind in (
        ProtocolError,
        VerificationError,
        EndorsementError,
        Unauthorized,
        NotFound,
        Conflict,
        ConfigError,
        Unavailable,
    )
}


class Caller(Protocol):
    """What the commands need of a client."""

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any: ...


def path_of(*segments: str | int) -> str:
    """`/v1/...` of `segments`, each quoted on its own."""
    return "/v1/" + "/".join(quote(str(segment), safe="") for segment in segments)


def sign_request(
    identity: Identity, *, method: str, path: str, body: bytes, now: int, random: Callable[[int], bytes]
) -> str:
    """The value of `Authorization` for one request. `path` includes the query; `now` is milliseconds since the
    epoch.
    """
    issued = now // 1000
    claims = {
        "iss": identity.owner,
        "aud": identity.audience,
        "iat": issued,
        "exp": issued + TOKEN_LIFETIME_S,
        "jti": b64.url(random(JTI_BYTES)),
        "htm": method,
        "htu": path,
        "sha256": b64.url(hashlib.sha256(body).digest()),
    }
    algorithm = "EdDSA" if identity.jwk["kty"] == "OKP" else "ES256"
    token = jwt.encode(claims, identity.key, algorithm, headers={"typ": TOKEN_TYPE, "kid": identity.kid})
    return f"Bearer {token}"


class OwnerClient:
    """One owner's connection to the broker, kept open between calls."""

    def __init__(
        self,
        identity: Identity,
        *,
        clock: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._identity = identity
        self._clock = clock
        self._random = random
        scheme, host, port = endpoint(identity.broker)
        timeout = urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=READ_TIMEOUT_S)
        self._pool = (
            urllib3.HTTPSConnectionPool(host, port, ssl_context=_tls(identity), timeout=timeout, retries=False)
            if scheme == "https"
            else urllib3.HTTPConnectionPool(host, port, timeout=timeout, retries=False)
        )

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """The JSON value that the broker answers to one signed request; None where it answers nothing.

        Raises the error that the broker named, Unavailable where it cannot be reached, VerificationError where its
        certificate is not the pinned CA's, ProtocolError where its answer is no answer of ours.
        """
        data = b"" if body is None else strictjson.compact(body)
        headers = {
            "Accept": "application/json",
            "Authorization": sign_request(
                self._identity, method=method, path=path, body=data, now=self._clock(), random=self._random
            ),
        }
        if body is not None:
            headers["Content-Type"] = "application/json"
        status, answer = self._exchange(method, path, data, headers)
        if 200 <= status < 300:
            return strictjson.loads(answer, name="the broker's answer", max_bytes=MAX_ANSWER_BYTES) if answer else None
        raise _error(status, answer)

    def close(self) -> None:
        self._pool.close()

    def _exchange(self, method: str, path: str, data: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
        try:
            response = self._pool.urlopen(
                method, path, body=data or None, headers=headers, redirect=False, preload_content=False
            )
            answer = response.read(MAX_ANSWER_BYTES + 1, decode_content=False)
            response.release_conn()
        except Urllib3SSLError as error:
            raise VerificationError(
                "the broker's TLS certificate is not good",
                expected=f"issued by {self._identity.ca_file} for the name in {self._identity.broker}",
                found=str(error)[:200],
                mend="compare the CA file with the one beside the broker's config; never go on without it",
            ) from None
        except (HTTPError, OSError) as error:
            raise Unavailable(
                f"the broker at {self._identity.broker} does not answer",
                found=str(error)[:200],
                mend="is it running (roomkey serve), and is the URL right (roomkey identity show)?",
            ) from None
        return response.status, answer


def _tls(identity: Identity) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks names and chains; holds no root but the one below
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(cafile=identity.ca_file)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError("cannot use the broker's CA certificate", found=f"{identity.ca_file}: {error}") from None
    return context


def _error(status: int, answer: bytes) -> RoomkeyError:
    """The broker's error as the class that it was there."""
    try:
        document = strictjson.loads(answer, name="the broker's answer", max_bytes=MAX_ANSWER_BYTES)
        error = document["error"]
        words = {name: str(error[name]) for name in ("expected", "found", "mend") if error.get(name)}
        kind = _ERRORS.get(error["code"], Unavailable if status >= 500 else ProtocolError)
        return kind(str(error["message"]), **words)
    except (ProtocolError, KeyError, TypeError, AttributeError):
        kind = Unavailable if status >= 500 else ProtocolError
        return kind(f"the broker answered with status {status} and without a reason")
