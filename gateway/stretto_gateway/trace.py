"""Metrics and, if configured, spans of one response."""

import time
from typing import Any

from numpy.typing import NDArray
from prometheus_client import Counter

from stretto_client import SpeechEvent
from stretto_gateway.caller import REQUEST
from stretto_gateway.metrics import Metrics
from stretto_gateway.spans import Times

SILENCE = round(32768 * 10 ** (-50 / 20))  # -50 dBFS as a sample; anything below is inaudible


class Trace:
    """Metrics of a text response."""

    def __init__(self, metrics: Metrics, task: str):
        self._metrics, self._labels, self._request = metrics, (metrics.family(), task), REQUEST.get()
        for counter in self._counters:
            counter.labels(*self._labels)  # start at zero, so that Prometheus rates include the first increment
        self._begun_s = time.monotonic()
        self._started_s: float | None = None
        self._first_s: float | None = None  # time of the first audio or text
        self._report: dict[str, Any] = {}
        self._is_complete = False

    @property
    def _counters(self) -> tuple[Counter, ...]:
        return self._metrics.text_left, self._metrics.text_cut

    def start(self) -> None:
        """Record that the request has been admitted and is sent to the server."""
        self._started_s = time.monotonic()

    def add(self, event: SpeechEvent) -> None:
        """Record an event."""
        if self._first_s is None and event.text:
            self._first_s = time.monotonic()
        self._end(event)

    def _end(self, event: SpeechEvent) -> None:
        self._is_complete, self._report = event.is_final, event.report or {}

    def close(self) -> None:
        """Record the end of the response."""
        self._count_end()
        if self._is_complete:
            took_s = time.monotonic() - self._begun_s
            self._metrics.text_seconds.labels(*self._labels).observe(took_s, self._request.exemplar)
        self._tell_times()

    def _count_end(self) -> None:
        left, cut, *_ = self._counters
        if not self._is_complete:
            left.labels(*self._labels).inc()
        elif self._report.get("finish_reason") == "length":
            cut.labels(*self._labels).inc()

    def _tell_times(self) -> None:
        if self._metrics.spans is None:
            return
        ended_s = time.monotonic()
        started_s = ended_s if self._started_s is None else self._started_s
        times = Times(self._begun_s, started_s, self._first_s, ended_s, self._report)
        self._metrics.spans.add(self._request, self._labels, times, self._is_complete)


class SpeechTrace(Trace):
    """Metrics of a speech response."""

    def __init__(self, metrics: Metrics, task: str):
        super().__init__(metrics, task)
        self._audio_s = self._underrun_s = 0.0
        self._is_heard = False

    @property
    def _counters(self) -> tuple[Counter, ...]:
        return self._metrics.left, self._metrics.cut, self._metrics.silent, self._metrics.continuous

    @property
    def has_sound(self) -> bool:
        """True if any sample has been received."""
        return self._audio_s > 0

    def add(self, event: SpeechEvent) -> None:
        now_s = time.monotonic()
        if event.pcm is not None and len(event.pcm):
            if self._first_s is None:
                self._first_s = now_s
            played_s = now_s - self._first_s - self._underrun_s
            self._underrun_s += max(0.0, played_s - self._audio_s)
            self._audio_s += len(event.pcm) / event.sample_rate
            self._is_heard = self._is_heard or is_heard(event.pcm)
        self._end(event)

    def close(self) -> None:
        metrics, labels = self._metrics, self._labels
        if self._first_s is not None:
            metrics.first_audio.labels(*labels).observe(self._first_s - self._begun_s, self._request.exemplar)
        self._count_end()
        if self._is_complete:
            self._count_sound()
        self._tell_times()

    def _count_sound(self) -> None:
        metrics, labels = self._metrics, self._labels
        if not self._is_heard:
            metrics.silent.labels(*labels).inc()
        if not self.has_sound:
            return
        took_s = time.monotonic() - self._begun_s
        metrics.real_time.labels(*labels).observe(took_s / self._audio_s, self._request.exemplar)
        metrics.underrun.labels(*labels).observe(self._underrun_s, self._request.exemplar)
        if not self._underrun_s:
            metrics.continuous.labels(*labels).inc()


def is_heard(pcm: NDArray[Any]) -> bool:
    """Return True if any of the samples `pcm` (int16 [n]) is louder than SILENCE."""
    return max(int(pcm.max()), -int(pcm.min())) > SILENCE
