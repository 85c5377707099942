"""Whisper's encoder up to a quantiser, which makes GLM-4-Voice's tokens (Zeng et al., arXiv 2412.02612).

log-mel [128, T] ─► 2 causal convolutions, half as long ─► 16 layers ─► mean of each 4 ─► nearest of 16,384 vectors

A step attends to its own block of 2 s and to all previous ones. Tensors are named as published (`speech_tokenizer/
modeling_whisper.py` of https://github.com/THUDM/GLM-4-Voice, Apache-2.0).
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HALVED = 2  # spectrogram frames per step


@dataclass(frozen=True, slots=True)
class WhisperVqConfig:
    """Sizes of a tokenizer. pooled_after, quantized_after: layer indices.

    Block: steps per block, None for one block.
    """

    mels: int
    hidden: int
    heads: int
    inner: int
    positions: int
    pool: int
    pooled_after: int
    quantized_after: int
    codes: int
    block: int | None
    is_mean: bool
    is_causal: bool

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "WhisperVqConfig":
        """Return the sizes in `config.json`; raise KeyError or ValueError for missing or unsupported values."""
        required = {"activation_function": "gelu", "encoder_causal_attention": False, "quantize_causal_encoder": False}
        odd = {name: record[name] for name, value in required.items() if record.get(name, value) != value}
        if odd or record["pooling_type"] not in ("avg", "max"):
            raise ValueError(f"expected {required} and pooling_type avg or max, got {odd}, {record['pooling_type']}")
        if not 1 <= record["pooling_position"] <= record["quantize_position"]:
            raise ValueError(f"pooling_position must be in [1, quantize_position], got {record['pooling_position']}")
        return cls(
            mels=record["num_mel_bins"],
            hidden=record["d_model"],
            heads=record["encoder_attention_heads"],
            inner=record["encoder_ffn_dim"],
            positions=record["max_source_positions"],
            pool=record["pooling_kernel_size"],
            pooled_after=record["pooling_position"],
            quantized_after=record["quantize_position"],
            codes=record["quantize_vocab_size"],
            block=record["quantize_causal_block_size"],
            is_mean=record["pooling_type"] == "avg",
            is_causal=record["encoder_causal_convolution"],
        )


class Attention(nn.Module):
    """Multi-head attention with a mask."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(hidden, hidden)
        self.k_proj = nn.Linear(hidden, hidden, bias=False)
        self.v_proj = nn.Linear(hidden, hidden)
        self.out_proj = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor, is_heard: Tensor) -> Tensor:
        """Return attention outputs for x [B, T, H]; is_heard [B, 1, T, T] marks the steps that each step attends to."""
        query, key, value = (
            linear(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for linear in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(F.scaled_dot_product_attention(query, key, value, is_heard).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Attention and feed-forward, each pre-normalised and residual."""

    def __init__(self, config: WhisperVqConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config.hidden, config.heads)
        self.self_attn_layer_norm = nn.LayerNorm(config.hidden)
        self.fc1 = nn.Linear(config.hidden, config.inner)
        self.fc2 = nn.Linear(config.inner, config.hidden)
        self.final_layer_norm = nn.LayerNorm(config.hidden)

    def forward(self, x: Tensor, is_heard: Tensor) -> Tensor:
        x = x + self.self_attn(self.self_attn_layer_norm(x), is_heard)
        return x + self.fc2(F.gelu(self.fc1(self.final_layer_norm(x))))


class WhisperVq(nn.Module):
    """Encoder and quantiser: features to tokens."""

    def __init__(self, config: WhisperVqConfig) -> None:
        super().__init__()
        self.config = config
        self.conv1 = nn.Conv1d(config.mels, config.hidden, 3)
        self.conv2 = nn.Conv1d(config.hidden, config.hidden, 3, HALVED)
        self.embed_positions = nn.Embedding(config.positions, config.hidden)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.quantized_after))
        self.codebook = nn.Embedding(config.codes, config.hidden)

    def forward(self, features: Tensor, is_sound: Tensor) -> Tensor:
        """Return tokens [B, T / (2 pool)] of features [B, mels, T]; is_sound [B, T] is False for padding."""
        steps, is_sound = self._steps(features), is_sound[:, ::HALVED]
        is_heard = heard_by_blocks(is_sound, self.config.block)
        for number, layer in enumerate(self.layers, 1):
            steps = layer(steps, is_heard)
            if number == self.config.pooled_after:
                steps, is_sound = self._pooled(steps), is_sound[:, :: self.config.pool]
                block = None if self.config.block is None else self.config.block // self.config.pool
                is_heard = heard_by_blocks(is_sound, block)
        vectors = self.codebook.weight
        distances = vectors.square().sum(1) + steps.square().sum(2, keepdim=True) - 2 * steps @ vectors.T
        return distances.argmin(2)

    def _steps(self, features: Tensor) -> Tensor:
        """Return steps [B, T / 2, H] with positions of features [B, mels, T]."""
        padding = (2, 0) if self.config.is_causal else (1, 1)
        steps = F.gelu(self.conv1(F.pad(features, padding)))
        steps = F.gelu(self.conv2(F.pad(steps, padding))).transpose(1, 2)
        return steps + self.embed_positions.weight[: steps.shape[1]]

    def _pooled(self, steps: Tensor) -> Tensor:
        groups = steps.unflatten(1, (-1, self.config.pool))
        return groups.mean(2) if self.config.is_mean else groups.amax(2)


def heard_by_blocks(is_sound: Tensor, block: int | None) -> Tensor:
    """Return the attention mask [B, 1, T, T]: non-padding steps of the own block and previous ones (all for None)."""
    place = torch.arange(is_sound.shape[1], device=is_sound.device) // (block or is_sound.shape[1])
    return (place[:, None] >= place) & is_sound[:, None, None]
