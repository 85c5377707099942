"""Times of a speech request as its client observes them."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stretto_client.errors import ClientError, ServerFull
from stretto_client.long_speech import Speech

SILENCE_DBFS = -50.0


@dataclass(slots=True)
class Trace:
    """One request as its client observes it; all times are in seconds on one clock.

    Attributes:
        arrivals: Time of each response with samples.
        durations: Seconds of audio in each of these responses.
        sound: Seconds from the start of the audio to the first sample above -50 dBFS; None if all is silent.
        finished: Time of the end; None while the request is in progress.
        unguided_frames: Frames generated without guidance although the request asked for it.
        guidance_scale: Guidance scale in the report; None without a report.
        is_refused: True if the server was full and did not start the request.
        num_chars: Length of the text in characters; 0 if it does not matter.
    """

    sent: float
    arrivals: list[float] = field(default_factory=list)
    durations: list[float] = field(default_factory=list)
    sound: float | None = None
    finished: float | None = None
    error: str | None = None
    unguided_frames: int = 0
    guidance_scale: float | None = None
    is_refused: bool = False
    num_chars: int = 0

    @property
    def audio_s(self) -> float:
        return sum(self.durations)

    @property
    def first_s(self) -> float:
        """Seconds from the request to its first samples."""
        return self.arrivals[0] - self.sent

    @property
    def succeeded(self) -> bool:
        """True if the request ended without an error and its audio is not silent."""
        return self.error is None and self.finished is not None and self.sound is not None

    def add(self, now: float, pcm: NDArray[Any], sample_rate: int) -> None:
        """Record a chunk of mono samples [n] that arrived at `now`."""
        if self.sound is None:
            loud = np.flatnonzero(np.abs(pcm) > 10 ** (SILENCE_DBFS / 20))
            if loud.size:
                self.sound = self.audio_s + float(loud[0]) / sample_rate
        self.arrivals.append(now)
        self.durations.append(len(pcm) / sample_rate)


def underrun_s(trace: Trace) -> float:
    """Return the longest time in seconds that a player waits for a late chunk if it starts with the first chunk."""
    played = np.concatenate([[0.0], np.cumsum(trace.durations)[:-1]])
    return float(np.max(np.asarray(trace.arrivals) - trace.arrivals[0] - played, initial=0.0))


def percentiles(name: str, values: Sequence[float]) -> dict[str, float]:
    """Return `name_p50`, `name_p95` and, if there are at least 100 values, `name_p99`."""
    points = (50, 95, 99) if len(values) >= 100 else (50, 95)
    return {f"{name}_p{p}": round(float(np.percentile(values, p)), 5) for p in points} if len(values) else {}


async def follow(trace: Trace, stream: Speech) -> Trace:
    """Record the events of `stream` in `trace` until it ends; an error is recorded too."""
    try:
        async for event in stream:
            if event.pcm is not None and event.pcm.size:
                trace.add(time.perf_counter(), event.pcm, event.sample_rate)
            if event.report is not None:
                trace.guidance_scale = event.report["guidance_scale"]
                if trace.guidance_scale != 1.0:
                    trace.unguided_frames = event.report["num_frames"] - event.report["guided_frames"]
    except ClientError as error:
        trace.error = str(error)
        trace.is_refused = isinstance(error, ServerFull)
    trace.finished = time.perf_counter()
    return trace
