"""Inputs for the authors' code and for the codec, drawn by numpy."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stretto.codecs.glm4_voice import PARTS, Glm4VoiceCodec, read_config

REFERENCE = Path(__file__).with_name("reference.npz")
EVERY = 29
SIZES = ((8, 12, 16), (25, 50, 100, 150, 200))
PART, PROMPT = 13, 20  # tokens, frames of the mel spectrogram
LENGTHS = {8: (5, 17, 43), 25: (20, 84)}  # tokens, by the first block's size


def tokens() -> Tensor:
    """Return ids [1, 100]."""
    return torch.from_numpy(np.random.default_rng(1).integers(0, 64, (1, 100)))


def mel() -> Tensor:
    """Return a mel spectrogram for the vocoder, float64 [1, M, 2 PROMPT]."""
    return torch.from_numpy(np.random.default_rng(2).standard_normal((1, 80, 2 * PROMPT), dtype=np.float32)).double()


def inputs(checkpoint: Path) -> dict[str, np.ndarray | Tensor]:
    """Return all inputs and weights of the results by name."""
    codec = Glm4VoiceCodec(read_config(checkpoint))
    found = {"noise": codec.noise, "samples": codec.source_noise, "phases": codec.phases}
    for part in PARTS:
        found |= {f"{part}.{name}": each for name, each in torch.load(checkpoint / f"{part}.pt").items()}
    return {**found, "tokens": tokens(), "mel": mel()}
