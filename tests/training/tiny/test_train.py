"""Learning-rate schedule, and resumption of an interrupted run."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from training.tiny import train
from training.tiny.corpus import CODES, HEARD, write_encoded
from training.tiny.encoded import Spoken, Transcript
from training.tiny.export import export
from training.tiny.network import NetworkConfig
from training.tiny.words import load_words

SMALL = NetworkConfig(32, 3, 4, 2, 8, 48)


def test_learning_rate_rises_stays_and_falls() -> None:
    config = train.TrainingConfig(Path(), 1)
    scales = [train.rate_scale(1000, spent, config) for spent in np.linspace(0, 1, 21)]
    assert scales[:8] == [1.0] * 8
    assert scales[7:] == sorted(scales[7:], reverse=True)
    assert scales[-1] == pytest.approx(0.01)
    assert train.rate_scale(0, 0.0, config) == pytest.approx(0.01)
    lower = train.TrainingConfig(Path(), 1, peak=0.2)
    assert [train.rate_scale(1000, spent, lower) for spent in np.linspace(0, 1, 21)] == pytest.approx(
        [0.2 * scale for scale in scales]
    )


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
    for name in (CODES, HEARD):
        write_encoded(tmp_path / f"{name}_0000.pt", utterances)
    words = load_words()
    names = dict.fromkeys((*words.spoken, *words.read), ("ah", "p"))
    (tmp_path / "pronunciations.json").write_text(json.dumps(names))
    return tmp_path


def test_training_resumes_from_its_checkpoint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_training_may_start_from_an_exported_checkpoint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "NetworkConfig", lambda: SMALL)
    first = train.Trainer(train.TrainingConfig(folder, 0.0))
    torch.nn.init.normal_(first.network.lm_head.weight)
    first.save()
    export(first.config.checkpoint, folder / "exported")
    first.config.checkpoint.unlink()
    second = train.Trainer(train.TrainingConfig(folder, 0.0, start=folder / "exported"))
    for weight, given in zip(second.network.parameters(), first.network.parameters(), strict=True):
        assert torch.equal(weight, given.half().float())
