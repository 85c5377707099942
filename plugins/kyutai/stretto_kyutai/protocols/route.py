"""Route of Kyutai's protocols."""

from collections.abc import Mapping
from urllib.parse import parse_qs

from starlette.types import Scope

from stretto_gateway.guard import only
from stretto_gateway.routes import Route
from stretto_kyutai.protocols.endpoints import router

PATHS = "/api/"
KEY_HEADER = b"kyutai-api-key"
KEY_FIELD = "auth_id"


class KyutaiRoute(Route):
    """WebSockets of Kyutai's servers, whose clients send the key in a header of their own or in the query."""

    position = 40
    about = "/api/chat, /api/asr-streaming and /api/tts_streaming, Kyutai's protocols"
    key_headers = (KEY_HEADER,)
    router = router

    def find_key(self, scope: Scope, headers: Mapping[bytes, str]) -> str:
        if scope["type"] != "websocket" or not scope["path"].startswith(PATHS):
            return ""
        in_query = parse_qs(scope["query_string"].decode("latin-1")).get(KEY_FIELD, [])
        return headers.get(KEY_HEADER, only(in_query))


ROUTE = KyutaiRoute()
