"""Slow, plain reference for `stretto_magpie.codec`: NanoCodec's decoder from its published tensors, in float64.

Layers run one after another on the whole signal. None of our classes is used.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class Reference:
    """Decoder of whole signals.

    Args:
        record: Contents of `model_config.yaml`.
        tensors: Published tensors by name.
    """

    def __init__(self, record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self.levels: Sequence[int] = record["vector_quantizer"]["num_levels_per_group"]
        self.rates: Sequence[int] = record["audio_decoder"]["up_sample_rates"]
        self.width: int = record["audio_decoder"]["input_dim"]
        self.tensors = tensors

    def decode(self, codes: Tensor) -> Tensor:
        """Decode codes [K, T] to samples [T * samples_per_frame]; the numbers of absent codebooks are zeros."""
        columns = [torch.tensor([number for code in row for number in self.entry(code)]) for row in codes.T.tolist()]
        latents = torch.stack(columns, 1)
        x = self._conv("pre_conv", F.pad(latents, (0, 0, 0, self.width - len(latents))).double())
        for stage, rate in enumerate(self.rates):
            x = self._up(f"up_sample_conv_layers.{stage}", self._half_snake(f"activations.{stage}", x), rate)
            branches = [self._branch(f"res_layers.{stage}.res_blocks.{branch}", x) for branch in range(3)]
            x = sum(branches, torch.zeros_like(x)) / 3
        return self._conv("post_conv", self._half_snake("post_activation", x))[0].clamp(-1, 1)

    def entry(self, code: int) -> list[float]:
        """Return the codebook entry of a code; the first level changes fastest."""
        numbers = []
        for num_levels in self.levels:
            code, level = divmod(code, num_levels)
            numbers.append((level - num_levels // 2) / (num_levels // 2))
        return numbers

    def _get(self, name: str) -> Tensor:
        return self.tensors[f"audio_decoder.{name}"].double()

    def _weight(self, name: str) -> Tensor:
        """Return the weight of a layer with a weight norm, rounded to float32 as in a checkpoint."""
        norms, directions = (self._get(f"{name}.conv.parametrizations.weight.original{part}") for part in (0, 1))
        lengths = directions.square().sum((1, 2), keepdim=True).sqrt()
        return (norms * directions / lengths).float().double()

    def _conv(self, name: str, x: Tensor, dilation: int = 1) -> Tensor:
        weight = self._weight(name)
        padded = F.pad(x, ((weight.shape[2] - 1) * dilation, 0))
        return F.conv1d(padded, weight, self._get(f"{name}.conv.bias"), dilation=dilation)

    def _up(self, name: str, x: Tensor, rate: int) -> Tensor:
        """Add the kernels of two channels to each output channel, and keep `rate` samples for a step."""
        weight = self._weight(name)[:, 0]
        out = x.new_zeros(len(x) // 2, (x.shape[1] + 1) * rate)
        for step in range(x.shape[1]):
            products = x[:, step, None] * weight
            out[:, step * rate : (step + 2) * rate] += products[0::2] + products[1::2]
        return out[:, : x.shape[1] * rate] + self._get(f"{name}.conv.bias")[:, None]

    def _half_snake(self, name: str, x: Tensor) -> Tensor:
        alpha = self._get(f"{name}.activation.snake_act.alpha")[0]
        first = x[: len(alpha)]
        others = x[len(alpha) :]
        return torch.cat([first + (alpha * first).sin() ** 2 / (alpha + 1e-9), F.leaky_relu(others, 0.01)])

    def _branch(self, name: str, x: Tensor) -> Tensor:
        for unit, dilation in enumerate((1, 3, 5)):
            block = f"{name}.res_blocks.{unit}"
            inner = self._conv(f"{block}.input_conv", self._half_snake(f"{block}.input_activation", x), dilation)
            x = x + self._conv(f"{block}.skip_conv", self._half_snake(f"{block}.skip_activation", inner))
        return x
