"""Slow, plain reference for `codecs.espnet_dac`: ESPnet's DAC from its published tensors.

Layers run one after the other on the whole signal. The reference uses torch's weight norm and none of our classes.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lab.releases.random_espnet import BLOCKS, CODEBOOKS, RATIOS


class Reference:
    """Codec for whole signals in float32 or float64; its weights are rounded to float32, as the loader rounds them."""

    def __init__(self, tensors: dict[str, Tensor], dtype: torch.dtype) -> None:
        self.tensors = tensors
        self.dtype = dtype

    def decode(self, codes: Tensor) -> Tensor:
        """Decode codes [B, K, T] to pcm [B, T * 320]."""
        tables = [self._get(f"quantizer.vq.layers.{codebook}._codebook.embed") for codebook in range(codes.shape[1])]
        x = sum(table[codes[:, codebook]] for codebook, table in enumerate(tables)).transpose(1, 2)
        x, number = self._lstm("decoder.model.1", self._convolution("decoder.model.0", x)), 2
        for ratio in RATIOS:
            x = self._up(f"decoder.model.{number + 1}", snake(x), ratio)
            for block in range(BLOCKS):
                x = self._residual(f"decoder.model.{number + 2 + block}", x, 2**block)
            number += 2 + BLOCKS
        return self._convolution(f"decoder.model.{number + 1}", snake(x))[:, 0]

    def encode(self, pcm: Tensor) -> Tensor:
        """Encode pcm [n] to codes [K, T]."""
        x, number = self._convolution("encoder.model.0", pcm[None, None]), 1
        for ratio in reversed(RATIOS):
            for block in range(BLOCKS):
                x = self._residual(f"encoder.model.{number + block}", x, 2**block)
            x = self._convolution(f"encoder.model.{number + BLOCKS + 1}", snake(x), stride=ratio)
            number += 2 + BLOCKS
        x = self._convolution(f"encoder.model.{number + 2}", snake(self._lstm(f"encoder.model.{number}", x)))
        rest, codes = x[0].T, []
        for codebook in range(CODEBOOKS):
            table = self._get(f"quantizer.vq.layers.{codebook}._codebook.embed")
            codes.append(torch.stack([(vector - table).square().sum(1).argmin() for vector in rest]))
            rest = rest - table[codes[-1]]
        return torch.stack(codes)

    def _get(self, name: str) -> Tensor:
        return self.tensors[f"codec.generator.{name}"].to(self.dtype)

    def _weight(self, stem: str) -> Tensor:
        g, v = (
            self.tensors[f"codec.generator.{stem}.parametrizations.weight.original{part}"].double() for part in (0, 1)
        )
        return torch._weight_norm(v, g, 0).float().to(self.dtype)

    def _convolution(self, name: str, x: Tensor, stride: int = 1, dilation: int = 1) -> Tensor:
        weight = self._weight(f"{name}.conv.conv")
        total = (weight.shape[2] - 1) * dilation + 1 - stride
        frames = math.ceil(x.shape[2] / stride)
        x = mirrored(x, total - total // 2, total // 2 + frames * stride - x.shape[2])
        return F.conv1d(x, weight, self._get(f"{name}.conv.conv.bias"), stride, 0, dilation)

    def _up(self, name: str, x: Tensor, ratio: int) -> Tensor:
        frames = x.shape[2]
        x = F.conv_transpose1d(x, self._weight(f"{name}.convtr.convtr"), self._get(f"{name}.convtr.convtr.bias"), ratio)
        return x[..., math.ceil(ratio / 2) :][..., : frames * ratio]

    def _residual(self, name: str, x: Tensor, dilation: int) -> Tensor:
        inner = self._convolution(f"{name}.block.1", snake(x), dilation=dilation)
        return self._convolution(f"{name}.shortcut", x) + self._convolution(f"{name}.block.3", snake(inner))

    def _lstm(self, name: str, x: Tensor) -> Tensor:
        """Compute an LSTM gate by gate (Hochreiter and Schmidhuber, 1997), in torch's order i, f, g, o."""
        steps = list(x.permute(2, 0, 1))
        for layer in range(2):
            w_in, w_own, b_in, b_own = (
                self._get(f"{name}.lstm.{kind}_{part}_l{layer}") for kind in ("weight", "bias") for part in ("ih", "hh")
            )
            h = c = torch.zeros_like(steps[0])
            for index, step in enumerate(steps):
                gates = F.linear(step, w_in, b_in) + F.linear(h, w_own, b_own)
                i, f, g, o = gates.chunk(4, 1)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                h = o.sigmoid() * c.tanh()
                steps[index] = h
        return torch.stack(steps).permute(1, 2, 0) + x


def snake(x: Tensor) -> Tensor:
    return x + torch.sin(x) ** 2


def mirrored(x: Tensor, left: int, right: int) -> Tensor:
    """Return samples -left … n + right - 1 of x [B, C, n], reflected at both ends.

    A signal too short for that is padded with zeros first, which are dropped afterwards.
    """
    n = x.shape[2]
    zeros = max(0, max(left, right) + 1 - n)
    longer = torch.cat([x, x.new_zeros(*x.shape[:2], zeros)], 2)
    last = n + zeros - 1
    index = torch.arange(-left, n + zeros + right).abs()
    index = torch.where(index > last, 2 * last - index, index)
    return longer[..., index[: len(index) - zeros]]
