# SPDX-License-Identifier: Apache-2.0
"""`roomkey init`, `doctor`, `kek`, `ledger`, `identity`: from nothing to a broker that is in order, on real files."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import tomllib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from broker.cli import COMMANDS, main, pki
from broker.cli.operator import opened, recorded
from broker.rotate import Progress
from broker.signing import Signer
from broker.store.protocols import KeyState, StoredKey
from broker.store.sqlite import SqliteStore
from keys.custody.local import LocalCustody
from keys.errors import ConfigError, Conflict


def run(*args: object, **options: object) -> Result:
    """Run `roomkey ARGS`; a foreign exception fails the test."""
    result = CliRunner().invoke(main, [str(arg) for arg in args], **options)  # type: ignore[arg-type]
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def broker(tmp_path: Path) -> Path:
    """A new broker's folder."""
    assert run("init", tmp_path / "broker").exit_code == 0
    return tmp_path / "broker"


def test_init_makes_a_broker_that_its_doctor_finds_in_order(broker: Path) -> None:
    """Everything that the config names is there, with the mode that keeps it secret."""
    modes = {str(path.relative_to(broker)): path.stat().st_mode & 0o777 for path in broker.rglob("*")}
    assert modes == {
        "broker.toml": 0o644,
        "kek": 0o400,
        "token.key": 0o400,
        "signing.key": 0o400,
        "signing.pub.json": 0o644,
        "roomkey.db": 0o600,
        "tls": 0o700,
        "tls/ca.pem": 0o644,
        "tls/ca.key": 0o400,
        "tls/broker.pem": 0o644,
        "tls/broker.key": 0o400,
    }
    assert broker.stat().st_mode & 0o777 == 0o700
    result = run("doctor", "--config", broker / "broker.toml", "--json")
    report = json.loads(result.output)
    assert (result.exit_code, report["ok"]) == (0, True)
    assert "fail" not in {check["state"] for check in report["checks"]}


def test_init_prints_what_to_do_next_and_no_secret(tmp_path: Path) -> None:
    """The next commands are there, ready to be copied; the KEK and private keys are not."""
    result = run("init", tmp_path / "b", "--host", "broker.example", "--host", "2001:db8::7", "--port", 9443)
    assert "roomkey serve --config" in result.stderr
    assert "roomkey owner add" in result.stderr
    assert "roomkey identity new OWNER --broker https://broker.example:9443" in result.stderr
    assert (tmp_path / "b" / "kek").read_text().strip() not in result.output
    assert "PRIVATE" not in result.output
    assert f"{tmp_path / 'b' / 'signing.pub.json'}  (pin it" in result.stdout


def test_init_names_the_hosts_in_the_certificate(tmp_path: Path) -> None:
    """Names and addresses stand in subjectAltName, and the CA may sign nothing but such certificates."""
    run("init", tmp_path / "b", "--host", "broker.example", "--host", "2001:db8::7")
    folder = tmp_path / "b" / "tls"
    server, ca = (x509.load_pem_x509_certificate((folder / name).read_bytes()) for name in ("broker.pem", "ca.pem"))
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in names] == ["broker.example", "2001:db8::7"]
    server.verify_directly_issued_by(ca)
    assert ca.extensions.get_extension_for_class(x509.BasicConstraints).value == x509.BasicConstraints(True, 0)
    config = tomllib.loads((tmp_path / "b" / "broker.toml").read_text())
    assert config["listen"]["host"] == "0.0.0.0"  # noqa: S104
    assert config["broker"]["audience"] == "https://broker.example:8443"


def test_init_listens_on_loopback_unless_told_otherwise(broker: Path) -> None:
    """Without --host the new broker is for this machine alone."""
    assert tomllib.loads((broker / "broker.toml").read_text())["listen"]["host"] == "127.0.0.1"


def test_an_ipv6_broker_has_a_url_with_brackets(tmp_path: Path) -> None:
    """An IPv6 address is bracketed in the audience."""
    run("init", tmp_path / "b", "--host", "2001:db8::7")
    config = tomllib.loads((tmp_path / "b" / "broker.toml").read_text())
    assert config["broker"]["audience"] == "https://[2001:db8::7]:8443"


def test_init_overwrites_nothing(broker: Path) -> None:
    """A second init in the same place changes no byte and says so."""
    before = {path: path.read_bytes() for path in broker.rglob("*") if path.is_file()}
    result = run("init", broker)
    assert result.exit_code == 21
    assert "there is something already" in result.stderr
    assert {path: path.read_bytes() for path in broker.rglob("*") if path.is_file()} == before


def test_init_takes_an_empty_folder_but_no_link(tmp_path: Path) -> None:
    """An empty folder is filled; a link to one is not followed."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    assert run("init", tmp_path / "link").exit_code == 21
    assert run("init", tmp_path / "empty").exit_code == 0


@pytest.mark.parametrize("host", ["bad host", "a..b", "é.example", "x" * 254])
def test_init_leaves_nothing_behind_when_it_fails(tmp_path: Path, host: str) -> None:
    """What is no host name is refused, and no half-made folder stays."""
    result = run("init", tmp_path / "b", "--host", host)
    assert (result.exit_code, list(tmp_path.iterdir())) == (17, [])
    assert "not a host's name" in result.stderr


def test_init_where_nothing_can_be_written_is_an_error_of_ours(tmp_path: Path) -> None:
    """A file in the way of the folder's parent is a ConfigError."""
    (tmp_path / "file").write_text("")
    result = run("init", tmp_path / "file" / "b")
    assert result.exit_code == 17
    assert "cannot make the broker's folder" in result.stderr


Spoil = Callable[[Path], object]


def _config(change: Callable[[str], str]) -> Spoil:
    def spoil(broker: Path) -> None:
        path = broker / "broker.toml"
        path.write_text(change(path.read_text()))

    return spoil


def _without_names(broker: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([])
    now = datetime.now(UTC)
    plain = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
        .not_valid_before(now).not_valid_after(now + timedelta(days=90)).sign(key, hashes.SHA256())
    )  # fmt: skip
    _replace_tls(broker, pki.certificate_pem(plain), pki.key_pem(key))


def _replace_tls(broker: Path, certificate: bytes, key: bytes) -> None:
    (broker / "tls/broker.pem").write_bytes(certificate)
    (broker / "tls/broker.key").unlink()
    (broker / "tls/broker.key").write_bytes(key)
    (broker / "tls/broker.key").chmod(0o400)


def _served_until(days: int) -> Spoil:
    def spoil(broker: Path) -> None:
        made_at = datetime.now(UTC) + timedelta(days=days) - pki.SERVER_LIFETIME
        ca, ca_key = pki.make_ca("Test", made_at)
        certificate, key = pki.make_server(ca, ca_key, ["localhost"], made_at)
        _replace_tls(broker, pki.certificate_pem(certificate), pki.key_pem(key))

    return spoil


def _replaced(old: str, new: str) -> Spoil:
    return _config(lambda text: text.replace(old, new))


def _sec1_key(broker: Path) -> None:
    path = broker / "tls/broker.key"
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    sec1 = serialization.PrivateFormat.TraditionalOpenSSL
    pem = key.private_bytes(serialization.Encoding.PEM, sec1, serialization.NoEncryption())
    _replace_tls(broker, (broker / "tls/broker.pem").read_bytes(), pem)


def _other_published(broker: Path) -> None:
    (broker / "signing.pub.json").write_text(json.dumps(Signer(ec.generate_private_key(ec.SECP256R1())).jwks()))


def _ca_as_server(broker: Path) -> None:
    (broker / "tls/broker.pem").write_bytes((broker / "tls/ca.pem").read_bytes())


_PLAIN = _replaced(
    'tls_certificate_file = "tls/broker.pem"\ntls_key_file = "tls/broker.key"', "unsafe_plain_http = true"
)


@pytest.mark.parametrize(
    ("spoil", "check", "state", "words"),
    [
        (_config(lambda text: text + "x = 1\n"), "config", "fail", "no setting"),
        (lambda broker: (broker / "broker.toml").unlink(), "config", "fail", "roomkey init"),
        (lambda broker: (broker / "kek").chmod(0o644), "KEK", "fail", "chmod 0400"),
        (_replaced("old_kek_files = []", 'old_kek_files = ["kek"]'), "old KEKs", "warn", "kek rotate"),
        (lambda broker: (broker / "token.key").chmod(0o644), "token key", "fail", "chmod 400"),
        (lambda broker: (broker / "token.key").unlink(), "token key", "fail", "cannot be read"),
        (lambda broker: (broker / "signing.key").chmod(0o644), "signing key", "fail", "chmod 400"),
        (_replaced('"signing.key"', '"token.key"'), "signing key", "fail", "a key of its own"),
        (lambda broker: (broker / "signing.pub.json").write_text('{"keys": []}'), "signing key", "warn", "signing-key"),
        (_other_published, "signing key", "warn", "refuses this broker"),
        (lambda broker: (broker / "tls/broker.key").chmod(0o640), "TLS", "fail", "can be read by others"),
        (lambda broker: (broker / "tls/broker.pem").write_text("x"), "TLS", "fail", "holds no certificate"),
        (_ca_as_server, "TLS", "fail", "not the certificate's"),
        (_sec1_key, "TLS", "fail", "openssl pkcs8"),
        (_without_names, "TLS", "fail", "names no host"),
        (_served_until(10), "TLS certificate", "warn", "next certificate"),
        (_served_until(-1), "TLS certificate", "fail", "not valid now"),
        (_PLAIN, "switches", "warn", "unsafe_plain_http"),
        (_PLAIN, "TLS", "warn", "plain HTTP"),
        (lambda broker: (broker / "roomkey.db").unlink(), "store", "fail", "there is no store"),
        (lambda broker: (broker / "roomkey.db").write_bytes(b"x" * 4096), "store", "fail", ""),
        (_replaced("ek_root_files = []", 'ek_root_files = ["kek"]'), "TPM roots", "fail", ""),
        (
            _replaced("ek_root_files = []", 'ek_root_files = ["tls/ca.key"]'),
            "TPM roots",
            "fail",
            "holds no certificate",
        ),
        (_replaced("ek_root_files = []", 'ek_root_files = ["tls/ca.pem"]'), "TPM roots", "ok", "1 trusted"),
    ],
)
def test_the_doctor_names_each_defect(broker: Path, spoil: Spoil, check: str, state: str, words: str) -> None:
    """Each defect of a set-up is one line with its mend; failures end with status 1, warnings do not."""
    spoil(broker)
    result = run("doctor", "--config", broker / "broker.toml", "--json")
    report = json.loads(result.output)
    [finding] = [finding for finding in report["checks"] if (finding["check"], finding["state"]) == (check, state)]
    assert words in finding["found"] + finding["mend"]
    assert result.exit_code == (1 if state == "fail" else 0)
    assert report["ok"] is (state != "fail")


def test_the_doctor_does_not_miss_a_set_that_is_published_elsewhere(broker: Path) -> None:
    """Where the public half lies is the operator's business; beside the key it is looked at, if it is there."""
    (broker / "signing.pub.json").unlink()
    checks = json.loads(run("doctor", "--config", broker / "broker.toml", "--json").output)["checks"]
    assert [check["state"] for check in checks if check["check"] == "signing key"] == ["ok"]


def test_the_doctors_table_shows_states_and_mends(broker: Path) -> None:
    """For people: one line a check, and under it what mends it."""
    (broker / "kek").chmod(0o644)
    result = run("doctor", "--config", broker / "broker.toml")
    lines = result.output.splitlines()
    index = next(i for i, line in enumerate(lines) if line.startswith("fail  KEK"))
    assert lines[index + 1].strip() == f"to mend it  chmod 0400 {broker / 'kek'}"
    assert "1 to be mended" in result.stderr


def test_the_doctor_is_content_with_an_owner_and_the_ca_key_elsewhere(broker: Path, tmp_path: Path) -> None:
    """With the CA's key moved away and an owner added, the two warnings about them are gone."""
    (broker / "tls/ca.key").unlink()
    identity = tmp_path / "me" / "identity.toml"
    run("identity", "new", "acme", "--broker", "https://localhost", "--ca", broker / "tls/ca.pem",
        "--identity", identity)  # fmt: skip
    run("owner", "add", "acme", "--key", identity.with_suffix(".public.jwk"), "--config", broker / "broker.toml")
    checks = json.loads(run("doctor", "--config", broker / "broker.toml", "--json").output)["checks"]
    assert [check["check"] for check in checks if check["state"] != "ok"] == ["TPM roots"]


def test_an_operators_change_that_fails_leaves_a_second_line(broker: Path) -> None:
    """The line comes before the change; what then fails is recorded as failed."""
    with opened(broker / "broker.toml") as (_, store):
        with (
            pytest.raises(Conflict),
            recorded(store, owner="acme", subject="owner/acme", verdict="created", why="new"),
        ):
            raise Conflict("somebody was faster")
        lines = [(line.verdict, line.body["who"], line.body["why"]) for line in store.entries("acme")]
    assert lines == [("failed", "operator", "created: new"), ("created", "operator", "new")]


def test_a_rotation_says_when_it_should_be_repeated(broker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys that changed meanwhile are not passed over in silence; without old KEKs nothing is to be done."""
    assert run("kek", "rotate", "--config", broker / "broker.toml").stderr == ""
    monkeypatch.setattr("broker.cli.kek.rewrap_all", lambda *_: Progress(seen=2, rewrapped=1, changed_meanwhile=1))
    assert "run it once more" in run("kek", "rotate", "--config", broker / "broker.toml").stderr


def _kek_setup(broker: Path) -> StoredKey:
    """One sealed key, and a config whose current KEK is a new one."""
    custody = LocalCustody.from_files(broker / "kek")
    sealed = custody.seal("acme", "disk", "root", 1, b"k" * 32)
    key = StoredKey("acme", "disk", "root", 1, KeyState.ACTIVE, 0, "t", sealed)
    store = SqliteStore(broker / "roomkey.db")
    store.put_key(key)
    store.close()
    assert run("kek", "new", broker / "kek-2").exit_code == 0
    _config(lambda text: text.replace('"kek" ', '"kek-2" ').replace("old_kek_files = []", 'old_kek_files = ["kek"]'))(
        broker
    )
    return key


def test_a_new_kek_is_named_so_that_the_config_finds_it(broker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The setting to copy has an absolute path: a relative one would be looked for beside the config."""
    monkeypatch.chdir(broker.parent)
    assert f'kek_file = "{broker / "kek-2"}"' in run("kek", "new", f"{broker.name}/kek-2").stderr


def test_a_kek_is_rotated_and_the_old_one_is_not_needed_any_more(broker: Path) -> None:
    """After `kek new`, the config's change and `kek rotate`, the new KEK alone opens every key."""
    key = _kek_setup(broker)
    result = run("kek", "rotate", "--config", broker / "broker.toml")
    assert result.exit_code == 0
    assert "1 key versions, 1 sealed anew" in result.stdout
    assert "destroy" in result.stderr
    store = SqliteStore(broker / "roomkey.db")
    sealed = store.key(*key.path.split("/")).sealed
    store.close()
    assert sealed is not None
    assert LocalCustody.from_files(broker / "kek-2").open("acme", "disk", "root", 1, sealed) == b"k" * 32
    again = run("kek", "rotate", "--config", broker / "broker.toml")
    assert "1 key versions, 0 sealed anew" in again.stdout


def test_a_rotation_without_the_old_kek_stops_and_names_it(broker: Path) -> None:
    """The store keeps its sealed keys, and the mend says which setting is missing."""
    _kek_setup(broker)
    _config(lambda text: text.replace('old_kek_files = ["kek"]', "old_kek_files = []"))(broker)
    result = run("kek", "rotate", "--config", broker / "broker.toml")
    assert result.exit_code == 16
    assert "old_kek_files" in result.stderr


def test_a_new_kek_is_32_bytes_that_nobody_else_reads(broker: Path) -> None:
    """The file is what custody accepts, is not overwritten, and its bytes are not printed."""
    path = broker / "kek-2"
    result = run("kek", "new", path)
    text = path.read_text()
    assert len(base64.b64decode(text)) == 32
    assert text.strip() not in result.output
    assert path.stat().st_mode & 0o777 == 0o400
    assert run("kek", "new", path).exit_code == 17
    assert path.read_text() == text


def test_the_ledgers_chain_is_verified(broker: Path) -> None:
    """`ledger verify` counts the lines, for people and as JSON."""
    store = SqliteStore(broker / "roomkey.db")
    store.append(id_="d-1", owner="acme", at=1, kind="change", verdict="created", subject="x", body={})
    store.close()
    assert run("ledger", "verify", "--config", broker / "broker.toml").output == "1 lines, one unbroken chain\n"
    result = run("ledger", "verify", "--config", broker / "broker.toml", "--json")
    assert json.loads(result.output) == {"lines": 1, "chained": True}


@pytest.mark.parametrize("command", [["ledger", "verify"], ["kek", "rotate"]])
def test_an_operators_command_without_a_config_says_how_to_make_one(tmp_path: Path, command: list[str]) -> None:
    """A missing config file is named, with the way to one."""
    result = run(*command, "--config", tmp_path / "none.toml")
    assert result.exit_code == 17
    assert "roomkey init DIR" in result.stderr


def test_an_identity_is_made_shown_and_kept_private(broker: Path, tmp_path: Path) -> None:
    """`identity new` prints the public key's file and the operator's next command; the private key is in no output."""
    path = tmp_path / "me" / "identity.toml"
    made = run("identity", "new", "acme", "--broker", "https://localhost:8443/", "--ca", broker / "tls/ca.pem",
               "--identity", path)  # fmt: skip
    assert made.exit_code == 0
    assert f"roomkey owner add acme --key {path.with_suffix('.public.jwk')}" in made.stderr
    private = path.with_suffix(".key").read_text().splitlines()[1]
    shown = run("identity", "show", "--identity", path)
    as_json = run("identity", "show", "--identity", path, "--json")
    document = json.loads(as_json.output)
    assert document["owner"] == "acme"
    assert document["audience"] == "https://localhost:8443"
    assert document["jwk"] == json.loads(path.with_suffix(".public.jwk").read_text())
    assert document["kid"] in shown.output
    assert private not in made.output + shown.output + as_json.output


def test_an_identity_is_found_through_the_environment(broker: Path, tmp_path: Path) -> None:
    """ROOMKEY_IDENTITY names the file for every command."""
    environment = {"ROOMKEY_IDENTITY": str(tmp_path / "i.toml")}
    made = run("identity", "new", "acme", "--broker", "https://localhost", "--ca", broker / "tls/ca.pem",
               "--algorithm", "es256", env=environment)  # fmt: skip
    assert made.exit_code == 0
    shown = run("identity", "show", "--json", env=environment)
    assert json.loads(shown.output)["jwk"]["crv"] == "P-256"


def test_an_unreadable_ca_is_named(tmp_path: Path) -> None:
    """A CA file that does not exist is a ConfigError, and no identity is made."""
    result = run("identity", "new", "acme", "--broker", "https://localhost", "--ca", tmp_path / "none",
                 "--identity", tmp_path / "i.toml")  # fmt: skip
    assert result.exit_code == 17
    assert list(tmp_path.iterdir()) == []


def test_every_command_is_in_the_help(tmp_path: Path) -> None:
    """`roomkey --help` lists all commands with a line each, by what one wants to do."""
    output = run("--help").output
    for name, (_, text) in COMMANDS.items():
        assert f"  {name}" in output
        assert text in output
    assert "Running a broker" in output


def test_unknown_commands_are_usage_errors() -> None:
    """A typo ends with status 2 and the usage."""
    result = run("frobnicate")
    assert result.exit_code == 2
    assert "No such command" in result.stderr


def test_the_help_starts_without_the_heavy_imports() -> None:
    """`roomkey --help` imports neither Flask nor cryptography nor urllib3, so it answers at once."""
    script = (
        "import sys\nfrom broker.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('flask', 'cryptography', 'urllib3', 'jwt', 'sqlite3') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_no_color_is_honoured(broker: Path) -> None:
    """NO_COLOR switches colour off on a terminal too."""
    args = ["doctor", "--config", str(broker / "broker.toml")]
    assert "\x1b" in CliRunner().invoke(main, args, color=True).output
    assert "\x1b" not in CliRunner().invoke(main, args, color=True, env={"NO_COLOR": "1"}).output


def test_certificates_are_refused_for_what_is_no_host() -> None:
    """`make_server` raises our error for a host that is neither a name nor an address."""
    ca, key = pki.make_ca("x", datetime.now(UTC))
    with pytest.raises(ConfigError):
        pki.make_server(ca, key, ["-*-"], datetime.now(UTC))
