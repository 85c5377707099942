"""Text and speech that a limit has ended say so, in each API; those that the model has ended do not."""

import base64
from typing import Any

import numpy as np
import pytest

from tests.client.fake_server import REPORT, Chunk
from tests.gateway.conftest import SPOKEN, Start, sse_events
from tests.gateway.realtime.caller import TALKS, call, silence, spoken
from tests.gateway.realtime.test_bounds import open_socket
from tests.gateway.test_speech_stream import PATH, begin
from tests.gateway.test_transcription import FILE, TRANSLATES
from tests.patience import until_async

REASONS = pytest.mark.parametrize("reason", ["length", None])
SPEECH_REASONS = pytest.mark.parametrize("reason", ["length", "ceiling", None])


def report_of(reason: str | None) -> dict[str, Any]:
    """Return the report of a reply that ends for a reason; None for its own end."""
    return {} if reason is None else {"report": REPORT | {"finish_reason": reason}}


def written(reason: str | None) -> list[Chunk]:
    """Return the events of a transcript that ends for a reason; None for its own end."""
    return [Chunk(0, None, text="a cat"), Chunk(1, None, is_final=True, is_last=True, more=report_of(reason))]


def speech(reason: str | None) -> list[Chunk]:
    """Return the events of speech that ends for a reason; None for its own end."""
    return [*SPOKEN[:2], Chunk(2, 1920, is_16_bit=True, is_final=True, is_last=True, more=report_of(reason))]


@REASONS
@pytest.mark.parametrize("path", ["/v1/audio/transcriptions", "/v1/audio/translations"])
async def test_transcript_has_a_finish_reason_in_each_format(start: Start, path: str, reason: str | None) -> None:
    running = await start(written(reason), TRANSLATES)
    async with running.http() as http:
        for response_format in ("json", "verbose_json", "text", "srt", "vtt"):
            form = {"model": "tiny", "response_format": response_format}
            answer = await http.post(path, files={"file": FILE}, data=form)
            assert "a cat" in answer.text
            assert answer.headers.get("stretto-finish-reason") == reason, response_format
            if "json" in response_format:
                assert answer.json().get("finish_reason") == reason
            if response_format == "vtt":
                assert answer.text.endswith("NOTE finish_reason: length\n\n") is (reason is not None)


@REASONS
@pytest.mark.parametrize("is_vllms", [False, True])
async def test_streamed_transcript_ends_with_a_finish_reason(start: Start, is_vllms: bool, reason: str | None) -> None:
    running = await start(written(reason))
    form = {"model": "tiny", "stream": "true", "stream_include_usage": str(is_vllms).lower()}
    async with running.http() as http:
        answer = await http.post("/v1/audio/transcriptions", files={"file": FILE}, data=form)
    last = sse_events(answer.text)[-1]
    assert (last["type"], last["text"], last.get("finish_reason")) == ("transcript.text.done", "a cat", reason)
    reasons = [choice["finish_reason"] for choice in last.get("choices", ())]
    assert reasons == ([reason or "stop"] if is_vllms else [])


@REASONS
async def test_realtime_transcript_has_a_finish_reason(start: Start, reason: str | None) -> None:
    running = await start(written(reason))
    async with call(running, model="gpt-4o-transcribe") as caller:
        await caller.hear(np.concatenate([silence(0.5), spoken(), silence(1)]))
        completed = (await caller.until("conversation.item.input_audio_transcription.completed"))[-1]
    assert (completed.transcript, getattr(completed, "stretto_finish_reason", None)) == ("a cat", reason)


@pytest.mark.parametrize("streams", [False, True])
async def test_chat_reply_has_a_finish_reason(start: Start, streams: bool) -> None:
    running = await start(written("length"), TALKS)
    body = {"messages": [{"role": "user", "content": "How are you?"}], "stream": streams}
    async with running.http() as http:
        answer = await http.post("/v1/chat/completions", json=body)
    record = sse_events(answer.text)[-1] if streams else answer.json()
    assert record["choices"][0]["finish_reason"] == "length"


@SPEECH_REASONS
async def test_speech_events_and_batches_have_a_finish_reason(start: Start, reason: str | None) -> None:
    running = await start(speech(reason))
    body = {"model": "tts-1", "voice": "rms", "input": "A cat.", "response_format": "pcm"}
    async with running.http() as http:
        events = await http.post("/v1/audio/speech", json=body | {"stream_format": "sse"})
        items = [{"input": body.pop("input")}]
        batch = await http.post("/v1/audio/speech/batch", json=body | {"items": items})
    last = sse_events(events.text)[-1]
    (result,) = batch.json()["results"]
    assert (last["type"], last.get("finish_reason")) == ("speech.audio.done", reason)
    assert (result["status"], result.get("finish_reason")) == ("success", reason)
    assert base64.b64decode(result["audio_data"])


@SPEECH_REASONS
@pytest.mark.parametrize("stream_format", ["audio", "sse"])
async def test_outcome_of_speech_that_a_limit_ended_is_incomplete(
    start: Start, stream_format: str, reason: str | None
) -> None:
    running = await start(speech(reason))
    body = {"model": "tts-1", "voice": "rms", "input": "A cat.", "stream_format": stream_format}
    async with running.http() as http:
        answer = await http.post("/v1/audio/speech", json=body)
        await until_async(lambda: "in_progress" not in str(running.app.state.gateway.outcomes._outcomes._records))
        outcome = (await http.get(f"/v1/audio/speech/{answer.headers['x-request-id']}")).json()
    assert (outcome["status"], outcome.get("finish_reason")) == ("incomplete" if reason else "completed", reason)


@SPEECH_REASONS
async def test_speech_for_streamed_text_has_a_finish_reason(start: Start, reason: str | None) -> None:
    running = await start(speech(reason))
    async with open_socket(running, PATH) as opened:
        events, _ = await (await begin(opened)).utterance("A cat.")
    last: dict[str, Any] = events[-1]
    assert (last["type"], last.get("finish_reason")) == ("session.done", reason)
