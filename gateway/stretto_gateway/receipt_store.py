"""Signed receipts of recent speech responses (`--signing-key`)."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from stretto_client.signature import ALGORITHM, key_id, public_jwk, sign
from stretto_gateway.answers import PublicKey
from stretto_gateway.caller_records import CallerRecords
from stretto_gateway.receipt_draft import Draft

MAX_STORED_BYTES = 16 << 20  # of the receipts of all callers
MAX_STORED_S = 86_400.0
RECEIPT_BYTES = 512  # of a stored receipt, beside its own


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
