"""Block conformer and length regulator: speech tokens to the condition of the flow.

Modules and tensors are named as in the published checkpoint (`cosyvoice/transformer`, Apache-2.0, of
https://github.com/THUDM/GLM-4-Voice).
"""

import torch.nn.functional as F
from torch import Tensor, nn

from stretto.codec.cosyvoice.conformer import EncoderLayer, TokenInput, wave_of_distances
from stretto.codec.cosyvoice.shapes import EncoderShape


class BlockConformer(nn.Module):
    """Conformer over token vectors: [B, T, E] -> [B, T, H]."""

    def __init__(self, token_width: int, shape: EncoderShape) -> None:
        super().__init__()
        self.embed = TokenInput(token_width, shape.width)
        self.encoders = nn.ModuleList(EncoderLayer(shape) for _ in range(shape.layers))
        self.after_norm = nn.LayerNorm(shape.width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        distances = wave_of_distances(x.shape[1], x.shape[2], x.device).to(x.dtype)
        for layer in self.encoders:
            x = layer(x, distances)
        return self.after_norm(x)


class LengthRegulator(nn.Module):
    """Length regulator: token vectors [B, T, M], repeated and smoothed -> [B, M, frames]."""

    def __init__(self, channels: int, layers: int) -> None:
        super().__init__()
        model: list[nn.Module] = []
        for _ in range(layers):
            model += [nn.Conv1d(channels, channels, 3, padding=1), nn.GroupNorm(1, channels), nn.Mish()]
        self.model = nn.Sequential(*model, nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor, frames: int) -> Tensor:
        return self.model(F.interpolate(x.transpose(1, 2).contiguous(), size=frames, mode="nearest"))
