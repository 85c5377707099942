"""The vocoder's convolutional trunk: mel frames in, one vector of parameters per mel frame out."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvBlock(nn.Module):
    """A depthwise convolution that sees `lookahead` frames ahead, then a pointwise network, on a residual path."""

    def __init__(self, channels: int, kernel: int, lookahead: int) -> None:
        super().__init__()
        self.padding = (kernel - 1 - lookahead, lookahead)
        self.mix = nn.Conv1d(channels, channels, kernel, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.widen = nn.Linear(channels, 3 * channels)
        self.narrow = nn.Linear(3 * channels, channels)
        self.gain = nn.Parameter(torch.full((channels,), 0.3))

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden [B, T, C] to the same shape; frames before the first and after the last count as zero."""
        mixed = self.mix(F.pad(hidden.transpose(1, 2), self.padding)).transpose(1, 2)
        return hidden + self.gain * self.narrow(F.gelu(self.widen(self.norm(mixed))))


class Trunk(nn.Module):
    """A stack of blocks. The first `lookahead` blocks see one frame ahead each, the others none.

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
        """Parameters [B, T, outputs] of features [B, T, inputs]."""
        hidden = self.enter(features)
        for block in self.blocks:
            hidden = block(hidden)
        return self.leave(self.norm(hidden))
