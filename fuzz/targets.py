# SPDX-License-Identifier: Apache-2.0
"""What is fuzzed: one target a parser, each with valid inputs to start from.

A reader takes bytes and returns, or raises a RoomkeyError; anything else is a finding. Files of the recorded evidence
are read where they lie; forms that exist as JSON only are made of them.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from agent import luks
from broker.appraisal.images import parse_image
from broker.claims import Binding, Endorsements
from broker.endorsements.bundle import read_bundle
from broker.measure.authenticode import authenticode, sections
from broker.measure.bzimage import patched
from broker.measure.variables import secure_boot_variables
from broker.signing import Signer
from broker.trace import Trace
from broker.verifiers import hcl
from broker.verifiers.az_snp_vtpm import AzSnpVtpmVerifier
from broker.verifiers.eventlog import MAX_LOG_BYTES, parse_log
from broker.verifiers.eventlog_text import MAX_WORDS
from broker.verifiers.eventlog_words import describe
from broker.verifiers.sev_certificates import Usage, parse_ca, parse_certificate, verify_ark
from broker.verifiers.sev_launch import parse_measurement
from broker.verifiers.snp import SnpVerifier
from broker.verifiers.snp_cert_table import CertificateKind, entries, parse_cert_table
from broker.verifiers.snp_certificates import read_vek, verify_chain
from broker.verifiers.snp_crl import check_current, read_crl
from broker.verifiers.snp_endorsements import name_of, read_name
from broker.verifiers.snp_evidence import SnpEvidence
from broker.verifiers.snp_id_key import key_digest, read_key
from broker.verifiers.snp_roots import built_in
from keys import b64, envelope, strictjson
from keys.errors import RoomkeyError
from keys.report import Report, Step
from tests.fakes import luks as disk
from tests.fakes.amd import kbs_json, raw_evidence, tsm_evidence
from tests.fakes.ovmf_vars import enrolled, store
from tests.fakes.pe import kernel, pe
from tests.vectors import VECTORS

AT = datetime(2026, 3, 1, tzinfo=UTC)
MAX_JSON_BYTES = 256 * 1024

SNP, SEV, AZURE, TPM = VECTORS / "snp", VECTORS / "sev", VECTORS / "azure", VECTORS / "tpm"
SIGNERS = {
    Usage.CEK: {Usage.ASK},
    Usage.OCA: {Usage.OCA},
    Usage.PEK: {Usage.OCA, Usage.CEK},
    Usage.PDH: {Usage.PEK},
}
IMAGES = {
    "tpm": f"""[tpm]
bank = "sha256"
pcrs = {{ 7 = "{"ab" * 32}" }}
components = [{{ name = "kernel", versions = ["1", "2"] }}, {{ name = "shim", versions = ["1"] }}]
releases = [{{ kernel = "1", shim = "1" }}, {{ kernel = "2", shim = "1" }}]
[[tpm.events]]
pcr = 4
digests = [
  {{ digest = "{"ab" * 32}", type = "EV_SEPARATOR" }},
  {{ component = "shim", digests = ["{"cd" * 32}"] }},
  {{ component = "kernel", digests = ["", "{"ef" * 32}"], what = "vmlinuz" }},
]
""",
    "snp": f"""[snp]
measurement = "{"ab" * 48}"
host_data = ["{"cd" * 32}"]
[snp.floors]
min_guest_svn = 2
min_reported_tcb = ["Genoa snp=25 microcode=84"]
""",
    "sev": f"""[sev]
launch_digest = "{"cd" * 32}"
es = true
min_api = "1.49"
min_build = 6
""",
}


SIGNER = Signer(ec.generate_private_key(ec.SECP256R1()))
RELEASED = envelope.Release(
    "acme/disk/root", 3, "ab" * 32, b64.std(bytes(32)), "k" * 43, "d-" + 20 * "a", "cd" * 32, "debian-12@4", 7,
    "34" * 32, False, None, 1_000_000, 1_002_000, 1_302_000, "ef" * 32,
)  # fmt: skip


@dataclass(frozen=True)
class Target:
    """`read` takes one input. `files` are seeds in place, `made` are further ones."""

    read: Callable[[bytes], object]
    files: tuple[Path, ...] = ()
    made: Callable[[], Iterable[bytes]] = tuple
    max_bytes: int = 16 * 1024

    def seeds(self) -> list[bytes]:
        return [*(path.read_bytes() for path in self.files), *self.made()]


def _found(folder: Path, *patterns: str) -> tuple[Path, ...]:
    return tuple(sorted(path for pattern in patterns for path in folder.glob(pattern)))


def _reports() -> list[bytes]:
    return [data for path in _found(SNP, "reports/*.bin") if len(data := path.read_bytes()) == 1184]


def _veks() -> dict[CertificateKind, list[bytes]]:
    return {
        kind: [path.read_bytes() for path in _found(SNP, f"veks/*.{kind}.der")]
        for kind in (CertificateKind.VCEK, CertificateKind.VLEK)
    }


def _json(data: bytes) -> object:
    return strictjson.loads(data, name="it", max_bytes=MAX_JSON_BYTES)


# --- readers --------------------------------------------------------------------------------------------------------


def _report(data: bytes) -> None:
    """The whole verifier, under each recorded certificate that names the report's chip, or else under any."""
    chip, verifier = data[0x1A0:0x1E0], SnpVerifier()
    for kind, certificates in _VEKS.items():
        matching = [one for one in certificates if chip[:8] in one] or certificates[:1]
        for certificate in matching[:1]:
            evidence = SnpEvidence(data, {kind: certificate})
            verifier.needs(evidence)
            try:
                verifier.verify(
                    evidence, Endorsements(trusted=built_in()), Binding(data[0x50:0x90].ljust(64, b"\0")), AT, Trace()
                )
            except RoomkeyError:
                continue


def _snp_evidence(data: bytes) -> None:
    verifier = SnpVerifier()
    evidence = verifier.decode(_json(data))
    verifier.needs(evidence)
    verifier.verify(evidence, Endorsements(trusted=built_in()), Binding(bytes(48), bytes(32)), AT, Trace())


def _azure_evidence(data: bytes) -> None:
    verifier = AzSnpVtpmVerifier()
    evidence = verifier.decode(_json(data))
    verifier.needs(evidence)
    verifier.verify(evidence, Endorsements(trusted=built_in()), Binding(bytes(48), bytes(32)), AT, Trace())


def _table(data: bytes) -> None:
    assert len(parse_cert_table(data)) <= len(entries(data))


def _vek(data: bytes) -> None:
    trusted = built_in()
    verify_chain(read_vek(data), trusted.certificates, trusted.roots, AT)


def _crl(data: bytes) -> None:
    for ark in built_in().roots:
        try:
            check_current(read_crl(data, ark), AT)
        except RoomkeyError:
            continue


def _hcl(data: bytes) -> None:
    report = hcl.parse_hcl(data)
    hcl.read_runtime_data(report.runtime_data)
    hcl.check_binding(report)


def _boot_words(data: bytes) -> None:
    for event in parse_log(data).events:
        words = describe(event)
        assert words.isprintable()
        assert len(words) <= MAX_WORDS


def _sev_certificate(data: bytes) -> None:
    for usage, signers in SIGNERS.items():
        try:
            parse_certificate(data, usage, signers=signers)
        except RoomkeyError:
            continue


def _statement(text: str) -> None:
    keys = envelope.load_keys(strictjson.compact(SIGNER.jwks()))
    envelope.verify(text, keys, envelope.RELEASE, max_bytes=envelope.MAX_STATEMENT_BYTES)


def _luks_header(data: bytes) -> None:
    """As the agent reads it, from a descriptor: `data` is the JSON in two headers that are right but for it."""
    source, copied = os.memfd_create("disk"), os.memfd_create("copy")
    try:
        os.write(source, b"".join(disk.binary(data, second=second) for second in (False, True)))
        os.truncate(source, disk.DATA)
        os.lseek(source, 0, os.SEEK_SET)
        luks.copy_header(source, copied)
    finally:
        os.close(source)
        os.close(copied)


def _variables(data: bytes) -> None:
    secure_boot_variables(data)


def _volume_report(data: bytes) -> None:
    Report.from_text(data.decode("utf-8", "replace"))


def _volume_reports() -> Iterable[bytes]:
    return (Report().to_text().encode(), Report("5a" * 32, "", Step.ADD, 3).to_text().encode())


def _kernel(data: bytes) -> None:
    sections(data)
    authenticode(patched(data, 4096, 512), "sha256")


def _text(read: Callable[[str], object]) -> Callable[[bytes], object]:
    return lambda data: read(data.decode("utf-8", "replace"))


_VEKS = _veks()


# --- seeds of forms that exist as JSON or text ----------------------------------------------------------------------


def _evidence_forms() -> Iterable[bytes]:
    certificates = {str(kind): found[0] for kind, found in _VEKS.items() if found}
    for report in _reports():
        for make in (raw_evidence, tsm_evidence, kbs_json):
            yield json.dumps(make(report, certificates)).encode()


def _azure_forms() -> Iterable[bytes]:
    quotes = [json.loads(path.read_bytes()) for path in _found(AZURE, "*quote*.json")]
    for report in _found(AZURE, "hcl-*.bin"):
        for quote in quotes:
            form = {
                "version": 2,
                "tpm_quote": quote,
                "hcl_report": base64.urlsafe_b64encode(report.read_bytes()).decode(),
            }
            yield json.dumps(form).encode()
            old = {name: list(bytes.fromhex(quote[name])) for name in ("signature", "message")}
            old["pcrs"] = [list(bytes.fromhex(value)) for value in quote["pcrs"]]  # type: ignore[misc]
            yield json.dumps({"quote": old, "report": list(report.read_bytes())}).encode()


def _names() -> Iterable[bytes]:
    for certificate in _VEKS.get(CertificateKind.VCEK, ()):
        yield name_of(certificate, built_in()).encode()


def _bundles() -> Iterable[bytes]:
    made = [{"name": name_of(one, built_in()), "data": b64.std(one)} for one in _VEKS.get(CertificateKind.VCEK, ())[:2]]
    yield strictjson.compact({"roomkey-endorsements": 1, "endorsements": made})


def _images() -> Iterable[bytes]:
    for platform, text in IMAGES.items():
        yield f'platform = "{platform}"\n{text}'.encode()


def _keys() -> Iterable[bytes]:
    for one in json.loads((SNP / "manifest.json").read_bytes())["id_key_digests"]:
        yield bytes.fromhex(one["spki_der_hex"])


def _releases() -> Iterable[bytes]:
    yield strictjson.canonical(RELEASED.to_json())
    yield strictjson.canonical(RELEASED._replace(rule=None).to_json())


def _statements() -> Iterable[bytes]:
    for typ in (envelope.RELEASE, envelope.BUNDLE):
        yield SIGNER.sign(RELEASED.to_json(), typ).encode()


def _envelopes() -> Iterable[bytes]:
    for statement in _statements():
        yield envelope.pack(b"a disk's key", statement.decode())


def _luks_texts() -> Iterable[bytes]:
    content = disk.metadata()
    yield json.dumps(content).encode()
    content["keyslots"]["0"]["kdf"] = {"type": "pbkdf2", "hash": "sha512", "iterations": 1000, "salt": disk.SALT}
    content["tokens"]["0"] = {"type": "roomkey", "keyslots": ["0"]}
    yield json.dumps(content).encode()


TARGETS: dict[str, Target] = {
    "snp-report": Target(_report, made=_reports, max_bytes=2048),
    "snp-evidence": Target(_snp_evidence, made=_evidence_forms, max_bytes=64 * 1024),
    "snp-cert-table": Target(_table, _found(SNP, "cert_tables/*")),
    "snp-vek": Target(_vek, _found(SNP, "veks/*")),
    "snp-crl": Target(_crl, _found(SNP, "crl/*")),
    "snp-endorsement-name": Target(_text(read_name), made=_names, max_bytes=512),
    "snp-id-key": Target(lambda data: key_digest(read_key(data)), made=_keys, max_bytes=512),
    "endorsement-bundle": Target(read_bundle, made=_bundles),
    "hcl-report": Target(_hcl, (*_found(AZURE, "hcl-*.bin"), *_found(SNP, "evidence/*"))),
    "azure-evidence": Target(_azure_evidence, made=_azure_forms, max_bytes=64 * 1024),
    "boot-log-words": Target(_boot_words, _found(TPM, "eventlogs/*.bin"), max_bytes=MAX_LOG_BYTES),
    "sev-certificate": Target(_sev_certificate, _found(SEV, "*/[pco]*.cert"), max_bytes=4096),
    "sev-ca-certificate": Target(lambda data: verify_ark(parse_ca(data)), _found(SEV, "*/a?k.cert"), max_bytes=4096),
    "sev-measurement": Target(
        lambda data: parse_measurement(data, api=(1, 55), build=1), made=lambda: (bytes(48),), max_bytes=128
    ),
    "broker-keys": Target(envelope.load_keys, made=lambda: (strictjson.compact(SIGNER.jwks()),), max_bytes=4096),
    "luks-header": Target(_luks_header, made=_luks_texts, max_bytes=disk.SIZE - 4096),
    "variables": Target(_variables, made=lambda: (store(enrolled(b"db"), size=0x400),), max_bytes=4096),
    "report": Target(_volume_report, made=_volume_reports, max_bytes=1024),
    "kernel": Target(_kernel, made=lambda: (pe(), pe(signature=b"s" * 64), kernel()), max_bytes=4096),
    "envelope": Target(envelope.unpack, made=_envelopes, max_bytes=4096),
    "statement": Target(_text(_statement), made=_statements, max_bytes=4096),
    "release": Target(lambda data: envelope.Release.from_json(_json(data)), made=_releases, max_bytes=4096),
    "image": Target(_text(parse_image), made=_images, max_bytes=4096),
}
