"""A randomly initialised NanoCodec, as the `.nemo` archive in which NVIDIA publishes it.

    python -m plugins.magpie.lab.random_nanocodec PATH [KIND]

KIND is `small` (few channels and codes), `other` (small, with other rates and levels) or `published`.
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

from plugins.magpie.lab.nemo_archive import write_nemo

MODULES = "nemo.collections.tts.modules.audio_codec_modules"
LEVEL = 0.3  # factor on the norm of the last convolution, so that few samples are clipped


def config(levels: list[int], groups: int, channels: int, rates: list[int]) -> dict[str, Any]:
    """Return the contents of `model_config.yaml`."""
    width = groups * len(levels)
    return {
        "sample_rate": 22050,
        "samples_per_frame": math.prod(rates),
        "audio_encoder": {"_target_": f"{MODULES}.CausalHiFiGANEncoder", "encoded_dim": width},
        "audio_decoder": {
            "_target_": f"{MODULES}.CausalHiFiGANDecoder",
            "up_sample_rates": rates,
            "input_dim": width,
            "base_channels": channels,
            "activation": "half_snake",
            "output_activation": "clamp",
            "pad_mode": "zeros",
            "n_groups_equal_to_out_channels": True,
        },
        "vector_quantizer": {
            "_target_": f"{MODULES}.GroupFiniteScalarQuantizer",
            "num_groups": groups,
            "num_levels_per_group": levels,
        },
    }


KINDS = {
    "small": config([4, 3, 3, 2], 8, 64, [8, 8, 4, 2, 2]),
    "other": config([5, 2, 4], 3, 20, [5, 3]),
    "published": config([8, 7, 6, 6], 8, 864, [8, 8, 4, 2, 2]),
}


def normed(name: str, shape: tuple[int, ...], num_outputs: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a convolution with a weight norm."""
    norm = f"{name}.conv.parametrizations.weight.original"
    return {f"{name}.conv.bias": (num_outputs,), f"{norm}0": (shape[0], 1, 1), f"{norm}1": shape}


def half_snake(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of an activation's factors."""
    return {f"{name}.activation.snake_act.alpha": (1, channels // 2, 1)}


def decoder_shapes(record: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of the decoder by published name."""
    decoder = record["audio_decoder"]
    channels = decoder["base_channels"]
    shapes = normed("pre_conv", (channels, decoder["input_dim"], 7), channels)
    for stage, rate in enumerate(decoder["up_sample_rates"]):
        shapes |= half_snake(f"activations.{stage}", channels)
        half = channels // 2
        shapes |= normed(f"up_sample_conv_layers.{stage}", (channels, 1, 2 * rate), half)
        channels = half
        for branch, kernel in enumerate((3, 7, 11)):
            for unit in range(3):
                name = f"res_layers.{stage}.res_blocks.{branch}.res_blocks.{unit}"
                for part in ("input", "skip"):
                    shapes |= half_snake(f"{name}.{part}_activation", channels)
                    shapes |= normed(f"{name}.{part}_conv", (channels, channels, kernel), channels)
    shapes |= half_snake("post_activation", channels) | normed("post_conv", (1, channels, 3), 1)
    return {f"audio_decoder.{name}": shape for name, shape in shapes.items()}


def tensor(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Return a random tensor, float32, that depends only on its name and the seed."""
    random = np.random.default_rng([crc32(name.encode()), seed]).standard_normal(shape, np.float32)
    if name.endswith("alpha"):
        random = 1 + 0.3 * random.clip(-2, 2)
    elif name.endswith("original0"):
        random = 1 + 0.1 * random.clip(-2, 2)
    elif name.endswith("bias"):
        random *= 0.1
    return torch.from_numpy(random)


def tensors(kind: str = "small", seed: int = 0) -> dict[str, Tensor]:
    """Return the tensors of an archive by name. Of other networks than the decoder, there are a few."""
    record = KINDS[kind]
    published = {name: tensor(name, shape, seed) for name, shape in decoder_shapes(record).items()}
    published["audio_decoder.post_conv.conv.parametrizations.weight.original0"] *= LEVEL
    quantizer = record["vector_quantizer"]
    levels = torch.tensor(quantizer["num_levels_per_group"], dtype=torch.int32)
    for group in range(quantizer["num_groups"]):
        published[f"vector_quantizer.fsqs.{group}.num_levels"] = levels[None, :, None].clone()
    published["audio_encoder.pre_conv.conv.bias"] = torch.ones(4)
    return published


def write_codec(path: Path, kind: str = "small", seed: int = 0) -> Path:
    """Write a codec's archive and return its path."""
    return write_nemo(path, KINDS[kind], tensors(kind, seed))


if __name__ == "__main__":
    print(json.dumps({"written": str(write_codec(Path(sys.argv[1]), "".join(sys.argv[2:3]) or "small"))}))
