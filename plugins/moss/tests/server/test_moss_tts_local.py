"""MOSS-TTS-Local through the real server (release, converter, repository, server, client) equals the authors' codes."""

import json
from typing import Any

import numpy as np
import pytest

from plugins.moss.lab.moss_tts_local_replies import INSTRUCTION, LANGUAGE, MAX_ROWS, REPLIES, TEXTS, heard_codes, stored
from plugins.moss.lab.random_moss_local import KINDS
from plugins.moss.tests.test_moss_tts_local import write
from stretto.codecs.base import load_codec
from stretto.testing.releases import SmallRelease
from tests.server.conftest import ServedCheckpoint, serves
from tests.server.published import check_sound

# By night: test_moss_tts_local.py compares the same release with the authors' loop; its prompts and its
# codec have tests of their own.
pytestmark = [pytest.mark.server, pytest.mark.nightly]

OPTIONS: dict[str, Any] = {"chunking": {"first_frames": 2, "steady_frames": 5}, "output": {"codes": True}}
GREEDY = {"audio": {"temperature": 0.0, "max_rows": MAX_ROWS}, "depth": {"temperature": 0.0}}
SAMPLED = {"audio": {"max_rows": MAX_ROWS}}
served = serves(lambda folder: SmallRelease.written(folder / "published", "small", write).checkpoint)


@pytest.mark.parametrize("number", [0, 1], ids=["text", "voice, language and instruction"])
@pytest.mark.parametrize(("seed", "mode"), REPLIES)
def test_served_model_streams_the_authors_codes(served: ServedCheckpoint, number: int, seed: int, mode: str) -> None:
    options = OPTIONS | (GREEDY if mode == "greedy" else SAMPLED) | {"seed": seed}
    inputs: dict[str, Any] = {"text": TEXTS[0]}
    if number:
        options |= {"instruct": INSTRUCTION, "language": LANGUAGE}
        turns = [{"role": "system", "codes": heard_codes("small").tolist()}, {"role": "user", "text": TEXTS[1]}]
        inputs = {"messages": json.dumps(turns)}
    answer, expected = served.server.ask(options, **inputs), stored()[f"small.{number}.{seed}.{mode}"][:, 1:].T
    assert answer.error is None
    if expected.shape[1] == 0:
        assert not answer.sounds
        return
    np.testing.assert_array_equal(answer.codes[-KINDS["small"][0] :], expected)
    if expected.shape[1] > 1:
        check_sound(answer.pcm, expected, load_codec("moss", served.checkpoint), 0, answer.report["finish_reason"])
    assert len(answer.pcm) == expected.shape[1] * 3840  # 48 kHz
