"""Files of speech that are sent once they are complete, and stay in memory until then."""

from collections.abc import AsyncGenerator

from starlette.datastructures import State

from stretto_gateway.answers import ApiError
from stretto_gateway.encoding import wav_header
from stretto_gateway.events import closing
from stretto_gateway.speech_request import SpeechFields

PART_BYTES = 65_536
WHOLE_HOLD_S = 20.0  # `hold_s` for a file, which is not played before it is complete
WAV_HEADER_BYTES = len(wav_header(1))


class AudioBudget:
    """Byte budget for audio that stays in memory until all of it is generated; an error names the field `param`."""

    def __init__(self, num_bytes: int, param: str, message: str):
        self._left = num_bytes
        self._param = param
        self._message = message

    def reserve(self, num_bytes: int) -> None:
        """Take `num_bytes` from the budget; raise ApiError if the budget is exceeded."""
        self._left -= num_bytes
        if self._left < 0:
            raise ApiError(413, f"{self._param}: {self._message}", self._param)


async def whole_file(
    item: SpeechFields, parts: AsyncGenerator[bytes, None], room: AudioBudget, asked: State
) -> bytearray:
    """Return the file whose `parts` are generated; the header of a WAV file gets its length."""
    audio = bytearray()
    async with closing(parts):
        async for data in parts:
            room.reserve(len(data))
            asked.keep(4 * len(data) // 3)  # as base64, or with the space for further parts
            audio += data
    if item.response_format == "wav":
        audio[:WAV_HEADER_BYTES] = wav_header(item.rate, len(audio) - WAV_HEADER_BYTES)
    return audio


async def parts_of(data: bytes | bytearray) -> AsyncGenerator[bytes, None]:
    """Yield `data` in parts. Data that the client has not yet read counts as held memory."""
    for begin in range(0, len(data), PART_BYTES):
        yield bytes(data[begin : begin + PART_BYTES])
