"""Slow, plain reference for `stretto_fish_s2.codec`: the codec of Fish Audio S2 from its published tensors.

Layers run one after the other on the whole signal, with attention step by step. None of our classes is used.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

HEAD_DIM, ROPE_BASE, EPS = 64, 10_000.0, 1e-5


class Reference:
    """Codec for whole signals in float64.

    Args:
        record: Sizes of the codec (`random_fish_s2_codec.KINDS`).
        tensors: Published tensors by name.
    """

    def __init__(self, record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self.record = record
        self.tensors = tensors

    def decode(self, codes: Tensor) -> Tensor:
        """Decode codes [K, T] to samples [T * samples_per_frame]."""
        last = self.record["codebook_size"] - 1
        x = self._entries("quantizer.semantic_quantizer.quantizers.0", codes[0])
        for number, each in enumerate(codes[1:]):
            x = x + self._entries(f"quantizer.quantizer.quantizers.{number}", each.clamp(max=last))
        x = self._transformer("quantizer.post_module", x, self.record["window_size"]).T
        for number, factor in enumerate(reversed(self.record["downsample_factor"])):
            x = self._up(x, self._get(f"quantizer.upsample.{number}.0.conv.weight"), factor)
            x = x + self._get(f"quantizer.upsample.{number}.0.conv.bias")[:, None]
            x = self._convnext(f"quantizer.upsample.{number}.1", x)
        x = self._conv("decoder.model.0", x)
        number = 0
        for number, rate in enumerate(self.record["decoder_rates"], 1):
            block = f"decoder.model.{number}.block"
            x = self._up(self._snake(f"{block}.0", x), self._weight(f"{block}.1.conv"), rate)
            x = x + self._get(f"{block}.1.conv.bias")[:, None]
            for unit, dilation in ((2, 1), (3, 3), (4, 9)):
                x = self._unit(f"{block}.{unit}", x, dilation)
        x = self._snake(f"decoder.model.{number + 1}", x)
        return self._conv(f"decoder.model.{number + 2}", x)[0].tanh()

    def latents(self, pcm: Tensor) -> Tensor:
        """Return the latents [T, C] of samples [n], n a multiple of samples_per_frame."""
        x = self._conv("encoder.block.0", pcm.double()[None])
        number = 0
        for number, rate in enumerate(self.record["encoder_rates"], 1):
            block = f"encoder.block.{number}.block"
            for unit, dilation in ((0, 1), (1, 3), (2, 9)):
                x = self._unit(f"{block}.{unit}", x, dilation)
            x = self._conv(f"{block}.4", self._snake(f"{block}.3", x), stride=rate)
        x = self._transformer(f"encoder.block.{number}.block.5", x.T, self.record["encoder_window_size"]).T
        x = self._conv(f"encoder.block.{number + 2}", self._snake(f"encoder.block.{number + 1}", x))
        for stage, factor in enumerate(self.record["downsample_factor"]):
            weight, bias = (self._get(f"quantizer.downsample.{stage}.0.conv.{kind}") for kind in ("weight", "bias"))
            x = self._convnext(f"quantizer.downsample.{stage}.1", F.conv1d(x, weight, bias, factor))
        return self._transformer("quantizer.pre_module", x.T, self.record["window_size"])

    def encode(self, pcm: Tensor) -> Tensor:
        """Encode samples [n], n a multiple of samples_per_frame, to codes [K, T]."""
        rest, codes = self.latents(pcm), []
        names = [f"quantizer.quantizer.quantizers.{number}" for number in range(self.record["n_codebooks"])]
        for name in ("quantizer.semantic_quantizer.quantizers.0", *names):
            projected = self._projected(f"{name}.in_proj", rest)
            entries = self._get(f"{name}.codebook.weight")
            codes.append(torch.stack([torch.cosine_similarity(each[None], entries).argmax() for each in projected]))
            rest = rest - self._entries(name, codes[-1])
        return torch.stack(codes)

    def _get(self, name: str) -> Tensor:
        return self.tensors[name].double()

    def _weight(self, name: str, older: bool = False) -> Tensor:
        """Return the weight of a layer with a weight norm, rounded to float32 as in a checkpoint."""
        kinds = ("weight_g", "weight_v") if older else [f"parametrizations.weight.original{part}" for part in (0, 1)]
        norms, directions = (self._get(f"{name}.{kind}") for kind in kinds)
        lengths = directions.square().sum((1, 2), keepdim=True).sqrt()
        return (norms * directions / lengths).float().double()

    def _projected(self, name: str, x: Tensor) -> Tensor:
        return x @ self._weight(name, older=True)[..., 0].T + self._get(f"{name}.bias")

    def _entries(self, name: str, codes: Tensor) -> Tensor:
        return self._projected(f"{name}.out_proj", self._get(f"{name}.codebook.weight")[codes])

    def _conv(self, name: str, x: Tensor, dilation: int = 1, stride: int = 1) -> Tensor:
        weight = self._weight(f"{name}.conv")
        before = (weight.shape[2] - 1) * dilation + 1 - stride
        return F.conv1d(F.pad(x, (before, 0)), weight, self._get(f"{name}.conv.bias"), stride, 0, dilation)

    def _up(self, x: Tensor, weight: Tensor, rate: int) -> Tensor:
        """Add the kernel of every step to the output, and keep `rate` samples for a step."""
        out = x.new_zeros(weight.shape[1], x.shape[1] * rate + weight.shape[2])
        for step in range(x.shape[1]):
            out[:, step * rate : step * rate + weight.shape[2]] += torch.einsum("i,iok->ok", x[:, step], weight)
        return out[:, : x.shape[1] * rate]

    def _snake(self, name: str, x: Tensor) -> Tensor:
        alpha = self._get(f"{name}.alpha")[0]
        return x + (alpha * x).sin() ** 2 / (alpha + 1e-9)

    def _unit(self, name: str, x: Tensor, dilation: int) -> Tensor:
        inner = self._conv(f"{name}.block.1", self._snake(f"{name}.block.0", x), dilation)
        return x + self._conv(f"{name}.block.3", self._snake(f"{name}.block.2", inner))

    def _convnext(self, name: str, x: Tensor) -> Tensor:
        weight, bias = (self._get(f"{name}.dwconv.conv.{kind}") for kind in ("weight", "bias"))
        inner = F.conv1d(F.pad(x, (weight.shape[2] - 1, 0)), weight, bias, groups=len(x)).T
        centred = inner - inner.mean(1, keepdim=True)
        inner = centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()
        inner = inner * self._get(f"{name}.norm.weight") + self._get(f"{name}.norm.bias")
        for layer in ("pwconv1", "pwconv2"):
            inner = inner @ self._get(f"{name}.{layer}.weight").T + self._get(f"{name}.{layer}.bias")
            inner = F.gelu(inner) if layer == "pwconv1" else inner
        return x + (self._get(f"{name}.gamma") * inner).T

    def _transformer(self, name: str, x: Tensor, window: int) -> Tensor:
        number = 0
        while f"{name}.layers.{number}.attention.wo.weight" in self.tensors:
            layer = f"{name}.layers.{number}"
            heard = self._attention(f"{layer}.attention", self._norm(f"{layer}.attention_norm", x), window)
            x = x + self._get(f"{layer}.attention_layer_scale.gamma") * heard
            inner = self._norm(f"{layer}.ffn_norm", x)
            gate, up, down = (self._get(f"{layer}.feed_forward.w{part}.weight").T for part in (1, 3, 2))
            x = x + self._get(f"{layer}.ffn_layer_scale.gamma") * ((F.silu(inner @ gate) * (inner @ up)) @ down)
            number += 1
        return self._norm(f"{name}.norm", x)

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return x / (x.square().mean(1, keepdim=True) + EPS).sqrt() * self._get(f"{name}.weight")

    def _attention(self, name: str, x: Tensor, window: int) -> Tensor:
        """Attend step by step; adjacent pairs of queries and keys are rotated as complex numbers."""
        rows = (x @ self._get(f"{name}.wqkv.weight").T).unflatten(1, (3, -1, HEAD_DIM))
        queries, keys = (turned(rows[:, part]) for part in (0, 1))
        outputs = []
        for step in range(len(x)):
            seen = slice(max(0, step - window + 1), step + 1)
            scores = torch.einsum("hd,shd->hs", queries[step], keys[seen]) / HEAD_DIM**0.5
            outputs.append(torch.einsum("hs,shd->hd", scores.softmax(1), rows[seen, 2]).flatten())
        return torch.stack(outputs) @ self._get(f"{name}.wo.weight").T


def turned(x: Tensor) -> Tensor:
    """Rotate the pairs of x [T, H, D] by angles that are rounded to float32, as in training."""
    frequencies = 1 / ROPE_BASE ** (torch.arange(0, HEAD_DIM, 2).float() / HEAD_DIM)
    angles = torch.arange(len(x)).float()[:, None] * frequencies
    turns = torch.complex(angles.cos().double(), angles.sin().double())
    pairs = torch.view_as_complex(x.unflatten(2, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * turns[:, None]).flatten(2)
