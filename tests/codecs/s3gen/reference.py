"""Inputs for the authors' code and for the codec. Only every n-th number of a result is stored."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.checkpoints import random_s3gen

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


def thinned(values: np.ndarray) -> np.ndarray:
    """Return the count of numbers and every EVERY-th of them, in float32."""
    return np.append(values.size, values.reshape(-1)[::EVERY]).astype(np.float32)
