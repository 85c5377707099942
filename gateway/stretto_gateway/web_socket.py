"""A caller's WebSocket: what it may send in one message, and how it ends with the gateway."""

from collections.abc import Sequence
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame

MAX_FRAMES = 1024  # of a message: they may be empty, and each takes memory
MAX_UNREAD = 4096  # messages that came at once, in what a transport reads at a time
CLOSE_S = 10.0  # for what is left to be sent at the end
POLICY = 1008  # RFC 6455, section 7.4.1


class Socket(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket, which the application ends when the gateway does, and not amid an answer."""

    _last_pong: Sequence[bytes] = ()  # which is owed to a client that takes nothing at present

    def shutdown(self) -> None:
        """Nothing, where a session runs: it knows of the end, and uvicorn waits for it, up to the limit that it has."""
        if not self.handshake_complete:
            super().shutdown()

    async def run_asgi(self) -> None:
        await super().run_asgi()
        # Closing waits for what is left to be sent: without an end, where nobody takes it.
        self.loop.call_later(CLOSE_S, self.transport.abort)

    def handle_ping(self) -> None:
        """Answer those that came; while the client takes nothing, the last of all alone (RFC 6455, section 5.5.3)."""
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
            self._leave(f"a message has at most {MAX_FRAMES} frames")

    def send_receive_event_to_app(self) -> None:
        super().send_receive_event_to_app()
        if self.queue.qsize() > MAX_UNREAD:
            self._leave(f"at most {MAX_UNREAD} messages wait")

    def _leave(self, why: str) -> None:
        self.frames = []
        if not self.close_sent:
            self.conn.fail(POLICY, why)
            self.handle_parser_exception()


def settings(max_message_bytes: int) -> dict[str, Any]:
    """What uvicorn is told of WebSockets. Compressed messages would take processor time and memory of each sender."""
    return {"ws": Socket, "ws_max_size": max_message_bytes, "ws_per_message_deflate": False}
