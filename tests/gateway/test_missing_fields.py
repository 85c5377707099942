"""Fields that count as missing (null, blank in a form), and choices in any letter case."""

import json
from typing import Any

import pytest
from pydantic import BaseModel

from stretto_gateway.chat import AudioForm, ChatRequest
from stretto_gateway.realtime.client_secrets import SecretRequest
from stretto_gateway.realtime.settings import RealtimeSettings, ServerVad
from stretto_gateway.response_headers import ResponseHeader
from stretto_gateway.speech_batch import BatchRequest
from stretto_gateway.speech_request import SpeechItem, SpeechRequest
from stretto_gateway.speech_stream import SessionConfig
from stretto_gateway.transcription import TranscriptionForm, TranslationForm
from stretto_gateway.voices import VoiceForm
from tests.client.fake_server import Chunk, Request, Step
from tests.gateway.conftest import SPOKEN, Start
from tests.gateway.realtime.caller import TALKS, call
from tests.gateway.realtime.test_bounds import ask, open_socket
from tests.gateway.test_chat import REPLY
from tests.gateway.test_transcription import FILE, TRANSLATES, WRITTEN
from tests.gateway.test_voices import CLONES, FORM, RECORDING

TEXT: dict[str, Any] = {"input": "A cat."}
ITEM = TEXT | {"seed": 3}  # items of a batch have a random seed
QUESTION: dict[str, Any] = {"messages": [{"role": "user", "content": "How are you?"}]}


def optional(model: type[BaseModel], value: Any) -> dict[str, Any]:
    """Return `value` for each optional field of a request, and for a field that the gateway does not know."""
    known = {field.alias or name: value for name, field in model.model_fields.items() if not field.is_required()}
    return known | {"unknown_field": value}


NULL_CHAT = optional(ChatRequest, None) | {"audio": optional(AudioForm, None)}
PART = {"type": "text", "text": "How are you?", "input_audio": None}
NULLS = [
    ("/v1/audio/speech", TEXT, TEXT | optional(SpeechRequest, None)),
    ("/v1/audio/speech", TEXT | {"voice": "slt"}, TEXT | {"voice": {"id": "slt", "more": None}}),
    ("/v1/audio/speech/batch", {"items": [ITEM]}, {"items": [TEXT | optional(SpeechItem, None) | ITEM]}),
    ("/v1/audio/speech/batch", {"items": [ITEM]}, {"items": [ITEM]} | optional(BatchRequest, None)),
    (
        "/v1/audio/speech/batch",
        {"items": [TEXT | {"voice": "rms", "seed": 3}]},
        {"items": [TEXT | {"voice": None, "seed": None}], "voice": "rms", "seed": 3},
    ),
    ("/v1/chat/completions", QUESTION, QUESTION | optional(ChatRequest, None)),
    ("/v1/chat/completions", QUESTION, {"messages": [{"role": "user", "content": [PART], "name": None}]} | NULL_CHAT),
    ("/v1/realtime/client_secrets", {}, optional(SecretRequest, None)),
]


@pytest.fixture(autouse=True)
def one_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let requests without a seed, for which the client draws one, be equal."""
    monkeypatch.setattr("stretto_client.speech_stream.secrets.randbits", lambda num_bits: num_bits)


def script(request: Request) -> list[Step]:
    return REPLY if request["task"] != b"tts" else SPOKEN


@pytest.mark.parametrize(("path", "plain", "full"), NULLS)
async def test_null_counts_as_a_missing_field(
    start: Start, path: str, plain: dict[str, Any], full: dict[str, Any]
) -> None:
    running = await start(script, TALKS, strict=True)
    async with running.http() as http:
        answers = [await http.post(path, json=body) for body in (plain, full)]
    for answer in answers:
        assert (answer.status_code, ResponseHeader.IGNORED in answer.headers) == (200, False), answer.text
    assert answers[0].headers["content-type"] == answers[1].headers["content-type"]
    requests = running.behind.requests
    assert requests[: len(requests) // 2] == requests[len(requests) // 2 :]


async def test_null_in_a_session_config_counts_as_missing(start: Start) -> None:
    running = await start(SPOKEN, strict=True)
    async with open_socket(running, "/v1/audio/speech/stream") as opened:
        await opened.send(json.dumps({"type": "session.config"} | optional(SessionConfig, None)))
        await opened.send(json.dumps({"type": "input.text", "text": "A cat."}))
        begun = await ask_json(opened, {"type": "input.done"}, "audio.start")
    assert (begun["format"], begun["sample_rate"]) == ("mp3", 24_000)


async def ask_json(opened: Any, record: dict[str, Any], kind: str) -> dict[str, Any]:
    """Send an event and return the next JSON event of a type; fail at an error."""
    await opened.send(json.dumps(record))
    while True:
        message = await opened.recv()
        if isinstance(message, bytes):
            continue
        event = json.loads(message)
        assert event["type"] != "error", event
        if event["type"] == kind:
            return event


def nulls_of(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the session object with null for every value except objects, types and `turn_detection`."""
    kept = {name: nulls_of(value) for name, value in settings.items() if isinstance(value, dict)}
    return dict.fromkeys(settings) | kept | {name: settings[name] for name in ("type",) if name in settings}


async def test_null_session_settings_are_unchanged_settings(start: Start) -> None:
    """OpenAI's packages write every field of a settings object, with null for those that were not set."""
    running = await start(REPLY, TALKS, strict=True)
    async with call(running) as caller:
        before = await caller.update(
            {"type": "server_vad", "threshold": 0.6, "create_response": False}, audio={"output": {"voice": "rms"}}
        )
        known = RealtimeSettings(model="talker").model_dump() | {"id": None, "object": None, "expires_at": None}
        nulls = nulls_of(known)
        nulls["audio"]["input"] |= {"turn_detection": optional(ServerVad, None) | {"type": "server_vad"}}
        nulls["audio"]["input"]["transcription"] = dict.fromkeys(("model", "language", "prompt", "logprobs"))
        after = await caller.ask("session.update", session=nulls)
        assert after.type == "session.updated", after
        assert "stretto_ignored" not in after.model_dump()
        audio = after.session.audio
        assert (audio.input.turn_detection.threshold, audio.input.turn_detection.create_response) == (0.6, False)
        assert (audio.input.format, audio.output.format) == (before.session.audio.input.format, audio.input.format)
        reply = {"instructions": None, "metadata": None, "audio": {"output": {"format": None, "voice": None}}}
        await caller.say("How are you?")
        await caller.send("response.create", response=reply | {"input": None, "tools": None, "unknown_field": None})
        done = (await caller.until("response.done"))[-1]
        assert done.response.status == "completed"


async def test_null_turn_detection_switches_it_off(start: Start) -> None:
    async with call(await start(REPLY, TALKS)) as caller:
        assert caller.seen[0].session.audio.input.turn_detection.type == "server_vad"
        assert (await caller.update(None)).session.audio.input.turn_detection is None


@pytest.mark.parametrize("blank", ["", " ", "\t\n"])
@pytest.mark.parametrize(
    ("path", "form"),
    [
        ("/v1/audio/transcriptions", TranscriptionForm),
        ("/v1/audio/translations", TranslationForm),
        ("/v1/audio/voices", VoiceForm),
    ],
)
async def test_blank_form_fields_count_as_missing(
    start: Start, tmp_path: Any, path: str, form: type[BaseModel], blank: str
) -> None:
    known = CLONES if form is VoiceForm else TRANSLATES
    running = await start(SPOKEN if form is VoiceForm else WRITTEN, known, strict=True, voices=tmp_path)
    plain, files = ({}, {"file": FILE}) if form is not VoiceForm else (FORM, {"audio_sample": ("me.wav", RECORDING)})
    plain = {name: plain[name] for name in plain if name != "ref_text"}
    async with running.http() as http:
        answers = [await http.post(path, files=files, data=data) for data in (plain, optional(form, blank) | plain)]
    for answer in answers:
        assert (answer.status_code, ResponseHeader.IGNORED in answer.headers) == (200, False), answer.text
    first, second = running.behind.requests
    assert first == second


@pytest.mark.parametrize(
    ("name", "media_type"),
    [
        ("MP3", "audio/mpeg"),
        (" mp3 ", "audio/mpeg"),
        ("", "audio/mpeg"),
        (" ", "audio/mpeg"),
        ("Opus", "audio/ogg"),
        ("WAV\n", "audio/wav"),
    ],
)
async def test_choices_have_any_letter_case(start: Start, name: str, media_type: str) -> None:
    running = await start(SPOKEN, TALKS)
    async with running.http() as http:
        answer = await http.post("/v1/audio/speech", json=TEXT | {"response_format": name, "markup": " NONE"})
        assert (answer.status_code, answer.headers["content-type"]) == (200, media_type), answer.text
        batch = await http.post("/v1/audio/speech/batch", json={"items": [TEXT], "response_format": name})
        assert batch.json()["results"][0]["media_type"] == media_type
        events = await http.post("/v1/audio/speech", json=TEXT | {"response_format": name, "stream_format": "SSE"})
        assert events.headers["content-type"].startswith("text/event-stream")
    async with open_socket(running, "/v1/audio/speech/stream") as opened:
        await opened.send(json.dumps({"type": "session.config", "response_format": name}))
        await opened.send(json.dumps({"type": "input.text", "text": "A cat."}))
        begun = await ask_json(opened, {"type": "input.done"}, "audio.start")
    assert begun["format"] == (name.strip().lower() or "mp3")


async def test_chat_and_transcript_choices_have_any_letter_case(start: Start) -> None:
    written = Chunk(0, None, text="a cat", is_final=True, is_last=True)
    running = await start(lambda request: [written] if request["task"] == b"asr" else REPLY, TALKS)
    async with running.http() as http:
        for sound in ("PCM16", " Wav", ""):
            spoken = {"modalities": ["Text", " AUDIO"], "audio": {"voice": "rms", "format": sound}}
            answer = await http.post("/v1/chat/completions", json=QUESTION | spoken)
            assert answer.json()["choices"][0]["message"]["audio"]["data"], answer.text
        for name, kind in (("SRT", "text/plain"), (" vtt ", "text/vtt"), ("Verbose_JSON", "application/json")):
            form = {"response_format": name} | ({"timestamp_granularities[]": "Segment"} if name[0] == "V" else {})
            answer = await http.post("/v1/audio/transcriptions", files={"file": FILE}, data=form)
            assert answer.status_code == 200, answer.text
            assert answer.headers["content-type"].startswith(kind)
            assert "stretto-ignored" not in answer.headers


async def test_own_errors_have_no_prefix_of_pydantic(start: Start) -> None:
    running = await start()
    async with open_socket(running, "/v1/audio/speech/stream") as opened:
        error = await ask(opened, json.dumps({"type": "session.config", "voice": "\ud800"}), "error")
    assert error["message"].startswith("voice: expected text without lone surrogates, got one")
