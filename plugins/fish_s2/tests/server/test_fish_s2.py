"""Fish Audio S2 through the real server: the release's files, converter, repository, server, client.

Replies equal those of the slow reference for the checkpoint, and their samples one decode of their codes.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plugins.fish_s2.tests.test_fish_s2 import write
from stretto.codecs.base import load_codec
from stretto.family.plugin import family_at
from stretto.preprocessing.request import Preprocessor
from stretto.testing.reference import ReferenceModel
from stretto.testing.releases import SmallRelease
from tests.server.conftest import ServedCheckpoint, serves
from tests.server.listening import Answer
from tests.server.published import check_sound, prepared

# By night: test_fish_s2.py compares the rows of the same release with a reference that reads it; its
# prompts and its codec have tests of their own.
pytestmark = [pytest.mark.server, pytest.mark.nightly]

TEXT, NUM_FRAMES = "<|speaker:0|>The garden door is open. <|speaker:1|>Close it, please.", 30
OPTIONS: dict[str, Any] = {
    "audio": {"max_rows": NUM_FRAMES},
    "chunking": {"first_frames": 2, "steady_frames": 5},
    "output": {"codes": True},
    "seed": 3,
}
VOICE = [{"role": "system", "text": "The words.", "codes": np.arange(60).reshape(10, 6).tolist()}]


def convert(folder: Path) -> Path:
    checkpoint = SmallRelease.written(folder / "published", "deep", write).checkpoint
    (checkpoint / "model.safetensors").symlink_to(next(checkpoint.glob("model-*.safetensors")))  # the reference's
    return checkpoint


served = serves(convert)


def codes_of(checkpoint: Path, options: dict[str, Any], **inputs: Any) -> np.ndarray:
    """Return the codes [K, T] of the slow reference's reply to a request."""
    prompt, family = prepared(Preprocessor(checkpoint), options, inputs), family_at(checkpoint)
    rows, lead = ReferenceModel(checkpoint, family, family.max_model_len).reply(prompt)
    assert lead > 1e-5
    return np.array(rows[:-1]).T - np.array([[ids.start] for ids in family.layout.audio])


def check(served: ServedCheckpoint, answer: Answer, expected: np.ndarray) -> None:
    assert answer.error is None
    np.testing.assert_array_equal(answer.codes, expected)
    codec = load_codec("fish_s2", served.checkpoint)
    check_sound(answer.pcm, expected, codec, finish_reason=answer.report["finish_reason"])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_served_model_streams_the_reference_codes(served: ServedCheckpoint, temperature: float) -> None:
    options = OPTIONS | {"audio": OPTIONS["audio"] | {"temperature": temperature}}
    answer = served.server.ask(options, text=TEXT)
    check(served, answer, codes_of(served.checkpoint, options, text=TEXT))


def test_voice_and_earlier_turns_match_the_reference(served: ServedCheckpoint) -> None:
    earlier = [{"role": "user", "text": "Before."}, {"role": "assistant", "codes": [[1, 2], [3, 4]] * 5}]
    messages = json.dumps([*VOICE, *earlier, {"role": "user", "text": TEXT}])
    expected = codes_of(served.checkpoint, OPTIONS, messages=messages)
    check(served, served.server.ask(OPTIONS, messages=messages), expected)
    plain = codes_of(served.checkpoint, OPTIONS, text=TEXT)
    assert not np.array_equal(expected, plain[:, : expected.shape[1]])
