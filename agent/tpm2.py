# SPDX-License-Identifier: Apache-2.0
"""A TPM 2.0 client in plain Python: the few commands that attestation needs.

Trusted Platform Module Library, Part 3 (commands). Authorization is by empty password or by a policy session, which
is all that the keys of a guest need. There are no HMAC sessions: whoever sits on the line to the TPM is inside the
guest's trust boundary.

A socket has no resource manager behind it (three objects, three sessions): whoever loads something flushes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Self

from agent.deadline import Deadline
from agent.tpm2_marshal import (
    ALG_NULL,
    ALG_SHA256,
    HASHES,
    Reader,
    name,
    pcr_selection,
    read_pcr_selection,
    tpm2b,
    u16,
    u32,
)
from agent.tpm2_transport import Transport, connect
from keys.errors import AttesterError

RH_OWNER = 0x40000001
RH_NULL = 0x40000007
RS_PW = 0x40000009  # the password session
RH_ENDORSEMENT = 0x4000000B
RH_PLATFORM = 0x4000000C

ST_NO_SESSIONS = 0x8001
ST_SESSIONS = 0x8002
CONTINUE_SESSION = 0x01
SE_POLICY = 0x01
CAP_HANDLES = 0x00000001
CAP_PCRS = 0x00000005
CAP_TPM_PROPERTIES = 0x00000006
PT_MANUFACTURER = 0x00000105
NV_OWNERREAD = 1 << 17
NV_AUTHREAD = 1 << 18

RC_RETRY = frozenset((0x922, 0x90A, 0x908))  # TPM_RC_RETRY, TESTING, YIELDED: the same command, a little later
FIRST_PAUSE = 0.001  # seconds before a command is sent again; doubles up to
LONGEST_PAUSE = 0.1

NV_CHUNK_BYTES = 512  # what the smallest TPM2_PT_NV_BUFFER_MAX in the field allows
MAX_NV_BYTES = 8192  # of an area that the agent reads
PCRS_AT_ONCE = 8  # digests in one TPML_DIGEST
PCR_READ_ATTEMPTS = 8  # a PCR that never rests is a fault, not something to wait for
MAX_HANDLES = 254  # in one TPML_HANDLE

# Names of the response codes that a guest meets; Part 2, 6.6. Format-one codes without their number bits.
RC_NAMES = {
    0x100: "TPM_RC_INITIALIZE",
    0x101: "TPM_RC_FAILURE",
    0x120: "TPM_RC_DISABLED",
    0x12F: "TPM_RC_AUTH_UNAVAILABLE",
    0x143: "TPM_RC_COMMAND_CODE",
    0x148: "TPM_RC_NV_AUTHORIZATION",
    0x149: "TPM_RC_NV_UNINITIALIZED",
    0x14A: "TPM_RC_NV_LOCKED",
    0x14C: "TPM_RC_NV_DEFINED",
    0x902: "TPM_RC_OBJECT_MEMORY",
    0x903: "TPM_RC_SESSION_MEMORY",
    0x904: "TPM_RC_MEMORY",
    0x907: "TPM_RC_LOCALITY",
    0x921: "TPM_RC_LOCKOUT",
    0x081: "TPM_RC_ASYMMETRIC",
    0x082: "TPM_RC_ATTRIBUTES",
    0x083: "TPM_RC_HASH",
    0x084: "TPM_RC_VALUE",
    0x085: "TPM_RC_HIERARCHY",
    0x08B: "TPM_RC_HANDLE",
    0x08E: "TPM_RC_AUTH_FAIL",
    0x092: "TPM_RC_SCHEME",
    0x095: "TPM_RC_SIZE",
    0x09A: "TPM_RC_INSUFFICIENT",
    0x09D: "TPM_RC_POLICY_FAIL",
    0x09F: "TPM_RC_INTEGRITY",
    0x0A2: "TPM_RC_BAD_AUTH",
    0x0A6: "TPM_RC_CURVE",
}


class TpmError(AttesterError):
    """The TPM refused a command. `rc` is its response code."""

    def __init__(self, command: str, rc: int) -> None:
        base = rc & 0xBF if rc & 0x80 else rc
        super().__init__(f"the TPM refused {command}", found=f"{RC_NAMES.get(base, 'response code')} ({rc:#x})")
        self.rc = rc


class Primary(NamedTuple):
    """A loaded key: its handle, TPMT_PUBLIC and Name."""

    handle: int
    public: bytes
    name: bytes


class Tpm:
    """One connection to a TPM. Every method raises AttesterError (TpmError: the TPM said no) or Unavailable."""

    def __init__(self, transport: Transport, deadline: Deadline) -> None:
        self._transport = transport
        self._deadline = deadline

    @classmethod
    def open(cls, spelling: str, deadline: Deadline) -> Tpm:
        """The TPM that `spelling` names (`agent.tpm2_transport`)."""
        return cls(connect(spelling, deadline), deadline)

    def close(self) -> None:
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # The frame of every command; Part 1, 18.

    def run(
        self,
        command: str,
        code: int,
        *,
        handles: Sequence[int] = (),
        sessions: Sequence[int] = (),
        parameters: bytes = b"",
        returns_handle: bool = False,
    ) -> tuple[int, Reader]:
        """(handle or 0, parameters) that the TPM answers. `sessions` authorize the first handles, one each."""
        body = b"".join(map(u32, handles))
        if sessions:
            # Each: handle, no nonce, attributes, no password.
            area = b"".join(u32(s) + u16(0) + bytes((CONTINUE_SESSION,)) + u16(0) for s in sessions)
            body += u32(len(area)) + area
        body += parameters
        tag = ST_SESSIONS if sessions else ST_NO_SESSIONS
        answer = self._answer(command, u16(tag) + u32(10 + len(body)) + u32(code) + body, tag)
        handle = answer.u32() if returns_handle else 0
        if not sessions:
            return handle, answer
        result = answer.take(answer.u32())
        for _ in sessions:
            answer.tpm2b()  # nonce
            answer.u8()
            answer.tpm2b()  # acknowledgment, empty: no session here has a key
        answer.end()
        return handle, Reader(result)

    def _answer(self, command: str, message: bytes, tag: int) -> Reader:
        pause = FIRST_PAUSE
        while True:
            answer = Reader(self._transport.exchange(message, self._deadline))
            found_tag, _, rc = answer.u16(), answer.u32(), answer.u32()
            if rc == 0:
                if found_tag != tag:
                    raise AttesterError("the TPM answered with another tag", expected=f"{tag:04x}")
                return answer
            if rc not in RC_RETRY:
                raise TpmError(command, rc)
            self._deadline.pause(pause, "the TPM")
            pause = min(2 * pause, LONGEST_PAUSE)

    # Commands, one method each; Part 3.

    def startup(self) -> None:
        """TPM2_Startup(CLEAR), for a TPM that no firmware has started; one that runs already is left as it is."""
        try:
            self.run("TPM2_Startup", 0x144, parameters=u16(0))
        except TpmError as error:
            if error.rc != 0x100:
                raise

    def get_random(self, size: int) -> bytes:
        """At most `size` random bytes."""
        _, answer = self.run("TPM2_GetRandom", 0x17B, parameters=u16(size))
        data = answer.tpm2b()
        answer.end()
        return data

    def create_primary(self, hierarchy: int, template: bytes) -> Primary:
        """The key that `hierarchy`'s seed gives for `template`: the same key each time, and flushed by the caller."""
        handle, answer = self.run(
            "TPM2_CreatePrimary",
            0x131,
            handles=(hierarchy,),
            sessions=(RS_PW,),
            # inSensitive: empty password and data. outsideInfo empty, creationPCR none.
            parameters=tpm2b(tpm2b(b"") + tpm2b(b"")) + tpm2b(template) + tpm2b(b"") + u32(0),
            returns_handle=True,
        )
        public = answer.tpm2b()
        answer.tpm2b()  # creation data
        answer.tpm2b()  # creation hash
        answer.take(2 + 4)  # ticket: tag, hierarchy
        answer.tpm2b()
        return Primary(handle, public, self._checked_name(public, answer))

    def read_public(self, handle: int) -> Primary:
        _, answer = self.run("TPM2_ReadPublic", 0x173, handles=(handle,))
        public, key_name = answer.tpm2b(), answer.tpm2b()
        answer.tpm2b()  # qualified name
        answer.end()
        return Primary(handle, public, self._checked_name(public, Reader(tpm2b(key_name))))

    @staticmethod
    def _checked_name(public: bytes, answer: Reader) -> bytes:
        found = answer.tpm2b()
        answer.end()
        if found != name(public):
            raise AttesterError("the TPM's key does not have the Name that the TPM states")
        return found

    def flush(self, handle: int) -> None:
        self.run("TPM2_FlushContext", 0x165, parameters=u32(handle))

    @contextmanager
    def primary(self, hierarchy: int, template: bytes) -> Iterator[Primary]:
        """`create_primary`, flushed at the end."""
        key = self.create_primary(hierarchy, template)
        try:
            yield key
        finally:
            self.flush(key.handle)

    @contextmanager
    def endorsement_session(self, hash_alg: int = ALG_SHA256) -> Iterator[int]:
        """A policy session that satisfies PolicySecret(endorsement), which a default EK asks for."""
        nonce = bytes(16)  # nonceCaller matters to HMAC sessions only
        handle, answer = self.run(
            "TPM2_StartAuthSession",
            0x176,
            handles=(RH_NULL, RH_NULL),
            parameters=tpm2b(nonce) + tpm2b(b"") + bytes((SE_POLICY,)) + u16(ALG_NULL) + u16(hash_alg),
            returns_handle=True,
        )
        try:
            answer.tpm2b()  # nonceTPM
            answer.end()
            self._policy_secret(handle)
            yield handle
        finally:
            self.flush(handle)

    def _policy_secret(self, session: int) -> None:
        _, answer = self.run(
            "TPM2_PolicySecret",
            0x151,
            handles=(RH_ENDORSEMENT, session),
            sessions=(RS_PW,),
            parameters=tpm2b(b"") + tpm2b(b"") + tpm2b(b"") + u32(0),  # nonceTPM, cpHashA, policyRef, expiration
        )
        answer.tpm2b()  # timeout
        answer.take(2 + 4)  # ticket: tag, hierarchy
        answer.tpm2b()
        answer.end()

    def activate_credential(
        self, key: int, ek: int, ek_session: int, credential_blob: bytes, encrypted_secret: bytes
    ) -> bytes:
        """The secret that was sealed to `ek` and to the Name of `key`. TPM_RC_INTEGRITY: it was for another pair."""
        _, answer = self.run(
            "TPM2_ActivateCredential",
            0x147,
            handles=(key, ek),
            sessions=(RS_PW, ek_session),
            parameters=tpm2b(credential_blob) + tpm2b(encrypted_secret),
        )
        secret = answer.tpm2b()
        answer.end()
        return secret

    def quote(self, key: int, qualifying_data: bytes, bank: int, indices: Iterable[int]) -> tuple[bytes, bytes]:
        """(TPMS_ATTEST, TPMT_SIGNATURE) by the key's own scheme."""
        _, answer = self.run(
            "TPM2_Quote",
            0x158,
            handles=(key,),
            sessions=(RS_PW,),
            parameters=tpm2b(qualifying_data) + u16(ALG_NULL) + pcr_selection(bank, indices),
        )
        return answer.tpm2b(), answer.rest()

    def pcr_read(self, bank: int, indices: Sequence[int]) -> dict[int, bytes]:
        """The values of one moment: the update counter is the same over all commands that it takes."""
        for _ in range(PCR_READ_ATTEMPTS):
            values: dict[int, bytes] = {}
            counters = set()
            for at in range(0, len(indices), PCRS_AT_ONCE):
                counters.add(self._pcr_read_some(bank, indices[at : at + PCRS_AT_ONCE], values))
            if len(counters) == 1:
                return values
        raise AttesterError("the PCRs change faster than they can be read")

    def _pcr_read_some(self, bank: int, indices: Sequence[int], values: dict[int, bytes]) -> int:
        _, answer = self.run("TPM2_PCR_Read", 0x17E, parameters=pcr_selection(bank, indices))
        counter = answer.u32()
        selection = read_pcr_selection(answer)
        if not any(selected for _, selected in selection):
            raise AttesterError(
                f"the TPM has no {HASHES[bank]} bank", mend="enable the bank in the firmware's settings"
            )
        if selection != [(bank, sorted(indices))] or answer.count(PCRS_AT_ONCE) != len(indices):
            raise AttesterError("the TPM answered with other PCRs than were asked for")
        for index in sorted(indices):
            values[index] = answer.tpm2b()
        answer.end()
        return counter

    def pcr_extend(self, index: int, digests: dict[int, bytes]) -> None:
        """Extend PCR `index` in each bank of `digests`."""
        parameters = u32(len(digests)) + b"".join(u16(bank) + digest for bank, digest in digests.items())
        self.run("TPM2_PCR_Extend", 0x182, handles=(index,), sessions=(RS_PW,), parameters=parameters)

    def nv_read(self, index: int) -> bytes:
        """The whole NV area, padding included, at most MAX_NV_BYTES."""
        attributes, size = self._nv_read_public(index)
        if size > MAX_NV_BYTES:
            raise AttesterError("an NV area is too large", expected=f"at most {MAX_NV_BYTES} bytes", found=f"{size}")
        # An area with AUTHREAD authorizes reading itself, by its own (empty) password.
        reader = index if attributes & NV_AUTHREAD or not attributes & NV_OWNERREAD else RH_OWNER
        data = b""
        while len(data) < size:
            asked = min(NV_CHUNK_BYTES, size - len(data))
            _, answer = self.run(
                "TPM2_NV_Read",
                0x14E,
                handles=(reader, index),
                sessions=(RS_PW,),
                parameters=u16(asked) + u16(len(data)),
            )
            piece = answer.tpm2b()
            answer.end()
            if len(piece) != asked:
                raise AttesterError("the TPM answered with another amount of NV data")
            data += piece
        return data

    def _nv_read_public(self, index: int) -> tuple[int, int]:
        """(attributes, size in bytes) of an NV area."""
        _, answer = self.run("TPM2_NV_ReadPublic", 0x169, handles=(index,))
        area = Reader(answer.tpm2b())
        answer.tpm2b()  # Name
        answer.end()
        area.take(4 + 2)  # index, name algorithm
        attributes = area.u32()
        area.tpm2b()  # policy
        size = area.u16()
        area.end()
        return attributes, size

    def handles(self, first: int, last: int) -> list[int]:
        """The handles that exist from `first` to `last`, both included; the first MAX_HANDLES of them."""
        answer = self._capability(CAP_HANDLES, first, MAX_HANDLES)
        found = [answer.u32() for _ in range(answer.count(MAX_HANDLES))]
        answer.end()
        return [handle for handle in found if first <= handle <= last]

    def banks(self) -> list[int]:
        """The hash algorithms of the PCR banks that have registers."""
        answer = self._capability(CAP_PCRS, 0, 1)
        selection = read_pcr_selection(answer)
        answer.end()
        return [bank for bank, indices in selection if indices]

    def manufacturer(self) -> str:
        """Four characters, by TCG's vendor registry."""
        answer = self._capability(CAP_TPM_PROPERTIES, PT_MANUFACTURER, 1)
        if answer.count(1) != 1 or answer.u32() != PT_MANUFACTURER:
            raise AttesterError("the TPM does not state its manufacturer")
        value = answer.take(4)
        answer.end()
        return "".join(chr(byte) if 0x20 <= byte < 0x7F else "" for byte in value).strip()

    def _capability(self, capability: int, first: int, count: int) -> Reader:
        _, answer = self.run("TPM2_GetCapability", 0x17A, parameters=u32(capability) + u32(first) + u32(count))
        answer.u8()  # moreData: no list that is asked for here goes on
        if answer.u32() != capability:
            raise AttesterError("the TPM answered with another capability")
        return answer
