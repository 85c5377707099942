"""Training of the codec."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from stretto.codecs.tiny.codec import BINS
from tests.codecs.conftest import SMALL
from training.tiny.teacher import Head
from training.tiny.train_codec import CodecTraining, Training

CONFIG = CodecTraining(100.0, segments=2, hops=60, unquantised=1, warm_up=1, codec=replace(SMALL, channels=256))


@pytest.fixture
def head(tmp_path: Path) -> Head:
    rng = np.random.default_rng(0)
    weight = rng.normal(0, 0.1, (5 * BINS, 256)).astype(np.float32)
    np.savez(tmp_path / "head.npz", weight=weight, bias=np.zeros(5 * BINS, np.float32))
    return Head(tmp_path, "cpu")


def speech(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 60, 256, generator=generator).half(), 100 + 100 * torch.rand(2, 60, generator=generator)


def test_codec_training_lowers_its_losses_and_resumes(head: Head, tmp_path: Path) -> None:
    training = Training(CONFIG, head, tmp_path, "cpu")
    losses = [training.one_step(*speech(0)) for _ in range(4)]
    assert losses[-1]["voiced"] < losses[0]["voiced"]
    assert training.codec.quantiser.codebooks.abs().sum() > 0
    training.save()
    resumed = Training(CONFIG, head, tmp_path, "cpu")
    assert resumed.step == 4
    for name, weight in training.codec.state_dict().items():
        assert torch.equal(weight, resumed.codec.state_dict()[name]), name
