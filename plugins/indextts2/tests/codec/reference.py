"""Inputs for the authors' code and for ours, drawn by numpy."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from plugins.indextts2.lab import random_acoustics
from stretto_indextts2.family import SAMPLE_RATE
from stretto_indextts2.flow import NUM_MELS

REFERENCE = Path(__file__).with_name("reference.npz")
EVERY = 13
LENGTHS = (1, 24)  # codes
VOICES = {"short": random_acoustics.voice(3, 14, 24), "long": random_acoustics.voice(4, 40, 69)}
# samples of the recordings; the second one gives an odd number of filter bank frames
RECORDINGS = {"short": SAMPLE_RATE // 2, "long": 3 * SAMPLE_RATE // 2 + 117}


def codes(length: int) -> Tensor:
    """Return codes [length]."""
    return torch.from_numpy(np.random.default_rng(length).integers(0, random_acoustics.NARROW.codebook_size, length))


def mel(length: int) -> Tensor:
    """Return a mel spectrogram for the vocoder, float64 [1, M, 2 length]."""
    shape = (1, NUM_MELS, 2 * length)
    return torch.from_numpy(np.random.default_rng(length).standard_normal(shape, np.float32)).double()


def recording(name: str) -> np.ndarray:
    """Return a recording, float32 [n] at 22.05 kHz: noise and a tone that rises."""
    size = RECORDINGS[name]
    times = np.arange(size) / SAMPLE_RATE
    noise = np.random.default_rng(size).standard_normal(size)
    return (0.02 * noise + 0.3 * np.sin(2 * np.pi * (180 + 60 * times) * times)).astype(np.float32)


def inputs() -> dict[str, np.ndarray | Tensor]:
    """Return all inputs and weights of the results by name."""
    drawn: dict[str, np.ndarray | Tensor] = {**random_acoustics.codec_tensors(), **random_acoustics.hearing_tensors()}
    drawn["noise"] = random_acoustics.codec().noise
    for length in LENGTHS:
        drawn |= {f"codes_{length}": codes(length), f"mel_{length}": mel(length)}
    for name, voice in VOICES.items():
        drawn |= {f"{name}_{number}": part for number, part in enumerate(voice)} | {name: recording(name)}
    return drawn
