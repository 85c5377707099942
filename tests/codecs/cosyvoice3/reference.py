"""Inputs for the authors' code and for the codec. Only every n-th number of a result is stored."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.checkpoints import random_cosyvoice3

REFERENCE = Path(__file__).with_name("reference.npz")
EVERY = 61
LENGTH = 83  # tokens
STEPS = (25, 75)  # tokens in the first blocks
VOICES = {"short": random_cosyvoice3.voice(3, 25), "long": random_cosyvoice3.voice(4, 75)}


def tokens(seed: int) -> Tensor:
    """Return tokens [LENGTH]."""
    return torch.from_numpy(np.random.default_rng(seed).integers(0, random_cosyvoice3.NUM_CODES, LENGTH))


def thinned(values: np.ndarray) -> np.ndarray:
    """Return the count of numbers and every EVERY-th of them, in float32."""
    return np.append(values.size, values.reshape(-1)[::EVERY]).astype(np.float32)
