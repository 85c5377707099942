"""Diffusion transformer that estimates the flow of CosyVoice 3, with attention limited to chunks of frames.

    frame      0 … 49 │ 50 … 99 │ 100 … 149 │ …
    attends to 0 … 49 │ 0 … 99  │ 0 … 149   │ …

Convolutions are causal. A frame's result therefore depends only on frames up to the end of its chunk. Frames after
whole chunks can be evaluated later, from kept rows of these chunks (`Context`). Rotary positions apply to the first
head only, as in the authors' code, which rotates queries and keys before it splits them into heads. Modules and tensors
are named as in published checkpoints (Apache-2.0, see `cosyvoice/flow/DiT` in
https://github.com/FunAudioLLM/CosyVoice), which follow F5-TTS (arXiv 2410.06885).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stretto.codecs.cosyvoice.flow import CausalConv

NUM_WAVES = 256
KERNEL = 31
GROUPS = 16
THETA = 10_000.0
EPSILON = 1e-6


@dataclass(frozen=True, slots=True)
class DitShape:
    """Sizes of the transformer. `inner` is the width of the feed-forward layers."""

    width: int
    layers: int
    heads: int
    head_width: int
    inner: int
    chunk: int


def chunk_mask(frames: int, chunk: int, device: torch.device) -> Tensor:
    """Return a mask that is True where a frame attends to another one, bool [frames, frames]."""
    positions = torch.arange(frames, device=device)
    return positions < (positions[:, None] // chunk + 1) * chunk


class _TimeInput(nn.Module):
    """Time embedding: sinusoids passed through two linear layers with SiLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.time_mlp = nn.Sequential(nn.Linear(NUM_WAVES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, waves: Tensor) -> Tensor:
        return self.time_mlp(waves)


class Context:
    """Inputs, keys and values of earlier frames, which each layer reads before the rows of its own frames.

    Args:
        num_frames: Number of earlier frames, whole chunks.
        rows: `kept` of the evaluation of the first `num_frames` frames.
        is_kept: True to append the rows of this evaluation to `kept`, in the order of the layers.
    """

    def __init__(self, num_frames: int = 0, rows: Sequence[Tensor] = (), is_kept: bool = False) -> None:
        self.num_frames = num_frames
        self.kept = list[Tensor]()
        self._rows = iter(rows)
        self._is_kept = is_kept

    def extend(self, x: Tensor, most: int | None = None) -> Tensor:
        """Return the rows x [B, T, H] of a layer after those of the earlier frames, [B, n + T, H].

        Args:
            most: Number of rows that the layer reads before a frame; None for all.
        """
        if self._is_kept:
            self.kept.append(x if most is None else x[:, -most:].clone())
        return torch.cat([next(self._rows), x], 1) if self.num_frames else x


class _PositionConv(nn.Module):
    """Two causal grouped convolutions, each followed by Mish."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (
            nn.Sequential(CausalConv(width, width, KERNEL, groups=GROUPS), nn.Mish()) for _ in range(2)
        )

    def forward(self, x: Tensor, context: Context) -> Tensor:
        for conv in (self.conv1, self.conv2):
            x = conv(context.extend(x, KERNEL - 1).transpose(1, 2)).transpose(1, 2)[:, -x.shape[1] :]
        return x


class _Input(nn.Module):
    """Projection of the state and conditions, plus a residual convolution that encodes positions."""

    def __init__(self, mels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(4 * mels, width)
        self.conv_pos_embed = _PositionConv(width)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Return [B, T, H] for x [B, 4 M, T]: state, condition, speaker and known mel, stacked."""
        state, goal, speaker, known_mel = x.transpose(1, 2).chunk(4, 2)
        x = self.proj(torch.cat([state, known_mel, goal, speaker], 2))
        return x + self.conv_pos_embed(x, context)


class _Rotation(nn.Module):
    """Rotary positions for adjacent pairs of channels."""

    inv_freq: Tensor

    def __init__(self, head_width: int) -> None:
        super().__init__()
        channels = torch.arange(0, head_width, 2, dtype=torch.float64)
        self.register_buffer("inv_freq", (THETA ** -(channels / head_width)).float())

    def angles(self, frames: int) -> Tensor:
        """Return the angles of all frames, [frames, head_width / 2]."""
        positions = torch.arange(frames, device=self.inv_freq.device)
        return positions[:, None].to(self.inv_freq.dtype) * self.inv_freq


def _rotated(x: Tensor, angles: Tensor) -> Tensor:
    """Return x [B, T, H] with its first head rotated by angles [T, head_width / 2]."""
    size = 2 * angles.shape[1]
    even = x[..., 0:size:2]
    odd = x[..., 1:size:2]
    cos = angles.cos().to(x.dtype)
    sin = angles.sin().to(x.dtype)
    turned = torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1).flatten(2)
    return torch.cat([turned, x[..., size:]], 2)


class _Attention(nn.Module):
    """Self-attention. `to_out[1]` takes the place of the dropout used in training."""

    def __init__(self, shape: DitShape) -> None:
        super().__init__()
        self.heads = shape.heads
        inner = shape.heads * shape.head_width
        self.to_q, self.to_k, self.to_v = (nn.Linear(shape.width, inner) for _ in range(3))
        self.to_out = nn.Sequential(nn.Linear(inner, shape.width), nn.Identity())

    def forward(self, x: Tensor, angles: Tensor, mask: Tensor, context: Context) -> Tensor:
        keys = context.extend(_rotated(self.to_k(x), angles))
        values = context.extend(self.to_v(x))
        rows = _rotated(self.to_q(x), angles), keys, values
        query, key, value = (row.unflatten(2, (self.heads, -1)).transpose(1, 2) for row in rows)
        return self.to_out(F.scaled_dot_product_attention(query, key, value, mask).transpose(1, 2).flatten(2))


class _FeedForward(nn.Module):
    """Two linear layers with GELU between them. `ff[1]` takes the place of the dropout used in training."""

    def __init__(self, shape: DitShape) -> None:
        super().__init__()
        rising = nn.Sequential(nn.Linear(shape.width, shape.inner), nn.GELU("tanh"))
        self.ff = nn.Sequential(rising, nn.Identity(), nn.Linear(shape.inner, shape.width))

    def forward(self, x: Tensor) -> Tensor:
        return self.ff(x)


class _Modulation(nn.Module):
    """Shifts, scales and gates computed from the time embedding: [H] to `parts` vectors [H]."""

    def __init__(self, width: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.linear = nn.Linear(width, parts * width)

    def forward(self, time: Tensor) -> tuple[Tensor, ...]:
        return self.linear(F.silu(time)).chunk(self.parts)


def _norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=EPSILON) * (1 + scale) + shift


class _Layer(nn.Module):
    """Attention and feed-forward layer, with norms and gates that depend on the time."""

    def __init__(self, shape: DitShape) -> None:
        super().__init__()
        self.attn_norm = _Modulation(shape.width, 6)
        self.attn = _Attention(shape)
        self.ff = _FeedForward(shape)

    def forward(self, x: Tensor, time: Tensor, angles: Tensor, mask: Tensor, context: Context) -> Tensor:
        shift, scale, gate, next_shift, next_scale, next_gate = self.attn_norm(time)
        x = x + gate * self.attn(_norm(x, scale, shift), angles, mask, context)
        return x + next_gate * self.ff(_norm(x, next_scale, next_shift))


class Dit(nn.Module):
    """Transformer that computes the flow [B, M, T] from x [B, 4 M, T]: state, condition, speaker and known mel."""

    def __init__(self, mels: int, shape: DitShape) -> None:
        super().__init__()
        self.chunk = shape.chunk
        self.time_embed = _TimeInput(shape.width)
        self.input_embed = _Input(mels, shape.width)
        self.rotary_embed = _Rotation(shape.head_width)
        self.transformer_blocks = nn.ModuleList(_Layer(shape) for _ in range(shape.layers))
        self.norm_out = _Modulation(shape.width, 2)
        self.proj_out = nn.Linear(shape.width, mels)

    def forward(self, x: Tensor, waves: Tensor, context: Context | None = None) -> Tensor:
        """Return the flow [B, M, T] for x [B, 4 M, T], a row of `waves_of_time` [NUM_WAVES], and any earlier frames."""
        context = context or Context()
        first = context.num_frames
        time = self.time_embed(waves)
        frames = first + x.shape[2]
        angles = self.rotary_embed.angles(frames)[first:]
        mask = chunk_mask(frames, self.chunk, x.device)[first:]
        x = self.input_embed(x, context)
        for layer in self.transformer_blocks:
            x = layer(x, time, angles, mask, context)
        scale, shift = self.norm_out(time)
        return self.proj_out(_norm(x, scale, shift)).transpose(1, 2)
