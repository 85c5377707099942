"""Networks that convert hidden states of a recording to rows of the language model, and to an emotion vector.

    hidden states [T, S] ─► conformer, half the rate ─► perceiver ─► 32 rows, or 1 vector

The conformer adds scores of absolute positions to those of attention. Modules and tensors are named as in the published
`gpt.pth`.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stretto.codecs.cosyvoice.flow import ConformerFeedForward, EncoderShape, RelativeAttention, wave_of_distances
from stretto.codecs.cosyvoice.shapes import Shapes, count, shape_of
from stretto.errors import CheckpointError

HALVING_KERNEL = 3
DEPTHWISE_KERNEL = 15
HEAD_WIDTH = 64  # of the perceiver
NUM_PERCEIVER_LAYERS = 2


class _Attention(RelativeAttention):
    """Self-attention whose scores also depend on the position of the key, instead of its distance."""

    def forward(self, x: Tensor, waves: Tensor) -> Tensor:
        query, key, value = (
            linear(x).unflatten(1, (self.heads, -1)) for linear in (self.linear_q, self.linear_k, self.linear_v)
        )
        positions = self.linear_pos(waves).unflatten(1, (self.heads, -1))
        bias = torch.einsum("thd,phd->htp", query + self.pos_bias_v, positions) / math.sqrt(query.shape[2])
        query, key, value = (row.transpose(0, 1) for row in (query + self.pos_bias_u, key, value))
        attended = F.scaled_dot_product_attention(query, key, value, bias)
        return self.linear_out(attended.transpose(0, 1).flatten(1))


class _Convolution(nn.Module):
    """Gated pointwise convolution, depthwise convolution, norm, SiLU and pointwise convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        margin = DEPTHWISE_KERNEL // 2
        self.pointwise_conv1 = nn.Conv1d(width, 2 * width, 1)
        self.depthwise_conv = nn.Conv1d(width, width, DEPTHWISE_KERNEL, padding=margin, groups=width)
        self.norm = nn.LayerNorm(width)
        self.pointwise_conv2 = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        signal = self.depthwise_conv(F.glu(self.pointwise_conv1(x.T), 0))
        return self.pointwise_conv2(F.silu(self.norm(signal.T)).T).T


class _Layer(nn.Module):
    """Attention, convolution and feed-forward layer, each with pre-norm and a residual connection, and a final norm."""

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        self.self_attn = _Attention(shape)
        self.conv_module = _Convolution(shape.width)
        self.feed_forward = ConformerFeedForward(shape)
        self.norm_mha = nn.LayerNorm(shape.width)
        self.norm_conv = nn.LayerNorm(shape.width)
        self.norm_ff = nn.LayerNorm(shape.width)
        self.norm_final = nn.LayerNorm(shape.width)

    def forward(self, x: Tensor, waves: Tensor) -> Tensor:
        x = x + self.self_attn(self.norm_mha(x), waves)
        x = x + self.conv_module(self.norm_conv(x))
        return self.norm_final(x + self.feed_forward(self.norm_ff(x)))


class _Input(nn.Module):
    """Convolution over time and channels that halves both, and a projection of all channels."""

    def __init__(self, states: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(1, width, HALVING_KERNEL, 2))
        self.out = nn.Sequential(nn.Linear(width * ((states - 1) // 2), width))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.conv(x[None])).transpose(0, 1).flatten(1))


class Conformer(nn.Module):
    """Conformer that halves the rate of hidden states."""

    def __init__(self, states: int, shape: EncoderShape) -> None:
        super().__init__()
        self.width = shape.width
        self.embed = _Input(states, shape.width)
        self.encoders = nn.ModuleList(_Layer(shape) for _ in range(shape.layers))
        self.after_norm = nn.LayerNorm(shape.width)

    def forward(self, x: Tensor) -> Tensor:
        """Encode hidden states [T, S]; return [(T - 1) // 2, H]."""
        x = self.embed(x) * math.sqrt(self.width)
        length = len(x)
        waves = wave_of_distances(length, self.width, x.device)[:length].flip(0).to(x.dtype)  # positions from 0
        for layer in self.encoders:
            x = layer(x, waves)
        return self.after_norm(x)


class _Resampling(nn.Module):
    """Attention of the perceiver's rows to themselves and to the memory."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)

    def forward(self, rows: Tensor, memory: Tensor) -> Tensor:
        queries = self.to_q(rows)
        keys, values = self.to_kv(torch.cat([rows, memory])).chunk(2, 1)
        heads = (tensor.unflatten(1, (-1, HEAD_WIDTH)).transpose(0, 1) for tensor in (queries, keys, values))
        return self.to_out(F.scaled_dot_product_attention(*heads).transpose(0, 1).flatten(1))


class _Gated(nn.Module):
    """GELU of the second half of the channels, multiplied by the first half."""

    def forward(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, 1)
        return F.gelu(gate) * value


class _Scale(nn.Module):
    """RMS norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1) * math.sqrt(x.shape[1]) * self.gamma


class Perceiver(nn.Module):
    """Perceiver that reads a memory of any length.

    Args:
        context: Width of the memory.
        attended: Width of all heads.
        inner: Width of the feed-forward layers.
    """

    def __init__(self, context: int, rows: int, width: int, attended: int, inner: int) -> None:
        super().__init__()
        self.proj_context = nn.Linear(context, width)
        self.latents = nn.Parameter(torch.zeros(rows, width))
        self.layers = nn.ModuleList()
        for _ in range(NUM_PERCEIVER_LAYERS):
            gated = nn.Sequential(nn.Linear(width, 2 * inner), _Gated(), nn.Linear(inner, width))
            self.layers.append(nn.ModuleList([_Resampling(width, attended), gated]))
        self.norm = _Scale(width)

    def forward(self, memory: Tensor) -> Tensor:
        """Return the rows [R, H] for a memory [T, C]."""
        memory = self.proj_context(memory)
        rows: Tensor = self.latents
        for layer in self.layers:
            attention, feed_forward = layer.children()
            rows = rows + attention(rows, memory)
            rows = rows + feed_forward(rows)
        return self.norm(rows)


def conformer_of(shapes: Shapes, name: str, states: int) -> Conformer:
    """Return a conformer with the sizes of the published tensors below `name`."""
    width = shape_of(shapes, f"{name}.after_norm.weight", 1)[0]
    heads, head_width = shape_of(shapes, f"{name}.encoders.0.self_attn.pos_bias_u", 2)
    if heads * head_width != width:
        got = f"[{heads}, {head_width}]"
        raise CheckpointError(f"{name}.encoders.0.self_attn.pos_bias_u: expected {width} numbers, got {got}")
    inner = shape_of(shapes, f"{name}.encoders.0.feed_forward.w_1.bias", 1)[0]
    return Conformer(states, EncoderShape(width, heads, inner, count(shapes, f"{name}.encoders")))


def perceiver_of(shapes: Shapes, name: str, context: int, width: int) -> Perceiver:
    """Return a perceiver with the sizes of published tensors below `name`, for a memory of width `context`."""
    rows = shape_of(shapes, f"{name}.latents", 2)[0]
    attended = shape_of(shapes, f"{name}.layers.0.0.to_q.weight", 2)[0]
    if attended % HEAD_WIDTH:
        expected = f"a multiple of {HEAD_WIDTH} rows"
        raise CheckpointError(f"{name}.layers.0.0.to_q.weight: expected {expected}, got {attended}")
    inner = shape_of(shapes, f"{name}.layers.0.1.2.weight", 2)[1]
    return Perceiver(context, rows, width, attended, inner)
