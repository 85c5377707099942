"""Kyutai STT through the real server and its gateway: the text of the authors' code, with word times."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import soundfile

from plugins.kyutai.tests.kyutai_release import make_checkpoint
from stretto.family.plugin import VOCABULARY, config_at
from stretto.family.text import sentencepiece_at
from stretto.preprocessing.request import Preprocessor, RawRequest
from stretto.records.prompt import Prompt
from stretto_kyutai.kyutai_stt.family import SttVocabulary
from stretto_kyutai.kyutai_stt.reader import WordReader
from tests.engine.harness import Engine
from tests.server.conftest import ServedCheckpoint, served_checkpoint
from tests.server.openai_client import openai_client

# By night: tests/engine/test_kyutai_stt.py compares the engine with the authors' text; prompts have tests of their own.
pytestmark = [pytest.mark.server, pytest.mark.nightly]
PCM = (np.sin(np.arange(60_000) ** 1.3 / 300) / 2).astype(np.float32)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedCheckpoint]:
    folder = tmp_path_factory.mktemp("kyutai")
    checkpoint = make_checkpoint(folder)
    with served_checkpoint(folder, checkpoint) as server:
        yield ServedCheckpoint(server, checkpoint)


def expected_words(served: ServedCheckpoint, prompt: Prompt) -> tuple[str, list[tuple[str, float, float]]]:
    """Return the text and words that the bare engine generates."""
    known = SttVocabulary.from_record(config_at(served.checkpoint)[VOCABULARY])
    reader = WordReader(sentencepiece_at(served.checkpoint / "tokenizer.model"), known)
    with Engine(served.checkpoint, max_model_len=256) as engine:
        rows = engine.run({"r": prompt})["r"].rows
    text = "".join(map(reader.push, [row[0] for row in rows[:-1]])) + reader.end()
    words = [(str(mark.word), mark.frame / 12.5, (mark.end or 0) / 12.5) for mark in reader.pop_marks()]
    return text, words


def test_served_kyutai_stt_transcribes_with_word_times(served: ServedCheckpoint) -> None:
    answer = served.server.ask({}, pcm_in=PCM, sample_rate=np.array([24_000], np.int32))
    assert answer.error is None
    prompt = Preprocessor(served.checkpoint).prepare(RawRequest(pcm_in=PCM, sample_rate=24_000))
    text, words = expected_words(served, prompt)
    assert "".join(event["text"] for event in answer.events) == text
    found = [word for event in answer.events for word in event["words"]]
    assert [(word["word"], word["start_s"], word["end_s"]) for word in found] == [
        (word, round(start, 4), round(end, 4)) for word, start, end in words
    ]
    assert len(words) > 3
    assert len([event for event in answer.events if event["text"]]) > 1  # word by word
    assert answer.report["finish_reason"] == "stop"


async def test_gateway_transcribes_with_word_times(served: ServedCheckpoint) -> None:
    """OpenAI's request gets a single response, or events."""
    file = io.BytesIO()
    soundfile.write(file, PCM, 24_000, format="WAV", subtype="FLOAT")
    prompt = Preprocessor(served.checkpoint).prepare(RawRequest(audio=file.getvalue()))
    text, words = expected_words(served, prompt)
    asked: dict[str, Any] = {"model": "whisper-1", "file": ("a.wav", file.getvalue())}
    async with openai_client(served.server.grpc) as client:
        whole = await client.audio.transcriptions.create(
            **asked, response_format="verbose_json", timestamp_granularities=["word"]
        )
        streamed = await client.audio.transcriptions.create(**asked, stream=True)
        deltas = [event.delta async for event in streamed if event.type == "transcript.text.delta"]
    assert whole.text == text
    assert [(each.word, each.start, each.end) for each in whole.words] == [
        (word, round(start, 4), round(end, 4)) for word, start, end in words
    ]
    assert "".join(deltas) == text
    assert len(deltas) > 1


def test_invalid_input_error_names_its_field(served: ServedCheckpoint) -> None:
    for options, inputs, message in (
        ({}, {"pcm_in": PCM[:100], "sample_rate": np.array([24_000], np.int32)}, "pcm_in: expected at least 0.08 s"),
        ({"task": "tts"}, {"pcm_in": PCM, "sample_rate": np.array([24_000], np.int32)}, "options"),
    ):
        answer = served.server.ask(options, **inputs)
        assert answer.error is not None
        assert message in answer.error
