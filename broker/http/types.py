# SPDX-License-Identifier: Apache-2.0
"""What owners send and get under `/v1`. Unknown members are refused; times are milliseconds since the Unix epoch.

`why` in a request is the reason for a change, in the owner's words, for the record.
"""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct, field

from broker.appraisal.rules import CLONES, DEFAULT_LEASE_S
from keys.envelope import MAX_ALSO_BYTES
from keys.jwe import MAX_PLAINTEXT_BYTES

MAX_WHY_CHARS = 500
DEFAULT_DAYS = 30
MAX_PAGE = 200  # decisions in one answer
MAX_NUMBER = 2**53  # versions and sequence numbers; what every JSON reader takes (RFC 7493)

Base64 = Annotated[str, Meta(extra_json_schema={"contentEncoding": "base64"})]
Days = Annotated[int, Meta(ge=1, le=366)]
KeySize = Annotated[int, Meta(ge=16, le=1024)]


class Change(Struct, forbid_unknown_fields=True, kw_only=True):
    why: Annotated[str, Meta(max_length=MAX_WHY_CHARS)] = ""


class PutKey(Change, kw_only=True):
    """`key`: 1 to 65536 bytes."""

    key: Annotated[Base64, Meta(min_length=4, max_length=(MAX_PLAINTEXT_BYTES + 2) // 3 * 4)]

    def __repr__(self) -> str:
        return f"PutKey(why={self.why!r})"


class GenerateKey(Change, kw_only=True):
    """`bytes`: how many random bytes."""

    size: KeySize = field(default=32, name="bytes")


class RotateKey(Change, kw_only=True):
    """`at_once`: do not wait for the guest of the volume that the key is for."""

    at_once: bool = False


class PutRecovery(Change, kw_only=True):
    """`passphrase`: 32 to 512 random bytes."""

    passphrase: Annotated[Base64, Meta(min_length=44, max_length=(MAX_ALSO_BYTES + 2) // 3 * 4)]

    def __repr__(self) -> str:
        return f"PutRecovery(why={self.why!r})"


class PutRule(Change, kw_only=True):
    """Who gets the key: every list must name something. `instances` may be exactly `["any"]` or `["enrolled"]`. What
    the options mean: docs/images.md.
    """

    images: list[str]
    platforms: list[str]
    instances: list[str]
    clones: str = CLONES[0]
    lease_s: int = DEFAULT_LEASE_S
    sticky_failure: bool = False
    unsafe_first_use: bool = False


class RuleTerms(Struct, forbid_unknown_fields=True, kw_only=True):
    """A rule that need not be in force; its members are those of PutRule."""

    images: list[str]
    platforms: list[str]
    instances: list[str]
    clones: str = CLONES[0]
    lease_s: int = DEFAULT_LEASE_S
    sticky_failure: bool = False
    unsafe_first_use: bool = False


class TryRule(RuleTerms, kw_only=True):
    """A rule to try on the decisions of the last `days`."""

    days: Days = DEFAULT_DAYS


class TryImage(Struct, forbid_unknown_fields=True, kw_only=True):
    """An image to try on the decisions of the last `days`, as if it were the newest version and active."""

    toml: str
    days: Days = DEFAULT_DAYS


class PutInstance(Change, kw_only=True):
    """At least one of the keys. Of a TPM: TPMT_PUBLIC of the attestation key, TPMT_PUBLIC of the endorsement key, its
    DER certificate. Of SEV-SNP: the chip's hardware id (128 or 16 hex digits), the provider's cspID. Of SEV: the
    chip's CEK certificate (2084 bytes). Of an Azure guest: the SubjectPublicKeyInfo of its vTPM's attestation key.
    """

    ak_public: Base64 | None = None
    ek_public: Base64 | None = None
    ek_certificate: Base64 | None = None
    snp_chip_id: str | None = None
    snp_csp_id: str | None = None
    sev_cek: Base64 | None = None
    az_ak: Base64 | None = None
    description: str = ""


class DecisionQuery(Struct, forbid_unknown_fields=True, kw_only=True):
    """`kind`: attest, release, readmit or change. `denied`: only what was refused or denied. `key`: the path of the key
    that was asked for. `guest`: a guest's name or instance id. `since` in milliseconds. `before`, or `after`: a `next`
    of an earlier answer; with `after` the oldest come first.
    """

    kind: str | None = None
    subject: str | None = None
    denied: bool = False
    key: str | None = None
    guest: str | None = None
    since: Annotated[int, Meta(ge=0, le=MAX_NUMBER)] | None = None
    before: Annotated[int, Meta(ge=1, le=MAX_NUMBER)] | None = None
    after: Annotated[int, Meta(ge=0, le=MAX_NUMBER)] | None = None
    limit: Annotated[int, Meta(ge=1, le=MAX_PAGE)] = 50


class VersionQuery(Struct, forbid_unknown_fields=True, kw_only=True):
    version: Annotated[int, Meta(ge=1, le=MAX_NUMBER)] | None = None


class Whoami(Struct):
    """`kid`: the RFC 7638 thumbprint of the key that signed this request. `role`: owner or propose."""

    owner: str
    kid: str
    role: str


class KeyVersion(Struct):
    """`state`: active, retired or destroyed."""

    version: int
    state: str
    created_at: int
    created_by: str


class KeySummary(Struct):
    """The newest version of the key at `path`."""

    path: str
    version: int
    state: str
    created_at: int
    created_by: str


class Rotated(Struct):
    """`version`: the new one, None where it waits for the guest of the volume that the key is for."""

    path: str
    version: int | None


class Keys(Struct):
    keys: list[KeySummary]


class Key(Struct):
    """Every version, the oldest first. A key's bytes are never shown."""

    path: str
    versions: list[KeyVersion]


class Destroyed(Struct):
    """`erased`: how many versions had bytes that are gone now."""

    path: str
    erased: int


class Rule(Struct):
    """`path`: the key that it is for."""

    path: str
    version: int
    images: list[str]
    platforms: list[str]
    instances: list[str]
    clones: str
    lease_s: int
    sticky_failure: bool
    unsafe_first_use: bool
    created_at: int
    created_by: str


class Rules(Struct):
    rules: list[Rule]


class Turned(Struct):
    """A request for `key` by the guest with the instance id `guest` whose verdict would be another. `reason`: the first
    check that would fail, "" where it would be let in.
    """

    decision: str
    at: int
    key: str
    guest: str
    reason: str


class TryReport(Struct):
    """Of the decisions of the time (`looked_at`), `judged` are those that the candidate can touch. `truncated`: there
    were more of them, which were not looked at.
    """

    looked_at: int
    judged: int
    refused: list[Turned]
    let_in: list[Turned]
    truncated: bool


class Instance(Struct):
    """`ids`: every name under which this machine can turn up in a decision."""

    name: str
    version: int
    description: str
    ids: list[str]
    created_at: int
    created_by: str


class Instances(Struct):
    instances: list[Instance]


class Deleted(Struct):
    """`name`: what is not there any more."""

    name: str


class DecisionSummary(Struct):
    """`subject`: the instance id, or what was changed. `key`: the path of the key that was asked for. `guests`: names
    under which the owner knows the guest. `failed`: how many checks failed; `why`: the first reason in plain words, and
    of a change what its owner said; `more`: how many of those checks it does not tell of.
    """

    id: str
    sequence: int
    at: int
    kind: str
    verdict: str
    subject: str
    key: str | None
    guests: list[str]
    failed: int
    why: str
    more: int


class Decisions(Struct):
    """The newest first, or with `after` the oldest. `next`: pass it as `before`, or as `after`, to go on. It is null at
    the end, with `after` never: there may be more later. An answer can be shorter than `limit`, even empty, and not the
    last one: so many lines are looked at in one call, and no more.
    """

    decisions: list[DecisionSummary]
    next: int | None


class Decision(DecisionSummary):
    """`body`: what the decision stands on; a guest's has the whole trace in `body.trace`. `hash` chains the ledger."""

    body: dict[str, Any]
    hash: str


class Bundle(Struct):
    """`bundle`: a compact JWS, signed by the broker, of a decision with all that it stood on."""

    bundle: str


class ErrorBody(Struct):
    """`expected` and `found` are empty where there is nothing to compare, `mend` where nothing would help."""

    code: str
    message: str
    expected: str
    found: str
    mend: str


class Error(Struct):
    error: ErrorBody


class Ready(Struct):
    status: str
