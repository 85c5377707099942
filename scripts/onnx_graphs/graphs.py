"""Log-mel features from operators that ONNX runtimes support: real matrices instead of torch's complex FFTs."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stretto.codecs.tiny.codec import FFT_SIZE, FLOOR, HOP, mel_filters


def fourier(inputs: int, size: int) -> tuple[Tensor, Tensor]:
    """Return the real and imaginary DFT matrices, float64 [size // 2 + 1, inputs], of rfft(signal [inputs], n=size)."""
    angles = 2 * math.pi / size * torch.outer(torch.arange(size // 2 + 1).double(), torch.arange(inputs).double())
    return angles.cos(), -angles.sin()


class LogMel(nn.Module):
    """Batched version of `codecs.tiny.codec.log_mel`, from pcm [B, n] to log-mel frames [B, n // HOP, NUM_MELS]."""

    kernels: Tensor
    filters: Tensor

    def __init__(self) -> None:
        super().__init__()
        window = torch.hann_window(FFT_SIZE, dtype=torch.float64)
        self.register_buffer("kernels", (torch.cat(fourier(FFT_SIZE, FFT_SIZE)) * window)[:, None].float())
        self.register_buffer("filters", mel_filters())

    def forward(self, pcm: Tensor) -> Tensor:
        margin = (FFT_SIZE - HOP) // 2
        parts = F.conv1d(F.pad(pcm, (margin, margin))[:, None], self.kernels, stride=HOP)
        real, imaginary = parts.chunk(2, dim=1)
        magnitude = (real.square() + imaginary.square()).sqrt()
        return (self.filters @ magnitude).clamp(min=FLOOR).log().transpose(1, 2)
