# SPDX-License-Identifier: Apache-2.0
"""The broker's signing key: one of its own, of the right kind, and only its public half is ever shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat

from broker.app import build_services
from broker.cli import main
from broker.cli.operator import load_config
from broker.cli.pki import key_pem
from broker.signing import Signer, load_signer, published, read_signer
from keys.envelope import MAX_KEYS, RELEASE, load_keys, verify
from keys.errors import ConfigError


def run(*args: object) -> Result:
    """Run `roomkey ARGS`; a foreign exception fails the test."""
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def write_key(path: Path, key: ec.EllipticCurvePrivateKey | None = None) -> Path:
    path.write_bytes(key_pem(key or ec.generate_private_key(ec.SECP384R1())))
    path.chmod(0o400)
    return path


@pytest.fixture
def broker(tmp_path: Path) -> Path:
    """A new broker's folder."""
    assert run("init", tmp_path / "broker").exit_code == 0
    return tmp_path / "broker"


def test_what_a_new_broker_signs_its_published_key_verifies(broker: Path) -> None:
    """`init` publishes the very key that the running broker signs with."""
    services = build_services(load_config(broker / "broker.toml"))
    services.store.close()
    keys = load_keys((broker / "signing.pub.json").read_bytes())
    assert keys.by_kid.keys() == {services.signer.kid}
    assert verify(services.signer.sign({"a": 1}, RELEASE), keys, RELEASE, max_bytes=1024) == {"a": 1}
    assert published(broker / "signing.key") == broker / "signing.pub.json"


def test_a_signer_shows_its_public_half_only() -> None:
    """Its words have the key's id, its set the public members, and changing the set changes nothing."""
    signer = Signer(ec.generate_private_key(ec.SECP256R1()))
    assert repr(signer) == f"Signer(kid='{signer.kid}')"
    assert signer.jwks()["keys"][0].keys() == {"alg", "crv", "kid", "kty", "use", "x", "y"}
    signer.jwks()["keys"][0]["kid"] = "another"
    assert signer.jwks()["keys"][0]["kid"] == signer.kid


def test_signatures_have_their_full_width() -> None:
    """r and s are padded to the curve's width, whatever their first bytes are."""
    for curve, length in ((ec.SECP256R1(), 86), (ec.SECP384R1(), 128)):
        signer = Signer(ec.generate_private_key(curve))
        keys = load_keys(str(signer.jwks()).replace("'", '"').encode())
        for number in range(300):  # one in 128 has a zero in front
            statement = signer.sign({"n": number}, RELEASE)
            assert len(statement.rpartition(".")[2]) == length
            assert verify(statement, keys, RELEASE, max_bytes=1024) == {"n": number}


def test_another_kind_of_key_is_refused(tmp_path: Path) -> None:
    """Neither another curve nor another kind signs, nor a key under a passphrase; the file is named."""
    file = tmp_path / "key"
    encrypted = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")
    )
    ed = ed25519.Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for pem in (key_pem(ec.generate_private_key(ec.SECP521R1())), ed, encrypted):
        file.write_bytes(pem)
        file.chmod(0o600)
        with pytest.raises(ConfigError, match="the signing key is") as caught:
            read_signer(file)
        assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    "settings", ['key_file = "signing.key"', 'key_file = "t.key"\nold_key_files = ["signing.key"]']
)
def test_tokens_have_another_key(broker: Path, settings: str) -> None:
    """A broker that would sign tokens with the pinned key does not start; an old token key is looked at, too."""
    write_key(broker / "t.key")
    config = broker / "broker.toml"
    text = config.read_text().replace('key_file = "token.key"', settings)
    config.write_text(text)
    with pytest.raises(ConfigError, match="tokens are signed with the signing key") as caught:
        load_signer(load_config(config))
    assert "a key of its own" in (caught.value.mend or "")


def test_the_command_prints_the_set_to_pin(broker: Path) -> None:
    """`roomkey signing-key` prints what `init` published, and nothing private."""
    result = run("signing-key", "--config", broker / "broker.toml")
    assert result.exit_code == 0
    assert load_keys(result.stdout.encode()) == load_keys((broker / "signing.pub.json").read_bytes())
    assert "PRIVATE" not in result.output
    assert '"d"' not in result.output


def test_the_next_key_is_pinned_before_it_signs(broker: Path) -> None:
    """With --with the set has both keys, the same one once; then agents take what either broker signed."""
    following = write_key(broker / "next.key")
    result = run("signing-key", "--with", following, "--with", following, "--config", broker / "broker.toml")
    assert load_keys(result.stdout.encode()).by_kid.keys() == {
        read_signer(broker / "signing.key").kid, read_signer(following).kid,
    }  # fmt: skip


def test_a_set_has_no_more_keys_than_agents_take(broker: Path) -> None:
    """What no agent would read is not printed."""
    others = [write_key(broker / f"{number}.key") for number in range(MAX_KEYS)]
    options = [word for file in others for word in ("--with", str(file))]
    assert run("signing-key", *options[2:], "--config", broker / "broker.toml").exit_code == 0
    result = run("signing-key", *options, "--config", broker / "broker.toml")
    assert result.exit_code == ConfigError.exit_status
    assert result.stdout == ""
