"""Level of load: a number of concurrent streams, each of which requests its next text after its last reply."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import comb

import numpy as np

from stretto_client.capacity.traces import Trace, underrun_s

PLAYER_BUFFER_S = 0.1  # a player buffers this much audio, so a chunk that is later than this causes a gap
MOST_LATE = 0.05  # share of replies that may begin later than the limit, which is one of the 95th percentile
CONFIDENCE = 0.95
SPREAD_S = 1.0  # the streams of a level begin within this time, not at once
RETRY_S = 0.25  # pause of a stream after a request that was refused or failed
DRAIN_S = 5.0  # time for replies in progress to end after the last request of a level

Speak = Callable[[Trace, str, int], Awaitable[Trace]]
"""Function that requests a text, and records its times. The last argument is the number of the stream."""


@dataclass(frozen=True, slots=True)
class Target:
    """Requirements of a level.

    Attributes:
        first_audio_s: Latest first audio of 95 % of the replies, in seconds after the request.
        num_requests: Number of requests after which a level ends.
        most_gaps: Largest share of replies in which a player may pause.
    """

    first_audio_s: float
    num_requests: int
    most_gaps: float = 0.0


@dataclass(frozen=True, slots=True)
class Level:
    """Measured level.

    Attributes:
        traces: Requests that were sent while all streams were running, and that have begun or are late.
        audio_per_s: Seconds of audio that arrived per second while all streams were running.
        ended: Time at which the level ended, on the clock of the traces.
    """

    streams: int
    traces: list[Trace]
    target: Target
    audio_per_s: float
    ended: float

    @property
    def replies(self) -> list[Trace]:
        """Requests that were neither refused nor failed."""
        return [trace for trace in self.traces if trace.error is None]

    @property
    def first_audio_s(self) -> list[float]:
        """Seconds until the first audio of each reply. For a reply without audio, the seconds that it has waited."""
        return [trace.first_s if trace.arrivals else self.ended - trace.sent for trace in self.replies]

    @property
    def first_sound_s(self) -> list[float]:
        """Seconds until the first audible sample of each reply, if the reply is played at once."""
        return [trace.first_s + trace.sound for trace in self.replies if trace.sound is not None]

    @property
    def real_time_factors(self) -> list[float]:
        """Seconds from a request to its last sample ÷ seconds of its audio, for each complete reply."""
        return [
            (trace.finished - trace.sent) / trace.audio_s
            for trace in self.replies
            if trace.finished is not None and trace.arrivals
        ]

    @property
    def num_refused(self) -> int:
        return sum(trace.is_refused for trace in self.traces)

    @property
    def num_gaps(self) -> int:
        """Number of replies in which a player would have paused."""
        return sum(has_gap(trace) for trace in self.replies)

    @property
    def num_late(self) -> int:
        """Number of replies that began later than the limit."""
        return sum(seconds > self.target.first_audio_s for seconds in self.first_audio_s)

    @property
    def chars_per_s(self) -> float:
        """Characters that are spoken per second while all streams are running."""
        complete = [trace for trace in self.replies if trace.finished is not None]
        audio_s = sum(trace.audio_s for trace in complete)
        return self.audio_per_s * sum(trace.num_chars for trace in complete) / audio_s if audio_s else 0.0

    def fault(self) -> str | None:
        """Return the reason why the server does not serve this many streams well; None if it does."""
        errors = [trace.error for trace in self.traces if trace.error is not None]
        if self.num_refused:
            return f"the server refused {self.num_refused} of {len(self.traces)} requests: {errors[0]}"
        if errors:
            return f"{len(errors)} of {len(self.traces)} requests failed: {errors[0]}"
        if silent := sum(trace.finished is not None and not trace.arrivals for trace in self.traces):
            return f"{silent} of {len(self.traces)} replies had no audio"
        if self.num_gaps > self.target.most_gaps * len(self.traces):
            return f"{self.num_gaps} of {len(self.traces)} replies would have paused"
        if not self.traces:
            return "no reply has begun in time"
        if self.num_late > MOST_LATE * len(self.traces):
            return f"first audio p95 {percentile(self.first_audio_s, 95):.2f} s, above {self.target.first_audio_s:g} s"
        return None


def has_gap(trace: Trace) -> bool:
    """Return True if a player that holds back PLAYER_BUFFER_S would have paused."""
    return bool(trace.arrivals) and underrun_s(trace) > PLAYER_BUFFER_S


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest of the values that is at least as large as `percent` % of them."""
    return float(np.percentile(values, percent, method="inverted_cdf"))


def p95_bound(values: Sequence[float]) -> float | None:
    """Return a bound that is above the 95th percentile of all requests with probability CONFIDENCE, from a sample.

    The result is the k-th smallest value. It is below the true percentile only if at least k of the n values are. It is
    None for fewer than 59 values, because even the largest is not large enough.
    """
    n = len(values)
    below = 0.0  # probability that at most k values are below the true percentile
    for k, value in enumerate(sorted(values)):
        below += comb(n, k) * (1 - MOST_LATE) ** k * MOST_LATE ** (n - k)
        if below >= CONFIDENCE:
            return value
    return None


class LevelRun:
    """Measurement of a level in progress."""

    def __init__(self, speak: Speak, texts: Iterator[str], streams: int, target: Target):
        self._speak = speak
        self._texts = texts
        self._streams = streams
        self._target = target
        self._traces: list[Trace] = []
        self._num_begun = 0
        self._all_begun: float | None = None  # time at which the last stream began
        self._enough = asyncio.Event()

    async def run(self, seconds: float) -> Level:
        """Measure until there are enough requests, or too many faults, for at most `seconds` and the time to drain."""
        spread_s = min(SPREAD_S, seconds / 4)
        streams = [
            asyncio.create_task(self._stream(number, spread_s * number / self._streams))
            for number in range(self._streams)
        ]
        try:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._enough.wait(), seconds)
            stopped = time.perf_counter()
            self._enough.set()
            if self._level(stopped).fault() is None:
                await asyncio.wait(streams, timeout=DRAIN_S)
        finally:
            for stream in streams:
                stream.cancel()
            ends = await asyncio.gather(*streams, return_exceptions=True)
        for end in ends:
            if isinstance(end, Exception):
                raise end
        return self._level(stopped)

    async def _stream(self, number: int, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        self._num_begun += 1
        if self._num_begun == self._streams:
            self._all_begun = time.perf_counter()
        while not self._enough.is_set():
            text = next(self._texts)
            trace = Trace(sent=time.perf_counter(), num_chars=len(text))
            self._traces.append(trace)
            await self._speak(trace, text, number)
            self._check()
            if trace.error is not None:
                await asyncio.sleep(RETRY_S)

    def _check(self) -> None:
        """End the level if there are enough requests, or if further requests cannot make up for its faults."""
        now = time.perf_counter()
        level = self._level(now)
        complete = [trace for trace in level.traces if trace.finished is not None]
        num_requests = self._target.num_requests
        has_fault = (
            level.num_late > MOST_LATE * num_requests
            or level.num_gaps > self._target.most_gaps * num_requests
            or any(trace.error is not None for trace in level.traces)
        )
        if has_fault or len(complete) >= num_requests:
            self._enough.set()

    def _level(self, stopped: float) -> Level:
        """Return the results of the level so far; no request was sent after the time `stopped`."""
        now = time.perf_counter()
        begun = self._all_begun or now
        traces = [
            trace
            for trace in self._traces
            if trace.sent >= begun
            and (trace.arrivals or trace.finished is not None or now - trace.sent > self._target.first_audio_s)
        ]
        audio_s = sum(
            duration
            for trace in self._traces
            for arrival, duration in zip(trace.arrivals, trace.durations, strict=True)
            if begun <= arrival <= stopped
        )
        span_s = stopped - begun
        return Level(self._streams, traces, self._target, audio_s / span_s if span_s > 0 else 0.0, now)
