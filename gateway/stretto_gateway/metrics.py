"""Response metrics: Prometheus metrics, named as in other speech servers, and spans.

If an OpenTelemetry collector is configured, these spans are exported to it (OTLP over HTTP):

    speech                      from the request to its last event
      gateway queue             until admission
      preprocessor              until the language model receives the prompt
      queue                     until its first row is computed
      prefill                   until its first frame, or the first word of a text response
      frames                    until its last frame, or the last word of a text response
      decode                    from the first frame to the last audio

The gateway measures start and end. The other values are durations from the server's report, placed relative to the
first audio event or to the end of a text. The remaining time is attributed to the preprocessor.
"""

import os
import time
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Self

from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder

from stretto_client import SpeechEvent
from stretto_contract.finish_reasons import CANCELLED, LIMITS, limit_of
from stretto_contract.speech_checks import FAULTS, UNCHECKED
from stretto_gateway.admission import REQUEST, OpenSessions, RequestHead
from stretto_gateway.model_server import Servers
from stretto_gateway.usage import Ceiling, Usage

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

OURS = "STRETTO_OTLP"  # environment variable with the collector's address: http://HOST:4318
STANDARD = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
TRACES_PATH = "/v1/traces"
EXPORTER = "opentelemetry.exporter.otlp.proto.http"
EXPORT_S = 5.0  # timeout per batch, so that an unresponsive collector delays nothing


@dataclass(frozen=True, slots=True)
class Times:
    """Times of one response, in seconds of the monotonic clock.

    Attributes:
        begun_s: Time when the request arrived.
        started_s: Time of admission.
        first_s: Time of the first audio or text; None if there was none.
        ended_s: Time of the last event.
        report: The server's report; empty if the response ended without one.
    """

    begun_s: float
    started_s: float
    first_s: float | None
    ended_s: float
    report: dict[str, Any]

    def parts(self) -> list[tuple[str, float, float]]:
        """Return name, start and end (in seconds of the monotonic clock) of each known phase of the request."""
        spans = [("gateway queue", self.begun_s, self.started_s)]
        report = self.report
        if self.first_s is None or not {"queue_s", "total_s"} <= report.keys():
            return spans
        is_sound = report.get("first_frame_s") is not None
        begin_s = self.first_s - report["first_frame_s"] if is_sound else self.ended_s - report["total_s"]
        begin_s = self._inside(begin_s)
        rows_s = self._inside(begin_s + report["queue_s"])
        frames_s = max(rows_s, self.first_s if not is_sound else self._inside(begin_s + report["first_frame_s"]))
        last_s = max(frames_s, self._inside(begin_s + report["total_s"]))
        spans += [("preprocessor", self.started_s, begin_s), ("queue", begin_s, rows_s)]
        spans += [("prefill", rows_s, frames_s), ("frames", frames_s, last_s)]
        return [*spans, ("decode", frames_s, self.ended_s)] if is_sound else spans

    def _inside(self, time_s: float) -> float:
        return min(max(time_s, self.started_s), self.ended_s)


class SpanExporter:
    """Exporter that sends spans in batches from a separate thread, and drops spans if its queue is full."""

    def __init__(self, provider: "TracerProvider"):
        self._provider = provider
        self._tracer = provider.get_tracer("stretto_gateway")

    def add(self, request: RequestHead, labels: tuple[str, str], times: Times, is_complete: bool) -> None:
        """Add the spans of a finished response, as children of the request's `traceparent` if it has one."""
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        to_wall_s = time.time() - time.monotonic()

        def at(time_s: float) -> int:
            return round(1e9 * (time_s + to_wall_s))

        caller = TraceContextTextMapPropagator().extract({"traceparent": request.traceparent})
        attributes: dict[str, str | float] = {
            "stretto.family": labels[0],
            "stretto.task": labels[1],
            "stretto.request_id": request.request_id,
        }
        attributes |= {
            f"stretto.{name}": value for name, value in times.report.items() if isinstance(value, int | float)
        }
        whole = self._tracer.start_span("speech", caller, start_time=at(times.begun_s), attributes=attributes)
        if not is_complete:
            whole.set_status(trace.StatusCode.ERROR)
        inside = trace.set_span_in_context(whole)
        for name, begin_s, end_s in times.parts():
            self._tracer.start_span(name, inside, start_time=at(begin_s)).end(at(end_s))
        whole.end(at(times.ended_s))

    def close(self) -> None:
        """Export the remaining spans, which may take EXPORT_S seconds."""
        self._provider.shutdown()


def spans_are_wanted() -> bool:
    """Return True if the environment enables spans; raise ValueError if their dependencies are missing."""
    wanted = next((name for name in (OURS, *STANDARD) if os.environ.get(name)), None)
    if wanted is not None and not _is_installed(EXPORTER):
        raise ValueError(f"{wanted}: traces need packages that are not installed: pip install 'stretto[traces]'")
    return wanted is not None


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # a parent package is missing
        return False


def open_spans() -> SpanExporter | None:
    """Return the exporter configured by the environment, or None if spans are off."""
    if not spans_are_wanted():
        return None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    # The exporter follows http_proxy. A proxy cannot reach a collector on this host.
    direct = (os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), "localhost", "127.0.0.1", "::1")
    os.environ["no_proxy"] = ",".join(filter(None, direct))
    address = os.environ.get(OURS)
    endpoint = address.rstrip("/") + TRACES_PATH if address else None  # None: the standard variables apply
    name = os.environ.get("OTEL_SERVICE_NAME", "stretto-gateway")
    provider = TracerProvider(resource=Resource.create({"service.name": name}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, timeout=EXPORT_S)))
    return SpanExporter(provider)


SECONDS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)
RATIOS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.5, 2.0, 5.0)
GAPS = (0.0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
LABELS = ["family", "task"]
WAITS = (*GAPS, 10.0, 30.0, 60.0)
FAILED = "failed"


class Metrics:
    """Metrics of one gateway. Durations are wall-clock times measured in the gateway, in seconds."""

    def __init__(
        self,
        family: Callable[[], str],
        spans: SpanExporter | None = None,
        owners: Sequence[str] = (),
        ceilings: Sequence[Ceiling] = (),
    ):
        self.registry = CollectorRegistry()
        self.family = family
        self.spans = spans
        self.usage = Usage(owners, ceilings, self.registry)
        counter = partial(Counter, registry=self.registry)
        histogram = partial(Histogram, registry=self.registry)
        self.first_audio = histogram("audio_ttfp_seconds", "Seconds to the first samples", LABELS, buckets=SECONDS)
        about = "Seconds until a player without a buffer plays the first sample above -50 dBFS"
        self.first_sound = histogram("audio_first_sound_seconds", about, LABELS, buckets=SECONDS)
        about = "Seconds of generation per second of audio"
        self.real_time = histogram("audio_rtf", about, LABELS, buckets=RATIOS)
        about = "Seconds that a player without a buffer waits for later audio"
        self.underrun = histogram("audio_underrun_seconds", about, LABELS, buckets=GAPS)
        self.continuous = counter("audio_continuity_ok", "Utterances without such a wait", LABELS)
        self.silent = counter("audio_skipped", "Utterances without audible audio", LABELS)
        self.cut = counter("audio_cut", "Utterances ended by a limit", [*LABELS, "reason"])
        self.faults = counter("audio_faults", "Faults of utterances", [*LABELS, "fault"])
        self.unchecked = counter("audio_unchecked", "Clauses whose words were not checked", [*LABELS, "reason"])
        self.redrawn = counter("audio_redrawn", "Attempts to speak clauses given up", LABELS)
        self.left = counter("audio_left", "Utterances that did not complete", [*LABELS, "reason"])
        self.interrupted = counter("audio_interrupted", "Replies interrupted by the user's speech")
        self.text_seconds = histogram("text_seconds", "Seconds to the end of a text response", LABELS, buckets=SECONDS)
        self.text_cut = counter("text_cut", "Text responses ended by a limit", [*LABELS, "reason"])
        self.text_left = counter("text_left", "Text responses that did not complete", [*LABELS, "reason"])
        about = "Seconds for which a session waited for the end-of-turn model"
        self._turns = histogram("gateway_turn_decision_seconds", about, ["outcome"], buckets=WAITS)
        self.answers = counter("gateway_answers", "Responses by route and status", ["route", "status"])
        about = "Seconds that requests waited for a slot"
        self._queue = histogram("gateway_queue_seconds", about, buckets=WAITS)

    def note_turn(self, outcome: str, seconds: float) -> None:
        """Record a decision of the end-of-turn model: `complete`, `incomplete`, `failed`, `late` or `busy`."""
        self._turns.labels(outcome).observe(seconds)

    def waited(self, seconds: float) -> None:
        """Record the queueing time of an admitted request, in seconds."""
        self._queue.observe(seconds, REQUEST.get().exemplar)

    def labelled(self, family: Callable[[], str]) -> Self:
        """Return the same metrics for a model of another server."""
        other = copy(self)
        other.family = family
        return other

    def watch(self, servers: Servers, sessions: OpenSessions) -> None:
        """Add gauges of active utterances, queued requests and open sessions, and of each named server."""
        active = Gauge("gateway_active", "Utterances in progress", registry=self.registry)
        active.set_function(lambda: sum(model_server.admission.num_active for model_server in servers.all))
        waiting = Gauge("gateway_waiting", "Requests waiting for a slot", registry=self.registry)
        waiting.set_function(lambda: sum(model_server.admission.num_waiting for model_server in servers.all))
        refused = Gauge("gateway_waiting_for_server", "Requests waiting for a full server", registry=self.registry)
        refused.set_function(lambda: sum(model_server.queue.num_waiting for model_server in servers.all))
        if servers.are_named:
            ready = Gauge("gateway_server_ready", "1 if a server is ready", ["server"], registry=self.registry)
            used = Gauge("gateway_server_active", "Utterances of a server", ["server"], registry=self.registry)
            for server in servers.all:
                ready.labels(server.name).set_function(partial(attrgetter("is_up"), server))
                used.labels(server.name).set_function(partial(attrgetter("admission.num_active"), server))
        opened = Gauge("gateway_sessions", "Open WebSockets and WebRTC calls", registry=self.registry)
        opened.set_function(lambda: sessions.num_open)

    def page(self, accept: str) -> tuple[bytes, str]:
        """Return all metrics and their media type: OpenMetrics if `accept` allows it, else Prometheus text."""
        encode, media_type = choose_encoder(accept)
        return encode(self.registry), media_type


SILENCE = round(32768 * 10 ** (-50 / 20))  # -50 dBFS as a sample; anything below is inaudible


class Trace:
    """Metrics of a text response."""

    def __init__(self, metrics: Metrics, task: str):
        self._metrics = metrics
        self._labels = (metrics.family(), task)
        self._request = REQUEST.get()
        self._use = metrics.usage.current
        for counter in self._counters:
            # create the counter at zero, so that Prometheus rates include the first increment
            counter.labels(*self._labels)
        for limit in LIMITS:
            self._cut.labels(*self._labels, limit)
        for reason in (CANCELLED, FAILED):
            self._left.labels(*self._labels, reason)
        self._begun_s = time.monotonic()
        self._started_s: float | None = None
        self._first_s: float | None = None  # time of the first audio or text
        self._report: dict[str, Any] = {}
        self._is_complete = False
        self._is_cancelled = False

    @property
    def _counters(self) -> tuple[Counter, ...]:
        return ()

    @property
    def _left(self) -> Counter:
        return self._metrics.text_left

    @property
    def _cut(self) -> Counter:
        return self._metrics.text_cut

    def start(self) -> None:
        """Record the admission of the request, which is then sent to the server."""
        self._started_s = time.monotonic()

    def add(self, event: SpeechEvent) -> None:
        """Record an event."""
        if self._first_s is None and event.text:
            self._first_s = time.monotonic()
        self._end(event)

    def _end(self, event: SpeechEvent) -> None:
        self._is_complete = event.is_final
        self._report = event.report or {}

    def cancel(self) -> None:
        """Record that the client has disconnected or does not read."""
        self._is_cancelled = True

    def close(self) -> None:
        """Record the end of the response."""
        self._count_end()
        if self._is_complete:
            took_s = time.monotonic() - self._begun_s
            self._metrics.text_seconds.labels(*self._labels).observe(took_s, self._request.exemplar)
        self._tell_times()

    def _count_end(self) -> None:
        if not self._is_complete:
            self._left.labels(*self._labels, CANCELLED if self._is_cancelled else FAILED).inc()
        elif limit := limit_of(self._report):
            self._cut.labels(*self._labels, limit).inc()

    def _tell_times(self) -> None:
        self._use.add("input_audio_s", self._report.get("input_audio_s", 0.0))
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
        for fault in FAULTS:
            metrics.faults.labels(*self._labels, fault)
        for reason in UNCHECKED:
            metrics.unchecked.labels(*self._labels, reason)
        self._audio_s = self._underrun_s = 0.0
        self._sound_s: float | None = None  # time at which a player plays the first audible sample

    @property
    def _counters(self) -> tuple[Counter, ...]:
        return self._metrics.silent, self._metrics.continuous, self._metrics.redrawn

    @property
    def _left(self) -> Counter:
        return self._metrics.left

    @property
    def _cut(self) -> Counter:
        return self._metrics.cut

    @property
    def has_sound(self) -> bool:
        """True if any sample has been received."""
        return self._audio_s > 0

    def add(self, event: SpeechEvent) -> None:
        now_s = time.monotonic()
        if event.redrawn_s is not None:
            self._metrics.redrawn.labels(*self._labels).inc()
        self._use.add("output_audio_s", generated_s(event))
        if event.pcm is not None and len(event.pcm):
            if self._first_s is None:
                self._first_s = now_s
            played_s = now_s - self._first_s - self._underrun_s
            self._underrun_s += max(0.0, played_s - self._audio_s)
            if self._sound_s is None and (sample := first_audible(event.pcm)) is not None:
                self._sound_s = self._first_s + self._underrun_s + self._audio_s + sample / event.sample_rate
            self._audio_s += len(event.pcm) / event.sample_rate
        self._end(event)

    def close(self) -> None:
        metrics = self._metrics
        labels = self._labels
        if self._first_s is not None:
            metrics.first_audio.labels(*labels).observe(self._first_s - self._begun_s, self._request.exemplar)
        if self._sound_s is not None:
            metrics.first_sound.labels(*labels).observe(self._sound_s - self._begun_s, self._request.exemplar)
        self._count_end()
        if self._is_complete:
            self._count_sound()
        self._tell_times()

    def _count_sound(self) -> None:
        metrics = self._metrics
        labels = self._labels
        for fault in self._report.get("faults", ()):
            metrics.faults.labels(*labels, fault["fault"]).inc()
        for reason in self._report.get("unchecked", ()):
            metrics.unchecked.labels(*labels, reason).inc()
        if self._sound_s is None:
            metrics.silent.labels(*labels).inc()
        if not self.has_sound:
            return
        took_s = time.monotonic() - self._begun_s
        metrics.real_time.labels(*labels).observe(took_s / self._audio_s, self._request.exemplar)
        metrics.underrun.labels(*labels).observe(self._underrun_s, self._request.exemplar)
        if not self._underrun_s:
            metrics.continuous.labels(*labels).inc()


def generated_s(event: SpeechEvent) -> float:
    """Return the duration in seconds of an event's samples, and of the abandoned attempt that the event reports."""
    samples_s = len(event.pcm) / event.sample_rate if event.pcm is not None and len(event.pcm) else 0.0
    return samples_s + (event.redrawn_s or 0.0)


def first_audible(pcm: NDArray[Any]) -> int | None:
    """Return the index of the first sample of `pcm`, int16 [n], that is louder than SILENCE, or None."""
    is_loud = (pcm > SILENCE) | (pcm < -SILENCE)  # the smallest int16 has no absolute value
    index = int(is_loud.argmax())
    return index if is_loud[index] else None
