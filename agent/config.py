# SPDX-License-Identifier: Apache-2.0
"""The agent's settings: one optional TOML file, and the command line over it.

    brokers = ["https://broker.example:8443"]   tried in this order
    ca_file = "/etc/roomkey/broker-ca.pem"      the only CA that may vouch for a broker; needed for https
    tee = "tpm"                                 this machine's platform
    tpm = "device:/dev/tpmrm0"                  or swtpm:unix:PATH, swtpm:HOST:PORT
    eventlog = "/sys/kernel/security/tpm0/binary_bios_measurements"    "" sends no log
    tsm = "/sys/kernel/config/tsm/report"       where reports of SEV-SNP are asked for first (configfs-tsm),
    sev_guest = "/dev/sev-guest"                and where otherwise
    secrets = "/sys/kernel/security/secrets/coco"   what a SEV launch put into this guest
    timeout = 12                                seconds for the whole conversation with the brokers
    broker_keys = "/etc/roomkey/broker-keys.json"   the keys whose signature on a release counts: a JWK set
    unsafe_plain_kbs = false                    take keys that no broker has signed for
    versions = ""                               where the newest version of each key is remembered; "" nowhere
    ticket = ""                                 the file with the ticket of a machine that is not enrolled yet

The files are part of what must be measured (they sit in the initramfs): who changes them chooses the broker.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from agent.files import read
from keys.errors import ConfigError
from keys.tee import Tee

DEFAULT_PATH = "/etc/roomkey/agent.toml"
MAX_CONFIG_BYTES = 64 * 1024
TIMEOUT_SECONDS = range(1, 601)


class Settings(NamedTuple):
    """What the file and the command line came to."""

    brokers: tuple[str, ...] = ()
    ca_file: str = ""
    tee: Tee = Tee.TPM
    tpm: str = "device:/dev/tpmrm0"
    eventlog: str = "/sys/kernel/security/tpm0/binary_bios_measurements"
    tsm: str = "/sys/kernel/config/tsm/report"
    sev_guest: str = "/dev/sev-guest"
    secrets: str = "/sys/kernel/security/secrets/coco"
    timeout: int = 12
    broker_keys: str = "/etc/roomkey/broker-keys.json"
    unsafe_plain_kbs: bool = False
    versions: str = ""
    ticket: str = ""


_TEXTS = ("ca_file", "tee", "tpm", "eventlog", "tsm", "sev_guest", "secrets", "broker_keys", "versions", "ticket")


def load(path: str | None, overrides: dict[str, Any]) -> Settings:
    """The settings in `path` (None: DEFAULT_PATH, if it exists), with every override that is not None over them.

    Raises ConfigError, naming the setting.
    """
    values = _read(path or DEFAULT_PATH, must_exist=path is not None)
    values |= {key: value for key, value in overrides.items() if value is not None}
    for key in values:
        if key not in Settings._fields:
            raise ConfigError(f"unknown setting {key}", expected=", ".join(Settings._fields))
    for key in _TEXTS:
        if not isinstance(values.get(key, ""), str):
            raise ConfigError(f"setting {key} must be a string")
    if not isinstance(values.get("unsafe_plain_kbs", False), bool):
        raise ConfigError("setting unsafe_plain_kbs must be true or false")
    brokers = values.get("brokers", [])
    if not isinstance(brokers, list) or not all(isinstance(url, str) for url in brokers):
        raise ConfigError("setting brokers must be a list of URLs")
    timeout = values.get("timeout", Settings().timeout)
    # bool is an int to Python; `timeout = true` is a mistake.
    if type(timeout) is not int or timeout not in TIMEOUT_SECONDS:
        raise ConfigError("setting timeout must be a number of seconds", expected="1 to 600", found=str(timeout))
    if (tee := values.get("tee", Tee.TPM)) not in set(Tee):
        raise ConfigError("setting tee is not a platform", expected=", ".join(Tee), found=tee)
    return Settings(**values | {"brokers": tuple(brokers), "tee": Tee(tee)})


def _read(path: str, *, must_exist: bool) -> dict[str, Any]:
    data = read(path, what="the config file", max_bytes=MAX_CONFIG_BYTES)
    if data is None:
        if not must_exist:
            return {}
        raise ConfigError(f"no config file {path}")
    import tomllib  # noqa: PLC0415  only where there is a file to read

    try:
        return tomllib.loads(data.decode("utf-8"))
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError are both
        raise ConfigError(f"the config file {path} is not TOML", found=str(error)) from None
