"""Certificates that sign C2PA manifests in tests."""

from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


def key_usage(*names: str) -> x509.KeyUsage:
    """Return a key usage that permits these, such as `digital_signature`."""
    every = "digital_signature content_commitment key_encipherment data_encipherment key_agreement key_cert_sign"
    return x509.KeyUsage(
        **{name: name in names for name in (*every.split(), "crl_sign", "encipher_only", "decipher_only")}
    )


def chain(
    key: Any,
    days: tuple[float, float] = (-1, 365),
    usage: str = "digital_signature",
    has_extended_usage: bool = True,
    is_authority: bool = False,
) -> bytes:
    """Return a certificate and that of its issuer, in PEM.

    Args:
        key: Private key of the certificate.
        days: Begin and end of its validity, in days from now.
    """
    issuer_key = Ed25519PrivateKey.from_private_bytes(bytes([9] * 32))
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Issuer")])
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Readers"),
            x509.NameAttribute(NameOID.COMMON_NAME, "Speech server"),
        ]
    )
    leaf = certificate(subject, issuer, key.public_key(), days)
    leaf = leaf.add_extension(x509.BasicConstraints(is_authority, None), True).add_extension(key_usage(usage), True)
    leaf = leaf.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), False)
    if has_extended_usage:
        leaf = leaf.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), False)
    root = certificate(issuer, issuer, issuer_key.public_key(), (-1, 365))
    root = root.add_extension(x509.BasicConstraints(True, None), True)
    root = root.add_extension(key_usage("key_cert_sign"), True)
    return b"".join(builder.sign(issuer_key, None).public_bytes(Encoding.PEM) for builder in (leaf, root))


def certificate(subject: x509.Name, issuer: x509.Name, key: Any, days: tuple[float, float]) -> x509.CertificateBuilder:
    """Return a certificate that is not signed yet."""
    begin, end = (datetime.now(UTC) + timedelta(days=each) for each in days)
    builder = x509.CertificateBuilder(issuer, subject, key, x509.random_serial_number(), begin, end)
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), False)
