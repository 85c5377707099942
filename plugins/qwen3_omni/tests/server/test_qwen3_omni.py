"""Qwen3-Omni's thinker through the real server and its gateway: text replies equal those of transformers."""

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
import soundfile
from PIL import Image

from plugins.qwen3_omni.lab.random_qwen3_omni import text_only_config
from plugins.qwen3_omni.tests.published_qwen3_omni_thinker import (
    END,
    Processor,
    Theirs,
    conversations,
    convert,
    picture,
    sights,
    speech,
)
from stretto.family.plugin import family_at
from stretto.family.prompting import Piece
from tests.server.conftest import ServedCheckpoint, served_checkpoint
from tests.server.openai_client import openai_client
from tests.tiers import by_night

# By night: tests/engine/test_qwen3_omni.py compares the engine; prompts have tests of their own.
pytestmark = [pytest.mark.server, pytest.mark.nightly]
NUM_IDS = 20


@pytest.fixture(scope="module", params=["whole", *by_night("text only")])
def served(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[ServedCheckpoint]:
    folder = tmp_path_factory.mktemp("omni")
    checkpoint = convert(folder, text_only_config() if request.param == "text only" else None)
    with served_checkpoint(folder, checkpoint) as server:
        yield ServedCheckpoint(server, checkpoint)


def expected(served: ServedCheckpoint, pieces: tuple[Piece, ...], num_ids: int = NUM_IDS) -> str:
    """Return the text of transformers' greedy reply."""
    config = json.loads((served.checkpoint.parent / "release" / "config.json").read_text())
    processor = Processor(served.checkpoint)
    ids, _ = Theirs(config).reply(processor.inputs(pieces), num_ids)
    text = processor.decode([token for token in ids if token != END])
    assert len(text) > 4
    return text


def wav(pcm: np.ndarray) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, pcm, 16_000, format="WAV", subtype="FLOAT")
    return file.getvalue()


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_served_replies_match_transformers(served: ServedCheckpoint) -> None:
    """A conversation of several turns has its recording as a file, and a single turn as samples."""
    options = {"text": {"max_rows": NUM_IDS}}
    pieces = conversations()["turns"]
    turns: list[dict[str, Any]] = [{"role": piece.role} for piece in pieces]
    for turn, piece in zip(turns, pieces, strict=True):
        turn |= {"audio": "audio"} if piece.text is None else {"text": piece.text}
    files = np.array([wav(piece.pcm) for piece in pieces if piece.pcm is not None], object)
    answer = served.server.ask(options, messages=json.dumps(turns), audio=files)
    assert answer.error is None
    assert answer.text == expected(served, pieces)
    assert len(answer.pcm) == 0
    pcm = speech(1.0, 4)
    answer = served.server.ask(options, pcm_in=pcm, sample_rate=np.array([16_000], np.int32), text="hello")
    assert answer.text == expected(served, (Piece("user", "", pcm=pcm), Piece("user", "", text="hello")))
    assert answer.report["finish_reason"] in ("stop", "length")


def test_refused_requests_name_the_field(served: ServedCheckpoint) -> None:
    served.server.refuses({"text": ""}, "text: expected text of at least one character")
    quiet = {"pcm_in": np.zeros(800, np.float32), "sample_rate": np.array([16_000], np.int32)}
    served.server.refuses(quiet, "pcm_in: expected at least 0.08 s, got 0.0500 s")
    image: dict[str, Any] = {"messages": json.dumps([{"role": "user", "text": "a", "image": "image"}])}
    served.server.refuses(image, "messages: expected the inputs image and messages, got messages")
    files = {
        "image: expected an undamaged JPEG, PNG or WebP file": b"hello",
        "messages[0].image: expected sides of a ratio of at most 200, got 500 x 2 pixels": png(picture(2, 500)),
    }
    for message, data in files.items():
        served.server.refuses(image | {"image": np.array([data], object)}, message)


async def test_gateway_answers_text_and_audio_parts(served: ServedCheckpoint) -> None:
    """OpenAI's client sends a system prompt and parts of text and audio."""
    pieces = conversations()["audio, text"]
    system, heard, asked = pieces
    assert heard.pcm is not None
    data = base64.b64encode(wav(heard.pcm)).decode()
    parts = [
        {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}},
        {"type": "text", "text": asked.text},
    ]
    messages: Any = [{"role": "system", "content": system.text}, {"role": "user", "content": parts}]
    request: dict[str, Any] = {"model": "qwen3_omni", "messages": messages, "modalities": ["text"]}
    request["max_completion_tokens"] = NUM_IDS
    async with openai_client(served.server.grpc) as client:
        whole = await client.chat.completions.create(**request)
        streamed = await client.chat.completions.create(**request, stream=True)
        deltas = [part.choices[0].delta.content or "" async for part in streamed]
        if not family_at(served.checkpoint).voices:
            with pytest.raises(openai.BadRequestError, match=r"does not support .* speech as output"):
                await client.chat.completions.create(**request | {"modalities": ["text", "audio"]})
    text = expected(served, pieces)
    assert whole.choices[0].message.content == text.strip()
    assert "".join(deltas) == text
    assert whole.usage is not None
    assert whole.usage.prompt_tokens == 74


async def test_gateway_answers_image_parts(served: ServedCheckpoint) -> None:
    """A conversation with an image, audio and text."""
    heard, seen, asked = sights()["audio, image"]
    assert heard.pcm is not None
    assert seen.pixels is not None
    sound, image = (base64.b64encode(data).decode() for data in (wav(heard.pcm), png(seen.pixels)))
    parts: list[Any] = [
        {"type": "input_audio", "input_audio": {"data": sound, "format": "wav"}},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}},
        {"type": "text", "text": asked.text},
    ]
    request: dict[str, Any] = {"model": "qwen3_omni", "messages": [{"role": "user", "content": parts}]}
    request["max_completion_tokens"] = NUM_IDS
    async with openai_client(served.server.grpc) as client:
        whole = await client.chat.completions.create(**request, modalities=["text"])
        assert whole.choices[0].message.content == expected(served, (heard, seen, asked)).strip()
        many = [{"role": "user", "content": [parts[1]] * 5}]
        with pytest.raises(openai.BadRequestError, match=r"at most 4 images in all turns, got 5 images"):
            await client.chat.completions.create(**request | {"messages": many}, modalities=["text"])
