"""ASGI middleware for all requests: request ids, API keys, origin checks, body limits and the access log."""

import asyncio
import hashlib
import hmac
import logging
import re
import secrets
import string
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from ipaddress import ip_address

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from stretto_contract.limits import host_of
from stretto_gateway import page
from stretto_gateway.admission import CALLER, REQUEST, Held, RequestHead
from stretto_gateway.answers import ApiError, shown
from stretto_gateway.config import GatewayConfig
from stretto_gateway.response_headers import ResponseHeader
from stretto_gateway.routes import Secret, error_response, installed_routes
from stretto_gateway.voice_store import EVERYBODY

LOG = logging.getLogger("stretto_gateway")
# Paths that need no key, for load balancers and for browsers before the user has entered a key.
OPEN_PATHS = ("/health", "/health/live", "/health/ready", "/api/build_info", "/v1/audio/receipts/key", *page.PATHS)
ADMIN_PATHS = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter")  # for which an admin key is needed
GONE = 499  # logged status if the client disconnected before the response
SWITCHED = 101  # logged status of a WebSocket
FAILED_CODE = 1011  # close code after an internal error (RFC 6455, section 7.4.1)
SINGLE = (b"authorization", b"host", b"origin")  # headers that affect access, in addition to those of routes
# Host names that the public DNS does not have, so that no page of an attacker comes from them.
PRIVATE = re.compile(
    r"[\w-]+\.?|[\w.-]+\.(?:local|localhost|internal|lan|home|corp|intranet|localdomain|home\.arpa)\.?"
)
BROWSER = re.compile(r"(?:mozilla|opera)/[\d.]+ \(", re.IGNORECASE)  # how the user agents of browsers begin
# User agents of programs whose libraries send `Accept-Language` by themselves: Apple's URL loading system, Qt, Deno.
SENDS_LANGUAGE = re.compile(
    r"\b(?:CFNetwork|AppleCoreMedia|Darwin|Alamofire|iOS|iPadOS|macOS|tvOS|watchOS|visionOS|iPhone|iPad)\b"
    r"|^Mozilla/5\.0$|^Deno/"
)
KEY_PROTOCOL = "openai-insecure-api-key."  # prefix of a key sent as a subprotocol; browser pages cannot set headers
SMALL_BYTES = 65_536  # body size that is always admitted
CONVERSATIONS = "/v1/chat/completions"
SPEECH = ("/v1/audio/speech", "/v1/audio/speech/batch")  # bodies may contain a recorded voice in base64
VOICES = "/v1/audio/voices"
IMPORTED_VOICES = f"{VOICES}/import"
JOBS = "/v1/audio/jobs"  # the text of a job may be twice as large in JSON
RECORDINGS = ("/v1/audio/transcriptions", "/v1/audio/translations", "/v1/audio/verify")
PLACE = re.compile(r"(?:\[(?P<bracketed>[^\[\]/?#@]+)\]|(?P<plain>[^:/?#@\[\]]+))(?::\d{0,5})?")
ANY_ORIGIN = "*"  # allows pages of any origin
WITH_AUDIO = (*RECORDINGS, CONVERSATIONS)
VALUES = b"[{,"  # bytes before every JSON value except the first
CHARSETS = re.compile(r' *= *"?(utf-?8|us-ascii|iso-8859-1)"? *(;|$)', re.IGNORECASE)  # of a form
VALUE_BYTES = 64  # minimum memory per parsed value
SMALL_VALUES = 1024  # number of values that is always admitted
LISTS = b"[{"  # the values that parse most slowly; 1 MiB of empty ones blocks the event loop for 0.2 s
MAX_LISTS = 65_536
BASE64 = (string.ascii_letters + string.digits + "+/-_=").encode()


class Keys:
    """API keys, stored as digests."""

    def __init__(self, keys: Sequence[str]):
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    @property
    def owners(self) -> list[str]:
        """Ids of the callers that have a key."""
        return [digest.hex() for digest in self._digests]

    def admit(self, authorization: str) -> bool:
        """Return True if the header contains one of the keys, compared in constant time, or if there are no keys."""
        sent = self._digest(authorization)
        matches = [hmac.compare_digest(sent, digest) for digest in self._digests]
        return not matches or any(matches)

    def owner(self, authorization: str, secret: Secret | None = None) -> str:
        """Return the id of an authenticated caller, who owns voices: EVERYBODY if there are no keys.

        Otherwise, it is the digest of the key in the `Authorization` header, or the owner of the caller's secret.
        """
        if not self._digests:
            return EVERYBODY
        return self._digest(authorization).hex() if secret is None else secret.owner

    @staticmethod
    def _digest(authorization: str) -> bytes:
        return hashlib.sha256(key_in(authorization).encode()).digest()


def key_in(authorization: str) -> str:
    """Return the key in an `Authorization` header; without a scheme, the whole value is the key."""
    scheme, _, key = authorization.partition(" ")
    return key.strip(" \t") if scheme.lower() == "bearer" else authorization


def is_address(authority: str) -> bool:
    """Return True if the host in `authority` (host or host:port) is an IP address or localhost.

    An attacker may make a browser resolve any other name to this machine (DNS rebinding).
    """
    host = host_in(authority)
    with suppress(ValueError):
        return host == "localhost" or bool(ip_address(host))
    return False


def host_in(authority: str) -> str:
    """Return the host in `authority` (host or host:port), in lower case; empty if it is neither."""
    match = PLACE.fullmatch(authority)
    return "" if match is None else (match["bracketed"] or match["plain"]).lower()


def origin_of(text: str) -> str:
    """Return an origin as browsers send it, or `*`; raise ValueError if `text` is neither."""
    scheme, _, authority = text.lower().rstrip("/").partition("://")
    if text != ANY_ORIGIN and (not scheme.replace("-", "").isalnum() or PLACE.fullmatch(authority) is None):
        raise ValueError(f"--cors-origin: expected an origin such as https://app.example, or *, got {text!r}")
    return text if text == ANY_ORIGIN else f"{scheme}://{authority}"


def is_own_page(origin: str | None, host: str) -> bool:
    """Return True if the Origin header is missing, or names the gateway's page at an IP address or localhost."""
    scheme, _, authority = (origin or "").partition("://")
    return origin is None or (bool(scheme) and authority == host and is_address(authority))


def may_be_page_of_a_name(method: str, headers: Mapping[bytes, str]) -> bool:
    """Return True if a browser page may have sent this request to a DNS name without an Origin.

    Browsers send `Accept-Language`, which a page may change but not remove; the libraries of most programs do not send
    it. Some do: those in JavaScript together with `Sec-Fetch-Mode`, others with a `User-Agent` that is not a browser's.
    Browsers send `Sec-Fetch-Mode` only to `localhost` and to hosts that have a certificate for their name.
    """
    authority = headers.get(b"host", "")
    agent = headers.get(b"user-agent", "")
    if method not in ("GET", "HEAD") or b"accept-language" not in headers or b"sec-fetch-mode" in headers:
        return False
    is_private = PRIVATE.fullmatch(host_in(authority)) is not None
    is_program = BROWSER.match(agent) is None and (is_private or SENDS_LANGUAGE.search(agent) is not None)
    return not is_program and not is_address(authority)


def twice_given(scope: Scope) -> str:
    """Return the name of a duplicate header that affects access; empty if there is none.

    Programs between the client and this one may use the first or the last of several.
    """
    single = single_headers()
    counts = Counter(name for name, _ in scope["headers"] if name in single)
    return next((name.decode() for name, count in counts.items() if count > 1), "")


@cache
def single_headers() -> frozenset[bytes]:
    """Return the names of all headers that affect access."""
    return frozenset(SINGLE).union(*(route.key_headers for route in installed_routes()))


def credentials(scope: Scope, headers: Mapping[bytes, str]) -> str:
    """Return the `Authorization` header, or the key that a route or a WebSocket's subprotocols have; empty for none."""
    authorization = headers.get(b"authorization")
    if authorization is None:
        authorization = next(filter(None, (route.find_key(scope, headers) for route in installed_routes())), None)
    return authorization or key_in_protocol(scope)


def key_in_protocol(scope: Scope) -> str:
    """Return the API key among a WebSocket's subprotocols; empty if there is none."""
    return only([name for name in scope.get("subprotocols", ()) if name.startswith(KEY_PROTOCOL)]).removeprefix(
        KEY_PROTOCOL
    )


def only(keys: Sequence[str]) -> str:
    """Return the only key in `keys`; empty if there is no key, or several."""
    return keys[0] if len(keys) == 1 else ""


class Guard:
    """ASGI middleware that authenticates requests and limits their bodies."""

    def __init__(self, app: ASGIApp, config: GatewayConfig):
        self._app = app
        self._limits = config.limits
        self._keys = Keys(config.keys)
        self._admin_keys = Keys(config.admin_keys)
        self._origins = config.cors_origins
        self._held = Held(config.limits)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        strip_slash(scope)
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        exchange = Exchange(scope, send)
        authorization = credentials(scope, headers)
        key = key_in(authorization)
        taker = next((route for route in installed_routes() if route.takes_secret(scope, key)), None)
        secret = None if taker is None else taker.find_secret(scope["app"].state.gateway, key)
        CALLER.set(self._caller(scope, authorization, secret))
        REQUEST.set(RequestHead(exchange.request_id, headers.get(b"traceparent", "")))
        has_key = self._keys.admit(authorization)
        is_unknown = taker is not None and secret is None
        error = self._refusal(scope, headers, authorization, is_unknown, has_key or secret is not None)
        scope["state"]["secret"] = secret
        scope["state"]["keys"] = self._keys
        scope["state"]["has_key"] = has_key
        scope["state"]["owner"] = self._keys.owner(authorization, secret)
        if error is not None:
            await error_response(scope, error)(scope, receive, exchange.send)
            exchange.log()
        elif scope["type"] == "websocket":
            await exchange.converse(self._app, receive)
        else:
            max_bytes = self._max_bytes(scope["path"], headers)
            max_other = self._max_other(scope["path"])
            body = LimitedBody(receive, max_bytes, max_other, self._held, not is_form(headers))
            scope["state"]["keep"] = body.keep
            try:
                await self._app(scope, body.receive, exchange.send)
            except Exception:
                exchange.fail()
                raise
            finally:
                body.forget()
                exchange.log()

    def _caller(self, scope: Scope, authorization: str, secret: Secret | None) -> str:
        if self._keys:
            return self._keys.owner(authorization, secret)
        client = scope.get("client")
        return host_of(client[0]) if client else ""

    def _refusal(
        self,
        scope: Scope,
        headers: dict[bytes, str],
        authorization: str,
        is_unknown: bool,
        has_key: bool,
    ) -> ApiError | None:
        """Return the error for a request that is not admitted; None for others.

        Args:
            is_unknown: True if the key has the form of a secret, and there is no such secret.
            has_key: True if the key is valid, or none is needed.
        """
        path = scope["path"]
        if name := twice_given(scope):
            return ApiError(400, f"{name}: expected at most one such header, got several", code="invalid_value")
        if charset := foreign_charset(headers):
            message = f"Content-Type: expected a form with the charset utf-8, got {shown(charset)}"
            return ApiError(400, message, code="invalid_value")
        if is_unknown and not self._keys:
            return ApiError(401, "the client secret is unknown or expired", code="invalid_api_key")
        if path in ADMIN_PATHS and (error := self._admin_refusal(authorization)):
            return error
        may_enter = path in (*OPEN_PATHS, *ADMIN_PATHS) or any(
            route.authenticates(scope, authorization) for route in installed_routes()
        )
        if not may_enter and not has_key:
            return ApiError(401, "no valid key: expected the header Authorization: Bearer KEY", code="invalid_api_key")
        origin = headers.get(b"origin")
        is_allowed = origin is not None and (ANY_ORIGIN in self._origins or origin in self._origins)
        # a page may embed a preview, which browsers request without an Origin
        is_embedded = path.startswith(f"{VOICES}/") and headers.get(b"sec-fetch-site") == "cross-site"
        is_own = is_own_page(origin, headers.get(b"host", "")) and not is_embedded
        if not (self._keys or is_allowed or is_own):
            return ApiError(
                403, "web pages of other origins cannot use a gateway without API keys", code="origin_not_allowed"
            )
        is_checked = not (self._keys or is_allowed or path in OPEN_PATHS)
        if is_checked and may_be_page_of_a_name(scope.get("method", ""), headers):
            message = "a gateway without API keys answers browsers only at its IP address (http://ADDRESS:PORT)"
            return ApiError(403, message, code="origin_not_allowed")
        length = headers.get(b"content-length", "0")
        max_bytes = self._max_bytes(path, headers)
        return too_large(max_bytes) if length.isdecimal() and int(length[:20]) > max_bytes else None

    def _admin_refusal(self, authorization: str) -> ApiError | None:
        if not self._admin_keys:
            message = "this gateway has no admin keys; start it with --admin-keys FILE"
            return ApiError(404, message, code="no_admin_keys")
        if self._admin_keys.admit(authorization):
            return None
        message = "no valid admin key: expected the header Authorization: Bearer KEY"
        return ApiError(401, message, code="invalid_api_key")

    def _max_bytes(self, path: str, headers: dict[bytes, str]) -> int:
        if path in (VOICES, IMPORTED_VOICES) and is_form(headers):
            return self._limits.max_voice_bytes + 2 * SMALL_BYTES  # for an exported file's header and the other fields
        if path in SPEECH:
            return self._limits.max_json_bytes + 4 * self._limits.max_voice_bytes // 3
        if path == JOBS:
            return self._limits.max_json_bytes + 2 * self._limits.max_book_bytes
        has_files = is_form(headers) or path not in RECORDINGS
        return self._limits.max_body_bytes if path in WITH_AUDIO and has_files else self._limits.max_json_bytes

    def _max_other(self, path: str) -> int | None:
        return self._limits.max_json_bytes if path in (CONVERSATIONS, *SPEECH) else None


def strip_slash(scope: Scope) -> None:
    """Remove the slashes that some clients append to the path of an HTTP request.

    A redirect would lose the body in some clients, and would name the wrong scheme behind a proxy with TLS.
    """
    path = scope["path"].rstrip("/") or "/"
    if scope["type"] == "http" and scope["path"] not in (path, page.WITH_SLASH):
        scope["path"] = path


def is_form(headers: Mapping[bytes, str]) -> bool:
    """Return True if the body is a multipart form, which may contain files."""
    return headers.get(b"content-type", "").lower().startswith("multipart/")


def foreign_charset(headers: Mapping[bytes, str]) -> str:
    """Return the charset of a form if it is not one of CHARSETS, otherwise an empty text.

    The form parser would look it up among Python's codecs, which store each unknown name for ever.
    """
    media_type = headers.get(b"content-type", "")
    _, *named = re.split("charset", media_type, flags=re.IGNORECASE)
    if not is_form(headers) or not named or (len(named) == 1 and CHARSETS.match(named[0])):
        return ""
    return named[0].lstrip(' ="').partition(";")[0].rstrip(' "') or "none"


def too_large(max_bytes: int, which: str = "") -> ApiError:
    """Return the error for a body of more than `max_bytes`; `which` describes the counted bytes."""
    return ApiError(413, f"the body has more than {max_bytes} bytes{which}", code="request_too_large")


class LimitedBody:
    """Request body with limits on size, memory and duration.

    Args:
        max_other: Maximum number of bytes outside the base64 alphabet; None for no limit. Files in base64 need about
            as much memory as their size. 32 MiB of empty lists would need 1 GB and block the event loop for seconds.
        is_json: True to also count the memory of parsed values. This is an overestimate, because `[`, `{` and `,` may
            also occur in texts.
    """

    def __init__(self, receive: Receive, max_bytes: int, max_other: int | None, held: Held, is_json: bool):
        self._receive = receive
        self._max_bytes = max_bytes
        self._max_other = max_other
        self._held = held
        self._num_bytes = self._num_other = self._num_values = self._num_lists = self._num_held = 0
        self._is_json = is_json
        self._is_complete = False
        self._begun_s = time.monotonic()

    async def receive(self) -> Message:
        """Return the next ASGI message; raise ApiError if the body is too large or too slow."""
        if self._is_complete:  # the application now waits for the disconnect
            return await self._receive()
        limits = self._held.limits
        left_s = self._begun_s + limits.upload_s - time.monotonic()
        try:
            async with asyncio.timeout(min(limits.stall_s, left_s)):
                message = await self._receive()
        except TimeoutError:
            late = f"was not complete after {limits.upload_s:g} s"
            silent = f"received nothing for {limits.stall_s:g} s"
            raise ApiError(408, f"the body {late if left_s < limits.stall_s else silent}", code="timeout") from None
        data = message.get("body", b"")
        self._num_bytes += len(data)
        self._is_complete = not message.get("more_body", False)
        if self._num_bytes > self._max_bytes:
            raise too_large(self._max_bytes)
        if self._max_other is not None:
            self._num_other += len(data.translate(None, BASE64))
            if self._num_other > self._max_other:
                raise too_large(self._max_other, " in addition to files")
        self.keep(min(len(data), max(0, self._num_bytes - SMALL_BYTES)))
        if self._is_json:
            num_values = len(data) - len(data.translate(None, VALUES))
            self._num_values += num_values
            self.keep(VALUE_BYTES * min(num_values, max(0, self._num_values - SMALL_VALUES)))
            self._num_lists += len(data) - len(data.translate(None, LISTS))
            if self._num_lists > MAX_LISTS:
                detail = f"the body: expected at most {MAX_LISTS} lists and objects, got more"
                raise ApiError(413, detail, code="request_too_large")
        return message

    def keep(self, num_bytes: int) -> None:
        """Count `num_bytes` as held until the request ends; raise ApiError 503 beyond the limit."""
        self._held.add(num_bytes)
        self._num_held += num_bytes

    def forget(self) -> None:
        """Release the memory held for this request."""
        self._held.remove(self._num_held)


class Exchange:
    """Log entry and metrics of one request."""

    def __init__(self, scope: Scope, send: Send):
        self.request_id = f"req_{secrets.token_hex(12)}"
        scope.setdefault("state", {})["request_id"] = self.request_id
        self._scope = scope
        self._send = send
        self._begun_s = time.monotonic()
        self._status = GONE  # until a response is started

    async def send(self, message: Message) -> None:
        """Send a message of the response, adding the request id to the first message."""
        if message["type"] in ("http.response.start", "websocket.http.response.start", "websocket.accept"):
            self._status = message.get("status", SWITCHED)
            message["headers"] = [
                *message.get("headers", ()),
                (ResponseHeader.REQUEST_ID.encode(), self.request_id.encode()),
            ]
        await self._send(message)

    def fail(self) -> None:
        """Record status 500, unless an HTTP response has started."""
        self._status = 500 if self._status in (GONE, SWITCHED) else self._status

    async def converse(self, app: ASGIApp, receive: Receive) -> None:
        """Run a WebSocket; after an internal error, close it and log the traceback."""
        try:
            await app(self._scope, receive, self.send)
        except (OSError, WebSocketDisconnect):  # client disconnected
            pass
        except Exception as error:
            LOG.error("%s failed", self.request_id, exc_info=error)
            self.fail()
            with suppress(OSError, RuntimeError):  # client disconnected, or socket already closed
                await self._send({"type": "websocket.close", "code": FAILED_CODE})
        finally:
            self.log()

    def log(self) -> None:
        """Count the request and log its id, method, route, status and duration in milliseconds."""
        route = getattr(self._scope.get("route"), "path", "-")
        self._scope["app"].state.gateway.metrics.answers.labels(route, str(self._status)).inc()
        took_ms = 1000 * (time.monotonic() - self._begun_s)
        method = self._scope.get("method", "WEBSOCKET")[:16]
        LOG.info("%s %s %s %d %.0f ms", self.request_id, method, route, self._status, took_ms)
