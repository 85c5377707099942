"""A caller's connection: limits on what it may send, before its key is known."""

import asyncio
import logging
import socket
from collections import Counter
from typing import Any, NoReturn, cast

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from stretto_gateway.caller import network

LOG = logging.getLogger("stretto_gateway")
HEAD_S = 60.0  # in which the head of a request has to come
STALL_S = 30.0  # in which a reader has to take some of what was written
NUM_LOOKS = 10  # in that time: a loop that was held up looks at its clock first, and only then at what came meanwhile
MAX_HEAD_BYTES, MAX_HEADERS = 65_536, 100  # of a request; its trailers are counted with its head
MAX_PIPELINED = 8  # requests that wait while another one is answered
# Reads below SMALL_BYTES, and requests, in a second. What comes beyond waits in the kernel, which joins small writes.
SMALL_BYTES, MAX_SMALL = 1024, 500
# Parts of a body: each costs time, however small it is. Beyond FREE_PARTS they have to be this large on average.
FREE_PARTS, MIN_PART_BYTES = 4096, 16
UNSENT_BYTES = 16_384  # of an answer, in the kernel and as many here: what a reader takes does not show beyond them
TOO_LONG = f"The head of a request has at most {MAX_HEAD_BYTES} bytes."


class Rate:
    """The number of things that came in the current second of a loop's clock."""

    def __init__(self, loop: asyncio.AbstractEventLoop, limit: int):
        self._loop, self._limit = loop, limit
        self._count, self.ends_at = 0, 0.0  # ends_at: when the second is over, by the loop's clock

    @property
    def is_over(self) -> bool:
        """Return True if more came in this second than the limit."""
        return self._count > self._limit and self._loop.time() < self.ends_at

    def add(self, num: int = 1) -> None:
        """Count `num` more."""
        now = self._loop.time()
        if now >= self.ends_at:
            self._count, self.ends_at = 0, now + 1.0
        self._count += num


class PacedFlow(FlowControl):
    """uvicorn's flow control, with a second reason to stop reading."""

    _is_held = False

    def hold(self, loop: asyncio.AbstractEventLoop, until: float) -> None:
        """Read nothing before `until`, by the loop's clock."""
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
    """A request of HTTP/1.0, which has no chunks: the end of the connection ends a body of unknown length."""

    _is_open_ended = False

    async def send(self, message: Any) -> None:
        headers = dict(message.get("headers", ()))
        if not self.response_started and b"content-length" not in headers and message["status"] not in (204, 304):
            self.chunked_encoding = False  # before uvicorn decides on chunks
            self.expected_content_length = 0
            await super().send(message)
            self._is_open_ended = True
            return
        if self._is_open_ended and message["type"] == "http.response.body":
            self.expected_content_length = len(message.get("body", b""))
        await super().send(message)


class Connection(HttpToolsProtocol):
    """uvicorn's connection, which is closed where the head of a request takes too long, or too much memory.

    So it is where nobody takes what was answered, and after the answers that are owed where too many requests come at
    once, or something that is none behind them: nothing is written amid an answer.

    Of more than `limit_concurrency` those make room that have no request, of the host that has most of them the oldest
    first. Where all have one, uvicorn answers 503.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._num_kept_bytes = 0  # at most so many of what came are kept, and not handed on yet
        self._num_head_bytes = self._num_headers = 0  # of the request that comes
        self._num_parts = self._num_body_bytes = 0  # of its body
        self._refusal = ""  # why the parser was stopped
        self._small = Rate(self.loop, MAX_SMALL)
        self._timer: asyncio.TimerHandle | None = None  # runs where there is no request, or nobody takes an answer
        self._waits_since = 0.0  # by the loop's clock
        self._answered: RequestResponseCycle | None = None  # the request whose turn it is, or was
        self._is_ending = False  # what comes now is not looked at

    @property
    def is_idle(self) -> bool:
        """Whether there is no request in it."""
        return self._answered is None or self._answered.response_complete

    @property
    def host(self) -> str:
        """Whose it is: an address, of IPv6 the /64 network."""
        return "" if self.client is None else network(self.client[0])

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(asyncio.Transport, transport))
        self.flow = PacedFlow(self.transport)
        self.transport.set_write_buffer_limits(UNSENT_BYTES)
        made = self.transport.get_extra_info("socket")
        if made is not None and made.family in (socket.AF_INET, socket.AF_INET6):
            # Otherwise the kernel takes up to 4 MB, 87 s of speech, from an answer that nobody reads.
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
        self._wait()
        if self.limit_concurrency is not None and len(self.connections) >= self.limit_concurrency:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)
        if self._answered is not None and not self.is_idle:  # uvicorn tells the last request that came
            self._answered.disconnected = True
            self._answered.message_event.set()

    def data_received(self, data: bytes) -> None:
        if self._is_ending:
            return
        self._num_kept_bytes += len(data)
        self._small.add(len(data) < SMALL_BYTES)
        super().data_received(data)
        if self._num_kept_bytes > MAX_HEAD_BYTES and not self._is_ending and not self.transport.is_closing():
            self.send_400_response(TOO_LONG)
        if self._small.is_over and isinstance(self.flow, PacedFlow) and not self.transport.is_closing():
            self.flow.hold(self.loop, self._small.ends_at)

    def handle_websocket_upgrade(self) -> None:
        if self.flow.write_paused or not self.is_idle:  # that writing is paused the WebSocket would not be told
            self.send_400_response("A WebSocket is opened where all answers before it are taken.")
            return
        self._stop_waiting()
        super().handle_websocket_upgrade()

    def send_400_response(self, msg: str) -> None:
        """Send status 400 if it answers what came; if other answers are due, the connection ends after those."""
        msg = self._refusal or msg
        answered, came = self._answered, self.cycle
        if self.is_idle or (came is answered and came.more_body and not came.response_started):
            super().send_400_response(msg)
            return
        self._is_ending = True
        if self.pipeline and came.more_body:
            self.pipeline.popleft()  # it will never be whole
        last = self.pipeline[0][0] if self.pipeline else answered
        assert last is not None
        last.keep_alive = False

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= MAX_PIPELINED:
            raise OverflowError  # which stops the parser, and is no answer to anything
        self._num_head_bytes = self._num_headers = self._num_parts = self._num_body_bytes = 0
        self._small.add()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._num_headers += 1
        if self._num_headers > MAX_HEADERS:
            self._refuse(f"A request has at most {MAX_HEADERS} headers.")
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
            self._refuse(f"After {FREE_PARTS} chunks, those of a body have at least {MIN_PART_BYTES} bytes on average.")
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
            cycle.__class__ = PlainCycle  # WORKAROUND(uvicorn 0.54): it answers HTTP/1.0 in chunks
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
        """Wait for the reader of what was written; where all of it is taken, for the next head."""
        self._waits_since = self.loop.time()
        self._look_later(self.transport.get_write_buffer_size(), NUM_LOOKS)

    def _look_later(self, num_unread: int, num_looks: int) -> None:
        self._stop_waiting()
        patience_s = STALL_S if num_unread else HEAD_S
        self._timer = self.loop.call_later(patience_s / NUM_LOOKS, self._look, num_unread, num_looks - 1)

    def _look(self, num_unread: int, num_looks: int) -> None:
        """Wait on where less than `num_unread` bytes are left, or so many looks."""
        if self.transport.get_write_buffer_size() < num_unread:
            self._wait()
            return
        if num_looks:
            self._look_later(num_unread, num_looks)
            return
        if num_unread:
            LOG.warning("a reader took nothing for %g s and was left", STALL_S)
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
