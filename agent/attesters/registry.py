# SPDX-License-Identifier: Apache-2.0
"""Which platforms this agent can attest: one row each, loaded when first asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, Self

from keys.errors import ConfigError
from keys.tee import Tee

if TYPE_CHECKING:
    from agent.config import Settings
    from agent.deadline import Deadline
    from keys.messages import Challenge, Request, ResourcePath

ATTESTERS: dict[Tee, str] = {
    Tee.SNP: "agent.attesters.snp:SnpAttester",
    Tee.TPM: "agent.attesters.tpm:TpmAttester",
}


class Attester(Protocol):
    """One platform's maker of evidence, open for one run; a context manager."""

    def __init__(self, settings: Settings, deadline: Deadline) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...

    def request(self, resource: ResourcePath) -> Request:
        """What opens the conversation with the broker. Raises AttesterError."""
        ...

    def accept(self, challenge: Challenge) -> bytes | None:
        """Take the platform's part of the challenge. What it gives is mixed into the wrapping of the key: an activation
        secret (32 bytes), or None where the platform has none. Raises AttesterError or ProtocolError.
        """
        ...

    def evidence(self, report_data: bytes, activation: bytes | None = None) -> dict[str, Any]:
        """The primary evidence, bound to `report_data` (48 bytes), as JSON. Raises AttesterError."""
        ...

    def instance(self) -> dict[str, Any]:
        """What an owner enrols of this machine, as JSON. Raises AttesterError."""
        ...


def attester_for(tee: Tee) -> type[Attester]:
    """The attester of `tee`. Raises ConfigError for a platform without one."""
    if tee not in ATTESTERS:
        raise ConfigError("no attester for this platform", expected=", ".join(sorted(ATTESTERS)), found=tee)
    module, _, name = ATTESTERS[tee].partition(":")
    attester: type[Attester] = getattr(import_module(module), name)
    return attester
