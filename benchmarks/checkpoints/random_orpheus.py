"""Small Orpheus and SNAC releases in the published layouts, with random weights derived from the tensor names."""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.checkpoints.random_espnet import random_tensor, write_tokenizer

CODES = 48
SNAC: dict[str, Any] = {
    "sampling_rate": 24000,
    "encoder_dim": 4,
    "encoder_rates": [2, 4, 8, 8],
    "decoder_dim": 64,
    "decoder_rates": [8, 8, 4, 2],
    "attn_window_size": None,
    "codebook_size": CODES,
    "codebook_dim": 8,
    "vq_strides": [4, 2, 1],
    "noise": True,
    "depthwise": True,
}


def snac_tensor(name: str, shape: tuple[int, ...]) -> Tensor:
    """Return the random tensor for a published name; convolution weights are split into magnitude and direction."""
    noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if name.endswith("alpha"):
        return torch.from_numpy(1 + np.abs(noise))
    if name.endswith("original0"):  # small in the last layer, to keep samples within [-1, 1]
        return torch.from_numpy((0.7 + 0.2 * np.abs(noise)) * np.float32(0.05 if len(noise) == 1 else 1.0))
    return torch.from_numpy(0.1 * noise if name.endswith("bias") else noise)


def published_shapes(plain: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return published tensor names and shapes for the decoder tensors `plain`, plus one encoder tensor."""
    found: dict[str, tuple[int, ...]] = {"encoder.block.0.bias": (4,)}
    for name, tensor in plain.items():
        module, _, kind = name.rpartition(".")
        if kind == "weight" and tensor.ndim == 3:
            found[f"{module}.parametrizations.weight.original0"] = (len(tensor), 1, 1)
            found[f"{module}.parametrizations.weight.original1"] = tuple(tensor.shape)
        else:
            found[name] = tuple(tensor.shape)
    return found


def write_snac(folder: Path) -> Path:
    """Write a folder in the published SNAC layout."""
    from stretto_orpheus.snac import SnacCodec, read_config

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(SNAC))
    shapes = published_shapes(SnacCodec(read_config(folder)).state_dict())
    torch.save({name: snac_tensor(name, shape) for name, shape in shapes.items()}, folder / "pytorch_model.bin")
    return folder


def write_release(folder: Path) -> Path:
    """Write a folder in the published Orpheus layout: Llama with a tied head, and codes as the last tokens."""
    write_tokenizer(folder, 300)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    custom = [f"<custom_token_{number}>" for number in range(11)]
    tokenizer.add_special_tokens(["<|begin_of_text|>", "<|eot_id|>", *custom])
    tokenizer.save(str(folder / "tokenizer.json"))
    first_code = tokenizer.token_to_id(custom[-1])
    assert first_code is not None
    config = LlamaConfig(
        vocab_size=first_code + 7 * CODES + 2,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 128,
        },
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: random_tensor(name, tuple(tensor.shape), generator).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**config.to_dict(), "dtype": "float32"}))
    return folder
