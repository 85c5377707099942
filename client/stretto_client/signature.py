"""Signatures of receipts: Ed25519 in a flattened JSON Web Signature (RFC 7515, RFC 8037).

The signature covers the receipt's bytes, so there is no canonical form of JSON on which signer and verifier must agree.
Libraries for JSON Web Signatures verify it, too. The header has the public key, which the verifier compares with one
that it trusts.
"""

import base64
import binascii
import hashlib
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from stretto_client.receipt import ReceiptError, shown, strict_json

TYPE = "stretto-receipt"
ALGORITHM = "EdDSA"
MAX_KEY_BYTES = 1 << 14
KEY_BYTES = 32
PARTS = {"protected", "payload", "signature"}


def encoded(data: bytes) -> str:
    """Return data in URL-safe base64 without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decoded(text: object, name: str) -> bytes:
    """Return the data in URL-safe base64; raise ReceiptError if the text called `name` is invalid."""
    if isinstance(text, str) and text.isascii():
        try:
            data = base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True)
        except binascii.Error:
            data = b""
        if encoded(data) == text:  # so that each value has only one text
            return data
    raise ReceiptError(f"{name}: expected base64 for URLs without padding, got {shown(text)}")


def public_jwk(key: Ed25519PublicKey) -> dict[str, str]:
    """Return a public key as a JSON Web Key."""
    return {"crv": "Ed25519", "kty": "OKP", "x": encoded(key.public_bytes_raw())}


def key_id(key: Ed25519PublicKey) -> str:
    """Return the thumbprint of a public key (RFC 7638)."""
    data = json.dumps(public_jwk(key), sort_keys=True, separators=(",", ":")).encode()
    return encoded(hashlib.sha256(data).digest())


def sign(payload: bytes, key: Ed25519PrivateKey) -> bytes:
    """Return a flattened JSON Web Signature of `payload`, as JSON."""
    public = key.public_key()
    header = {"alg": ALGORITHM, "jwk": public_jwk(public), "kid": key_id(public), "typ": TYPE}
    protected = encoded(json.dumps(header, sort_keys=True, separators=(",", ":")).encode())
    content = encoded(payload)
    signature = encoded(key.sign(f"{protected}.{content}".encode()))
    return json.dumps({"payload": content, "protected": protected, "signature": signature}).encode() + b"\n"


@dataclass(frozen=True)
class Signed:
    """Payload of a valid signature, and the public key of the signer, whom the signature alone does not identify."""

    payload: bytes
    key: Ed25519PublicKey


def open_signed(data: bytes) -> Signed:
    """Return the contents of a JSON Web Signature; raise ReceiptError if it is malformed or wrong."""
    record = strict_json(data, "signature")
    if record.keys() != PARTS:
        raise ReceiptError(f"signature: expected the fields {', '.join(sorted(PARTS))}, got {shown(sorted(record))}")
    payload = decoded(record["payload"], "signature.payload")
    header = strict_json(decoded(record["protected"], "signature.protected"), "signature.protected")
    for name, expected in (("alg", ALGORITHM), ("typ", TYPE)):
        if header.get(name) != expected:
            raise ReceiptError(f"signature.protected.{name}: expected {expected!r}, got {shown(header.get(name))}")
    if header.keys() != {"alg", "typ", "jwk", "kid"}:
        raise ReceiptError(f"signature.protected: expected alg, jwk, kid and typ, got {shown(sorted(header))}")
    key = from_jwk(header["jwk"], "signature.protected.jwk")
    if header["kid"] != key_id(key):
        raise ReceiptError(f"signature.protected.kid: expected {key_id(key)}, got {shown(header['kid'])}")
    signature = decoded(record["signature"], "signature.signature")
    try:
        key.verify(signature, f"{record['protected']}.{record['payload']}".encode())
    except InvalidSignature:
        raise ReceiptError("signature: expected that of the payload, which was changed after signing") from None
    return Signed(payload, key)


def from_jwk(jwk: Any, name: str) -> Ed25519PublicKey:
    """Return the public key in a JSON Web Key called `name`; raise ReceiptError for any other."""
    if not isinstance(jwk, dict) or jwk.get("kty") != "OKP" or jwk.get("crv") != "Ed25519":
        raise ReceiptError(f"{name}: expected an Ed25519 public key, got {shown(jwk)}")
    data = decoded(jwk.get("x"), f"{name}.x")
    if len(data) != KEY_BYTES:
        raise ReceiptError(f"{name}.x: expected {KEY_BYTES} bytes, got {len(data)}")
    return Ed25519PublicKey.from_public_bytes(data)


def make_key(path: Path) -> Ed25519PublicKey:
    """Write a new private key to a new file that only this user can read, and return its public key."""
    key = Ed25519PrivateKey.generate()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb") as file:
        file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return key.public_key()


def public_pem(key: Ed25519PublicKey) -> str:
    """Return a public key in PEM."""
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def load_private_key(path: Path) -> Ed25519PrivateKey:
    """Return the Ed25519 key in a PEM file; raise ReceiptError if it has none, or if others can read the file."""
    with path.open("rb") as file:
        state = os.fstat(file.fileno())
        if not stat.S_ISREG(state.st_mode):
            raise ReceiptError(f"{path}: expected a file")
        if state.st_mode & 0o077:
            mode = stat.S_IMODE(state.st_mode)
            raise ReceiptError(f"{path}: expected a file that only its owner can read, got mode {mode:o} (chmod 600)")
        data = file.read(MAX_KEY_BYTES)
    try:
        key = load_pem_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        got = "another file" if key is None else type(key).__name__
        raise ReceiptError(f"{path}: expected an Ed25519 private key in PEM without a password, got {got}")
    return key


def load_public_key(path: Path) -> Ed25519PublicKey:
    """Return the public key of a file: PEM, or the JSON of `GET /v1/audio/receipts/key`; else raise ReceiptError."""
    with path.open("rb") as file:
        data = file.read(MAX_KEY_BYTES)
    if data.lstrip()[:1] == b"{":
        return from_jwk(strict_json(data, str(path)), str(path))
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise ReceiptError(f"{path}: expected an Ed25519 public key, in PEM or as a JSON Web Key")
    return key
