"""Audio that a client is sending."""

import asyncio
import io
import wave
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stretto_client import ModelProfile
from stretto_gateway.admission import Held
from stretto_gateway.answers import ApiError, mismatch
from stretto_gateway.config import Limits
from stretto_wyoming.fields import AudioFormat

LIVE_RATES = range(8_000, 192_001)  # rates in Hz of `SpeechClient.transcribe_live`


class ReceivedAudio:
    """Samples of a recording, which may be incomplete.

    Their total size is limited. Unread samples count as held memory until `close`.
    """

    def __init__(self, form: AudioFormat, limits: Limits, held: Held):
        self.form = form
        self._max_bytes = limits.max_body_bytes
        self._held = held
        self._unread = bytearray()
        self._num_bytes = 0
        self._failure: ApiError | None = None
        self._is_ended = False
        self._is_closed = False
        self._changed = asyncio.Event()

    def can_be_live(self, profile: ModelProfile) -> bool:
        """Return True if a model can transcribe the audio while it is recorded."""
        is_plain = self.form.width == np.int16().itemsize and self.form.channels == 1
        return profile.transcribes_live and is_plain and self.form.rate in LIVE_RATES

    def add(self, form: AudioFormat, data: bytes) -> None:
        """Append samples. If they are too many or have another format, reading raises ApiError later."""
        if self._is_closed or self._failure is not None:
            return
        try:
            if str(form) != str(self.form):
                raise mismatch("audio-chunk", f"the format of audio-start ({self.form})", str(form))
            self._num_bytes += len(data)
            if self._num_bytes > self._max_bytes:
                raise mismatch("audio", f"at most {self._max_bytes} bytes", f"{self._num_bytes} bytes")
            self._held.add(len(data))
        except ApiError as error:
            self._failure = error
        else:
            self._unread += data
        self._changed.set()

    def end(self) -> None:
        """Mark the audio as complete."""
        self._is_ended = True
        self._changed.set()

    async def pieces(self) -> AsyncIterator[NDArray[Any]]:
        """Yield samples, int16 [n], as they arrive; raise ApiError if some were refused."""
        is_complete = False
        while not is_complete:
            is_complete = await self._wait()
            yield np.frombuffer(self._taken(len(self._unread) // 2 * 2), "<i2")

    async def file(self) -> bytes:
        """Return the complete audio as a WAV file; raise ApiError if some was refused."""
        while not await self._wait():
            pass
        file = io.BytesIO()
        with wave.open(file, "wb") as writer:
            writer.setframerate(self.form.rate)
            writer.setsampwidth(self.form.width)
            writer.setnchannels(self.form.channels)
            frame_bytes = self.form.width * self.form.channels
            writer.writeframes(self._unread[: len(self._unread) // frame_bytes * frame_bytes])
        return file.getvalue()

    def close(self) -> None:
        """Discard unread samples, and ignore later ones."""
        self._is_closed = True
        self._taken(len(self._unread))

    async def _wait(self) -> bool:
        """Wait for a change; return True if the audio is complete; raise ApiError if some was refused."""
        if not self._is_ended:
            await self._changed.wait()
            self._changed.clear()
        if self._failure is not None:
            raise self._failure
        return self._is_ended

    def _taken(self, num_bytes: int) -> bytes:
        data = bytes(self._unread[:num_bytes])
        del self._unread[:num_bytes]
        self._held.remove(num_bytes)
        return data
