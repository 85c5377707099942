"""Channel to the client of a realtime session. A subclass may play the speech for the client."""

from typing import Any

from stretto_gateway.answers import refused
from stretto_gateway.realtime.settings import Format, Settings
from stretto_gateway.socket_session import SocketChannel


class Channel(SocketChannel):
    """Channel of a realtime session, whose client plays the speech."""

    @property
    def num_unplayed(self) -> int:
        """Number of samples at 24 kHz that wait to be played; 0 if the client plays them."""
        return 0

    def check_format(self, param: str, form: Format) -> None:
        """Raise ApiError if the channel carries no audio of a format; `param` is the field with the format."""

    def check_formats(self, settings: Settings) -> None:
        """Raise ApiError if the channel carries no audio of a session's formats."""

    async def clear_output(self, _: Any = None) -> None:
        """Stop playing, by the client's request; raise ApiError if the client itself plays."""
        raise refused(
            "type", "no event of WebRTC calls (over a WebSocket the client plays)", "output_audio_buffer.clear"
        )
