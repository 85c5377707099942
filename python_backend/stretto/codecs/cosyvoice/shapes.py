"""Sizes of the decoders that follow CosyVoice 2: constants, and sizes derived from the shapes of tensors."""

import re
from collections.abc import Iterable, Mapping

from stretto.codecs.cosyvoice.flow import SourceShape, VocoderShape
from stretto.errors import CheckpointError

SAMPLE_RATE = 24_000
HEAD_WIDTH = 64  # head width of the estimator's attention
HARMONICS = 8
AMPLITUDE = 0.1
SIGMA = 0.003
THRESHOLD_HZ = 10
RATES = (8, 5, 3)
KERNELS = (16, 11, 7)
RESIDUAL_KERNELS = (3, 7, 11)
SOURCE_KERNELS = (7, 7, 11)
DILATIONS = (1, 3, 5)
FOURIER = 16
HOP = 4
SLOPE = 0.1
LIMIT = 0.99

Shapes = Mapping[str, tuple[int, ...]]
MAX_WIDTH = 1 << 15  # far above the published 6561 codes


def vocoder_shape(channels: int, pitch_channels: int, is_causal: bool = False) -> VocoderShape:
    """Return the sizes of HiFT, given the channel counts of the vocoder and its pitch predictor."""
    return VocoderShape(
        channels=channels,
        sample_rate=SAMPLE_RATE,
        rates=RATES,
        kernels=KERNELS,
        residuals=tuple((kernel, DILATIONS) for kernel in RESIDUAL_KERNELS),
        source_residuals=tuple((kernel, DILATIONS) for kernel in SOURCE_KERNELS),
        fourier=FOURIER,
        hop=HOP,
        slope=SLOPE,
        limit=LIMIT,
        source=SourceShape(HARMONICS, AMPLITUDE, SIGMA, THRESHOLD_HZ, pitch_channels),
        is_causal=is_causal,
    )


def count(names: Iterable[str], prefix: str) -> int:
    """Return how many numbered modules below `prefix` occur in the tensor names."""
    pattern = re.compile(rf"{re.escape(prefix)}\.(\d+)\.")
    return len({found[1] for name in names if (found := pattern.match(name))})


def shape_of(shapes: Shapes, name: str, rank: int) -> tuple[int, ...]:
    """Return a tensor's shape; raise CheckpointError unless it has `rank` sizes in [1, MAX_WIDTH].

    Sizes are limited because a file can declare any size for an empty tensor, and noise of that size is generated.
    """
    shape = shapes.get(name)
    if shape is None or len(shape) != rank:
        got = "none" if shape is None else list(shape)
        raise CheckpointError(f"{name}: expected a tensor of {rank} dimensions, got {got}")
    if not all(1 <= size <= MAX_WIDTH for size in shape):
        raise CheckpointError(f"{name}: expected sizes in [1, {MAX_WIDTH}], got {list(shape)}")
    return shape
