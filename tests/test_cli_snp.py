# SPDX-License-Identifier: Apache-2.0
"""The owner's commands for SEV-SNP, Azure and SEV guests, against a real broker and an AMD of our own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from broker.cli import main
from broker.endorsements import setup
from broker.verifiers import offline_snp
from broker.verifiers.snp_report import Line
from keys import b64
from keys.errors import ReleaseDenied
from tests.fakes.amd import AT, MEASUREMENT, Chip, FakeAmd, tsm_evidence
from tests.fakes.az_guest import AzGuest
from tests.fakes.desk import KEY, Desk, open_desk
from tests.fakes.sev import FakePlatform, FakeSev
from tests.fakes.snp_guest import SnpGuest

DATA = bytes(range(48))
AMD, MILAN = FakeAmd(), FakeAmd(Line.MILAN)
CHIP, VLEK, ON_MILAN = Chip(AMD), Chip(AMD, csp_id="CN=cloud.test"), Chip(MILAN)
AZURE = AzGuest(CHIP)
CHIP_ID, VLEK_ID = f"snp-chip:{CHIP.hw_id.hex()}", "snp-csp:CN=cloud.test"


@pytest.fixture(autouse=True)
def _our_amd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broker and commands know our AMD, and ask nobody else for anything."""
    trusted = replace(
        AMD.trusted(),
        roots=(AMD.ark, MILAN.ark),
        certificates=(*AMD.trusted().certificates, *MILAN.trusted().certificates),
    )
    for module in (setup, offline_snp):
        monkeypatch.setattr(module, "built_in", lambda: trusted)
    monkeypatch.setenv("ROOMKEY_SNP_KDS_URL", "")


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with open_desk(tmp_path) as made:
        yield made


def write(path: Path, evidence: Any, tee: str = "snp", **members: Any) -> Path:
    path.write_text(json.dumps({"tee": tee, "evidence": evidence, "report_data": b64.std(DATA)} | members))
    return path


def snp_file(path: Path, chip: Chip = CHIP, *, certificates: bool = True, **fields: Any) -> Path:
    """What the agent writes on `chip`; `fields` of the report."""
    described = {"snp_chip_id": chip.hw_id.hex()} if chip.csp_id is None else {}
    evidence = tsm_evidence(chip.report(DATA, **fields), chip.certificates if certificates else None)
    return write(path, evidence, instance=described)


# --- the whole way ---


@pytest.mark.parametrize("chip", [CHIP, ON_MILAN], ids=["Genoa", "Milan"])
def test_an_owner_leads_a_guest_to_its_key(desk: Desk, chip: Chip, tmp_path: Path) -> None:
    """Enrolled from one evidence file, named in the rule: the guest on that chip gets the key, another one does not."""
    file = snp_file(tmp_path / "guest.json", chip)
    (tmp_path / "disk.key").write_bytes(b"sixteen bytes ok")
    desk.run("key", "put", KEY, "--from-file", tmp_path / "disk.key")
    desk.run("image", "enrol", "debian-12", "--from", file, "--yes")
    desk.run("instance", "add", "rack-3", "--from", file)
    assert "snp" in desk.run("rule", "set", KEY, "--image", "debian-12", "--instance", "rack-3").stdout
    assert desk.ask(SnpGuest(chip)) == b"sixteen bytes ok"
    with pytest.raises(ReleaseDenied):
        desk.ask(SnpGuest(chip, measurement=MEASUREMENT[::-1]))
    with pytest.raises(ReleaseDenied):
        desk.ask(SnpGuest(Chip(chip.amd, bytes(range(64)))))


def test_any_means_lines_that_nobody_can_forge(desk: Desk, tmp_path: Path) -> None:
    """The same rule lets a Genoa in and tells its owner why not a Milan, and how to name that chip."""
    file = snp_file(tmp_path / "guest.json")
    desk.run("key", "generate", KEY)
    desk.run("image", "enrol", "debian-12", "--from", file, "--yes")
    desk.run("rule", "set", KEY, "--image", "debian-12", "--instance", "any")
    assert len(desk.ask(SnpGuest(CHIP))) == 32
    with pytest.raises(ReleaseDenied) as denied:
        desk.ask(SnpGuest(ON_MILAN))
    shown = desk.run("decision", "show", denied.value.decision).stdout
    assert "vcek-named" in shown
    assert f"roomkey instance add NAME --chip-id {ON_MILAN.hw_id.hex()}" in " ".join(shown.split())


# --- images ---


def test_enrolment_says_what_was_and_was_not_checked(desk: Desk, tmp_path: Path) -> None:
    """The draft, the chip, and what only the owner can know are shown; without a yes nothing is stored."""
    file = snp_file(tmp_path / "guest.json", host_data=b"\x01" * 32, guest_svn=3)
    asked = desk.run("image", "enrol", "debian-12", "--from", file, stdin="n\n", status=1)
    assert MEASUREMENT.hex() in asked.stdout
    assert "# min_guest_svn = 3" in asked.stdout
    assert CHIP_ID in asked.stderr
    assert "what the launch digest stands for" in asked.stderr
    assert desk.json("image", "list") == []
    desk.run("image", "enrol", "debian-12", "--from", file, "--yes")
    assert 'host_data = "0101' in desk.run("image", "show", "debian-12").stdout


def test_a_draft_of_an_azure_guest_has_paravisor_and_pcrs(desk: Desk, tmp_path: Path) -> None:
    """The PCRs are chosen as for a TPM; the guest's vTPM is named."""
    file = write(tmp_path / "guest.json", AZURE.evidence(DATA), "az-snp-vtpm")
    shown = desk.run("image", "enrol", "azure", "--from", file, "--pcrs", "4,7", "--yes")
    assert f'4 = "{AZURE.pcrs[4].hex()}"' in shown.stdout
    assert MEASUREMENT.hex() in shown.stdout
    assert AZURE.ak_id in shown.stderr
    assert desk.json("image", "show", "azure")["platform"] == "az-snp-vtpm"


def test_certificates_and_floors_are_handed_in(desk: Desk, tmp_path: Path) -> None:
    """Without the chip's certificate, or below the strict floors, it takes a file more."""
    file = snp_file(tmp_path / "guest.json", certificates=False, version=2)
    (tmp_path / "vcek.der").write_bytes(CHIP.vcek)
    floors = tmp_path / "floors.toml"
    floors.write_text('min_report_version = 2\nplatform_required = ["ecc_enabled"]\n')
    enrol = ("image", "enrol", "x", "--from", file, "--yes")
    desk.run(*enrol, status=12)
    desk.run(*enrol, "--endorsement", tmp_path / "vcek.der", status=12)
    desk.run(*enrol, "--endorsement", tmp_path / "vcek.der", "--floors", floors)
    assert [image["name"] for image in desk.json("image", "list")] == ["x"]


def test_an_image_without_what_boots_is_refused(desk: Desk, tmp_path: Path) -> None:
    """The broker refuses it when it is put, with the mend; PCRs are not asked of a report."""
    (tmp_path / "image.toml").write_text(f'platform = "snp"\n[snp]\nhost_data = "{"01" * 32}"\n')
    refused = desk.run("image", "put", "x", tmp_path / "image.toml", status=10)
    assert "snp.measurement" in refused.stderr
    desk.run("image", "enrol", "x", "--from", snp_file(tmp_path / "guest.json"), "--pcrs", "4", status=2)


# --- instances ---


@pytest.mark.parametrize(
    ("options", "instance_id", "kind"),
    [
        (("--chip-id", CHIP.hw_id.hex().upper()), CHIP_ID, "AMD processor"),
        (("--csp-id", "CN=cloud.test"), VLEK_ID, "cloud provider"),
        (("--from", "VCEK"), CHIP_ID, "AMD processor"),
        (("--from", "VLEK"), VLEK_ID, "cloud provider"),
        (("--from", "AZURE"), AZURE.ak_id, "Azure vTPM"),
        (("--from", "TURIN"), "snp-chip:" + bytes(range(1, 9)).hex(), "AMD processor"),
    ],
)
def test_machines_are_enrolled_by_what_names_them(
    desk: Desk, tmp_path: Path, options: tuple[str, str], instance_id: str, kind: str
) -> None:
    """By options or from an evidence file, the id is the one that the verifier gives to the same machine."""
    files = {
        "VCEK": snp_file(tmp_path / "vcek.json"),
        "VLEK": snp_file(tmp_path / "vlek.json", VLEK),
        "AZURE": write(tmp_path / "azure.json", AZURE.evidence(DATA), "az-snp-vtpm"),
        "TURIN": snp_file(tmp_path / "turin.json", Chip(FakeAmd(Line.TURIN), bytes(range(1, 9)))),
    }
    added = desk.run("instance", "add", "rack-3", options[0], files.get(options[1], options[1]))
    assert instance_id in added.stdout
    [listed] = desk.json("instance", "list")
    assert listed["ids"] == [instance_id]
    assert kind in desk.run("instance", "list").stdout
    assert ("Note: this names every machine" in added.stderr) == (kind == "cloud provider")
    assert ("Note: this names a processor" in added.stderr) == (kind == "AMD processor")


def test_a_processor_before_snp_is_enrolled_by_its_certificate(desk: Desk, tmp_path: Path) -> None:
    """From the file that AMD hands out; another of the platform's certificates is refused."""
    platform = FakePlatform(FakeSev())
    (tmp_path / "cek.cert").write_bytes(platform.cek)
    (tmp_path / "pek.cert").write_bytes(platform.pek)
    assert platform.instance_id in desk.run("instance", "add", "old-1", "--sev-cek", tmp_path / "cek.cert").stdout
    assert "CEK" in desk.run("instance", "list").stdout
    desk.run("instance", "add", "old-2", "--sev-cek", tmp_path / "pek.cert", status=10)


def test_options_do_not_mix_with_a_file(desk: Desk, tmp_path: Path) -> None:
    """What the machine is known by comes from one place."""
    desk.run("instance", "add", "x", "--from", snp_file(tmp_path / "guest.json"), "--chip-id", "00", status=2)
    desk.run("instance", "add", "x", "--chip-id", "00", status=10)


@pytest.mark.parametrize(
    ("evidence", "members", "word"),
    [
        (tsm_evidence(VLEK.report(DATA)), {}, "--csp-id"),
        (tsm_evidence(CHIP.report(DATA, chip_id=bytes(64))), {}, "--chip-id"),
        (tsm_evidence(CHIP.report(DATA)), {"instance": {"snp_chip_id": "00" * 64}}, "name different machines"),
        (tsm_evidence(CHIP.report(DATA)), {"instance": {"snp_csp_id": "CN=cloud.test"}}, "name different machines"),
        (tsm_evidence(CHIP.report(DATA)), {"instance": {"snp_chip_id": 7}}, "name different machines"),
        (tsm_evidence(CHIP.report(DATA)), {"instance": {"snp_chip_id": CHIP.hw_id.hex()[:16]}}, "different machines"),
        (tsm_evidence(CHIP.report(DATA)), {"instance": {"ak_name": "00"}}, "unknown member"),
        (tsm_evidence(bytes(1184)), {}, "unknown version"),
        (tsm_evidence(CHIP.report(DATA)), {"tee": "sev"}, "cannot be enrolled"),
        (tsm_evidence(CHIP.report(DATA)), {"tee": ["snp"]}, "cannot be enrolled"),
        (AZURE.evidence(DATA), {"tee": "az-snp-vtpm", "instance": {"ak_name": "00"}}, "unknown member"),
        (AZURE.evidence(DATA) | {"hcl_report": ""}, {"tee": "az-snp-vtpm"}, "not an evidence file"),
    ],
)
def test_files_that_name_no_machine_enrol_none(
    desk: Desk, tmp_path: Path, evidence: Any, members: dict[str, Any], word: str
) -> None:
    """A masked chip, a missing VLEK, contradictions, other platforms: one clear error."""
    file = write(tmp_path / "guest.json", evidence, **members)
    assert word in " ".join(desk.run("instance", "add", "x", "--from", file, status=17).stderr.split())


# --- rules ---


def put_images(desk: Desk) -> None:
    for name, text in {
        "confidential": f'platform = "snp"\n[snp]\nmeasurement = "{"01" * 48}"\n',
        "metal": f'platform = "tpm"\n[tpm]\nbank = "sha256"\npcrs = {{4 = "{"01" * 32}"}}\n',
        "old": f'platform = "sev"\n[sev]\nlaunch_digest = "{"01" * 32}"\n',
    }.items():
        desk.run("image", "put", name, "-", stdin=text)


@pytest.mark.parametrize(
    ("images", "platforms"),
    [
        (("confidential",), ["snp"]),
        (("confidential@1", "metal"), ["snp", "tpm"]),
        (("confidential", "missing"), ["tpm"]),
        (("confidential@2",), ["tpm"]),
        (("old", "missing"), ["tpm"]),
    ],
)
def test_the_default_platforms_are_the_images(desk: Desk, images: tuple[str, ...], platforms: list[str]) -> None:
    """Where all images are there their platforms are meant; else a TPM, and what is missing is pointed out."""
    put_images(desk)
    options = [word for image in images for word in ("--image", image)]
    desk.run("rule", "set", KEY, *options, "--instance", "any")
    assert desk.json("rule", "show", KEY)["platforms"] == platforms


def test_the_weakest_platform_is_never_chosen_unnamed(desk: Desk) -> None:
    """An image for sev needs --platform sev, whatever stands beside it."""
    put_images(desk)
    for images in (("old",), ("confidential", "old")):
        options = [word for image in images for word in ("--image", image)]
        assert "--platform sev" in desk.run("rule", "set", KEY, *options, "--instance", "old-1", status=2).stderr
    desk.run("rule", "set", KEY, "--image", "old", "--instance", "old-1", "--platform", "sev")
    assert desk.json("rule", "show", KEY)["platforms"] == ["sev"]


# --- verify ---


def verify(*args: object) -> Any:
    result = CliRunner().invoke(main, ["verify", *map(str, args), "--at", AT.isoformat()])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_a_file_or_a_bare_report_is_judged(tmp_path: Path) -> None:
    """With the certificate in the file or beside it: status 0, with the floors in the trace."""
    shown = verify("snp", snp_file(tmp_path / "guest.json"), "--expect", f"measurement={MEASUREMENT.hex()}")
    assert shown.exit_code == 0
    assert "trusted by" in shown.stdout
    assert "debugging is off" in shown.stdout
    (tmp_path / "report.bin").write_bytes(CHIP.report(DATA))
    (tmp_path / "vcek.der").write_bytes(CHIP.vcek)
    bare = ("snp", tmp_path / "report.bin", "--expect", f"report_data={DATA.hex()}")
    assert verify(*bare).exit_code == 2
    assert verify(*bare, "--endorsement", tmp_path / "vcek.der").exit_code == 0


def test_floors_are_the_callers(tmp_path: Path) -> None:
    """Floors of a file stand in the place of the strict ones; one that is none cannot be judged."""
    file = snp_file(tmp_path / "guest.json", vmpl=1)
    (tmp_path / "floors.toml").write_text("max_vmpl = 1\n")
    (tmp_path / "wrong.toml").write_text("max_vpml = 1\n")
    assert verify("snp", file).exit_code == 1
    assert verify("snp", file, "--floors", tmp_path / "floors.toml").exit_code == 0
    wrong = verify("snp", file, "--floors", tmp_path / "wrong.toml")
    assert (wrong.exit_code, "max_vmpl" in wrong.stderr) == (2, True)
