"""Higgs Audio v2 through the real server: transformers' release, converter, repository, server, client.

Replies equal those of transformers' class for the release, with greedy sampling.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from plugins.higgs_audio.lab.random_higgs_audio import make_model
from plugins.higgs_audio.tests.published_higgs_audio import HiggsAudioReference, convert
from stretto.codecs.base import load_codec
from stretto.preprocessing.request import Preprocessor
from tests.server.conftest import ServedCheckpoint, served_checkpoint
from tests.server.published import check_sound, prepared

# By night: test_higgs_audio.py of this plug-in compares the same release with the same class; its prompts and its codec
# have tests of their own.
pytestmark = [pytest.mark.server, pytest.mark.nightly]

NUM_ROWS = 26
OPTIONS = {
    "audio": {"temperature": 0.0, "max_rows": NUM_ROWS},
    "chunking": {"first_frames": 2, "steady_frames": 5},
    "output": {"codes": True},
    "seed": 3,
}
PCM = (np.sin(np.arange(9_000) ** 1.3 / 300) / 2).astype(np.float32)
CODES = np.random.default_rng(0).integers(1024, size=(8, 3)).tolist()
HEARD = {"pcm_in": PCM, "sample_rate": np.array([24_000], np.int32)}
SPEAKERS = [
    {"role": "system", "text": "SPEAKER0: a man\nSPEAKER1: a well"},
    {"role": "user", "text": "[SPEAKER0] how are you?"},
    {"role": "assistant", "audio": "pcm_in"},
    {"role": "user", "text": "[SPEAKER1] fine"},
    {"role": "assistant", "codes": CODES},
    {"role": "user", "text": "[SPEAKER0] hello\n[SPEAKER1] thank you"},
]
CLONED = [{"role": "system", "audio": "pcm_in", "text": "how are you?"}, {"role": "user", "text": "a well"}]
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "text": ({}, {"text": "the birch canoe"}),
    "guided, in a scene": ({"guidance_scale": 2.0, "instruct": "a quiet garden"}, {"text": "the birch canoe"}),
    "voice": ({}, {"messages": json.dumps(CLONED), **HEARD}),
    "speakers by turns": ({}, {"messages": json.dumps(SPEAKERS), **HEARD}),
}


@dataclass(frozen=True)
class ServedHiggsAudio(ServedCheckpoint):
    """Server for a release, and the reference for its replies."""

    reference: HiggsAudioReference

    def codes(self, options: dict[str, Any], inputs: dict[str, Any]) -> np.ndarray:
        """Return the codes [K, T] of the reply to a request."""
        prompt = prepared(Preprocessor(self.checkpoint), options, inputs)
        guided = prompt.sampling.guidance_scale != 1.0
        rows = self.reference.naive(prompt)[0] if guided else self.reference.generated(prompt)
        layout = self.reference.family.layout
        codes = np.array(rows).T - np.array([[ids.start] for ids in layout.audio])
        num_frames = codes.shape[1] - layout.max_delay
        return np.stack([codes[k, k : k + num_frames] for k in range(len(codes))]).clip(max=layout.codebook_size - 1)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedHiggsAudio]:
    folder = tmp_path_factory.mktemp("higgs_audio")
    checkpoint, _, reference = convert(folder, make_model())
    with served_checkpoint(folder, checkpoint) as server:
        yield ServedHiggsAudio(server, checkpoint, reference)


@pytest.mark.parametrize("case", list(CASES))
def test_served_model_streams_the_reference_codes(served: ServedHiggsAudio, case: str) -> None:
    changes, inputs = CASES[case]
    answer = served.server.ask(OPTIONS | changes, **inputs)
    assert answer.error is None
    np.testing.assert_array_equal(answer.codes, served.codes(OPTIONS | changes, inputs))
    assert len(answer.sounds) >= 2  # how many chunks there are is a matter of the clock
    check_sound(
        answer.pcm, answer.codes, load_codec("higgs", served.checkpoint), finish_reason=answer.report["finish_reason"]
    )
    assert len(answer.pcm) == answer.codes.shape[1] * 960  # 24 kHz
    assert not any(event["text"] for event in answer.events)
