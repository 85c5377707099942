"""U-Net that estimates the flow: time-conditioned residual blocks, each followed by transformers over all frames.

Modules and tensors are named as in published checkpoints (`cosyvoice/flow/decoder.py`; blocks of Matcha-TTS,
https://github.com/shivammehta25/Matcha-TTS, MIT).
"""

import itertools
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stretto.codec.cosyvoice.shapes import EstimatorShape

GROUPS = 8


class CausalConv(nn.Conv1d):
    """Causal convolution."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (self.kernel_size[0] - 1, 0)))


def convolution(channels: int, out_channels: int, shape: EstimatorShape) -> nn.Conv1d:
    """Return a convolution over three frames that keeps their number."""
    return CausalConv(channels, out_channels, 3) if shape.is_causal else nn.Conv1d(channels, out_channels, 3, padding=1)


class Turned(nn.Module):
    """Transposition between [B, C, T] and [B, T, C]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


class Block(nn.Module):
    """Convolution, norm (group norm over all frames, or layer norm per frame) and Mish."""

    def __init__(self, channels: int, out_channels: int, shape: EstimatorShape) -> None:
        super().__init__()
        norm: list[nn.Module] = [nn.GroupNorm(GROUPS, out_channels)]
        if shape.is_causal:
            norm = [Turned(), nn.LayerNorm(out_channels), Turned()]
        self.block = nn.Sequential(convolution(channels, out_channels, shape), *norm, nn.Mish())

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class ResidualBlock(nn.Module):
    """Two blocks with the time embedding added between them, and a pointwise residual path."""

    def __init__(self, channels: int, out_channels: int, shape: EstimatorShape) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Mish(), nn.Linear(4 * shape.channels[0], out_channels))
        self.block1 = Block(channels, out_channels, shape)
        self.block2 = Block(out_channels, out_channels, shape)
        self.res_conv = nn.Conv1d(channels, out_channels, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        hidden = self.block1(x) + self.mlp(time)[..., None]
        return self.block2(hidden) + self.res_conv(x)


class Attention(nn.Module):
    """Attention among all frames; index 1 of `to_out` is training's dropout."""

    def __init__(self, channels: int, shape: EstimatorShape) -> None:
        super().__init__()
        self.heads, inner = shape.heads, shape.heads * shape.head_width
        self.to_q = nn.Linear(channels, inner, bias=False)
        self.to_k = nn.Linear(channels, inner, bias=False)
        self.to_v = nn.Linear(channels, inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner, channels), nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            linear(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for linear in (self.to_q, self.to_k, self.to_v)
        )
        return self.to_out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class Projection(nn.Module):
    """Linear layer and GELU."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, inner)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x))


class FeedForward(nn.Module):
    """Feed-forward layer of four times the width; index 1 of `net` is training's dropout."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(Projection(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Transformer(nn.Module):
    """Attention and feed-forward, each pre-normalised and residual: x [B, T, C]."""

    def __init__(self, channels: int, shape: EstimatorShape) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, shape)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        return x + self.ff(self.norm3(x))


class Resample(nn.Module):
    """Convolution that halves (rounding up) or doubles the number of frames."""

    def __init__(self, conv: nn.Conv1d | nn.ConvTranspose1d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Stage(nn.ModuleList):
    """Residual block, transformers and, except in the middle, a resampling layer."""

    def __init__(self, channels: int, out_channels: int, shape: EstimatorShape, *resample: nn.Module) -> None:
        transformers = nn.Sequential(*(Transformer(out_channels, shape) for _ in range(shape.blocks)))
        super().__init__([ResidualBlock(channels, out_channels, shape), transformers, *resample])

    def run(self, x: Tensor, time: Tensor) -> Tensor:
        """Pass x [B, C, T] through the residual block and the transformers."""
        return self[1](self[0](x, time).transpose(1, 2)).transpose(1, 2)


class TimeInput(nn.Module):
    """Time embedding: sinusoids through two layers with SiLU."""

    def __init__(self, waves: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(waves, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, waves: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(waves)))


class Estimator(nn.Module):
    """Estimator of the flow [B, M, T] from x [B, 4 M, T]: state, condition, speaker and known mel."""

    def __init__(self, mels: int, shape: EstimatorShape) -> None:
        super().__init__()
        widths, channels = shape.channels, 4 * mels
        self.time_mlp = TimeInput(channels, 4 * widths[0])
        down: list[nn.Module] = []
        for place, width in enumerate(widths):
            is_last = place == len(widths) - 1
            shrink = convolution(width, width, shape) if is_last else Resample(nn.Conv1d(width, width, 3, 2, padding=1))
            down.append(Stage(channels, width, shape, shrink))
            channels = width
        self.down_blocks = nn.ModuleList(down)
        self.mid_blocks = nn.ModuleList(Stage(channels, channels, shape) for _ in range(shape.mids))
        self.up_blocks = nn.ModuleList(_rising(shape))
        self.final_block = Block(widths[0], widths[0], shape)
        self.final_proj = nn.Conv1d(widths[0], mels, 1)

    def forward(self, x: Tensor, waves: Tensor) -> Tensor:
        """Return the flow for x and the time's sinusoids, waves [4 M] (see `waves_of_time`)."""
        time, skipped = self.time_mlp(waves)[None], list[Tensor]()
        for stage in _stages(self.down_blocks):
            x = stage.run(x, time)
            skipped.append(x)
            x = stage[2](x)
        for stage in _stages(self.mid_blocks):
            x = stage.run(x, time)
        for stage in _stages(self.up_blocks):
            skip = skipped.pop()
            x = stage[2](stage.run(torch.cat([x[..., : skip.shape[-1]], skip], 1), time))
        return self.final_proj(self.final_block(x))


def _stages(blocks: nn.ModuleList) -> Iterator[Stage]:
    for stage in blocks:
        assert isinstance(stage, Stage)
        yield stage


def _rising(shape: EstimatorShape) -> list[nn.Module]:
    """Return the up-sampling stages; each also gets the output of its down-sampling counterpart."""
    widths, stages = [*reversed(shape.channels), shape.channels[0]], list[nn.Module]()
    for place, (width, next_width) in enumerate(itertools.pairwise(widths)):
        is_last = place == len(widths) - 2
        grow = (
            convolution(next_width, next_width, shape)
            if is_last
            else Resample(nn.ConvTranspose1d(next_width, next_width, 4, 2, padding=1))
        )
        stages.append(Stage(2 * width, next_width, shape, grow))
    return stages
