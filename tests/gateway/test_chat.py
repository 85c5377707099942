"""`/v1/chat/completions` with audio, called by OpenAI's own client, with a family that converses."""

import base64
import json
from typing import Any

import numpy as np
import openai
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


async def test_length_of_a_text_reply_is_limited(start: Start) -> None:
    running = await start(REPLY, TALKS)
    body = {"messages": QUESTION, "max_completion_tokens": 30}
    async with running.http() as http:
        written = await http.post("/v1/chat/completions", json=body)
        spoken = await http.post("/v1/chat/completions", json=body | SPOKEN)
    assert [json.loads(each["options"]).get("text") for each in running.behind.requests] == [{"max_rows": 30}, None]
    assert (written.status_code, spoken.status_code) == (200, 200), spoken.text
    assert "stretto-ignored" not in written.headers
    assert spoken.headers["stretto-ignored"] == "max_completion_tokens"


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


async def test_detail_of_images_is_listed_as_ignored_or_refused(start: Start) -> None:
    request, name = shown("data:image/png;base64,AAAA"), "messages.0.content.0.image_url.detail"
    request["messages"][0]["content"][0]["image_url"]["detail"] = "low"
    async with (await start(REPLY, SEES)).http() as http:
        answer = await http.post("/v1/chat/completions", json=request)
    assert answer.headers["stretto-ignored"] == name
    async with (await start(REPLY, SEES, strict=True)).http() as http:
        error = (await http.post("/v1/chat/completions", json=request)).json()["error"]
    assert (error["param"], error["message"]) == (name, f"{name}: expected auto or no value, got 'low'")


async def test_model_without_images_refuses_them_by_name(start: Start) -> None:
    image = shown("data:image/png;base64,AAAA")
    image["messages"][0]["content"].pop()
    async with (await start(REPLY, TALKS)).http() as http:
        answer = await http.post("/v1/chat/completions", json=image)
    assert "'talker' does not support conversations with image as input" in answer.json()["error"]["message"]


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


@pytest.mark.parametrize(
    ("contents", "param"),
    [
        (["A" * 11], "messages.0.content"),
        (["A" * 6, "A" * 5], "messages.1.content"),
        ([[{"type": "text", "text": "A" * 10}, {"type": "text", "text": "A"}]], "messages.0.content.1.text"),
    ],
)
async def test_chat_texts_have_a_total_length_limit(start: Start, contents: list[Any], param: str) -> None:
    running = await start(REPLY, TALKS, limits=Limits(max_input_chars=10, drain_s=1))
    body = {"messages": [{"role": "user", "content": content} for content in contents]}
    async with running.http() as http:
        answer = await http.post("/v1/chat/completions", json=body | SPOKEN)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert "at most 10 characters in all texts, got 11 characters" in answer.json()["error"]["message"]
    assert not running.behind.requests


async def test_model_without_conversation_support_refuses_it(start: Start) -> None:
    client = (await start()).openai()
    with pytest.raises(openai.BadRequestError, match="'tiny' does not support conversations"):
        await client.chat.completions.create(model="gpt-audio", messages=QUESTION, **SPOKEN)


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
