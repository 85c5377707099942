"""What every request passes before it is looked at: an id, the keys, the size of its body, a line in the log."""

import asyncio
import hashlib
import hmac
import logging
import secrets
import time
from collections.abc import Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stretto_gateway.api_error import ApiError
from stretto_gateway.config import GatewayConfig

LOG = logging.getLogger("stretto_gateway")
OPEN_PATHS = ("/health/live", "/health/ready")  # which balancers ask, without a key
WITH_AUDIO = ("/v1/audio/transcriptions", "/v1/chat/completions")


class Keys:
    """Knows whether a caller may ask; the keys themselves are not kept."""

    def __init__(self, keys: Sequence[str]):
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def admit(self, authorization: str) -> bool:
        """Whether the header holds one of the keys; compared with all, each in the same time. Without keys: always."""
        given = hashlib.sha256(authorization.removeprefix("Bearer ").encode(errors="surrogatepass")).digest()
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        return not matches or any(matches)


class Guard:
    """An ASGI application around another one."""

    def __init__(self, app: ASGIApp, config: GatewayConfig):
        self._app, self._limits, self._keys = app, config.limits, Keys(config.keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        exchange = Exchange(scope, send)
        error = self._refusal(scope["path"], headers)
        if error is not None:
            await error.response()(scope, receive, exchange.send)
        else:
            body = Body(receive, self._max_bytes(scope["path"]), self._limits.stall_s)
            await self._app(scope, body.receive, exchange.send)
        exchange.note()

    def _refusal(self, path: str, headers: dict[bytes, str]) -> ApiError | None:
        if path not in OPEN_PATHS and not self._keys.admit(headers.get(b"authorization", "")):
            return ApiError(401, "no key, or a wrong one: Authorization: Bearer KEY", code="invalid_api_key")
        length = headers.get(b"content-length", "0")
        if length.isdecimal() and int(length[:20]) > self._max_bytes(path):
            return too_large(self._max_bytes(path))
        return None

    def _max_bytes(self, path: str) -> int:
        return self._limits.max_body_bytes if path in WITH_AUDIO else self._limits.max_json_bytes


def too_large(max_bytes: int) -> ApiError:
    """The answer to a body of more than `max_bytes`."""
    return ApiError(413, f"the body has more than {max_bytes} bytes", code="request_too_large")


class Body:
    """Reads a request's body, up to so many bytes and from a sender who does not stop."""

    def __init__(self, receive: Receive, max_bytes: int, stall_s: float):
        self._receive, self._max_bytes, self._stall_s = receive, max_bytes, stall_s
        self._num_bytes = 0
        self._is_complete = False

    async def receive(self) -> Message:
        """The next message; ApiError where it is one too many, or does not come."""
        if self._is_complete:  # then it is the end of the connection that is waited for
            return await self._receive()
        try:
            async with asyncio.timeout(self._stall_s):
                message = await self._receive()
        except TimeoutError:
            raise ApiError(408, f"nothing of the body came for {self._stall_s:g} s", code="timeout") from None
        self._num_bytes += len(message.get("body", b""))
        self._is_complete = not message.get("more_body", False)
        if self._num_bytes > self._max_bytes:
            raise too_large(self._max_bytes)
        return message


class Exchange:
    """One request and its answer, as the log has them: nothing of what was asked or said."""

    def __init__(self, scope: Scope, send: Send):
        self.request_id = f"req_{secrets.token_hex(12)}"
        scope.setdefault("state", {})["request_id"] = self.request_id
        self._scope, self._send = scope, send
        self._begun_s = time.monotonic()
        self._status = 499  # until there is another one: the caller has gone

    async def send(self, message: Message) -> None:
        """Send a message of the answer, its first with the request's id."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
            message["headers"] = [*message["headers"], (b"x-request-id", self.request_id.encode())]
        await self._send(message)

    def note(self) -> None:
        """Count it, and write a line: id, method, route, status, milliseconds."""
        route = getattr(self._scope.get("route"), "path", "-")
        self._scope["app"].state.gateway.metrics.answers.labels(route, str(self._status)).inc()
        took_ms = 1000 * (time.monotonic() - self._begun_s)
        LOG.info("%s %s %s %d %.0f ms", self.request_id, self._scope["method"][:16], route, self._status, took_ms)
