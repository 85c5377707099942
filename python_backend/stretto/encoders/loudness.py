"""Integrated loudness of recordings (ITU-R BS.1770-4), with the same filters and blocks as the package pyloudnorm."""

import math
from collections.abc import Callable
from functools import cache

import numpy as np

# BS.1770 K-weighting as two filters by Robert Bristow-Johnson: gain in dB (shelf only), Q, frequency in Hz.
SHELF = (4.0, math.sqrt(0.5), 1500.0)
HIGH_PASS = (0.5, 38.0)
BLOCK_S = 0.4
OVERLAP = 0.75
ABSOLUTE_GATE = -70.0
RELATIVE_GATE = -10.0
OFFSET = -0.691
NUM_TAPS = 8192  # within this many samples at 24 kHz, the high-pass filter's response falls by a factor of 1e-35


def _shelf(rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the numerator and denominator of the filter that boosts high frequencies."""
    gain, q, frequency = SHELF
    level = 10 ** (gain / 40)
    w = 2 * math.pi * frequency / rate
    cos = math.cos(w)
    slope = 2 * math.sqrt(level) * math.sin(w) / (2 * q)
    up = level + 1
    down = level - 1
    above = level * np.array([up + down * cos + slope, -2 * (down + up * cos), up + down * cos - slope])
    return above, np.array([up - down * cos + slope, 2 * (down - up * cos), up - down * cos - slope])


def _high_pass(rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the numerator and denominator of the filter that removes low frequencies."""
    q, frequency = HIGH_PASS
    w = 2 * math.pi * frequency / rate
    cos = math.cos(w)
    alpha = math.sin(w) / (2 * q)
    return np.array([(1 + cos) / 2, -(1 + cos), (1 + cos) / 2]), np.array([1 + alpha, -2 * cos, 1 - alpha])


@cache
def _response(make: Callable[[int], tuple[np.ndarray, np.ndarray]], rate: int) -> np.ndarray:
    """Return the impulse response of a filter, float64 [NUM_TAPS]."""
    above, below = make(rate)
    above = above / below[0]
    below = below / below[0]
    response = np.zeros(NUM_TAPS + 2)
    for at in range(NUM_TAPS):
        new = above[at] if at < len(above) else 0.0
        response[at + 2] = new - below[1] * response[at + 1] - below[2] * response[at]
    return response[2:]


def loudness(pcm: np.ndarray, rate: int) -> float:
    """Return the integrated loudness, in LUFS, of a recording, float32 [n] of at least 0.4 s.

    It is -inf if the whole recording is below the absolute gate.
    """
    size = 1 << (len(pcm) + NUM_TAPS).bit_length()
    for make in (_shelf, _high_pass):  # the output of each filter is rounded to float32
        spectrum = np.fft.rfft(pcm, size) * np.fft.rfft(_response(make, rate), size)
        pcm = np.fft.irfft(spectrum, size)[: len(pcm)].astype(np.float32)
    step = BLOCK_S * (1 - OVERLAP)
    number = round((len(pcm) / rate - BLOCK_S) / step) + 1
    begins = [int(BLOCK_S * (at * (1 - OVERLAP)) * rate) for at in range(number)]
    ends = [int(BLOCK_S * (at * (1 - OVERLAP) + 1) * rate) for at in range(number)]
    sums = [np.square(pcm[begin:end]).sum() for begin, end in zip(begins, ends, strict=True)]
    powers = np.array(sums, np.float64) / (BLOCK_S * rate)

    def level(power: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore"):
            return OFFSET + 10 * np.log10(power)

    audible = powers[level(powers) >= ABSOLUTE_GATE]
    if not len(audible):
        return -math.inf
    gate = level(audible.mean()) + RELATIVE_GATE
    return float(level(powers[(level(powers) > gate) & (level(powers) > ABSOLUTE_GATE)].mean()))


def normalised(pcm: np.ndarray, rate: int, level: float) -> np.ndarray:
    """Scale a recording, float32 [n] of at least 0.4 s, to `level` LUFS; return it unchanged if it is silent."""
    gain = 10 ** ((level - loudness(pcm, rate)) / 20)
    return (pcm * gain).astype(np.float32) if 0 < gain < math.inf else pcm
