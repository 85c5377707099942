"""Inputs for the authors' code and for the codec, drawn by numpy."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plugins.chatterbox.lab import random_s3gen
from stretto_chatterbox.s3gen import S3GenCodec

REFERENCE = Path(__file__).with_name("reference.npz")
EVERY = 29
LENGTHS = (1, 23)  # tokens
VOICES: dict[str, dict[str, Any]] = {
    "short": random_s3gen.conditions(3, 7),
    "long": random_s3gen.conditions(4, 31),
}


def tokens(length: int) -> Tensor:
    """Return ids [length]."""
    return torch.from_numpy(np.random.default_rng(1).integers(0, random_s3gen.NUM_CODES, length))


def mel(length: int) -> Tensor:
    """Return a mel spectrogram for the vocoder, float64 [1, M, 2 length]."""
    drawn = np.random.default_rng(length).standard_normal((1, random_s3gen.MELS, 2 * length), dtype=np.float32)
    return torch.from_numpy(drawn).double()


def inputs() -> dict[str, np.ndarray | Tensor]:
    """Return all inputs and weights of the results by name."""
    codec = S3GenCodec(random_s3gen.NARROW)
    found = {"noise": codec.noise, "samples": codec.source_noise, "phases": codec.phases}
    for name, shape in (("", random_s3gen.NARROW), ("turbo.", random_s3gen.MEANFLOW)):
        found |= {f"{name}{part}": each for part, each in random_s3gen.tensors(shape).items()}
    for length in LENGTHS:
        found |= {f"tokens_{length}": tokens(length), f"mel_{length}": mel(length)}
    for name, voice in VOICES.items():
        found |= {f"{name}.{part}": each for part, each in voice.items() if isinstance(each, Tensor)}
    return dict(found)
