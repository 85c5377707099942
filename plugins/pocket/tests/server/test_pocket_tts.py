"""Pocket TTS through the real server (release, converter, repository, server, client) equals the authors' samples."""

import numpy as np
import pytest
import torch

from plugins.pocket.lab.pocket_tts_replies import CUT_TEXTS
from plugins.pocket.tests.pocket_release import cloning, convert_release, reply
from stretto.codecs.base import Window, load_codec
from stretto.streams.layout import words_of
from stretto_client import SpeechClient
from tests.server.conftest import ServedCheckpoint, serves

# By night: test_pocket_tts.py of this plug-in holds the same release to the same reply; its prompts and its codec have
# tests of their own.
pytestmark = [pytest.mark.server, pytest.mark.nightly]


served = serves(lambda folder: convert_release(folder, "english"))


def test_served_speech_matches_the_published_code(served: ServedCheckpoint) -> None:
    expected = reply("english")
    answer = served.server.ask({"voice": "alba", "seed": expected.seed}, text=expected.text)
    assert answer.error is None
    pcm = answer.pcm
    assert len(pcm) == 1920 * len(expected.latents)  # 24 kHz
    np.testing.assert_allclose(pcm[: len(expected.pcm)], expected.pcm, atol=1e-4)
    np.testing.assert_allclose(pcm[-len(expected.pcm_last) :], expected.pcm_last, atol=1e-4)
    assert answer.report["num_frames"] == len(expected.latents)
    assert answer.report["finish_reason"] == "stop"


async def test_client_speaks_the_pieces_of_a_text_one_by_one(served: ServedCheckpoint) -> None:
    """The joined samples are those of the pieces, except for the fades that join them."""
    text = CUT_TEXTS[4]
    asked = [served.server.ask({"seed": 3, "piece": piece}, text=text) for piece in range(5)]
    assert {answer.report["num_pieces"] for answer in asked} == {5}
    async with SpeechClient(f"localhost:{served.server.grpc}") as client:
        events = [event async for event in client.speak(text, seed=3, check="off")]
    pcm = np.concatenate([event.pcm for event in events if event.pcm is not None])
    assert len(pcm) == sum(len(answer.pcm) for answer in asked)
    np.testing.assert_allclose(pcm[: len(asked[0].pcm)], asked[0].pcm, atol=1e-5)
    np.testing.assert_allclose(pcm[-len(asked[-1].pcm) + 120 :], asked[-1].pcm[120:], atol=1e-5)
    assert [event.is_final for event in events].count(True) == 1


def test_served_pocket_tts_clones_a_recorded_voice(served: ServedCheckpoint) -> None:
    expected = reply("english")
    first = expected.cloned[:6]
    codec = load_codec("pocket", served.checkpoint)
    words = torch.from_numpy(words_of(first)).T[None].long()
    samples, _ = codec.decode(Window(words, 0, 0, torch.zeros(1, dtype=torch.int64), codec.initial_state(1)))
    asked = cloning(expected.text)
    options = {"seed": expected.seed, "audio": {"min_rows": 16}}
    inputs = {
        "messages": asked.messages,
        "pcm_in": asked.pcm_in,
        "sample_rate": np.array([asked.sample_rate], np.int32),
    }
    answer = served.server.ask(options, **inputs)
    assert answer.error is None
    pcm = answer.pcm
    np.testing.assert_allclose(pcm[: samples.shape[1]], samples[0].numpy(), atol=1e-4)
