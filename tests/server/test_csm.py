"""CSM through the real server: transformers' release, converter, repository, server, client.

Replies equal those of transformers' classes for the release, with greedy sampling.
"""

import json
from typing import Any

import numpy as np
import pytest

from stretto.codecs.base import load_codec
from stretto.preprocessing.request import Preprocessor
from tests.published_csm import CODEBOOK_SIZE, FIRST_IDS, NUM_CODEBOOKS, CsmReference, convert, make_model
from tests.server.conftest import ServedCheckpoint, serves
from tests.server.published import check_sound, prepared

# By night: tests/families/csm holds the same release, converted as here, to the same classes; its prompts and its
# codec have tests of their own, and frames of another depth transformer go through a server in the suite.
pytestmark = [pytest.mark.server, pytest.mark.nightly]

NUM_FRAMES = 17
OPTIONS = {
    "audio": {"temperature": 0.0, "min_rows": 9, "max_rows": NUM_FRAMES},
    "chunking": {"first_frames": 2, "steady_frames": 5},
    "output": {"codes": True},
    "seed": 3,
}
PCM = (np.sin(np.arange(9_000) ** 1.3 / 300) / 2).astype(np.float32)
CODES = np.random.default_rng(0).integers(CODEBOOK_SIZE, size=(NUM_CODEBOOKS, 3)).tolist()
TALK = [
    {"role": "user", "audio": "pcm_in", "text": "how are you?"},
    {"role": "assistant", "text": "fine", "codes": CODES},
    {"role": "user", "text": "what do you hear?"},
    {"role": "assistant", "text": "a well"},
]
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "tts": ({}, {"text": "the birch canoe"}),
    "tts, guided": ({"guidance_scale": 2.0, "voice": "1"}, {"text": "the birch canoe"}),
    "speak": (
        {},
        {"messages": json.dumps(TALK), "pcm_in": PCM, "sample_rate": np.array([24_000], np.int32), "task": "speak"},
    ),
}


served = serves(lambda folder: convert(folder, make_model())[0])


@pytest.mark.parametrize("case", list(CASES))
def test_served_model_streams_the_reference_codes(served: ServedCheckpoint, case: str) -> None:
    changes, inputs = CASES[case]
    answer = served.server.ask(OPTIONS | changes, **inputs)
    assert answer.error is None
    rows = CsmReference(make_model()).reply(prepared(Preprocessor(served.checkpoint), OPTIONS | changes, inputs))
    np.testing.assert_array_equal(answer.codes, (np.array(rows) - FIRST_IDS).T)
    assert len(answer.sounds) >= 2  # how many chunks there are is a matter of the clock
    codec = load_codec("mimi", served.checkpoint, num_codebooks=NUM_CODEBOOKS)
    check_sound(answer.pcm, answer.codes, codec, finish_reason=answer.report["finish_reason"])
    assert len(answer.pcm) == NUM_FRAMES * 1920  # 24 kHz
    assert answer.report["guided_frames"] == (NUM_FRAMES if "guided" in case else 0)
    assert not any(event["text"] for event in answer.events)
