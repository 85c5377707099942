"""Resemble AI's public detector of the mark that `marking.perth` sets.

The network and its weights are those of the package resemble-perth (MIT); the package's own code is not imported,
because it needs librosa and a setuptools of before 2025.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from stretto.errors import CheckpointError
from stretto.weights.loading import read_pickled

WEIGHTS = "perth_net/pretrained/implicit/perth_net_250000.pth.tar"  # in the package's folder
# of the spectrum, in samples
SIZE = 2048
HOP = 320
BANDS = 128
FLOOR = 1e-9
FLOOR_DB = 180.0
RANGE_DB = 195.0
QUIET = 0.05  # frames below this share of the loudest one are omitted
STRETCHES = {"slow": 1.25, "normal": 1.0, "fast": 0.75}  # a network for each speed of the audio
LAYERS = 7
WIDTH = 256
BRANCH_OUTPUTS = 2
STEADY_DB = 1.0  # median change from one frame to the next; speech changes by two or three decibels
AUDIBLE_DB = 60.0  # below the loudest level


class Detector:
    """Detector that scores speech: 1 for marked, 0 for unmarked."""

    name = "perth-implicit-250000"

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = weights

    @classmethod
    def load(cls, package: Path) -> "Detector":
        """Return the detector with the weights in the package's folder; raise CheckpointError if they are missing."""
        path = package / WEIGHTS
        record = read_pickled(path)
        weights = record.get("model") if isinstance(record, dict) else None
        if not isinstance(weights, dict) or set(shapes()) - set(weights):
            raise CheckpointError(f"{path}: expected the weights of perth's network")
        for name, shape in shapes().items():
            if tuple(weights[name].shape) != shape:
                raise CheckpointError(f"{path}: {name}: expected shape {shape}, got {tuple(weights[name].shape)}")
        return cls(weights)

    @torch.inference_mode()
    def score(self, pcm: np.ndarray) -> float | None:
        """Return the score in [0, 1] of mono samples at 32 kHz, float32 [n], or None if they cannot be judged.

        The detector cannot judge silence, less than a spectrum, or a steady tone, which scores like a mark.
        """
        if len(pcm) < SIZE or not pcm.any():
            return None
        levels = spectrum(torch.from_numpy(pcm))
        total = levels.sum(0)
        is_heard = (total > QUIET * total.max()).float()
        if not is_heard.any() or median_step(levels[:BANDS]) < STEADY_DB:
            return None
        branches = [self._branch(name, stretch, levels[None, :BANDS], is_heard) for name, stretch in STRETCHES.items()]
        attention, marks = torch.stack(branches).unbind(1)
        return float((marks * attention.softmax(0)).sum().clamp(0, 1))

    def _branch(self, name: str, stretch: float, levels: Tensor, is_heard: Tensor) -> Tensor:
        """Return the mean attention and the mean mark of one network, [2]."""
        size = int(levels.shape[2] * stretch)
        if stretch != 1:
            levels = functional.interpolate(levels, size=size, mode="linear", align_corners=True)
            is_heard = functional.interpolate(is_heard[None, None], size=size)[0, 0]
        for layer in range(LAYERS):
            weight, bias = (
                self._weights[f"decoder.{name}_layers.{layer}.conv.{tensor}"] for tensor in ("weight", "bias")
            )
            levels = functional.conv1d(levels, weight, bias, padding=weight.shape[2] // 2)
            if layer < LAYERS - 1:
                levels = functional.leaky_relu(levels)
        return (levels[0] * is_heard).sum(1) / is_heard.sum()


def shapes() -> dict[str, tuple[int, ...]]:
    """Return the shapes of the network's tensors, by name."""
    shapes_by_name: dict[str, tuple[int, ...]] = {}
    for name in STRETCHES:
        for layer in range(LAYERS):
            width_in = BANDS if layer == 0 else WIDTH
            size = 1 if layer in (0, LAYERS - 1) else 7
            width = BRANCH_OUTPUTS if layer == LAYERS - 1 else WIDTH
            prefix = f"decoder.{name}_layers.{layer}.conv"
            shapes_by_name |= {f"{prefix}.weight": (width, width_in, size), f"{prefix}.bias": (width,)}
    return shapes_by_name


def median_step(levels: Tensor) -> float:
    """Return the median change of the audible levels [F, T] from one frame to the next, in dB."""
    is_audible = levels > levels.max() - AUDIBLE_DB / RANGE_DB
    return float(levels.diff(dim=1).abs()[is_audible[:, 1:] & is_audible[:, :-1]].median() * RANGE_DB)


def spectrum(pcm: Tensor) -> Tensor:
    """Return the levels of the spectrum of samples [n], [SIZE // 2 + 1, T]; 0 is -180 dB and 1 is 15 dB."""
    transform = torch.stft(pcm, SIZE, HOP, window=torch.hann_window(SIZE), pad_mode="reflect", return_complex=True)
    return (20 * transform.abs().clamp(min=FLOOR).log10() + FLOOR_DB) / RANGE_DB
