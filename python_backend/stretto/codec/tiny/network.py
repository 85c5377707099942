"""Convolutional trunk of the vocoder: one parameter vector per mel frame."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvBlock(nn.Module):
    """Depthwise convolution with `lookahead` frames of look-ahead, then a pointwise network, residual."""

    def __init__(self, channels: int, kernel: int, lookahead: int) -> None:
        super().__init__()
        self.padding = (kernel - 1 - lookahead, lookahead)
        self.mix = nn.Conv1d(channels, channels, kernel, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.widen = nn.Linear(channels, 3 * channels)
        self.narrow = nn.Linear(3 * channels, channels)
        self.gain = nn.Parameter(torch.full((channels,), 0.3))

    def forward(self, hidden: Tensor) -> Tensor:
        """Return hidden [B, T, C] of the same shape, with zeros outside the frames."""
        mixed = self.mix(F.pad(hidden.transpose(1, 2), self.padding)).transpose(1, 2)
        return hidden + self.gain * self.narrow(F.gelu(self.widen(self.norm(mixed))))


class Trunk(nn.Module):
    """Stack of blocks; the first `lookahead` blocks look one frame ahead each, the others none.

    Frame t of the result depends on frames [t - left, t + lookahead] of the input.
    """

    def __init__(self, inputs: int, channels: int, outputs: int, blocks: int, lookahead: int) -> None:
        super().__init__()
        if not 0 <= lookahead <= blocks:
            raise ValueError(f"lookahead must be in [0, {blocks}], got {lookahead}")
        self.enter = nn.Linear(inputs, channels)
        self.blocks = nn.ModuleList(ConvBlock(channels, self.kernel, int(i < lookahead)) for i in range(blocks))
        self.norm = nn.LayerNorm(channels)
        self.leave = nn.Linear(channels, outputs)
        self.left = blocks * (self.kernel - 1) - lookahead
        self.lookahead = lookahead

    kernel = 7

    def forward(self, features: Tensor) -> Tensor:
        """Return parameters [B, T, outputs] of features [B, T, inputs]."""
        hidden = self.enter(features)
        for block in self.blocks:
            hidden = block(hidden)
        return self.leave(self.norm(hidden))
