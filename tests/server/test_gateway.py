"""OpenAI's client, the gateway and the real server, from text to sound and back."""

import asyncio
import socket
from collections.abc import AsyncIterator

import numpy as np
import openai
import pytest

from stretto_client import SpeechClient
from stretto_gateway.command import make_server
from stretto_gateway.config import GatewayConfig
from tests.server.conftest import Server

pytestmark = pytest.mark.server
TEXT = "The birch canoe slid on the smooth planks."


@pytest.fixture
async def client(server: Server) -> AsyncIterator[openai.AsyncOpenAI]:
    listener = socket.create_server(("127.0.0.1", 0))
    gateway = make_server(GatewayConfig(f"localhost:{server.grpc}"), listener)
    serving = asyncio.ensure_future(gateway.serve([listener]))
    while not gateway.started:
        await asyncio.sleep(0.01)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="unused", max_retries=0, timeout=120) as opened:
        yield opened
    gateway.should_exit = True
    await serving


async def test_speech_is_the_servers_own_and_is_understood_again(server: Server, client: openai.AsyncOpenAI) -> None:
    same = {"seed": 3, "chunking": {"deterministic": True}}
    spoken = await client.audio.speech.create(
        model="tts-1", voice="alloy", input=TEXT, response_format="pcm", extra_body=same
    )
    async with SpeechClient(f"localhost:{server.grpc}") as plain:
        stream = plain.speak(TEXT, voice="slt", encoding="pcm_s16le", sample_rate=24_000, **same)
        pcm = [event.pcm async for event in stream if event.pcm is not None]
    assert spoken.content == np.concatenate(pcm).tobytes()
    wav = await client.audio.speech.create(
        model="tts-1", voice="alloy", input=TEXT, response_format="flac", extra_body=same
    )
    text = await client.audio.transcriptions.create(model="whisper-1", file=("canoe.flac", wav.content))
    assert len(set(text.text.lower().strip(".").split()) & set(TEXT.lower().strip(".").split())) >= 5


async def test_what_the_model_refuses_is_named_as_the_caller_names_it(client: openai.AsyncOpenAI) -> None:
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


async def test_who_leaves_frees_the_language_model(server: Server, client: openai.AsyncOpenAI) -> None:
    long = {"max_audio_s": 9.6, "audio": {"min_rows": 239}}
    create = client.audio.speech.with_streaming_response.create
    async with create(model="tts-1", voice="alloy", input=TEXT, response_format="wav", extra_body=long) as answer:
        await anext(answer.iter_bytes())
        assert server.table().num_active() >= 1
    await asyncio.to_thread(server.until, lambda: server.table().num_active() == 0)
