"""VALL-E through the real server: a recipe's files, converter, repository, server, client.

Replies equal those of the authors' code with the same weights and greedy sampling.
"""

import json
from typing import Any

import numpy as np
import pytest

from benchmarks.checkpoints.random_espnet import convert
from stretto.codecs.base import load_codec
from tests.server.conftest import ServedCheckpoint, serves
from tests.server.published import check_sound
from tests.valle_release import REPLIES

# By night: tests/engine/test_valle.py, tests/families/valle/test_refinement.py and tests/decoder/test_filling.py hold
# each part to the same replies.
pytestmark = [pytest.mark.server, pytest.mark.nightly]

GREEDY = {"audio": {"temperature": 0.0, "max_rows": 120}, "output": {"codes": True}, "seed": 3}


served = serves(convert)


def asked(reply: dict[str, Any]) -> dict[str, Any]:
    """Return the inputs of the request for a fixture reply."""
    turns = [{"role": "system", "codes": reply["voice"]}, {"role": "user", "text": reply["text"]}]
    return {"messages": json.dumps(turns)}


@pytest.mark.parametrize("at", range(len(REPLIES)))
def test_served_valle_matches_the_published_codes(served: ServedCheckpoint, at: int) -> None:
    answer = served.server.ask(GREEDY, **asked(REPLIES[at]))
    assert answer.error is None
    codes = np.array(REPLIES[at]["codes"])
    np.testing.assert_array_equal(answer.codes, codes[:1])
    (pcm,) = answer.sounds  # with the last chunk
    check_sound(pcm, codes, load_codec("espnet_dac", served.checkpoint), finish_reason=answer.report["finish_reason"])
    assert len(pcm) == codes.shape[1] * 320  # 16 kHz


def test_served_valle_clones_a_voice_with_optional_guidance(served: ServedCheckpoint) -> None:
    pcm = (np.sin(np.arange(9_000) ** 1.3 / 300) / 2).astype(np.float32)
    turns = [{"role": "system", "audio": "pcm_in"}, {"role": "user", "text": "a well"}]
    inputs = {"messages": json.dumps(turns), "pcm_in": pcm, "sample_rate": np.array([16_000], np.int32)}
    answers = [served.server.ask({**GREEDY, "guidance_scale": scale}, **inputs) for scale in (1.0, 2.0)]
    for answer in answers:
        assert answer.error is None
        report = answer.events[-1]["report"]
        assert report["audio_s"] == pytest.approx(report["num_frames"] / 50)
    assert answers[1].events[-1]["report"]["guided_frames"] == answers[1].events[-1]["report"]["num_frames"] > 0


def test_invalid_input_error_names_its_field(served: ServedCheckpoint) -> None:
    codes = [{"role": "system", "codes": [[1, 2]] * 7}, {"role": "user", "text": "a"}]
    for inputs, message in (
        ({"text": "a"}, "messages: expected a system turn with a recording of the voice"),
        ({"messages": json.dumps(codes)}, "messages[0].codes: expected 8 streams, got 7 streams"),
        ({"text": "a", "options": '{"voice": "anna"}'}, "options.voice: expected no value"),
    ):
        served.server.refuses(inputs, message)
