# SPDX-License-Identifier: Apache-2.0
"""`roomkey instance`: the machines that an owner knows, by their hardware identities."""

from __future__ import annotations

from pathlib import Path

import click
from cryptography.hazmat.primitives.serialization import Encoding

from broker.cli.evidence import read_evidence
from broker.cli.options import as_owner, confirm_by_typing, confirmed, json_flag, read_input, why
from broker.owner_client import Caller, path_of
from broker.terminal import fields, next_step, print_json, table, when
from broker.verifiers.sev_certificates import SEV_CERTIFICATE_BYTES
from broker.verifiers.x509 import load_certificate
from keys import b64
from keys.errors import ConfigError, EndorsementError
from keys.messages import MAX_CERTIFICATE_BYTES, MAX_PUBLIC_BYTES

_file = click.Path(path_type=Path)
MAX_PEM_BYTES = 2 * MAX_CERTIFICATE_BYTES  # base64 and its lines


@click.group()
def instance() -> None:
    """Instances: the machines that a rule can name, each known by keys in its TPM or by its processor.

    \b
    Example:
      roomkey instance add web-1 --from guest.json
    """


@instance.command()
@click.argument("name")
@click.option(
    "--from", "evidence", type=_file, metavar="EVIDENCE.json", help="What `roomkey-agent evidence` wrote in the guest."
)
@click.option("--ek-certificate", type=_file, metavar="FILE", help="Its endorsement key's certificate (PEM, DER).")
@click.option("--ak-public", type=_file, metavar="FILE", help="Its attestation key's TPMT_PUBLIC.")
@click.option("--chip-id", metavar="HEX", help="Its AMD processor: CHIP_ID, 128 hex digits (Turin: 16).")
@click.option("--csp-id", metavar="TEXT", help="Its cloud provider, as its VLEK certificates name it (cspID).")
@click.option("--sev-cek", type=_file, metavar="FILE", help="Its AMD processor's CEK certificate, for SEV and SEV-ES.")
@click.option("--description", default="", help="What machine it is, in your words.")
@why
@as_owner
def add(
    client: Caller, name: str, evidence: Path | None, ek_certificate: Path | None, ak_public: Path | None,
    chip_id: str | None, csp_id: str | None, sev_cek: Path | None, description: str, why: str,
) -> None:  # fmt: skip
    """Enrol the machine NAME; where NAME is enrolled, replace its keys.

    You vouch that these keys live in that machine's TPM: get the file by a way on which nobody could replace it. A
    machine with an endorsement key's certificate is checked by the broker again each time, against its maker's root;
    AMD's processors are, against AMD's.

    \b
    Examples:
      roomkey instance add web-1 --from guest.json
      roomkey instance add web-2 --ek-certificate ek.pem
      roomkey instance add rack-3 --chip-id 4d1c...
    """
    if (evidence is None) == all(given is None for given in (ek_certificate, ak_public, chip_id, csp_id, sev_cek)):
        raise click.UsageError("Give --from, or what the machine is known by: one option or more, like --chip-id.")
    if evidence is not None:
        keys = dict(read_evidence(evidence).keys)
    else:
        texts = {"snp_chip_id": chip_id, "snp_csp_id": csp_id}
        keys = _from_files(ek_certificate, ak_public, sev_cek)
        keys |= {member: text for member, text in texts.items() if text is not None}
    body = keys | {"description": description, "why": why}
    stored = client.call("PUT", path_of("instances", name), body)
    click.echo(f"instance {name}, version {stored['version']}")
    for instance_id in stored["ids"]:
        click.echo(f"  {instance_id}")
    if "snp_csp_id" in keys:
        next_step("Note: this names every machine of that provider, not one.")
    elif "snp_chip_id" in keys or "sev_cek" in keys:
        next_step("Note: this names a processor: every guest on it that runs an image of the rule.")
    next_step(f"Release a key to it: roomkey rule set OWNER/TYPE/TAG --image IMAGE --instance {name}")


@instance.command("list")
@json_flag
@as_owner
def list_(client: Caller, as_json: bool) -> None:
    """List the machines that you enrolled.

    \b
    Example:
      roomkey instance list
    """
    instances = client.call("GET", path_of("instances"))["instances"]
    if as_json:
        print_json(instances)
        return
    table(
        ("instance", "version", "enrolled", "known by", "description"),
        [
            (i["name"], i["version"], when(i["created_at"]), ", ".join(kinds(i["ids"])), i["description"])
            for i in instances
        ],
        empty="No instances yet. Enrol one: roomkey instance add NAME --from EVIDENCE.json",
    )


@instance.command()
@click.argument("name")
@json_flag
@as_owner
def show(client: Caller, name: str, as_json: bool) -> None:
    """Show a machine and the ids under which it turns up in decisions.

    \b
    Example:
      roomkey instance show web-1
    """
    shown = client.call("GET", path_of("instances", name))
    if as_json:
        print_json(shown)
        return
    fields(
        [
            ("instance", shown["name"]),
            ("description", shown["description"]),
            ("version", shown["version"]),
            ("enrolled", when(shown["created_at"])),
            ("by", shown["created_by"]),
            *(("id", instance_id) for instance_id in shown["ids"]),
        ]
    )


@instance.command()
@click.argument("name")
@confirmed
@why
@as_owner
def delete(client: Caller, name: str, yes: bool, why: str) -> None:
    """Delete a machine: no rule that names it lets it in any more. For a stolen or scrapped one.

    \b
    Example:
      roomkey instance delete web-1 --why "stolen"
    """
    if not yes:
        confirm_by_typing(name, act="delete it")
    client.call("DELETE", path_of("instances", name), {"why": why})
    click.echo(f"instance {name} deleted")
    next_step("Rules with `any` still let its hardware in: roomkey rule list")


def kinds(ids: list[str]) -> list[str]:
    """What an instance is known by, in words."""
    words = {
        "tpm-ek": "endorsement key",
        "tpm-ak": "attestation key",
        "snp-chip": "AMD processor",
        "snp-csp": "cloud provider",
        "sev-cek": "AMD processor (CEK)",
        "az-ak": "Azure vTPM",
    }
    return [words[kind] for kind in words if any(instance_id.startswith(f"{kind}:") for instance_id in ids)]


def _from_files(ek_certificate: Path | None, ak_public: Path | None, sev_cek: Path | None) -> dict[str, str]:
    """What these files hold, as it is posted."""
    keys = {}
    if ek_certificate is not None:
        try:
            certificate = load_certificate(read_input(ek_certificate, max_bytes=MAX_PEM_BYTES))
        except EndorsementError as error:
            raise ConfigError(f"{ek_certificate} is not a certificate", found=error.found) from None
        keys["ek_certificate"] = b64.std(certificate.public_bytes(Encoding.DER))
    if ak_public is not None:
        keys["ak_public"] = b64.std(read_input(ak_public, max_bytes=MAX_PUBLIC_BYTES))
    if sev_cek is not None:
        keys["sev_cek"] = b64.std(read_input(sev_cek, max_bytes=SEV_CERTIFICATE_BYTES))
    return keys
