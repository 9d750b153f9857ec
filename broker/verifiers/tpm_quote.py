# SPDX-License-Identifier: Apache-2.0
"""Is this TPM quote genuine, fresh, and about which PCR values?

The checks, in order (TCG TPM 2.0 Library, Part 3, 18.4 TPM2_Quote; Part 2, 10.12):

    (1) attestation, signature and AK public area parse, to the last byte; magic and type are those of a quote
    (2) the AK's attributes: it lives in one TPM, was made there, and signs only what that TPM generated
    (3) the signature's scheme and hash are the AK's, the hash is SHA-256, SHA-384 or SHA-512
    (4) the signature is right, over the whole TPMS_ATTEST
    (5) extraData is exactly the expected qualifying data
    (6) the signed selection names every bank once, and the supplied values are exactly those it selects
    (7) pcrDigest is the digest of those values in the signed order

Whose AK it is, and whether to trust it, is not decided here: see `broker.verifiers.tpm`.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from broker.trace import Stage, Trace
from broker.verifiers.roca import has_roca_fingerprint
from broker.verifiers.tpm_structures import (
    ALG_RSAPSS,
    BANKS,
    DECRYPT,
    ENCRYPTED_DUPLICATION,
    FIXED_PARENT,
    FIXED_TPM,
    RESTRICTED,
    SCHEMES,
    SENSITIVE_DATA_ORIGIN,
    SHA1,
    SIGN,
    Attest,
    Hash,
    Public,
    Signature,
    parse_attest,
    parse_signature,
)

# Of an attestation key: it cannot leave its TPM, was made inside it, and signs nothing that only looks like a quote.
AK_NEEDED = FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN | RESTRICTED | SIGN
AK_FORBIDDEN = DECRYPT | ENCRYPTED_DUPLICATION

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey
PcrValues = Mapping[str, Mapping[int, bytes]]  # bank name -> PCR index -> value


@dataclass(frozen=True, slots=True)
class VerifiedQuote:
    """What the AK vouches for. `pcrs` holds exactly the signed selection, SHA-1 banks included."""

    attest: Attest
    signature: Signature
    pcrs: PcrValues


def verify_quote(
    *, attest: bytes, signature: bytes, ak: Public, qualifying_data: bytes, pcrs: PcrValues, trace: Trace
) -> VerifiedQuote:
    """The verified content of a quote made by `ak`, checks (1) to (7).

    `attest` is the TPMS_ATTEST, `signature` the TPMT_SIGNATURE, `pcrs` the values that are claimed to have been quoted.
    Raises VerificationError; every check is in `trace`.
    """
    check_ak(ak, trace)
    quoted, made = verify_signed_attest(attest, signature, ak.key, qualifying_data, trace)
    # (3) the second half: a restricted key has one scheme, and the TPM signs with no other
    trace.require(
        Stage.ROOT_OF_TRUST,
        "signature scheme is the attestation key's",
        (made.scheme, made.hash) == (ak.scheme, ak.scheme_hash),
        expected=f"{SCHEMES.get(ak.scheme or 0)} {ak.scheme_hash and ak.scheme_hash.name}",
        found=f"{SCHEMES[made.scheme]} {made.hash.name}",
    )
    check_pcr_values(quoted, made.hash, pcrs, trace)
    return VerifiedQuote(quoted, made, pcrs)


def check_ak(ak: Public, trace: Trace) -> None:
    """Check (2), and that the key is no weak one. Raises VerificationError."""
    with trace.recording(Stage.ROOT_OF_TRUST):
        ak.require_attributes("attestation key", needed=AK_NEEDED, forbidden=AK_FORBIDDEN)
    found = f"{ak.attributes:08x}"
    trace.check(Stage.ROOT_OF_TRUST, "attestation key is bound to one TPM and restricted", True, found=found)
    weak = isinstance(ak.key, rsa.RSAPublicKey) and has_roca_fingerprint(ak.key.public_numbers().n)
    trace.require(
        Stage.ROOT_OF_TRUST,
        "attestation key is not a weak RSA key",
        not weak,
        expected="no ROCA fingerprint (CVE-2017-15361)",
        mend="use an ECC attestation key, or update the TPM's firmware and make a new key",
    )


def verify_signed_attest(
    attest: bytes, signature: bytes, key: PublicKey, qualifying_data: bytes, trace: Trace
) -> tuple[Attest, Signature]:
    """Checks (1), (3), (4) and (5), for a key that may be known without its public area. Raises VerificationError."""
    # (1) strictly, magic and type included
    with trace.recording(Stage.ROOT_OF_TRUST):
        made = parse_signature(signature)
    with trace.recording(Stage.ROOT_OF_TRUST):
        quoted = parse_attest(attest)
    # (3) the first half: SHA-1 is no hash to sign with
    trace.require(
        Stage.ROOT_OF_TRUST,
        "signature hash is strong",
        made.hash is not SHA1,
        expected="sha256, sha384 or sha512",
        found=made.hash.name,
        mend="make an attestation key whose scheme uses SHA-256 or better",
    )
    # (4) over the bytes as they came, not over what was parsed
    trace.require(Stage.ROOT_OF_TRUST, "quote is signed by the attestation key", _signed(key, made, attest))
    # (5) exact: neither a prefix nor zero padding stands for the same challenge
    trace.require(
        Stage.TRUST,
        "quote answers this challenge (extraData)",
        hmac.compare_digest(quoted.extra_data, qualifying_data),
        expected=qualifying_data,
        found=quoted.extra_data,
        mend="evidence is good for one challenge only: attest again",
    )
    return quoted, made


def _signed(key: PublicKey, signature: Signature, message: bytes) -> bool:
    """Check (4) in one place, where pyca's exception becomes a verdict; the caller raises."""
    algorithm = signature.hash.algorithm
    try:
        if isinstance(key, rsa.RSAPublicKey) and isinstance(signature.value, bytes):
            # The salt's length differs between TPMs: the digest's or the longest that fits.
            pss = padding.PSS(mgf=padding.MGF1(algorithm), salt_length=padding.PSS.AUTO)
            key.verify(
                signature.value, message, pss if signature.scheme == ALG_RSAPSS else padding.PKCS1v15(), algorithm
            )
        elif isinstance(key, ec.EllipticCurvePublicKey) and isinstance(signature.value, tuple):
            key.verify(encode_dss_signature(*signature.value), message, ec.ECDSA(algorithm))
        else:  # an RSA scheme with an ECC key or the other way round
            return False
    except InvalidSignature:
        return False
    return True


def check_pcr_values(attest: Attest, hashed: Hash, pcrs: PcrValues, trace: Trace) -> None:
    """Checks (6) and (7): every value gets its name from the signed bytes. Raises VerificationError.

    `hashed` is the hash of the signature, with which the TPM made pcrDigest whatever the banks are.
    """
    # (6) The TPM signs a list that names a bank twice; such a list can put PCR 16, which anyone resets, into the place
    # where a reader expects PCR 4.
    banks = [bank.name for bank, _ in attest.selection]
    trace.require(
        Stage.MEASUREMENT,
        "signed selection names every bank once",
        len(set(banks)) == len(banks),
        found=" ".join(banks),
    )
    selected = {bank.name: indices for bank, indices in attest.selection if indices}
    supplied = {bank: tuple(sorted(values)) for bank, values in pcrs.items() if values}
    trace.require(
        Stage.MEASUREMENT,
        "supplied PCR values are those of the signed selection",
        selected == supplied,
        expected=_words(selected),
        found=_words(supplied),
    )
    wrong = [
        f"{bank}:{index}" for bank, values in pcrs.items() for index in values if len(values[index]) != BANKS[bank].size
    ]
    trace.require(Stage.MEASUREMENT, "PCR values have their bank's length", not wrong, found=" ".join(wrong))
    # (7) in the order of the list, ascending within a bank
    digest = hashed.digest(b"".join(pcrs[bank][index] for bank, indices in selected.items() for index in indices))
    trace.require(
        Stage.MEASUREMENT,
        "PCR values are what the TPM quoted (pcrDigest)",
        hmac.compare_digest(digest, attest.pcr_digest),
        expected=attest.pcr_digest,
        found=digest,
        mend="read the PCRs again and quote again: one of them was extended in between",
    )


def _words(selection: Mapping[str, tuple[int, ...]]) -> str:
    return "; ".join(f"{bank}: {' '.join(map(str, indices))}" for bank, indices in selection.items())
