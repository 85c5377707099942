"""Route of ElevenLabs' API."""

from collections.abc import Mapping

from fastapi import APIRouter
from starlette.responses import Response
from starlette.types import Scope

from stretto_elevenlabs import endpoints, stream_input
from stretto_elevenlabs.errors import KEY_HEADER, SPEECH, error_response, is_own
from stretto_gateway.answers import ApiError
from stretto_gateway.routes import Route

INPUT = "stream-input"  # end of the paths of both WebSockets


class ElevenLabsRoute(Route):
    """ElevenLabs' API, whose clients send the key in a header of their own or in the first message."""

    position = 50
    about = f"{SPEECH}{{voice_id}}/{INPUT} and …/multi-{INPUT}, ElevenLabs' API for text that is being written"
    key_headers = (KEY_HEADER,)
    router = APIRouter()

    def find_key(self, scope: Scope, headers: Mapping[bytes, str]) -> str:
        return headers.get(KEY_HEADER, "") if is_own(scope) else ""

    def authenticates(self, scope: Scope, authorization: str) -> bool:
        is_input = scope["path"].startswith(SPEECH) and scope["path"].endswith(INPUT)
        return bool(scope["type"] == "websocket" and is_input and not authorization)

    def error_response(self, scope: Scope, error: ApiError) -> Response | None:
        return error_response(scope, error) if is_own(scope) else None


ElevenLabsRoute.router.include_router(endpoints.router)
ElevenLabsRoute.router.include_router(stream_input.router)
ROUTE = ElevenLabsRoute()
