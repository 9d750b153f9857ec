# SPDX-License-Identifier: Apache-2.0
"""Evidence of a TPM 2.0: a quote of all 24 PCRs, their values, and the firmware's event log.

The attestation key (AK) is a restricted P-256 key that CreatePrimary derives in the endorsement hierarchy from a
fixed template: the same key on each boot, so nothing has to be stored where a host could exchange it, and gone only
when the endorsement seed is replaced.

Where the TPM has a certificate for its endorsement key (EK), the agent declares it when it asks for the challenge and
opens the credential that the broker answers with: that ties the AK to the certified TPM (TPM 2.0 Part 1, 24).
EK templates and NV indices: TCG EK Credential Profile for TPM Family 2.0, level 0, version 2.5, sections 2.2 and B.
"""

from __future__ import annotations

import hashlib
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from agent import tpm2
from agent.tpm2_marshal import (
    ALG_ECDSA,
    ALG_SHA256,
    ALG_SHA384,
    CURVE_P256,
    CURVE_P384,
    NO_SCHEME,
    NO_SYMMETRIC,
    PCRS,
    Reader,
    aes_cfb,
    ecc_template,
    read_quote,
    rsa_template,
    u16,
)
from keys import b64
from keys.binding import activation_proof, activation_proof_key, tpm_qualifying_data
from keys.errors import AttesterError, ProtocolError, RoomkeyError
from keys.jwe import ACTIVATION_BYTES
from keys.messages import MAX_CERTIFICATES, Challenge, Request, ResourcePath, TpmDeclaration
from keys.tee import Tee

if TYPE_CHECKING:
    from agent.config import Settings
    from agent.deadline import Deadline

ALL_PCRS = range(PCRS)
QUOTE_ATTEMPTS = 5  # quotes until the PCRs rest; IMA extends PCR 10 at any time
MAX_EVENT_LOG_BYTES = 176 * 1024  # as base64 it fits, with the rest, into a message of 256 KiB

CHAIN_FIRST, CHAIN_LAST = 0x01C00100, 0x01C001FF  # NV indices of the EK certificates' issuers
PERSISTENT_FIRST, PERSISTENT_LAST = 0x81010000, 0x8101FFFF  # persistent keys of the endorsement hierarchy

# fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA, restricted, sign. noDA: the password is empty anyway,
# and a lockout that some program caused must not keep the machine from booting.
AK_ATTRIBUTES = 0x00050472
AK_TEMPLATE = ecc_template(
    ALG_SHA256, AK_ATTRIBUTES, b"", NO_SYMMETRIC, u16(ALG_ECDSA) + u16(ALG_SHA256), CURVE_P256, bytes(32)
)

# fixedTPM, fixedParent, sensitiveDataOrigin, adminWithPolicy, restricted, decrypt; the high range adds userWithAuth.
EK_LOW, EK_HIGH = 0x000300B2, 0x000300F2
POLICY_A_SHA256 = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")
POLICY_B_SHA256 = bytes.fromhex("ca3d0a99a2b93906f7a3342414efcfb3a385d44cd1fd459089d19b5071c0b7a0")
POLICY_B_SHA384 = bytes.fromhex(
    "b26e7d28d11a50bc53d882bcf5fd3a1a074148bb35d3b4e4cb1c0ad9bde419cacb47ba09699646150f9fc000f3f80e12"
)


class EkProfile(NamedTuple):
    """One of TCG's default endorsement keys."""

    label: str
    certificate_index: int
    template: bytes
    unique_bytes: int  # bytes of the template that stand for the public key, at its end
    by_policy: bool  # used through PolicySecret(endorsement), not by the empty password


# In order of preference: elliptic curves first, a TPM needs seconds for an RSA key.
EK_PROFILES = (
    EkProfile(
        "P-256, low range", 0x01C0000A,
        ecc_template(ALG_SHA256, EK_LOW, POLICY_A_SHA256, aes_cfb(128), NO_SCHEME, CURVE_P256, bytes(32)),
        68, by_policy=True,
    ),
    EkProfile(
        "P-384, high range", 0x01C00016,
        ecc_template(ALG_SHA384, EK_HIGH, POLICY_B_SHA384, aes_cfb(256), NO_SCHEME, CURVE_P384, b""),
        4, by_policy=False,
    ),
    EkProfile(
        "P-256, high range", 0x01C00014,
        ecc_template(ALG_SHA256, EK_HIGH, POLICY_B_SHA256, aes_cfb(128), NO_SCHEME, CURVE_P256, b""),
        4, by_policy=False,
    ),
    EkProfile(
        "RSA-2048, low range", 0x01C00002,
        rsa_template(ALG_SHA256, EK_LOW, POLICY_A_SHA256, aes_cfb(128), NO_SCHEME, 2048, bytes(256)),
        258, by_policy=True,
    ),
)  # fmt: skip


class Ek(NamedTuple):
    """A certified endorsement key: how it is used, its loaded key, and its certificates, leaf first."""

    profile: EkProfile
    key: tpm2.Primary
    certificates: tuple[bytes, ...]


class TpmAttester:
    """The TPM of this machine, from the first command to the flush of all that was loaded."""

    def __init__(self, settings: Settings, deadline: Deadline) -> None:
        self._settings = settings
        self._deadline = deadline
        self._stack = ExitStack()
        self._ek: Ek | None = None

    def __enter__(self) -> Self:
        with self._stack as stack:
            self._tpm = stack.enter_context(tpm2.Tpm.open(self._settings.tpm, self._deadline))
            self._ak = stack.enter_context(self._tpm.primary(tpm2.RH_ENDORSEMENT, AK_TEMPLATE))
            self._ek = self._find_ek(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        # A key that cannot be flushed, because no time is left, is no reason to lose a secret or another error: the
        # kernel's resource manager flushes it when its device is closed, which happens whatever is raised.
        with suppress(RoomkeyError):
            self._stack.close()

    @property
    def ak_name(self) -> bytes:
        """nameAlg and digest, 34 bytes."""
        return self._ak.name

    @property
    def ek(self) -> Ek | None:
        """The certified EK, or None on a TPM without a certificate that fits its key."""
        return self._ek

    def request(self, resource: ResourcePath) -> Request:
        if self._ek is None:
            return Request(Tee.TPM, resource)
        return Request(Tee.TPM, resource, TpmDeclaration(self._ak.public, self._ek.key.public, self._ek.certificates))

    def accept(self, challenge: Challenge) -> bytes | None:
        """The secret of the challenge's credential. A broker that leaves the credential out, or sends one unasked, is
        refused: a declared EK must not be talked away.
        """
        if (challenge.tpm is None) != (self._ek is None):
            raise ProtocolError("the challenge does not fit what this TPM declared", expected="a credential iff an EK")
        if challenge.tpm is None or self._ek is None:
            return None
        with ExitStack() as stack:
            authorization = tpm2.RS_PW
            if self._ek.profile.by_policy:
                authorization = stack.enter_context(self._tpm.endorsement_session())
            secret = self._tpm.activate_credential(self._ak.handle, self._ek.key.handle, authorization, *challenge.tpm)
        if len(secret) != ACTIVATION_BYTES:
            raise ProtocolError("the activation secret has another length", expected=f"{ACTIVATION_BYTES} bytes")
        return secret

    def evidence(self, report_data: bytes, activation: bytes | None = None) -> dict[str, Any]:
        """Roomkey's TPM evidence; the PCR values are exactly those that the quote covers."""
        qualifying_data = tpm_qualifying_data(report_data)
        attest, signature, values = self._quote(qualifying_data)
        evidence: dict[str, Any] = {
            "ak_public": b64.std(self._ak.public),
            "attest": b64.std(attest),
            "signature": b64.std(signature),
            "pcrs": {"sha256": {str(index): value.hex() for index, value in values.items()}},
        }
        if log := read_event_log(self._settings.eventlog):
            evidence["eventlog"] = b64.std(log)
        if activation is not None:
            proof = activation_proof(activation_proof_key(activation), qualifying_data)
            evidence["activation"] = b64.std(proof)
        return evidence

    def instance(self) -> dict[str, Any]:
        return {
            "ak_public": b64.std(self._ak.public),
            "ak_name": self._ak.name.hex(),
            "ek_public": None if self._ek is None else b64.std(self._ek.key.public),
            "ek_certificates": [] if self._ek is None else [b64.std(der) for der in self._ek.certificates],
        }

    def _quote(self, qualifying_data: bytes) -> tuple[bytes, bytes, dict[int, bytes]]:
        """(TPMS_ATTEST, TPMT_SIGNATURE, PCR values that give the quoted digest)."""
        for _ in range(QUOTE_ATTEMPTS):
            attest, signature = self._tpm.quote(self._ak.handle, qualifying_data, ALG_SHA256, ALL_PCRS)
            values = self._tpm.pcr_read(ALG_SHA256, ALL_PCRS)
            quoted = read_quote(attest)
            if quoted.extra_data != qualifying_data or quoted.selection != [(ALG_SHA256, list(ALL_PCRS))]:
                raise AttesterError("the TPM quoted something else than was asked for")
            if hashlib.sha256(b"".join(values.values())).digest() == quoted.pcr_digest:
                return attest, signature, values
        raise AttesterError("the PCRs change faster than they can be quoted")

    def _find_ek(self, stack: ExitStack) -> Ek | None:
        """The preferred EK that has a certificate; loaded if it is not persistent, flushed by `stack`."""
        present = self._tpm.handles(min(p.certificate_index for p in EK_PROFILES), CHAIN_LAST)
        for profile in EK_PROFILES:
            if profile.certificate_index in present:
                certificate = self._certificate(profile)
                if key := self._ek_of(profile, certificate, stack):
                    return Ek(profile, key, (certificate, *self._chain(present)))
        return None

    def _certificate(self, profile: EkProfile) -> bytes:
        stored = split_certificates(self._nv(profile.certificate_index))
        return stored[0] if stored else b""

    def _ek_of(self, profile: EkProfile, certificate: bytes, stack: ExitStack) -> tpm2.Primary | None:
        """The key of `profile` if it is the certified one: a persistent copy, or made anew."""
        prefix = profile.template[: -profile.unique_bytes]
        for handle in self._tpm.handles(PERSISTENT_FIRST, PERSISTENT_LAST):
            key = self._tpm.read_public(handle)
            if key.public.startswith(prefix) and certifies(certificate, key.public, prefix):
                return key
        with ExitStack() as attempt:
            key = attempt.enter_context(self._tpm.primary(tpm2.RH_ENDORSEMENT, profile.template))
            if not certifies(certificate, key.public, prefix):
                return None
            stack.push(attempt.pop_all())
            return key

    def _chain(self, present: list[int]) -> list[bytes]:
        """Issuers' certificates from NV, as many as a message may carry beside the leaf."""
        stored = b"".join(self._nv(index) for index in present if index >= CHAIN_FIRST)
        return split_certificates(stored)[: MAX_CERTIFICATES - 1]

    def _nv(self, index: int) -> bytes:
        """What an NV area holds; nothing where the TPM does not let it be read, as if it were not there."""
        try:
            return self._tpm.nv_read(index)
        except tpm2.TpmError:
            return b""


def certifies(certificate: bytes, public: bytes, prefix: bytes) -> bool:
    """Does the DER `certificate` hold the key of the TPMT_PUBLIC that begins with `prefix`?

    Looks for the key's bytes anywhere: enough to choose among this TPM's own keys, and nothing is trusted for it. The
    broker parses the certificate and compares keys.
    """
    reader = Reader(public[len(prefix) :])
    first = reader.tpm2b()
    second = reader.rest()  # RSA: nothing; ECC: y
    return first + second[2:] in certificate


def split_certificates(data: bytes) -> list[bytes]:
    """The DER certificates that follow one another at the start of `data`.

    NV areas are often larger than what is in them and filled with 00 or ff; that, or anything else that is not a whole
    SEQUENCE, ends the list.
    """
    certificates = []
    while size := der_bytes(data):
        certificates.append(data[:size])
        data = data[size:]
    return certificates


def der_bytes(data: bytes) -> int:
    """Bytes of the DER SEQUENCE at the start of `data`; 0 if there is no whole one of at most 65 kB. X.690, 8.1.3."""
    size = 0
    if len(data) >= 4 and data[0] == 0x30:
        if data[1] < 0x80:
            size = 2 + data[1]
        elif data[1] == 0x81:
            size = 3 + data[2]
        elif data[1] == 0x82:
            size = 4 + int.from_bytes(data[2:4], "big")
    return size if size <= len(data) else 0


def read_event_log(path: str) -> bytes:
    """The firmware's event log, or nothing where `path` is empty or no such file exists (the log only explains).

    Raises AttesterError for one that cannot be read or is too long to send.
    """
    if not path:
        return b""
    try:
        with open(path, "rb") as file:  # noqa: PTH123  pathlib would cost milliseconds at boot
            log = file.read(MAX_EVENT_LOG_BYTES + 1)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise AttesterError(f"the event log {path} cannot be read", found=error.strerror, mend="run as root") from None
    if len(log) > MAX_EVENT_LOG_BYTES:
        raise AttesterError(
            f"the event log {path} is too long to send",
            expected=f"at most {MAX_EVENT_LOG_BYTES} bytes",
            mend='set eventlog = "" in the agent\'s config, and rules on PCR values',
        )
    return log
