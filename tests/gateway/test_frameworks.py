"""docs/frameworks.md: the requests of agent frameworks and of a chat front end, as their sources send them."""

import io
import json
import wave
from typing import Any

import httpx
import openai
import pytest

from tests.client.fake_server import Chunk, ErrorText, Request, Step
from tests.gateway.conftest import NUM_SAMPLES, SPOKEN, Start
from tests.gateway.test_speech import num_samples

TEXT = "It is twenty past nine."
PIPECATS_VOICES = ("alloy", "ash", "ballad", "coral", "echo", "fable", "onyx", "nova", "sage", "shimmer", "verse")
OPEN_WEBUIS_VOICES = ("alloy", "echo", "fable", "onyx", "nova", "shimmer")


def script(request: Request) -> list[Step]:
    return [Chunk(0, None, text=TEXT, is_final=True, is_last=True)] if "audio" in request else list(SPOKEN)


def recording() -> bytes:
    """A quarter of a second of a room at 16 kHz."""
    file = io.BytesIO()
    with wave.open(file, "wb") as wav:
        wav.setnchannels(1)
        wav.setsampwidth(2)
        wav.setframerate(16_000)
        wav.writeframes(bytes(8_000))
    return file.getvalue()


async def test_pipecat_speaks_with_each_of_its_voices(start: Start) -> None:
    running = await start(script)
    create = running.openai(max_retries=2).audio.speech.with_streaming_response.create
    for voice in PIPECATS_VOICES:
        asked: dict[str, Any] = {"input": TEXT, "model": "gpt-4o-mini-tts", "voice": voice, "response_format": "pcm"}
        async with create(**asked) as answer:
            assert answer.status_code == 200
            parts = [part async for part in answer.iter_bytes(1024)]
        assert b"".join(parts) == b"\x00\x20" * NUM_SAMPLES
    outputs = [json.loads(request["options"])["output"] for request in running.behind.requests]
    assert outputs == [{"encoding": "pcm_s16le", "sample_rate": 24_000}] * len(PIPECATS_VOICES)


async def test_pipecat_and_livekit_hear(start: Start) -> None:
    running = await start(script)
    create = running.openai().audio.transcriptions.create
    pipecats = await create(file=("audio.wav", recording(), "audio/wav"), model="gpt-4o-transcribe", language="en")
    livekits = await create(
        file=("my_file.wav", recording(), "audio/wav"), model="whisper-1", language="en", response_format="json"
    )
    assert (pipecats.text, livekits.text) == (TEXT, TEXT)
    assert [request["audio"] for request in running.behind.requests] == [recording()] * 2


@pytest.mark.parametrize("response_format", ["mp3", "pcm"])
async def test_livekit_speaks(start: Start, response_format: Any) -> None:
    client = (await start(script)).openai()
    with pytest.raises(openai.NotFoundError):  # what it warms its connection up with, whatever comes
        await client.get("/", cast_to=str)
    async with client.audio.speech.with_streaming_response.create(
        input=TEXT,
        model="gpt-4o-mini-tts",
        voice="ash",
        response_format=response_format,
        speed=1.0,
        instructions=openai.NOT_GIVEN,
        timeout=httpx.Timeout(30, connect=10),
    ) as stream:
        assert (stream.request_id or "").startswith("req_")
        data = b"".join([part async for part in stream.iter_bytes()])
    assert num_samples(data, response_format) == pytest.approx(NUM_SAMPLES, abs=2500)


async def test_livekit_is_told_the_status_and_the_words_of_a_failure(start: Start) -> None:
    client = (await start([ErrorText("full: 9 utterances are already in flight")])).openai()
    with pytest.raises(openai.APIStatusError) as raised:
        async with client.audio.speech.with_streaming_response.create(
            input=TEXT, model="gpt-4o-mini-tts", voice="ash", response_format="mp3", speed=1.0
        ):
            pass
    assert raised.value.status_code == 429
    assert raised.value.request_id
    assert "as much work as it takes" in raised.value.message


async def test_open_webui_speaks_and_hears(start: Start) -> None:
    async with (await start(script)).http() as http:
        for voice in OPEN_WEBUIS_VOICES:
            body = {"input": TEXT, "voice": voice, "model": "tts-1"}
            spoken = await http.post("/v1/audio/speech", json=body, headers={"authorization": "Bearer anything"})
            assert (spoken.status_code, spoken.headers["content-type"]) == (200, "audio/mpeg")
        assert num_samples(spoken.content, "mp3") == pytest.approx(NUM_SAMPLES, abs=2500)
        files = {"file": ("0d5c.mp3", spoken.content)}
        heard = await http.post("/v1/audio/transcriptions", files=files, data={"model": "whisper-1", "language": "en"})
        assert heard.json()["text"] == TEXT
        refused = await http.post("/v1/audio/transcriptions", files=files, data={"model": "parrot"})
        assert "no 'parrot'" in refused.json()["error"]["message"]
