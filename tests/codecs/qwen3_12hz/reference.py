"""Inputs for the authors' code and for ours. Only every n-th sample of a waveform is stored."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

REFERENCE = Path(__file__).with_name("reference.npz")
EVERY = 101
FRAMES = 400  # more than the 300 that their own decode takes at once
CODEBOOKS, CODES = 16, 64
HEARD_S = (0.06, 0.5, 1.7)
SPEAKER = {
    "enc_dim": 24,
    "enc_channels": [16, 16, 16, 16, 48],
    "enc_attention_channels": 8,
    "enc_res2net_scale": 4,
    "enc_se_channels": 8,
    "sample_rate": 24_000,
}


def codes() -> Tensor:
    """Return codes [1, 16, FRAMES]."""
    return torch.from_numpy(np.random.default_rng(1).integers(0, CODES, (1, CODEBOOKS, FRAMES)))


def speech(seconds: float, rate: int = 24_000) -> np.ndarray:
    """Return samples, float32 [n], whose loudness and pitch change."""
    time, draw = np.arange(round(rate * seconds)) / rate, np.random.default_rng(3)
    pitch = 2 * np.pi * np.cumsum(140 + 90 * np.sin(5 * time) + 30 * np.sin(23 * time)) / rate
    tones = sum(np.sin(harmonic * pitch + harmonic) * (1 + np.sin((3 + harmonic) * time)) for harmonic in (1, 3, 7, 12))
    return (0.08 * tones + 0.03 * draw.standard_normal(len(time))).astype(np.float32)
