"""Qwen3-TTS through the real server: the release's files, converter, repository, server, client.

What comes back is what the slow reference says of the checkpoint, greedily.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.checkpoints.random_qwen3_codec import write_qwen3_codec
from benchmarks.checkpoints.random_qwen3_tts import small_config, write_release
from benchmarks.code_streams import stream
from stretto.checkpoints.command import main
from stretto.checkpoints.make_repository import make
from stretto.codec.registry import load_codec
from stretto.families.registry import family_at
from stretto.preprocessing.request import Preprocessor, RawRequest
from tests.published_qwen3_tts import command
from tests.reference.speech_lm import Reference
from tests.server.conftest import Server

pytestmark = pytest.mark.server

CODEBOOKS, CODES, NUM_FRAMES = 16, 64, 9  # as `random_qwen3_codec` has them
OPTIONS: dict[str, Any] = {
    "audio": {"temperature": 0.0, "max_rows": NUM_FRAMES},
    "chunking": {"first_frames": 2, "steady_frames": 4},
    "output": {"codes": True},
    "seed": 3,
}
CASES: dict[str, dict[str, Any]] = {
    "whole": {"voice": "Ryan", "language": "English", "instruct": "low"},
    "streaming": {"voice": "eric", "text_mode": "streaming"},
}


@dataclass(frozen=True)
class Served:
    """The server of a release, and its checkpoint."""

    server: Server
    checkpoint: Path

    def codes(self, options: dict[str, Any], text: str) -> np.ndarray:
        """The codes [K, T] of the reply to a request."""
        prompt = Preprocessor(self.checkpoint).prepare(RawRequest(text=text, options=json.dumps(options)))
        family = family_at(self.checkpoint)
        rows, _ = Reference(self.checkpoint, family, family.max_model_len).reply(prompt)
        starts = np.array([[ids.start] for ids in family.layout.audio])
        return np.array(rows[:-1])[:, :CODEBOOKS].T - starts


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("qwen3_tts")
    release = write_release(folder / "release", small_config(codebooks=CODEBOOKS, codes=CODES))
    codec = write_qwen3_codec(release / "speech_tokenizer")
    checkpoint = folder / "converted"
    assert main([*command(release, checkpoint), "--codec", str(codec)]) == 0
    make(checkpoint, folder / "repository", {})
    (checkpoint / "model.safetensors").symlink_to(next(checkpoint.glob("model-*.safetensors")))  # the reference's
    server = Server(folder, folder / "repository")
    try:
        server.start()
        yield Served(server, checkpoint)
    finally:
        server.stop()


@pytest.mark.parametrize("case", CASES)
def test_a_reply_streams_what_the_checkpoint_says(served: Served, case: str) -> None:
    options = OPTIONS | CASES[case]
    answer = served.server.ask(options, text="hello world")
    assert answer.error is None
    expected = served.codes(options, "hello world")
    codes = np.concatenate([np.array(event["codes"]) for event in answer.events if "codes" in event], axis=1)
    np.testing.assert_array_equal(codes, expected)
    codec = load_codec("qwen3_12hz", served.checkpoint, num_codebooks=CODEBOOKS)
    pcm = stream(codec, torch.from_numpy(expected)[None], [expected.shape[1]])[0].numpy()
    np.testing.assert_allclose(answer.pcm, pcm, atol=1e-4)
    assert len(pcm) == expected.shape[1] * 1920  # 24 kHz
    assert np.abs(pcm).max() > 0.01


def test_bad_input_is_refused_by_its_field(served: Served) -> None:
    for inputs, message in (
        ({"text": "a", "options": '{"voice": "nobody"}'}, "options.voice: expected one of ryan, eric"),
        ({"text": "a", "options": '{"language": "klingon"}'}, "options.language: expected one of auto, chinese"),
        ({"text": ""}, "text: expected text of at least one character"),
    ):
        answer = served.server.ask(**inputs)
        assert answer.error is not None
        assert f"invalid request: {message}" in answer.error
