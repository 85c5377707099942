"""Signed receipts of recent speech responses (`--signing-key`)."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from starlette.datastructures import State

from stretto_client.receipt import ReceiptError
from stretto_client.signature import ALGORITHM, key_id, public_jwk, sign
from stretto_gateway.answers import ApiError, PublicKey
from stretto_gateway.caller_records import CallerRecords
from stretto_gateway.receipt_draft import Draft
from stretto_gateway.turns import AUDIO

if TYPE_CHECKING:
    from stretto_client.manifest import FileSigner

MAX_STORED_BYTES = 16 << 20  # maximum size of the receipts of all callers
MAX_STORED_S = 86_400.0
RECEIPT_BYTES = 512  # memory of a stored receipt in addition to its own size


class ReceiptStore:
    """Receipts of recent speech by caller and request id, as in `Outcomes`."""

    def __init__(self, key: Ed25519PrivateKey, file_signer: "FileSigner | None" = None):
        self._key = key
        self._file_signer = file_signer
        self._receipts = CallerRecords[bytes](MAX_STORED_BYTES, MAX_STORED_S)

    @property
    def public_key(self) -> PublicKey:
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
        receipt = self.signed(draft)
        self._receipts.add(owner, request_id, receipt, len(receipt) + RECEIPT_BYTES)

    def signed(self, draft: Draft) -> bytes:
        """Return the signed receipt of complete speech, as JSON."""
        return sign(draft.payload(), self._key)

    async def complete(self, audio: bytes | bytearray, draft: Draft, asked: State) -> bytes | bytearray:
        """Return a whole file, with its receipt in a C2PA manifest if this gateway writes manifests in its format.

        `draft` then has the digest of the result. ApiError is raised if C2PA no longer admits the certificate.
        """
        draft.set_file(audio)
        if self._file_signer is None or not self._file_signer.admits(draft.file_format):
            return audio
        asked.keep(2 * len(audio))  # memory of the library's copies
        try:
            signed = await AUDIO.run(self._file_signer.sign, audio, draft.file_format, draft.payload())
        except ReceiptError as error:
            raise ApiError(500, f"the gateway's --signing-certificate: {error}", code="signing_failed") from None
        draft.set_file(signed)
        return signed
