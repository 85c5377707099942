"""Endpoints of calls: `POST /v1/realtime/calls`, OpenAI's realtime sessions over WebRTC, and their end."""

import json
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import Response

from stretto_gateway.answers import ApiError, mismatch, shown
from stretto_gateway.gateway import Gateway
from stretto_gateway.realtime.endpoints import first_settings, settled
from stretto_gateway.realtime.settings import RealtimeSettings, Settings, SettingsChange
from stretto_gateway.response_headers import ResponseHeader
from stretto_gateway.socket_session import MAX_VALUES, num_values
from stretto_webrtc.state import WebRtcState

if TYPE_CHECKING:
    from stretto_webrtc.calls import Calls

router = APIRouter()
SDP = "application/sdp"
FORM = "multipart/form-data"
MAX_FORM_FIELDS = 8
CALL_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        SDP: {"schema": {"type": "string", "description": "the caller's offer"}},
        FORM: {
            "schema": {
                "type": "object",
                "required": ["sdp"],
                "properties": {
                    "sdp": {"type": "string", "description": "the caller's offer"},
                    "session": {"type": "string", "description": "JSON: settings as in `session.update`"},
                },
            }
        },
    },
}
ANSWER: dict[int | str, dict[str, Any]] = {
    201: {
        "description": "The answer to the offer. `Location` ends with the id of the call",
        "content": {SDP: {"schema": {"type": "string"}}},
        "headers": {ResponseHeader.LOCATION: {"schema": {"type": "string"}}},
    }
}


@router.post(
    "/v1/realtime/calls",
    status_code=201,
    response_class=Response,
    responses=ANSWER,
    openapi_extra={"requestBody": CALL_BODY},
)
async def create_call(request: Request) -> Response:
    """Begin a realtime session over WebRTC: Opus on audio tracks, and events on the data channel `oai-events`."""
    calls = calls_of(request)
    offer, update = await read_call(request)
    from stretto_webrtc.calls import Opening
    from stretto_webrtc.channel import check_track_formats
    from stretto_webrtc.offer import check_receives, read_offer

    text = read_offer(offer)
    gateway, model, settings = await settings_of(request, update)
    check_track_formats(settings)
    if isinstance(settings, RealtimeSettings):
        check_receives(text)
    call_id, answer = await calls.open(Opening(gateway, text, settings, model, request.state.owner))
    return Response(answer, 201, {ResponseHeader.LOCATION: f"/v1/realtime/calls/{call_id}"}, SDP)


@router.post("/v1/realtime/calls/{call_id}/hangup", response_class=Response)
async def hang_up_call(call_id: str, request: Request) -> Response:
    """End a call of the caller's key."""
    calls_of(request).hang_up(call_id, request.state.owner)
    return Response()


def calls_of(request: Request) -> "Calls":
    """Return the calls of the gateway; raise ApiError if it has none."""
    gateway: Gateway = request.app.state.gateway
    calls = gateway.of_route(WebRtcState).calls
    if calls is None:
        message = "calls: expected a gateway with --webrtc-address ADDRESS, this one has none"
        raise ApiError(404, message, code="unsupported")
    return calls


async def read_call(request: Request) -> tuple[str, dict[str, Any]]:
    """Return the offer and the session's settings in a request's body; raise ApiError if there is no offer."""
    media_type = request.headers.get("content-type", "")
    content_type = media_type.partition(";")[0].strip().lower()
    if content_type == SDP:
        return decoded("the body", await request.body()), {}
    if content_type != FORM:
        message = f"the body: expected the header Content-Type: {SDP} or {FORM}, got {shown(media_type or None)}"
        raise ApiError(400, message)
    limits = request.app.state.gateway.limits
    async with request.form(
        max_files=2, max_fields=MAX_FORM_FIELDS, max_part_size=limits.max_json_bytes
    ) as form:  # parts with a file name are files
        parts = {name: form.get(name) for name in ("sdp", "session")}
        texts = {
            name: decoded(name, await value.read()) if isinstance(value, UploadFile) else value
            for name, value in parts.items()
        }
    if texts["sdp"] is None:
        raise ApiError(400, "sdp: Field required", "sdp", "missing")
    return texts["sdp"], read_session(texts["session"] or "{}")


def decoded(name: str, data: bytes) -> str:
    """Return a part of a request as text; raise ApiError if it is not UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise mismatch(name, "text in UTF-8", "other bytes") from None


def read_session(text: str) -> dict[str, Any]:
    """Return the settings in a part `session`; raise ApiError if they are not a JSON object."""
    if (got := num_values(text)) > MAX_VALUES:
        raise mismatch("session", f"at most {MAX_VALUES} values", f"{got}")
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise mismatch("session", "a JSON object", shown(text))
    return record


async def settings_of(request: Request, update: dict[str, Any]) -> tuple[Gateway, str, Settings]:
    """Return a call's gateway, model and updated settings; raise ApiError for an invalid or unsupported setting."""
    model, first = first_settings(request)
    change = SettingsChange(first, update, model)
    gateway = await settled(request.app.state.gateway, change, model, request.state.owner)
    settings = change.settings
    return gateway, settings.model if isinstance(settings, RealtimeSettings) else model, settings
