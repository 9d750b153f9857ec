# SPDX-License-Identifier: Apache-2.0
"""The owner's and operator's commands against a real broker: its whole application and store, on loopback."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from broker.cli import COMMANDS, SECTIONS, main
from broker.cli.image import default_pcrs
from keys.errors import ReleaseDenied
from tests.fakes.boot import Boot
from tests.fakes.desk import KEY, Desk, open_desk
from tests.fakes.ek_ca import EkCa
from tests.fakes.evidence_file import booted, evidence_document, write_evidence
from tests.fakes.swtpm import SoftwareTpm
from tests.fakes.tpm_guest import FakeTpm
from tests.needs import needs_swtpm

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with open_desk(tmp_path) as made:
        yield made


@pytest.fixture
def tpm() -> FakeTpm:
    return booted()


@pytest.fixture
def evidence(tmp_path: Path, tpm: FakeTpm) -> Path:
    return write_evidence(tmp_path / "guest.json", tpm)


# --- the whole way ---


def test_an_owner_leads_a_guest_to_its_key(desk: Desk, tpm: FakeTpm, evidence: Path, tmp_path: Path) -> None:
    """Put a key, enrol image and machine, set the rule: the guest gets exactly these bytes, and the record says so."""
    (tmp_path / "disk.key").write_bytes(b"the disk's own key, 32 bytes lng")
    desk.run("key", "put", KEY, "--from-file", tmp_path / "disk.key")
    desk.run("image", "enrol", "debian-12", "--from", evidence, "--yes")
    desk.run("instance", "add", "web-1", "--from", evidence)
    desk.run("rule", "set", KEY, "--image", "debian-12", "--instance", "web-1", "--platform", "tpm")
    assert desk.ask(tpm) == b"the disk's own key, 32 bytes lng"
    [line] = desk.json("decision", "list", "--kind", "release")["decisions"]
    assert (line["verdict"], line["key"]) == ("released", KEY)
    shown = desk.run("decision", "show", line["id"]).stdout
    assert shown.startswith(f"web-1 asked for {KEY} on ")
    assert "got version 1: it runs debian-12@1\n" in shown
    assert "What differs" not in shown


def test_a_denial_names_the_changed_kernel_and_its_mend(desk: Desk, evidence: Path, tpm: FakeTpm) -> None:
    """Another kernel is denied; `decision show` names the event that differs and the command that approves it."""
    desk.run("key", "generate", KEY)
    desk.run("image", "enrol", "debian-12", "--from", evidence, "--yes")
    desk.run("instance", "add", "web-1", "--from", evidence)
    desk.run("rule", "set", KEY, "--image", "debian-12", "--instance", "web-1")
    tpm.boot(Boot(kernel=b"another kernel", kernel_path="\\EFI\\evil\x1b[2J.efi"))
    with pytest.raises(ReleaseDenied) as denied:
        desk.ask(tpm)
    result = desk.run("decision", "show", denied.value.decision)
    head, _, summary = result.stdout.partition("What differs")
    assert "was denied it: its kernel" in " ".join(head.split())
    assert "PCR 4" in summary
    assert "roomkey image enrol" in summary
    assert "\x1b" not in result.output
    trace = desk.json("decision", "show", denied.value.decision)["body"]["trace"]
    assert any(check["verdict"] == "failed" for check in trace)


def test_a_guest_asks_once_in_a_boot(desk: Desk, tpm: FakeTpm, evidence: Path, tmp_path: Path) -> None:
    """With --once-per-boot the evidence of a running, capped system makes an image that lets it in before the cap."""
    desk.run("key", "generate", KEY)
    desk.run("instance", "add", "web-1", "--from", evidence)
    tpm.cap()
    running = write_evidence(tmp_path / "running.json", tpm)
    desk.run("image", "enrol", "debian-12", "--from", running, "--once-per-boot", "--yes")
    desk.run("rule", "set", KEY, "--image", "debian-12", "--instance", "web-1")
    with pytest.raises(ReleaseDenied) as denied:
        desk.ask(tpm)
    assert "PCR 15" in desk.run("decision", "show", denied.value.decision).stdout
    tpm.boot(Boot())
    assert desk.ask(tpm)
    tpm.cap()
    with pytest.raises(ReleaseDenied):
        desk.ask(tpm)


# --- volumes ---


def test_a_key_is_for_one_volume(desk: Desk) -> None:
    """Pinned, listed, unpinned: each change is in the record."""
    desk.run("key", "generate", KEY)
    assert "roomkey volume pin" in desk.run("volume", "list").stdout
    assert "opens this one only" in desk.run("volume", "pin", KEY, "12" * 32, "--why", "as formatted").stderr
    [volume] = desk.json("volume", "list")
    assert (volume["path"], volume["pin"]) == (KEY, "12" * 32)
    assert "12" * 32 in desk.run("volume", "list").stdout
    desk.run("volume", "unpin", KEY)
    assert desk.json("volume", "list") == []
    lines = desk.json("decision", "list", "--kind", "change")["decisions"]
    assert [line["verdict"] for line in lines if line["subject"].startswith("volume/")] == ["deleted", "put"]


@pytest.mark.parametrize(("pin", "status"), [("12", 10), ("AB" * 32, 10), ("12" * 33, 10)])
def test_what_is_no_pin_is_refused(desk: Desk, pin: str, status: int) -> None:
    """64 lower-case hex digits, and nothing is changed by anything else."""
    desk.run("key", "generate", KEY)
    assert "luks check" in desk.run("volume", "pin", KEY, pin, status=status).stderr
    assert desk.json("volume", "list") == []


def test_only_an_owners_own_key_has_a_volume(desk: Desk) -> None:
    """There must be the key, and nothing is unpinned that was not pinned."""
    assert "roomkey key put" in desk.run("volume", "pin", KEY, "12" * 32, status=15).stderr
    desk.run("volume", "unpin", KEY, status=15)
    desk.run("volume", "pin", "globex/disk/root", "12" * 32, status=15)


def test_a_new_volume_is_ordered_once(desk: Desk) -> None:
    """With a key for it; where there is a key already, only with --again."""
    ordered = desk.run("volume", "provision", KEY)
    assert "roomkey-agent enroll DEVICE --key" in ordered.stderr
    [volume] = desk.json("volume", "list")
    assert (volume["path"], volume["pin"], volume["state"]) == (KEY, None, "ordered")
    assert "(ordered)" in desk.run("volume", "list").stdout
    assert "--again" in desk.run("volume", "provision", KEY, status=21).stderr
    desk.run("volume", "provision", KEY, "--again")
    assert desk.json("key", "list")[0]["version"] == 2
    assert "not made yet" in desk.run("key", "rotate", KEY, status=21).stderr


def test_a_rotation_waits_for_the_volumes_guest(desk: Desk) -> None:
    """Said so, shown with the volume, and not among the versions that guests get; --now does not wait."""
    desk.run("key", "generate", KEY)
    desk.run("volume", "pin", KEY, "12" * 32)
    assert "waits for the guest" in desk.run("key", "rotate", KEY).stdout
    assert desk.json("volume", "list")[0]["waits"] == ["add"]
    assert "adds the new key" in desk.run("volume", "list").stdout
    assert [key["version"] for key in desk.json("key", "list")] == [1]
    assert "--now" in desk.run("key", "rotate", KEY, status=21).stderr
    assert "version 2 stored" in desk.run("key", "rotate", KEY, "--now").stdout
    assert desk.json("volume", "list")[0]["waits"] == []


def test_a_long_key_is_not_changed_by_its_guest(desk: Desk) -> None:
    """A key that does not fit beside another one into a release is rotated by hand only."""
    desk.run("key", "generate", KEY, "--bytes", "1024")
    desk.run("volume", "pin", KEY, "12" * 32)
    assert "--now" in desk.run("key", "rotate", KEY, status=21).stderr


# --- recovery ---


def test_a_recovery_passphrase_is_in_its_shares(desk: Desk, tmp_path: Path) -> None:
    """Any three of five shares join to what the broker was given for the guest; two do not, and no share is shown."""
    out = tmp_path / "shares"
    assert "no volume" in desk.run("key", "recovery", KEY, "--out", out, status=15).stderr
    desk.run("key", "generate", KEY)
    desk.run("volume", "pin", KEY, "12" * 32)
    out = tmp_path / "again"
    made = desk.run("key", "recovery", KEY, "--out", out)
    shares = sorted(out.iterdir())
    assert len(shares) == 5
    assert all(share.stat().st_mode & 0o777 == 0o600 for share in shares)
    assert " ".join(shares[0].read_text().split()[4:6]) not in made.output
    assert desk.json("volume", "list")[0]["waits"] == ["recovery"]
    one, other = (desk.run("key", "recover", *some).stdout for some in (shares[:3], shares[2:]))
    assert one == other
    key = desk.services.store.key("acme", "disk", "root~recovery", 1)
    assert desk.services.custody.open("acme", "disk", "root~recovery", 1, key.sealed or b"") == one.encode()
    assert "Expected 3" in desk.run("key", "recover", *shares[:2], status=17).stderr


@pytest.mark.parametrize("change", [("nonsense", 1, None), ("", 0, -1), ("é", 0, 0)])
def test_a_spoiled_share_is_named(desk: Desk, tmp_path: Path, change: tuple[str, int, int | None]) -> None:
    """A word that is none, one too few, and what is no text: refused, and no word of a share is shown."""
    desk.run("key", "generate", KEY)
    desk.run("volume", "pin", KEY, "12" * 32)
    out = tmp_path / "shares"
    desk.run("key", "recovery", KEY, "--out", out, "--shares", "1", "--threshold", "1")
    words = (out / "share-1.txt").read_text().split()
    first, start, end = change
    (out / "share-1.txt").write_text(" ".join([first, *words[start:end]]))
    said = desk.run("key", "recover", out / "share-1.txt", status=17).stderr
    assert "do not join" in said
    assert not any(" ".join(words[at : at + 2]) in said for at in range(4, len(words)))


def test_shares_are_never_overwritten_or_impossible(desk: Desk, tmp_path: Path) -> None:
    """A folder that is there already, and more shares wanted than there are, change nothing."""
    desk.run("key", "generate", KEY)
    desk.run("volume", "pin", KEY, "12" * 32)
    desk.run("key", "recovery", KEY, "--out", tmp_path, status=17)
    desk.run("key", "recovery", KEY, "--out", tmp_path / "x", "--shares", "2", "--threshold", "3", status=17)
    assert desk.json("volume", "list")[0]["waits"] == []


# --- keys ---


def test_keys_go_in_and_never_come_out(desk: Desk) -> None:
    """From a file's bytes or standard input; list and show tell paths, versions and states, and not the bytes."""
    secret = b"\x00\xffsecret-bytes-of-the-key"
    put = desk.run("key", "put", KEY, stdin=secret)
    assert f"{KEY} version 1 stored" in put.stdout
    assert "line feed" not in put.stderr
    desk.run("key", "rotate", KEY, "--why", "yearly")
    listed, shown = desk.run("key", "list"), desk.run("key", "show", KEY)
    assert [(k["path"], k["version"], k["state"]) for k in desk.json("key", "list")] == [(KEY, 2, "active")]
    assert [(v["version"], v["state"]) for v in desk.json("key", "show", KEY)["versions"]] == [
        (1, "retired"), (2, "active")
    ]  # fmt: skip
    assert KEY in listed.stdout
    assert "retired" in shown.stdout
    assert "secret-bytes" not in put.output + listed.output + shown.output


def test_a_final_line_feed_is_part_of_the_key_and_said_so(desk: Desk) -> None:
    """`echo key | roomkey key put` keeps the line feed, and tells."""
    assert "ends with a line feed" in desk.run("key", "put", KEY, stdin=b"key\n").stderr


@pytest.mark.parametrize("stdin", [b"", b"x" * (64 * 1024 + 1)], ids=["empty", "too long"])
def test_a_key_of_no_or_too_many_bytes_is_refused(desk: Desk, stdin: bytes) -> None:
    """Nothing is stored."""
    desk.run("key", "put", KEY, stdin=stdin, status=17)
    assert desk.json("key", "list") == []


def test_a_terminal_is_not_a_key(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without file and pipe the command does not wait at the terminal, and says how a key is given."""
    monkeypatch.setattr("broker.cli.key._stdin_is_a_terminal", lambda: True)
    assert "--from-file" in desk.run("key", "put", KEY, status=17).stderr


def test_a_key_is_made_in_the_broker(desk: Desk) -> None:
    """`generate` makes one once; a second time it names `rotate`."""
    desk.run("key", "generate", KEY, "--bytes", "64")
    assert "roomkey key rotate" in desk.run("key", "generate", KEY, status=21).stderr


def test_destruction_is_confirmed_by_typing_the_path(desk: Desk) -> None:
    """Anything else than the path leaves the key; the path, or --yes, destroys it."""
    desk.run("key", "generate", KEY)
    refused = desk.run("key", "destroy", KEY, stdin="yes\n", status=1)
    assert "Nothing was done" in refused.stderr
    assert desk.json("key", "list")[0]["state"] == "active"
    destroyed = desk.run("key", "destroy", KEY, "--why", "scrapped", stdin=f"{KEY}\n")
    assert "1 versions erased" in destroyed.stdout
    assert desk.json("key", "list")[0]["state"] == "destroyed"
    desk.run("key", "generate", KEY)
    desk.run("key", "destroy", KEY, "--yes")


@pytest.mark.parametrize("path", ["acme/disk", "acme/disk/a b", "../x/y", "other/disk/root"])
def test_a_path_that_is_none_or_of_another_owner_is_refused(desk: Desk, path: str) -> None:
    """A bad path is a usage error; another owner's looks like one that is not there."""
    desk.run("key", "show", path, status=15 if path.startswith("other") else 2)


# --- images ---


def test_enrolment_says_what_was_and_was_not_checked_and_asks(desk: Desk, evidence: Path, tpm: FakeTpm) -> None:
    """The draft and what it proves are shown; without a yes nothing is stored."""
    asked = desk.run("image", "enrol", "debian-12", "--from", evidence, stdin="n\n", status=1)
    assert tpm.pcrs[4].hex() in asked.stdout
    assert tpm.ak_name.hex() in asked.stderr
    assert "Not checked" in asked.stderr
    assert desk.json("image", "list") == []
    desk.run("image", "enrol", "debian-12", "--from", evidence, stdin="y\n")
    assert [(i["name"], i["version"]) for i in desk.json("image", "list")] == [("debian-12", 1)]


def test_a_draft_can_be_edited_and_put(desk: Desk, evidence: Path, tmp_path: Path) -> None:
    """--draft stores nothing; `image put` takes what it printed; `image show` gives it back as it was written."""
    draft = desk.run("image", "enrol", "x", "--from", evidence, "--draft", "--pcrs", "4,7").stdout
    assert desk.json("image", "list") == []
    (tmp_path / "image.toml").write_text(draft)
    assert "image debian-12@1 stored" in desk.run("image", "put", "debian-12", tmp_path / "image.toml").stdout
    desk.run("image", "put", "debian-12", "-", stdin=draft + "# edited\n")
    assert desk.run("image", "show", "debian-12@1").stdout == draft
    assert "# edited" in desk.run("image", "show", "debian-12").stdout
    assert desk.json("image", "show", "debian-12")["version"] == 2
    assert "debian-12" in desk.run("image", "list").stdout
    assert set(desk.json("image", "show", "debian-12")) >= {"toml", "version", "platform"}


def test_evidence_that_is_not_genuine_enrols_nothing(desk: Desk, tpm: FakeTpm, tmp_path: Path) -> None:
    """A changed PCR value in the file is found before anything is sent, with the trace."""
    document = evidence_document(tpm)
    document["evidence"]["pcrs"]["sha256"]["4"] = "ab" * 32
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(document))
    result = desk.run("image", "enrol", "debian-12", "--from", path, "--yes", status=12)
    assert "not genuine" in result.stderr
    assert "What failed" in result.stdout
    assert desk.json("image", "list") == []


def _spoiled(document: dict[str, Any], change: str) -> str:
    match change:
        case "not json":
            return "{"
        case "other platform":
            document["tee"] = "snp"
        case "other key":
            document["instance"]["ak_public"] = evidence_document(booted())["instance"]["ak_public"]
        case "no instance":
            del document["instance"]
        case "extra member":
            document["instance"]["more"] = 1
        case "no list":
            document["instance"]["ek_certificates"] = "x"
        case "no key":
            document["instance"]["ak_public"] = document["evidence"]["ak_public"] = "AAAA"
    return json.dumps(document)


@pytest.mark.parametrize(
    "change", ["not json", "other platform", "other key", "no instance", "extra member", "no list", "no key"]
)
def test_what_is_no_evidence_file_is_named(desk: Desk, tpm: FakeTpm, tmp_path: Path, change: str) -> None:
    """Each defect ends with one clear error and how to make a good file."""
    path = tmp_path / "bad.json"
    path.write_text(_spoiled(evidence_document(tpm), change))
    for command in (["image", "enrol", "x"], ["instance", "add", "x"]):
        assert "roomkey-agent evidence" in desk.run(*command, "--from", path, status=17).stderr


@pytest.mark.parametrize(
    ("args", "status"),
    [
        (["image", "enrol", "x", "--from", "EVIDENCE", "--pcrs", "4;7"], 2),
        (["image", "enrol", "x", "--from", "EVIDENCE", "--pcrs", "4,24"], 10),
        (["image", "enrol", "x", "--from", "EVIDENCE", "--pcrs", "16"], 10),
        (["image", "enrol", "a b", "--from", "EVIDENCE", "--yes"], 10),
        (["image", "put", "x", "missing.toml"], 17),
        (["image", "show", "x"], 15),
        (["image", "show", "x@y"], 2),
        (["image", "show", "x@0"], 10),
    ],
)
def test_bad_image_commands_are_refused(desk: Desk, evidence: Path, args: list[str], status: int) -> None:
    """A bad list of PCRs, a PCR that proves nothing, a bad name or version: an error and nothing stored."""
    desk.run(*(evidence if arg == "EVIDENCE" else arg for arg in args), status=status)
    assert desk.json("image", "list") == []


def test_an_image_that_is_not_text_is_refused(desk: Desk, tmp_path: Path) -> None:
    """Bytes that are not UTF-8 never reach the broker."""
    (tmp_path / "image.toml").write_bytes(b"\xff\xfe")
    assert "not UTF-8" in desk.run("image", "put", "x", tmp_path / "image.toml", status=17).stderr


@pytest.mark.parametrize(
    ("extended", "chosen"),
    [
        ((4, 7), [0, 2, 4, 7]),
        ((4, 7, 8, 9), [0, 2, 4, 7, 8, 9]),
        ((4, 7, 14), [0, 2, 4, 7, 14]),
        ((4, 7, 11), [0, 2, 4, 7, 11, 12, 13]),
        ((4, 10, 12, 15, 23), [0, 2, 4, 7]),
    ],
)
def test_the_default_pcrs_fit_how_the_guest_booted(extended: tuple[int, ...], chosen: list[int]) -> None:
    """Firmware, loader, Secure Boot always; GRUB's and shim's where used; with a UKI also what can be added to it."""
    values = {f"sha256:{index}": ("ab" if index in extended else "00") * 32 for index in range(24)}
    assert default_pcrs(values) == chosen


# --- rules ---


def test_rules_are_set_shown_listed_and_deleted(desk: Desk, tmp_path: Path) -> None:
    """By options or from a file; each change is the next version."""
    desk.run("rule", "set", KEY, "--image", "a", "--image", "b@3", "--instance", "web-1", "--instance", "web-2")
    assert desk.json("rule", "show", KEY) | {"created_at": 0, "created_by": ""} == {
        "path": KEY, "version": 1, "images": ["a", "b@3"], "platforms": ["tpm"], "instances": ["web-1", "web-2"],
        "clones": "allow", "lease_s": 300, "sticky_failure": False, "unsafe_first_use": False,
        "created_at": 0, "created_by": "",
    }  # fmt: skip
    (tmp_path / "rule.toml").write_text('images = ["a"]\nplatforms = ["tpm"]\ninstances = ["any"]\n')
    result = desk.run("rule", "set", KEY, "--file", tmp_path / "rule.toml")
    assert "every machine in the world" in result.stderr
    assert [(r["path"], r["version"]) for r in desk.json("rule", "list")] == [(KEY, 2)]
    assert "any" in desk.run("rule", "show", KEY).stdout
    assert KEY in desk.run("rule", "list").stdout
    assert "nobody gets the key" in desk.run("rule", "delete", KEY, "--why", "stolen").stdout
    assert desk.json("rule", "list") == []
    desk.run("rule", "show", KEY, status=15)


@pytest.mark.parametrize(
    ("options", "status"),
    [
        (["--image", "a"], 2),
        (["--instance", "a"], 2),
        ([], 2),
        (["--file", "rule.toml", "--image", "a"], 2),
        (["--image", "a", "--instance", "any", "--instance", "b"], 10),
        (["--image", "a@x", "--instance", "b"], 10),
        (["--image", "a", "--instance", "b", "--platform", "tdx"], 10),
        (["--file", "-"], 10),
    ],
)
def test_a_rule_that_would_deny_or_admit_by_accident_is_refused(desk: Desk, options: list[str], status: int) -> None:
    """No image or instance, `any` beside names, a platform that is not judged, an empty file: no rule."""
    desk.run("rule", "set", KEY, *options, stdin="", status=status)
    assert desk.json("rule", "list") == []


def test_names_that_a_rule_cannot_find_are_pointed_out(desk: Desk, evidence: Path) -> None:
    """A mistyped image or instance is named at once and not only by the next denial; known names are not."""
    desk.run("image", "enrol", "debian-12", "--from", evidence, "--yes")
    desk.run("instance", "add", "web-1", "--from", evidence)
    typo = desk.run("rule", "set", KEY, "--image", "debain-12", "--image", "debian-12@1", "--instance", "web-2").stderr
    assert "no images named debain-12 yet" in typo
    assert "no instances named web-2 yet" in typo
    assert "Note" not in desk.run("rule", "set", KEY, "--image", "debian-12", "--instance", "web-1").stderr


# --- instances ---


def test_machines_are_enrolled_shown_readmitted_and_deleted(desk: Desk, evidence: Path, tpm: FakeTpm) -> None:
    """From an evidence file: the ids are computed from its keys; deletion wants the name typed."""
    added = desk.run("instance", "add", "web-1", "--from", evidence, "--description", "rack 3")
    assert f"tpm-ak:{tpm.ak_name.hex()}" in added.stdout
    [listed] = desk.json("instance", "list")
    assert (listed["name"], listed["description"]) == ("web-1", "rack 3")
    assert "attestation key" in desk.run("instance", "list").stdout
    assert f"tpm-ak:{tpm.ak_name.hex()}" in desk.run("instance", "show", "web-1").stdout
    assert desk.json("instance", "show", "web-1")["version"] == 1
    assert "any clock" in desk.run("guest", "readmit", "web-1", "--why", "board replaced").stderr
    [listed] = desk.json("instance", "list")
    assert listed["version"] == 2
    desk.run("instance", "delete", "web-1", stdin="web\n", status=1)
    assert desk.json("instance", "list") == [listed]
    desk.run("instance", "delete", "web-1", stdin="web-1\n")
    assert desk.json("instance", "list") == []
    desk.run("instance", "add", "web-1", "--from", evidence)
    desk.run("instance", "delete", "web-1", "--yes")
    desk.run("guest", "readmit", "web-1", status=15)


def test_machines_are_enrolled_by_certificate_or_public_key(desk: Desk, tmp_path: Path) -> None:
    """DER, PEM and TPMT_PUBLIC files, and an evidence file with a certificate, lead to the same ids."""
    tpm = booted(ca=EkCa())
    der = tpm.certificates[0]
    (tmp_path / "ek.der").write_bytes(der)
    (tmp_path / "ek.pem").write_bytes(x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM))
    (tmp_path / "ak.bin").write_bytes(tpm.ak_public)
    ids = []
    for words in (
        ("--ek-certificate", tmp_path / "ek.der"),
        ("--ek-certificate", tmp_path / "ek.pem", "--ak-public", tmp_path / "ak.bin"),
        ("--from", write_evidence(tmp_path / "guest.json", tpm)),
    ):
        desk.run("instance", "add", "web-1", *words)
        [instance] = desk.json("instance", "list")
        ids.append(instance["ids"])
    assert ids[1] == ids[2]
    assert ids[0] == ids[1][:1]
    assert ids[0][0].startswith("tpm-ek:")
    assert "endorsement key, attestation key" in desk.run("instance", "list").stdout


def test_a_machine_has_one_name(desk: Desk, tmp_path: Path) -> None:
    """A machine that is enrolled is not enrolled again under another name, until the first is deleted."""
    (tmp_path / "ak.bin").write_bytes(booted(ca=EkCa()).ak_public)
    desk.run("instance", "add", "web-1", "--ak-public", tmp_path / "ak.bin")
    refused = desk.run("instance", "add", "web-2", "--ak-public", tmp_path / "ak.bin", status=21)
    assert "web-1" in refused.stderr
    desk.run("instance", "delete", "web-1", "--yes")
    desk.run("instance", "add", "web-2", "--ak-public", tmp_path / "ak.bin")
    assert [instance["name"] for instance in desk.json("instance", "list")] == ["web-2"]


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ([], 2),
        (["--from", "EVIDENCE", "--ak-public", "EVIDENCE"], 2),
        (["--ek-certificate", "EVIDENCE"], 17),
        (["--ak-public", "EVIDENCE"], 17),
        (["--ak-public", "-"], 10),
    ],
)
def test_what_is_no_key_enrols_no_machine(desk: Desk, evidence: Path, options: list[str], status: int) -> None:
    """No file, two kinds at once, a file of something else: refused."""
    args = [evidence if option == "EVIDENCE" else option for option in options]
    desk.run("instance", "add", "web-1", *args, stdin="no key", status=status)
    assert desk.json("instance", "list") == []


@needs_swtpm
def test_what_the_agent_writes_enrols_image_and_machine(desk: Desk, tmp_path: Path) -> None:
    """The agent's own evidence file, of a software TPM with a certificate, is judged, enrolled and drafted from."""
    file, log = tmp_path / "guest.json", tmp_path / "log"
    with SoftwareTpm(tmp_path / "tpm") as swtpm:
        swtpm.manufacture(EkCa())
        swtpm.measure_boot(Boot(), log)
        agent = [sys.executable, "-m", "agent", "evidence", "--tpm", swtpm.address, "--eventlog", str(log)]
        file.write_bytes(subprocess.run(agent, cwd=ROOT, capture_output=True, check=True).stdout)
    added = desk.run("instance", "add", "web-1", "--from", file).stdout
    assert "tpm-ek:" in added
    name = json.loads(file.read_text())["instance"]["ak_name"]
    desk.run("verify", "tpm", file, "--expect", f"ak_name={name}")
    assert "vmlinuz" in desk.run("image", "enrol", "debian-12", "--from", file, "--yes").stdout


# --- decisions ---


def test_changes_are_decisions_too_and_pages_follow_each_other(desk: Desk) -> None:
    """Every change is listed with its reason; `next` leads to older ones."""
    for number in range(3):
        desk.run("key", "generate", f"acme/disk/k{number}", "--why", f"reason {number}")
    page = desk.json("decision", "list", "--kind", "change", "--limit", "2")
    assert [line["subject"] for line in page["decisions"]] == ["key/acme/disk/k2", "key/acme/disk/k1"]
    older = desk.json("decision", "list", "--kind", "change", "--before", page["next"])
    assert [line["subject"] for line in older["decisions"]] == ["key/acme/disk/k0", "owner/acme"]
    result = desk.run("decision", "list", "--limit", "2")
    assert f"--before {page['next']}" in result.stderr
    assert "reason 2" in desk.run("decision", "show", page["decisions"][0]["id"]).stdout
    one = desk.json("decision", "list", "--subject", "key/acme/disk/k1")
    assert [line["verdict"] for line in one["decisions"]] == ["generated"]


def test_a_decision_of_another_owner_is_not_there(desk: Desk) -> None:
    """Across owners the answer is not found."""
    desk.new_owner("bob")
    desk.run("key", "generate", KEY)
    [line] = desk.json("decision", "list", "--subject", f"key/{KEY}")["decisions"]
    desk.run("decision", "show", line["id"], owner="bob", status=15)
    desk.run("key", "show", KEY, owner="bob", status=15)


# --- owners ---


def test_owners_are_added_listed_and_given_new_keys(desk: Desk, tmp_path: Path) -> None:
    """A second key works beside the first; once removed, the first is refused."""
    other = tmp_path / "second" / "identity.toml"
    desk.run("identity", "new", "acme", "--broker", desk.url, "--audience", desk.services.audience,
             "--identity", other, "--algorithm", "es256")  # fmt: skip
    old = desk.json("identity", "show")["kid"]
    public = other.with_suffix(".public.jwk")
    desk.run("owner", "keys", "acme", "--add", public, "--config", desk.config, "--why", "new laptop")
    assert desk.run("key", "list", "--identity", other).exit_code == 0
    left = desk.run("owner", "keys", "acme", "--remove", old, "--config", desk.config).stdout
    assert old not in left
    refused = desk.run("key", "list", status=20)
    assert "roomkey identity show" in refused.stderr
    assert [(o["owner"], len(o["keys"])) for o in desk.json("owner", "list", "--config", desk.config)] == [("acme", 1)]
    assert "acme" in desk.run("owner", "list", "--config", desk.config).stdout
    [key] = desk.json("owner", "keys", "acme", "--config", desk.config)
    desk.run("owner", "keys", "acme", "--remove", key["kid"], "--config", desk.config, status=10)
    changes = desk.run("decision", "list", "--subject", "owner/acme", "--identity", other).stdout
    assert "changed" in changes
    assert "created" in changes


@pytest.mark.parametrize(
    ("name", "key", "status"),
    [
        ("acme", "GOOD", 21),
        ("a/b", "GOOD", 17),
        ("", "GOOD", 17),
        ("bob", "missing.jwk", 17),
        ("bob", "PRIVATE", 10),
        ("bob", "NONSENSE", 10),
    ],
)
def test_an_owner_is_not_added_twice_or_with_a_bad_key(
    desk: Desk, tmp_path: Path, name: str, key: str, status: int
) -> None:
    """An existing or bad name, a private or broken key: refused, and nobody is added."""
    good = desk.folder / "acme" / "identity.public.jwk"
    (tmp_path / "private.jwk").write_text(json.dumps(json.loads(good.read_text()) | {"d": "c2VjcmV0"}))
    (tmp_path / "nonsense.jwk").write_text("{}")
    files = {"GOOD": good, "PRIVATE": tmp_path / "private.jwk", "NONSENSE": tmp_path / "nonsense.jwk"}
    result = desk.run(
        "owner", "add", name, "--key", files.get(key, tmp_path / key), "--config", desk.config, status=status
    )
    assert "c2VjcmV0" not in result.output
    assert [o["owner"] for o in desk.json("owner", "list", "--config", desk.config)] == ["acme"]


def test_unknown_owners_and_keys_are_named(desk: Desk) -> None:
    """`owner keys` of nobody, and the removal of a key that is not there, change nothing."""
    desk.run("owner", "keys", "nobody", "--config", desk.config, status=15)
    desk.run("owner", "keys", "acme", "--remove", "x", "--config", desk.config, status=15)


# --- all of them ---


def test_every_list_is_json_and_hints_when_it_is_empty(desk: Desk) -> None:
    """With nothing there, --json is an empty list and the table says what to do."""
    for group in ("key", "image", "rule", "instance"):
        assert desk.json(group, "list") == []
        assert "roomkey" in desk.run(group, "list").stdout


def test_the_openapi_document_is_json(desk: Desk) -> None:
    """`roomkey openapi` prints the document that the broker serves."""
    document = json.loads(desk.run("openapi").stdout)
    assert document["openapi"].startswith("3.1")
    assert "/v1/keys" in document["paths"]


def _commands(prefix: list[str], command: Any) -> Iterator[tuple[list[str], Any]]:
    yield prefix, command
    for name, child in getattr(command, "commands", {}).items():
        yield from _commands([*prefix, name], child)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_with_an_example(name: str) -> None:
    """--help of each command and subcommand has a sentence and a line to copy, and its name is the real one."""
    command = main.get_command(None, name)  # type: ignore[arg-type]
    for path, each in _commands([name], command):
        result = CliRunner().invoke(main, [*path, "--help"])
        assert result.exit_code == 0
        assert each.help
        assert f"roomkey {path[0]}" in each.help, path


def test_the_tables_lines_say_what_the_commands_say() -> None:
    """Every command of the table exists, under the name that it has there, and completion knows it."""
    assert main.list_commands(None) == list(COMMANDS)  # type: ignore[arg-type]
    for commands in SECTIONS.values():
        for name in commands:
            assert main.get_command(None, name).name == name  # type: ignore[arg-type,union-attr]
