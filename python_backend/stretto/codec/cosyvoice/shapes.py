"""The numbers of the parts: what a checkpoint's own reader fills in."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EncoderShape:
    """The conformer. block: its attention is within blocks of so many tokens and before them; None: to all.

    epsilon: of the norms in its layers.
    """

    width: int
    heads: int
    inner: int
    layers: int
    block: int | None = None
    epsilon: float = 1e-5


@dataclass(frozen=True, slots=True)
class EstimatorShape:
    """The U-Net that estimates the flow. blocks: transformers after each residual block.

    is_causal: whether its convolutions hear a frame and those before, and their norms one frame at a time; its
    transformers hear all frames either way.
    """

    channels: tuple[int, ...]
    head_width: int
    heads: int
    blocks: int
    mids: int
    is_causal: bool = False


@dataclass(frozen=True, slots=True)
class SourceShape:
    """The excitation: a sine of `amplitude` and each of its harmonics where the pitch is above `threshold` Hz.

    sigma: of the noise where it is voiced; a third of the amplitude elsewhere.
    """

    harmonics: int
    amplitude: float
    sigma: float
    threshold: float
    pitch_channels: int


@dataclass(frozen=True, slots=True)
class VocoderShape:
    """HiFT: transposed convolutions by `rates`, residual blocks of (kernel, dilations), and a short Fourier transform
    of `fourier` samples, `hop` apart."""

    channels: int
    sample_rate: int
    rates: tuple[int, ...]
    kernels: tuple[int, ...]
    residuals: tuple[tuple[int, tuple[int, ...]], ...]
    source_residuals: tuple[tuple[int, tuple[int, ...]], ...]
    fourier: int
    hop: int
    slope: float
    limit: float
    source: SourceShape

    @property
    def samples_per_mel(self) -> int:
        """Samples of one frame of the mel spectrogram."""
        return math.prod(self.rates) * self.hop
