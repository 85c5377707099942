"""WebSocket protocol of uvicorn with limits on frames and messages."""

import asyncio
from collections.abc import Sequence
from typing import Any, Literal

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame, Opcode

from stretto_gateway.connection import TINY_DELAY_S, Rate, Reads

MAX_FRAMES = 1024  # per message, because even empty frames need memory
PART_BYTES = 1024  # bytes parsed at a time: at most 170 frames
TURN_FRAMES = 64  # frames or messages after which other connections are served
SMALL_BYTES = 1024  # frames below this size are counted, because parsing costs more than their bytes
MAX_CONTROL = 200  # pings, pongs and small fragments per second; above, the connection is closed
MAX_SMALL = 500  # small messages per second; excess ones wait for the next second
CLOSE_S = 10.0  # time to send the remaining data at the end
LINGER_S = 1.0  # delay between refusal and closing, because unread data would reset the connection and lose the refusal
POLICY = 1008  # RFC 6455, section 7.4.1


class Socket(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket with limits on frames and messages. At shutdown the application closes it, not uvicorn.

    Received data is parsed part by part. While a message waits for the application, neither parsing nor reading
    continues.
    """

    _last_pong: Sequence[bytes] = ()  # pending pong for a client that does not read

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._unparsed = bytearray()  # at most one read of the transport
        self._next: asyncio.Handle | None = None  # the call that parses the next part
        self._control, self._small = Rate(self.loop, MAX_CONTROL), Rate(self.loop, MAX_SMALL)
        self._reads = Reads(self.loop)
        self._num_frames = self._num_received = 0
        self._is_refused = False  # further data is ignored

    def shutdown(self) -> None:
        """Do nothing for a running session, which the application ends; uvicorn waits for it, up to a limit."""
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
        """Answer pings; while the client does not read, keep only the last pong (RFC 6455, section 5.5.3)."""
        if self.writable.is_set() or self.conn.close_rcvd is not None:
            super().handle_ping()
        else:
            self._last_pong = self.conn.data_to_send()[-1:] or self._last_pong

    def resume_writing(self) -> None:
        super().resume_writing()
        pongs, self._last_pong = self._last_pong, ()
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
        """Parse received data as far as the limits allow, and resume reading once nothing is left."""
        self._next = None
        last = self._num_frames + TURN_FRAMES
        while self._unparsed and not self.transport.is_closing() and (self.close_sent or not self.read_paused):
            if self._small.is_over:
                self._next = self.loop.call_at(self._small.ends_at, self._parse)
                break
            if self._num_frames >= last:
                self._next = self.loop.call_soon(self._parse)
                break
            part = bytes(self._unparsed[:PART_BYTES])
            del self._unparsed[:PART_BYTES]
            super().data_received(part)
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
        self._is_refused, self.frames = True, []
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
    """Return uvicorn's WebSocket options; compression is off, because it costs memory and time per client."""
    return {"ws": Socket, "ws_max_size": max_message_bytes, "ws_per_message_deflate": False}
