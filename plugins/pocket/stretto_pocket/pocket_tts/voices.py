"""Computation of a voice's rows from its published keys and values."""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from stretto.errors import CheckpointError
from stretto.family.conversion import BOUNDED, is_bounded

NORM_EPS = 1e-5
MAX_ROWS = 512
# Bound for differences between keys or values. If weights or voices are less precise than float32, it is a multiple of
# their level and of the dtype's epsilon. The largest multiple observed, with random weights of 3 to 24 layers, is 4.6.
TOLERANCE = 1e-3
ROUNDINGS = 16
SCALES = torch.logspace(-4, 3, 64, dtype=torch.float64)
# Gauss-Newton steps, and relative step of numerical derivatives
NUM_STEPS = 12
DIFFERENCE = 1e-5


class VoiceBackbone:
    """Transformer of a release in float64, which processes the rows of one voice without a KV cache."""

    def __init__(self, tensors: Mapping[str, Tensor], num_layers: int, head_dim: int, num_kv_heads: int, theta: float):
        self._tensors = tensors
        self.num_layers = num_layers
        self.head_dim = head_dim
        self.num_kv_heads = num_kv_heads
        self._theta = theta
        self.kv_width = head_dim * num_kv_heads

    def weight(self, layer: int, name: str) -> Tensor:
        return self._tensors[f"flow_lm.transformer.layers.{layer}.{name}"].double()

    @property
    def epsilon(self) -> float:
        """Epsilon of the dtype of the published weights."""
        return torch.finfo(self._tensors["flow_lm.transformer.layers.0.self_attn.in_proj.weight"].dtype).eps

    def norm(self, layer: int, name: str, x: Tensor) -> Tensor:
        """Apply the LayerNorm `name` of a layer to x [n, H]."""
        weight = self.weight(layer, f"{name}.weight")
        bias = self.weight(layer, f"{name}.bias")
        return F.layer_norm(x, x.shape[-1:], weight, bias, NORM_EPS)

    def projected(self, layer: int, normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project normalised rows [n, H] to rotated queries, rotated keys, and values, [n, heads, D] each."""
        whole = normed @ self.weight(layer, "self_attn.in_proj.weight").T
        sizes = [whole.shape[1] - 2 * self.kv_width, self.kv_width, self.kv_width]
        query, key, value = (projection.unflatten(1, (-1, self.head_dim)) for projection in whole.split(sizes, 1))
        return self.rotated(query), self.rotated(key), value

    def rotated(self, x: Tensor, direction: int = 1) -> Tensor:
        """Rotate adjacent pairs of x [n, heads, D] by the angles of their positions. `direction` -1 undoes it."""
        half = x.shape[-1] // 2
        exponents = torch.arange(half, dtype=torch.float32) * (-math.log(self._theta) * 2 / x.shape[-1])
        angles = direction * torch.arange(len(x), dtype=torch.float64)[:, None, None] * exponents.exp().double()
        one, other = x.unflatten(-1, (half, 2)).unbind(-1)
        cosines = angles.cos()
        sines = angles.sin()
        return torch.stack([one * cosines - other * sines, one * sines + other * cosines], -1).flatten(-2)

    def attended(self, layer: int, normed: Tensor) -> Tensor:
        """Return the output of attention [n, H] for normalised rows [n, H]."""
        query, key, value = (projection.transpose(0, 1) for projection in self.projected(layer, normed))
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        return seen.transpose(0, 1).flatten(1) @ self.weight(layer, "self_attn.out_proj.weight").T

    def fed_forward(self, layer: int, x: Tensor) -> Tensor:
        opened = self.norm(layer, "norm2", x) @ self.weight(layer, "linear1.weight").T
        return x + F.gelu(opened, approximate="tanh") @ self.weight(layer, "linear2.weight").T


def recover_rows(backbone: VoiceBackbone, stored: Mapping[str, Tensor], path: Path) -> Tensor:
    """Return the embedded rows [n, H] of a voice, float32, with a mean of 0.

    The keys and values of layer 0 determine its normalised rows, by least squares. These determine a row except for its
    mean and its scale. Every LayerNorm removes the mean. The scale is chosen so that the keys and values of layer 1
    match.

    Args:
        stored: `transformer.layers.<i>.self_attn/cache` [2, 1, n, heads, D] and `…/offset` [1] or `…/current_end` [n].

    Raises:
        CheckpointError: If a tensor is missing or misshapen, or the rows do not reproduce the stored keys and values.
    """
    published = [_cache(backbone, stored, layer, path) for layer in range(backbone.num_layers)]
    epsilon = max(backbone.epsilon, *(torch.finfo(cache.dtype).eps for cache in published))
    caches = [cache.double() for cache in published]
    if backbone.num_layers < 2 or 2 * backbone.kv_width < backbone.weight(0, "norm1.weight").shape[0]:
        raise CheckpointError(f"{path}: the rows of voices cannot be recovered from keys and values of this model")
    first, normed = _direction(backbone, caches[0], 0)
    second, _ = _direction(backbone, caches[1], 1)
    attended = backbone.attended(0, normed)

    def missed(scale: Tensor) -> Tensor:
        """Return the difference [n, H] between layer 1's normalised rows and those that its cache implies."""
        rows = backbone.fed_forward(0, first * scale[:, None] + attended)
        return F.layer_norm(rows, rows.shape[-1:], eps=NORM_EPS) - second

    distances = [missed(scale.expand(len(first))).square().sum(1) for scale in SCALES]
    scale = SCALES[torch.stack(distances).argmin(0)]
    for _ in range(NUM_STEPS):  # Gauss–Newton, in one dimension per row
        distance = missed(scale)
        slope = (missed(scale * (1 + DIFFERENCE)) - distance) / (scale * DIFFERENCE)[:, None]
        scale = scale - (slope * distance).sum(1) / slope.square().sum(1)
    rows = first * scale[:, None]
    _check(backbone, rows, caches, epsilon, path)
    return rows.float()


def _cache(backbone: VoiceBackbone, stored: Mapping[str, Tensor], layer: int, path: Path) -> Tensor:
    """Return the keys and values of a layer, [2, n, heads, D], in their stored dtype."""
    name = f"transformer.layers.{layer}.self_attn"
    cache = stored.get(f"{name}/cache")
    end = stored.get(f"{name}/offset")
    if end is None and f"{name}/current_end" in stored:
        end = torch.tensor([len(stored[f"{name}/current_end"])])
    shape = (2, 1, backbone.num_kv_heads, backbone.head_dim)
    if cache is None or end is None or cache.ndim != 5 or (*cache.shape[:2], *cache.shape[3:]) != shape:
        expected = f"{name}/cache [2, 1, n, {backbone.num_kv_heads}, {backbone.head_dim}] and {name}/offset"
        raise CheckpointError(f"{path}: expected {expected}, got {'none' if cache is None else list(cache.shape)}")
    num_rows = int(end.view(-1)[0])
    rows = cache[:, 0, :num_rows]
    if not 0 < num_rows <= min(cache.shape[2], MAX_ROWS) or not rows.is_floating_point() or not is_bounded(rows):
        expected = f"up to {MAX_ROWS} rows of floating-point {BOUNDED}"
        raise CheckpointError(f"{path}: {name}: expected {expected}, got {num_rows} rows")
    return rows


def _direction(backbone: VoiceBackbone, cache: Tensor, layer: int) -> tuple[Tensor, Tensor]:
    """Return the output of a layer's first norm, [n, H], before and after its weight and bias are applied."""
    seen = torch.cat([backbone.rotated(cache[0], -1).flatten(1), cache[1].flatten(1)], 1)
    weight = backbone.weight(layer, "self_attn.in_proj.weight")[-2 * backbone.kv_width :]
    normed = torch.linalg.lstsq(weight, seen.T).solution.T
    scale = backbone.weight(layer, "norm1.weight")
    shift = backbone.weight(layer, "norm1.bias")
    return (normed - shift) / scale, normed


def _check(backbone: VoiceBackbone, rows: Tensor, caches: list[Tensor], epsilon: float, path: Path) -> None:
    """Raise CheckpointError if keys or values differ from the stored ones by more than `epsilon` explains."""
    for layer, cache in enumerate(caches):
        normed = backbone.norm(layer, "norm1", rows)
        _, key, value = backbone.projected(layer, normed)
        worst = float((torch.stack([key, value]) - cache).abs().max())
        bound = max(TOLERANCE, ROUNDINGS * epsilon * float(cache.square().mean().sqrt()))
        if not worst <= bound:
            expected = f"keys and values of this release within {bound:.2g}"
            raise CheckpointError(f"{path}: layer {layer}: expected {expected}, got a difference of {worst:.1g}")
        rows = backbone.fed_forward(layer, rows + backbone.attended(layer, normed))
