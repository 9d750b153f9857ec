# SPDX-License-Identifier: Apache-2.0
"""How each kind of recorded evidence is judged: by the product's verifiers, then claim by claim.

A judge returns where the evidence is genuine and every recorded claim that it knows is what the product found, and
raises one of the product's errors or ClaimDiffersError where not.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from cryptography.x509 import ObjectIdentifier, UnrecognizedExtension

from broker.claims import Binding, Endorsements
from broker.trace import Trace
from broker.verifiers import eventlog, eventlog_rules, ima, svsm, uki
from broker.verifiers.tpm import TpmVerifier
from broker.verifiers.tpm_certificates import TpmCertificate, check_path, read_ak_certificate, read_ek_certificate
from broker.verifiers.tpm_credential import check_ek, ecc_seed, seal
from broker.verifiers.tpm_evidence import decode_pcrs
from broker.verifiers.tpm_quote import PcrValues, check_pcr_values, verify_quote, verify_signed_attest
from broker.verifiers.tpm_structures import (
    BANKS,
    RH_ENDORSEMENT,
    SCHEMES,
    Attest,
    Public,
    Signature,
    parse_public,
    parse_public_2b,
    qualified_name,
)
from broker.verifiers.tpm_trust import instance_id
from broker.verifiers.x509 import load_certificate
from keys.errors import VerificationError
from keys.tee import Tee
from tests.conformance.manifest import BadEntryError, Case

ANY_TIME = datetime(2026, 1, 1, tzinfo=UTC)  # enrolment does not expire
GOOGLE_INSTANCE = ObjectIdentifier("1.3.6.1.4.1.11129.2.1.21")


class ClaimDiffersError(Exception):
    """The product found something else than what is recorded."""


class DisagreementError(Exception):
    """The product takes the evidence and reads something else in it than what is recorded: a failure in any case."""


TPM_TEES = frozenset((Tee.TPM, Tee.AZ_SNP_VTPM, Tee.AZ_TDX_VTPM))


class Kind(NamedTuple):
    """How one kind is judged; other platforms name theirs alike, "quote" say.

    `files`: at least one of these names is among the entry's files, else it is another platform's kind; empty where
    everything stands in the entry. `tees`: the platforms that it is a kind of, where an entry names its platform.
    `policy` judges under (first argument) one of the entry's "policy_cases", `by_default` under the product's defaults.
    """

    files: frozenset[str]
    judge: Callable[[Case], None]
    tees: frozenset[Tee] = TPM_TEES
    policy: Callable[[Any, Case], None] | None = None
    by_default: Callable[[Case], None] | None = None


def compare(case: Case, found: Mapping[str, Any]) -> None:
    """Every claim that `found` knows and the entry records must be equal; the entry's other claims are remarks."""
    for key, value in found.items():
        if key in case.claims and case.claims[key] != value:
            raise ClaimDiffersError(f"claim {key}: expected {case.claims[key]!r:.200}, found {value!r:.200}")


def _same(what: str, expected: object, found: object) -> None:
    if expected != found:
        raise ClaimDiffersError(f"{what}: expected {expected!r:.200}, found {found!r:.200}")


def _unhex(value: object, what: str) -> bytes:
    try:
        return bytes.fromhex(str(value))
    except ValueError as error:
        raise BadEntryError(f"{what} is not hex") from error


# --- quotes ---------------------------------------------------------------------------------------------------------


def judge_quote(case: Case) -> None:
    nonce = _unhex(case.claims.get("nonce"), "claims.nonce")
    pcrs = decode_pcrs(case.json("pcrs"))
    trace, attest, signature = Trace(), case.bytes("attest"), case.bytes("signature")
    ak = _public_area(case)
    if ak is not None:
        quote = verify_quote(attest=attest, signature=signature, ak=ak, qualifying_data=nonce, pcrs=pcrs, trace=trace)
        parsed, made = quote.attest, quote.signature
        compare(case, _key_claims(case, ak, parsed))
    else:
        parsed, made = verify_signed_attest(attest, signature, _pem_key(case), nonce, trace)
        check_pcr_values(parsed, made.hash, pcrs, trace)
    compare(case, _quote_claims(parsed, made))
    compare(case, {"pcrs": {bank: {str(i): v.hex() for i, v in values.items()} for bank, values in pcrs.items()}})
    if "eventlog" in case.files:
        _judge_log_of_quote(case, pcrs)
    if "ima_log" in case.files:
        _judge_ima_of_quote(case, pcrs)
    if "ek_cert" in case.files:
        _certificate(case, "ek_cert", parse_public(case.bytes("ek_public")))
    if "ak_cert" in case.files:
        _certificate(case, "ak_cert", ak)


def judge_digest_only(case: Case) -> None:
    nonce = _unhex(case.claims.get("nonce"), "claims.nonce")
    parsed, made = verify_signed_attest(case.bytes("attest"), case.bytes("signature"), _pem_key(case), nonce, Trace())
    compare(case, {**_quote_claims(parsed, made), "pcr_digest": parsed.pcr_digest.hex()})


def judge_by_default(case: Case) -> None:
    """The whole verifier with its floors, on Roomkey's form of the evidence.

    The runner stands for an owner who enrols an attestation key if, and only if, something beside it vouches for it.
    """
    ak = _public_area(case)
    form: dict[str, Any] = {
        "attest": base64.b64encode(case.bytes("attest")).decode(),
        "signature": base64.b64encode(case.bytes("signature")).decode(),
    }
    if ak is not None:
        form["ak_public"] = base64.b64encode(ak.raw).decode()
    if "pcrs" in case.files:
        form["pcrs"] = case.json("pcrs")
    if "eventlog" in case.files:
        form["eventlog"] = base64.b64encode(case.bytes("eventlog")).decode()
    evidence = TpmVerifier().decode(form)
    enrolled: dict[str, bytes] = {}
    if ak is not None and not case.files.keys().isdisjoint({"ek_cert", "ak_cert"}):
        enrolled[instance_id(evidence)] = ak.raw + (case.bytes("ek_public") if "ek_public" in case.files else b"")
    nonce = _unhex(case.claims.get("nonce"), "claims.nonce")
    TpmVerifier().verify(evidence, Endorsements(enrolled=enrolled), Binding(nonce), ANY_TIME, Trace())


def _public_area(case: Case) -> Public | None:
    """The attestation key with its attributes, where the entry has them."""
    if "ak_public" in case.files:
        return parse_public(case.bytes("ak_public"))
    return parse_public_2b(case.bytes("ak_public_tpm2b")) if "ak_public_tpm2b" in case.files else None


def _pem_key(case: Case, key: str = "ak_public_pem") -> rsa.RSAPublicKey | ec.EllipticCurvePublicKey:
    try:
        loaded = load_pem_public_key(case.bytes(key))
    except ValueError as error:
        raise VerificationError("a PEM file holds no key") from error
    if not isinstance(loaded, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        raise VerificationError("a PEM file holds another kind of key")
    return loaded


def _quote_claims(attest: Attest, made: Signature) -> dict[str, Any]:
    return {
        "clock": attest.clock,
        "reset_count": attest.reset_count,
        "restart_count": attest.restart_count,
        "safe": attest.safe,
        "firmware_version": attest.firmware_version.hex(),
        "qualified_signer": attest.qualified_signer.hex(),
        "extra_data": attest.extra_data.hex(),
        "selection": [[bank.name, list(indices)] for bank, indices in attest.selection],
        "signature_scheme": SCHEMES[made.scheme],
        "signature_hash": made.hash.name,
    }


def _key_claims(case: Case, ak: Public, attest: Attest) -> dict[str, Any]:
    claims: dict[str, Any] = {
        "ak_name": ak.name.hex(),
        "ak_attributes": f"{ak.attributes:08x}",
        "qualified_signer_is_endorsement_primary": qualified_name(RH_ENDORSEMENT, ak) == attest.qualified_signer,
    }
    if "ek_public" in case.files:
        ek = parse_public(case.bytes("ek_public"))
        child = qualified_name(qualified_name(RH_ENDORSEMENT, ek), ak) == attest.qualified_signer
        claims["parent"] = "EK" if child else "another key"
    return claims


def _judge_log_of_quote(case: Case, pcrs: PcrValues) -> None:
    """The log replays to the quoted values of the PCRs that the entry names, for every bank that both have."""
    log = eventlog.parse_log(case.bytes("eventlog"))
    state = eventlog_rules.judge_log(log)
    compare(case, {"secureboot": state.secure_boot})
    named = case.claims.get("replay_pcrs_from_eventlog", case.claims.get("replayed_pcrs", []))
    for bank in log.banks:
        quoted = pcrs.get(bank.name, {})
        replayed = eventlog.replay(log, bank)
        for index in named:
            if index in quoted:
                _same(f"replay of {bank.name}:{index}", quoted[index].hex(), replayed.get(index, b"").hex())
        if str(case.claims.get("pcr11", "")).endswith("then phase enter-initrd") and 11 in quoted:
            phase = bank.digest(replayed.get(11, b"") + bank.digest(b"enter-initrd"))
            _same(f"replay of {bank.name}:11 and phase", quoted[11].hex(), phase.hex())


def _judge_ima_of_quote(case: Case, pcrs: PcrValues) -> None:
    entries = ima.parse_ima(case.bytes("ima_log"))
    for bank, values in pcrs.items():
        if 10 in values:
            _same(f"replay of {bank}:10", values[10].hex(), ima.replay_ima(entries, BANKS[bank]).hex())


# --- certificates, credentials, public areas ------------------------------------------------------------------------


def judge_ek_certificate(case: Case) -> None:
    public = parse_public(case.bytes("public")) if "public" in case.files else None
    _certificate(case, "cert", public)
    if public is not None:
        ek = check_ek(public)
        claims = {
            "ek_name": ek.name.hex(),
            "ek_attributes": f"{ek.attributes:08x}",
            "ek_name_alg": ek.name_hash.name,
            "ek_symmetric": f"aes-{ek.symmetric_bits}-cfb",
        }
        compare(case, claims)


def judge_ak_certificate(case: Case) -> None:
    _certificate(case, "cert", parse_public(case.bytes("public")) if "public" in case.files else None)


def _certificate(case: Case, key: str, public: Public | None) -> None:
    """The certificate fits the key, or its own where no public area is recorded, and leads to the last of `ca`.

    Entries record no time; the leaf's first second is one at which all of them are valid.
    """
    leaf = load_certificate(case.bytes(key))
    certified = public.key if public is not None else leaf.public_key()
    if not isinstance(certified, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        raise VerificationError("a certificate holds another kind of key")
    read = read_ak_certificate if key == "ak_cert" or case.kind == "ak-cert" else read_ek_certificate
    said: TpmCertificate = read(leaf, certified)
    chain = case.files.get("ca", [])
    if chain:
        *candidates, root = [load_certificate(data) for data in chain if isinstance(data, bytes)]
        check_path(leaf, candidates, [root], leaf.not_valid_before_utc)
    if key == "cert":
        claims: dict[str, Any] = {
            "subject": said.subject,
            "issuer": said.issuer,
            "not_before": said.not_before.isoformat(),
            "not_after": said.not_after.isoformat(),
            "extended_key_usage": list(said.purposes),
            "extensions_critical": {ext.oid.dotted_string: ext.critical for ext in leaf.extensions},
        }
        for extension in leaf.extensions:
            if extension.oid == GOOGLE_INSTANCE and isinstance(extension.value, UnrecognizedExtension):
                claims["gce_instance_info_der"] = extension.value.value.hex()
        compare(case, claims)


def judge_makecredential(case: Case) -> None:
    for answer in case.json("vectors"):
        ek = check_ek(parse_public(_unhex(answer["ek_public"], "ek_public")))
        if isinstance(ek.key, ec.EllipticCurvePublicKey):
            ephemeral = ec.derive_private_key(int(answer["ephemeral_d"], 16), ek.key.curve)
            seed, point = ecc_seed(ek.key, ek.name_hash, ephemeral)
            _same("encrypted_secret", answer["encrypted_secret"], point.hex())
        else:
            seed = _unhex(answer["seed"], "seed")
        sealed = seal(ek, seed, _unhex(answer["ak_name"], "ak_name"), _unhex(answer["secret"], "secret"))
        _same("id_object", answer["id_object"], sealed.hex())


def judge_public(case: Case) -> None:
    publics = {key.removesuffix("_tpm2b"): parse_public_2b(case.bytes(key)) for key in case.files if "_tpm2b" in key}
    if "tpmt" in case.files:
        publics["ak"] = parse_public(case.bytes("tpmt"))
    for who, public in publics.items():
        compare(case, {f"{who}_name": public.name.hex(), f"{who}_attributes": f"{public.attributes:08x}"})
        if f"{who}_name" in case.files:
            _same(f"{who}_name", case.bytes(f"{who}_name").hex(), public.name.hex())
        if f"{who}_pem" in case.files:
            key = _pem_key(case, f"{who}_pem")
            spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            _same(f"{who}_pem", spki.hex(), public.spki.hex())


# --- logs and bindings ----------------------------------------------------------------------------------------------


def judge_eventlog(case: Case) -> None:
    log = eventlog.parse_log(case.bytes("eventlog"))
    replayed = {bank.name: eventlog.replay(log, bank) for bank in log.banks}
    for what in ("pcrs", "tpm_pcr5"):
        for bank, values in case.claims.get(what, {}).items():
            for index, value in (values if isinstance(values, dict) else {"5": values}).items():
                found = replayed.get(bank, {}).get(int(index), b"").hex()
                _same(f"replay of {bank}:{index}", value, found)
    state = eventlog_rules.judge_log(log)
    claims: dict[str, Any] = {
        "format": log.format,
        "banks": [bank.name for bank in log.banks],
        "events": len(log.events),
        "startup_locality": log.startup_locality,
        "exit_boot_services_event": state.exit_boot_services,
        "secureboot": state.secure_boot,
        "efi_applications": {bank: list(digests) for bank, digests in (state.efi_applications or {}).items()},
    }
    if str(case.claims.get("secureboot")).startswith("unclear") and state.secure_boot_unclear:
        del claims["secureboot"]  # recorded in words of its own: nothing is stated, and nothing must be
        _same("secureboot", None, state.secure_boot)
    compare(case, claims)


def judge_ima(case: Case) -> None:
    entries = ima.parse_ima(case.bytes("ima_log"))
    values = {bank: ima.replay_ima(entries, BANKS[bank]).hex() for bank in case.claims.get("pcr10", {})}
    compare(case, {"entries": len(entries), "pcr10": values})


def judge_pcr11(case: Case) -> None:
    sections = case.files["sections"]
    if not isinstance(sections, dict):
        raise BadEntryError("sections are no object of files")
    for bank in BANKS.keys() & case.claims.keys():
        for phases, value in case.claims[bank].items():
            passed = phases.split(":") if phases else []
            _same(f"{bank} {phases}", value, uki.predict_pcr11(sections, passed, BANKS[bank]).hex())


def judge_svsm(case: Case) -> None:
    nonce, single, services = (case.bytes(key) for key in ("nonce", "manifest_single", "manifest_services"))
    svsm.endorsed_ek(single, nonce, _unhex(case.claims.get("report_data_single"), "report_data_single"))
    claims = {
        "report_data_single": svsm.report_data(nonce, single).hex(),
        "report_data_services": svsm.report_data(nonce, services).hex(),
        "table_guid": str(svsm.SERVICES_TABLE),
        "service_guid": str(svsm.VTPM_SERVICE),
    }
    compare(case, claims)
    _same("vTPM service", single.hex(), svsm.parse_services(services).get(svsm.VTPM_SERVICE, b"").hex())


KINDS: Mapping[str, Kind] = {
    "quote": Kind(frozenset({"attest"}), judge_quote, by_default=judge_by_default),
    "quote-digest-only": Kind(frozenset({"attest"}), judge_digest_only, by_default=judge_by_default),
    "eventlog": Kind(frozenset({"eventlog"}), judge_eventlog),
    "ima-log": Kind(frozenset({"ima_log"}), judge_ima),
    "ek-cert": Kind(frozenset({"cert"}), judge_ek_certificate),
    "ak-cert": Kind(frozenset({"cert"}), judge_ak_certificate),
    "makecredential": Kind(frozenset({"vectors"}), judge_makecredential),
    "public": Kind(frozenset({"tpmt", "ak_tpm2b", "ek_tpm2b"}), judge_public),
    "pcr11": Kind(frozenset({"sections"}), judge_pcr11),
    "svsm": Kind(frozenset({"manifest_single"}), judge_svsm),
}
