# SPDX-License-Identifier: Apache-2.0
"""The broker's settings: strict, typed, and safe where nothing was set."""

from __future__ import annotations

import dataclasses
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.config import MAX_FILE_BYTES, Config, Snp, load
from broker.verifiers.snp_floors import Floors
from keys.errors import ConfigError

BASE = """
[broker]
audience = "https://broker.example:8443"
[custody]
kek_file = "kek"
[token]
key_file = "token.key"
[signing]
key_file = "signing.key"
"""
TLS = '[listen]\ntls_certificate_file = "tls/cert.pem"\ntls_key_file = "/etc/tls.key"\n'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "broker.toml"


def loaded(path: Path, text: str, **environ: str) -> Config:
    path.write_text(text)
    return load(path, environ)


def test_smallest_config_is_careful(path: Path) -> None:
    """What is not set is loopback, five minutes, no trusted root, no unsafe switch; paths start at the file."""
    config = loaded(path, BASE + TLS)
    folder = path.parent
    assert (config.listen.host, config.listen.port) == ("127.0.0.1", 8443)
    assert config.listen.tls_certificate_file == folder / "tls/cert.pem"
    assert config.listen.tls_key_file == Path("/etc/tls.key")
    assert config.store.url == f"sqlite:{folder}/roomkey.db"
    assert (config.custody.kek_file, config.custody.old_kek_files) == (folder / "kek", ())
    assert (config.token.key_file, config.token.old_key_files) == (folder / "token.key", ())
    assert config.signing.key_file == folder / "signing.key"
    assert (config.token.lifetime_s, config.challenge.lifetime_s) == (300, 300)
    assert config.issuer == config.broker.audience == "https://broker.example:8443"
    assert (config.tpm.ek_root_files, config.tpm.ek_intermediate_files) == ((), ())
    assert config.limits.body_bytes == 256 * 1024
    assert config.snp.kds_url == "https://kdsintf.amd.com"
    assert config.snp.floors == Floors()
    assert not config.listen.unsafe_plain_http
    assert config.unsafe == ()


def test_everything_can_be_set(path: Path) -> None:
    """Each setting of the file arrives in its type."""
    config = loaded(
        path,
        """
        broker.audience = "a"
        listen = {host = "192.0.2.1", port = 1, workers = 3, threads = 5, tls_certificate_file = "c",tls_key_file = "k"}
        store.url = "sqlite:/var/lib/db"
        custody = {kek_file = "/run/kek", old_kek_files = ["old", "/older"]}
        token = {key_file = "t", old_key_files = ["u"], lifetime_s = 60, issuer = "i"}
        signing.key_file = "/run/signing.key"
        challenge.lifetime_s = 30
        tpm = {ek_root_files = ["r"], ek_intermediate_files = ["m", "n"]}
        limits = {body_bytes = 4096, challenges_per_minute = 7}
        [snp]
        kds_url = "http://kds.internal:8080/amd"
        min_report_version = 2
        products = ["Genoa"]
        named_only = []
        max_vmpl = 2
        policy_forbidden = ["smt_allowed"]
        policy_required = ["single_socket"]
        min_abi = "1.55"
        platform_forbidden = []
        platform_required = ["ecc_enabled"]
        min_reported_tcb = ["Genoa snp=30 microcode=84"]
        min_current_tcb = ["Turin fmc=1"]
        min_committed_tcb = ["Milan tee=1"]
        min_launch_tcb = []
        committed_is_current = true
        min_firmware = ["Genoa 1.55.40"]
        launch_mitigations = 3
        current_mitigations = 4294967295
        masked_chip_id = true
        chip_ids = ["00112233445566aa"]
        denied_chip_ids = ["00112233445566bb"]
        csp_ids = ["CN=cc-us-east-2.amazonaws.com"]
        id_key_digests = []
        author_key_digests = []
        min_guest_svn = 7
        host_data = []
        require_crl = true
        """,
    )
    folder = path.parent
    listen = config.listen
    assert (listen.host, listen.port, listen.workers, listen.threads) == ("192.0.2.1", 1, 3, 5)
    assert config.store.url == "sqlite:/var/lib/db"
    assert config.custody.old_kek_files == (folder / "old", Path("/older"))
    assert (config.token.old_key_files, config.token.lifetime_s, config.issuer) == ((folder / "u",), 60, "i")
    assert config.signing.key_file == Path("/run/signing.key")
    assert config.challenge.lifetime_s == 30
    assert config.tpm.ek_root_files == (folder / "r",)
    assert config.tpm.ek_intermediate_files == (folder / "m", folder / "n")
    assert (config.limits.body_bytes, config.limits.challenges_per_minute) == (4096, 7)
    assert config.snp.kds_url == "http://kds.internal:8080/amd"
    assert config.snp.floors == Floors(
        min_report_version=2, products=("Genoa",), named_only=(), max_vmpl=2, policy_forbidden=("smt_allowed",),
        policy_required=("single_socket",), min_abi="1.55", platform_forbidden=(), platform_required=("ecc_enabled",),
        min_reported_tcb=("Milan snp=24", "Genoa snp=30 microcode=84"), min_current_tcb=("Turin fmc=1",),
        min_committed_tcb=("Milan tee=1",), min_launch_tcb=(), committed_is_current=True,
        min_firmware=("Genoa 1.55.40",), launch_mitigations=3, current_mitigations=0xFFFFFFFF, masked_chip_id=True,
        chip_ids=("00112233445566aa",), denied_chip_ids=("00112233445566bb",),
        csp_ids=("CN=cc-us-east-2.amazonaws.com",), min_guest_svn=7, require_crl=True,
    )  # fmt: skip


def test_environment_wins(path: Path) -> None:
    """Variables override the file, fill in what it lacks, and have their types and relative paths like it."""
    config = loaded(
        path,
        '[custody]\nkek_file = "kek"\nold_kek_files = ["a"]\n[token]\nkey_file = "t"\n[listen]\nport = 1\n',
        ROOMKEY_BROKER_AUDIENCE="a",
        ROOMKEY_CUSTODY_KEK_FILE="/run/kek",
        ROOMKEY_CUSTODY_OLD_KEK_FILES="",
        ROOMKEY_TOKEN_OLD_KEY_FILES="b:/c",
        ROOMKEY_SIGNING_KEY_FILE="s",
        ROOMKEY_LISTEN_PORT="2",
        ROOMKEY_LISTEN_UNSAFE_PLAIN_HTTP="true",
        ROOMKEY_STORE_URL="sqlite:x.db",
        ROOMKEY_IDENTITY="somebody else's",
        PATH="/bin",
    )
    assert config.broker.audience == "a"
    assert (config.custody.kek_file, config.custody.old_kek_files) == (Path("/run/kek"), ())
    assert config.token.old_key_files == (path.parent / "b", Path("/c"))
    assert config.signing.key_file == path.parent / "s"
    assert config.listen.port == 2
    assert config.store.url == f"sqlite:{path.parent}/x.db"
    assert config.unsafe == ("listen.unsafe_plain_http",)


def test_lists_of_texts_in_the_environment(path: Path) -> None:
    """They are separated by commas, with or without spaces; an empty variable is an empty list."""
    config = loaded(
        path,
        BASE + TLS,
        ROOMKEY_SNP_PRODUCTS="Genoa, Turin",
        ROOMKEY_SNP_MIN_REPORTED_TCB="Genoa snp=30 tee=1,Turin snp=4",
        ROOMKEY_SNP_NAMED_ONLY="",
        ROOMKEY_SNP_KDS_URL="",
        ROOMKEY_SNP_CURRENT_MITIGATIONS="4294967295",
        ROOMKEY_SNP_REQUIRE_CRL="true",
    )
    assert (config.snp.products, config.snp.named_only, config.snp.kds_url) == (("Genoa", "Turin"), (), "")
    assert config.snp.min_reported_tcb == ("Milan snp=24", "Genoa snp=30 tee=1", "Turin snp=4")
    assert (config.snp.current_mitigations, config.snp.require_crl) == (0xFFFFFFFF, True)


def test_every_floor_is_a_setting() -> None:
    """The section [snp] has all floors, with the strict default, and the address of the KDS."""
    section = {member.name: member.default for member in dataclasses.fields(Snp)}
    assert section.pop("kds_url")
    assert section == dataclasses.asdict(Floors())


@pytest.mark.parametrize(
    ("line", "message", "mend"),
    [
        ('min_report_version = "3"', "snp.min_report_version: .* wrong value", None),
        ('products = ["Gena"]', "snp.products: .* unknown name", "did you mean Genoa?"),
        ('chip_ids = ["00"]', "snp.chip_ids: .* wrong value", None),
        ('platform_forbidden = ["alias_check_complete"]', "snp: platform_required and", None),
        ("min_snp = 3", "snp.min_snp is no setting", None),
        ('kds_url = "ftp://kds.internal"', "snp.kds_url is not a URL", None),
        ('kds_url = "https://"', "snp.kds_url is not a URL", None),
        ('kds_url = "https://me@kds.internal"', "snp.kds_url is not a URL", None),
        ('kds_url = "https://kds.internal/?x"', "snp.kds_url is not a URL", None),
        ('kds_url = "https://kds.internal/#x"', "snp.kds_url is not a URL", None),
        ('kds_url = "https://kds.internal:99999"', "snp.kds_url is not a URL", None),
        ('kds_url = "https://kds.internal:0"', "snp.kds_url is not a URL", None),
        ('kds_url = "https://kds.internal/a b"', "snp.kds_url is not a URL", None),
        ('kds_url = "https://kds.intérnal/"', "snp.kds_url is not a URL", None),
        ('kds_url = "https://[kds"', "snp.kds_url is not a URL", None),
        ("kds_url = 7", "snp.kds_url must be a text", None),
    ],
)
def test_bad_floor_is_named(path: Path, line: str, message: str, mend: str | None) -> None:
    """What a floor cannot be is said with its path and, where one is near, the word that was meant."""
    with pytest.raises(ConfigError, match=message) as caught:
        loaded(path, f"{BASE}{TLS}[snp]\n{line}\n")
    if mend is not None:
        assert caught.value.mend == mend


def test_debug_guests_are_for_loopback(path: Path) -> None:
    """The switch that lets debug guests in is unsafe: shown as such, and refused where others can reach the broker."""
    text = BASE + TLS + "[snp]\nunsafe_debug = true\n"
    config = loaded(path, text)
    assert config.snp.floors.unsafe_debug
    assert config.unsafe == ("snp.unsafe_debug",)
    with pytest.raises(ConfigError, match="unsafe_debug is for loopback only"):
        loaded(path, text, ROOMKEY_LISTEN_HOST="192.0.2.1")


def test_false_switches_a_switch_off(path: Path) -> None:
    """A switch that the file turns on can be turned off again from outside."""
    text = BASE + TLS + "unsafe_plain_http = true\n"
    assert loaded(path, text).listen.unsafe_plain_http
    assert not loaded(path, text, ROOMKEY_LISTEN_UNSAFE_PLAIN_HTTP="false").listen.unsafe_plain_http


@pytest.mark.parametrize(
    ("text", "message", "mend"),
    [
        ("[listne]\n", "listne is no setting", "did you mean listen?"),
        ("[zzzz]\n", "zzzz is no setting", None),
        ("[challenge]\nlifetime = 3\n", "challenge.lifetime is no setting", "did you mean challenge.lifetime_s?"),
        ("[challenge]\n[challenge.lifetime_s]\n", "challenge.lifetime_s must be a whole number", None),
    ],
)
def test_unknown_setting_is_an_error_with_its_path(path: Path, text: str, message: str, mend: str | None) -> None:
    """A misspelt section or key is named, with the nearest one that exists."""
    with pytest.raises(ConfigError, match=message) as caught:
        loaded(path, BASE + TLS + text)
    assert caught.value.mend == mend


def test_unknown_variable_is_an_error(path: Path) -> None:
    """A misspelt variable of a section that exists is named, with the nearest one that exists."""
    with pytest.raises(ConfigError, match="ROOMKEY_LISTEN_PROT is no setting") as caught:
        loaded(path, BASE + TLS, ROOMKEY_LISTEN_PROT="1")
    assert caught.value.mend == "did you mean ROOMKEY_LISTEN_PORT?"


@pytest.mark.parametrize(
    ("section", "line"), [("broker", 'audience = "https://broker.example:8443"'), ("custody", 'kek_file = "kek"')]
)
def test_missing_setting_is_named(path: Path, section: str, line: str) -> None:
    """What has no safe default must be set, and the error says where."""
    with pytest.raises(ConfigError, match=f"{section}.{line.partition(' ')[0]} is not set") as caught:
        loaded(path, (BASE + TLS).replace(line, ""))
    assert f"ROOMKEY_{section.upper()}" in str(caught.value.mend)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("LISTEN_PORT", "0"), ("LISTEN_PORT", "65536"), ("LISTEN_PORT", "-1"), ("LISTEN_PORT", "1e3"),
        ("LISTEN_PORT", "٣"), ("LISTEN_PORT", "9" * 5000), ("LISTEN_PORT", ""), ("LISTEN_WORKERS", "0"),
        ("LISTEN_UNSAFE_PLAIN_HTTP", "1"), ("LISTEN_UNSAFE_PLAIN_HTTP", "True"), ("TOKEN_LIFETIME_S", "301"),
        ("CHALLENGE_LIFETIME_S", "301"), ("CHALLENGE_LIFETIME_S", "0"), ("LIMITS_BODY_BYTES", "262145"),
        ("LIMITS_BODY_BYTES", "4095"), ("LIMITS_CHALLENGES_PER_MINUTE", "0"), ("BROKER_AUDIENCE", ""),
        ("BROKER_AUDIENCE", "a\nb"), ("BROKER_AUDIENCE", "a" * 513), ("CUSTODY_KEK_FILE", ""),
        ("CUSTODY_OLD_KEK_FILES", "a::b"), ("STORE_URL", "sqlite:"), ("STORE_URL", "mysql:x"), ("TOKEN_ISSUER", ""),
        ("LISTEN_TLS_KEY_FILE", ""), ("SNP_PRODUCTS", "Genoa,"), ("SNP_MAX_VMPL", "4"), ("SNP_MAX_VMPL", ""),
        ("SNP_REQUIRE_CRL", "yes"), ("SNP_MIN_ABI", "1"), ("SNP_KDS_URL", "kds"),
    ],
)  # fmt: skip
def test_bad_value_in_the_environment_is_an_error(path: Path, variable: str, value: str) -> None:
    """A value of the wrong type or out of its bounds is refused under the variable's name."""
    with pytest.raises(ConfigError, match=f"ROOMKEY_{variable}"):
        loaded(path, BASE + TLS, **{f"ROOMKEY_{variable}": value})


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (BASE.replace('"kek"', "7") + TLS, "custody.kek_file"),
        (BASE + TLS + 'port = "8443"', "listen.port"),
        (BASE + TLS + "port = 8443.0", "listen.port"),
        (BASE + TLS + "workers = true", "listen.workers"),
        (BASE + TLS + "unsafe_plain_http = 1", "listen.unsafe_plain_http"),
        (BASE + TLS + '[tpm]\nek_root_files = "root.pem"', "tpm.ek_root_files"),
        (BASE + TLS + "[tpm]\nek_root_files = [7]", "tpm.ek_root_files"),
        ("listen = 7\n" + BASE, "listen must be a section"),
    ],
)
def test_bad_value_in_the_file_is_an_error(path: Path, text: str, name: str) -> None:
    """A value of the wrong type is refused under its path."""
    with pytest.raises(ConfigError, match=name):
        loaded(path, text)


def test_tls_or_nothing(path: Path) -> None:
    """Without TLS, or with half of it, there is no broker."""
    with pytest.raises(ConfigError, match="no TLS"):
        loaded(path, BASE)
    for line in TLS.splitlines()[1:]:
        with pytest.raises(ConfigError, match="go together"):
            loaded(path, BASE + "[listen]\n" + line)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_plain_http_is_possible_on_loopback(path: Path, host: str) -> None:
    """With its switch set, a loopback address may do without TLS."""
    config = loaded(path, BASE, ROOMKEY_LISTEN_HOST=host, ROOMKEY_LISTEN_UNSAFE_PLAIN_HTTP="true")
    assert config.listen.is_loopback
    assert config.listen.tls_key_file is None


@pytest.mark.parametrize(
    "host", ["192.0.2.255", "::", "192.0.2.1", "broker.example", "localhost.example", "127.0.0.1.example"]
)
def test_plain_http_is_refused_elsewhere(path: Path, host: str) -> None:
    """The unsafe switch on an address that others may reach stops the broker, TLS or not."""
    for text in (BASE, BASE + TLS):
        with pytest.raises(ConfigError, match="loopback only"):
            loaded(path, text, ROOMKEY_LISTEN_HOST=host, ROOMKEY_LISTEN_UNSAFE_PLAIN_HTTP="true")


@pytest.mark.parametrize("content", [b"audience", b"\xff\xfe", b"a = 1\na = 2", b"x = " + b"[" * 20_000])
def test_file_that_is_no_toml_is_an_error(path: Path, content: bytes) -> None:
    """Whatever is no TOML is refused with the parser's reason."""
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="is not TOML"):
        load(path, {})


def test_file_must_be_there_and_of_a_sane_size(path: Path) -> None:
    """A missing file, a folder, and a file far too long are refused."""
    for wrong in (path, path.parent):
        with pytest.raises(ConfigError, match="cannot be read"):
            load(wrong, {})
    path.write_bytes(b"#" * (MAX_FILE_BYTES + 1))
    with pytest.raises(ConfigError, match="too long"):
        load(path, {})


def test_config_is_frozen(path: Path) -> None:
    """Nothing changes a setting after the start."""
    config: Any = loaded(path, BASE + TLS)
    for target, name in ((config, "listen"), (config.listen, "port")):
        with pytest.raises(FrozenInstanceError):
            setattr(target, name, None)


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["broker", "listen", "tpm", "token", "snp", "x"]),
        st.dictionaries(
            st.sampled_from(["audience", "port", "ek_root_files", "key_file", "products", "min_abi", "y"]),
            st.integers() | st.booleans() | st.text("ab:\n", max_size=5) | st.lists(st.integers() | st.just("f")),
        ),
    )
)
def test_arbitrary_settings_raise_only_config_errors(
    tmp_path_factory: pytest.TempPathFactory, sections: dict[str, dict[str, Any]]
) -> None:
    """Whatever the file says, it is loaded or refused with a config error."""
    lines = []
    for name, members in sections.items():
        lines.append(f"[{name}]")
        lines += [f"{key} = {toml(value)}" for key, value in members.items()]
    path = tmp_path_factory.getbasetemp() / "fuzzed.toml"
    path.write_text("\n".join(lines))
    with pytest.raises(ConfigError):
        load(path, {"ROOMKEY_CUSTODY_KEK_FILE": ""})


def toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return repr(value) if isinstance(value, int) else '"' + str(value).replace("\n", "\\n") + '"'
