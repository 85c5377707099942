"""Traces are off by default, have the times that the server reports, and belong to the caller's trace."""

import asyncio
import builtins
import os
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from stretto_gateway.admission import RequestHead
from stretto_gateway.command import main
from stretto_gateway.metrics import OURS, STANDARD, Times, open_spans, spans_are_wanted
from tests.client.fake_server import REPORT
from tests.gateway.conftest import Start

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
PARTS = ["gateway queue", "preprocessor", "queue", "prefill", "frames", "decode"]
SOUND = {"queue_s": 1.0, "first_frame_s": 3.0, "total_s": 6.0}
TEXT = {"queue_s": 1.0, "first_frame_s": None, "total_s": 5.0}


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (Times(0.0, 1.0, 6.0, 10.0, SOUND), [(0, 1), (1, 3), (3, 4), (4, 6), (6, 9), (6, 10)]),
        (Times(0.0, 1.0, 9.0, 10.0, TEXT), [(0, 1), (1, 5), (5, 6), (6, 9), (9, 10)]),
        (Times(0.0, 1.0, 2.0, 10.0, SOUND), [(0, 1), (1, 1), (1, 2), (2, 4), (4, 7), (4, 10)]),
        (Times(0.0, 1.0, 2.0, 2.0, SOUND), [(0, 1), (1, 1), (1, 2), (2, 2), (2, 2), (2, 2)]),
        (Times(0.0, 1.0, None, 10.0, SOUND), [(0, 1)]),
        (Times(0.0, 1.0, 6.0, 10.0, {}), [(0, 1)]),
    ],
)
def test_span_parts_are_consecutive_within_the_request(times: Times, expected: list[tuple[float, float]]) -> None:
    parts = times.parts()
    assert [name for name, _, _ in parts] == PARTS[: len(expected)]
    assert [(begin_s, end_s) for _, begin_s, end_s in parts] == expected


class Collector(ThreadingHTTPServer):
    """Collector that records the received spans."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Take)
        self.spans: list[Any] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Take(BaseHTTPRequestHandler):
    """Handler of an exporter's request."""

    server: Collector

    def do_POST(self) -> None:
        sent = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
        for each in sent.resource_spans:
            self.server.spans += [span for scope in each.scope_spans for span in scope.spans]
        self.send_response(200 if self.path == "/v1/traces" else 404)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as opened:
        serving = Thread(target=opened.serve_forever)
        serving.start()
        yield opened
        opened.shutdown()
        serving.join()


@pytest.mark.slow
@pytest.mark.parametrize("name", [OURS, STANDARD[0]])
async def test_utterance_is_traced_within_the_client_trace(
    start: Start, collector: Collector, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, collector.url)
    for field in ("queue_s", "first_frame_s", "total_s"):
        monkeypatch.setitem(REPORT, field, 0.0)
    running = await start()
    async with running.http() as http:
        body = {"input": "A secret cat.", "response_format": "pcm"}
        answer = await http.post("/v1/audio/speech", json=body, headers={"traceparent": PARENT})
        assert answer.status_code == 200
        await http.post("/v1/audio/speech", json=body, headers={"traceparent": "none"})
    await asyncio.to_thread(running.app.state.gateway.metrics.spans.close)
    wholes = [span for span in collector.spans if span.name == "speech"]
    assert len(wholes) == 2
    (whole,) = [span for span in wholes if span.trace_id.hex() == PARENT.split("-")[1]]
    assert whole.parent_span_id.hex() == PARENT.split("-")[2]
    told = {each.key: each.value.string_value for each in whole.attributes}
    assert (told["stretto.family"], told["stretto.task"]) == ("tiny", "tts")
    assert told["stretto.request_id"] == answer.headers["x-request-id"]
    inside = [span for span in collector.spans if span.parent_span_id == whole.span_id]
    assert sorted(span.name for span in inside) == sorted(PARTS)
    for span in inside:
        assert whole.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= whole.end_time_unix_nano
    assert "secret" not in str(collector.spans)


@pytest.mark.usefixtures("proxy_variables")
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_collector_on_this_host_is_reached_directly_despite_proxy_variables(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setenv("no_proxy", "example.org")
    monkeypatch.setenv(OURS, f"http://{host}:{collector.server_port}")
    spans = open_spans()
    assert spans is not None
    spans.add(RequestHead("r1", ""), ("tiny", "tts"), Times(0.0, 1.0, None, 10.0, {}), True)
    spans.close()
    assert [span.name for span in collector.spans]
    assert os.environ["no_proxy"].startswith("example.org,")


async def test_opentelemetry_is_not_loaded_without_an_address(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (OURS, *STANDARD):
        monkeypatch.delenv(name, raising=False)
    load = builtins.__import__

    def checked(name: str, *args: Any) -> Any:
        assert not name.startswith("opentelemetry"), name
        return load(name, *args)

    monkeypatch.setattr(builtins, "__import__", checked)
    assert open_spans() is None
    assert (await start()).app.state.gateway.metrics.spans is None


def test_error_names_missing_trace_packages(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(OURS, "http://127.0.0.1:4318")
    assert spans_are_wanted()
    monkeypatch.setattr("stretto_gateway.metrics.EXPORTER", "opentelemetry.nowhere.to.be.found")
    with pytest.raises(SystemExit) as raised:
        main(["--port", "0"])
    assert raised.value.code == 2
    assert (
        "STRETTO_OTLP: traces need packages that are not installed: pip install 'stretto[traces]'"
        in capsys.readouterr().err
    )
