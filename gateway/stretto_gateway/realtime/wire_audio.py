"""Audio of a session as the client sends and receives it, in the session's formats."""

from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from stretto_gateway import g711
from stretto_gateway.encoding import DEFAULT_RATE
from stretto_gateway.realtime.settings import Format

SAMPLE_BYTES = 2


class Resampler:
    """Streaming resampler of FFmpeg. The samples do not depend on how the input is split into pieces.

    It holds back 2 ms of telephone audio. soxr, which the gateway uses elsewhere, holds back up to 75 ms.
    """

    def __init__(self, rate: int, to_rate: int):
        self._rate = rate
        self._resampler = av.AudioResampler("s16", "mono", to_rate)

    def resample(self, pcm: NDArray[np.int16]) -> NDArray[np.int16]:
        """Add samples, int16 [n], and return the samples that are ready, int16 [m]."""
        if not len(pcm):
            return pcm
        frame = av.AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono")
        frame.sample_rate = self._rate
        return self.resample_frame(frame)

    def close(self) -> NDArray[np.int16]:
        """Return the remaining samples, int16 [m]."""
        return self.resample_frame(None)

    def resample_frame(self, frame: av.AudioFrame | None) -> NDArray[np.int16]:
        """Add a frame, whose channels are mixed to one, or None at the end; return the samples that are ready."""
        parts = [resampled.to_ndarray()[0] for resampled in self._resampler.resample(frame)]
        return np.concatenate([np.zeros(0, np.int16), *parts])


class WireReader:
    """Reader of a client's audio, which converts it to 16-bit samples at 24 kHz.

    Clients cut their audio anywhere. The first byte of an incomplete sample, and the state of the resampler, are kept
    for the next piece.
    """

    def __init__(self, form: Format):
        self.form = form
        self._half_sample = b""
        self._resampler: Resampler | None = None  # created with the first piece of G.711

    def read(self, data: bytes) -> bytes:
        """Return the samples, pcm16 at 24 kHz, that are complete with the bytes `data`."""
        law = self.form.law
        if law is not None:
            self._resampler = self._resampler or Resampler(g711.RATE, DEFAULT_RATE)
            return little_endian(self._resampler.resample(g711.decode(law, data)))
        data = self._half_sample + data
        end = len(data) // SAMPLE_BYTES * SAMPLE_BYTES
        self._half_sample = data[end:]
        return data[:end]

    def end(self) -> bytes:
        """Return the remaining samples, pcm16 at 24 kHz, without an incomplete one. The next piece begins anew."""
        tail = b"" if self._resampler is None else little_endian(self._resampler.close())
        self._half_sample = b""
        self._resampler = None
        return tail


def little_endian(pcm: NDArray[Any]) -> bytes:
    """Return the bytes of samples, int16 [n]."""
    return pcm.astype("<i2", copy=False).tobytes()


def read_recording(form: Format, data: bytes) -> bytes:
    """Return a whole recording in the format `form` as pcm16 at 24 kHz, without an incomplete sample at its end."""
    reader = WireReader(form)
    return reader.read(data) + reader.end()


def written(form: Format, pcm: NDArray[Any]) -> bytes:
    """Return samples, int16 [n] at the rate of the format `form`, as the client receives them."""
    return little_endian(pcm) if form.law is None else g711.encode(form.law, pcm)


def written_recording(form: Format, pcm: bytes) -> bytes:
    """Return a recording, pcm16 at 24 kHz, in the format `form`."""
    if form.law is None:
        return pcm
    resampler = Resampler(DEFAULT_RATE, g711.RATE)
    parts = [resampler.resample(np.frombuffer(pcm, "<i2").astype(np.int16)), resampler.close()]
    return written(form, np.concatenate(parts))
