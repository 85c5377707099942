"""Narrow GLM-4-Voice tokenizer with random weights in the published layout."""

import json
import math
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from stretto.encoders.whisper_vq import CONFIG, FEATURES, WhisperVq, WhisperVqConfig

NUM_CODES = 64
RECORD = {
    "model_type": "whisper",
    "activation_function": "gelu",
    "d_model": 32,
    "encoder_layers": 4,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "num_mel_bins": 128,
    "max_source_positions": 1500,
    "encoder_causal_attention": False,
    "encoder_causal_convolution": True,
    "pooling_kernel_size": 4,
    "pooling_position": 2,
    "pooling_type": "avg",
    "quantize_causal_block_size": 20,
    "quantize_causal_encoder": False,
    "quantize_encoder_only": True,
    "quantize_ema_decay": 0.99,
    "quantize_position": 2,
    "quantize_vocab_size": NUM_CODES,
    "vocab_size": 51866,
}
PREPROCESSOR = {
    "chunk_length": 30,
    "feature_extractor_type": "WhisperFeatureExtractor",
    "feature_size": 128,
    "hop_length": 160,
    "n_fft": 400,
    "n_samples": 480000,
    "nb_max_frames": 3000,
    "padding_side": "right",
    "padding_value": 0.0,
    "return_attention_mask": False,
    "sampling_rate": 16000,
}


def write_glm4_tokenizer(folder: Path, prefix: str = "", **values: object) -> Path:
    """Write `config.json` (with `values`), `preprocessor_config.json` and `model.safetensors` to a new folder.

    Args:
        folder: Folder to be made.
        prefix: Prefix of the tensors' names. Published are a complete model, `model.encoder.`, and the encoder alone.
        **values: Entries of `config.json` to replace.
    """
    folder.mkdir(parents=True, exist_ok=True)
    record = RECORD | values
    (folder / CONFIG).write_text(json.dumps(record))
    (folder / FEATURES).write_text(json.dumps(PREPROCESSOR))
    tensors = random_weights(WhisperVqConfig.from_record(RECORD))
    save_file({f"{prefix}{name}": tensor for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


def random_weights(config: WhisperVqConfig) -> dict[str, Tensor]:
    """Return the encoder's tensors, drawn by numpy in the order of their names, with those that only training uses."""
    rng, drawn = np.random.default_rng(0), dict[str, Tensor]()
    for name, tensor in sorted(WhisperVq(config).state_dict().items()):
        values = torch.from_numpy(rng.standard_normal(tuple(tensor.shape), dtype=np.float32))
        if tensor.dim() == 1:
            drawn[name] = (1 if "norm.weight" in name else 0) + 0.1 * values
        elif "embed_positions" in name:
            drawn[name] = 0.1 * values
        else:
            drawn[name] = values * (1 if name.startswith("codebook") else 2 / math.sqrt(tensor[0].numel()))
    drawn["embed_positions2.weight"] = drawn["embed_positions.weight"][: -(-config.positions // config.pool)].clone()
    return drawn | {"ema_count": torch.ones(config.codes), "ema_weight": drawn["codebook.weight"].clone()}
