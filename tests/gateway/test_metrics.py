"""Metrics of utterances, for each way they can end."""

from typing import Any

import numpy as np
import pytest

from stretto_client import SpeechEvent
from stretto_gateway.admission import REQUEST, RequestHead
from stretto_gateway.metrics import SILENCE, Metrics, SpeechTrace, Trace
from tests.client.fake_server import REPORT
from tests.gateway.conftest import Start
from tests.gateway.realtime.caller import TALKS, call, silence
from tests.gateway.test_transcription import FILE, WRITTEN

COUNTERS = ("audio_skipped", "audio_cut", "audio_left", "audio_continuity_ok")


def event(level: int = 8192, **fields: Any) -> SpeechEvent:
    pcm = np.full(2400, level, np.int16)
    return SpeechEvent(pcm, "u", 0, "audio", **{"sample_rate": 24_000} | fields)


def final(reason: str, level: int = 8192) -> SpeechEvent:
    return event(level, is_final=True, report={"finish_reason": reason})


def total(metrics: Metrics, name: str, labels: dict[str, str]) -> float:
    """Return the sum of a counter's values, of which there must be one at least, with these and any other labels."""
    samples = [sample for metric in metrics.registry.collect() for sample in metric.samples]
    values = [each.value for each in samples if each.name == f"{name}_total" and labels.items() <= each.labels.items()]
    assert values
    return sum(values)


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([event(), final("stop")], {"audio_continuity_ok"}),
        ([event(), final("length")], {"audio_continuity_ok", "audio_cut"}),
        ([event(), final("ceiling")], {"audio_continuity_ok", "audio_cut"}),
        ([event(SILENCE), final("stop", -SILENCE)], {"audio_continuity_ok", "audio_skipped"}),
        ([event(SILENCE), final("length", 0)], {"audio_continuity_ok", "audio_skipped", "audio_cut"}),
        ([event(0), final("stop", -32768)], {"audio_continuity_ok"}),
        ([SpeechEvent(None, "u", 0, "tail", is_final=True, report={"finish_reason": "stop"})], {"audio_skipped"}),
        ([event()], {"audio_left"}),
        ([], {"audio_left"}),
    ],
)
def test_audio_replies_are_counted_by_outcome(
    events: list[SpeechEvent], expected: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stretto_gateway.metrics.time.monotonic", lambda: 1.0)  # no chunk is late
    metrics = Metrics(lambda: "tiny")
    trace = SpeechTrace(metrics, "tts")
    for each in events:
        trace.add(each)
    trace.close()
    labels = {"family": "tiny", "task": "tts"}
    counts = {name: total(metrics, name, labels) for name in COUNTERS}
    assert counts == {name: float(name in expected) for name in COUNTERS}
    num_first = metrics.registry.get_sample_value("audio_ttfp_seconds_count", labels)
    assert num_first == (1.0 if any(each.pcm is not None for each in events) else None)
    num_audible = metrics.registry.get_sample_value("audio_first_sound_seconds_count", labels)
    is_audible = num_first is not None and "audio_skipped" not in expected
    assert num_audible == (1.0 if is_audible else None)


@pytest.mark.parametrize(("arrivals_s", "heard_s"), [((2.0, 2.1), 2.15), ((2.0, 2.5), 2.55)])
def test_first_sound_is_timed_as_a_player_plays_it(
    arrivals_s: tuple[float, float], heard_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A silent chunk of 0.1 s precedes the one with a sound after 0.05 s; the player may have to wait for it."""
    now_s = iter([0.0, *arrivals_s])
    monkeypatch.setattr("stretto_gateway.metrics.time.monotonic", lambda: next(now_s, 9.0))
    metrics = Metrics(lambda: "tiny")
    trace = SpeechTrace(metrics, "tts")
    sound = np.zeros(2400, np.int16)
    sound[1200:] = -32768
    trace.add(event(SILENCE))
    trace.add(SpeechEvent(sound, "u", 1, "audio", sample_rate=24_000))
    trace.close()
    labels = {"family": "tiny", "task": "tts"}
    assert metrics.registry.get_sample_value("audio_first_sound_seconds_sum", labels) == pytest.approx(heard_s)
    assert metrics.registry.get_sample_value("audio_ttfp_seconds_sum", labels) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([SpeechEvent(None, "u", 0, "text"), final("stop")], None),
        ([final("length")], "text_cut"),
        ([SpeechEvent(None, "u", 0, "text")], "text_left"),
        ([], "text_left"),
    ],
)
def test_text_replies_are_counted_by_outcome(events: list[SpeechEvent], expected: str | None) -> None:
    metrics = Metrics(lambda: "tiny")
    trace = Trace(metrics, "asr")
    for each in events:
        trace.add(each)
    trace.close()
    labels = {"family": "tiny", "task": "asr"}
    counts = {name: total(metrics, name, labels) for name in ("text_cut", "text_left")}
    assert counts == {name: float(name == expected) for name in counts}


async def test_truncated_texts_are_counted_on_every_endpoint(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REPORT, "finish_reason", "length")
    running = await start(WRITTEN, TALKS)
    client = running.openai()
    await client.audio.transcriptions.create(model="whisper-1", file=FILE)
    await client.chat.completions.create(model="gpt-audio", messages=[{"role": "user", "content": "Well?"}])
    async with call(running) as caller:
        await caller.update(output_modalities=["text"])
        await caller.say("Well?")
        await caller.send("response.create")
        await caller.until("response.done")
    async with call(running, "whisper-1") as caller:
        await caller.update(type="transcription")
        await caller.hear(silence(0.5))
        await caller.send("input_audio_buffer.commit")
        await caller.until("conversation.item.input_audio_transcription.completed")
    assert await running.metric("text_cut_total") == 4


def test_slow_request_has_its_id_as_exemplar(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = iter([0.0])
    monkeypatch.setattr("stretto_gateway.metrics.time.monotonic", lambda: next(now_s, 7.0))
    metrics = Metrics(lambda: "tiny")
    token = REQUEST.set(RequestHead("req_1"))
    trace = SpeechTrace(metrics, "tts")
    REQUEST.reset(token)
    trace.add(final("stop"))
    trace.close()
    page, media_type = metrics.page("application/openmetrics-text; version=1.0.0")
    assert media_type.startswith("application/openmetrics-text")
    buckets = [line for line in page.decode().splitlines() if line.startswith("audio_ttfp_seconds_bucket")]
    (told,) = [line for line in buckets if "req_1" in line]
    assert 'le="10.0"' in told
    assert '# {request_id="req_1"} 7.0' in told
    assert b"req_1" not in metrics.page("")[0], "the other format has no place for it"


async def test_queue_time_metric_has_the_request_id_as_exemplar(start: Start) -> None:
    async with (await start()).http() as http:
        body = {"input": "A cat.", "response_format": "pcm"}
        request_id = (await http.post("/v1/audio/speech", json=body)).headers["x-request-id"]
        told = await http.get("/metrics", headers={"accept": "application/openmetrics-text"})
    assert told.headers["content-type"].startswith("application/openmetrics-text")
    assert told.text.endswith("# EOF\n")
    waits = [line for line in told.text.splitlines() if line.startswith("gateway_queue_seconds_bucket")]
    assert any(f'request_id="{request_id}"' in line for line in waits)
