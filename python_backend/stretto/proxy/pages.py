"""HTTP servers for readiness and metrics. Only the first line of a GET request is interpreted."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from itertools import count
from typing import Any

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from stretto.proxy.apis import MODEL_READY as READY_CALL
from stretto.proxy.connections import MAX_PAGE_CONNECTIONS
from stretto.proxy.infer_request import BadRequest
from stretto.proxy.sleep import Sleep
from stretto_contract.limits import eviction_order, host_of

MAX_HEAD_BYTES = 8192
MAX_PAGE_BYTES = 1 << 24
REQUEST_S = 5.0
ANSWER_S = 5.0
LINGER_S = 0.5
CLOSED = "Triton's HTTP service is closed: use gRPC, or start the server with --allow http"
ALIVE = "/health/live"  # liveness of the proxy, independent of Triton
HEALTH = ("/v2/health/live", "/v2/health/ready")
METRICS_TYPE = "text/plain; charset=utf-8"
ASLEEP = "stretto_asleep"
ASLEEP_ABOUT = "1 while the idle server sleeps, or is being started for a request"
MODEL_READY = re.compile(r"/v2/models/([^/?]{1,128})(?:/versions/(\d{1,18}))?/ready")


@dataclass(frozen=True, slots=True)
class Page:
    """HTTP response. A body in parts ends with the connection."""

    status: HTTPStatus
    body: bytes | Iterator[bytes] = b""
    content_type: str = "application/json"


Posts = Callable[[str, bytes, asyncio.StreamReader, str], Awaitable[Page]]
"""Handler of POST requests: returns the response to path, header lines, stream of the body, and host."""
Pages = Callable[[str], Awaitable[Page]]


def error_page(status: HTTPStatus, message: str) -> Page:
    """Return an error response in the format of Triton's HTTP service."""
    return Page(status, json.dumps({"error": message}).encode())


class Readiness:
    """Readiness of the server and its models, at the same paths as in Triton's HTTP service.

    If the launcher does not report the server as ready, it is not ready. Otherwise Triton is queried over gRPC. A
    server that sleeps is ready, because it accepts requests, unless it could not be woken.
    """

    def __init__(
        self,
        triton: grpc.aio.Channel,
        is_ready: Callable[[], bool] = lambda: True,
        sleep: Sleep | None = None,
    ) -> None:
        self._is_ready = is_ready
        self._sleep = sleep or Sleep()
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(triton)

    async def __call__(self, path: str) -> Page:
        model = MODEL_READY.fullmatch(path)
        if path == ALIVE:
            return _yes_or_no(True)
        try:
            if not self._sleep.is_awake and (model or path in HEALTH):
                return _yes_or_no(self._sleep.accepts_requests and self._was_ready(model))
            if path == "/v2/health/live":
                answer = await self._stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=ANSWER_S)
                return _yes_or_no(answer.live)
            if not self._is_ready() and (model or path == "/v2/health/ready"):
                return _yes_or_no(False)
            if path == "/v2/health/ready":
                answer = await self._stub.ServerReady(service_pb2.ServerReadyRequest(), timeout=ANSWER_S)
                return _yes_or_no(answer.ready)
            if model:
                request = service_pb2.ModelReadyRequest(name=model[1], version=model[2] or "")
                return _yes_or_no((await self._stub.ModelReady(request, timeout=ANSWER_S)).ready)
        except (grpc.aio.AioRpcError, BadRequest):
            return _yes_or_no(False)
        return error_page(HTTPStatus.NOT_FOUND, CLOSED)

    def _was_ready(self, model: re.Match[str] | None) -> bool:
        """Return True if the path names no model, or one that was ready before the server fell asleep."""
        if model is None:
            return True
        return bool(
            self._sleep.answer(READY_CALL, service_pb2.ModelReadyRequest(name=model[1], version=model[2] or ""))
        )


def _yes_or_no(answer: bool) -> Page:
    return Page(HTTPStatus.OK if answer else HTTPStatus.SERVICE_UNAVAILABLE)


class MetricsPage:
    """Triton's metrics, forwarded from the Unix socket on which Triton serves them.

    A server that can sleep has one more metric, which is the only one while it sleeps.
    """

    def __init__(self, socket: str, sleep: Sleep | None = None) -> None:
        self._socket = socket
        self._sleep = sleep or Sleep()

    async def __call__(self, path: str) -> Page:
        if path != "/metrics":
            return error_page(HTTPStatus.NOT_FOUND, "metrics are served at /metrics")
        if not self._sleep.is_awake:
            return Page(HTTPStatus.OK, self._own_metric(), METRICS_TYPE)
        try:
            async with asyncio.timeout(ANSWER_S):
                return Page(HTTPStatus.OK, await self._fetch(path) + self._own_metric(), METRICS_TYPE)
        except (OSError, EOFError):  # TimeoutError is an OSError
            return error_page(HTTPStatus.SERVICE_UNAVAILABLE, "the server is starting")

    def _own_metric(self) -> bytes:
        """Return the metric of a server that can sleep; empty for other servers."""
        if not self._sleep.is_possible:
            return b""
        is_asleep = int(not self._sleep.is_awake)
        return f"# HELP {ASLEEP} {ASLEEP_ABOUT}\n# TYPE {ASLEEP} gauge\n{ASLEEP} {is_asleep}\n".encode()

    async def _fetch(self, path: str) -> bytes:
        reader, writer = await asyncio.open_unix_connection(self._socket, limit=MAX_PAGE_BYTES)
        try:
            writer.write(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
            return await (reader.readexactly(int(length[1])) if length else reader.read())
        finally:
            writer.close()


@dataclass(slots=True, eq=False)
class _Connection:
    """Open connection.

    Attributes:
        number: Sequence number, assigned when the connection is opened, and again once its request is answered.
        is_idle: True if no complete request has been received, or the request has been answered.
    """

    writer: asyncio.StreamWriter
    serving: "asyncio.Task[Any] | None"
    number: int
    is_idle: bool = True

    @property
    def host(self) -> str:
        name = self.writer.get_extra_info("peername")
        return host_of(name[0]) if name else ""

    def end(self) -> None:
        self.writer.transport.abort()
        if self.serving is not None and self.serving is not asyncio.current_task():
            self.serving.cancel()


class PageServer:
    """HTTP server that answers one request per connection.

    If more than `limit` connections are open, the host with the most connections loses one: the oldest idle one or, if
    none is idle, the oldest.

    Args:
        posts: Handler of POST requests, which limits the time of the body itself; None to accept only GET.
    """

    def __init__(self, pages: Pages, limit: int = MAX_PAGE_CONNECTIONS, posts: Posts | None = None) -> None:
        self._pages = pages
        self._limit = limit
        self._posts = posts
        self._open: set[_Connection] = set()
        self._number = count()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(writer, asyncio.current_task(), next(self._number))
        self._open.add(connection)
        self._make_room()
        try:
            if connection in self._open:
                with suppress(OSError):  # the client disconnected or is too slow
                    async with asyncio.timeout(REQUEST_S + ANSWER_S) as deadline:
                        await self._serve(reader, connection, deadline)
        except asyncio.CancelledError:
            if connection in self._open:  # not cancelled to make room for another connection
                raise
        finally:
            self._open.discard(connection)
            writer.close()

    def _make_room(self) -> None:
        if len(self._open) > self._limit:
            order = eviction_order(
                self._open,
                lambda connection: connection.host,
                lambda connection: (not connection.is_idle, connection.number),
            )
            first = next(order)
            self._open.discard(first)
            first.end()

    async def _serve(self, reader: asyncio.StreamReader, connection: _Connection, deadline: asyncio.Timeout) -> None:
        writer = connection.writer
        page = await self._answer(reader, connection, deadline)
        head = f"HTTP/1.1 {page.status.value} {page.status.phrase}\r\nContent-Type: {page.content_type}\r\n"
        size = f"Content-Length: {len(page.body)}\r\n" if isinstance(page.body, bytes) else ""
        writer.write(f"{head}{size}Connection: close\r\n\r\n".encode())
        for content in (page.body,) if isinstance(page.body, bytes) else page.body:
            deadline.reschedule(asyncio.get_running_loop().time() + ANSWER_S)
            writer.write(content)
            await writer.drain()
            await asyncio.sleep(0)  # `drain` does not let other calls run if the client reads fast
        writer.write_eof()
        connection.is_idle = True
        connection.number = next(self._number)
        # wait before closing: if the client is still sending, a reset would discard the response
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                await reader.read(MAX_HEAD_BYTES)

    async def _answer(self, reader: asyncio.StreamReader, connection: _Connection, deadline: asyncio.Timeout) -> Page:
        try:
            async with asyncio.timeout(REQUEST_S):
                head = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.LimitOverrunError, asyncio.IncompleteReadError):
            return error_page(HTTPStatus.BAD_REQUEST, f"expected a request's head of at most {MAX_HEAD_BYTES} bytes")
        connection.is_idle = False
        first, _, headers = head.partition(b"\r\n")
        words = first.decode("latin-1").split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return error_page(HTTPStatus.BAD_REQUEST, "expected a request of HTTP/1.1")
        if words[0] == "POST" and self._posts is not None:
            deadline.reschedule(None)
            return await self._posts(words[1].partition("?")[0], headers, reader, connection.host)
        if words[0] != "GET":
            return error_page(HTTPStatus.METHOD_NOT_ALLOWED, CLOSED)
        return await self._pages(words[1].partition("?")[0])
