"""CosyVoice 3 through the real server: release, converter, repository, server, client."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.checkpoints.random_cosyvoice3 import convert, recording
from stretto.codecs.cosyvoice3 import load
from stretto.families.cosyvoice3.voices import FOLDER, Hearing, latest_chunks, sound_of
from tests.server.conftest import ServedCheckpoint, served_checkpoint

# By night: tests/engine/test_cosyvoice3.py holds the same release to the authors' replies; its prompts and its codec
# have tests of their own.
pytestmark = [pytest.mark.server, pytest.mark.nightly]
NUM_CODES = 6561


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedCheckpoint]:
    folder = tmp_path_factory.mktemp("cosyvoice3")
    checkpoint = convert(folder)
    with served_checkpoint(folder, checkpoint) as server:
        yield ServedCheckpoint(server, checkpoint)


def inputs(pcm: np.ndarray, text: str, words: str = "") -> dict[str, Any]:
    """Return the inputs of a request in the voice of a recording, float32 [n] at 24 kHz."""
    system = {"role": "system", "audio": "pcm_in"} | ({"text": words} if words else {})
    turns = [system, {"role": "user", "text": text}]
    return {"messages": json.dumps(turns), "pcm_in": pcm, "sample_rate": np.array([24_000], np.int32)}


@pytest.mark.parametrize(("words", "instruct"), [("one two", ""), ("", ""), ("one two", "Softly.")])
def test_a_text_is_streamed_in_the_voice_of_a_recording(served: ServedCheckpoint, words: str, instruct: str) -> None:
    """Samples of all chunks are those of one decode with the chunk mask."""
    options = {"seed": 3, "instruct": instruct, "audio": {"min_rows": 90}, "output": {"codes": True}}
    answer = served.server.ask(options, **inputs(recording(), "hello [laughter] you", words))
    assert answer.error is None
    codes = np.concatenate([np.array(event["codes"]) for event in answer.events if "codes" in event], axis=1)
    assert codes.shape[1] >= 90
    assert codes.max() < NUM_CODES
    parts = [response.pcm for response in answer.responses if response.pcm is not None and len(response.pcm)]
    assert len(parts) > 1
    codec = load(served.checkpoint)
    encoded = Hearing(served.checkpoint / FOLDER, NUM_CODES).encode(recording())
    number = codec.add_voice(*latest_chunks(sound_of(encoded)).arrays())
    mel = codec.mel(torch.from_numpy(codes[0]), codec._recorded.voices[number])
    whole, _ = codec.speak(mel, 0, 0, 2 * codes.shape[1], 0.0)
    np.testing.assert_allclose(np.concatenate(parts), whole.numpy(), atol=1e-3)
    assert np.abs(whole.numpy()).max() > 0.01


def test_bad_input_is_refused_by_its_field(served: ServedCheckpoint) -> None:
    for given, message in (
        ({"text": "hello"}, "messages: expected a system turn with audio"),
        (inputs(recording(0.9), "a"), "messages[0].audio: expected at least 1 s, got 0.9000 s"),
        (inputs(recording(), "a<|endofprompt|>"), "messages[1].text: expected none of the model's markers"),
        (inputs(recording(), "a") | {"options": '{"text_mode": "open"}'}, "options.text_mode: expected no value"),
    ):
        served.server.refuses(given, message)
