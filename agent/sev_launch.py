# SPDX-License-Identifier: Apache-2.0
"""Launching a SEV or SEV-ES guest with its owner's key, on the host: between the broker, QEMU and nobody else.

A guest of this kind cannot attest when it runs, so its memory is measured before, by the processor:

    start     the platform's certificates  -> broker -> GODH and session, files for QEMU's LAUNCH_START
    (QEMU)    started with them and -S: it loads the guest's memory and waits
    finish    QEMU's measurement -> broker -> the secret's packet -> QEMU's LAUNCH_SECRET -> the guest runs

The host is trusted by nobody: the session and the packet are encrypted for its processor, and everything it says here
is under a key that only the processor has. A launch is good for one secret. Whatever fails, the guest does not start.
"""

from __future__ import annotations

import os
import re
from typing import Any, NamedTuple

from agent.client import refusal
from agent.config import Settings
from agent.connection import MAX_ANSWER_BYTES, Connection, endpoint, tls_context
from agent.deadline import Deadline
from agent.qmp import Qmp
from agent.sev_chain import read_chain
from keys import b64, strictjson
from keys.errors import AttesterError, ConfigError, ProtocolError, Unavailable
from keys.messages import ResourcePath

LAUNCHES = "/roomkey/v1/sev/launches"
GODH_BYTES = 2084
SESSION_BYTES = 128
MEASUREMENT_BYTES = 48  # measure, mnonce
HEADER_BYTES = 52
MAX_PACKET_BYTES = 16 * 1024  # what LAUNCH_SECRET takes
MAX_POLICY = 0xFFFFFFFF
MAX_FILE_BYTES = 4096

GODH, SESSION, LAUNCH, MONITOR = "godh.b64", "session.b64", "launch.json", "qmp.sock"
WAITING = "launch-secret"  # query-sev's state after LAUNCH_MEASURE

_ID = re.compile(r"[A-Za-z0-9_-]{1,128}\Z")


class Launch(NamedTuple):
    """What launch.json keeps from start to finish. `broker` is the URL of the one that knows the launch."""

    launch: str
    broker: str
    resource: str
    policy: int


def start(settings: Settings, path: ResourcePath, chain: list[str], directory: str, deadline: Deadline) -> Launch:
    """Begin a launch for the key at `path`, and put its files into `directory`, which is made if it is not there.

    `chain`: files with the platform's certificates. A broker that cannot be reached is passed over for the next; a
    refusal ends it. Raises ConfigError, Unavailable, or what `agent.client.refusal` makes of the broker's answer.
    """
    certificates = {name: b64.std(data) for name, data in read_chain(chain).items()}
    message = {"resource": str(path), "chain": certificates}
    if not settings.brokers:
        raise ConfigError("no broker", mend="set brokers in the agent's config, or give --broker")
    if os.path.lexists(f"{directory}/{LAUNCH}"):
        raise ConfigError(
            f"{directory} holds another launch", mend="give a new folder: each launch is good for one guest"
        )
    failure = Unavailable("no broker answered")
    for untried, url in zip(range(len(settings.brokers), 0, -1), settings.brokers, strict=True):
        try:
            answer = _post(settings, url, "", message, 201, deadline.share(untried))
        except Unavailable as error:
            failure = error
        else:
            return _started(answer, Launch("", url, str(path), 0), directory)
    raise failure


def finish(settings: Settings, directory: str, monitor: str, deadline: Deadline) -> Launch:
    """Show the broker what QEMU measured, put the secret into the guest, and let it run.

    Looks first whether this QEMU waits in the right state under the launch's policy, because a measurement can be shown
    only once. Raises ConfigError, AttesterError (QEMU), Unavailable, or what the broker's refusal stands for.
    """
    launch = read_launch(directory)
    with Qmp(monitor, deadline) as qemu:
        firmware = _waiting(qemu.execute("query-sev"), launch)
        measurement = _measurement(qemu.execute("query-sev-launch-measure"))
        message = firmware | {"measurement": b64.std(measurement)}
        answer = _post(settings, launch.broker, f"/{launch.launch}/measurement", message, 200, deadline)
        header, packet = _packet(answer)
        qemu.execute("sev-inject-launch-secret", packet_header=b64.std(header), secret=b64.std(packet))
        qemu.execute("cont")
    return launch


def read_launch(directory: str) -> Launch:
    """What `start` left in `directory`. Raises ConfigError."""
    path = f"{directory}/{LAUNCH}"
    mend = "give the folder that `roomkey-agent sev-launch start` filled"
    try:
        with open(path, "rb") as file:  # noqa: PTH123  as everywhere in the agent
            data = file.read(MAX_FILE_BYTES + 1)
        value = strictjson.loads(data, name=path, max_bytes=MAX_FILE_BYTES)
        launch = Launch(**strictjson.members(value, name=path, required=frozenset(Launch._fields)))
        texts = (launch.launch, launch.broker, launch.resource)
        if not all(isinstance(text, str) for text in texts) or not _ID.match(launch.launch):
            raise ProtocolError(f"{path} holds something else")
        _policy(launch.policy)
    except (OSError, ValueError, ProtocolError) as error:
        raise ConfigError("no launch to finish", found=str(error), mend=mend) from None
    return launch


def qemu_options(launch: Launch, directory: str, cbitpos: int) -> list[str]:
    """What QEMU must be started with, one argument each. AMD 55766; QEMU, docs/system/i386/amd-memory-encryption.

    kernel-hashes: else a -kernel, its initrd and command line are loaded and not measured. It says nothing without one.
    """
    folder = os.path.abspath(directory).replace(",", ",,")  # noqa: PTH100  QEMU reads a doubled comma as one
    launch_start = f"policy={launch.policy:#x},dh-cert-file={folder}/{GODH},session-file={folder}/{SESSION}"
    return [
        *("-machine", "confidential-guest-support=sev0"),
        *("-object", f"sev-guest,id=sev0,cbitpos={cbitpos},reduced-phys-bits=1,kernel-hashes=on,{launch_start}"),
        *("-S", "-qmp", f"unix:{folder}/{MONITOR},server=on,wait=off"),
    ]


def _post(settings: Settings, url: str, call: str, message: dict[str, Any], expected: int, deadline: Deadline) -> Any:
    target = endpoint(url)
    tls = tls_context(settings.ca_file) if target.secure else None
    connection = Connection(target, tls, deadline)
    headers = {"Accept": "application/json", "Content-Type": "application/json"}
    try:
        answer = connection.ask("POST", LAUNCHES + call, strictjson.compact(message), headers)
    finally:
        connection.close()
    if answer.status != expected:
        raise refusal("/sev", answer)
    return strictjson.loads(answer.body, name="the broker's answer", max_bytes=MAX_ANSWER_BYTES)


def _started(answer: Any, launch: Launch, directory: str) -> Launch:
    """The launch of the broker's answer; its files are written. Nothing in them is secret from this host."""
    members = strictjson.members(
        answer, name="the broker's answer", required=frozenset(("launch", "godh", "session", "policy"))
    )
    if not _ID.match(strictjson.string(members["launch"], name="launch", max_chars=128)):
        raise ProtocolError("the broker's launch has no name that can be asked for")
    launch = launch._replace(launch=members["launch"], policy=_policy(members["policy"]))
    contents = {
        GODH: b64.std(_sized(members["godh"], "godh", GODH_BYTES)).encode("ascii"),
        SESSION: b64.std(_sized(members["session"], "session", SESSION_BYTES)).encode("ascii"),
        LAUNCH: strictjson.compact(launch._asdict()) + b"\n",
    }
    try:
        os.makedirs(directory, exist_ok=True)  # noqa: PTH103  as everywhere in the agent
        for name, content in contents.items():
            with open(f"{directory}/{name}", "xb") as file:  # noqa: PTH123
                file.write(content)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the launch's files cannot be written into {directory}", found=str(error), mend="give a new folder"
        ) from None
    return launch


def _waiting(info: Any, launch: Launch) -> dict[str, int]:
    """The firmware's version that query-sev shows, if this QEMU waits for the launch's secret."""
    if not isinstance(info, dict) or info.get("enabled") is not True:
        raise AttesterError("this QEMU runs no SEV guest", mend="start it with the options that `start` printed")
    if info.get("state") != WAITING:
        raise AttesterError(
            "the guest does not wait for its secret",
            expected=WAITING,
            found=str(info.get("state"))[:64],
            mend="start QEMU with -S, and finish each launch once",
        )
    if info.get("policy") != launch.policy:
        raise AttesterError(
            "the guest was started under another policy",
            expected=f"{launch.policy:#x}",
            found=str(info.get("policy"))[:64],
            mend="start QEMU with the options that `start` printed",
        )
    return {name: _byte(info.get(name.replace("_", "-"))) for name in ("api_major", "api_minor", "build_id")}


def _byte(value: object) -> int:
    if type(value) is not int or not 0 <= value <= 0xFF:
        raise ProtocolError("QEMU does not say which SEV firmware it runs on")
    return value


def _measurement(answer: Any) -> bytes:
    if not isinstance(answer, dict):
        raise ProtocolError("QEMU's measurement is no object")
    return _sized(answer.get("data"), "the measurement", MEASUREMENT_BYTES)


def _packet(answer: Any) -> tuple[bytes, bytes]:
    """(header, packet) for LAUNCH_SECRET. `guid` is under what the guest finds the secret; it knows."""
    members = strictjson.members(
        answer, name="the broker's answer", required=frozenset(("packet_header", "packet", "guid"))
    )
    packet = b64.from_std(members["packet"], name="packet", max_bytes=MAX_PACKET_BYTES)
    if not packet or len(packet) % 16:
        raise ProtocolError("the broker's packet has a length that no packet has", found=f"{len(packet)} bytes")
    return _sized(members["packet_header"], "packet_header", HEADER_BYTES), packet


def _sized(text: object, name: str, size: int) -> bytes:
    data = b64.from_std(text, name=name, max_bytes=size)
    if len(data) != size:
        raise ProtocolError(f"{name} has another length", expected=f"{size} bytes", found=f"{len(data)}")
    return data


def _policy(value: object) -> int:
    if type(value) is not int or not 0 <= value <= MAX_POLICY:
        raise ProtocolError("not a guest policy", expected="32 bits")
    return value
