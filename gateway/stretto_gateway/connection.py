"""HTTP and WebSocket connections for uvicorn, with limits that apply before the caller has been authenticated."""

import asyncio
import logging
import socket
from collections.abc import Sequence
from typing import Any, Literal, NoReturn, cast

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame, Opcode

from stretto_contract.limits import eviction_order, host_of
from stretto_gateway.config import Limits

LOG = logging.getLogger("stretto_gateway")
HEAD_S = 60.0  # maximum time for a request's head to arrive after its first byte
STALL_S = Limits().stall_s  # time within which the client must read part of a response
NUM_CHECKS = 10  # checks within that time, because a delayed event loop runs timers before pending reads
# limits on a request's head, including trailers
MAX_HEAD_BYTES = 65_536
MAX_HEADERS = 100
MAX_UPGRADE_LINE = 8000  # size of a header or the URL; if a line is longer, the websockets library sends no response
MAX_PIPELINED = 8  # number of requests that a connection may queue
# Limit on small reads plus requests per second, and on small WebSocket messages per second, because parsing them costs
# more than their size suggests. Excess data waits in the kernel until the next second; the kernel merges small writes.
SMALL_BYTES = 1024
MAX_SMALL = 500
# Each part of a body costs time, even if it is small. After FREE_PARTS parts, the average size must be at least this.
FREE_PARTS = 4096
MIN_PART_BYTES = 16
# If NUM_TINY reads average less than TINY_BYTES and arrive faster than TINY_PER_S, each further read is delayed, so
# that the kernel merges data that a client writes byte by byte. The delays end once NUM_TINY reads average at least
# SMALL_BYTES.
TINY_BYTES = 32
NUM_TINY = 64
TINY_PER_S = 200
TINY_DELAY_S = 0.05
UNSENT_BYTES = 16_384  # limit on unsent bytes in the kernel and here, so that the client's reading progress is visible
TOO_LONG = f"The head of a request must have at most {MAX_HEAD_BYTES} bytes."


class EventRate:
    """Event counter that restarts every second of an event loop's clock."""

    def __init__(self, loop: asyncio.AbstractEventLoop, limit: int):
        self._loop = loop
        self._limit = limit
        self._count = 0
        self.ends_at = 0.0  # end of the current second on the loop's clock

    @property
    def is_over(self) -> bool:
        """True if more than `limit` events were counted in the current second."""
        return self._count > self._limit and self._loop.time() < self.ends_at

    def add(self, num: int = 1) -> None:
        """Count `num` more events."""
        now = self._loop.time()
        if now >= self.ends_at:
            self._count = 0
            self.ends_at = now + 1.0
        self._count += num


class Reads:
    """Sizes and rate of reads; `are_tiny` is True if they are small and fast, and the next ones should be delayed."""

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self._loop = loop
        self._begun = loop.time()
        self._num = 0
        self._num_bytes = 0
        self.are_tiny = False

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
            self._begun = now
            self._num = 0
            self._num_bytes = 0


class PacedFlow(FlowControl):
    """uvicorn's flow control, extended to pause reading for the rate limit."""

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
    """HTTP/1.0 request.

    HTTP/1.0 has no chunks, so a body of unknown length ends when the connection is closed.
    """

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
    """uvicorn connection that is closed if it is idle, or if the head of a request takes too long or too much memory.

    It is also closed if the client stops reading. If the client pipelines too many requests or sends a malformed one,
    the connection is closed after pending responses have been sent. A response is never cut short.

    Beyond `limit_concurrency` connections, an idle connection is closed: the one that has been idle the longest among
    those of the host with the most idle connections. If no connection is idle, uvicorn answers 503.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._num_kept_bytes = 0  # upper bound on the number of received bytes that the application has not read yet
        self._num_head_bytes = self._num_headers = 0  # in the request being received
        self._num_parts = self._num_body_bytes = 0  # in its body
        self._refusal = ""  # reason for stopping the parser
        self._small = EventRate(self.loop, MAX_SMALL)
        self._reads = Reads(self.loop)
        self._timer: asyncio.TimerHandle | None = None  # runs while the connection is idle or the client does not read
        self._waits_since = 0.0  # on the loop's clock
        self._is_receiving = False  # a part of a request has arrived, and not its end
        self._answered: RequestResponseCycle | None = None  # the current or last request
        self._is_ending = False  # further data is ignored

    @property
    def is_idle(self) -> bool:
        """True if no request is in progress."""
        return self._answered is None or self._answered.response_complete

    @property
    def host(self) -> str:
        """Fair-share key of the client: its IPv4 address, or its IPv6 /64 network."""
        return "" if self.client is None else host_of(self.client[0])

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(asyncio.Transport, transport))
        self.flow = PacedFlow(self.transport)
        self.transport.set_write_buffer_limits(UNSENT_BYTES)
        tcp_socket = self.transport.get_extra_info("socket")
        if tcp_socket is not None and tcp_socket.family in (socket.AF_INET, socket.AF_INET6):
            # Otherwise, the kernel buffers up to 4 MB (87 s of speech) of a response that the client does not read.
            tcp_socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
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

        If another response is still pending, close the connection after that response instead, because the client could
        not match the 400 to its request.
        """
        msg = self._refusal or msg
        answered = self._answered
        came = self.cycle
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
        self._is_receiving = True
        if self.is_idle and not self.flow.write_paused:
            self._check_later(self.transport.get_write_buffer_size(), NUM_CHECKS)

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

    def on_message_complete(self) -> None:
        self._is_receiving = False
        super().on_message_complete()

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
        """Start the timer for the client to read the response, or else to send the next request head."""
        self._waits_since = self.loop.time()
        self._check_later(self.transport.get_write_buffer_size(), NUM_CHECKS)

    def _check_later(self, num_unread: int, num_checks: int) -> None:
        self._stop_waiting()
        patience_s = HEAD_S if self._is_receiving else self.timeout_keep_alive
        if num_unread:
            patience_s = STALL_S
        self._timer = self.loop.call_later(patience_s / NUM_CHECKS, self._check, num_unread, num_checks - 1)

    def _check(self, num_unread: int, num_checks: int) -> None:
        """Disconnect a client that is idle, or has read none of `num_unread` unsent bytes, once no checks are left."""
        if self.transport.get_write_buffer_size() < num_unread:
            self._wait()
            return
        if num_checks:
            self._check_later(num_unread, num_checks)
            return
        if num_unread:
            LOG.warning("a client read nothing for %g s and was disconnected", STALL_S)
        self.transport.abort()

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _make_room(self) -> None:
        idle = [
            connection
            for connection in self.connections
            if isinstance(connection, Connection) and connection.is_idle and connection is not self
        ]
        if idle:
            oldest = next(eviction_order(idle, lambda peer: peer.host, lambda peer: peer._waits_since))
            self.connections.discard(oldest)
            oldest.transport.abort()


MAX_FRAMES = 1024  # frames per message; limited because even empty frames need memory
PART_BYTES = 1024  # bytes parsed in one pass: at most 170 frames
TURN_FRAMES = 64  # frames or messages after which other connections are served
MAX_CONTROL = 200  # pings, pongs and small fragments per second; if there are more, the connection is closed
CLOSE_S = 10.0  # time to send the remaining data before closing
LINGER_S = 1.0  # delay between refusal and closing, because unread data would reset the connection and lose the refusal
POLICY = 1008  # RFC 6455, section 7.4.1


class LimitedWebSocket(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket with limits on frames and messages.

    At shutdown, the application closes it, not uvicorn. Received data is parsed part by part. Parsing and reading are
    paused while a message is waiting for the application.
    """

    _last_pong: Sequence[bytes] = ()  # pending pong for a client that does not read

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._unparsed = bytearray()  # at most one read of the transport
        self._next: asyncio.Handle | None = None  # the call that parses the next part
        self._control = EventRate(self.loop, MAX_CONTROL)
        self._small = EventRate(self.loop, MAX_SMALL)
        self._reads = Reads(self.loop)
        self._num_frames = self._num_received = 0
        self._is_refused = False  # further data is ignored

    def shutdown(self) -> None:
        """Do nothing for a running session: the application ends it, and uvicorn waits for a limited time."""
        if not self.handshake_complete:
            super().shutdown()

    async def run_asgi(self) -> None:
        await super().run_asgi()
        # Closing waits until all data is sent, which never happens if the client does not read.
        self.loop.call_later(CLOSE_S, self.transport.abort)

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        self._unparsed += data
        self._reads.add(len(data))
        if self._next is None and self._reads.are_tiny and self.handshake_complete:
            self.transport.pause_reading()
            self._next = self.loop.call_later(TINY_DELAY_S, self._parse)
        if self._next is None:
            self._parse()

    async def receive(self) -> Any:
        self._num_received += 1
        if not self._num_received % TURN_FRAMES:
            await asyncio.sleep(0)
        message = await self.queue.get()
        if self.read_paused and self.queue.empty():
            self.read_paused = False
            self._parse_later()
        return message

    async def send(self, message: Any) -> None:
        await super().send(message)
        if message["type"] == "websocket.close" and message.get("code") == POLICY:
            self._ignore()
        elif message["type"] == "websocket.close":
            # the client's close frame may follow messages that the application does not receive
            self._parse_later()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._next is not None:
            self._next.cancel()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        frames = [event for event in self.conn.events if isinstance(event, Frame)]
        kinds = [_kind(frame) for frame in frames if len(frame.data) < SMALL_BYTES]
        self._num_frames += len(frames)
        self._control.add(kinds.count("control"))
        self._small.add(kinds.count("message"))
        if self._control.is_over:
            self._refuse(f"at most {MAX_CONTROL} pings, pongs and small fragments are accepted per second")
        else:
            super().handle_events()

    def handle_ping(self) -> None:
        """Answer pings; while the client does not read, keep only the last pong (RFC 6455, 5.5.3)."""
        if self.writable.is_set() or self.conn.close_rcvd is not None:
            super().handle_ping()
        else:
            self._last_pong = self.conn.data_to_send()[-1:] or self._last_pong

    def resume_writing(self) -> None:
        super().resume_writing()
        pongs = self._last_pong
        self._last_pong = ()
        if pongs and not (self.close_sent or self.transport.is_closing()):
            self.transport.write(b"".join(pongs))

    def handle_cont(self, event: Frame) -> None:
        super().handle_cont(event)
        if len(self.frames) > MAX_FRAMES:
            self._refuse(f"a message must have at most {MAX_FRAMES} frames")

    def _parse_later(self) -> None:
        if self._next is None:
            self._next = self.loop.call_soon(self._parse)

    def _parse(self) -> None:
        """Parse received data as far as the limits allow; resume reading once all is parsed."""
        self._next = None
        last = self._num_frames + TURN_FRAMES
        while self._unparsed and not self.transport.is_closing() and (self.close_sent or not self.read_paused):
            if self._small.is_over:
                self._next = self.loop.call_at(self._small.ends_at, self._parse)
                break
            if self._num_frames >= last:
                self._next = self.loop.call_soon(self._parse)
                break
            data = bytes(self._unparsed[:PART_BYTES])
            del self._unparsed[:PART_BYTES]
            super().data_received(data)
        if not self.transport.is_closing():
            if self._unparsed or (self.read_paused and not self.close_sent):
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()

    def _refuse(self, why: str) -> None:
        """Close the connection, because the client exceeded a limit."""
        self.conn.events_received()
        if not self.close_sent:
            self.conn.fail(POLICY, why)
            self.queue.put_nowait({"type": "websocket.disconnect", "code": POLICY, "reason": why})
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.close_sent = True
        self._ignore()

    def _ignore(self) -> None:
        """Discard all further data, and close the connection soon."""
        self._is_refused = True
        self.frames = []
        self._unparsed.clear()
        self.transport.resume_reading()
        if self.close_timer is not None:
            self.close_timer.cancel()
        self.close_timer = self.loop.call_later(LINGER_S, self.transport.close)


def _kind(frame: Frame) -> Literal["control", "message"]:
    """Return the category in which a small frame is counted; fragments count as control frames."""
    is_whole = frame.fin and frame.opcode in (Opcode.TEXT, Opcode.BINARY)
    return "message" if is_whole or frame.opcode is Opcode.CLOSE else "control"


def settings(max_message_bytes: int) -> dict[str, Any]:
    """Return uvicorn's WebSocket options. Compression is off, because it costs memory and time per client."""
    return {"ws": LimitedWebSocket, "ws_max_size": max_message_bytes, "ws_per_message_deflate": False}
