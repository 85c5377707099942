"""MOSS-TTS through the real server (release, converter, repository, server, client) equals the authors' codes."""

import json
from typing import Any

import numpy as np
import pytest

from plugins.moss.lab.moss_tts_replies import INSTRUCTION, LANGUAGE, REPLIES, TEXT, heard_codes, stored
from plugins.moss.lab.random_moss import IDS, KINDS
from plugins.moss.tests.test_moss_tts import write
from stretto.codecs.base import load_codec
from stretto.testing.releases import SmallRelease
from tests.server.conftest import ServedCheckpoint, serves
from tests.server.published import check_sound

# By night: test_moss_tts.py compares the same release with the authors' loop.
pytestmark = [pytest.mark.server, pytest.mark.nightly]

NUM_CODEBOOKS = KINDS["small"][0]
OPTIONS: dict[str, Any] = {"chunking": {"first_frames": 2, "steady_frames": 5}, "output": {"codes": True}}
served = serves(lambda folder: SmallRelease.written(folder / "published", "small", write).checkpoint)


def frames_of(rows: np.ndarray) -> np.ndarray:
    """Return the codes [K, T] of the authors' rows [n, 1 + K], in which codebook k is delayed by k rows."""
    num_frames = int(np.count_nonzero(rows[:, 0] == IDS["audio_assistant_gen_slot_token_id"])) + 1
    return np.stack([rows[k : k + num_frames, 1 + k] for k in range(NUM_CODEBOOKS)])


def ended(name: str) -> bool:
    return bool((stored()[name][:, 0] == IDS["audio_end_token_id"]).any())


CASES = [
    (number, seed, mode) for number in range(2) for seed, mode in REPLIES if ended(f"small.{number}.{seed}.{mode}")
]


@pytest.mark.parametrize(("number", "seed", "mode"), CASES)
def test_served_model_streams_the_authors_codes(served: ServedCheckpoint, number: int, seed: int, mode: str) -> None:
    """Replies that the model ends; their chunks equal one decode. The first list of codes is that of the slots."""
    greedy = {"audio": {"temperature": 0.0}, "depth": {"temperature": 0.0}} if mode == "greedy" else {}
    options, inputs = OPTIONS | greedy | {"seed": seed}, dict[str, Any](text=TEXT)
    if number:
        options |= {"instruct": INSTRUCTION, "language": LANGUAGE}
        turns = [{"role": "system", "codes": heard_codes("small").tolist()}, {"role": "user", "text": TEXT}]
        inputs = {"messages": json.dumps(turns)}
    answer, expected = served.server.ask(options, **inputs), frames_of(stored()[f"small.{number}.{seed}.{mode}"])
    assert answer.error is None
    assert answer.codes.shape == (1 + NUM_CODEBOOKS, expected.shape[1])
    np.testing.assert_array_equal(answer.codes[1:], expected)
    check_sound(answer.pcm, expected, load_codec("moss", served.checkpoint), 0, answer.report["finish_reason"])
