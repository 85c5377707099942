"""The Qwen3-TTS codec and speaker encoder in the published layout, with random weights: wide, small or narrow.

All strides, kernels, windows and codebooks are as published. `small` has an eighth of every width, which preserves the
proportions of the decoder; it has 1.7 M parameters, not counting the codebooks. `narrow` is for tests.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from stretto.codecs.qwen3_12hz.codec import NOT_SERVED, Qwen3Codec
from stretto.codecs.qwen3_12hz.decoder import Qwen3CodecConfig
from stretto.codecs.streaming import prepare
from stretto.encoders.x_vector import SpeakerConfig, SpeakerEncoder

CODEBOOKS = 16
INPUT_CODEBOOKS = 32
LEVEL = 0.15  # factor on the last layer's weights, so that samples are about as loud as speech


def _decoder(*numbers: int) -> dict[str, int]:
    names = "codebook_size codebook_dim latent_dim hidden_size head_dim intermediate_size decoder_dim".split()
    return dict(zip(names, numbers, strict=True))


def _encoder(*numbers: int) -> dict[str, int]:
    names = "num_filters hidden_size intermediate_size codebook_dim head_dim upsample_groups".split()
    return dict(zip(names, numbers, strict=True))


WIDTHS: dict[str, dict[str, dict[str, int]]] = {
    "wide": {"decoder": _decoder(2048, 512, 1024, 512, 64, 1024, 1536), "encoder": {}},
    "small": {"decoder": _decoder(2048, 64, 128, 64, 8, 128, 192), "encoder": _encoder(8, 64, 256, 32, 8, 64)},
    "narrow": {
        "decoder": _decoder(64, 16, 24, 32, 4, 48, 32),
        "encoder": _encoder(4, 32, 64, 16, 4, 32) | {"codebook_size": 64, "num_hidden_layers": 2},
    },
}
PREPROCESSOR = {
    "chunk_length_s": None,
    "feature_extractor_type": "EncodecFeatureExtractor",
    "feature_size": 1,
    "overlap": None,
    "padding_side": "right",
    "padding_value": 0.0,
    "return_attention_mask": True,
    "sampling_rate": 24_000,
}


def record_of(width: str) -> dict[str, Any]:
    """Return the contents of `config.json` for a width."""
    widths = WIDTHS[width]
    decoder = {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "layer_scale_initial_scale": 0.01,
        "max_position_embeddings": 8000,
        "num_attention_heads": 16,
        "num_hidden_layers": 8,
        "num_key_value_heads": 16,
        "num_quantizers": CODEBOOKS,
        "num_semantic_quantizers": 1,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000,
        "semantic_codebook_size": 4096,
        "sliding_window": 72,
        "upsample_rates": [8, 5, 4, 3],
        "upsampling_ratios": [2, 2],
    }
    encoder = {"codebook_size": 2048, "codebook_dim": 256, "num_quantizers": INPUT_CODEBOOKS, "sliding_window": 250}
    encoder |= widths["encoder"]
    encoder["vector_quantization_hidden_dimension"] = encoder["codebook_dim"]
    return {
        "model_type": "qwen3_tts_tokenizer_12hz",
        "decode_upsample_rate": 1920,
        "decoder_config": decoder | widths["decoder"],
        "encode_downsample_rate": 1920,
        "encoder_config": encoder,
        "encoder_valid_num_quantizers": CODEBOOKS,
        "input_sample_rate": 24_000,
        "output_sample_rate": 24_000,
    }


def random_weights(config: Qwen3CodecConfig, seed: int = 0) -> dict[str, Tensor]:
    """Return random weights, drawn in the order of names, that roughly preserve the magnitude of their input."""
    rng = np.random.default_rng(seed)
    drawn = dict[str, Tensor]()
    width = config.decoder.codebook_dim
    shapes = {name: tuple(tensor.shape) for name, tensor in Qwen3Codec(config).state_dict().items()}
    shapes |= dict.fromkeys(NOT_SERVED, (width // 2, width, 1))
    for name, shape in sorted(shapes.items()):
        values = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
        drawn[name] = scaled(name, values)
    drawn[_last(drawn)] *= LEVEL
    return drawn


def _last(names: Mapping[str, Tensor]) -> str:
    """Return the name of the decoder's last weight tensor."""
    numbers = [int(name.split(".")[2]) for name in names if name.startswith("decoder.decoder.")]
    return f"decoder.decoder.{max(numbers)}.conv.weight"


def scaled(name: str, values: Tensor) -> Tensor:
    """Return random values, scaled for a tensor of this name."""
    if name.endswith("initialized"):
        return torch.ones_like(values)
    if name.endswith("cluster_usage"):
        return 1 + 0.2 * values.clamp(-2, 2)
    if name.endswith(("embedding_sum", "embed_sum")):
        return values
    if name.endswith(("scale", "gamma")):
        return 0.3 + 0.05 * values
    if "norm" in name and name.endswith("weight"):
        return 1 + 0.1 * values
    if values.dim() == 1:
        return 0.1 * values
    return values * (0.8 / math.sqrt(values[0].numel()))


def write_qwen3_codec(folder: Path, width: str = "narrow", **values: object) -> Path:
    """Write `config.json` (with `values`), `preprocessor_config.json` and `model.safetensors` to a new folder."""
    folder.mkdir(parents=True, exist_ok=True)
    record = record_of(width)
    (folder / "config.json").write_text(json.dumps(record | values))
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    save_file(random_weights(Qwen3CodecConfig.from_record(record)), folder / "model.safetensors", {"format": "pt"})
    return folder


def make_qwen3_codec(width: str, seed: int = 0) -> Qwen3Codec:
    """Return the codec with random weights."""
    config = Qwen3CodecConfig.from_record(record_of(width))
    codec = Qwen3Codec(config)
    weights = random_weights(config, seed)
    codec.load_state_dict({name: tensor for name, tensor in weights.items() if name not in NOT_SERVED})
    prepare(codec.decoder)
    return codec.eval().requires_grad_(False)


def write_speaker_encoder(folder: Path, record: Mapping[str, Any]) -> Path:
    """Write a speaker encoder's `config.json` and `model.safetensors` to a new folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(record))
    save_file(speaker_tensors(record), folder / "model.safetensors")
    return folder


def speaker_tensors(record: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return random speaker-encoder tensors by name."""
    network = SpeakerEncoder(SpeakerConfig.from_record(record)).network
    rng = np.random.default_rng(5)
    return {
        name: scaled(name, torch.from_numpy(rng.standard_normal(tuple(tensor.shape), dtype=np.float32)))
        for name, tensor in sorted(network.state_dict().items())
    }
