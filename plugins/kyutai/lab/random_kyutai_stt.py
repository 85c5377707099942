"""Randomly initialised releases in Kyutai's published layout: small, except for `SIZES_1B`.

Each weight depends only on its published name and a seed.
"""

import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
from safetensors.torch import save_file
from transformers import MimiConfig, MimiModel

TEXT = [
    "the garden door is open and it is twenty past nine",
    "who said that the birch canoe slid on the smooth planks",
    "we never know what a long day brings to those who wait",
    "come in and sit down by the fire my friend",
    "one two three four five six seven eight nine ten",
    "pauses are part of speech as much as words are",
]
MOST_IDS_OF_TEXT = 100  # tokenizers with more ids are trained on random words, too
CONFIG: dict[str, Any] = {
    "dim": 64,
    "num_heads": 2,
    "num_layers": 3,
    "hidden_scale": 4.125,
    "causal": True,
    "layer_scale": None,
    "gating": "silu",
    "norm": "rms_norm_f32",
    "positional_embedding": "rope",
    "existing_text_padding_id": 3,
    "mimi_name": "mimi-pytorch-e351c8d8@125.safetensors",
    "mimi_config_name": "mimi.json",  # only in small releases
    "tokenizer_name": "tokenizer_en_fr_audio_8000.model",
    "model_type": "stt",
    "text_card": 96,
    "card": 64,
    "n_q": 32,
    "dep_q": 0,
    "context": 20,
    "max_period": 100000,
    "delays": [0] * 33,
    "fuser": None,
    "conditioners": {},
    "depformer_dim": 32,
    "depformer_multi_linear": True,
    "extra_heads_num_heads": 4,
    "extra_heads_dim": 6,
    "stt_config": {"audio_delay_seconds": 0.5, "audio_silence_prefix_seconds": 0.0},
    "lm_gen_config": {"temp": 0.0, "temp_text": 0.0, "top_k": 250, "top_k_text": 50},
}
# Fields of config.json with the sizes of kyutai/stt-1b-en_fr.
SIZES_1B: dict[str, Any] = {
    "dim": 2048,
    "num_heads": 16,
    "num_layers": 16,
    "text_card": 8000,
    "card": 2048,
    "context": 750,
}
MIMI = MimiConfig(
    hidden_size=32,
    num_filters=4,
    upsampling_ratios=[8, 6, 5, 4],
    codebook_size=64,
    codebook_dim=16,
    num_quantizers=32,
    vector_quantization_hidden_dimension=16,
    upsample_groups=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=8,
    intermediate_size=64,
    sliding_window=20,
)
# The same configuration in the authors' format; only fields that are read.
MIMI_RECORD: dict[str, Any] = {
    "seanet": {"dimension": 32, "n_filters": 4, "ratios": [8, 6, 5, 4]},
    "quantizer": {"dimension": 16, "n_q": 32, "bins": 64},
    "transformer": {"d_model": 32, "num_heads": 4, "num_layers": 2, "context": 20, "dim_feedforward": 64},
}
# Mimi tensor names in transformers -> published names.
PUBLISHED = [
    (r"^(encoder|decoder)\.layers\.", r"\1.model."),
    (r"^(encoder|decoder)_transformer\.", r"\1_transformer.transformer."),
    (r"^decoder\.model\.(2|5|8|11)\.conv\.", r"decoder.model.\1.convtr.convtr."),
    (r"^upsample\.conv\.", "upsample.convtr.convtr.convtr."),
    (r"^downsample\.conv\.", "downsample.conv.conv.conv."),
    (r"^((?:encoder|decoder)\.model\.[\d.]+(?:block\.\d\.)?)conv\.(weight|bias)", r"\1conv.conv.\2"),
    (r"\.input_layernorm\.", ".norm1."),
    (r"\.post_attention_layernorm\.", ".norm2."),
    (r"\.self_attn_layer_scale\.", ".layer_scale_1."),
    (r"\.mlp_layer_scale\.", ".layer_scale_2."),
    (r"\.mlp\.fc(\d)\.", r".linear\1."),
    (r"\.self_attn\.o_proj\.", ".self_attn.out_proj."),
    (r"^quantizer\.semantic_residual_vector_quantizer\.", "quantizer.rvq_first."),
    (r"^quantizer\.acoustic_residual_vector_quantizer\.", "quantizer.rvq_rest."),
    (r"\.layers\.(\d+)\.codebook\.embed_sum", r".vq.layers.\1._codebook.embedding_sum"),
    (r"\.layers\.(\d+)\.codebook\.cluster_usage", r".vq.layers.\1._codebook.cluster_usage"),
    (r"\.layers\.(\d+)\.codebook\.initialized", r".vq.layers.\1._codebook._initialized"),
]


def values(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Return the random weight for a published name, as the test oracle draws it."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    if name.endswith(("alpha", "norm_cross.weight", "norm1.weight", "norm2.weight")):
        return torch.from_numpy((1 + 0.1 * rng.standard_normal(shape)).astype(np.float32))
    if name.endswith(("cluster_usage", "initialized")):
        return torch.ones(shape)
    if name.endswith("scale") and len(shape) == 1:
        return torch.full(shape, 0.3)
    is_table = "emb" in name.rsplit(".", 2)[-2] or name.split(".")[0] == "emb" or ".embed." in name
    std = 1.0 if is_table or len(shape) == 1 else 1.5 / np.sqrt(np.prod(shape[1:]))
    if "linear" in name.split(".")[0] and "linear_" not in name:  # heads: clear margins between logits
        std *= 4
    made = (std * rng.standard_normal(shape) * (0.2 if len(shape) == 1 else 1)).astype(np.float32)
    if name == "text_linear.weight":  # word starts and pads are at least as likely as other ids
        made[[0, 3]] *= 2.5
    return torch.from_numpy(made)


def lm_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return a dict from published tensor name to shape for the language model."""
    width = config["dim"]
    inner = (2 * int(config["hidden_scale"] * width)) // 3
    shapes: dict[str, tuple[int, ...]] = {
        "text_emb.weight": (config["text_card"] + 1, width),
        "text_linear.weight": (config["text_card"], width),
        "out_norm.alpha": (1, 1, width),
    }
    for k in range(config["n_q"]):
        shapes[f"emb.{k}.weight"] = config["card"] + 1, width
    for head in range(config["extra_heads_num_heads"]):
        shapes[f"extra_heads.{head}.weight"] = config["extra_heads_dim"], width
    for layer in range(config["num_layers"]):
        prefix = f"transformer.layers.{layer}."
        shapes |= {
            f"{prefix}self_attn.in_proj_weight": (3 * width, width),
            f"{prefix}self_attn.out_proj.weight": (width, width),
            f"{prefix}gating.linear_in.weight": (2 * inner, width),
            f"{prefix}gating.linear_out.weight": (width, inner),
            f"{prefix}norm1.alpha": (1, 1, width),
            f"{prefix}norm2.alpha": (1, 1, width),
        }
    return shapes


def mimi_shapes(config: MimiConfig) -> dict[str, tuple[int, ...]]:
    """Return a dict from published tensor name to shape for Mimi; queries, keys and values are one tensor."""
    with torch.device("meta"):
        model = MimiModel(config)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, tensor in model.state_dict().items():
        for pattern, to in PUBLISHED:
            name = re.sub(pattern, to, name)
        shape = tuple(tensor.shape)
        fused = re.sub(r"[qkv]_proj\.weight$", "in_proj_weight", name)
        shapes[fused] = (3 * shape[0], *shape[1:]) if fused != name else shape
    return shapes


def random_words(number: int) -> list[str]:
    """Return random words of 4 to 9 letters: a corpus for tokenizers of the published sizes."""
    random = np.random.default_rng(3)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    return ["".join(random.choice(letters, size)) for size in random.integers(4, 10, number)]


def write_release(folder: Path, seed: int = 7, **changed: Any) -> Path:
    """Write a release; `changed` replaces fields of its config.json."""
    return _write(folder, seed, {**CONFIG, **changed})


def write_published(folder: Path, seed: int = 7) -> Path:
    """Write a release of the published size, with Mimi and the tokenizer."""
    config = {**CONFIG, **SIZES_1B}
    del config["mimi_config_name"]
    return _write(folder, seed, config)


def _write(folder: Path, seed: int, config: dict[str, Any]) -> Path:
    write_parts(folder, config, seed)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {name: values(name, shape, seed) for name, shape in lm_shapes(config).items()}
    save_file(tensors, folder / config.get("moshi_name", "model.safetensors"))
    return folder


def write_parts(folder: Path, config: dict[str, Any], seed: int) -> None:
    """Write Mimi and the tokenizer of a release to `folder`, which is created.

    Mimi has its published size if `config` has no `mimi_config_name`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mimi = MimiConfig()
    if "mimi_config_name" in config:
        mimi = MimiConfig(**{**MIMI.to_diff_dict(), "codebook_size": config["card"]})
        quantizer = MIMI_RECORD["quantizer"] | {"bins": config["card"]}
        (folder / config["mimi_config_name"]).write_text(json.dumps({**MIMI_RECORD, "quantizer": quantizer}))
    tensors = {name: values(name, shape, seed + 1) for name, shape in mimi_shapes(mimi).items()}
    save_file(tensors, folder / config["mimi_name"])
    corpus = folder / "text.txt"
    prefix = folder / Path(config["tokenizer_name"]).stem
    others = random_words(3 * config["text_card"]) if config["text_card"] > MOST_IDS_OF_TEXT else []
    corpus.write_text("\n".join([*TEXT * 4, *others]))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(prefix),
        vocab_size=config["text_card"],
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=3,
        model_type="bpe",
        minloglevel=2,
        num_threads=1,
    )
    corpus.unlink()
    prefix.with_suffix(".vocab").unlink()
