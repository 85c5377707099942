"""Language model: a Qwen3 decoder with the computation and the weight names of Hugging Face's `Qwen3Model`.

A single table embeds all streams, and a row's embedding is the sum of its streams' vectors. Training also needs the
attention scores of the guided heads, and output heads that run only on rows with targets. The Hugging Face module
offers neither.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stretto.families.tiny import family as tiny

NUM_TEXT_IDS = tiny.PHONEME_INDEX_BASE  # ids of stream 0 are below the index ids
ORDINALS = tiny.FRAME_INDEX_BASE - tiny.PHONEME_INDEX_BASE
GUIDED = {1: (0, 1), 2: (2, 3)}  # layer -> its guided heads, in the order of `sequences.Head`


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes of the network, named as in Hugging Face's Qwen3Config."""

    hidden_size: int = 320
    num_hidden_layers: int = 5
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    intermediate_size: int = 768
    rope_theta: float = 10_000.0
    vocab_size: int = tiny.LAYOUT.vocab_size


class RMSNorm(nn.Module):
    """Root-mean-square norm with epsilon 1e-6."""

    def __init__(self, size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), 1e-6)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply the rotary position embedding. Halves are paired as in Hugging Face's `rotate_half`."""
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


class KeyValues:
    """Key-value cache of one layer, for generation."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if self.keys is not None and self.values is not None:
            keys = torch.cat([self.keys, keys], 2)
            values = torch.cat([self.values, values], 2)
        self.keys = keys
        self.values = values
        return keys, values


@dataclass
class Pass:
    """Data shared by the layers of one forward pass.

    Attributes:
        mask: Values added to the attention scores, [B, 1, T, S]; minus infinity forbids attention. None for complete
            sequences, whose rows read the rows before them.
        scores: Attention scores of the guided heads, [B, 2, T, T], collected during the pass.
    """

    cos: Tensor
    sin: Tensor
    mask: Tensor | None
    caches: list[KeyValues] | None = None
    scores: list[Tensor] | None = None


class Attention(nn.Module):
    """Grouped-query attention with normalised queries and keys."""

    def __init__(self, config: NetworkConfig, layer: int):
        super().__init__()
        self.config = config
        self.layer = layer
        size = config.hidden_size
        dim = config.head_dim
        self.q_proj = nn.Linear(size, config.num_attention_heads * dim, bias=False)
        self.k_proj = nn.Linear(size, config.num_key_value_heads * dim, bias=False)
        self.v_proj = nn.Linear(size, config.num_key_value_heads * dim, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * dim, size, bias=False)
        self.q_norm = RMSNorm(dim)
        self.k_norm = RMSNorm(dim)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.config.head_dim))

    def forward(self, x: Tensor, shared: Pass) -> Tensor:
        weight = torch.cat([self.q_proj.weight, self.k_proj.weight, self.v_proj.weight])  # one product, not three
        sizes = [p.weight.shape[0] for p in (self.q_proj, self.k_proj, self.v_proj)]
        q, k, v = (self._heads(part) for part in F.linear(x, weight).split(sizes, -1))
        q = rotate(self.q_norm(q).transpose(1, 2), shared.cos, shared.sin)
        k = rotate(self.k_norm(k).transpose(1, 2), shared.cos, shared.sin)
        v = v.transpose(1, 2)
        if shared.caches is not None:
            k, v = shared.caches[self.layer].extend(k, v)
        if shared.scores is not None and self.layer in GUIDED:
            shared.scores.append(self._scores(q, k))
        mixed = F.scaled_dot_product_attention(q, k, v, shared.mask, is_causal=shared.mask is None, enable_gqa=True)
        return self.o_proj(mixed.transpose(1, 2).flatten(-2))

    def _scores(self, q: Tensor, k: Tensor) -> Tensor:
        heads = list(GUIDED[self.layer])
        group = self.config.num_attention_heads // self.config.num_key_value_heads
        keys = k[:, [head // group for head in heads]]
        return (q[:, heads] @ keys.transpose(2, 3)).float() / math.sqrt(self.config.head_dim)


class FeedForward(nn.Module):
    def __init__(self, config: NetworkConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = F.linear(x, torch.cat([self.gate_proj.weight, self.up_proj.weight])).chunk(2, -1)
        return self.down_proj(F.silu(gate) * up)


class Layer(nn.Module):
    """Attention and feed-forward layer, each with a norm and a residual connection."""

    def __init__(self, config: NetworkConfig, layer: int):
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = FeedForward(config)
        self.input_layernorm = RMSNorm(config.hidden_size)
        self.post_attention_layernorm = RMSNorm(config.hidden_size)

    def forward(self, x: Tensor, shared: Pass) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), shared)
        return x + self.mlp(self.post_attention_layernorm(x))


class Trunk(nn.Module):
    """Embedding table, layers and final norm, without the head."""

    def __init__(self, config: NetworkConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size)

    def embed(self, ids: Tensor) -> Tensor:
        """Embed rows [B, T, 9] as vectors [B, T, H], summed over streams. Padding counts only on stream 0."""
        batch, length, streams = ids.shape
        table = self.embed_tokens.weight
        flat = ids.reshape(-1, streams)
        if self.training:  # a product with many rows: the gradient of a gather adds to the row of padding one by one
            kind = torch.bfloat16 if torch.is_autocast_enabled(ids.device.type) else table.dtype
            chosen = torch.zeros(len(flat), len(table), device=ids.device, dtype=kind)
            chosen.scatter_(1, flat, 1.0)
            chosen[:, tiny.PAD] = (flat[:, 0] == tiny.PAD).to(chosen.dtype)
            return (chosen @ table.to(chosen.dtype)).view(batch, length, -1)
        summed = F.embedding_bag(flat, table, mode="sum", padding_idx=tiny.PAD)
        first_is_pad = (ids[..., :1] == tiny.PAD).to(table.dtype)
        return summed.view(batch, length, -1) + first_is_pad * table[tiny.PAD]

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosine and sine [..., head_dim] of the rotary embedding."""
        dim = self.config.head_dim
        rates = self.config.rope_theta ** (-torch.arange(0, dim, 2, device=positions.device) / dim)
        angle = positions[..., None].float() * rates
        return torch.cat([angle.cos()] * 2, -1), torch.cat([angle.sin()] * 2, -1)

    def forward(self, x: Tensor, shared: Pass) -> Tensor:
        for layer in self.layers:
            x = layer(x, shared)
        return self.norm(x)


class Network(nn.Module):
    """Trunk with a head over all ids. Ids that are never predicted have zero rows in the head."""

    def __init__(self, config: NetworkConfig):
        super().__init__()
        self.model = Trunk(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self._initialise(config)

    def _initialise(self, config: NetworkConfig) -> None:
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(weight, 0, 0.02 / math.sqrt(2 * config.num_hidden_layers) if residual else 0.02)
        with torch.no_grad():
            self.lm_head.weight[NUM_TEXT_IDS : tiny.FIRST_CODE] = 0
            for base in (tiny.PHONEME_INDEX_BASE, tiny.FRAME_INDEX_BASE):
                self.model.embed_tokens.weight[base : base + ORDINALS] = _ordinal_vectors(config.hidden_size)

    def forward(self, ids: Tensor, scores: list[Tensor] | None = None) -> Tensor:
        """Return the hidden states [B, T, H] of complete sequences, starting at position 0."""
        cos, sin = self.model.angles(torch.arange(ids.shape[1], device=ids.device))
        vectors = self.model.embed(ids)
        kind = torch.bfloat16 if torch.is_autocast_enabled(ids.device.type) else vectors.dtype
        return self.model(vectors.to(kind), Pass(cos.to(kind), sin.to(kind), None, scores=scores))

    def text_logits(self, hidden: Tensor) -> Tensor:
        """Return the logits of stream 0, [..., NUM_TEXT_IDS]."""
        return F.linear(hidden, self.lm_head.weight[:NUM_TEXT_IDS])

    def code_logits(self, hidden: Tensor) -> Tensor:
        """Return the logits of the codec streams, [..., 7, 256]."""
        logits = F.linear(hidden, self.lm_head.weight[tiny.FIRST_CODE :])
        return logits.unflatten(-1, (tiny.NUM_CODEBOOKS, tiny.CODEBOOK_SIZE))


def _ordinal_vectors(size: int) -> Tensor:
    """Return sines and cosines [ORDINALS, size] with wavelengths from 3 to 480, which differ between neighbours."""
    ordinal = torch.arange(ORDINALS)[:, None].float()
    rates = 2 * math.pi / (3.0 * 160 ** (torch.arange(size // 2) / (size // 2 - 1)))
    return 0.03 * torch.cat([(ordinal * rates).sin(), (ordinal * rates).cos()], 1)
