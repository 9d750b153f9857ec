# SPDX-License-Identifier: Apache-2.0
"""The guests' messages as the API document describes them. What reads and writes them is `keys.messages`.

KBS attestation protocol 0.4.0 with Roomkey's extra parameters.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from broker.http.types import Base64
from keys.messages import PROTOCOL_VERSION

Base64Url = Annotated[str, Meta(extra_json_schema={"contentEncoding": "base64url"})]


class TpmDeclaration(Struct, rename="kebab", forbid_unknown_fields=True):
    """TPMT_PUBLIC of the attestation key and the endorsement key, DER certificates of the latter, leaf first."""

    ak_public: Base64
    ek_public: Base64
    ek_certificates: list[Base64]


class AuthParams(Struct, rename="kebab", forbid_unknown_fields=True):
    """`resource`: OWNER/TYPE/TAG of the key that this session will ask for, and then no other. `ticket`: what the owner
    gave a guest that is not enrolled yet.
    """

    supported_hash_algorithms: list[str] | UnsetType = UNSET
    resource: str | UnsetType = UNSET
    tpm: TpmDeclaration | UnsetType = UNSET
    ticket: Annotated[str, Meta(pattern="^[A-Za-z0-9_-]{1,128}$")] | UnsetType = UNSET


class AuthRequest(Struct, rename="kebab", forbid_unknown_fields=True):
    version: Annotated[str, Meta(examples=[PROTOCOL_VERSION])]
    tee: str
    extra_params: AuthParams | Literal[""]


class TpmCredential(Struct, rename="kebab", forbid_unknown_fields=True):
    """The bodies of TPM2B_ID_OBJECT and TPM2B_ENCRYPTED_SECRET."""

    credential_blob: Base64
    encrypted_secret: Base64


class ChallengeParams(Struct, forbid_unknown_fields=True):
    tpm: TpmCredential


class Challenge(Struct, rename="kebab", forbid_unknown_fields=True):
    """`nonce`: 32 random bytes in base64, hashed as the text that it is."""

    nonce: str
    extra_params: ChallengeParams | Literal[""]


class EcKey(Struct, tag_field="kty", tag="EC", forbid_unknown_fields=True):
    crv: Literal["P-256", "P-521"]
    alg: Literal["ECDH-ES+A256KW"]
    x: Base64Url
    y: Base64Url


class RsaKey(Struct, tag_field="kty", tag="RSA", forbid_unknown_fields=True):
    alg: Literal["RSA-OAEP-256"]
    n: Base64Url
    e: Base64Url


class RuntimeData(Struct, rename="kebab", forbid_unknown_fields=True):
    nonce: str
    tee_pubkey: EcKey | RsaKey


class TeeEvidence(Struct, forbid_unknown_fields=True):
    """`primary_evidence` has the form of the platform named in `/auth`."""

    primary_evidence: Any
    additional_evidence: str


class InitData(Struct, forbid_unknown_fields=True):
    format: Literal["toml"]
    body: str


class AttestRequest(Struct, rename="kebab", forbid_unknown_fields=True):
    runtime_data: RuntimeData
    tee_evidence: TeeEvidence
    init_data: InitData | None = None


class Token(Struct, forbid_unknown_fields=True):
    """`token`: a JWT with the attestation result (EAR), signed with a key of `/.well-known/jwks.json`."""

    token: str


class Jwe(Struct, forbid_unknown_fields=True):
    """RFC 7516 flattened JSON, for the key that the evidence was bound to."""

    protected: Base64Url
    encrypted_key: Base64Url
    iv: Base64Url
    ciphertext: Base64Url
    tag: Base64Url


class KbsError(Struct, forbid_unknown_fields=True):
    """`detail` never says what was expected of a guest; where there is one, it names the decision for the owner."""

    type: str
    detail: str


class JwkSet(Struct):
    keys: list[dict[str, str]]
