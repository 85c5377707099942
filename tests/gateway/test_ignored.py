"""Fields without effect are ignored and listed in a header, or refused by a strict gateway."""

import base64
import json
from typing import Any

import pytest
from pydantic import BaseModel

from stretto_gateway.fields import MAX_NAMES, MAX_SHOWN_CHARS, Ignored
from stretto_gateway.response_headers import ResponseHeader
from stretto_gateway.speech_batch import BatchRequest
from stretto_gateway.speech_request import SpeechRequest
from tests.client.fake_server import PROFILE
from tests.gateway.conftest import SPOKEN, Start
from tests.gateway.test_transcription import FILE, WRITTEN
from tests.gateway.test_voices import CLONES, RECORDING

SPEECH = {"model": "tts-1", "voice": "alloy", "input": "A cat.", "response_format": "pcm"}
PLAIN = PROFILE | {"options": ["language"], "languages": ["english"]}


async def test_names_of_other_engines_have_the_same_effect(start: Start) -> None:
    running = await start(SPOKEN, CLONES | {"options": ["chunking"]}, strict=True)
    audio = base64.b64encode(RECORDING).decode()
    own = {"ref_audio": audio, "ref_text": "It is me.", "chunking": {"first_frames": 4}}
    others = {"references": [{"audio_path": audio, "text": "It is me."}], "initial_codec_chunk_frames": 4}
    vector = own | {"x_vector_only_mode": True}
    plain = {"input": "A cat.", "response_format": "pcm", "seed": 1}
    async with running.http() as http:
        for more in (own, others, vector, {"ref_audio": audio, "chunking": {"first_frames": 4}}):
            assert (await http.post("/v1/audio/speech", json=plain | more)).status_code == 200
        two = await http.post("/v1/audio/speech", json=plain | {"references": 2 * others["references"]})
        assert two.json()["error"]["param"] == "references"
        words = await http.post("/v1/audio/speech", json=plain | {"word_timestamps": True})
        assert words.json()["error"]["param"] == "word_timestamps"
        words = await http.post("/v1/audio/speech", json=plain | {"word_timestamps": True, "stream_format": "sse"})
        assert "speech.audio.words" in words.text
    one, same, first, again = (
        {each: r.get(each) for each in ("options", "messages", "audio")} for r in running.behind.requests[:4]
    )
    assert one == same
    assert first == again
    named = await start(SPOKEN, strict=True)
    async with named.http() as http:
        for more in ({"speaker": "rms"}, {"speaker": "rms", "voice": " "}, {"speaker": "slt", "voice": "rms"}):
            assert (await http.post("/v1/audio/speech", json=plain | more)).status_code == 200
    assert [json.loads(each["options"])["voice"] for each in named.behind.requests] == ["rms"] * 3


def many(count: int, name: str = "x") -> dict[str, int]:
    return {f"{name}{n}": 0 for n in range(count)}


@pytest.mark.parametrize(
    ("fields", "header"),
    [
        ({"x\r\nset-cookie: a=b": 1}, "x??set-cookie??a?b"),
        ({"a, b": 1, "\ud800ü": 1}, "a??b, ??"),
        ({"x" * 100_000: 1}, "x" * MAX_SHOWN_CHARS),
        (many(MAX_NAMES), ", ".join(many(MAX_NAMES))),
        (many(100_000), ", ".join([*many(MAX_NAMES), "..."])),
    ],
)
def test_ignored_field_names_are_bounded_and_header_safe(fields: dict[str, int], header: str) -> None:
    body = SpeechRequest.model_validate({"input": "a"} | fields)
    assert Ignored(body, is_strict=False).headers == {ResponseHeader.IGNORED: header}
    assert len(body._unknown) <= MAX_NAMES + 1


def test_ignored_names_are_limited_across_a_batch() -> None:
    body: BaseModel = BatchRequest.model_validate({"items": [{"input": "a"} | many(50)] * 32})
    assert len(Ignored(body, is_strict=False).names) == MAX_NAMES + 1


def timed(max_speech_s: float) -> dict[str, Any]:
    """Return a profile whose frames are 40 ms long."""
    tasks = [task | {"max_speech_s": max_speech_s, "max_text_rows": 500} for task in PROFILE["tasks"]]
    return PROFILE | {"frame_rate": 25.0, "tasks": tasks}


async def test_ref_audio_in_the_request_sets_the_voice(start: Start) -> None:
    running = await start(SPOKEN, CLONES)
    recording = bytes(range(256)) * 6000  # more than a body without a recording may have
    plain = base64.b64encode(recording).decode()
    async with running.http() as http:
        for ref_audio in (plain, f"data:audio/wav;base64,{plain}"):
            more = {"ref_audio": ref_audio, "ref_text": "It is me.", "task_type": "Base"}
            answer = await http.post("/v1/audio/speech", json=SPEECH | more)
            assert answer.status_code == 200, answer.text[:200]
            assert answer.headers[ResponseHeader.IGNORED] == "voice"  # of SPEECH, in whose place the recording is used
            request = running.behind.requests[-1]
            assert json.loads(request["messages"])[0] == {"role": "system", "audio": "audio", "text": "It is me."}
            assert request["audio"] == recording


async def test_transcription_stream_is_readable_by_vllm_clients(start: Start) -> None:
    running = await start(WRITTEN, timed(20.0))
    data = {"model": "whisper-1", "stream": "True", "stream_include_usage": "True", "max_completion_tokens": "64"}
    async with running.http() as http:
        answer = await http.post("/v1/audio/transcriptions", files={"file": FILE}, data=data)
    events = [json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n\n") if line]
    assert [event["choices"][0]["delta"]["content"] for event in events[:-1]] == ["a ", "cat "]
    assert events[-1]["usage"]["completion_tokens"] == events[-1]["usage"]["output_tokens"]
    assert json.loads(running.behind.requests[0]["options"]) == {"text": {"max_rows": 64}}


async def test_raw_pcm_responses_have_a_sample_rate_header(start: Start) -> None:
    async with (await start()).http() as http:
        raw = await http.post("/v1/audio/speech", json=SPEECH | {"sample_rate": 8000, "stream": True})
        wav = await http.post("/v1/audio/speech", json=SPEECH | {"response_format": "wav"})
    assert raw.headers["x-sample-rate"] == "8000"
    assert "x-sample-rate" not in wav.headers


@pytest.mark.parametrize("is_strict", [False, True])
async def test_tags_of_language_models_are_listed_and_not_spoken(start: Start, is_strict: bool) -> None:
    running = await start(SPOKEN, PLAIN | {"tags": ["<hum>"]}, strict=is_strict)
    text = "<think>Two\n\nlines</think>A <hum> <say>cat</say>.<|im_end|>"
    async with running.http() as http:
        for more in ({}, {"stream_format": "sse"}, {"markup": "none"}, {"markup": "markdown"}):
            answer = await http.post("/v1/audio/speech", json=SPEECH | {"input": text} | more)
            assert answer.headers[ResponseHeader.IGNORED] == "input.think, input.say, input.im_end"
        batch = {"items": [SPEECH, SPEECH | {"input": "<thought>x</thought>A cat."}], "check": "off"}
        answer = await http.post("/v1/audio/speech/batch", json=batch)
        assert answer.headers[ResponseHeader.IGNORED] == "input.thought"
        for refused in ("<think>only this</think>", "<speak>a & b</speak>"):
            answer = await http.post("/v1/audio/speech", json=SPEECH | {"input": refused})
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input")
    assert [each["text"].decode() for each in running.behind.requests] == ["A <hum> cat."] * 4 + ["A cat."] * 2
