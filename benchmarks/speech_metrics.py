"""What a listener gets, computed from the times at which chunks arrived. Pure; names as in benchmarks/README.md."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

SILENCE_DBFS = -50.0


@dataclass(slots=True)
class Trace:
    """One request as its client saw it; times in seconds on one clock.

    arrivals: when each response that carries pcm came; durations: seconds of audio in each.
    sound: seconds from the start of the audio to the first sample above -50 dBFS, None if there is none.
    unguided_frames: frames of a reply that asked for guidance, and which were drawn without. is_refused: the server was
    full, and began nothing of it.
    """

    sent: float
    arrivals: list[float] = field(default_factory=list)
    durations: list[float] = field(default_factory=list)
    sound: float | None = None
    finished: float | None = None
    error: str | None = None
    unguided_frames: int = 0
    is_refused: bool = False

    @property
    def audio_s(self) -> float:
        """Seconds of audio received."""
        return sum(self.durations)

    @property
    def succeeded(self) -> bool:
        """Ended without error, and can be heard."""
        return self.error is None and self.finished is not None and self.sound is not None

    def add(self, now: float, pcm: np.ndarray, sample_rate: int) -> None:
        """Record a chunk of mono pcm [n] that came at `now`."""
        if self.sound is None:
            loud = np.flatnonzero(np.abs(pcm) > 10 ** (SILENCE_DBFS / 20))
            if loud.size:
                self.sound = self.audio_s + loud[0] / sample_rate
        self.arrivals.append(now)
        self.durations.append(len(pcm) / sample_rate)


def underrun_s(trace: Trace) -> float:
    """The longest time that a player which starts with the first chunk has to wait for any chunk."""
    played = np.concatenate([[0.0], np.cumsum(trace.durations)[:-1]])
    return float(np.max(np.asarray(trace.arrivals) - trace.arrivals[0] - played, initial=0.0))


def percentiles(name: str, values: Sequence[float]) -> dict[str, float]:
    """`name_p50`, `_p95` and, from 100 values on, `_p99`."""
    points = (50, 95, 99) if len(values) >= 100 else (50, 95)
    return {f"{name}_p{p}": round(float(np.percentile(values, p)), 5) for p in points} if len(values) else {}


def summarise(traces: Sequence[Trace], wall_s: float) -> dict[str, float]:
    """The metrics of one run of `wall_s` seconds."""
    good = [trace for trace in traces if trace.succeeded]
    several = [underrun_s(trace) for trace in good if len(trace.arrivals) > 1]
    summary = {
        "requests": len(traces),
        "success": len(good) / max(len(traces), 1),
        "audio_throughput": round(sum(trace.audio_s for trace in good) / wall_s, 3),
        "requests_per_s": round(len(good) / wall_s, 3),
    }
    summary |= percentiles("audio_ttfp", [trace.arrivals[0] - trace.sent for trace in good])
    summary |= percentiles(
        "first_sound", [trace.arrivals[0] - trace.sent + trace.sound for trace in good if trace.sound is not None]
    )
    summary |= percentiles("itl", [gap for trace in good for gap in np.diff(trace.arrivals)])
    summary |= percentiles(
        "audio_rtf", [(trace.finished - trace.sent) / trace.audio_s for trace in good if trace.finished is not None]
    )
    summary |= percentiles("audio_underrun", several)
    for limit_ms in (50, 100, 200):
        if several:
            summary[f"C{limit_ms}"] = round(float(np.mean(np.asarray(several) <= limit_ms / 1000)), 4)
    return summary
