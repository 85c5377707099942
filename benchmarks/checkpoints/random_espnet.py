"""ESPnet's DAC with published strides, kernels and names, but few channels and random weights."""

import math
from pathlib import Path
from typing import Any

import torch
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
            "quantizer_target_bandwidth": [0.25, 0.75],  # 5 bits at 50 Hz are 0.25 kb/s per codebook
        },
    },
}


def published_tensors(seed: int = 0, codebooks: int = CODEBOOKS, size: int = SIZE) -> dict[str, Tensor]:
    """Return random tensors with the names and shapes of an ESPnet checkpoint, large enough for distinct samples."""
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
    """Write both published files; return the directory."""
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    torch.save(tensors, directory / "360epoch.pth")
    return directory


def write_codec(directory: Path, codebook_size: int, seed: int = 0) -> Path:
    """Write OpusLM's codec: eight codebooks at 16 kHz and 50 Hz."""
    codebooks, conf = 8, CONFIG["codec_conf"]
    bandwidth = math.log2(codebook_size) * 50 * codebooks / 1000 + 0.01
    numbers = {"quantizer_n_q": codebooks, "quantizer_bins": codebook_size, "quantizer_target_bandwidth": [bandwidth]}
    config = {"codec": "dac", "codec_conf": {**conf, "generator_params": conf["generator_params"] | numbers}}
    directory.mkdir(parents=True, exist_ok=True)
    return publish(directory, published_tensors(seed, codebooks, codebook_size), config)
