"""The codec of a randomly initialised Fish Audio S2 release, `codec.pth`, in the published layout.

    python -m plugins.fish_s2.lab.random_fish_s2_codec FOLDER [KIND]

KIND is `small` (few channels, layers and codes), `other` (small, with other sizes) or `published`. Strides, windows and
the number of codebooks are as published in `small` and `published`.
"""

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

FILE = "codec.pth"
PUBLISHED: dict[str, Any] = {
    "sample_rate": 44_100,
    "n_codebooks": 9,
    "semantic_codebook_size": 4096,
    "codebook_size": 1024,
    "codebook_dim": 8,
    "encoder_dim": 64,
    "encoder_rates": [2, 4, 8, 8],
    "downsample_factor": [2, 2],
    "decoder_dim": 1536,
    "decoder_rates": [8, 8, 4, 2],
    "n_layer": 8,
    "intermediate_size": 3072,
    "window_size": 128,
    "encoder_n_layer": 4,
    "encoder_intermediate_size": 3072,
    "encoder_window_size": 512,
}
SMALL = PUBLISHED | {
    "semantic_codebook_size": 64,
    "codebook_size": 16,
    "encoder_dim": 8,
    "decoder_dim": 32,
    "n_layer": 2,
    "intermediate_size": 96,
    "encoder_n_layer": 2,
    "encoder_intermediate_size": 80,
}
OTHER = SMALL | {
    "n_codebooks": 4,
    "codebook_dim": 6,
    "encoder_dim": 16,
    "encoder_rates": [3, 5],
    "downsample_factor": [2, 3],
    "decoder_dim": 24,
    "decoder_rates": [5, 3],
    "n_layer": 3,
    "encoder_n_layer": 1,
}
KINDS = {"small": SMALL, "other": OTHER, "published": PUBLISHED}
# Factor on the norms of the last convolution, so that tanh hardly limits the samples.
LEVEL = 0.03


def normed(name: str, shape: tuple[int, ...], num_outputs: int | None = None) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a convolution with a weight norm; `num_outputs` is needed if it is transposed."""
    norm = f"{name}.conv.parametrizations.weight.original"
    return {f"{name}.conv.bias": (num_outputs or shape[0],), f"{norm}0": (shape[0], 1, 1), f"{norm}1": shape}


def snake(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of an activation's factors."""
    return {f"{name}.alpha": (1, channels, 1)}


def units(name: str, first: int, channels: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of three residual units, which are the parts of a block from number `first` on."""
    found: dict[str, tuple[int, ...]] = {}
    for number in range(first, first + 3):
        unit = f"{name}.{number}.block"
        found |= snake(f"{unit}.0", channels) | normed(f"{unit}.1", (channels, channels, 7))
        found |= snake(f"{unit}.2", channels) | normed(f"{unit}.3", (channels, channels, 1))
    return found


def transformer(name: str, width: int, inner: int, num_layers: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a transformer."""
    found: dict[str, tuple[int, ...]] = {f"{name}.norm.weight": (width,)}
    for number in range(num_layers):
        layer = f"{name}.layers.{number}"
        found |= {
            f"{layer}.attention.wqkv.weight": (3 * width, width),
            f"{layer}.attention.wo.weight": (width, width),
            f"{layer}.feed_forward.w1.weight": (inner, width),
            f"{layer}.feed_forward.w3.weight": (inner, width),
            f"{layer}.feed_forward.w2.weight": (width, inner),
        }
        for part in ("ffn", "attention"):
            found |= {f"{layer}.{part}_norm.weight": (width,), f"{layer}.{part}_layer_scale.gamma": (width,)}
    return found


def next_stage(name: str, width: int, factor: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a strided or transposed convolution and a ConvNeXt block."""
    found: dict[str, tuple[int, ...]] = {f"{name}.0.conv.weight": (width, width, factor), f"{name}.1.gamma": (width,)}
    found |= {f"{name}.1.dwconv.conv.weight": (width, 1, 7), f"{name}.1.norm.weight": (width,)}
    found |= {f"{name}.1.pwconv1.weight": (4 * width, width), f"{name}.1.pwconv2.weight": (width, 4 * width)}
    biases = {"0.conv": width, "1.dwconv.conv": width, "1.norm": width, "1.pwconv1": 4 * width, "1.pwconv2": width}
    return found | {f"{name}.{part}.bias": (size,) for part, size in biases.items()}


def codebook(name: str, width: int, narrow: int, size: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a codebook with its projections."""
    found: dict[str, tuple[int, ...]] = {f"{name}.codebook.weight": (size, narrow)}
    for part, rows, columns in (("in_proj", narrow, width), ("out_proj", width, narrow)):
        shapes = {"bias": (rows,), "weight_g": (rows, 1, 1), "weight_v": (rows, columns, 1)}
        found |= {f"{name}.{part}.{kind}": shape for kind, shape in shapes.items()}
    return found


def shapes_of(record: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each trained tensor of a codec."""
    channels = record["encoder_dim"]
    found = normed("encoder.block.0", (channels, 1, 7))
    for number, rate in enumerate(record["encoder_rates"], 1):
        block = f"encoder.block.{number}.block"
        found |= units(block, 0, channels) | snake(f"{block}.3", channels)
        found |= normed(f"{block}.4", (2 * channels, channels, 2 * rate))
        channels *= 2
    width = channels
    last = len(record["encoder_rates"])
    inner = record["encoder_intermediate_size"]
    num_layers = record["encoder_n_layer"]
    found |= transformer(f"encoder.block.{last}.block.5", width, inner, num_layers)
    found |= snake(f"encoder.block.{last + 1}", width) | normed(f"encoder.block.{last + 2}", (width, width, 3))
    for part in ("pre_module", "post_module"):
        found |= transformer(f"quantizer.{part}", width, record["intermediate_size"], record["n_layer"])
    factors = record["downsample_factor"]
    for part, ordered in (("downsample", factors), ("upsample", factors[::-1])):
        for number, factor in enumerate(ordered):
            found |= next_stage(f"quantizer.{part}.{number}", width, factor)
    narrow = record["codebook_dim"]
    found |= codebook("quantizer.semantic_quantizer.quantizers.0", width, narrow, record["semantic_codebook_size"])
    for number in range(record["n_codebooks"]):
        found |= codebook(f"quantizer.quantizer.quantizers.{number}", width, narrow, record["codebook_size"])
    channels = record["decoder_dim"]
    found |= normed("decoder.model.0", (channels, width, 7))
    for number, rate in enumerate(record["decoder_rates"], 1):
        block = f"decoder.model.{number}.block"
        half = channels // 2
        found |= snake(f"{block}.0", channels) | normed(f"{block}.1", (channels, half, 2 * rate), half)
        found |= units(block, 2, half)
        channels = half
    last = len(record["decoder_rates"])
    return found | snake(f"decoder.model.{last + 1}", channels) | normed(f"decoder.model.{last + 2}", (1, channels, 7))


def tensor(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Return a random tensor, float32, that depends only on its name and the seed."""
    random = np.random.default_rng([crc32(name.encode()), seed]).standard_normal(shape, np.float32)
    if name.endswith("alpha"):
        random = 1 + 0.3 * random.clip(-2, 2)
    elif name.endswith(("norm.weight", "original0", "weight_g")):
        random = 1 + 0.1 * random.clip(-2, 2)
    elif name.endswith("gamma"):
        random *= 0.3
    elif name.endswith("bias"):
        random *= 0.1
    elif not name.endswith("codebook.weight"):
        random *= math.prod(shape[1:]) ** -0.5
    return torch.from_numpy(random)


def tensors(kind: str = "small", seed: int = 0) -> dict[str, Tensor]:
    """Return the trained tensors of a codec."""
    record = KINDS[kind]
    found = {name: tensor(name, shape, seed) for name, shape in shapes_of(record).items()}
    found[f"decoder.model.{len(record['decoder_rates']) + 2}.conv.parametrizations.weight.original0"] *= LEVEL
    return found


def buffers(record: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of the published file that are not trained, and that nothing reads."""
    modules = (f"encoder.block.{len(record['encoder_rates'])}.block.5", "quantizer.pre_module", "quantizer.post_module")
    made = {"freqs_cis": torch.zeros(16, 32, 2, dtype=torch.bfloat16), "causal_mask": torch.ones(16, 16).tril().bool()}
    return {f"{module}.{name}": each.clone() for module in modules for name, each in made.items()}


def write_codec(folder: Path, kind: str = "small", seed: int = 0) -> Path:
    """Write a codec to `codec.pth` in a folder, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(tensors(kind, seed) | buffers(KINDS[kind]), folder / FILE)
    return folder


if __name__ == "__main__":
    print(json.dumps({"written": str(write_codec(Path(sys.argv[1]), "".join(sys.argv[2:3]) or "small"))}))
