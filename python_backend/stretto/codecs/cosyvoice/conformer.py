"""Conformer layers without convolution modules, applied to speech tokens.

Modules and tensors are named as in published checkpoints (`cosyvoice/transformer`, Apache-2.0, of
https://github.com/FunAudioLLM/CosyVoice). Attention with relative positions follows Dai et al., arXiv 1901.02860.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stretto.codecs.cosyvoice.flow import EncoderShape

LONGEST_WAVE = 10_000.0


class RelativeAttention(nn.Module):
    """Self-attention with relative positions, over all tokens or over those of the same and previous blocks."""

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        width, self.heads, self.block = shape.width, shape.heads, shape.block
        self.linear_q = nn.Linear(width, width)
        self.linear_k = nn.Linear(width, width)
        self.linear_v = nn.Linear(width, width)
        self.linear_out = nn.Linear(width, width)
        self.linear_pos = nn.Linear(width, width, bias=False)
        self.pos_bias_u = nn.Parameter(torch.zeros(self.heads, width // self.heads))
        self.pos_bias_v = nn.Parameter(torch.zeros(self.heads, width // self.heads))

    def forward(self, x: Tensor, distances: Tensor) -> Tensor:
        """Return attention outputs [B, T, H] for x [B, T, H] and `wave_of_distances` [2 T - 1, H]."""
        query, key, value = (
            linear(x).unflatten(2, (self.heads, -1)) for linear in (self.linear_q, self.linear_k, self.linear_v)
        )
        places = self.linear_pos(distances).unflatten(1, (self.heads, -1))
        by_distance = torch.einsum("bthd,phd->bhtp", query + self.pos_bias_v, places)
        length = x.shape[1]
        here = torch.arange(length, device=x.device)
        index = length - 1 - here[:, None] + here
        bias = by_distance.gather(3, index.expand(*by_distance.shape[:3], -1)) / math.sqrt(query.shape[-1])
        if self.block is not None:
            is_later = here // self.block > (here // self.block)[:, None]
            bias = bias.masked_fill(is_later, -math.inf)
        attended = F.scaled_dot_product_attention(
            (query + self.pos_bias_u).transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            bias,
        )
        return self.linear_out(attended.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two linear layers with SiLU between them."""

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        self.w_1 = nn.Linear(shape.width, shape.inner)
        self.w_2 = nn.Linear(shape.inner, shape.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.w_2(F.silu(self.w_1(x)))


class EncoderLayer(nn.Module):
    """Attention and feed-forward layer, each with pre-norm and a residual connection."""

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        self.self_attn = RelativeAttention(shape)
        self.feed_forward = FeedForward(shape)
        self.norm_mha = nn.LayerNorm(shape.width, shape.epsilon)
        self.norm_ff = nn.LayerNorm(shape.width, shape.epsilon)

    def forward(self, x: Tensor, distances: Tensor) -> Tensor:
        x = x + self.self_attn(self.norm_mha(x), distances)
        return x + self.feed_forward(self.norm_ff(x))


class TokenInput(nn.Module):
    """Projection of token vectors to the encoder's width; `out[2]` is the dropout used in training."""

    def __init__(self, token_width: int, width: int) -> None:
        super().__init__()
        self.out = nn.Sequential(nn.Linear(token_width, width), nn.LayerNorm(width), nn.Identity())
        self.scale = math.sqrt(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x) * self.scale


def wave_of_distances(length: int, width: int, device: torch.device) -> Tensor:
    """Return the sinusoidal encoding of the distances length - 1 down to 1 - length.

    Args:
        length: Number of tokens.
        width: Width of the encoding; sines and cosines alternate.
        device: Device of the result.

    Returns:
        float32 [2 length - 1, width].
    """
    distance = torch.arange(length - 1, -length, -1, device=device, dtype=torch.float32)
    even = torch.arange(0, width, 2, device=device, dtype=torch.float32)
    angle = distance[:, None] * torch.exp(even * -(math.log(LONGEST_WAVE) / width))
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)
