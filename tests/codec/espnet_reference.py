"""ESPnet's DAC from its published tensors, written out plainly: the slow reference of `codec.espnet_dac`.

One layer after the other on the whole signal, weight norm by torch's own function, no class of the package used.
"""

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

RATIOS, BLOCKS, BASE, LATENT, CODEBOOKS, SIZE = (8, 5, 4, 2), 3, 2, 16, 3, 32
CONFIG: dict[str, Any] = {
    "codec": "dac",
    "codec_conf": {
        "sampling_rate": 16000,
        "generator_params": {
            "hidden_dim": LATENT,
            "codebook_dim": LATENT,
            "encdec_n_filters": BASE,
            "encdec_n_residual_layers": BLOCKS,
            "encdec_ratios": list(RATIOS),
            "encdec_activation": "Snake",
            "encdec_norm": "weight_norm",
            "encdec_causal": False,
            "quantizer_n_q": CODEBOOKS,
            "quantizer_bins": SIZE,
            "quantizer_target_bandwidth": [0.25, 0.75],  # 5 bits at 50 Hz are 0.25 kb/s a codebook
        },
    },
}


def published_tensors(seed: int = 0, codebooks: int = CODEBOOKS, size: int = SIZE) -> dict[str, Tensor]:
    """Random tensors with the names and shapes of an ESPnet checkpoint, and loud enough to be told apart."""
    torch.manual_seed(seed)
    tensors: dict[str, Tensor] = {"codec.discriminator.unused": torch.zeros(1)}

    def convolution(name: str, kind: str, shape: tuple[int, int, int], gain: float = 1.0) -> None:
        stem = f"codec.generator.{name}.{kind}.{kind}"
        tensors[f"{stem}.parametrizations.weight.original0"] = gain * (0.8 + 0.4 * torch.rand(shape[0], 1, 1))
        tensors[f"{stem}.parametrizations.weight.original1"] = torch.randn(shape)
        tensors[f"{stem}.bias"] = 0.1 * torch.randn(shape[0] if kind == "conv" else shape[1])

    def residual(name: str, width: int) -> None:
        convolution(f"{name}.block.1", "conv", (width // 2, width, 7), 0.5)
        convolution(f"{name}.block.3", "conv", (width, width // 2, 1), 0.5)
        convolution(f"{name}.shortcut", "conv", (width, width, 1), 0.7)

    def lstm(name: str, width: int) -> None:
        for layer in range(2):
            for part in ("ih", "hh"):
                weight = 1.5 * torch.randn(4 * width, width) / math.sqrt(width)
                tensors[f"codec.generator.{name}.lstm.weight_{part}_l{layer}"] = weight
                tensors[f"codec.generator.{name}.lstm.bias_{part}_l{layer}"] = 0.1 * torch.randn(4 * width)

    width, number = BASE << len(RATIOS), 2
    convolution("decoder.model.0", "conv", (width, LATENT, 7))
    lstm("decoder.model.1", width)
    for ratio in RATIOS:
        convolution(f"decoder.model.{number + 1}", "convtr", (width, width // 2, 2 * ratio))
        width //= 2
        for block in range(BLOCKS):
            residual(f"decoder.model.{number + 2 + block}", width)
        number += 2 + BLOCKS
    convolution(f"decoder.model.{number + 1}", "conv", (1, width, 7), 0.4)

    convolution("encoder.model.0", "conv", (width, 1, 7))
    number = 1
    for ratio in reversed(RATIOS):
        for block in range(BLOCKS):
            residual(f"encoder.model.{number + block}", width)
        convolution(f"encoder.model.{number + BLOCKS + 1}", "conv", (2 * width, width, 2 * ratio))
        width *= 2
        number += 2 + BLOCKS
    lstm(f"encoder.model.{number}", width)
    convolution(f"encoder.model.{number + 2}", "conv", (LATENT, width, 7))
    for codebook in range(codebooks):
        stem = f"codec.generator.quantizer.vq.layers.{codebook}._codebook"
        table = torch.randn(size, LATENT) / (codebook + 1)
        tensors |= {f"{stem}.embed": table, f"{stem}.embed_avg": table, f"{stem}.inited": torch.ones(1)}
        tensors[f"{stem}.cluster_size"] = torch.ones(size)
    return tensors


def publish(directory: Path, tensors: dict[str, Tensor], config: dict[str, Any] = CONFIG) -> Path:
    """The directory, with both published files in it."""
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    torch.save(tensors, directory / "360epoch.pth")
    return directory


class Reference:
    """Decodes and encodes whole signals in float32 or float64, its weights rounded to float32 as the loader's are."""

    def __init__(self, tensors: dict[str, Tensor], dtype: torch.dtype) -> None:
        self.tensors = tensors
        self.dtype = dtype

    def decode(self, codes: Tensor) -> Tensor:
        """Pcm [B, T * 320] of codes [B, K, T]."""
        tables = [self._get(f"quantizer.vq.layers.{codebook}._codebook.embed") for codebook in range(CODEBOOKS)]
        x = sum(table[codes[:, codebook]] for codebook, table in enumerate(tables)).transpose(1, 2)
        x, number = self._lstm("decoder.model.1", self._convolution("decoder.model.0", x)), 2
        for ratio in RATIOS:
            x = self._up(f"decoder.model.{number + 1}", snake(x), ratio)
            for block in range(BLOCKS):
                x = self._residual(f"decoder.model.{number + 2 + block}", x, 2**block)
            number += 2 + BLOCKS
        return self._convolution(f"decoder.model.{number + 1}", snake(x))[:, 0]

    def encode(self, pcm: Tensor) -> Tensor:
        """Codes [K, T] of pcm [n]."""
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
        """The gates written out: Hochreiter and Schmidhuber (1997), gates in torch's order i, f, g, o."""
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
    """Samples -left … n + right - 1 of x [B, C, n], those outside read backwards from the ends.

    A signal too short to be read backwards so far is followed by zeros first, which are dropped afterwards.
    """
    n = x.shape[2]
    zeros = max(0, max(left, right) + 1 - n)
    longer = torch.cat([x, x.new_zeros(*x.shape[:2], zeros)], 2)
    last = n + zeros - 1
    index = torch.arange(-left, n + zeros + right).abs()
    index = torch.where(index > last, 2 * last - index, index)
    return longer[..., index[: len(index) - zeros]]
