"""Sizes of the parts, filled in by each checkpoint's reader."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EncoderShape:
    """Sizes of the conformer.

    Attributes:
        block: Attention is limited to a block of this many tokens and all previous ones; None for unlimited attention.
        epsilon: Epsilon of the norms in its layers.
    """

    width: int
    heads: int
    inner: int
    layers: int
    block: int | None = None
    epsilon: float = 1e-5


@dataclass(frozen=True, slots=True)
class EstimatorShape:
    """Sizes of the U-Net that estimates the flow.

    Attributes:
        blocks: Number of transformers after each residual block.
        is_causal: True if convolutions are causal and norms are per frame. Transformers attend to all frames either
            way.
    """

    channels: tuple[int, ...]
    head_width: int
    heads: int
    blocks: int
    mids: int
    is_causal: bool = False


@dataclass(frozen=True, slots=True)
class SourceShape:
    """Parameters of the excitation: sines of `amplitude` at the pitch and its harmonics, above `threshold` Hz.

    Attributes:
        sigma: Noise level in voiced parts; a third of the amplitude elsewhere.
    """

    harmonics: int
    amplitude: float
    sigma: float
    threshold: float
    pitch_channels: int


@dataclass(frozen=True, slots=True)
class VocoderShape:
    """Sizes of HiFT: transposed convolutions by `rates`, residual blocks (kernel, dilations), and a Fourier transform.

    The transform has `fourier` samples at intervals of `hop` samples.
    """

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
        """Samples per frame of the mel spectrogram."""
        return math.prod(self.rates) * self.hop
