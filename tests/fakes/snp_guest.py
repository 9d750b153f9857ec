# SPDX-License-Identifier: Apache-2.0
"""A guest on a fake AMD's chip: it asks for challenges, answers them with reports, and opens what it is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from keys import jwe, jwk
from keys.binding import report_data
from keys.messages import Attestation, Challenge, InitData, Request, ResourcePath
from keys.tee import Tee
from tests.fakes.amd import Chip, Field, tsm_evidence

Form = Callable[[bytes, Mapping[str, bytes]], dict[str, Any]]


class SnpGuest:
    """`form` is how it sends its evidence (tests.fakes.amd); `fields` are what its reports say otherwise than usual.

    `certificates`: what its host put beside the reports, by default what fits.
    """

    def __init__(
        self,
        chip: Chip,
        *,
        form: Form = tsm_evidence,
        certificates: Mapping[str, bytes] | None = None,
        **fields: Field,
    ) -> None:
        self.chip, self.form, self.fields = chip, form, fields
        self.certificates = chip.certificates if certificates is None else certificates
        self.key = ec.generate_private_key(ec.SECP256R1())

    @property
    def tee_pubkey(self) -> jwk.TeePubkey:
        return jwk.from_ec(self.key.public_key())

    def request(self, resource: ResourcePath | None = None) -> Request:
        return Request(Tee.SNP, resource)

    def attestation(self, challenge: Challenge, *, init_data: InitData | None = None) -> Attestation:
        data = report_data(Tee.SNP, challenge.nonce, self.tee_pubkey.members)
        evidence = self.form(self.chip.report(data, **self.fields), self.certificates)
        return Attestation(challenge.nonce, self.tee_pubkey, evidence, init_data=init_data)

    def open(self, wrapped: object) -> bytes:
        """The key in the broker's answer."""
        return jwe.unseal(wrapped, self.key)
