# SPDX-License-Identifier: Apache-2.0
"""The names under which AMD's endorsements are looked up and stored, and whether one is what its name says.

A name is "amd/" and the path of the thing at AMD's key distribution service (KDS; AMD 57230, chapter 3):

    amd/vcek/v1/Milan/<hwID, 128 hex digits>?blSPL=04&teeSPL=00&snpSPL=24&ucodeSPL=219
    amd/vcek/v1/Turin/<hwID, 16 hex digits>?fmcSPL=01&blSPL=01&teeSPL=01&snpSPL=04&ucodeSPL=81
    amd/vcek/v1/Milan/crl

A VCEK's name says for which chip and which REPORTED_TCB its key was derived; KDS issues a new certificate for the same
key each time it is asked. A name has one spelling, so that nothing is stored twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from broker.claims import Trusted
from broker.verifiers.endorsement import Genuine
from broker.verifiers.snp_certificates import Vek, read_ark, read_vek, verify_chain
from broker.verifiers.snp_crl import Crl, read_crl
from broker.verifiers.snp_report import CHIP_ID_BYTES, TCB_LAYOUT, Line
from keys.errors import EndorsementError, ProtocolError

PREFIX = "amd/"
MAX_FOUND_CHARS = 256  # of what is no name, in an error
TURIN_HW_ID_BYTES = 8
SPL_MAX = 255

_VCEK = PREFIX + "vcek/v1/{}/{}?{}"
_CRL = PREFIX + "vcek/v1/{}/crl"
_NAME = re.compile(r"amd/vcek/v1/(?P<line>[A-Za-z]+)/(?:crl|(?P<hw_id>[0-9a-f]+)\?(?P<spls>[A-Za-z0-9=&]+))\Z")
_SPL = re.compile(r"([a-z]+)SPL=([0-9]{2,3})\Z")
_PARAMETERS: Mapping[str, str] = {"fmc": "fmc", "bootloader": "bl", "tee": "tee", "snp": "snp", "microcode": "ucode"}
_COMPONENTS: Mapping[str, str] = {parameter: component for component, parameter in _PARAMETERS.items()}


@dataclass(frozen=True, slots=True)
class Vcek:
    """What the name of a VCEK's certificate says. `tcb` is by component, as `snp_report.tcb` names them."""

    line: Line
    hw_id: bytes
    tcb: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class RevocationList:
    """What the name of a certificate revocation list says."""

    line: Line


def vcek_name(line: Line, hw_id: bytes, tcb: Mapping[str, int]) -> str:
    """The name of the VCEK certificate of the chip `hw_id` (64 bytes; Turin: 8) for the REPORTED_TCB `tcb`.

    Raises RuntimeError for a chip id or components that are not this line's.
    """
    if not _is_vcek(line, hw_id, tcb):
        raise RuntimeError("a VCEK's name is made of its line's chip id and TCB components")
    spls = "&".join(f"{_PARAMETERS[component]}SPL={tcb[component]:02d}" for component in _components(line))
    return _VCEK.format(line, hw_id.hex(), spls)


def crl_name(line: Line) -> str:
    """The name of the line's certificate revocation list."""
    return _CRL.format(line)


def read_name(name: str) -> Vcek | RevocationList:
    """What `name` says. Raises ProtocolError for what is no name, or is one in another spelling."""
    match = _NAME.match(name)
    if match is None or match["line"] not in set(Line):
        raise _no_name(name)
    line = Line(match["line"])
    if match["hw_id"] is None:
        return RevocationList(line)
    spls = [_SPL.match(part) for part in match["spls"].split("&")]
    tcb = {_COMPONENTS.get(spl[1], ""): int(spl[2]) for spl in spls if spl is not None}
    hw_id = bytes.fromhex(match["hw_id"] if len(match["hw_id"]) % 2 == 0 else "")
    # The last condition: another order, or something twice, would be another spelling.
    if not _is_vcek(line, hw_id, tcb) or vcek_name(line, hw_id, tcb) != name:
        raise _no_name(name)
    return Vcek(line, hw_id, tcb)


def check_endorsement(name: str, data: bytes, trusted: Trusted, at: datetime) -> Genuine:
    """What is known of `data`, DER or PEM, if it is genuine at `at` and is what `name` says.

    A revocation list may be past its time: it still revokes what it names, and who needs a current one must look.
    Raises EndorsementError, or ProtocolError for what is no name.
    """
    said = read_name(name)
    if isinstance(said, RevocationList):
        crl = _read_crl(data, [ark for ark in trusted.roots if read_ark(ark) is said.line])
        if crl.this_update > at:
            raise EndorsementError("a revocation list is from the future", found=str(crl.this_update))
        return Genuine(_der(data), crl.number, crl.next_update)
    vek = read_vek(data)
    if (found := _name_of(vek)) != name:
        raise EndorsementError("the endorsement is another one", expected=name, found=found)
    verify_chain(vek, trusted.certificates, trusted.roots, at)
    return Genuine(vek.certificate.public_bytes(Encoding.DER))


def instance_id(name: str) -> str | None:
    """Under what id an owner would have enrolled the machine that `name` is about; None where it is about none."""
    said = read_name(name)
    return f"snp-chip:{said.hw_id.hex()}" if isinstance(said, Vcek) else None


def name_of(data: bytes, trusted: Trusted) -> str:
    """The name that a VCEK's certificate or a revocation list (DER or PEM) has by its own content.

    Raises EndorsementError for what is neither. Nothing but the list's signature is checked.
    """
    try:
        vek = read_vek(data)
    except EndorsementError as error:
        try:
            return crl_name(_read_crl(data, trusted.roots).line)
        except EndorsementError:
            raise error from None
    return _name_of(vek)


def hw_id_bytes(line: Line) -> int:
    """How many bytes of CHIP_ID name a chip of this line."""
    return TURIN_HW_ID_BYTES if line is Line.TURIN else CHIP_ID_BYTES


def _components(line: Line) -> list[str]:
    return list(TCB_LAYOUT[line])


def _is_vcek(line: Line, hw_id: bytes, tcb: Mapping[str, int]) -> bool:
    spls = all(0 <= spl <= SPL_MAX for spl in tcb.values())
    return spls and len(hw_id) == hw_id_bytes(line) and tcb.keys() == set(_components(line))


def _no_name(name: str) -> ProtocolError:
    return ProtocolError(
        "not the name of an endorsement",
        expected='like "amd/vcek/v1/Milan/crl"',
        found=repr(name[:MAX_FOUND_CHARS]),
    )


def _name_of(vek: Vek) -> str:
    if vek.hw_id is None:
        raise EndorsementError("a VLEK has no name here: it only ever comes with the evidence", found=vek.csp_id)
    return vcek_name(vek.line, vek.hw_id, vek.tcb)


def _read_crl(data: bytes, roots: Iterable[x509.Certificate]) -> Crl:
    """The list, if one of the roots signed it. Raises EndorsementError."""
    problem = EndorsementError("there is no root that could have signed a revocation list")
    for ark in roots:
        try:
            return read_crl(data, ark)
        except EndorsementError as error:
            problem = error
    raise problem


def _der(crl: bytes) -> bytes:
    """DER of a list that `read_crl` could read."""
    is_pem = crl.lstrip().startswith(b"-----BEGIN")
    return x509.load_pem_x509_crl(crl).public_bytes(Encoding.DER) if is_pem else crl
