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

from benchmarks.checkpoints.random_qwen3_omni import text_only_config
from stretto.families.plugin import family_at
from stretto.families.prompting import Piece
from tests.published_qwen3_omni_thinker import END, Processor, Theirs, conversations, convert, speech
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
    image = {"messages": json.dumps([{"role": "user", "text": "a", "image": "a.png"}])}
    served.server.refuses(image, "messages[0].image")


async def test_gateway_answers_text_and_audio_parts(served: ServedCheckpoint) -> None:
    """OpenAI's client sends a system prompt and parts of text and audio; images are refused."""
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
        image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
        with pytest.raises(openai.BadRequestError, match=r"content\.0\.type: Input should be 'text' or 'input_audio'"):
            await client.chat.completions.create(**request | {"messages": [{"role": "user", "content": [image]}]})
        if not family_at(served.checkpoint).voices:
            with pytest.raises(openai.BadRequestError, match=r"does not support .* speech as output"):
                await client.chat.completions.create(**request | {"modalities": ["text", "audio"]})
    text = expected(served, pieces)
    assert whole.choices[0].message.content == text.strip()
    assert "".join(deltas) == text
    assert whole.usage is not None
    assert whole.usage.prompt_tokens == 74
