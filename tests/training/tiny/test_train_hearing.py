"""Training of the language model to transcribe its own speech."""

from copy import deepcopy

import numpy as np
import pytest
import torch

from stretto.codecs.tiny.codec import SAMPLE_RATE
from stretto.families.tiny import family as tiny
from stretto.families.tiny.recording import MARGIN_S
from training.tiny import builders, train_hearing
from training.tiny.corpus import Corpus
from training.tiny.encode import FRAME
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
def test_transcription_improves_and_speech_stays(network: Network) -> None:
    original = deepcopy(network)
    rows = {"own": 100, "speech": 100}
    found = list(train_hearing.train(network, corpora(), rows, 40))
    assert found[-1]["own"] < 0.5 * found[0]["own"]
    assert found[0]["speech"] == pytest.approx(0, abs=1e-3)
    assert not torch.equal(network.lm_head.weight, original.lm_head.weight)
    free = deepcopy(original)
    list(train_hearing.train(free, {"own": corpora()["own"]}, rows, 40))
    batch = corpora()["speech"].batch(np.arange(8))
    kept, lost = (train_hearing.divergence(trained, original, batch).item() for trained in (network, free))
    assert kept < 0.5 * lost


def test_own_speech_has_the_phoneme_of_each_frame(network: Network) -> None:
    script = Script(TRANSCRIPT.text, TRANSCRIPT.phonemes, TRANSCRIPT.words, (), ())
    utterances = train_hearing.own_speech(network.eval(), [script] * 3)
    assert utterances
    for spoken, codes in utterances:
        assert spoken.transcript == TRANSCRIPT
        assert len(codes) == len(spoken.phoneme_of_frame)
        assert set(np.diff(spoken.phoneme_of_frame)) <= {0, 1}
        assert (spoken.phoneme_of_frame[0], spoken.phoneme_of_frame[-1]) == (0, len(PHONEMES) - 1)


def test_alignment_moves_with_the_silence_that_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recording loses what precedes its speech, apart from a margin."""

    class Counted:
        @staticmethod
        def encode(pcm: np.ndarray) -> np.ndarray:
            return np.zeros((7, len(pcm) // FRAME), dtype=np.int64)

    monkeypatch.setattr(train_hearing, "extract_speech", lambda pcm, _: pcm[4 * FRAME :])
    monkeypatch.setattr(train_hearing, "speech_bounds", lambda pcm, _: (margin + 4 * FRAME, len(pcm)))
    margin = int(MARGIN_S * SAMPLE_RATE)
    spoken = Spoken(TRANSCRIPT, "heart", np.repeat(np.arange(6), 6))
    heard = train_hearing.heard(spoken, np.zeros(36 * FRAME, np.float32), Counted())  # type: ignore[arg-type]
    assert heard is not None
    assert heard[0].phoneme_of_frame.tolist() == [0] * 2 + np.repeat(np.arange(1, 6), 6).tolist()
