# SPDX-License-Identifier: Apache-2.0
"""A real software TPM (swtpm) for tests, demo and benchmark.

    with SoftwareTpm(directory) as tpm:
        tpm.manufacture(EkCa())                        an EK certificate in NV, by Python alone
        tpm.measure_boot(Boot(), directory / "log")    PCRs extended event by event, and the log to match
        ... agent settings: tpm=tpm.address, eventlog=str(directory / "log")

swtpm serves one connection at a time, so nothing here keeps one open. It proves nothing about the machine it runs
on: its certificates belong to tests.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from cryptography.hazmat.primitives.serialization import Encoding

from agent import tpm2
from agent.attesters.tpm import CHAIN_FIRST, EK_PROFILES, EkProfile
from agent.deadline import Deadline
from agent.tpm2_marshal import ALG_SHA256, HASH_IDS, tpm2b, u16, u32
from keys.errors import AttesterError
from tests.fakes.boot import BANKS, Boot, Event, event_log
from tests.fakes.ek_ca import EkCa, public_key

START_SECONDS = 10.0  # for the process to listen; it takes about 10 ms
COMMAND_SECONDS = 10.0
NV_CHUNK_BYTES = 512
# PPWRITE, WRITEDEFINE, PPREAD, OWNERREAD, AUTHREAD, NO_DA, PLATFORMCREATE: as a maker leaves an EK certificate.
NV_CERTIFICATE_ATTRIBUTES = 0x42072001
FILL = b"\xff" * 64  # what real NV areas hold after the certificate


class SoftwareTpm:
    """One TPM; `state` is its memory. A new `state` directory is a new TPM, with seeds of its own."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self._socket = state / "socket"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """What the agent's setting `tpm` says to reach it."""
        return f"swtpm:unix:{self._socket}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Power on: all PCRs as the platform leaves them, TPM2_Startup(CLEAR) done."""
        self.state.mkdir(parents=True, exist_ok=True)
        self._socket.unlink(missing_ok=True)
        self._process = subprocess.Popen(
            [
                "swtpm", "socket", "--tpm2",
                "--tpmstate", f"dir={self.state}",
                "--server", f"type=unixio,path={self._socket}",
                "--flags", "not-need-init",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )  # fmt: skip
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                with self.open() as tpm:
                    return tpm.startup()
            except AttesterError as error:
                if self._process.poll() is not None or time.monotonic() > end:
                    words = self.stop()
                    raise RuntimeError(f"swtpm does not start: {words}") from error
                time.sleep(0.001)

    def stop(self) -> str:
        """Power off, as a cable that is pulled. Returns what swtpm complained of."""
        if self._process is None:
            return ""
        process, self._process = self._process, None
        process.kill()
        _, words = process.communicate()
        return words.decode(errors="replace")

    def reset(self) -> None:
        """An orderly power cycle: PCRs start again, keys and NV stay."""
        with self.open() as tpm:
            tpm.run("TPM2_Shutdown", 0x145, parameters=u16(0))
        self.stop()
        self.start()

    def open(self) -> tpm2.Tpm:
        """A connection; to be closed before anybody else opens one."""
        return tpm2.Tpm.open(self.address, Deadline(COMMAND_SECONDS))

    def manufacture(
        self, ca: EkCa, profile: EkProfile = EK_PROFILES[0], *, persistent: int | None = None, chain: bool = True
    ) -> bytes:
        """Write an EK certificate of `ca` into NV, the CA's own certificate beside it if `chain`, and keep the EK under
        the handle `persistent` if given. Returns the certificate (DER).
        """
        with self.open() as tpm:
            with tpm.primary(tpm2.RH_ENDORSEMENT, profile.template) as ek:
                certificate = ca.certify(public_key(ek.public)).public_bytes(Encoding.DER)
                if persistent is not None:
                    persist(tpm, ek.handle, persistent)
            nv_write(tpm, profile.certificate_index, certificate + FILL)
            if chain:
                nv_write(tpm, CHAIN_FIRST, ca.intermediate.public_bytes(Encoding.DER) + FILL)
        return certificate

    def measure_boot(self, boot: Boot, log: Path) -> None:
        """Measure `boot` and write its event log."""
        self.measure(boot.events(), log)

    def measure(self, events: Sequence[Event], log: Path) -> None:
        """Extend the PCRs by `events`, in every bank that the log covers, and write the log."""
        with self.open() as tpm:
            for event in events:
                tpm.pcr_extend(event.pcr, {HASH_IDS[bank]: event.digest(bank) for bank in BANKS})
        log.write_bytes(event_log(events))


def persist(tpm: tpm2.Tpm, key: int, handle: int) -> None:
    """Keep the loaded `key` under the persistent `handle`."""
    tpm.run("TPM2_EvictControl", 0x120, handles=(tpm2.RH_OWNER, key), sessions=(tpm2.RS_PW,), parameters=u32(handle))


def nv_define(tpm: tpm2.Tpm, index: int, size: int) -> None:
    """Define an NV area by platform authorization."""
    public = u32(index) + u16(ALG_SHA256) + u32(NV_CERTIFICATE_ATTRIBUTES) + tpm2b(b"") + u16(size)
    tpm.run(
        "TPM2_NV_DefineSpace",
        0x12A,
        handles=(tpm2.RH_PLATFORM,),
        sessions=(tpm2.RS_PW,),
        parameters=tpm2b(b"") + tpm2b(public),
    )


def nv_write(tpm: tpm2.Tpm, index: int, data: bytes) -> None:
    """Define the NV area `index` as large as `data`, and fill it."""
    nv_define(tpm, index, len(data))
    for offset in range(0, len(data), NV_CHUNK_BYTES):
        tpm.run(
            "TPM2_NV_Write",
            0x137,
            handles=(tpm2.RH_PLATFORM, index),
            sessions=(tpm2.RS_PW,),
            parameters=tpm2b(data[offset : offset + NV_CHUNK_BYTES]) + u16(offset),
        )


def set_up_with_swtpm_setup(state: Path, ca_directory: Path) -> Path:
    """A TPM made by swtpm's own tool, with RSA-2048 and P-384 EK certificates of a CA in `ca_directory` (made on first
    use). Run before `start`. Returns the file with the CA's certificates: root and issuer, PEM.
    """
    state.mkdir(parents=True, exist_ok=True)
    ca_directory.mkdir(parents=True, exist_ok=True)
    options = ca_directory / "localca.options"
    options.write_text("--platform-manufacturer Roomkey\n--platform-version 1.0\n--platform-model demo\n")
    local_ca = ca_directory / "localca.conf"
    local_ca.write_text(
        f"statedir = {ca_directory}\n"
        f"signingkey = {ca_directory}/signkey.pem\n"
        f"issuercert = {ca_directory}/issuercert.pem\n"
        f"certserial = {ca_directory}/certserial\n"
    )
    setup = ca_directory / "setup.conf"
    setup.write_text(
        f"create_certs_tool = {shutil.which('swtpm_localca')}\n"
        f"create_certs_tool_config = {local_ca}\n"
        f"create_certs_tool_options = {options}\n"
    )
    subprocess.run(
        [
            "swtpm_setup", "--tpm2", "--tpmstate", str(state), "--config", str(setup),
            "--create-ek-cert", "--pcr-banks", ",".join(BANKS), "--overwrite",
        ],
        check=True,
        capture_output=True,
    )  # fmt: skip
    roots = ca_directory / "roots.pem"
    parts = (ca_directory / name for name in ("swtpm-localca-rootca-cert.pem", "issuercert.pem"))
    roots.write_bytes(b"".join(part.read_bytes() for part in parts))
    return roots
