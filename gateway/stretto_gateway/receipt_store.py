"""Signed receipts of recent speech responses (`--signing-key`)."""

import hashlib
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typing_extensions import TypedDict

from stretto_client import SpeakArguments, SpeechEvent
from stretto_client.receipt import SpeechRecorder, write_receipt
from stretto_client.signature import ALGORITHM, key_id, public_jwk, sign
from stretto_gateway.caller_records import CallerRecords

MAX_STORED_BYTES = 16 << 20  # of the receipts of all callers
MAX_STORED_S = 86_400.0
RECEIPT_BYTES = 512  # of a stored receipt, beside its own


class PublicKey(TypedDict):
    """Public key that checks receipts, as a JSON Web Key (RFC 8037)."""

    alg: str
    crv: str
    kid: str
    kty: str
    use: str
    x: str


class Draft:
    """Receipt of a response in progress.

    Args:
        file_format: Format of the file that is sent.
        speed: Speed of the file.
    """

    def __init__(self, text: str, request_id: str, file_format: str, speed: float):
        self._text = text
        self._request_id = request_id
        self._format = file_format
        self._speed = speed
        self._recorder = SpeechRecorder(text, {})
        self.set_file()

    def begin(self, model: Mapping[str, str], options: SpeakArguments) -> None:
        """Note what determines the speech, before its first event.

        Args:
            model: What the server reports about its model.
            options: Arguments of `SpeechClient.speak`, which may still lose pronunciations that do not occur.
        """
        self._recorder = SpeechRecorder(self._text, model, self._request_id)
        self._recorder.arguments = options

    def add(self, event: SpeechEvent) -> None:
        """Add the next event."""
        self._recorder.add(event)

    def add_data(self, data: bytes) -> None:
        """Add the next bytes of the file."""
        self._file.update(data)
        self._num_bytes += len(data)

    def set_file(self, data: bytes | bytearray = b"") -> None:
        """Replace the bytes of the file."""
        self._file = hashlib.sha256(data)
        self._num_bytes = len(data)

    def payload(self) -> bytes:
        """Return the contents of the receipt."""
        digest = self._file.hexdigest()
        return write_receipt(
            self._recorder.receipt(
                {"format": self._format, "bytes": self._num_bytes, "sha256": digest, "speed": self._speed}
            )
        )


class ReceiptStore:
    """Receipts by caller and id, as `Outcomes` are found.

    Args:
        key: Key that signs them.
    """

    def __init__(self, key: Ed25519PrivateKey):
        self._key = key
        self._receipts = CallerRecords[bytes](MAX_STORED_BYTES, MAX_STORED_S)

    @property
    def public_key(self) -> PublicKey:
        """The public key."""
        key = self._key.public_key()
        jwk = public_jwk(key)
        return {"alg": ALGORITHM, "crv": jwk["crv"], "kid": key_id(key), "kty": jwk["kty"], "use": "sig", "x": jwk["x"]}

    def find(self, owner: str, request_id: str) -> bytes | None:
        """Return the receipt of a caller's own request; None if there is none."""
        return self._receipts.find(owner, request_id)

    async def followed(
        self, owner: str, request_id: str, parts: AsyncGenerator[bytes, None], draft: Draft
    ) -> AsyncGenerator[bytes, None]:
        """Yield the parts of a response. Sign its receipt once they are complete."""
        async with aclosing(parts):
            async for data in parts:
                yield data
        receipt = sign(draft.payload(), self._key)
        self._receipts.add(owner, request_id, receipt, len(receipt) + RECEIPT_BYTES)
