"""Inputs for the authors' code and for the codec, drawn by numpy."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from plugins.cosyvoice3.lab import random_cosyvoice3
from stretto_cosyvoice3.codec import NOISE_FRAMES

REFERENCE = Path(__file__).with_name("reference.npz")
EVERY = 61
LENGTH = 83  # tokens
STEPS = (25, 75)  # tokens in the first blocks
VOICES = {"short": random_cosyvoice3.voice(3, 25), "long": random_cosyvoice3.voice(4, 75)}


def tokens(seed: int) -> Tensor:
    """Return tokens [LENGTH]."""
    return torch.from_numpy(np.random.default_rng(seed).integers(0, random_cosyvoice3.NUM_CODES, LENGTH))


def mel(seed: int) -> Tensor:
    """Return a mel spectrogram for the vocoder, float64 [1, M, 2 LENGTH]."""
    drawn = np.random.default_rng(seed).standard_normal((1, random_cosyvoice3.MELS, 2 * LENGTH), dtype=np.float32)
    return torch.from_numpy(drawn).double()


def noise() -> Tensor:
    """Return the initial noise of the flow, float64 [M, NOISE_FRAMES]."""
    shape = random_cosyvoice3.MELS, NOISE_FRAMES
    return torch.from_numpy(np.random.default_rng(9).standard_normal(shape, dtype=np.float32)).double()


def inputs() -> dict[str, np.ndarray | Tensor]:
    """Return all inputs and weights of the results by name."""
    found: dict[str, np.ndarray | Tensor] = {"noise": noise(), "samples": random_cosyvoice3.random_codec().source_noise}
    for seed in random_cosyvoice3.SEEDS:
        found |= {f"tokens_{seed}": tokens(seed), f"mel_{seed}": mel(seed)}
        for part, named in random_cosyvoice3.tensors(seed=seed).items():
            found |= {f"{part}_{seed}.{name}": each for name, each in named.items()}
    return found | {f"{name}_{at}": each for name, voice in VOICES.items() for at, each in enumerate(voice)}
