"""Fixed noise by position, so that equal codes give equal samples."""

import numpy as np
import torch
from torch import Tensor

from stretto.codec.cosyvoice.shapes import VocoderShape

SEEDS = {"flow": 42, "source": 43, "phases": 44}


def gaussian(columns: int, rows: int, seed: int) -> Tensor:
    """Return unit noise [rows, columns], equal on every machine; fewer columns are a prefix of more."""
    drawn = np.random.default_rng(seed).standard_normal((columns, rows), dtype=np.float32)
    return torch.from_numpy(drawn.T.copy())


def noise_tables(mels: int, shape: VocoderShape, most_heard: int, most_spoken: int) -> dict[str, Tensor]:
    """Return the noise tables of flow and vocoder.

    Returns:
        noise: Start of the flow, [M, most_heard].
        source_noise: Noise of the source for `most_spoken` frames, [harmonics + 1, n].
        phases: Initial phase of each sine, [harmonics + 1, 1].
    """
    sines = shape.source.harmonics + 1
    phases = np.random.default_rng(SEEDS["phases"]).uniform(-np.pi, np.pi, (sines, 1))
    phases[0] = 0  # the fundamental starts at phase 0
    return {
        "noise": gaussian(most_heard, mels, SEEDS["flow"]),
        "source_noise": gaussian(most_spoken * shape.samples_per_mel, sines, SEEDS["source"]),
        "phases": torch.from_numpy(phases),
    }
