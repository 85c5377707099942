"""Inputs for the authors' code and for the codec. Only every n-th number of a result is stored."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

REFERENCE = Path(__file__).with_name("reference.npz")
EVERY = 29
SIZES = ((8, 12, 16), (25, 50, 100, 150, 200))
PART, PROMPT = 13, 20  # tokens, frames of the mel spectrogram
LENGTHS = {8: (5, 17, 43), 25: (20, 84)}  # tokens, by the first block's size


def tokens() -> Tensor:
    """Return ids [1, 100]."""
    return torch.from_numpy(np.random.default_rng(1).integers(0, 64, (1, 100)))


def thinned(values: np.ndarray) -> np.ndarray:
    """Return the count of numbers and every EVERY-th of them, in float32."""
    return np.append(values.size, values.reshape(-1)[::EVERY]).astype(np.float32)
