"""A certificate authority for development and tests, and for who has no other. ECDSA P-256."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from decisec.bus.files import write_secret, write_whole
from runtime.errors import FatalError

_AUTHORITY_DAYS = 3650
_DAYS = 397
_SKEW = timedelta(minutes=5)


def make_authority(certificate: Path, key: Path, name: str) -> None:
    """Make a CA.

    Raises:
        FatalError: The key is there already, or a file cannot be written.
    """
    secret = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    made = (
        _builder(subject, subject, secret.public_key(), _AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(_identifier(secret.public_key()), critical=False)
        .sign(secret, hashes.SHA256())
    )
    write_secret(key, _pem(secret))
    write_whole(certificate, made.public_bytes(serialization.Encoding.PEM))


def make_certificate(
    authority: Path, authority_key: Path, certificate: Path, key: Path, name: str,
    hosts: Sequence[str],
) -> None:  # fmt: skip
    """Make a certificate, good for servers and clients.

    Args:
        authority: The CA's certificate.
        authority_key: Its key.
        certificate: To be written.
        key: To be written.
        name: Common name.
        hosts: Names and addresses under which a server is reached.

    Raises:
        FatalError: The CA cannot be used, the key is there already, or a file cannot be written.
    """
    try:
        issuer = x509.load_pem_x509_certificate(authority.read_bytes())
        signer = serialization.load_pem_private_key(authority_key.read_bytes(), None)
    except (OSError, ValueError) as error:
        raise FatalError(f"the authority in {authority.parent} cannot be used: {error}") from error
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise FatalError(f"{authority_key} is no key of `decisec bus init`")
    secret = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        _builder(subject, issuer.subject, secret.public_key(), _DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage(
                [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
            ),
            critical=False,
        )
        .add_extension(_identifier(secret.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()),
            critical=False,
        )
    )
    if hosts:
        names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
        builder = builder.add_extension(names, critical=False)
    made = builder.sign(signer, hashes.SHA256())
    write_secret(key, _pem(secret))
    write_whole(certificate, made.public_bytes(serialization.Encoding.PEM))


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + timedelta(days=days))
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _identifier(key: ec.EllipticCurvePublicKey) -> x509.SubjectKeyIdentifier:
    return x509.SubjectKeyIdentifier.from_public_key(key)


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
