"""Noise that is drawn once and for all: a frame's depends on its place alone, so equal codes make equal samples."""

import numpy as np
import torch
from torch import Tensor

from stretto.codec.cosyvoice.shapes import VocoderShape

SEEDS = {"flow": 42, "source": 43, "phases": 44}


def gaussian(columns: int, rows: int, seed: int) -> Tensor:
    """Noise [rows, columns] of power 1, the same on every machine; fewer columns are the first ones of more."""
    drawn = np.random.default_rng(seed).standard_normal((columns, rows), dtype=np.float32)
    return torch.from_numpy(drawn.T.copy())


def noise_tables(mels: int, shape: VocoderShape, most_heard: int, most_spoken: int) -> dict[str, Tensor]:
    """What the flow begins with, `noise` [M, most_heard], the source's own, `source_noise` [harmonics + 1, n] for
    `most_spoken` frames, and where each of its sines begins, `phases` [harmonics + 1, 1]."""
    sines = shape.source.harmonics + 1
    phases = np.random.default_rng(SEEDS["phases"]).uniform(-np.pi, np.pi, (sines, 1))
    phases[0] = 0  # the pitch itself begins at a zero
    return {
        "noise": gaussian(most_heard, mels, SEEDS["flow"]),
        "source_noise": gaussian(most_spoken * shape.samples_per_mel, sines, SEEDS["source"]),
        "phases": torch.from_numpy(phases),
    }
