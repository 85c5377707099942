"""Alterations of recordings: functions from samples at the codec's rate, float32 [n], to as many samples."""

import io
from collections.abc import Callable

import av
import numpy as np
import soxr

from stretto.codecs.tiny.codec import SAMPLE_RATE

Alteration = Callable[[np.ndarray], np.ndarray]


def louder(decibels: float) -> Alteration:
    """Return an alteration of the level. Samples beyond full scale are clipped."""
    return lambda pcm: (pcm * np.float32(10 ** (decibels / 20))).clip(-1, 1)


def inverted(pcm: np.ndarray) -> np.ndarray:
    return -pcm


def noisy(decibels: float, rng: np.random.Generator) -> Alteration:
    """Return an alteration that adds white noise of a level in dBFS."""
    return lambda pcm: pcm + np.float32(10 ** (decibels / 20)) * rng.standard_normal(len(pcm), np.float32)


def without_bass(lowest_hz: float) -> Alteration:
    """Return an alteration that removes the frequencies below a limit."""

    def cut(pcm: np.ndarray) -> np.ndarray:
        spectrum = np.fft.rfft(pcm)
        spectrum[: int(lowest_hz * len(pcm) / SAMPLE_RATE)] = 0
        return np.fft.irfft(spectrum, len(pcm)).astype(np.float32)

    return cut


def resampled(sample_rate: int) -> Alteration:
    """Return an alteration that removes what a lower sample rate, in Hz, cannot represent."""

    def resample(pcm: np.ndarray) -> np.ndarray:
        return _fitted(soxr.resample(soxr.resample(pcm, SAMPLE_RATE, sample_rate), sample_rate, SAMPLE_RATE), len(pcm))

    return resample


def coded(codec: str, container: str, sample_rate: int = SAMPLE_RATE, bit_rate: int | None = None) -> Alteration:
    """Return an alteration by a lossy codec of FFmpeg. Rates are in Hz and bits per second."""

    def code(pcm: np.ndarray) -> np.ndarray:
        samples = soxr.resample(pcm, SAMPLE_RATE, sample_rate).clip(-1, 1)
        file = io.BytesIO()
        with av.open(file, "w", format=container) as output:
            stream = output.add_stream(codec, sample_rate, layout="mono")
            assert isinstance(stream, av.AudioStream)
            if bit_rate:
                stream.bit_rate = bit_rate
            frame = av.AudioFrame.from_ndarray((samples * 32767).astype(np.int16)[None], "s16", "mono")
            frame.sample_rate = sample_rate
            resampler = av.AudioResampler(stream.format, "mono", sample_rate, stream.codec_context.frame_size or None)
            for part in (*resampler.resample(frame), *resampler.resample(None), None):
                output.mux(stream.encode(part))
        file.seek(0)
        with av.open(file, "r") as recorded:
            planes = av.AudioResampler("flt", "mono", sample_rate)
            frames = [*recorded.decode(audio=0), None]
            parts = [each.to_ndarray()[0] for frame in frames for each in planes.resample(frame)]
        return _fitted(soxr.resample(np.concatenate(parts), sample_rate, SAMPLE_RATE), len(pcm))

    return code


def _fitted(pcm: np.ndarray, samples: int) -> np.ndarray:
    return np.pad(pcm, (0, max(0, samples - len(pcm))))[:samples]
