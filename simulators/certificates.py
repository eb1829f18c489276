"""A private certificate authority, so that clients that require https can connect to a server on loopback.

The files in the folder: `ca.pem`, `ca.key`, `server.pem` (the certificate followed by the CA's) and
`server.key`. Only a program configured with `ca.pem` trusts them.
"""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

#: The longest validity that browsers accept for a certificate of a private authority.
VALID_FOR = timedelta(days=825)
#: Renew early, so that the certificate of a demo left running over a weekend does not expire.
RENEW_BEFORE = timedelta(days=14)


@dataclass(frozen=True)
class Certificates:
    """Paths of PEM files: the CA for clients (`ca`), and the server's certificate and key (`server`, `server_key`)."""

    ca: Path
    server: Path
    server_key: Path


def ensure_certificates(folder: str | Path) -> Certificates:
    """Return a valid CA and a certificate for 127.0.0.1, ::1 and localhost, created or renewed if necessary."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    found = Certificates(folder / "ca.pem", folder / "server.pem", folder / "server.key")
    if not _still_valid(found):
        _create(folder, found)
    return found


def _still_valid(files: Certificates) -> bool:
    if not all(path.exists() for path in (files.ca, files.server, files.server_key)):
        return False
    try:
        certificates = [x509.load_pem_x509_certificate(path.read_bytes()) for path in (files.ca, files.server)]
    except ValueError:  # truncated by a crash or a full disk: create new ones
        return False
    deadline = datetime.now(UTC) + RENEW_BEFORE
    return all(certificate.not_valid_after_utc > deadline for certificate in certificates)


def _create(folder: Path, files: Certificates) -> None:
    ca_key, server_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca = _ca_certificate(ca_key)
    server = _server_certificate(server_key, ca, ca_key)
    _write(folder / "ca.key", _private_pem(ca_key), mode=0o600)
    _write(files.server_key, _private_pem(server_key), mode=0o600)
    _write(files.server, _pem(server) + _pem(ca), mode=0o644)
    _write(files.ca, _pem(ca), mode=0o644)


def _ca_certificate(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = _name("Syncflow demo CA")
    usage = x509.KeyUsage(
        digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False,
        key_encipherment=False, data_encipherment=False, key_agreement=False,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip
    builder = (
        _builder(name, name, key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return builder.sign(key, hashes.SHA256())


def _server_certificate(
    key: ec.EllipticCurvePrivateKey, ca: x509.Certificate, ca_key: ec.EllipticCurvePrivateKey
) -> x509.Certificate:
    names: list[x509.GeneralName] = [
        x509.DNSName("localhost"),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        x509.IPAddress(ipaddress.ip_address("::1")),
    ]
    builder = (
        _builder(_name("localhost"), ca.subject, key.public_key())
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
    )
    return builder.sign(ca_key, hashes.SHA256())


def _builder(subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))  # the clocks of two containers may differ a little
        .not_valid_after(now + VALID_FOR)
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, content: bytes, mode: int) -> None:
    # Write a temporary file and rename it, so that another process never reads a partial key.
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    aside.unlink(missing_ok=True)
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
    os.replace(aside, path)
