"""VITA-Audio-Plus audio encoder (SenseVoiceSmall), and the adaptor from its width to the backbone's width.

    queries ┐                                      language, event, emotion, text form: four learned rows
            ├─► + sine positions ─► 50 blocks ─► norm ─► 20 blocks ─► norm ─► adaptor ─► rows of the backbone
    frames ─┘

A block consists of attention over all rows and a feed-forward layer, each with pre-norm. In parallel to attention, each
channel of the values is filtered over time by its own filter, the "memory" (SAN-M, https://arxiv.org/abs/2006.01713).
Tensors have the published names: `SenseVoiceSmall` in modeling_sensevoice.py and `ResamplerProjector` next to it
(vita_audio/models/qwen2_mtp_sensevoice_v4_48_3 in https://github.com/VITA-MLLM/VITA-Audio). As in that code, everything
is computed in the dtype of the weights; in bfloat16, even positions above 256 are rounded.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Learned rows that the authors prepend to the audio: unknown language, event, emotion, plain words.
QUERIES = (0, 1, 2, 15)
NUM_QUERY_ROWS = 16


class Attention(nn.Module):
    """Self-attention with a memory: the values, filtered over time per channel, are added to the output."""

    def __init__(self, in_size: int, size: int, config: Mapping[str, Any]):
        super().__init__()
        taps = config["kernel_size"]
        shift = config["sanm_shfit"]
        self._num_heads = config["attention_heads"]
        self._left = (taps - 1) // 2 + max(shift, 0)
        self._right = taps - 1 - self._left
        self.linear_q_k_v = nn.Linear(in_size, 3 * size)
        self.linear_out = nn.Linear(size, size)
        self.fsmn_block = nn.Conv1d(size, size, taps, groups=size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return rows [1, T, size] for rows [1, T, in]."""
        parts = self.linear_q_k_v(x).chunk(3, -1)
        memory = self.fsmn_block(F.pad(parts[2].mT, (self._left, self._right))).mT + parts[2]
        heads = [projected.unflatten(-1, (self._num_heads, -1)).transpose(1, 2) for projected in parts]
        attended = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        return self.linear_out(attended) + memory


class FeedForward(nn.Module):
    def __init__(self, size: int, inner: int):
        super().__init__()
        self.w_1 = nn.Linear(size, inner)
        self.w_2 = nn.Linear(inner, size)

    def forward(self, x: Tensor) -> Tensor:
        """Map [1, T, size] to the same shape."""
        return self.w_2(F.relu(self.w_1(x)))


class Block(nn.Module):
    """Encoder layer. The first layer changes the width, so its attention has no residual connection."""

    def __init__(self, in_size: int, size: int, config: Mapping[str, Any]):
        super().__init__()
        self._is_residual = in_size == size
        self.norm1 = nn.LayerNorm(in_size)
        self.norm2 = nn.LayerNorm(size)
        self.self_attn = Attention(in_size, size, config)
        self.feed_forward = FeedForward(size, config["linear_units"])

    def forward(self, x: Tensor) -> Tensor:
        """Return rows [1, T, size] for rows [1, T, in]."""
        attended = self.self_attn(self.norm1(x))
        x = x + attended if self._is_residual else attended
        return x + self.feed_forward(self.norm2(x))


class Encoder(nn.Module):
    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        in_size = config["num_mel_bins"]
        size = config["output_size"]
        self._gain = size**0.5
        self.encoders0 = nn.ModuleList([Block(in_size, size, config)])
        self.encoders = nn.ModuleList(Block(size, size, config) for _ in range(config["num_blocks"] - 1))
        self.tp_encoders = nn.ModuleList(Block(size, size, config) for _ in range(config["tp_blocks"]))
        self.after_norm = nn.LayerNorm(size)
        self.tp_norm = nn.LayerNorm(size)

    def forward(self, x: Tensor) -> Tensor:
        """Map frames [1, T, M] to [1, T, size]."""
        x = self._gain * x
        x = x + positions(x.shape[1], x.shape[2], x)
        for block in (*self.encoders0, *self.encoders):
            x = block(x)
        x = self.after_norm(x)
        for block in self.tp_encoders:
            x = block(x)
        return self.tp_norm(x)


class SenseVoice(nn.Module):
    """Encoder that prepends the query rows: frames [F, M] to rows [F + 4, size]."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        self.embed = nn.Embedding(NUM_QUERY_ROWS, config["num_mel_bins"])
        self.encoder = Encoder(config)

    def forward(self, frames: Tensor) -> Tensor:
        rows = self.embed.weight
        queries = torch.stack([rows[query] for query in QUERIES])
        return self.encoder(torch.cat([queries, frames.to(rows.dtype)])[None])[0]


class Adaptor(nn.Module):
    def __init__(self, in_size: int, size: int):
        super().__init__()
        self.pre_proj_layernorm = nn.LayerNorm(in_size)
        self.mlp = nn.Sequential(nn.Linear(in_size, size, bias=False), nn.GELU(), nn.Linear(size, size, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, in] to [N, size]."""
        return self.mlp(self.pre_proj_layernorm(x))


def positions(num_rows: int, width: int, like: Tensor) -> Tensor:
    """Return the encoding of positions 1 to N, sines followed by cosines, [N, width]."""
    step = torch.log(torch.full((1,), 10_000.0, dtype=like.dtype, device=like.device)) / (width / 2 - 1)
    rates = torch.exp(torch.arange(width / 2, device=like.device).to(like.dtype) * -step)
    angles = torch.arange(1, num_rows + 1, device=like.device).to(like.dtype)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)


def audio_tower(config: Mapping[str, Any]) -> SenseVoice:
    """Create the audio encoder that `audio_config` in config.json describes; its weights are loaded later."""
    return SenseVoice(config).eval()


def audio_adaptor(config: Mapping[str, Any], hidden_size: int) -> Adaptor:
    """Create the projection from the encoder's output to the backbone's width, without weights."""
    return Adaptor(config["output_size"], hidden_size)


def embed_audio(tower: SenseVoice, adaptor: Adaptor, features: Tensor) -> Tensor:
    """Return the rows [F + 4, H] for stacked log-mel frames [F, M]."""
    return adaptor(tower(features))
