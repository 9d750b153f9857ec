# SPDX-License-Identifier: Apache-2.0
"""`/roomkey/v1/sev`: what a host asks for a guest that it is about to launch. SEV and SEV-ES.

Two calls around QEMU's LAUNCH_START and LAUNCH_MEASURE. They take a few milliseconds of cryptography and so run in a
thread. Hosts are counted and answered as guests are: of a refusal they learn the decision's id.
"""

from __future__ import annotations

from typing import Any

from flask import Response

from broker import sev_launches
from broker.http.edge import Edge, json_response
from broker.http.guest import admit
from broker.verifiers.sev_certificates import CA_CERTIFICATE_BYTES, SEV_CERTIFICATE_BYTES, Chain
from broker.verifiers.sev_launch import MEASUREMENT_BYTES, Measurement, parse_measurement
from keys import b64, strictjson
from keys.errors import ProtocolError
from keys.messages import ResourcePath
from keys.sev_packet import DISK_PASSPHRASE

_CHAIN = ("pdh", "pek", "oca", "cek")
_CA = ("ask", "ark")
_NUMBERS = ("api_major", "api_minor", "build_id")


def start_sev_launch(edge: Edge) -> Response:
    now = admit(edge, "sev-launch")
    path, chain = read_start(edge.body())
    started = sev_launches.start(path, chain, edge.services, now=now)
    answer = {
        "launch": started.launch,
        "godh": b64.std(started.session.godh),
        "session": b64.std(started.session.blob),
        "policy": started.policy,
    }
    return json_response(answer, 201)


def finish_sev_launch(edge: Edge, launch: str) -> Response:
    now = admit(edge, "sev-measurement")
    packet = sev_launches.finish(launch, read_measurement(edge.body()), edge.services, now=now)
    answer = {
        "packet_header": b64.std(packet.header),
        "packet": b64.std(packet.data),
        "guid": str(DISK_PASSPHRASE),
    }
    return json_response(answer)


def read_start(body: bytes) -> tuple[ResourcePath, Chain]:
    """The key's path and the platform's certificates. Raises ProtocolError."""
    message = _members(body, frozenset(("resource", "chain")))
    path = ResourcePath.parse(message["resource"])
    chain = strictjson.members(message["chain"], name="chain", required=frozenset(_CHAIN), optional=frozenset(_CA))
    for name in _CA:  # tools export them; the broker trusts its own
        if name in chain:
            b64.from_std(chain[name], name=name, max_bytes=max(CA_CERTIFICATE_BYTES))
    return path, Chain(*(_certificate(chain[name], name) for name in _CHAIN))


def read_measurement(body: bytes) -> Measurement:
    """LAUNCH_MEASURE's answer and the firmware's version. Raises ProtocolError."""
    message = _members(body, frozenset(("measurement", *_NUMBERS)))
    for name in _NUMBERS:
        if type(message[name]) is not int:
            raise ProtocolError(f"{name} must be a number")
    major, minor, build = (message[name] for name in _NUMBERS)
    blob = b64.from_std(message["measurement"], name="measurement", max_bytes=MEASUREMENT_BYTES)
    return parse_measurement(blob, api=(major, minor), build=build)


def _members(body: bytes, required: frozenset[str]) -> dict[str, Any]:
    message = strictjson.loads(body, name="the request", max_bytes=len(body))
    return strictjson.members(message, name="the request", required=required)


def _certificate(text: object, name: str) -> bytes:
    data = b64.from_std(text, name=name, max_bytes=SEV_CERTIFICATE_BYTES)
    if len(data) != SEV_CERTIFICATE_BYTES:
        expected = f"{SEV_CERTIFICATE_BYTES} bytes"
        raise ProtocolError(f"{name} has another length", expected=expected, found=str(len(data)))
    return data
