"""Qwen3-Omni's code2wav in the published layout, with random weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from lab.releases.random_qwen3_codec import scaled
from stretto_qwen3_omni.code2wav import MODEL_TYPE, Code2Wav, read_shape


def code2wav_record(hidden: int = 32, codebooks: int = 16, codes: int = 64) -> dict[str, Any]:
    """Return `code2wav_config` for a small Qwen3-Omni release; strides, kernels and windows are as published."""
    return {
        "attention_bias": False,
        "codebook_size": codes,
        "decoder_dim": 32,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": 48,
        "layer_scale_initial_scale": 0.01,
        "max_position_embeddings": 8000,
        "num_attention_heads": 4,
        "num_hidden_layers": 8,
        "num_key_value_heads": 4,
        "num_quantizers": codebooks,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000,
        "sliding_window": 72,
        "upsample_rates": [8, 5, 4, 3],
        "upsampling_ratios": [2, 2],
    }


def code2wav_tensors(record: Mapping[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Return random code2wav tensors by name, drawn in the same way as the codec's tensors."""
    rng = np.random.default_rng(seed)
    return {
        name: scaled(name, torch.from_numpy(rng.standard_normal(tuple(tensor.shape), dtype=np.float32)))
        for name, tensor in sorted(Code2Wav(read_shape(record)).state_dict().items())
    }


def write_code2wav(folder: Path) -> Path:
    """Write code2wav's `config.json` and `model.safetensors` to a new folder, as `stretto convert` does."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {"model_type": MODEL_TYPE, "decoder_config": code2wav_record()}
    (folder / "config.json").write_text(json.dumps(record))
    save_file(code2wav_tensors(code2wav_record()), folder / "model.safetensors")
    return folder
