# SPDX-License-Identifier: Apache-2.0
"""A broker without a network: real store, custody, tokens and verifiers, a clock that the test moves.

`House` also does what owners do, straight on the store: enough for a guest to be given a key.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from cryptography.hazmat.primitives.asymmetric import ec

from broker import attestation, release, session
from broker.appraisal.enrol import enrol_image
from broker.appraisal.images import parse_image
from broker.appraisal.instances import parse_instance
from broker.appraisal.rules import read_rule, rule_name
from broker.claims import Claims, Trusted
from broker.dossiers import Dossiers
from broker.services import Services, now_ms
from broker.signing import Signer
from broker.store.protocols import KeyState, LedgerEntry, Record, RecordKind, Store, StoredKey
from broker.store.sqlite import SqliteStore
from broker.tokens import TokenSigner
from keys import b64
from keys.custody.local import LocalCustody
from keys.messages import Challenge, InitData, ResourcePath
from keys.tee import Tee
from tests.fakes.ek_ca import EkCa
from tests.fakes.replays import check_replays
from tests.fakes.tpm_guest import FakeTpm, Guest

AUDIENCE = "https://broker.test"


class House:
    """`directory` holds the store's file. Time stands still unless the test moves `now`."""

    def __init__(self, directory: Path, *, ca: EkCa | None = None) -> None:
        self.directory = directory
        self.repeatable = True  # whether a test left the broker as it is, so that it can judge again
        self.ca = ca or EkCa()
        self.now = now_ms()  # the fake maker certifies from yesterday on
        self.custody = LocalCustody(os.urandom(32))
        self.store: Store = SqliteStore(directory / "roomkey.db")
        self.signing_key = ec.generate_private_key(ec.SECP256R1())
        self.services = Services(
            store=self.store,
            custody=self.custody,
            tokens=TokenSigner([self.signing_key], issuer="roomkey", audience=AUDIENCE, lifetime_s=300),
            signer=Signer(ec.generate_private_key(ec.SECP256R1())),
            dossiers=Dossiers(self.store, 30),
            audience=AUDIENCE,
            trusted={Tee.TPM: Trusted(roots=(self.ca.root,), certificates=(self.ca.intermediate,))},
            clock=lambda: self.now,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None and self.repeatable:
                check_replays(self.services)
        finally:
            self.store.close()

    # --- owners ---

    def put(self, kind: RecordKind, owner: str, name: str, body: dict[str, object] | None) -> int:
        """The next version of a record; with `body` None its deletion."""
        version = self.store.newest_version(kind, owner, name) + 1
        aliases = body["ids"] if body is not None and kind is RecordKind.INSTANCE else []
        assert isinstance(aliases, list)
        self.store.put_record(Record(kind, owner, name, version, body, self.now, "test"), aliases)
        return version

    def owner(self, name: str) -> None:
        self.put(RecordKind.OWNER, "", name, {"keys": []})

    def key(self, path: str, plaintext: bytes) -> None:
        owner, type_, tag = ResourcePath.parse(path)
        version = 1 + sum((key.type, key.tag) == (type_, tag) for key in self.store.keys(owner))
        sealed = self.custody.seal(owner, type_, tag, version, plaintext)
        self.store.put_key(StoredKey(owner, type_, tag, version, KeyState.ACTIVE, self.now, "test", sealed))

    def image(self, owner: str, name: str, text: str) -> int:
        return self.put(RecordKind.IMAGE, owner, name, parse_image(text).to_body())

    def rule(
        self,
        path: str,
        *,
        images: Iterable[str],
        instances: Iterable[str] = ("any",),
        platforms: Iterable[str] = ("tpm",),
    ) -> int:
        parsed = ResourcePath.parse(path)
        rule = read_rule({"images": [*images], "platforms": [*platforms], "instances": [*instances]})
        return self.put(RecordKind.RULE, parsed.owner, rule_name(parsed), rule.to_body())

    def instance(self, owner: str, name: str, tpm: FakeTpm, *, by: str) -> int:
        """Enrol `tpm` by its "ek" or its "ak"."""
        posted = {f"{by}_public": b64.std(tpm.ek_public if by == "ek" else tpm.ak_public)}
        return self.put(RecordKind.INSTANCE, owner, name, parse_instance(posted).to_body())

    # --- guests ---

    def challenge(self, guest: Guest, resource: str | None = None) -> tuple[str, Challenge]:
        path = None if resource is None else ResourcePath.parse(resource)
        issued = session.issue(guest.request(path), self.services, now=self.now)
        return issued.session_id, issued.challenge

    def attest(self, guest: Guest, resource: str | None = None, init_data: InitData | None = None) -> tuple[str, str]:
        """Session id and token."""
        session_id, challenge = self.challenge(guest, resource)
        message = guest.attestation(challenge, init_data=init_data)
        return session_id, attestation.attest(session_id, message, self.services, now=self.now)

    def release(self, path: str, session_id: str | None = None, token: str | None = None) -> dict[str, str]:
        return release.release(
            ResourcePath.parse(path), self.services, session_id=session_id, token=token, now=self.now
        )

    def flow(self, guest: Guest, path: str, resource: str | None = None) -> bytes:
        """Attest, ask for the key at `path`, open it."""
        session_id, _ = self.attest(guest, resource)
        return guest.open(self.release(path, session_id))

    # --- looking back ---

    def lines(self, owner: str, *kinds: str) -> list[LedgerEntry]:
        return self.store.entries(owner, kinds=kinds)


def claims_of(tpm: FakeTpm, *, trust: str = "ek-certificate") -> Claims:
    """What a verifier would say of `tpm`, for tests of what comes after it. Without a log."""
    return Claims(
        tee=Tee.TPM,
        instance_ids=(f"tpm-ak:{tpm.ak_name.hex()}",),
        trust=trust,
        measurements={f"sha256:{index}": value.hex() for index, value in enumerate(tpm.pcrs)},
        facts={"clock": tpm.clock, "reset_count": tpm.reset_count, "restart_count": tpm.restart_count},
    )


def draft(tpm: FakeTpm, pcrs: Iterable[int] = (0, 2, 4, 7, 8, 9)) -> str:
    """The image of what `tpm` has booted."""
    return enrol_image(claims_of(tpm), pcrs)
