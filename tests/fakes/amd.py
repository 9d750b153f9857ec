# SPDX-License-Identifier: Apache-2.0
"""An AMD of our own: certificates, revocation lists, chips and their reports, with keys that exist for one process.

Everything looks as AMD makes it (56860, 57230, 58369), and everything can be made otherwise. The strict default of
`snp_floors.Floors` lets in what a `Chip` reports by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID

from broker.claims import Trusted
from broker.verifiers.snp_report import POLICY_BITS, SIGNED_BYTES, TCB_LAYOUT, Line, SigningKey
from keys import b64
from tests.fakes import snp_bytes
from tests.fakes.snp_bytes import GUIDS

START, END = (
    datetime(2025, 1, 1, tzinfo=UTC),
    datetime(2045, 1, 1, tzinfo=UTC),
)  # of everything, if nothing else is said
AT = datetime(2026, 6, 1, 12, tzinfo=UTC)  # a time between

PREFIX = "1.3.6.1.4.1.3704.1."  # of AMD's extensions
SPLS = {"bootloader": "3.1", "tee": "3.2", "snp": "3.3", "microcode": "3.8", "fmc": "3.9"}
HW_ID = bytes(range(0x40, 0x80))
CSP_ID = "CN=cc-test-1.cloud.test"
TCBS = {
    Line.MILAN: {"bootloader": 4, "tee": 0, "snp": 27, "microcode": 222},
    Line.GENOA: {"bootloader": 10, "tee": 0, "snp": 25, "microcode": 84},
    Line.TURIN: {"fmc": 1, "bootloader": 1, "tee": 1, "snp": 4, "microcode": 81},
}
CPUIDS = {Line.MILAN: (0x19, 0x01, 1), Line.GENOA: (0x19, 0x11, 1), Line.TURIN: (0x1A, 0x02, 1)}
SERIALS = {
    Line.MILAN: (0x10000, 0x10001, 0x10101),
    Line.GENOA: (0x20000, 0x20002, 0x20101),
    Line.TURIN: (0x30000, 0x30001, 0x30101),
}
PSS = padding.PSS(padding.MGF1(hashes.SHA384()), salt_length=48)
POLICY = 1 << 17 | 1 << POLICY_BITS["smt_allowed"]
PLATFORM_INFO = 0b100101  # SMT, ECC, alias check complete
MEASUREMENT = bytes(range(48))
REPORT_ID = bytes(range(0x80, 0xA0))

# What a report says, by AMD's names: (offset, bytes). Integers are little-endian.
FIELDS = {
    "version": (0x000, 4), "guest_svn": (0x004, 4), "policy": (0x008, 8), "family_id": (0x010, 16),
    "image_id": (0x020, 16), "vmpl": (0x030, 4), "signature_algo": (0x034, 4), "current_tcb": (0x038, 8),
    "platform_info": (0x040, 8), "key_info": (0x048, 4), "report_data": (0x050, 64), "measurement": (0x090, 48),
    "host_data": (0x0C0, 32), "id_key_digest": (0x0E0, 48), "author_key_digest": (0x110, 48),
    "report_id": (0x140, 32), "report_id_ma": (0x160, 32), "reported_tcb": (0x180, 8), "cpuid": (0x188, 3),
    "chip_id": (0x1A0, 64), "committed_tcb": (0x1E0, 8), "current_version": (0x1E8, 3),
    "committed_version": (0x1EC, 3), "launch_tcb": (0x1F0, 8), "launch_mit_vector": (0x1F8, 8),
    "current_mit_vector": (0x200, 8),
}  # fmt: skip

_MADE: dict[tuple[str, int], x509.Certificate] = {}  # CAs by common name and copy

Extension = tuple[x509.ExtensionType, bool]  # value, critical
Field = int | bytes | tuple[int, int, int] | Mapping[str, int]


class FakeAmd:
    """One product line's ARK, ASK and ASVK. The same for the same `line` and `copy`, made when first used: keys take
    long to make.
    """

    def __init__(self, line: Line = Line.GENOA, copy: int = 0) -> None:
        self.line, self.copy = line, copy

    @property
    def ark(self) -> x509.Certificate:
        return self._ca(f"ARK-{self.line}", SERIALS[self.line][0])

    @property
    def ask(self) -> x509.Certificate:
        return self._ca(f"SEV-{self.line}", SERIALS[self.line][1])

    @property
    def asvk(self) -> x509.Certificate:
        return self._ca(f"SEV-VLEK-{self.line}", SERIALS[self.line][2])

    def trusted(self, floors: Any = None) -> Trusted:
        """What an operator would trust who buys from here."""
        return Trusted(roots=(self.ark,), certificates=(self.ask, self.asvk), floors=floors)

    def key(self, common_name: str) -> rsa.RSAPrivateKey:
        """The key of the CA of this name."""
        return _rsa_key(common_name, self.copy)

    def vcek(
        self, hw_id: bytes | None = None, tcb: Mapping[str, int] | None = None, **otherwise: Any
    ) -> tuple[ec.EllipticCurvePrivateKey, bytes]:
        """A chip's key and its certificate in DER. `otherwise`: see `vek`."""
        hw_id = self.hw_id if hw_id is None else hw_id
        return self.vek(tcb, **{"subject": "SEV-VCEK", "issuer": f"SEV-{self.line}", "own": {"4": hw_id}} | otherwise)

    def vlek(
        self, csp_id: str = CSP_ID, tcb: Mapping[str, int] | None = None, **otherwise: Any
    ) -> tuple[ec.EllipticCurvePrivateKey, bytes]:
        """A provider's key and its certificate in DER. `otherwise`: see `vek`."""
        names = {"subject": "SEV-VLEK", "issuer": f"SEV-VLEK-{self.line}", "own": {"5": ia5(csp_id)}}
        return self.vek(tcb, **names | otherwise)

    @property
    def hw_id(self) -> bytes:
        return HW_ID[:8] if self.line is Line.TURIN else HW_ID

    def vek(
        self,
        tcb: Mapping[str, int] | None = None,
        *,
        subject: str,
        issuer: str,
        own: Mapping[str, bytes],
        extensions: Mapping[str, bytes | None] | None = None,
        more: Iterable[Extension] = (),
        key: Any = None,
        serial: int = 0,
        **otherwise: Any,
    ) -> tuple[Any, bytes]:
        """A VEK's certificate. `extensions` by what follows AMD's prefix: replaced or added, with None left out."""
        turin = self.line is Line.TURIN
        product = {Line.MILAN: "Milan-B0" if subject == "SEV-VCEK" else "Milan"}.get(self.line, str(self.line))
        values: dict[str, bytes | None] = {"1": integer(int(turin)), "2": ia5(product)}
        values |= {SPLS[part]: integer(value) for part, value in (TCBS[self.line] if tcb is None else tcb).items()}
        values |= {f"3.{number}": integer(0) for number in ((5, 6, 7) if turin else (4, 5, 6, 7))}
        values |= {**own, **(extensions or {})}
        amd: list[Extension] = [
            (x509.UnrecognizedExtension(x509.ObjectIdentifier(PREFIX + suffix), value), False)
            for suffix, value in values.items()
            if value is not None
        ]
        key = key or ec.generate_private_key(ec.SECP384R1())
        return key, self.certificate(
            subject, issuer, key.public_key(), serial=serial, extensions=(*amd, *more), **otherwise
        )

    def certificate(
        self,
        subject: str | x509.Name,
        issuer: str | x509.Name,
        key: Any,
        *,
        serial: int,
        extensions: Iterable[Extension] = (),
        start: datetime = START,
        end: datetime = END,
        signer: rsa.RSAPrivateKey | None = None,
        pss: padding.AsymmetricPadding = PSS,
        algorithm: Any = None,
    ) -> bytes:
        """A certificate in DER, signed with the key of the CA that `issuer` names unless with `signer`."""
        builder = (
            x509.CertificateBuilder()
            .subject_name(amd_name(subject) if isinstance(subject, str) else subject)
            .issuer_name(amd_name(issuer) if isinstance(issuer, str) else issuer)
            .public_key(key)
            .serial_number(serial or 1)
            .not_valid_before(start)
            .not_valid_after(end)
        )
        for value, critical in extensions:
            builder = builder.add_extension(value, critical=critical)
        signer = signer or self.key(str(issuer))
        certificate = builder.sign(signer, algorithm or hashes.SHA384(), rsa_padding=pss)
        der = certificate.public_bytes(serialization.Encoding.DER)
        # The library makes no serial number 0, as AMD's VEKs have it.
        return (
            der if serial else resign(der, signer, lambda tbs: tbs.replace(b"\x02\x01\x01\x30", b"\x02\x01\x00\x30", 1))
        )

    def ca_certificate(self, subject: str, /, **otherwise: Any) -> bytes:
        """A CA's certificate in DER as AMD makes it; `otherwise` as for `certificate`."""
        issuer = f"ARK-{self.line}"
        is_ark = subject == issuer
        key = self.key(subject).public_key()
        constraints = x509.BasicConstraints(ca=True, path_length=None if is_ark else 0)
        extensions: list[Extension] = [
            (x509.SubjectKeyIdentifier.from_public_key(key), False),
            (constraints, True),
            (usage(key_cert_sign=True, crl_sign=is_ark), True),
        ]
        if not is_ark:
            issuer_key = self.key(issuer).public_key()
            extensions.append((x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), False))
        usual = {"subject": subject, "issuer": issuer, "key": key, "serial": 1, "extensions": extensions}
        return self.certificate(**usual | otherwise)

    def crl(
        self,
        revoked: Iterable[int] = (),
        *,
        number: int | None = 1,
        start: datetime = START,
        end: datetime = END,
        issuer: str | None = None,
        signer: rsa.RSAPrivateKey | None = None,
        pss: padding.AsymmetricPadding = PSS,
        algorithm: Any = None,
        extensions: Iterable[Extension] = (),
        entry_extensions: Iterable[Extension] = (),
    ) -> bytes:
        """The line's revocation list in DER, from `start` until before `end`, which names these serial numbers."""
        name = f"ARK-{self.line}"
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(amd_name(issuer or name))
            .last_update(start)
            .next_update(end)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key(name).public_key()), False)
        )
        if number is not None:
            builder = builder.add_extension(x509.CRLNumber(number), False)
        for value, critical in extensions:
            builder = builder.add_extension(value, critical)
        for serial in revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(start)
            for value, critical in entry_extensions:
                entry = entry.add_extension(value, critical)
            builder = builder.add_revoked_certificate(entry.build())
        crl = builder.sign(signer or self.key(name), algorithm or hashes.SHA384(), rsa_padding=pss)
        return crl.public_bytes(serialization.Encoding.DER)

    def _ca(self, subject: str, serial: int) -> x509.Certificate:
        if (subject, self.copy) not in _MADE:
            der = self.ca_certificate(subject, serial=serial)
            _MADE[subject, self.copy] = x509.load_der_x509_certificate(der)
        return _MADE[subject, self.copy]


class Chip:
    """One processor and the guest on it. With `csp_id` it signs with the provider's VLEK and names no chip.

    `key` signs its reports, `vek` is that key's certificate (DER), `certificates` what a host puts beside a report.
    """

    def __init__(
        self,
        amd: FakeAmd,
        hw_id: bytes | None = None,
        tcb: Mapping[str, int] | None = None,
        *,
        csp_id: str | None = None,
    ) -> None:
        self.amd, self.line = amd, amd.line
        self.hw_id = amd.hw_id if hw_id is None else hw_id
        self.tcb = TCBS[amd.line] if tcb is None else tcb
        self.csp_id = csp_id
        self.kind = SigningKey.VCEK if csp_id is None else SigningKey.VLEK
        if csp_id is None:
            self.key, self.vek = amd.vcek(self.hw_id, self.tcb)
        else:
            self.key, self.vek = amd.vlek(csp_id, self.tcb)

    @property
    def vcek(self) -> bytes:
        """The certificate of a chip that has no VLEK."""
        assert self.csp_id is None
        return self.vek

    @property
    def certificates(self) -> dict[str, bytes]:
        return {str(self.kind): self.vek}

    def report(self, report_data: bytes = bytes(64), *, sign: bool = True, **fields: Field) -> bytes:
        """A report, 1184 bytes, version 3 unless said otherwise; `fields` by the names in FIELDS.

        Versions are (major, minor, build), a TCB is 8 bytes or its components. CPUID and the mitigation vectors are
        zero in versions that have none. Without `sign` the signature is zero.
        """
        version = fields.get("version", 3)
        assert isinstance(version, int)
        values: dict[str, Field] = {
            "version": version,
            "policy": POLICY,
            "signature_algo": 1,
            "platform_info": PLATFORM_INFO,
            "key_info": {SigningKey.VCEK: 0, SigningKey.VLEK: 1}[self.kind] << 2,
            "report_data": report_data.ljust(64, b"\0"),
            "measurement": MEASUREMENT,
            "report_id": REPORT_ID,
            "report_id_ma": b"\xff" * 32,
            "chip_id": self.hw_id.ljust(64, b"\0") if self.kind is SigningKey.VCEK else bytes(64),
            "current_version": (1, 55, 40),
            "committed_version": (1, 55, 40),
        }
        values |= {f"{which}_tcb": self.tcb for which in ("current", "reported", "committed", "launch")}
        if version >= 3:
            values["cpuid"] = bytes(CPUIDS[self.line])
        raw = bytearray(SIGNED_BYTES + 512)
        for name, value in (values | fields).items():
            at, size = FIELDS[name]
            raw[at : at + size] = self._encoded(value, size)
        return self.sign(bytes(raw)) if sign else bytes(raw)

    def sign(self, report: bytes) -> bytes:
        """`report`, changed perhaps, with a signature over what it says now."""
        r, s = decode_dss_signature(self.key.sign(report[:SIGNED_BYTES], ec.ECDSA(hashes.SHA384())))
        return (
            report[:SIGNED_BYTES] + r.to_bytes(72, "little") + s.to_bytes(72, "little") + report[SIGNED_BYTES + 144 :]
        )

    def _encoded(self, value: Field, size: int) -> bytes:
        if isinstance(value, int):
            return value.to_bytes(size, "little")
        if isinstance(value, Mapping):
            layout = TCB_LAYOUT[self.line]
            return bytes(
                {layout[part]: number for part, number in value.items()}.get(place, 0) for place in range(size)
            )
        if isinstance(value, tuple):  # a version, which stands in the report the other way round
            return bytes(reversed(value))
        assert len(value) == size
        return value


# --- evidence as guests send it ---


def kbs_json(report: bytes, certificates: Mapping[str, bytes] | None = None) -> dict[str, Any]:
    """The form of stock KBS guests: the sev crate's structure. `certificates` by the names in GUIDS."""
    chain = None
    if certificates is not None:
        chain = [snp_bytes.chain_entry(kind, data) for kind, data in certificates.items()]
    return snp_bytes.kbs_json(report, chain)


def raw_evidence(report: bytes, certificates: Mapping[str, bytes] | None = None) -> dict[str, Any]:
    """The form with the certificate table of /dev/sev-guest."""
    return {"report": b64.std(report), "cert_table": b64.std(cert_table(certificates or {}))}


def tsm_evidence(report: bytes, certificates: Mapping[str, bytes] | None = None) -> dict[str, Any]:
    """The form of configfs-tsm."""
    return {
        "outblob": b64.std(report), "auxblob": b64.std(cert_table(certificates or {})), "provider": "sev_guest\n",
    }  # fmt: skip


def cert_table(certificates: Mapping[str, bytes]) -> bytes:
    """The GUID table of an extended report, filled up to whole pages of 4 KiB."""
    table = snp_bytes.cert_table((GUIDS[kind], data) for kind, data in certificates.items())
    return table + bytes(-len(table) % 4096)


# --- pieces ---


def amd_name(common_name: str, **otherwise: str) -> x509.Name:
    """A name as AMD writes it. `otherwise`: attributes by their short names (OU, C, L, ST, O); "" leaves one out."""
    values = {"OU": "Engineering", "C": "US", "L": "Santa Clara", "ST": "CA", "O": "Advanced Micro Devices"} | otherwise
    oids = {
        "OU": NameOID.ORGANIZATIONAL_UNIT_NAME, "C": NameOID.COUNTRY_NAME, "L": NameOID.LOCALITY_NAME,
        "ST": NameOID.STATE_OR_PROVINCE_NAME, "O": NameOID.ORGANIZATION_NAME,
    }  # fmt: skip
    attributes = [x509.NameAttribute(oids[name], value) for name, value in values.items() if value]
    return x509.Name([*attributes, x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def usage(**uses: bool) -> x509.KeyUsage:
    """keyUsage with these bits."""
    names = (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
        "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
    )  # fmt: skip
    return x509.KeyUsage(**(dict.fromkeys(names, False) | uses))


def integer(value: int) -> bytes:
    """A DER INTEGER."""
    content = value.to_bytes(value.bit_length() // 8 + 1, "big")
    return bytes((0x02, len(content))) + content


def ia5(text: str) -> bytes:
    """A DER IA5String of up to 127 characters."""
    return bytes((0x16, len(text))) + text.encode("ascii")


def resign(der: bytes, signer: rsa.RSAPrivateKey, change: Callable[[bytes], bytes]) -> bytes:
    """The certificate or list with its signed part changed and signed again, whatever that makes of it."""
    assert der[4:6] == b"\x30\x82"
    end = 8 + int.from_bytes(der[6:8], "big")
    algorithm = der[end : -(5 + 512)]  # behind it a BIT STRING of 512 bytes
    new = change(der[4:end])
    signature = b"\x03\x82\x02\x01\x00" + signer.sign(new, PSS, hashes.SHA384())
    return long_sequence(new + algorithm + signature)


def long_sequence(content: bytes) -> bytes:
    """A DER SEQUENCE of 256 bytes or more."""
    return b"\x30\x82" + len(content).to_bytes(2, "big") + content


@cache
def _rsa_key(common_name: str, copy: int) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 4096)
