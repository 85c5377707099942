"""Training of the language model to transcribe its own speech."""

from copy import deepcopy

import numpy as np
import pytest
import torch

from stretto.families.tiny import family as tiny
from training.tiny import builders, train_hearing
from training.tiny.corpus import Corpus
from training.tiny.encoded import Spoken, Transcript
from training.tiny.network import Network, NetworkConfig
from training.tiny.teacher import Script

SMALL = NetworkConfig(32, 3, 4, 2, 8, 48)
PHONEMES = tiny.PHONEMES.index("pau"), *(tiny.PHONEMES.index(name) for name in "ah1 p ae t pau".split())
TRANSCRIPT = Transcript("up at", PHONEMES, (-1, 0, 0, 1, 1, -1))


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    made = Network(SMALL)
    torch.nn.init.normal_(made.lm_head.weight)
    return made


def corpora() -> dict[str, Corpus]:
    spoken = Spoken(TRANSCRIPT, "heart", np.minimum(np.arange(12), 5))
    rng = np.random.default_rng(0)
    utterances = [(spoken, rng.integers(0, 256, (12, 7)).astype(np.uint8)) for _ in range(8)]
    return {
        "own": train_hearing.corpus(utterances, builders.asr, False),
        "speech": train_hearing.corpus(utterances, builders.tts, True),
    }


@pytest.mark.nightly
def test_transcription_improves(network: Network) -> None:
    original = deepcopy(network)
    rows = {"own": 100, "speech": 100}
    found = list(train_hearing.train(network, corpora(), rows, 40))
    assert found[-1]["own"] < 0.5 * found[0]["own"]
    assert found[0]["speech"] == pytest.approx(0, abs=1e-3)
    assert not torch.equal(network.lm_head.weight, original.lm_head.weight)


def test_own_speech_has_the_phoneme_of_each_frame(network: Network) -> None:
    script = Script(TRANSCRIPT.text, TRANSCRIPT.phonemes, TRANSCRIPT.words, (), ())
    utterances = train_hearing.own_speech(network.eval(), [script] * 3)
    assert utterances
    for spoken, codes in utterances:
        assert spoken.transcript == TRANSCRIPT
        assert len(codes) == len(spoken.phoneme_of_frame)
        assert set(np.diff(spoken.phoneme_of_frame)) <= {0, 1}
        assert (spoken.phoneme_of_frame[0], spoken.phoneme_of_frame[-1]) == (0, len(PHONEMES) - 1)
