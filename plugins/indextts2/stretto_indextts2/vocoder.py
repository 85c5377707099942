"""BigVGAN v2 (arXiv 2206.04658), which converts a mel spectrogram to samples.

    mel ─► convolution ─► (×4 ─► blocks) ×2 ─► (×2 ─► blocks) ×4 ─► SnakeBeta ─► convolution ─► pcm

Each stage has three residual blocks, whose outputs are averaged. Activations are computed at twice the sample rate, so
that they add no aliases. Tensors are named as in https://huggingface.co/nvidia/bigvgan_v2_22khz_80band_256x (MIT), with
weight norms multiplied out. Filters are computed, and not stored.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stretto.codecs.causal import SnakeBeta

RATES = (4, 4, 2, 2, 2, 2)
BLOCK_KERNELS = (3, 7, 11)
DILATIONS = (1, 3, 5)
EDGE_KERNEL = 7
# of the low-pass filter: taps, transition width and cutoff as shares of the higher rate
TAPS = 12
HALF_WIDTH = 0.3
CUTOFF = 0.25
MARGIN = 3  # samples that the upsampling filter reads on either side


def low_pass() -> Tensor:
    """Return the filter, float32 [TAPS]: a sinc with a Kaiser window, whose sum is 1."""
    attenuation = 2.285 * (TAPS / 2 - 1) * math.pi * 4 * HALF_WIDTH + 7.95
    shape = 0.1102 * (attenuation - 8.7)  # Kaiser's formula for an attenuation above 50 dB
    times = np.arange(TAPS) - (TAPS - 1) / 2
    taps = np.kaiser(TAPS, shape) * np.sinc(2 * CUTOFF * times)
    return torch.from_numpy((taps / taps.sum()).astype(np.float32))


class _Activation(nn.Module):
    """SnakeBeta at twice the sample rate of its input and output."""

    upsampling: Tensor
    downsampling: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.act = SnakeBeta(channels)
        taps = low_pass()
        # polyphase filters: one for the even samples of the result, one for the odd ones
        even = F.pad(taps[1::2].flip(0), (0, 1))
        odd = F.pad(taps[0::2].flip(0), (1, 0))
        self.register_buffer("upsampling", 2 * torch.stack([even, odd])[:, None], persistent=False)
        self.register_buffer("downsampling", taps[None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        rows = F.pad(x, (MARGIN, MARGIN), "replicate").flatten(0, 1)[:, None]
        doubled = F.conv1d(rows, self.upsampling).transpose(1, 2).flatten(1).unflatten(0, (-1, channels))
        active = F.pad(self.act(doubled), (TAPS // 2 - 1, TAPS // 2), "replicate").flatten(0, 1)[:, None]
        return F.conv1d(active, self.downsampling, stride=2)[:, 0].unflatten(0, (-1, channels))


def _same(channels: int, kernel: int, dilation: int = 1) -> nn.Conv1d:
    return nn.Conv1d(channels, channels, kernel, dilation=dilation, padding=dilation * (kernel // 2))


class _Block(nn.Module):
    """Residual block: three pairs of convolutions, the first of each pair dilated."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(_same(channels, kernel, dilation) for dilation in DILATIONS)
        self.convs2 = nn.ModuleList(_same(channels, kernel) for _ in DILATIONS)
        self.activations = nn.ModuleList(_Activation(channels) for _ in range(2 * len(DILATIONS)))

    def forward(self, x: Tensor) -> Tensor:
        for first, second, before, between in zip(
            self.convs1, self.convs2, self.activations[::2], self.activations[1::2], strict=True
        ):
            x = x + second(between(first(before(x))))
        return x


class Vocoder(nn.Module):
    """BigVGAN v2 for 22.05 kHz."""

    def __init__(self, mels: int, channels: int) -> None:
        super().__init__()
        self.conv_pre = nn.Conv1d(mels, channels, EDGE_KERNEL, padding=EDGE_KERNEL // 2)
        self.ups = nn.ModuleList()
        self.resblocks = nn.ModuleList()
        for rate in RATES:
            upsampling = nn.ConvTranspose1d(channels, channels // 2, 2 * rate, rate, padding=rate // 2)
            self.ups.append(nn.ModuleList([upsampling]))
            channels //= 2
            self.resblocks.extend(_Block(channels, kernel) for kernel in BLOCK_KERNELS)
        self.activation_post = _Activation(channels)
        self.conv_post = nn.Conv1d(channels, 1, EDGE_KERNEL, padding=EDGE_KERNEL // 2, bias=False)

    def forward(self, mel: Tensor, on_step: Callable[[], None]) -> Tensor:
        """Return the samples [B, 256 F] in [-1, 1] of a mel spectrogram [B, M, F]."""
        x = self.conv_pre(mel)
        num_blocks = len(BLOCK_KERNELS)
        for stage, layer in enumerate(self.ups):
            x = layer.get_submodule("0")(x)
            total = torch.zeros_like(x)
            for block in self.resblocks[num_blocks * stage : num_blocks * (stage + 1)]:
                total = total + block(x)
                on_step()
            x = total / num_blocks
        return self.conv_post(self.activation_post(x))[:, 0].clamp(-1, 1)
