# SPDX-License-Identifier: Apache-2.0
"""Release: the key goes to exactly the guest that the owner approved, after the line about it is durable."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from broker import attestation, ledger, release, session
from broker.appraisal.enrol import enrol_image
from broker.appraisal.instances import parse_instance
from broker.claims import Claims
from broker.store.protocols import LedgerEntry, RecordKind
from keys import b64, envelope, jwe, jwk, strictjson
from keys.custody.local import LocalCustody
from keys.errors import (
    AppraisalDenied,
    FreshnessError,
    ReleaseDenied,
    Unauthorized,
    Unavailable,
    VerificationError,
)
from keys.messages import ResourcePath
from tests.fakes.boot import Boot
from tests.fakes.house import House, draft
from tests.fakes.tpm_guest import FakeTpm, Guest

PATH = "acme/disk/root"
SECRET = b"correct horse battery staple \x00\xff"


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """A broker where acme approved one boot for any vendor's TPM."""
    with House(tmp_path) as house:
        tpm = FakeTpm(house.ca)
        tpm.boot(Boot())
        house.owner("acme")
        house.key(PATH, SECRET)
        house.image("acme", "debian", draft(tpm))
        house.rule(PATH, images=["debian"])
        yield house


@pytest.fixture
def tpm(house: House) -> FakeTpm:
    tpm = FakeTpm(house.ca)
    tpm.boot(Boot())
    return tpm


def denied(house: House, guest: Guest, path: str = PATH, *, hint: str | None = None) -> LedgerEntry:
    """The line about a genuine guest that must be denied the key at `path`."""
    session_id, _ = house.attest(guest, hint)
    with pytest.raises(ReleaseDenied) as caught:
        house.release(path, session_id)
    # All that is said to the guest is the same for every reason.
    assert (str(caught.value), caught.value.mend) == ("the key is not released to this guest", None)
    owner = path.partition("/")[0]
    [line] = [line for name in (owner, "") for line in house.lines(name) if line.id == caught.value.decision]
    assert (line.kind, line.verdict, line.body["key"]) == ("release", "denied", path)
    return line


def untouched(_house: House) -> None:
    """Leaves the broker as it is."""


def failures(line: LedgerEntry) -> list[str]:
    return [check["name"] for check in line.body["trace"] if check["verdict"] == "failed"]


# --- to whom it goes ---


@pytest.mark.parametrize(
    "key",
    [lambda: ec.generate_private_key(ec.SECP256R1()), lambda: ec.generate_private_key(ec.SECP521R1())],
)
def test_an_approved_guest_opens_the_key(house: House, tpm: FakeTpm, key: Callable[[], Any]) -> None:
    """A guest with the approved boot gets the bytes that the owner stored, wrapped for its TPM."""
    guest = Guest(tpm, declare=True, key=key())
    session_id, _ = house.attest(guest, PATH)
    wrapped = house.release(PATH, session_id)
    assert guest.open(wrapped) == SECRET
    with pytest.raises(Exception, match="wrapped another way"):
        jwe.unseal(wrapped, guest.key)  # type: ignore[arg-type]


def test_the_activation_secret_is_really_mixed_in(house: House, tpm: FakeTpm) -> None:
    """The ephemeral key alone, with any other secret, opens nothing."""
    guest = Guest(tpm, declare=True)
    session_id, _ = house.attest(guest)
    guest.activation = bytes(32)
    with pytest.raises(VerificationError):
        guest.open(house.release(PATH, session_id))


@pytest.mark.parametrize("stock", [False, True])
@pytest.mark.parametrize("kind", ["ec", "rsa"])
def test_an_enrolled_guest_opens_the_key(house: House, tpm: FakeTpm, stock: bool, kind: str) -> None:
    """A guest trusted by enrolment gets the plain protocol's wrapping, for EC and RSA keys, and stock guests too."""
    house.instance("acme", "web-1", tpm, by="ak")
    house.rule(PATH, images=["debian"], instances=["web-1"])
    key = rsa.generate_private_key(65537, 2048) if kind == "rsa" else None
    assert house.flow(Guest(tpm, stock=stock, key=key), PATH) == SECRET


def test_an_instance_enrolled_by_its_ek_opens_the_key(house: House, tpm: FakeTpm) -> None:
    """A rule that names a machine by its endorsement key lets it in and no other of the same maker."""
    house.instance("acme", "web-1", tpm, by="ek")
    house.rule(PATH, images=["debian"], instances=["web-1"])
    assert house.flow(Guest(tpm, declare=True), PATH) == SECRET
    other = FakeTpm(house.ca)
    other.boot(Boot())
    assert failures(denied(house, Guest(other, declare=True))) == ["release rule names the instance"]


def test_the_line_says_what_was_released_to_whom(house: House, tpm: FakeTpm) -> None:
    """Key version, image, instance, evidence and every check from the quote to custody are in the ledger."""
    house.instance("acme", "web-1", tpm, by="ek")
    house.rule(PATH, images=["debian@1"], instances=["web-1"])
    house.flow(Guest(tpm, declare=True), PATH, PATH)
    line, attested = house.lines("acme")
    assert (line.kind, line.verdict, line.subject) == ("release", "released", attested.subject)
    assert (line.body["key"], line.body["version"]) == (PATH, 1)
    assert (line.body["image"], line.body["names"]) == ("debian@1", ["web-1"])
    assert line.body["evidence"] == attested.body["evidence"]
    assert line.body["trace"][: len(attested.body["trace"])] == attested.body["trace"]
    assert line.body["trace"][-1]["name"] == "custody opens the key"
    assert not failures(line)
    assert house.store.verify_chain() == 2


def test_no_secret_is_in_the_ledger(house: House, tpm: FakeTpm, tmp_path: Path) -> None:
    """After a release the stored key is nowhere in the store."""
    assert house.flow(Guest(tpm, declare=True), PATH) == SECRET
    with closing(sqlite3.connect(tmp_path / "roomkey.db")) as connection:
        dump = "\n".join(connection.iterdump())
    assert SECRET.hex() not in dump.lower()
    assert "correct horse" not in dump


def test_the_newest_version_is_released(house: House, tpm: FakeTpm) -> None:
    """After a rotation the guest gets the new key."""
    house.key(PATH, b"rotated")
    assert house.flow(Guest(tpm, declare=True), PATH) == b"rotated"
    assert house.lines("acme")[0].body["version"] == 2


# --- by which credential ---


def test_a_token_is_as_good_as_its_session(house: House, tpm: FakeTpm) -> None:
    """The bearer flow releases to the key in the attestation that the token stands for, also beside a dead cookie."""
    guest = Guest(tpm, declare=True)
    _, token = house.attest(guest)
    assert guest.open(house.release(PATH, None, token)) == SECRET
    assert guest.open(house.release(PATH, "0" * 32, token)) == SECRET


def test_the_session_comes_first(house: House, tpm: FakeTpm) -> None:
    """With an attested session the token is not even looked at."""
    guest = Guest(tpm, declare=True)
    session_id, _ = house.attest(guest)
    assert guest.open(house.release(PATH, session_id, "not a token")) == SECRET


def test_without_session_and_token_there_is_nothing_to_decide(house: House, tpm: FakeTpm) -> None:
    """A challenge that nobody answered, an unknown session, none at all: FreshnessError and no line."""
    session_id, _ = house.challenge(Guest(tpm, declare=True))
    for given in (session_id, "0" * 32, "", None):
        with pytest.raises(FreshnessError):
            house.release(PATH, given)
    assert house.lines("acme") == []


def test_an_attestation_expires(house: House, tpm: FakeTpm) -> None:
    """Five minutes after it was judged the session is worth nothing, and nor is the token."""
    session_id, token = house.attest(Guest(tpm, declare=True))
    house.now += 300_000
    with pytest.raises(FreshnessError):
        house.release(PATH, session_id)
    with pytest.raises(Unauthorized):
        house.release(PATH, session_id, token)


@pytest.mark.parametrize("id_", ["d-unknown", "' OR 1=1 --"])
def test_a_token_must_stand_for_an_attestation(house: House, id_: str) -> None:
    """A token that is signed by us but stands for nothing that the store remembers is refused."""
    token = house.services.tokens.issue({}, token_id=id_, now=house.now)
    with pytest.raises(Unauthorized, match="no attestation"):
        house.release(PATH, None, token)


def test_a_bad_token_is_refused(house: House, tpm: FakeTpm) -> None:
    """A token of somebody else is Unauthorized."""
    _, token = house.attest(Guest(tpm, declare=True))
    with pytest.raises(Unauthorized):
        house.release(PATH, None, token[:-2] + ("Ag" if token.endswith("AA") else "AA"))


def test_a_session_may_fetch_only_what_it_announced(house: House, tpm: FakeTpm) -> None:
    """A session that named one key is denied every other, by cookie and by token, also one it would otherwise get."""
    house.key("acme/disk/data", b"data")
    house.rule("acme/disk/data", images=["debian"])
    guest = Guest(tpm, declare=True)
    session_id, token = house.attest(guest, PATH)
    for credential in ((session_id, None), (None, token)):
        with pytest.raises(ReleaseDenied):
            house.release("acme/disk/data", *credential)
        assert failures(house.lines("acme")[0]) == ["session asks for the key that it announced"]
    assert guest.open(house.release(PATH, session_id)) == SECRET
    assert house.flow(Guest(tpm, declare=True), "acme/disk/data") == b"data"


# --- what is denied ---


def test_another_kernel_is_denied_and_named(house: House, tpm: FakeTpm) -> None:
    """A changed kernel shows in the PCRs it is measured into and, with the enrolled log at hand, by its event."""
    session_id, _ = house.attest(Guest(tpm, declare=True))
    held = house.store.session_attestation(session.store_name(session_id), house.now)
    assert held is not None
    claims = Claims.from_json(held[1]["claims"])
    house.image("acme", "debian", enrol_image(claims, (0, 4, 7, 8, 9)))
    tampered = FakeTpm(house.ca)
    tampered.boot(Boot(kernel=b"another kernel"))
    line = denied(house, Guest(tampered, declare=True))
    assert failures(line) == [
        "PCR 4 (boot applications) is as in image debian@2",
        "PCR 4 (boot applications): event 3 was changed",
        "PCR 9 (files read by the boot loader, initrd) is as in image debian@2",
        "PCR 9 (files read by the boot loader, initrd): event 1 was changed",
    ]
    assert "vmlinuz" in str(line.body["trace"])


@pytest.mark.parametrize(
    ("prepare", "path", "reasons"),
    [
        (untouched, "nobody/disk/root", ["key exists", "key has a release rule"]),
        (untouched, "acme/disk/none", ["key exists", "key has a release rule"]),
        (lambda house: house.store.destroy_key("acme", "disk", "root"), PATH, ["key exists"]),
        (lambda house: house.put(RecordKind.RULE, "acme", "disk/root", None), PATH, ["key has a release rule"]),
        (lambda house: house.key("acme/disk/new", b"x"), "acme/disk/new", ["key has a release rule"]),
        (lambda house: house.rule("acme/disk/none", images=["debian"]), "acme/disk/none", ["key exists"]),
        (
            lambda house: house.put(RecordKind.IMAGE, "acme", "debian", None),
            PATH,
            ["an image of the release rule exists for this platform"],
        ),
        (
            lambda house: house.rule(PATH, images=["debian@7"]),
            PATH,
            ["image debian@1 may still be used"],
        ),
        (
            lambda house: house.rule(PATH, images=["debian"], instances=["web-1"]),
            PATH,
            ["release rule names the instance"],
        ),
        (lambda house: house.put(RecordKind.OWNER, "", "acme", None), PATH, ["key exists", "key has a release rule"]),
    ],
)
def test_what_is_missing_denies(
    house: House, tpm: FakeTpm, prepare: Callable[[House], object], path: str, reasons: list[str]
) -> None:
    """No owner, key, rule, image or instance: denied in the same words, and the line names what is missing."""
    prepare(house)
    assert failures(denied(house, Guest(tpm, declare=True), path)) == reasons


def test_a_bare_name_means_the_newest_image(house: House, tpm: FakeTpm) -> None:
    """A new version of the image replaces the old one in a rule with a bare name, and not in one that pins it."""
    updated = FakeTpm(house.ca)
    updated.boot(Boot(kernel=b"kernel 2"))
    house.image("acme", "debian", draft(updated))
    assert house.flow(Guest(updated, declare=True), PATH) == SECRET
    assert denied(house, Guest(tpm, declare=True)).body["image"] is None
    house.rule(PATH, images=["debian@1"])
    assert house.flow(Guest(tpm, declare=True), PATH) == SECRET
    denied(house, Guest(updated, declare=True))
    house.rule(PATH, images=["debian@1", "debian"])
    for either in (tpm, updated):
        assert house.flow(Guest(either, declare=True), PATH) == SECRET


def test_an_enrolment_counts_for_its_owner_alone(house: House, tpm: FakeTpm) -> None:
    """A key that another owner enrolled, even under the very name in the rule, opens nothing of acme's."""
    house.owner("other")
    house.instance("other", "web-1", tpm, by="ak")
    house.rule(PATH, images=["debian"], instances=["web-1"])
    assert failures(denied(house, Guest(tpm))) == ["release rule names the instance"]
    house.rule(PATH, images=["debian"])
    assert failures(denied(house, Guest(tpm))) == ["a configured vendor vouches for the hardware"]


def test_a_deleted_instance_is_denied_at_once(house: House, tpm: FakeTpm) -> None:
    """Revocation takes effect on sessions that are already attested."""
    house.instance("acme", "web-1", tpm, by="ak")
    house.rule(PATH, images=["debian"], instances=["web-1"])
    guest = Guest(tpm)
    session_id, _ = house.attest(guest)
    assert guest.open(house.release(PATH, session_id)) == SECRET
    house.put(RecordKind.INSTANCE, "acme", "web-1", None)
    with pytest.raises(ReleaseDenied):
        house.release(PATH, session_id)


# --- the clock ---


def test_a_machine_put_back_to_a_snapshot_is_denied(house: House, tpm: FakeTpm) -> None:
    """After a release, evidence with an older clock is denied until the owner readmits the machine; newer goes on."""
    snapshot = (tpm.clock, tpm.reset_count)
    assert house.flow(Guest(tpm, declare=True), PATH) == SECRET
    house.now += 1000
    forward = (tpm.clock, tpm.reset_count)
    tpm.clock, tpm.reset_count = snapshot[0] - 500, snapshot[1]
    line = denied(house, Guest(tpm, declare=True))
    assert failures(line) == ["TPM's clock goes on from where it was last seen"]
    # A denial does not lower the mark: the same again is denied again.
    denied(house, Guest(tpm, declare=True))
    ledger.readmit(house.services, owner="acme", ids=[line.subject], who="alice", why="restored", now=house.now)
    assert house.flow(Guest(tpm, declare=True), PATH) == SECRET
    tpm.clock, tpm.reset_count = forward
    house.now += 1000
    assert house.flow(Guest(tpm, declare=True), PATH) == SECRET


def test_a_readmission_is_a_line_of_its_own(house: House) -> None:
    """Who readmitted which machine and why is in the ledger, one line for each of its ids."""
    ledger.readmit(
        house.services, owner="acme", ids=["tpm-ek:1", "tpm-ak:2"], who="alice", why="restored", now=house.now
    )
    assert [(line.kind, line.verdict, line.subject) for line in house.lines("acme")] == [
        ("readmit", "readmitted", "tpm-ak:2"),
        ("readmit", "readmitted", "tpm-ek:1"),
    ]
    assert house.lines("acme")[0].body == {"who": "alice", "why": "restored", "clock": None}


@pytest.mark.parametrize("by", ["ak", "ek"])
def test_a_readmission_by_name_reaches_the_machine(house: House, tpm: FakeTpm, by: str) -> None:
    """By whichever key the owner enrolled a machine, readmitting that instance lets it start again."""
    house.instance("acme", "web-1", tpm, by=by)
    house.rule(PATH, images=["debian"], instances=["web-1"])
    assert house.flow(Guest(tpm, declare=True), PATH) == SECRET
    house.now += 1000
    tpm.clock -= 500
    denied(house, Guest(tpm, declare=True))
    record = house.store.record(RecordKind.INSTANCE, "acme", "web-1")
    assert record.body is not None
    ledger.readmit(house.services, owner="acme", ids=record.body["ids"], who="a", why="b", now=house.now)
    assert house.flow(Guest(tpm, declare=True), PATH) == SECRET


def test_another_attestation_key_does_not_hide_the_machine(house: House, tpm: FakeTpm) -> None:
    """A machine put back to a snapshot is recognised by its endorsement key, also under a fresh attestation key."""
    assert house.flow(Guest(tpm, declare=True), PATH) == SECRET
    twin = FakeTpm()
    twin._ek, twin.ek_public, twin.certificates = tpm._ek, tpm.ek_public, tpm.certificates
    twin.boot(Boot())
    twin.reset_count = tpm.reset_count - 1
    house.now += 1000
    line = denied(house, Guest(twin, declare=True))
    assert failures(line) == ["TPM's clock goes on from where it was last seen"]


def test_an_enrolled_machine_is_known_by_all_its_enrolled_ids(house: House, tpm: FakeTpm) -> None:
    """Where the owner enrolled both keys, a quote without activation is measured by the mark of one with it."""
    posted = {"ak_public": b64.std(tpm.ak_public), "ek_public": b64.std(tpm.ek_public)}
    house.put(RecordKind.INSTANCE, "acme", "web-1", parse_instance(posted).to_body())
    house.rule(PATH, images=["debian"], instances=["web-1"])
    assert house.flow(Guest(tpm, declare=True), PATH) == SECRET
    house.now += 1000
    tpm.clock -= 500
    line = denied(house, Guest(tpm))
    assert failures(line) == ["TPM's clock goes on from where it was last seen"]


def test_two_volumes_at_once_are_no_rollback(house: House, tpm: FakeTpm) -> None:
    """Of two sessions of one machine that overlap, the one with the earlier quote may fetch its key last."""
    first, second = Guest(tpm, declare=True), Guest(tpm, declare=True)
    opened = [house.challenge(guest) for guest in (first, second)]
    for guest, (session_id, challenge) in zip((first, second), opened, strict=True):
        house.now += 10
        attestation.attest(session_id, guest.attestation(challenge), house.services, now=house.now)
    for guest, (session_id, _) in reversed(list(zip((first, second), opened, strict=True))):
        assert guest.open(house.release(PATH, session_id)) == SECRET


def test_one_owners_decisions_do_not_bind_another(house: House, tpm: FakeTpm) -> None:
    """The clock is remembered for each owner by himself."""
    house.owner("other")
    house.key("other/disk/root", b"theirs")
    house.image("other", "debian", draft(tpm))
    house.rule("other/disk/root", images=["debian"])
    assert house.flow(Guest(tpm, declare=True), PATH) == SECRET
    house.now += 1000
    tpm.clock -= 500
    assert house.flow(Guest(tpm, declare=True), "other/disk/root") == b"theirs"


# --- custody, ledger, order ---


def test_a_sealed_key_in_another_place_is_not_released(house: House, tpm: FakeTpm, tmp_path: Path) -> None:
    """Whoever swaps sealed bytes in the store gets a denial whose line says that custody could not open them."""
    house.key("acme/disk/data", b"data")
    with closing(sqlite3.connect(tmp_path / "roomkey.db")) as connection, connection:
        rows = dict(connection.execute("SELECT key, sealed FROM key_material").fetchall())
        (one, first), (two, other) = rows.items()
        connection.executemany("UPDATE key_material SET sealed = ? WHERE key = ?", [(other, one), (first, two)])
    line = denied(house, Guest(tpm, declare=True))
    assert len(failures(line)) == 1
    assert line.body["trace"][-1]["stage"] == "secret"


class Failing:
    """A store of which one method does not answer."""

    def __init__(self, store: Any, method: str) -> None:
        self._store, self._method = store, method

    def __getattr__(self, name: str) -> Any:
        if name == self._method:
            raise Unavailable("the store does not answer")
        return getattr(self._store, name)


@pytest.mark.parametrize("method", ["session_attestation", "record", "key", "by_alias", "entries", "append"])
def test_without_the_store_nothing_is_released(house: House, tpm: FakeTpm, method: str) -> None:
    """Whichever call to the store fails, above all the line in the ledger: Unavailable, and no key."""
    session_id, _ = house.attest(Guest(tpm, declare=True))
    services = replace(house.services, store=Failing(house.store, method))
    with pytest.raises(Unavailable):
        release.release(ResourcePath.parse(PATH), services, session_id=session_id, token=None, now=house.now)


def test_a_key_under_a_missing_kek_is_unavailable(house: House, tpm: FakeTpm) -> None:
    """A KEK that the operator forgot to list is his to mend, not the guest's denial; the guest may come again."""
    house.instance("acme", "web-1", tpm, by="ak")
    house.rule(PATH, images=["debian"], instances=["web-1"])
    session_id, _ = house.attest(Guest(tpm))
    services = replace(house.services, custody=LocalCustody(b"other" + bytes(27)))
    with pytest.raises(Unavailable):
        release.release(ResourcePath.parse(PATH), services, session_id=session_id, token=None, now=house.now)


def test_the_line_is_durable_before_the_key_is_wrapped(
    house: House, tpm: FakeTpm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the moment of wrapping, the ledger already says "released"."""
    session_id, _ = house.attest(Guest(tpm, declare=True))
    seen: list[str] = []

    def seal(*_: object, **__: object) -> dict[str, str]:
        seen.extend(line.verdict for line in house.lines("acme"))
        return {}

    monkeypatch.setattr(jwe, "seal", seal)
    house.release(PATH, session_id)
    assert seen == ["released"]


def test_custody_opens_nothing_for_a_denied_guest(house: House, tpm: FakeTpm, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plaintext does not exist in the broker before every check has passed."""
    calls: list[object] = []
    monkeypatch.setattr(type(house.custody), "open", lambda *args: calls.append(args))
    tpm.boot(Boot(kernel=b"another kernel"))
    denied(house, Guest(tpm, declare=True))
    assert calls == []


# --- what our own log may say ---


def _another_kernel(house: House, tpm: FakeTpm) -> None:
    tpm.boot(Boot(kernel=b"another kernel"))


def _no_rule(house: House, _tpm: FakeTpm) -> None:
    house.put(RecordKind.RULE, "acme", "disk/root", None)


@pytest.mark.parametrize(("change", "kind"), [(_another_kernel, AppraisalDenied), (_no_rule, ReleaseDenied)])
def test_a_denial_has_its_class(
    house: House, tpm: FakeTpm, change: Callable[[House, FakeTpm], None], kind: type[ReleaseDenied]
) -> None:
    """Genuine but unwanted is AppraisalDenied, everything else plain ReleaseDenied."""
    change(house, tpm)
    session_id, _ = house.attest(Guest(tpm, declare=True))
    with pytest.raises(ReleaseDenied) as caught:
        house.release(PATH, session_id)
    assert type(caught.value) is kind


def test_who_asks_for_an_envelope_gets_the_brokers_word_with_the_key(house: House, tpm: FakeTpm) -> None:
    """The signed statement names all that the decision was about, and is no longer than a minute good."""
    guest = Guest(tpm, declare=True)
    session_id, _ = house.attest(guest, PATH)
    sealed = release.release(
        ResourcePath.parse(PATH), house.services, session_id=session_id, token=None, now=house.now, in_envelope=True
    )
    packed = jwe.unseal(sealed, guest.key, activation=guest.activation, max_bytes=jwe.MAX_ENVELOPE_BYTES)
    secret, statement, _ = envelope.unpack(packed)
    [line] = house.lines("acme", ledger.RELEASE)
    keys = envelope.load_keys(strictjson.compact(house.services.signer.jwks()))
    said = envelope.verify(statement, keys, envelope.RELEASE, max_bytes=envelope.MAX_STATEMENT_BYTES)
    assert said == {
        "key": PATH,
        "version": line.body["version"],
        "session": session.store_name(session_id),
        "nonce": said["nonce"],
        "tee_pubkey": jwk.thumbprint(guest.tee_pubkey.members),
        "decision": line.id,
        "evidence": line.body["evidence"],
        "image": "debian@1",
        "rule": 1,
        "volume": None,
        "format": False,
        "also": None,
        "challenged_at": house.now,
        "released_at": house.now,
        "expires_at": house.now + release.ENVELOPE_LIFETIME_MS,
        "sha256": envelope.digest(secret),
    }
    assert secret == SECRET
