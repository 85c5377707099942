"""`/v1/chat/completions` with audio, called by OpenAI's own client, with a family that converses."""

import base64
import json
from typing import Any

import numpy as np
import pytest

from stretto_gateway.config import Limits
from stretto_gateway.encoding import SYNTHETIC, make_encoder
from tests.client.fake_server import PROFILE, Chunk
from tests.gateway.conftest import Start


def task(name: str, **fields: Any) -> dict[str, Any]:
    known = {"needs": ["text"], "also": ["audio"], "speaks": True, "answers": "user", "has_history": True}
    return known | {"name": name, "system": ["text"]} | fields


TALKS = PROFILE | {"family": "talker", "voices": [], "tasks": [task("dialogue"), task("chat", speaks=False)]}
REPLY = [
    Chunk(0, None, text="fine"),
    Chunk(1, 640, is_16_bit=True),
    Chunk(2, 320, is_16_bit=True, is_final=True, is_last=True),
]
QUESTION: list[Any] = [
    {"role": "system", "content": "You are terse."},
    {
        "role": "user",
        "content": [
            {"type": "input_audio", "input_audio": {"data": base64.b64encode(b"RIFF").decode(), "format": "wav"}},
            {"type": "text", "text": "How are you?"},
        ],
    },
]
SPOKEN: dict[str, Any] = {"modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "pcm16"}}


async def test_chat_completion_answers_in_speech(start: Start) -> None:
    running = await start(REPLY, TALKS)
    answer = await running.openai().chat.completions.create(model="gpt-audio", messages=QUESTION, seed=1, **SPOKEN)
    audio = answer.choices[0].message.audio
    assert audio is not None
    assert audio.transcript == "fine"
    assert base64.b64decode(audio.data) == b"\x00\x20" * 960
    (request,) = running.behind.requests
    assert (request["task"], request["audio"]) == (b"dialogue", b"RIFF")
    assert json.loads(request["messages"]) == [
        {"role": "system", "text": "You are terse."},
        {"role": "user", "audio": "audio"},
        {"role": "user", "text": "How are you?"},
    ]
    assert json.loads(request["options"])["seed"] == 1


async def test_model_lists_its_conversation_tasks(start: Start) -> None:
    client = (await start(REPLY, TALKS)).openai()
    (model,) = [model async for model in client.models.list()]
    told = {"needs": ["text"], "also": ["audio"]}
    expected = [told | {"task": "dialogue", "speaks": True}, told | {"task": "chat", "speaks": False}]
    assert model.to_dict()["conversations"] == expected


async def test_user_turn_is_answered_in_text(start: Start) -> None:
    running = await start([Chunk(0, None, text="fine", is_final=True, is_last=True)], TALKS)
    question: list[Any] = [{"role": "user", "content": "How are you?"}]
    answer = await running.openai().chat.completions.create(model="talker", messages=question)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("fine", "stop")
    assert running.behind.requests[0]["task"] == b"chat"
    assert await running.metric("audio_skipped_total") == 0


SEES = {**TALKS, "tasks": [task | {"also": [*task["also"], "image"]} for task in TALKS["tasks"]]}


def shown(url: str) -> dict[str, Any]:
    """Return a request with an image and a question."""
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is this?"}]
    return {"messages": [{"role": "user", "content": parts}]}


async def test_images_are_sent_as_files(start: Start) -> None:
    running = await start([Chunk(0, None, text="rain", is_final=True, is_last=True)], SEES)
    url = f"data:image/png;base64,{base64.b64encode(b'a file').decode()}"
    async with running.http() as http:
        answer = await http.post("/v1/chat/completions", json=shown(url))
    assert answer.json()["choices"][0]["message"]["content"] == "rain"
    (request,) = running.behind.requests
    turns = [{"role": "user", "image": "image"}, {"role": "user", "text": "What is this?"}]
    assert json.loads(request["messages"]) == turns
    assert request["image"] == b"a file"


@pytest.mark.parametrize("name", ["pcm16", "wav", "mulaw", "flac"])
async def test_chat_audio_and_transcript_are_streamed(start: Start, name: str) -> None:
    client = (await start(REPLY, TALKS)).openai()
    form: Any = SPOKEN | {"audio": {"voice": "alloy", "format": name}}
    stream = await client.chat.completions.create(model="gpt-audio", messages=QUESTION, stream=True, **form)
    chunks = [chunk async for chunk in stream]
    deltas = [chunk.choices[0].delta.model_dump(exclude_unset=True) for chunk in chunks]
    sounds = [delta["audio"] for delta in deltas if "audio" in delta]
    assert deltas[0]["role"] == "assistant"
    assert "".join(sound.get("transcript", "") for sound in sounds) == "fine"
    data = b"".join(base64.b64decode(sound.get("data", "")) for sound in sounds)
    encoder = make_encoder("pcm" if name == "pcm16" else name, 24_000, SYNTHETIC)
    whole = np.full(960, 8192, np.int16)
    assert data == encoder.encode(whole) + encoder.close()
    assert chunks[-1].choices[0].finish_reason == "stop"


async def test_json_limit_excludes_audio_but_applies_to_the_rest(start: Start) -> None:
    running = await start(REPLY, TALKS, limits=Limits(max_json_bytes=1000, drain_s=1))
    async with running.http() as http:
        for sound, num_lists, status in (("A" * 100_000, 0, 200), ("", 500, 413)):
            parts = [{"type": "input_audio", "input_audio": {"data": sound}}, {"type": "text", "text": "Hm?"}]
            body: dict[str, Any] = {"messages": [{"role": "user", "content": parts}], "seed": 1, **SPOKEN}
            if num_lists:
                body["tools"] = [[]] * num_lists
            answer = await http.post("/v1/chat/completions", json=body)
            assert answer.status_code == status, answer.text
