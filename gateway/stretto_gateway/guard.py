"""What every request passes before it is looked at: an id, the keys, the size of its body, a line in the log."""

import asyncio
import hashlib
import hmac
import logging
import re
import secrets
import string
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from ipaddress import ip_address

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from stretto_gateway import page
from stretto_gateway.api_error import ApiError
from stretto_gateway.caller import CALLER, REQUEST, RequestHead, network
from stretto_gateway.config import GatewayConfig
from stretto_gateway.held import Held
from stretto_gateway.realtime.client_secrets import PREFIX, ClientSecret

LOG = logging.getLogger("stretto_gateway")
# What balancers ask without a key, and people's browsers before they have one.
OPEN_PATHS = ("/health", "/health/live", "/health/ready", page.REFERENCE, *page.FILES)
GONE = 499  # the status of who has left before there was another one
SWITCHED = 101  # and of a WebSocket
FAILED_CODE = 1011  # with which one is closed that we have failed (RFC 6455, section 7.4.1)
REALTIME = "/v1/realtime"  # the one path that a client secret opens, as a WebSocket
KEY_PROTOCOL = "openai-insecure-api-key."  # before a key among the subprotocols: a browser's page can set no header
SMALL_BYTES = 65_536  # of a body, for which there is always room
CONVERSATIONS = "/v1/chat/completions"
SPEECH = ("/v1/audio/speech", "/v1/audio/speech/batch")  # with a recording of a voice as base64
VOICES = "/v1/audio/voices"
RECORDINGS = ("/v1/audio/transcriptions", "/v1/audio/translations")
PLACE = re.compile(r"(?:\[(?P<bracketed>[^\[\]/?#@]+)\]|(?P<plain>[^:/?#@\[\]]+))(?::\d{0,5})?")
ANY_ORIGIN = "*"  # of a page that may ask
EVERYBODY = "everybody"  # who owns what was brought where there are no keys
WITH_AUDIO = (*RECORDINGS, CONVERSATIONS)
VALUES = b"[{,"  # with which values of JSON begin, the first aside
VALUE_BYTES, SMALL_VALUES = 64, 1024  # that one takes at least once it is read, and how many there is always room for
LISTS = b"[{"  # which take longest to read: 0.2 s for a MiB of empty ones, in which no other caller is answered
MAX_LISTS = 65_536
BASE64 = (string.ascii_letters + string.digits + "+/=").encode()


class Keys:
    """Knows whether a caller may ask; the keys themselves are not kept."""

    def __init__(self, keys: Sequence[str]):
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def admit(self, authorization: str) -> bool:
        """Whether the header holds one of the keys; compared with all, each in the same time. Without keys: always."""
        given = self._digest(authorization)
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        return not matches or any(matches)

    def owner(self, authorization: str) -> str:
        """Who a caller that was admitted is: a digest of the key, EVERYBODY where there are no keys."""
        return self._digest(authorization).hex() if self._digests else EVERYBODY

    @staticmethod
    def _digest(authorization: str) -> bytes:
        return hashlib.sha256(key_in(authorization).encode()).digest()


def key_in(authorization: str) -> str:
    """Return the key in an `Authorization` header, or the whole of one without a scheme."""
    scheme, _, key = authorization.partition(" ")
    return key.strip() if scheme.lower() == "bearer" else authorization


def is_address(place: str) -> bool:
    """Return True if `place` (host or host:port) has an IP address or localhost for a host.

    Any other name may mean this host in one browser only (DNS rebinding).
    """
    found = PLACE.fullmatch(place)
    host = "" if found is None else (found["bracketed"] or found["plain"]).lower()
    with suppress(ValueError):
        return host == "localhost" or bool(ip_address(host))
    return False


def origin_of(text: str) -> str:
    """Return `text` as a browser writes an origin, or `*`; ValueError if it is neither."""
    scheme, _, place = text.lower().rstrip("/").partition("://")
    if text != ANY_ORIGIN and (not scheme.replace("-", "").isalnum() or PLACE.fullmatch(place) is None):
        raise ValueError(f"--cors-origin: expected an origin such as https://app.example, or *, got {text!r}")
    return text if text == ANY_ORIGIN else f"{scheme}://{place}"


def is_own_page(origin: str | None, host: str) -> bool:
    """Whether no page tells that it asks, or one of the gateway's own, at an address."""
    scheme, _, place = (origin or "").partition("://")
    return origin is None or (bool(scheme) and place == host and is_address(place))


def may_be_page_of_a_name(method: str, headers: Mapping[bytes, str]) -> bool:
    """Whether a page may ask whose browser knows this host by a name, in the one way in which it tells no origin.

    A browser tells which languages its user reads, which a page may change and not leave out, and programs do not.
    Those in JavaScript may tell some as well, with `Sec-Fetch-Mode` beside them: that a browser sends to `localhost`
    and to hosts with a certificate of their name alone.
    """
    is_browser = b"accept-language" in headers and b"sec-fetch-mode" not in headers
    return is_browser and method in ("GET", "HEAD") and not is_address(headers.get(b"host", ""))


def key_in_protocol(scope: Scope) -> str:
    """The key that a page sends to open a WebSocket; empty where there is none."""
    offered = (name for name in scope.get("subprotocols", ()) if name.startswith(KEY_PROTOCOL))
    return next(offered, "").removeprefix(KEY_PROTOCOL)


class Guard:
    """An ASGI application around another one."""

    def __init__(self, app: ASGIApp, config: GatewayConfig):
        self._app, self._limits, self._keys = app, config.limits, Keys(config.keys)
        self._origins = config.cors_origins
        self._held = Held(config.limits)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        exchange = Exchange(scope, send)
        authorization = headers.get(b"authorization", key_in_protocol(scope))
        secret = client_secret(scope, key_in(authorization))
        CALLER.set(self._caller(scope, authorization, secret))
        REQUEST.set(RequestHead(exchange.request_id, headers.get(b"traceparent", "")))
        error = self._refusal(scope, headers, authorization, secret)
        scope["state"]["secret"] = secret
        scope["state"]["owner"] = secret.owner if secret and self._keys else self._keys.owner(authorization)
        if error is not None:
            await error.response()(scope, receive, exchange.send)
            exchange.note()
        elif scope["type"] == "websocket":
            await exchange.converse(self._app, receive)
        else:
            max_bytes, max_other = self._max_bytes(scope["path"], headers), self._max_other(scope["path"])
            body = Body(receive, max_bytes, max_other, self._held, not is_form(headers))
            scope["state"]["keep"] = body.keep
            try:
                await self._app(scope, body.receive, exchange.send)
            except Exception:
                exchange.fail()
                raise
            finally:
                body.forget()
                exchange.note()

    def _caller(self, scope: Scope, authorization: str, secret: ClientSecret | None) -> str:
        if self._keys:
            return secret.owner if secret else self._keys.owner(authorization)
        client = scope.get("client")
        return network(client[0]) if client else ""

    def _refusal(
        self, scope: Scope, headers: dict[bytes, str], authorization: str, secret: ClientSecret | None
    ) -> ApiError | None:
        path = scope["path"]
        is_ephemeral = is_realtime(scope) and key_in(authorization).startswith(PREFIX)
        if is_ephemeral and secret is None and not self._keys:
            return ApiError(401, "the client secret is none of this gateway's, or expired", code="invalid_api_key")
        if path not in OPEN_PATHS and secret is None and not self._keys.admit(authorization):
            return ApiError(401, "no key, or a wrong one: Authorization: Bearer KEY", code="invalid_api_key")
        origin = headers.get(b"origin")
        is_allowed = origin is not None and (ANY_ORIGIN in self._origins or origin in self._origins)
        if not self._keys and not is_allowed and not is_own_page(origin, headers.get(b"host", "")):
            return ApiError(403, "a page from elsewhere may not ask a gateway without keys", code="origin_not_allowed")
        is_checked = not (self._keys or is_allowed or path in OPEN_PATHS)
        if is_checked and may_be_page_of_a_name(scope.get("method", ""), headers):
            told = "without keys, the gateway answers a browser at an address (http://ADDRESS:PORT), and at no name"
            return ApiError(403, told, code="origin_not_allowed")
        length = headers.get(b"content-length", "0")
        max_bytes = self._max_bytes(path, headers)
        return too_large(max_bytes) if length.isdecimal() and int(length[:20]) > max_bytes else None

    def _max_bytes(self, path: str, headers: dict[bytes, str]) -> int:
        if path == VOICES and is_form(headers):
            return self._limits.max_voice_bytes + SMALL_BYTES  # of what stands around it
        if path in SPEECH:
            return self._limits.max_json_bytes + 4 * self._limits.max_voice_bytes // 3
        has_files = is_form(headers) or path not in RECORDINGS
        return self._limits.max_body_bytes if path in WITH_AUDIO and has_files else self._limits.max_json_bytes

    def _max_other(self, path: str) -> int | None:
        return self._limits.max_json_bytes if path in (CONVERSATIONS, *SPEECH) else None


def is_realtime(scope: Scope) -> bool:
    """Return True if a request opens a session of the realtime API."""
    return bool(scope["type"] == "websocket" and scope["path"] == REALTIME)


def client_secret(scope: Scope, key: str) -> ClientSecret | None:
    """Return the client secret that `key` is, None for other keys and for all requests but realtime sessions."""
    if not is_realtime(scope) or not key.startswith(PREFIX):
        return None
    found: ClientSecret | None = scope["app"].state.gateway.secrets.find(key)
    return found


def is_form(headers: Mapping[bytes, str]) -> bool:
    """Whether a body has parts, in which there are files."""
    return headers.get(b"content-type", "").lower().startswith("multipart/")


def too_large(max_bytes: int, which: str = "") -> ApiError:
    """The answer to a body of more than `max_bytes`, or to one that has more of some."""
    return ApiError(413, f"the body has more than {max_bytes} bytes{which}", code="request_too_large")


class Body:
    """Reads a request's body, up to so many bytes and from a sender who does not stop, or take all day.

    max_other: how many of them may be none of base64. Files take as much memory as they have bytes; the JSON around
    them, 32 MiB of empty lists, would take a gigabyte, and seconds in which nobody else is answered. is_json: what is
    held is counted with what its values take, of which a text may have some that are none.
    """

    def __init__(self, receive: Receive, max_bytes: int, max_other: int | None, held: Held, is_json: bool):
        self._receive, self._max_bytes, self._max_other, self._held = receive, max_bytes, max_other, held
        self._num_bytes = self._num_other = self._num_values = self._num_lists = self._num_held = 0
        self._is_json, self._is_complete = is_json, False
        self._begun_s = time.monotonic()

    async def receive(self) -> Message:
        """The next message; ApiError where it is one too many, or does not come."""
        if self._is_complete:  # then it is the end of the connection that is waited for
            return await self._receive()
        limits = self._held.limits
        left_s = self._begun_s + limits.upload_s - time.monotonic()
        try:
            async with asyncio.timeout(min(limits.stall_s, left_s)):
                message = await self._receive()
        except TimeoutError:
            late = f"was not complete after {limits.upload_s:g} s"
            silent = f"had nothing more for {limits.stall_s:g} s"
            raise ApiError(408, f"the body {late if left_s < limits.stall_s else silent}", code="timeout") from None
        part = message.get("body", b"")
        self._num_bytes += len(part)
        self._is_complete = not message.get("more_body", False)
        if self._num_bytes > self._max_bytes:
            raise too_large(self._max_bytes)
        if self._max_other is not None:
            self._num_other += len(part.translate(None, BASE64))
            if self._num_other > self._max_other:
                raise too_large(self._max_other, " beside those of files")
        self.keep(min(len(part), max(0, self._num_bytes - SMALL_BYTES)))
        if self._is_json:
            num_values = len(part) - len(part.translate(None, VALUES))
            self._num_values += num_values
            self.keep(VALUE_BYTES * min(num_values, max(0, self._num_values - SMALL_VALUES)))
            self._num_lists += len(part) - len(part.translate(None, LISTS))
            if self._num_lists > MAX_LISTS:
                told = f"the body: expected at most {MAX_LISTS} lists and objects, got more"
                raise ApiError(413, told, code="request_too_large")
        return message

    def keep(self, num_bytes: int) -> None:
        """So many more are held until the request is answered; ApiError 503 where there is no memory for them."""
        self._held.add(num_bytes)
        self._num_held += num_bytes

    def forget(self) -> None:
        """The request is answered."""
        self._held.remove(self._num_held)


class Exchange:
    """One request and its answer, as the log has them: nothing of what was asked or said."""

    def __init__(self, scope: Scope, send: Send):
        self.request_id = f"req_{secrets.token_hex(12)}"
        scope.setdefault("state", {})["request_id"] = self.request_id
        self._scope, self._send = scope, send
        self._begun_s = time.monotonic()
        self._status = GONE  # until there is another one

    async def send(self, message: Message) -> None:
        """Send a message of the answer, its first with the request's id."""
        if message["type"] in ("http.response.start", "websocket.http.response.start", "websocket.accept"):
            self._status = message.get("status", SWITCHED)
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", self.request_id.encode())]
        await self._send(message)

    def fail(self) -> None:
        """Whatever has not begun to be answered will be by an internal error."""
        self._status = 500 if self._status in (GONE, SWITCHED) else self._status

    async def converse(self, app: ASGIApp, receive: Receive) -> None:
        """A WebSocket from beginning to end; a failure of ours closes it, with a traceback in the log."""
        try:
            await app(self._scope, receive, self.send)
        except (OSError, WebSocketDisconnect):  # whoever is gone is told nothing
            pass
        except Exception as error:
            LOG.error("%s failed", self.request_id, exc_info=error)
            self.fail()
            with suppress(OSError, RuntimeError):  # there may be nobody left, or no more to be said
                await self._send({"type": "websocket.close", "code": FAILED_CODE})
        finally:
            self.note()

    def note(self) -> None:
        """Count it, and write a line: id, method, route, status, milliseconds."""
        route = getattr(self._scope.get("route"), "path", "-")
        self._scope["app"].state.gateway.metrics.answers.labels(route, str(self._status)).inc()
        took_ms = 1000 * (time.monotonic() - self._begun_s)
        method = self._scope.get("method", "WEBSOCKET")[:16]
        LOG.info("%s %s %s %d %.0f ms", self.request_id, method, route, self._status, took_ms)
