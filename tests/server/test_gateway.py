"""OpenAI's client, the gateway and the real server, from text to sound and back."""

import asyncio
import io
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import soundfile

from stretto_client import SpeechClient
from stretto_gateway.config import MIB, CacheSettings
from stretto_gateway.encoding import wav_header
from tests.patience import PATIENCE_S
from tests.server.conftest import Server
from tests.server.openai_client import gateway_port, openai_client

pytestmark = pytest.mark.server
TEXT = "The birch canoe slid on the smooth planks."


@pytest.fixture
async def client(server: Server) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai_client(server.grpc) as opened:
        yield opened


async def test_gateway_speech_and_transcripts_match_the_server(server: Server, client: openai.AsyncOpenAI) -> None:
    same: dict[str, Any] = {"seed": 3, "chunking": {"deterministic": True}}

    async def spoken(response_format: Any) -> bytes:
        answer = await client.audio.speech.create(
            model="tts-1", voice="alloy", input=TEXT, response_format=response_format, extra_body=same
        )
        return answer.content

    pcm, wav = await spoken("pcm"), await spoken("wav")
    text = await client.audio.transcriptions.create(model="whisper-1", file=("canoe.wav", wav))
    async with SpeechClient(f"localhost:{server.grpc}") as plain:
        stream = plain.speak(TEXT, voice="heart", encoding="pcm_s16le", sample_rate=24_000, **same)
        said = [event.pcm async for event in stream if event.pcm is not None]
        heard = [event.text async for event in plain.transcribe(wav)]
    assert pcm == np.concatenate(said).tobytes()
    assert wav == wav_header(24_000) + pcm
    assert len(text.text.split()) > 3
    assert text.text == "".join(heard).strip()


async def test_speech_from_the_cache_equals_generated_speech(server: Server) -> None:
    """Several clauses, with their word times and usage."""
    body = {"voice": "alloy", "input": f"{TEXT} " * 8, "seed": 3, "chunking": {"deterministic": True}}
    forms = [{"response_format": "mp3"}, {"sample_rate": 16_000, "stream_format": "sse", "timestamps": True}]
    answers = list[list[httpx.Response]]()
    cache = CacheSettings(16 * MIB)
    async with gateway_port(server.grpc) as plain, gateway_port(server.grpc, cache=cache) as caching:
        for port in (plain, caching, caching):
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S) as http:
                answers.append([await http.post("/v1/audio/speech", json=body | form) for form in forms])
    assert [reply.headers.get("stretto-cache") for replies in answers for reply in replies] == [
        *(None, None, "miss", "miss", "hit", "hit")
    ]
    off, miss, hit = ([reply.content for reply in replies] for replies in answers)
    assert off == miss == hit
    assert len(off[0]) > 10_000


async def test_recordings_in_any_container_have_the_same_transcript(client: openai.AsyncOpenAI) -> None:
    """One channel of the stereo files is inverted; another file has no sizes, as from a recorder that was ended."""
    spoken = await client.audio.speech.create(model="tts-1", voice="alloy", input=TEXT, response_format="wav")
    pcm = np.frombuffer(spoken.content[len(wav_header(24_000)) :], np.int16)
    stereo, files = np.stack([pcm, -pcm], 1), dict[str, bytes]()
    for container, channels in (("WAV", pcm), ("AIFF", stereo), ("CAF", stereo), ("FLAC", stereo)):
        file = io.BytesIO()
        soundfile.write(file, channels, 24_000, format=container, subtype="PCM_16")
        files[container] = file.getvalue()
    files["junk"] = bytes(700) + files["WAV"]
    files["no sizes"] = files["WAV"][:4] + bytes(4) + files["WAV"][8:40] + bytes(4) + files["WAV"][44:]
    texts = [
        (await client.audio.transcriptions.create(model="whisper-1", file=("recording", data))).text
        for data in files.values()
    ]
    assert len(texts[0].split()) > 3
    assert texts == [texts[0]] * len(files)


async def test_model_refusals_name_the_openai_field(client: openai.AsyncOpenAI) -> None:
    async def refusal(**change: object) -> str | None:
        request = {"model": "tts-1", "voice": "alloy", "input": "A cat."} | change
        with pytest.raises(openai.BadRequestError) as raised:
            await client.audio.speech.create(**request)  # type: ignore[call-overload]
        return raised.value.param

    assert await refusal(input="?!") == "input"
    assert await refusal(input="") == "input"
    assert await refusal(extra_body={"seed": "one"}) == "seed"
    assert await refusal(extra_body={"audio": {"temperature": -1}}) == "audio.temperature"
    assert await refusal(extra_body={"sample_rate": 1, "response_format": "pcm"}) == "sample_rate"
    with pytest.raises(openai.BadRequestError) as raised:
        await client.audio.transcriptions.create(model="whisper-1", file=("x.wav", b"nothing"))
    assert raised.value.param == "file"


async def test_gateway_reports_unsupported_options_as_ignored(client: openai.AsyncOpenAI) -> None:
    answer = await client.audio.speech.with_raw_response.create(
        model="tts-1", voice="alloy", input="A cat.", instructions="Whisper.", extra_body={"depth": {"top_k": 2}}
    )
    assert answer.status_code == 200
    assert sorted(answer.headers["stretto-ignored"].split(", ")) == ["depth", "instructions"]


async def test_gateway_disconnect_frees_the_language_model(server: Server, client: openai.AsyncOpenAI) -> None:
    long = {"max_audio_s": 9.6, "audio": {"min_rows": 239}}
    create, num_active = client.audio.speech.with_streaming_response.create, 0
    while not num_active:  # on a busy machine, all may be generated before the first bytes are here
        async with create(model="tts-1", voice="alloy", input=TEXT, response_format="wav", extra_body=long) as answer:
            await anext(answer.iter_bytes())
            num_active = server.table().num_active()
    await asyncio.to_thread(server.until, lambda: server.table().num_active() == 0)
