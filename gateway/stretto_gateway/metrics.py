"""Prometheus metrics, under names common to speech servers."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder

from stretto_gateway.admission import Admission
from stretto_gateway.caller import REQUEST
from stretto_gateway.sessions import Sessions
from stretto_gateway.spans import Spans

SECONDS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)
RATIOS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.5, 2.0, 5.0)
GAPS = (0.0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
LABELS = ["family", "task"]
WAITS = (*GAPS, 10.0, 30.0, 60.0)


class Metrics:
    """Metrics of one gateway. Durations are wall-clock times measured in the gateway.

    Args:
        family: Returns the family that is served now.
        spans: Exporter of traces; None if they are off.
    """

    def __init__(self, family: Callable[[], str], spans: Spans | None = None):
        self.registry, self.family, self.spans = CollectorRegistry(), family, spans
        self.first_audio = Histogram(
            "audio_ttfp_seconds", "Seconds to the first audible sample", LABELS, buckets=SECONDS, registry=self.registry
        )
        self.real_time = Histogram(
            "audio_rtf", "Seconds of generation per second of audio", LABELS, buckets=RATIOS, registry=self.registry
        )
        self.underrun = Histogram(
            "audio_underrun_seconds",
            "Seconds that a player without a buffer waits for later audio",
            LABELS,
            buckets=GAPS,
            registry=self.registry,
        )
        self.continuous = Counter(
            "audio_continuity_ok", "Utterances without such a wait", LABELS, registry=self.registry
        )
        self.silent = Counter("audio_skipped", "Utterances without audible audio", LABELS, registry=self.registry)
        self.cut = Counter("audio_cut", "Utterances ended by a limit", LABELS, registry=self.registry)
        self.left = Counter("audio_left", "Utterances that did not complete", LABELS, registry=self.registry)
        self.interrupted = Counter(
            "audio_interrupted", "Replies interrupted by the user's speech", registry=self.registry
        )
        self.text_seconds = Histogram(
            "text_seconds", "Seconds to the end of a text response", LABELS, buckets=SECONDS, registry=self.registry
        )
        self.text_cut = Counter("text_cut", "Text responses ended by a limit", LABELS, registry=self.registry)
        self.text_left = Counter("text_left", "Text responses that did not complete", LABELS, registry=self.registry)
        self.answers = Counter(
            "gateway_answers", "Responses by route and status", ["route", "status"], registry=self.registry
        )
        self._queue = Histogram(
            "gateway_queue_seconds", "Seconds that requests waited for a slot", buckets=WAITS, registry=self.registry
        )

    def waited(self, seconds: float) -> None:
        """Record the queueing time of an admitted request."""
        self._queue.observe(seconds, REQUEST.get().exemplar)

    def watch(self, admission: Admission, sessions: Sessions) -> None:
        """Add gauges of active utterances, queued requests and open sessions."""
        active = Gauge("gateway_active", "Utterances in progress", registry=self.registry)
        active.set_function(lambda: admission.num_active)
        waiting = Gauge("gateway_waiting", "Requests waiting for a slot", registry=self.registry)
        waiting.set_function(lambda: admission.num_waiting)
        opened = Gauge("gateway_sessions", "Open WebSockets", registry=self.registry)
        opened.set_function(lambda: sessions.num_open)

    def page(self, accept: str) -> tuple[bytes, str]:
        """Return all metrics and their media type: Prometheus' text format, or OpenMetrics if accepted."""
        encode, media_type = choose_encoder(accept)
        return encode(self.registry), media_type
