"""Learning-rate schedule, and resumption of an interrupted run."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from training.tiny import train
from training.tiny.corpus import write_encoded
from training.tiny.encoded import Spoken, Transcript
from training.tiny.network import NetworkConfig
from training.tiny.words import load_words

SMALL = NetworkConfig(32, 3, 4, 2, 8, 48)


def test_the_rate_rises_stays_and_falls() -> None:
    config = train.TrainingConfig(Path(), 1)
    scales = [train.rate_scale(1000, spent, config) for spent in np.linspace(0, 1, 21)]
    assert scales[:8] == [1.0] * 8
    assert scales[7:] == sorted(scales[7:], reverse=True)
    assert scales[-1] == pytest.approx(0.01)
    assert train.rate_scale(0, 0.0, config) == pytest.approx(0.01)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = random.Random(0)
    utterances = [
        Spoken(
            Transcript("up at", (30, 2, 29, 1, 33, 30), (-1, 0, 0, 1, 1, -1)),
            rng.choice(["slt", "rms"]),
            np.minimum(np.arange(12), 5),
            np.random.RandomState(seed).randint(0, 256, (12, 7)).astype(np.uint8),
        )
        for seed in range(20)
    ]
    write_encoded(tmp_path / "codes_0000.pt", utterances)
    words = load_words()
    names = dict.fromkeys((*words.spoken, *words.read), ("ah", "p"))
    (tmp_path / "pronunciations.json").write_text(json.dumps(names))
    return tmp_path


def test_a_second_run_goes_on_where_the_first_stopped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "NetworkConfig", lambda: SMALL)
    config = train.TrainingConfig(folder, 0.02, speak=200, listen=100, read=60)
    train.train(config)
    saved = torch.load(config.checkpoint)
    assert saved["step"] > 0
    assert saved["spent_s"] >= 1.2
    resumed = train.Trainer(config)
    assert (resumed.step, resumed.spent_s) == (saved["step"], saved["spent_s"])
    resumed.run()
    assert resumed.step == saved["step"]
