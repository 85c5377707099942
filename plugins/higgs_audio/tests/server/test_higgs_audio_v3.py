"""Higgs Audio v3 through the real server: the chunks of replies equal one decode of their codes."""

import json
from typing import Any

import numpy as np
import pytest

from plugins.higgs_audio.lab.higgs_audio_v3_replies import CASES, NUM_ROWS, SEEDS, TEXTS, WORDS, recording
from plugins.higgs_audio.tests.test_higgs_audio_v3 import write
from stretto.codecs.base import load_codec
from stretto.testing.releases import SmallRelease
from tests.server.conftest import ServedCheckpoint, serves
from tests.server.published import check_sound

# By night: test_higgs_audio_v3.py compares the rows of the same release with mlx-audio's.
pytestmark = [pytest.mark.server, pytest.mark.nightly]

OPTIONS: dict[str, Any] = {"chunking": {"first_frames": 2, "steady_frames": 5}, "output": {"codes": True}}
served = serves(lambda folder: SmallRelease.written(folder / "published", "small", write).checkpoint)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", SEEDS)
def test_streamed_samples_equal_one_decode(served: ServedCheckpoint, seed: int, case: str) -> None:
    """The same request has the same codes again, in chunks of another size."""
    audio, is_cloned = CASES[case]
    voice = [{"role": "system", "text": WORDS, "codes": recording("small").tolist()}] if is_cloned else []
    options = OPTIONS | {"seed": seed, "audio": {**audio, "max_rows": NUM_ROWS}}
    messages = json.dumps([*voice, {"role": "user", "text": TEXTS[seed]}])
    answer = served.server.ask(options, messages=messages)
    assert answer.error is None
    codec = load_codec("higgs", served.checkpoint)
    check_sound(answer.pcm, answer.codes, codec, finish_reason=answer.report["finish_reason"])
    again = served.server.ask(options | {"chunking": {"first_frames": 7, "steady_frames": 7}}, messages=messages)
    np.testing.assert_array_equal(again.codes, answer.codes)
    np.testing.assert_allclose(again.pcm, answer.pcm, atol=1e-4)
