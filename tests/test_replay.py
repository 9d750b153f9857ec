# SPDX-License-Identifier: Apache-2.0
"""Decision bundles: judged again offline a decision comes out the same, and nothing can be changed about it."""

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from broker import attestation, dossiers, ledger
from broker.bundle import export
from broker.dossiers import DAY_MS, HOUR_MS, REFUSED_PER_HOUR, Dossiers
from broker.replay import replay
from broker.signing import Signer
from broker.store.protocols import LedgerEntry, RecordKind
from broker.trace import Verdict
from broker.verifiers.snp_floors import NOTHING, Floors
from keys import b64, envelope, strictjson
from keys.errors import AppraisalDenied, Conflict, FreshnessError, NotFound, ProtocolError, VerificationError
from keys.tee import Tee
from tests.fakes.amd import AT, Chip, FakeAmd
from tests.fakes.boot import Boot
from tests.fakes.desk import KEY, Desk, open_desk
from tests.fakes.evidence_file import booted, write_evidence
from tests.fakes.house import House, draft
from tests.fakes.replays import broker_keys, replayed
from tests.fakes.snp_guest import SnpGuest
from tests.fakes.tpm_guest import FakeTpm, Guest

PATH = "acme/disk/root"
SECRET = b"correct horse battery staple \x00\xff"

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A broker of acme's, with one key for one image on any vendor's TPM, that has decided once each way."""
    with House(tmp_path_factory.mktemp("house")) as house:
        house.owner("acme")
        house.key(PATH, SECRET)
        house.image("acme", "debian", draft(guest_tpm(house)))
        house.rule(PATH, images=["debian"])
        assert house.flow(Guest(guest_tpm(house), declare=True), PATH, PATH) == SECRET
        yield house


@pytest.fixture
def own(tmp_path: Path) -> Iterator[House]:
    """A broker like the other, for tests that change it."""
    with House(tmp_path) as house:
        house.owner("acme")
        house.key(PATH, SECRET)
        house.image("acme", "debian", draft(guest_tpm(house)))
        house.rule(PATH, images=["debian"])
        yield house


def guest_tpm(house: House, **boot: Any) -> FakeTpm:
    tpm = FakeTpm(house.ca)
    tpm.boot(Boot(**boot))
    return tpm


def newest(house: House, kind: str) -> LedgerEntry:
    return house.lines("acme", kind)[0]


def refuse(house: House) -> LedgerEntry:
    """The line of evidence that is refused: its quote is for another challenge."""
    guest = Guest(guest_tpm(house), declare=True)
    first, challenge = house.challenge(guest, PATH)
    _, other = house.challenge(guest, PATH)
    with pytest.raises(VerificationError):
        attestation.attest(
            first, guest.attestation(other)._replace(nonce=challenge.nonce), house.services, now=house.now
        )
    return newest(house, ledger.ATTEST)


def resigned(bundle: str, house: House, change: Change) -> str:
    """`bundle` with `change` made to it, signed by the broker all the same."""
    payload = json.loads(b64.from_url(bundle.split(".")[1], name="payload", max_bytes=1 << 22))
    change(payload)
    return house.services.signer.sign(payload, envelope.BUNDLE)


# --- the same again ---


@pytest.mark.parametrize("kind", [ledger.ATTEST, ledger.RELEASE])
def test_a_decision_comes_out_the_same(house: House, kind: str) -> None:
    """Verified and appraised again: the verdict and, byte for byte, the trace."""
    entry = newest(house, kind)
    again = replayed(entry, house.services)
    assert (again.verified, again.differences, again.verdict) == (True, (), entry.verdict)
    assert strictjson.canonical(again.trace.to_json()) == strictjson.canonical(entry.body["trace"])
    assert again.line["id"] == entry.id


def test_a_refusal_comes_out_the_same(own: House) -> None:
    """Of refused evidence, too, and what it makes meaningless is again not judged."""
    entry = refuse(own)
    again = replayed(entry, own.services)
    assert (again.verdict, again.differences) == ("refused", ())
    assert Verdict.NOT_JUDGED in {check.verdict for check in again.trace.checks}


def test_what_changed_since_does_not_matter(own: House) -> None:
    """Another rule, image and version of the key, a revoked guest, another time: what was decided was decided then."""
    guest = guest_tpm(own)
    own.instance("acme", "web-1", guest, by="ek")
    own.rule(PATH, images=["debian"], instances=["web-1"])
    assert own.flow(Guest(guest, declare=True), PATH, PATH) == SECRET
    entry = newest(own, ledger.RELEASE)
    own.rule(PATH, images=["other"], instances=["nobody"], platforms=["snp"])
    own.image("acme", "debian", draft(guest_tpm(own, kernel=b"another")))
    own.put(RecordKind.INSTANCE, "acme", "web-1", None)
    own.key(PATH, b"another key")
    own.now += 20 * 365 * DAY_MS
    again = replayed(entry, own.services)
    assert (again.verdict, again.differences) == ("released", ())


def test_a_change_of_roots_and_floors_does_not_matter(own: House) -> None:
    """A decision is repeated against what was trusted then."""
    assert own.flow(Guest(guest_tpm(own), declare=True), PATH, PATH) == SECRET
    entry = newest(own, ledger.RELEASE)
    own.services = changed(own.services, trusted={})
    assert replayed(entry, own.services).differences == ()


@pytest.mark.parametrize("policy", [0x30000, 0x30000 | 1 << 19])
def test_floors_are_those_of_the_time(tmp_path: Path, policy: int) -> None:
    """The operator's floors of that time are in the bundle, with each setting's value: a guest below them is again."""
    trusted, chip = FakeAmd().trusted(), Chip(FakeAmd())
    with House(tmp_path) as house:
        house.now = int(AT.timestamp() * 1000)
        strict = changed(trusted, floors=Floors(min_reported_tcb=("Genoa snp=3",), max_vmpl=None, unsafe_debug=False))
        house.services = changed(house.services, trusted={Tee.SNP: strict})
        house.owner("acme")
        with suppress(VerificationError):
            house.attest(SnpGuest(chip, policy=policy), PATH)
        house.services = changed(house.services, trusted={Tee.SNP: changed(trusted, floors=NOTHING)})
        [entry] = house.lines("acme", ledger.ATTEST)
        again = replayed(entry, house.services)
        assert again.differences == ()
        assert again.verdict == entry.verdict == ("genuine" if policy == 0x30000 else "refused")


# --- nothing can be changed ---


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_changed_byte_fails(house: House, data: st.DataObject) -> None:
    """Wherever it is, and whatever it becomes: the bundle is none of the broker's any more."""
    bundle = export(newest(house, ledger.RELEASE), house.services)
    place = data.draw(st.integers(0, len(bundle) - 1))
    other = data.draw(st.characters(max_codepoint=127).filter(lambda char: char != bundle[place]))
    with pytest.raises((ProtocolError, VerificationError)):
        replay(bundle[:place] + other + bundle[place + 1 :], broker_keys(house.services))


def test_a_bundle_of_another_broker_is_none(house: House) -> None:
    """What counts is the key that was pinned."""
    signer = Signer(ec.generate_private_key(ec.SECP256R1()))
    bundle = export(newest(house, ledger.RELEASE), changed(house.services, signer=signer))
    with pytest.raises(VerificationError, match="pinned key"):
        replay(bundle, broker_keys(house.services))


def test_a_release_is_no_bundle(house: House) -> None:
    """What the broker signs for guests counts for nothing here."""
    statement = house.services.signer.sign({}, envelope.RELEASE)
    with pytest.raises(VerificationError, match="another type"):
        replay(statement, broker_keys(house.services))


def _set(*way: str | int, to: object) -> Change:
    def change(payload: dict[str, Any]) -> None:
        value: Any = payload
        for step in way[:-1]:
            value = value[step]
        assert value[way[-1]] != to
        value[way[-1]] = to

    return change


LIES: dict[str, tuple[Change, str]] = {
    "verdict": (_set("line", "verdict", to="denied"), "verdict"),
    "image": (_set("line", "body", "image", to="debian@2"), "image"),
    "instance": (_set("line", "body", "names", to=["web-1"]), "names"),
    "act": (_set("line", "body", "act", to="queue"), "act"),
    "guest": (_set("line", "body", "guest", to="web-1"), "guest"),
    "claims": (_set("line", "body", "claims", "facts", "clock", to=5), "claims"),
    "evidence's digest": (_set("line", "body", "evidence", to="0" * 64), "evidence"),
    "a check's verdict": (_set("line", "body", "trace", 3, "verdict", to="failed"), "check"),
    "a check's words": (_set("line", "body", "trace", 3, "found", to="nothing"), "check"),
    "a check less": (lambda payload: payload["line"]["body"]["trace"].pop(3), "check"),
    "a check more": (
        lambda payload: payload["line"]["body"]["trace"].append(payload["line"]["body"]["trace"][0]),
        "number of checks",
    ),
    "no custody": (lambda payload: payload["line"]["body"]["trace"].pop(), "verdict"),
    "custody failed": (_set("line", "body", "trace", -1, "verdict", to="failed"), "verdict"),
    "roots": (_set("dossier", "trusted", "roots", to=[]), "verdict"),
    "nonce": (_set("dossier", "nonce", to="A" * 43 + "="), "verdict"),
    "time": (_set("dossier", "at", to=1), "verdict"),
    "challenge": (_set("dossier", "outcome", to="used"), "verdict"),
    "proof key": (_set("dossier", "activation", to="A" * 43 + "="), "verdict"),
    "a standing": (_set("dossier", "guests", to=None), "verdict"),
    "key's state": (_set("case", "key", to=[1, "retired"]), "verdict"),
    "rule": (_set("case", "rule", "platforms", to=["snp"]), "verdict"),
    "measurement": (
        lambda payload: payload["case"]["image_bodies"][0]["registers"]["sha256:4"].update(values=["0" * 64]),
        "verdict",
    ),
    "announced key": (_set("case", "announced", to="acme/disk/other"), "verdict"),
}


@pytest.mark.parametrize("lie", LIES)
def test_what_does_not_follow_is_found(house: House, lie: str) -> None:
    """Even signed by the broker: a record to which its evidence and its case do not lead is told."""
    change, what = LIES[lie]
    bundle = resigned(export(newest(house, ledger.RELEASE), house.services), house, change)
    again = replay(bundle, broker_keys(house.services))
    assert any(difference.what.startswith(what) for difference in again.differences)


def test_a_recorded_check_that_only_happens_once_lets_nobody_in(own: House) -> None:
    """A record of an opened key behind a case that is denied is not believed."""
    with pytest.raises(AppraisalDenied):
        own.flow(Guest(guest_tpm(own, kernel=b"another"), declare=True), PATH, PATH)

    def lie(payload: dict[str, Any]) -> None:
        opened = {"stage": "secret", "name": "custody opens the key", "verdict": "passed"}
        payload["line"]["body"]["trace"].append({**opened, "expected": "", "found": "version 1", "mend": ""})
        payload["line"]["verdict"] = "released"

    bundle = resigned(export(newest(own, ledger.RELEASE), own.services), own, lie)
    again = replay(bundle, broker_keys(own.services))
    assert again.verdict == "denied"
    assert {difference.what for difference in again.differences} == {"verdict", "number of checks"}


@pytest.mark.parametrize(
    "change",
    [
        lambda payload: payload.pop("case"),
        lambda payload: payload["line"].pop("body"),
        _set("case", "path", to=1),
        _set("dossier", "tee", to="tdx-9"),
        _set("dossier", "evidence", to={}),
        _set("dossier", "trusted", to={}),
        _set("line", "body", to=None),
        _set("case", "images", to=[]),
    ],
)
def test_a_bundle_of_another_form_is_an_error(house: House, change: Change) -> None:
    """What a version of another form has signed is refused with our error, whatever is missing."""
    bundle = resigned(export(newest(house, ledger.RELEASE), house.services), house, change)
    with pytest.raises(ProtocolError):
        replay(bundle, broker_keys(house.services))


# --- what is kept ---


def test_no_secret_is_in_a_bundle(own: House) -> None:
    """Neither the key, nor what was sealed to the TPM, nor the session's id, in any spelling."""
    guest = Guest(guest_tpm(own), declare=True)
    session_id, _ = own.attest(guest, PATH)
    assert guest.open(own.release(PATH, session_id)) == SECRET
    bundle = export(newest(own, ledger.RELEASE), own.services)
    payload = b64.from_url(bundle.split(".")[1], name="payload", max_bytes=1 << 22).decode()
    assert guest.activation is not None
    for secret in (SECRET, guest.activation, session_id.encode()):
        for text in (secret.hex(), b64.std(secret), b64.url(secret)):
            assert text not in payload
    assert session_id not in payload


def test_without_kept_evidence_there_is_no_bundle(own: House) -> None:
    """After its time the evidence is gone, and with it what could be judged again; the line stays."""
    assert own.flow(Guest(guest_tpm(own), declare=True), PATH, PATH) == SECRET
    own.services.dossiers.purge(own.now + 31 * DAY_MS)
    for kind in (ledger.ATTEST, ledger.RELEASE):
        with pytest.raises(NotFound, match="not kept"):
            replayed(newest(own, kind), own.services)


def test_what_is_in_time_is_not_purged(own: House) -> None:
    """Evidence stays for as many days as the operator said, and what it was judged against a day longer."""
    assert own.flow(Guest(guest_tpm(own), declare=True), PATH, PATH) == SECRET
    own.services.dossiers.purge(own.now + 30 * DAY_MS)
    assert replayed(newest(own, ledger.ATTEST), own.services).verified


def test_what_was_trusted_outlives_what_was_judged_by_it(own: House) -> None:
    """It is written anew every hour in which it is needed, so it never goes first."""
    for hours in range(3):
        own.now += HOUR_MS * hours
        assert own.flow(Guest(guest_tpm(own), declare=True), PATH, PATH) == SECRET
    own.services.dossiers.purge(own.now + 30 * DAY_MS)
    assert replayed(newest(own, ledger.RELEASE), own.services).verified


def test_without_what_was_trusted_nothing_is_verified_again(own: House) -> None:
    """Evidence alone is not enough: there is no bundle."""
    assert own.flow(Guest(guest_tpm(own), declare=True), PATH, PATH) == SECRET
    with closing(sqlite3.connect(own.directory / "roomkey.db")) as connection, connection:
        connection.execute("DELETE FROM dossier WHERE decision LIKE 'trusted-%'")
    with pytest.raises(NotFound, match="not kept"):
        replayed(newest(own, ledger.RELEASE), own.services)


def test_nothing_is_kept_where_nothing_is_to_be_kept(own: House) -> None:
    """With 0 days the store holds no evidence, and the guest gets its key all the same."""
    own.services = changed(own.services, dossiers=Dossiers(own.store, 0))
    assert own.flow(Guest(guest_tpm(own), declare=True), PATH, PATH) == SECRET
    assert own.store.dossier(newest(own, ledger.ATTEST).id) is None


def test_of_refused_evidence_only_so_much_is_kept(own: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can fill the disk with evidence that is refused; the next hour some is kept again."""
    assert REFUSED_PER_HOUR == 200
    monkeypatch.setattr(dossiers, "REFUSED_PER_HOUR", 2)
    kept = [own.store.dossier(refuse(own).id) is not None for _ in range(3)]
    own.now += HOUR_MS
    assert [*kept, own.store.dossier(refuse(own).id) is not None] == [True, True, False, True]


def test_refused_evidence_that_belongs_to_nobody_is_not_kept(own: House) -> None:
    """A stranger who names no owner leaves a line and nothing else."""
    guest = Guest(guest_tpm(own), declare=True)
    session_id, _ = own.challenge(guest)
    _, other = own.challenge(guest)
    with pytest.raises(FreshnessError):
        attestation.attest(session_id, guest.attestation(other), own.services, now=own.now)
    [line] = own.lines("", ledger.ATTEST)
    assert own.store.dossier(line.id) is None


@pytest.mark.parametrize("data", [b"", b"no zlib", b"x\x9c\x03\x00", b"x\x9c\x03\x00\x00\x00\x00\x01"])
def test_a_damaged_dossier_is_an_error(own: House, data: bytes) -> None:
    """What cannot be read is refused, and nothing is exported of it."""
    assert own.flow(Guest(guest_tpm(own), declare=True), PATH, PATH) == SECRET
    entry = newest(own, ledger.ATTEST)
    own.store.put_dossier(entry.id, data, own.now)
    own.repeatable = False
    with pytest.raises(ProtocolError):
        export(entry, own.services)


def test_a_change_is_no_decision_about_a_guest(own: House) -> None:
    """There is nothing to judge again in it."""
    ledger.readmit(own.services, owner="acme", ids=["tpm-ek:00"], who="me", why="", now=own.now)
    with pytest.raises(Conflict, match="only a decision about a guest"):
        export(newest(own, ledger.READMIT), own.services)


def test_a_bundle_has_a_bounded_length(own: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """What would be too long to be read again is not exported."""
    assert own.flow(Guest(guest_tpm(own), declare=True), PATH, PATH) == SECRET
    own.repeatable = False
    monkeypatch.setattr("broker.bundle.MAX_BUNDLE_BYTES", 1000)
    with pytest.raises(Conflict, match="too long"):
        export(newest(own, ledger.RELEASE), own.services)


# --- as an owner sees it ---


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """An owner's desk at a broker that has denied a guest with another kernel."""
    with open_desk(tmp_path) as desk:
        tpm = booted()
        evidence = write_evidence(tmp_path / "guest.json", tpm)
        desk.run("key", "generate", KEY)
        desk.run("image", "enrol", "debian-12", "--from", evidence, "--yes")
        desk.run("instance", "add", "web-1", "--from", evidence)
        desk.run("rule", "set", KEY, "--image", "debian-12", "--instance", "web-1")
        tpm.boot(Boot(kernel=b"another kernel"))
        with pytest.raises(AppraisalDenied):
            desk.ask(tpm)
        yield desk


def exported(desk: Desk) -> tuple[Path, Path]:
    """The bundle of the newest release decision, and the broker's keys."""
    [line] = desk.json("decision", "list", "--kind", "release")["decisions"]
    path = desk.folder / "decision.bundle"
    result = desk.run("decision", "export", line["id"], "--output", path)
    assert "roomkey decision replay" in result.stderr
    assert path.stat().st_mode & 0o077 == 0
    keys = desk.folder / "keys.json"
    keys.write_text(desk.run("signing-key", "--config", desk.config).stdout)
    return path, keys


def test_an_auditor_replays_a_denial(desk: Desk) -> None:
    """From the file and the broker's public key alone: the denial, its reasons, and that all is as recorded."""
    path, keys = exported(desk)
    shown = desk.run("decision", "replay", path, "--broker-keys", keys).stdout
    assert shown.startswith("release  denied\n")
    assert "The same: verified and appraised again" in shown
    told = desk.json("decision", "replay", path, "--broker-keys", keys)
    assert (told["same"], told["verified"], told["differences"]) == (True, True, [])
    assert told["trace"] == told["line"]["body"]["trace"]


def test_a_bundle_that_does_not_follow_ends_with_1(desk: Desk) -> None:
    """The auditor reads what was recorded and what it is now."""
    path, keys = exported(desk)
    payload = json.loads(b64.from_url(path.read_text().split(".")[1], name="payload", max_bytes=1 << 22))
    payload["line"]["verdict"] = "released"
    path.write_text(desk.services.signer.sign(payload, envelope.BUNDLE) + "\n")
    result = desk.run("decision", "replay", path, "--broker-keys", keys, status=1)
    changed_ = result.stdout.partition("Not the same:")[2]
    assert changed_.split() == ["verdict", "recorded", "released", "now", "denied"]
    assert not json.loads(desk.run("decision", "replay", path, "--broker-keys", keys, "--json", status=1).stdout)[
        "same"
    ]


@pytest.mark.parametrize("data", ["", "no bundle", "ö"])
def test_what_is_no_bundle_is_refused(desk: Desk, data: str) -> None:
    """Any other file is a clear error."""
    _, keys = exported(desk)
    other = desk.folder / "other"
    other.write_text(data)
    assert "Error:" in desk.run("decision", "replay", other, "--broker-keys", keys, status=10).stderr


@pytest.mark.parametrize("end", ["", "\n\n", " \n", "\r\n"])
def test_only_one_newline_may_follow(desk: Desk, end: str) -> None:
    """What a mail program adds to the file is another file, but for the newline that `export` writes itself."""
    path, keys = exported(desk)
    path.write_text(path.read_text().removesuffix("\n") + end)
    status = 0 if end == "" else 10
    desk.run("decision", "replay", path, "--broker-keys", keys, status=status)


def test_an_export_overwrites_nothing(desk: Desk) -> None:
    """A file that is there stays as it is."""
    path, _ = exported(desk)
    before = path.read_bytes()
    [line] = desk.json("decision", "list", "--kind", "release")["decisions"]
    result = desk.run("decision", "export", line["id"], "--output", path, status=17)
    assert "--output" in result.stderr
    assert path.read_bytes() == before


def test_another_owner_exports_nothing(desk: Desk) -> None:
    """A decision is its owner's alone."""
    desk.new_owner("eve")
    [line] = desk.json("decision", "list", "--kind", "release")["decisions"]
    desk.run("decision", "export", line["id"], status=15, owner="eve")
