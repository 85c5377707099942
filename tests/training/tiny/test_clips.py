import math
import random

import numpy as np
import pytest
import torch

from stretto.codecs.tiny.codec import HOP, NUM_MELS, SAMPLE_RATE
from tests.codecs.conftest import make_codec
from training.tiny.clips import Clip, bridge, draw_batch, make_clip, quantise
from training.tiny.synthesise import Utterance


def hum(hz: float, seconds: float) -> torch.Tensor:
    """Return ten harmonics of a pitch as int16 samples."""
    time = torch.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    wave = sum((2 * math.pi * hz * k * time).sin() / k for k in range(1, 11))
    return (wave * 6000).to(torch.int16)


def test_clip_is_cut_to_whole_codes_with_its_pitch() -> None:
    pytest.importorskip("pyworld")
    clip = make_clip(Utterance("hm", "slt", (), (), (), hum(150, 0.5)))
    assert len(clip.pcm) == 12 * 4 * HOP
    assert clip.mel.shape == (48, NUM_MELS)
    assert (clip.pitch_hz[8:-8] - 150).abs().max() < 2


def test_unvoiced_pitch_is_interpolated_linearly() -> None:
    pitch = torch.tensor([0.0, 100, 0, 0, 130, 0])
    assert bridge(pitch).tolist() == [100, 100, 110, 120, 130, 130]
    assert (bridge(torch.zeros(3)) > 0).all()


def test_drawn_batch_has_aligned_pcm_and_mel_on_code_boundaries() -> None:
    frames = 40
    mel = torch.arange(frames).float()[:, None].repeat(1, NUM_MELS)
    clip = Clip(mel[:, :1].repeat(1, HOP).reshape(-1), mel, torch.full((frames,), 100.0))
    short = Clip(torch.zeros(8 * HOP), torch.zeros(8, NUM_MELS), torch.zeros(8))
    batch = draw_batch([short, clip], [[short.mel], [mel]], random.Random(0), 6, 16)
    assert batch.pcm.shape == (6, 16 * HOP)
    assert torch.equal(batch.pcm.reshape(6, 16, HOP)[..., 0], batch.mel[..., 0])
    assert (batch.mel[:, 0, 0] % 4 == 0).all()
    assert batch.voiced.min() == 1


def test_quantising_keeps_the_shape_and_improves_with_codebooks() -> None:
    codec = make_codec()
    mel = codec.quantiser.decode(torch.randint(16, (1, 3, 10)))[0].float().reshape(-1, NUM_MELS)
    mel = mel + 0.05 * torch.from_numpy(np.random.default_rng(0).normal(size=mel.shape)).float()
    errors = [(quantise(codec.quantiser, mel, k) - mel).norm() for k in (1, 3)]
    assert quantise(codec.quantiser, mel, 3).shape == mel.shape
    assert errors[1] < errors[0]
