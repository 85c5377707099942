"""OpenTelemetry spans of responses, exported to a collector (OTLP over HTTP) if configured.

    speech                      from the request to its last event
      gateway queue             until it has a slot
      preprocessor              until the language model has it
      queue                     until its first row is computed
      prefill                   until its first frame, or the first word of a text response
      frames                    until its last frame, or the last word of a text response
      decode                    from the first frame to the last audio

The gateway measures the start and the end; the rest are durations from the server's report. They are placed relative to
the first audio event, or to the end of a text. The span of the preprocessor absorbs the remaining time.
"""

import os
import time
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from stretto_gateway.caller import RequestHead

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

OURS = "STRETTO_OTLP"  # environment variable with the collector's address: http://HOST:4318
STANDARD = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
PATH = "/v1/traces"
EXPORTER = "opentelemetry.exporter.otlp.proto.http"
EXPORT_S = 5.0  # timeout of a batch, so that an unresponsive collector delays nothing


@dataclass(frozen=True, slots=True)
class Times:
    """Times of one response, in seconds of the monotonic clock.

    Attributes:
        begun_s: Arrival of the request.
        started_s: Admission.
        first_s: First audio or text; None if there was none.
        ended_s: Last event.
        report: The server's report; empty if the response did not get that far.
    """

    begun_s: float
    started_s: float
    first_s: float | None
    ended_s: float
    report: dict[str, Any]

    def parts(self) -> list[tuple[str, float, float]]:
        """Return name, start and end of each known phase of the request."""
        known = [("gateway queue", self.begun_s, self.started_s)]
        report = self.report
        if self.first_s is None or not {"queue_s", "total_s"} <= report.keys():
            return known
        is_sound = report.get("first_frame_s") is not None
        begin_s = self.first_s - report["first_frame_s"] if is_sound else self.ended_s - report["total_s"]
        begin_s = self._inside(begin_s)
        rows_s = self._inside(begin_s + report["queue_s"])
        frames_s = max(rows_s, self.first_s if not is_sound else self._inside(begin_s + report["first_frame_s"]))
        last_s = max(frames_s, self._inside(begin_s + report["total_s"]))
        known += [("preprocessor", self.started_s, begin_s), ("queue", begin_s, rows_s)]
        known += [("prefill", rows_s, frames_s), ("frames", frames_s, last_s)]
        return [*known, ("decode", frames_s, self.ended_s)] if is_sound else known

    def _inside(self, time_s: float) -> float:
        return min(max(time_s, self.started_s), self.ended_s)


class Spans:
    """Exporter of spans, in batches from its own thread; OpenTelemetry drops spans when its queue is full."""

    def __init__(self, provider: "TracerProvider"):
        self._provider, self._tracer = provider, provider.get_tracer("stretto_gateway")

    def add(self, request: RequestHead, labels: tuple[str, str], times: Times, is_complete: bool) -> None:
        """Add the spans of a finished response, as a child of the caller's `traceparent` if there is one."""
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
        """Send the remaining spans; this may take EXPORT_S seconds."""
        self._provider.shutdown()


def are_wanted() -> bool:
    """Return True if the environment asks for spans; raise ValueError if their dependencies are missing."""
    wanted = next((name for name in (OURS, *STANDARD) if os.environ.get(name)), None)
    if wanted is not None and not _is_installed(EXPORTER):
        raise ValueError(f"{wanted}: traces need packages that are not installed: pip install 'stretto[traces]'")
    return wanted is not None


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # a parent package is missing
        return False


def open_spans() -> Spans | None:
    """Return an exporter as configured by the environment; None if spans are off."""
    if not are_wanted():
        return None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    address = os.environ.get(OURS)
    endpoint = address.rstrip("/") + PATH if address else None  # None: use the standard variables
    name = os.environ.get("OTEL_SERVICE_NAME", "stretto-gateway")
    provider = TracerProvider(resource=Resource.create({"service.name": name}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, timeout=EXPORT_S)))
    return Spans(provider)
