"""Channel to Twilio: converts the events of a realtime session to the messages of a media stream."""

import base64
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.websockets import WebSocket

from stretto_gateway import g711
from stretto_gateway.admission import REQUEST
from stretto_gateway.answers import ApiError
from stretto_gateway.realtime.channel import Channel
from stretto_gateway.socket_session import new_id

LOG = logging.getLogger("stretto_gateway")
FRAME_BYTES = g711.RATE // 50  # 20 ms
MAX_LOGGED = 10  # errors of a call that are logged
Listener = Callable[[str, dict[str, Any]], Awaitable[None]]


class CallChannel(Channel):
    """Channel of one call. Twilio buffers audio, and returns each mark once playback has reached it."""

    def __init__(self, socket: WebSocket, stall_s: float):
        super().__init__(socket, stall_s)
        self.stream_sid = ""
        self.listener: Listener | None = None
        self._tail = b""  # less than a frame
        self._num_logged = 0
        self._last_mark = ""  # name of the mark after all audio that Twilio may not have played yet; empty for none

    @property
    def is_playing(self) -> bool:
        """True if Twilio may not have played all audio yet."""
        return bool(self._last_mark)

    async def send(self, event_type: str, **fields: Any) -> None:
        """Send the messages for an event of the session; raise SessionEnd if Twilio has disconnected."""
        match event_type:
            case "response.output_audio.delta":
                await self._play(base64.b64decode(fields["delta"]))
            case "response.output_audio.done":
                await self._mark()
            # Both events follow the last audio of an interrupted reply. Otherwise, more audio would follow the message.
            case "response.done" if fields["response"]["status"] == "cancelled":
                await self._clear()
            case "conversation.item.truncated":
                await self._clear()
            case "error":
                self._log(fields["error"]["message"])
            case "response.done" if error := (fields["response"]["status_details"] or {}).get("error"):
                self._log(f"the reply failed: {error['message']}")
        if self.listener is not None:
            await self.listener(event_type, fields)

    async def send_error(self, error: ApiError, event_id: str | None = None) -> None:
        """Log an error, because a media stream has no message for it. End the session if there are too many."""
        self._count_error()
        await self.send("error", error=error.record()["error"])

    def note_mark(self, name: str) -> None:
        """Note that Twilio has played, or cleared, the audio before a mark."""
        if name == self._last_mark:
            self._last_mark = ""

    def _log(self, message: str) -> None:
        self._num_logged += 1
        if self._num_logged <= MAX_LOGGED:
            LOG.warning("%s: %s", REQUEST.get().request_id, message)

    async def _play(self, data: bytes) -> None:
        """Send the whole 20 ms frames of `data`, and keep the rest for the next call."""
        data = self._tail + data
        end = len(data) // FRAME_BYTES * FRAME_BYTES
        self._tail = data[end:]
        self._last_mark = self._last_mark or new_id("mark")
        for begin in range(0, end, FRAME_BYTES):
            await self._send_media(data[begin : begin + FRAME_BYTES])

    async def _mark(self) -> None:
        """Send the rest of a reply, and a mark after it."""
        if self._tail:
            data = self._tail
            self._tail = b""
            await self._send_media(data)
        self._last_mark = new_id("mark")
        await self._send_message("mark", mark={"name": self._last_mark})

    async def _clear(self) -> None:
        self._tail = b""
        if self.is_playing:
            self._last_mark = ""
            await self._send_message("clear")

    async def _send_media(self, data: bytes) -> None:
        await self._send_message("media", media={"payload": base64.b64encode(data).decode()})

    async def _send_message(self, event_type: str, **fields: Any) -> None:
        record = {"event": event_type, "streamSid": self.stream_sid} | fields
        await self._taken(self._socket.send_text(json.dumps(record)))
