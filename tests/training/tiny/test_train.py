"""Learning-rate schedule, and resumption of an interrupted run."""

from pathlib import Path

import numpy as np
import pytest
import torch

from stretto.families.tiny import family as tiny
from training.tiny import builders, train
from training.tiny.corpus import Corpus, pack
from training.tiny.encoded import Spoken, Transcript
from training.tiny.network import NetworkConfig

SMALL = NetworkConfig(32, 3, 4, 2, 8, 48)
PHONEMES = tuple(tiny.PHONEMES.index(name) for name in "pau ah1 p ae t pau".split())
TRANSCRIPT = Transcript("up at", PHONEMES, (-1, 0, 0, 1, 1, -1))


@pytest.fixture
def corpora() -> dict[str, Corpus]:
    spoken = Spoken(TRANSCRIPT, "heart", np.minimum(np.arange(12), 5))
    codes = torch.from_numpy(np.random.RandomState(0).randint(0, 256, (240, 7)).astype(np.uint8))
    speak, listen = pack([builders.tts(spoken)] * 20), pack([builders.asr(spoken)] * 20)
    read = pack([builders.g2p(TRANSCRIPT, "heart")] * 20)
    return {
        "tts": Corpus([speak], codes, True, "cpu"),
        "asr": Corpus([listen], codes, False, "cpu"),
        "g2p": Corpus([read], None, False, "cpu"),
    }


def settings(folder: Path, seconds: float, start: Path | None = None) -> train.TrainingConfig:
    rows = {"tts": 200, "asr": 100, "g2p": 60}
    return train.TrainingConfig(folder, seconds, start=start, rows=rows, network=SMALL)


def test_training_resumes_from_its_checkpoint(tmp_path: Path, corpora: dict[str, Corpus]) -> None:
    config = settings(tmp_path, 0.5)
    train.Trainer(config).run(corpora)
    saved = torch.load(config.checkpoint)
    assert saved["step"] > 0
    assert saved["spent_s"] >= 0.5
    resumed = train.Trainer(config)
    assert (resumed.step, resumed.spent_s) == (saved["step"], saved["spent_s"])
    resumed.run(corpora)
    assert resumed.step == saved["step"]
