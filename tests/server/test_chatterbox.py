"""Chatterbox through the real server: release, converter, repository, server, client.

Codes are those of its authors' own T3, samples those of one decode in the voice that was asked for.
"""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.checkpoints.random_chatterbox import convert
from stretto.codecs.base import Window
from stretto.codecs.registry import load_codec
from stretto.families.chatterbox.family import END_OF_SPEECH
from tests.chatterbox_release import RECORD, REPLIES
from tests.server.conftest import ServedCheckpoint, served_checkpoint

# By night: tests/engine/test_chatterbox.py holds the same release to the same replies; its prompts and its codec have
# tests of their own.
pytestmark = [pytest.mark.server, pytest.mark.nightly]

NUM_CODES = 6561  # ids of speech from here on are no codes


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedCheckpoint]:
    folder = tmp_path_factory.mktemp("chatterbox")
    checkpoint = convert(folder)
    with served_checkpoint(folder, checkpoint) as server:
        yield ServedCheckpoint(server, checkpoint)


def options_of(reply: dict[str, Any]) -> dict[str, Any]:
    """Return the options that produce a reply of the fixture."""
    drawn = {name: reply[name] for name in ("temperature", "top_p", "min_p")}
    return {
        "audio": drawn | {"max_rows": RECORD["num_codes"]},
        "guidance_scale": 1 + reply["weight"],
        "repetition_penalty": reply["penalty"],
        "seed": reply["seed"],
        "voice": reply["voice"],
        "output": {"codes": True},
    }


@pytest.mark.parametrize("reply", REPLIES, ids=lambda reply: reply["text"])
def test_a_text_is_spoken_as_the_authors_model_says_it(served: ServedCheckpoint, reply: dict[str, Any]) -> None:
    answer = served.server.ask(options_of(reply), text=reply["text"])
    assert answer.error is None
    drawn = [code for code in reply["codes"] if code != END_OF_SPEECH]
    wanted = np.array([code for code in drawn if code < NUM_CODES])[None]
    codes = np.concatenate([np.array(event["codes"]) for event in answer.events if "codes" in event], axis=1)
    np.testing.assert_array_equal(codes, wanted)
    codec, voice = load_codec("s3gen", served.checkpoint), float(reply["voice"] == "anna")
    window = Window(torch.from_numpy(wanted)[None], 0, 0, torch.zeros(1), torch.full((1, 1), voice))
    (pcm,) = [response.pcm for response in answer.responses if response.pcm is not None and len(response.pcm)]
    np.testing.assert_allclose(pcm, codec.decode(window)[0][0].numpy(), atol=1e-4)
    assert len(pcm) == 960 * wanted.shape[1]  # 24 kHz
    assert np.abs(pcm).max() > 0.01
    assert answer.report["num_frames"] == answer.report["guided_frames"] == len(drawn)


def test_bad_input_is_refused_by_its_field(served: ServedCheckpoint) -> None:
    turns = [{"role": "user", "codes": [[1, 2]]}]
    for inputs, message in (
        ({"text": " "}, "text: expected text of at least one character"),
        ({"text": "a", "options": '{"voice": "bob"}'}, "options.voice: expected one of default, anna"),
        ({"text": "a" * 65}, "text: expected"),
        ({"messages": json.dumps(turns)}, "messages[0]: expected text for task 'tts', got audio"),
    ):
        served.server.refuses(inputs, message)
