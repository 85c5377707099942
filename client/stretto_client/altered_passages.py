"""Passages of a clip that are not the generated speech: replaced, inserted or cut.

Windows of the clip are correlated with the generated samples at the expected position and, if that fails, up to two
minutes before and after it. The correlation does not depend on the level, and survives mp3 and Opus.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float32]
RATE = 8_000  # sample rate of the compared samples, in Hz
WINDOW = round(0.2 * RATE)
HOP = round(0.05 * RATE)
LAG = round(0.01 * RATE)  # maximum change of offset between successive windows, in samples
SEARCHED = 120 * RATE  # samples around the last position in which a window is searched
HOPS_PER_SEARCH = 4
MIN_WINDOWS = 3  # minimum length of a run
MIN_CORRELATION = 0.6
MIN_FOUND_CORRELATION = 0.8
SILENCE_DB = -40.0  # level of silence, relative to the loudest windows
SILENCE_MARGIN = 3.0  # factor by which an encoder may raise the level of silence
EDGE = round(0.05 * RATE)  # window with which the edges of runs are located
TOLERANCE = round(0.1 * RATE)  # shorter differences are not reported

Change = Literal["replaced", "inserted", "cut"]


@dataclass(frozen=True)
class Passage:
    """Altered passage: its times in the clip, and in the generated speech, in seconds."""

    change: Change
    start_s: float
    end_s: float
    generated_start_s: float
    generated_end_s: float

    def __str__(self) -> str:
        missing_s = self.generated_end_s - self.generated_start_s
        if self.change == "cut":
            return f"cut at {self.start_s:.2f} s: {missing_s:.2f} s are missing"
        return f"{self.change} from {self.start_s:.2f} to {self.end_s:.2f} s"


@dataclass
class Run:
    """Successive windows of the clip, samples [start, end), that match the generated speech.

    Attributes:
        first_offset: Position of the first window in the generated speech minus that in the clip, in samples.
        offset: The same for the last window.
    """

    start: int
    end: int
    first_offset: int
    offset: int
    num_windows: int = 1


def correlations(window: Samples, samples: Samples) -> NDArray[np.float64]:
    """Return the correlation, from -1 to 1, of a window [W] at each position in samples [n], [n - W + 1]."""
    size = 1 << (len(samples) - 1).bit_length()
    wide = samples.astype(np.float64)
    spectrum = np.fft.rfft(wide, size) * np.conj(np.fft.rfft(window.astype(np.float64), size))
    products = np.fft.irfft(spectrum, size)[: len(samples) - len(window) + 1]
    sums = np.concatenate([[0.0], np.cumsum(np.square(wide))])
    energies = np.maximum(sums[len(window) :] - sums[: -len(window)], 1e-9 * sums[-1] + 1e-12)
    norms = np.sqrt(energies * max(float(np.square(window, dtype=np.float64).sum()), 1e-12))
    return np.asarray(products / norms)


def levels(samples: Samples) -> Samples:
    """Return the root mean square [n] of windows of WINDOW samples, of which one begins every HOP samples."""
    sums = np.concatenate([[0.0], np.cumsum(np.square(samples, dtype=np.float64))])
    starts = np.arange(0, max(1, len(samples) - WINDOW + 1), HOP)
    ends = np.minimum(starts + WINDOW, len(samples))
    result: Samples = np.sqrt(np.maximum(sums[ends] - sums[starts], 0.0) / WINDOW).astype(np.float32)
    return result


def silence_level(samples: Samples) -> float:
    """Return the level below which a window is silent."""
    return float(np.quantile(levels(samples), 0.95)) * 10 ** (SILENCE_DB / 20)


class Comparison:
    """Comparison of a clip with generated speech, both as samples at RATE [n]."""

    def __init__(self, clip: Samples, generated: Samples):
        self._clip = clip
        # Encoders begin with silence, and files may end early.
        self._generated = np.concatenate([np.zeros(WINDOW), generated, np.zeros(WINDOW)]).astype(np.float32)
        self._silence = silence_level(clip)
        self._generated_silence = silence_level(generated)
        self._runs = list[Run]()
        self._num_failed = 0

    def passages(self) -> list[Passage]:
        """Return the altered passages, in the order of the clip."""
        for start in range(0, len(self._clip) - WINDOW + 1, HOP):
            self._compare(start)
        runs = in_order([run for run in self._runs if run.num_windows >= MIN_WINDOWS])
        for run in runs:
            self._extend(run)
        last_offset = len(self._generated) - WINDOW - len(self._clip)
        ends = [Run(0, 0, WINDOW, WINDOW, 0), *runs, Run(len(self._clip), 0, last_offset, 0, 0)]
        return [passage for before, after in pairwise(ends) for passage in self._between(before, after)]

    def _compare(self, start: int) -> None:
        """Add a window of the clip to the last run or to a new one; skip it if it matches no generated speech."""
        window = self._clip[start : start + WINDOW]
        run = self._runs[-1] if self._runs else None
        is_silent = level(window) < self._silence
        offset = None
        if run is not None:
            offset = self._follow(start, window, run.offset, is_silent)
            if offset is not None and not self._num_failed:
                run.end = start + WINDOW
                run.offset = offset
                run.num_windows += 1
                return
        if offset is None and not is_silent and self._num_failed % HOPS_PER_SEARCH == 0:
            offset = self._search(start, window, start if run is None else run.end + run.offset)
        if offset is None or is_silent:
            self._num_failed += 1
            return
        self._runs.append(Run(start, start + WINDOW, offset, offset))
        self._num_failed = 0

    def _follow(self, start: int, window: Samples, offset: int, is_silent: bool, lag: int = LAG) -> int | None:
        """Return the offset, within `lag` of `offset`, at which the generated speech matches a window, or None."""
        first = max(0, start + offset - lag)
        samples = self._generated[first : max(0, start + offset + lag + len(window))]
        if len(samples) < len(window):
            return None
        if is_silent:
            return offset if level(samples) < SILENCE_MARGIN * self._generated_silence else None
        likeness = correlations(window, samples)
        best = int(likeness.argmax())
        return first + best - start if likeness[best] >= MIN_CORRELATION else None

    def _search(self, start: int, window: Samples, position: int) -> int | None:
        """Return the offset near a position at which the generated speech matches a window; None if it does not."""
        first = max(0, position - SEARCHED)
        samples = self._generated[first : position + SEARCHED]
        if len(samples) < WINDOW:
            return None
        likeness = correlations(window, samples)
        best = int(likeness.argmax())
        return first + best - start if likeness[best] >= MIN_FOUND_CORRELATION else None

    def _extend(self, run: Run) -> None:
        """Extend or shorten a run so that it covers exactly the generated speech around it."""
        run.start += EDGE
        while run.start >= EDGE and self._is_generated(run.start - EDGE, run.first_offset):
            run.start -= EDGE // 2
        run.end -= EDGE
        while run.end + EDGE <= len(self._clip) and self._is_generated(run.end, run.offset):
            run.end += EDGE // 2

    def _is_generated(self, start: int, offset: int) -> bool:
        """Return True if a short window of the clip is generated speech at this offset."""
        window = self._clip[start : start + EDGE]
        return self._follow(start, window, offset, level(window) < self._silence, LAG // 4) is not None

    def _between(self, before: Run, after: Run) -> Iterator[Passage]:
        """Yield the altered passage between two runs, if there is one."""
        start = before.end
        end = after.start
        if start > end:  # both runs extend into the speech of the other one
            start = end = (start + end) // 2
        first = start + before.offset
        last = end + after.first_offset
        is_inserted = end - start > TOLERANCE
        is_missing = last - first > TOLERANCE and self._is_audible(first, last)
        is_edge = not (before.num_windows and after.num_windows)  # encoders add silence there
        is_silent = not (levels(self._clip[start:end]) >= self._silence).any()
        if is_inserted and is_missing:
            yield self._passage("replaced", start, end, first, last)
        elif is_inserted and not (is_silent and is_edge):
            yield self._passage("inserted", start, end, first, first)
        elif is_missing:
            yield self._passage("cut", start, start, first, last)

    def _is_audible(self, first: int, last: int) -> bool:
        """Return True if samples [first, last) of the generated speech are not all silent."""
        samples = self._generated[max(0, first) : max(0, last)]
        return len(samples) > 0 and bool((levels(samples) >= self._generated_silence).any())

    def _passage(self, change: Change, start: int, end: int, first: int, last: int) -> Passage:
        of_generated = [max(0, position - WINDOW) / RATE for position in (first, last)]
        return Passage(change, start / RATE, end / RATE, *of_generated)


def in_order(runs: list[Run]) -> list[Run]:
    """Return the longest series of runs that have the same order in the generated speech as in the clip."""
    lengths = list[int]()
    previous = list[int | None]()
    for number, run in enumerate(runs):
        earlier = [
            index
            for index in range(number)
            if runs[index].end + runs[index].offset <= run.start + run.first_offset + WINDOW
        ]
        best = max(earlier, key=lengths.__getitem__, default=None)
        previous.append(best)
        lengths.append(run.num_windows + (0 if best is None else lengths[best]))
    last = max(range(len(runs)), key=lengths.__getitem__, default=None)
    chain = list[Run]()
    while last is not None:
        chain.append(runs[last])
        last = previous[last]
    return chain[::-1]


def level(samples: Samples) -> float:
    """Return the root mean square of samples; 0 for none."""
    return float(np.sqrt(np.square(samples, dtype=np.float64).mean())) if len(samples) else 0.0


def altered_passages(clip: Samples, generated: Samples) -> list[Passage]:
    """Return the passages of a clip that are not the generated speech, both mono samples at RATE [n].

    A clip that is too short to be compared counts as replaced.
    """
    if len(clip) < WINDOW or len(generated) < WINDOW:
        return [Passage("replaced", 0.0, len(clip) / RATE, 0.0, len(generated) / RATE)]
    return Comparison(clip, generated).passages()
