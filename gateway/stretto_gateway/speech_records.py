"""`GET /v1/audio/speech/{id}`: outcomes of recent speech responses, and their receipts."""

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from stretto_gateway.answers import ApiError, PublicKey, SpeechOutcome, described
from stretto_gateway.gateway import Gateway

if TYPE_CHECKING:
    from stretto_gateway.receipt_store import ReceiptStore

router = APIRouter()
JWS = "application/jose+json"  # RFC 7515, section 9.2.1
NO_KEY: dict[str, Any] = {"security": []}  # anyone may check a receipt


@router.get("/v1/audio/speech/{request_id}")
async def get_outcome(request_id: str, request: Request) -> SpeechOutcome:
    """Return the outcome of a recent speech response; the id is in its header `x-request-id`."""
    gateway: Gateway = request.app.state.gateway
    return gateway.outcomes.find(request.state.owner, request_id)


@router.get(
    "/v1/audio/speech/{request_id}/receipt",
    response_class=Response,
    responses=described("The receipt, a flattened JSON Web Signature", JWS),
)
async def get_receipt(request_id: str, request: Request) -> Response:
    """Return the signed receipt of a recent speech response, once it is complete."""
    gateway: Gateway = request.app.state.gateway
    receipts = signing(gateway)
    outcome = gateway.outcomes.find(request.state.owner, request_id)
    receipt = receipts.find(request.state.owner, request_id)
    if receipt is None and outcome["status"] == "in_progress":
        raise ApiError(409, "id: expected a complete response, got one in progress", "id", "in_progress")
    if receipt is None:
        message = f"id: expected a recent response with a receipt, got one without (it is {outcome['status']})"
        raise ApiError(404, message, "id", "not_found")
    return Response(receipt, media_type=JWS)


@router.get("/v1/audio/receipts/key", openapi_extra=NO_KEY)
async def get_receipt_key(request: Request) -> PublicKey:
    """Return the public key with which anyone can check this gateway's receipts."""
    return signing(request.app.state.gateway).public_key


def signing(gateway: Gateway) -> "ReceiptStore":
    """Return the receipts; raise ApiError 404 if the gateway signs none."""
    if gateway.receipts is None:
        raise ApiError(404, "receipt: this gateway has no --signing-key, so it signs no receipts", code="no_receipts")
    return gateway.receipts
