"""HTTP connection with limits that apply before the caller has been authenticated."""

import asyncio
import logging
import socket
from collections import Counter
from typing import Any, NoReturn, cast

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from stretto_gateway.caller import network

LOG = logging.getLogger("stretto_gateway")
HEAD_S = 60.0  # maximum time for the head of a request
STALL_S = 30.0  # time in which the client must read part of a response
# number of polls in that time, because a delayed event loop runs timers before pending reads
NUM_LOOKS = 10
MAX_HEAD_BYTES, MAX_HEADERS = 65_536, 100  # of a request head, including trailers
MAX_UPGRADE_LINE = 8000  # bytes of a header or of the URL; the websockets library sends no response if a line is longer
MAX_PIPELINED = 8  # requests queued on a connection
# Limit on small reads plus requests per second. Excess data waits in the kernel, which merges small writes.
SMALL_BYTES, MAX_SMALL = 1024, 500
# Each part of a body costs time, however small. After FREE_PARTS parts, their average size must be at least this.
FREE_PARTS, MIN_PART_BYTES = 4096, 16
# After NUM_TINY reads of less than TINY_BYTES on average, and faster than TINY_PER_S, each read is delayed, so that the
# kernel merges what a client writes byte by byte. Delays end once NUM_TINY reads have SMALL_BYTES on average.
TINY_BYTES, NUM_TINY, TINY_PER_S, TINY_DELAY_S = 32, 64, 200, 0.05
UNSENT_BYTES = 16_384  # limit on unsent bytes in the kernel, and here, so that the client's reading progress is visible
TOO_LONG = f"The head of a request must have at most {MAX_HEAD_BYTES} bytes."


class Rate:
    """Event counter that restarts every second of an event loop's clock."""

    def __init__(self, loop: asyncio.AbstractEventLoop, limit: int):
        self._loop, self._limit = loop, limit
        self._count, self.ends_at = 0, 0.0  # ends_at: end of the second, by the loop's clock

    @property
    def is_over(self) -> bool:
        """True if more than `limit` events were counted in the current second."""
        return self._count > self._limit and self._loop.time() < self.ends_at

    def add(self, num: int = 1) -> None:
        """Count `num` more events."""
        now = self._loop.time()
        if now >= self.ends_at:
            self._count, self.ends_at = 0, now + 1.0
        self._count += num


class Reads:
    """Sizes and rate of reads from a connection.

    Attributes:
        are_tiny: True if recent reads were small and fast, so that the next ones should be delayed.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self._loop, self._begun = loop, loop.time()
        self._num, self._num_bytes, self.are_tiny = 0, 0, False

    def add(self, num_bytes: int) -> None:
        """Count a read of `num_bytes` bytes."""
        self._num += 1
        self._num_bytes += num_bytes
        if self._num == NUM_TINY:
            now = self._loop.time()
            is_fast = now - self._begun < NUM_TINY / TINY_PER_S
            if self.are_tiny:
                self.are_tiny = self._num_bytes < NUM_TINY * SMALL_BYTES
            else:
                self.are_tiny = is_fast and self._num_bytes < NUM_TINY * TINY_BYTES
            self._begun, self._num, self._num_bytes = now, 0, 0


class PacedFlow(FlowControl):
    """uvicorn's flow control, which also pauses reading for the rate limit."""

    _is_held = False

    def hold(self, loop: asyncio.AbstractEventLoop, until: float) -> None:
        """Pause reading until the event loop's clock reaches `until`."""
        if not self._is_held:
            self._is_held = True
            self._transport.pause_reading()
            loop.call_at(until, self._release)

    def resume_reading(self) -> None:
        if self._is_held:
            self.read_paused = False
        else:
            super().resume_reading()

    def _release(self) -> None:
        self._is_held = False
        if not self.read_paused:
            self._transport.resume_reading()


class PlainCycle(RequestResponseCycle):
    """HTTP/1.0 request. HTTP/1.0 has no chunks, so the end of the connection ends a body of unknown length."""

    _is_open_ended = False

    async def send(self, message: Any) -> None:
        headers = dict(message.get("headers", ()))
        if not self.response_started and b"content-length" not in headers and message["status"] not in (204, 304):
            self.chunked_encoding = False  # set before uvicorn chooses chunked encoding
            self.expected_content_length = 0
            await super().send(message)
            self._is_open_ended = True
            return
        if self._is_open_ended and message["type"] == "http.response.body":
            self.expected_content_length = len(message.get("body", b""))
        await super().send(message)


class Connection(HttpToolsProtocol):
    """uvicorn's connection, closed if the head of a request takes too long or too much memory.

    It is also closed if the client stops reading. If the client pipelines too many requests or sends a malformed one,
    the connection is closed after pending responses have been sent. A response is never cut short.

    Beyond `limit_concurrency` connections, an idle one is closed: of the host with the most idle connections, the one
    that has been idle longest. If no connection is idle, uvicorn answers 503.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._num_kept_bytes = 0  # upper bound on the number of received bytes that the application has not read yet
        self._num_head_bytes = self._num_headers = 0  # of the request being received
        self._num_parts = self._num_body_bytes = 0  # of its body
        self._refusal = ""  # reason for stopping the parser
        self._small, self._reads = Rate(self.loop, MAX_SMALL), Reads(self.loop)
        self._timer: asyncio.TimerHandle | None = None  # runs while idle, or while the client does not read
        self._waits_since = 0.0  # by the loop's clock
        self._answered: RequestResponseCycle | None = None  # the current or last request
        self._is_ending = False  # further data is ignored

    @property
    def is_idle(self) -> bool:
        """True if no request is in progress."""
        return self._answered is None or self._answered.response_complete

    @property
    def host(self) -> str:
        """Fair-share key of the client: its IPv4 address, or its IPv6 /64 network."""
        return "" if self.client is None else network(self.client[0])

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(asyncio.Transport, transport))
        self.flow = PacedFlow(self.transport)
        self.transport.set_write_buffer_limits(UNSENT_BYTES)
        made = self.transport.get_extra_info("socket")
        if made is not None and made.family in (socket.AF_INET, socket.AF_INET6):
            # Otherwise the kernel buffers up to 4 MB (87 s of speech) of a response that the client does not read.
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
        self._wait()
        if self.limit_concurrency is not None and len(self.connections) >= self.limit_concurrency:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)
        if self._answered is not None and not self.is_idle:  # uvicorn notifies only the request received last
            self._answered.disconnected = True
            self._answered.message_event.set()

    def data_received(self, data: bytes) -> None:
        if self._is_ending:
            return
        self._num_kept_bytes += len(data)
        self._small.add(len(data) < SMALL_BYTES)
        self._reads.add(len(data))
        super().data_received(data)
        if self._num_kept_bytes > MAX_HEAD_BYTES and not self._is_ending and not self.transport.is_closing():
            self.send_400_response(TOO_LONG)
        if isinstance(self.flow, PacedFlow) and not self.transport.is_closing():
            if self._small.is_over:
                self.flow.hold(self.loop, self._small.ends_at)
            elif self._reads.are_tiny:
                self.flow.hold(self.loop, self.loop.time() + TINY_DELAY_S)

    def handle_websocket_upgrade(self) -> None:
        if self.flow.write_paused or not self.is_idle:  # a new WebSocket would not be notified that writing is paused
            self.send_400_response("A WebSocket can be opened only after all earlier responses have been read.")
            return
        if max(len(self.url), *(len(name) + len(value) for name, value in self.headers)) > MAX_UPGRADE_LINE:
            self.send_400_response(
                f"A WebSocket's URL and each of its headers must have at most {MAX_UPGRADE_LINE} bytes."
            )
            return
        self._stop_waiting()
        super().handle_websocket_upgrade()

    def send_400_response(self, msg: str) -> None:
        """Send status 400.

        If another response is still pending, close the connection after it instead, because the client could not match
        the 400 to its request.
        """
        msg = self._refusal or msg
        answered, came = self._answered, self.cycle
        if self.is_idle or (came is answered and came.more_body and not came.response_started):
            super().send_400_response(msg)
            return
        self._is_ending = True
        if self.pipeline and came.more_body:
            self.pipeline.popleft()  # its body will never be complete
        last = self.pipeline[0][0] if self.pipeline else answered
        assert last is not None
        last.keep_alive = False

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= MAX_PIPELINED:
            raise OverflowError  # stops the parser; `send_400_response` closes after the pending responses
        self._num_head_bytes = self._num_headers = self._num_parts = self._num_body_bytes = 0
        self._small.add()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._num_headers += 1
        if self._num_headers > MAX_HEADERS:
            self._refuse(f"A request must have at most {MAX_HEADERS} headers.")
        self._count_head(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._num_kept_bytes = 0
        if not self.flow.write_paused:
            self._stop_waiting()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._num_kept_bytes = 0
        self._num_parts += 1
        self._num_body_bytes += len(body)
        if self._num_parts > FREE_PARTS + self._num_body_bytes // MIN_PART_BYTES:
            self._refuse(
                f"A body's chunks must have at least {MIN_PART_BYTES} bytes on average after {FREE_PARTS} chunks."
            )
        super().on_body(body)

    def on_response_complete(self) -> None:
        is_last = not self.pipeline
        super().on_response_complete()
        if is_last:
            self._wait()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.is_idle:
            self._stop_waiting()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answered = cycle
        if cycle.scope["http_version"] == "1.0":
            # WORKAROUND(uvicorn 0.54): HTTP/1.0 requests get chunked responses; send the body without chunks
            cycle.__class__ = PlainCycle
        super()._start_asgi_task(cycle, app)

    def _count_head(self, num_bytes: int) -> None:
        self._num_head_bytes += num_bytes
        if self._num_head_bytes > MAX_HEAD_BYTES:
            self._refuse(TOO_LONG)

    def _refuse(self, why: str) -> NoReturn:
        """Stop the parser, which then sends status 400."""
        self._refusal = why
        raise OverflowError(why)

    def _wait(self) -> None:
        """Start the timer for reading of the response or, if all of it has been read, for the next request head."""
        self._waits_since = self.loop.time()
        self._look_later(self.transport.get_write_buffer_size(), NUM_LOOKS)

    def _look_later(self, num_unread: int, num_looks: int) -> None:
        self._stop_waiting()
        patience_s = STALL_S if num_unread else HEAD_S
        self._timer = self.loop.call_later(patience_s / NUM_LOOKS, self._look, num_unread, num_looks - 1)

    def _look(self, num_unread: int, num_looks: int) -> None:
        """Poll: close the connection if still at least `num_unread` bytes are unsent and this is the last poll."""
        if self.transport.get_write_buffer_size() < num_unread:
            self._wait()
            return
        if num_looks:
            self._look_later(num_unread, num_looks)
            return
        if num_unread:
            LOG.warning("a client read nothing for %g s and was disconnected", STALL_S)
        self.transport.abort()

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _make_room(self) -> None:
        idle = [each for each in self.connections if isinstance(each, Connection) and each.is_idle and each is not self]
        if idle:
            (most, _), *_ = Counter(each.host for each in idle).most_common(1)
            oldest = min((each for each in idle if each.host == most), key=lambda each: each._waits_since)
            self.connections.discard(oldest)
            oldest.transport.abort()
