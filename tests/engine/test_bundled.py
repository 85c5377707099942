"""Replies of the bundled model equal the plain reference with the same weights, batched and unbatched."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stretto.families.tiny.family import (
    ASR,
    BEGIN_AUDIO,
    BEGIN_TEXT,
    CHARACTERS,
    FIRST_CHARACTER,
    FRAME_INDEX_BASE,
    TINY,
    TTS,
    VOICES,
)
from stretto.records.prompt import Prompt
from stretto.testing.reference import ReferenceModel
from tests.engine.harness import Engine

FOLDER = Path(__file__).parents[2] / "model_repository/language_model/1/checkpoint"
pytestmark = pytest.mark.engine
MAX_MODEL_LEN = 512
NUM_STREAMS = TINY.layout.num_output_streams


def speak(text: str, voice: str, seed: int, guidance_scale: float) -> Prompt:
    ids = [TTS, VOICES[voice], *(FIRST_CHARACTER + CHARACTERS.index(each) for each in text), BEGIN_TEXT]
    rows = np.zeros((len(ids), TINY.layout.num_input_streams), np.int32)
    rows[:, 0] = ids
    sampling = replace(TINY.task("tts").sampling, seed=seed, guidance_scale=guidance_scale)
    if guidance_scale == 1.0:  # a short one is enough
        sampling = replace(sampling, audio=replace(sampling.audio, max_rows=20))
    return Prompt("tts", rows, sampling)


def listen(codes: np.ndarray) -> Prompt:
    """Return a prompt with audio input `codes` [7, T]."""
    num_frames = codes.shape[1]
    rows = np.zeros((num_frames + 3, TINY.layout.num_input_streams), np.int32)
    rows[[0, 1, -1], 0] = ASR, BEGIN_AUDIO, BEGIN_TEXT
    rows[2:-1, 1:NUM_STREAMS] = codes.T + [ids.start for ids in TINY.layout.audio[1:]]
    rows[2:-1, NUM_STREAMS] = FRAME_INDEX_BASE + 1 + np.arange(num_frames)
    sampling = TINY.task("asr").sampling
    return Prompt("asr", rows, replace(sampling, text=replace(sampling.text, max_rows=20), seed=0))


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(FOLDER, max_model_len=MAX_MODEL_LEN) as running:
        yield running


def test_bundled_model_matches_the_reference(engine: Engine) -> None:
    reference = ReferenceModel(FOLDER, TINY, MAX_MODEL_LEN)
    prompts = {
        "guided": speak("nine.", "heart", 1, 1.5),
        "unguided": speak("open it.", "heart", 2, 1.0),
        "heard": listen(np.random.default_rng(0).integers(0, 256, (7, 20))),
    }
    together = engine.run(prompts, arrivals={"unguided": 5, "heard": 11})
    for name, prompt in prompts.items():
        rows, lead = reference.reply(prompt, guess=together[name].rows)
        assert lead > 1e-5, f"{name}: the reference itself was nearly undecided: choose another seed"
        expected = [row[:NUM_STREAMS] for row in rows]
        assert together[name].rows == expected, name
        assert engine.run({name: prompt})[name].rows == expected, name
    assert together["guided"].trailer.num_guided_frames > 10
