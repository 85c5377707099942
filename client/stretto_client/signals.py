"""Faults of speech that are detected without knowing its words: silence, hum, clipping, an abrupt end, a wrong speed.

Samples are measured in blocks of 60 ms, so that the faults do not depend on how the samples are divided into chunks.
"""

from collections.abc import Iterator
from math import ceil
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stretto_contract import speech_checks
from stretto_contract.finish_reasons import Limit
from stretto_contract.speech_checks import USUAL_SIGNALS, SignalLimits
from stretto_contract.spoken_units import pauses_s

BLOCK_S = 0.06
END_S = 0.02
NUM_BANDS = 8
LOWEST_BIN = 6  # lowest bin in use of a block's spectrum: 100 Hz
DYNAMIC_DB = 30.0  # range below the loudest band; quieter bands count as this level
SMOOTHING = 0.2
SILENT_DB = -50.0  # loudest block that counts as silence
CLIPPED = 0.999  # smallest magnitude of a clipped sample
FULL_SCALE = 32_768


class Fault(NamedTuple):
    """Fault of speech.

    Attributes:
        start_s: Time at which it begins, in seconds from the beginning of the speech.
        found_s: Duration of the speech at which the fault was detected, in seconds.
    """

    name: speech_checks.Fault
    start_s: float
    found_s: float


class SignalMeter:
    """Meter of the samples of one text, as they arrive.

    Attributes:
        num_loud: Number of blocks that are not silent.
    """

    def __init__(self, text: str, sample_rate: int, limits: SignalLimits = USUAL_SIGNALS):
        self._silence_s = limits.silence_s + pauses_s(text)
        self._sample_rate = sample_rate
        self._limits = limits
        self._size = max(1, round(BLOCK_S * sample_rate))
        self._window = np.hanning(self._size)
        self._edges = np.geomspace(LOWEST_BIN, self._size // 2 + 1, NUM_BANDS + 1).astype(int)[:-1]
        self._end = np.zeros(0, np.float32)  # the last 20 ms
        self._unmeasured = np.zeros(0, np.float32)
        self._num_blocks = 0
        self.num_loud = 0
        self._num_clipped = 0
        self._num_silent = 0  # silent blocks up to now
        self._num_steady = 0  # blocks up to now with a steady spectrum
        self._mean = np.zeros(NUM_BANDS)  # bands of the steady blocks, in dB
        self._peak_db = -np.inf
        self._reported = set[speech_checks.Fault]()
        self._shortest_s, self._longest_s = limits.durations_s(text)

    @property
    def num_measured(self) -> int:
        return self._num_blocks * self._size

    def push(self, pcm: NDArray[Any]) -> Iterator[Fault]:
        """Measure the next samples [n] (floating-point in [-1, 1], or int16), and yield the faults that end in them."""
        samples = as_floats(pcm)
        self._end = np.concatenate([self._end, samples])[-round(END_S * self._sample_rate) :]
        samples = np.concatenate([self._unmeasured, samples])
        num_whole = len(samples) // self._size * self._size
        self._unmeasured = samples[num_whole:]
        for block in samples[:num_whole].reshape(-1, self._size):
            yield from self._measure(block)

    def _measure(self, block: NDArray[np.float32]) -> Iterator[Fault]:
        level_db = level(block)
        self._num_clipped += num_clipped(block)
        self._peak_db = max(self._peak_db, level_db)
        is_silent = level_db < SILENT_DB
        bands = self._bands_of(block)
        is_steady = float(np.abs(bands - self._mean).mean()) < self._limits.hum_db
        self._mean = self._mean + SMOOTHING * (bands - self._mean) if is_steady else bands
        self._num_blocks += 1
        self.num_loud += not is_silent
        self._num_silent = self._num_silent + 1 if is_silent else 0
        self._num_steady = self._num_steady + 1 if is_steady and not is_silent else 0
        if self._num_silent == ceil(self._silence_s / BLOCK_S):
            yield self._long("silence", self._num_silent)
        if self._num_steady == ceil(self._limits.hum_s / BLOCK_S):
            yield self._long("hum", self._num_steady)
        if self.num_loud * BLOCK_S > self._longest_s:
            yield from self._once("too_slow")
        if self._num_clipped > self._limits.clipped_share * 2 * self._longest_s * self._sample_rate:
            yield from self._once("clipping")  # too much, however much silence follows

    def _bands_of(self, block: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the level of a block in each of NUM_BANDS bands of equal width on a logarithmic scale, in dB."""
        power = np.square(np.abs(np.fft.rfft(block * self._window)))
        bands_db = 10 * np.log10(np.add.reduceat(power, self._edges) + 1e-9)
        audible: NDArray[np.float64] = np.maximum(bands_db, bands_db.max() - DYNAMIC_DB)
        return audible

    def _long(self, name: speech_checks.Fault, num_blocks: int) -> Fault:
        """Return a fault that covers the last `num_blocks` blocks."""
        block_s = self._size / self._sample_rate
        return Fault(name, (self._num_blocks - num_blocks) * block_s, self._num_blocks * block_s)

    def end(self, limit: Limit | None = None, has_whole_text: bool = True) -> Iterator[Fault]:
        """Yield the faults of the speech as a whole, after its last samples, the worst one first.

        Args:
            limit: Limit that ended the speech, which then counts neither as abrupt nor as too fast.
            has_whole_text: False for a piece of the text, which never counts as too fast.
        """
        num_samples = self.num_measured + len(self._unmeasured)
        end_s = num_samples / self._sample_rate
        if limit in ("ceiling", "repetition"):
            yield Fault(limit, end_s, end_s)
        if limit is None and has_whole_text and self.num_loud * BLOCK_S < self._shortest_s:
            yield Fault("too_fast", 0.0, end_s)
        if limit is None and len(self._end) and self._is_loud_at_end():
            yield Fault("abrupt_end", end_s, end_s)
        if self._num_clipped + num_clipped(self._unmeasured) > self._limits.clipped_share * num_samples:
            yield from self._once("clipping", end_s)

    def _once(self, name: speech_checks.Fault, found_s: float | None = None) -> Iterator[Fault]:
        """Yield a fault of the speech as a whole, unless it was reported before."""
        if name not in self._reported:
            self._reported.add(name)
            yield Fault(name, 0.0, self.num_measured / self._sample_rate if found_s is None else found_s)

    def _is_loud_at_end(self) -> bool:
        return level(self._end) > max(SILENT_DB, self._peak_db - self._limits.end_db)


def num_clipped(pcm: NDArray[np.float32]) -> int:
    """Return the number of clipped samples."""
    return int(np.count_nonzero(np.abs(pcm) >= CLIPPED))


def as_floats(pcm: NDArray[Any]) -> NDArray[np.float32]:
    """Return samples (floating-point in [-1, 1], or int16) as float32 in [-1, 1]."""
    return pcm.astype(np.float32) / FULL_SCALE if pcm.dtype == np.int16 else pcm.astype(np.float32)


def level(pcm: NDArray[np.float32]) -> float:
    """Return the root mean square of samples [n] in dB, where a full-scale square wave has 0 dB."""
    return float(10 * np.log10(np.mean(np.square(pcm, dtype=np.float64)) + 1e-12))
