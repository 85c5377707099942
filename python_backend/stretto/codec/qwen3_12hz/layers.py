"""Causal layers with memory, of which the second half of the decoder consists.

Tensors are named as published (`tokenizer_12hz/modeling_qwen3_tts_tokenizer_v2.py` of
https://github.com/QwenLM/Qwen3-TTS, Apache-2.0). All layers map [B, C, n] to [B, C', n'].
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stretto.codec.qwen3_12hz.memory import Memory

KERNEL = 7
DILATIONS = (1, 3, 9)
EPS = 1e-9  # of SnakeBeta
NEXT_EPS = 1e-6  # of ConvNeXt's norm


class Convolution(nn.Module):
    """Causal convolution with memory.

    Attributes:
        late: Steps at an utterance's start that are masked, set by the owner.
        kept: Numbers of its part of the memory.
    """

    late = 0

    def __init__(self, channels: int, out_channels: int, kernel: int, dilation: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, out_channels, kernel, dilation=dilation, groups=groups)
        self.before = (kernel - 1) * dilation
        self.kept = channels * self.before

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        return self.conv(memory.recall(memory.begun(x, self.late), self.before) if self.before else x)


class Upsampling(nn.Module):
    """Transposed convolution trimmed on the right; with a kernel longer than the rate a step also affects the next one.

    Attributes:
        late: Steps at an utterance's start that are masked.
    """

    def __init__(self, channels: int, out_channels: int, kernel: int, rate: int, late: int = 0) -> None:
        super().__init__()
        self.late = late
        self.conv = nn.ConvTranspose1d(channels, out_channels, kernel, rate)
        self.rate, self.before = rate, (kernel - 1) // rate
        self.kept = channels * self.before

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        x = memory.begun(x, self.late)
        whole = self.conv(memory.recall(x, self.before) if self.before else x)
        return whole[..., self.before * self.rate : (self.before + x.shape[2]) * self.rate]


class SnakeBeta(nn.Module):
    """SnakeBeta activation x + sin²(a x) / b, with log a and log b per channel (Ziyin et al., arXiv 2006.08195.

    BigVGAN).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha, self.beta = nn.Parameter(torch.zeros(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        height = 1 / (self.beta.exp() + EPS)
        return (x * self.alpha.exp()[:, None]).sin_().square_().mul_(height[:, None]).add_(x)


class ResidualUnit(nn.Module):
    """SnakeBeta, dilated convolution, SnakeBeta, pointwise convolution, with a residual path."""

    def __init__(self, channels: int, dilation: int, late: int = 0) -> None:
        super().__init__()
        self.act1, self.act2 = SnakeBeta(channels), SnakeBeta(channels)
        self.conv1 = Convolution(channels, channels, KERNEL, dilation)
        self.conv1.late = late
        self.conv2 = Convolution(channels, channels, 1)

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        return self.conv2(self.act2(self.conv1(self.act1(x), memory)), memory).add_(x)


class Block(nn.Module):
    """SnakeBeta, a transposed convolution to half as many channels, and residual units.

    Attributes:
        late: Masked steps at an utterance's start, of its input and of its output.
    """

    def __init__(self, channels: int, rate: int, late: tuple[int, int] = (0, 0)) -> None:
        super().__init__()
        half = channels // 2
        units = [ResidualUnit(half, dilation, late[1]) for dilation in DILATIONS]
        self.block = nn.ModuleList([SnakeBeta(channels), Upsampling(channels, half, 2 * rate, rate, late[0]), *units])

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        snake, *others = self.block
        x = snake(x)
        for layer in others:
            x = layer(x, memory)
        return x


class ConvNext(nn.Module):
    """ConvNeXt block (Liu et al., arXiv 2201.03545): depthwise convolution, norm, two layers with GELU, residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = Convolution(channels, channels, KERNEL, groups=channels)
        self.norm = nn.LayerNorm(channels, NEXT_EPS)
        self.pwconv1, self.pwconv2 = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)
        self.gamma = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        steps = self.norm(self.dwconv(x, memory).transpose(1, 2))
        return x + (self.gamma * self.pwconv2(F.gelu(self.pwconv1(steps)))).transpose(1, 2)


def samples_of(x: Tensor, memory: Memory, upsample: nn.ModuleList, decoder: nn.ModuleList) -> Tensor:
    """Return samples [B, n · hop] of latents [B, C, n], through the stages `upsample` and the layers `decoder`."""
    for stage in upsample:
        for layer in stage.children():
            x = layer(x, memory)
    *layers, snake, last = decoder
    for layer in layers:
        x = layer(x, memory)
    return last(snake(x), memory)[:, 0]
