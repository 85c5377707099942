"""OpenTelemetry's spans of what is answered, to a collector (OTLP over HTTP), for who asks for them; off otherwise.

    speech                      from the request to its last event
      gateway queue             until there is a place for it
      preprocessor              until the language model has it
      queue                     until its first row is computed
      prefill                   until its first frame; of text, until its first word
      frames                    until its last one; of text, until its last word
      decode                    from the first frame to the last sound

The gateway measures the ends; what is between are durations of the server's report. The language model has begun as
long before the first event as that took, or a little earlier: the span of the preprocessor has the rest.
"""

import os
import time
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from stretto_gateway.caller import RequestHead

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

OURS = "STRETTO_OTLP"  # the address of a collector: http://HOST:4318
STANDARD = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
PATH = "/v1/traces"
EXPORTER = "opentelemetry.exporter.otlp.proto.http"
EXPORT_S = 5.0  # for a batch of them: a collector that does not answer keeps nobody waiting


@dataclass(frozen=True, slots=True)
class Times:
    """Monotonic, in seconds. first_s: of the first sound or word. report: the server's, where it came to one."""

    begun_s: float
    started_s: float
    first_s: float | None
    ended_s: float
    report: dict[str, Any]

    def parts(self) -> list[tuple[str, float, float]]:
        """Name, beginning and end of what a request went through, as far as anybody has told."""
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
    """Sends them, in batches and from a thread of its own; of more than OpenTelemetry keeps some are left out."""

    def __init__(self, provider: "TracerProvider"):
        self._provider, self._tracer = provider, provider.get_tracer("stretto_gateway")

    def add(self, request: RequestHead, labels: tuple[str, str], times: Times, is_complete: bool) -> None:
        """An answer that is over; where its caller has sent a `traceparent`, as a part of that."""
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        to_wall_s = time.time() - time.monotonic()

        def at(time_s: float) -> int:
            return round(1e9 * (time_s + to_wall_s))

        caller = TraceContextTextMapPropagator().extract({"traceparent": request.traceparent})
        told: dict[str, str | float] = {
            "stretto.family": labels[0],
            "stretto.task": labels[1],
            "stretto.request_id": request.request_id,
        }
        told |= {f"stretto.{name}": value for name, value in times.report.items() if isinstance(value, int | float)}
        whole = self._tracer.start_span("speech", caller, start_time=at(times.begun_s), attributes=told)
        if not is_complete:
            whole.set_status(trace.StatusCode.ERROR)
        inside = trace.set_span_in_context(whole)
        for name, begin_s, end_s in times.parts():
            self._tracer.start_span(name, inside, start_time=at(begin_s)).end(at(end_s))
        whole.end(at(times.ended_s))

    def close(self) -> None:
        """Send what is left; it may take EXPORT_S."""
        self._provider.shutdown()


def are_wanted() -> bool:
    """Whether the environment asks for spans; ValueError where it does and what they take is not installed."""
    wanted = next((name for name in (OURS, *STANDARD) if os.environ.get(name)), None)
    if wanted is not None and not _is_installed(EXPORTER):
        raise ValueError(f"{wanted}: traces need what is not installed: pip install 'stretto[traces]'")
    return wanted is not None


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of a package around it
        return False


def open_spans() -> Spans | None:
    """Spans as the environment asks for them, None where it does not."""
    if not are_wanted():
        return None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    address = os.environ.get(OURS)
    endpoint = address.rstrip("/") + PATH if address else None  # None: as the standard variables say
    name = os.environ.get("OTEL_SERVICE_NAME", "stretto-gateway")
    provider = TracerProvider(resource=Resource.create({"service.name": name}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, timeout=EXPORT_S)))
    return Spans(provider)
