# SPDX-License-Identifier: Apache-2.0
"""What passes between verifier and appraisal: the evidence's binding, what vouches for it, and the verified claims."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, NamedTuple, Protocol

from cryptography import x509

from broker.trace import Trace
from keys.errors import VerificationError
from keys.tee import Tee

Fact = str | int | bool | None


@dataclass(frozen=True, slots=True)
class Binding:
    """What the evidence must be bound to.

    `report_data` is the digest of the runtime data (48 bytes SHA-384, `keys.binding`); the verifier knows how its
    platform carries it. `init_data` is the digest of the posted init-data, or None where none was posted.
    """

    report_data: bytes
    init_data: bytes | None = None


@dataclass(frozen=True, slots=True)
class EndorsementRequest:
    """What the caller must look up before `verify`.

    `instance_ids`: ids under which an owner may have enrolled this guest's key. `required` and `helpful` name the
    vendor's endorsements that the evidence does not bring: nothing can be verified without the first, the others are
    used where they are at hand. Names are those of `broker.endorsements`.
    """

    instance_ids: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    helpful: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Trusted:
    """What the operator trusts and demands on one platform.

    `roots` are the trust anchors, `certificates` candidates for the chain. `floors` is the appraisal policy for
    evidence (RFC 9334, section 8.5) of the platform's own kind, or None for the strict default.
    """

    roots: tuple[x509.Certificate, ...] = ()
    certificates: tuple[x509.Certificate, ...] = ()
    floors: Any = None


@dataclass(frozen=True, slots=True)
class Endorsements:
    """What vouches for the evidence.

    `trusted` comes from the operator's config and the product only. `found` maps the names of an `EndorsementRequest`
    to what was found under them (DER), trusted for nothing. `enrolled` maps an instance id to the platform's public
    area as its owner enrolled it. `activation` is the proof key (`keys.binding`) of the secret that this session sealed
    to the guest's EK and AK Name (TPM), `session` what the guest declared when it asked for the challenge.
    """

    trusted: Trusted = field(default_factory=Trusted)
    found: Mapping[str, bytes] = field(default_factory=dict)
    enrolled: Mapping[str, bytes] = field(default_factory=dict)
    activation: bytes | None = field(default=None, repr=False)
    session: Mapping[str, Any] = field(default_factory=dict)


class LoggedEvent(NamedTuple):
    """One measured boot event as the owner sees it: register, type name, digest (lower-case hex), and what it was."""

    register: str
    type: str
    digest: str
    what: str


@dataclass(frozen=True, slots=True)
class Claims:
    """What the evidence proves, and nothing that it merely says.

    `instance_ids` name the guest's hardware identity, strongest first. `trust` says by what the identity is trusted
    (`broker.appraisal.identity` has the words); an identity that is trusted only because an owner enrolled it counts
    for that owner alone. `measurements` maps register names ("sha256:4") to lower-case hex. `facts` are other verified
    values under the platform's own names. `events` explain measurements; only the register's value is evidence.
    """

    tee: Tee
    instance_ids: tuple[str, ...]
    trust: str
    measurements: Mapping[str, str]
    facts: Mapping[str, Fact] = field(default_factory=dict)
    events: tuple[LoggedEvent, ...] = ()
    init_data: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "tee": str(self.tee),
            "instance_ids": list(self.instance_ids),
            "trust": self.trust,
            "measurements": dict(self.measurements),
            "facts": dict(self.facts),
            "events": [[event.register, event.type, event.digest, event.what] for event in self.events],
            "init_data": self.init_data,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Claims:
        """The claims that `to_json` wrote. Raises KeyError, TypeError or ValueError on anything else."""
        return cls(
            tee=Tee(value["tee"]),
            instance_ids=tuple(value["instance_ids"]),
            trust=value["trust"],
            measurements=value["measurements"],
            facts=value["facts"],
            events=tuple(LoggedEvent(*event) for event in value["events"]),
            init_data=value["init_data"],
        )


class BelowFloors(VerificationError):  # noqa: N818
    """Genuine evidence that does not meet the operator's floors. `claims` are what it proves all the same: they lead
    to no token and no key, but the owner is told what else an appraisal would have said.
    """

    def __init__(self, message: str, claims: Claims, *, expected: str | None, found: str | None, mend: str | None):
        super().__init__(message, expected=expected, found=found, mend=mend)
        self.claims = claims


class Verifier(Protocol):
    """One platform's judge. Stateless and pure."""

    tee: ClassVar[Tee]

    def decode(self, evidence: object) -> Any:
        """The evidence's JSON form checked member by member, decoded, nothing judged yet. Raises ProtocolError."""
        ...

    def needs(self, evidence: Any) -> EndorsementRequest:
        """What to look up for this decoded evidence."""
        ...

    def verify(
        self, evidence: Any, endorsements: Endorsements, bound_to: Binding, at: datetime, trace: Trace
    ) -> Claims:
        """The claims of genuine evidence. Raises VerificationError (every check is in `trace` by then); BelowFloors
        where only the operator's floors are not met.
        """
        ...
