"""Telephone call: handler of Twilio's messages, which contain the caller's audio."""

import asyncio
from contextlib import suppress

from stretto_gateway.answers import ApiError, mismatch
from stretto_gateway.realtime.session import RealtimeSession
from stretto_gateway.socket_session import DONE, SessionEnd
from stretto_telephone.channel import CallChannel
from stretto_telephone.messages import read_message
from stretto_telephone.webhook_session import WebhookSession


class TelephoneCall:
    """Handler of Twilio's messages after a stream's start. The session has `stall_s` to finish after the call."""

    def __init__(self, session: RealtimeSession, channel: CallChannel, stall_s: float):
        self._session = session
        self._channel = channel
        self._stall_s = stall_s
        self._last_chunk = 0

    async def handle(self, message: str | bytes | None) -> None:
        """Handle a message, and log an invalid one as an error; raise SessionEnd if the call is over."""
        try:
            event, content = read_message(message)
            match event:
                case "media" if content.media.track == "inbound":
                    await self._hear(content.media.chunk, content.audio())
                case "mark":
                    self._channel.note_mark(content.mark.name)
                case "dtmf" if isinstance(self._session, WebhookSession):
                    self._session.answers.report("dtmf", digit=content.dtmf.digit)
                case "start":
                    raise mismatch("event", "one start in a stream", "another one")
                case "stop":
                    await self._finish()
        except ApiError as error:
            if error.code == "session_ended":  # by a full-duplex model
                raise SessionEnd(DONE, error.message) from None
            await self._channel.send_error(error)

    async def complete(self) -> None:
        await self._session.complete()

    def close(self) -> None:
        self._session.close()

    async def _hear(self, chunk: int, data: bytes) -> None:
        """Add audio to the session unless it is late, that is, a later chunk has arrived already."""
        if 0 < chunk <= self._last_chunk:
            return
        self._last_chunk = max(chunk, self._last_chunk)
        await self._session.hear(self._session.reader.read(data))

    async def _finish(self) -> None:
        if isinstance(self._session, WebhookSession):
            with suppress(TimeoutError):
                async with asyncio.timeout(self._stall_s):
                    await self._session.finish()
        raise SessionEnd(DONE)
