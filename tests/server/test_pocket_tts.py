"""Pocket TTS through the real server: release, converter, repository, server, client; samples of its authors."""

import json
from collections.abc import Iterator

import numpy as np
import pytest

from tests.pocket_release import convert_release, reply
from tests.server.conftest import ServedCheckpoint, served_checkpoint

# By night: tests/engine/test_pocket_tts.py holds the same release to the same reply; its prompts and its codec have
# tests of their own.
pytestmark = [pytest.mark.server, pytest.mark.nightly]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedCheckpoint]:
    folder = tmp_path_factory.mktemp("pocket")
    checkpoint = convert_release(folder, "english")
    with served_checkpoint(folder, checkpoint) as server:
        yield ServedCheckpoint(server, checkpoint)


def test_a_text_is_spoken_as_by_the_authors_code(served: ServedCheckpoint) -> None:
    expected = reply("english")
    answer = served.server.ask({"voice": "alba", "seed": expected.seed}, text=expected.text)
    assert answer.error is None
    pcm = np.concatenate([response.pcm for response in answer.responses if response.pcm is not None])
    assert len(pcm) == 1920 * len(expected.latents)  # 24 kHz
    np.testing.assert_allclose(pcm[: len(expected.pcm)], expected.pcm, atol=1e-4)
    np.testing.assert_allclose(pcm[-len(expected.pcm_last) :], expected.pcm_last, atol=1e-4)
    assert answer.report["num_frames"] == len(expected.latents)
    assert answer.report["finish_reason"] == "stop"


def test_bad_input_is_refused_by_its_field(served: ServedCheckpoint) -> None:
    for options, message in (
        ({"voice": "bob"}, "options.voice: expected one of alba, jean"),
        ({"guidance_scale": 2.0}, "options.guidance_scale: expected 1.0, as pocket_tts has no guidance"),
        ({"audio": {"top_k": 5}}, "options.audio.top_k: expected 0, as frames of pocket_tts have no ids"),
        ({"output": {"codes": True}}, "options.output.codes: expected false"),
    ):
        served.server.refuses({"text": "Hello.", "options": json.dumps(options)}, message)
    served.server.refuses({"text": "…"}, "text: expected text with a letter or a digit")
