# SPDX-License-Identifier: Apache-2.0
"""Launches of SEV guests: one launch, one secret, and only for what the owner approved on the owner's machine."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from broker import attestation, ledger, sev_launches
from broker.appraisal.instances import parse_instance
from broker.bundle import export
from broker.cli import main
from broker.sev_launches import Started
from broker.store.protocols import LedgerEntry, RecordKind
from broker.verifiers import sev_launch
from broker.verifiers.sev_certificates import Chain
from broker.verifiers.sev_launch import Measurement, parse_measurement
from keys import b64, sev_packet
from keys.custody.local import LocalCustody
from keys.errors import (
    AppraisalDenied,
    EndorsementError,
    FreshnessError,
    ReleaseDenied,
    RoomkeyError,
    Unavailable,
)
from keys.messages import ResourcePath
from keys.sev_packet import Packet
from tests.fakes.house import House
from tests.fakes.sev import FakeLaunch, FakePlatform, FakeSev, FirmwareError
from tests.fakes.tpm_guest import FakeTpm, Guest

PATH = "acme/disk/web-root"
SECRET = b"correct horse battery staple \x00\xff"
OVMF, KERNEL = b"firmware", b"kernel hashes"
DIGEST = hashlib.sha256(OVMF + KERNEL).hexdigest()
GUID = "736869e5-84f0-4973-92ec-06879ce3da0b"


def image(digest: str = DIGEST, *more: str) -> str:
    return "\n".join(('platform = "sev"', "[sev]", f'launch_digest = "{digest}"', *more))


class Host:
    """A house whose owner acme lets one machine have a key, and that machine."""

    def __init__(self, directory: Path, platform: FakePlatform) -> None:
        self.house = House(directory)
        self.platform = platform
        self.house.services = replace(self.house.services, sev_cas=(platform.amd.ca,))
        self.house.owner("acme")
        self.house.key(PATH, SECRET)
        self.house.image("acme", "web", image())
        self.enrol("host-1", platform)
        self.rule()

    def enrol(self, name: str, platform: FakePlatform, owner: str = "acme") -> None:
        body = parse_instance({"sev_cek": b64.std(platform.cek)}).to_body()
        self.house.put(RecordKind.INSTANCE, owner, name, body)

    def rule(self, **kwargs: Any) -> None:
        self.house.rule(PATH, **{"images": ["web"], "platforms": ["sev"], "instances": ["host-1"], **kwargs})

    def start(self, path: str = PATH, chain: Chain | None = None) -> Started:
        parsed = ResourcePath.parse(path)
        return sev_launches.start(parsed, chain or self.platform.chain, self.house.services, now=self.house.now)

    def launch(self, started: Started, *, content: bytes = OVMF + KERNEL) -> FakeLaunch:
        session = started.session
        return self.platform.launch_start(session.godh, session.blob, started.policy).update(content)

    def words(self, guest: FakeLaunch, *, api: tuple[int, int] | None = None, build: int | None = None) -> Measurement:
        return parse_measurement(
            guest.measure(),
            api=api or self.platform.api,
            build=self.platform.build if build is None else build,
        )

    def finish(self, launch: str, measurement: Measurement) -> Packet:
        return sev_launches.finish(launch, measurement, self.house.services, now=self.house.now)

    def flow(self, content: bytes = OVMF + KERNEL) -> bytes:
        started = self.start()
        guest = self.launch(started, content=content)
        packet = self.finish(started.launch, self.words(guest))
        guest.inject(packet.header, packet.data)
        return guest.secret(GUID)

    def refused(self, call: Callable[[], object], kind: type[RoomkeyError]) -> LedgerEntry:
        """The line about a call that must be refused; it is the newest."""
        with pytest.raises(kind) as caught:
            call()
        lines = [self.house.lines(owner)[0] for owner in ("acme", "") if self.house.lines(owner)]
        [line] = [line for line in lines if line.id == caught.value.decision]
        return line

    def denied(self, measurement: Callable[[FakeLaunch], Measurement], content: bytes = OVMF + KERNEL) -> LedgerEntry:
        """The line about a launch that was started and must be denied its secret."""
        started = self.start()
        shown = measurement(self.launch(started, content=content))
        line = self.refused(lambda: self.finish(started.launch, shown), ReleaseDenied)
        assert (line.kind, line.verdict, line.body["key"]) == ("release", "denied", PATH)
        return line


@pytest.fixture(scope="module")
def platform() -> FakePlatform:
    return FakePlatform(FakeSev())


@pytest.fixture
def host(tmp_path: Path, platform: FakePlatform) -> Iterator[Host]:
    host = Host(tmp_path, platform)
    with host.house:
        yield host


def untouched(_host: Host) -> None:
    """Leaves the broker as it is."""


def failures(line: LedgerEntry) -> list[str]:
    return [check["name"] for check in line.body["trace"] if check["verdict"] == "failed"]


# --- to whom it goes ---


def test_an_approved_launch_gets_the_secret(host: Host) -> None:
    """The guest finds the owner's bytes in its memory, and the host has seen nothing but what the processor opens."""
    assert host.flow() == SECRET


def test_sev_es(host: Host) -> None:
    """Where the image wants SEV-ES the guest's policy has it, and where not it has not."""
    assert not host.start().policy & sev_launch.ES
    host.house.image("acme", "web", image(DIGEST, "es = true"))
    assert host.start().policy & sev_launch.ES
    assert host.flow() == SECRET


def test_the_lines_about_a_launch(host: Host) -> None:
    """One line says that the platform is genuine, one that the key was released, with all that it stands on."""
    host.flow()
    released, genuine = host.house.lines("acme")
    assert (genuine.kind, genuine.verdict, genuine.subject) == ("attest", "genuine", host.platform.instance_id)
    assert (released.kind, released.verdict, released.subject) == ("release", "released", host.platform.instance_id)
    assert genuine.body["tee"] == "sev"
    assert released.body["evidence"] == genuine.body["evidence"]
    assert (released.body["image"], released.body["names"], released.body["version"]) == ("web@1", ["host-1"], 1)
    claims = released.body["claims"]
    assert (claims["tee"], claims["trust"]) == ("sev", "sev-cek")
    assert claims["measurements"] == {"launch_digest": DIGEST}
    assert claims["facts"] == {
        "generation": "Naples",
        "policy": "0x3b",
        "policy_nodbg": True,
        "policy_noks": True,
        "policy_es": False,
        "policy_nosend": True,
        "policy_domain": True,
        "policy_sev": True,
        "api_major": 1,
        "api_minor": 49,
        "build_id": 6,
    }
    names = [check["name"] for check in released.body["trace"]]
    assert len(names) == len(set(names))
    assert "weaker: no memory integrity, firmware version self-reported" in names
    assert "AMD signed the processor's key (CEK)" in names
    assert not failures(released)
    assert not failures(genuine)
    assert host.house.store.verify_chain() == 2


def test_the_newest_of_several_images_and_digests(host: Host) -> None:
    """Each digest of each image in the rule is tried, and the one that was launched is named."""
    host.house.image("acme", "other", image("ab" * 32).replace('"' + "ab" * 32 + '"', f'["{"cd" * 32}", "{DIGEST}"]'))
    host.house.image("acme", "web", image("ef" * 32))
    host.rule(images=["web", "other"])
    assert host.flow() == SECRET
    assert host.house.lines("acme")[0].body["image"] == "other@1"


def test_images_of_other_platforms_are_left_alone(host: Host) -> None:
    """A rule may name images of other platforms beside."""
    host.house.image("acme", "debian", f'platform = "tpm"\n[tpm]\nbank = "sha256"\n[tpm.pcrs]\n7 = "{"ab" * 32}"\n')
    host.rule(images=["debian", "web"], platforms=["tpm", "sev"])
    assert host.flow() == SECRET


# --- one launch, one secret ---


def test_a_launch_is_appraised_again(host: Host, tmp_path: Path) -> None:
    """A bundle of it leads to the same verdict and trace, and says that the measurement was not verified again."""
    started = host.start()
    host.finish(started.launch, host.words(host.launch(started)))
    services = host.house.services
    [line] = host.house.lines("acme", ledger.RELEASE)
    (tmp_path / "bundle").write_text(export(line, services) + "\n")
    (tmp_path / "keys").write_text(json.dumps(services.signer.jwks()))
    result = CliRunner().invoke(
        main, ["decision", "replay", str(tmp_path / "bundle"), "--broker-keys", str(tmp_path / "keys")]
    )
    assert result.exit_code == 0
    assert "whose keys are not kept: only the appraisal is repeated" in result.output
    assert "The same: appraised again" in result.output


def test_a_launch_is_finished_once(host: Host) -> None:
    """The same measurement a second time gets nothing, and leaves a line."""
    started = host.start()
    shown = host.words(host.launch(started))
    host.finish(started.launch, shown)
    line = host.refused(lambda: host.finish(started.launch, shown), FreshnessError)
    assert (line.kind, line.verdict, line.subject) == ("attest", "refused", host.platform.instance_id)
    assert failures(line) == ["launch"]
    assert line.body["trace"][-1]["found"] == "used before"


def test_a_wrong_answer_uses_the_launch_up(host: Host) -> None:
    """There is no second try, not even with the right measurement."""
    started = host.start()
    guest = host.launch(started)
    wrong = host.words(guest, build=7)
    host.refused(lambda: host.finish(started.launch, wrong), ReleaseDenied)
    host.refused(lambda: host.finish(started.launch, host.words(guest)), FreshnessError)


def test_a_launch_expires(host: Host) -> None:
    """After the lifetime of a challenge the launch is worth nothing."""
    started = host.start()
    shown = host.words(host.launch(started))
    host.house.now += host.house.services.challenge_lifetime_ms
    line = host.refused(lambda: host.finish(started.launch, shown), FreshnessError)
    assert line.body["trace"][-1]["found"] == "expired"


@pytest.mark.parametrize("launch", ["0" * 32, "", "0" * 31, "A" * 32, "0" * 32 + "\n", "\u0660" * 32])
def test_a_launch_that_nobody_started(host: Host, launch: str) -> None:
    """An unknown launch, or what cannot be one, is refused in nobody's ledger."""
    shown = parse_measurement(bytes(48), api=(1, 49), build=6)
    line = host.refused(lambda: host.finish(launch, shown), FreshnessError)
    assert (line.owner, line.subject, line.body["key"], line.body["evidence"]) == ("", "", None, "")


def test_a_session_is_no_launch_and_a_launch_no_session(host: Host) -> None:
    """What began as one kind of thing cannot be ended as the other, and neither is used up by trying."""
    guest = Guest(FakeTpm(host.house.ca))
    session_id, challenge = host.house.challenge(guest)
    started = host.start()
    shown = host.words(host.launch(started))
    host.refused(lambda: host.finish(session_id, shown), FreshnessError)
    message = guest.attestation(challenge)
    with pytest.raises(FreshnessError):
        attestation.attest(started.launch, message, host.house.services, now=host.house.now)
    assert host.finish(started.launch, shown)


def test_another_launchs_measurement(host: Host) -> None:
    """Of two launches at once each takes its own measurement only."""
    first, second = host.start(), host.start()
    shown = host.words(host.launch(second))
    line = host.refused(lambda: host.finish(first.launch, shown), ReleaseDenied)
    assert "launch measurement is that of an approved launch digest" in failures(line)
    assert host.finish(second.launch, shown)


def test_two_guests_of_one_session(host: Host) -> None:
    """A host that launches twice with one session gets one packet, which only the guest that was measured takes."""
    started = host.start()
    first, second = host.launch(started), host.launch(started)
    packet = host.finish(started.launch, host.words(first))
    with pytest.raises(FirmwareError):
        second.inject(packet.header, packet.data)
    host.refused(lambda: host.finish(started.launch, host.words(second)), FreshnessError)
    first.inject(packet.header, packet.data)
    assert first.secret(GUID) == SECRET


def test_randomness_is_fresh(host: Host) -> None:
    """No two launches share id, nonce, IV, wrapped keys, ephemeral key or packet IV."""
    seen = []
    for _ in range(3):
        started = host.start()
        packet = host.finish(started.launch, host.words(host.launch(started)))
        blob = started.session.blob
        parts = (started.launch, blob[:16], blob[16:48], blob[48:64], started.session.godh, packet.header[4:20])
        seen.append(parts)
    assert all(len(set(values)) == 3 for values in zip(*seen, strict=True))


# --- the start ---


@pytest.mark.parametrize("link", ["pdh", "pek", "oca", "cek"])
def test_a_platform_that_is_not_genuine(host: Host, link: str) -> None:
    """Certificates of another machine in the chain get no session; the line says which link is broken."""
    chain = replace(host.platform.chain, **{link: getattr(FakePlatform(host.platform.amd), link)})
    line = host.refused(lambda: host.start(chain=chain), EndorsementError)
    assert (line.kind, line.verdict, line.subject, line.body["claims"]) == ("attest", "refused", "", None)
    assert len(failures(line)) == 1


def test_without_amds_keys_nothing_is_launched(host: Host) -> None:
    """A broker that trusts no CA refuses every platform."""
    host.house.services = replace(host.house.services, sev_cas=())
    assert failures(host.refused(host.start, EndorsementError)) == ["AMD signed the processor's key (CEK)"]


@pytest.mark.parametrize(
    ("prepare", "path", "reasons"),
    [
        (untouched, "acme/disk/none", ["key exists", "key has a release rule"]),
        (untouched, "nobody/disk/root", ["key exists", "key has a release rule"]),
        (lambda host: host.house.store.destroy_key("acme", "disk", "web-root"), PATH, ["key exists"]),
        (lambda host: host.house.put(RecordKind.RULE, "acme", "disk/web-root", None), PATH, ["key has a release rule"]),
        (lambda host: host.rule(platforms=["tpm"]), PATH, ["release rule names the platform"]),
        (lambda host: host.rule(instances=["host-2"]), PATH, ["release rule names the instance"]),
        (
            lambda host: host.house.put(RecordKind.INSTANCE, "acme", "host-1", None),
            PATH,
            ["release rule names the instance"],
        ),
        (
            lambda host: host.rule(instances=["any"]),
            PATH,
            ["a configured vendor vouches for the hardware"],
        ),
        (
            lambda host: host.house.put(RecordKind.IMAGE, "acme", "web", None),
            PATH,
            ["release rule names an image for sev"],
        ),
    ],
)
def test_what_the_rule_does_not_want_is_not_started(
    host: Host, prepare: Callable[[Host], object], path: str, reasons: list[str]
) -> None:
    """No key, rule, platform, instance or image: no session, in the same words, and the line names what is missing."""
    prepare(host)
    line = host.refused(lambda: host.start(path), AppraisalDenied)
    assert (line.kind, line.verdict, line.subject) == ("attest", "refused", host.platform.instance_id)
    missing_images = ["release rule names an image for sev"] if "key has a release rule" in reasons else []
    assert failures(line) == reasons + missing_images


def test_an_enrolment_counts_for_its_owner_alone(host: Host) -> None:
    """A machine that another owner enrolled under the name in the rule is not acme's."""
    host.house.put(RecordKind.INSTANCE, "acme", "host-1", None)
    host.house.owner("other")
    host.enrol("host-1", host.platform, owner="other")
    line = host.refused(host.start, AppraisalDenied)
    assert failures(line) == ["release rule names the instance"]


def test_sev_and_sev_es_in_one_rule(host: Host) -> None:
    """The policy is chosen before the image is known, so one rule cannot have both."""
    host.house.image("acme", "es", image("ab" * 32, "es = true"))
    host.rule(images=["web", "es"])
    line = host.refused(host.start, AppraisalDenied)
    assert failures(line) == ["images for sev are all SEV-ES, or none is"]


def test_a_refused_start_leaves_no_launch(host: Host, tmp_path: Path) -> None:
    """Only what was genuine and wanted is remembered."""
    host.rule(instances=["host-2"])
    host.refused(host.start, AppraisalDenied)
    with closing(sqlite3.connect(tmp_path / "roomkey.db")) as connection:
        assert connection.execute("SELECT count(*) FROM session").fetchone() == (0,)


def test_the_firmware_that_an_image_wants_is_in_the_policy(host: Host, platform: FakePlatform) -> None:
    """The lowest version that an image of the rule takes goes into the policy, and older firmware does not start."""
    host.house.image("acme", "web", image(DIGEST, 'min_api = "1.49"'))
    assert host.start().policy >> 16 == 0x3101
    host.house.image("acme", "newer", image("ab" * 32, 'min_api = "1.50"'))
    host.rule(images=["web", "newer"])
    assert host.start().policy >> 16 == 0x3101
    host.rule(images=["newer"])
    with pytest.raises(FirmwareError, match="POLICY"):
        host.launch(host.start())
    host.house.image("acme", "never", image("ab" * 32, 'min_api = "999.999"'))
    host.rule(images=["never"])
    assert host.start().policy >> 16 == 0xFFFF


# --- the finish ---


def test_another_image_is_denied(host: Host) -> None:
    """What was not approved gets nothing; the line has every check, also those that would have passed."""
    line = host.denied(host.words, content=b"another firmware")
    assert failures(line)[0] == "launch measurement is that of an approved launch digest"
    assert line.body["claims"]["measurements"] == {}
    assert line.body["image"] is None
    passed = [check["name"] for check in line.body["trace"] if check["verdict"] == "passed"]
    assert {"release rule names the platform", "release rule names the instance"} <= set(passed)


@pytest.mark.parametrize("wrong", [{"api": (1, 50)}, {"api": (2, 49)}, {"build": 7}])
def test_a_host_that_misstates_its_firmware(host: Host, wrong: dict[str, Any]) -> None:
    """API version and build other than the firmware's own fit no digest."""
    line = host.denied(lambda guest: host.words(guest, **wrong))
    assert "launch measurement is that of an approved launch digest" in failures(line)


def test_firmware_that_does_not_bind_packets(tmp_path: Path) -> None:
    """Before API 0.17 a packet is not bound to a launch: denied though everything else is right."""
    old = Host(tmp_path, FakePlatform(FakeSev(), api=(0, 16)))
    with old.house:
        assert failures(old.denied(old.words)) == ["firmware binds a secret to one launch"]
    (tmp_path / "new").mkdir()
    new = Host(tmp_path / "new", FakePlatform(FakeSev(), api=(0, 17)))
    with new.house:
        assert new.flow() == SECRET


def test_the_images_floors_count(host: Host) -> None:
    """A build that is older than the image wants is denied, with the floor as the reason."""
    host.house.image("acme", "web", image(DIGEST, 'min_api = "1.49"', "min_build = 7"))
    line = host.denied(host.words)
    assert len(failures(line)) == 1
    assert "firmware" in failures(line)[0]
    host.house.image("acme", "web", image(DIGEST, 'min_api = "1.49"', "min_build = 6"))
    assert host.flow() == SECRET


@pytest.mark.parametrize(
    "change",
    [
        lambda host: host.rule(instances=["host-2"]),
        lambda host: host.rule(platforms=["tpm"]),
        lambda host: host.house.put(RecordKind.INSTANCE, "acme", "host-1", None),
        lambda host: host.house.put(RecordKind.RULE, "acme", "disk/web-root", None),
        lambda host: host.house.image("acme", "web", image("ab" * 32)),
        lambda host: host.house.store.destroy_key("acme", "disk", "web-root"),
        lambda host: host.house.put(RecordKind.OWNER, "", "acme", None),
    ],
)
def test_what_the_owner_takes_back_is_gone(host: Host, change: Callable[[Host], object]) -> None:
    """A rule, machine, image or key that went between start and finish is judged as it is now."""
    started = host.start()
    shown = host.words(host.launch(started))
    change(host)
    with pytest.raises(ReleaseDenied):
        host.finish(started.launch, shown)


def test_a_policy_of_before(host: Host) -> None:
    """An image that became SEV-ES after the start is not satisfied by a guest without it."""
    started = host.start()
    shown = host.words(host.launch(started))
    host.house.image("acme", "web", image(DIGEST, "es = true"))
    line = host.refused(lambda: host.finish(started.launch, shown), AppraisalDenied)
    assert len(failures(line)) == 1
    assert "SEV-ES" in failures(line)[0]


def test_a_key_that_does_not_fit(host: Host) -> None:
    """A key beyond the firmware's area is denied with a line that says so, and the longest that fits arrives."""
    host.house.key(PATH, bytes(sev_packet.MAX_SECRET_BYTES + 1))
    line = host.denied(host.words)
    assert failures(line) == ["key fits into what carries it to this guest"]
    host.house.key(PATH, b"k" * sev_packet.MAX_SECRET_BYTES)
    assert host.flow() == b"k" * sev_packet.MAX_SECRET_BYTES


# --- store, custody, order ---


def test_no_secret_is_in_the_store(host: Host, tmp_path: Path) -> None:
    """Neither the key nor TEK and TIK are anywhere in the store, before or after the finish."""
    started = host.start()
    guest = host.launch(started)
    for step in (lambda: None, lambda: host.finish(started.launch, host.words(guest))):
        step()
        with closing(sqlite3.connect(tmp_path / "roomkey.db")) as connection:
            dump = "\n".join(connection.iterdump()).lower()
        for secret in (SECRET, guest._tek, guest._tik):
            assert secret.hex() not in dump
            assert b64.std(secret).lower() not in dump
        assert started.launch not in dump


def test_a_launch_that_was_changed_in_the_store(host: Host, tmp_path: Path) -> None:
    """Whoever writes another policy into the store makes another launch of it: nothing fits."""
    started = host.start()
    guest = host.launch(started)
    with closing(sqlite3.connect(tmp_path / "roomkey.db")) as connection, connection:
        [(body,)] = connection.execute("SELECT body FROM session").fetchall()
        connection.execute("UPDATE session SET body = ?", (body.replace('"issued_at":', '"issued_at":1'),))
        assert connection.total_changes == 1
    with pytest.raises(ReleaseDenied):
        host.finish(started.launch, host.words(guest))


def test_another_kek_ends_the_launch(host: Host) -> None:
    """TEK and TIK come from custody's key alone."""
    started = host.start()
    shown = host.words(host.launch(started))
    host.house.services = replace(host.house.services, custody=LocalCustody(b"other" + bytes(27)))
    with pytest.raises(ReleaseDenied):
        host.finish(started.launch, shown)


class Failing:
    """A store of which one method does not answer."""

    def __init__(self, store: Any, method: str) -> None:
        self._store, self._method = store, method

    def __getattr__(self, name: str) -> Any:
        if name == self._method:
            raise Unavailable("the store does not answer")
        return getattr(self._store, name)


@pytest.mark.parametrize("method", ["record", "key", "by_alias", "append", "put_session"])
def test_without_the_store_nothing_is_started(host: Host, method: str) -> None:
    """Whichever call to the store fails: Unavailable, and no session."""
    host.house.services = replace(host.house.services, store=Failing(host.house.store, method))
    with pytest.raises(Unavailable):
        host.start()


@pytest.mark.parametrize("method", ["consume_session", "record", "key", "by_alias", "entries", "append"])
def test_without_the_store_nothing_is_finished(host: Host, method: str) -> None:
    """Whichever call to the store fails: Unavailable, and no packet."""
    started = host.start()
    shown = host.words(host.launch(started))
    host.house.services = replace(host.house.services, store=Failing(host.house.store, method))
    host.house.repeatable = False
    with pytest.raises(Unavailable):
        host.finish(started.launch, shown)


def test_a_fault_of_the_broker_leaves_its_line(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The launch is gone whatever went wrong, and the owner sees that there was one."""
    started = host.start()
    shown = host.words(host.launch(started))

    def broken(*_: object) -> None:
        raise ValueError("broken")

    monkeypatch.setattr(sev_launch, "fitting_digest", broken)
    with pytest.raises(ValueError, match="broken"):
        host.finish(started.launch, shown)
    line = host.house.lines("acme")[0]
    assert (line.kind, line.verdict) == ("attest", "refused")
    assert failures(line) == ["the broker failed while judging"]


def test_the_line_is_durable_before_the_packet_is_made(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the moment of wrapping, the ledger already says "released"."""
    seen: list[str] = []

    def seal(*_: object) -> Packet:
        seen.extend(line.verdict for line in host.house.lines("acme"))
        return Packet(b"", b"")

    monkeypatch.setattr(sev_packet, "seal", seal)
    started = host.start()
    host.finish(started.launch, host.words(host.launch(started)))
    assert seen == ["released", "genuine"]


def test_custody_opens_nothing_for_a_denied_launch(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plaintext does not exist in the broker before every check has passed."""
    calls: list[object] = []
    monkeypatch.setattr(type(host.house.custody), "open", lambda *args: calls.append(args))
    host.denied(host.words, content=b"another firmware")
    host.denied(lambda guest: host.words(guest, build=7))
    assert calls == []
