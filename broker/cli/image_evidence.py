# SPDX-License-Identifier: Apache-2.0
"""Evidence that an image is made of: what is checked of it here, what is not, and how the image is stored."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from broker.claims import Claims
from broker.cli.evidence import EvidenceFile
from broker.cli.options import read_floors, read_input
from broker.owner_client import Caller, path_of
from broker.terminal import next_step, trace
from broker.verifiers.offline import judge
from keys.errors import VerificationError
from keys.tee import Tee

_YOURS = """that it was in good order when it made the file. That is
              yours to know: take the file from a machine that you trust now, by a way on which nobody could replace
              it."""

_PROOF = {
    Tee.TPM: """\
Checked here: the quote is signed by the attestation key in the same file, and covers these values. The key's Name:
              {name}
Not checked:  that this key lives in a TPM, that the TPM is in your machine, and """
    + _YOURS,
    Tee.SNP: """\
Checked here: the report leads to AMD's root, meets the floors, and shows these values. It was made on
              {name}
Not checked:  what the launch digest stands for (`roomkey image measure snp` computes it from your files), that the
              guest was yours, and """
    + _YOURS,
    Tee.AZ_SNP_VTPM: """\
Checked here: the report of the paravisor leads to AMD's root and meets the floors; the quote is signed by the key that
              it names, and covers these values. The guest is
              {name}
Not checked:  that this paravisor is Microsoft's, that the guest was yours, and """
    + _YOURS,
}


def claims_in(evidence: EvidenceFile, endorsements: tuple[Path, ...], floors: Path | None) -> Claims:
    """What the evidence proves: of a TPM under the attestation key that the file names, else up to AMD's root. Raises
    VerificationError.
    """
    judgement = judge(
        evidence.tee,
        evidence.raw,
        [read_input(file) for file in endorsements],
        [],
        datetime.now(UTC),
        {"ak_name": evidence.ak_name} if evidence.tee is Tee.TPM else {},
        floors=read_floors(floors),
    )
    if judgement.claims is None:
        trace(judgement.trace.to_json(), verbose=False)
        raise VerificationError("the evidence in the file is not genuine", mend="make a new file in the guest")
    return judgement.claims


def proof(evidence: EvidenceFile, claims: Claims) -> str:
    """What the owner should know before he trusts these claims."""
    return _PROOF[claims.tee].format(name=evidence.ak_name or ", ".join(claims.instance_ids))


def store_image(client: Caller, name: str, text: str, why: str, *, propose: bool = False, options: str = "") -> None:
    """Store the TOML as the next version of `name`, and say which one it replaces and what rule (with which `options`
    besides) uses it.
    """
    stored = client.call("PUT", path_of("images", name), {"toml": text, "propose": propose, "why": why})
    if stored["life"]["state"] == "proposed":
        click.echo(f"image {name}@{stored['version']} proposed")
        next_step(
            f"Nobody gets a key with it yet. Its owner lets it in: roomkey image approve {name}@{stored['version']}"
        )
        return
    click.echo(f"image {name}@{stored['version']} stored")
    for version in stored["replaced"]:
        next_step(
            f"Under the name {name}, guests of {name}@{version} are refused from now on;\n"
            f"roomkey image retire {name}@{version} --after 7d lets them in meanwhile."
        )
    next_step(f"Release a key to it: roomkey rule set OWNER/TYPE/TAG --image {name} --instance INSTANCE{options}")
