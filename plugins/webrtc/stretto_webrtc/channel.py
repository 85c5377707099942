"""Channel of a WebRTC call (events on the data channel, speech on the track), and the handler of its messages."""

import base64
from typing import Any

from stretto_gateway.answers import ApiError, refused
from stretto_gateway.realtime.channel import Channel
from stretto_gateway.realtime.session import RealtimeSession
from stretto_gateway.realtime.settings import PCM, Format, RealtimeSettings, Settings
from stretto_gateway.socket_session import DONE, SessionEnd
from stretto_webrtc.peer import Peer
from stretto_webrtc.playout import Playout


def check_track_format(param: str, form: Format) -> None:
    """Raise ApiError unless a format is PCM, because the gateway converts between the tracks' Opus and PCM."""
    if form.type != PCM:
        raise refused(param, f"{PCM} (the audio of a WebRTC call is on its own tracks, as Opus)", form.type)


def check_track_formats(settings: Settings) -> None:
    """Raise ApiError unless a session's formats are PCM."""
    check_track_format("session.audio.input.format", settings.audio.input.format)
    if isinstance(settings, RealtimeSettings):
        check_track_format("session.audio.output.format", settings.audio.output.format)


class TrackChannel(Channel):
    """Channel of one call. The gateway itself plays the speech, reports its end, and stops it.

    Args:
        stall_s: Maximum time for the caller to read an event, in seconds.
    """

    def __init__(self, peer: Peer, stall_s: float):
        super().__init__(peer, stall_s)
        self._playout: Playout = peer.playout

    @property
    def num_unplayed(self) -> int:
        return self._playout.num_queued

    def check_format(self, param: str, form: Format) -> None:
        check_track_format(param, form)

    def check_formats(self, settings: Settings) -> None:
        check_track_formats(settings)

    async def send(self, event_type: str, **fields: Any) -> None:
        """Send an event of the session, or play it if it is speech."""
        match event_type:
            case "response.output_audio.delta":
                await self._play(fields["response_id"], base64.b64decode(fields["delta"]))
                return
            case "response.output_audio.done":
                self._playout.end(fields["response_id"])
            # Both come after the last audio of an interrupted reply. Before it, more audio would follow.
            case "response.done" if fields["response"]["status"] == "cancelled":
                await self.clear_output()
            case "conversation.item.truncated":
                await self.clear_output()
        await super().send(event_type, **fields)

    async def clear_output(self, _: Any = None) -> None:
        if response_id := self._playout.clear():
            await super().send("output_audio_buffer.cleared", response_id=response_id)

    async def report_ends(self) -> None:
        """Send an event for each reply that has been played to its end."""
        while True:
            await super().send("output_audio_buffer.stopped", response_id=await self._playout.finished.get())

    async def _play(self, response_id: str, pcm: bytes) -> None:
        if response_id != self._playout.playing:
            await super().send("output_audio_buffer.started", response_id=response_id)
        await self._playout.add(response_id, pcm)


class TrackSession:
    """Handler of a caller's messages: events of the data channel, and samples of the audio track."""

    def __init__(self, session: RealtimeSession, channel: TrackChannel):
        self._session = session
        self._channel = channel
        self._refusal = ""  # message of the error that the last samples caused

    async def handle(self, message: str | bytes | None) -> None:
        """Handle an event, or samples as bytes (pcm16 at 24 kHz); raise SessionEnd if the session is over."""
        if not isinstance(message, bytes):
            await self._session.handle(message)
            return
        try:
            await self._session.hear(message)
            self._refusal = ""
        except ApiError as error:
            if error.code == "session_ended":  # a full-duplex model has ended it
                raise SessionEnd(DONE, error.message) from None
            if not self._refusal:  # the caller cannot stop the track, so one event is enough until samples are accepted
                self._refusal = error.message
                await self._channel.send_error(error)

    async def complete(self) -> None:
        await self._session.complete()
