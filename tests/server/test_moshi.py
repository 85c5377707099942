"""Moshi through the real server: speech and text of a recording, whole or live, equal those of the engine alone."""

import json
from collections.abc import Iterator

import numpy as np
import pytest

from stretto.codecs.base import load_codec
from stretto.families.moshi.reader import PieceReader
from stretto.families.text import sentencepiece_at
from stretto.preprocessing.request import Preprocessor, RawRequest
from tests.engine.harness import Engine
from tests.moshi_release import frames_of, make_checkpoint
from tests.server.conftest import ServedCheckpoint, served_checkpoint
from tests.server.published import check_sound

# By night: tests/engine/test_moshi.py compares the engine with the authors' frames; prompts have tests of their own.
pytestmark = [pytest.mark.server, pytest.mark.nightly]
PCM = (np.sin(np.arange(60_000) ** 1.3 / 300) / 2).astype(np.float32)
RATE = {"sample_rate": np.array([24_000], np.int32)}
OPTIONS = {"seed": 5, "output": {"codes": True}, "chunking": {"first_frames": 2, "steady_frames": 5}}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedCheckpoint]:
    folder = tmp_path_factory.mktemp("moshi")
    checkpoint = make_checkpoint(folder)
    with served_checkpoint(folder, checkpoint) as server:
        yield ServedCheckpoint(server, checkpoint)


@pytest.fixture(scope="module")
def expected(served: ServedCheckpoint) -> np.ndarray:
    """Return the frames of the engine alone, [T, 9]: text, then codes."""
    raw = RawRequest(pcm_in=PCM, sample_rate=24_000, options=json.dumps({"seed": 5}))
    prompt = Preprocessor(served.checkpoint).prepare(raw)
    with Engine(served.checkpoint, max_model_len=256) as engine:
        return frames_of(engine.run({"r": prompt})["r"].rows, served.checkpoint)


def text_of(served: ServedCheckpoint, frames: np.ndarray) -> str:
    reader = PieceReader(sentencepiece_at(served.checkpoint / "tokenizer.model").tokens)
    return "".join(map(reader.push, frames[:, 0].tolist())) + reader.end()


def test_a_recording_is_answered_with_speech_and_text(served: ServedCheckpoint, expected: np.ndarray) -> None:
    answer = served.server.ask(OPTIONS, pcm_in=PCM, **RATE)
    assert answer.error is None
    assert (answer.codes == expected.T).all()
    assert "".join(event["text"] for event in answer.events) == text_of(served, expected)
    check_sound(answer.pcm, answer.codes[1:], load_codec("mimi", served.checkpoint, num_codebooks=8))
    assert len(answer.pcm) == 1920 * len(expected) == 1920 * 32
    assert answer.report["finish_reason"] == "stop"
    assert answer.report["input_audio_s"] == pytest.approx(2.5)
    by_event = [(event["text"], event.get("num_frames", 0)) for event in answer.events]
    assert sum(bool(text) for text, _ in by_event) > 2, by_event


def test_bad_input_is_refused_by_its_field(served: ServedCheckpoint) -> None:
    for options, inputs, message in (
        ({}, {"pcm_in": PCM[:100], **RATE}, "pcm_in: expected at least 0.08 s"),
        ({"guidance_scale": 2.0}, {"pcm_in": PCM, **RATE}, "options.guidance_scale: expected 1.0"),
        ({"task": "tts"}, {"pcm_in": PCM, **RATE}, "options"),
    ):
        answer = served.server.ask(options, **inputs)
        assert answer.error is not None
        assert message in answer.error
