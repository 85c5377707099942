"""C2PA manifests (Content Credentials), which bind a receipt of speech to an audio file by a certificate.

The receipt is in an assertion of its own, together with the certificate of the signer, because the library of the
standard does not return certificates.
"""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import c2pa
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509 import (
    Certificate,
    ExtensionNotFound,
    KeyUsage,
    load_pem_x509_certificate,
    load_pem_x509_certificates,
)

from stretto_client.receipt import ReceiptError, shown
from stretto_client.signature import key_id
from stretto_client.sinks import wav_header

# Label of the assertion. Labels of a project begin with its reversed domain; names under `alt` need none (RFC 9476).
LABEL = "alt.stretto.receipt"
MEDIA_TYPES = {"flac": "audio/flac", "mp3": "audio/mpeg", "wav": "audio/wav"}  # formats that can contain a manifest
# No file makes the reader or the signer send a request.
OFFLINE: dict[str, Any] = {
    "core": {"allowed_network_hosts": []},
    "verify": {"ocsp_fetch": False, "remote_manifest_fetch": False, "verify_trust": False},
}
FILE_CHANGED = "assertion.dataHash.mismatch"
OF_THE_CERTIFICATE = {"claimSignature.validated", "signingCredential.trusted"}
ADMITTED = (
    "one that C2PA admits: valid now, not of an authority, keyUsage digitalSignature, extendedKeyUsage emailProtection"
)


class FileSigner:
    """Signer of files of generated speech.

    Args:
        chain: Its certificate, and those of the issuers, in PEM. ReceiptError is raised if C2PA does not admit the
            certificate, or its key is not `key`.
    """

    def __init__(self, chain: bytes, key: Ed25519PrivateKey):
        try:
            certificate = load_pem_x509_certificates(chain)[0]
        except ValueError:
            raise ReceiptError("certificate: expected certificates in PEM, got another file") from None
        name = key_id(key.public_key())
        public_key = key_of(certificate)
        if public_key is None or key_id(public_key) != name:
            raise ReceiptError(f"certificate: expected one of the signing key ({name}), got one of another key")
        if not may_sign(certificate):  # the library also accepts other key usages, such as nonRepudiation
            raise ReceiptError(f"certificate: expected {ADMITTED}, got keyUsage without digitalSignature")
        self._certificate = pem_of(certificate)
        private_pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        self._signer_info = c2pa.C2paSignerInfo("ed25519", chain, private_pem, None)
        self.sign(wav_header(1, 0), "wav", b"{}")  # the library checks the certificate as it signs

    def admits(self, file_format: str) -> bool:
        """Return True if files of this format can contain a manifest."""
        return file_format in MEDIA_TYPES

    def sign(self, audio: bytes | bytearray, file_format: str, receipt: bytes) -> bytes:
        """Return the file with a manifest; raise ReceiptError if C2PA rejects the certificate (it may have expired)."""
        assertion = {"receipt": json.loads(receipt), "certificate": self._certificate}
        manifest = {
            "claim_generator_info": [{"name": "Stretto"}],
            "assertions": [{"label": LABEL, "data": assertion, "kind": "Json", "created": True}],
        }
        signed = io.BytesIO()
        try:
            with (
                c2pa.Context.from_dict(OFFLINE) as context,
                c2pa.Signer.from_info(self._signer_info) as signer,
                c2pa.Builder(manifest, context=context) as builder,
            ):
                builder.set_intent(c2pa.C2paBuilderIntent.CREATE, c2pa.C2paDigitalSourceType.TRAINED_ALGORITHMIC_MEDIA)
                builder.sign(signer, MEDIA_TYPES[file_format], io.BytesIO(audio), signed)
        except c2pa.C2paError as error:
            raise ReceiptError(f"certificate: expected {ADMITTED}, got: {error!s:.200}") from None
        return signed.getvalue()


@dataclass(frozen=True)
class SignedReceipt:
    """Receipt in a manifest, and the public key of the manifest's certificate."""

    payload: bytes
    key: Ed25519PublicKey


@dataclass(frozen=True)
class Manifest:
    """Manifest of a file.

    Attributes:
        signer: Names in the signer's certificate; anyone can make a certificate with any names.
        failures: The standard's codes of failed checks; empty if the manifest is valid.
        receipt: Receipt that the signer has signed, even if the file has changed since; None if there is none.
    """

    signer: str
    failures: tuple[str, ...]
    receipt: SignedReceipt | None


def read_manifest(data: bytes) -> Manifest | None:
    """Return the manifest of a file, or None; raise ReceiptError if the file or the manifest is malformed."""
    report = validated(data, OFFLINE)
    if report is None:
        return None
    active = report.get("manifests", {}).get(report.get("active_manifest")) or {}
    names = active.get("signature_info") or {}
    signer = ", ".join(names[name] for name in ("common_name", "issuer") if names.get(name))
    assertion = {item["label"]: item["data"] for item in active.get("assertions", ())}.get(LABEL)
    receipt = None if assertion is None else signed_receipt(data, assertion)
    return Manifest(signer or "nobody with a name", failures_of(report), receipt)


def signed_receipt(data: bytes, assertion: Any) -> SignedReceipt:
    """Return the receipt in a manifest's assertion; raise ReceiptError unless its certificate signed the manifest."""
    if not isinstance(assertion, dict) or assertion.keys() != {"receipt", "certificate"}:
        raise ReceiptError(f"manifest: expected a receipt and a certificate, got {shown(assertion)}")
    try:
        certificate = load_pem_x509_certificate(str(assertion["certificate"]).encode())
    except ValueError:
        raise ReceiptError(f"manifest.certificate: expected PEM, got {shown(assertion['certificate'])}") from None
    key = key_of(certificate)
    if key is None:
        raise ReceiptError("manifest.certificate: expected one of an Ed25519 key, got one of another key")
    verify = OFFLINE["verify"] | {"verify_trust": True}
    only_this = {"trust_kind": "manifest", "trust_anchors": "", "allowed_list": pem_of(certificate)}
    report = validated(data, OFFLINE | {"verify": verify, "trust": {"anchors": [only_this]}})
    failures = set() if report is None else {*failures_of(report)} - {FILE_CHANGED}
    if report is None or failures or not codes_of(report, "success") >= OF_THE_CERTIFICATE:
        reasons = ", ".join(sorted(failures)) or "the signature of another one"
        raise ReceiptError(f"manifest: expected a valid signature of the certificate beside the receipt, got {reasons}")
    return SignedReceipt(json.dumps(assertion["receipt"]).encode(), key)


def validated(data: bytes, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the library's report on a file's manifest, or None; raise ReceiptError if the file is malformed."""
    try:
        with (
            c2pa.Context.from_dict(settings) as context,
            c2pa.Reader("", io.BytesIO(data), context=context) as reader,
        ):
            report: dict[str, Any] = json.loads(reader.json())
    except (c2pa.C2paError.ManifestNotFound, c2pa.C2paError.NotSupported):  # or no format with manifests
        return None
    except c2pa.C2paError as error:
        raise ReceiptError(f"manifest: expected a file with a C2PA manifest, got: {str(error)!a:.200}") from None
    return report


def codes_of(report: Mapping[str, Any], outcome: str) -> set[str]:
    """Return the codes of the active manifest's checks with this outcome: `success` or `failure`."""
    checks = report.get("validation_results", {}).get("activeManifest") or {}
    return {check["code"] for check in checks.get(outcome, ())}


def failures_of(report: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the codes of failed checks; `invalid` if the library rejects the manifest without a code."""
    is_valid = report.get("validation_state") in ("Valid", "Trusted")
    return () if is_valid else tuple(sorted(codes_of(report, "failure"))) or ("invalid",)


def key_of(certificate: Certificate) -> Ed25519PublicKey | None:
    """Return the public key of a certificate; None if it is malformed or of another algorithm."""
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return None
    return key if isinstance(key, Ed25519PublicKey) else None


def may_sign(certificate: Certificate) -> bool:
    """Return True if a certificate permits its key to sign."""
    try:
        return certificate.extensions.get_extension_for_class(KeyUsage).value.digital_signature
    except (ExtensionNotFound, ValueError):  # ValueError: the extensions are malformed
        return False


def pem_of(certificate: Certificate) -> str:
    """Return a certificate in PEM."""
    return certificate.public_bytes(Encoding.PEM).decode()
