"""The marker `perth`: a filter whose output Resemble AI's public detector recognises.

The published watermark (resemble-perth) comes from a network that changes the level of 128 bands below 2 kHz. Its gains
are almost the same for every signal: over 14 signals, one constant gain per band is 99.7 % of the change. A filter with
these gains therefore sets the same mark, without look-ahead, at any sample rate (docs/marking.md).
"""

from functools import cache

import numpy as np

# Mean gain of each band in dB, averaged over noise with the spectrum and rhythm of speech. Computed with the weights in
# resemble-perth 1.0.1; MIT License, Copyright (c) 2025 Resemble AI.
GAINS_DB = np.array([
    -2.96, -2.85, 2.44, 2.32, -2.12, -2.16, -2.08, 2.05, 1.98, 1.87, 1.96, 1.91, 1.83, -1.79, -1.89, -1.68,
    1.85, -1.74, -1.75, -1.84, -1.77, -1.84, -1.83, -1.82, -1.71, 1.67, 1.86, 1.79, 1.82, 1.80, 1.71, -1.73,
    -1.75, -1.82, -1.55, 1.74, -1.58, -1.70, -1.65, 1.72, 1.84, 1.72, -1.77, -1.76, -1.71, 1.70, 1.73, -1.53,
    -1.57, 1.45, -1.63, -1.36, 1.74, 1.75, -1.61, -1.69, -1.68, -1.62, -1.67, -1.75, -1.66, 1.77, 1.80, 1.76,
    -1.56, -1.70, -1.79, -1.80, -1.59, 1.73, 1.71, 1.61, 1.75, 1.64, 1.81, 1.65, -1.63, -1.75, -1.74, -1.70,
    -1.60, 1.63, 1.73, 1.82, 1.67, -1.63, -1.79, -1.73, -1.59, 1.68, 1.74, -1.62, -1.66, -1.63, 1.71, -1.62,
    -1.66, -1.58, 1.82, 1.73, -1.41, -1.77, -1.76, -1.76, -1.63, 1.46, -1.65, 1.58, 1.67, 1.72, 1.70, 1.69,
    1.69, 1.66, 1.67, 1.53, -1.64, -1.74, -1.73, -1.65, -1.67, -1.70, -1.68, -1.61, -1.75, -1.64, 1.73, 1.88,
])  # fmt: skip
BAND_HZ = 15.625
TAPS_S = 0.032
FADE = 4  # the last quarter of the taps fades out


@cache
def taps(sample_rate: int) -> np.ndarray:
    """Return the filter's impulse response, float64 [n], for a sample rate in Hz.

    It is the minimum-phase filter of the gains, so that it does not delay the audio: nearly all of its energy lies in
    the first millisecond.
    """
    size = 1 << int(np.ceil(np.log2(sample_rate)))
    frequencies = np.fft.rfftfreq(size, 1 / sample_rate)
    bands = BAND_HZ * np.arange(len(GAINS_DB) + 1)
    gains_db = np.interp(frequencies, bands, np.append(GAINS_DB, 0.0), right=0.0)
    cepstrum = np.fft.irfft(gains_db * np.log(10) / 20)
    cepstrum[1 : size // 2] *= 2  # the causal part twice, instead of both sides: minimum phase
    cepstrum[size // 2 + 1 :] = 0
    response: np.ndarray = np.fft.irfft(np.exp(np.fft.rfft(cepstrum)))[: round(TAPS_S * sample_rate)]
    num_faded = len(response) // FADE
    response[-num_faded:] *= 0.5 * (1 + np.cos(np.pi * np.arange(num_faded) / num_faded))
    return response


@cache
def _spectrum(sample_rate: int, size: int) -> np.ndarray:
    return np.fft.rfft(taps(sample_rate), size)


class PerthStream:
    """State of the filter for one utterance: its last samples.

    Each frame of the codec is filtered by a transform of its own, whose input depends only on the frame's position. The
    output is therefore the same in every split into whole frames.
    """

    name = "perth"

    def __init__(self, sample_rate: int, samples_per_frame: int) -> None:
        self._rate = sample_rate
        self._frame = samples_per_frame
        self._num_past = len(taps(sample_rate)) - 1
        self._size = 1 << (self._num_past + samples_per_frame - 1).bit_length()
        self._past = np.zeros(self._num_past)  # samples before the frame that is being filled
        self._begun = np.zeros(0)  # samples of that frame, which have been returned

    @property
    def num_bytes(self) -> int:
        return self._past.nbytes + self._begun.nbytes

    def push(self, pcm: np.ndarray, is_final: bool) -> np.ndarray:
        """Return the marked samples, float32 [n], of samples [n]; the interface is that of `MarkerStream`."""
        if not len(pcm):
            return pcm
        num_before = len(self._begun)
        samples = np.concatenate([self._begun, pcm.astype(np.float64)])
        num_whole = len(samples) // self._frame * self._frame
        num_frames = -(-len(samples) // self._frame)
        padded = np.concatenate([self._past, samples, np.zeros(num_frames * self._frame - len(samples))])
        windows = np.lib.stride_tricks.sliding_window_view(padded, self._num_past + self._frame)[:: self._frame]
        spectra = np.fft.rfft(windows[:num_frames], self._size) * _spectrum(self._rate, self._size)
        filtered = np.fft.irfft(spectra, self._size)[:, self._num_past : self._num_past + self._frame].ravel()
        self._past = padded[num_whole : num_whole + self._num_past].copy()
        self._begun = samples[num_whole:].copy()
        return filtered[num_before : len(samples)].astype(np.float32)


class Perth:
    """Marker (`Marker`) that adds Perth's watermark to generated speech."""

    def stream(self, sample_rate: int, samples_per_frame: int) -> PerthStream:
        return PerthStream(sample_rate, samples_per_frame)


MARKER = Perth()
