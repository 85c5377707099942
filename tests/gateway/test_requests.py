"""Tables of requests in JSON and in forms: the error, the ignored fields, or the options that the server gets."""

import json
from typing import Any

import grpc
import pytest

from stretto_gateway.config import Limits
from stretto_gateway.response_headers import ResponseHeader
from tests.client.fake_server import PROFILE, Abort, Chunk, EmptyFinal, ErrorText, Step
from tests.gateway.conftest import SPOKEN, Start
from tests.gateway.test_chat import QUESTION, REPLY, SEES, TALKS
from tests.gateway.test_chat import SPOKEN as SPEAKS
from tests.gateway.test_transcription import ALIGNS, FILE, TRANSLATES, WRITTEN

SPEECH = "/v1/audio/speech"
BATCH = "/v1/audio/speech/batch"
CHAT = "/v1/chat/completions"
HEARS = "/v1/audio/transcriptions"
TRANSLATE = "/v1/audio/translations"
TEXT = {"input": "A cat.", "response_format": "pcm"}
PCM = {"output": {"encoding": "pcm_s16le", "sample_rate": 24_000}}
FORM = {
    "include[]": "logprobs",
    "chunking_strategy": "auto",
    "keywords[]": "Ada",
    "languages[]": "de",
    "user": "me",
    "vad_filter": "true",
    "hotwords": "Ada",
    "prompt": "Names: Ada.",
}
WORDS = {"timestamp_granularities[]": "word", "response_format": "verbose_json"}
DETAIL = "messages.0.content.0.image_url.detail"
LOW = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}}
IMAGE = [LOW, {"type": "text", "text": "What is this?"}]
SSML = '<speak><phoneme alphabet="ipa" ph="a">A</phoneme> <prosody pitch="high" rate="fast">cat</prosody>.</speak>'
SPOKEN_CHAT = {"messages": QUESTION, **SPEAKS}
# Fields that a model with languages does not honour.
UNHONOURED = {
    "instructions": "Whisper.",
    "depth": {"temperature": 0.5},
    "repetition_penalty": 1.1,
    "schedule": "turbo",
    "text_mode": "streaming",
    "task_type": "VoiceDesign",
    "non_streaming_mode": False,
    "ref_audio": "https://example.com/me.wav",
    "ref_text": "It is me.",
}
EVERY_OPTION = {
    "seed": 3,
    "guidance_scale": 1.5,
    "text": {"top_k": 2},
    "audio": {"top_k": 4},
    "chunking": {"deterministic": True},
    "depth": {"temperature": 0.5},
    "language": "english",
    "text_mode": "whole",
    "transliterate": True,
    "voice": "rms",
}
TIMED = [task | {"max_speech_s": 20.0, "max_text_rows": 500} for task in PROFILE["tasks"]]


def says(*contents: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content} for content in contents]}


def refusal(message: str) -> list[Step]:
    return [ErrorText(f"invalid request: {message}")]


# The path, the fields of the JSON or form, and what is expected: status, field and part of the message of an error;
# the sorted names of ignored fields; or the options that the server gets beside those in PCM.
Row = tuple[str, dict[str, Any], tuple[int, str | None, str] | list[str] | dict[str, Any]]
# Each name with the settings of a gateway, and its requests.
TABLES: dict[str, tuple[dict[str, Any], list[Row]]] = {
    "two voices": (
        {},
        [
            *((SPEECH, {"voice": name}, {"voice": "rms"}) for name in ("RMS", "Ryan", "am_adam", {"id": "Onyx"})),
            *((SPEECH, {"voice": name}, {"voice": "slt"}) for name in ("slt", "Vivian", "Alloy", "af_heart")),
            (SPEECH, EVERY_OPTION, EVERY_OPTION),
            (SPEECH, {"sample_rate": 8000}, {"output": PCM["output"] | {"sample_rate": 8000}}),
            (SPEECH, {"instructions": "Whisper."}, {"instruct": "Whisper."}),
            (SPEECH, {"instructions": ""}, {}),
            (SPEECH, {"model": "parrot"}, (404, "model", "model: expected 'tiny', got 'parrot'")),
            (SPEECH, {"volume": 11, "lang_code": "a"}, ["lang_code", "volume"]),
            (SPEECH, {"voice": {"id": "alloy", "more": []}}, ["voice.more"]),
            (
                SPEECH,
                {"speaker_embedding": [0.5] * 2048, "extra_params": {"a": 1}},
                ["extra_params", "speaker_embedding"],
            ),
            (SPEECH, {"input": SSML}, ["input.phoneme", "input.prosody.pitch"]),
            (BATCH, {"items": [TEXT], "volume": 11}, ["volume"]),
            (BATCH, {"items": [TEXT | {"volume": 11}]}, ["items.0.volume"]),
            (CHAT, SPOKEN_CHAT, (400, "model", "model: 'tiny' does not support conversations")),
        ],
    ),
    "strict": (
        {"strict": True, "limits": Limits(max_batch=2, drain_s=1)},
        [
            (SPEECH, {"voice": " "}, {}),
            (SPEECH, {"voice": {"id": ""}}, {}),
            (
                SPEECH,
                {"input": SSML},
                (400, "input.phoneme", "SSML without it ('tiny' does not render it), got 'phoneme'"),
            ),
            (BATCH, {"items": [{"input": "a"}] * 3}, (400, "items", "items: expected at most 2")),
        ],
    ),
    "aliases": (
        {"model_aliases": {"my/voice": "tiny", "other": "absent"}},
        [(SPEECH, {"model": "my/voice"}, {}), (SPEECH, {"model": "other"}, (404, "model", "model: expected 'tiny'"))],
    ),
    "voices of other engines": (
        {"profile": PROFILE | {"voices": ["eric", "ryan"]}},
        [(SPEECH, {"voice": name}, {"voice": "ryan"}) for name in ("ryan", "Ryan")],
    ),
    "voices in capitals": (
        {"profile": PROFILE | {"voices": ["Ryan", "ryan"]}},
        [(SPEECH, {"voice": "ryan"}, {"voice": "ryan"})],
    ),
    "no voices": ({"profile": PROFILE | {"voices": []}}, [(SPEECH, {"voice": "Ryan"}, {})]),
    "languages": (
        {"profile": PROFILE | {"options": ["text_mode", "language"], "languages": ["english", "german"]}},
        [
            (SPEECH, {"non_streaming_mode": True}, {"text_mode": "whole"}),
            (SPEECH, {"non_streaming_mode": False}, {"text_mode": "streaming"}),
            (SPEECH, {"non_streaming_mode": True, "text_mode": "streaming"}, {"text_mode": "streaming"}),
            (SPEECH, {"language": "Auto"}, {}),
            (SPEECH, {"language": "de"}, {"language": "german"}),
            (SPEECH, {"language": "de-AT"}, {"language": "german"}),
            (SPEECH, {"language": "English"}, {"language": "english"}),
        ],
    ),
    "frames": (
        {"profile": PROFILE | {"frame_rate": 25.0, "tasks": TIMED}},
        [
            (SPEECH, {"max_new_tokens": 50}, {"max_audio_s": 2.0}),
            (SPEECH, {"max_completion_tokens": 50}, {"max_audio_s": 2.0}),
            (SPEECH, {"max_completion_tokens": 50, "max_new_tokens": 25}, {"max_audio_s": 1.0}),
            (SPEECH, {"max_new_tokens": 50, "max_audio_s": 1.5}, {"max_audio_s": 1.5}),
            (SPEECH, {"max_new_tokens": 25, "max_audio_s": 1.5}, {"max_audio_s": 1.0}),
            (SPEECH, {"max_new_tokens": 4096}, {}),
        ],
    ),
    "one language": (
        {"profile": PROFILE | {"options": ["language"], "languages": ["english"]}},
        [(SPEECH, {name: value}, [name]) for name, value in UNHONOURED.items()],
    ),
    "one language, strict": (
        {"profile": PROFILE | {"options": ["language"], "languages": ["english"]}, "strict": True},
        [
            *((SPEECH, {name: value}, (400, name, f"{name}: expected ")) for name, value in UNHONOURED.items()),
            (SPEECH, {"language": "en", "non_streaming_mode": True, "stream": True}, {"language": "english"}),
            (SPEECH, {"task_type": "CustomVoice", "seed": 3}, {"seed": 3}),
        ],
    ),
    "conversations": (
        {"profile": TALKS, "script": REPLY},
        [
            (CHAT, SPOKEN_CHAT | {"tools": [], "max_tokens": 9}, ["max_tokens", "tools"]),
            (CHAT, {"messages": QUESTION, "max_completion_tokens": 30}, {"text": {"max_rows": 30}}),
            (CHAT, SPOKEN_CHAT | {"max_completion_tokens": 30}, ["max_completion_tokens"]),
            (CHAT, says([LOW]), (400, "model", "'talker' does not support conversations with image as input")),
        ],
    ),
    "short conversations": (
        {"profile": TALKS, "script": REPLY, "limits": Limits(max_input_chars=10, drain_s=1)},
        [
            (CHAT, says(*contents) | SPEAKS, (400, param, "at most 10 characters in all texts, got 11 characters"))
            for contents, param in (
                (["A" * 11], "messages.0.content"),
                (["A" * 6, "A" * 5], "messages.1.content"),
                ([[{"type": "text", "text": text} for text in ("A" * 10, "A")]], "messages.0.content.1.text"),
            )
        ],
    ),
    "images": ({"profile": SEES, "script": REPLY}, [(CHAT, says(IMAGE), [DETAIL])]),
    "images, strict": (
        {"profile": SEES, "strict": True},
        [(CHAT, says(IMAGE), (400, DETAIL, f"{DETAIL}: expected auto or no value, got 'low'"))],
    ),
    "transcripts": (
        {"profile": TRANSLATES, "script": WRITTEN},
        [
            (HEARS, FORM, sorted(FORM)),
            (HEARS, WORDS, ["timestamp_granularities"]),
            (HEARS, {"language": "de"}, ["language"]),
            (TRANSLATE, FORM | {"stream": "true"}, sorted([*(FORM.keys() - {"prompt"}), "stream"])),
        ],
    ),
    "transcripts, strict": (
        {"profile": TRANSLATES, "strict": True},
        [(TRANSLATE, {"stream": "true"}, (400, "stream", "stream: "))],
    ),
    "no translation": ({}, [(TRANSLATE, {}, (400, "model", "'tiny' does not support translation of speech"))]),
}
FAILED = (502, None, "the speech server failed on this request")
# The path and fields of a request, the error of the server before the first audio, and that of the gateway.
FAILURES: list[tuple[str, dict[str, Any], list[Step], tuple[int, str | None, str]]] = [
    (SPEECH, {}, refusal("text: expected words, got '!'"), (400, "input", "input: expected words, got '!'")),
    (SPEECH, {}, refusal("options.seed: expected an integer"), (400, "seed", "seed: expected an integer")),
    (SPEECH, {}, refusal("options.instruct: expected no value"), (400, "instructions", "instructions: expected no")),
    (SPEECH, {}, [ErrorText("unavailable: server is draining")], (503, None, "accepts no requests now")),
    (SPEECH, {}, [ErrorText("full: 1024 utterances are already in flight")], (429, None, "was at capacity for 0 s")),
    (SPEECH, {}, [Abort(grpc.StatusCode.INTERNAL, "secret path")], FAILED),
    (SPEECH, {}, [EmptyFinal()], FAILED),
    (SPEECH, {}, [Chunk(0, None, is_final=True, is_last=True)], (502, None, "the model has generated no audio")),
    (HEARS, {}, refusal("audio: expected a wav file"), (400, "file", "file: expected a wav file")),
    (
        *(HEARS, WORDS, refusal("options.words: expected a recording of at most 60 s")),
        (400, "timestamp_granularities", "timestamp_granularities: expected a recording of at most 60 s"),
    ),
]


async def expect(running: Any, path: str, fields: dict[str, Any], expected: Any) -> None:
    """Send a request, and compare its answer with that of a table."""
    content: dict[str, Any] = {"json": TEXT | fields if path == SPEECH else fields}
    if path in (HEARS, TRANSLATE):
        content = {"files": {"file": FILE}, "data": {"model": "tiny"} | fields}
    async with running.http() as http:
        answer = await http.post(path, **content)
    ignored = sorted(filter(None, answer.headers.get(ResponseHeader.IGNORED, "").split(", ")))
    assert answer.headers["x-request-id"].startswith("req_")
    if isinstance(expected, tuple):
        status, param, message = expected
        error = answer.json()["error"]
        assert (answer.status_code, error["param"], ignored) == (status, param, []), (fields, error)
        assert message in error["message"]
        assert answer.headers.get("retry-after") == ("1" if status in (429, 503) else None)
        return
    assert answer.status_code == 200, (fields, answer.text)
    assert ignored == (expected if isinstance(expected, list) else [])
    if isinstance(expected, dict):
        options = json.loads(running.behind.requests[-1]["options"])
        seeded = {"seed": options["seed"]} | PCM if path == SPEECH else {}
        assert options == seeded | expected, fields


@pytest.mark.parametrize("name", TABLES)
async def test_requests_are_answered(start: Start, name: str) -> None:
    gateway, rows = TABLES[name]
    running = await start(**{"script": SPOKEN} | gateway)
    for path, fields, expected in rows:
        del running.behind.requests[:]
        await expect(running, path, fields, expected)
        assert bool(running.behind.requests) != isinstance(expected, tuple), fields


@pytest.mark.parametrize(("path", "fields", "steps", "expected"), FAILURES)
async def test_failures_before_the_first_audio_are_reported(
    start: Start, path: str, fields: dict[str, Any], steps: list[Step], expected: tuple[int, str | None, str]
) -> None:
    running = await start(steps, ALIGNS, limits=Limits(full_s=0.0, drain_s=1))
    await expect(running, path, fields, expected)
