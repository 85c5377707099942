"""Releases in the layouts of Orpheus and SNAC with random weights: small, or of the published widths."""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lab.releases.random_espnet import random_tensor, write_tokenizer
from lab.releases.random_tensors import split_weights

CODES = 48
PLACES = 7  # codes of a frame
ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
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
PUBLISHED_SNAC = SNAC | {"encoder_dim": 48, "decoder_dim": 1024, "codebook_size": 4096}
NUM_TEXT_IDS = 128256
# begin and end of speech, relative to the first code
SPEECH_BEFORE_CODES = -9
END_BEFORE_CODES = -8


def snac_tensor(name: str, shape: tuple[int, ...]) -> Tensor:
    """Return the random tensor for a published name. Convolution weights are split into magnitude and direction."""
    noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if name.endswith("alpha"):
        return torch.from_numpy(1 + np.abs(noise))
    if name.endswith("original0"):  # small in the last layer, to keep samples within [-1, 1]
        return torch.from_numpy((0.7 + 0.2 * np.abs(noise)) * np.float32(0.05 if len(noise) == 1 else 1.0))
    return torch.from_numpy(0.1 * noise if name.endswith("bias") else noise)


def published_shapes(plain: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return published names and shapes for the decoder tensors `plain`, and for one encoder tensor."""
    found: dict[str, tuple[int, ...]] = {"encoder.block.0.bias": (4,)}
    for name, tensor in plain.items():
        module, _, kind = name.rpartition(".")
        if kind == "weight" and tensor.ndim == 3:
            found[f"{module}.parametrizations.weight.original0"] = (len(tensor), 1, 1)
            found[f"{module}.parametrizations.weight.original1"] = tuple(tensor.shape)
        else:
            found[name] = tuple(tensor.shape)
    return found


def write_snac(folder: Path, config: Mapping[str, Any] = SNAC) -> Path:
    """Write a folder in SNAC's published layout."""
    from stretto_orpheus.snac import SnacCodec, read_config

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    shapes = published_shapes(SnacCodec(read_config(folder)).state_dict())
    torch.save({name: snac_tensor(name, shape) for name, shape in shapes.items()}, folder / "pytorch_model.bin")
    return folder


def write_release(folder: Path, num_shards: int = 4) -> Path:
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
        rope_parameters={**ROPE, "original_max_position_embeddings": 128},
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
    if num_shards > 1:
        split_weights(folder, num_shards)
    (folder / "config.json").write_text(json.dumps({**config.to_dict(), "dtype": "float32"}))
    return folder


def write_published_tokenizer(folder: Path) -> None:
    """Write a byte-level BPE whose markers and codes have the published ids."""
    markers = {"<|begin_of_text|>": 128000, "<|eot_id|>": 128009}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    spelled = alphabet + [f"unused{index}" for index in range(len(alphabet), NUM_TEXT_IDS)]
    for name, index in markers.items():
        spelled[index] = name
    tokenizer = Tokenizer(models.BPE(vocab={each: index for index, each in enumerate(spelled)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(markers))
    tokenizer.add_tokens([f"<custom_token_{index}>" for index in range(10 + PLACES * 4096)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|eot_id|>").save_pretrained(folder)


def llama_config(num_layers: int, **sizes: int) -> LlamaConfig:
    """Return the published config of Orpheus with fewer layers, and with other `sizes`."""
    published: dict[str, Any] = {
        "vocab_size": 156940,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 16384,  # published: 131072, more than a small cache holds
    }
    return LlamaConfig(
        **published | sizes,
        num_hidden_layers=num_layers,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        rope_parameters={**ROPE, "original_max_position_embeddings": 8192},
    )


def ordered_tensors(config: LlamaConfig, first_code: int, num_codes: int = 4096) -> dict[str, Tensor]:
    """Return random tensors that generate the codes of a frame in order.

    The authors' code drops ids that are out of place. The last layer therefore computes the place of the next row from
    that of the newest one, in the first columns of the width. Code 0, which the authors' code drops as well, and the
    end of speech do not occur.
    """
    with torch.device("meta"):
        shapes = {name: tuple(each.shape) for name, each in LlamaForCausalLM(config).state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    dtype = torch.bfloat16
    tensors = dict[str, Tensor]()
    for name, shape in shapes.items():
        if name != "lm_head.weight":
            tensors[name] = random_tensor(name, shape, generator).to(dtype).contiguous()
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                tensors[name][:PLACES] = 0
    table = tensors["model.embed_tokens.weight"]
    table[:, :PLACES] = 0
    mlp = f"model.layers.{config.num_hidden_layers - 1}.mlp"
    gate, up, down = (tensors[f"{mlp}.{name}_proj.weight"] for name in ("gate", "up", "down"))
    down[:, :PLACES] = 0
    for place in range(PLACES):
        codes = table[first_code + num_codes * place : first_code + num_codes * (place + 1)]
        codes[:, place] = 20
        codes[0] = 0
        for weight in (gate, up):
            weight[place] = 0
            weight[place, place] = 1
        down[(place + 1) % PLACES, place] = 10
    table[first_code + SPEECH_BEFORE_CODES, PLACES - 1] = 20  # the row before the first place
    table[first_code + END_BEFORE_CODES] = 0
    return tensors


def write_published(folder: Path, num_layers: int) -> Path:
    """Write Orpheus with fewer layers at the published widths in bfloat16, and SNAC in `snac/`."""
    folder.mkdir(parents=True)
    write_published_tokenizer(folder)
    config = llama_config(num_layers)
    save_file(ordered_tensors(config, NUM_TEXT_IDS + 10), folder / "model.safetensors")
    record = config.to_dict() | {"architectures": ["LlamaForCausalLM"], "dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(record))
    write_snac(folder / "snac", PUBLISHED_SNAC)
    return folder
