"""Figures for Prometheus, by the names that speech servers share."""

import time
from collections.abc import Callable

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from stretto_client import SpeechEvent
from stretto_gateway.admission import Admission
from stretto_gateway.sessions import Sessions

SECONDS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)
RATIOS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.5, 2.0, 5.0)
GAPS = (0.0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
LABELS = ["family", "task"]
SILENCE = round(32768 * 10 ** (-50 / 20))  # -50 dBFS as a sample: what stays below is not heard


class Metrics:
    """A registry of one gateway. Seconds are wall time as the gateway sees them.

    family: what the server serves now.
    """

    def __init__(self, admission: Admission, sessions: Sessions, family: Callable[[], str]):
        self.registry, self._family = CollectorRegistry(), family
        self.first_audio = Histogram(
            "audio_ttfp_seconds", "To the first sound", LABELS, buckets=SECONDS, registry=self.registry
        )
        self.real_time = Histogram(
            "audio_rtf", "Seconds for a second of sound", LABELS, buckets=RATIOS, registry=self.registry
        )
        self.underrun = Histogram(
            "audio_underrun_seconds",
            "What a player that starts at once waits for later sound",
            LABELS,
            buckets=GAPS,
            registry=self.registry,
        )
        self.continuous = Counter(
            "audio_continuity_ok", "Utterances without such a wait", LABELS, registry=self.registry
        )
        self.silent = Counter("audio_skipped", "Utterances without sound", LABELS, registry=self.registry)
        self.cut = Counter("audio_cut", "Utterances that a limit ended", LABELS, registry=self.registry)
        self.left = Counter("audio_left", "Utterances that did not come to their end", LABELS, registry=self.registry)
        self.interrupted = Counter("audio_interrupted", "Replies into which the user spoke", registry=self.registry)
        self.answers = Counter("gateway_answers", "By route and status", ["route", "status"], registry=self.registry)
        active = Gauge("gateway_active", "Utterances that are being made", registry=self.registry)
        active.set_function(lambda: admission.num_active)
        waiting = Gauge("gateway_waiting", "Requests that wait for a place", registry=self.registry)
        waiting.set_function(lambda: admission.num_waiting)
        opened = Gauge("gateway_sessions", "WebSockets that are open", registry=self.registry)
        opened.set_function(lambda: sessions.num_open)

    def trace(self, task: str) -> "Trace":
        """What follows one utterance."""
        family = self._family()
        for counter in (self.continuous, self.silent, self.cut, self.left):
            counter.labels(family, task)  # at zero before the first of them, or no rate would have that one
        return Trace(self, family, task)

    def page(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self.registry)


class Trace:
    """Follows one utterance from the moment it is asked for."""

    def __init__(self, metrics: Metrics, family: str, task: str):
        self._metrics, self._labels = metrics, (family, task)
        self._begun_s = time.monotonic()
        self._first_s: float | None = None
        self._audio_s = self._underrun_s = 0.0
        self._is_complete = self._is_cut = self._is_heard = False

    @property
    def has_sound(self) -> bool:
        """Whether any sample has come."""
        return self._audio_s > 0

    def add(self, event: SpeechEvent) -> None:
        """Count an event."""
        now_s = time.monotonic()
        if event.pcm is not None and len(event.pcm):
            if self._first_s is None:
                self._first_s = now_s
            played_s = now_s - self._first_s - self._underrun_s
            self._underrun_s += max(0.0, played_s - self._audio_s)
            self._audio_s += len(event.pcm) / event.sample_rate
            self._is_heard = self._is_heard or is_heard(event.pcm)
        self._is_complete = event.is_final
        self._is_cut = event.report is not None and event.report.get("finish_reason") == "length"

    def close(self) -> None:
        """Note what the utterance was, once it is over."""
        metrics, labels = self._metrics, self._labels
        if self._first_s is not None:
            metrics.first_audio.labels(*labels).observe(self._first_s - self._begun_s)
        if not self._is_complete:
            metrics.left.labels(*labels).inc()
            return
        if self._is_cut:
            metrics.cut.labels(*labels).inc()
        if not self._is_heard:
            metrics.silent.labels(*labels).inc()
        if not self.has_sound:
            return
        metrics.real_time.labels(*labels).observe((time.monotonic() - self._begun_s) / self._audio_s)
        metrics.underrun.labels(*labels).observe(self._underrun_s)
        if not self._underrun_s:
            metrics.continuous.labels(*labels).inc()


def is_heard(pcm: np.ndarray) -> bool:
    """Whether any of the samples [n] int16 is louder than SILENCE."""
    return max(int(pcm.max()), -int(pcm.min())) > SILENCE
